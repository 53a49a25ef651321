//! Exams, papers, attempts, answers, journals and results.

use std::{collections::HashMap, slice};

use async_trait::async_trait;
use carillon_domain::{
    Refusal, TenantId, Timestamp, UserId,
    exam::{
        Answer, Attempt, AttemptStatus, EndedBy, Exam, ExamResult, Part, Release,
        grade::{Awards, Marks},
        journal::JournalRow,
        paper::Points,
        results::Due,
    },
    ids::{AttemptId, ExamId, ResultId},
    ports::{ExamReads, ExamWrites},
};
use serde::de::DeserializeOwned;

use crate::{
    error::refusal,
    rows::Rows,
    sitting::{APPEND_JOURNAL, Sittings},
    time::Time,
    tx::{SqlTx, on},
};

macro_rules! exam_columns {
    ($before:literal, $after:literal) => {
        concat!(
            $before,
            " id, title, topic, duration_ms, opens_at, closes_at, attempts_allowed, shuffle,
             release, shows_scores, for_everyone, by_any_staff, paper_version, closed_at,
             released_at, created_at, updated_at ",
            $after
        )
    };
}
const EXAM: &str = exam_columns!("SELECT", "FROM exams WHERE tenant_id = $1 AND id = $2");
const EXAMS: &str =
    exam_columns!("SELECT", "FROM exams WHERE tenant_id = $1 AND id > $2 ORDER BY id LIMIT $3");
const SAVE_EXAM: &str = exam_columns!(
    "INSERT INTO exams (tenant_id,",
    ") VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)
    ON CONFLICT (tenant_id, id) DO UPDATE SET
        title = excluded.title, topic = excluded.topic, duration_ms = excluded.duration_ms,
        opens_at = excluded.opens_at, closes_at = excluded.closes_at,
        attempts_allowed = excluded.attempts_allowed, shuffle = excluded.shuffle,
        release = excluded.release, shows_scores = excluded.shows_scores,
        for_everyone = excluded.for_everyone, by_any_staff = excluded.by_any_staff,
        paper_version = excluded.paper_version, closed_at = excluded.closed_at,
        released_at = excluded.released_at, updated_at = excluded.updated_at"
);
const PAPER: &str = "SELECT questions FROM exam_papers
    WHERE tenant_id = $1 AND exam_id = $2 AND version = $3";
const INSERT_PAPER: &str = "INSERT INTO exam_papers
    (tenant_id, exam_id, version, questions, created_at) VALUES ($1, $2, $3, $4, $5)";
const PART: &str = "SELECT user_id, part FROM exam_people
    WHERE tenant_id = $1 AND exam_id = $2 AND user_id = COALESCE($3, user_id) ORDER BY user_id";
macro_rules! review_staff {
    ($now:literal) => {
        concat!(
            "INSERT INTO user_changes (tenant_id, user_id, changed_at)
             SELECT tenant_id, user_id, ",
            $now,
            " FROM (
                SELECT tenant_id, user_id FROM exam_people
                WHERE tenant_id = $1 AND exam_id = $2 AND part = 'staff'
                UNION SELECT tenant_id, id FROM users
                WHERE $3 AND tenant_id = $1 AND role IN ('MENTOR', 'PROCTOR')) staff"
        )
    };
}
const REVIEW_STAFF_SQLITE: &str = review_staff!("CAST(unixepoch('subsec') * 1000 AS INTEGER)");
const REVIEW_STAFF_POSTGRES: &str = review_staff!("clock_timestamp()");
const FORGET_PEOPLE: &str = "DELETE FROM exam_people WHERE tenant_id = $1 AND exam_id = $2";
const FORGET_PERSON: &str = "DELETE FROM exam_people
    WHERE tenant_id = $1 AND exam_id = $2 AND user_id = $3";
const LIST_PEOPLE_SQLITE: &str = "INSERT INTO exam_people (tenant_id, exam_id, user_id, part)
    SELECT $1, $2, value, $4 FROM json_each($3) WHERE TRUE ON CONFLICT DO NOTHING";
const LIST_PEOPLE_POSTGRES: &str = "INSERT INTO exam_people (tenant_id, exam_id, user_id, part)
    SELECT $1, $2, jsonb_array_elements_text($3::jsonb), $4 ON CONFLICT DO NOTHING";

macro_rules! attempt_columns {
    ($before:literal, $after:expr) => {
        concat!(
            $before,
            " id, exam_id, user_id, user_name, attempt_no, paper_version, question_order, status,
             current_question, started_at, limit_ms, window_end, extra_ms, paused_ms, paused_at,
             deadline_at, clock_rev, forced_at, last_activity, left_at, completed_at, ended_by,
             journal_len, journal_head ",
            $after
        )
    };
}
const ATTEMPT: &str =
    attempt_columns!("SELECT", "FROM exam_sessions WHERE tenant_id = $1 AND id = $2");
const THESE: &str =
    attempt_columns!("SELECT", "FROM exam_sessions WHERE tenant_id = $1 AND id IN (");
static LOCK_SQLITE: Rows = Rows::list(THESE, 1, ") ORDER BY id");
static LOCK_POSTGRES: Rows = Rows::list(THESE, 1, ") ORDER BY id FOR UPDATE");
const ATTEMPTS: &str = attempt_columns!(
    "SELECT",
    "FROM exam_sessions WHERE tenant_id = $1 AND exam_id = $2 AND id > $3
       AND user_id = COALESCE($5, user_id) ORDER BY id LIMIT $4"
);
const NEWEST: &str = attempt_columns!(
    "SELECT",
    "FROM exam_sessions WHERE tenant_id = $1 AND exam_id = $2 AND user_id = $3
     ORDER BY attempt_no DESC LIMIT 1"
);
const RUNNING: &str = attempt_columns!(
    "SELECT",
    "FROM exam_sessions WHERE tenant_id = $1 AND exam_id = $2 AND status <> 'COMPLETED'
     ORDER BY id"
);
const INSERT_ATTEMPT: &str = attempt_columns!(
    "INSERT INTO exam_sessions (tenant_id,",
    ") VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18,
        $19, $20, $21, $22, $23, $24, $25)
    ON CONFLICT (tenant_id, exam_id, user_id, attempt_no) DO NOTHING"
);
const SAVE_ATTEMPT: &str = "UPDATE exam_sessions SET
        status = $3, current_question = $4, extra_ms = $5, paused_ms = $6, paused_at = $7,
        deadline_at = $8, clock_rev = $9, forced_at = $10, last_activity = $11, left_at = $12,
        completed_at = $13, ended_by = $14, journal_len = $15, journal_head = $16
    WHERE tenant_id = $1 AND id = $2";
/// SQLite writes an index anew for every column that is set, whether it changes or not.
const SAVE_PROGRESS: &str = "UPDATE exam_sessions SET
        current_question = $3, last_activity = $4, journal_len = $5, journal_head = $6
    WHERE tenant_id = $1 AND id = $2";
const RUNNING_OF: &str = "SELECT exam_id FROM exam_sessions
    WHERE tenant_id = $1 AND user_id = $2 AND status <> 'COMPLETED' AND left_at IS NULL";
const HAS_BEGUN: &str = "SELECT EXISTS (SELECT 1 FROM exam_sessions
    WHERE tenant_id = $1 AND exam_id = $2 AND user_id = $3 AND status <> 'COMPLETED')";
const DUE: &str = "SELECT tenant_id, id FROM exam_sessions
    WHERE status = 'IN_PROGRESS' AND set_aside_at IS NULL AND deadline_at < $1
    ORDER BY deadline_at LIMIT $2";
const FORCED: &str = "SELECT tenant_id, id FROM exam_sessions
    WHERE status <> 'COMPLETED' AND forced_at IS NOT NULL AND set_aside_at IS NULL
    ORDER BY forced_at LIMIT $1";
const SET_ASIDE: &str = "UPDATE exam_sessions SET set_aside_at = $3
    WHERE tenant_id = $1 AND id = $2";

static ANSWERS: Rows = Rows::list(
    "SELECT session_id, question, answer, version, received_at, late FROM exam_answers
     WHERE tenant_id = $1 AND session_id IN (",
    1,
    ") ORDER BY question",
);
const PUT_ANSWER: &str = "INSERT INTO exam_answers
        (tenant_id, session_id, question, answer, version, received_at, late)
    VALUES ($1, $2, $3, $4, 1, $5, $6)
    ON CONFLICT (tenant_id, session_id, question) DO UPDATE SET
        answer = excluded.answer, version = exam_answers.version + 1,
        received_at = excluded.received_at, late = excluded.late
    WHERE exam_answers.answer <> excluded.answer
    RETURNING version";
const STORED: &str = "SELECT answer, version FROM exam_answers
    WHERE tenant_id = $1 AND session_id = $2 AND question = $3";
const ANSWER_VERSION: &str = "SELECT version FROM exam_answers
    WHERE tenant_id = $1 AND session_id = $2 AND question = $3";

const JOURNAL: &str = "SELECT seq, at, kind, actor, body, hash FROM exam_journal
    WHERE tenant_id = $1 AND session_id = $2 AND seq > $3 ORDER BY seq LIMIT $4";

macro_rules! result_columns {
    ($before:literal, $after:literal) => {
        concat!(
            $before,
            " id, exam_id, user_id, session_id, attempt_no, score, total_questions, answers,
             points, max_points, pending_review, awards, revision, key_version, completed_at,
             released_at, journal_len, journal_head ",
            $after
        )
    };
}
const RESULT: &str =
    result_columns!("SELECT", "FROM exam_results WHERE tenant_id = $1 AND id = $2");
const RESULT_OF_ATTEMPT: &str =
    result_columns!("SELECT", "FROM exam_results WHERE tenant_id = $1 AND session_id = $2");
const RESULTS: &str = result_columns!(
    "SELECT",
    "FROM exam_results WHERE tenant_id = $1 AND exam_id = $2 AND id > $3
       AND user_id = COALESCE($5, user_id) ORDER BY id LIMIT $4"
);
static INSERT_RESULT: Rows =
    Rows::new(result_columns!("INSERT INTO exam_results (tenant_id,", ") VALUES"), 1, 18, "");
const SAVE_REGRADED: &str = "UPDATE exam_results SET
        score = $3, points = $4, max_points = $5, pending_review = $6, revision = $7,
        key_version = $8, journal_len = $9, journal_head = $10, regrade_at = NULL
    WHERE tenant_id = $1 AND id = $2";
const SAVE_AWARDS: &str = "UPDATE exam_results SET awards = $3 WHERE tenant_id = $1 AND id = $2";
const RELEASE_EXAM: &str = "UPDATE exams SET released_at = COALESCE(released_at, $3),
    updated_at = $3 WHERE tenant_id = $1 AND id = $2";
const RELEASE_RESULT: &str = "UPDATE exam_results SET released_at = $3
    WHERE tenant_id = $1 AND id = $2 AND released_at IS NULL";
const ASK_REGRADE: &str = "UPDATE exam_results SET regrade_at = $3
    WHERE tenant_id = $1 AND exam_id = $2 AND user_id = COALESCE($4, user_id)";
const TO_REGRADE: &str = "SELECT tenant_id, id FROM exam_results
    WHERE regrade_at IS NOT NULL ORDER BY regrade_at LIMIT $1";
const TO_RELEASE: &str = "SELECT r.tenant_id, r.id FROM exams e
    JOIN exam_results r ON r.tenant_id = e.tenant_id AND r.exam_id = e.id
    WHERE e.released_at IS NOT NULL AND r.released_at IS NULL LIMIT $1";
const EXAMS_TO_RELEASE: &str = "SELECT e.tenant_id, e.id FROM exams e
    WHERE e.release = 'after_close' AND e.released_at IS NULL
      AND (e.closed_at IS NOT NULL OR e.closes_at < $1)
      AND NOT EXISTS (SELECT 1 FROM exam_sessions s WHERE s.tenant_id = e.tenant_id
          AND s.exam_id = e.id AND s.status <> 'COMPLETED' AND s.set_aside_at IS NULL)
    LIMIT $2";

const SERVER_KEY: &str = "INSERT INTO server_keys (name, value) VALUES ($1, $2)
    ON CONFLICT (name) DO UPDATE SET value = server_keys.value RETURNING value";

/// A column that holds JSON.
fn json<T: DeserializeOwned>(column: &str, text: &str) -> Result<T, Refusal> {
    serde_json::from_str(text)
        .map_err(|error| Refusal::internal(format!("{column} is not readable: {error}")))
}

fn to_json(value: &impl serde::Serialize) -> Result<String, Refusal> {
    serde_json::to_string(value).map_err(Refusal::internal)
}

fn unknown(column: &str, value: &str) -> Refusal {
    Refusal::internal(format!("{column} holds the unknown value {value:?}"))
}

#[derive(sqlx::FromRow)]
#[expect(clippy::struct_excessive_bools, reason = "columns")]
struct ExamRow {
    id: String,
    title: String,
    topic: Option<String>,
    duration_ms: Option<i64>,
    opens_at: Option<Time>,
    closes_at: Option<Time>,
    attempts_allowed: i64,
    shuffle: bool,
    release: String,
    shows_scores: bool,
    for_everyone: bool,
    by_any_staff: bool,
    paper_version: i64,
    closed_at: Option<Time>,
    released_at: Option<Time>,
    created_at: Time,
    updated_at: Time,
}

impl ExamRow {
    fn exam(self) -> Result<Exam, Refusal> {
        Ok(Exam {
            id: ExamId::new(self.id).map_err(Refusal::internal)?,
            title: self.title,
            topic: self.topic,
            duration_ms: self.duration_ms,
            opens_at: self.opens_at.map(Timestamp::from),
            closes_at: self.closes_at.map(Timestamp::from),
            attempts_allowed: self.attempts_allowed,
            shuffle: self.shuffle,
            release: Release::parse(&self.release)
                .ok_or_else(|| unknown("exams.release", &self.release))?,
            shows_scores: self.shows_scores,
            for_everyone: self.for_everyone,
            by_any_staff: self.by_any_staff,
            paper_version: self.paper_version,
            closed_at: self.closed_at.map(Timestamp::from),
            released_at: self.released_at.map(Timestamp::from),
            created_at: self.created_at.into(),
            updated_at: self.updated_at.into(),
        })
    }
}

#[derive(sqlx::FromRow)]
struct AttemptRow {
    id: String,
    exam_id: String,
    user_id: String,
    user_name: String,
    attempt_no: i64,
    paper_version: i64,
    question_order: Option<String>,
    status: String,
    current_question: i64,
    started_at: Time,
    limit_ms: Option<i64>,
    window_end: Option<Time>,
    extra_ms: i64,
    paused_ms: i64,
    paused_at: Option<Time>,
    deadline_at: Option<Time>,
    clock_rev: i64,
    forced_at: Option<Time>,
    last_activity: Time,
    left_at: Option<Time>,
    completed_at: Option<Time>,
    ended_by: Option<String>,
    journal_len: i64,
    journal_head: String,
}

impl AttemptRow {
    fn attempt(self) -> Result<Attempt, Refusal> {
        let order = self.question_order.as_deref();
        let ended_by = self.ended_by.as_deref();
        Ok(Attempt {
            id: AttemptId::new(self.id).map_err(Refusal::internal)?,
            exam: ExamId::new(self.exam_id).map_err(Refusal::internal)?,
            user: UserId::new(self.user_id).map_err(Refusal::internal)?,
            user_name: self.user_name,
            number: self.attempt_no,
            paper_version: self.paper_version,
            order: order.map(|text| json("exam_sessions.question_order", text)).transpose()?,
            status: AttemptStatus::parse(&self.status)
                .ok_or_else(|| unknown("exam_sessions.status", &self.status))?,
            current_question: self.current_question,
            started_at: self.started_at.into(),
            limit_ms: self.limit_ms,
            window_end: self.window_end.map(Timestamp::from),
            extra_ms: self.extra_ms,
            paused_ms: self.paused_ms,
            paused_at: self.paused_at.map(Timestamp::from),
            deadline_at: self.deadline_at.map(Timestamp::from),
            clock_rev: self.clock_rev,
            forced_at: self.forced_at.map(Timestamp::from),
            last_activity: self.last_activity.into(),
            left_at: self.left_at.map(Timestamp::from),
            completed_at: self.completed_at.map(Timestamp::from),
            ended_by: ended_by
                .map(|by| EndedBy::parse(by).ok_or_else(|| unknown("exam_sessions.ended_by", by)))
                .transpose()?,
            journal_len: self.journal_len,
            journal_head: self.journal_head,
        })
    }
}

#[derive(sqlx::FromRow)]
struct ResultRow {
    id: String,
    exam_id: String,
    user_id: String,
    session_id: String,
    attempt_no: i64,
    score: i64,
    total_questions: i64,
    answers: String,
    points: i64,
    max_points: i64,
    pending_review: bool,
    awards: String,
    revision: i64,
    key_version: i64,
    completed_at: Time,
    released_at: Option<Time>,
    journal_len: i64,
    journal_head: String,
}

impl ResultRow {
    fn result(self) -> Result<ExamResult, Refusal> {
        Ok(ExamResult {
            id: ResultId::new(self.id).map_err(Refusal::internal)?,
            exam: ExamId::new(self.exam_id).map_err(Refusal::internal)?,
            user: UserId::new(self.user_id).map_err(Refusal::internal)?,
            attempt: AttemptId::new(self.session_id).map_err(Refusal::internal)?,
            attempt_number: self.attempt_no,
            marks: Marks {
                right: self.score,
                questions: self.total_questions,
                points: Points(self.points),
                max_points: Points(self.max_points),
                pending_review: self.pending_review,
            },
            answers: json("exam_results.answers", &self.answers)?,
            awards: json("exam_results.awards", &self.awards)?,
            revision: self.revision,
            key_version: self.key_version,
            completed_at: self.completed_at.into(),
            released_at: self.released_at.map(Timestamp::from),
            journal_len: self.journal_len,
            journal_head: self.journal_head,
        })
    }
}

/// Of which attempt, the question, the answer, its version, when it was received, and whether late.
type AnswerRow = (String, i64, String, i64, Time, bool);

/// Rows of a tenant's id and one of its objects'.
fn pairs<T>(
    rows: Vec<(String, String)>,
    id: impl Fn(String) -> Result<T, carillon_domain::ids::InvalidId>,
) -> Result<Vec<(TenantId, T)>, Refusal> {
    rows.into_iter()
        .map(|(tenant, of)| Ok((TenantId::new(tenant)?, id(of)?)))
        .collect::<Result<_, carillon_domain::ids::InvalidId>>()
        .map_err(Refusal::internal)
}

impl SqlTx {
    /// A statement that locks what it reads: on `PostgreSQL` it says so, on `SQLite` a transaction
    /// that writes is alone anyway. A sitting locks nothing.
    fn locking(&mut self, statement: &'static str) -> sqlx::AssertSqlSafe<String> {
        let locks = !self.is_sqlite() && !matches!(self, Self::Sitting(_));
        sqlx::AssertSqlSafe(if locks {
            format!("{statement} FOR UPDATE")
        } else {
            statement.to_owned()
        })
    }

    /// What waits of running attempts, where it may: `SQLite` has one writer, so nobody else can
    /// have changed them meanwhile, and a sitting looks when it is written.
    fn sittings(&mut self) -> Option<&mut Sittings> {
        let is_sqlite = self.is_sqlite();
        match self {
            Self::Loan(loan) => is_sqlite.then(|| loan.batch().sittings()),
            Self::Sitting(sitting) => Some(&mut sitting.added),
            Self::Held(_) => None,
        }
    }

    /// As [`ExamWrites::put_answer`], written with the batch or the sitting.
    async fn put_later(
        &mut self,
        tenant: &TenantId,
        attempt: &AttemptId,
        question: i64,
        text: String,
        answer: &mut Answer,
    ) -> Result<bool, Refusal> {
        let waiting = self.sittings().and_then(|of| {
            of.answer(tenant, attempt, question).map(|(text, version)| (text.to_owned(), version))
        });
        let stored: Option<(String, i64)> = match waiting {
            Some(waiting) => Some(waiting),
            None => on!(self.peek(), c => sqlx::query_as(STORED)
                .bind(tenant.as_str()).bind(attempt.as_str()).bind(question)
                .fetch_optional(c).await)
            .map_err(refusal)?,
        };
        let is_new = stored.as_ref().is_none_or(|(stored, _)| *stored != text);
        answer.version = stored.map_or(0, |(_, version)| version) + i64::from(is_new);
        if let Some(sittings) = self.sittings().filter(|_| is_new) {
            sittings.put(tenant, attempt, question, text, answer);
        }
        Ok(is_new)
    }

    async fn list_people(
        &mut self,
        tenant: &TenantId,
        exam: &ExamId,
        people: &[(UserId, Part)],
    ) -> Result<(), Refusal> {
        let statement = if self.is_sqlite() { LIST_PEOPLE_SQLITE } else { LIST_PEOPLE_POSTGRES };
        let listed = |is_in: fn(&Part) -> bool| {
            let users = people.iter().filter(|(_, part)| is_in(part)).map(|(user, _)| user);
            to_json(&users.collect::<Vec<_>>())
        };
        let parts = [
            ("participant", listed(|part| part.is_participant)?),
            ("staff", listed(|part| part.is_staff)?),
        ];
        for (name, listed) in &parts {
            on!(self.conn().await?, c => sqlx::query(statement)
                .bind(tenant.as_str()).bind(exam.as_str()).bind(listed).bind(*name)
                .execute(c).await.map(|_| ()))
            .map_err(refusal)?;
        }
        Ok(())
    }

    async fn people(
        &mut self,
        tenant: &TenantId,
        exam: &ExamId,
        user: Option<&UserId>,
    ) -> Result<Vec<(UserId, Part)>, Refusal> {
        let rows: Vec<(String, String)> = on!(self.conn().await?, c => sqlx::query_as(PART)
            .bind(tenant.as_str()).bind(exam.as_str()).bind(user.map(UserId::as_str))
            .fetch_all(c).await)
        .map_err(refusal)?;
        let mut people: Vec<(UserId, Part)> = Vec::new();
        for (user, part) in rows {
            let user = UserId::new(user).map_err(Refusal::internal)?;
            if people.last().is_none_or(|(last, _)| *last != user) {
                people.push((user, Part::default()));
            }
            let listed = people.last_mut().map(|(_, listed)| listed);
            match (part.as_str(), listed) {
                ("participant", Some(listed)) => listed.is_participant = true,
                ("staff", Some(listed)) => listed.is_staff = true,
                _ => return Err(unknown("exam_people.part", &part)),
            }
        }
        Ok(people)
    }
}

#[async_trait]
impl ExamReads for SqlTx {
    async fn exam(&mut self, tenant: &TenantId, exam: &ExamId) -> Result<Option<Exam>, Refusal> {
        let row: Option<ExamRow> = on!(self.conn().await?, c => sqlx::query_as(EXAM)
            .bind(tenant.as_str()).bind(exam.as_str()).fetch_optional(c).await)
        .map_err(refusal)?;
        row.map(ExamRow::exam).transpose()
    }

    async fn exams(
        &mut self,
        tenant: &TenantId,
        after: Option<&ExamId>,
        limit: u32,
    ) -> Result<Vec<Exam>, Refusal> {
        let rows: Vec<ExamRow> = on!(self.conn().await?, c => sqlx::query_as(EXAMS)
            .bind(tenant.as_str()).bind(after.map_or("", ExamId::as_str)).bind(i64::from(limit))
            .fetch_all(c).await)
        .map_err(refusal)?;
        rows.into_iter().map(ExamRow::exam).collect()
    }

    async fn paper(
        &mut self,
        tenant: &TenantId,
        exam: &ExamId,
        version: i64,
    ) -> Result<Option<String>, Refusal> {
        on!(self.conn().await?, c => sqlx::query_scalar(PAPER)
            .bind(tenant.as_str()).bind(exam.as_str()).bind(version).fetch_optional(c).await)
        .map_err(refusal)
    }

    async fn part_in_exam(
        &mut self,
        tenant: &TenantId,
        exam: &ExamId,
        user: &UserId,
    ) -> Result<Part, Refusal> {
        let listed = self.people(tenant, exam, Some(user)).await?;
        Ok(listed.first().map_or_else(Part::default, |(_, part)| *part))
    }

    async fn exam_people(
        &mut self,
        tenant: &TenantId,
        exam: &ExamId,
    ) -> Result<Vec<(UserId, Part)>, Refusal> {
        self.people(tenant, exam, None).await
    }

    async fn attempt(
        &mut self,
        tenant: &TenantId,
        attempt: &AttemptId,
    ) -> Result<Option<Attempt>, Refusal> {
        let row: Option<AttemptRow> = on!(self.conn().await?, c => sqlx::query_as(ATTEMPT)
            .bind(tenant.as_str()).bind(attempt.as_str()).fetch_optional(c).await)
        .map_err(refusal)?;
        row.map(AttemptRow::attempt).transpose()
    }

    async fn attempts(
        &mut self,
        tenant: &TenantId,
        exam: &ExamId,
        user: Option<&UserId>,
        after: Option<&AttemptId>,
        limit: u32,
    ) -> Result<Vec<Attempt>, Refusal> {
        let after = after.map_or("", AttemptId::as_str);
        let rows: Vec<AttemptRow> = on!(self.conn().await?, c => sqlx::query_as(ATTEMPTS)
            .bind(tenant.as_str()).bind(exam.as_str()).bind(after).bind(i64::from(limit))
            .bind(user.map(UserId::as_str)).fetch_all(c).await)
        .map_err(refusal)?;
        rows.into_iter().map(AttemptRow::attempt).collect()
    }

    async fn has_begun(
        &mut self,
        tenant: &TenantId,
        exam: &ExamId,
        user: &UserId,
    ) -> Result<bool, Refusal> {
        on!(self.conn().await?, c => sqlx::query_scalar(HAS_BEGUN)
            .bind(tenant.as_str()).bind(exam.as_str()).bind(user.as_str()).fetch_one(c).await)
        .map_err(refusal)
    }

    async fn running_exams_of(
        &mut self,
        tenant: &TenantId,
        user: &UserId,
    ) -> Result<Vec<ExamId>, Refusal> {
        let rows: Vec<String> = on!(self.conn().await?, c => sqlx::query_scalar(RUNNING_OF)
            .bind(tenant.as_str()).bind(user.as_str()).fetch_all(c).await)
        .map_err(refusal)?;
        rows.into_iter().map(|id| ExamId::new(id).map_err(Refusal::internal)).collect()
    }

    async fn answers(
        &mut self,
        tenant: &TenantId,
        attempt: &AttemptId,
    ) -> Result<Vec<Answer>, Refusal> {
        let mut answers = self.answers_of(tenant, slice::from_ref(attempt)).await?;
        Ok(answers.remove(attempt).unwrap_or_default())
    }

    async fn answers_of(
        &mut self,
        tenant: &TenantId,
        attempts: &[AttemptId],
    ) -> Result<HashMap<AttemptId, Vec<Answer>>, Refusal> {
        let mut answers: HashMap<_, Vec<Answer>> = HashMap::new();
        for (statement, part) in ANSWERS.parts(self.kind(), attempts) {
            let rows: Vec<AnswerRow> = on!(self.conn().await?, c => {
                let query = sqlx::query_as(statement).bind(tenant.as_str());
                part.iter().fold(query, |query, of| query.bind(of.as_str())).fetch_all(c).await
            })
            .map_err(refusal)?;
            for (attempt, question, answer, version, received_at, late) in rows {
                let attempt = AttemptId::new(attempt).map_err(Refusal::internal)?;
                answers.entry(attempt).or_default().push(Answer {
                    question: usize::try_from(question).map_err(Refusal::internal)?,
                    value: json("exam_answers.answer", &answer)?,
                    version,
                    received_at: received_at.into(),
                    late,
                });
            }
        }
        Ok(answers)
    }

    async fn journal(
        &mut self,
        tenant: &TenantId,
        attempt: &AttemptId,
        after: i64,
        limit: u32,
    ) -> Result<Vec<JournalRow>, Refusal> {
        let rows: Vec<(i64, Time, String, String, String, String)> =
            on!(self.conn().await?, c => sqlx::query_as(JOURNAL)
                .bind(tenant.as_str()).bind(attempt.as_str()).bind(after).bind(i64::from(limit))
                .fetch_all(c).await)
            .map_err(refusal)?;
        Ok(rows
            .into_iter()
            .map(|(seq, at, kind, actor, body, hash)| JournalRow {
                seq,
                at: at.into(),
                kind,
                actor,
                body,
                hash,
            })
            .collect())
    }

    async fn result(
        &mut self,
        tenant: &TenantId,
        result: &ResultId,
    ) -> Result<Option<ExamResult>, Refusal> {
        let row: Option<ResultRow> = on!(self.conn().await?, c => sqlx::query_as(RESULT)
            .bind(tenant.as_str()).bind(result.as_str()).fetch_optional(c).await)
        .map_err(refusal)?;
        row.map(ResultRow::result).transpose()
    }

    async fn result_of_attempt(
        &mut self,
        tenant: &TenantId,
        attempt: &AttemptId,
    ) -> Result<Option<ExamResult>, Refusal> {
        let row: Option<ResultRow> = on!(self.conn().await?, c => sqlx::query_as(RESULT_OF_ATTEMPT)
            .bind(tenant.as_str()).bind(attempt.as_str()).fetch_optional(c).await)
        .map_err(refusal)?;
        row.map(ResultRow::result).transpose()
    }

    async fn results(
        &mut self,
        tenant: &TenantId,
        exam: &ExamId,
        user: Option<&UserId>,
        after: Option<&ResultId>,
        limit: u32,
    ) -> Result<Vec<ExamResult>, Refusal> {
        let after = after.map_or("", ResultId::as_str);
        let rows: Vec<ResultRow> = on!(self.conn().await?, c => sqlx::query_as(RESULTS)
            .bind(tenant.as_str()).bind(exam.as_str()).bind(after).bind(i64::from(limit))
            .bind(user.map(UserId::as_str)).fetch_all(c).await)
        .map_err(refusal)?;
        rows.into_iter().map(ResultRow::result).collect()
    }

    async fn due_attempts(
        &mut self,
        deadline_before: Timestamp,
        limit: u32,
    ) -> Result<Vec<(TenantId, AttemptId)>, Refusal> {
        let mut rows: Vec<(String, String)> = on!(self.conn().await?, c => sqlx::query_as(FORCED)
            .bind(i64::from(limit)).fetch_all(c).await)
        .map_err(refusal)?;
        let due: Vec<(String, String)> = on!(self.conn().await?, c => sqlx::query_as(DUE)
            .bind(Time(deadline_before)).bind(i64::from(limit)).fetch_all(c).await)
        .map_err(refusal)?;
        rows.extend(due);
        pairs(rows, AttemptId::new)
    }

    async fn exams_to_release(
        &mut self,
        closed_before: Timestamp,
        limit: u32,
    ) -> Result<Vec<(TenantId, ExamId)>, Refusal> {
        let rows: Vec<(String, String)> =
            on!(self.conn().await?, c => sqlx::query_as(EXAMS_TO_RELEASE)
            .bind(Time(closed_before)).bind(i64::from(limit)).fetch_all(c).await)
            .map_err(refusal)?;
        pairs(rows, ExamId::new)
    }

    async fn due_results(&mut self, limit: u32) -> Result<Vec<(TenantId, ResultId, Due)>, Refusal> {
        let mut all = Vec::new();
        for (statement, due) in [(TO_REGRADE, Due::Regrade), (TO_RELEASE, Due::Release)] {
            let rows: Vec<(String, String)> =
                on!(self.conn().await?, c => sqlx::query_as(statement)
                .bind(i64::from(limit)).fetch_all(c).await)
                .map_err(refusal)?;
            let rows = pairs(rows, ResultId::new)?;
            all.extend(rows.into_iter().map(|(tenant, result)| (tenant, result, due)));
        }
        Ok(all)
    }
}

#[async_trait]
impl ExamWrites for SqlTx {
    async fn save_exam(&mut self, tenant: &TenantId, exam: &Exam) -> Result<(), Refusal> {
        on!(self.conn().await?, c => sqlx::query(SAVE_EXAM)
            .bind(tenant.as_str()).bind(exam.id.as_str()).bind(&exam.title).bind(&exam.topic)
            .bind(exam.duration_ms).bind(exam.opens_at.map(Time)).bind(exam.closes_at.map(Time))
            .bind(exam.attempts_allowed).bind(exam.shuffle).bind(exam.release.as_str())
            .bind(exam.shows_scores).bind(exam.for_everyone).bind(exam.by_any_staff)
            .bind(exam.paper_version).bind(exam.closed_at.map(Time))
            .bind(exam.released_at.map(Time)).bind(Time(exam.created_at))
            .bind(Time(exam.updated_at)).execute(c).await.map(|_| ()))
        .map_err(refusal)
    }

    async fn insert_paper(
        &mut self,
        tenant: &TenantId,
        exam: &ExamId,
        version: i64,
        questions: &str,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        on!(self.conn().await?, c => sqlx::query(INSERT_PAPER)
            .bind(tenant.as_str()).bind(exam.as_str()).bind(version).bind(questions)
            .bind(Time(now)).execute(c).await.map(|_| ()))
        .map_err(refusal)
    }

    async fn review_staff(
        &mut self,
        tenant: &TenantId,
        exam: &ExamId,
        by_role: bool,
    ) -> Result<(), Refusal> {
        let statement = if self.is_sqlite() { REVIEW_STAFF_SQLITE } else { REVIEW_STAFF_POSTGRES };
        on!(self.conn().await?, c => sqlx::query(statement)
            .bind(tenant.as_str()).bind(exam.as_str()).bind(by_role)
            .execute(c).await.map(|_| ()))
        .map_err(refusal)
    }

    async fn set_exam_people(
        &mut self,
        tenant: &TenantId,
        exam: &ExamId,
        people: &[(UserId, Part)],
    ) -> Result<(), Refusal> {
        on!(self.conn().await?, c => sqlx::query(FORGET_PEOPLE)
            .bind(tenant.as_str()).bind(exam.as_str()).execute(c).await.map(|_| ()))
        .map_err(refusal)?;
        self.list_people(tenant, exam, people).await
    }

    async fn set_exam_part(
        &mut self,
        tenant: &TenantId,
        exam: &ExamId,
        user: &UserId,
        part: Part,
    ) -> Result<(), Refusal> {
        on!(self.conn().await?, c => sqlx::query(FORGET_PERSON)
            .bind(tenant.as_str()).bind(exam.as_str()).bind(user.as_str())
            .execute(c).await.map(|_| ()))
        .map_err(refusal)?;
        self.list_people(tenant, exam, &[(user.clone(), part)]).await
    }

    async fn insert_attempt(
        &mut self,
        tenant: &TenantId,
        attempt: &Attempt,
    ) -> Result<bool, Refusal> {
        let order = attempt.order.as_ref().map(to_json).transpose()?;
        on!(self.conn().await?, c => sqlx::query(INSERT_ATTEMPT)
            .bind(tenant.as_str()).bind(attempt.id.as_str()).bind(attempt.exam.as_str())
            .bind(attempt.user.as_str()).bind(&attempt.user_name).bind(attempt.number)
            .bind(attempt.paper_version).bind(order).bind(attempt.status.as_str())
            .bind(attempt.current_question).bind(Time(attempt.started_at))
            .bind(attempt.limit_ms).bind(attempt.window_end.map(Time)).bind(attempt.extra_ms)
            .bind(attempt.paused_ms).bind(attempt.paused_at.map(Time))
            .bind(attempt.deadline_at.map(Time)).bind(attempt.clock_rev)
            .bind(attempt.forced_at.map(Time)).bind(Time(attempt.last_activity))
            .bind(attempt.left_at.map(Time)).bind(attempt.completed_at.map(Time))
            .bind(attempt.ended_by.map(EndedBy::as_str)).bind(attempt.journal_len)
            .bind(&attempt.journal_head)
            .execute(c).await.map(|done| done.rows_affected() > 0))
        .map_err(refusal)
    }

    async fn lock_newest_attempt(
        &mut self,
        tenant: &TenantId,
        exam: &ExamId,
        user: &UserId,
    ) -> Result<Option<Attempt>, Refusal> {
        let statement = self.locking(NEWEST);
        // What waits does not have to be written first: it says how far the attempt has come.
        let place = if self.sittings().is_some() { self.peek() } else { self.conn().await? };
        let row: Option<AttemptRow> = on!(place, c => sqlx::query_as(statement)
            .bind(tenant.as_str()).bind(exam.as_str()).bind(user.as_str())
            .fetch_optional(c).await)
        .map_err(refusal)?;
        let mut attempt = row.map(AttemptRow::attempt).transpose()?;
        if let (Some(sittings), Some(attempt)) = (self.sittings(), &mut attempt) {
            sittings.bring_up_to_date(tenant, attempt);
        }
        if let (Self::Sitting(sitting), Some(attempt)) = (self, &attempt) {
            sitting.has_read(attempt);
        }
        Ok(attempt)
    }

    async fn lock_attempts(
        &mut self,
        tenant: &TenantId,
        attempts: &[AttemptId],
    ) -> Result<Vec<Attempt>, Refusal> {
        let lock = if self.is_sqlite() { &LOCK_SQLITE } else { &LOCK_POSTGRES };
        let mut ids = attempts.to_vec();
        ids.sort_unstable();
        let mut locked = Vec::with_capacity(ids.len());
        for (statement, part) in lock.parts(self.kind(), &ids) {
            let rows: Vec<AttemptRow> = on!(self.conn().await?, c => {
                let query = sqlx::query_as(statement).bind(tenant.as_str());
                part.iter().fold(query, |query, of| query.bind(of.as_str())).fetch_all(c).await
            })
            .map_err(refusal)?;
            locked.extend(rows);
        }
        locked.into_iter().map(AttemptRow::attempt).collect()
    }

    async fn lock_running_attempts(
        &mut self,
        tenant: &TenantId,
        exam: &ExamId,
    ) -> Result<Vec<Attempt>, Refusal> {
        let statement = self.locking(RUNNING);
        let rows: Vec<AttemptRow> = on!(self.conn().await?, c => sqlx::query_as(statement)
            .bind(tenant.as_str()).bind(exam.as_str()).fetch_all(c).await)
        .map_err(refusal)?;
        rows.into_iter().map(AttemptRow::attempt).collect()
    }

    async fn save_attempt(&mut self, tenant: &TenantId, attempt: &Attempt) -> Result<(), Refusal> {
        on!(self.conn().await?, c => sqlx::query(SAVE_ATTEMPT)
            .bind(tenant.as_str()).bind(attempt.id.as_str()).bind(attempt.status.as_str())
            .bind(attempt.current_question).bind(attempt.extra_ms).bind(attempt.paused_ms)
            .bind(attempt.paused_at.map(Time)).bind(attempt.deadline_at.map(Time))
            .bind(attempt.clock_rev).bind(attempt.forced_at.map(Time))
            .bind(Time(attempt.last_activity)).bind(attempt.left_at.map(Time))
            .bind(attempt.completed_at.map(Time)).bind(attempt.ended_by.map(EndedBy::as_str))
            .bind(attempt.journal_len).bind(&attempt.journal_head)
            .execute(c).await.map(|_| ()))
        .map_err(refusal)
    }

    async fn save_progress(&mut self, tenant: &TenantId, attempt: &Attempt) -> Result<(), Refusal> {
        if let Some(sittings) = self.sittings() {
            sittings.advance(tenant, attempt);
            return Ok(());
        }
        on!(self.conn().await?, c => sqlx::query(SAVE_PROGRESS)
            .bind(tenant.as_str()).bind(attempt.id.as_str()).bind(attempt.current_question)
            .bind(Time(attempt.last_activity)).bind(attempt.journal_len)
            .bind(&attempt.journal_head).execute(c).await.map(|_| ()))
        .map_err(refusal)
    }

    async fn put_answer(
        &mut self,
        tenant: &TenantId,
        attempt: &AttemptId,
        answer: &mut Answer,
    ) -> Result<bool, Refusal> {
        let question = i64::try_from(answer.question).map_err(Refusal::internal)?;
        let text = to_json(&answer.value)?;
        if self.sittings().is_some() {
            return self.put_later(tenant, attempt, question, text, answer).await;
        }
        let stored: Option<i64> = on!(self.conn().await?, c => sqlx::query_scalar(PUT_ANSWER)
            .bind(tenant.as_str()).bind(attempt.as_str()).bind(question).bind(&text)
            .bind(Time(answer.received_at)).bind(answer.late).fetch_optional(c).await)
        .map_err(refusal)?;
        let is_new = stored.is_some();
        answer.version = match stored {
            Some(version) => version,
            None => on!(self.conn().await?, c => sqlx::query_scalar(ANSWER_VERSION)
                .bind(tenant.as_str()).bind(attempt.as_str()).bind(question)
                .fetch_one(c).await)
            .map_err(refusal)?,
        };
        Ok(is_new)
    }

    async fn append_journal(
        &mut self,
        tenant: &TenantId,
        rows: &[(AttemptId, JournalRow)],
    ) -> Result<(), Refusal> {
        if let Some(sittings) = self.sittings() {
            sittings.append(tenant, rows);
            return Ok(());
        }
        for (statement, part) in APPEND_JOURNAL.parts(self.kind(), rows) {
            on!(self.conn().await?, c => {
                let mut query = sqlx::query(statement);
                for (attempt, row) in part {
                    query = query.bind(tenant.as_str()).bind(attempt.as_str()).bind(row.seq)
                        .bind(Time(row.at)).bind(&row.kind).bind(&row.actor).bind(&row.body)
                        .bind(&row.hash);
                }
                query.execute(c).await.map(|_| ())
            })
            .map_err(refusal)?;
        }
        Ok(())
    }

    async fn insert_results(
        &mut self,
        tenant: &TenantId,
        results: &[ExamResult],
    ) -> Result<(), Refusal> {
        for (statement, part) in INSERT_RESULT.parts(self.kind(), results) {
            let texts = part
                .iter()
                .map(|result| Ok((to_json(&result.answers)?, to_json(&result.awards)?)))
                .collect::<Result<Vec<_>, Refusal>>()?;
            on!(self.conn().await?, c => {
                let mut query = sqlx::query(statement).bind(tenant.as_str());
                for (result, (answers, awards)) in part.iter().zip(&texts) {
                    let marks = &result.marks;
                    query = query.bind(result.id.as_str()).bind(result.exam.as_str())
                        .bind(result.user.as_str()).bind(result.attempt.as_str())
                        .bind(result.attempt_number).bind(marks.right).bind(marks.questions)
                        .bind(answers).bind(marks.points.0).bind(marks.max_points.0)
                        .bind(marks.pending_review).bind(awards).bind(result.revision)
                        .bind(result.key_version).bind(Time(result.completed_at))
                        .bind(result.released_at.map(Time)).bind(result.journal_len)
                        .bind(&result.journal_head);
                }
                query.execute(c).await.map(|_| ())
            })
            .map_err(refusal)?;
        }
        Ok(())
    }

    async fn release_exam(
        &mut self,
        tenant: &TenantId,
        exam: &ExamId,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        on!(self.conn().await?, c => sqlx::query(RELEASE_EXAM)
            .bind(tenant.as_str()).bind(exam.as_str()).bind(Time(now))
            .execute(c).await.map(|_| ()))
        .map_err(refusal)
    }

    async fn release_result(
        &mut self,
        tenant: &TenantId,
        result: &ResultId,
        now: Timestamp,
    ) -> Result<bool, Refusal> {
        on!(self.conn().await?, c => sqlx::query(RELEASE_RESULT)
            .bind(tenant.as_str()).bind(result.as_str()).bind(Time(now))
            .execute(c).await.map(|done| done.rows_affected() > 0))
        .map_err(refusal)
    }

    async fn ask_regrade(
        &mut self,
        tenant: &TenantId,
        exam: &ExamId,
        user: Option<&UserId>,
        now: Timestamp,
    ) -> Result<u64, Refusal> {
        on!(self.conn().await?, c => sqlx::query(ASK_REGRADE)
            .bind(tenant.as_str()).bind(exam.as_str()).bind(Time(now))
            .bind(user.map(UserId::as_str))
            .execute(c).await.map(|done| done.rows_affected()))
        .map_err(refusal)
    }

    async fn save_awards(
        &mut self,
        tenant: &TenantId,
        result: &ResultId,
        awards: &Awards,
    ) -> Result<(), Refusal> {
        let awards = to_json(awards)?;
        on!(self.conn().await?, c => sqlx::query(SAVE_AWARDS)
            .bind(tenant.as_str()).bind(result.as_str()).bind(&awards)
            .execute(c).await.map(|_| ()))
        .map_err(refusal)
    }

    async fn save_regraded(
        &mut self,
        tenant: &TenantId,
        result: &ExamResult,
    ) -> Result<(), Refusal> {
        let marks = &result.marks;
        on!(self.conn().await?, c => sqlx::query(SAVE_REGRADED)
            .bind(tenant.as_str()).bind(result.id.as_str()).bind(marks.right)
            .bind(marks.points.0).bind(marks.max_points.0).bind(marks.pending_review)
            .bind(result.revision).bind(result.key_version).bind(result.journal_len)
            .bind(&result.journal_head).execute(c).await.map(|_| ()))
        .map_err(refusal)
    }

    async fn set_aside(
        &mut self,
        tenant: &TenantId,
        attempt: &AttemptId,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        on!(self.conn().await?, c => sqlx::query(SET_ASIDE)
            .bind(tenant.as_str()).bind(attempt.as_str()).bind(Time(now))
            .execute(c).await.map(|_| ()))
        .map_err(refusal)
    }

    async fn server_key(&mut self, name: &str, fresh: &str) -> Result<String, Refusal> {
        on!(self.conn().await?, c => sqlx::query_scalar(SERVER_KEY)
            .bind(name).bind(fresh).fetch_one(c).await)
        .map_err(refusal)
    }
}
