//! Notifications.

use async_trait::async_trait;

use super::Result;
use crate::{ids::TenantId, notification::Notification};

#[async_trait]
pub trait NotificationReads: Send {}

#[async_trait]
pub trait NotificationWrites: Send {
    async fn insert_notification(
        &mut self,
        tenant: &TenantId,
        notification: &Notification,
    ) -> Result<()>;
}
