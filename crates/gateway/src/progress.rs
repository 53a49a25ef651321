//! How far this node has delivered what is durable of one tenant, and the newest of it.
//!
//! The newest is kept for those who join just now and for those who come back. A herd that was cut
//! off while its school talks has missed thousands of events of its tenant, few of which are for any
//! one of them; without this memory each of them would read all of it from the database.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use carillon_domain::{Emit, Offset, recovery::MAX_MISSED};

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
        let (early, recent) = (BTreeMap::new(), Recent { events: VecDeque::new(), memory });
        Self { delivered, early, recent }
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

    /// The events after an offset; `None` when it is ahead of this node, or when memory does
    /// not reach back that far.
    pub fn since(&self, after: Offset) -> Option<impl Iterator<Item = &Emit>> {
        let missing = usize::try_from(self.delivered.0 - after.0).ok()?;
        let skipped = self.recent.events.len().checked_sub(missing)?;
        Some(self.recent.events.range(skipped..).map(|kept| &kept.emit))
    }

    /// Lets go of what was delivered longer ago.
    pub fn forget(&mut self, age: Duration) {
        self.recent.forget(age);
    }
}

/// The newest delivered, without a gap.
struct Recent {
    events: VecDeque<Kept>,
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
        }
    }

    fn drop_oldest(&mut self) -> usize {
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

    fn offsets(progress: &Progress, after: i64) -> Option<Vec<i64>> {
        let since = progress.since(Offset(after))?;
        Some(since.map(|emit| emit.offset.unwrap().0).collect())
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
