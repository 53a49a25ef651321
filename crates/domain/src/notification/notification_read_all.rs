//! `notification-read-all`: everything there was when the command came, and nothing newer.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Notifications, events::NotificationsReadAll};
use crate::{
    contract::{Class, Command, Handle, Policy, ToUser},
    dispatch::Cx,
    ids::NotificationId,
    refusal::Refusal,
};

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReadAllNotifications {
    /// The newest one to mark; what was made before the command came unless said otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub up_to: Option<NotificationId>,
}

const FAILED: &str = "Failed to mark all notifications as read";

impl Command for ReadAllNotifications {
    type In = Notifications;
    type Reply = NotificationsReadAll;
    const NAME: &'static str = "notification-read-all";
    const POLICY: Policy = Policy::new(Class::Notification, FAILED, FAILED);
    fn example() -> Self {
        Self { up_to: None }
    }
}

impl Handle for ReadAllNotifications {
    async fn handle(self, cx: &mut Cx<'_>) -> Result<NotificationsReadAll, Refusal> {
        let (caller, now) = (cx.caller, cx.now);
        let (tenant, user) = (&caller.tenant, &caller.user);
        let tx = cx.tx().await?;
        match &self.up_to {
            Some(id) => {
                if !tx.read_notifications_up_to(tenant, user, id).await? {
                    return Err(Refusal::NotFound);
                }
            }
            None => tx.read_notifications(tenant, user, now).await?,
        }
        let read = NotificationsReadAll {
            unread_count: tx.unread_notifications(tenant, user, now).await?,
            rev: tx.head(tenant).await?.0,
        };
        cx.send(ToUser(user.clone()), &read)?;
        Ok(read)
    }
}
