//! The connections to Redis: one to publish, one that is subscribed.
//!
//! Nobody waits for Redis. What is published is queued, and where Redis is slow or away the oldest
//! is dropped and counted. Both connections are made again by themselves, with all subscriptions.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use redis::{
    AsyncConnectionConfig, Client, IntoConnectionInfo as _, ProtocolVersion, PushInfo, PushKind,
    RedisError, TlsCertificates,
    aio::{MultiplexedConnection, SendError},
};
use tokio::{
    sync::{Notify, mpsc},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// What waits to be published, at most.
const MAX_QUEUED: usize = 16_384;
const MAX_QUEUED_BYTES: usize = 8 << 20;
/// Messages that wait to be handled, at most; nodes find what they missed in the outbox.
const MAX_RECEIVED: usize = 16_384;
/// A larger message is nobody's broadcast.
const MAX_MESSAGE: usize = 16 << 20;
/// Published in one round trip.
const BATCH: usize = 256;
/// Redis answers within this, or the connection is made anew.
const ANSWER: Duration = Duration::from_secs(2);
const CONNECT: Duration = Duration::from_secs(1);
/// Between two attempts to connect.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
];
/// A connection on which nothing comes is asked whether it is alive.
const ALIVE: Duration = Duration::from_secs(1);

/// What happened to messages since the start.
#[derive(Debug, Default)]
pub struct Counters {
    pub published: AtomicU64,
    /// Not published: Redis was slow or away.
    pub dropped: AtomicU64,
    pub received: AtomicU64,
    /// Received faster than they could be handled.
    pub overrun: AtomicU64,
    /// Could not be read.
    pub malformed: AtomicU64,
}

impl Counters {
    /// Something was said that makes no sense.
    pub fn count_malformed(&self) {
        count(&self.malformed);
    }
}

/// A message that came on one of our channels.
#[derive(Debug)]
pub struct Incoming {
    pub channel: Vec<u8>,
    pub payload: Vec<u8>,
}

/// Adds one.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// The link of this node to Redis.
pub struct Link {
    client: Client,
    queue: Mutex<Queue>,
    queued: Notify,
    publisher: Mutex<Option<MultiplexedConnection>>,
    is_subscribed: AtomicBool,
    /// Redis takes nothing that is published: its user may not.
    is_refused: AtomicBool,
    up_since: Mutex<Option<Instant>>,
    /// Set once it was not there.
    was_away: AtomicBool,
    /// Rung whenever the link comes or goes.
    changed: Notify,
    pub counters: Arc<Counters>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Link")
    }
}

#[derive(Default)]
struct Queue {
    messages: VecDeque<(String, Vec<u8>)>,
    bytes: usize,
}

impl Queue {
    fn pop(&mut self) -> Option<(String, Vec<u8>)> {
        let message = self.messages.pop_front()?;
        self.bytes -= message.1.len();
        Some(message)
    }
}

/// What is subscribed to.
#[derive(Clone, Debug, Default)]
pub struct Subscriptions {
    pub channels: Vec<String>,
    pub patterns: Vec<String>,
}

impl Link {
    /// For a URL as `redis://:password@host:6379/0`, or `rediss://` for TLS. Who signs its
    /// certificate is in `authorities`, as PEM; else it is one that the system trusts. Connects
    /// only when it is run.
    pub fn new(url: &str, authorities: Option<Vec<u8>>) -> Result<Arc<Self>, RedisError> {
        let info = url.into_connection_info()?;
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let info = info.set_redis_settings(settings);
        let client = match authorities {
            Some(root) => {
                let trusted = TlsCertificates { client_tls: None, root_cert: Some(root) };
                Client::build_with_tls(info, trusted)?
            }
            None => Client::open(info)?,
        };
        Ok(Arc::new(Self {
            client,
            queue: Mutex::default(),
            queued: Notify::new(),
            publisher: Mutex::default(),
            is_subscribed: AtomicBool::new(false),
            is_refused: AtomicBool::new(false),
            up_since: Mutex::default(),
            was_away: AtomicBool::new(false),
            changed: Notify::new(),
            counters: Arc::default(),
        }))
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publisher(&self) -> MutexGuard<'_, Option<MultiplexedConnection>> {
        self.publisher.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since when both connections have been there; `None` while one is not.
    pub fn up_since(&self) -> Option<Instant> {
        *self.up_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it has been there all the time, or for at least so long.
    pub fn is_whole(&self, at_least: Duration) -> bool {
        self.up_since()
            .is_some_and(|up| !self.was_away.load(Ordering::Acquire) || up.elapsed() >= at_least)
    }

    /// Queues a message; the oldest goes where there is no more place.
    pub fn publish(&self, channel: String, payload: Vec<u8>) {
        let mut queue = self.queue();
        queue.bytes += payload.len();
        queue.messages.push_back((channel, payload));
        while queue.messages.len() > MAX_QUEUED || queue.bytes > MAX_QUEUED_BYTES {
            queue.pop();
            count(&self.counters.dropped);
        }
        drop(queue);
        self.queued.notify_one();
    }

    /// How many are subscribed to a channel; `None` while Redis is away.
    pub async fn subscribers(&self, channel: &str) -> Option<usize> {
        let mut connection = self.publisher().clone()?;
        let mut asked = redis::cmd("PUBSUB");
        asked.arg("NUMSUB").arg(channel);
        let answer = timeout(ANSWER, asked.query_async::<(String, usize)>(&mut connection));
        answer.await.ok()?.ok().map(|(_, count)| count)
    }

    /// Keeps both connections until `stop`, then publishes what is left.
    pub async fn run(
        self: Arc<Self>,
        subscriptions: Subscriptions,
        received: mpsc::Sender<Incoming>,
        stop: CancellationToken,
    ) {
        let both = async {
            tokio::join!(self.keep_publishing(), self.keep_subscribed(&subscriptions, &received));
        };
        stop.run_until_cancelled(both).await;
        let publisher = self.publisher().take();
        if let Some(mut connection) = publisher {
            let rest = self.take();
            self.send(&mut connection, rest).await;
        }
    }

    fn config() -> AsyncConnectionConfig {
        AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT))
            .set_response_timeout(Some(ANSWER))
    }

    async fn keep_publishing(&self) {
        let mut failures = 0;
        loop {
            let config = Self::config();
            match self.client.get_multiplexed_async_connection_with_config(&config).await {
                Ok(mut connection) => {
                    failures = 0;
                    *self.publisher() = Some(connection.clone());
                    self.note();
                    self.publish_on(&mut connection).await;
                    *self.publisher() = None;
                    self.note();
                }
                Err(error) => {
                    self.was_away.store(true, Ordering::Release);
                    self.say_away(&error, failures == 0);
                }
            }
            tokio::time::sleep(PAUSES[failures.min(PAUSES.len() - 1)]).await;
            failures += 1;
        }
    }

    /// Until the connection fails.
    async fn publish_on(&self, connection: &mut MultiplexedConnection) {
        loop {
            let waiting = timeout(ALIVE, self.queued.notified());
            let some = self.take();
            let is_alive = if some.is_empty() {
                waiting.await.is_ok() || is_alive(connection).await
            } else {
                self.send(connection, some).await
            };
            if !is_alive {
                return;
            }
        }
    }

    fn take(&self) -> Vec<(String, Vec<u8>)> {
        let mut queue = self.queue();
        std::iter::from_fn(|| queue.pop()).take(BATCH).collect()
    }

    /// False when the connection has failed. Whether Redis has passed on what was on its way is
    /// not known then, and it is not sent again: nothing arrives twice.
    async fn send(
        &self,
        connection: &mut MultiplexedConnection,
        some: Vec<(String, Vec<u8>)>,
    ) -> bool {
        let count = some.len() as u64;
        if count == 0 {
            return true;
        }
        let mut pipe = redis::pipe();
        for (channel, payload) in some {
            pipe.cmd("PUBLISH").arg(channel).arg(payload).ignore();
        }
        let sent = timeout(ANSWER, pipe.query_async::<()>(connection)).await;
        let is_sent = matches!(sent, Ok(Ok(())));
        let is_refused = matches!(&sent, Ok(Err(error)) if is_refusal(error));
        let counter = if is_sent { &self.counters.published } else { &self.counters.dropped };
        counter.fetch_add(count, Ordering::Relaxed);
        let is_news = (is_sent || is_refused)
            && self.is_refused.swap(is_refused, Ordering::AcqRel) != is_refused;
        if is_news {
            if is_refused {
                tracing::warn!("Redis refuses what is published: its user needs +publish");
            }
            self.note();
        }
        is_sent || is_refused
    }

    async fn keep_subscribed(
        &self,
        subscriptions: &Subscriptions,
        received: &mpsc::Sender<Incoming>,
    ) {
        let mut failures = 0;
        loop {
            let lost = Arc::new(Notify::new());
            let subscribed = self.subscribe(subscriptions, received, &lost).await;
            if let Err(error) = &subscribed {
                self.was_away.store(true, Ordering::Release);
                // One that takes what is published may refuse to pass anything on.
                self.say_away(error, failures == 1 && self.publisher().is_some());
            }
            if let Ok(mut connection) = subscribed {
                failures = 0;
                self.is_subscribed.store(true, Ordering::Release);
                self.note();
                while timeout(ALIVE, lost.notified()).await.is_err()
                    && is_alive(&mut connection).await
                {}
                self.is_subscribed.store(false, Ordering::Release);
                self.note();
            }
            tokio::time::sleep(PAUSES[failures.min(PAUSES.len() - 1)]).await;
            failures += 1;
        }
    }

    async fn subscribe(
        &self,
        subscriptions: &Subscriptions,
        received: &mpsc::Sender<Incoming>,
        lost: &Arc<Notify>,
    ) -> Result<MultiplexedConnection, RedisError> {
        let (received, lost, counters) = (received.clone(), lost.clone(), self.counters.clone());
        let config = Self::config().set_push_sender(move |push: PushInfo| {
            receive(push, &received, &lost, &counters);
            Ok::<(), SendError>(())
        });
        let mut connection =
            self.client.get_multiplexed_async_connection_with_config(&config).await?;
        connection.subscribe(&subscriptions.channels).await?;
        connection.psubscribe(&subscriptions.patterns).await?;
        Ok(connection)
    }

    /// Notes whether the link is up; says so when that has changed.
    fn note(&self) {
        let is_up = self.is_subscribed.load(Ordering::Acquire)
            && self.publisher().is_some()
            && !self.is_refused.load(Ordering::Acquire);
        let mut up_since = self.up_since.lock().unwrap_or_else(PoisonError::into_inner);
        match (is_up, up_since.is_some()) {
            (true, false) => {
                *up_since = Some(Instant::now());
                tracing::info!("Redis is there: this node is part of the cluster");
            }
            (false, true) => {
                *up_since = None;
                self.was_away.store(true, Ordering::Release);
                tracing::warn!("Redis is away: this node goes on by itself");
            }
            _ => return,
        }
        drop(up_since);
        self.changed.notify_waiters();
    }

    /// Once in a row of attempts.
    fn say_away(&self, error: &RedisError, is_due: bool) {
        if is_due && self.up_since().is_none() {
            let kind = error.category();
            tracing::warn!(kind, "Redis cannot be reached: this node goes on by itself");
        }
    }

    /// Waits for the link to come or go.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

async fn is_alive(connection: &mut MultiplexedConnection) -> bool {
    let ping = redis::cmd("PING");
    match timeout(ANSWER, ping.query_async::<String>(connection)).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => is_refusal(&error),
        Err(_) => false,
    }
}

/// Whether Redis is there, and does not let its user do that.
fn is_refusal(error: &RedisError) -> bool {
    error.code() == Some("NOPERM")
}

/// Runs on the connection's own task: it must not wait.
fn receive(push: PushInfo, received: &mpsc::Sender<Incoming>, lost: &Notify, counters: &Counters) {
    let mut parts = push.data.into_iter().map(|part| match part {
        redis::Value::BulkString(bytes) => bytes,
        _ => Vec::new(),
    });
    let message = match push.kind {
        PushKind::Message => parts.next().zip(parts.next()),
        PushKind::PMessage => parts.nth(1).zip(parts.next()),
        PushKind::Disconnection => {
            lost.notify_one();
            return;
        }
        _ => return,
    };
    let Some((channel, payload)) = message else { return };
    count(&counters.received);
    if payload.len() > MAX_MESSAGE {
        count(&counters.malformed);
    } else if received.try_send(Incoming { channel, payload }).is_err() {
        count(&counters.overrun);
    }
}

/// Where messages that come wait to be handled.
pub fn inbox() -> (mpsc::Sender<Incoming>, mpsc::Receiver<Incoming>) {
    mpsc::channel(MAX_RECEIVED)
}
