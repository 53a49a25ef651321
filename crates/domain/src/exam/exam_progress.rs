//! `exam-progress`: a snapshot of the whole attempt, every 30 s. It is merged question by question:
//! a snapshot never undoes what its connection does not know of.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Answer, Attempt, Exams,
    events::{ExamProgressSaved, NotTaken},
    journal,
    journal::{Entry, Saved},
    own_attempt,
    paper::Paper,
};
use crate::{
    contract::{Class, Command, Handle, Policy, ToCaller},
    dispatch::Cx,
    ids::ExamId,
    refusal::{Code, Refusal},
};

/// As much as a frame may hold.
const MAX_BYTES: usize = 960 * 1024;

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExamProgress {
    pub exam_id: ExamId,
    /// The position the student is at; from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_question: Option<u32>,
    /// Heard and not believed: the server owns the clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_remaining: Option<f64>,
    /// By position. `null` says nothing about its question: the JSON of a sparse array has it
    /// wherever nothing was entered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<Vec<Value>>,
}

impl Command for ExamProgress {
    type In = Exams;
    type Reply = ExamProgressSaved;
    const NAME: &'static str = "exam-progress";
    const POLICY: Policy =
        Policy::new(Class::Exam, "Exam ID is required", "Failed to save progress")
            .sitting()
            .max_bytes(MAX_BYTES)
            .texts(&[(Code::NotFound, "Exam session not found")]);
    fn example() -> Self {
        Self {
            exam_id: ExamId::new("anatomy-1").expect("a sound id"),
            current_question: Some(1),
            time_remaining: Some(1_800.0),
            answers: Some(vec![Value::from(2), Value::Null]),
        }
    }
}

impl Handle for ExamProgress {
    async fn handle(self, cx: &mut Cx<'_>) -> Result<ExamProgressSaved, Refusal> {
        let (app, caller, now) = (cx.app, cx.caller, cx.now);
        let tenant = &caller.tenant;
        let mut attempt = own_attempt(cx, &self.exam_id).await?;
        attempt.check_open(now, app.exams.settings.grace)?;
        let tx = cx.tx().await?;
        let paper = app.exams.paper(tx, tenant, &self.exam_id, attempt.paper_version).await?;
        let given = given(&attempt, &paper, self.answers.unwrap_or_default())?;
        if let Some(position) = self.current_question {
            if position as usize >= paper.questions.len().max(1) {
                return Err(Refusal::UnknownQuestion("currentQuestion is not in the paper".into()));
            }
            attempt.current_question = position.into();
        }

        let late = attempt.deadline_at.is_some_and(|deadline| now > deadline);
        let mut stored = Vec::new();
        if !given.is_empty() {
            stored = tx.answers(tenant, &attempt.id).await?;
        }
        let (mut taken, mut not_taken, mut known_now) = (Vec::new(), Vec::new(), Vec::new());
        for (place, value) in given {
            let known = stored.iter().find(|answer| answer.question == place);
            match known {
                Some(answer) if answer.value == value => known_now.push((place, answer.version)),
                Some(answer) if !caller.told.knows(&attempt.id, place, answer.version, now) => {
                    not_taken.push(NotTaken {
                        question_index: attempt.position(place),
                        answer: answer.value.clone(),
                        version: answer.version,
                    });
                }
                _ => {
                    let mut answer =
                        Answer { question: place, value, version: 0, received_at: now, late };
                    tx.put_answer(tenant, &attempt.id, &mut answer).await?;
                    taken.push(answer);
                }
            }
        }
        if !taken.is_empty() {
            let saved = Entry::Answered { answers: taken.iter().map(Saved::from).collect() };
            journal(cx, &mut attempt, &[&saved]).await?;
        }
        attempt.last_activity = now;
        cx.tx().await?.save_progress(tenant, &attempt).await?;
        let saved = ExamProgressSaved {
            exam_id: self.exam_id,
            current_question: attempt.current_question,
            time_remaining: attempt.remaining_seconds(now),
            timestamp: now,
            deadline_at: attempt.deadline_at,
            not_taken,
        };
        known_now.extend(taken.iter().map(|of| (of.question, of.version)));
        let (exam, id) = (attempt.exam, attempt.id);
        cx.after_commit(move || caller.told.tell((&exam, &id), known_now, now));
        cx.send(ToCaller(), &saved)?;
        Ok(saved)
    }
}

/// What the snapshot says, by place in the paper; all of it is sound or none of it is taken.
fn given(
    attempt: &Attempt,
    paper: &Paper,
    answers: Vec<Value>,
) -> Result<Vec<(usize, Value)>, Refusal> {
    answers
        .into_iter()
        .enumerate()
        .filter(|(_, value)| !value.is_null())
        .map(|(position, value)| {
            let place = attempt.place(position).unwrap_or(usize::MAX);
            paper.question(place)?.check(&value)?;
            Ok((place, value))
        })
        .collect()
}
