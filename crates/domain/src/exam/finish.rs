//! The end of an attempt, whatever brings it about: one result, one notification, one change of
//! the leaderboard. The attempt is locked, so whoever comes second finds it completed.

use std::collections::BTreeMap;

use serde_json::json;

use super::{
    Answer, Attempt, AttemptStatus, EndedBy, Exam, ExamResult, answers_in_order,
    events::{ExamCompleted, ParticipantCompletedExam, ShownResult, ToStudent},
    grade::Awards,
    journal,
    journal::Entry,
    locked, results, room,
};
use crate::{
    contract::{Scope, ToOthers},
    dispatch::{App, Caller, Cx, Effect},
    ids::{AttemptId, ResultId, TenantId, Timestamp},
    notification::{self, Notice, Priority},
    refusal::Refusal,
};

/// Makes the attempt final and its result; the attempt is locked and not completed.
pub(super) async fn finish(
    cx: &mut Cx<'_>,
    mut attempt: Attempt,
    by: EndedBy,
) -> Result<ExamResult, Refusal> {
    let (app, tenant, now) = (cx.app, &cx.caller.tenant, cx.now);
    let tx = cx.tx().await?;
    let exam = tx.exam(tenant, &attempt.exam).await?.ok_or(Refusal::NotFound)?;
    let paper = app.exams.paper(tx, tenant, &exam.id, attempt.paper_version).await?;
    let answers = tx.answers(tenant, &attempt.id).await?;

    let completed_at = match by {
        EndedBy::Student => attempt.deadline_at.map_or(now, |deadline| deadline.min(now)),
        EndedBy::Deadline => attempt.deadline_at.unwrap_or(now),
        EndedBy::Staff => attempt.forced_at.unwrap_or(now),
    };
    attempt.status = AttemptStatus::Completed;
    attempt.completed_at = Some(completed_at);
    attempt.ended_by = Some(by);
    attempt.clock_rev += 1;
    let submitted = Entry::Submitted { by: by.as_str().to_owned(), completed_at: completed_at.0 };
    let marks = paper.mark(&values(&answers), &Awards::new());
    let graded = Entry::Graded {
        revision: 1,
        key_version: attempt.paper_version,
        paper: super::paper::fingerprint(&paper.to_json()?),
        awards: Awards::new(),
        marks: marks.clone(),
    };
    journal(cx, &mut attempt, &[&submitted, &graded]).await?;

    let result = ExamResult {
        id: ResultId::new(app.ids.uuid()).map_err(Refusal::internal)?,
        exam: exam.id.clone(),
        user: attempt.user.clone(),
        attempt: attempt.id.clone(),
        attempt_number: attempt.number,
        marks,
        answers: answers_in_order(&attempt, &answers),
        awards: Awards::new(),
        revision: 1,
        key_version: attempt.paper_version,
        completed_at,
        released_at: exam.releases_at_once().then_some(now),
        journal_len: attempt.journal_len,
        journal_head: attempt.journal_head.clone(),
    };
    let tx = cx.tx().await?;
    tx.save_attempt(tenant, &attempt).await?;
    tx.insert_result(tenant, &result).await?;
    results::count_in(cx, &result).await?;
    tell(cx, &exam, &attempt, &result).await?;
    Ok(result)
}

pub(super) fn values(answers: &[Answer]) -> BTreeMap<usize, serde_json::Value> {
    answers.iter().map(|answer| (answer.question, answer.value.clone())).collect()
}

/// The student on every socket, the others in the room, and the bell.
async fn tell(
    cx: &mut Cx<'_>,
    exam: &Exam,
    attempt: &Attempt,
    result: &ExamResult,
) -> Result<(), Refusal> {
    let (room, user) = (room(&exam.id), attempt.user.clone());
    cx.record(Effect::Expel(user.clone(), room.clone()));
    let completed = ExamCompleted { exam_id: exam.id.clone(), result: ShownResult::from(result) };
    cx.send(ToStudent::Everywhere(user.clone()), &completed)?;
    let event = ParticipantCompletedExam {
        exam_id: exam.id.clone(),
        user_id: user.clone(),
        user_name: attempt.user_name.clone(),
        // Before the release nobody's score is shown to anybody.
        score: result.released_at.filter(|_| exam.shows_scores).map(|_| result.marks.right),
        total_questions: result.marks.questions,
        participant_count: 0,
    };
    cx.send_counting(ToOthers(room.clone(), user.clone()), &event, room)?;
    notification::tell(cx, user, completion_notice(exam, result)).await
}

fn completion_notice(exam: &Exam, result: &ExamResult) -> Notice {
    let message = if result.released_at.is_some() {
        scored(result)
    } else {
        format!("Your answers to {} have been submitted", exam.title)
    };
    Notice {
        kind: "EXAM_UPDATE",
        title: "Exam Completed".into(),
        message,
        data: Some(json!({ "examId": exam.id, "resultId": result.id })),
        priority: Priority::Normal,
        action_url: None,
    }
}

/// The contract's sentence.
pub(super) fn scored(result: &ExamResult) -> String {
    format!("You scored {}/{} on the exam", result.marks.right, result.marks.questions)
}

/// Attempts whose time is up, oldest first. They are due a moment after the grace: what was
/// received in time may still be on its way to the database.
pub async fn due(app: &App, limit: u32) -> Result<Vec<(TenantId, AttemptId)>, Refusal> {
    let now = app.clock.now();
    let over = super::clock::ms(app.exams.settings.grace + IN_FLIGHT);
    app.store.read().await?.due_attempts(Timestamp(now.0 - over), limit).await
}

/// What was received in time is written within this.
const IN_FLIGHT: std::time::Duration = std::time::Duration::from_millis(500);

/// Makes one due attempt final. Nothing happens when it was not due after all.
pub async fn finish_due(
    app: &App,
    tenant: &TenantId,
    attempt: &AttemptId,
) -> Result<Vec<Effect>, Refusal> {
    let (system, now) = (Caller::system(tenant), app.clock.now());
    let mut cx = Cx::new(app, &system, Scope::Lane, now);
    let attempt = locked(cx.tx().await?, tenant, attempt).await?;
    let by = match attempt.status {
        AttemptStatus::Completed => return Ok(Vec::new()),
        _ if attempt.forced_at.is_some() => EndedBy::Staff,
        AttemptStatus::Paused => return Ok(Vec::new()),
        AttemptStatus::InProgress if attempt.deadline_at.is_none_or(|at| at > now) => {
            return Ok(Vec::new());
        }
        AttemptStatus::InProgress => EndedBy::Deadline,
    };
    finish(&mut cx, attempt, by).await?;
    cx.commit().await
}

/// Sets an attempt aside that cannot be made final, so that it does not hold up the rest.
pub async fn set_aside(app: &App, tenant: &TenantId, attempt: &AttemptId) -> Result<(), Refusal> {
    let mut tx = app.store.begin(tenant, Scope::Rows).await?;
    tx.set_aside(tenant, attempt, app.clock.now()).await?;
    tx.commit().await
}
