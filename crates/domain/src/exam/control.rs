//! `exam-control`: what staff may do to running attempts. Of one student, of several, or of all.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Attempt, AttemptStatus, Exam, Exams,
    events::{ClockReason, ExamClock, ToStudent},
    exam_for, join_exam, journal,
    journal::Entry,
};
use crate::{
    contract::{Class, Command, Handle, Policy, ToUser},
    dispatch::Cx,
    ids::{ExamId, UserId},
    refusal::{Code, Refusal},
};

/// Students named in one command.
const MAX_USERS: usize = 1_000;
/// A day more is not extra time, but another exam.
const MAX_SECONDS: i64 = 24 * 3_600;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// The clocks stand still, and nothing is saved.
    Pause,
    /// The clocks go on with exactly what was left.
    Resume,
    /// So many seconds more.
    Extend,
    /// Submitted as they stand.
    Submit,
    /// Nobody begins any more, and all attempts are submitted as they stand.
    Close,
}

impl Action {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Extend => "extend",
            Self::Submit => "submit",
            Self::Close => "close",
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExamControl {
    pub exam_id: ExamId,
    pub action: Action,
    /// All running attempts unless given; not for `close`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_ids: Option<Vec<UserId>>,
    /// For `extend`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<i64>,
}

/// It is done.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Controlled {
    pub exam_id: ExamId,
    pub action: Action,
    /// Attempts it changed; those to be submitted are final a moment later.
    pub affected: usize,
}

impl Command for ExamControl {
    type In = Exams;
    type Reply = Controlled;
    const NAME: &'static str = "exam-control";
    const POLICY: Policy =
        Policy::new(Class::Exam, "Exam ID and action are required", "Failed to control exam")
            .max_bytes(256 * 1024)
            .texts(&[(Code::NotFound, "Exam not found"), (Code::Forbidden, "Unauthorized")]);
    fn example() -> Self {
        Self {
            exam_id: ExamId::new("anatomy-1").expect("a sound id"),
            action: Action::Extend,
            user_ids: None,
            seconds: Some(300),
        }
    }
}

impl Handle for ExamControl {
    async fn handle(self, cx: &mut Cx<'_>) -> Result<Controlled, Refusal> {
        self.carry_out(cx).await
    }
}

impl ExamControl {
    /// Does it, for staff of the exam.
    pub async fn carry_out(self, cx: &mut Cx<'_>) -> Result<Controlled, Refusal> {
        self.check()?;
        let caller = cx.caller;
        let (exam, part) = exam_for(cx.tx().await?, caller, &self.exam_id).await?;
        if !part.is_staff {
            return Err(Refusal::Forbidden);
        }
        let affected = self.steer(cx, exam).await?;
        Ok(Controlled { exam_id: self.exam_id, action: self.action, affected })
    }

    fn check(&self) -> Result<(), Refusal> {
        let invalid = |text: &'static str| Err(Refusal::Invalid(text.into()));
        match (self.action, self.seconds) {
            (Action::Extend, Some(1..=MAX_SECONDS)) => {}
            (Action::Extend, _) => return invalid("seconds: 1 to 86400"),
            (_, Some(_)) => return invalid("seconds: only for extend"),
            (_, None) => {}
        }
        match &self.user_ids {
            Some(_) if self.action == Action::Close => invalid("userIds: close is for everybody"),
            Some(users) if users.is_empty() || users.len() > MAX_USERS => {
                invalid("userIds: 1 to 1000")
            }
            _ => Ok(()),
        }
    }

    async fn steer(&self, cx: &mut Cx<'_>, mut exam: Exam) -> Result<usize, Refusal> {
        let (tenant, now) = (&cx.caller.tenant, cx.now);
        if self.action == Action::Close && exam.closed_at.is_none() {
            exam.closed_at = Some(now);
            exam.updated_at = now;
            cx.tx().await?.save_exam(tenant, &exam).await?;
        }
        let tx = cx.tx().await?;
        let running = match &self.user_ids {
            None => tx.lock_running_attempts(tenant, &exam.id).await?,
            Some(users) => {
                // Those who are not meant go on saving answers meanwhile.
                let mut running = Vec::new();
                for user in users.iter().collect::<BTreeSet<_>>() {
                    let newest = tx.lock_newest_attempt(tenant, &exam.id, user).await?;
                    running.extend(newest.filter(|of| of.status != AttemptStatus::Completed));
                }
                running
            }
        };
        let mut affected = 0;
        for attempt in running {
            affected += usize::from(self.apply(cx, &exam, attempt).await?);
        }
        let details = serde_json::json!({
            "action": self.action.as_str(),
            "userIds": self.user_ids,
            "seconds": self.seconds,
            "affected": affected,
        });
        cx.audit("exam.control", self.exam_id.as_str(), &details).await?;
        Ok(affected)
    }

    /// True when it changed something.
    async fn apply(
        &self,
        cx: &mut Cx<'_>,
        exam: &Exam,
        mut attempt: Attempt,
    ) -> Result<bool, Refusal> {
        let (tenant, now) = (&cx.caller.tenant, cx.now);
        let grace = cx.app.exams.settings.grace;
        // Whose time is up is being made final; that comes first, whatever staff do meanwhile.
        if attempt.closes_at(grace).is_some_and(|at| now > at) {
            return Ok(false);
        }
        let (entry, reason) = match (self.action, attempt.status) {
            (Action::Pause, AttemptStatus::InProgress) => {
                // Nothing is left that could be kept for later.
                if attempt.deadline_at.is_some_and(|deadline| now > deadline) {
                    return Ok(false);
                }
                attempt.pause(now);
                (Entry::Paused, Some(ClockReason::Paused))
            }
            (Action::Resume, AttemptStatus::Paused) => {
                attempt.resume(now);
                let deadline_at = attempt.deadline_at.map(|at| at.0);
                (Entry::Resumed { deadline_at }, Some(ClockReason::Resumed))
            }
            (Action::Extend, _) => {
                let seconds = self.seconds.unwrap_or_default();
                attempt.extend(seconds);
                let deadline_at = attempt.deadline_at.map(|at| at.0);
                (Entry::Extended { seconds, deadline_at }, Some(ClockReason::Extended))
            }
            (Action::Submit | Action::Close, _) => {
                attempt.forced_at = Some(now);
                (Entry::Forced, None)
            }
            (Action::Pause | Action::Resume, _) => return Ok(false),
        };
        journal(cx, &mut attempt, &[&entry]).await?;
        cx.tx().await?.save_attempt(tenant, &attempt).await?;
        if let Some(reason) = reason {
            // The shipped frontend takes a new session from `exam-joined` and from nothing else.
            let view = join_exam::View::read(cx, exam, &attempt).await?;
            let joined = join_exam::joined(cx.app, cx.caller, exam, Some(&view), false, now);
            let user = attempt.user.clone();
            cx.send(ToStudent::Everywhere(user.clone()), &joined)?;
            cx.send(ToUser(user), &ExamClock::new(&attempt, now, reason))?;
        }
        Ok(true)
    }
}
