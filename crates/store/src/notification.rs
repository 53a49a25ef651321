//! Notifications.

use async_trait::async_trait;
use carillon_domain::{
    Refusal, TenantId,
    notification::Notification,
    ports::{NotificationReads, NotificationWrites},
};

use crate::{
    error::refusal,
    time::Time,
    tx::{SqlTx, on},
};

const INSERT: &str = "INSERT INTO notifications
    (tenant_id, id, user_id, type, title, message, data, priority, action_url, created_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";

#[async_trait]
impl NotificationReads for SqlTx {}

#[async_trait]
impl NotificationWrites for SqlTx {
    async fn insert_notification(
        &mut self,
        tenant: &TenantId,
        new: &Notification,
    ) -> Result<(), Refusal> {
        on!(self.conn(), c => sqlx::query(INSERT)
            .bind(tenant.as_str()).bind(new.id.as_str()).bind(new.user_id.as_str())
            .bind(&new.kind).bind(&new.title).bind(&new.message)
            .bind(new.data.as_ref().map(|data| data.get())).bind(new.priority.as_str())
            .bind(&new.action_url).bind(Time(new.created_at)).execute(c).await.map(|_| ()))
        .map_err(refusal)
    }
}
