//! `notification-send`: to oneself anybody, to others those who teach or administer.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};

use super::{Draft, Notifications, Priority, store};
use crate::{
    chat::text,
    contract::{Class, Command, Event, Handle, Policy, ToCaller},
    dispatch::Cx,
    identity::{Role, UserStatus},
    ids::{NotificationId, Timestamp, UserId},
    refusal::{Code, Refusal},
};

const MAX_KIND_CHARS: usize = 50;
const MAX_TITLE_CHARS: usize = 255;
const MAX_MESSAGE_CHARS: usize = 4_000;
const MAX_KEY_CHARS: usize = 128;
const MAX_DATA_BYTES: usize = 8 * 1024;

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SendNotification {
    /// Oneself unless said otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<UserId>,
    /// `EXAM_UPDATE`, `MESSAGE`, `LEADERBOARD`, `SYSTEM`, or a word of one's own; at most 50
    /// characters.
    #[serde(rename = "type")]
    pub kind: String,
    /// Plain text, at most 255 characters.
    pub title: String,
    /// Plain text, at most 4,000 characters.
    pub message: String,
    /// Any JSON of at most 8 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<serde_json::Value>")]
    pub data: Option<Box<RawValue>>,
    /// `normal` unless said otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// http, https or a path on this site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action_url: Option<String>,
    /// The same key again, for the same user, is the same notification.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dedupe_key: Option<String>,
    /// Replaces the unread one of the same key; not with a `dedupeKey`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collapse_key: Option<String>,
    /// ISO 8601; from then on it counts nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
}

/// It is stored, and on its way to whoever listens.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NotificationSent {
    pub notification_id: NotificationId,
    pub timestamp: Timestamp,
}
impl Event for NotificationSent {
    type In = Notifications;
    type To = ToCaller;
    const NAME: &'static str = "notification-sent";
}

const FAILED: &str = "Failed to send notification";

impl Command for SendNotification {
    type In = Notifications;
    type Reply = NotificationSent;
    const NAME: &'static str = "notification-send";
    const POLICY: Policy = Policy::new(Class::Notification, FAILED, FAILED)
        .max_bytes(64 * 1024)
        .texts(&[(Code::Forbidden, "Unauthorized")]);
    fn example() -> Self {
        Self {
            user_id: None,
            kind: "SYSTEM".into(),
            title: "Exam tomorrow".into(),
            message: "Room 12, nine o'clock.".into(),
            data: None,
            priority: Some(Priority::High),
            action_url: Some("/exams".into()),
            dedupe_key: None,
            collapse_key: None,
            expires_at: None,
        }
    }
}

impl SendNotification {
    pub(super) fn draft(self, now: Timestamp) -> Result<Draft, Refusal> {
        if self.data.as_ref().is_some_and(|data| data.get().len() > MAX_DATA_BYTES) {
            return Err(Refusal::TooLarge(format!("data: at most {MAX_DATA_BYTES} bytes").into()));
        }
        let dedupe_key = text::short("dedupeKey", self.dedupe_key, MAX_KEY_CHARS)?;
        let collapse_key = text::short("collapseKey", self.collapse_key, MAX_KEY_CHARS)?;
        if dedupe_key.is_some() && collapse_key.is_some() {
            return Err(Refusal::Invalid("one of dedupeKey and collapseKey".into()));
        }
        Ok(Draft {
            kind: text::plain("type", &self.kind, MAX_KIND_CHARS)?,
            title: text::plain("title", &self.title, MAX_TITLE_CHARS)?,
            message: text::plain("message", &self.message, MAX_MESSAGE_CHARS)?,
            data: self.data.map(Arc::from),
            priority: self.priority.unwrap_or_default(),
            action_url: text::link("actionUrl", self.action_url)?,
            dedupe_key,
            collapse_key,
            expires_at: self.expires_at.map(|text| end(&text, now)).transpose()?,
        })
    }
}

fn end(text: &str, now: Timestamp) -> Result<Timestamp, Refusal> {
    let instant = text.parse::<jiff::Timestamp>().ok();
    instant
        .map(|instant| Timestamp(instant.as_millisecond()))
        .filter(|instant| *instant > now)
        .ok_or_else(|| Refusal::Invalid("expiresAt: an instant to come, in ISO 8601".into()))
}

impl Handle for SendNotification {
    async fn handle(mut self, cx: &mut Cx<'_>) -> Result<NotificationSent, Refusal> {
        let (caller, now) = (cx.caller, cx.now);
        let to = self.user_id.take().unwrap_or_else(|| caller.user.clone());
        let is_own = to == caller.user;
        if !is_own && !matches!(caller.role, Role::SuperAdmin | Role::ProgramAdmin | Role::Mentor) {
            return Err(Refusal::Forbidden);
        }
        let draft = self.draft(now)?;
        if !is_own {
            let target = cx.tx().await?.user(&caller.tenant, &to).await?;
            if target.is_none_or(|user| user.status == UserStatus::Suspended) {
                return Err(Refusal::NotFound);
            }
            cx.audit("notify", to.as_str(), &json!({ "type": draft.kind })).await?;
        }
        let notification_id = store(cx, to, draft).await?;
        let sent = NotificationSent { notification_id, timestamp: now };
        cx.send(ToCaller(), &sent)?;
        Ok(sent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(change: impl FnOnce(&mut SendNotification)) -> Result<Draft, Refusal> {
        let mut command = SendNotification::example();
        change(&mut command);
        command.draft(Timestamp(1_700_000_000_000))
    }

    #[test]
    fn texts_are_neither_empty_nor_endless_and_are_plain() {
        type Field = fn(&mut SendNotification) -> &mut String;
        let fields: [(Field, usize); 3] =
            [(|c| &mut c.kind, 50), (|c| &mut c.title, 255), (|c| &mut c.message, 4_000)];
        for (field, max) in fields {
            for empty in ["", "  ", "<script>alert(1)</script>"] {
                let refused = draft(|command| *field(command) = empty.into()).unwrap_err();
                assert!(matches!(refused, Refusal::Required(_)), "{empty:?}");
            }
            assert!(draft(|command| *field(command) = "é".repeat(max)).is_ok());
            assert!(draft(|command| *field(command) = "é".repeat(max + 1)).is_err());
        }
        let title = draft(|command| command.title = "2 < 3 & <b>4</b>".into()).unwrap().title;
        assert_eq!(title, "2 < 3 & 4");
    }

    #[test]
    fn an_action_leads_to_this_site_or_to_the_web_and_data_is_small() {
        for bad in ["javascript:alert(1)", "//evil.example", "/\\evil.example", "exams"] {
            assert!(draft(|command| command.action_url = Some(bad.into())).is_err(), "{bad}");
        }
        let data = |bytes: usize| RawValue::from_string(format!("\"{}\"", "x".repeat(bytes - 2)));
        assert!(draft(|command| command.data = data(MAX_DATA_BYTES).ok()).is_ok());
        assert!(draft(|command| command.data = data(MAX_DATA_BYTES + 1).ok()).is_err());
    }

    #[test]
    fn an_end_is_to_come_and_a_key_is_one_of_two() {
        let ends = |text: &str| draft(|command| command.expires_at = Some(text.into()));
        assert!(ends("2023-11-14T22:13:20.001Z").is_ok());
        for bad in ["2023-11-14T22:13:20.000Z", "soon", ""] {
            assert!(ends(bad).is_err(), "{bad}");
        }
        let both = draft(|command| {
            command.dedupe_key = Some("a".into());
            command.collapse_key = Some("b".into());
        });
        assert!(both.is_err());
    }
}
