//! Who is with the other nodes of a cluster.
//!
//! Each node tells the others, whole, of every user who has changed; and all of its users to a node
//! that is new or has missed something. So what a node knows of another is either right or about to
//! be replaced, whatever was lost on the way.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    mem::take,
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{Entry, GRACE, Key, Person, Presence, State};
use crate::ids::{ConnectionId, RoomId, TenantId, Timestamp, UserId};

/// How far apart users of a node that is gone are given up, on average.
const EACH: Duration = Duration::from_millis(1);
/// At most. A killed node's users are shown offline within 15 s (docs/CLUSTER.md), and to see that it
/// is gone takes up to 11.
const SPREAD: Duration = Duration::from_secs(3);
/// Nodes find the same within this.
const APART: Duration = Duration::from_secs(1);
/// So many are written down as lost before others have a turn.
const LOST_AT_ONCE: usize = 250;

impl Person {
    /// With these rooms instead, where there are any.
    fn push_in(&self, rooms: Vec<RoomId>, to: &mut Vec<Self>) {
        if !rooms.is_empty() {
            to.push(Self { rooms, ..self.clone() });
        }
    }
}

/// Names one run of a node.
pub type NodeId = Arc<str>;

/// A user, as one node has them. Nothing of it is left when the node has them no more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub name: String,
    pub sockets: Vec<ConnectionId>,
    /// Rooms the user is a member of, as far as the node knows.
    pub member_of: BTreeSet<RoomId>,
    /// Rooms joined, and by how many sockets.
    pub joined: BTreeMap<RoomId, usize>,
    pub is_settled: bool,
    /// When the last socket went, while the grace runs.
    pub left_at: Option<Timestamp>,
}

/// What has become of a user on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub tenant: TenantId,
    pub user: UserId,
    /// `None`: the node has them no more.
    pub part: Option<Part>,
}

/// What the sockets of this node have not heard of users elsewhere, each with the rooms in which it
/// is to be told.
#[derive(Debug, Default)]
pub struct News {
    pub online: Vec<Person>,
    pub offline: Vec<Person>,
    /// Exams.
    pub entered: Vec<Person>,
    /// Exams.
    pub left: Vec<Person>,
}

fn exams(mut rooms: Vec<RoomId>) -> Vec<RoomId> {
    rooms.retain(|room| room.exam().is_some());
    rooms
}

/// A part, and whose it is.
#[derive(Debug)]
pub(super) struct Told {
    node: NodeId,
    pub part: Part,
    /// Until when the user is waited for, where the node went with them: nobody else tells of its
    /// end.
    pub awaited_until: Option<Timestamp>,
}

/// Who this node is, and how to wake whoever tells the others.
pub(super) struct Shared {
    pub node: NodeId,
    ring: Box<dyn Fn() + Send + Sync>,
}

impl Shared {
    pub fn ring(&self) {
        (self.ring)();
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared")
    }
}

impl Entry {
    /// Whether this node has the user, or waits for them.
    pub(super) const fn is_here(&self) -> bool {
        self.sockets > 0 || self.expected > 0 || self.left_at.is_some()
    }

    pub(super) fn is_in(&self, room: &RoomId) -> bool {
        self.joined.contains_key(room)
            || self.elsewhere.iter().any(|told| told.part.joined.contains_key(room))
    }

    pub(super) fn all_sockets(&self) -> usize {
        self.sockets + self.elsewhere.iter().map(|told| told.part.sockets.len()).sum::<usize>()
    }

    pub(super) fn sockets_in(&self, room: &RoomId) -> usize {
        let here = self.joined.get(room).copied().unwrap_or(0);
        let elsewhere = self.elsewhere.iter().filter_map(|told| told.part.joined.get(room));
        here + elsewhere.sum::<usize>()
    }

    pub(super) fn all_joined(&self) -> usize {
        let elsewhere = self.elsewhere.iter().flat_map(|told| told.part.joined.keys());
        self.joined.keys().chain(elsewhere).collect::<BTreeSet<_>>().len()
    }

    pub(super) fn listens(&self) -> bool {
        self.is_settled || self.elsewhere.iter().any(|told| told.part.is_settled)
    }

    /// Whether the user has no socket anywhere, and had the last one on that node.
    pub(super) fn was_left_last(&self, node: &NodeId) -> bool {
        let ours = (self.left_at, node);
        self.elsewhere
            .iter()
            .all(|told| told.part.left_at.is_some() && (told.part.left_at, &told.node) < ours)
    }

    /// Whether the user is nowhere, and a node looks so soon for whether to give them up that another
    /// one may have done so already: it tells its own sockets, and would hear of nobody who comes.
    pub(super) fn is_about_to_be_given_up(&self, now: Timestamp) -> bool {
        let is_due =
            |told: &Told| told.awaited_until.is_some_and(|until| until <= now.after(APART));
        !self.is_here() && self.elsewhere.iter().all(is_due)
    }

    /// Those of the sockets that no node tells of: who goes on elsewhere keeps the id.
    fn without_told(&self, sockets: Vec<ConnectionId>) -> impl Iterator<Item = ConnectionId> {
        let is_told =
            |id: &ConnectionId| self.elsewhere.iter().any(|told| told.part.sockets.contains(id));
        sockets.into_iter().filter(move |id| !is_told(id))
    }

    fn part(&self) -> Option<Part> {
        self.is_here().then(|| Part {
            name: self.name.clone(),
            sockets: self.ids.clone(),
            member_of: self.member_of.iter().cloned().collect(),
            joined: self.joined.iter().map(|(room, count)| (room.clone(), *count)).collect(),
            is_settled: self.is_settled,
            left_at: self.left_at,
        })
    }
}

impl Presence {
    /// There may be other nodes: `ring` is called whenever there is something to tell them. Once,
    /// before anybody is counted in.
    pub fn share(&self, node: NodeId, ring: impl Fn() + Send + Sync + 'static) {
        let _ = self.shared.set(Shared { node, ring: Box::new(ring) });
    }

    /// Whether there may be other nodes.
    pub fn is_shared(&self) -> bool {
        self.shared.get().is_some()
    }

    /// What the other nodes have not been told, at most so many.
    pub fn untold(&self, limit: usize) -> Vec<Change> {
        let mut state = self.lock();
        let keys: Vec<Key> = state.untold.iter().take(limit).cloned().collect();
        keys.into_iter()
            .map(|key| {
                state.untold.remove(&key);
                state.change(key)
            })
            .collect()
    }

    /// Everybody this node has.
    pub fn everybody(&self) -> Vec<Change> {
        let state = self.lock();
        let here = state.users.iter().filter(|(_, entry)| entry.is_here());
        here.map(|(key, _)| state.change(key.clone())).collect()
    }

    /// A node has told of users.
    pub fn hear(&self, node: &NodeId, changes: Vec<Change>) {
        let mut state = self.edit();
        for Change { tenant, user, part } in changes {
            state.replace(node, &(tenant, user), part);
        }
    }

    /// A node has told of everybody it has: nobody else is with it. What is new about that it has
    /// told, if at all, when nobody here heard it.
    pub fn hear_everybody(&self, node: &NodeId, everybody: Vec<Change>) -> News {
        let mut state = self.edit();
        let mut news = News::default();
        let told: BTreeSet<Key> =
            everybody.iter().map(|change| (change.tenant.clone(), change.user.clone())).collect();
        for key in state.users_of(node) {
            if !told.contains(&key) {
                let before = state.users.get(&key).map(|entry| entry.person(&key));
                let (_, left) = state.replace(node, &key, None);
                let Some(before) = before else { continue };
                before.push_in(exams(left), &mut news.left);
                if !state.users.contains_key(&key) {
                    news.offline.push(before);
                }
            }
        }
        for Change { tenant, user, part } in everybody {
            let key = (tenant, user);
            let before = state.users.get(&key).map(|entry| entry.member_of.clone());
            let (entered, left) = state.replace(node, &key, part);
            let Some(entry) = state.users.get(&key) else { continue };
            let person = entry.person(&key);
            if entry.all_sockets() > 0 {
                let known = before.unwrap_or_default();
                let rooms = person.rooms.iter().filter(|room| !known.contains(*room));
                person.push_in(rooms.cloned().collect(), &mut news.online);
            }
            person.push_in(exams(entered), &mut news.entered);
            person.push_in(exams(left), &mut news.left);
        }
        news
    }

    /// A node is gone, since then: its users are waited for as if their sockets had been lost, at
    /// least until `until`. Thousands of them are not given up in one moment, but over up to
    /// [`SPREAD`], in the same order on every node; meanwhile many come back. The rooms they are in
    /// no more are told at once.
    pub fn lose(&self, node: &NodeId, since: Timestamp, until: Timestamp) -> News {
        let keys = self.lock().users_of(node);
        let spread = (EACH * u32::try_from(keys.len()).unwrap_or(u32::MAX)).min(SPREAD);
        let mut news = News::default();
        for some in keys.chunks(LOST_AT_ONCE) {
            let mut state = self.edit();
            for key in some {
                let left = state.lose(node, key, (since, until), spread.mul_f64(place(key)));
                let left = exams(left);
                if let Some(entry) = state.users.get(key).filter(|_| !left.is_empty()) {
                    entry.person(key).push_in(left, &mut news.left);
                }
            }
        }
        news
    }
}

/// Where in a line of all users one stands, from 0 to 1.
fn place(key: &Key) -> f64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    let [.., high, low] = hasher.finish().to_be_bytes();
    f64::from(u16::from_be_bytes([high, low])) / f64::from(u16::MAX)
}

impl State {
    fn change(&self, key: Key) -> Change {
        let part = self.users.get(&key).and_then(Entry::part);
        Change { tenant: key.0, user: key.1, part }
    }

    fn users_of(&self, node: &NodeId) -> Vec<Key> {
        let has = |entry: &Entry| entry.elsewhere.iter().any(|told| told.node == *node);
        self.users.iter().filter(|(_, entry)| has(entry)).map(|(key, _)| key.clone()).collect()
    }

    /// Of what a node that is gone has told of a user, only that they were there. Returns the rooms
    /// they are in no more.
    fn lose(
        &mut self,
        node: &NodeId,
        key: &Key,
        (since, until): (Timestamp, Timestamp),
        in_line: Duration,
    ) -> Vec<RoomId> {
        let Some(entry) = self.users.get_mut(key) else { return Vec::new() };
        let Some(told) = entry.elsewhere.iter_mut().find(|told| told.node == *node) else {
            return Vec::new();
        };
        let left_at = told.part.left_at.unwrap_or(since);
        told.awaited_until = Some(until.max(left_at.after(GRACE)).after(in_line));
        told.part.left_at = Some(left_at);
        told.part.is_settled = false;
        let (sockets, joined) = (take(&mut told.part.sockets), take(&mut told.part.joined));
        let left: Vec<RoomId> = joined.into_keys().filter(|room| !entry.is_in(room)).collect();
        entry.without_told(sockets).for_each(|id| {
            self.elsewhere.remove(&id);
        });
        let (tenant, user) = key;
        for room in &left {
            self.vacated(tenant, user, room);
        }
        left
    }

    /// Replaces what a node has told of a user, and counts anew what follows from it. Returns the
    /// rooms they have entered and those they have left.
    fn replace(
        &mut self,
        node: &NodeId,
        key: &Key,
        part: Option<Part>,
    ) -> (Vec<RoomId>, Vec<RoomId>) {
        let (tenant, user) = key;
        if part.is_some() && !self.users.contains_key(key) {
            self.users.insert(key.clone(), Entry::default());
        }
        let Some(entry) = self.users.get_mut(key) else { return Default::default() };
        let at = entry.elsewhere.iter().position(|told| told.node == *node);
        let before = at.map(|at| entry.elsewhere.swap_remove(at).part).unwrap_or_default();
        // Where the user would be without this node, and so is neither entering nor leaving.
        let is_new = |entry: &Entry, room: &RoomId| !entry.is_in(room);
        let mut left: Vec<RoomId> =
            before.joined.keys().filter(|room| is_new(entry, room)).cloned().collect();
        let after = part.clone().unwrap_or_default();
        let mut entered: Vec<RoomId> =
            after.joined.keys().filter(|room| is_new(entry, room)).cloned().collect();
        entry.without_told(before.sockets).for_each(|id| {
            self.elsewhere.remove(&id);
        });
        for id in &after.sockets {
            self.elsewhere.insert(id.clone(), key.clone());
        }
        let mut ended = Vec::new();
        if let Some(part) = part {
            let has_ended = |room: &&RoomId| {
                let is_told = |told: &Told| told.part.member_of.contains(*room);
                !part.member_of.contains(*room) && !entry.elsewhere.iter().any(is_told)
            };
            if entry.sockets == 0 && entry.left_at.is_none() {
                ended.extend(before.member_of.iter().filter(has_ended).cloned());
            }
            if !entry.is_here() {
                entry.name.clone_from(&part.name);
            }
            // Of study groups a node learns by itself while the user is there: what others tell may be
            // from before a membership ended.
            let is_here = entry.sockets > 0;
            for room in part.member_of.iter().filter(|room| !(is_here && room.is_study_group())) {
                if entry.member_of.insert(room.clone()) {
                    let room = (tenant.clone(), room.clone());
                    self.online_members.entry(room).or_default().users.insert(user.clone());
                }
            }
            entry.elsewhere.push(Told { node: node.clone(), part, awaited_until: None });
        }
        let is_nobodys = !entry.is_here() && entry.elsewhere.is_empty();
        let stayed: Vec<RoomId> = entered.extract_if(.., |room| left.contains(room)).collect();
        left.retain(|room| !stayed.contains(room));
        for room in &entered {
            *self.occupants.entry((tenant.clone(), room.clone())).or_default() += 1;
        }
        for room in &left {
            self.vacated(tenant, user, room);
        }
        for room in &ended {
            self.forget_member(tenant, user, room);
        }
        if is_nobodys {
            self.remove(key);
        }
        (entered, left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dispatch::Caller,
        presence::{Coming, Rooms},
    };

    const START: Timestamp = Timestamp(1_000_000);

    /// One node of a cluster in which everything is told at once.
    struct Node {
        id: NodeId,
        presence: Presence,
    }

    fn nodes<const N: usize>() -> [Node; N] {
        std::array::from_fn(|at| {
            let (id, presence) = (NodeId::from(format!("node-{at}")), Presence::default());
            presence.share(id.clone(), || {});
            Node { id, presence }
        })
    }

    fn tell(from: &Node, to: &Node) {
        to.presence.hear(&from.id, from.presence.untold(usize::MAX));
    }

    fn caller(user: &str, connection: &str) -> Caller {
        let tenant = TenantId::new("t").unwrap();
        Caller {
            user: UserId::new(user).unwrap(),
            connection: ConnectionId::new(connection).unwrap(),
            ..Caller::system(&tenant)
        }
    }

    fn room(id: &str) -> RoomId {
        RoomId::new(id).unwrap()
    }

    fn comes(node: &Node, caller: &Caller, rooms: &[RoomId]) {
        if node.presence.connected(caller, None, START) == Coming::RoomsNeeded {
            let as_of = node.presence.memberships_changed();
            let rooms = Some(Rooms { rooms: rooms.to_vec(), as_of });
            node.presence.connected(caller, rooms, START);
        }
        for room in rooms {
            caller.joined.insert(room.clone());
            node.presence.joined(caller, room);
        }
    }

    #[test]
    fn a_room_counts_users_of_all_nodes_once() {
        let [a, b] = nodes();
        let exam = room("exam:1");
        let (one, other, ben) = (caller("ana", "a1"), caller("ana", "a2"), caller("ben", "b1"));
        comes(&a, &one, std::slice::from_ref(&exam));
        tell(&a, &b);
        comes(&b, &other, std::slice::from_ref(&exam));
        comes(&b, &ben, std::slice::from_ref(&exam));
        tell(&b, &a);
        for node in [&a, &b] {
            assert_eq!(node.presence.occupants(&one.tenant, &exam), 2);
            assert_eq!(node.presence.sockets_of(&one.tenant, &one.user, &exam).in_room, 2);
            assert!(node.presence.is_connection("b1"));
            assert_eq!(node.presence.online_members(&one.tenant, &exam).len(), 2);
            assert_eq!(node.presence.all_connections(), 3);
        }
        assert!(a.presence.disconnected(&one, START).is_empty(), "another socket is in the room");
        tell(&a, &b);
        assert_eq!(b.presence.disconnected(&other, START), std::slice::from_ref(&exam));
        tell(&b, &a);
        assert_eq!(a.presence.occupants(&one.tenant, &exam), 1);
        assert_eq!(b.presence.occupants(&one.tenant, &exam), 1);
    }

    /// The answer is kept until somebody comes, goes or moves.
    #[test]
    fn a_room_sees_everything_while_everybody_has_all_sockets_in_it() {
        let [a, b] = nodes();
        let algebra = room("algebra");
        let (ana, ben, page) = (caller("ana", "a1"), caller("ben", "b1"), caller("ana", "a2"));
        let sees = |members| {
            let sees = a.presence.see_everything(&ana.tenant, &algebra, members);
            assert_eq!(sees, a.presence.see_everything(&ana.tenant, &algebra, members));
            sees
        };
        comes(&a, &ana, std::slice::from_ref(&algebra));
        assert!(sees(1) && !sees(2), "another member is nowhere");
        comes(&b, &ben, std::slice::from_ref(&algebra));
        tell(&b, &a);
        assert!(sees(2));
        comes(&a, &page, &[]);
        assert!(!sees(2), "another page of hers looks elsewhere");
        a.presence.joined(&page, &algebra);
        page.joined.insert(algebra.clone());
        assert!(sees(2));
        a.presence.left(&page, &algebra);
        page.joined.remove(&algebra);
        assert!(!sees(2));
        a.presence.disconnected(&page, START);
        assert!(sees(2), "that page is closed");
        b.presence.left(&ben, &algebra);
        assert!(sees(2), "not told yet");
        tell(&b, &a);
        assert!(!sees(2));
        b.presence.joined(&ben, &algebra);
        tell(&b, &a);
        assert!(sees(2));
        a.presence.lose(&b.id, START, START);
        assert!(!sees(2));
        a.presence.forget_member(&ben.tenant, &ben.user, &algebra);
        assert!(sees(1));
    }

    #[test]
    fn who_moves_to_another_node_never_goes_offline() {
        let [a, b] = nodes();
        let (before, after) = (caller("ana", "a1"), caller("ana", "a2"));
        comes(&a, &before, &[]);
        tell(&a, &b);
        a.presence.disconnected(&before, START);
        tell(&a, &b);
        assert_eq!(b.presence.connected(&after, None, START), Coming::WasHere);
        tell(&b, &a);
        let later = START.after(GRACE);
        assert!(a.presence.expire(later).is_empty());
        tell(&a, &b);
        assert!(b.presence.expire(later).is_empty());
        assert_eq!(b.presence.untold(9).len(), 0);
    }

    #[test]
    fn a_session_that_moves_keeps_its_id_and_counts_once() {
        let [a, b, c] = nodes();
        let socket = caller("ana", "a1");
        comes(&a, &socket, &[]);
        tell(&a, &b);
        c.presence.hear(&a.id, a.presence.everybody());
        // Its node is gone, which is noticed later.
        comes(&b, &socket, &[]);
        assert_eq!(b.presence.all_connections(), 1);
        tell(&b, &c);
        for node in [&b, &c] {
            node.presence.lose(&a.id, START, START);
            assert!(node.presence.is_connection("a1"));
            assert_eq!(node.presence.all_connections(), 1);
        }
        // The same where it tells by itself that it has the socket no more.
        let [a, b, c] = nodes();
        comes(&a, &socket, &[]);
        let was = a.presence.everybody();
        c.presence.hear(&a.id, was);
        comes(&b, &socket, &[]);
        tell(&b, &c);
        a.presence.disconnected(&socket, START);
        tell(&a, &c);
        assert!(c.presence.is_connection("a1"));
        b.presence.disconnected(&socket, START);
        tell(&b, &c);
        assert!(!c.presence.is_connection("a1"));
    }

    #[test]
    fn what_was_told_before_a_membership_ended_brings_it_back_to_nobody() {
        let [a, b] = nodes();
        let group = room("study-group:g1");
        let (page, tab, later) = (caller("ana", "a1"), caller("ana", "a2"), caller("ana", "b1"));
        comes(&a, &page, std::slice::from_ref(&group));
        tell(&a, &b);
        let knows = |node: &Node| !node.presence.group_rooms(&page.tenant, &page.user).is_empty();
        assert!(knows(&b));
        b.presence.forget_member(&page.tenant, &page.user, &group);
        // Told by a node that has not heard of it.
        comes(&a, &tab, &[]);
        tell(&a, &b);
        assert!(knows(&b));
        let come = |rooms| b.presence.connected(&later, rooms, START);
        assert_eq!(come(None), Coming::RoomsNeeded);
        let outdated = b.presence.memberships_changed() - 1;
        let read = |as_of| Some(Rooms { rooms: Vec::new(), as_of });
        assert_eq!(come(read(outdated)), Coming::RoomsNeeded);
        assert_eq!(come(read(outdated + 1)), Coming::WasHere);
        assert!(!knows(&b));
        // While she is here, others have no say in it.
        a.presence.settled(&page.tenant, &page.user);
        tell(&a, &b);
        assert!(!knows(&b));
        // Who is not here is a member for as long as somebody says so.
        b.presence.disconnected(&later, START);
        b.presence.expire(START.after(GRACE));
        a.presence.forget_member(&page.tenant, &page.user, &group);
        tell(&a, &b);
        assert!(!knows(&b));
    }

    /// Whoever looks first, and whoever hears of the other in between.
    #[test]
    fn who_leaves_two_nodes_goes_offline_once() {
        for (left_a, left_b) in [(0, 100), (100, 0), (0, 0)] {
            for order in [[0, 1], [1, 0]] {
                let both = nodes::<2>();
                let sockets = [caller("ana", "a1"), caller("ana", "a2")];
                for (node, socket) in both.iter().zip(&sockets) {
                    comes(node, socket, &[]);
                }
                for (node, (socket, left)) in both.iter().zip(sockets.iter().zip([left_a, left_b]))
                {
                    node.presence.disconnected(socket, Timestamp(START.0 + left));
                }
                tell(&both[0], &both[1]);
                tell(&both[1], &both[0]);
                let mut gone = Vec::new();
                for tick in 0..8 {
                    for at in order {
                        let now = Timestamp(START.after(GRACE).0 + 50 * tick);
                        gone.extend(both[at].presence.expire(now));
                        tell(&both[at], &both[1 - at]);
                    }
                }
                assert_eq!(gone.len(), 1, "left {left_a} {left_b}, looked {order:?}: {gone:?}");
                assert!(gone[0].is_ours);
                assert!(both.iter().all(|node| node.presence.lock().users.is_empty()));
            }
        }
    }

    #[test]
    fn users_of_a_lost_node_go_offline_unless_they_come_back() {
        let [a, b] = nodes();
        comes(&a, &caller("ana", "a1"), &[room("algebra")]);
        comes(&a, &caller("ben", "b1"), &[room("exam:1")]);
        tell(&a, &b);
        b.presence.lose(&a.id, START, START);
        assert_eq!(b.presence.occupants(&caller("ben", "b1").tenant, &room("exam:1")), 0);
        assert_eq!(b.presence.connected(&caller("ben", "b2"), None, START), Coming::WasHere);
        let gone = b.presence.expire(START.after(GRACE + 2 * EACH));
        assert_eq!(gone.len(), 1);
        assert_eq!((gone[0].person.user.as_str(), gone[0].is_ours), ("ana", false));
        assert_eq!(gone[0].person.rooms, [room("algebra")]);
        assert!(b.presence.lock().online_members.keys().all(|(_, of)| *of != room("algebra")));
    }

    #[test]
    fn thousands_of_a_lost_node_are_given_up_one_after_the_other() {
        let [a, b, c] = nodes();
        let names: Vec<String> = (0..4_000).map(|at| format!("user-{at}")).collect();
        for name in &names {
            comes(&a, &caller(name, &format!("socket-of-{name}")), &[]);
        }
        let everybody = a.presence.everybody();
        let until = START.after(GRACE);
        for node in [&b, &c] {
            node.presence.hear(&a.id, everybody.clone());
            node.presence.lose(&a.id, START, until);
        }
        let mut gone = 0;
        for tick in 0..=12 {
            let now = until.after(SPREAD * tick / 12);
            let [of_b, of_c] = [&b, &c].map(|node| {
                let gone = node.presence.expire(now).into_iter();
                gone.map(|gone| gone.person.user).collect::<BTreeSet<_>>()
            });
            assert_eq!(of_b, of_c, "whoever has a socket hears the same");
            assert!(of_b.len() < names.len() / 8, "{} at {now:?}", of_b.len());
            gone += of_b.len();
        }
        assert_eq!(gone, names.len());
    }

    /// Nodes look a moment apart: where one has given the user up, the others do not hear of it.
    #[test]
    fn who_comes_back_while_they_are_given_up_is_shown_online_again() {
        let [a, b, c] = nodes();
        let (before, after) = (caller("ana", "a1"), caller("ana", "a2"));
        comes(&a, &before, &[room("algebra")]);
        for node in [&b, &c] {
            node.presence.hear(&a.id, a.presence.everybody());
            node.presence.lose(&a.id, START, START);
        }
        let given_up = START.after(GRACE + EACH);
        assert_eq!(c.presence.expire(given_up).len(), 1);
        let coming = b.presence.connected(&after, None, given_up);
        assert_eq!(coming, Coming::Online(vec![room("algebra")]));
        tell(&b, &c);
        assert!(b.presence.expire(given_up).is_empty(), "she is here");
    }

    #[test]
    fn whose_socket_waits_to_come_in_is_not_given_up() {
        let [a, b, c] = nodes();
        comes(&a, &caller("ana", "a1"), &[room("algebra")]);
        for node in [&b, &c] {
            node.presence.hear(&a.id, a.presence.everybody());
            node.presence.lose(&a.id, START, START);
        }
        let (after, late) = (caller("ana", "a2"), START.after(GRACE * 10));
        let (t, ana) = (&after.tenant, &after.user);
        assert!(b.presence.expect(t, ana, START));
        tell(&b, &c);
        for node in [&b, &c] {
            assert!(node.presence.expire(late).is_empty());
            let sockets = node.presence.sockets_of(t, ana, &room("algebra"));
            assert_eq!((sockets.in_room, sockets.elsewhere), (0, 0));
        }
        assert_eq!(b.presence.connected(&after, None, late), Coming::WasHere);
        b.presence.stop_expecting(t, ana, late);
        tell(&b, &c);
        assert!(b.presence.expire(late.after(GRACE)).is_empty());
        assert!(c.presence.is_connection("a2"));
    }

    #[test]
    fn who_does_not_come_in_after_all_goes_offline_after_the_grace() {
        let [a, b] = nodes();
        let (ana, stranger) = (caller("ana", "a1"), caller("zoe", "a2"));
        comes(&a, &ana, &[room("algebra")]);
        tell(&a, &b);
        assert!(!b.presence.expect(&ana.tenant, &stranger.user, START), "nobody knows her");
        // One socket ends while others wait, on this node and then on another.
        let (given_up, over) = (START.after(GRACE * 2), START.after(GRACE * 3));
        assert!(a.presence.expect(&ana.tenant, &ana.user, START));
        a.presence.disconnected(&ana, START);
        assert!(a.presence.expire(given_up).is_empty());
        assert!(b.presence.expect(&ana.tenant, &ana.user, START));
        a.presence.stop_expecting(&ana.tenant, &ana.user, START);
        tell(&a, &b);
        tell(&b, &a);
        assert!(a.presence.expire(given_up).is_empty() && b.presence.expire(given_up).is_empty());
        b.presence.stop_expecting(&ana.tenant, &ana.user, given_up);
        tell(&a, &b);
        tell(&b, &a);
        assert!(a.presence.expire(over.before(Duration::from_millis(1))).is_empty());
        let gone = [&a, &b].map(|node| node.presence.expire(over));
        assert_eq!(gone.iter().flatten().filter(|gone| gone.is_ours).count(), 1, "{gone:?}");
    }

    #[test]
    fn a_socket_that_goes_on_before_the_older_one_is_counted_out_counts() {
        let [a] = nodes();
        let (older, newer) = (caller("ana", "a1"), caller("ana", "a1"));
        comes(&a, &older, &[room("algebra")]);
        comes(&a, &newer, &[room("algebra")]);
        a.presence.disconnected(&older, START);
        assert!(a.presence.is_connection("a1"));
        assert_eq!(a.presence.everybody()[0].part.as_ref().unwrap().sockets.len(), 1);
        assert_eq!(a.presence.disconnected(&newer, START), [room("algebra")]);
        assert!(!a.presence.is_connection("a1"));
        assert_eq!(a.presence.expire(START.after(GRACE)).len(), 1);
    }

    #[test]
    fn what_was_lost_on_the_way_is_replaced() {
        let [a, b] = nodes();
        let both = [room("exam:anatomy"), room("algebra")];
        let ana = caller("ana", "a1");
        comes(&a, &ana, &both);
        tell(&a, &b);
        comes(&a, &caller("ben", "b1"), &both);
        a.presence.disconnected(&ana, START);
        a.presence.expire(START.after(GRACE));
        drop(a.presence.untold(usize::MAX));
        let news = b.presence.hear_everybody(&a.id, a.presence.everybody());
        let told = |people: Vec<Person>| -> Vec<(String, BTreeSet<RoomId>)> {
            people
                .into_iter()
                .map(|one| (one.user.to_string(), one.rooms.into_iter().collect()))
                .collect()
        };
        let of = |user: &str, rooms: &[RoomId]| (user.to_owned(), rooms.iter().cloned().collect());
        assert_eq!(told(news.online), [of("ben", &both)]);
        assert_eq!(told(news.offline), [of("ana", &both)]);
        assert_eq!(told(news.entered), [of("ben", &both[..1])]);
        assert_eq!(told(news.left), [of("ana", &both[..1])]);
        let online = b.presence.online_members(&caller("x", "x").tenant, &room("algebra"));
        assert_eq!(online.len(), 1);
        assert_eq!(online[0].0.as_str(), "ben");
        assert!(!b.presence.is_connection("a1"));
    }
}
