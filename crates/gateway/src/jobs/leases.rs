//! The lease of what the whole cluster does once.
//!
//! There is one for all of it: whatever takes long is done in short transactions, and beside the
//! rest. It is asked for once a second, by every node. On SQLite that asks nobody.

use std::time::Duration;

use carillon_domain::ports::Lease;
use tokio::sync::watch;

use super::{every, report};
use crate::gateway::Gateway;

const PERIODIC: &str = "periodic";
/// Attempts are final within 12 s of their deadline, whatever has become of the holder:
///
/// | | killed | suspended in a transaction |
/// |---|---|---|
/// | due after the grace (2 s unless configured) and what is in flight | 2.5 s | 2.5 s |
/// | the lease has run out, and is asked for | 4 s | meanwhile |
/// | the statement that it waits for (`lock_timeout`), at worst | | 2 s |
/// | its transaction is ended (`idle_in_transaction_session_timeout`) | at once | 5 s |
/// | deadlines are looked at | 0.25 s | 0.25 s |
/// | | 6.75 s | 9.75 s |
const PERIOD: Duration = Duration::from_secs(3);
/// Renewed, or asked for, this often. A take that has waited in vain for a transaction of an earlier
/// holder is repeated at once.
const RENEWED: Duration = Duration::from_secs(1);

/// What keeps the lease.
pub(super) struct Keeper(watch::Sender<Option<Lease>>);

/// The lease, while this node has it.
pub(super) struct Held(watch::Receiver<Option<Lease>>);

pub(super) fn new() -> (Keeper, Held) {
    let (keeper, held) = watch::channel(None);
    (Keeper(keeper), Held(held))
}

impl Held {
    pub(super) fn lease(&self) -> Option<Lease> {
        *self.0.borrow()
    }
}

impl Keeper {
    /// Takes the lease when it can be had, and renews it. While the database is away nobody has it.
    pub(super) async fn keep(&self, gateway: &Gateway) {
        let domain = &gateway.domain;
        let mut was_away = false;
        let mut ticks = every(RENEWED);
        loop {
            ticks.tick().await;
            let taken = domain.store.take_lease(PERIODIC, domain.returning.node(), PERIOD).await;
            let lease = taken.as_ref().ok().copied().flatten();
            gateway.metrics.lease(PERIODIC, lease.is_some());
            if self.0.send_replace(lease) != lease {
                if let Some(Lease { name, fence }) = lease {
                    tracing::info!(lease.fence = fence, "holds the lease {name}");
                } else {
                    tracing::info!("holds the lease {PERIODIC} no more");
                }
            }
            was_away = report("the lease of periodic work", taken.map(|_| ()), was_away);
        }
    }

    /// Lets go of it: another node has it within a second.
    pub(super) async fn leave(&self, gateway: &Gateway) {
        let Some(lease) = self.0.send_replace(None) else { return };
        if gateway.domain.store.leave_lease(lease).await.is_err() {
            tracing::warn!("the lease {PERIODIC} could not be let go of; it runs out by itself");
        }
    }
}
