//! What commands add to running attempts on `PostgreSQL`. A transaction with its locks would be six
//! ways to the database and back for one answer, and a commit; here a command reads without a lock,
//! and what it adds is written by one statement, together with what others add at the same time,
//! unless the attempt has changed since it was read.

use std::{collections::HashSet, time::Duration};

use carillon_domain::{
    Refusal, TenantId,
    exam::{Attempt, journal::JournalRow},
    ids::AttemptId,
};
use sqlx::Postgres;
use tokio::sync::{
    mpsc::{self, error::TrySendError},
    oneshot,
};
use tokio_util::sync::CancellationToken;

use crate::{
    connections::Connections,
    error::refusal,
    lane::MAX_WAITING,
    sitting::{Of, Progress, Put, Sittings},
    time::Time,
    tx::{Conn, ConnRef, Held, Statement, within},
};

/// Attempts of one statement.
const MOST: usize = 64;
/// A statement that has as many bytes takes in no more: whole exams of essays come at once, too.
const LARGE: usize = 256 * 1024;

/// Writes what is added to those attempts whose journal still has the head it had, and says which.
/// Whatever an answer is judged by is in the journal, so its head tells of every change.
macro_rules! add {
    ($locked:literal) => {
        concat!(
            "WITH locked AS (
                SELECT new.* FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[],
                    $5::timestamptz[], $6::bigint[], $7::text[])
                    new (tenant_id, id, was, question, activity, len, head)
                JOIN exam_sessions s ON s.tenant_id = new.tenant_id AND s.id = new.id
                WHERE s.journal_head = new.was FOR UPDATE OF s",
            $locked,
            "), moved AS (
                UPDATE exam_sessions s SET current_question = new.question,
                    last_activity = new.activity, journal_len = new.len, journal_head = new.head
                FROM locked new WHERE s.tenant_id = new.tenant_id AND s.id = new.id
                RETURNING new.tenant_id, new.id),
            put AS (
                INSERT INTO exam_answers
                    (tenant_id, session_id, question, answer, version, received_at, late)
                SELECT new.* FROM moved JOIN unnest($8::text[], $9::text[], $10::bigint[],
                    $11::text[], $12::bigint[], $13::timestamptz[], $14::boolean[])
                    new (tenant_id, id, question, answer, version, received_at, late)
                ON moved.tenant_id = new.tenant_id AND moved.id = new.id
                ON CONFLICT (tenant_id, session_id, question) DO UPDATE SET
                    answer = excluded.answer, version = excluded.version,
                    received_at = excluded.received_at, late = excluded.late),
            noted AS (
                INSERT INTO exam_journal (tenant_id, session_id, seq, at, kind, actor, body, hash)
                SELECT new.* FROM moved JOIN unnest($15::text[], $16::text[], $17::bigint[],
                    $18::timestamptz[], $19::text[], $20::text[], $21::text[], $22::text[])
                    new (tenant_id, id, seq, at, kind, actor, body, hash)
                ON moved.tenant_id = new.tenant_id AND moved.id = new.id)
            SELECT tenant_id, id FROM moved"
        )
    };
}
/// Who holds a lock keeps nobody waiting but those who want the same.
const ADD_MANY: &str = add!(" SKIP LOCKED");
const ADD_ONE: &str = add!("");

/// One command that adds to an attempt.
pub(crate) struct Sitting {
    held: Held,
    line: Line,
    /// The head of the journal when the attempt was read.
    head: Option<String>,
    pub(crate) added: Sittings,
}

/// Where what is added queues.
#[derive(Clone)]
pub(crate) struct Line {
    connections: Connections<Postgres>,
    waiting: mpsc::Sender<Waiting>,
}

struct Waiting {
    addition: Box<Addition>,
    /// Told what was not written.
    told: oneshot::Sender<Option<Box<Addition>>>,
}

/// What one command adds.
struct Addition {
    of: Of,
    was: String,
    progress: Progress,
    answers: Vec<Put>,
    journal: Vec<JournalRow>,
}

impl Sitting {
    pub(crate) fn statement(&mut self) -> Statement<'_> {
        self.held.statement()
    }

    pub(crate) fn has_read(&mut self, attempt: &Attempt) {
        self.head = Some(attempt.journal_head.clone());
    }

    /// Writes what was added; [`Refusal::Outdated`] when the attempt is not as it was read.
    pub(crate) async fn commit(self) -> Result<(), Refusal> {
        let Self { held, line, head, added: Sittings { answers, journal, mut progress } } = self;
        // Others can have the connection meanwhile.
        drop(held);
        match (progress.pop(), head) {
            (Some((of, progress)), Some(was)) => {
                let answers = answers.into_iter().map(|(_, put)| put).collect();
                let journal = journal.into_iter().map(|(_, row)| row).collect();
                line.write(Addition { of, was, progress, answers, journal }.into()).await
            }
            _ if answers.is_empty() && journal.is_empty() => Ok(()),
            _ => Err(Refusal::internal("an answer without the attempt it belongs to")),
        }
    }
}

impl Line {
    /// A line, and the future that serves it until `stop`.
    pub(crate) fn new(
        connections: Connections<Postgres>,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()>) {
        let (sender, waiting) = mpsc::channel(MAX_WAITING);
        let served = serve(connections.clone(), waiting, stop);
        (Self { connections, waiting: sender }, served)
    }

    /// A command that reads by this connection.
    pub(crate) fn begin(&self, held: Held) -> Sitting {
        Sitting { held, line: self.clone(), head: None, added: Sittings::default() }
    }

    async fn write(&self, addition: Box<Addition>) -> Result<(), Refusal> {
        let (told, outcome) = oneshot::channel();
        self.waiting.try_send(Waiting { addition, told }).map_err(|error| match error {
            TrySendError::Full(_) => Refusal::Busy { retry_after: Duration::from_secs(1) },
            TrySendError::Closed(_) => Refusal::Unavailable(None),
        })?;
        let Some(left) = outcome.await.map_err(|_| Refusal::Unavailable(None))? else {
            return Ok(());
        };
        // It may only have been locked; now it waits.
        let written = add(&self.connections, ADD_ONE, &[&left]).await.map_err(refusal)?;
        if written.is_empty() { Err(Refusal::Outdated) } else { Ok(()) }
    }
}

/// What queues while a statement is on its way goes together with the next.
async fn serve(
    connections: Connections<Postgres>,
    mut waiting: mpsc::Receiver<Waiting>,
    stop: CancellationToken,
) {
    while let Some(Some(first)) = stop.run_until_cancelled(waiting.recv()).await {
        let batch = gather(first, &mut waiting);
        if batch.is_empty() {
            continue;
        }
        let additions: Vec<&Addition> = batch.iter().map(|one| &*one.addition).collect();
        match add(&connections, ADD_MANY, &additions).await {
            Ok(written) => {
                for one in batch {
                    if written.contains(&one.addition.of) {
                        // A command that was cancelled meanwhile does not listen; it is written all
                        // the same.
                        let _ = one.told.send(None);
                    } else {
                        one.give_back();
                    }
                }
            }
            // One of them may be what the database does not take.
            Err(sqlx::Error::Database(_)) => batch.into_iter().for_each(Waiting::give_back),
            // Nobody knows whether it was written: all are refused by the drop of their channel.
            Err(error) => tracing::warn!(error = %error, "answers were not written"),
        }
    }
}

/// What goes together: of each attempt what came first.
fn gather(first: Waiting, waiting: &mut mpsc::Receiver<Waiting>) -> Vec<Waiting> {
    let (mut batch, mut seen) = (Vec::new(), HashSet::new());
    let (mut next, mut bytes) = (Some(first), 0);
    while batch.len() < MOST
        && bytes < LARGE
        && let Some(one) = next.take().or_else(|| waiting.try_recv().ok())
    {
        if one.told.is_closed() {
            continue;
        }
        // Of two for one attempt the second finds it changed.
        if seen.insert(one.addition.of.clone()) {
            bytes += one.addition.bytes();
            batch.push(one);
        } else {
            one.give_back();
        }
    }
    batch
}

impl Addition {
    /// About as many as it has.
    fn bytes(&self) -> usize {
        let answers: usize = self.answers.iter().map(|put| put.text.len()).sum();
        answers + self.journal.iter().map(|row| row.body.len()).sum::<usize>()
    }
}

impl Waiting {
    fn give_back(self) {
        let _ = self.told.send(Some(self.addition));
    }
}

/// Says to which attempts was added.
async fn add(
    connections: &Connections<Postgres>,
    statement: &'static str,
    additions: &[&Addition],
) -> Result<HashSet<Of>, sqlx::Error> {
    let answers: Vec<(&Of, &Put)> =
        additions.iter().flat_map(|one| one.answers.iter().map(|put| (&one.of, put))).collect();
    let journal: Vec<(&Of, &JournalRow)> =
        additions.iter().flat_map(|one| one.journal.iter().map(|row| (&one.of, row))).collect();
    let mut held = Held::from(Conn::Postgres(connections.acquire().await?));
    let Statement { conn: ConnRef::Postgres(c), condition } = held.statement() else {
        return Err(sqlx::Error::Configuration("only PostgreSQL has arrays".into()));
    };
    let query = sqlx::query_as(statement)
        .bind(column(additions, |one| one.of.0.as_str()))
        .bind(column(additions, |one| one.of.1.as_str()))
        .bind(column(additions, |one| &*one.was))
        .bind(column(additions, |one| one.progress.current_question))
        .bind(column(additions, |one| Time(one.progress.last_activity)))
        .bind(column(additions, |one| one.progress.journal_len))
        .bind(column(additions, |one| &*one.progress.journal_head))
        .bind(column(&answers, |(of, _)| of.0.as_str()))
        .bind(column(&answers, |(of, _)| of.1.as_str()))
        .bind(column(&answers, |(_, put)| put.question))
        .bind(column(&answers, |(_, put)| &*put.text))
        .bind(column(&answers, |(_, put)| put.version))
        .bind(column(&answers, |(_, put)| Time(put.received_at)))
        .bind(column(&answers, |(_, put)| put.late))
        .bind(column(&journal, |(of, _)| of.0.as_str()))
        .bind(column(&journal, |(of, _)| of.1.as_str()))
        .bind(column(&journal, |(_, row)| row.seq))
        .bind(column(&journal, |(_, row)| Time(row.at)))
        .bind(column(&journal, |(_, row)| &*row.kind))
        .bind(column(&journal, |(_, row)| &*row.actor))
        .bind(column(&journal, |(_, row)| &*row.body))
        .bind(column(&journal, |(_, row)| &*row.hash));
    let written: Vec<(String, String)> = within(condition, query.fetch_all(c)).await?;
    let of = |(tenant, attempt): (String, String)| {
        let invalid = |error| sqlx::Error::Decode(Box::new(error));
        Ok(Of(TenantId::new(tenant).map_err(invalid)?, AttemptId::new(attempt).map_err(invalid)?))
    };
    written.into_iter().map(of).collect()
}

/// One column of rows.
fn column<T, V>(rows: &[T], of: impl Fn(&T) -> V) -> Vec<V> {
    rows.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use carillon_domain::Timestamp;

    use super::*;

    /// An essay of that many bytes for an attempt, and who waits for it.
    fn essay(attempt: &str, bytes: usize) -> (Waiting, oneshot::Receiver<Option<Box<Addition>>>) {
        let of = Of(TenantId::new("t").unwrap(), AttemptId::new(attempt).unwrap());
        let at = Timestamp(0);
        let (journal_head, text) = (String::new(), "x".repeat(bytes));
        let progress =
            Progress { current_question: 0, last_activity: at, journal_len: 1, journal_head };
        let put = Put { question: 0, text, version: 1, received_at: at, late: false };
        let (was, answers, journal) = (String::new(), vec![put], Vec::new());
        let addition = Addition { of, was, progress, answers, journal }.into();
        let (told, outcome) = oneshot::channel();
        (Waiting { addition, told }, outcome)
    }

    #[test]
    fn so_much_goes_together_as_a_statement_can_take() {
        let (sender, mut waiting) = mpsc::channel(MAX_WAITING);
        let mut outcomes = Vec::new();
        let mut queue = |attempt: &str, bytes| {
            let (one, outcome) = essay(attempt, bytes);
            outcomes.push(outcome);
            sender.try_send(one).ok().unwrap();
        };
        for at in 0..3 {
            queue(&format!("large-{at}"), LARGE / 2);
        }
        for at in 0..MOST {
            queue(&format!("small-{at}"), 1);
        }
        let mut sizes = Vec::new();
        while let Ok(first) = waiting.try_recv() {
            sizes.push(gather(first, &mut waiting).len());
        }
        assert_eq!(sizes, [2, MOST, 1]);
    }

    #[test]
    fn of_one_attempt_the_second_is_given_back_and_who_is_gone_is_left_out() {
        let (sender, mut waiting) = mpsc::channel(MAX_WAITING);
        let ((first, _waits), (again, mut given_back)) = (essay("ana", 1), essay("ana", 1));
        let ((gone, _), (other, _waits_too)) = (essay("ben", 1), essay("cat", 1));
        for one in [again, gone, other] {
            sender.try_send(one).ok().unwrap();
        }
        let batch = gather(first, &mut waiting);
        let of: Vec<&str> = batch.iter().map(|one| one.addition.of.1.as_str()).collect();
        assert_eq!(of, ["ana", "cat"]);
        assert!(given_back.try_recv().unwrap().is_some());
    }
}
