//! Rate limits: one bucket per user and class of commands, across all of the user's sockets.

use std::{collections::HashMap, num::NonZeroU32, time::Duration};

use carillon_domain::{
    Caller, TenantId, UserId,
    contract::{Class, Rate},
    ports::Admission,
};
use governor::{
    Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
    state::keyed::DefaultKeyedStateStore,
};

use crate::config::Config;

type Key = (TenantId, UserId);
type Buckets = RateLimiter<Key, DefaultKeyedStateStore<Key>, DefaultClock>;

/// A rate as a bucket: full at first, and full again after a period.
pub fn quota(rate: Rate) -> Quota {
    let count = NonZeroU32::new(rate.count).unwrap_or(NonZeroU32::MIN);
    let replenish = rate.period / count.get();
    Quota::with_period(replenish.max(Duration::from_nanos(1)))
        .unwrap_or(Quota::per_second(count))
        .allow_burst(count)
}

/// The buckets of this node.
pub struct Limiter {
    clock: DefaultClock,
    classes: HashMap<Class, Buckets>,
}

impl Limiter {
    pub fn new(config: &Config) -> Self {
        let buckets = |class| RateLimiter::keyed(quota(config.rate(class)));
        Self {
            clock: DefaultClock::default(),
            classes: Class::ALL.iter().map(|class| (*class, buckets(*class))).collect(),
        }
    }

    /// Forgets users whose buckets are full again.
    pub fn forget(&self) {
        for buckets in self.classes.values() {
            buckets.retain_recent();
            buckets.shrink_to_fit();
        }
    }
}

impl Admission for Limiter {
    fn admit(&self, caller: &Caller, class: Class) -> Result<(), Duration> {
        let Some(buckets) = self.classes.get(&class) else { return Ok(()) };
        let key = (caller.tenant.clone(), caller.user.clone());
        buckets.check_key(&key).map_err(|until| until.wait_time_from(self.clock.now()))
    }
}
