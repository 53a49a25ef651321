//! What failed a moment ago: the same token is not verified again, and who fails often under one
//! name loses the connection. Memory is bounded whoever asks; a token that is good is never
//! refused for what others did.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher as _, RandomState},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use carillon_domain::contract::Rate;
use sha2::{Digest as _, Sha256};

/// Tokens remembered; the oldest is forgotten first.
const MAX_TOKENS: usize = 8_192;
/// A token is remembered for this long.
const REMEMBERED: Duration = Duration::from_mins(1);
/// Claimed users share so many counters: two that share one are only cut off a little earlier.
const COUNTERS: usize = 4_096;

/// Half of a token's SHA-256.
type Print = [u8; 16];

pub struct Failures {
    tokens: Mutex<Tokens>,
    /// The period in the upper half, the failures in it in the lower.
    counters: Box<[AtomicU64]>,
    hasher: RandomState,
    began: Instant,
    rate: Rate,
}

#[derive(Default)]
struct Tokens {
    failed: HashMap<Print, Failed>,
    order: VecDeque<Print>,
}

struct Failed {
    at: Instant,
    /// Which keys it was tried with.
    generation: u64,
}

/// A token, as it is remembered.
#[derive(Clone, Copy)]
pub struct Fingerprint(Print);

impl Fingerprint {
    pub fn of(token: &str) -> Self {
        let mut print = [0; 16];
        print.copy_from_slice(&Sha256::digest(token.as_bytes())[..16]);
        Self(print)
    }
}

impl Failures {
    pub fn new(rate: Rate) -> Self {
        Self {
            tokens: Mutex::default(),
            counters: (0..COUNTERS).map(|_| AtomicU64::new(0)).collect(),
            hasher: RandomState::new(),
            began: Instant::now(),
            rate,
        }
    }

    /// Whether the token failed a moment ago, with the keys of now.
    pub fn knows(&self, token: Fingerprint, generation: u64) -> bool {
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.failed.get(&token.0).is_some_and(|failed| {
            failed.generation == generation && failed.at.elapsed() < REMEMBERED
        })
    }

    /// The token has failed, and will again while the keys are the same.
    pub fn remember(&self, token: Fingerprint, generation: u64) {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = Failed { at: Instant::now(), generation };
        if tokens.failed.insert(token.0, failed).is_none() {
            tokens.order.push_back(token.0);
        }
        if tokens.order.len() > MAX_TOKENS
            && let Some(oldest) = tokens.order.pop_front()
        {
            tokens.failed.remove(&oldest);
        }
    }

    /// Counts a failure under a name; true when there were too many in this period.
    pub fn count(&self, user: &str) -> bool {
        let period = self.period();
        let slot = usize::try_from(self.hasher.hash_one(user)).unwrap_or(0) % COUNTERS;
        let next = |counter: u64| {
            let in_period = if counter >> 32 == period { counter & 0xffff_ffff } else { 0 };
            (period << 32) | (in_period + 1).min(0xffff_ffff)
        };
        let before =
            self.counters[slot]
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |counter| Some(next(counter)));
        let count = next(before.unwrap_or_else(|counter| counter)) & 0xffff_ffff;
        count > u64::from(self.rate.count)
    }

    fn period(&self) -> u64 {
        let periods = self.began.elapsed().as_nanos() / self.rate.period.as_nanos().max(1);
        u64::try_from(periods).unwrap_or(u64::MAX) & 0xffff_ffff
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_failed_is_known_until_the_keys_change() {
        let failures = Failures::new(Rate::per_minute(30));
        let token = Fingerprint::of("a.b.c");
        assert!(!failures.knows(token, 1));
        failures.remember(token, 1);
        assert!(failures.knows(token, 1));
        assert!(!failures.knows(Fingerprint::of("a.b.d"), 1));
        assert!(!failures.knows(token, 2));
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_is_forgotten() {
        let failures = Failures::new(Rate::per_minute(30));
        for n in 0..=MAX_TOKENS {
            failures.remember(Fingerprint::of(&n.to_string()), 1);
        }
        assert!(!failures.knows(Fingerprint::of("0"), 1));
        assert!(failures.knows(Fingerprint::of("1"), 1));
        assert_eq!(failures.tokens.lock().unwrap().failed.len(), MAX_TOKENS);
    }

    #[test]
    fn failures_are_counted_by_claimed_user() {
        let failures = Failures::new(Rate { count: 3, period: Duration::from_hours(1) });
        assert_eq!([(); 5].map(|()| failures.count("ana")), [false, false, false, true, true]);
        assert!(!failures.count("ben"));
    }
}
