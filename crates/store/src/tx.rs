//! A place to run statements: a plain connection, a transaction, or a loan from a lane.

use async_trait::async_trait;
use carillon_domain::{
    Emit, Offset, Refusal, TenantId, Timestamp,
    ports::{OutboxReads, Published, Tx},
};
use sqlx::{PgConnection, Postgres, Sqlite, SqliteConnection, Transaction, pool::PoolConnection};

use crate::{error::refusal, lane::Loan, outbox};

/// A connection of either kind, taken from its pool.
pub(crate) enum Conn {
    Sqlite(PoolConnection<Sqlite>),
    Postgres(PoolConnection<Postgres>),
}

/// A connection of either kind, borrowed to run a statement.
pub(crate) enum ConnRef<'a> {
    Sqlite(&'a mut SqliteConnection),
    Postgres(&'a mut PgConnection),
}

impl Conn {
    pub(crate) fn borrow(&mut self) -> ConnRef<'_> {
        match self {
            Self::Sqlite(conn) => ConnRef::Sqlite(conn),
            Self::Postgres(conn) => ConnRef::Postgres(conn),
        }
    }

    /// Closes the connection at once: its state is not known, and asking might wait.
    pub(crate) fn discard(self) {
        match self {
            Self::Sqlite(conn) => drop(conn.detach()),
            Self::Postgres(conn) => drop(conn.detach()),
        }
    }
}

/// Runs one body against whichever database is open; each arm is checked with its own types.
macro_rules! on {
    ($conn:expr, $name:ident => $body:expr) => {
        match $conn {
            $crate::tx::ConnRef::Sqlite($name) => $body,
            $crate::tx::ConnRef::Postgres($name) => $body,
        }
    };
}
pub(crate) use on;

/// What implements the ports.
pub(crate) enum SqlTx {
    /// Every statement by itself.
    Plain(Conn),
    /// A transaction of its own, rolled back when dropped.
    Own(Transaction<'static, Postgres>),
    /// A savepoint in the running batch, rolled back when dropped.
    Loan(Loan),
}

impl SqlTx {
    pub(crate) fn conn(&mut self) -> ConnRef<'_> {
        match self {
            Self::Plain(conn) => conn.borrow(),
            Self::Own(transaction) => ConnRef::Postgres(transaction),
            Self::Loan(loan) => loan.conn(),
        }
    }
}

#[async_trait]
impl Tx for SqlTx {
    async fn publish(
        &mut self,
        tenant: &TenantId,
        now: Timestamp,
        events: &[&Emit],
    ) -> Result<Offset, Refusal> {
        outbox::publish(self.conn(), tenant, now, events).await.map_err(refusal)
    }

    async fn commit(self: Box<Self>) -> Result<(), Refusal> {
        match *self {
            Self::Plain(_) => Ok(()),
            Self::Own(transaction) => transaction.commit().await.map_err(refusal),
            Self::Loan(loan) => loan.commit().await,
        }
    }
}

#[async_trait]
impl OutboxReads for SqlTx {
    async fn head(&mut self, tenant: &TenantId) -> Result<Offset, Refusal> {
        outbox::head(self.conn(), tenant).await.map_err(refusal)
    }

    async fn heads(&mut self) -> Result<Vec<(TenantId, Offset)>, Refusal> {
        outbox::heads(self.conn()).await.map_err(refusal)
    }

    async fn published_after(
        &mut self,
        tenant: &TenantId,
        after: Offset,
        limit: u32,
    ) -> Result<Vec<Published>, Refusal> {
        outbox::published_after(self.conn(), tenant, after, limit).await
    }
}
