//! Notifications.

use async_trait::async_trait;

use super::Result;
use crate::{
    ids::{NotificationId, TenantId, Timestamp, UserId},
    notification::{Audience, Batch, Notification, Stored, Unstored},
};

#[async_trait]
pub trait NotificationReads: Send {
    /// How many unread notifications a user has that have not expired.
    async fn unread_notifications(
        &mut self,
        tenant: &TenantId,
        user: &UserId,
        now: Timestamp,
    ) -> Result<i64>;
    /// Users for whom something made since an instant has not been delivered.
    async fn awaiting_delivery(
        &mut self,
        tenant: &TenantId,
        since: Timestamp,
    ) -> Result<Vec<UserId>>;
}

#[async_trait]
pub trait NotificationWrites: Send {
    /// Stores a notification, or what its keys make of it.
    async fn insert_notification(&mut self, tenant: &TenantId, new: &Unstored) -> Result<Stored>;
    /// As `insert_notification`, for one that has no dedupe key and is not delivered: it is stored
    /// by the end of the transaction, and nobody hears what became of it. Only in the lane.
    fn collapse_unheard(&mut self, tenant: &TenantId, new: Unstored) -> Result<()>;
    /// Stores notifications without keys.
    async fn insert_plain(&mut self, tenant: &TenantId, new: &[Unstored]) -> Result<()>;
    /// Stores one for everybody of the audience who is not suspended, undelivered, in a single
    /// statement; says how many.
    async fn insert_notifications(
        &mut self,
        tenant: &TenantId,
        audience: &Audience,
        batch: &Batch,
        now: Timestamp,
    ) -> Result<u64>;
    /// Marks what the user has not been sent as delivered, and returns the newest of it, at most
    /// `limit`, oldest first. What one call returns no other does.
    async fn claim_notifications(
        &mut self,
        tenant: &TenantId,
        user: &UserId,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<Notification>>;
    /// False when the user has no such notification.
    async fn read_notification(
        &mut self,
        tenant: &TenantId,
        user: &UserId,
        id: &NotificationId,
    ) -> Result<bool>;
    /// Marks everything made up to an instant as read.
    async fn read_notifications(
        &mut self,
        tenant: &TenantId,
        user: &UserId,
        made_by: Timestamp,
    ) -> Result<()>;
    /// Marks one and everything before it as read; false when the user has no such notification.
    async fn read_notifications_up_to(
        &mut self,
        tenant: &TenantId,
        user: &UserId,
        id: &NotificationId,
    ) -> Result<bool>;
}
