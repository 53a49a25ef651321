//! Exams: papers, people, attempts, results, and what staff may do to them.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Attempt, AttemptStatus, EndedBy, Exam, ExamResult, Part, Release,
    control::{Action, Controlled, ExamControl},
    define::{ExamInput, define},
    events::minutes,
    grade::Awards,
    paper::{Paper, Points, QuestionInput},
};
use crate::{
    api::{Cursor, Listed, Method, Operation, OperationRow, Right, operation, page},
    dispatch::{App, Cx},
    ids::{AttemptId, ExamId, QuestionId, ResultId, TenantId, Timestamp, UserId},
    ports::Reads,
    refusal::Refusal,
};

pub const OPERATIONS: &[OperationRow] = &[
    operation::<CreateExam>(),
    operation::<PutExam>(),
    operation::<GetExam>(),
    operation::<ListExams>(),
    operation::<AssignExam>(),
    operation::<UnassignExam>(),
    operation::<ControlExam>(),
    operation::<ReleaseExam>(),
    operation::<RegradeExam>(),
    operation::<ListAttempts>(),
    operation::<ListResults>(),
];

/// An exam as its school sees it, keys included.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExamView {
    pub id: ExamId,
    pub title: String,
    pub topic: Option<String>,
    /// Null: as long as the window is open.
    pub duration_minutes: Option<serde_json::Number>,
    pub opens_at: Option<Timestamp>,
    pub closes_at: Option<Timestamp>,
    pub attempts_allowed: i64,
    pub shuffle: bool,
    pub release: Release,
    pub show_scores: bool,
    /// Null: every mentor and proctor.
    pub staff: Option<Vec<UserId>>,
    /// Null: everyone.
    pub participants: Option<Vec<UserId>>,
    /// Grows with every change of the questions; an attempt keeps the version it began with.
    pub paper_version: i64,
    /// When staff closed it.
    pub closed_at: Option<Timestamp>,
    /// When its results were released.
    pub released_at: Option<Timestamp>,
    pub questions: Vec<QuestionInput>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

async fn view(
    app: &App,
    tenant: &TenantId,
    reads: &mut (impl Reads + ?Sized),
    exam: Exam,
) -> Result<ExamView, Refusal> {
    let paper = app.exams.paper(reads, tenant, &exam.id, exam.paper_version).await?;
    let people = reads.exam_people(tenant, &exam.id).await?;
    let listed = |is_meant: fn(&Part) -> bool| {
        people.iter().filter(|(_, part)| is_meant(part)).map(|(user, _)| user.clone()).collect()
    };
    Ok(ExamView {
        title: exam.title,
        topic: exam.topic,
        duration_minutes: exam.duration_ms.map(minutes),
        opens_at: exam.opens_at,
        closes_at: exam.closes_at,
        attempts_allowed: exam.attempts_allowed,
        shuffle: exam.shuffle,
        release: exam.release,
        show_scores: exam.shows_scores,
        staff: (!exam.by_any_staff).then(|| listed(|part| part.is_staff)),
        participants: (!exam.for_everyone).then(|| listed(|part| part.is_participant)),
        paper_version: exam.paper_version,
        closed_at: exam.closed_at,
        released_at: exam.released_at,
        questions: Paper::written(&paper),
        created_at: exam.created_at,
        updated_at: exam.updated_at,
        id: exam.id,
    })
}

async fn found(
    reads: &mut (impl Reads + ?Sized),
    tenant: &TenantId,
    id: &ExamId,
) -> Result<Exam, Refusal> {
    reads.exam(tenant, id).await?.ok_or(Refusal::NotFound)
}

/// Makes or changes an exam.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct CreateExam(ExamInput);

impl Operation for CreateExam {
    type Reply = ExamView;
    const NAME: &'static str = "createExam";
    const METHOD: Method = Method::Post;
    const PATH: &'static str = "/v1/exams";
    const RIGHT: Right = Right::WriteExams;
    const SUMMARY: &'static str = "Makes an exam; refused as CONFLICT when its id is taken";
    const STATUS: u16 = 201;

    async fn handle(self, cx: &mut Cx<'_>) -> Result<ExamView, Refusal> {
        let id = match &self.0.id {
            Some(id) => id.clone(),
            None => ExamId::new(cx.app.ids.uuid()).map_err(Refusal::internal)?,
        };
        let tenant = &cx.caller.tenant;
        if cx.tx().await?.exam(tenant, &id).await?.is_some() {
            return Err(Refusal::Conflict("there is an exam with this id".into()));
        }
        write(cx, id, &self.0).await
    }
}

/// Makes the exam of this id, or changes it for attempts begun from now on.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct PutExam(ExamInput);

impl Operation for PutExam {
    type Reply = ExamView;
    const NAME: &'static str = "putExam";
    const METHOD: Method = Method::Put;
    const PATH: &'static str = "/v1/exams/{id}";
    const RIGHT: Right = Right::WriteExams;
    const SUMMARY: &'static str =
        "Makes an exam, or changes it for attempts begun from now on; running ones keep theirs";

    async fn handle(self, cx: &mut Cx<'_>) -> Result<ExamView, Refusal> {
        let id = self.0.id.clone().ok_or(Refusal::NotFound)?;
        write(cx, id, &self.0).await
    }
}

async fn write(cx: &mut Cx<'_>, id: ExamId, input: &ExamInput) -> Result<ExamView, Refusal> {
    let exam = define(cx, id, input).await?;
    let details = json!({ "paperVersion": exam.paper_version });
    cx.audit("exam.put", exam.id.as_str(), &details).await?;
    let (app, tenant) = (cx.app, &cx.caller.tenant);
    view(app, tenant, cx.tx().await?, exam).await
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct GetExam {
    pub id: ExamId,
}

impl Operation for GetExam {
    type Reply = ExamView;
    const NAME: &'static str = "getExam";
    const METHOD: Method = Method::Get;
    const PATH: &'static str = "/v1/exams/{id}";
    const RIGHT: Right = Right::ReadExams;
    const SUMMARY: &'static str = "One exam, with the keys of its questions";

    async fn handle(self, cx: &mut Cx<'_>) -> Result<ExamView, Refusal> {
        let (app, tenant) = (cx.app, &cx.caller.tenant);
        let mut reads = cx.read().await?;
        let exam = found(reads.as_mut(), tenant, &self.id).await?;
        view(app, tenant, reads.as_mut(), exam).await
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct ListExams {
    #[serde(default)]
    pub cursor: Option<Cursor>,
    /// 1 to 100; 50 unless said otherwise.
    #[serde(default)]
    pub limit: Option<u32>,
}

/// An exam in a list.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExamLine {
    pub id: ExamId,
    pub title: String,
    pub topic: Option<String>,
    pub opens_at: Option<Timestamp>,
    pub closes_at: Option<Timestamp>,
    pub closed_at: Option<Timestamp>,
    pub released_at: Option<Timestamp>,
    pub created_at: Timestamp,
}

impl From<Exam> for ExamLine {
    fn from(exam: Exam) -> Self {
        Self {
            id: exam.id,
            title: exam.title,
            topic: exam.topic,
            opens_at: exam.opens_at,
            closes_at: exam.closes_at,
            closed_at: exam.closed_at,
            released_at: exam.released_at,
            created_at: exam.created_at,
        }
    }
}

impl Operation for ListExams {
    type Reply = Listed<ExamLine>;
    const NAME: &'static str = "listExams";
    const METHOD: Method = Method::Get;
    const PATH: &'static str = "/v1/exams";
    const RIGHT: Right = Right::ReadExams;
    const SUMMARY: &'static str = "All exams, by id";

    async fn handle(self, cx: &mut Cx<'_>) -> Result<Listed<ExamLine>, Refusal> {
        let limit = page::limit(self.limit);
        let after: Option<ExamId> = after(self.cursor.as_ref(), ExamId::new)?;
        let exams = cx.read().await?.exams(&cx.caller.tenant, after.as_ref(), limit + 1).await?;
        let lines = exams.into_iter().map(ExamLine::from).collect();
        Ok(Listed::new(lines, limit, |exam: &ExamLine| Cursor::after([exam.id.as_str()])))
    }
}

/// The id a cursor points behind.
fn after<T>(
    cursor: Option<&Cursor>,
    id: impl Fn(String) -> Result<T, crate::ids::InvalidId>,
) -> Result<Option<T>, Refusal> {
    let Some(cursor) = cursor else { return Ok(None) };
    let [text] = cursor.keys()?;
    let unknown = |_| Refusal::Invalid("cursor: not one that was given out".into());
    id(text).map(Some).map_err(unknown)
}

/// Who may sit the exam, one by one.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Assigned {
    pub exam_id: ExamId,
    pub user_id: UserId,
    pub is_participant: bool,
}

/// Lists a user as a participant, or no longer.
async fn assign(
    cx: &mut Cx<'_>,
    exam: &ExamId,
    user: UserId,
    is_participant: bool,
) -> Result<Assigned, Refusal> {
    let tenant = &cx.caller.tenant;
    let tx = cx.tx().await?;
    let exam = found(tx, tenant, exam).await?;
    if exam.for_everyone {
        return Err(Refusal::Conflict("the exam is for everyone: it has no participants".into()));
    }
    let listed = tx.part_in_exam(tenant, &exam.id, &user).await?;
    let part = Part { is_participant, ..listed };
    tx.set_exam_part(tenant, &exam.id, &user, part).await?;
    let details = json!({ "userId": user, "isParticipant": is_participant });
    cx.audit("exam.assign", exam.id.as_str(), &details).await?;
    Ok(Assigned { exam_id: exam.id, user_id: user, is_participant })
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AssignExam {
    pub id: ExamId,
    pub user_id: UserId,
}

impl Operation for AssignExam {
    type Reply = Assigned;
    const NAME: &'static str = "assignExam";
    const METHOD: Method = Method::Put;
    const PATH: &'static str = "/v1/exams/{id}/participants/{userId}";
    const RIGHT: Right = Right::WriteExams;
    const SUMMARY: &'static str = "Lets a user sit an exam that has a list of participants";

    async fn handle(self, cx: &mut Cx<'_>) -> Result<Assigned, Refusal> {
        assign(cx, &self.id, self.user_id, true).await
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UnassignExam {
    pub id: ExamId,
    pub user_id: UserId,
}

impl Operation for UnassignExam {
    type Reply = Assigned;
    const NAME: &'static str = "unassignExam";
    const METHOD: Method = Method::Delete;
    const PATH: &'static str = "/v1/exams/{id}/participants/{userId}";
    const RIGHT: Right = Right::WriteExams;
    const SUMMARY: &'static str = "Takes a user off the list; an attempt they have begun goes on";

    async fn handle(self, cx: &mut Cx<'_>) -> Result<Assigned, Refusal> {
        assign(cx, &self.id, self.user_id, false).await
    }
}

/// What staff do to running attempts.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ControlExam {
    pub id: ExamId,
    pub action: Action,
    /// All running attempts unless given; not for `close`.
    #[serde(default)]
    pub user_ids: Option<Vec<UserId>>,
    /// For `extend`.
    #[serde(default)]
    pub seconds: Option<i64>,
}

impl Operation for ControlExam {
    type Reply = Controlled;
    const NAME: &'static str = "controlExam";
    const METHOD: Method = Method::Post;
    const PATH: &'static str = "/v1/exams/{id}/control";
    const RIGHT: Right = Right::WriteExams;
    const SUMMARY: &'static str =
        "Pauses, resumes, extends, submits or closes, as the event exam-control";

    async fn handle(self, cx: &mut Cx<'_>) -> Result<Controlled, Refusal> {
        let Self { id: exam_id, action, user_ids, seconds } = self;
        ExamControl { exam_id, action, user_ids, seconds }.carry_out(cx).await
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct ReleaseExam {
    pub id: ExamId,
}

/// Results are released a few at a time, from now on.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Released {
    pub exam_id: ExamId,
    pub released_at: Timestamp,
}

impl Operation for ReleaseExam {
    type Reply = Released;
    const NAME: &'static str = "releaseExam";
    const METHOD: Method = Method::Post;
    const PATH: &'static str = "/v1/exams/{id}/release";
    const RIGHT: Right = Right::WriteExams;
    const SUMMARY: &'static str = "Shows students their results, those still to come included";
    const STATUS: u16 = 202;

    async fn handle(self, cx: &mut Cx<'_>) -> Result<Released, Refusal> {
        let (tenant, now) = (&cx.caller.tenant, cx.now);
        let tx = cx.tx().await?;
        let exam = tx.exam(tenant, &self.id).await?.ok_or(Refusal::NotFound)?;
        tx.release_exam(tenant, &exam.id, now).await?;
        cx.audit("exam.release", exam.id.as_str(), &json!({})).await?;
        Ok(Released { exam_id: exam.id, released_at: exam.released_at.unwrap_or(now) })
    }
}

/// Points given by hand, for an essay or against a key.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Award {
    pub user_id: UserId,
    pub question_id: QuestionId,
    /// At most those of the question; null takes an award back.
    pub points: Option<Points>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RegradeExam {
    pub id: ExamId,
    /// Everybody unless given.
    #[serde(default)]
    pub user_ids: Option<Vec<UserId>>,
    #[serde(default)]
    pub awards: Option<Vec<Award>>,
}

/// Results are marked again a few at a time, from now on.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Regrading {
    pub exam_id: ExamId,
    /// Results that will be marked again.
    pub results: u64,
}

const MAX_AWARDS: usize = 1_000;
const MAX_USERS: usize = 1_000;

impl Operation for RegradeExam {
    type Reply = Regrading;
    const NAME: &'static str = "regradeExam";
    const METHOD: Method = Method::Post;
    const PATH: &'static str = "/v1/exams/{id}/regrade";
    const RIGHT: Right = Right::WriteExams;
    const SUMMARY: &'static str =
        "Marks again with the newest keys and points given by hand; a change is a new revision";
    const STATUS: u16 = 202;

    async fn handle(self, cx: &mut Cx<'_>) -> Result<Regrading, Refusal> {
        let (app, tenant, now) = (cx.app, &cx.caller.tenant, cx.now);
        let awards = self.awards.unwrap_or_default();
        if awards.len() > MAX_AWARDS {
            return Err(Refusal::Invalid("awards: at most 1000".into()));
        }
        if self.user_ids.as_ref().is_some_and(|users| users.len() > MAX_USERS) {
            return Err(Refusal::Invalid("userIds: at most 1000".into()));
        }
        let tx = cx.tx().await?;
        let exam = tx.exam(tenant, &self.id).await?.ok_or(Refusal::NotFound)?;
        let newest = app.exams.paper(tx, tenant, &exam.id, exam.paper_version).await?;
        let mut by_user: BTreeMap<UserId, Vec<(usize, Award)>> = BTreeMap::new();
        for (place, award) in awards.into_iter().enumerate() {
            by_user.entry(award.user_id.clone()).or_default().push((place, award));
        }
        // Those who are awarded something are among them; without users and awards, everybody is.
        let is_everybody = self.user_ids.is_none() && by_user.is_empty();
        let named = self.user_ids.into_iter().flatten().chain(by_user.keys().cloned());
        let users = (!is_everybody).then(|| named.collect::<BTreeSet<_>>());
        for (user, given) in &by_user {
            give(cx, &exam.id, &newest, user, given).await?;
        }
        let tx = cx.tx().await?;
        let mut results = 0;
        match &users {
            None => results = tx.ask_regrade(tenant, &exam.id, None, now).await?,
            Some(users) => {
                for user in users {
                    results += tx.ask_regrade(tenant, &exam.id, Some(user), now).await?;
                }
            }
        }
        let details = json!({ "userIds": users, "results": results });
        cx.audit("exam.regrade.ask", exam.id.as_str(), &details).await?;
        Ok(Regrading { exam_id: exam.id, results })
    }
}

/// Points count for the user's newest result.
async fn give(
    cx: &mut Cx<'_>,
    exam: &ExamId,
    newest_paper: &Paper,
    user: &UserId,
    given: &[(usize, Award)],
) -> Result<(), Refusal> {
    let (app, tenant) = (cx.app, &cx.caller.tenant);
    let tx = cx.tx().await?;
    let mut results = Vec::new();
    loop {
        let after = results.last().map(|result: &ExamResult| result.id.clone());
        let more = tx.results(tenant, exam, Some(user), after.as_ref(), page::MAX_LIMIT).await?;
        if more.is_empty() {
            break;
        }
        results.extend(more);
    }
    let newest = results.into_iter().max_by_key(|result| result.attempt_number);
    let newest = newest.ok_or(Refusal::NotFound)?;
    // As they will be marked: a question that is in no newer paper was answered all the same.
    let attempt = tx.attempt(tenant, &newest.attempt).await?.ok_or(Refusal::NotFound)?;
    let own = app.exams.paper(tx, tenant, exam, attempt.paper_version).await?;
    let paper = own.with_keys_of(newest_paper);
    let mut awards: Awards = newest.awards;
    for (place, Award { question_id, points, .. }) in given {
        let most = paper.find(question_id).map(|question| question.points).ok_or_else(|| {
            Refusal::UnknownQuestion(format!("awards[{place}].questionId").into())
        })?;
        match points {
            Some(points) if *points < Points(0) || *points > most => {
                let fault = format!("awards[{place}].points: 0 to the points of the question");
                return Err(Refusal::Invalid(fault.into()));
            }
            Some(points) => awards.insert(question_id.clone(), *points),
            None => awards.remove(question_id),
        };
    }
    tx.save_awards(tenant, &newest.id, &awards).await
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct ListAttempts {
    pub id: ExamId,
    /// Of one user only.
    #[serde(default)]
    pub user: Option<UserId>,
    #[serde(default)]
    pub cursor: Option<Cursor>,
    /// 1 to 100; 50 unless said otherwise.
    #[serde(default)]
    pub limit: Option<u32>,
}

/// An attempt, without its answers.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AttemptView {
    pub id: AttemptId,
    pub exam_id: ExamId,
    pub user_id: UserId,
    pub user_name: String,
    pub attempt_no: i64,
    pub paper_version: i64,
    pub status: AttemptStatus,
    pub current_question: i64,
    pub started_at: Timestamp,
    pub deadline_at: Option<Timestamp>,
    /// Whole seconds.
    pub time_remaining: i64,
    pub extra_seconds: i64,
    pub paused_seconds: i64,
    pub last_activity: Timestamp,
    pub completed_at: Option<Timestamp>,
    pub ended_by: Option<EndedBy>,
    /// Where in the paper each question of the attempt is; null: as in the paper.
    pub question_order: Option<Vec<usize>>,
}

impl AttemptView {
    fn new(attempt: Attempt, now: Timestamp) -> Self {
        Self {
            time_remaining: attempt.remaining_seconds(now),
            id: attempt.id,
            exam_id: attempt.exam,
            user_id: attempt.user,
            user_name: attempt.user_name,
            attempt_no: attempt.number,
            paper_version: attempt.paper_version,
            status: attempt.status,
            current_question: attempt.current_question,
            started_at: attempt.started_at,
            deadline_at: attempt.deadline_at,
            extra_seconds: attempt.extra_ms / 1_000,
            paused_seconds: attempt.paused_ms / 1_000,
            last_activity: attempt.last_activity,
            completed_at: attempt.completed_at,
            ended_by: attempt.ended_by,
            question_order: attempt.order,
        }
    }
}

impl Operation for ListAttempts {
    type Reply = Listed<AttemptView>;
    const NAME: &'static str = "listAttempts";
    const METHOD: Method = Method::Get;
    const PATH: &'static str = "/v1/exams/{id}/attempts";
    const RIGHT: Right = Right::ReadExams;
    const SUMMARY: &'static str = "Attempts at an exam, in the order they were begun";

    async fn handle(self, cx: &mut Cx<'_>) -> Result<Listed<AttemptView>, Refusal> {
        let (tenant, limit) = (&cx.caller.tenant, page::limit(self.limit));
        let after = after(self.cursor.as_ref(), AttemptId::new)?;
        let mut reads = cx.read().await?;
        let exam = found(reads.as_mut(), tenant, &self.id).await?;
        let user = self.user.as_ref();
        let attempts = reads.attempts(tenant, &exam.id, user, after.as_ref(), limit + 1).await?;
        let views = attempts.into_iter().map(|of| AttemptView::new(of, cx.now)).collect();
        Ok(Listed::new(views, limit, |of: &AttemptView| Cursor::after([of.id.as_str()])))
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct ListResults {
    pub id: ExamId,
    /// Of one user only.
    #[serde(default)]
    pub user: Option<UserId>,
    #[serde(default)]
    pub cursor: Option<Cursor>,
    /// 1 to 100; 50 unless said otherwise.
    #[serde(default)]
    pub limit: Option<u32>,
}

/// A result as its school sees it, released or not.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResultView {
    pub id: ResultId,
    pub exam_id: ExamId,
    pub user_id: UserId,
    pub attempt_id: AttemptId,
    pub attempt_no: i64,
    /// Right answers.
    pub score: i64,
    pub total_questions: i64,
    pub points: Points,
    pub max_points: Points,
    /// Whether somebody has still to read an essay: give points with `regrade`.
    pub pending_review: bool,
    /// In the order of the attempt.
    pub answers: Vec<Value>,
    pub awards: Awards,
    pub revision: i64,
    pub key_version: i64,
    pub completed_at: Timestamp,
    pub released_at: Option<Timestamp>,
}

impl From<ExamResult> for ResultView {
    fn from(result: ExamResult) -> Self {
        let marks = result.marks;
        Self {
            id: result.id,
            exam_id: result.exam,
            user_id: result.user,
            attempt_id: result.attempt,
            attempt_no: result.attempt_number,
            score: marks.right,
            total_questions: marks.questions,
            points: marks.points,
            max_points: marks.max_points,
            pending_review: marks.pending_review,
            answers: result.answers,
            awards: result.awards,
            revision: result.revision,
            key_version: result.key_version,
            completed_at: result.completed_at,
            released_at: result.released_at,
        }
    }
}

impl Operation for ListResults {
    type Reply = Listed<ResultView>;
    const NAME: &'static str = "listResults";
    const METHOD: Method = Method::Get;
    const PATH: &'static str = "/v1/exams/{id}/results";
    const RIGHT: Right = Right::ReadExams;
    const SUMMARY: &'static str = "Results of an exam, in the order they were made";

    async fn handle(self, cx: &mut Cx<'_>) -> Result<Listed<ResultView>, Refusal> {
        let (tenant, limit) = (&cx.caller.tenant, page::limit(self.limit));
        let after = after(self.cursor.as_ref(), ResultId::new)?;
        let mut reads = cx.read().await?;
        let exam = found(reads.as_mut(), tenant, &self.id).await?;
        let user = self.user.as_ref();
        let results = reads.results(tenant, &exam.id, user, after.as_ref(), limit + 1).await?;
        let views = results.into_iter().map(ResultView::from).collect();
        Ok(Listed::new(views, limit, |of: &ResultView| Cursor::after([of.id.as_str()])))
    }
}
