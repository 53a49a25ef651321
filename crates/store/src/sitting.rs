//! What is added to running attempts: answers, entries of their journals, how far they have come.
//! A whole school that saves its answers is thousands of small writes a second; each is numbered and
//! checked when it is made. On `SQLite` those of a batch are written together; for `PostgreSQL`
//! see [`crate::together`].

use std::{collections::BTreeMap, mem::take};

use carillon_domain::{
    TenantId, Timestamp,
    exam::{Answer, Attempt, journal::JournalRow},
    ids::AttemptId,
};

use crate::{
    rows::Rows,
    time::Time,
    tx::{Held, on},
};

static PUT: Rows = Rows::new(
    "INSERT INTO exam_answers
        (tenant_id, session_id, question, answer, version, received_at, late) VALUES",
    0,
    7,
    " ON CONFLICT (tenant_id, session_id, question) DO UPDATE SET
        answer = excluded.answer, version = excluded.version,
        received_at = excluded.received_at, late = excluded.late",
);
pub(crate) static APPEND_JOURNAL: Rows = Rows::new(
    "INSERT INTO exam_journal (tenant_id, session_id, seq, at, kind, actor, body, hash) VALUES",
    0,
    8,
    "",
);
static ADVANCE: Rows = Rows::new(
    "UPDATE exam_sessions SET current_question = v.column3, last_activity = v.column4,
        journal_len = v.column5, journal_head = v.column6 FROM (VALUES",
    0,
    6,
    ") v WHERE exam_sessions.tenant_id = v.column1 AND exam_sessions.id = v.column2",
);

/// What waits to be written, the oldest first.
#[derive(Default)]
pub(crate) struct Sittings {
    pub(crate) answers: Vec<(Of, Put)>,
    pub(crate) journal: Vec<(Of, JournalRow)>,
    pub(crate) progress: Vec<(Of, Progress)>,
}

/// How much there is of each.
#[derive(Clone, Copy, Default)]
pub(crate) struct Mark {
    answers: usize,
    journal: usize,
    progress: usize,
}

/// Whose, and of which attempt.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Of(pub(crate) TenantId, pub(crate) AttemptId);

/// An answer, as JSON.
pub(crate) struct Put {
    pub(crate) question: i64,
    pub(crate) text: String,
    pub(crate) version: i64,
    pub(crate) received_at: Timestamp,
    pub(crate) late: bool,
}

pub(crate) struct Progress {
    pub(crate) current_question: i64,
    pub(crate) last_activity: Timestamp,
    pub(crate) journal_len: i64,
    pub(crate) journal_head: String,
}

impl Sittings {
    pub(crate) fn mark(&self) -> Mark {
        let Self { answers, journal, progress } = self;
        Mark { answers: answers.len(), journal: journal.len(), progress: progress.len() }
    }

    /// Takes back what came after the mark.
    pub(crate) fn truncate(&mut self, mark: Mark) {
        self.answers.truncate(mark.answers);
        self.journal.truncate(mark.journal);
        self.progress.truncate(mark.progress);
    }

    /// What came before the mark; the rest stays.
    pub(crate) fn before(&mut self, mark: Mark) -> Self {
        let mut before = take(self);
        self.answers = before.answers.split_off(mark.answers);
        self.journal = before.journal.split_off(mark.journal);
        self.progress = before.progress.split_off(mark.progress);
        before
    }

    /// The text and the version of an answer, if it waits.
    pub(crate) fn answer(
        &self,
        tenant: &TenantId,
        attempt: &AttemptId,
        question: i64,
    ) -> Option<(&str, i64)> {
        let is_meant = |(of, put): &&(Of, Put)| {
            put.question == question && of.1 == *attempt && of.0 == *tenant
        };
        self.answers.iter().rev().find(is_meant).map(|(_, put)| (&*put.text, put.version))
    }

    pub(crate) fn put(
        &mut self,
        tenant: &TenantId,
        attempt: &AttemptId,
        question: i64,
        text: String,
        answer: &Answer,
    ) {
        let Answer { version, received_at, late, .. } = *answer;
        let put = Put { question, text, version, received_at, late };
        self.answers.push((Of(tenant.clone(), attempt.clone()), put));
    }

    pub(crate) fn append(&mut self, tenant: &TenantId, rows: &[(AttemptId, JournalRow)]) {
        let rows =
            rows.iter().map(|(attempt, row)| (Of(tenant.clone(), attempt.clone()), row.clone()));
        self.journal.extend(rows);
    }

    pub(crate) fn advance(&mut self, tenant: &TenantId, attempt: &Attempt) {
        let progress = Progress {
            current_question: attempt.current_question,
            last_activity: attempt.last_activity,
            journal_len: attempt.journal_len,
            journal_head: attempt.journal_head.clone(),
        };
        self.progress.push((Of(tenant.clone(), attempt.id.clone()), progress));
    }

    /// Brings an attempt that was read to where it stands.
    pub(crate) fn bring_up_to_date(&self, tenant: &TenantId, attempt: &mut Attempt) {
        let is_meant = |(of, _): &&(Of, Progress)| of.1 == attempt.id && of.0 == *tenant;
        if let Some((_, progress)) = self.progress.iter().rev().find(is_meant) {
            attempt.current_question = progress.current_question;
            attempt.last_activity = progress.last_activity;
            attempt.journal_len = progress.journal_len;
            attempt.journal_head.clone_from(&progress.journal_head);
        }
    }

    /// Writes all of it.
    pub(crate) async fn write(self, held: &mut Held) -> Result<(), sqlx::Error> {
        let kind = held.statement().kind();
        // The latest of each counts.
        let answers: BTreeMap<_, _> =
            self.answers.iter().map(|(of, put)| ((of, put.question), put)).collect();
        let answers: Vec<_> = answers.into_iter().collect();
        for (statement, part) in PUT.parts(kind, &answers) {
            on!(held.statement(), c => {
                let mut query = sqlx::query(statement);
                for ((Of(tenant, attempt), question), put) in part {
                    query = query.bind(tenant.as_str()).bind(attempt.as_str()).bind(*question)
                        .bind(&put.text).bind(put.version).bind(Time(put.received_at))
                        .bind(put.late);
                }
                query.execute(c).await.map(|_| ())
            })?;
        }
        for (statement, part) in APPEND_JOURNAL.parts(kind, &self.journal) {
            on!(held.statement(), c => {
                let mut query = sqlx::query(statement);
                for (Of(tenant, attempt), row) in part {
                    query = query.bind(tenant.as_str()).bind(attempt.as_str()).bind(row.seq)
                        .bind(Time(row.at)).bind(&row.kind).bind(&row.actor).bind(&row.body)
                        .bind(&row.hash);
                }
                query.execute(c).await.map(|_| ())
            })?;
        }
        let progress: BTreeMap<_, _> = self.progress.iter().map(|(of, to)| (of, to)).collect();
        let progress: Vec<_> = progress.into_iter().collect();
        for (statement, part) in ADVANCE.parts(kind, &progress) {
            on!(held.statement(), c => {
                let mut query = sqlx::query(statement);
                for (Of(tenant, attempt), to) in part {
                    query = query.bind(tenant.as_str()).bind(attempt.as_str())
                        .bind(to.current_question).bind(Time(to.last_activity))
                        .bind(to.journal_len).bind(&to.journal_head);
                }
                query.execute(c).await.map(|_| ())
            })?;
        }
        Ok(())
    }
}
