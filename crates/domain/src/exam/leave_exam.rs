//! `leave-exam`: out of the room; the attempt and its clock go on.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    AttemptStatus, Exams,
    events::{ExamLeft, ParticipantLeftExam},
    room, told_to_others,
};
use crate::{
    contract::{Class, Command, Handle, Policy, ToCaller, ToOthers},
    dispatch::{App, Caller, Cx, Effect, Emit},
    ids::{ExamId, RoomId, Timestamp, UserId},
    presence::Person,
    refusal::Refusal,
};

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LeaveExam {
    pub exam_id: ExamId,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OutOfExam {
    pub exam_id: ExamId,
}

impl Command for LeaveExam {
    type In = Exams;
    type Reply = OutOfExam;
    const NAME: &'static str = "leave-exam";
    const POLICY: Policy =
        Policy::new(Class::Exam, "Exam ID is required", "Failed to leave exam").rows_only();
    fn example() -> Self {
        Self { exam_id: ExamId::new("anatomy-1").expect("a sound id") }
    }
}

impl Handle for LeaveExam {
    async fn handle(self, cx: &mut Cx<'_>) -> Result<OutOfExam, Refusal> {
        let (app, caller, now) = (cx.app, cx.caller, cx.now);
        let (tenant, user, exam_id) = (&caller.tenant, &caller.user, self.exam_id);
        let room = room(&exam_id);
        app.exams.forget_lost(tenant, user, &exam_id);
        let tx = cx.tx().await?;
        let running = tx.lock_newest_attempt(tenant, &exam_id, user).await?;
        let running = running.filter(|of| of.status != AttemptStatus::Completed);
        let in_room = app.presence.sockets_of(tenant, user, &room).in_room;
        if let Some(mut attempt) = running.filter(|_| in_room <= 1) {
            // Who has left is not brought back after a reconnect.
            attempt.left_at = Some(now);
            tx.save_attempt(tenant, &attempt).await?;
        }
        if caller.joined.contains(&room) {
            // Whether it was the last is known when it has left: two may leave at once.
            let to = ToOthers(room.clone(), user.clone());
            let left = participant_left(user, &caller.name, &exam_id);
            let left = Emit::counting(to, &left, room.clone())?;
            cx.record(Effect::LeaveFor(room, left));
        }
        let left = super::room(&exam_id);
        cx.after_commit(move || caller.joined.note_left(left));
        cx.send(ToCaller(), &ExamLeft { exam_id: exam_id.clone() })?;
        Ok(OutOfExam { exam_id })
    }
}

/// Somebody who is in that room no more was on a node that is gone; `None` where it is no exam's.
pub fn left(person: &Person, room: &RoomId) -> Option<Effect> {
    let event = participant_left(&person.user, &person.name, &room.exam()?);
    told_to_others(room, &person.user, &event)
}

fn participant_left(user: &UserId, name: &str, exam: &ExamId) -> ParticipantLeftExam {
    ParticipantLeftExam {
        exam_id: exam.clone(),
        user_id: user.clone(),
        user_name: name.to_owned(),
        participant_count: 0,
    }
}

/// A socket is gone, and with it the last one its user had in these rooms: the others in the exams
/// among them are told, and the user is expected back.
pub fn cut_off(app: &App, caller: &Caller, left: &[RoomId], now: Timestamp) -> Vec<Effect> {
    for exam in caller.joined.all().iter().filter_map(RoomId::exam) {
        app.exams.cut_off(&caller.tenant, &caller.user, exam, now);
    }
    let exams = left.iter().filter_map(|room| Some((room, room.exam()?)));
    exams
        .filter_map(|(room, exam)| {
            told_to_others(room, &caller.user, &participant_left(&caller.user, &caller.name, &exam))
        })
        .collect()
}
