//! Leases: which node does what the whole cluster does once.
//!
//! On SQLite the process has the file by itself, locked for as long as it lives (`open.rs`), and with
//! it every lease: nothing is asked and nothing is written.

use std::time::Duration;

use async_trait::async_trait;
use carillon_domain::{
    Refusal,
    ports::{Lease, LeaseChecks, Leases},
};

use crate::{
    error::refusal,
    open::SqlStore,
    tx::{ConnRef, SqlTx, Statement, on, within},
};

/// A plain UPDATE locks no row that it does not change: `INSERT … ON CONFLICT DO UPDATE` would, and
/// every node would wait for the holder's transactions, every time. Of a row that is changed, its
/// values decide: the holder's own transactions hold up a new fence, and not a renewal.
/// Where two make the row at one instant, either of its keys may tell the second one.
const TAKE: &str = "WITH
    taken AS (UPDATE leases SET holder = $2, fence = fence + (holder <> $2)::int,
            expires_at = clock_timestamp() + $3 * interval '1 millisecond'
        WHERE name = $1 AND (holder = $2 OR expires_at <= clock_timestamp()) RETURNING fence),
    made AS (INSERT INTO leases (name, holder, fence, expires_at)
        VALUES ($1, $2, 1, clock_timestamp() + $3 * interval '1 millisecond')
        ON CONFLICT DO NOTHING RETURNING fence)
    SELECT fence FROM taken UNION ALL SELECT fence FROM made";
const LEAVE: &str =
    "UPDATE leases SET expires_at = clock_timestamp() WHERE name = $1 AND fence = $2";
const CHECK: &str = "SELECT fence FROM leases WHERE name = $1 AND fence = $2 FOR KEY SHARE";

#[async_trait]
impl Leases for SqlStore {
    async fn take_lease(
        &self,
        name: &'static str,
        holder: &str,
        period: Duration,
    ) -> Result<Option<Lease>, Refusal> {
        if !self.is_shared() {
            return Ok(Some(Lease { name, fence: 0 }));
        }
        let ms = i64::try_from(period.as_millis()).unwrap_or(i64::MAX);
        // One statement is a transaction of its own.
        let mut conn = self.reader().await?;
        let fence = on!(conn.conn().await?, c => sqlx::query_scalar(TAKE)
            .bind(name).bind(holder).bind(ms).fetch_optional(c).await)
        .map_err(refusal)?;
        Ok(fence.map(|fence| Lease { name, fence }))
    }

    async fn leave_lease(&self, lease: Lease) -> Result<(), Refusal> {
        if !self.is_shared() {
            return Ok(());
        }
        let mut conn = self.reader().await?;
        on!(conn.conn().await?, c => sqlx::query(LEAVE)
            .bind(lease.name).bind(lease.fence).execute(c).await.map(|_| ()))
        .map_err(refusal)
    }
}

#[async_trait]
impl LeaseChecks for SqlTx {
    async fn check_lease(&mut self, lease: Lease) -> Result<(), Refusal> {
        let Statement { conn: ConnRef::Postgres(conn), condition } = self.peek() else {
            return Ok(());
        };
        let check = sqlx::query_scalar::<_, i64>(CHECK).bind(lease.name).bind(lease.fence);
        let held = within(condition, check.fetch_optional(conn)).await.map_err(refusal)?;
        held.map(|_| ()).ok_or_else(|| Refusal::unavailable("the lease is another's by now"))
    }
}
