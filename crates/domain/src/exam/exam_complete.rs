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
    ids::ExamId,
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
        let (app, tenant, now) = (cx.app, &cx.caller.tenant, cx.now);
        let attempt = newest_attempt(cx, &self.exam_id).await?;
        // A page that shows an earlier attempt means that one, which has ended.
        let ended = match attempt.status {
            AttemptStatus::Completed => Some(attempt.id.clone()),
            _ => cx.caller.told.earlier(&attempt, now),
        };
        let closes_at = attempt.closes_at(app.exams.settings.grace);
        if let Some(ended) = ended {
            let found = cx.tx().await?.result_of_attempt(tenant, &ended).await?;
            let result = found.ok_or_else(|| Refusal::internal("a result is missing"))?;
            let again = ExamCompleted { exam_id: self.exam_id, result: ShownResult::from(&result) };
            cx.send(ToStudent::Caller, &again)?;
            return Ok(again);
        }
        let result = match attempt.status {
            _ if closes_at.is_some_and(|at| now > at) => {
                let by =
                    if attempt.forced_at.is_some() { EndedBy::Staff } else { EndedBy::Deadline };
                finish_one(cx, attempt, by).await?
            }
            AttemptStatus::Paused => return Err(Refusal::Paused),
            AttemptStatus::InProgress | AttemptStatus::Completed => {
                finish_one(cx, attempt, EndedBy::Student).await?
            }
        };
        Ok(ExamCompleted { exam_id: self.exam_id, result: ShownResult::from(&result) })
    }
}
