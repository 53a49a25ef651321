//! Connections that have not yet proved whose they are, by the address they come from.
//!
//! A school is one address, and at nine o'clock five hundred of its clients connect within seconds.
//! A refusal would end some of them for good: a stock client gives up after five, 13 to 20 s. So a
//! flood from an address must not cost the others of that address their turn, only some seconds.
//! Honest ones prove themselves within a fraction of a second and are not counted after that. What
//! stays is the flood, and it is held in three ways:
//!
//! - `limits.unauthenticated` of one address may be open, and ten times as many in all. For each
//!   that comes then, the oldest is closed. In all, it is looked for among a few at random, and
//!   taken from the address with most of them: whoever floods, and not who is alone.
//! - While an address is at its limit or has failed too often, its handshakes wait in line and pass
//!   a gate one by one, so many a second that whoever passed has 2 s before it is the oldest. All
//!   such addresses share the gate and take turns. Waiting costs a client no attempt (its own timeout
//!   is 20 s), a flood that opens a connection for each that is closed waits in the same line, and
//!   the processor is left to everybody else: without the gate, three thousand connections that
//!   came back kept it so busy that questions to the database timed out.
//! - More than `limits.failed_handshakes` that ended without authenticating, and the address has 5 s
//!   for that instead of 45 s, for as long as it goes on.
//!
//! Only where four times the limit of an address wait, 8 s, are more turned away, with a 429. What
//! the engine holds of a connection that ended as a stranger, 14 KB, it holds for 45 s; at the pace
//! of the gate, 500 a second, that is 315 MB at most.
//!
//! The tables hold open connections and the addresses of the last minutes, and nothing else.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use carillon_domain::contract::Rate;
use governor::{RateLimiter, clock::DefaultClock, state::keyed::DefaultKeyedStateStore};
use tokio_util::sync::CancellationToken;

use crate::{connection::Connection, limits::quota};

/// So many times the limit of one address are the limit of all.
const ADDRESSES: usize = 10;
/// Longer than an honest client takes from its handshake to its token, also from far away. Nobody
/// who came through the gate is the oldest before that.
const HONEST: Duration = Duration::from_secs(2);
/// What somebody from an address that floods has for that.
const HURRY: Duration = Duration::from_secs(5);
/// How long an address counts as flooding after the last sign of it.
const MEMORY: Duration = Duration::from_secs(10);
/// How many are looked at to find one with many neighbours.
const SAMPLE: usize = 8;
/// So many times the limit of an address may wait in its line.
const QUEUE: usize = 4;
/// How much the gate may be behind its pace and still keep it.
const CATCH_UP: Duration = Duration::from_millis(200);
/// A flood is one line in the log, not thousands.
const BURST: Duration = Duration::from_secs(30);

type Address = IpAddr;

/// All of them, on this node.
pub struct Strangers {
    at_once: usize,
    failed: RateLimiter<Address, DefaultKeyedStateStore<Address>, DefaultClock>,
    /// Where the first of each line waits; when the last one had its turn.
    gate: tokio::sync::Mutex<Option<Instant>>,
    /// Nobody has a turn any more: this node is going away.
    pub closed: CancellationToken,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    all: BTreeMap<u64, Entry>,
    by_address: HashMap<Address, Neighbours>,
    warned: Option<Instant>,
}

struct Entry {
    address: Address,
    since: Instant,
    connection: Weak<Connection>,
}

#[derive(Default)]
struct Neighbours {
    ids: BTreeSet<u64>,
    floods_until: Option<Instant>,
    line: Arc<Line>,
}

/// A place among them. Dropped, the connection has ended as a stranger.
pub struct Stranger {
    id: u64,
    address: Address,
    all: Arc<Strangers>,
    has_failed: bool,
}

impl Stranger {
    /// It has proved whose it is.
    pub fn becomes_known(mut self) {
        self.has_failed = false;
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.all.remove(self.id, self.address, self.has_failed);
    }
}

/// Who gets IPv6 gets a network of it.
fn address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
    }
}

/// Where handshakes of a crowded address wait for each other.
#[derive(Default)]
struct Line {
    first: tokio::sync::Mutex<()>,
    waiting: AtomicUsize,
}

/// Somebody who waits there; no longer, when dropped.
pub struct Waiting(Arc<Line>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Too many wait already, or nobody's turn will come.
#[derive(Debug)]
pub struct Overrun;

impl Strangers {
    pub fn new(at_once: usize, failed: Rate) -> Arc<Self> {
        Arc::new(Self {
            at_once,
            failed: RateLimiter::keyed(quota(failed)),
            gate: tokio::sync::Mutex::default(),
            closed: CancellationToken::new(),
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn len(&self) -> usize {
        self.state().all.len()
    }

    pub fn all(&self) -> Vec<Arc<Connection>> {
        self.state().all.values().filter_map(|entry| entry.connection.upgrade()).collect()
    }

    /// A place in the line of that address, if there is need to wait.
    pub fn line_up(&self, ip: IpAddr) -> Result<Option<Waiting>, Overrun> {
        let line = {
            let state = self.state();
            let neighbours = state.by_address.get(&address(ip));
            let is_crowd =
                |one: &&Neighbours| one.ids.len() >= self.at_once || one.floods_until.is_some();
            let Some(crowd) = neighbours.filter(is_crowd) else { return Ok(None) };
            crowd.line.clone()
        };
        let before = line.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(line);
        if before >= self.at_once * QUEUE { Err(Overrun) } else { Ok(Some(waiting)) }
    }

    /// Waits until it is this one's turn.
    pub async fn turn(&self, Waiting(line): &Waiting) -> Result<(), Overrun> {
        tokio::select! {
            () = self.pass(line) => Ok(()),
            () = self.closed.cancelled() => Err(Overrun),
        }
    }

    async fn pass(&self, line: &Line) {
        let _first = line.first.lock().await;
        let mut turn = self.gate.lock().await;
        let at_once = u32::try_from(self.at_once).unwrap_or(u32::MAX).max(1);
        let now = Instant::now();
        // A timer is late by more than a turn on a busy machine; that is made up for.
        let due = turn.map_or(now, |last| last + HONEST / at_once);
        let due = now.checked_sub(CATCH_UP).map_or(due, |earliest| due.max(earliest));
        tokio::time::sleep(due.saturating_duration_since(now)).await;
        *turn = Some(due);
    }

    /// One more. Returns its place, and who has to go for it.
    pub fn add(
        self: &Arc<Self>,
        ip: IpAddr,
        connection: &Arc<Connection>,
    ) -> (Stranger, Vec<Arc<Connection>>) {
        let (address, now) = (address(ip), Instant::now());
        let mut state = self.state();
        let id = state.next;
        state.next += 1;
        let entry = Entry { address, since: now, connection: Arc::downgrade(connection) };
        state.all.insert(id, entry);
        state.by_address.entry(address).or_default().ids.insert(id);
        let mut victims = Vec::new();
        while let Some(victim) = state.one_too_many(address, self.at_once) {
            victims.extend(state.take(victim));
        }
        if !victims.is_empty() && state.warned.is_none_or(|last| now.duration_since(last) > BURST) {
            state.warned = Some(now);
            tracing::warn!(
                unauthenticated = state.all.len(),
                "more than limits.unauthenticated connections are silent; closing some"
            );
        }
        (Stranger { id, address, all: self.clone(), has_failed: true }, victims)
    }

    fn remove(&self, id: u64, address: Address, has_failed: bool) {
        let floods = has_failed && self.failed.check_key(&address).is_err();
        let mut state = self.state();
        let connection = state.take(id);
        if floods {
            let until = Instant::now() + MEMORY;
            state.by_address.entry(address).or_default().floods_until = Some(until);
        }
        // Whatever else ends with it does so without the lock.
        drop(state);
        drop(connection);
    }

    /// Those who have had their time; called every second.
    pub fn late(&self) -> Vec<Arc<Connection>> {
        let now = Instant::now();
        let mut state = self.state();
        state.by_address.retain(|_, neighbours| {
            neighbours.floods_until = neighbours.floods_until.filter(|until| *until > now);
            neighbours.floods_until.is_some() || !neighbours.ids.is_empty()
        });
        let floods = state.by_address.values().filter(|one| one.floods_until.is_some());
        let is_late = |id: &&u64| {
            state.all.get(id).is_some_and(|entry| now.duration_since(entry.since) > HURRY)
        };
        let late: Vec<u64> =
            floods.flat_map(|one| one.ids.iter().take_while(is_late)).copied().collect();
        late.into_iter().filter_map(|id| state.take(id)).collect()
    }

    /// Forgets addresses whose buckets are full again.
    pub fn forget(&self) {
        self.failed.retain_recent();
        self.failed.shrink_to_fit();
    }
}

impl State {
    fn take(&mut self, id: u64) -> Option<Arc<Connection>> {
        let entry = self.all.remove(&id)?;
        if let Some(neighbours) = self.by_address.get_mut(&entry.address) {
            neighbours.ids.remove(&id);
            if neighbours.ids.is_empty() && neighbours.floods_until.is_none() {
                self.by_address.remove(&entry.address);
            }
        }
        entry.connection.upgrade()
    }

    /// Who is to go, when there are too many of that address or in all.
    fn one_too_many(&self, address: Address, at_once: usize) -> Option<u64> {
        let count = |address: Address| self.by_address.get(&address).map_or(0, |one| one.ids.len());
        let crowded = if count(address) > at_once {
            address
        } else if self.all.len() > at_once * ADDRESSES {
            let some = (0..SAMPLE).filter_map(|_| self.any_address());
            some.max_by_key(|address| count(*address))?
        } else {
            return None;
        };
        self.by_address.get(&crowded)?.ids.first().copied()
    }

    /// That of any of them; what has no randomness takes the middle.
    fn any_address(&self) -> Option<Address> {
        let ((first, _), (last, _)) = (self.all.first_key_value()?, self.all.last_key_value()?);
        let numbers = last - first + 1;
        let from = first + getrandom::u64().unwrap_or(numbers / 2) % numbers;
        self.all.range(from..).next().map(|(_, entry)| entry.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFTEN: Rate = Rate { count: 3, period: Duration::from_hours(1) };

    fn connection() -> Arc<Connection> {
        Arc::new(Connection::new(None, None))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// So many silent connections, their places, and who had to go.
    type Crowd = (Vec<Arc<Connection>>, Vec<Stranger>, Vec<Arc<Connection>>);
    fn crowd(strangers: &Arc<Strangers>, from: &str, count: usize) -> Crowd {
        let mut all: Crowd = (vec![], vec![], vec![]);
        for _ in 0..count {
            let one = connection();
            let (place, victims) = strangers.add(ip(from), &one);
            all.0.push(one);
            all.1.push(place);
            all.2.extend(victims);
        }
        all
    }

    #[test]
    fn so_many_of_one_address_may_be_silent_and_no_more() {
        let strangers = Strangers::new(10, OFTEN);
        let (_open, places, victims) = crowd(&strangers, "192.0.2.1", 25);
        assert_eq!((strangers.len(), victims.len()), (10, 15));
        // Somebody else is not touched, and an IPv6 network is one address.
        assert!(crowd(&strangers, "192.0.2.2", 10).2.is_empty());
        let networks = ["2001:db8::1", "2001:db8::2", "2001:db8:0:0:ffff::3"];
        let gone = networks.map(|from| crowd(&strangers, from, 4));
        assert_eq!(gone.iter().map(|crowd| crowd.2.len()).sum::<usize>(), 2);
        drop((places, gone));
        assert_eq!(strangers.len(), 0);
    }

    #[test]
    fn whoever_has_proved_themselves_is_not_counted() {
        let strangers = Strangers::new(10, OFTEN);
        for _ in 0..500 {
            let (_open, places, victims) = crowd(&strangers, "192.0.2.1", 1);
            assert!(victims.is_empty());
            places.into_iter().for_each(Stranger::becomes_known);
        }
        assert_eq!(strangers.len(), 0);
        assert!(strangers.state().by_address.is_empty());
        let one = crowd(&strangers, "192.0.2.1", 1);
        drop(one);
        assert!(strangers.state().by_address.is_empty(), "one failure is no flood");
    }

    #[test]
    fn the_oldest_goes() {
        let strangers = Strangers::new(10, OFTEN);
        let (open, _places, _) = crowd(&strangers, "192.0.2.1", 10);
        let (_, _more, victims) = crowd(&strangers, "192.0.2.1", 3);
        assert!(victims.iter().zip(&open).all(|(victim, one)| Arc::ptr_eq(victim, one)));
        assert_eq!(victims.len(), 3);
    }

    /// Waits as somebody from a crowded address.
    async fn turn(strangers: &Strangers, address: &str) -> Result<(), Overrun> {
        let waiting = strangers.line_up(ip(address))?.unwrap();
        strangers.turn(&waiting).await
    }

    #[tokio::test]
    async fn a_crowded_address_waits_in_line_and_nobody_else_does() {
        let strangers = Strangers::new(20, OFTEN);
        for _ in 0..100 {
            assert!(strangers.line_up(ip("192.0.2.1")).unwrap().is_none(), "there is no gate yet");
        }
        let (_open, _places, _) = crowd(&strangers, "192.0.2.1", 20);
        let since = Instant::now();
        let turns = (0..10).map(|_| turn(&strangers, "192.0.2.1"));
        futures_util::future::join_all(turns).await.into_iter().for_each(Result::unwrap);
        assert!(since.elapsed() >= HONEST * 2 / 5, "{:?}", since.elapsed());
        assert!(strangers.line_up(ip("192.0.2.2")).unwrap().is_none());
        // Past a line of four times the limit nobody may wait, and those who leave do not.
        let waiting: Vec<_> =
            (0..80).map(|_| strangers.line_up(ip("192.0.2.1")).unwrap()).collect();
        assert!(strangers.line_up(ip("192.0.2.1")).is_err());
        drop(waiting);
        assert!(strangers.line_up(ip("192.0.2.1")).unwrap().is_some());
    }

    #[tokio::test]
    async fn nobody_waits_for_a_node_that_goes_away() {
        let strangers = Strangers::new(1, OFTEN);
        let _open = crowd(&strangers, "192.0.2.1", 1);
        turn(&strangers, "192.0.2.1").await.unwrap();
        let since = Instant::now();
        let close = async { strangers.closed.cancel() };
        let (turn, ()) = tokio::join!(turn(&strangers, "192.0.2.1"), close);
        turn.unwrap_err();
        assert!(since.elapsed() < HONEST);
    }

    #[tokio::test]
    async fn two_crowded_addresses_take_turns() {
        let strangers = Strangers::new(100, OFTEN);
        let _large = crowd(&strangers, "192.0.2.1", 100);
        let _small = crowd(&strangers, "192.0.2.2", 100);
        let many = (0..50).map(|_| turn(&strangers, "192.0.2.1"));
        let many = futures_util::future::join_all(many);
        let one = turn(&strangers, "192.0.2.2");
        tokio::select! {
            biased;
            _ = many => panic!("fifty of the other line came first"),
            turn = one => turn.unwrap(),
        }
    }

    #[test]
    fn in_all_the_crowd_pays_and_not_who_is_alone() {
        let strangers = Strangers::new(10, OFTEN);
        let crowds: Vec<Crowd> =
            (0..9).map(|n| crowd(&strangers, &format!("192.0.2.{n}"), 10)).collect();
        let alone: Vec<Crowd> =
            (0..40).map(|n| crowd(&strangers, &format!("198.51.100.{n}"), 1)).collect();
        assert_eq!(strangers.len(), 100);
        let victims: Vec<_> = alone.iter().flat_map(|one| &one.2).collect();
        assert_eq!(victims.len(), 30);
        let of_the_crowd = |victim: &&&Arc<Connection>| {
            crowds.iter().any(|crowd| crowd.0.iter().any(|one| Arc::ptr_eq(one, victim)))
        };
        let paid = victims.iter().filter(of_the_crowd).count();
        assert!(paid >= 27, "{paid} of 30");
    }

    #[test]
    fn an_address_that_floods_is_hurried_and_forgotten() {
        let strangers = Strangers::new(10, OFTEN);
        drop(crowd(&strangers, "192.0.2.1", 4));
        let (open, _places, _) = crowd(&strangers, "192.0.2.1", 2);
        assert!(strangers.late().is_empty(), "not yet");
        let back = |state: &mut State| {
            for entry in state.all.values_mut() {
                entry.since -= HURRY;
            }
        };
        back(&mut strangers.state());
        let (_, _elsewhere, _) = crowd(&strangers, "192.0.2.2", 1);
        back(&mut strangers.state());
        let late = strangers.late();
        assert_eq!(late.len(), 2);
        assert!(open.iter().all(|one| late.iter().any(|other| Arc::ptr_eq(one, other))));
        for neighbours in strangers.state().by_address.values_mut() {
            neighbours.floods_until = Some(Instant::now());
        }
        assert!(strangers.late().is_empty());
        assert_eq!(strangers.state().by_address.len(), 1, "only who is still there");
    }
}
