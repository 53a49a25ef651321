//! The deadline of an attempt: an absolute instant, made of what was granted, and judged by when
//! something was received.

use std::time::Duration;

use super::{Attempt, AttemptStatus};
use crate::ids::Timestamp;

fn plus(at: Timestamp, ms: i64) -> Timestamp {
    Timestamp(at.0.saturating_add(ms))
}

/// Whole milliseconds.
pub(super) fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

impl Attempt {
    /// The earlier of the attempt's own time and the end of the window it was begun in. Pauses
    /// move the first, what staff grant moves both. `None`: there is no limit.
    pub fn compute_deadline(&self) -> Option<Timestamp> {
        let own = self.limit_ms.map(|limit| {
            plus(self.started_at, limit.saturating_add(self.extra_ms + self.paused_ms))
        });
        let window = self.window_end.map(|end| plus(end, self.extra_ms));
        match (own, window) {
            (Some(own), Some(window)) => Some(own.min(window)),
            (own, window) => own.or(window),
        }
    }

    /// What is received after this is refused. A paused attempt has no end of its own.
    pub fn closes_at(&self, grace: Duration) -> Option<Timestamp> {
        let deadline = match self.status {
            AttemptStatus::InProgress => self.deadline_at.map(|at| at.after(grace)),
            AttemptStatus::Paused | AttemptStatus::Completed => None,
        };
        match (deadline, self.forced_at) {
            (Some(deadline), Some(forced)) => Some(deadline.min(forced)),
            (deadline, forced) => deadline.or(forced),
        }
    }

    /// Milliseconds left, at least 0; a paused clock stands still. `None`: there is no limit.
    pub fn remaining_ms(&self, now: Timestamp) -> Option<i64> {
        let at = match self.status {
            AttemptStatus::InProgress => now,
            AttemptStatus::Paused => self.paused_at.unwrap_or(now),
            AttemptStatus::Completed => self.completed_at.unwrap_or(now),
        };
        self.deadline_at.map(|deadline| (deadline.0 - at.0).max(0))
    }

    /// Whole seconds left, as the contract's `time_remaining`; without a limit a day.
    pub fn remaining_seconds(&self, now: Timestamp) -> i64 {
        self.remaining_ms(now).map_or(24 * 3_600, |ms| ms / 1_000)
    }

    pub(super) fn pause(&mut self, now: Timestamp) {
        self.status = AttemptStatus::Paused;
        self.paused_at = Some(now);
        self.clock_rev += 1;
    }

    /// The clock goes on with exactly what was left.
    pub(super) fn resume(&mut self, now: Timestamp) {
        self.status = AttemptStatus::InProgress;
        if let Some(paused_at) = self.paused_at.take() {
            self.paused_ms += (now.0 - paused_at.0).max(0);
        }
        self.deadline_at = self.compute_deadline();
        self.clock_rev += 1;
    }

    pub(super) fn extend(&mut self, seconds: i64) {
        self.extra_ms += seconds * 1_000;
        self.deadline_at = self.compute_deadline();
        self.clock_rev += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exam::tests::attempt;

    #[test]
    fn a_late_start_is_cut_by_the_window() {
        let mut attempt = attempt();
        attempt.window_end = Some(Timestamp(attempt.started_at.0 + 20_000));
        assert_eq!(attempt.compute_deadline(), Some(Timestamp(attempt.started_at.0 + 20_000)));
        attempt.window_end = Some(Timestamp(attempt.started_at.0 + 90_000));
        assert_eq!(attempt.compute_deadline(), Some(Timestamp(attempt.started_at.0 + 60_000)));
        attempt.limit_ms = None;
        assert_eq!(attempt.compute_deadline(), attempt.window_end);
        attempt.window_end = None;
        assert_eq!(attempt.compute_deadline(), None);
    }

    #[test]
    fn a_pause_moves_the_deadline_by_exactly_its_length() {
        let mut attempt = attempt();
        let start = attempt.started_at;
        attempt.pause(Timestamp(start.0 + 10_000));
        assert_eq!(attempt.remaining_seconds(Timestamp(start.0 + 40_000)), 50);
        assert_eq!(attempt.closes_at(Duration::ZERO), None);
        attempt.resume(Timestamp(start.0 + 47_123));
        assert_eq!(attempt.deadline_at, Some(Timestamp(start.0 + 60_000 + 37_123)));
        attempt.extend(30);
        assert_eq!(attempt.deadline_at, Some(Timestamp(start.0 + 90_000 + 37_123)));
        assert_eq!(attempt.clock_rev, 4);
    }

    #[test]
    fn what_staff_end_is_closed_at_once() {
        let mut attempt = attempt();
        let start = attempt.started_at;
        let grace = Duration::from_secs(2);
        assert_eq!(attempt.closes_at(grace), Some(Timestamp(start.0 + 62_000)));
        attempt.forced_at = Some(Timestamp(start.0 + 5_000));
        assert_eq!(attempt.closes_at(grace), attempt.forced_at);
        attempt.pause(start);
        assert_eq!(attempt.closes_at(grace), attempt.forced_at);
    }
}
