//! Papers, attempts, deadlines and results.
//!
//! An attempt is one row and its answers; its deadline is an absolute instant in that row, enforced
//! where something is written. Whatever ends an attempt, [`finish`] makes its result, once.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    contract::{Event, EventRow, Namespace, Route, ToOthers, event, route},
    dispatch::{Caller, Cx, Effect, Emit},
    identity::Role,
    ids::{AttemptId, ConnectionId, ExamId, ResultId, RoomId, TenantId, Timestamp, UserId},
    ports::{Reads, Tx},
    refusal::Refusal,
};

pub mod api;
pub mod clock;
pub mod control;
pub mod define;
pub mod events;
pub mod exam_answer;
pub mod exam_complete;
pub mod exam_progress;
pub mod finish;
pub mod grade;
pub mod join_exam;
pub mod journal;
pub mod leave_exam;
pub mod number;
pub mod paper;
pub mod results;
mod told;
pub mod verify;

pub use self::told::Told;
use self::{
    control::ExamControl,
    events::{
        ExamAnswerSaved, ExamClock, ExamCompleted, ExamJoined, ExamLeft, ExamProgressSaved,
        ParticipantCompletedExam, ParticipantJoinedExam, ParticipantLeftExam,
    },
    exam_answer::ExamAnswer,
    exam_complete::ExamComplete,
    exam_progress::ExamProgress,
    grade::{Awards, Marks},
    join_exam::JoinExam,
    journal::{Entry, JournalKey, JournalRow},
    leave_exam::LeaveExam,
    paper::Paper,
    told::Pages,
};

pub const COMMANDS: &[Route] = &[
    route::<JoinExam>(),
    route::<LeaveExam>(),
    route::<ExamProgress>(),
    route::<ExamAnswer>(),
    route::<ExamComplete>(),
    route::<ExamControl>(),
];

pub const EVENTS: &[EventRow] = &[
    event::<ExamJoined>(),
    event::<ParticipantJoinedExam>(),
    event::<ExamLeft>(),
    event::<ParticipantLeftExam>(),
    event::<ExamProgressSaved>(),
    event::<ExamAnswerSaved>(),
    event::<ExamCompleted>(),
    event::<ParticipantCompletedExam>(),
    event::<ExamClock>(),
];

/// On `/`, `/api` and `/exam`.
#[derive(Debug)]
pub enum Exams {}
impl Namespace for Exams {
    const PATHS: &'static [&'static str] = &["/", "/api", "/exam"];
}

/// When results are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Release {
    /// As soon as the attempt is final.
    #[default]
    Immediately,
    /// When the window has ended or staff have closed the exam, and no attempt runs any more.
    AfterClose,
    /// When staff release them.
    Manual,
}

impl Release {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Immediately => "immediately",
            Self::AfterClose => "after_close",
            Self::Manual => "manual",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Self::Immediately, Self::AfterClose, Self::Manual]
            .into_iter()
            .find(|release| release.as_str() == text)
    }
}

/// An exam, without its paper and its people.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a column of its own")]
pub struct Exam {
    pub id: ExamId,
    pub title: String,
    pub topic: Option<String>,
    /// `None`: as long as the window is open.
    pub duration_ms: Option<i64>,
    pub opens_at: Option<Timestamp>,
    pub closes_at: Option<Timestamp>,
    pub attempts_allowed: i64,
    pub shuffle: bool,
    pub release: Release,
    /// Whether the others in the room see the score of who has finished.
    pub shows_scores: bool,
    /// Whether everyone of the tenant may sit it; otherwise its participants.
    pub for_everyone: bool,
    /// Whether every mentor and proctor may steer it; otherwise its staff.
    pub by_any_staff: bool,
    /// The newest version of its paper.
    pub paper_version: i64,
    pub closed_at: Option<Timestamp>,
    pub released_at: Option<Timestamp>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl Exam {
    /// Why nobody may begin now.
    fn check_window(&self, now: Timestamp) -> Result<(), Refusal> {
        if let Some(opens_at) = self.opens_at.filter(|at| now < *at) {
            return Err(Refusal::AttemptClosed(format!("the exam opens at {opens_at}").into()));
        }
        let has_ended = self.closes_at.is_some_and(|at| now >= at) || self.closed_at.is_some();
        if has_ended {
            return Err(Refusal::AttemptClosed("the exam is closed".into()));
        }
        Ok(())
    }

    /// Whether a result made now is shown at once.
    fn releases_at_once(&self) -> bool {
        match self.release {
            Release::Immediately => true,
            Release::AfterClose | Release::Manual => self.released_at.is_some(),
        }
    }
}

/// How somebody is listed in an exam.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    pub is_participant: bool,
    pub is_staff: bool,
}

/// Where an attempt stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum AttemptStatus {
    InProgress,
    Paused,
    Completed,
}

impl AttemptStatus {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InProgress => "IN_PROGRESS",
            Self::Paused => "PAUSED",
            Self::Completed => "COMPLETED",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Self::InProgress, Self::Paused, Self::Completed]
            .into_iter()
            .find(|status| status.as_str() == text)
    }
}

/// What ended an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EndedBy {
    Student,
    Deadline,
    Staff,
}

impl EndedBy {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Student => "student",
            Self::Deadline => "deadline",
            Self::Staff => "staff",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Self::Student, Self::Deadline, Self::Staff].into_iter().find(|by| by.as_str() == text)
    }
}

/// One student's attempt; the contract's exam session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    pub id: AttemptId,
    pub exam: ExamId,
    pub user: UserId,
    pub user_name: String,
    /// From 1.
    pub number: i64,
    pub paper_version: i64,
    /// The places of the paper's questions in this attempt; `None`: as in the paper.
    pub order: Option<Vec<usize>>,
    pub status: AttemptStatus,
    pub current_question: i64,
    pub started_at: Timestamp,
    pub limit_ms: Option<i64>,
    pub window_end: Option<Timestamp>,
    pub extra_ms: i64,
    pub paused_ms: i64,
    pub paused_at: Option<Timestamp>,
    pub deadline_at: Option<Timestamp>,
    /// Grows with every change of clock or state.
    pub clock_rev: i64,
    pub forced_at: Option<Timestamp>,
    pub last_activity: Timestamp,
    pub left_at: Option<Timestamp>,
    pub completed_at: Option<Timestamp>,
    pub ended_by: Option<EndedBy>,
    pub journal_len: i64,
    pub journal_head: String,
}

impl Attempt {
    /// The place in the paper of what the attempt shows at a position.
    fn place(&self, position: usize) -> Option<usize> {
        match &self.order {
            Some(order) => order.get(position).copied(),
            None => Some(position),
        }
    }

    /// The position at which the attempt shows a question.
    fn position(&self, place: usize) -> usize {
        let found = self.order.as_ref().and_then(|order| order.iter().position(|of| *of == place));
        found.unwrap_or(place)
    }

    /// Whether something received then may still change it.
    fn check_open(&self, received: Timestamp, grace: Duration) -> Result<(), Refusal> {
        let closed = |text: &'static str| Err(Refusal::AttemptClosed(text.into()));
        match self.status {
            AttemptStatus::Completed => closed("the attempt is completed"),
            _ if self.closes_at(grace).is_some_and(|at| received > at) => closed("the time is up"),
            AttemptStatus::Paused => Err(Refusal::Paused),
            AttemptStatus::InProgress => Ok(()),
        }
    }
}

/// A stored answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The question's place in the paper.
    pub question: usize,
    /// `null`: taken back.
    pub value: Value,
    /// From 1; grows with every change.
    pub version: i64,
    pub received_at: Timestamp,
    /// Received between the deadline and the end of the grace.
    pub late: bool,
}

/// A result as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct ExamResult {
    pub id: ResultId,
    pub exam: ExamId,
    pub user: UserId,
    pub attempt: AttemptId,
    pub attempt_number: i64,
    pub marks: Marks,
    /// As the attempt showed the questions.
    pub answers: Vec<Value>,
    pub awards: Awards,
    /// From 1.
    pub revision: i64,
    /// The version of the paper whose keys graded it.
    pub key_version: i64,
    pub completed_at: Timestamp,
    pub released_at: Option<Timestamp>,
    pub journal_len: i64,
    pub journal_head: String,
}

/// `[exam]` of the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What is received up to this long after the deadline counts.
    pub grace: Duration,
    pub journal_key: JournalKey,
}

/// Papers kept in memory; they never change.
const CACHED_PAPERS: usize = 256;
/// Somebody who lost a connection may come back into the exam within this.
const RETURN_WINDOW: Duration = Duration::from_mins(2);

type PaperKey = (TenantId, ExamId, i64);
/// Exams a user was cut off from, and when.
type Lost = HashMap<(TenantId, UserId), Vec<(ExamId, Timestamp)>>;

/// This node's memory of exams: a cache, and who was cut off a moment ago.
pub struct State {
    pub settings: Settings,
    papers: Mutex<HashMap<PaperKey, Arc<Paper>>>,
    lost: Mutex<Lost>,
    pages: Pages,
    /// Before this, everybody was cut off.
    started_at: Timestamp,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("exam::State")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    pub fn new(settings: Settings, now: Timestamp) -> Self {
        let (papers, lost) = (Mutex::default(), Mutex::default());
        Self { settings, papers, lost, pages: Pages::default(), started_at: now }
    }

    /// The paper of an exam in one version.
    pub async fn paper(
        &self,
        reads: &mut (impl Reads + ?Sized),
        tenant: &TenantId,
        exam: &ExamId,
        version: i64,
    ) -> Result<Arc<Paper>, Refusal> {
        let key = (tenant.clone(), exam.clone(), version);
        if let Some(paper) = lock(&self.papers).get(&key) {
            return Ok(paper.clone());
        }
        let json = reads.paper(tenant, exam, version).await?;
        let json = json.ok_or_else(|| {
            Refusal::internal(format!("the paper {version} of the exam {exam} is missing"))
        })?;
        let paper = Arc::new(Paper::from_json(&json)?);
        let mut papers = lock(&self.papers);
        if papers.len() >= CACHED_PAPERS {
            papers.clear();
        }
        papers.insert(key, paper.clone());
        Ok(paper)
    }

    /// What the page of a socket that comes knows of its attempts.
    pub fn told(&self, tenant: &TenantId, user: &UserId, connection: &ConnectionId) -> Told {
        self.pages.told(tenant, user, connection)
    }

    /// A socket is lost: its page may come back.
    pub fn keep_told(&self, caller: &Caller, now: Timestamp) {
        self.pages.keep(caller, now);
    }

    /// A socket in an exam is gone without having left it.
    pub fn cut_off(&self, tenant: &TenantId, user: &UserId, exam: ExamId, now: Timestamp) {
        let mut lost = lock(&self.lost);
        let of_user = lost.entry((tenant.clone(), user.clone())).or_default();
        of_user.retain(|(of, _)| *of != exam);
        of_user.push((exam, now));
    }

    /// The exams the user was cut off from a moment ago.
    fn lost(&self, tenant: &TenantId, user: &UserId, now: Timestamp) -> Vec<ExamId> {
        let lost = lock(&self.lost);
        let of_user = lost.get(&(tenant.clone(), user.clone()));
        let recent = of_user.into_iter().flatten().filter(|(_, at)| at.after(RETURN_WINDOW) >= now);
        recent.map(|(exam, _)| exam.clone()).collect()
    }

    fn forget_lost(&self, tenant: &TenantId, user: &UserId, exam: &ExamId) {
        if let Some(of_user) = lock(&self.lost).get_mut(&(tenant.clone(), user.clone())) {
            of_user.retain(|(of, _)| of != exam);
        }
    }

    /// Forgets whose time to come back is over.
    pub fn expire(&self, now: Timestamp) {
        lock(&self.lost).retain(|_, of_user| {
            of_user.retain(|(_, at)| at.after(RETURN_WINDOW) >= now);
            !of_user.is_empty()
        });
        self.pages.expire(now);
    }
}

/// The exam, and how the caller is listed in it; absent for those who have nothing to do with it.
async fn exam_for(
    reads: &mut (impl Reads + ?Sized),
    caller: &Caller,
    id: &ExamId,
) -> Result<(Exam, Part), Refusal> {
    let exam = reads.exam(&caller.tenant, id).await?.ok_or(Refusal::NotFound)?;
    let listed = match (exam.for_everyone, exam.by_any_staff) {
        (true, true) => Part::default(),
        _ => reads.part_in_exam(&caller.tenant, id, &caller.user).await?,
    };
    let is_staff = match caller.role {
        Role::SuperAdmin | Role::ProgramAdmin => true,
        Role::Mentor | Role::Proctor => exam.by_any_staff || listed.is_staff,
        Role::Reviewer | Role::Student => listed.is_staff,
    };
    // Listed staff look on, unless they are listed as participants, too.
    let mut is_participant = listed.is_participant || (exam.for_everyone && !listed.is_staff);
    if !is_staff && !is_participant {
        // Who is taken off the list while sitting it finishes what they began.
        is_participant = reads.has_begun(&caller.tenant, id, &caller.user).await?;
        if !is_participant {
            return Err(Refusal::NotFound);
        }
    }
    Ok((exam, Part { is_participant, is_staff }))
}

/// The caller's rights have changed: who only looked on, and may no more, hears no more.
pub(crate) async fn review(cx: &mut Cx<'_>, exam: &ExamId) -> Result<(), Refusal> {
    let caller = cx.caller;
    let room = room(exam);
    let sits = cx.app.presence.sockets_of(&caller.tenant, &caller.user, &room).in_room > 0;
    let may_stay = match exam_for(cx.tx().await?, caller, exam).await {
        Ok((_, part)) => sits || part.is_staff,
        Err(Refusal::NotFound) => false,
        Err(failed) => return Err(failed),
    };
    if !may_stay {
        cx.leave(room);
    }
    Ok(())
}

/// Locks the caller's newest attempt.
async fn newest_attempt(cx: &mut Cx<'_>, exam: &ExamId) -> Result<Attempt, Refusal> {
    let caller = cx.caller;
    let found = cx.tx().await?.lock_newest_attempt(&caller.tenant, exam, &caller.user).await?;
    found.ok_or(Refusal::NotFound)
}

/// Locks the caller's newest attempt, which is the one that their page shows.
async fn own_attempt(cx: &mut Cx<'_>, exam: &ExamId) -> Result<Attempt, Refusal> {
    let newest = newest_attempt(cx, exam).await?;
    match cx.caller.told.earlier(&newest, cx.now) {
        Some(_) => Err(Refusal::AttemptClosed("this page shows an earlier attempt".into())),
        None => Ok(newest),
    }
}

/// Writes entries to the attempt's journal. The attempt itself is saved by the caller.
async fn journal(
    cx: &mut Cx<'_>,
    attempt: &mut Attempt,
    entries: &[&Entry],
) -> Result<(), Refusal> {
    let rows: Vec<_> = entries.iter().map(|entry| entry_of(cx, attempt, entry)).collect();
    let tenant = &cx.caller.tenant;
    cx.tx().await?.append_journal(tenant, &rows).await
}

/// The next entry of the attempt's journal, by the caller.
fn entry_of(cx: &Cx<'_>, attempt: &mut Attempt, entry: &Entry) -> (AttemptId, JournalRow) {
    let key = &cx.app.exams.settings.journal_key;
    let row = attempt.append(key, cx.now, cx.caller.user.as_str().trim(), entry);
    (attempt.id.clone(), row)
}

/// The answers as the attempt shows the questions: up to the last one answered.
fn answers_in_order(attempt: &Attempt, answers: &[Answer]) -> Vec<Value> {
    let mut shown = Vec::new();
    for answer in answers.iter().filter(|answer| !answer.value.is_null()) {
        let position = attempt.position(answer.question);
        if shown.len() <= position {
            shown.resize(position + 1, Value::Null);
        }
        shown[position] = answer.value.clone();
    }
    shown
}

async fn locked(
    tx: &mut dyn Tx,
    tenant: &TenantId,
    attempt: &AttemptId,
) -> Result<Attempt, Refusal> {
    tx.lock_attempts(tenant, std::slice::from_ref(attempt)).await?.pop().ok_or(Refusal::NotFound)
}

/// Tells the others in the room of that user, and how many are in it.
fn told_to_others<E: Event<To = ToOthers>>(
    room: &RoomId,
    user: &UserId,
    event: &E,
) -> Option<Effect> {
    let to = ToOthers(room.clone(), user.clone());
    Some(Effect::Emit(Emit::counting(to, event, room.clone()).ok()?))
}

fn room(exam: &ExamId) -> RoomId {
    RoomId::of_exam(exam)
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    /// A minute, begun at 1,000 s.
    pub(crate) fn attempt() -> Attempt {
        let started_at = Timestamp(1_000_000);
        Attempt {
            id: AttemptId::new("attempt").unwrap(),
            exam: ExamId::new("exam").unwrap(),
            user: UserId::new("ana").unwrap(),
            user_name: "Ana".into(),
            number: 1,
            paper_version: 1,
            order: None,
            status: AttemptStatus::InProgress,
            current_question: 0,
            started_at,
            limit_ms: Some(60_000),
            window_end: None,
            extra_ms: 0,
            paused_ms: 0,
            paused_at: None,
            deadline_at: Some(Timestamp(started_at.0 + 60_000)),
            clock_rev: 1,
            forced_at: None,
            last_activity: started_at,
            left_at: None,
            completed_at: None,
            ended_by: None,
            journal_len: 0,
            journal_head: String::new(),
        }
    }

    #[test]
    fn answers_are_shown_where_the_attempt_shows_their_questions() {
        let answer = |question, value| Answer {
            question,
            value,
            version: 1,
            received_at: Timestamp(0),
            late: false,
        };
        let mut attempt = attempt();
        let answers = [answer(2, json!(7)), answer(0, json!(3)), answer(3, Value::Null)];
        assert_eq!(answers_in_order(&attempt, &answers), [json!(3), Value::Null, json!(7)]);
        attempt.order = Some(vec![2, 1, 0, 3]);
        assert_eq!(answers_in_order(&attempt, &answers), [json!(7), Value::Null, json!(3)]);
        assert_eq!(attempt.place(0), Some(2));
        assert_eq!(attempt.place(4), None);
    }
}
