//! Turns of those who come.
//!
//! A herd that comes back asks more of the database than those who are here, and they would wait
//! among it: for connections, and for processors. So a few ask at a time; and where that takes long,
//! which it does when there is more to do than the machine can, each turn is followed by a rest of
//! the same length.
//!
//! Who goes on as an older socket asks twice. There is a line for each: in one, everybody would be
//! found before the first could enter.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
};

/// More at a time would be no quicker.
const FOUND_AT_ONCE: usize = 2;
const ENTERING_AT_ONCE: usize = 3;
/// Nobody rests after a turn that took less.
const QUICK: Duration = Duration::from_millis(2);
/// With the database away nothing is gained by waiting longer.
const REST: Duration = Duration::from_millis(100);

/// Who may ask.
pub struct Coming {
    finding: Arc<Semaphore>,
    entering: Arc<Semaphore>,
}

impl Default for Coming {
    fn default() -> Self {
        Self {
            finding: Arc::new(Semaphore::new(FOUND_AT_ONCE)),
            entering: Arc::new(Semaphore::new(ENTERING_AT_ONCE)),
        }
    }
}

/// Ends when it is dropped, and the rest after it.
pub struct Turn {
    place: Option<OwnedSemaphorePermit>,
    since: Instant,
}

impl Coming {
    /// Waits for a turn to find what a socket may go on from.
    pub async fn to_find(&self) -> Turn {
        Turn::of(&self.finding).await
    }

    /// Waits for a turn to take that, and to be shown to the others.
    pub async fn to_enter(&self) -> Turn {
        Turn::of(&self.entering).await
    }
}

impl Turn {
    async fn of(places: &Arc<Semaphore>) -> Self {
        // Nobody closes it.
        let place = places.clone().acquire_owned().await.ok();
        Self { place, since: Instant::now() }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let (place, took) = (self.place.take(), self.since.elapsed());
        if took < QUICK {
            return;
        }
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                tokio::time::sleep(took.min(REST)).await;
                drop(place);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn few_ask_at_a_time_and_rest_as_long_as_they_asked() {
        let coming = Coming::default();
        let mut turns = Vec::new();
        for _ in 0..ENTERING_AT_ONCE {
            turns.push(coming.to_enter().await);
        }
        assert_eq!(coming.entering.available_permits(), 0);
        drop(turns.pop());
        assert_eq!(coming.entering.available_permits(), 1, "it was quick");
        turns.push(coming.to_enter().await);
        let took = Duration::from_millis(50);
        let mut slow = turns.pop().unwrap();
        slow.since = Instant::now().checked_sub(took).unwrap();
        let ended = Instant::now();
        drop(slow);
        let _next = coming.to_enter().await;
        assert!(ended.elapsed() >= took);
    }
}
