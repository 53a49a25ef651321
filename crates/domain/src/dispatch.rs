//! The only path from a payload to effects.
//!
//! Nothing a handler can reach sends. It returns effects, and they leave [`dispatch`] only after
//! the COMMIT: an acknowledgement means committed.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use serde::Serialize;
use serde_json::value::RawValue;

use crate::{
    api::refused::Refusals,
    chat::{self, returning, typing_indicator::Typists},
    contract::{Address, Class, Event, EventRow, Handle, Policy, Route, RowOf, Scope},
    exam,
    identity::{Account, Issue, Role},
    ids::{AppId, ConnectionId, Offset, RoomId, TenantId, Timestamp, UserId},
    leaderboard::{self, Board},
    ports::{Admission, Clock, Credentials, Ids, Lease, Reads, Store, Tx},
    presence::Presence,
    recovery,
    refusal::Refusal,
};

/// A future that can be named: what a function pointer in a static table returns.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What every command can reach: the ports, and the state of this node, which is a cache.
pub struct App {
    pub store: Arc<dyn Store>,
    pub clock: Arc<dyn Clock>,
    pub ids: Arc<dyn Ids>,
    pub admission: Arc<dyn Admission>,
    pub credentials: Arc<dyn Credentials>,
    pub presence: Presence,
    pub typists: Typists,
    pub chat: chat::Settings,
    pub returning: chat::returning::Returning,
    pub refusals: Refusals,
    pub exams: exam::State,
    pub leaderboard: leaderboard::Settings,
    pub recovery: recovery::Settings,
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("App")
    }
}

/// The name under which the system acts by itself; it begins with a space,
/// as no backend's ids do.
const SYSTEM: &str = " system";

/// Who asks: one socket of a user, a backend with a key, or the system itself.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The frontend whose key let them in; `None` for those who are no users.
    pub app: Option<AppId>,
    pub tenant: TenantId,
    pub user: UserId,
    pub name: String,
    pub avatar: Option<String>,
    pub role: Role,
    pub connection: ConnectionId,
    /// The socket's namespace.
    pub namespace: &'static str,
    /// The rooms this socket has joined. Changed by the fanout when a `Join` or `Leave` takes
    /// effect, never by a handler.
    pub joined: Joined,
    /// What this socket knows of the answers of its attempts.
    pub told: exam::Told,
    /// Whether they may still do what they are about to do.
    pub grant: Grant,
}

/// What a socket was let in for, as of the moment it was asked: clones taken later know of later
/// changes. Everything that is about to be committed is checked against it, so that what was in
/// flight when rights ended is not done.
#[derive(Clone, Debug, Default)]
pub struct Grant {
    /// Raised with every change of rights; [`Self::ENDED`] is the last.
    state: Arc<AtomicU64>,
    as_of: u64,
}

impl Grant {
    const ENDED: u64 = u64::MAX;

    /// As it is now.
    #[must_use]
    pub fn renewed(&self) -> Self {
        Self { state: self.state.clone(), as_of: self.state.load(Ordering::Acquire) }
    }
    /// The rights have changed: whoever asked before has to ask again.
    pub fn change(&self) {
        // Never past the end, and not again after it.
        let next = |state| (state < Self::ENDED - 1).then_some(state + 1);
        let _ = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, next);
    }
    /// Nothing more is allowed.
    pub fn end(&self) {
        self.state.store(Self::ENDED, Ordering::Release);
    }
    fn check(&self) -> Result<(), Refusal> {
        match self.state.load(Ordering::Acquire) {
            Self::ENDED => Err(Refusal::Unauthenticated),
            now if now == self.as_of => Ok(()),
            _ => Err(Refusal::Outdated),
        }
    }
}

impl Caller {
    /// What happens by itself: deadlines, releases, repairs.
    pub fn system(tenant: &TenantId) -> Self {
        Self::agent(tenant, SYSTEM)
    }

    /// Somebody who is no user and has every right: named in journals and audits by `name`.
    pub fn agent(tenant: &TenantId, name: &str) -> Self {
        Self {
            app: None,
            tenant: tenant.clone(),
            user: UserId::new(name).unwrap_or_else(|_| UserId::new(SYSTEM).expect("a sound id")),
            name: name.trim().to_owned(),
            avatar: None,
            role: Role::SuperAdmin,
            connection: ConnectionId::new("system").expect("a sound id"),
            namespace: "",
            joined: Joined::default(),
            told: exam::Told::default(),
            grant: Grant::default(),
        }
    }
}

/// The rooms of one socket; clones are the same rooms.
#[derive(Clone, Debug, Default)]
pub struct Joined {
    rooms: Arc<Mutex<HashSet<RoomId>>>,
    /// Those it was put into without having asked, and those it asked to leave; it may be in them
    /// or not.
    turned: Arc<Mutex<HashMap<RoomId, Turn>>>,
}

/// What last became of a room that a socket did not ask to be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Brought,
    Left,
}

/// Rooms of a socket that are remembered so; a frontend leaves as many as it shows.
const MAX_TURNED: usize = 100;

impl Joined {
    /// Notes whether the socket asked to be in a room or was put there.
    pub fn note_brought(&self, room: RoomId, is_brought: bool) {
        let mut turned = self.turned.lock().unwrap_or_else(PoisonError::into_inner);
        if is_brought {
            turned.insert(room, Turn::Brought)
        } else {
            turned.remove(&room)
        };
    }
    /// Notes that the socket asked to leave: it is not to be put there again.
    pub fn note_left(&self, room: RoomId) {
        let mut turned = self.turned.lock().unwrap_or_else(PoisonError::into_inner);
        if turned.len() < MAX_TURNED {
            turned.insert(room, Turn::Left);
        }
    }
    fn turn(&self, room: &RoomId) -> Option<Turn> {
        self.turned.lock().unwrap_or_else(PoisonError::into_inner).get(room).copied()
    }
    /// Whether the socket asked to leave the room and has not asked for it since.
    pub fn has_left(&self, room: &RoomId) -> bool {
        self.turn(room) == Some(Turn::Left)
    }
    /// Whether the socket was put into the room and has not asked for it since.
    pub fn was_brought(&self, room: &RoomId) -> bool {
        self.turn(room) == Some(Turn::Brought)
    }
    pub fn contains(&self, room: &RoomId) -> bool {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner).contains(room)
    }
    /// True when it was not there.
    pub fn insert(&self, room: RoomId) -> bool {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner).insert(room)
    }
    /// True when it was there.
    pub fn remove(&self, room: &RoomId) -> bool {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner).remove(room)
    }
    pub fn all(&self) -> Vec<RoomId> {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

/// What a command changes outside the database.
#[derive(Clone, Debug)]
pub enum Effect {
    Emit(Emit),
    /// The caller's socket enters the room and gets every durable event after `after`, each once.
    Join {
        room: RoomId,
        after: Offset,
    },
    Leave(RoomId),
    /// The caller's socket leaves the room, and those of its user that were only put there; told
    /// when that was the last of them.
    LeaveFor(RoomId, Emit),
    /// The caller's socket is in the room from now on; of what was before it misses nothing.
    Enter(RoomId),
    /// As `Enter`, without counting: staff who look on are nobody's participants.
    Watch(RoomId),
    /// The caller's socket hears a room its user is a member of, from now on, unless that has ended
    /// meanwhile.
    Hear(RoomId),
    /// Every socket of the user hears the room from now on.
    Admit(UserId, RoomId),
    /// No socket of the user hears the room any more.
    Expel(UserId, RoomId),
    /// Every socket of the user is disconnected for good.
    Cut(UserId),
    /// The user's row has changed: their sockets go on as who they are now, and those that may not
    /// are disconnected for good.
    Know(Arc<Account>),
    /// The caller's connection has shown a newer token, which counts until then.
    Extend(Issue, Timestamp),
    /// The caller's socket looks at a board from now on, and was shown a list of that digest.
    Look {
        board: Board,
        seen: u64,
    },
    /// Those who look at boards are shown them again.
    ShowBoards,
    /// The entries of users after this one are folded anew, and then everybody is shown.
    Recompute {
        after: UserId,
    },
}

impl Effect {
    /// Whether it changes in which chat rooms the caller's socket is.
    fn moves(&self) -> bool {
        matches!(self, Self::Join { .. } | Self::Leave(_))
    }
}

/// An event on its way out, encoded once.
#[derive(Clone, Debug)]
pub struct Emit {
    pub row: &'static EventRow,
    pub to: Address,
    /// One JSON object.
    pub payload: Arc<RawValue>,
    /// Set for durable events, once they are in the outbox.
    pub offset: Option<Offset>,
    /// The last key of the payload is `participantCount`: how many users are in this room, counted
    /// when the event leaves.
    pub counting: Option<RoomId>,
}

impl Emit {
    /// Encodes an event for its address.
    pub fn new<E: Event>(to: E::To, event: &E) -> Result<Self, Refusal> {
        let payload = serde_json::value::to_raw_value(event).map_err(Refusal::internal)?;
        Ok(Self {
            row: RowOf::<E>::ROW,
            to: to.into(),
            payload: payload.into(),
            offset: None,
            counting: None,
        })
    }

    /// Encodes an event that counts who is in a room.
    pub fn counting<E: Event>(to: E::To, event: &E, room: RoomId) -> Result<Self, Refusal> {
        const { assert!(E::COUNTS, "the event ends in participantCount") }
        Ok(Self { counting: Some(room), ..Self::new(to, event)? })
    }
}

/// What a command did, once it is committed.
#[derive(Debug)]
pub struct Done {
    /// The acknowledgement: `{"ok":true,…}`.
    pub reply: Box<RawValue>,
    pub effects: Vec<Effect>,
}

/// One command while it runs.
pub struct Cx<'a> {
    pub app: &'a App,
    pub caller: &'a Caller,
    /// When the command was received; it is judged by this, also when its commit is delayed.
    pub now: Timestamp,
    /// Whether the client waits for an acknowledgement.
    pub acknowledged: bool,
    scope: Scope,
    /// Of what the whole cluster does once: without it nothing is kept.
    lease: Option<Lease>,
    tx: Option<Box<dyn Tx>>,
    effects: Vec<Effect>,
    after_commit: Vec<Box<dyn FnOnce() + Send + 'a>>,
}

impl<'a> Cx<'a> {
    pub fn new(app: &'a App, caller: &'a Caller, scope: Scope, now: Timestamp) -> Self {
        Self {
            app,
            caller,
            now,
            acknowledged: false,
            scope,
            lease: None,
            tx: None,
            effects: Vec::new(),
            after_commit: Vec::new(),
        }
    }

    /// In the lane, for what the whole cluster does once: nothing is kept when the lease is
    /// another's by now.
    pub fn holding(lease: Lease, app: &'a App, caller: &'a Caller, now: Timestamp) -> Self {
        Self { lease: Some(lease), ..Self::new(app, caller, Scope::Lane, now) }
    }

    /// The transaction, opened at the first call: a command that never asks never touches the
    /// database.
    pub async fn tx(&mut self) -> Result<&mut dyn Tx, Refusal> {
        if self.tx.is_none() {
            self.tx = Some(begin(self.app, self.caller, self.scope, self.lease).await?);
        }
        Ok(self.tx.as_mut().expect("opened above").as_mut())
    }

    /// A snapshot, for commands that only read.
    pub async fn read(&mut self) -> Result<Box<dyn Reads>, Refusal> {
        self.app.store.read().await
    }

    /// Records an event; it leaves after the commit.
    pub fn send<E: Event>(&mut self, to: E::To, event: &E) -> Result<(), Refusal> {
        self.effects.push(Effect::Emit(Emit::new(to, event)?));
        Ok(())
    }

    /// Records an event whose `participantCount` is how many users are in the room when it leaves.
    pub fn send_counting<E: Event>(
        &mut self,
        to: E::To,
        event: &E,
        room: RoomId,
    ) -> Result<(), Refusal> {
        self.effects.push(Effect::Emit(Emit::counting(to, event, room)?));
        Ok(())
    }

    /// Runs something in memory once everything is committed.
    pub fn after_commit(&mut self, change: impl FnOnce() + Send + 'a) {
        self.after_commit.push(Box::new(change));
    }

    /// Records an effect made elsewhere.
    pub fn record(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    /// Records that the caller's socket enters a room whose history it was shown up to `after`.
    pub fn join(&mut self, room: RoomId, after: Offset) {
        self.effects.push(Effect::Join { room, after });
    }

    /// Records that the caller's socket leaves a room.
    pub fn leave(&mut self, room: RoomId) {
        self.effects.push(Effect::Leave(room));
    }

    /// Outbox rows, COMMIT, and only now the effects.
    pub async fn commit(mut self) -> Result<Vec<Effect>, Refusal> {
        self.caller.grant.check()?;
        let durable = durable(&mut self.effects);
        if !durable.is_empty() && self.scope != Scope::Lane {
            return Err(Refusal::internal("a durable event outside the lane"));
        }
        if !durable.is_empty() {
            let rows: Vec<&Emit> = durable.iter().map(|emit| &**emit).collect();
            let tx = match &mut self.tx {
                Some(tx) => tx,
                none => none.insert(begin(self.app, self.caller, self.scope, self.lease).await?),
            };
            let last = tx.publish(&self.caller.tenant, self.now, &rows).await?;
            for (emit, offset) in durable.into_iter().rev().zip((1..=last.0).rev()) {
                emit.offset = Some(Offset(offset));
            }
        }
        if let Some(tx) = self.tx {
            tx.commit().await?;
        }
        for change in self.after_commit {
            change();
        }
        Ok(self.effects)
    }
}

async fn begin(
    app: &App,
    caller: &Caller,
    scope: Scope,
    lease: Option<Lease>,
) -> Result<Box<dyn Tx>, Refusal> {
    match lease {
        Some(lease) => lease.begin(&*app.store, &caller.tenant, scope).await,
        None => app.store.begin(&caller.tenant, scope).await,
    }
}

fn durable(effects: &mut [Effect]) -> Vec<&mut Emit> {
    effects
        .iter_mut()
        .filter_map(|effect| {
            let Effect::Emit(emit) = effect else { return None };
            (emit.row.durable && emit.to != Address::Caller).then_some(emit)
        })
        .collect()
}

/// Runs one command: admit, decode, check the room, handle, commit. What comes back has happened.
pub async fn dispatch(
    app: &App,
    caller: &Caller,
    route: &Route,
    payload: &RawValue,
    now: Timestamp,
    acknowledged: bool,
) -> Result<Done, Refusal> {
    admit(app, caller, &route.policy, payload)?;
    let mut cx = Cx::new(app, caller, route.policy.scope, now);
    cx.acknowledged = acknowledged;
    let reply = (route.run)(&mut cx, payload).await?;
    let effects = cx.commit().await?;
    if effects.iter().any(Effect::moves) {
        // Who goes on elsewhere after a crash is where they were told they are. Should it fail, it is
        // written a moment later.
        let _ = returning::write(app).await;
    }
    Ok(Done { reply, effects })
}

/// Rate, role and size, before anything is decoded. The bucket comes first: what is refused for
/// another reason has cost something, too.
fn admit(app: &App, caller: &Caller, policy: &Policy, payload: &RawValue) -> Result<(), Refusal> {
    take(app, caller, policy.class)?;
    if policy.roles.is_some_and(|roles| !roles.contains(&caller.role)) {
        return Err(Refusal::Forbidden);
    }
    if payload.get().len() > policy.max_bytes {
        return Err(Refusal::TooLarge(format!("at most {} bytes", policy.max_bytes).into()));
    }
    Ok(())
}

pub(crate) fn take(app: &App, caller: &Caller, class: Class) -> Result<(), Refusal> {
    app.admission.admit(caller, class).map_err(|retry_after| Refusal::RateLimited { retry_after })
}

/// Refuses what never reaches a command: an unknown event, arguments that are none. It is limited
/// like everything else.
pub fn reject(app: &App, caller: &Caller, refusal: Refusal) -> Refusal {
    take(app, caller, Class::Invalid).err().unwrap_or(refusal)
}

/// Decodes, checks the room and handles; what a [`Route`] points to.
pub(crate) fn run<'a, C: Handle>(
    cx: &'a mut Cx<'_>,
    payload: &'a RawValue,
) -> BoxFuture<'a, Result<Box<RawValue>, Refusal>> {
    Box::pin(async move {
        let command = decode::<C>(payload)?;
        if let Some(room) = command.room() {
            require_member(cx, room, C::POLICY.ephemeral).await?;
        }
        let reply = command.handle(cx).await?;
        acknowledge(&reply)
    })
}

/// `{"ok":true}` and the fields of the reply.
fn acknowledge(reply: &impl Serialize) -> Result<Box<RawValue>, Refusal> {
    #[derive(Serialize)]
    struct Acknowledgement<'a, R> {
        ok: bool,
        #[serde(flatten)]
        reply: &'a R,
    }
    serde_json::value::to_raw_value(&Acknowledgement { ok: true, reply }).map_err(Refusal::internal)
}

/// The rooms this socket has joined, or, for what must not be lost, membership in the database:
/// a client that did not rejoin after a reconnect may still send. Membership of a study group can
/// end at any moment, so there only the database counts, in the transaction that writes.
async fn require_member(cx: &mut Cx<'_>, room: &RoomId, ephemeral: bool) -> Result<(), Refusal> {
    let may_end = room.is_study_group() && !ephemeral;
    if !may_end && cx.caller.joined.contains(room) {
        return Ok(());
    }
    if ephemeral {
        return Err(Refusal::NotAMember);
    }
    let (tenant, user) = (&cx.caller.tenant, &cx.caller.user);
    // In the lane also because a command that overlaps others must wait for nothing before it.
    let is_member = if cx.scope == Scope::Lane {
        cx.tx().await?.is_member(tenant, room, user).await?
    } else {
        cx.read().await?.is_member(tenant, room, user).await?
    };
    if is_member { Ok(()) } else { Err(Refusal::NotAMember) }
}

/// No argument, `null` and `{}` are the same. A failure in a required field is told apart from
/// one in an optional field, because the contract has different texts for them.
fn decode<C: Handle>(payload: &RawValue) -> Result<C, Refusal> {
    let text = if payload.get() == "null" { "{}" } else { payload.get() };
    if !text.starts_with('{') {
        // serde would read the fields of a struct from an array, too.
        return Err(Refusal::Required("the argument is an object".into()));
    }
    let failure = match serde_json::from_str::<C>(text) {
        Ok(command) => return Ok(command),
        Err(failure) => failure,
    };
    let schema = schemars::schema_for!(C);
    let required = schema.get("required").and_then(|names| names.as_array());
    let is_required = |name: &str| required.is_some_and(|all| all.iter().any(|one| one == name));
    let fault_is_optional = match serde_json::from_str::<serde_json::Value>(text) {
        Ok(serde_json::Value::Object(mut fields)) => {
            fields.retain(|name, _| is_required(name));
            serde_json::from_value::<C>(fields.into()).is_ok()
        }
        _ => false,
    };
    let detail = failure.to_string().into();
    Err(if fault_is_optional { Refusal::Invalid(detail) } else { Refusal::Required(detail) })
}
