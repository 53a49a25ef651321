//! A place to run statements: a connection by itself or in a transaction, or a loan from a lane.

use std::time::Duration;

use async_trait::async_trait;
use carillon_domain::{
    Emit, Offset, Refusal, TenantId, Timestamp,
    ports::{OutboxReads, Published, Tx},
};
use sqlx::{
    Executor as _, PgConnection, Postgres, Sqlite, SqliteConnection, postgres::PgDatabaseError,
};
use tokio::{runtime::Handle, time::timeout};

use crate::{
    batch::Batch, connections::Lent, error::refusal, lane::Loan, outbox, together::Sitting,
};

/// A statement that takes longer has lost its database. Below the 3 s within which every
/// operation is answered.
const PATIENCE: Duration = Duration::from_millis(2_500);

/// Runs one body against whichever database is open; each arm is checked with its own types.
macro_rules! on {
    ($statement:expr, $name:ident => $body:expr) => {{
        let statement = $statement;
        match statement.conn {
            $crate::tx::ConnRef::Sqlite($name) => {
                $crate::tx::within(statement.condition, async { $body }).await
            }
            $crate::tx::ConnRef::Postgres($name) => {
                $crate::tx::within(statement.condition, async { $body }).await
            }
        }
    }};
}
pub(crate) use on;

/// A connection of either kind, taken from its pool.
pub(crate) enum Conn {
    Sqlite(Lent<Sqlite>),
    Postgres(Lent<Postgres>),
}

/// A connection while it is used. It goes back to its pool only in a state that is known: one
/// whose statement did not end is closed, an open transaction is rolled back first.
pub(crate) struct Held {
    conn: Option<Conn>,
    condition: Condition,
    in_transaction: bool,
}

/// What is known of a connection after its last statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    Sound,
    /// PostgreSQL has refused a statement, and runs no more of its transaction until that is taken
    /// back. Its COMMIT would be a ROLLBACK, and no error.
    Refused,
    /// A statement did not end.
    Unknown,
}

/// A connection borrowed for one statement.
pub(crate) struct Statement<'a> {
    pub(crate) conn: ConnRef<'a>,
    pub(crate) condition: &'a mut Condition,
}

pub(crate) enum ConnRef<'a> {
    Sqlite(&'a mut SqliteConnection),
    Postgres(&'a mut PgConnection),
}

/// Which database it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Postgres,
    Sqlite,
}

impl Statement<'_> {
    pub(crate) fn kind(&self) -> Kind {
        match self.conn {
            ConnRef::Sqlite(_) => Kind::Sqlite,
            ConnRef::Postgres(_) => Kind::Postgres,
        }
    }
}

impl From<Conn> for Held {
    fn from(conn: Conn) -> Self {
        Self { conn: Some(conn), condition: Condition::Sound, in_transaction: false }
    }
}

impl Held {
    pub(crate) fn statement(&mut self) -> Statement<'_> {
        let conn = match self.conn.as_mut().expect("present until it is dropped") {
            Conn::Sqlite(conn) => ConnRef::Sqlite(conn),
            Conn::Postgres(conn) => ConnRef::Postgres(conn),
        };
        Statement { conn, condition: &mut self.condition }
    }

    pub(crate) async fn run(&mut self, statement: &'static str) -> Result<(), sqlx::Error> {
        on!(self.statement(), c => sqlx::query(statement).execute(c).await.map(|_| ()))
    }

    /// Two statements on one way to the database. PostgreSQL prepares no more than one.
    pub(crate) async fn run_both(&mut self, statements: &'static str) -> Result<(), sqlx::Error> {
        match self.statement() {
            Statement { conn: ConnRef::Sqlite(_), .. } => self.run(statements).await,
            Statement { conn: ConnRef::Postgres(c), condition } => {
                within(condition, async { c.execute(sqlx::raw_sql(statements)).await.map(|_| ()) })
                    .await
            }
        }
    }

    /// A connection in a transaction, begun by that statement.
    pub(crate) async fn begun(conn: Conn, begin: &'static str) -> Result<Self, sqlx::Error> {
        let mut held = Self { conn: Some(conn), condition: Condition::Sound, in_transaction: true };
        held.run(begin).await?;
        Ok(held)
    }

    /// Fails where a statement has failed and was not taken back.
    pub(crate) fn goes_on(&self) -> Result<(), sqlx::Error> {
        if self.condition == Condition::Sound {
            return Ok(());
        }
        Err(sqlx::Error::Protocol("a statement of the transaction has failed".into()))
    }

    pub(crate) async fn commit(mut self) -> Result<(), sqlx::Error> {
        if self.in_transaction {
            self.goes_on()?;
            self.run("COMMIT").await?;
            self.in_transaction = false;
        }
        Ok(())
    }
}

impl Held {
    /// Closes the connection instead of using it again.
    fn discard(mut self) {
        self.condition = Condition::Unknown;
        drop(self);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(conn) = self.conn.take() else { return };
        let is_known = self.condition != Condition::Unknown;
        match (is_known, self.in_transaction, Handle::try_current()) {
            (true, false, _) => drop(conn),
            (true, true, Ok(runtime)) => {
                let mut held = Self::from(conn);
                runtime.spawn(async move {
                    if held.run("ROLLBACK").await.is_err() {
                        held.discard();
                    }
                });
            }
            _ => match conn {
                Conn::Sqlite(conn) => conn.discard(),
                Conn::Postgres(conn) => conn.discard(),
            },
        }
    }
}

/// Waits for one statement, and notes how it ended.
pub(crate) async fn within<T>(
    condition: &mut Condition,
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    let before = std::mem::replace(condition, Condition::Unknown);
    let result = timeout(PATIENCE, statement).await.map_err(|_| {
        let late = std::io::Error::new(std::io::ErrorKind::TimedOut, "the database is silent");
        sqlx::Error::Io(late)
    })?;
    *condition = match &result {
        Ok(_) => Condition::Sound,
        Err(sqlx::Error::Io(_) | sqlx::Error::Protocol(_)) => Condition::Unknown,
        Err(sqlx::Error::Database(error))
            if error.try_downcast_ref::<PgDatabaseError>().is_some() =>
        {
            Condition::Refused
        }
        Err(_) => before,
    };
    result
}

/// What implements the ports.
pub(crate) enum SqlTx {
    /// Statements by themselves, or a transaction of its own.
    Held(Held),
    /// A savepoint in the running batch, rolled back when dropped.
    Loan(Loan),
    /// What is added to one attempt, each statement by itself.
    Sitting(Sitting),
}

impl SqlTx {
    /// For a statement of any kind.
    pub(crate) async fn conn(&mut self) -> Result<Statement<'_>, Refusal> {
        match self {
            Self::Held(held) => Ok(held.statement()),
            Self::Loan(loan) => Ok(loan.batch().direct().await.map_err(refusal)?.statement()),
            Self::Sitting(sitting) => Ok(sitting.statement()),
        }
    }

    /// For a statement that only reads, and neither messages nor what counts them: it does not
    /// make those that wait be written first.
    pub(crate) fn peek(&mut self) -> Statement<'_> {
        match self {
            Self::Held(held) => held.statement(),
            Self::Loan(loan) => loan.batch().peek(),
            Self::Sitting(sitting) => sitting.statement(),
        }
    }

    /// What the lane's batch has not written yet; only commands in the lane have that.
    pub(crate) fn batch(&mut self) -> Result<&mut Batch, Refusal> {
        match self {
            Self::Loan(loan) => Ok(loan.batch()),
            _ => Err(Refusal::internal("a durable write outside the lane")),
        }
    }

    pub(crate) fn kind(&mut self) -> Kind {
        self.peek().kind()
    }

    pub(crate) fn is_sqlite(&mut self) -> bool {
        self.kind() == Kind::Sqlite
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
        self.batch()?.publish(tenant, now, events).await
    }

    async fn forget_published(&mut self, before: Timestamp, limit: u32) -> Result<u64, Refusal> {
        outbox::forget(self.conn().await?, before, limit).await.map_err(refusal)
    }

    async fn commit(self: Box<Self>) -> Result<(), Refusal> {
        match *self {
            Self::Held(held) => held.commit().await.map_err(refusal),
            Self::Loan(loan) => loan.commit().await,
            // Large, and part of every commit if it were not kept elsewhere.
            Self::Sitting(sitting) => Box::pin(sitting.commit()).await,
        }
    }
}

#[async_trait]
impl OutboxReads for SqlTx {
    async fn head(&mut self, tenant: &TenantId) -> Result<Offset, Refusal> {
        match self {
            Self::Loan(loan) => loan.batch().head(tenant).await.map(Offset),
            Self::Held(_) | Self::Sitting(_) => outbox::head(self.peek(), tenant).await,
        }
        .map_err(refusal)
    }

    async fn heads(&mut self) -> Result<Vec<(TenantId, Offset)>, Refusal> {
        outbox::heads(self.peek()).await.map_err(refusal)
    }

    async fn published_after(
        &mut self,
        tenant: &TenantId,
        after: Offset,
        limit: u32,
    ) -> Result<Vec<Published>, Refusal> {
        outbox::published_after(self.peek(), tenant, after, limit).await
    }
}
