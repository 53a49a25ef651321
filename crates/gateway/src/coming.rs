//! Turns of those who come.
//!
//! A herd that comes back asks more of the database than those who are here, and they would wait
//! among it: for connections, and for processors. So a few ask at a time; and where that takes long,
//! which it does when there is more to do than the machine can, each turn is followed by a rest of
//! the same length.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
};

/// More at a time would be no quicker.
const AT_ONCE: usize = 4;
/// Nobody rests after a turn that took less.
const QUICK: Duration = Duration::from_millis(2);
/// With the database away nothing is gained by waiting longer.
const REST: Duration = Duration::from_millis(100);

/// Who may ask.
pub struct Coming(Arc<Semaphore>);

impl Default for Coming {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE)))
    }
}

/// Ends when it is dropped, and the rest after it.
pub struct Turn {
    place: Option<OwnedSemaphorePermit>,
    since: Instant,
}

impl Coming {
    /// Waits for a turn.
    pub async fn turn(&self) -> Turn {
        // Nobody closes it.
        let place = self.0.clone().acquire_owned().await.ok();
        Turn { place, since: Instant::now() }
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
        for _ in 0..AT_ONCE {
            turns.push(coming.turn().await);
        }
        assert_eq!(coming.0.available_permits(), 0);
        drop(turns.pop());
        assert_eq!(coming.0.available_permits(), 1, "it was quick");
        turns.push(coming.turn().await);
        let took = Duration::from_millis(50);
        let mut slow = turns.pop().unwrap();
        slow.since = Instant::now().checked_sub(took).unwrap();
        let ended = Instant::now();
        drop(slow);
        let _next = coming.turn().await;
        assert!(ended.elapsed() >= took);
    }
}
