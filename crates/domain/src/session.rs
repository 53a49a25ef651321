//! What belongs to a connection rather than to a feature: coming, going, signs of life.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    chat::{
        self,
        returning::{self, Change},
    },
    contract::{
        Class, Command, Event, EventRow, Everywhere, Handle, Namespace as _, Policy, Route, Scope,
        Telling, ToCaller, event, route,
    },
    dispatch::{App, Caller, Cx, Effect, Emit},
    exam,
    ids::{ExamId, RoomId, TenantId, Timestamp},
    notification,
    presence::{
        self, Coming, Person, Rooms, Status, ToAcquainted, UserStatusChange, elsewhere::News,
    },
    refusal::{Refusal, Told},
};

pub const COMMANDS: &[Route] = &[route::<Heartbeat>()];
pub const EVENTS: &[EventRow] = &[event::<HeartbeatAck>(), event::<Told<'static>>()];

/// A sign of life; the shipped frontend sends two every 30 s.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Heartbeat {}

impl Command for Heartbeat {
    type In = Everywhere;
    type Reply = HeartbeatAck;
    const NAME: &'static str = "heartbeat";
    const POLICY: Policy =
        Policy::new(Class::Heartbeat, "Heartbeat takes no payload", "Heartbeat failed")
            .ephemeral()
            .telling(Telling::Nothing);
    fn example() -> Self {
        Self {}
    }
}

impl Handle for Heartbeat {
    async fn handle(self, cx: &mut Cx<'_>) -> Result<HeartbeatAck, Refusal> {
        let ack = HeartbeatAck { timestamp: cx.now };
        cx.send(ToCaller(), &ack)?;
        Ok(ack)
    }
}

/// The answer to a heartbeat: the server's time.
#[derive(Debug, Serialize, JsonSchema)]
pub struct HeartbeatAck {
    pub timestamp: Timestamp,
}

impl Event for HeartbeatAck {
    type In = Everywhere;
    type To = ToCaller;
    const NAME: &'static str = "heartbeat-ack";
}

impl Event for Told<'static> {
    type In = Everywhere;
    type To = ToCaller;
    const NAME: &'static str = "error";
}

/// Listeners are in place this long after a socket has come: a page opens two, and only the newer
/// one listens.
pub const SETTLING: Duration = Duration::from_secs(1);

/// A socket has connected: it hears its user's study groups, and those who share a room are told,
/// unless the user was already there.
pub async fn connected(app: &App, caller: &Caller) -> Result<Vec<Effect>, Refusal> {
    let mut coming = app.presence.connected(caller, None, app.clock.now());
    while coming == Coming::RoomsNeeded {
        let as_of = app.presence.memberships_changed();
        let mut reads = app.store.read().await?;
        let rooms = reads.rooms_of(&caller.tenant, &caller.user, presence::MAX_ROOMS).await?;
        let rooms = Some(Rooms { rooms, as_of });
        coming = app.presence.connected(caller, rooms, app.clock.now());
    }
    let groups = app.presence.group_rooms(&caller.tenant, &caller.user);
    let mut effects: Vec<Effect> = groups.into_iter().map(Effect::Hear).collect();
    if let Coming::Online(rooms) = coming {
        let (tenant, user, name) =
            (caller.tenant.clone(), caller.user.clone(), caller.name.clone());
        effects.push(Person { tenant, user, name, rooms }.shown(Status::Online)?);
    }
    Ok(effects)
}

/// What waits for a user who comes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// The rooms of their lost sockets in the namespace; the newest last.
    pub rooms: Vec<RoomId>,
    /// The exams they are sitting.
    pub exams: Vec<ExamId>,
    /// Whether something unread is stored that they have not been sent.
    pub has_undelivered: bool,
}

/// [`SETTLING`] after a socket has come: what it should have without asking.
///
/// Whatever one of these comes to, the others are brought all the same; the first failure is named.
/// `goes_on`: the socket has a session of its own again, with the rooms of that.
pub async fn settled(
    app: &App,
    caller: &Caller,
    goes_on: bool,
) -> (Vec<Effect>, Result<(), Refusal>) {
    let path = caller.namespace;
    let (kept, mut result) = match kept(app, caller).await {
        Ok(kept) => (kept, Ok(())),
        Err(refusal) => (Kept::default(), Err(refusal)),
    };
    let mut effects = Vec::new();
    // Who goes on has its own rooms; those of the user's other sockets are for them to come back to.
    if chat::Chat::PATHS.contains(&path) && !goes_on {
        result = result.and(returning::restore(app, caller, &kept.rooms, &mut effects).await);
    }
    // A socket that hears nothing of exams sits none.
    if exam::Exams::PATHS.contains(&path) {
        result = result.and(exam::join_exam::restore(app, caller, kept.exams, &mut effects).await);
    }
    // Nor is one that hears nothing of notifications brought any.
    if notification::Notifications::PATHS.contains(&path) {
        match notification::deliver_stored(app, caller, kept.has_undelivered).await {
            Ok(kept) => effects.extend(kept),
            Err(refusal) => result = result.and(Err(refusal)),
        }
    }
    (effects, result)
}

async fn kept(app: &App, caller: &Caller) -> Result<Kept, Refusal> {
    let (tenant, user, now) = (&caller.tenant, &caller.user, app.clock.now());
    app.store.read().await?.kept(tenant, user, caller.namespace, now).await
}

/// A socket has gone on where another one was lost: what is not kept is shown to it anew.
pub async fn resumed(app: &App, caller: &Caller) -> Result<Vec<Effect>, Refusal> {
    let mut effects = review(app, caller).await?;
    for room in caller.joined.all() {
        for (user, name) in app.presence.online_members(&caller.tenant, &room) {
            if user != caller.user {
                let change = UserStatusChange::new(&user, &name, Status::Online);
                effects.push(Effect::Emit(Emit::new(ToAcquainted::Newcomer, &change)?));
            }
        }
    }
    if exam::Exams::PATHS.contains(&caller.namespace) {
        // What cannot be shown now is tried again when the socket has settled, and told then.
        if let Ok(running) = exam::join_exam::running(app, caller).await {
            let _ = exam::join_exam::restore(app, caller, running, &mut effects).await;
        }
    }
    Ok(effects)
}

/// The caller's rights have changed: the socket leaves the rooms that they may not hear any more.
pub async fn review(app: &App, caller: &Caller) -> Result<Vec<Effect>, Refusal> {
    let mut cx = Cx::new(app, caller, Scope::Rows, app.clock.now());
    let mut rooms = caller.joined.all();
    // The order in which everybody locks them.
    rooms.sort_unstable();
    for room in rooms {
        match room.exam() {
            Some(exam) => exam::review(&mut cx, &exam).await?,
            None => chat::review(&mut cx, &room).await?,
        }
    }
    cx.commit().await
}

/// At most so many users are noted in one transaction.
const NOTED_AT_ONCE: usize = 200;

/// Notes in the database who is here, unless that was done within `ago`.
pub async fn note_seen(app: &App, ago: Duration) -> Result<(), Refusal> {
    let now = app.clock.now();
    for (tenant, users) in app.presence.to_note(now, ago) {
        for some in users.chunks(NOTED_AT_ONCE) {
            let mut tx = app.store.begin(&tenant, Scope::Rows).await?;
            tx.note_seen(&tenant, some, now).await?;
            tx.commit().await?;
        }
    }
    Ok(())
}

/// What has become due: typing that was not repeated, and users whose grace is over, unless they may
/// have come back unheard. Called a few times a second; returns the effects by tenant, and whether
/// they are for all nodes' sockets.
pub fn tick(app: &App, hears: bool) -> Vec<(TenantId, Effect, bool)> {
    let now = app.clock.now();
    app.exams.expire(now);
    app.presence.forget_seen(now);
    let silent = app
        .typists
        .expire(now)
        .into_iter()
        .map(|typist| (typist, true))
        .chain(app.typists.expire_elsewhere(now).into_iter().map(|typist| (typist, false)))
        .map(|(typist, is_ours)| (typist.tenant.clone(), typist.effect(), is_ours));
    let gone = if hears { app.presence.expire(now) } else { Vec::new() };
    let gone = gone
        .into_iter()
        .map(|gone| (gone.person.tenant.clone(), gone.person.shown(Status::Offline), gone.is_ours));
    silent
        .chain(gone)
        .filter_map(|(tenant, effect, all)| Some((tenant, effect.ok()?, all)))
        .collect()
}

/// What the sockets of one node are told of what it has not heard of users elsewhere, by tenant.
pub fn news(news: News) -> Vec<(TenantId, Effect)> {
    let News { online, offline, entered, left } = news;
    let shown = |people: Vec<Person>, status| people.into_iter().map(move |one| (one, status));
    let statuses = shown(online, Status::Online).chain(shown(offline, Status::Offline));
    let mut told: Vec<(TenantId, Effect)> = statuses
        .filter_map(|(person, status)| Some((person.tenant.clone(), person.shown(status).ok()?)))
        .collect();
    for (people, event) in
        [(left, exam::leave_exam::left as fn(&_, &_) -> _), (entered, exam::join_exam::entered)]
    {
        for person in &people {
            let exams = person.rooms.iter().filter_map(|room| event(person, room));
            told.extend(exams.map(|effect| (person.tenant.clone(), effect)));
        }
    }
    told
}

/// Whether a socket that is gone may come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The network or this node has ended it: the same user may be back in a moment.
    Lost,
    /// Its client has ended it, and is not to go on with it.
    Closed,
    /// The server has ended it for good.
    Cut,
    /// Another socket has gone on with all that is kept of it.
    Superseded,
}

/// A socket is gone: its user stops typing where no other socket of theirs is, and goes offline
/// after the grace unless another comes.
pub fn disconnected(app: &App, caller: &Caller, ending: Ending) -> Vec<Effect> {
    let now = app.clock.now();
    let is_kept = app.recovery.window.is_some();
    if is_kept && ending == Ending::Closed {
        app.returning.note(caller, Change::Closed);
    }
    match ending {
        Ending::Lost | Ending::Closed if caller.joined.all().is_empty() && !is_kept => {}
        Ending::Lost | Ending::Closed => app.returning.note(caller, Change::Lost(now)),
        Ending::Cut => app.returning.note(caller, Change::Gone(caller.user.clone())),
        Ending::Superseded => {}
    }
    if ending == Ending::Lost {
        app.exams.keep_told(caller, now);
    }
    let left = app.presence.disconnected(caller, now);
    let stopped =
        left.iter().filter_map(|room| app.typists.stop(&caller.tenant, room, &caller.user));
    let mut effects: Vec<Effect> = stopped.filter_map(|stopped| stopped.effect().ok()).collect();
    effects.extend(exam::leave_exam::cut_off(app, caller, &left, now));
    effects
}
