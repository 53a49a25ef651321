//! One link to a client, whatever its transport: what the edge, the inbox and the fanout share.
//!
//! A connection costs a client's worth of memory for as long as it lives, so it holds flags and
//! counters, and nothing that is only needed once commands arrive.

use std::{
    collections::HashMap,
    net::IpAddr,
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use carillon_domain::contract::Rate;
use carillon_redis_adapter::{Broadcast, Tap};
use foldhash::fast::RandomState;
use futures_util::task::AtomicWaker;
use socketioxide::socket::Sid;
use tokio::sync::Notify;

use crate::{
    edge::{
        outlet::{Flushed, Outlet, Tcp},
        upgrade::Polling,
    },
    http::origin::OriginId,
    inbox::Inbox,
    metrics::Metrics,
    strangers::{Overrun, Stranger, Strangers, Waiting},
};

/// Slots of a connection's outbound queue in the engine. Never the limit, because what does not
/// fit would be dropped silently: bytes and messages that wait are counted here.
pub const OUTBOUND_SLOTS: usize = 1 << 16;
/// Messages waiting for a client; the rest of the slots is for what the engine itself answers.
const MAX_BACKLOG: usize = OUTBOUND_SLOTS / 2;
/// Bytes that may always be on their way.
const NEXT_TO_NOTHING: u64 = 4_096;
/// Clients written to before everybody else has a turn.
const BREATH: usize = 32;
/// A client that posts has asked for what waits within this; a real one always has a poll open.
const ABANDONED: Duration = Duration::from_secs(30);

/// Milliseconds since the first use in this process; 0 stands for "not".
fn now_ms() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let start = START.get_or_init(Instant::now);
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
}

/// Why the server ends a connection. The transport is closed, so that the client comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// It does not read what is sent to it.
    SlowConsumer,
    /// It shows one bad token after another.
    Refused,
    /// It sends more than it waits for.
    Overloaded,
    /// Its user, or the key of its token, could not be looked up.
    Unavailable,
    /// This node is going away.
    Draining,
    /// What it missed could not be read.
    Gap,
    /// It missed more than it is sent at once, and is to begin anew.
    TooMuch,
    /// It has not said whose it is, and there are too many like it.
    Unauthenticated,
    /// It broke off a poll: on polling, that is how a client leaves.
    Left,
}

impl Closing {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SlowConsumer => "slow_consumer",
            Self::Refused => "refused",
            Self::Overloaded => "overloaded",
            Self::Unavailable => "unavailable",
            Self::Draining => "draining",
            Self::Gap => "gap",
            Self::TooMuch => "too_much",
            Self::Unauthenticated => "unauthenticated",
            Self::Left => "left",
        }
    }
}

/// One link. Shared by its sockets in several namespaces.
#[derive(Default)]
pub struct Connection {
    /// The bearer token of the handshake's header, if there was one.
    pub bearer: Option<Box<str>>,
    /// The page it comes from.
    pub origin: Option<OriginId>,
    pub inbox: Inbox,
    pub reader: AtomicWaker,
    pub writer: AtomicWaker,
    pub resumed: Notify,
    sid: OnceLock<Sid>,
    /// Its place among those who have not authenticated, until it has.
    stranger: Mutex<Option<Box<Stranger>>>,
    /// Set when it began by polling.
    polling: Option<Box<Polling>>,
    /// `WebSockets` under it: one, or two while a second one is being turned away.
    streams: AtomicUsize,
    has_streamed: AtomicBool,
    is_killed: AtomicBool,
    /// A socket of it was let in.
    has_entered: AtomicBool,
    /// It is closed with the next sweep: what it was answered has gone out by then.
    is_condemned: AtomicBool,
    /// When the client last asked for what waits, on polling.
    polled_at: AtomicU64,
    /// When reading was paused, and since when nothing that waits has been taken.
    paused_since: AtomicU64,
    stalled_since: AtomicU64,
    /// Bytes handed to the engine, and bytes that left it.
    queued: AtomicU64,
    written: AtomicU64,
    /// Messages queued since next to nothing waited.
    backlog: AtomicUsize,
    /// Bytes of the largest of them.
    largest: AtomicU64,
    is_posting: AtomicBool,
    /// A poll of its client's waits.
    is_polled: AtomicBool,
    pending_renames: AtomicUsize,
    renames: Mutex<Vec<Rename>>,
    /// Where events go past the engine, if they can.
    outlet: OnceLock<Box<Outlet>>,
}

/// A CONNECT reply on its way: the engine's session id in it is a secret.
#[derive(Debug)]
pub struct Rename {
    pub from: Box<[u8]>,
    pub to: Box<[u8]>,
}

impl Connection {
    /// `polling` where it begins by that.
    pub fn new(bearer: Option<Box<str>>, polling: Option<Polling>) -> Self {
        let polling = polling.map(Box::new);
        Self { bearer, polling, polled_at: now_ms().into(), ..Self::default() }
    }

    /// Notes the page it comes from.
    #[must_use]
    pub fn on_page(self, origin: Option<OriginId>) -> Self {
        Self { origin, ..self }
    }

    /// A socket of it has proved whose it is, and was let in.
    pub fn enter(&self) {
        self.has_entered.store(true, Ordering::Relaxed);
        self.excuse();
    }

    /// Nobody was let in by it, and it is closed within a second.
    pub fn condemn(&self) {
        let is_strange = !self.has_entered.load(Ordering::Relaxed);
        self.is_condemned.store(is_strange, Ordering::Relaxed);
    }

    pub fn sid(&self) -> Option<Sid> {
        self.sid.get().copied()
    }

    fn stranger(&self) -> Option<Box<Stranger>> {
        self.stranger.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// It is not, or no more, to be counted among those who have proved nothing.
    pub fn excuse(&self) {
        if let Some(stranger) = self.stranger() {
            stranger.becomes_known();
        }
    }

    /// It is over, though the engine may hold on to it for a while.
    pub fn ended(&self) {
        drop(self.stranger());
        if let Some(polling) = &self.polling {
            polling.let_go();
        }
    }

    /// Where events go past the engine, if they can.
    pub fn outlet(&self) -> Option<&Outlet> {
        self.outlet.get().map(|outlet| &**outlet)
    }

    /// Nothing more is written past the engine.
    pub fn end_outlet(&self) {
        if let Some(outlet) = self.outlet() {
            outlet.end();
            self.resumed.notify_waiters();
        }
    }

    /// Writes what waits in the outlet, as far as the client takes it; the rest when it takes more.
    pub fn flush(self: &Arc<Self>) {
        if self.flush_now() == Some(true)
            && let Some(outlet) = self.outlet()
            && outlet.wait()
        {
            tokio::spawn(self.clone().flush_later());
        }
    }

    /// Whether the client takes no more; `None` where nothing can be written any more.
    fn flush_now(&self) -> Option<bool> {
        if self.is_killed() {
            return None;
        }
        let outlet = self.outlet()?;
        let Ok(flushed) = outlet.flush() else {
            // Whoever reads from it finds out why.
            outlet.end();
            return None;
        };
        Some(self.has_flushed(flushed))
    }

    /// Counts what was written; true when the client takes no more.
    pub fn has_flushed(&self, flushed: Flushed) -> bool {
        let (Flushed::All(written) | Flushed::Held(written) | Flushed::Blocked(written)) = flushed;
        if written > 0 {
            self.count_written(written);
        }
        match flushed {
            // Somebody else may have written it all after it was blocked, and before that was said.
            Flushed::All(_) => self.goes_on(),
            Flushed::Held(_) => {}
            Flushed::Blocked(_) => self.has_stalled(),
        }
        matches!(flushed, Flushed::Blocked(_))
    }

    async fn flush_later(self: Arc<Self>) {
        let Some(outlet) = self.outlet() else { return };
        loop {
            let mut interrupted = std::pin::pin!(self.resumed.notified());
            interrupted.as_mut().enable();
            if self.is_killed() || outlet.is_over() {
                return;
            }
            tokio::select! {
                _ = outlet.writable() => {}
                () = interrupted => continue,
            }
            outlet.waited();
            if self.flush_now() != Some(true) || !outlet.wait() {
                return;
            }
        }
    }

    /// What it has beside others when it began by polling.
    pub fn polling(&self) -> Option<&Polling> {
        self.polling.as_deref()
    }

    /// Whether there is no WebSocket under it (yet).
    pub fn is_polling(&self) -> bool {
        self.polling.is_some() && self.streams.load(Ordering::Acquire) == 0
    }

    /// The client asks for what waits.
    pub fn poll_begun(&self) {
        self.polled_at.store(now_ms(), Ordering::Relaxed);
        self.is_polled.store(true, Ordering::Release);
    }

    /// Its poll is answered, or broken off.
    pub fn poll_ended(&self) {
        self.polled_at.store(now_ms(), Ordering::Relaxed);
        self.is_polled.store(false, Ordering::Release);
    }

    /// Begins the one POST a polling client may have open; `None` while another one is.
    pub fn begin_post(&self) -> Option<Posting<'_>> {
        (!self.is_posting.swap(true, Ordering::AcqRel)).then_some(Posting(self))
    }

    fn is_polled(&self) -> bool {
        self.is_polled.load(Ordering::Acquire)
    }

    /// Whether it sends without ever asking for answers, on polling.
    pub fn is_abandoned(&self) -> bool {
        self.has_not_polled_for(ABANDONED)
    }

    /// A poll may wait for as long as there is nothing to say, which is until the next ping.
    fn has_not_polled_for(&self, limit: Duration) -> bool {
        let silent = now_ms().saturating_sub(self.polled_at.load(Ordering::Relaxed));
        !self.is_polled() && u128::from(silent) > limit.as_millis()
    }

    /// Whether there is neither a WebSocket nor polling any more.
    fn has_ended(&self) -> bool {
        self.streams.load(Ordering::Acquire) == 0 && (self.has_streamed() || self.polling.is_none())
    }

    fn has_streamed(&self) -> bool {
        self.has_streamed.load(Ordering::Acquire)
    }

    /// A WebSocket carries it from now on.
    pub fn stream_opened(&self) {
        self.streams.fetch_add(1, Ordering::AcqRel);
        self.has_streamed.store(true, Ordering::Release);
        // What polling did not take is the stream's to send.
        self.stalled_since.store(0, Ordering::Relaxed);
    }

    /// True when the last one is gone, and with it the session: the engine does not go back to
    /// polling.
    pub fn stream_closed(&self) -> bool {
        self.streams.fetch_sub(1, Ordering::AcqRel) == 1
    }

    pub fn is_killed(&self) -> bool {
        self.is_killed.load(Ordering::Acquire)
    }

    /// Waits until it is killed.
    pub async fn is_over(&self) {
        loop {
            let mut changed = std::pin::pin!(self.resumed.notified());
            changed.as_mut().enable();
            if self.is_killed() {
                return;
            }
            changed.await;
        }
    }

    /// Stops reading from the client until [`Self::resume`].
    pub fn pause(&self) {
        let _ =
            self.paused_since.compare_exchange(0, now_ms(), Ordering::AcqRel, Ordering::Relaxed);
    }

    pub fn resume(&self) {
        if self.paused_since.swap(0, Ordering::AcqRel) != 0 {
            self.reader.wake();
            self.resumed.notify_waiters();
        }
    }

    pub fn is_paused(&self) -> bool {
        self.paused_since.load(Ordering::Acquire) != 0
    }

    /// Waits while reading is paused; what a polling POST does.
    pub async fn readable(&self) {
        loop {
            let resumed = self.resumed.notified();
            if !self.is_paused() || self.is_killed() {
                return;
            }
            resumed.await;
        }
    }

    /// Bytes that wait for the client.
    pub fn unsent(&self) -> u64 {
        self.queued.load(Ordering::Relaxed).saturating_sub(self.written.load(Ordering::Relaxed))
    }

    /// Bytes have left for the client.
    pub fn count_written(&self, bytes: usize) {
        // What the engine writes by itself was never counted in; it must not count for later.
        let queued = self.queued.load(Ordering::Relaxed);
        let _ = self.written.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |written| {
            Some((written + bytes as u64).min(queued))
        });
        self.goes_on();
    }

    /// The client takes something again, or there is nothing to take.
    fn goes_on(&self) {
        if self.is_stalled() {
            self.stalled_since.store(0, Ordering::Relaxed);
            self.reader.wake();
        }
    }

    /// Whether the client takes nothing: then it is not listened to either, or its requests would
    /// pile up answers.
    pub fn is_stalled(&self) -> bool {
        self.stalled_since.load(Ordering::Relaxed) != 0
    }

    /// Counts a message in; says how many waited before it at most, and how many bytes beside the
    /// largest one: a single answer may be larger than what may wait.
    fn count_queued(&self, bytes: usize) -> (usize, u64) {
        let before = self.unsent();
        let bytes = bytes as u64;
        self.queued.fetch_add(bytes, Ordering::Relaxed);
        if before < NEXT_TO_NOTHING {
            self.backlog.store(1, Ordering::Relaxed);
            self.largest.store(bytes, Ordering::Relaxed);
            return (0, before);
        }
        let largest = self.largest.fetch_max(bytes, Ordering::Relaxed);
        (self.backlog.fetch_add(1, Ordering::Relaxed), before.saturating_sub(largest))
    }

    /// The client takes nothing just now.
    pub fn has_stalled(&self) {
        let _ =
            self.stalled_since.compare_exchange(0, now_ms(), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Announces that the engine will send a CONNECT reply with its session id, to be replaced.
    /// The reply that goes out may carry a private id beside the public one.
    pub fn rename(&self, path: &str, sid: Sid, public: &str, private: Option<&str>) {
        let reply = |id: &str, pid: &str| match path {
            "/" => format!("40{{\"sid\":\"{id}\"{pid}}}"),
            path => format!("40{path},{{\"sid\":\"{id}\"{pid}}}"),
        };
        let private = private.map(|pid| format!(",\"pid\":\"{pid}\"")).unwrap_or_default();
        let rename = Rename {
            from: reply(&sid.to_string(), "").into_bytes().into(),
            to: reply(public, &private).into_bytes().into(),
        };
        self.renames().push(rename);
        self.pending_renames.fetch_add(1, Ordering::Release);
    }

    pub fn has_renames(&self) -> bool {
        self.pending_renames.load(Ordering::Acquire) > 0
    }

    fn renames(&self) -> MutexGuard<'_, Vec<Rename>> {
        self.renames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first place any pending rename has in some bytes.
    pub fn next_rename(&self, find: impl Fn(&Rename) -> Option<usize>) -> Option<usize> {
        self.renames().iter().filter_map(find).min()
    }

    /// Takes the rename that `find` locates.
    pub fn take_rename<T>(&self, find: impl Fn(&Rename) -> Option<T>) -> Option<(Rename, T)> {
        let mut renames = self.renames();
        let (index, found) =
            renames.iter().enumerate().find_map(|(index, rename)| Some((index, find(rename)?)))?;
        let rename = renames.swap_remove(index);
        if renames.is_empty() {
            // There are none after a client has come.
            *renames = Vec::new();
        }
        self.pending_renames.fetch_sub(1, Ordering::Release);
        Some((rename, found))
    }
}

/// A POST that is being received; ends when dropped.
pub struct Posting<'a>(&'a Connection);

impl Drop for Posting<'_> {
    fn drop(&mut self) {
        self.0.is_posting.store(false, Ordering::Release);
    }
}

/// The connections of this node, by the engine's session id.
pub struct Connections {
    /// Asked for every delivery; the ids are random, and the engine's own.
    by_sid: RwLock<HashMap<Sid, Arc<Connection>, RandomState>>,
    limits: Limits,
    metrics: Arc<Metrics>,
    strangers: Arc<Strangers>,
    writers: Box<[Writer]>,
    next_writer: AtomicUsize,
    /// Rung when a session was killed that may be polling: only a request can end it.
    pub killed_polling: Notify,
}

/// When a connection has had enough.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub unsent_bytes: u64,
    pub stalled: Duration,
    /// Half the ping timeout.
    pub paused: Duration,
    /// A polling session that has not been heard of for so long is gone from the engine.
    pub silent: Duration,
    /// Of one address, without having authenticated: open, and ended.
    pub unauthenticated: usize,
    pub failed_handshakes: Rate,
}

#[cfg(test)]
impl Limits {
    /// Narrow ones.
    pub fn sample() -> Self {
        Self {
            unsent_bytes: 1_000,
            stalled: Duration::from_secs(1),
            paused: Duration::from_secs(1),
            silent: Duration::from_secs(1),
            unauthenticated: 10,
            failed_handshakes: Rate { count: 10, period: Duration::from_secs(1) },
        }
    }
}

impl Connections {
    pub fn new(limits: Limits, metrics: Arc<Metrics>) -> Arc<Self> {
        let killed_polling = Notify::new();
        let strangers = Strangers::new(limits.unauthenticated, limits.failed_handshakes);
        let writers = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Arc::new(Self {
            by_sid: RwLock::default(),
            limits,
            metrics,
            strangers,
            writers: (0..writers).map(|_| Writer::default()).collect(),
            next_writer: AtomicUsize::new(0),
            killed_polling,
        })
    }

    /// From here on events may go to the client past the engine.
    pub fn let_out(&self, connection: &Connection, tcp: Tcp) {
        let next = self.next_writer.fetch_add(1, Ordering::Relaxed);
        let outlet = Outlet::new(tcp, next % self.writers.len());
        // A connection has only ever one WebSocket.
        let _ = connection.outlet.set(Box::new(outlet));
    }

    /// One task for each core that writes what waits in outlets, until they are dropped.
    pub fn write_outlets(self: &Arc<Self>) {
        for index in 0..self.writers.len() {
            let connections = Arc::downgrade(self);
            tokio::spawn(async move {
                while let Some(connections) = connections.upgrade() {
                    let writer = &connections.writers[index];
                    // Now and then it looks whether there is anybody left to write for.
                    let _ =
                        tokio::time::timeout(Duration::from_secs(1), writer.bell.notified()).await;
                    writer.write().await;
                }
            });
        }
    }

    /// A place in line for a new client at that address, if it has to wait.
    pub fn line_up(&self, ip: IpAddr) -> Result<Option<Waiting>, Overrun> {
        self.strangers.line_up(ip)
    }

    /// Waits until a new client's turn has come.
    pub async fn turn(&self, waiting: Option<Waiting>) -> Result<(), Overrun> {
        match waiting {
            Some(waiting) => self.strangers.turn(&waiting).await,
            None => Ok(()),
        }
    }

    /// A connection of a client at that address, whose turn it is and who has yet to prove who it
    /// is.
    pub fn begin(&self, ip: IpAddr, connection: &Arc<Connection>) {
        let (stranger, too_many) = self.strangers.add(ip, connection);
        *connection.stranger.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Box::new(stranger));
        for one in too_many {
            self.kill(&one, Closing::Unauthenticated);
        }
    }

    /// How many have not authenticated.
    pub fn unauthenticated(&self) -> usize {
        self.strangers.len()
    }

    /// Closes those who have not authenticated, and lets nobody wait for a turn any more.
    pub fn turn_away(&self) {
        self.strangers.closed.cancel();
        for stranger in self.strangers.all() {
            self.kill(&stranger, Closing::Draining);
        }
    }

    /// Forgets addresses of which nothing is open or remembered.
    pub fn forget(&self) {
        self.strangers.forget();
    }

    pub fn get(&self, sid: Sid) -> Option<Arc<Connection>> {
        self.by_sid.read().unwrap_or_else(PoisonError::into_inner).get(&sid).cloned()
    }

    pub fn insert(&self, sid: Sid, connection: &Arc<Connection>) {
        if connection.sid.set(sid).is_ok() {
            self.by_sid
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(sid, connection.clone());
        }
        // A stream that closed just now did not find the entry.
        if connection.has_ended() {
            self.remove(sid);
        }
    }

    pub fn remove(&self, sid: Sid) {
        let removed = self.by_sid.write().unwrap_or_else(PoisonError::into_inner).remove(&sid);
        if let Some(connection) = removed {
            connection.ended();
        }
    }

    /// The WebSocket of a connection is gone. One that took over from polling may not have come as
    /// far as to be the session's in the engine, which then knows of no end, and is told of it.
    pub fn stream_gone(&self, connection: &Connection) {
        if connection.polling.is_some() {
            connection.is_killed.store(true, Ordering::Release);
            self.killed_polling.notify_one();
        } else if let Some(sid) = connection.sid() {
            self.remove(sid);
        }
    }

    /// The longest that a link may have been broken when that is noticed.
    pub fn unnoticed(&self) -> Duration {
        self.limits.silent
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.by_sid.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    pub fn all(&self) -> Vec<Arc<Connection>> {
        self.by_sid.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Closes the transport. The client sees it break and comes back by itself.
    pub fn kill(&self, connection: &Connection, why: Closing) {
        if connection.is_killed.swap(true, Ordering::AcqRel) {
            return;
        }
        self.metrics.closed(why);
        if !matches!(why, Closing::Draining | Closing::Unauthenticated | Closing::Left) {
            tracing::info!(reason = why.as_str(), "closing a connection");
        }
        connection.reader.wake();
        connection.writer.wake();
        connection.resumed.notify_waiters();
        if connection.polling.is_some() {
            self.killed_polling.notify_one();
        }
    }

    /// Killed sessions that may still be polling in the engine.
    pub fn to_close(&self) -> Vec<Sid> {
        let is_meant =
            |connection: &Arc<Connection>| connection.polling.is_some() && connection.is_killed();
        self.all().into_iter().filter(is_meant).filter_map(|connection| connection.sid()).collect()
    }

    /// Closes those that have had enough; called every second.
    pub fn sweep(&self) {
        for late in self.strangers.late() {
            self.kill(&late, Closing::Unauthenticated);
        }
        let now = now_ms();
        let longer = |since: &AtomicU64, limit: Duration| {
            let since = since.load(Ordering::Relaxed);
            since != 0 && u128::from(now.saturating_sub(since)) > limit.as_millis()
        };
        for connection in self.all() {
            let is_asked = connection.is_polling() && connection.is_polled();
            if is_asked {
                // It takes what there is: the rest of what was counted was for a socket that has
                // gone, and is not sent.
                connection.stalled_since.store(0, Ordering::Relaxed);
            }
            if connection.is_condemned.load(Ordering::Relaxed) {
                self.kill(&connection, Closing::Refused);
            } else if longer(&connection.stalled_since, self.limits.stalled) {
                self.kill(&connection, Closing::SlowConsumer);
            } else if longer(&connection.paused_since, self.limits.paused) {
                self.kill(&connection, Closing::Overloaded);
            } else if connection.is_polling() {
                if connection.unsent() > 0 && !is_asked {
                    // Nobody asks for it: the next poll clears this.
                    connection.has_stalled();
                }
                if longer(&connection.polled_at, self.limits.silent)
                    && let Some(sid) = connection.sid()
                {
                    self.remove(sid);
                }
            }
        }
    }
}

/// Outlets with something in them, for one task to write.
#[derive(Default)]
struct Writer {
    full: Mutex<Vec<Arc<Connection>>>,
    bell: Notify,
}

impl Writer {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Connection>>> {
        self.full.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, connection: Arc<Connection>) {
        let mut full = self.lock();
        full.push(connection);
        if full.len() == 1 {
            self.bell.notify_one();
        }
    }

    async fn write(&self) {
        loop {
            let full = std::mem::take(&mut *self.lock());
            if full.is_empty() {
                return;
            }
            for (index, connection) in full.into_iter().enumerate() {
                if index % BREATH == BREATH - 1 {
                    // What is sent meanwhile is written with the rest.
                    tokio::task::yield_now().await;
                }
                connection.flush();
            }
        }
    }
}

impl Connections {
    /// Hands a whole WebSocket frame to a client past the engine, or has `by_engine` send the
    /// so many bytes that are in it, in whichever way it keeps its place in the connection's order.
    pub fn send(
        &self,
        connection: &Arc<Connection>,
        frame: &Bytes,
        bytes: usize,
        by_engine: &mut dyn FnMut(),
    ) {
        if !self.push(connection, frame, by_engine) {
            self.count_in(connection, bytes);
            by_engine();
        }
    }

    /// False when the client cannot be written to past the engine.
    fn push(
        &self,
        connection: &Arc<Connection>,
        frame: &Bytes,
        by_engine: &mut dyn FnMut(),
    ) -> bool {
        let Some(outlet) = connection.outlet() else { return false };
        self.count_in(connection, frame.len());
        if outlet.push(frame, by_engine) && outlet.promise() {
            self.writers[outlet.writer].add(connection.clone());
        }
        true
    }

    /// Whether somebody who has just come may be sent so many bytes beside all that is shown to
    /// those who come.
    pub fn takes(&self, bytes: usize) -> bool {
        bytes as u64 <= self.limits.unsent_bytes / 2
    }

    /// Counts what waits for a client, and closes one that has had enough.
    fn count_in(&self, connection: &Connection, bytes: usize) {
        let (messages, waiting) = connection.count_queued(bytes);
        if waiting > self.limits.unsent_bytes || messages > MAX_BACKLOG {
            self.kill(connection, Closing::SlowConsumer);
        }
    }
}

impl Tap for Connections {
    fn broadcast(&self, broadcast: &Broadcast) {
        self.metrics.broadcast(broadcast.event.len());
    }

    fn queued(&self, sid: Sid, bytes: usize) {
        if let Some(connection) = self.get(sid) {
            self.count_in(&connection, bytes);
        }
    }

    fn express(&self, sids: &mut Vec<Sid>, frame: &Bytes, by_engine: &mut dyn FnMut(Sid)) {
        let by_sid = self.by_sid.read().unwrap_or_else(PoisonError::into_inner);
        sids.retain(|sid| {
            let connection = by_sid.get(sid);
            !connection.is_some_and(|one| self.push(one, frame, &mut || by_engine(*sid)))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_abandoned_while_a_poll_waits() {
        let connection = Connection::new(None, Some(Polling::default()));
        for is_polled in [true, false] {
            if is_polled {
                connection.poll_begun();
            } else {
                connection.poll_ended();
                assert!(!connection.is_abandoned());
            }
            // As long ago as can be.
            connection.polled_at.store(0, Ordering::Relaxed);
            assert_eq!(connection.has_not_polled_for(Duration::ZERO), !is_polled);
        }
    }

    #[test]
    fn who_has_taken_everything_is_not_stalled() {
        let connection = Connection::default();
        for (flushed, is_stalled) in [
            (Flushed::Held(0), false),
            (Flushed::Blocked(0), true),
            (Flushed::Held(0), true),
            (Flushed::All(0), false),
        ] {
            connection.has_flushed(flushed);
            assert_eq!(connection.is_stalled(), is_stalled, "{flushed:?}");
        }
    }

    /// What is counted for a socket that has gone by then is never sent.
    #[tokio::test]
    async fn nobody_is_stalled_while_a_poll_waits() {
        let connections = Connections::new(Limits::sample(), Arc::default());
        let connection = Arc::new(Connection::new(None, Some(Polling::default())));
        connections.insert(Sid::new(), &connection);
        connections.count_in(&connection, 100);
        connections.sweep();
        assert!(connection.is_stalled(), "nobody asks for it");
        connection.poll_begun();
        connections.sweep();
        assert!(!connection.is_stalled());
        connection.poll_ended();
        connections.sweep();
        assert!(connection.is_stalled());
    }
}
