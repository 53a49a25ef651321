//! What an exam tells. Keys are the contract's: camelCase where it builds the payload by hand,
//! `snake_case` where it sends a row. Nothing here carries anything of a key.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::{
    Answer, Attempt, AttemptStatus, Exam, ExamResult, Exams, answers_in_order,
    paper::{Points, ShownQuestion},
    room,
};
use crate::{
    contract::{Address, Event, To, ToCaller, ToOthers, ToUser},
    ids::{AttemptId, ExamId, QuestionId, ResultId, RoomId, Timestamp, UserId},
};

/// One student: the socket that asked, or all of their sockets.
#[derive(Debug)]
pub enum ToStudent {
    Caller,
    Everywhere(UserId),
}
impl From<ToStudent> for Address {
    fn from(to: ToStudent) -> Self {
        match to {
            ToStudent::Caller => Self::Caller,
            ToStudent::Everywhere(user) => Self::User(user),
        }
    }
}
impl To for ToStudent {
    const WHOM: &'static str = "the caller, or all sockets of the student";
}

/// The exam as a student sees it.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ShownExam {
    pub id: ExamId,
    pub title: String,
    /// 0: as long as the window is open.
    pub duration_minutes: serde_json::Number,
    /// In the order of the attempt; in the answer to `join-exam` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub questions: Option<Vec<ShownQuestion>>,
}

impl ShownExam {
    pub fn new(
        exam: &Exam,
        duration_ms: Option<i64>,
        questions: Option<Vec<ShownQuestion>>,
    ) -> Self {
        Self {
            id: exam.id.clone(),
            title: exam.title.clone(),
            duration_minutes: minutes(duration_ms.unwrap_or(0)),
            questions,
        }
    }
}

/// A whole number where it is one.
pub fn minutes(ms: i64) -> serde_json::Number {
    #[expect(clippy::cast_precision_loss, reason = "a duration is far below 2^52 ms")]
    let exact = (ms % 60_000 != 0).then(|| serde_json::Number::from_f64(ms as f64 / 60_000.0));
    exact.flatten().unwrap_or_else(|| (ms / 60_000).into())
}

/// The contract's row of an attempt.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ExamSession {
    pub id: AttemptId,
    pub exam_id: ExamId,
    pub user_id: UserId,
    pub room_id: RoomId,
    pub current_question: i64,
    /// By position; up to the last question answered, `null` where there is no answer.
    pub answers: Vec<Value>,
    /// Whole seconds, by the server's clock.
    pub time_remaining: i64,
    pub status: AttemptStatus,
    pub last_activity: Timestamp,
    pub started_at: Timestamp,
    pub completed_at: Option<Timestamp>,
    pub attempt_no: i64,
    pub deadline_at: Option<Timestamp>,
    /// The questions in the order of the attempt, where it has one of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub question_ids: Option<Vec<QuestionId>>,
}

impl ExamSession {
    pub fn new(
        attempt: &Attempt,
        answers: &[Answer],
        question_ids: Option<Vec<QuestionId>>,
        now: Timestamp,
    ) -> Self {
        Self {
            id: attempt.id.clone(),
            exam_id: attempt.exam.clone(),
            user_id: attempt.user.clone(),
            room_id: room(&attempt.exam),
            current_question: attempt.current_question,
            answers: answers_in_order(attempt, answers),
            time_remaining: attempt.remaining_seconds(now),
            status: attempt.status,
            last_activity: attempt.last_activity,
            started_at: attempt.started_at,
            completed_at: attempt.completed_at,
            attempt_no: attempt.number,
            deadline_at: attempt.deadline_at,
            question_ids,
        }
    }
}

/// The attempt, whole: the answer to `join-exam`, and again after every change of clock or state.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExamJoined {
    pub exam_id: ExamId,
    pub exam: ShownExam,
    /// `null` for staff who look on.
    pub session: Option<ExamSession>,
    /// Of a completed attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<ShownResult>,
    pub server_now: Timestamp,
    /// Different users in the exam.
    pub participant_count: usize,
}
impl Event for ExamJoined {
    type In = Exams;
    type To = ToStudent;
    const NAME: &'static str = "exam-joined";
    const DURABLE: bool = true;
    const COUNTS: bool = true;
}

/// Somebody entered the exam with their first socket.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ParticipantJoinedExam {
    pub exam_id: ExamId,
    pub user_id: UserId,
    pub user_name: String,
    pub participant_count: usize,
}
impl Event for ParticipantJoinedExam {
    type In = Exams;
    type To = ToOthers;
    const NAME: &'static str = "participant-joined-exam";
    const COUNTS: bool = true;
}

/// Somebody left the exam, or lost the last connection to it.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ParticipantLeftExam {
    pub exam_id: ExamId,
    pub user_id: UserId,
    pub user_name: String,
    pub participant_count: usize,
}
impl Event for ParticipantLeftExam {
    type In = Exams;
    type To = ToOthers;
    const NAME: &'static str = "participant-left-exam";
    const COUNTS: bool = true;
}

/// Somebody's attempt is final.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ParticipantCompletedExam {
    pub exam_id: ExamId,
    pub user_id: UserId,
    pub user_name: String,
    /// Where the exam shows scores to everybody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<i64>,
    pub total_questions: i64,
    pub participant_count: usize,
}
impl Event for ParticipantCompletedExam {
    type In = Exams;
    type To = ToOthers;
    const NAME: &'static str = "participant-completed-exam";
    const COUNTS: bool = true;
}

/// The answer to `leave-exam`.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExamLeft {
    pub exam_id: ExamId,
}
impl Event for ExamLeft {
    type In = Exams;
    type To = ToCaller;
    const NAME: &'static str = "exam-left";
}

/// An answer of a snapshot that was not taken, because the stored one is newer than anything this
/// connection knows of.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NotTaken {
    pub question_index: usize,
    /// What is stored.
    pub answer: Value,
    pub version: i64,
}

/// The snapshot is stored.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExamProgressSaved {
    pub exam_id: ExamId,
    pub current_question: i64,
    /// Whole seconds, by the server's clock.
    pub time_remaining: i64,
    pub timestamp: Timestamp,
    pub deadline_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_taken: Vec<NotTaken>,
}
impl Event for ExamProgressSaved {
    type In = Exams;
    type To = ToCaller;
    const NAME: &'static str = "exam-progress-saved";
}

/// The answer is stored.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExamAnswerSaved {
    pub exam_id: ExamId,
    pub question_index: usize,
    pub answer: Value,
    pub timestamp: Timestamp,
    pub version: i64,
    /// Received after the deadline, within the grace.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub late: bool,
}
impl Event for ExamAnswerSaved {
    type In = Exams;
    type To = ToCaller;
    const NAME: &'static str = "exam-answer-saved";
}

/// A result as its student sees it: what it earned is `null` until results are released.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ShownResult {
    pub id: ResultId,
    pub exam_id: ExamId,
    pub user_id: UserId,
    /// Right answers.
    pub score: Option<i64>,
    pub total_questions: i64,
    pub answers: Vec<Value>,
    pub ai_feedback: Option<String>,
    pub domain_analysis: Option<Value>,
    pub audit_log: Option<Value>,
    pub error_profile: Option<Value>,
    pub fatigue_data: Option<Value>,
    pub completed_at: Timestamp,
    pub points: Option<Points>,
    pub max_points: Points,
    /// Whether somebody has still to read an essay.
    pub pending_review: Option<bool>,
    pub revision: i64,
    pub attempt_no: i64,
    pub released: bool,
}

impl From<&ExamResult> for ShownResult {
    fn from(result: &ExamResult) -> Self {
        let released = result.released_at.is_some();
        let marks = &result.marks;
        Self {
            id: result.id.clone(),
            exam_id: result.exam.clone(),
            user_id: result.user.clone(),
            score: released.then_some(marks.right),
            total_questions: marks.questions,
            answers: result.answers.clone(),
            ai_feedback: None,
            domain_analysis: None,
            audit_log: None,
            error_profile: None,
            fatigue_data: None,
            completed_at: result.completed_at,
            points: released.then_some(marks.points),
            max_points: marks.max_points,
            pending_review: released.then_some(marks.pending_review),
            revision: result.revision,
            attempt_no: result.attempt_number,
            released,
        }
    }
}

/// The attempt is final. Told once to all of the student's sockets, and to whoever asks again.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExamCompleted {
    pub exam_id: ExamId,
    pub result: ShownResult,
}
impl Event for ExamCompleted {
    type In = Exams;
    type To = ToStudent;
    const NAME: &'static str = "exam-completed";
    const DURABLE: bool = true;
}

/// Why a clock changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClockReason {
    Paused,
    Resumed,
    Extended,
}

/// The clock of an attempt has changed; a lower `rev` than one already seen is stale.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExamClock {
    pub exam_id: ExamId,
    /// `null` while paused, and where there is no limit.
    pub deadline_at: Option<Timestamp>,
    pub server_now: Timestamp,
    /// Whole seconds.
    pub time_remaining: i64,
    pub rev: i64,
    pub reason: ClockReason,
}
impl ExamClock {
    pub fn new(attempt: &Attempt, now: Timestamp, reason: ClockReason) -> Self {
        let runs = attempt.status == AttemptStatus::InProgress;
        Self {
            exam_id: attempt.exam.clone(),
            deadline_at: attempt.deadline_at.filter(|_| runs),
            server_now: now,
            time_remaining: attempt.remaining_seconds(now),
            rev: attempt.clock_rev,
            reason,
        }
    }
}
impl Event for ExamClock {
    type In = Exams;
    type To = ToUser;
    const NAME: &'static str = "exam-clock";
    const DURABLE: bool = true;
}
