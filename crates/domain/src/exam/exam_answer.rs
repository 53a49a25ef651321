//! `exam-answer`: one answer, stored for its question alone.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Answer, Exams,
    events::ExamAnswerSaved,
    journal,
    journal::{Entry, Saved},
    own_attempt,
    paper::MAX_ESSAY_BYTES,
};
use crate::{
    contract::{Class, Command, Handle, Policy, ToCaller},
    dispatch::Cx,
    ids::ExamId,
    refusal::{Code, Refusal},
};

/// What a command has besides an essay; JSON may write a byte of it as six.
const AROUND: usize = 4 * 1024;

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExamAnswer {
    pub exam_id: ExamId,
    /// The position at which the attempt shows the question; from 0.
    pub question_index: usize,
    /// Single choice: the index of an option. Multiple choice: an array of them. Otherwise a
    /// number or a text. `null` takes the answer back.
    pub answer: Value,
}

impl Command for ExamAnswer {
    type In = Exams;
    type Reply = ExamAnswerSaved;
    const NAME: &'static str = "exam-answer";
    const POLICY: Policy = Policy::new(
        Class::Exam,
        "Exam ID, question index, and answer are required",
        "Failed to save answer",
    )
    .sitting()
    .max_bytes(2 * MAX_ESSAY_BYTES + AROUND)
    .texts(&[(Code::NotFound, "Exam session not found")]);
    fn example() -> Self {
        Self {
            exam_id: ExamId::new("anatomy-1").expect("a sound id"),
            question_index: 0,
            answer: Value::from(2),
        }
    }
}

impl Handle for ExamAnswer {
    async fn handle(self, cx: &mut Cx<'_>) -> Result<ExamAnswerSaved, Refusal> {
        let (app, caller, now) = (cx.app, cx.caller, cx.now);
        let mut attempt = own_attempt(cx, &self.exam_id).await?;
        attempt.check_open(now, app.exams.settings.grace)?;
        let tx = cx.tx().await?;
        let (tenant, version) = (&caller.tenant, attempt.paper_version);
        let paper = app.exams.paper(tx, tenant, &self.exam_id, version).await?;
        let place = attempt.place(self.question_index).unwrap_or(usize::MAX);
        paper.question(place)?.check(&self.answer)?;

        let late = attempt.deadline_at.is_some_and(|deadline| now > deadline);
        let mut answer =
            Answer { question: place, value: self.answer, version: 0, received_at: now, late };
        let is_new = tx.put_answer(tenant, &attempt.id, &mut answer).await?;
        if is_new {
            let saved = Entry::Answered { answers: vec![Saved::from(&answer)] };
            journal(cx, &mut attempt, &[&saved]).await?;
            attempt.last_activity = now;
            cx.tx().await?.save_progress(tenant, &attempt).await?;
        }
        let (exam, id, known) = (attempt.exam, attempt.id, (place, answer.version));
        cx.after_commit(move || caller.told.tell((&exam, &id), [known], now));
        let saved = ExamAnswerSaved {
            exam_id: self.exam_id,
            question_index: self.question_index,
            answer: answer.value,
            timestamp: now,
            version: answer.version,
            late,
        };
        cx.send(ToCaller(), &saved)?;
        Ok(saved)
    }
}

impl From<&Answer> for Saved {
    fn from(answer: &Answer) -> Self {
        Self {
            question: answer.question,
            version: answer.version,
            late: answer.late,
            answer: answer.value.clone(),
        }
    }
}
