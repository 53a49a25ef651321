//! API keys, replies kept for repeated requests, and the audit log.

use async_trait::async_trait;

use super::Result;
use crate::{
    api::{
        KeptReply, StoredKey,
        audit::{AuditEntry, AuditFilter},
    },
    ids::{TenantId, Timestamp},
};

#[async_trait]
pub trait ApiReads: Send {
    /// The key with that hash, unless it was revoked.
    async fn api_key(&mut self, hash: &str) -> Result<Option<StoredKey>>;
    /// All keys, by tenant and name, revoked ones too.
    async fn api_keys(&mut self) -> Result<Vec<StoredKey>>;
    /// What was answered to this actor's request of that key.
    async fn kept_reply(
        &mut self,
        tenant: &TenantId,
        actor: &str,
        key: &str,
    ) -> Result<Option<KeptReply>>;
    /// Deeds before one, newest first.
    async fn audit_entries(
        &mut self,
        tenant: &TenantId,
        filter: &AuditFilter,
        before: i64,
        limit: u32,
    ) -> Result<Vec<AuditEntry>>;
}

#[async_trait]
pub trait ApiWrites: Send {
    /// False when a key of that name is in use.
    async fn insert_api_key(&mut self, key: &StoredKey) -> Result<bool>;
    /// False when there is no such key in use.
    async fn revoke_api_key(
        &mut self,
        tenant: &TenantId,
        name: &str,
        now: Timestamp,
    ) -> Result<bool>;
    async fn keep_reply(
        &mut self,
        tenant: &TenantId,
        actor: &str,
        key: &str,
        reply: &KeptReply,
        now: Timestamp,
    ) -> Result<()>;
    /// Forgets replies given before an instant, of all tenants, at most `limit`; says how many.
    async fn forget_replies(&mut self, before: Timestamp, limit: u32) -> Result<u64>;
    /// Adds to the audit log. `details` is a JSON object.
    async fn audit(
        &mut self,
        tenant: &TenantId,
        at: Timestamp,
        actor: &str,
        action: &str,
        subject: &str,
        details: &str,
    ) -> Result<()>;
}
