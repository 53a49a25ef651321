//! `notification-read`: one of one's own; again it is the same.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Notifications, events::NotificationRead};
use crate::{
    contract::{Class, Command, Handle, Policy, ToUser},
    dispatch::Cx,
    ids::NotificationId,
    refusal::Refusal,
};

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReadNotification {
    pub notification_id: NotificationId,
}

impl Command for ReadNotification {
    type In = Notifications;
    type Reply = NotificationRead;
    const NAME: &'static str = "notification-read";
    const POLICY: Policy = Policy::new(
        Class::Notification,
        "Notification ID is required",
        "Failed to mark notification as read",
    );
    fn example() -> Self {
        let id = "0190a1b2-c3d4-7e5f-8a6b-0c1d2e3f4a5b";
        Self { notification_id: NotificationId::new(id).expect("a sound id") }
    }
}

impl Handle for ReadNotification {
    async fn handle(self, cx: &mut Cx<'_>) -> Result<NotificationRead, Refusal> {
        let (caller, now) = (cx.caller, cx.now);
        let (tenant, user) = (&caller.tenant, &caller.user);
        let tx = cx.tx().await?;
        if !tx.read_notification(tenant, user, &self.notification_id).await? {
            return Err(Refusal::NotFound);
        }
        let read = NotificationRead {
            notification_id: self.notification_id,
            unread_count: tx.unread_notifications(tenant, user, now).await?,
            // Raised by this very event, so that the next one is higher.
            rev: tx.head(tenant).await?.0,
        };
        cx.send(ToUser(user.clone()), &read)?;
        Ok(read)
    }
}
