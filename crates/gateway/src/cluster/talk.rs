//! What nodes of our own kind say to each other: who is with whom, and what has to be done wherever
//! a user's sockets are.
//!
//! Every three seconds a node says that it is there. One of which nothing has been heard for ten is
//! gone, unless that is because Redis is away, or was a moment ago: nobody goes offline for that.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use carillon_domain::{
    ConnectionId, RoomId, TenantId, Timestamp, UserId,
    presence::{
        Person, Presence,
        elsewhere::{Change, NodeId},
    },
};
use carillon_redis_adapter::cluster::Cluster;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::gateway::Gateway;

/// A node says that it is there this often.
const REFRESH: Duration = Duration::from_secs(3);
/// A node of which nothing is heard for so long is gone.
const LEASE: Duration = Duration::from_secs(10);
/// How often it is looked whether one is.
const TICK: Duration = Duration::from_millis(500);
/// A node that has not looked for so long stood still, and has not heard what was said meanwhile:
/// long for a busy machine, and too short for a lease to run out.
const STILL: Duration = Duration::from_secs(5);
/// Every node hears again this soon after Redis is back, and notices as soon that it is away.
const RETURN: Duration = Duration::from_secs(6);
/// What is said again at most; the newest.
const MAX_TO_REPEAT: usize = 2_000;
/// Users in one message.
const AT_ONCE: usize = 200;

/// What a node says.
#[derive(Serialize, Deserialize)]
struct Said {
    from: NodeId,
    /// How many times it has told of users who have changed.
    told: u64,
    what: What,
}

/// The kinds of things that are said.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    Alive,
    /// These users have changed.
    Changed(Vec<Change>),
    /// Everybody, in so many messages, of which this is that one.
    Everybody(usize, usize, Vec<Change>),
    /// That node is to tell of everybody it has.
    TellAll(NodeId),
    /// The node goes, and its users are about to come back elsewhere.
    Bye,
    /// Every socket of the user that came before is disconnected for good.
    Cut(TenantId, UserId, Timestamp),
    /// Another socket goes on with the session of that public id, as it was in that generation.
    GoOn(TenantId, UserId, ConnectionId, i64),
    /// No socket of the user hears the room any more.
    Expel(TenantId, UserId, RoomId),
    /// Those who look at boards are shown them again.
    ShowBoards(TenantId),
}

/// Another node.
struct Peer {
    heard: Instant,
    told: u64,
    is_behind: bool,
    /// When it was last asked to tell of everybody.
    asked: Option<Instant>,
    everybody: Telling,
}

/// What a node has told of everybody, while it has not told all.
#[derive(Default)]
struct Telling {
    /// [`Said::told`] of its parts; what is of another telling does not go on with this one.
    told: u64,
    heard: usize,
    changes: Vec<Change>,
}

impl Telling {
    /// Takes a part in; everybody, once it was the last one. Where one was lost there is no more of
    /// it, and the node is asked again.
    fn hear(
        &mut self,
        told: u64,
        (part, parts): (usize, usize),
        some: Vec<Change>,
    ) -> Option<Vec<Change>> {
        if part == 0 {
            *self = Self { told, ..Self::default() };
        }
        if (self.told, self.heard) != (told, part) {
            *self = Self::default();
            return None;
        }
        self.changes.extend(some);
        self.heard += 1;
        (self.heard == parts).then(|| std::mem::take(self).changes)
    }
}

/// The talk of this node with the others.
pub struct Talk {
    pub node: NodeId,
    cluster: Arc<Cluster>,
    /// Rung when there is something to tell.
    pub ring: Arc<Notify>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    peers: HashMap<NodeId, Peer>,
    told: u64,
    is_asked_for_all: bool,
    /// When it was last looked for who is gone.
    looked: Option<Instant>,
    /// When this node went on after it had stood still.
    awake_since: Option<Instant>,
    /// Who is with nobody, as far as is known.
    doubtful: Vec<Person>,
    /// What must be done on every node, and may have been said to nobody.
    to_repeat: VecDeque<(Instant, Vec<u8>)>,
}

impl State {
    fn has_stood_still(&self) -> bool {
        self.looked.is_some_and(|at| at.elapsed() > STILL)
    }
}

impl Talk {
    pub fn new(node: NodeId, cluster: Arc<Cluster>) -> Self {
        Self { node, cluster, ring: Arc::default(), state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The other nodes that are there.
    pub fn peers(&self) -> usize {
        self.lock().peers.len()
    }

    /// Whether this node knows all that the others have told.
    pub fn is_level(&self) -> bool {
        self.lock().peers.values().all(|peer| !peer.is_behind)
    }

    /// Says something. Never waits.
    pub fn say(&self, what: What) {
        let mut state = self.lock();
        // Later it does nothing to whoever has come meanwhile, and the rest is told anew or is found
        // in the database.
        let may_be_repeated = matches!(what, What::Cut(..) | What::GoOn(..));
        let Some(said) = self.written(state.told, what) else { return };
        if may_be_repeated {
            state.to_repeat.push_back((Instant::now(), said.clone()));
            if state.to_repeat.len() > MAX_TO_REPEAT {
                state.to_repeat.pop_front();
            }
        }
        self.cluster.say(said);
    }

    fn written(&self, told: u64, what: What) -> Option<Vec<u8>> {
        serde_json::to_vec(&Said { from: self.node.clone(), told, what }).ok()
    }

    fn say_as(&self, told: u64, what: What) {
        if let Some(said) = self.written(told, what) {
            self.cluster.say(said);
        }
    }

    /// Says again what was said while Redis was away, or just before that was noticed: for as long as
    /// the others may need to hear again.
    fn repeat(&self) {
        let mut state = self.lock();
        let Some(up) = self.cluster.link.up_since() else { return };
        if up.elapsed() >= RETURN {
            return state.to_repeat.retain(|(at, _)| at.elapsed() < RETURN);
        }
        for (_, said) in state.to_repeat.iter().filter(|(at, _)| *at < up) {
            self.cluster.say(said.clone());
        }
    }

    /// Tells the others who is here, and notices who of them is gone; until `stop`.
    pub async fn run(&self, gateway: &Gateway, stop: &CancellationToken) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut said = None::<Instant>;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.ring.notified() => {}
                _ = ticks.tick() => {
                    self.look(gateway);
                    self.repeat();
                    if said.is_none_or(|at| at.elapsed() >= REFRESH) {
                        said = Some(Instant::now());
                        self.say(What::Alive);
                    }
                }
            }
            self.tell(&gateway.domain.presence);
            self.tell_all(&gateway.domain.presence);
        }
    }

    /// This node goes; its users are expected elsewhere.
    pub fn leave(&self, gateway: &Gateway) {
        self.tell(&gateway.domain.presence);
        self.say(What::Bye);
    }

    /// Tells the others who has come, gone or moved. Never waits.
    pub fn tell(&self, presence: &Presence) {
        loop {
            // Under the lock, so that numbers and what they count leave in one order.
            let mut state = self.lock();
            let changes = presence.untold(AT_ONCE);
            if changes.is_empty() {
                break;
            }
            state.told += 1;
            self.say_as(state.told, What::Changed(changes));
        }
    }

    /// Tells of everybody, where that was asked for.
    fn tell_all(&self, presence: &Presence) {
        let mut state = self.lock();
        if std::mem::take(&mut state.is_asked_for_all) {
            let everybody = presence.everybody();
            let parts = everybody.len().div_ceil(AT_ONCE).max(1);
            let mut chunks = everybody.chunks(AT_ONCE);
            for part in 0..parts {
                let some = chunks.next().unwrap_or_default().to_vec();
                self.say_as(state.told, What::Everybody(part, parts, some));
            }
        }
    }

    /// Whether what was not heard was not said: not while Redis is away or this node stands still,
    /// nor for a lease after.
    pub fn hears(&self) -> bool {
        let state = self.lock();
        let is_late = |since: Instant| since.elapsed() < LEASE;
        self.cluster.link.is_whole(LEASE)
            && !state.has_stood_still()
            && !state.awake_since.is_some_and(is_late)
    }

    /// Gives up nodes that are gone.
    fn look(&self, gateway: &Gateway) {
        let mut state = self.lock();
        if state.has_stood_still() {
            state.awake_since = Some(Instant::now());
        }
        state.looked = Some(Instant::now());
        // What was not heard while Redis was away says nothing.
        let Some(up) = self.cluster.link.up_since() else { return };
        let up = state.awake_since.map_or(up, |awake| up.max(awake));
        let is_gone = |peer: &Peer| peer.heard.max(up).elapsed() >= LEASE;
        let gone: Vec<(NodeId, Peer)> = state.peers.extract_if(|_, peer| is_gone(peer)).collect();
        let mut news = Vec::new();
        for (node, peer) in gone {
            tracing::warn!(node = &*node, "a node is gone: its users are waited for");
            let heard = gateway.domain.clock.now().before(peer.heard.max(up).elapsed());
            news.push(gateway.domain.presence.lose(&node, heard, heard.after(LEASE)));
        }
        drop(state);
        for news in news {
            gateway.fanout.tell_news(news);
        }
    }

    /// What another node has said; `None` when it makes no sense.
    pub fn hear(&self, gateway: &Gateway, said: &[u8]) -> Option<()> {
        let Said { from, told, what } = serde_json::from_slice(said).ok()?;
        if from == self.node {
            return Some(());
        }
        let mut state = self.lock();
        if matches!(what, What::Bye) {
            if state.peers.remove(&from).is_some() {
                tracing::info!(node = &*from, "a node has left");
            }
            let now = gateway.domain.clock.now();
            let news = gateway.domain.presence.lose(&from, now, now);
            drop(state);
            gateway.fanout.tell_news(news);
            return Some(());
        }
        let State { peers, is_asked_for_all, doubtful, .. } = &mut *state;
        let peer = peers.entry(from.clone()).or_insert_with(|| {
            tracing::info!(node = &*from, "another node is there");
            let (heard, asked, everybody) = (Instant::now(), None, Telling::default());
            Peer { heard, told: 0, is_behind: true, asked, everybody }
        });
        peer.heard = Instant::now();
        match what {
            What::Alive => peer.is_behind |= told != peer.told,
            What::Changed(changes) if !peer.is_behind && told == peer.told + 1 => {
                peer.told = told;
                gateway.domain.presence.hear(&from, changes);
            }
            What::Changed(_) => peer.is_behind = true,
            What::Everybody(part, parts, some) => {
                if let Some(everybody) = peer.everybody.hear(told, (part, parts), some) {
                    (peer.told, peer.is_behind) = (told, false);
                    let presence = &gateway.domain.presence;
                    let mut news = presence.hear_everybody(&from, everybody);
                    // They may be with a node that has told of it, and was not heard either.
                    doubtful.append(&mut news.offline);
                    if peers.values().all(|peer| !peer.is_behind) {
                        news.offline = std::mem::take(doubtful);
                        news.offline.retain(|of| !presence.knows(&of.tenant, &of.user));
                    }
                    drop(state);
                    gateway.fanout.tell_news(news);
                    return Some(());
                }
            }
            What::TellAll(node) => {
                if node == self.node {
                    *is_asked_for_all = true;
                    self.ring.notify_one();
                }
            }
            What::Bye => {}
            What::Cut(tenant, user, at) => gateway.fanout.cut_user(&tenant, &user, at),
            What::GoOn(tenant, user, id, generation) => {
                gateway.fanout.supersede(&tenant, &user, &id, generation);
            }
            What::Expel(tenant, user, room) => gateway.fanout.expel(&tenant, &user, &room),
            What::ShowBoards(tenant) => gateway.fanout.boards.show_again(&tenant),
        }
        let is_due = peer.asked.is_none_or(|at| at.elapsed() >= TICK);
        if peer.is_behind && is_due {
            peer.asked = Some(Instant::now());
            let told = state.told;
            self.say_as(told, What::TellAll(from));
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_is_told_whole_or_not_at_all() {
        let change = |user: &str| {
            let (tenant, user) = (TenantId::new("t").unwrap(), UserId::new(user).unwrap());
            vec![Change { tenant, user, part: None }]
        };
        let mut telling = Telling::default();
        assert!(telling.hear(1, (0, 3), change("ana")).is_none());
        assert!(telling.hear(1, (2, 3), change("cat")).is_none(), "the second part was lost");
        assert!(telling.hear(2, (1, 2), change("ben")).is_none(), "its first part was lost");
        assert!(telling.hear(2, (0, 2), change("ana")).is_none());
        assert!(telling.hear(3, (1, 2), change("ben")).is_none(), "of another telling");
        assert!(telling.hear(3, (0, 2), change("ana")).is_none());
        assert_eq!(telling.hear(3, (1, 2), change("ben")).unwrap().len(), 2);
        assert_eq!(telling.hear(4, (0, 1), change("ana")).unwrap().len(), 1);
    }
}
