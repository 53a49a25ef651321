//! `join-exam`: the one attempt, whatever the tab and however often; begun now, or as it stands.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Answer, Attempt, AttemptStatus, Exam, ExamResult, Exams, Part,
    events::{ExamJoined, ExamSession, ParticipantJoinedExam, ShownExam, ShownResult, ToStudent},
    exam_complete::tell_again,
    exam_for,
    journal::Entry,
    paper::{Paper, Question},
    room, told_to_others,
};
use crate::{
    contract::{Class, Command, Handle, Policy, Scope, ToOthers},
    dispatch::{App, Caller, Cx, Effect},
    ids::{AttemptId, ExamId, RoomId, Timestamp, UserId},
    presence::Person,
    refusal::{Code, Refusal},
};

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JoinExam {
    pub exam_id: ExamId,
}

/// Where the attempt stands; the whole comes as `exam-joined`.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InExam {
    pub exam_id: ExamId,
    /// `null` for staff who look on.
    pub session_id: Option<AttemptId>,
    pub deadline_at: Option<Timestamp>,
    pub server_now: Timestamp,
}

impl Command for JoinExam {
    type In = Exams;
    type Reply = InExam;
    const NAME: &'static str = "join-exam";
    // In the lane although it publishes nothing: a school that comes in at one moment shares
    // commits there, and waits in one queue instead of for sixteen connections.
    const POLICY: Policy = Policy::new(Class::Exam, "Exam ID is required", "Failed to join exam")
        .texts(&[(Code::NotFound, "Exam not found")]);
    fn example() -> Self {
        Self { exam_id: ExamId::new("anatomy-1").expect("a sound id") }
    }
}

impl Handle for JoinExam {
    async fn handle(self, cx: &mut Cx<'_>) -> Result<InExam, Refusal> {
        let (app, caller) = (cx.app, cx.caller);
        let (exam, part) = exam_for(cx.tx().await?, caller, &self.exam_id).await?;
        app.exams.forget_lost(&caller.tenant, &caller.user, &exam.id);
        let attempt = attempt(cx, &exam, part).await?;
        let (session_id, deadline_at) = match &attempt {
            Some(attempt) => (Some(attempt.id.clone()), attempt.deadline_at),
            None => (None, None),
        };
        show(cx, &exam, attempt.as_ref(), Coming::Asked).await?;
        Ok(InExam { exam_id: exam.id, session_id, deadline_at, server_now: cx.now })
    }
}

/// The attempt to show: the newest one, or a new one where one may be begun. `None` for staff who
/// only look on.
async fn attempt(cx: &mut Cx<'_>, exam: &Exam, part: Part) -> Result<Option<Attempt>, Refusal> {
    let (tenant, user, now) = (&cx.caller.tenant, &cx.caller.user, cx.now);
    let newest = cx.tx().await?.lock_newest_attempt(tenant, &exam.id, user).await?;
    let number = match &newest {
        None => 1,
        Some(attempt) if attempt.status != AttemptStatus::Completed => {
            return come_back(cx, newest.expect("just matched")).await.map(Some);
        }
        Some(attempt) => attempt.number + 1,
    };
    let may_begin = exam.check_window(now);
    let may_begin = may_begin.and_then(|()| {
        if number > exam.attempts_allowed {
            return Err(Refusal::AttemptClosed("no attempt is left".into()));
        }
        Ok(())
    });
    match (may_begin, newest) {
        (Ok(()), _) if part.is_participant => begin(cx, exam, number).await.map(Some),
        (_, Some(completed)) => Ok(Some(completed)),
        (_, None) if part.is_staff => Ok(None),
        (may_begin, None) => Err(may_begin.err().unwrap_or(Refusal::NotFound)),
    }
}

/// Somebody who had left comes back.
async fn come_back(cx: &mut Cx<'_>, mut attempt: Attempt) -> Result<Attempt, Refusal> {
    if attempt.left_at.take().is_some() {
        let tenant = &cx.caller.tenant;
        cx.tx().await?.save_attempt(tenant, &attempt).await?;
    }
    Ok(attempt)
}

async fn begin(cx: &mut Cx<'_>, exam: &Exam, number: i64) -> Result<Attempt, Refusal> {
    let (app, caller, now) = (cx.app, cx.caller, cx.now);
    let (tenant, version) = (&caller.tenant, exam.paper_version);
    let id = AttemptId::new(app.ids.uuid()).map_err(Refusal::internal)?;
    let tx = cx.tx().await?;
    let paper = app.exams.paper(tx, tenant, &exam.id, version).await?;
    let mut attempt = Attempt {
        order: exam.shuffle.then(|| paper.shuffled(id.as_str())),
        id,
        exam: exam.id.clone(),
        user: caller.user.clone(),
        user_name: caller.name.clone(),
        number,
        paper_version: version,
        status: AttemptStatus::InProgress,
        current_question: 0,
        started_at: now,
        limit_ms: exam.duration_ms,
        window_end: exam.closes_at,
        extra_ms: 0,
        paused_ms: 0,
        paused_at: None,
        deadline_at: None,
        clock_rev: 1,
        forced_at: None,
        last_activity: now,
        left_at: None,
        completed_at: None,
        ended_by: None,
        journal_len: 0,
        journal_head: String::new(),
    };
    attempt.deadline_at = attempt.compute_deadline();
    let started = Entry::Started {
        paper_version: version,
        paper: super::paper::fingerprint(&paper.to_json()?),
        order: attempt.order.clone(),
        deadline_at: attempt.deadline_at.map(|at| at.0),
    };
    let key = &app.exams.settings.journal_key;
    let first = attempt.append(key, now, caller.user.as_str().trim(), &started);
    if !tx.insert_attempt(tenant, &attempt).await? {
        // Another tab was faster.
        let newest = tx.lock_newest_attempt(tenant, &exam.id, &caller.user).await?;
        return newest.ok_or_else(|| Refusal::internal("an attempt is there and is not"));
    }
    tx.append_journal(tenant, &[(attempt.id.clone(), first)]).await?;
    Ok(attempt)
}

/// How a socket comes into an exam.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coming {
    Asked,
    /// It was put there because its user was cut off.
    Brought,
}

/// Shows the attempt to the caller, and while it runs puts the socket into the exam's room.
async fn show(
    cx: &mut Cx<'_>,
    exam: &Exam,
    attempt: Option<&Attempt>,
    coming: Coming,
) -> Result<(), Refusal> {
    let caller = cx.caller;
    let view = match attempt {
        Some(attempt) => {
            let view = View::read(cx, exam, attempt).await?;
            let versions = view.answers.iter().map(|answer| (answer.question, answer.version));
            let (exam, id, now) = (attempt.exam.clone(), attempt.id.clone(), cx.now);
            let versions: Vec<_> = versions.collect();
            cx.after_commit(move || match coming {
                Coming::Asked => caller.told.tell((&exam, &id), versions, now),
                Coming::Brought => caller.told.bring((&exam, &id), versions, now),
            });
            Some(view)
        }
        None => None,
    };
    let room = room(&exam.id);
    let sits = attempt.is_some_and(|attempt| attempt.status != AttemptStatus::Completed);
    let seen = cx.app.presence.sockets_of(&caller.tenant, &caller.user, &room);
    if sits {
        cx.record(Effect::Enter(room.clone()));
        let room = room.clone();
        cx.after_commit(move || caller.joined.note_brought(room, coming == Coming::Brought));
    } else if attempt.is_none() {
        cx.record(Effect::Watch(room.clone()));
    }
    let joined = joined(cx.app, caller, exam, view.as_ref(), true, cx.now);
    cx.send_counting(ToStudent::Caller, &joined, room.clone())?;
    if sits && seen.in_room == 0 {
        let event = participant_joined(&caller.user, &caller.name, &exam.id);
        cx.send_counting(ToOthers(room.clone(), caller.user.clone()), &event, room)?;
    }
    Ok(())
}

/// Somebody is in that room on a node that was not heard; `None` where it is no exam's.
pub fn entered(person: &Person, room: &RoomId) -> Option<Effect> {
    let event = participant_joined(&person.user, &person.name, &room.exam()?);
    told_to_others(room, &person.user, &event)
}

fn participant_joined(user: &UserId, name: &str, exam: &ExamId) -> ParticipantJoinedExam {
    ParticipantJoinedExam {
        exam_id: exam.clone(),
        user_id: user.clone(),
        user_name: name.to_owned(),
        participant_count: 0,
    }
}

/// What `exam-joined` shows of an attempt.
pub(super) struct View<'a> {
    attempt: &'a Attempt,
    answers: Vec<Answer>,
    paper: std::sync::Arc<Paper>,
    result: Option<ExamResult>,
}

impl<'a> View<'a> {
    pub(super) async fn read(
        cx: &mut Cx<'_>,
        exam: &Exam,
        attempt: &'a Attempt,
    ) -> Result<Self, Refusal> {
        let (app, tenant) = (cx.app, &cx.caller.tenant);
        let tx = cx.tx().await?;
        let paper = app.exams.paper(tx, tenant, &exam.id, attempt.paper_version).await?;
        // With the first entry of its journal it has only just begun.
        let answers = match attempt.journal_len {
            ..=1 => Vec::new(),
            _ => tx.answers(tenant, &attempt.id).await?,
        };
        let result = match attempt.status {
            AttemptStatus::Completed => tx.result_of_attempt(tenant, &attempt.id).await?,
            AttemptStatus::InProgress | AttemptStatus::Paused => None,
        };
        Ok(Self { attempt, answers, paper, result })
    }
}

/// The event; its count is of now.
pub(super) fn joined(
    app: &App,
    caller: &Caller,
    exam: &Exam,
    view: Option<&View<'_>>,
    with_questions: bool,
    now: Timestamp,
) -> ExamJoined {
    let in_order = |view: &View<'_>| -> Vec<Question> {
        let questions = &view.paper.questions;
        (0..questions.len())
            .filter_map(|position| questions.get(view.attempt.place(position)?).cloned())
            .collect()
    };
    let questions = view.filter(|_| with_questions).map(in_order);
    let session = view.map(|view| {
        let has_order = view.attempt.order.is_some();
        let ids = has_order.then(|| in_order(view).into_iter().map(|of| of.id).collect());
        ExamSession::new(view.attempt, &view.answers, ids, now)
    });
    ExamJoined {
        exam_id: exam.id.clone(),
        exam: ShownExam::new(
            exam,
            // A running attempt keeps the time it was begun with.
            view.map_or(exam.duration_ms, |view| view.attempt.limit_ms),
            questions.map(|all| all.iter().map(Question::shown).collect()),
        ),
        session,
        result: view.and_then(|view| view.result.as_ref()).map(ShownResult::from),
        server_now: now,
        participant_count: app.presence.occupants(&caller.tenant, &room(&exam.id)),
    }
}

/// Puts a socket that came back by itself into the exams its user was cut off from, sitting or looking
/// on: the shipped frontend joins once, when its page is opened.
pub async fn restore(
    app: &App,
    caller: &Caller,
    running: Vec<ExamId>,
    effects: &mut Vec<Effect>,
) -> Result<(), Refusal> {
    let now = app.clock.now();
    let lost = app.exams.lost(&caller.tenant, &caller.user, now);
    let mut exams: BTreeMap<ExamId, bool> = lost.into_iter().map(|exam| (exam, true)).collect();
    if may_be_cut_off_unseen(app, now) {
        for exam in running {
            exams.entry(exam).or_default();
        }
    }
    exams.retain(|exam, _| {
        let room = room(exam);
        !caller.joined.contains(&room) && !caller.joined.has_left(&room)
    });
    let mut result = Ok(());
    for (exam, was_lost) in exams {
        match bring_back(app, caller, &exam, was_lost, now).await {
            Ok(brought) => effects.extend(brought),
            Err(refusal) => result = result.and(Err(refusal)),
        }
    }
    result
}

/// Whoever sits an exam was cut off by this node's start, or by another node's end.
fn may_be_cut_off_unseen(app: &App, now: Timestamp) -> bool {
    app.exams.started_at.after(super::RETURN_WINDOW) >= now || app.presence.is_shared()
}

/// The exams that the user sits, as far as [`restore`] asks.
pub async fn running(app: &App, caller: &Caller) -> Result<Vec<ExamId>, Refusal> {
    if !may_be_cut_off_unseen(app, app.clock.now()) {
        return Ok(Vec::new());
    }
    app.store.read().await?.running_exams_of(&caller.tenant, &caller.user).await
}

async fn bring_back(
    app: &App,
    caller: &Caller,
    exam: &ExamId,
    was_lost: bool,
    now: Timestamp,
) -> Result<Vec<Effect>, Refusal> {
    let mut cx = Cx::new(app, caller, Scope::Rows, now);
    let (exam, part) = match exam_for(cx.tx().await?, caller, exam).await {
        Err(Refusal::NotFound) => return Ok(Vec::new()),
        found => found?,
    };
    let newest = cx.tx().await?.lock_newest_attempt(&caller.tenant, &exam.id, &caller.user);
    let newest = newest.await?;
    let is_in_it = match &newest {
        Some(attempt) => attempt.status != AttemptStatus::Completed && attempt.left_at.is_none(),
        // They look on.
        None => part.is_staff,
    };
    if !is_in_it {
        // They were in it when they were lost, so it has ended since. Who goes on hears of it with all
        // else that was missed.
        let has_ended = was_lost && !app.exams.pages.has(caller);
        if let Some(attempt) = newest.filter(|of| has_ended && of.left_at.is_none()) {
            tell_again(&mut cx, exam.id, &attempt.id).await?;
        }
        return cx.commit().await;
    }
    show(&mut cx, &exam, newest.as_ref(), Coming::Brought).await?;
    cx.commit().await
}
