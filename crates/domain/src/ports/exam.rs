//! Exams, papers, attempts, answers, journals and results.

use std::collections::HashMap;

use async_trait::async_trait;

use super::Result;
use crate::{
    exam::{
        Answer, Attempt, Exam, ExamResult, Part, grade::Awards, journal::JournalRow, results::Due,
    },
    ids::{AttemptId, ExamId, ResultId, TenantId, Timestamp, UserId},
};

#[async_trait]
pub trait ExamReads: Send {
    async fn exam(&mut self, tenant: &TenantId, exam: &ExamId) -> Result<Option<Exam>>;
    /// Exams by id, after one.
    async fn exams(
        &mut self,
        tenant: &TenantId,
        after: Option<&ExamId>,
        limit: u32,
    ) -> Result<Vec<Exam>>;
    /// The questions of one version, as JSON.
    async fn paper(
        &mut self,
        tenant: &TenantId,
        exam: &ExamId,
        version: i64,
    ) -> Result<Option<String>>;
    /// How a user is listed in an exam.
    async fn part_in_exam(
        &mut self,
        tenant: &TenantId,
        exam: &ExamId,
        user: &UserId,
    ) -> Result<Part>;
    /// Who is listed in an exam, by id.
    async fn exam_people(
        &mut self,
        tenant: &TenantId,
        exam: &ExamId,
    ) -> Result<Vec<(UserId, Part)>>;
    async fn attempt(&mut self, tenant: &TenantId, attempt: &AttemptId) -> Result<Option<Attempt>>;
    /// Attempts at an exam, of one user or of all, in the order of their ids, after one.
    async fn attempts(
        &mut self,
        tenant: &TenantId,
        exam: &ExamId,
        user: Option<&UserId>,
        after: Option<&AttemptId>,
        limit: u32,
    ) -> Result<Vec<Attempt>>;
    /// Exams the user sits just now and has not left.
    /// Whether the user has an attempt at it that is not final, in it or not.
    async fn has_begun(&mut self, tenant: &TenantId, exam: &ExamId, user: &UserId) -> Result<bool>;
    async fn running_exams_of(&mut self, tenant: &TenantId, user: &UserId) -> Result<Vec<ExamId>>;
    /// The stored answers of an attempt, by place.
    /// Of each attempt that has any, in the order of the paper.
    async fn answers_of(
        &mut self,
        tenant: &TenantId,
        attempts: &[AttemptId],
    ) -> Result<HashMap<AttemptId, Vec<Answer>>>;
    async fn answers(&mut self, tenant: &TenantId, attempt: &AttemptId) -> Result<Vec<Answer>>;
    /// Rows of an attempt's journal after a place.
    async fn journal(
        &mut self,
        tenant: &TenantId,
        attempt: &AttemptId,
        after: i64,
        limit: u32,
    ) -> Result<Vec<JournalRow>>;
    async fn result(&mut self, tenant: &TenantId, result: &ResultId) -> Result<Option<ExamResult>>;
    async fn result_of_attempt(
        &mut self,
        tenant: &TenantId,
        attempt: &AttemptId,
    ) -> Result<Option<ExamResult>>;
    /// Results of an exam, of one user or of all, in the order of their ids, after one.
    async fn results(
        &mut self,
        tenant: &TenantId,
        exam: &ExamId,
        user: Option<&UserId>,
        after: Option<&ResultId>,
        limit: u32,
    ) -> Result<Vec<ExamResult>>;
    /// Attempts whose deadline is before an instant, or that staff have ended, of all tenants.
    async fn due_attempts(
        &mut self,
        deadline_before: Timestamp,
        limit: u32,
    ) -> Result<Vec<(TenantId, AttemptId)>>;
    /// Exams that release after they close, have closed before an instant, and are sat by nobody.
    async fn exams_to_release(
        &mut self,
        closed_before: Timestamp,
        limit: u32,
    ) -> Result<Vec<(TenantId, ExamId)>>;
    /// Results that wait for release or regrading, of all tenants.
    async fn due_results(&mut self, limit: u32) -> Result<Vec<(TenantId, ResultId, Due)>>;
}

#[async_trait]
pub trait ExamWrites: Send {
    /// Makes the exam or replaces it.
    async fn save_exam(&mut self, tenant: &TenantId, exam: &Exam) -> Result<()>;
    /// Stores a version of the paper.
    async fn insert_paper(
        &mut self,
        tenant: &TenantId,
        exam: &ExamId,
        version: i64,
        questions: &str,
        now: Timestamp,
    ) -> Result<()>;
    /// Has the rights of the exam's listed staff looked at anew on every node, or of all who may be
    /// staff by their role.
    async fn review_staff(&mut self, tenant: &TenantId, exam: &ExamId, by_role: bool)
    -> Result<()>;
    /// Replaces who is listed in the exam.
    async fn set_exam_people(
        &mut self,
        tenant: &TenantId,
        exam: &ExamId,
        people: &[(UserId, Part)],
    ) -> Result<()>;
    /// Lists one user anew.
    async fn set_exam_part(
        &mut self,
        tenant: &TenantId,
        exam: &ExamId,
        user: &UserId,
        part: Part,
    ) -> Result<()>;
    /// False when the user has an attempt of that number already.
    async fn insert_attempt(&mut self, tenant: &TenantId, attempt: &Attempt) -> Result<bool>;
    /// The user's newest attempt, which nobody else changes until the transaction ends, or whose
    /// change makes its commit fail ([`Scope::Sitting`](crate::contract::Scope::Sitting)).
    async fn lock_newest_attempt(
        &mut self,
        tenant: &TenantId,
        exam: &ExamId,
        user: &UserId,
    ) -> Result<Option<Attempt>>;
    /// Those of these attempts that are there, in the order of their ids.
    async fn lock_attempts(
        &mut self,
        tenant: &TenantId,
        attempts: &[AttemptId],
    ) -> Result<Vec<Attempt>>;
    /// All attempts at the exam that are not completed.
    async fn lock_running_attempts(
        &mut self,
        tenant: &TenantId,
        exam: &ExamId,
    ) -> Result<Vec<Attempt>>;
    async fn save_attempt(&mut self, tenant: &TenantId, attempt: &Attempt) -> Result<()>;
    /// As `save_attempt`, of what answers change: where it is, when it was last heard of, its
    /// journal. Nothing that an index holds.
    async fn save_progress(&mut self, tenant: &TenantId, attempt: &Attempt) -> Result<()>;
    /// Stores the answer and gives it its version; false when the same was stored already.
    async fn put_answer(
        &mut self,
        tenant: &TenantId,
        attempt: &AttemptId,
        answer: &mut Answer,
    ) -> Result<bool>;
    async fn append_journal(
        &mut self,
        tenant: &TenantId,
        rows: &[(AttemptId, JournalRow)],
    ) -> Result<()>;
    async fn insert_results(&mut self, tenant: &TenantId, results: &[ExamResult]) -> Result<()>;
    /// Shows the exam's results from now on.
    async fn release_exam(
        &mut self,
        tenant: &TenantId,
        exam: &ExamId,
        now: Timestamp,
    ) -> Result<()>;
    /// True when it was not released before.
    async fn release_result(
        &mut self,
        tenant: &TenantId,
        result: &ResultId,
        now: Timestamp,
    ) -> Result<bool>;
    /// Has results of an exam regraded, of one user or of all; says how many.
    async fn ask_regrade(
        &mut self,
        tenant: &TenantId,
        exam: &ExamId,
        user: Option<&UserId>,
        now: Timestamp,
    ) -> Result<u64>;
    /// Stores points given by hand.
    async fn save_awards(
        &mut self,
        tenant: &TenantId,
        result: &ResultId,
        awards: &Awards,
    ) -> Result<()>;
    /// Stores a revision; it waits for regrading no more.
    async fn save_regraded(&mut self, tenant: &TenantId, result: &ExamResult) -> Result<()>;
    async fn set_aside(
        &mut self,
        tenant: &TenantId,
        attempt: &AttemptId,
        now: Timestamp,
    ) -> Result<()>;
    /// A secret of the server: the stored one, else the given one, stored.
    async fn server_key(&mut self, name: &str, fresh: &str) -> Result<String>;
}
