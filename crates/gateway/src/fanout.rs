//! From effects to sockets, in the tenant's order.
//!
//! Durable events carry their offset. A node delivers them to every connection in offset order,
//! so what a connection has seen is one number. What comes early waits; a hole is read from the
//! outbox, so order and completeness depend on nothing but the database.

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use carillon_domain::{
    App as Domain, Caller, ConnectionId, Effect, Emit, Offset, Refusal, RoomId, TenantId,
    Timestamp, UserId,
    chat::{returning::Change, typing_indicator::Typing},
    contract::{ALL_PATHS, Address, Event as _},
    credential::AuthExpiring,
    identity::Issue,
    leaderboard::Board,
    presence::elsewhere::News,
    recovery::Recovered,
    session::{self, Ending},
};
use carillon_redis_adapter::{Broadcast, event_frame};
use serde_json::value::RawValue;
use socketioxide::SocketIo;
use tokio::sync::Notify;

use crate::{
    boards::Boards,
    cluster::{Peers, What},
    connection::{Closing, Connections},
    expiry::{Due, Expiries},
    metrics::Metrics,
    progress::{Concern, Memory, Progress},
    socketio::{Adapter, NodeHub, Seat},
    superseded::Superseded,
};

pub type Room = Cow<'static, str>;

/// In a larger room, who comes and goes is told to the others as the latest of each kind, not one
/// by one: two thousand who come in together would be told four million times.
const CROWD: usize = 200;
/// Clocks of nodes agree within this.
const SKEW: Duration = Duration::from_secs(1);
/// Durable events read from the outbox at a time.
const BATCH: u32 = 256;
/// Reads of the outbox before a join is given up.
const ATTEMPTS: usize = 64;

/// All sockets of a user. Internal names carry the tenant, set off by a character that no id may
/// contain: nothing crosses.
pub fn user_room(tenant: &TenantId, user: &UserId) -> Room {
    format!("u\0{tenant}\0{user}").into()
}

/// All sockets of a tenant.
pub fn tenant_room(tenant: &TenantId) -> Room {
    format!("t\0{tenant}").into()
}

/// All sockets that look at a board, whichever.
pub fn lookers_room(tenant: &TenantId) -> Room {
    format!("l\0{tenant}").into()
}

const BOARD: &str = "b\0";

/// The sockets that look at one board.
pub fn board_room(tenant: &TenantId, board: &Board) -> Room {
    let Board { period, specialty, limit } = board;
    let specialty = specialty.as_deref().unwrap_or_default();
    format!("{BOARD}{tenant}\0{}\0{limit}\0{specialty}", period.as_str()).into()
}

/// The sockets that have joined a room.
pub fn chat_room(tenant: &TenantId, room: &RoomId) -> Room {
    format!("r\0{tenant}\0{room}").into()
}

/// One socket, by its public id; only where other nodes may ask for it.
pub fn connection_room(id: &str) -> Room {
    format!("s\0{id}").into()
}

/// Hands effects to the transports.
pub struct Fanout {
    /// The other nodes, where there may be some.
    peers: Option<Arc<Peers>>,
    hub: Arc<NodeHub>,
    io: SocketIo<Adapter>,
    domain: Arc<Domain>,
    connections: Arc<Connections>,
    metrics: Arc<Metrics>,
    lanes: Mutex<HashMap<TenantId, Arc<Lane>>>,
    /// What the lanes keep of what they have delivered.
    memory: Memory,
    /// The latest event of each kind that waits to be told to a large room.
    crowds: Mutex<HashMap<(TenantId, RoomId, &'static str), Emit>>,
    /// Rung when an event came early: something is missing.
    pub hole: Notify,
    /// Who looks at which leaderboard.
    pub boards: Boards,
    /// Whose token runs out when.
    pub expiries: Expiries,
    pub superseded: Superseded,
}

/// Everything durable of one tenant passes it.
struct Lane {
    state: Mutex<Progress>,
}

impl Lane {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fanout {
    pub fn new(
        hub: Arc<NodeHub>,
        io: SocketIo<Adapter>,
        domain: Arc<Domain>,
        connections: Arc<Connections>,
        metrics: Arc<Metrics>,
        expiries: Expiries,
        peers: Option<Arc<Peers>>,
    ) -> Self {
        let (lanes, memory, crowds) = (Mutex::default(), Memory::default(), Mutex::default());
        let (hole, boards, superseded) = (Notify::new(), Boards::default(), Superseded::default());
        Self {
            peers,
            hub,
            io,
            domain,
            connections,
            metrics,
            lanes,
            memory,
            crowds,
            hole,
            boards,
            expiries,
            superseded,
        }
    }

    /// Delivers what a command of this socket has done.
    pub async fn deliver(&self, seat: &Seat, effects: Vec<Effect>) {
        let tenant = &seat.caller.tenant;
        for effect in effects {
            match effect {
                Effect::Emit(emit) => self.emit(tenant, Some(seat), emit),
                // Boxed: most deliveries wait for nothing, and are as large as the largest.
                Effect::Join { room, after } => Box::pin(self.join(seat, &room, after)).await,
                Effect::Leave(room) => {
                    self.leave(seat, &room);
                }
                Effect::LeaveFor(room, left) => self.leave_for(seat, &room, left),
                Effect::Enter(room) => self.subscribe(seat, &room),
                Effect::Watch(room) => {
                    self.listen(seat, &room);
                }
                Effect::Hear(room) => self.hear(seat, &room),
                Effect::Look { board, seen } => self.look(seat, board, seen),
                Effect::Extend(issue, until) => self.extend(seat, issue, until),
                other => self.deliver_system(tenant, other),
            }
        }
    }

    /// Delivers what the system itself has to say, on every node.
    pub fn deliver_system(&self, tenant: &TenantId, effect: Effect) {
        if let Effect::Emit(emit) = effect {
            return self.emit(tenant, None, emit);
        }
        let what = match &effect {
            Effect::Cut(user) => {
                Some(What::Cut(tenant.clone(), user.clone(), self.domain.clock.now()))
            }
            Effect::Expel(user, room) => {
                Some(What::Expel(tenant.clone(), user.clone(), room.clone()))
            }
            Effect::ShowBoards => Some(What::ShowBoards(tenant.clone())),
            // Of a user's row every node learns by itself; the rest is one socket's, or one node's.
            _ => None,
        };
        if let (Some(peers), Some(what)) = (&self.peers, what) {
            peers.talk.say(what);
        }
        self.deliver_here(tenant, effect);
    }

    /// Delivers what the system has to say to the sockets of this node.
    pub fn deliver_here(&self, tenant: &TenantId, effect: Effect) {
        match effect {
            Effect::Emit(emit) => self.emit_here(tenant, emit),
            Effect::Admit(user, room) => self.admit(tenant, &user, &room),
            Effect::Expel(user, room) => self.expel(tenant, &user, &room),
            Effect::Cut(user) => self.cut_user(tenant, &user, self.domain.clock.now()),
            Effect::Know(account) => {
                for seat in self.seats_of(tenant, &account.id) {
                    if seat.may_stay(&account) {
                        seat.renew(&account);
                    } else {
                        self.cut(&seat);
                    }
                }
            }
            Effect::ShowBoards => self.boards.show_again(tenant),
            Effect::Recompute { after } => self.boards.recompute(tenant, after),
            // The system has no socket.
            Effect::Join { .. }
            | Effect::Leave(_)
            | Effect::LeaveFor(..)
            | Effect::Enter(_)
            | Effect::Watch(_)
            | Effect::Hear(_)
            | Effect::Extend(..)
            | Effect::Look { .. } => {}
        }
    }

    /// All sockets of the user are in the room, and those that come later will be: a socket that
    /// is about to be counted in either finds the membership noted or is found here.
    fn admit(&self, tenant: &TenantId, user: &UserId, room: &RoomId) {
        self.domain.presence.remember_member(tenant, user, room);
        for seat in self.seats_of(tenant, user) {
            self.subscribe(&seat, room);
        }
    }

    /// Every socket of a user on this node that was there then is disconnected for good.
    pub fn cut_user(&self, tenant: &TenantId, user: &UserId, at: Timestamp) {
        let seats = self.seats_of(tenant, user).into_iter();
        seats.filter(|seat| self.was_there(seat, at)).for_each(|seat| self.cut(&seat));
    }

    /// Whether a socket is older than what was said of it elsewhere, which comes late where Redis
    /// was away.
    fn was_there(&self, seat: &Seat, at: Timestamp) -> bool {
        seat.connected_at(self.domain.clock.now()) <= at.after(SKEW)
    }

    /// The socket that has the session of that public id, in that generation or an earlier one, ends
    /// in favour of another one; it may not have arrived yet. Whether it is of this node.
    pub fn supersede(
        &self,
        tenant: &TenantId,
        user: &UserId,
        id: &ConnectionId,
        generation: i64,
    ) -> bool {
        self.superseded.note(id, generation);
        let seats = self.seats_of(tenant, user);
        let is_meant =
            |seat: &&Arc<Seat>| seat.caller.connection == *id && seat.generation <= generation;
        let seat = seats.iter().find(is_meant);
        if let Some(seat) = seat {
            // Whoever goes on waits for the end of one that the others know of, and takes what it leaves.
            let is_known = self.domain.presence.is_connection(id.as_str());
            seat.end_as(if is_known { Ending::Lost } else { Ending::Superseded });
            self.cut(seat);
        }
        seat.is_some()
    }

    /// Tells the sockets of this node what it has not heard of users elsewhere.
    pub fn tell_news(&self, news: News) {
        for (tenant, effect) in session::news(news) {
            self.deliver_here(&tenant, effect);
        }
    }

    /// Somebody else puts a socket into a room.
    pub fn enter(&self, seat: &Seat, room: &RoomId) {
        self.subscribe(seat, room);
    }

    /// Somebody else takes a socket out of a room: who goes on with its session is not in it either.
    pub fn exit(&self, seat: &Seat, room: &RoomId) {
        if seat.caller.joined.contains(room) {
            self.domain.returning.note(&seat.caller, Change::Left(room.clone()));
        }
        self.leave(seat, room);
    }

    /// No socket of the user is in the room, and none that comes later will be.
    pub fn expel(&self, tenant: &TenantId, user: &UserId, room: &RoomId) {
        self.domain.presence.forget_member(tenant, user, room);
        for seat in self.seats_of(tenant, user) {
            self.leave(&seat, room);
        }
    }

    /// Lets a socket into a room of its user's, unless that has ended meanwhile. Delivery stands
    /// still, so it cannot end in between.
    fn hear(&self, seat: &Seat, room: &RoomId) {
        let caller = &seat.caller;
        let Some(lane) = self.lane(&caller.tenant) else { return };
        let _progress = lane.lock();
        if self.domain.presence.is_member(&caller.tenant, &caller.user, room) {
            self.subscribe(seat, room);
        }
    }

    /// The client of a connection holds one token, whatever namespaces it is in.
    fn extend(&self, seat: &Seat, issue: Issue, until: Timestamp) {
        let all = self.seats_of(&seat.caller.tenant, &seat.caller.user);
        for other in all.iter().filter(|other| other.sid == seat.sid) {
            other.extend(issue);
            self.expiries.extend(other, until);
        }
    }

    /// Tells those whose token runs out, and cuts those whose time is over.
    pub fn expire(&self, now: Timestamp) {
        for due in self.expiries.due(now) {
            match due {
                Due::Tell(seat, expires_at) => {
                    if let Ok(payload) = serde_json::to_string(&AuthExpiring { expires_at }) {
                        self.tell(&seat, AuthExpiring::NAME, &payload);
                    }
                }
                Due::Cut(seat) => {
                    self.metrics.auth.expired();
                    self.cut(&seat);
                }
                Due::Close(seat) => self.connections.kill(&seat.connection, Closing::Unavailable),
            }
        }
    }

    /// The sockets of a user on this node.
    pub fn seats_of(&self, tenant: &TenantId, user: &UserId) -> Vec<Arc<Seat>> {
        let mut seats = Vec::new();
        for sid in self.hub.connections_in(&user_room(tenant, user)) {
            for &path in ALL_PATHS {
                let socket = self.io.of(path).and_then(|namespace| namespace.get_socket(sid));
                let seat = socket.and_then(|socket| socket.extensions.get::<Arc<Seat>>());
                // A connection may carry sockets of several users.
                seats.extend(
                    seat.filter(|seat| seat.caller.user == *user && seat.caller.tenant == *tenant),
                );
            }
        }
        seats
    }

    /// Ends a socket with a disconnect packet: coming back is of no use.
    pub fn cut(&self, seat: &Seat) {
        seat.caller.grant.end();
        let Some(socket) = seat.socket.upgrade() else { return };
        if socket.disconnect().is_err() {
            self.connections.kill(&seat.connection, Closing::SlowConsumer);
        }
    }

    /// Ends every socket of a connection's user with a disconnect packet.
    pub fn cut_connection(&self, seat: &Seat) {
        let all = self.seats_of(&seat.caller.tenant, &seat.caller.user);
        for other in all.iter().filter(|other| other.sid == seat.sid) {
            self.cut(other);
        }
    }

    /// One event of the table to one socket, past the effects: for refusals.
    pub fn tell(&self, seat: &Seat, name: &str, payload: &str) {
        self.say(seat, &encode(name, payload));
    }

    /// One event to one socket, unless it is gone.
    fn say(&self, seat: &Seat, event: &engineioxide::Str) {
        if seat.socket.strong_count() == 0 {
            return;
        }
        let frame = event_frame(seat.path, event);
        let mut by_engine = || self.hub.send_by_engine(seat.path, seat.sid, event);
        self.connections.send(&seat.connection, &frame, event.len(), &mut by_engine);
    }

    /// Reads what this node has missed: after a hole, and once a second.
    pub async fn repair(&self) -> Result<(), Refusal> {
        let known: Vec<(TenantId, Arc<Lane>, Offset)> = {
            let lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
            let with_progress = |(tenant, lane): (&TenantId, &Arc<Lane>)| {
                (tenant.clone(), lane.clone(), lane.lock().delivered())
            };
            lanes.iter().map(with_progress).collect()
        };
        if known.is_empty() {
            return Ok(());
        }
        let heads: HashMap<TenantId, Offset> =
            self.domain.store.read().await?.heads().await?.into_iter().collect();
        let mut result = Ok(());
        for (tenant, lane, delivered) in known {
            let head = heads.get(&tenant).copied().unwrap_or_default();
            if head < delivered {
                // What was delivered had been committed before the counter was read: the database
                // was restored, or failed over to a copy that lagged. This node begins anew.
                tracing::error!(tenant.id = %tenant, "the counter of {tenant} has gone back");
                lane.lock().reset(head);
                self.close_all(&tenant);
            } else if let Err(refusal) = self.catch_up(&tenant, &lane, head).await {
                // One tenant that cannot be read does not stop the others.
                result = Err(refusal);
            }
        }
        result
    }

    fn close_all(&self, tenant: &TenantId) {
        for sid in self.hub.connections_in(&tenant_room(tenant)) {
            if let Some(connection) = self.connections.get(sid) {
                self.connections.kill(&connection, Closing::Gap);
            }
        }
    }

    /// Before the first socket of a tenant is let in: from here on this node delivers.
    pub async fn begin(&self, tenant: &TenantId) -> Result<(), Refusal> {
        if self.lane(tenant).is_some() {
            return Ok(());
        }
        let delivered = self.domain.store.read().await?.head(tenant).await?;
        self.boards.begin(&self.domain, tenant).await?;
        let progress = Progress::new(delivered, self.memory.clone());
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        lanes.entry(tenant.clone()).or_insert_with(|| Arc::new(Lane { state: progress.into() }));
        Ok(())
    }

    /// Lets go of what nobody goes on with any more; called every second.
    pub fn forget(&self) {
        let age = self.domain.recovery.window.unwrap_or_default();
        let lanes: Vec<_> = {
            let lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
            lanes.values().cloned().collect()
        };
        for lane in lanes {
            lane.lock().forget(age);
        }
    }

    fn lane(&self, tenant: &TenantId) -> Option<Arc<Lane>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner).get(tenant).cloned()
    }

    fn emit(&self, tenant: &TenantId, seat: Option<&Seat>, emit: Emit) {
        if emit.offset.is_none() {
            return self.send_now(tenant, seat, emit);
        }
        self.publish(tenant, &emit);
        self.hear_emit(tenant, emit);
    }

    /// Delivers an event to the sockets of this node.
    pub fn hear_emit(&self, tenant: &TenantId, emit: Emit) {
        // Without a lane nobody of that tenant is here.
        let Some(lane) = self.lane(tenant) else { return };
        if let Some(offset) = emit.offset {
            return self.offer(tenant, &lane, offset, emit);
        }
        if emit.row.name == Typing::NAME {
            self.domain.typists.hear(tenant, &emit.payload, self.domain.clock.now());
        }
        // What was counted elsewhere was counted without those who are coming here.
        if let (true, Address::Others(room, _)) = (emit.row.counts, &emit.to)
            && self.peers.as_ref().is_none_or(|peers| peers.talk.is_level())
        {
            let _turn = lane.lock();
            let count = self.domain.presence.occupants(tenant, room);
            let payload = recount(&emit.payload, count);
            return self.send(tenant, None, &Emit { payload, ..emit });
        }
        self.send(tenant, None, &emit);
    }

    /// Sends what every node tells its own sockets.
    fn emit_here(&self, tenant: &TenantId, mut emit: Emit) {
        if emit.row.paced && self.leave_to_crowds(tenant, &mut emit) {
            return;
        }
        self.count_and(tenant, emit, |emit| self.send(tenant, None, emit));
    }

    /// Counts are made and sent one after another, so that the last one anybody hears is true.
    fn count_and(&self, tenant: &TenantId, mut emit: Emit, send: impl FnOnce(&Emit)) {
        let Some(room) = emit.counting.take() else { return send(&emit) };
        let lane = self.lane(tenant);
        let _turn = lane.as_ref().map(|lane| lane.lock());
        emit.payload = recount(&emit.payload, self.domain.presence.occupants(tenant, &room));
        send(&emit);
    }

    fn publish(&self, tenant: &TenantId, emit: &Emit) {
        if let Some(peers) = &self.peers {
            peers.publish(tenant, emit);
        }
    }

    fn event(&self, emit: &Emit) -> engineioxide::Str {
        event(emit, self.domain.recovery.window.is_some())
    }

    /// Where a client stands that has heard everything durable so far; `None` where clients do not
    /// recover.
    pub fn position(&self, tenant: &TenantId) -> Option<Offset> {
        self.domain.recovery.window?;
        Some(self.lane(tenant)?.lock().delivered())
    }

    /// Does something that names where clients stand, as [`Self::position`] says it. Delivery stands
    /// still meanwhile: nobody is set back behind what they have heard.
    pub fn at_position(&self, tenant: &TenantId, act: impl FnOnce(Option<Offset>)) {
        let lane = self.domain.recovery.window.and_then(|_| self.lane(tenant));
        let progress = lane.as_ref().map(|lane| lane.lock());
        act(progress.as_ref().map(|progress| progress.delivered()));
    }

    /// Sends what has no place in the order, here and elsewhere.
    fn send_everywhere(&self, tenant: &TenantId, seat: Option<&Seat>, emit: &Emit) {
        self.send(tenant, seat, emit);
        self.publish(tenant, emit);
    }

    /// Sends what has no place in the order.
    fn send_now(&self, tenant: &TenantId, seat: Option<&Seat>, mut emit: Emit) {
        if emit.row.paced && self.leave_to_crowds(tenant, &mut emit) {
            return;
        }
        // The others count anew, and know who is here by then.
        if let Some(peers) = &self.peers
            && emit.counting.is_some()
            && !matches!(emit.to, Address::Caller)
        {
            peers.talk.tell(&self.domain.presence);
        }
        self.count_and(tenant, emit, |emit| self.send_everywhere(tenant, seat, emit));
    }

    /// Keeps what is for large rooms until they are told; true when nobody else is left.
    fn leave_to_crowds(&self, tenant: &TenantId, emit: &mut Emit) -> bool {
        let is_crowd = |room: &RoomId| self.domain.presence.occupants(tenant, room) > CROWD;
        let (about, crowds) = match &mut emit.to {
            Address::Others(room, about) if is_crowd(room) => (about.clone(), vec![room.clone()]),
            Address::Around(about, rooms) => {
                (about.clone(), rooms.extract_if(.., |room| is_crowd(room)).collect())
            }
            _ => return false,
        };
        let mut waiting = self.crowds.lock().unwrap_or_else(PoisonError::into_inner);
        for room in crowds {
            let to = Address::Others(room.clone(), about.clone());
            let later = Emit { to, ..emit.clone() };
            waiting.insert((tenant.clone(), room, emit.row.name), later);
        }
        matches!(emit.to, Address::Others(..))
    }

    /// Tells crowds the latest of what happened in them; a few times a second.
    pub fn tell_crowds(&self) {
        let crowds =
            std::mem::take(&mut *self.crowds.lock().unwrap_or_else(PoisonError::into_inner));
        for ((tenant, _, _), mut emit) in crowds {
            if let Some(room) = emit.counting.take() {
                let count = self.domain.presence.occupants(&tenant, &room);
                emit.payload = recount(&emit.payload, count);
            }
            self.send_everywhere(&tenant, None, &emit);
        }
    }

    /// Delivers a durable event, or keeps it until those before it are there.
    fn offer(&self, tenant: &TenantId, lane: &Lane, offset: Offset, emit: Emit) {
        let mut progress = lane.lock();
        progress.offer(offset, emit);
        while let Some(emit) = progress.advance() {
            self.send(tenant, None, emit);
        }
        if progress.has_hole() {
            self.hole.notify_one();
        }
    }

    /// Delivers from the outbox until this node has everything up to `head`.
    async fn catch_up(&self, tenant: &TenantId, lane: &Lane, head: Offset) -> Result<(), Refusal> {
        loop {
            let from = lane.lock().delivered();
            if from >= head {
                return Ok(());
            }
            let mut reads = self.domain.store.read().await?;
            let missed = reads.published_after(tenant, from, BATCH).await?;
            if missed.is_empty() {
                return Ok(());
            }
            self.metrics.repaired(missed.len());
            for published in missed {
                self.offer(tenant, lane, published.offset, published.emit);
            }
            if lane.lock().delivered() == from {
                return Err(Refusal::internal(format!("the outbox of {tenant} has a hole")));
            }
        }
    }

    /// Takes the socket out of a room it is about to be shown again; says up to where it has heard
    /// everything. `None` when it is not in it, or nothing is delivered.
    pub fn pause(&self, seat: &Seat, room: &RoomId) -> Option<Offset> {
        let tenant = &seat.caller.tenant;
        let lane = self.lane(tenant).filter(|_| seat.caller.joined.contains(room))?;
        let progress = lane.lock();
        seat.socket.upgrade()?.leave(chat_room(tenant, room));
        Some(progress.delivered())
    }

    /// Subscribes the socket and sends what was committed between its snapshot and now. Nothing
    /// is missing and nothing comes twice: delivery stands still while the socket is let in.
    pub async fn join(&self, seat: &Seat, room: &RoomId, after: Offset) {
        let let_in = |emits: &[&Emit], delivered: Offset| {
            let missed = Missed::new(emits.iter().copied(), room, &seat.caller.user);
            if missed.is_member {
                self.subscribe(seat, room);
            }
            let Some((last, others)) = missed.events.split_last() else { return };
            for emit in others {
                self.say(seat, &self.event(emit));
            }
            // What it hears already has come further: the client must not go back behind that.
            let last = Emit { offset: Some(delivered), ..Emit::clone(last) };
            self.say(seat, &self.event(&last));
        };
        let whom = Concern::user(&seat.caller.user, std::iter::once(room));
        self.let_in(seat, after, &whom, let_in).await;
    }

    /// Lets a socket go on that has come back: it is sent what it missed, and is where it was. As
    /// in [`Self::join`] delivery stands still while it is let in. False when that is more than it
    /// can be sent at once.
    pub async fn resume(&self, seat: &Seat, recovered: &Recovered, groups: &[RoomId]) -> bool {
        let is_let_in = AtomicBool::new(true);
        let let_in = |emits: &[&Emit], _: Offset| {
            let mut missed = Resumed::new(emits, recovered, groups, &seat.caller.user);
            missed.events.retain(|emit| emit.row.paths.contains(&seat.path));
            let bytes = |emit: &&Emit| emit.row.name.len() + emit.payload.get().len();
            if !self.connections.takes(missed.events.iter().map(bytes).sum()) {
                return is_let_in.store(false, Ordering::Relaxed);
            }
            if let Some(socket) = seat.socket.upgrade() {
                socket.join(own_rooms(&seat.caller));
            }
            for room in &missed.rooms {
                self.subscribe(seat, room);
            }
            for emit in missed.events {
                self.say(seat, &self.event(emit));
            }
        };
        let rooms = recovered.rooms.iter().map(|(room, _)| room).chain(groups);
        let whom = Concern::user(&seat.caller.user, rooms);
        self.let_in(seat, recovered.after, &whom, let_in).await;
        is_let_in.into_inner()
    }

    /// Whether nothing durable was said in the room after an offset, as far as memory reaches.
    pub fn is_quiet(&self, tenant: &TenantId, room: &RoomId, after: Offset) -> bool {
        let Some(lane) = self.lane(tenant) else { return false };
        let progress = lane.lock();
        progress
            .since(after, &Concern::room(room))
            .is_some_and(|mut said| !said.any(|emit| emit.to.is_of(room)))
    }

    /// Hands over what was published after an offset, all of it that may concern the socket, while
    /// delivery stands still. Where memory does not reach back that far, the outbox does.
    async fn let_in(
        &self,
        seat: &Seat,
        after: Offset,
        whom: &Concern,
        let_in: impl Fn(&[&Emit], Offset),
    ) {
        let tenant = &seat.caller.tenant;
        let Some(lane) = self.lane(tenant) else { return };
        let (mut backlog, mut known) = (Vec::new(), after);
        for _ in 0..ATTEMPTS {
            let delivered = {
                let progress = lane.lock();
                if let Some(rest) = progress.since(known, whom) {
                    let emits: Vec<_> = backlog.iter().chain(rest).collect();
                    let_in(&emits, progress.delivered());
                    return;
                }
                progress.delivered()
            };
            let prepared = if delivered < known {
                self.catch_up(tenant, &lane, known).await
            } else {
                self.read_on(tenant, &mut backlog, &mut known).await
            };
            if prepared.is_err() {
                break;
            }
        }
        // Closed, the client knows that it may have missed something.
        self.connections.kill(&seat.connection, Closing::Gap);
    }

    async fn read_on(
        &self,
        tenant: &TenantId,
        backlog: &mut Vec<Emit>,
        known: &mut Offset,
    ) -> Result<(), Refusal> {
        let mut reads = self.domain.store.read().await?;
        for published in reads.published_after(tenant, *known, BATCH).await? {
            *known = published.offset;
            backlog.push(published.emit);
        }
        Ok(())
    }

    fn subscribe(&self, seat: &Seat, room: &RoomId) {
        if self.listen(seat, room) {
            self.domain.presence.joined(&seat.caller, room);
        }
    }

    /// Lets the socket into the room; true when it was not in it.
    fn listen(&self, seat: &Seat, room: &RoomId) -> bool {
        let Some(socket) = seat.socket.upgrade() else { return false };
        let is_new = seat.caller.joined.insert(room.clone());
        socket.join(chat_room(&seat.caller.tenant, room));
        // A socket that was removed meanwhile would stay in the room for ever.
        if !self.is_there(seat) {
            socket.leave_all();
        }
        is_new
    }

    /// Whether the socket has not been removed. The namespace is asked: one whose client was faster
    /// than the engine's own note that it is connected has all the more use for its rooms.
    fn is_there(&self, seat: &Seat) -> bool {
        self.io.of(seat.path).is_some_and(|of| of.get_socket(seat.sid).is_some())
    }

    /// The socket looks at this board and at no other.
    fn look(&self, seat: &Seat, board: Board, seen: u64) {
        let Some(socket) = seat.socket.upgrade() else { return };
        let tenant = &seat.caller.tenant;
        for room in socket.rooms() {
            if room.starts_with(BOARD) {
                socket.leave(room);
            }
        }
        socket.join(vec![lookers_room(tenant), board_room(tenant, &board)]);
        if !self.is_there(seat) {
            socket.leave_all();
            return;
        }
        self.boards.looked(tenant, board, seen);
    }

    /// Whether a socket of this node is in a room.
    pub fn is_anybody_in(&self, room: &Room) -> bool {
        !self.hub.connections_in(room).is_empty()
    }

    /// Tenants that have, or had, sockets on this node.
    pub fn tenants(&self) -> Vec<TenantId> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// True when the user has no socket in the room any more.
    fn leave(&self, seat: &Seat, room: &RoomId) -> bool {
        if let Some(socket) = seat.socket.upgrade() {
            socket.leave(chat_room(&seat.caller.tenant, room));
        }
        seat.caller.joined.remove(room) && self.domain.presence.left(&seat.caller, room)
    }

    fn leave_for(&self, seat: &Seat, room: &RoomId, left: Emit) {
        let (tenant, user) = (&seat.caller.tenant, &seat.caller.user);
        let mut was_last = self.leave(seat, room);
        for other in self.seats_of(tenant, user) {
            if other.caller.joined.was_brought(room) {
                was_last |= self.leave(&other, room);
            }
        }
        if was_last {
            self.emit(tenant, Some(seat), left);
        }
    }

    fn send(&self, tenant: &TenantId, seat: Option<&Seat>, emit: &Emit) {
        let (rooms, except) = match &emit.to {
            Address::Caller => {
                if let Some(seat) = seat {
                    self.say(seat, &self.event(emit));
                }
                return;
            }
            Address::User(user) => (vec![user_room(tenant, user)], Vec::new()),
            Address::Room(room) => (vec![chat_room(tenant, room)], Vec::new()),
            Address::Tenant => (vec![tenant_room(tenant)], Vec::new()),
            // Membership changes at this event's own place in the order, wherever it is delivered:
            // what was committed before it reaches who was a member then, what comes after it who
            // is one now.
            Address::RoomWith(room, user) => {
                self.admit(tenant, user, room);
                (vec![chat_room(tenant, room)], Vec::new())
            }
            Address::RoomWithout(room, user) => {
                self.expel(tenant, user, room);
                (vec![chat_room(tenant, room)], Vec::new())
            }
            Address::Lookers(board) => (vec![board_room(tenant, board)], Vec::new()),
            Address::Bystanders => (vec![tenant_room(tenant)], vec![lookers_room(tenant)]),
            Address::Others(room, user) => {
                (vec![chat_room(tenant, room)], vec![user_room(tenant, user)])
            }
            Address::Around(user, rooms) => {
                let rooms = rooms.iter().map(|room| chat_room(tenant, room));
                (std::iter::once(user_room(tenant, user)).chain(rooms).collect(), Vec::new())
            }
        };
        let paths = emit.row.paths;
        let (event, attachments) = (self.event(emit), Vec::new());
        self.hub.broadcast(&Broadcast { event, attachments, paths, rooms, except });
    }
}

/// What a room was told between a socket's snapshot of it and now.
struct Missed<'a> {
    events: Vec<&'a Emit>,
    /// Whether the user still belongs to the room.
    is_member: bool,
}

impl<'a> Missed<'a> {
    fn new(emits: impl Iterator<Item = &'a Emit>, room: &RoomId, user: &UserId) -> Self {
        let mut missed = Self { events: Vec::new(), is_member: true };
        for emit in emits {
            match &emit.to {
                Address::Room(of) if of == room => {}
                Address::RoomWith(of, who) if of == room => missed.is_member |= who == user,
                Address::RoomWithout(of, who) if of == room => missed.is_member &= who != user,
                _ => continue,
            }
            if missed.is_member {
                missed.events.push(emit);
            }
        }
        missed
    }
}

/// What a socket that has come back missed, and where it is.
struct Resumed<'a> {
    events: Vec<&'a Emit>,
    rooms: Vec<RoomId>,
}

impl<'a> Resumed<'a> {
    /// `groups` are the rooms its user belongs to now, whether it has joined them or not.
    fn new(emits: &[&'a Emit], recovered: &Recovered, groups: &[RoomId], user: &UserId) -> Self {
        let mut rooms: HashMap<&RoomId, Offset> =
            recovered.rooms.iter().map(|(room, shown)| (room, *shown)).collect();
        for room in groups {
            rooms.entry(room).or_default();
        }
        // Who came in meanwhile was not in before.
        let mut first: HashMap<&RoomId, bool> = HashMap::new();
        for emit in emits {
            match &emit.to {
                Address::RoomWith(room, who) if who == user => first.entry(room).or_insert(false),
                Address::RoomWithout(room, who) if who == user => first.entry(room).or_insert(true),
                _ => continue,
            };
        }
        let mut is_in: HashMap<&RoomId, bool> =
            rooms.keys().map(|room| (*room, first.get(room).copied().unwrap_or(true))).collect();
        for (room, was_in) in first {
            is_in.entry(room).or_insert(was_in);
        }
        let mut events = Vec::new();
        for emit in emits {
            let offset = emit.offset.unwrap_or_default();
            let is_shown = |room: &RoomId| rooms.get(room).is_some_and(|shown| offset <= *shown);
            let hears = |room: &RoomId| is_in.get(room) == Some(&true) && !is_shown(room);
            let is_heard = match &emit.to {
                Address::Tenant => true,
                Address::User(to) => to == user,
                Address::Room(room) => hears(room),
                Address::Others(room, about) => about != user && hears(room),
                Address::Around(about, around) => about == user || around.iter().any(hears),
                Address::RoomWith(room, who) => {
                    if who == user {
                        is_in.insert(room, true);
                    }
                    is_in.get(room) == Some(&true)
                }
                Address::RoomWithout(room, who) => {
                    if who == user {
                        is_in.insert(room, false);
                    }
                    is_in.get(room) == Some(&true)
                }
                Address::Caller | Address::Lookers(_) | Address::Bystanders => false,
            };
            if is_heard {
                events.push(*emit);
            }
        }
        let rooms = is_in.into_iter().filter(|(_, is_in)| *is_in).map(|(room, _)| room.clone());
        Self { events, rooms: rooms.collect() }
    }
}

/// The rooms of a socket that it is in without having joined.
pub fn own_rooms(caller: &Caller) -> Vec<Room> {
    vec![user_room(&caller.tenant, &caller.user), tenant_room(&caller.tenant)]
}

/// A durable event ends in its offset, where clients may recover: they remember the last one.
fn event(emit: &Emit, has_offsets: bool) -> engineioxide::Str {
    match emit.offset.filter(|_| has_offsets) {
        Some(Offset(offset)) => {
            format!("[\"{}\",{},\"{offset}\"]", emit.row.name, emit.payload.get()).into()
        }
        None => encode(emit.row.name, emit.payload.get()),
    }
}

/// The payload with another `participantCount`, its last key.
fn recount(payload: &Arc<RawValue>, count: usize) -> Arc<RawValue> {
    let text = payload.get();
    let with_count = text.rfind(':').map(|end| format!("{}:{count}}}", &text[..end]));
    let counted = with_count.and_then(|text| RawValue::from_string(text).ok());
    counted.map_or_else(|| payload.clone(), Arc::from)
}

/// Names of events hold nothing that needs escaping; a table test says so.
fn encode(name: &str, payload: &str) -> engineioxide::Str {
    format!("[\"{name}\",{payload}]").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_made_when_the_event_leaves() {
        let payload = |text: &str| Arc::from(RawValue::from_string(text.into()).unwrap());
        let counted = recount(&payload(r#"{"examId":"a:b","participantCount":0}"#), 17);
        assert_eq!(counted.get(), r#"{"examId":"a:b","participantCount":17}"#);
    }
}
