//! One ordered queue per connection, drained by at most one task.
//!
//! The engine spawns a task per message; order would be lost. It hands messages over in receive
//! order, though, so they are queued there and then. An idle connection owns an empty queue and
//! no task. A full inbox pauses reading from its connection; only ephemeral commands are refused,
//! because unmodified clients neither ask for acknowledgements nor repeat.

use std::{
    borrow::Cow,
    collections::VecDeque,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use carillon_domain::{
    Code, Done, Refusal, Timestamp,
    api::refused::Kind,
    contract::{Class, Command as _, RATE_LIMITED, Route, Telling, find_command},
    credential::AuthRefresh,
    dispatch::{dispatch, reject},
};
use carillon_redis_adapter::ack_frame;
use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesOrdered};
use serde::Serialize;
use serde_json::value::RawValue;
use socketioxide::{extract::AckSender, socket::DisconnectReason};
use tracing::Instrument as _;

use crate::{
    connection::Connection,
    gateway::Gateway,
    socketio::{Adapter, Seat},
};

/// Commands waiting, and their bytes; from here on the connection is not read.
const FULL: Load = Load { items: 64, bytes: 256 * 1024 };
/// Commands of one connection that run before the first of them is committed.
const OVERLAPPING: usize = 16;
/// Reading goes on below this.
const LOW: Load = Load { items: 16, bytes: 64 * 1024 };
/// Every command is answered within this; counted from its receipt.
const PATIENCE: Duration = Duration::from_secs(3);
/// Those of exams have longer: a whole school begins at one moment, and the shipped frontend does
/// not ask twice.
const EXAM_PATIENCE: Duration = Duration::from_secs(5);

/// What a socket should have without asking takes no longer from those who ask.
const SETTLE_PATIENCE: Duration = Duration::from_secs(1);
/// And is tried again after this.
const SETTLE_AGAIN: Duration = Duration::from_secs(2);

/// What a socket has yet to be brought without asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settling {
    Everything,
    /// The rooms that it has gone on in.
    Rooms,
}

/// The queue of one connection.
#[derive(Default)]
pub struct Inbox {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Item>,
    /// Of the commands in the queue.
    bytes: usize,
    is_draining: bool,
}

/// How much waits.
#[derive(Clone, Copy)]
struct Load {
    items: usize,
    bytes: usize,
}

impl State {
    fn reaches(&self, load: Load) -> bool {
        self.queue.len() >= load.items || self.bytes >= load.bytes
    }
}

/// What waits in an inbox.
pub enum Item {
    /// A socket has connected.
    Arrived(Arc<Seat>),
    /// It has been there for a moment.
    Settled(Arc<Seat>, Settling),
    /// Its user's rights have changed.
    Changed(Arc<Seat>),
    /// Its client asks for something.
    Asked(Box<Asked>),
    /// It is gone.
    Left(Arc<Seat>, DisconnectReason),
}

impl Item {
    fn bytes(&self) -> usize {
        match self {
            Self::Asked(asked) => asked.text.len(),
            Self::Arrived(_) | Self::Settled(..) | Self::Changed(_) | Self::Left(..) => 0,
        }
    }
}

/// Where an answer goes.
pub struct Ack {
    pub id: i64,
    pub sender: AckSender<Adapter>,
}

/// A command as it came.
pub struct Asked {
    pub seat: Arc<Seat>,
    /// The event's whole array, `["name",…]`.
    pub text: engineioxide::Str,
    pub has_attachments: bool,
    pub ack: Option<Ack>,
    pub received: Instant,
    pub received_at: Timestamp,
}

impl Asked {
    fn overlaps(&self) -> bool {
        // No name of ours holds anything that is escaped: what is, runs by itself.
        let name = self.text.strip_prefix("[\"").and_then(|rest| rest.split('"').next());
        let route = name.and_then(|name| find_command(self.seat.path, name));
        route.is_some_and(|route| route.policy.overlaps) && self.seat.has_arrived()
    }
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_full(&self) -> bool {
        self.lock().reaches(FULL)
    }

    /// As [`Self::next`], for a command that may run beside those before it.
    fn next_overlapping(&self) -> Option<(Asked, bool)> {
        let mut state = self.lock();
        let Some(Item::Asked(asked)) = state.queue.front() else { return None };
        if !asked.overlaps() {
            return None;
        }
        let Some(Item::Asked(asked)) = state.queue.pop_front() else { return None };
        state.bytes -= asked.text.len();
        Some((*asked, !state.reaches(LOW)))
    }

    /// The next item, and whether there is room again; ends the drain when there is none.
    fn next(&self) -> Option<(Item, bool)> {
        let mut state = self.lock();
        let Some(item) = state.queue.pop_front() else {
            state.is_draining = false;
            state.queue.shrink_to(4);
            return None;
        };
        state.bytes -= item.bytes();
        Some((item, !state.reaches(LOW)))
    }
}

/// Queues a command, or answers it at once when it is ephemeral and the inbox is full.
pub fn ask(gateway: &Arc<Gateway>, asked: Asked) {
    let seat = asked.seat.clone();
    if seat.connection.inbox.is_full() {
        let parsed = parse(&asked.text).ok();
        let route = parsed.and_then(|(name, _)| find_command(seat.path, &name));
        if let Some(route) = route.filter(|route| route.policy.ephemeral) {
            let busy = Refusal::Busy { retry_after: Duration::from_secs(1) };
            refuse(gateway, &seat, asked.ack, Some(route), &busy);
            gateway.metrics.command(seat.path, route.name, Some(busy.code()), Duration::ZERO);
            return;
        }
    }
    push(gateway, &seat, Item::Asked(Box::new(asked)));
}

/// Queues an item behind everything its connection has sent before.
pub fn push(gateway: &Arc<Gateway>, seat: &Arc<Seat>, item: Item) {
    let connection = &seat.connection;
    let mut state = connection.inbox.lock();
    state.bytes += item.bytes();
    state.queue.push_back(item);
    if state.reaches(FULL) {
        connection.pause();
    }
    if !state.is_draining {
        state.is_draining = true;
        drop(state);
        let (gateway, connection) = (gateway.clone(), connection.clone());
        let tasks = gateway.tasks.clone();
        tasks.spawn(async move { drain(&gateway, &connection).await });
    }
}

/// Handles everything that waits, in order. Commands that say so may follow each other into the
/// lane before the first is committed: a burst of messages shares a commit. They are answered in
/// order all the same.
async fn drain(gateway: &Arc<Gateway>, connection: &Connection) {
    let mut running = FuturesOrdered::new();
    loop {
        while running.len() < OVERLAPPING
            && let Some((asked, has_room)) = connection.inbox.next_overlapping()
        {
            if has_room {
                connection.resume();
            }
            running.push_back(perform(gateway, asked));
        }
        if let Some(performed) = running.next().await {
            guarded(finish(gateway, performed)).await;
            continue;
        }
        let Some((item, has_room)) = connection.inbox.next() else { return };
        if has_room {
            connection.resume();
        }
        guarded(handle(gateway, item)).await;
    }
}

/// What panics ends neither the connection nor the process. (An `async fn` would hold its argument
/// twice.)
fn guarded(work: impl Future<Output = ()>) -> impl Future<Output = ()> {
    AssertUnwindSafe(work).catch_unwind().map(|result| {
        if result.is_err() {
            tracing::error!("the inbox of a connection panicked");
        }
    })
}

/// Brings a socket what it should have without asking, in a while.
pub fn settle_after(delay: Duration, gateway: &Arc<Gateway>, seat: Arc<Seat>, due: Settling) {
    let (tasks, gateway) = (gateway.tasks.clone(), gateway.clone());
    tasks.spawn(async move {
        tokio::time::sleep(delay).await;
        push(&gateway, &seat.clone(), Item::Settled(seat, due));
    });
}

/// What is rare is boxed: every drain would be as large as it.
async fn handle(gateway: &Arc<Gateway>, item: Item) {
    match item {
        Item::Arrived(seat) => Box::pin(seat.arrive(gateway)).await,
        Item::Settled(seat, due) => {
            // Commands wait behind it: with the database away it is put off, not waited for.
            let settle = Box::pin(seat.settle(gateway, due));
            let settled = tokio::time::timeout(SETTLE_PATIENCE, settle).await;
            if let Some(left) = settled.unwrap_or(Some(due)) {
                settle_after(SETTLE_AGAIN, gateway, seat, left);
            }
        }
        Item::Changed(seat) => Box::pin(seat.review(gateway)).await,
        Item::Left(seat, reason) => Box::pin(seat.leave(gateway, reason)).await,
        Item::Asked(asked) => {
            if !asked.seat.has_arrived() {
                Box::pin(asked.seat.arrive(gateway)).await;
            }
            let performed = perform(gateway, *asked).await;
            finish(gateway, performed).await;
        }
    }
}

/// A command that has been run and not yet been answered.
struct Performed {
    seat: Arc<Seat>,
    route: Option<&'static Route>,
    ack: Option<Ack>,
    received: Instant,
    result: Result<Done, Refusal>,
    span: tracing::Span,
}

/// Runs a command; what panics is an answer, too.
async fn perform(gateway: &Arc<Gateway>, asked: Asked) -> Option<Performed> {
    let Asked { seat, text, has_attachments, ack, received, received_at } = asked;
    let (name, payload) = match parse(&text) {
        Ok((name, payload)) if !has_attachments => (name, payload),
        Ok((name, _)) => (name, Err(Refusal::Invalid("no binary attachments".into()))),
        // The engine has read the array before, so this is a name that is not text.
        Err(_) => return None,
    };
    let route = find_command(seat.path, &name);
    // A line's context is made when the span is, read or not: a tenth of what a heartbeat costs.
    let span = tracing::debug_span!(
        "command",
        ns = seat.path,
        command = label(route),
        caller.id = %seat.caller.user,
        conn.id = %seat.caller.connection,
    );
    let panicked = |_| Err(Refusal::internal("the command panicked"));
    let work = AssertUnwindSafe(async {
        match (route, payload) {
            (Some(route), Ok(payload)) => {
                let again = route.enters.and_then(|enters| enters(payload));
                if let Some(room) = &again {
                    seat.is_about_to_show(room);
                }
                let again =
                    again.and_then(|room| Some((gateway.fanout.pause(&seat, &room)?, room)));
                let acknowledged = ack.is_some();
                let result =
                    run(gateway, &seat, route, payload, received, received_at, acknowledged).await;
                if let (Err(_), Some((after, room))) = (&result, &again) {
                    // Not shown again: it goes on where it stood still.
                    Box::pin(gateway.fanout.join(&seat, room, *after)).await;
                }
                result
            }
            (Some(_), Err(refusal)) => Err(reject(&gateway.domain, &seat.caller, refusal)),
            (None, _) => Err(reject(&gateway.domain, &seat.caller, Refusal::UnknownEvent)),
        }
    })
    .catch_unwind()
    .instrument(span.clone());
    let result = work.await.unwrap_or_else(panicked);
    Some(Performed { seat, route, ack, received, result, span })
}

/// Delivers what a command has done, and answers it.
async fn finish(gateway: &Arc<Gateway>, performed: Option<Performed>) {
    let Some(Performed { seat, route, ack, received, result, span }) = performed else { return };
    let label = label(route);
    let work = async {
        let code = result.as_ref().err().map(Refusal::code);
        match result {
            Ok(done) => {
                gateway.fanout.deliver(&seat, done.effects).await;
                if let Some(ack) = ack {
                    acknowledge(gateway, &seat, ack, &done.reply);
                }
            }
            Err(refusal) => {
                note(gateway, &seat, label, &refusal);
                refuse(gateway, &seat, ack, route, &refusal);
                match refusal {
                    // Whoever shows it is not who came.
                    Refusal::OtherUser => gateway.fanout.cut_connection(&seat),
                    Refusal::Unavailable(_) if label == AuthRefresh::NAME => {
                        gateway.fanout.expiries.doubt(&seat);
                    }
                    _ => {}
                }
            }
        }
        let code_text = code.map_or("OK", Code::as_str);
        tracing::debug!(code = code_text, "the command {label} was answered: {code_text}");
        gateway.metrics.command(seat.path, label, code, received.elapsed());
    };
    work.instrument(span).await;
}

async fn run(
    gateway: &Gateway,
    seat: &Seat,
    route: &Route,
    payload: &RawValue,
    received: Instant,
    received_at: Timestamp,
    acknowledged: bool,
) -> Result<Done, Refusal> {
    let work = async {
        loop {
            let caller = seat.current();
            let work =
                dispatch(&gateway.domain, &caller, route, payload, received_at, acknowledged);
            match work.await {
                // Judged anew, by what they may do now; until patience ends.
                Err(Refusal::Outdated) => {}
                result => return result,
            }
        }
    };
    let patience = match route.policy.class {
        Class::Exam => EXAM_PATIENCE,
        _ => PATIENCE,
    };
    let left = patience.saturating_sub(received.elapsed());
    tokio::time::timeout(left, work).await.unwrap_or(Err(Refusal::Unavailable(None)))
}

#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// The name and the one payload: no argument counts as `null`, and so does one that is `undefined`
/// at the client, where a callback might have been: further ones of that kind are none.
pub fn parse(text: &str) -> Result<(Cow<'_, str>, Result<&RawValue, Refusal>), serde_json::Error> {
    let parts: Vec<&RawValue> = serde_json::from_str(text)?;
    let name = parts.first().map_or("\"\"", |name| name.get());
    let payload = match parts.get(1..) {
        None | Some([]) => Ok(serde_json::from_str("null")?),
        Some([payload, others @ ..]) if others.iter().all(|other| other.get() == "null") => {
            Ok(*payload)
        }
        Some(_) => Err(Refusal::Invalid("at most one argument".into())),
    };
    Ok((serde_json::from_str::<Name<'_>>(name)?.0, payload))
}

/// Through the acknowledgement; without one by the error event, unless the contract says silent.
fn refuse(
    gateway: &Gateway,
    seat: &Seat,
    ack: Option<Ack>,
    route: Option<&Route>,
    refusal: &Refusal,
) {
    #[derive(Serialize)]
    struct Refused<'a> {
        ok: bool,
        #[serde(flatten)]
        told: carillon_domain::refusal::Told<'a>,
    }
    let policy = route.map(|route| &route.policy);
    let message = match (policy, refusal) {
        (Some(policy), refusal) => policy.text(refusal),
        (None, Refusal::RateLimited { .. }) => RATE_LIMITED,
        (None, _) => "Unknown event",
    };
    let incident = incident(gateway, seat, label(route), refusal);
    let mut told = refusal.told(message);
    if let Some(id) = &incident {
        told.detail = Some(id);
    }
    if let Some(ack) = ack {
        if let Ok(text) = serde_json::value::to_raw_value(&Refused { ok: false, told }) {
            acknowledge(gateway, seat, ack, &text);
        }
        return;
    }
    let is_told = match policy.map_or(Telling::All, |policy| policy.telling) {
        Telling::All => true,
        Telling::RequiredOnly => matches!(refusal, Refusal::Required(_)),
        Telling::Nothing => false,
    };
    if is_told && let Ok(text) = serde_json::to_string(&told) {
        gateway.fanout.tell(seat, "error", &text);
    }
}

/// Whoever tries what they may not do is in the audit log.
fn note(gateway: &Gateway, seat: &Seat, command: &'static str, refusal: &Refusal) {
    let code = refusal.code();
    if !matches!(code, Code::Forbidden | Code::Unauthenticated) {
        return;
    }
    let kind = Kind {
        tenant: seat.caller.tenant.clone(),
        actor: seat.caller.user.to_string(),
        action: "command.refused",
        subject: command.into(),
        reason: code.as_str(),
    };
    gateway.domain.refusals.note(kind, gateway.domain.clock.now());
}

/// What nobody expected: the log gets the cause, the client a number to name it by.
fn incident(
    gateway: &Gateway,
    seat: &Seat,
    command: &'static str,
    refusal: &Refusal,
) -> Option<String> {
    let Refusal::Internal(source) = refusal else { return None };
    let id = gateway.domain.ids.uuid();
    tracing::error!(
        error.id = id,
        error = source.as_ref(),
        ns = seat.path,
        command,
        caller.id = %seat.caller.user,
        conn.id = %seat.caller.connection,
        "the command {command} failed"
    );
    Some(format!("incident {id}"))
}

/// How metrics and logs name a command.
fn label(route: Option<&Route>) -> &'static str {
    route.map_or("unknown", |route| route.name)
}

/// By the way that the caller's events take, behind them.
fn acknowledge(gateway: &Gateway, seat: &Seat, ack: Ack, reply: &RawValue) {
    let frame = ack_frame(seat.path, ack.id, reply.get());
    let mut sender = Some(ack.sender);
    let mut by_engine = || {
        if let Some(Err(error)) = sender.take().map(|sender| sender.send(reply)) {
            tracing::debug!(%error, "a socket was gone before its answer");
        }
    };
    gateway.connections.send(&seat.connection, &frame, reply.get().len(), &mut by_engine);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_name_and_at_most_one_argument() {
        let (name, payload) = parse(r#"["join-room",{"roomId":"a"}]"#).unwrap();
        assert_eq!((&*name, payload.unwrap().get()), ("join-room", r#"{"roomId":"a"}"#));
        assert_eq!(parse(r#"["heartbeat"]"#).unwrap().1.unwrap().get(), "null");
        assert_eq!(parse(r#"["a",1,null]"#).unwrap().1.unwrap().get(), "1");
        assert!(parse(r#"["a",1,2]"#).unwrap().1.is_err());
        assert!(parse("[1]").is_err());
    }
}
