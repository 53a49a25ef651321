//! What is told of notifications. All of it goes to every socket of the user: what one tab has
//! read no other shows as new.

use schemars::JsonSchema;
use serde::Serialize;

use super::{Notification, Notifications};
use crate::{
    contract::{Event, ToUser},
    ids::NotificationId,
};

/// A notification for this user. One that was told before and happened again comes with the same
/// `id`.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct NewNotification(pub Notification);
impl Event for NewNotification {
    type In = Notifications;
    type To = ToUser;
    const NAME: &'static str = "new-notification";
    const DURABLE: bool = true;
}

/// One has been read; a lower `rev` than one already seen is stale.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NotificationRead {
    pub notification_id: NotificationId,
    pub unread_count: i64,
    pub rev: i64,
}
impl Event for NotificationRead {
    type In = Notifications;
    type To = ToUser;
    const NAME: &'static str = "notification-read";
    const DURABLE: bool = true;
}

/// All of them have been read; `unreadCount` is not 0 when there are newer ones.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NotificationsReadAll {
    pub unread_count: i64,
    pub rev: i64,
}
impl Event for NotificationsReadAll {
    type In = Notifications;
    type To = ToUser;
    const NAME: &'static str = "notifications-read-all";
    const DURABLE: bool = true;
}
