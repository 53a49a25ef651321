//! Who does what the whole cluster does once.

use std::time::Duration;

use async_trait::async_trait;

use super::{Result, Store, Tx};
use crate::{contract::Scope, ids::TenantId};

/// What a run of the server holds until its time is up: what is named by it is done by nobody else.
/// A run that was stopped in between does not notice; the fence does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    pub name: &'static str,
    /// Higher with every holder that is not the one before.
    pub fence: i64,
}

impl Lease {
    /// A transaction of the holder's: refused when the lease is another's by now, and until it ends
    /// the lease becomes nobody else's.
    pub async fn begin(
        self,
        store: &dyn Store,
        tenant: &TenantId,
        scope: Scope,
    ) -> Result<Box<dyn Tx>> {
        let mut tx = store.begin(tenant, scope).await?;
        tx.check_lease(self).await?;
        Ok(tx)
    }
}

#[async_trait]
pub trait Leases: Send + Sync {
    /// Takes the lease for a run of the server, or renews it, for so long by the database's clock;
    /// `None` while it is another's. Whoever takes it from another waits for their running
    /// transactions.
    async fn take_lease(
        &self,
        name: &'static str,
        holder: &str,
        period: Duration,
    ) -> Result<Option<Lease>>;
    /// Lets go of it: anybody may take it at once.
    async fn leave_lease(&self, lease: Lease) -> Result<()>;
}

#[async_trait]
pub trait LeaseChecks: Send {
    /// See [`Lease::begin`].
    async fn check_lease(&mut self, lease: Lease) -> Result<()>;
}
