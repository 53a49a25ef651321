//! `exam-complete`: the student is done. However often it is sent, and from however many tabs,
//! there is one result.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    AttemptStatus, EndedBy, Exams,
    events::{ExamCompleted, ShownResult, ToStudent},
    finish::finish_one,
    newest_attempt,
};
use crate::{
    contract::{Class, Command, Handle, Policy},
    dispatch::Cx,
    ids::{AttemptId, ExamId},
    refusal::{Code, Refusal},
};

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExamComplete {
    pub exam_id: ExamId,
}

impl Command for ExamComplete {
    type In = Exams;
    type Reply = ExamCompleted;
    const NAME: &'static str = "exam-complete";
    const POLICY: Policy =
        Policy::new(Class::Exam, "Exam ID is required", "Failed to complete exam")
            .texts(&[(Code::NotFound, "Exam session not found")]);
    fn example() -> Self {
        Self { exam_id: ExamId::new("anatomy-1").expect("a sound id") }
    }
}

impl Handle for ExamComplete {
    async fn handle(self, cx: &mut Cx<'_>) -> Result<ExamCompleted, Refusal> {
        let (app, now) = (cx.app, cx.now);
        let attempt = newest_attempt(cx, &self.exam_id).await?;
        // A page that shows an earlier attempt means that one, which has ended.
        if let Some(earlier) = cx.caller.told.earlier(&attempt, now) {
            return tell_again(cx, self.exam_id, &earlier).await;
        }
        let closes_at = attempt.closes_at(app.exams.settings.grace);
        let by = match attempt.status {
            AttemptStatus::Completed => return tell_again(cx, self.exam_id, &attempt.id).await,
            _ if closes_at.is_some_and(|at| now > at) => {
                if attempt.forced_at.is_some() {
                    EndedBy::Staff
                } else {
                    EndedBy::Deadline
                }
            }
            AttemptStatus::Paused => return Err(Refusal::Paused),
            AttemptStatus::InProgress => EndedBy::Student,
        };
        let result = finish_one(cx, attempt, by).await?;
        Ok(ExamCompleted { exam_id: self.exam_id, result: ShownResult::from(&result) })
    }
}

/// Tells the caller of an attempt that has ended.
pub(super) async fn tell_again(
    cx: &mut Cx<'_>,
    exam_id: ExamId,
    attempt: &AttemptId,
) -> Result<ExamCompleted, Refusal> {
    let tenant = &cx.caller.tenant;
    let found = cx.tx().await?.result_of_attempt(tenant, attempt).await?;
    let result = found.ok_or_else(|| Refusal::internal("a result is missing"))?;
    let again = ExamCompleted { exam_id, result: ShownResult::from(&result) };
    cx.send(ToStudent::Caller, &again)?;
    Ok(again)
}
