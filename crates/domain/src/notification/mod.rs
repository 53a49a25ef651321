//! What somebody should know although they were not there.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::{
    contract::{Event, EventRow, Namespace, ToUser, event},
    ids::{NotificationId, Timestamp, UserId},
};

pub const EVENTS: &[EventRow] = &[event::<NewNotification>()];

/// Notifications, on `/`, `/api` and `/notification`.
#[derive(Debug)]
pub enum Notifications {}
impl Namespace for Notifications {
    const PATHS: &'static [&'static str] = &["/", "/api", "/notification"];
}

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    Low,
    Normal,
    High,
    Urgent,
}

impl Priority {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
            Self::Urgent => "urgent",
        }
    }
}

/// A notification as it stands in the database and on the wire.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Notification {
    pub id: NotificationId,
    pub user_id: UserId,
    /// `EXAM_UPDATE`, `MESSAGE`, `LEADERBOARD`, `SYSTEM`, or a word of the sender's.
    #[serde(rename = "type")]
    pub kind: String,
    pub title: String,
    pub message: String,
    /// Any JSON.
    #[schemars(with = "Option<serde_json::Value>")]
    pub data: Option<Arc<RawValue>>,
    pub is_read: bool,
    pub priority: Priority,
    pub action_url: Option<String>,
    pub created_at: Timestamp,
}

/// A notification has been stored for this user.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct NewNotification(pub Notification);
impl Event for NewNotification {
    type In = Notifications;
    type To = ToUser;
    const NAME: &'static str = "new-notification";
    const DURABLE: bool = true;
}
