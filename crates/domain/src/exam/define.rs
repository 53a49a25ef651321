//! An exam as a school's backend writes it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Exam, Part, Release,
    paper::{Paper, QuestionInput},
};
use crate::{
    dispatch::Cx,
    ids::{ExamId, Timestamp, UserId},
    refusal::Refusal,
};

const MAX_TITLE_CHARS: usize = 255;
/// People listed in one exam.
const MAX_PEOPLE: usize = 20_000;
const MAX_ATTEMPTS: i64 = 1_000;
/// The year 1: what every database can hold.
const EARLIEST: Timestamp = Timestamp(-62_135_596_800_000);
/// A week; longer exams are windows.
const MAX_MINUTES: f64 = 7.0 * 24.0 * 60.0;

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(inline)]
pub struct ExamInput {
    /// Minted here unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ExamId>,
    pub title: String,
    /// The specialty it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// From the start of an attempt; without it, or with 0, as long as the window is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_minutes: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opens_at: Option<Timestamp>,
    /// An attempt begun late ends here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closes_at: Option<Timestamp>,
    /// 1 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts_allowed: Option<i64>,
    /// Whether each attempt has the questions in an order of its own.
    #[serde(default)]
    pub shuffle: bool,
    /// `immediately` unless given.
    #[serde(default)]
    pub release: Release,
    /// Whether the others in the exam see the score of who has finished.
    #[serde(default)]
    pub show_scores: bool,
    /// Who may steer it, besides administrators; without it every mentor and proctor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staff: Option<Vec<UserId>>,
    /// Who may sit it; without it everyone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub participants: Option<Vec<UserId>>,
    pub questions: Vec<QuestionInput>,
}

/// Makes the exam, or changes it for attempts begun from now on. Saying the same again changes
/// nothing.
pub async fn define(cx: &mut Cx<'_>, id: ExamId, input: &ExamInput) -> Result<Exam, Refusal> {
    let (tenant, now) = (&cx.caller.tenant, cx.now);
    input.check()?;
    let questions = Paper::new(&input.questions)?.to_json()?;
    let tx = cx.tx().await?;
    let before = tx.exam(tenant, &id).await?;
    let stored = match &before {
        Some(exam) => tx.paper(tenant, &id, exam.paper_version).await?,
        None => None,
    };
    let version = before.as_ref().map_or(0, |exam| exam.paper_version);
    let has_new_paper = stored.as_ref() != Some(&questions);
    #[expect(clippy::cast_possible_truncation, reason = "at most a week")]
    let ms = |minutes: f64| (minutes * 60_000.0).round() as i64;
    let exam = Exam {
        title: input.title.trim().to_owned(),
        topic: input.topic.clone().filter(|topic| !topic.trim().is_empty()),
        duration_ms: input.duration_minutes.map(ms).filter(|ms| *ms > 0),
        opens_at: input.opens_at,
        closes_at: input.closes_at,
        attempts_allowed: input.attempts_allowed.unwrap_or(1),
        shuffle: input.shuffle,
        release: input.release,
        shows_scores: input.show_scores,
        for_everyone: input.participants.is_none(),
        by_any_staff: input.staff.is_none(),
        paper_version: version + i64::from(has_new_paper),
        closed_at: before.as_ref().and_then(|exam| exam.closed_at),
        released_at: before.as_ref().and_then(|exam| input.released_at(exam, now)),
        created_at: before.as_ref().map_or(now, |exam| exam.created_at),
        updated_at: now,
        id,
    };
    tx.save_exam(tenant, &exam).await?;
    if has_new_paper {
        tx.insert_paper(tenant, &exam.id, exam.paper_version, &questions, now).await?;
    }
    if let Some(before) = &before {
        // Who looks on and may no more hears no more.
        tx.review_staff(tenant, &exam.id, before.by_any_staff && !exam.by_any_staff).await?;
    }
    tx.set_exam_people(tenant, &exam.id, &input.people()).await?;
    Ok(exam)
}

impl ExamInput {
    fn check(&self) -> Result<(), Refusal> {
        let fault = |text: &'static str| Err(Refusal::Invalid(text.into()));
        let chars = self.title.trim().chars().count();
        if chars == 0 || chars > MAX_TITLE_CHARS {
            return fault("title: 1 to 255 characters");
        }
        if self.topic.as_ref().is_some_and(|topic| topic.chars().count() > MAX_TITLE_CHARS) {
            return fault("topic: at most 255 characters");
        }
        let has_zero = |text: &String| text.contains('\0');
        if has_zero(&self.title) || self.topic.as_ref().is_some_and(has_zero) {
            return fault("title, topic: no zero characters");
        }
        let is_ancient = |at: Timestamp| at < EARLIEST;
        if [self.opens_at, self.closes_at].into_iter().flatten().any(is_ancient) {
            return fault("opensAt, closesAt: from the year 1");
        }
        if self.duration_minutes.is_some_and(|minutes| !(0.0..=MAX_MINUTES).contains(&minutes)) {
            return fault("durationMinutes: 0 to 10080");
        }
        if let (Some(opens), Some(closes)) = (self.opens_at, self.closes_at)
            && closes <= opens
        {
            return fault("closesAt: after opensAt");
        }
        if self.attempts_allowed.is_some_and(|count| !(1..=MAX_ATTEMPTS).contains(&count)) {
            return fault("attemptsAllowed: 1 to 1000");
        }
        let lists = [&self.staff, &self.participants];
        if lists.into_iter().flatten().any(|list| list.len() > MAX_PEOPLE) {
            return fault("staff, participants: at most 20000");
        }
        Ok(())
    }

    /// Whether results are out, once this takes the place of what was there. Those that a student
    /// has seen stay seen.
    fn released_at(&self, before: &Exam, now: Timestamp) -> Option<Timestamp> {
        let is_open_again = before.closed_at.is_none()
            && self.closes_at != before.closes_at
            && self.closes_at.is_none_or(|at| at > now);
        match self.release {
            Release::Immediately if before.release != Release::Immediately => {
                before.released_at.or(Some(now))
            }
            Release::AfterClose if is_open_again => None,
            _ => before.released_at,
        }
    }

    fn people(&self) -> Vec<(UserId, Part)> {
        let listed = |list: &Option<Vec<UserId>>, part: Part| {
            list.iter().flatten().map(|user| (user.clone(), part)).collect::<Vec<_>>()
        };
        let participant = Part { is_participant: true, is_staff: false };
        let staff = Part { is_participant: false, is_staff: true };
        let mut people = listed(&self.participants, participant);
        people.extend(listed(&self.staff, staff));
        people
    }
}
