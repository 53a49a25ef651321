//! Who is here. Counted by user: a page opens two sockets and a person several tabs.
//!
//! In memory. What is counted is the cluster's: each node tells the others who is with it, and keeps
//! what they tell ([`elsewhere`]).

pub mod elsewhere;

use std::{
    collections::{HashMap, HashSet, hash_map},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    api::connections::{Connected, OnlineUser},
    chat::Chat,
    contract::{Address, Event, EventRow, To, event},
    dispatch::{Caller, Effect, Emit},
    ids::{ConnectionId, RoomId, TenantId, Timestamp, UserId},
    refusal::Refusal,
};

pub const EVENTS: &[EventRow] = &[event::<UserStatusChange>()];

/// A user without a socket for this long is offline.
pub const GRACE: Duration = Duration::from_secs(5);
/// Somebody seen within this time may come back with the token they had.
pub const RETURN_WINDOW: Duration = Duration::from_mins(2);
/// That somebody is here is noted in the database this often.
pub const NOTED_EVERY: Duration = Duration::from_secs(30);
/// Somebody noted in the database within this time was here within [`RETURN_WINDOW`], for all that
/// is known: the last note is older than the last moment, by the time between two notes and by what
/// writing one takes.
pub const NOTED_WINDOW: Duration =
    Duration::from_secs(RETURN_WINDOW.as_secs() + NOTED_EVERY.as_secs() + 5);
/// Rooms considered when telling who shares a room with a user; the newest memberships.
pub const MAX_ROOMS: u32 = 500;
/// A larger room gets no snapshot of who is there.
pub const MAX_SNAPSHOT: usize = 200;

/// `online` or `offline`; clients know `away` and `busy` too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Online,
    Offline,
}

/// Somebody came or went.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UserStatusChange {
    pub user_id: UserId,
    pub user_name: String,
    pub status: Status,
}

impl UserStatusChange {
    /// A user, as of now.
    pub fn new(user: &UserId, name: &str, status: Status) -> Self {
        Self { user_id: user.clone(), user_name: name.to_owned(), status }
    }
}

/// Those who may know of each other.
#[derive(Debug)]
pub enum ToAcquainted {
    /// Somebody who has just joined a room, about one who is there.
    Newcomer,
    /// A room, about somebody who has just joined it.
    Room(RoomId, UserId),
    /// Everybody who shares a room with the user, and the user's own sockets.
    Around(UserId, Vec<RoomId>),
}
impl From<ToAcquainted> for Address {
    fn from(to: ToAcquainted) -> Self {
        match to {
            ToAcquainted::Newcomer => Self::Caller,
            ToAcquainted::Room(room, user) => Self::Others(room, user),
            ToAcquainted::Around(user, rooms) => Self::Around(user, rooms),
        }
    }
}
impl To for ToAcquainted {
    const WHOM: &'static str = "those who share a room with the user, and the user";
}

impl Event for UserStatusChange {
    type In = Chat;
    type To = ToAcquainted;
    const NAME: &'static str = "user-status-change";
    const PACED: bool = true;
}

type Key = (TenantId, UserId);

#[derive(Default)]
pub struct Presence {
    state: Mutex<State>,
    /// Set where there may be other nodes.
    shared: OnceLock<elsewhere::Shared>,
}

impl std::fmt::Debug for Presence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Presence")
    }
}

#[derive(Debug, Default)]
struct State {
    users: HashMap<Key, Entry>,
    /// Members of a room who are online, in it or not.
    online_members: HashMap<(TenantId, RoomId), OnlineMembers>,
    /// How many users have a socket in a room.
    occupants: HashMap<(TenantId, RoomId), usize>,
    connections: HashMap<ConnectionId, Key>,
    /// How many more sockets have the id, where one goes on before the older one is counted out.
    doubled: HashMap<ConnectionId, usize>,
    /// Sockets of other nodes.
    elsewhere: HashMap<ConnectionId, Key>,
    memberships_changed: u64,
    /// Grows with every change of anything here.
    revision: u64,
    /// Users whose last socket is gone, and when it went; kept for [`RETURN_WINDOW`].
    last_seen: HashMap<Key, Timestamp>,
    /// Users of whom the other nodes do not know the latest.
    untold: HashSet<Key>,
}

#[derive(Debug, Default)]
struct OnlineMembers {
    users: HashSet<UserId>,
    /// [`State::revision`] when it was last found that each has all of their sockets in the room.
    saw_everything: Option<u64>,
}

#[derive(Debug, Default)]
struct Entry {
    name: String,
    sockets: usize,
    /// Sockets that are coming in.
    expected: usize,
    /// The ids of the sockets, where other nodes are to know them.
    ids: Vec<ConnectionId>,
    /// What other nodes tell of the user.
    elsewhere: Vec<elsewhere::Told>,
    /// Rooms the user is a member of.
    member_of: HashSet<RoomId>,
    /// Rooms joined, and by how many sockets.
    joined: HashMap<RoomId, usize>,
    /// When the last socket went, while the grace runs.
    left_at: Option<Timestamp>,
    /// When it was last noted in the database that the user is here.
    noted_at: Option<Timestamp>,
    /// Whether a socket has been here long enough for its page to listen.
    is_settled: bool,
}

/// The rooms a user is a member of, as read from the database.
#[derive(Clone, Debug, Default)]
pub struct Rooms {
    pub rooms: Vec<RoomId>,
    /// [`Presence::memberships_changed`] before they were read.
    pub as_of: u64,
}

/// What a socket's arrival means.
#[derive(Debug, PartialEq, Eq)]
pub enum Coming {
    /// The user had a socket, or lost the last one a moment ago.
    WasHere,
    /// The user came online just now; these are their rooms.
    Online(Vec<RoomId>),
    /// Nothing is known of the user: ask again with the rooms they are a member of.
    RoomsNeeded,
}

/// A user's sockets, as seen from a room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sockets {
    pub in_room: usize,
    pub elsewhere: usize,
}

/// Somebody whose grace has run out.
#[derive(Debug, PartialEq, Eq)]
pub struct Gone {
    /// Whether this node tells the whole cluster, or every node its own sockets.
    pub is_ours: bool,
    pub person: Person,
}

/// A user, for those who share a room with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    pub tenant: TenantId,
    pub user: UserId,
    pub name: String,
    pub rooms: Vec<RoomId>,
}

impl Person {
    /// Tells those around them of their status.
    pub fn shown(self, status: Status) -> Result<Effect, Refusal> {
        let change = UserStatusChange::new(&self.user, &self.name, status);
        let to = ToAcquainted::Around(self.user, self.rooms);
        Ok(Effect::Emit(Emit::new(to, &change)?))
    }
}

impl Presence {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change below leaves the maps usable, so a panic elsewhere does not spoil them.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What changes who is here, or where, goes through this, or raises the revision itself.
    fn edit(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        state.revision += 1;
        state
    }

    /// Counts a socket in. Without `rooms` only where the user is known already, and of no study group
    /// that they may have left meanwhile; with rooms that may be out of date it asks for others.
    pub fn connected(&self, caller: &Caller, rooms: Option<Rooms>, now: Timestamp) -> Coming {
        let mut state = self.edit();
        let key = (caller.tenant.clone(), caller.user.clone());
        let is_shared = self.shared.get().is_some();
        self.touch(&mut state, &key);
        if state.users.get(&key).is_some_and(Entry::may_have_left_groups) {
            match &rooms {
                Some(Rooms { rooms, as_of }) if *as_of == state.memberships_changed => {
                    state.know_groups(&key, rooms);
                }
                _ => return Coming::RoomsNeeded,
            }
        }
        if let Some(entry) = state.users.get_mut(&key) {
            let is_given_up = entry.is_about_to_be_given_up(now);
            let rooms =
                if is_given_up { entry.member_of.iter().cloned().collect() } else { Vec::new() };
            entry.sockets += 1;
            if is_shared {
                entry.ids.push(caller.connection.clone());
            }
            entry.left_at = None;
            entry.name.clone_from(&caller.name);
            state.last_seen.remove(&key);
            state.count_in(&caller.connection, key);
            return if is_given_up { Coming::Online(rooms) } else { Coming::WasHere };
        }
        let Some(Rooms { mut rooms, as_of }) = rooms else { return Coming::RoomsNeeded };
        if as_of != state.memberships_changed {
            return Coming::RoomsNeeded;
        }
        // What the socket was let into before it was counted.
        let joined = caller.joined.all();
        let more: Vec<_> = joined.iter().filter(|room| !rooms.contains(room)).cloned().collect();
        rooms.extend(more);
        for room in &joined {
            *state.occupants.entry((caller.tenant.clone(), room.clone())).or_default() += 1;
        }
        for room in &rooms {
            state
                .online_members
                .entry((caller.tenant.clone(), room.clone()))
                .or_default()
                .users
                .insert(caller.user.clone());
        }
        let entry = Entry {
            name: caller.name.clone(),
            sockets: 1,
            expected: 0,
            ids: if is_shared { vec![caller.connection.clone()] } else { Vec::new() },
            elsewhere: Vec::new(),
            member_of: rooms.iter().cloned().collect(),
            joined: joined.into_iter().map(|room| (room, 1)).collect(),
            left_at: None,
            noted_at: None,
            is_settled: false,
        };
        state.count_in(&caller.connection, key.clone());
        state.last_seen.remove(&key);
        state.users.insert(key, entry);
        Coming::Online(rooms)
    }

    /// A socket of the user is coming in, and may have to wait. True where the user is known here: then
    /// nobody is told that they are gone, until [`Self::stop_expecting`].
    pub fn expect(&self, tenant: &TenantId, user: &UserId, now: Timestamp) -> bool {
        let mut state = self.lock();
        let key = (tenant.clone(), user.clone());
        let Some(entry) = state.users.get_mut(&key) else { return false };
        // That others have given the user up is made good when the socket is counted in.
        if entry.is_about_to_be_given_up(now) {
            return false;
        }
        entry.expected += 1;
        if entry.sockets == 0 {
            entry.left_at = None;
            self.touch(&mut state, &key);
        }
        true
    }

    /// The socket has been counted in, or has not come after all.
    pub fn stop_expecting(&self, tenant: &TenantId, user: &UserId, now: Timestamp) {
        let mut state = self.lock();
        let key = (tenant.clone(), user.clone());
        let Some(entry) = state.users.get_mut(&key) else { return };
        entry.expected = entry.expected.saturating_sub(1);
        if entry.is_here() {
            return;
        }
        entry.left_at = Some(now);
        self.touch(&mut state, &key);
    }

    /// Counts a socket out. Returns the rooms in which the user has no other socket.
    pub fn disconnected(&self, caller: &Caller, now: Timestamp) -> Vec<RoomId> {
        let mut state = self.edit();
        if !state.count_out(&caller.connection) {
            return Vec::new();
        }
        let key = (caller.tenant.clone(), caller.user.clone());
        self.touch(&mut state, &key);
        let Some(entry) = state.users.get_mut(&key) else { return Vec::new() };
        entry.sockets = entry.sockets.saturating_sub(1);
        if let Some(at) = entry.ids.iter().position(|id| *id == caller.connection) {
            entry.ids.swap_remove(at);
        }
        let left: Vec<RoomId> =
            caller.joined.all().into_iter().filter(|room| entry.socket_left(room)).collect();
        if entry.sockets == 0 {
            entry.left_at = (entry.expected == 0).then_some(now);
            entry.is_settled = false;
            state.last_seen.insert(key, now);
        }
        for room in &left {
            state.vacated(&caller.tenant, &caller.user, room);
        }
        left
    }

    /// A socket has joined a room; the user is a member of it from now on.
    pub fn joined(&self, caller: &Caller, room: &RoomId) {
        let mut state = self.edit();
        let key = (caller.tenant.clone(), caller.user.clone());
        self.touch(&mut state, &key);
        let Some(entry) = state.users.get_mut(&key) else { return };
        let is_first = !entry.is_in(room);
        *entry.joined.entry(room.clone()).or_default() += 1;
        entry.member_of.insert(room.clone());
        if is_first {
            *state.occupants.entry((caller.tenant.clone(), room.clone())).or_default() += 1;
        }
        state
            .online_members
            .entry((caller.tenant.clone(), room.clone()))
            .or_default()
            .users
            .insert(caller.user.clone());
    }

    /// A socket has left a room; true when its user has none in it any more.
    pub fn left(&self, caller: &Caller, room: &RoomId) -> bool {
        let key = (caller.tenant.clone(), caller.user.clone());
        let mut state = self.edit();
        self.touch(&mut state, &key);
        let was_last = state.users.get_mut(&key).is_some_and(|entry| entry.socket_left(room));
        if was_last {
            state.vacated(&caller.tenant, &caller.user, room);
        }
        was_last
    }

    /// The user has become a member of the room, with or without a socket in it.
    pub fn remember_member(&self, tenant: &TenantId, user: &UserId, room: &RoomId) {
        let mut state = self.edit();
        if room.is_study_group() {
            state.memberships_changed += 1;
        }
        let key = (tenant.clone(), user.clone());
        self.touch(&mut state, &key);
        let Some(entry) = state.users.get_mut(&key) else { return };
        entry.member_of.insert(room.clone());
        let key = (tenant.clone(), room.clone());
        state.online_members.entry(key).or_default().users.insert(user.clone());
    }

    /// The user is no member of the room any more.
    pub fn forget_member(&self, tenant: &TenantId, user: &UserId, room: &RoomId) {
        let mut state = self.edit();
        state.memberships_changed += 1;
        self.touch(&mut state, &(tenant.clone(), user.clone()));
        state.forget_member(tenant, user, room);
    }

    /// Grows whenever a membership ends, and when that of a study group begins: rooms read before that
    /// may be out of date.
    pub fn memberships_changed(&self) -> u64 {
        self.lock().memberships_changed
    }

    /// Whether a user who is here belongs to the room.
    pub fn is_member(&self, tenant: &TenantId, user: &UserId, room: &RoomId) -> bool {
        let state = self.lock();
        let entry = state.users.get(&(tenant.clone(), user.clone()));
        entry.is_some_and(|entry| entry.member_of.contains(room))
    }

    /// A socket of the user has been here for a moment.
    pub fn settled(&self, tenant: &TenantId, user: &UserId) {
        let key = (tenant.clone(), user.clone());
        let mut state = self.edit();
        self.touch(&mut state, &key);
        if let Some(entry) = state.users.get_mut(&key) {
            entry.is_settled = entry.sockets > 0;
        }
    }

    /// Whether what is sent to the user now is heard: a socket of theirs has settled, on any node.
    pub fn listens(&self, tenant: &TenantId, user: &UserId) -> bool {
        let state = self.lock();
        let entry = state.users.get(&(tenant.clone(), user.clone()));
        entry.is_some_and(Entry::listens)
    }

    /// The tenants that have somebody here.
    pub fn tenants(&self) -> HashSet<TenantId> {
        self.lock().users.keys().map(|(tenant, _)| tenant.clone()).collect()
    }

    /// Whether any node has the user, or waits for them.
    pub fn knows(&self, tenant: &TenantId, user: &UserId) -> bool {
        self.lock().users.contains_key(&(tenant.clone(), user.clone()))
    }

    /// How many users have a socket in the room.
    pub fn occupants(&self, tenant: &TenantId, room: &RoomId) -> usize {
        let key = (tenant.clone(), room.clone());
        self.lock().occupants.get(&key).copied().unwrap_or(0)
    }

    /// The study groups a user who is here belongs to, as rooms.
    pub fn group_rooms(&self, tenant: &TenantId, user: &UserId) -> Vec<RoomId> {
        let state = self.lock();
        let entry = state.users.get(&(tenant.clone(), user.clone()));
        let rooms = entry.into_iter().flat_map(|entry| &entry.member_of);
        rooms.filter(|room| room.is_study_group()).cloned().collect()
    }

    /// How many of the user's sockets are in the room, and how many are not.
    pub fn sockets_of(&self, tenant: &TenantId, user: &UserId, room: &RoomId) -> Sockets {
        let state = self.lock();
        let Some(entry) = state.users.get(&(tenant.clone(), user.clone())) else {
            return Sockets::default();
        };
        let in_room = entry.sockets_in(room);
        Sockets { in_room, elsewhere: entry.all_sockets().saturating_sub(in_room) }
    }

    /// Whether every member of the room has all of their sockets in it: the common case of a full
    /// room, told without asking the database, and found out once for all messages between two
    /// changes of who is where.
    pub fn see_everything(&self, tenant: &TenantId, room: &RoomId, member_count: i64) -> bool {
        let state = &mut *self.lock();
        let Some(online) = state.online_members.get_mut(&(tenant.clone(), room.clone())) else {
            return member_count == 0;
        };
        if usize::try_from(member_count) != Ok(online.users.len()) {
            return false;
        }
        if online.saw_everything == Some(state.revision) {
            return true;
        }
        let sees_all = online.users.iter().all(|user| {
            let entry = state.users.get(&(tenant.clone(), user.clone()));
            entry.is_some_and(|entry| {
                let sockets = entry.all_sockets();
                sockets > 0 && entry.sockets_in(room) == sockets
            })
        });
        online.saw_everything = sees_all.then_some(state.revision);
        sees_all
    }

    /// Members of the room who are online, with their names; empty for a room of more than
    /// [`MAX_SNAPSHOT`] of them.
    pub fn online_members(&self, tenant: &TenantId, room: &RoomId) -> Vec<(UserId, String)> {
        let state = self.lock();
        let Some(OnlineMembers { users, .. }) =
            state.online_members.get(&(tenant.clone(), room.clone()))
        else {
            return Vec::new();
        };
        if users.len() > MAX_SNAPSHOT {
            return Vec::new();
        }
        users
            .iter()
            .filter_map(|user| {
                let entry = state.users.get(&(tenant.clone(), user.clone()))?;
                Some((user.clone(), entry.name.clone()))
            })
            .collect()
    }

    /// Whether a socket of that public id is connected, to any node.
    pub fn is_connection(&self, id: &str) -> bool {
        let Ok(id) = ConnectionId::new(id) else { return false };
        let state = self.lock();
        state.connections.contains_key(&id) || state.elsewhere.contains_key(&id)
    }

    /// Whether the user is connected or was within [`RETURN_WINDOW`].
    pub fn is_recent(&self, tenant: &TenantId, user: &UserId, now: Timestamp) -> bool {
        let state = self.lock();
        let key = (tenant.clone(), user.clone());
        state.users.get(&key).is_some_and(|entry| entry.all_sockets() > 0)
            || state.last_seen.get(&key).is_some_and(|seen| seen.after(RETURN_WINDOW) >= now)
    }

    /// Those who are here and were last noted in the database so long ago, by tenant.
    pub fn to_note(&self, now: Timestamp, ago: Duration) -> HashMap<TenantId, Vec<UserId>> {
        let mut due: HashMap<TenantId, Vec<UserId>> = HashMap::new();
        for ((tenant, user), entry) in &mut self.lock().users {
            let is_due = entry.noted_at.is_none_or(|noted| noted.after(ago) <= now);
            if entry.sockets > 0 && is_due {
                entry.noted_at = Some(now);
                due.entry(tenant.clone()).or_default().push(user.clone());
            }
        }
        due
    }

    /// Users of a tenant who are online, after an id, by id.
    pub fn online_users(&self, tenant: &TenantId, after: &str, limit: usize) -> Vec<OnlineUser> {
        let state = self.lock();
        let is_meant = |(of, user): &&Key| of == tenant && user.as_str() > after;
        let mut keys: Vec<&Key> = state.users.keys().filter(is_meant).collect();
        keys.sort_unstable();
        let views = keys.into_iter().take(limit).filter_map(|key| {
            let entry = state.users.get(key)?;
            Some(OnlineUser {
                user_id: key.1.clone(),
                user_name: entry.name.clone(),
                connections: entry.all_sockets(),
                rooms: entry.all_joined(),
            })
        });
        views.collect()
    }

    /// Sockets of a tenant, after an id, by id.
    pub fn connections(&self, tenant: &TenantId, after: &str, limit: usize) -> Vec<Connected> {
        let state = self.lock();
        let is_meant = |(id, (of, _)): &(&ConnectionId, &Key)| of == tenant && id.as_str() > after;
        let mut sockets: Vec<(&ConnectionId, &Key)> =
            state.connections.iter().chain(&state.elsewhere).filter(is_meant).collect();
        sockets.sort_unstable();
        sockets.dedup();
        let views = sockets
            .into_iter()
            .take(limit)
            .map(|(id, (_, user))| Connected { id: id.clone(), user_id: user.clone() });
        views.collect()
    }

    /// Users and sockets connected, to this node.
    pub fn counts(&self) -> (usize, usize) {
        let state = self.lock();
        let users = state.users.values().filter(|entry| entry.is_here()).count();
        (users, state.connections.len())
    }

    /// Sockets connected, to any node.
    pub fn all_connections(&self) -> usize {
        let state = self.lock();
        // Who has come back here may still be counted where it was.
        let is_elsewhere = |id: &&ConnectionId| !state.connections.contains_key(*id);
        state.connections.len() + state.elsewhere.keys().filter(is_elsewhere).count()
    }

    /// Forgets when users were last seen who can no longer come back with the token they had.
    pub fn forget_seen(&self, now: Timestamp) {
        self.lock().last_seen.retain(|_, seen| seen.after(RETURN_WINDOW) >= now);
    }

    /// Those whose grace has run out; each is named once, by the node that had them last.
    pub fn expire(&self, now: Timestamp) -> Vec<Gone> {
        let mut state = self.lock();
        let is_over = |left: Option<Timestamp>| left.is_some_and(|at| at.after(GRACE) <= now);
        let is_given_up =
            |told: &elsewhere::Told| told.awaited_until.is_some_and(|until| until <= now);
        let is_due =
            |entry: &Entry| is_over(entry.left_at) || entry.elsewhere.iter().any(is_given_up);
        let due: Vec<Key> = state
            .users
            .iter()
            .filter(|(_, entry)| is_due(entry))
            .map(|(key, _)| key.clone())
            .collect();
        if !due.is_empty() {
            state.revision += 1;
        }
        let mut gone = Vec::new();
        for key in due {
            let Some(entry) = state.users.get_mut(&key) else { continue };
            entry.elsewhere.retain(|told| !is_given_up(told));
            let is_ours = is_over(entry.left_at);
            if is_ours && !entry.elsewhere.is_empty() {
                // Of several that wait for the user, the one whom they left last tells, once the
                // others have given up.
                if self.shared.get().is_some_and(|shared| entry.was_left_last(&shared.node)) {
                    continue;
                }
                entry.left_at = None;
                self.touch(&mut state, &key);
            } else if is_ours || (!entry.is_here() && entry.elsewhere.is_empty()) {
                if is_ours {
                    self.touch(&mut state, &key);
                }
                let entry = state.remove(&key);
                gone.extend(entry.map(|entry| Gone { is_ours, person: entry.person(&key) }));
            }
        }
        gone
    }

    /// The other nodes are to be told of the user.
    fn touch(&self, state: &mut State, key: &Key) {
        if let Some(shared) = self.shared.get() {
            state.untold.insert(key.clone());
            shared.ring();
        }
    }
}

impl Entry {
    fn person(&self, (tenant, user): &Key) -> Person {
        Person {
            tenant: tenant.clone(),
            user: user.clone(),
            name: self.name.clone(),
            rooms: self.member_of.iter().cloned().collect(),
        }
    }
}

impl State {
    fn count_in(&mut self, id: &ConnectionId, key: Key) {
        if self.connections.insert(id.clone(), key).is_some() {
            *self.doubled.entry(id.clone()).or_default() += 1;
        }
    }

    /// False when the socket was not counted in.
    fn count_out(&mut self, id: &ConnectionId) -> bool {
        let hash_map::Entry::Occupied(mut more) = self.doubled.entry(id.clone()) else {
            return self.connections.remove(id).is_some();
        };
        *more.get_mut() -= 1;
        if *more.get() == 0 {
            more.remove();
        }
        true
    }

    /// These are the study groups of the user, and no others.
    fn know_groups(&mut self, (tenant, user): &Key, rooms: &[RoomId]) {
        let Some(entry) = self.users.get_mut(&(tenant.clone(), user.clone())) else { return };
        let groups: HashSet<&RoomId> = rooms.iter().filter(|room| room.is_study_group()).collect();
        let has_left = |room: &&RoomId| room.is_study_group() && !groups.contains(room);
        let left: Vec<RoomId> = entry.member_of.iter().filter(has_left).cloned().collect();
        for room in groups {
            if entry.member_of.insert(room.clone()) {
                let room = (tenant.clone(), room.clone());
                self.online_members.entry(room).or_default().users.insert(user.clone());
            }
        }
        for room in &left {
            self.forget_member(tenant, user, room);
        }
    }

    /// Nobody has the user any more.
    fn remove(&mut self, key: &Key) -> Option<Entry> {
        let entry = self.users.remove(key)?;
        let (tenant, user) = key;
        for room in &entry.member_of {
            self.not_online_in((tenant.clone(), room.clone()), user);
        }
        Some(entry)
    }

    /// The last socket of the user has left the room.
    fn vacated(&mut self, tenant: &TenantId, user: &UserId, room: &RoomId) {
        let key = (tenant.clone(), room.clone());
        if let Some(users) = self.occupants.get_mut(&key) {
            *users -= 1;
            if *users == 0 {
                self.occupants.remove(&key);
            }
        }
        // Who is in an exam is a member for that long.
        if room.exam().is_some() {
            self.forget_member(tenant, user, room);
        }
    }

    fn forget_member(&mut self, tenant: &TenantId, user: &UserId, room: &RoomId) {
        if let Some(entry) = self.users.get_mut(&(tenant.clone(), user.clone())) {
            entry.member_of.remove(room);
        }
        self.not_online_in((tenant.clone(), room.clone()), user);
    }

    fn not_online_in(&mut self, room: (TenantId, RoomId), user: &UserId) {
        if let hash_map::Entry::Occupied(mut online) = self.online_members.entry(room) {
            online.get_mut().users.remove(user);
            if online.get().users.is_empty() {
                online.remove();
            }
        }
    }
}

impl Entry {
    /// Whether what is known of the user's study groups may be out of date: other nodes may have told of
    /// it before it ended.
    fn may_have_left_groups(&self) -> bool {
        self.sockets == 0 && self.member_of.iter().any(RoomId::is_study_group)
    }

    /// True when no socket of the user is left in the room, on any node.
    fn socket_left(&mut self, room: &RoomId) -> bool {
        match self.joined.get_mut(room) {
            Some(sockets) if *sockets > 1 => {
                *sockets -= 1;
                false
            }
            Some(_) => {
                self.joined.remove(room);
                !self.is_in(room)
            }
            None => false,
        }
    }
}
