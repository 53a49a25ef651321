//! The batching writer: commands of one lane share a transaction, each under its savepoint.
//!
//! The writer lends the running transaction to one command at a time. What queued while the last
//! commit was in flight goes together, at most [`MAX_BATCH`]; nobody hears of success before the
//! COMMIT of the whole.

use std::time::Duration;

use carillon_domain::{Refusal, TenantId};
use sqlx::{PgPool, SqlitePool};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::tx::{Conn, ConnRef, on};

/// Commands of one batch.
const MAX_BATCH: usize = 64;
/// Commands waiting for their turn; more are refused.
const MAX_WAITING: usize = 4_096;
/// A statement of the writer's own that takes longer has lost its database. Below the 3 s within
/// which every operation is answered.
const PATIENCE: Duration = Duration::from_millis(2_500);

/// Where a lane's commands queue.
#[derive(Clone)]
pub(crate) struct Lane {
    seats: mpsc::Sender<Seat>,
}

/// A command waiting for its turn.
type Seat = oneshot::Sender<Loan>;

/// Where a lane's transactions come from.
pub(crate) enum Source {
    /// All writes of an SQLite file.
    Sqlite(SqlitePool),
    /// The durable writes of one tenant.
    Postgres(PgPool, TenantId),
}

/// The running transaction, lent to one command. Dropped, it goes back undone.
pub(crate) struct Loan {
    conn: Option<Conn>,
    back: Option<oneshot::Sender<Returned>>,
}

enum Returned {
    /// Keep what the command wrote and tell it when it is committed.
    Keep(Conn, oneshot::Sender<()>),
    Undo(Conn),
}

impl Lane {
    /// A lane, and the future that serves it until `stop`.
    pub(crate) fn new(source: Source, stop: CancellationToken) -> (Self, impl Future<Output = ()>) {
        let (seats, waiting) = mpsc::channel(MAX_WAITING);
        (Self { seats }, serve(source, waiting, stop))
    }

    /// Waits for this command's turn.
    pub(crate) async fn borrow(&self) -> Result<Loan, Refusal> {
        let (seat, turn) = oneshot::channel();
        self.seats
            .try_send(seat)
            .map_err(|_| Refusal::Busy { retry_after: Duration::from_secs(1) })?;
        turn.await.map_err(|_| Refusal::Unavailable(None))
    }
}

impl Loan {
    pub(crate) fn conn(&mut self) -> ConnRef<'_> {
        self.conn.as_mut().expect("present until it is given back").borrow()
    }

    /// Gives the transaction back and waits for its COMMIT.
    pub(crate) async fn commit(mut self) -> Result<(), Refusal> {
        let (committed, outcome) = oneshot::channel();
        if let (Some(conn), Some(back)) = (self.conn.take(), self.back.take())
            && let Err(Returned::Keep(conn, _) | Returned::Undo(conn)) =
                back.send(Returned::Keep(conn, committed))
        {
            conn.discard();
        }
        outcome.await.map_err(|_| Refusal::Unavailable(None))
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if let (Some(conn), Some(back)) = (self.conn.take(), self.back.take())
            && let Err(Returned::Keep(conn, _) | Returned::Undo(conn)) =
                back.send(Returned::Undo(conn))
        {
            conn.discard();
        }
    }
}

async fn serve(source: Source, mut waiting: mpsc::Receiver<Seat>, stop: CancellationToken) {
    while let Some(Some(first)) = stop.run_until_cancelled(waiting.recv()).await {
        if let Err(error) = batch(&source, first, &mut waiting).await {
            // Everybody in the batch has been refused by the drop of their channel.
            tracing::warn!(error = %error, "a batch of writes was not committed");
        }
    }
}

async fn batch(
    source: &Source,
    first: Seat,
    waiting: &mut mpsc::Receiver<Seat>,
) -> Result<(), sqlx::Error> {
    let mut conn = match patiently(begin(source)).await {
        Ok(conn) => conn,
        Err(error) => {
            // The database is away: nobody who waits now is served by waiting longer.
            while waiting.try_recv().is_ok() {}
            return Err(error);
        }
    };
    let mut committed = Vec::new();
    let mut next = Some(first);
    for _ in 0..MAX_BATCH {
        let Some(seat) = next.take().or_else(|| waiting.try_recv().ok()) else { break };
        if seat.is_closed() {
            continue;
        }
        conn = match lend(conn, seat).await? {
            (conn, Some(told)) => {
                committed.push(told);
                conn
            }
            (conn, None) => conn,
        };
    }
    // Statements that fail leave the connection in a state nobody knows: it is discarded.
    run(conn, "COMMIT").await?;
    for told in committed {
        // A command that was cancelled meanwhile does not listen; its rows stand all the same.
        let _ = told.send(());
    }
    Ok(())
}

/// Lends the transaction to one command under a savepoint; what comes back is kept or undone.
async fn lend(conn: Conn, seat: Seat) -> Result<(Conn, Option<oneshot::Sender<()>>), sqlx::Error> {
    let conn = run(conn, "SAVEPOINT command").await?;
    let (back, returned) = oneshot::channel();
    let loan = Loan { conn: Some(conn), back: Some(back) };
    // When the command is gone already, the loan is dropped here and comes back undone.
    drop(seat.send(loan));
    match returned.await {
        Ok(Returned::Keep(conn, told)) => {
            Ok((run(conn, "RELEASE SAVEPOINT command").await?, Some(told)))
        }
        Ok(Returned::Undo(conn)) => {
            let conn = run(conn, "ROLLBACK TO SAVEPOINT command").await?;
            Ok((run(conn, "RELEASE SAVEPOINT command").await?, None))
        }
        Err(_) => Err(sqlx::Error::WorkerCrashed),
    }
}

async fn begin(source: &Source) -> Result<Conn, sqlx::Error> {
    match source {
        Source::Sqlite(pool) => run(Conn::Sqlite(pool.acquire().await?), "BEGIN IMMEDIATE").await,
        Source::Postgres(pool, tenant) => {
            const TAKE: &str = "SELECT head FROM lanes WHERE tenant_id = $1 FOR UPDATE";
            const MAKE: &str =
                "INSERT INTO lanes (tenant_id, head) VALUES ($1, 0) ON CONFLICT DO NOTHING";
            let mut conn = run(Conn::Postgres(pool.acquire().await?), "BEGIN").await?;
            if let Conn::Postgres(conn) = &mut conn {
                let take = || sqlx::query_scalar::<_, i64>(TAKE).bind(tenant.as_str().to_owned());
                if take().fetch_optional(&mut **conn).await?.is_none() {
                    sqlx::query(MAKE).bind(tenant.as_str()).execute(&mut **conn).await?;
                    take().fetch_one(&mut **conn).await?;
                }
            }
            Ok(conn)
        }
    }
}

/// Runs a statement; a connection on which it fails is closed rather than used again.
async fn run(mut conn: Conn, statement: &'static str) -> Result<Conn, sqlx::Error> {
    let result = patiently(async {
        on!(conn.borrow(), c => sqlx::query(statement).execute(c).await.map(|_| ()))
    });
    match result.await {
        Ok(()) => Ok(conn),
        Err(error) => {
            conn.discard();
            Err(error)
        }
    }
}

async fn patiently<T>(
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    timeout(PATIENCE, work).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
}
