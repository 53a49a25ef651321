//! The end of an attempt, whatever brings it about: one result, one notification, one change of
//! the leaderboard. The attempt is locked, so whoever comes second finds it completed.

use std::collections::{BTreeMap, HashMap};

use serde_json::json;

use super::{
    Answer, Attempt, AttemptStatus, EndedBy, Exam, ExamResult, answers_in_order, entry_of,
    events::{ExamCompleted, ParticipantCompletedExam, ShownResult, ToStudent},
    grade::Awards,
    journal::{Entry, JournalRow},
    results, room,
};
use crate::{
    contract::{Scope, ToOthers},
    dispatch::{App, Caller, Cx, Effect},
    ids::{AttemptId, ResultId, TenantId, Timestamp},
    notification::{self, Notice, Priority},
    ports::Lease,
    refusal::Refusal,
};

/// Makes one attempt final, as [`finish`] does.
pub(super) async fn finish_one(
    cx: &mut Cx<'_>,
    attempt: Attempt,
    by: EndedBy,
) -> Result<ExamResult, Refusal> {
    let results = finish(cx, vec![(attempt, by)]).await?;
    results.into_iter().next().ok_or_else(|| Refusal::internal("an attempt without a result"))
}

/// Makes attempts final, and their results; the attempts are locked and not completed. All of a
/// kind is written together: a whole school may end at one instant.
async fn finish(
    cx: &mut Cx<'_>,
    attempts: Vec<(Attempt, EndedBy)>,
) -> Result<Vec<ExamResult>, Refusal> {
    let tenant = &cx.caller.tenant;
    let ids: Vec<_> = attempts.iter().map(|(attempt, _)| attempt.id.clone()).collect();
    let mut answers = cx.tx().await?.answers_of(tenant, &ids).await?;
    let mut exams = HashMap::new();
    let (mut ended, mut rows, mut results) = (Vec::new(), Vec::new(), Vec::new());
    for (mut attempt, by) in attempts {
        if !exams.contains_key(&attempt.exam) {
            let found = cx.tx().await?.exam(tenant, &attempt.exam).await?;
            exams.insert(attempt.exam.clone(), found.ok_or(Refusal::NotFound)?);
        }
        let answers = answers.remove(&attempt.id).unwrap_or_default();
        let exam = &exams[&attempt.exam];
        let (entries, result) = end(cx, exam, &mut attempt, &answers, by).await?;
        rows.extend(entries);
        ended.push(attempt);
        results.push(result);
    }
    let tx = cx.tx().await?;
    tx.append_journal(tenant, &rows).await?;
    for attempt in &ended {
        tx.save_attempt(tenant, attempt).await?;
    }
    tx.insert_results(tenant, &results).await?;
    results::count_in(cx, &results).await?;
    let mut notices = Vec::with_capacity(results.len());
    for (attempt, result) in ended.iter().zip(&results) {
        let exam = &exams[&attempt.exam];
        tell(cx, exam, attempt, result)?;
        notices.push((attempt.user.clone(), completion_notice(exam, result)));
    }
    notification::tell(cx, notices).await?;
    Ok(results)
}

/// Ends the attempt and marks its answers.
async fn end(
    cx: &mut Cx<'_>,
    exam: &Exam,
    attempt: &mut Attempt,
    answers: &[Answer],
    by: EndedBy,
) -> Result<([(AttemptId, JournalRow); 2], ExamResult), Refusal> {
    let (app, now) = (cx.app, cx.now);
    let tenant = &cx.caller.tenant;
    let paper = app.exams.paper(cx.tx().await?, tenant, &exam.id, attempt.paper_version).await?;
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
    let marks = paper.mark(&values(answers), &Awards::new());
    let graded = Entry::Graded {
        revision: 1,
        key_version: attempt.paper_version,
        paper: super::paper::fingerprint(&paper.to_json()?),
        awards: Awards::new(),
        marks: marks.clone(),
    };
    let rows = [submitted, graded].map(|entry| entry_of(cx, attempt, &entry));
    let result = ExamResult {
        id: ResultId::new(app.ids.uuid()).map_err(Refusal::internal)?,
        exam: exam.id.clone(),
        user: attempt.user.clone(),
        attempt: attempt.id.clone(),
        attempt_number: attempt.number,
        marks,
        answers: answers_in_order(attempt, answers),
        awards: Awards::new(),
        revision: 1,
        key_version: attempt.paper_version,
        completed_at,
        released_at: exam.releases_at_once().then_some(now),
        journal_len: attempt.journal_len,
        journal_head: attempt.journal_head.clone(),
    };
    Ok((rows, result))
}

pub(super) fn values(answers: &[Answer]) -> BTreeMap<usize, serde_json::Value> {
    answers.iter().map(|answer| (answer.question, answer.value.clone())).collect()
}

/// The student on every socket, and the others in the room.
fn tell(
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
    cx.send_counting(ToOthers(room.clone(), user), &event, room)
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

/// Makes due attempts of one tenant final, and says how many; nothing happens to one that was not
/// due after all.
pub async fn finish_due(
    app: &App,
    lease: Lease,
    tenant: &TenantId,
    attempts: &[AttemptId],
) -> Result<(usize, Vec<Effect>), Refusal> {
    let (system, now) = (Caller::system(tenant), app.clock.now());
    let mut cx = Cx::holding(lease, app, &system, now);
    let locked = cx.tx().await?.lock_attempts(tenant, attempts).await?;
    let due: Vec<_> = locked
        .into_iter()
        .filter_map(|attempt| {
            let by = match attempt.status {
                AttemptStatus::Completed => return None,
                _ if attempt.forced_at.is_some() => EndedBy::Staff,
                AttemptStatus::Paused => return None,
                AttemptStatus::InProgress if attempt.deadline_at.is_none_or(|at| at > now) => {
                    return None;
                }
                AttemptStatus::InProgress => EndedBy::Deadline,
            };
            Some((attempt, by))
        })
        .collect();
    let finished = finish(&mut cx, due).await?.len();
    Ok((finished, cx.commit().await?))
}

/// Sets an attempt aside that cannot be made final, so that it does not hold up the rest.
pub async fn set_aside(
    app: &App,
    lease: Lease,
    tenant: &TenantId,
    attempt: &AttemptId,
) -> Result<(), Refusal> {
    let mut tx = lease.begin(&*app.store, tenant, Scope::Rows).await?;
    tx.set_aside(tenant, attempt, app.clock.now()).await?;
    tx.commit().await
}
