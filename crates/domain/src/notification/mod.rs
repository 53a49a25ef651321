//! What somebody should know although they were not there.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::{
    contract::{Event, EventRow, Namespace, Route, ToUser, event},
    dispatch::{App, Caller, Cx, Effect},
    ids::{NotificationId, Timestamp, UserId},
    refusal::Refusal,
};

pub const COMMANDS: &[Route] = &[];
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

/// A notification before it is stored.
#[derive(Clone, Debug)]
pub struct Notice {
    pub kind: &'static str,
    pub title: String,
    pub message: String,
    pub data: Option<serde_json::Value>,
    pub priority: Priority,
    pub action_url: Option<String>,
}

/// Stores a notification in the transaction of its cause, and records that the user is told.
pub async fn tell(cx: &mut Cx<'_>, to: UserId, notice: Notice) -> Result<(), Refusal> {
    let data = notice.data.as_ref().map(serde_json::value::to_raw_value);
    let notification = Notification {
        id: NotificationId::new(cx.app.ids.uuid()).map_err(Refusal::internal)?,
        user_id: to.clone(),
        kind: notice.kind.into(),
        title: notice.title,
        message: notice.message,
        data: data.transpose().map_err(Refusal::internal)?.map(Arc::from),
        is_read: false,
        priority: notice.priority,
        action_url: notice.action_url,
        created_at: cx.now,
    };
    let tenant = cx.caller.tenant.clone();
    cx.tx().await?.insert_notification(&tenant, &notification).await?;
    cx.send(ToUser(to), &NewNotification(notification))
}

/// What was stored for the user while they were away.
#[expect(
    clippy::unused_async,
    reason = "reads the database as soon as rows say whether they were delivered"
)]
pub async fn deliver_stored(_: &App, _: &Caller) -> Result<Vec<Effect>, Refusal> {
    Ok(Vec::new())
}
