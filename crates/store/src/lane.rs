//! The batching writer: commands of one lane share a transaction, and each is kept or undone by
//! itself.
//!
//! The writer lends the running transaction to one command at a time. What queued while the last
//! commit was in flight goes together, at most [`MAX_BATCH`]; nobody hears of success before the
//! COMMIT of the whole.

use std::time::{Duration, Instant};

use carillon_domain::{Refusal, TenantId};
use sqlx::{Postgres, Sqlite};
use tokio::sync::{
    mpsc::{self, error::TrySendError},
    oneshot,
};
use tokio_util::sync::CancellationToken;

use crate::{
    batch::{Batch, Known},
    connections::Connections,
    tx::{Conn, Held, on},
};

/// Commands of one batch.
const MAX_BATCH: usize = 64;
/// A batch that has run for so long takes in no more: those in it wait for its end, and so do other
/// nodes for the tenant's row, two seconds at most.
const LONG: Duration = Duration::from_millis(50);
/// Commands waiting for their turn; more are refused.
pub(crate) const MAX_WAITING: usize = 4_096;

/// Where a lane's commands queue.
#[derive(Clone)]
pub(crate) struct Lane {
    turns: mpsc::Sender<Turn>,
}

/// A command waiting for its turn.
type Turn = oneshot::Sender<Loan>;

/// Where a lane's transactions come from.
pub(crate) enum Source {
    /// All writes of an SQLite file.
    Sqlite(Connections<Sqlite>),
    /// The durable writes of one tenant.
    Postgres(Connections<Postgres>, TenantId),
}

/// The running transaction, lent to one command. Dropped, it goes back undone.
pub(crate) struct Loan {
    batch: Option<Box<Batch>>,
    back: Option<oneshot::Sender<Returned>>,
}

enum Returned {
    /// Keep what the command wrote and tell it when it is committed.
    Keep(Box<Batch>, oneshot::Sender<()>),
    Undo(Box<Batch>),
}

impl Lane {
    /// A lane, and the future that serves it until `stop`.
    pub(crate) fn new(source: Source, stop: CancellationToken) -> (Self, impl Future<Output = ()>) {
        let (turns, waiting) = mpsc::channel(MAX_WAITING);
        (Self { turns }, serve(source, waiting, stop))
    }

    /// Waits for this command's turn.
    pub(crate) async fn borrow(&self) -> Result<Loan, Refusal> {
        let (turn, loan) = oneshot::channel();
        self.turns.try_send(turn).map_err(|error| match error {
            TrySendError::Full(_) => Refusal::Busy { retry_after: Duration::from_secs(1) },
            TrySendError::Closed(_) => Refusal::Unavailable(None),
        })?;
        loan.await.map_err(|_| Refusal::Unavailable(None))
    }
}

impl Loan {
    pub(crate) fn batch(&mut self) -> &mut Batch {
        self.batch.as_mut().expect("present until it is given back")
    }

    /// Gives the transaction back and waits for its COMMIT.
    pub(crate) async fn commit(mut self) -> Result<(), Refusal> {
        let (committed, outcome) = oneshot::channel();
        if let (Some(batch), Some(back)) = (self.batch.take(), self.back.take()) {
            // Without the writer it is rolled back, and the outcome says so.
            drop(back.send(Returned::Keep(batch, committed)));
        }
        outcome.await.map_err(|_| Refusal::Unavailable(None))
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if let (Some(batch), Some(back)) = (self.batch.take(), self.back.take()) {
            drop(back.send(Returned::Undo(batch)));
        }
    }
}

async fn serve(source: Source, mut waiting: mpsc::Receiver<Turn>, stop: CancellationToken) {
    let mut known = Known::default();
    while let Some(Some(first)) = stop.run_until_cancelled(waiting.recv()).await {
        known = match run(&source, known, first, &mut waiting).await {
            // Nobody else writes to the file; to a tenant's rows of PostgreSQL other nodes do.
            Ok(known) if matches!(source, Source::Sqlite(_)) => known,
            Ok(_) => Known::default(),
            Err(error) => {
                // Everybody in the batch has been refused by the drop of their channel.
                tracing::warn!(error = %error, "a batch of writes was not committed");
                Known::default()
            }
        };
    }
}

async fn run(
    source: &Source,
    known: Known,
    first: Turn,
    waiting: &mut mpsc::Receiver<Turn>,
) -> Result<Known, sqlx::Error> {
    let mut batch = match begin(source, known).await {
        Ok(batch) => batch,
        Err(error) => {
            // The database is away: nobody who waits now is served by waiting longer.
            while waiting.try_recv().is_ok() {}
            return Err(error);
        }
    };
    let (mut committed, began) = (Vec::new(), Instant::now());
    let mut next = Some(first);
    for _ in 0..MAX_BATCH {
        let mut more = || if began.elapsed() < LONG { waiting.try_recv().ok() } else { None };
        let Some(turn) = next.take().or_else(&mut more) else { break };
        if turn.is_closed() {
            continue;
        }
        let told;
        (batch, told) = lend(batch, turn).await?;
        committed.extend(told);
    }
    let known = batch.commit().await?;
    for told in committed {
        // A command that was cancelled meanwhile does not listen; its rows stand all the same.
        let _ = told.send(());
    }
    Ok(known)
}

/// Lends the transaction to one command; what comes back is kept or undone.
async fn lend(
    mut batch: Box<Batch>,
    turn: Turn,
) -> Result<(Box<Batch>, Option<oneshot::Sender<()>>), sqlx::Error> {
    batch.next_command();
    let (back, returned) = oneshot::channel();
    // When the command is gone already, the loan is dropped here and comes back undone.
    drop(turn.send(Loan { batch: Some(batch), back: Some(back) }));
    match returned.await {
        Ok(Returned::Keep(batch, told)) => Ok((batch, Some(told))),
        Ok(Returned::Undo(mut batch)) => {
            batch.undo_command().await?;
            Ok((batch, None))
        }
        Err(_) => Err(sqlx::Error::WorkerCrashed),
    }
}

const TAKE: &str = "SELECT head FROM lanes WHERE tenant_id = $1 FOR UPDATE";
const MAKE: &str = "INSERT INTO lanes (tenant_id, head) VALUES ($1, 0) ON CONFLICT DO NOTHING";

async fn begin(source: &Source, known: Known) -> Result<Box<Batch>, sqlx::Error> {
    match source {
        Source::Sqlite(pool) => {
            let conn = Conn::Sqlite(pool.acquire().await?);
            Ok(Batch::new(Held::begun(conn, "BEGIN IMMEDIATE").await?, known).into())
        }
        Source::Postgres(pool, tenant) => {
            let mut held = Held::begun(Conn::Postgres(pool.acquire().await?), "BEGIN").await?;
            let mut head = take(&mut held, tenant).await?;
            if head.is_none() {
                on!(held.statement(), c => sqlx::query(MAKE)
                    .bind(tenant.as_str()).execute(c).await.map(|_| ()))?;
                head = take(&mut held, tenant).await?;
            }
            let known = head.map_or(known, |head| Known::head(tenant.clone(), head));
            Ok(Batch::new(held, known).into())
        }
    }
}

/// Takes the lane's row and reads its head; `None` when there is no row yet.
async fn take(held: &mut Held, tenant: &TenantId) -> Result<Option<i64>, sqlx::Error> {
    on!(held.statement(), c => sqlx::query_scalar(TAKE)
        .bind(tenant.as_str()).fetch_optional(c).await)
}
