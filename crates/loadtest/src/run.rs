//! What all members of a run share: its schedule, its counters, its latencies.

use std::{
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use hdrhistogram::{CreationError, Histogram};

use crate::process::{Processes, Reading, Used};

/// Latencies from 1 µs to a minute, to three digits.
const MAX_LATENCY_MICROSECONDS: u64 = 60_000_000;

/// When things happen.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    pub start: Instant,
    /// The end of the warm-up.
    pub measured: Instant,
    pub end: Instant,
}

/// Microseconds from the instant a message was to be sent.
pub struct Latencies {
    pub reply: Histogram<u64>,
    pub delivery: Histogram<u64>,
    /// How late the generator itself was.
    pub sending: Histogram<u64>,
}

impl Latencies {
    fn new() -> Result<Self, CreationError> {
        let histogram = || Histogram::new_with_bounds(1, MAX_LATENCY_MICROSECONDS, 3);
        Ok(Self { reply: histogram()?, delivery: histogram()?, sending: histogram()? })
    }
}

/// One run of the scenario.
pub struct Run {
    pub epoch: Instant,
    pub schedule: OnceLock<Schedule>,
    pub sent: Counter,
    pub acknowledged: Counter,
    pub refused: Counter,
    /// With several nodes, those that crossed from one to another.
    pub delivered: Counter,
    /// Deliveries on the node that was written to, where there are others.
    pub near: Counter,
    /// Every other frame.
    pub other: Counter,
    latencies: Mutex<Latencies>,
}

/// Counts up; read by the progress line.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn increment(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl Run {
    pub fn new() -> Result<Self, CreationError> {
        Ok(Self {
            epoch: Instant::now(),
            schedule: OnceLock::new(),
            sent: Counter::default(),
            acknowledged: Counter::default(),
            refused: Counter::default(),
            delivered: Counter::default(),
            near: Counter::default(),
            other: Counter::default(),
            latencies: Mutex::new(Latencies::new()?),
        })
    }

    pub fn latencies(&self) -> MutexGuard<'_, Latencies> {
        self.latencies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the time since a message was to be sent, if that lies in what is measured. Where
    /// the message ends up does not matter: a late one after the end is as late as it is.
    pub fn record(&self, intended: Instant, of: fn(&mut Latencies) -> &mut Histogram<u64>) {
        let Some(schedule) = self.schedule.get() else { return };
        if (schedule.measured..schedule.end).contains(&intended) {
            let microseconds = u64::try_from(intended.elapsed().as_micros()).unwrap_or(u64::MAX);
            of(&mut self.latencies()).saturating_record(microseconds);
        }
    }

    /// Everything counted, and the CPU time used, up to now.
    pub fn count(&self, server: Option<&Processes>) -> anyhow::Result<Count> {
        Ok(Count {
            acknowledged: self.acknowledged.get(),
            delivered: self.delivered.get(),
            other: self.other.get(),
            reading: Reading::now(server)?,
        })
    }
}

/// The counters at an instant.
#[derive(Clone, Copy, Debug)]
pub struct Count {
    acknowledged: u64,
    delivered: u64,
    other: u64,
    reading: Reading,
}

/// What was counted between two instants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    pub acknowledged: u64,
    pub delivered: u64,
    pub other: u64,
    pub used: Used,
}

impl Count {
    pub fn since(&self, before: &Self) -> Span {
        Span {
            acknowledged: self.acknowledged - before.acknowledged,
            delivered: self.delivered - before.delivered,
            other: self.other - before.other,
            used: self.reading.since(&before.reading),
        }
    }
}

/// A count divided by something; 0 where there is nothing to divide by.
pub fn per(count: u64, of: f64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "counts of a load test stay below 2^52")]
    let count = count as f64;
    if of > 0.0 { count / of } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn run(measured: Duration, end: Duration) -> Run {
        let run = Run::new().unwrap();
        let start = run.epoch;
        let schedule = Schedule { start, measured: start + measured, end: start + end };
        run.schedule.set(schedule).unwrap();
        run
    }

    #[test]
    fn only_what_was_to_be_sent_while_measuring_is_recorded() {
        let run = run(Duration::from_secs(1), Duration::from_secs(2));
        for milliseconds in [0, 999, 1_000, 1_999, 2_000] {
            run.record(run.epoch + Duration::from_millis(milliseconds), |l| &mut l.delivery);
        }
        assert_eq!(run.latencies().delivery.len(), 2);
    }

    #[test]
    fn a_span_is_what_came_between_two_counts() {
        let run = run(Duration::ZERO, Duration::ZERO);
        run.delivered.increment();
        let before = run.count(None).unwrap();
        run.delivered.increment();
        run.acknowledged.increment();
        let span = run.count(None).unwrap().since(&before);
        assert_eq!((span.acknowledged, span.delivered, span.other), (1, 1, 0));
        assert_eq!(span.used.server_cpu_seconds, None);
    }
}
