//! Recovery of a connection's state: a client that lost its connection goes on as the same socket,
//! with everything durable that it missed, and in its rooms.
//!
//! What is needed for that is written when a socket comes and when it joins, not when it is lost, so
//! that it outlives a crash. The private id is the client's secret; only its digest is stored. A
//! session is taken by a compare-and-set, so one loss has one heir, and goes on under the same id.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::{
    chat::returning::{self, Change, Noted},
    contract::{Event, EventRow, Everywhere, ToCaller, event},
    dispatch::App,
    ids::{ConnectionId, Offset, RoomId, TenantId, Timestamp, UserId},
    refusal::Refusal,
};

pub const EVENTS: &[EventRow] = &[event::<Resync>()];

/// A client that missed more starts anew: reading its rooms is cheaper than hearing all of it.
pub const MAX_MISSED: i64 = 5_000;
/// The longest private id that is looked at; ours have 20 characters.
const MAX_PID: usize = 128;

/// What an operator decides.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long a lost socket may come back; `None`: not at all.
    pub window: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { window: Some(Duration::from_mins(2)) }
    }
}

/// What was kept cannot be gone on with: a client that knows reloads what it shows.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Resync {
    pub reason: Reason,
}

/// Why a client has to start anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Nothing is known of the session, or somebody has gone on with it.
    Unknown,
    /// It was lost too long ago.
    TooOld,
    /// More was missed than is kept, or than is worth being told.
    TooMuch,
}

impl Event for Resync {
    type In = Everywhere;
    type To = ToCaller;
    const NAME: &'static str = "carillon:resync";
}

/// What a client shows to go on.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The digest of its private id.
    pub pid: String,
    /// The offset of the last durable event it heard; `None` when it has heard none.
    pub offset: Option<Offset>,
}

impl Claim {
    /// From the fields of a CONNECT; `None` where they are nothing of ours.
    pub fn new(pid: &str, offset: Option<&str>) -> Option<Self> {
        let offset = match offset {
            Some(text) => Some(text.parse().ok().filter(|offset| *offset >= 0).map(Offset)?),
            None => None,
        };
        (!pid.is_empty() && pid.len() <= MAX_PID).then(|| Self { pid: digest(pid), offset })
    }
}

/// As a private id is stored.
pub fn digest(pid: &str) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(64);
    for byte in Sha256::digest(pid.as_bytes()) {
        // Writing into memory does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// What is kept of a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    pub tenant: TenantId,
    pub user: UserId,
    pub namespace: String,
    pub connection: ConnectionId,
    /// The run of the server that has, or had, the socket.
    pub node: String,
    /// Raised whenever somebody goes on with it.
    pub generation: i64,
    /// Everything durable after this may have been sent to it.
    pub since: Offset,
    /// When it was lost; `None` while it is there, for all that is known.
    pub lost_at: Option<Timestamp>,
    /// The tenant's newest durable event when the session was looked at.
    pub head: Offset,
    /// Whether the durable event after the claim's offset, or after `since` where that is later, is
    /// still in the outbox; those after it are, too.
    pub is_next_kept: bool,
}

/// A session to go on with.
#[derive(Clone, Debug)]
pub struct Recovered {
    pub connection: ConnectionId,
    /// [`Session::generation`] since it was taken.
    pub generation: i64,
    /// Everything durable after this is to be sent.
    pub after: Offset,
    /// The chat rooms it was in and belongs to, and up to where each was shown when it joined.
    pub rooms: Vec<(RoomId, Offset)>,
}

/// The sessions of claims, in their order.
pub async fn find(app: &App, claims: &[Claim]) -> Result<Vec<Option<Session>>, Refusal> {
    let sessions = app.store.read().await?.sessions(claims).await?;
    let may_be_older = |session: &Option<Session>| {
        session.as_ref().is_none_or(|session| session.node == app.returning.node())
    };
    if !sessions.iter().any(may_be_older) {
        return Ok(sessions);
    }
    // What this node knows and has not written is part of it.
    returning::write(app).await?;
    app.store.read().await?.sessions(claims).await
}

/// Whether this user goes on, in this namespace, with what was found by a claim.
pub fn check(
    app: &App,
    (tenant, user, namespace): (&TenantId, &UserId, &str),
    claim: &Claim,
    found: Option<Session>,
) -> Result<Session, Reason> {
    let is_theirs = |session: &Session| {
        (&session.tenant, &session.user, session.namespace.as_str()) == (tenant, user, namespace)
    };
    let (Some(window), Some(session)) = (app.recovery.window, found.filter(is_theirs)) else {
        return Err(Reason::Unknown);
    };
    if session.lost_at.is_some_and(|lost| lost.after(window) < app.clock.now()) {
        return Err(Reason::TooOld);
    }
    let (after, head) = (after(&session, claim), session.head);
    if after > head {
        // The counter has gone back, or the offset is made up.
        return Err(Reason::Unknown);
    }
    if head.0 - after.0 > MAX_MISSED {
        return Err(Reason::TooMuch);
    }
    if after < head && !session.is_next_kept {
        return Err(Reason::TooMuch);
    }
    Ok(session)
}

fn after(session: &Session, claim: &Claim) -> Offset {
    claim.offset.map_or(session.since, |offset| offset.max(session.since))
}

/// Goes on with a session; `None` when somebody else has meanwhile. Rooms that its user has left or
/// was put out of are not among those gone on with.
pub async fn take(
    app: &App,
    session: Session,
    claim: &Claim,
) -> Result<Option<Recovered>, Refusal> {
    let taken = app.store.take_session(&session, claim, app.returning.node()).await?;
    let Some(rooms) = taken else { return Ok(None) };
    let after = after(&session, claim);
    let Session { tenant, connection, generation, .. } = session;
    app.returning.add(Noted { tenant, connection: connection.clone(), change: Change::WentOn });
    Ok(Some(Recovered { connection, generation: generation + 1, after, rooms }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_read_or_is_none() {
        let claim = Claim::new("secret", Some("17")).unwrap();
        assert_eq!(claim.offset, Some(Offset(17)));
        assert_eq!(claim.pid.len(), 64);
        assert_ne!(claim.pid, Claim::new("Secret", None).unwrap().pid);
        for (pid, offset) in
            [("", None), ("p", Some("")), ("p", Some("-1")), ("p", Some("1.5")), ("p", Some("x"))]
        {
            assert!(Claim::new(pid, offset).is_none(), "{pid} {offset:?}");
        }
        assert!(Claim::new(&"p".repeat(129), None).is_none());
    }
}
