//! What time it is, for everything that is judged by it.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use carillon_domain::{Timestamp, ports::Clock};
use carillon_store::SqlStore;
use tokio::time::{MissedTickBehavior, interval};

/// Between two looks at the database's clock.
const LOOK: Duration = Duration::from_secs(10);
/// Looks at a time: the quickest answer is the truest.
const SAMPLES: usize = 3;
/// An answer that took longer says too little.
const SLOW: Duration = Duration::from_secs(1);
/// A machine whose clock is further off than this is worth a line in the log.
const OFF: Duration = Duration::from_secs(2);

/// The machine's own.
#[derive(Debug)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp(jiff::Timestamp::now().as_millisecond())
    }
}

/// The database's, between two looks at it: all nodes of a cluster judge a deadline by the same
/// time, however their own clocks are set. It never goes back.
#[derive(Debug)]
pub struct DatabaseClock {
    /// What time it was, and when.
    seen: Mutex<(Timestamp, Instant)>,
    latest: AtomicI64,
}

impl DatabaseClock {
    fn new(time: Timestamp, at: Instant) -> Self {
        Self { seen: Mutex::new((time, at)), latest: AtomicI64::new(i64::MIN) }
    }

    fn set(&self, time: Timestamp, at: Instant) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = (time, at);
    }

    fn at(&self, at: Instant) -> Timestamp {
        let (time, seen) = *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let time = time.after(at.saturating_duration_since(seen));
        Timestamp(self.latest.fetch_max(time.0, Ordering::Relaxed).max(time.0))
    }
}

impl Clock for DatabaseClock {
    fn now(&self) -> Timestamp {
        self.at(Instant::now())
    }
}

/// What time the database says it is, and when it was; `None` where it has no clock of its own.
async fn look(store: &SqlStore) -> anyhow::Result<Option<(Timestamp, Instant)>> {
    let mut best: Option<(Duration, Timestamp, Instant)> = None;
    for _ in 0..SAMPLES {
        let asked = Instant::now();
        let Some(time) = store.clock().await? else { return Ok(None) };
        let took = asked.elapsed();
        if best.is_none_or(|(quickest, ..)| took < quickest) {
            // Halfway between the question and the answer.
            best = Some((took, time, asked + took / 2));
        }
    }
    Ok(best.filter(|(took, ..)| *took < SLOW).map(|(_, time, at)| (time, at)))
}

/// The clock of a node over that database.
pub async fn of(store: &SqlStore) -> anyhow::Result<(Arc<dyn Clock>, Option<Arc<DatabaseClock>>)> {
    let Some((time, at)) = look(store).await.context("the database's clock")? else {
        return Ok((Arc::new(SystemClock), None));
    };
    let clock = Arc::new(DatabaseClock::new(time, at));
    let off = clock.now().0.abs_diff(SystemClock.now().0);
    if u128::from(off) > OFF.as_millis() {
        tracing::warn!(off_ms = off, "this machine's clock is off; the database's counts");
    }
    Ok((clock.clone(), Some(clock)))
}

/// Looks again and again, until it is dropped.
pub async fn follow(clock: Option<Arc<DatabaseClock>>, store: &SqlStore) {
    let Some(clock) = clock else { return std::future::pending().await };
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // While the database is away, the machine's own clock measures what passes.
        if let Ok(Some((time, at))) = look(store).await {
            clock.set(time, at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_between_two_looks_and_never_back() {
        let began = Instant::now();
        let after = |ms| began + Duration::from_millis(ms);
        let clock = DatabaseClock::new(Timestamp(1_000_000), began);
        assert_eq!(clock.at(after(250)), Timestamp(1_000_250));
        // The database is ahead of what was thought.
        clock.set(Timestamp(1_000_900), after(500));
        assert_eq!(clock.at(after(600)), Timestamp(1_001_000));
        // And now behind: it waits.
        clock.set(Timestamp(1_000_500), after(700));
        assert_eq!(clock.at(after(800)), Timestamp(1_001_000));
        assert_eq!(clock.at(after(1_300)), Timestamp(1_001_100));
    }
}
