//! How far this node has delivered what is durable of one tenant, and the newest of it.
//!
//! The newest is kept for those who join just now and for those who come back. A herd that was cut
//! off while its school talks has missed thousands of events of its tenant, few of which are for any
//! one of them; without this memory each of them would read all of it from the database.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    hash::BuildHasher as _,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use carillon_domain::{Emit, Offset, RoomId, UserId, contract::Address, recovery::MAX_MISSED};
use foldhash::fast::{FixedState, RandomState};

/// Events of a tenant that are always kept, for those who join just now.
const ALWAYS: usize = 256;
/// What all tenants keep together, beside that.
const MOST_BYTES: usize = 64 << 20;
/// An event without its payload: what it is, whom it is for, its place.
const OVERHEAD: usize = 256;

/// The bytes of all tenants' newest events.
#[derive(Clone, Debug, Default)]
pub struct Memory(Arc<AtomicUsize>);

/// What this node has delivered of one tenant.
pub struct Progress {
    delivered: Offset,
    early: BTreeMap<Offset, Emit>,
    recent: Recent,
}

impl Progress {
    pub fn new(delivered: Offset, memory: Memory) -> Self {
        let recent = Recent { events: VecDeque::new(), whom: VecDeque::new(), memory };
        Self { delivered, early: BTreeMap::new(), recent }
    }

    pub fn delivered(&self) -> Offset {
        self.delivered
    }

    /// Begins anew, with nothing kept.
    pub fn reset(&mut self, delivered: Offset) {
        *self = Self::new(delivered, self.recent.memory.clone());
    }

    /// Keeps an event until those before it are there.
    pub fn offer(&mut self, offset: Offset, emit: Emit) {
        if offset > self.delivered {
            self.early.insert(offset, emit);
        }
    }

    /// The next in order, if it is there; it counts as delivered.
    pub fn advance(&mut self) -> Option<&Emit> {
        let next = Offset(self.delivered.0 + 1);
        let emit = self.early.remove(&next)?;
        self.delivered = next;
        Some(self.recent.add(emit))
    }

    /// Whether something is there and something before it is not.
    pub fn has_hole(&self) -> bool {
        !self.early.is_empty()
    }

    /// The events after an offset that may concern somebody; few others are among them. `None` when
    /// it is ahead of this node, or when memory does not reach back that far.
    pub fn since(&self, after: Offset, whom: &Concern) -> Option<impl Iterator<Item = &Emit>> {
        let missing = usize::try_from(self.delivered.0 - after.0).ok()?;
        let skipped = self.recent.events.len().checked_sub(missing)?;
        let mut of = whom.of.clone();
        if let Some(user) = whom.user {
            let all = self.recent.whom.range(skipped..);
            // Also what is said in a room that the user came into meanwhile.
            of.extend(all.filter(|one| one.who == Some(user)).filter_map(|one| one.of));
        }
        let all = self.recent.whom.range(skipped..).zip(self.recent.events.range(skipped..));
        Some(all.filter_map(move |(one, kept)| {
            one.of.is_none_or(|key| of.contains(&key)).then_some(&kept.emit)
        }))
    }

    /// Lets go of what was delivered longer ago.
    pub fn forget(&mut self, age: Duration) {
        self.recent.forget(age);
    }
}

/// Stands for a room's or a user's id. Two may have the same: it rules out, and proves nothing.
type Key = u64;

fn key(id: &str) -> Key {
    FixedState::default().hash_one(id)
}

/// Rooms and a user, to find what is for them without looking at each event.
pub struct Concern {
    of: HashSet<Key, RandomState>,
    user: Option<Key>,
}

impl Concern {
    pub fn room(room: &RoomId) -> Self {
        Self { of: HashSet::from_iter([key(room.as_str())]), user: None }
    }

    /// Of a user, and of rooms they may be in.
    pub fn user<'a>(user: &UserId, rooms: impl Iterator<Item = &'a RoomId>) -> Self {
        let user = key(user.as_str());
        let rooms = rooms.map(|room| key(room.as_str()));
        Self { of: rooms.chain([user]).collect(), user: Some(user) }
    }
}

/// Whom an event is for.
struct Whom {
    /// A room or a user; `None` where that does not say it.
    of: Option<Key>,
    /// Whose place in the room it changes.
    who: Option<Key>,
}

impl From<&Address> for Whom {
    fn from(address: &Address) -> Self {
        let (of, who) = match address {
            Address::User(user) => (Some(user.as_str()), None),
            Address::Room(room) | Address::Others(room, _) => (Some(room.as_str()), None),
            Address::RoomWith(room, who) | Address::RoomWithout(room, who) => {
                (Some(room.as_str()), Some(who.as_str()))
            }
            Address::Caller
            | Address::Around(..)
            | Address::Tenant
            | Address::Lookers(_)
            | Address::Bystanders => (None, None),
        };
        Self { of: of.map(key), who: who.map(key) }
    }
}

/// The newest delivered, without a gap.
struct Recent {
    events: VecDeque<Kept>,
    /// Of each of them. A herd goes through these, one by one, while delivery stands still.
    whom: VecDeque<Whom>,
    memory: Memory,
}

struct Kept {
    emit: Emit,
    at: Instant,
}

impl Kept {
    fn bytes(&self) -> usize {
        OVERHEAD + self.emit.payload.get().len()
    }
}

impl Recent {
    fn add(&mut self, emit: Emit) -> &Emit {
        let kept = Kept { emit, at: Instant::now() };
        let bytes = kept.bytes();
        let mut together = self.memory.0.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.whom.push_back(Whom::from(&kept.emit.to));
        self.events.push_back(kept);
        // Who missed more starts anew.
        while self.events.len() > ALWAYS
            && (self.events.len() as u64 > MAX_MISSED.unsigned_abs() || together > MOST_BYTES)
        {
            together = together.saturating_sub(self.drop_oldest());
        }
        &self.events.back().expect("pushed just now").emit
    }

    fn forget(&mut self, age: Duration) {
        while self.events.len() > ALWAYS
            && self.events.front().is_some_and(|kept| kept.at.elapsed() > age)
        {
            self.drop_oldest();
        }
        if self.events.capacity() > 4 * self.events.len() {
            self.events.shrink_to(2 * self.events.len());
            self.whom.shrink_to(2 * self.events.len());
        }
    }

    fn drop_oldest(&mut self) -> usize {
        self.whom.pop_front();
        let bytes = self.events.pop_front().map_or(0, |kept| kept.bytes());
        self.memory.0.fetch_sub(bytes, Ordering::Relaxed);
        bytes
    }
}

impl Drop for Recent {
    fn drop(&mut self) {
        while !self.events.is_empty() {
            self.drop_oldest();
        }
    }
}

#[cfg(test)]
mod tests {
    use carillon_domain::{
        contract::Event as _,
        recovery::{Reason, Resync},
    };

    use super::*;

    fn emit(offset: i64) -> Emit {
        let resync = Resync { reason: Reason::Unknown };
        let mut emit = Emit::new(carillon_domain::contract::ToCaller(), &resync).unwrap();
        assert_eq!(emit.row.name, Resync::NAME);
        emit.offset = Some(Offset(offset));
        emit
    }

    fn progress(memory: &Memory, upto: i64) -> Progress {
        let mut progress = Progress::new(Offset(0), memory.clone());
        for offset in 1..=upto {
            progress.offer(Offset(offset), emit(offset));
            assert_eq!(progress.advance().unwrap().offset, Some(Offset(offset)));
        }
        progress
    }

    /// Those that everybody gets.
    fn offsets(progress: &Progress, after: i64) -> Option<Vec<i64>> {
        of(progress, after, &Concern::room(&RoomId::new("nobody's").unwrap()))
    }

    fn of(progress: &Progress, after: i64, whom: &Concern) -> Option<Vec<i64>> {
        let since = progress.since(Offset(after), whom)?;
        Some(since.map(|emit| emit.offset.unwrap().0).collect())
    }

    #[test]
    fn what_concerns_somebody_is_found() {
        let room = |id| RoomId::new(id).unwrap();
        let (ana, ben) = (UserId::new("ana").unwrap(), UserId::new("ben").unwrap());
        let (algebra, botany, chess) = (room("algebra"), room("botany"), room("chess"));
        let said = [
            Address::Room(algebra.clone()),
            Address::User(ana.clone()),
            Address::User(ben.clone()),
            Address::Tenant,
            Address::Room(botany.clone()),
            Address::Others(algebra.clone(), ben.clone()),
            Address::RoomWith(botany.clone(), ben.clone()),
            Address::RoomWith(chess.clone(), ana.clone()),
            Address::Room(chess),
            Address::Around(ben.clone(), vec![algebra.clone()]),
            Address::RoomWithout(algebra.clone(), ana.clone()),
        ];
        let mut progress = progress(&Memory::default(), 0);
        for (offset, to) in (1..).zip(said) {
            progress.offer(Offset(offset), Emit { to, ..emit(offset) });
            progress.advance().unwrap();
        }
        let found = |whom: &Concern| of(&progress, 0, whom).unwrap();
        assert_eq!(found(&Concern::room(&algebra)), [1, 4, 6, 10, 11]);
        assert_eq!(found(&Concern::user(&ben, [&botany].into_iter())), [3, 4, 5, 7, 10]);
        // With the room that she has come into meanwhile.
        let rooms = [&algebra];
        assert_eq!(found(&Concern::user(&ana, rooms.into_iter())), [1, 2, 4, 6, 8, 9, 10, 11]);
        assert_eq!(of(&progress, 8, &Concern::room(&algebra)).unwrap(), [10, 11]);
    }

    #[test]
    fn what_comes_early_waits_for_what_is_missing() {
        let mut progress = progress(&Memory::default(), 0);
        for offset in [3, 2] {
            progress.offer(Offset(offset), emit(offset));
            assert!(progress.advance().is_none() && progress.has_hole());
        }
        progress.offer(Offset(1), emit(1));
        for offset in 1..=3 {
            assert_eq!(progress.advance().unwrap().offset, Some(Offset(offset)));
        }
        assert!(progress.advance().is_none() && !progress.has_hole());
        progress.offer(Offset(2), emit(2));
        assert!(!progress.has_hole(), "that was delivered already");
        assert_eq!(offsets(&progress, 1), Some(vec![2, 3]));
        assert_eq!(offsets(&progress, 4), None, "ahead of this node");
    }

    #[test]
    fn what_a_client_may_have_missed_is_kept_and_no_more() {
        let memory = Memory::default();
        let mut progress = progress(&memory, MAX_MISSED + 10);
        assert_eq!(offsets(&progress, 10).unwrap().len() as u64, MAX_MISSED.unsigned_abs());
        assert_eq!(offsets(&progress, 9), None);
        progress.forget(Duration::from_hours(1));
        assert!(offsets(&progress, 10).is_some());
        progress.forget(Duration::ZERO);
        assert_eq!(offsets(&progress, MAX_MISSED + 10 - 256).unwrap().len(), ALWAYS);
        assert_eq!(offsets(&progress, MAX_MISSED + 9 - 256), None);
        progress.reset(Offset(5));
        assert_eq!((progress.delivered(), memory.0.load(Ordering::Relaxed)), (Offset(5), 0));
    }

    #[test]
    fn all_tenants_together_keep_so_much_and_each_the_newest() {
        let memory = Memory::default();
        let first = progress(&memory, 1_000);
        memory.0.fetch_add(MOST_BYTES, Ordering::Relaxed);
        let second = progress(&memory, 1_000);
        assert_eq!(offsets(&first, 0).unwrap().len(), 1_000);
        assert_eq!(offsets(&second, 1_000 - 256).unwrap().len(), ALWAYS);
        assert!(offsets(&second, 700).is_none());
        drop((first, second));
        assert_eq!(memory.0.load(Ordering::Relaxed), MOST_BYTES);
    }
}
