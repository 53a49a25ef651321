//! What happens to results after they are made: release and regrading. Both may concern thousands,
//! so they are asked for in one statement and carried out a few at a time.

use super::{
    ExamResult,
    events::{ExamCompleted, ShownResult, ToStudent},
    finish::{scored, values},
    journal,
    journal::Entry,
    locked,
};
use crate::{
    contract::Scope,
    dispatch::{App, Caller, Cx, Effect},
    ids::{ResultId, TenantId, Timestamp},
    leaderboard::{self, Change},
    notification::{self, Notice, Priority},
    ports::Lease,
    refusal::Refusal,
};

/// Right answers in hundredths of a percent; an exam without questions counts as 0.
fn percent(result: &ExamResult) -> i64 {
    let marks = &result.marks;
    (marks.right * 10_000).checked_div(marks.questions).unwrap_or(0)
}

/// Counts released results into the leaderboard.
pub(super) async fn count_in(cx: &mut Cx<'_>, results: &[ExamResult]) -> Result<(), Refusal> {
    let released = results.iter().filter(|result| result.released_at.is_some());
    let changes: Vec<_> = released
        .map(|result| Change {
            user: result.user.clone(),
            completed_at: result.completed_at,
            results: 1,
            score: result.marks.right,
            percent: percent(result),
        })
        .collect();
    leaderboard::revise(cx, &changes).await
}

/// Something to be done to a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    Release,
    Regrade,
}

/// Releases exams whose time has come, and says which results wait for something.
pub async fn due(
    app: &App,
    lease: Lease,
    limit: u32,
) -> Result<Vec<(TenantId, ResultId, Due)>, Refusal> {
    let now = app.clock.now();
    let over = Timestamp(now.0 - super::clock::ms(app.exams.settings.grace));
    let mut reads = app.store.read().await?;
    let ended = reads.exams_to_release(over, limit).await?;
    let due = reads.due_results(limit).await?;
    drop(reads);
    for (tenant, exam) in ended {
        let mut tx = lease.begin(&*app.store, &tenant, Scope::Rows).await?;
        tx.release_exam(&tenant, &exam, now).await?;
        tx.commit().await?;
    }
    Ok(due)
}

/// Does to one result what is due. Nothing happens when it was done meanwhile.
pub async fn carry_out(
    app: &App,
    lease: Lease,
    tenant: &TenantId,
    result: &ResultId,
    due: Due,
) -> Result<Vec<Effect>, Refusal> {
    let system = Caller::system(tenant);
    let mut cx = Cx::holding(lease, app, &system, app.clock.now());
    match due {
        Due::Release => release(&mut cx, result).await?,
        Due::Regrade => regrade(&mut cx, result).await?,
    }
    cx.commit().await
}

async fn release(cx: &mut Cx<'_>, id: &ResultId) -> Result<(), Refusal> {
    let (tenant, now) = (&cx.caller.tenant, cx.now);
    let tx = cx.tx().await?;
    if !tx.release_result(tenant, id, now).await? {
        return Ok(());
    }
    let result = tx.result(tenant, id).await?.ok_or(Refusal::NotFound)?;
    count_in(cx, std::slice::from_ref(&result)).await?;
    tell(cx, &result, "Exam Result").await
}

/// The student sees the result as it is now.
async fn tell(cx: &mut Cx<'_>, result: &ExamResult, title: &str) -> Result<(), Refusal> {
    let completed =
        ExamCompleted { exam_id: result.exam.clone(), result: ShownResult::from(result) };
    cx.send(ToStudent::Everywhere(result.user.clone()), &completed)?;
    let notice = Notice {
        kind: "EXAM_UPDATE",
        title: title.into(),
        message: scored(result),
        data: Some(serde_json::json!({ "examId": result.exam, "resultId": result.id })),
        priority: Priority::Normal,
        action_url: None,
    };
    notification::tell(cx, vec![(result.user.clone(), notice)]).await
}

/// Marks again with the newest keys: questions are found by their id, so a key that was wrong is
/// mended although the attempt's own paper never changes.
async fn regrade(cx: &mut Cx<'_>, id: &ResultId) -> Result<(), Refusal> {
    let (app, tenant, now) = (cx.app, &cx.caller.tenant, cx.now);
    let tx = cx.tx().await?;
    let found = tx.result(tenant, id).await?.ok_or(Refusal::NotFound)?;
    let mut attempt = locked(tx, tenant, &found.attempt).await?;
    // Read again under the lock.
    let before = tx.result(tenant, id).await?.ok_or(Refusal::NotFound)?;
    let exam = tx.exam(tenant, &before.exam).await?.ok_or(Refusal::NotFound)?;
    let own = app.exams.paper(tx, tenant, &exam.id, attempt.paper_version).await?;
    let newest = app.exams.paper(tx, tenant, &exam.id, exam.paper_version).await?;
    let answers = values(&tx.answers(tenant, &attempt.id).await?);
    let marks = own.with_keys_of(&newest).mark(&answers, &before.awards);

    let has_changed = marks != before.marks || before.key_version != exam.paper_version;
    let mut after = before.clone();
    if has_changed {
        after.marks = marks;
        after.revision += 1;
        after.key_version = exam.paper_version;
        let graded = Entry::Graded {
            revision: after.revision,
            key_version: after.key_version,
            paper: super::paper::fingerprint(&newest.to_json()?),
            awards: after.awards.clone(),
            marks: after.marks.clone(),
        };
        journal(cx, &mut attempt, &[&graded]).await?;
        after.journal_len = attempt.journal_len;
        after.journal_head.clone_from(&attempt.journal_head);
        cx.tx().await?.save_attempt(tenant, &attempt).await?;
    }
    cx.tx().await?.save_regraded(tenant, &after).await?;
    if after.released_at.is_some() && after.marks != before.marks {
        let change = Change {
            user: after.user.clone(),
            completed_at: after.completed_at,
            results: 0,
            score: after.marks.right - before.marks.right,
            percent: percent(&after) - percent(&before),
        };
        leaderboard::revise(cx, &[change]).await?;
        tell(cx, &after, "Exam Result Changed").await?;
    }
    let details = serde_json::json!({ "resultId": id, "revision": after.revision, "at": now });
    cx.audit("exam.regrade", exam.id.as_str(), &details).await
}
