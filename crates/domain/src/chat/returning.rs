//! Rooms for those who come back. The shipped frontend joins nothing again after a reconnect: for
//! two minutes the rooms of a lost socket are kept, and the next one of the same user is put into
//! them and shown what was missed.
//!
//! What is kept is written when a room is joined, not when the socket is lost, so that it outlives
//! a crash: before the join is acknowledged, for all who join at the same time together.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::join_room;
use crate::{
    contract::Scope,
    dispatch::{App, Caller, Cx, Effect},
    ids::{ConnectionId, Offset, RoomId, TenantId, Timestamp, UserId},
    presence::RETURN_WINDOW,
    refusal::Refusal,
};

/// A page comes back with two sockets, and only one of them listens: both are put into its rooms.
/// Whoever comes later than this after the first is another page.
pub const SIBLINGS: Duration = Duration::from_secs(15);
/// Rooms of one user that are kept; the newest.
pub const MAX_ROOMS: u32 = 20;
/// Changes written at a time.
const BATCH: usize = 500;
/// Changes that wait while the database is away; more are not kept.
const MAX_WAITING: usize = 100_000;

/// What has become of a room in the list of a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A socket has come, of which the client knows the private id with this digest.
    Came {
        user: UserId,
        namespace: &'static str,
        pid: String,
        /// Everything durable after this may be sent to it.
        since: Offset,
    },
    Joined {
        user: UserId,
        namespace: &'static str,
        room: RoomId,
        at: Timestamp,
        /// Up to where the room was shown.
        shown: Offset,
    },
    Left(RoomId),
    /// A socket of this run of the server has gone on with it.
    WentOn,
    /// The client has closed the socket: nobody goes on with it.
    Closed,
    /// The socket is gone without having said so.
    Lost(Timestamp),
    /// The socket is gone for good, and with it what its user's lost ones were in.
    Gone(UserId),
}

/// A change and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Noted {
    pub tenant: TenantId,
    pub connection: ConnectionId,
    pub change: Change,
}

#[derive(Debug, Default)]
struct Waiting {
    changes: Vec<Noted>,
    /// How many there ever were.
    noted: u64,
}

/// Changes that are not written yet.
#[derive(Debug)]
pub struct Returning {
    /// Names this run of the server in the rows it writes.
    node: String,
    waiting: Mutex<Waiting>,
    /// Held while changes are written: how many of those ever noted are in the database.
    writing: futures_util::lock::Mutex<u64>,
}

impl Returning {
    pub fn new(node: String) -> Self {
        Self { node, waiting: Mutex::default(), writing: futures_util::lock::Mutex::default() }
    }

    /// Names this run of the server.
    pub fn node(&self) -> &str {
        &self.node
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a change of the caller's socket.
    pub fn note(&self, caller: &Caller, change: Change) {
        let (tenant, connection) = (caller.tenant.clone(), caller.connection.clone());
        self.add(Noted { tenant, connection, change });
    }

    pub fn add(&self, noted: Noted) {
        let mut waiting = self.lock();
        if waiting.changes.len() < MAX_WAITING {
            waiting.changes.push(noted);
            waiting.noted += 1;
        }
    }

    /// Takes some to write them.
    fn take(&self) -> Taken<'_> {
        let mut waiting = self.lock();
        let count = waiting.changes.len().min(BATCH);
        Taken { of: self, changes: waiting.changes.drain(..count).collect() }
    }
}

/// Changes on their way to the database. Dropped before they are there, because that failed or
/// nobody waits for it any more, they wait again, in front of what came meanwhile.
struct Taken<'a> {
    of: &'a Returning,
    changes: Vec<Noted>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut waiting = self.of.lock();
        self.changes.append(&mut waiting.changes);
        waiting.changes = std::mem::take(&mut self.changes);
    }
}

/// Writes what has been noted so far. Called several times a second, and by whoever looks: those of
/// a herd find that one before them has written for all who waited.
pub async fn write(app: &App) -> Result<(), Refusal> {
    let noted = app.returning.lock().noted;
    let mut done = app.returning.writing.lock().await;
    while *done < noted {
        let mut some = app.returning.take();
        let Some(first) = some.changes.first() else {
            *done = noted;
            return Ok(());
        };
        let mut tx = app.store.begin(&first.tenant, Scope::Rows).await?;
        tx.note_rooms(&app.returning.node, &some.changes).await?;
        tx.commit().await?;
        *done += some.changes.len() as u64;
        some.changes.clear();
    }
    Ok(())
}

/// Takes over from runs of the server that are no more: their sockets were lost when their users
/// were last seen. Called before anybody is let in; where there may be other nodes, again and again.
pub async fn take_over(app: &App, tenant: &TenantId) -> Result<(), Refusal> {
    app.store.stay(&app.returning.node).await?;
    let mut tx = app.store.begin(tenant, Scope::Rows).await?;
    tx.lose_rooms_of_others(&app.returning.node, app.clock.now()).await?;
    tx.commit().await
}

/// Puts a socket that has come back into the rooms that its user's lost ones were in.
pub async fn restore(
    app: &App,
    caller: &Caller,
    lost: &[RoomId],
    effects: &mut Vec<Effect>,
) -> Result<(), Refusal> {
    let (tenant, user, now) = (&caller.tenant, &caller.user, app.clock.now());
    if lost.is_empty() {
        return Ok(());
    }
    // Where its client has been before us, or from where it has gone since, it is not put.
    let is_missing =
        |room: &&RoomId| !caller.joined.contains(room) && !caller.joined.has_left(room);
    for room in lost.iter().filter(is_missing) {
        effects.extend(bring_back(app, caller, room, now).await?);
    }
    let mut tx = app.store.begin(tenant, Scope::Rows).await?;
    tx.note_return(tenant, user, caller.namespace, now).await?;
    tx.commit().await
}

/// Shows a room to a socket that is let into it without having asked.
pub async fn bring_back(
    app: &App,
    caller: &Caller,
    room: &RoomId,
    now: Timestamp,
) -> Result<Vec<Effect>, Refusal> {
    // Many come back at once: in the lane, those who talk would wait for all of them.
    let mut cx = Cx::new(app, caller, Scope::Snapshot, now);
    match join_room::show(&mut cx, room, false).await {
        // Who has been put out meanwhile stays out.
        Err(Refusal::NotAMember) => Ok(Vec::new()),
        Err(refusal) => Err(refusal),
        Ok(_) => cx.commit().await,
    }
}

/// Before this, what was lost is not kept any more.
pub fn forgotten_before(now: Timestamp) -> Timestamp {
    now.before(RETURN_WINDOW)
}
