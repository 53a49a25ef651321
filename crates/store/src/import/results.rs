//! Results: each becomes a completed attempt with its answers, a sealed journal and a result.
//!
//! What counts is what the paper's keys give for the answers. A score that was something else,
//! such as a percentage, is replaced by the recount, and counted as mended.

use std::collections::{BTreeMap, HashMap};

use carillon_domain::{
    Timestamp, UserId,
    contract::Scope,
    exam::{
        Answer, Attempt, AttemptStatus, EndedBy, ExamResult,
        grade::{Awards, Marks},
        journal::{Entry, Saved},
        paper::fingerprint,
    },
    ids::{AttemptId, ExamId, ResultId},
    ports::ExamWrites as _,
};
use serde_json::Value;

use super::{
    Import, ImportError, Mends, Table,
    exams::Questions,
    instant,
    source::{Place, ResultRow},
    target::{self, Target},
};
use crate::tx::SqlTx;

/// Who made the entries of an imported journal.
const ACTOR: &str = "import";
/// The same answers again within this are the same submission.
const AGAIN_MS: i64 = 10_000;

/// A result that can be taken over.
struct Fitting {
    user: UserId,
    user_name: String,
    /// By place in the paper.
    answers: BTreeMap<usize, Value>,
    marks: Marks,
    completed_at: Timestamp,
}

impl Import<'_> {
    pub(super) async fn results(&mut self) -> Result<Table, ImportError> {
        let mut table = self.start("exam_results").await?;
        for exam in self.source.exams_with_results().await? {
            self.results_of(&mut table, &exam).await?;
        }
        for id in self.source.lost_results().await? {
            table.skip(&id, "the exam does not exist");
        }
        self.told(&table);
        Ok(table)
    }

    async fn results_of(&mut self, table: &mut Table, exam: &str) -> Result<(), ImportError> {
        let questions = if self.exams.contains(exam) {
            Some(Questions::new(&self.source.questions(exam).await?)?)
        } else {
            None
        };
        let exam = ExamId::new(exam).map_err(carillon_domain::Refusal::internal)?;
        let papers = self.target.papers(&exam).await?;
        let version = |of: &Questions| {
            papers.iter().find(|(_, json)| *json == of.json).map_or(1, |(version, _)| *version)
        };
        let mut last: HashMap<String, (Vec<Value>, i64)> = HashMap::new();
        let mut after = Place::default();
        loop {
            let rows = self.source.results(exam.as_str(), &after).await?;
            let Some(end) = rows.last() else { return Ok(()) };
            after = Place::from(end);
            let ids = rows.iter().map(|row| &row.id);
            let known = self.target.known(&target::RESULTS, ids).await?;
            let sitting = self.target.sitting(&exam).await?;
            let mut tx = self.target.begin(Scope::Rows).await?;
            for row in &rows {
                let Some(questions) = &questions else {
                    table.skip(&row.id, "the exam does not exist, or was skipped");
                    continue;
                };
                let (fitting, mends) = match self.fit(row, questions, &mut last) {
                    Ok(fitting) => fitting,
                    Err(reason) => {
                        table.skip(&row.id, reason);
                        continue;
                    }
                };
                if known.contains(&row.id) {
                    table.keep();
                } else if sitting.contains(fitting.user.as_str()) {
                    table.skip(&row.id, "the user sits the exam here now: import again later");
                } else {
                    if let Some(tx) = &mut tx {
                        let version = version(questions);
                        self.write_result(tx, &exam, &row.id, fitting, questions, version).await?;
                    }
                    table.import(&row.id, mends);
                }
            }
            Target::commit(tx).await?;
            self.told(table);
        }
    }

    fn fit(
        &self,
        row: &ResultRow,
        questions: &Questions,
        last: &mut HashMap<String, (Vec<Value>, i64)>,
    ) -> Result<(Fitting, Mends), &'static str> {
        let mut mends = Mends::default();
        let user = row.user_id.as_deref().and_then(|id| self.users.get_key_value(id));
        let (user, user_name) = user.ok_or("the user does not exist, or was skipped")?;
        let completed_at = instant(row.completed_at).ok_or("without a date")?;
        let given: Option<Vec<Value>> =
            row.answers.as_deref().and_then(|json| serde_json::from_str(json).ok());
        let given = given.ok_or("without answers")?;
        let again = last
            .get(user)
            .is_some_and(|(answers, at)| *answers == given && completed_at.0 - at <= AGAIN_MS);
        if again {
            return Err("the same submission again");
        }
        last.insert(user.clone(), (given.clone(), completed_at.0));
        if given.len() > questions.places.len() {
            mends.note("more answers than questions: the rest was left out");
        }
        let mut answers = BTreeMap::new();
        for (value, place) in given.into_iter().zip(&questions.places) {
            match (value.as_i64(), place) {
                (None, _) if value.is_null() => {}
                (_, None) => mends.note("an answer to a question that was skipped: left out"),
                (Some(0..), Some(place)) => {
                    let is_option = questions.paper.questions[*place].check(&value).is_ok();
                    if !is_option {
                        mends.note("an answer that is no option: wrong");
                    }
                    answers.insert(*place, value);
                }
                _ => mends.note("a negative answer: none"),
            }
        }
        let marks = questions.paper.mark(&answers, &Awards::new());
        if row.total_questions != Some(marks.questions) {
            mends.note("another number of questions: that of the paper");
        }
        if row.score != Some(marks.right) {
            let percentage = (marks.right * 200 + marks.questions) / (marks.questions * 2).max(1);
            mends.note(if row.score == Some(percentage) {
                "the score was a percentage: right answers"
            } else {
                "another score than the answers give: counted again"
            });
        }
        let user = UserId::new(user).map_err(|_| "the user's id is none")?;
        let user_name = user_name.clone();
        Ok((Fitting { user, user_name, answers, marks, completed_at }, mends))
    }

    async fn write_result(
        &self,
        tx: &mut SqlTx,
        exam: &ExamId,
        id: &str,
        fitting: Fitting,
        questions: &Questions,
        paper_version: i64,
    ) -> Result<(), ImportError> {
        let tenant = self.target.tenant;
        let Fitting { user, user_name, answers, marks, completed_at } = fitting;
        let newest = tx.lock_newest_attempt(tenant, exam, &user).await?;
        let mut attempt = Attempt {
            id: AttemptId::new(id).map_err(carillon_domain::Refusal::internal)?,
            exam: exam.clone(),
            user: user.clone(),
            user_name,
            number: newest.map_or(1, |attempt| attempt.number + 1),
            paper_version,
            order: None,
            status: AttemptStatus::Completed,
            current_question: 0,
            // When it began is not known.
            started_at: completed_at,
            limit_ms: None,
            window_end: None,
            extra_ms: 0,
            paused_ms: 0,
            paused_at: None,
            deadline_at: None,
            clock_rev: 2,
            forced_at: None,
            last_activity: completed_at,
            left_at: None,
            completed_at: Some(completed_at),
            ended_by: Some(EndedBy::Student),
            journal_len: 0,
            journal_head: String::new(),
        };
        // Up to the last one answered, as an attempt shows them.
        let last = answers.iter().rfind(|(_, value)| !value.is_null());
        let answers_shown = (0..last.map_or(0, |(place, _)| place + 1))
            .map(|place| answers.get(&place).cloned().unwrap_or(Value::Null))
            .collect();
        let answers: Vec<Answer> = answers
            .into_iter()
            .map(|(question, value)| Answer {
                question,
                value,
                version: 1,
                received_at: completed_at,
                late: false,
            })
            .collect();
        let saved = answers.iter().map(|answer| Saved {
            question: answer.question,
            version: answer.version,
            late: answer.late,
            answer: answer.value.clone(),
        });
        let paper = fingerprint(&questions.json);
        let by = EndedBy::Student.as_str().to_owned();
        let entries = [
            Entry::Started { paper_version, paper: paper.clone(), order: None, deadline_at: None },
            Entry::Answered { answers: saved.collect() },
            Entry::Submitted { by, completed_at: completed_at.0 },
            Entry::Graded {
                revision: 1,
                key_version: paper_version,
                paper,
                awards: Awards::new(),
                marks: marks.clone(),
            },
        ];
        let student = attempt.user.clone();
        let journal = entries.map(|entry| {
            // Who sat it began it; the rest is the import's word.
            let actor = match entry {
                Entry::Started { .. } => student.as_str(),
                _ => ACTOR,
            };
            (attempt.id.clone(), attempt.append(&self.key, completed_at, actor, &entry))
        });
        if !tx.insert_attempt(tenant, &attempt).await? {
            let error = format!("an attempt of {user} at {exam} was begun meanwhile; import again");
            return Err(carillon_domain::Refusal::internal(error).into());
        }
        tx.append_journal(tenant, &journal).await?;
        tx.import_answers(tenant, &attempt.id, &answers, completed_at).await?;
        let result = ExamResult {
            id: ResultId::new(id).map_err(carillon_domain::Refusal::internal)?,
            exam: exam.clone(),
            user,
            attempt: attempt.id.clone(),
            attempt_number: attempt.number,
            marks,
            answers: answers_shown,
            awards: Awards::new(),
            revision: 1,
            key_version: paper_version,
            completed_at,
            released_at: Some(completed_at),
            journal_len: attempt.journal_len,
            journal_head: attempt.journal_head,
        };
        tx.insert_results(tenant, &[result]).await?;
        Ok(())
    }
}
