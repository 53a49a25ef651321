//! What somebody should know although they were not there.
//!
//! A notification is stored in the transaction of its cause. Who listens is sent it at once; for
//! everybody else it waits with `delivered_at` null, and is claimed, once, by whoever delivers it.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    contract::{EventRow, Namespace, Route, Scope, ToUser, event, route},
    dispatch::{App, Caller, Cx, Effect},
    identity::Role,
    ids::{NotificationId, TenantId, Timestamp, UserId},
    refusal::Refusal,
};

pub mod api;
pub mod broadcast;
pub mod deliver;
pub mod events;
pub mod notification_read;
pub mod notification_read_all;
pub mod notification_send;

pub use self::{
    broadcast::{Audience, Batch, broadcast},
    deliver::{awaiting, deliver, deliver_stored},
    events::NewNotification,
};
use self::{
    events::{NotificationRead, NotificationsReadAll},
    notification_read::ReadNotification,
    notification_read_all::ReadAllNotifications,
    notification_send::{NotificationSent, SendNotification},
};

pub const COMMANDS: &[Route] =
    &[route::<SendNotification>(), route::<ReadNotification>(), route::<ReadAllNotifications>()];
pub const EVENTS: &[EventRow] = &[
    event::<NewNotification>(),
    event::<NotificationSent>(),
    event::<NotificationRead>(),
    event::<NotificationsReadAll>(),
];

/// Notifications, on `/`, `/api` and `/notification`.
#[derive(Debug)]
pub enum Notifications {}
impl Namespace for Notifications {
    const PATHS: &'static [&'static str] = &["/", "/api", "/notification"];
}

/// How much it matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    Low,
    #[default]
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

    pub fn parse(text: &str) -> Option<Self> {
        [Self::Low, Self::Normal, Self::High, Self::Urgent]
            .into_iter()
            .find(|priority| priority.as_str() == text)
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
    /// How often it has happened since it was last read; absent when once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<i64>,
}

impl Notification {
    /// The key `count`, from how often it happened.
    pub fn count(occurrences: i64) -> Option<i64> {
        (occurrences > 1).then_some(occurrences)
    }
}

/// A notification before it is stored, in the common form.
#[derive(Clone, Debug)]
pub struct Notice {
    pub kind: &'static str,
    pub title: String,
    pub message: String,
    pub data: Option<serde_json::Value>,
    pub priority: Priority,
    pub action_url: Option<String>,
}

/// A notification before it is stored, with everything that can be said about it:
/// `Draft { dedupe_key: Some(key), ..Draft::try_from(notice)? }`.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    pub kind: String,
    pub title: String,
    pub message: String,
    pub data: Option<Arc<RawValue>>,
    pub priority: Priority,
    pub action_url: Option<String>,
    /// The same key again, for the same user, is the same notification: nothing is stored, nothing
    /// is told.
    pub dedupe_key: Option<String>,
    /// What happens under one key while it is unread is one row: the latest text, and a count.
    /// Urgent notifications are never collapsed.
    pub collapse_key: Option<String>,
    /// From then on it counts nowhere and is not delivered.
    pub expires_at: Option<Timestamp>,
}

impl TryFrom<Notice> for Draft {
    type Error = Refusal;
    fn try_from(notice: Notice) -> Result<Self, Refusal> {
        let data = notice.data.as_ref().map(serde_json::value::to_raw_value);
        Ok(Self {
            kind: notice.kind.into(),
            title: notice.title,
            message: notice.message,
            data: data.transpose().map_err(Refusal::internal)?.map(Arc::from),
            priority: notice.priority,
            action_url: notice.action_url,
            ..Self::default()
        })
    }
}

/// A row as it is to be written.
#[derive(Clone, Debug)]
pub struct Unstored {
    pub notification: Notification,
    /// Set when it is sent to its user in the same breath.
    pub delivered_at: Option<Timestamp>,
    pub expires_at: Option<Timestamp>,
    pub dedupe_key: Option<String>,
    pub collapse_key: Option<String>,
}

/// What became of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    New,
    /// It updated the unread row of its collapse key.
    Collapsed {
        id: NotificationId,
        occurrences: i64,
    },
    /// The user had one with that dedupe key.
    Known(NotificationId),
}

/// Stores notifications in the transaction of their cause, and records that the users are told.
pub async fn tell(cx: &mut Cx<'_>, notices: Vec<(UserId, Notice)>) -> Result<(), Refusal> {
    // Only inside the transaction: [`deliver`] explains why the order matters.
    cx.tx().await?;
    let all = notices
        .into_iter()
        .map(|(to, notice)| Unstored::new(cx, to, notice.try_into()?))
        .collect::<Result<Vec<_>, Refusal>>()?;
    let tenant = &cx.caller.tenant;
    cx.tx().await?.insert_plain(tenant, &all).await?;
    for new in all.into_iter().filter(|new| new.delivered_at.is_some()) {
        let to = ToUser(new.notification.user_id.clone());
        cx.send(to, &NewNotification(new.notification))?;
    }
    Ok(())
}

/// As [`tell`], for one that has keys or an end. Returns the id of the row that holds it, which is
/// an older one where a key says so.
pub async fn store(cx: &mut Cx<'_>, to: UserId, draft: Draft) -> Result<NotificationId, Refusal> {
    // As in [`tell`].
    cx.tx().await?;
    let new = Unstored::new(cx, to, draft)?;
    put(cx, new).await
}

/// As [`store`], for one that has a collapse key: who does not hear it costs no statement of their
/// own.
pub async fn collapse(cx: &mut Cx<'_>, to: UserId, draft: Draft) -> Result<(), Refusal> {
    // As in [`tell`].
    cx.tx().await?;
    let new = Unstored::new(cx, to, draft)?;
    if new.delivered_at.is_some() || new.dedupe_key.is_some() {
        return put(cx, new).await.map(|_| ());
    }
    let tenant = &cx.caller.tenant;
    cx.tx().await?.collapse_unheard(tenant, new)
}

async fn put(cx: &mut Cx<'_>, mut new: Unstored) -> Result<NotificationId, Refusal> {
    let tenant = &cx.caller.tenant;
    match cx.tx().await?.insert_notification(tenant, &new).await? {
        Stored::New => {}
        Stored::Collapsed { id, occurrences } => {
            new.notification.id = id;
            new.notification.count = Notification::count(occurrences);
        }
        Stored::Known(id) => return Ok(id),
    }
    let id = new.notification.id.clone();
    if new.delivered_at.is_some() {
        let to = ToUser(new.notification.user_id.clone());
        cx.send(to, &NewNotification(new.notification))?;
    }
    Ok(id)
}

impl Unstored {
    /// What a draft comes to for one user, who is told at once when somebody listens.
    fn new(cx: &Cx<'_>, to: UserId, draft: Draft) -> Result<Self, Refusal> {
        let is_heard = cx.app.presence.listens(&cx.caller.tenant, &to);
        Ok(Self {
            notification: Notification {
                id: NotificationId::new(cx.app.ids.uuid()).map_err(Refusal::internal)?,
                user_id: to,
                kind: draft.kind,
                title: draft.title,
                message: draft.message,
                data: draft.data,
                is_read: false,
                priority: draft.priority,
                action_url: draft.action_url,
                created_at: cx.now,
                count: None,
            },
            delivered_at: is_heard.then_some(cx.now),
            expires_at: draft.expires_at,
            dedupe_key: draft.dedupe_key,
            collapse_key: draft.collapse_key.filter(|_| draft.priority != Priority::Urgent),
        })
    }
}
