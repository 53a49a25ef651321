//! The Socket.IO transport, thin: it ends at the inbox and at the fanout.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use carillon_domain::{
    App as Domain, Caller, ConnectionId, Effect, Offset, Refusal, RoomId, TenantId, Timestamp,
    UserId,
    api::refused::Kind,
    chat::returning::{self, Change},
    contract::{ALL_PATHS, Event as _},
    dispatch::{Grant, Joined},
    identity::{Account, Issue, UserStatus},
    recovery::{self, Claim, Recovered, Resync, Session},
    session::{self, Ending},
};
use carillon_redis_adapter::{Hub, NodeAdapter};
use socketioxide::{
    adapter::Emitter,
    extract::{AckSender, SocketRef, TryData},
    handler::{
        ConnectHandler as _, FromConnectParts, FromMessageParts as _, MessageHandler, Value,
    },
    socket::{DisconnectReason, Sid, Socket},
};

use crate::{
    auth::{Denied, Presented, Reason},
    cluster::What,
    coming::Turn,
    config::Expiry,
    connection::{Closing, Connection},
    edge::outlet::{MARK_NAME, Outlet},
    fanout::{connection_room, own_rooms},
    gateway::Gateway,
    inbox::{self, Ack, Asked, Item, Settling},
};

/// The adapter under every namespace.
pub type Adapter = NodeAdapter<Emitter>;
/// The adapters of this node.
pub type NodeHub = Hub<Emitter>;

/// A socket that another one goes on for has ended by then, or it is not there any more.
const SUPERSEDED: Duration = Duration::from_secs(1);
/// How often a room in which somebody speaks is read until it is shown as it is.
const READ_AGAIN: u32 = 5;
/// What a lost socket leaves behind is written by then.
const PASSED_ON: Duration = Duration::from_millis(500);

/// One Socket.IO socket of ours: a caller in one namespace of one connection.
pub struct Seat {
    /// Who came. What they are by now is in [`Self::current`].
    pub caller: Arc<Caller>,
    /// The token that let them in, or the newest shown since.
    issue: Mutex<Issue>,
    pub connection: Arc<Connection>,
    pub sid: Sid,
    pub path: &'static str,
    pub socket: std::sync::Weak<Socket<Adapter>>,
    /// When it is cut unless it shows a newer token; `None` where it outlives its token.
    expires_at: Option<Timestamp>,
    since: Instant,
    /// The caller as they are since their row was changed.
    renewed: Mutex<Option<Arc<Caller>>>,
    /// Until it has arrived.
    pending: Mutex<Option<Box<Pending>>>,
    /// The generation in which it has its session.
    pub generation: i64,
    /// How it ends, where that is not for the engine to say.
    ending: OnceLock<Ending>,
    to_show: Mutex<ToShow>,
}

/// What is kept of a socket from its CONNECT until the others are told of it.
struct Pending {
    /// What it goes on from, or why it cannot.
    resuming: Option<Resuming>,
    turn: Option<Turn>,
    expected: Option<Expected>,
}

/// The rooms that a socket has gone on in, until they are shown anew; and from where on.
#[derive(Debug, Default)]
struct ToShow {
    after: Offset,
    rooms: Vec<RoomId>,
}

/// A socket whose client showed a private id.
pub enum Resuming {
    From(Recovered),
    Anew(recovery::Reason),
}

impl Seat {
    /// Whether the user may go on with the token that let this socket in.
    pub fn may_stay(&self, account: &Account) -> bool {
        account.status != UserStatus::Suspended && account.tokens.accepts(*self.issue())
    }

    fn pending(&self) -> MutexGuard<'_, Option<Box<Pending>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn issue(&self) -> MutexGuard<'_, Issue> {
        self.issue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whatever ends it for the engine, this is how it has ended.
    pub fn end_as(&self, ending: Ending) {
        // Said twice, the first counts.
        let _ = self.ending.set(ending);
    }

    /// Ends it where somebody else has gone on with its session before it had arrived.
    fn gives_way(&self, gateway: &Gateway) -> bool {
        let is_late = gateway.fanout.superseded.covers(&self.caller.connection, self.generation);
        if is_late {
            self.end_as(Ending::Superseded);
            gateway.fanout.cut(self);
        }
        is_late
    }

    /// When it came.
    pub fn connected_at(&self, now: Timestamp) -> Timestamp {
        now.before(self.since.elapsed())
    }

    /// The client has shown a newer token.
    pub fn extend(&self, issue: Issue) {
        *self.issue() = issue;
    }

    /// The user's row has changed: what the socket asks from now on, it asks as who they are now.
    pub fn renew(&self, account: &Account) {
        let was = self.current();
        if (&was.name, &was.avatar, was.role) == (&account.name, &account.avatar, account.role) {
            return;
        }
        let mut renewed = self.renewed.lock().unwrap_or_else(PoisonError::into_inner);
        self.caller.grant.change();
        *renewed = Some(Arc::new(Caller {
            name: account.name.clone(),
            avatar: account.avatar.clone(),
            role: account.role,
            grant: self.caller.grant.renewed(),
            ..Caller::clone(&self.caller)
        }));
    }

    /// Who the user is now.
    pub fn current(&self) -> Arc<Caller> {
        let renewed = self.renewed.lock().unwrap_or_else(PoisonError::into_inner);
        renewed.as_ref().unwrap_or(&self.caller).clone()
    }

    /// From here on events may go past the engine: its CONNECT reply is on its way.
    fn let_out(&self) {
        if let Some(outlet) = self.connection.outlet() {
            let socket = self.socket.upgrade();
            // By the socket itself: a broadcast does not tell that it has left.
            outlet.mark(|| socket.is_some_and(|socket| socket.emit(MARK_NAME, &[(); 0]).is_ok()));
        }
    }

    /// Whether the others have been told, or are being told.
    pub fn has_arrived(&self) -> bool {
        self.pending().is_none()
    }

    /// Tells the others, once, before anything else of this socket is handled.
    pub async fn arrive(self: &Arc<Self>, gateway: &Gateway) {
        if self.gives_way(gateway) {
            return;
        }
        let Some(pending) = self.pending().take() else { return };
        let Pending { resuming, turn, expected } = *pending;
        // Now, so that a newer token which the client shows at once finds it.
        if let Some(expires_at) = self.expires_at {
            gateway.fanout.expiries.watch(self, expires_at);
        }
        let _turn = match turn {
            Some(turn) => turn,
            None => gateway.coming.turn().await,
        };
        // Without its rooms the user could not be shown to anybody: the client comes back.
        let Ok(effects) = session::connected(&gateway.domain, &self.current()).await else {
            gateway.connections.kill(&self.connection, Closing::Unavailable);
            return;
        };
        drop(expected);
        match resuming {
            Some(Resuming::From(recovered)) => self.resume(gateway, &recovered).await,
            Some(Resuming::Anew(reason)) => {
                if let Ok(payload) = serde_json::to_string(&Resync { reason }) {
                    gateway.fanout.tell(self, Resync::NAME, &payload);
                }
            }
            None => {}
        }
        gateway.fanout.deliver(self, effects).await;
    }

    /// Goes on where another socket was lost; what is ephemeral is shown anew.
    async fn resume(&self, gateway: &Gateway, recovered: &Recovered) {
        let (domain, caller) = (&gateway.domain, self.current());
        let groups = domain.presence.group_rooms(&caller.tenant, &caller.user);
        if !gateway.fanout.resume(self, recovered, &groups).await {
            // Closed again before it had heard all of that, its client would ask for it for ever.
            domain.returning.note(&caller, Change::Closed);
            gateway.connections.kill(&self.connection, Closing::TooMuch);
            return;
        }
        // From here on it is found by who goes on with its session.
        if self.gives_way(gateway) {
            return;
        }
        let rooms = recovered.rooms.iter().map(|(room, _)| room.clone()).collect();
        *self.to_show() = ToShow { after: recovered.after, rooms };
        match session::resumed(domain, &caller).await {
            Ok(effects) => gateway.fanout.deliver(self, effects).await,
            Err(_) => gateway.connections.kill(&self.connection, Closing::Unavailable),
        }
    }

    /// Brings what the socket should have without asking; says what is to be tried again.
    pub async fn settle(&self, gateway: &Gateway, due: Settling) -> Option<Settling> {
        if !self.socket.upgrade().is_some_and(|socket| socket.connected()) {
            return None;
        }
        if self.connection.outlet().is_some_and(Outlet::is_unused) {
            // It has come to a WebSocket since it connected.
            self.let_out();
        }
        let rooms = (!self.show_rooms(gateway).await).then_some(Settling::Rooms);
        if due == Settling::Rooms {
            return rooms;
        }
        let caller = self.current();
        let (effects, result) =
            session::settled(&gateway.domain, &caller, self.generation > 0).await;
        gateway.fanout.deliver(self, effects).await;
        let Err(refusal) = result else { return rooms };
        let code = refusal.code().as_str();
        tracing::warn!(code, "a socket could not be given what is kept for its user");
        if refusal.retry_after().is_some() { Some(Settling::Everything) } else { rooms }
    }

    fn to_show(&self) -> MutexGuard<'_, ToShow> {
        self.to_show.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its client asks to be shown the room: once is enough.
    pub fn is_about_to_show(&self, room: &RoomId) {
        self.to_show().rooms.retain(|other| other != room);
    }

    /// Shows the rooms anew that the socket has gone on in, and where something was said since: its
    /// page may have been without listeners for a moment. False when some are left to be shown; so
    /// they are when this is given up.
    async fn show_rooms(&self, gateway: &Gateway) -> bool {
        let (caller, now) = (self.current(), gateway.domain.clock.now());
        loop {
            let (after, next) = {
                let to_show = self.to_show();
                (to_show.after, to_show.rooms.first().cloned())
            };
            let Some(room) = next else { return true };
            let has_left = !caller.joined.contains(&room);
            if has_left || gateway.fanout.is_quiet(&caller.tenant, &room, after) {
                self.is_about_to_show(&room);
                continue;
            }
            let Ok(_turn) = gateway.showing.try_acquire() else { return false };
            let shown = self.read_room(gateway, &caller, &room, now).await;
            if shown.as_ref().is_err_and(|refusal| refusal.retry_after().is_some()) {
                return false;
            }
            self.is_about_to_show(&room);
            // It hears the room already, and goes on doing so: nothing is left to a snapshot that
            // may not arrive.
            if let Ok(mut effects) = shown {
                effects.retain(|effect| !matches!(effect, Effect::Join { .. }));
                gateway.fanout.deliver(self, effects).await;
            }
        }
    }

    /// What shows a room that the socket hears. Read again where something was said meanwhile: a page
    /// that keeps to what it is shown would lose that.
    async fn read_room(
        &self,
        gateway: &Gateway,
        caller: &Caller,
        room: &RoomId,
        now: Timestamp,
    ) -> Result<Vec<Effect>, Refusal> {
        let mut tries = 0;
        loop {
            tries += 1;
            let shown = returning::bring_back(&gateway.domain, caller, room, now).await?;
            let is_old = shown.iter().any(|effect| match effect {
                Effect::Join { after, .. } => {
                    !gateway.fanout.is_quiet(&caller.tenant, room, *after)
                }
                _ => false,
            });
            if !is_old || tries == READ_AGAIN {
                return Ok(shown);
            }
        }
    }

    /// Takes the socket out of what its user may not hear any more.
    pub async fn review(&self, gateway: &Gateway) {
        match session::review(&gateway.domain, &self.current()).await {
            Ok(effects) => gateway.fanout.deliver(self, effects).await,
            // It is being disconnected, or will be reviewed again.
            Err(Refusal::Unauthenticated | Refusal::Outdated) => {}
            // Nothing is heard that may not be: the client comes back, and is let in as who it is.
            Err(_) => gateway.connections.kill(&self.connection, Closing::Unavailable),
        }
    }

    /// Tells the others, after everything this socket had asked for.
    pub async fn leave(&self, gateway: &Arc<Gateway>, reason: DisconnectReason) {
        let ending = self.ending.get().copied().unwrap_or(match reason {
            DisconnectReason::ServerNSDisconnect => Ending::Cut,
            DisconnectReason::ClientNSDisconnect => Ending::Closed,
            _ => Ending::Lost,
        });
        if self.pending().take().is_some() {
            // Gone before anybody was told that it came. What was noted of it is forgotten in time.
            if ending != Ending::Superseded {
                let lost = Change::Lost(gateway.domain.clock.now());
                gateway.domain.returning.note(&self.caller, lost);
            }
            return;
        }
        let effects = session::disconnected(&gateway.domain, &self.caller, ending);
        gateway.fanout.deliver(self, effects).await;
        if matches!(reason, DisconnectReason::HeartbeatTimeout | DisconnectReason::TransportError) {
            self.pass_on(gateway);
        }
    }

    /// A link that breaks is noticed late: its client may be back already, on a socket that found
    /// nothing lost when it came.
    fn pass_on(&self, gateway: &Arc<Gateway>) {
        for seat in gateway.fanout.seats_of(&self.caller.tenant, &self.caller.user) {
            if seat.since.elapsed() <= gateway.connections.unnoticed() {
                inbox::settle_after(PASSED_ON, gateway, seat, Settling::Everything);
            }
        }
    }
}

/// Registers every namespace.
pub fn register(gateway: &Arc<Gateway>) {
    for &path in ALL_PATHS {
        let for_connect = gateway.clone();
        let for_token = gateway.clone();
        let on_connect = move |socket: SocketRef<Adapter>| {
            let gateway = for_connect.clone();
            async move {
                if let Some(seat) = socket.extensions.get::<Arc<Seat>>() {
                    seat.let_out();
                    inbox::push(&gateway, &seat, Item::Arrived(seat.clone()));
                    let due = Settling::Everything;
                    inbox::settle_after(session::SETTLING, &gateway, seat, due);
                }
            }
        };
        let authenticate = move |arrival: Arrival| {
            let gateway = for_token.clone();
            async move { connect(&gateway, path, arrival).await }
        };
        gateway.io.ns(path, on_connect.with(authenticate));
    }
}

/// A socket that asks to be let in, and the payload of its CONNECT.
struct Arrival {
    socket: Arc<Socket<Adapter>>,
    auth: Option<serde_json::Value>,
}

impl FromConnectParts<Adapter> for Arrival {
    type Error = Infallible;
    fn from_connect_parts(
        socket: &Arc<Socket<Adapter>>,
        auth: &Option<Value>,
    ) -> Result<Self, Infallible> {
        let TryData(auth) = TryData::from_connect_parts(socket, auth)?;
        Ok(Self { socket: socket.clone(), auth: auth.ok() })
    }
}

/// Runs before the CONNECT reply, and registers everything: what comes right after it is heard.
async fn connect(
    gateway: &Arc<Gateway>,
    path: &'static str,
    Arrival { socket, auth }: Arrival,
) -> Result<(), Denied> {
    let connection = socket
        .req_parts()
        .extensions
        .get::<Arc<Connection>>()
        .cloned()
        .ok_or(Denied::InvalidToken(Reason::Malformed))?;
    gateway.connections.insert(socket.id, &connection);
    let given = auth.as_ref().and_then(|auth| auth.get("token")).filter(|token| !token.is_null());
    let token = match given {
        // Something that is no text is a credential all the same, and a wrong one.
        Some(token) => Some(token.as_str().unwrap_or("?")),
        None => connection.bearer.as_deref(),
    };
    let presented = Presented { token, origin: connection.origin };
    let identity = match gateway.authenticator.authenticate(&gateway.domain, presented).await {
        Ok(identity) => identity,
        Err(denied) => {
            deny(gateway, &connection, token, &denied);
            return Err(denied);
        }
    };
    let expected = Expected::new(&gateway.domain, &identity.tenant, &identity.user.id);
    if let Err(refusal) = gateway.fanout.begin(&identity.tenant).await {
        let denied = Denied::Away(refusal);
        deny(gateway, &connection, token, &denied);
        return Err(denied);
    }
    let key = (&identity.tenant, &identity.user.id, path);
    let kept = match recover(gateway, key, auth.as_ref()).await {
        Ok(kept) => kept,
        Err(refusal) => {
            let denied = Denied::Away(refusal);
            deny(gateway, &connection, token, &denied);
            return Err(denied);
        }
    };
    connection.enter();
    let generation = kept.generation();
    let told = gateway.domain.exams.told(&identity.tenant, &identity.user.id, &kept.connection);
    let caller = Caller {
        app: Some(identity.app),
        tenant: identity.tenant,
        user: identity.user.id,
        name: identity.user.name,
        avatar: identity.user.avatar,
        role: identity.user.role,
        connection: kept.connection,
        namespace: path,
        joined: Joined::default(),
        told,
        grant: Grant::default(),
    };
    if let Some(outlet) = connection.outlet() {
        outlet.close();
    }
    connection.rename(path, socket.id, caller.connection.as_str(), kept.pid.as_deref());
    let mut rooms = Vec::new();
    // Others may name sockets of the tenant they share, and no others.
    if gateway.peers.as_ref().is_some_and(|peers| *peers.names.shared_tenant() == caller.tenant) {
        rooms.push(connection_room(caller.connection.as_str()));
    }
    // Who goes on is let in together with what was missed.
    if !matches!(kept.resuming, Some(Resuming::From(_))) {
        rooms.extend(own_rooms(&caller));
        note_come(gateway, &caller, kept.pid.as_deref());
    }
    socket.join(rooms);
    let pending = Pending { resuming: kept.resuming, turn: kept.turn, expected };
    let seat = Arc::new(Seat {
        caller: Arc::new(caller),
        issue: identity.issue.into(),
        connection,
        sid: socket.id,
        path,
        socket: Arc::downgrade(&socket),
        expires_at: (identity.expiry == Expiry::Enforce).then_some(identity.expires_at),
        since: Instant::now(),
        renewed: Mutex::default(),
        pending: Mutex::new(Some(Box::new(pending))),
        generation,
        ending: OnceLock::new(),
        to_show: Mutex::default(),
    });
    socket.extensions.insert(seat.clone());
    socket.on_fallback(ToInbox { gateway: gateway.clone(), seat: seat.clone() });
    let gateway = gateway.clone();
    socket.on_disconnect(move |reason: DisconnectReason| {
        // Nothing here may fail or wait: the engine frees the socket behind it.
        let has_ended = !matches!(
            reason,
            DisconnectReason::ClientNSDisconnect | DisconnectReason::ServerNSDisconnect
        );
        if has_ended {
            gateway.connections.remove(seat.sid);
        }
        gateway.fanout.expiries.forget(&seat);
        inbox::push(&gateway, &seat, Item::Left(seat.clone(), reason));
        std::future::ready(())
    });
    Ok(())
}

/// A user whom the others know, and whose socket is coming in. However long it waits for its turn,
/// they are not shown offline meanwhile.
struct Expected {
    domain: Arc<Domain>,
    tenant: TenantId,
    user: UserId,
}

impl Expected {
    fn new(domain: &Arc<Domain>, tenant: &TenantId, user: &UserId) -> Option<Self> {
        domain.presence.expect(tenant, user, domain.clock.now()).then(|| Self {
            domain: domain.clone(),
            tenant: tenant.clone(),
            user: user.clone(),
        })
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.domain.presence.stop_expecting(&self.tenant, &self.user, self.domain.clock.now());
    }
}

/// Whose session it is, and in what namespace.
type Key<'a> = (&'a TenantId, &'a UserId, &'a str);

/// What a socket is called, and what it goes on from.
struct Kept {
    connection: ConnectionId,
    /// The client's secret; `None` where clients do not recover.
    pid: Option<String>,
    resuming: Option<Resuming>,
    /// Its turn to enter, where it has been given that.
    turn: Option<Turn>,
}

impl Kept {
    /// The generation in which the socket has its session; a new one begins with 0.
    fn generation(&self) -> i64 {
        match &self.resuming {
            Some(Resuming::From(recovered)) => recovered.generation,
            Some(Resuming::Anew(_)) | None => 0,
        }
    }
}

/// Goes on with the session of the private id that a client shows, if that can be done.
async fn recover(
    gateway: &Gateway,
    key: Key<'_>,
    auth: Option<&serde_json::Value>,
) -> Result<Kept, Refusal> {
    let domain = &gateway.domain;
    let is_on = domain.recovery.window.is_some();
    let shown = |name| auth.and_then(|auth| auth.get(name)).and_then(serde_json::Value::as_str);
    let pid = shown("pid").filter(|_| is_on);
    let anew = |reason: Option<recovery::Reason>| Kept {
        connection: ConnectionId::new(random_id()).expect("20 printable characters"),
        pid: is_on.then(random_id),
        resuming: reason.map(Resuming::Anew),
        turn: None,
    };
    let Some(pid) = pid else { return Ok(anew(None)) };
    let Some(claim) = Claim::new(pid, shown("offset")) else {
        return Ok(anew(Some(recovery::Reason::Unknown)));
    };
    let found = gateway.coming.find(claim.clone()).await?;
    let session = match recovery::check(domain, key, &claim, found) {
        Ok(session) => session,
        Err(reason) => return Ok(anew(Some(reason))),
    };
    end_older(gateway, key, &session).await;
    let turn = gateway.coming.turn().await;
    let recovered = recovery::take(domain, session, &claim).await?;
    Ok(recovered.map_or_else(
        || anew(Some(recovery::Reason::Unknown)),
        |recovered| Kept {
            connection: recovered.connection.clone(),
            pid: Some(pid.to_owned()),
            resuming: Some(Resuming::From(recovered)),
            turn: Some(turn),
        },
    ))
}

/// The older socket of that id is closed first, wherever it is.
async fn end_older(gateway: &Gateway, (tenant, user, _): Key<'_>, session: &Session) {
    let (presence, id) = (&gateway.domain.presence, &session.connection);
    // Who has just taken it is not known to anybody yet.
    if !presence.is_connection(id.as_str()) && session.lost_at.is_some() {
        return;
    }
    let is_here = gateway.fanout.supersede(tenant, user, id, session.generation);
    if let Some(peers) = &gateway.peers {
        let what = What::GoOn(tenant.clone(), user.clone(), id.clone(), session.generation);
        peers.talk.say(what);
    }
    // Its node was killed: there is nobody to end it, and the others forget it in a while.
    if session.lost_at.is_some() && !is_here {
        return;
    }
    let (until, mut pause) = (Instant::now() + SUPERSEDED, SUPERSEDED / 200);
    while presence.is_connection(id.as_str()) && Instant::now() < until {
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
}

/// That the socket is here is written shortly, for the time when it is lost.
fn note_come(gateway: &Gateway, caller: &Caller, pid: Option<&str>) {
    let (Some(pid), Some(since)) = (pid, gateway.fanout.position(&caller.tenant)) else { return };
    let (user, namespace, pid) = (caller.user.clone(), caller.namespace, recovery::digest(pid));
    gateway.domain.returning.note(caller, Change::Came { user, namespace, pid, since });
}

fn deny(gateway: &Gateway, connection: &Connection, token: Option<&str>, denied: &Denied) {
    gateway.metrics.denied(denied.as_str());
    match denied {
        Denied::Away(refusal) => {
            // Nobody's failure that a limit should count.
            connection.excuse();
            tracing::warn!(code = refusal.code().as_str(), "a user could not be looked up");
            gateway.connections.kill(connection, Closing::Unavailable);
        }
        // That its source is away is told once, by who asks it. Anybody can make such a token, so it
        // counts as a failure: at worst its address waits in line.
        Denied::KeysAway => {
            gateway.connections.kill(connection, Closing::Unavailable);
        }
        Denied::NoToken | Denied::InvalidToken(_) | Denied::UserNotFound | Denied::Suspended => {
            let token = token.unwrap_or_default();
            if gateway.authenticator.is_one_too_many(token) {
                connection.condemn();
            }
            note(gateway, token, denied);
        }
    }
}

/// A token that let nobody in is in the audit log: of the user whom it proves, or else as one that
/// only names somebody.
fn note(gateway: &Gateway, token: &str, denied: &Denied) {
    let proven = gateway.authenticator.bearer(token);
    let (tenant, user) = proven.unwrap_or_else(|| (gateway.default_tenant.clone(), None));
    let claimed = || gateway.authenticator.claimed_user(token).unwrap_or_default();
    let (actor, subject) = user.map_or_else(
        || (" unverified".into(), claimed()),
        |user| (user.to_string(), user.to_string()),
    );
    let reason = match denied {
        Denied::InvalidToken(reason) => reason.as_str(),
        denied => denied.as_str(),
    };
    let kind = Kind { tenant, actor, action: "auth.refused", subject, reason };
    gateway.domain.refusals.note(kind, gateway.domain.clock.now());
}

/// 20 characters of 6 random bits each, as Node's.
fn random_id() -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut bytes = [0; 20];
    getrandom::fill(&mut bytes).expect("the system has randomness");
    bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte & 63)])).collect()
}

/// Puts every event into the inbox, in the order the engine read them.
struct ToInbox {
    gateway: Arc<Gateway>,
    seat: Arc<Seat>,
}

impl MessageHandler<Adapter, ToInbox> for ToInbox {
    fn call(&self, socket: Arc<Socket<Adapter>>, mut value: Value, ack_id: Option<i64>) {
        let ack = match (ack_id, AckSender::from_message_parts(&socket, &mut value, &ack_id)) {
            (Some(id), Ok(sender)) => Some(Ack { id, sender }),
            _ => None,
        };
        // Binary packets of another parser cannot arrive: this server has the default one only.
        let Value::Str(text, attachments) = value else { return };
        let asked = Asked {
            seat: self.seat.clone(),
            text,
            has_attachments: attachments.is_some_and(|all| !all.is_empty()),
            ack,
            received: std::time::Instant::now(),
            received_at: self.gateway.domain.clock.now(),
        };
        inbox::ask(&self.gateway, asked);
    }
}
