//! API keys, replies kept for repeated requests, and the audit log.

use async_trait::async_trait;
use carillon_domain::{
    Refusal, TenantId, Timestamp,
    api::{
        KeptReply, KeyHolder, Rights, StoredKey,
        audit::{AuditEntry, AuditFilter},
    },
    ports::{ApiReads, ApiWrites},
};
use serde_json::value::RawValue;

use crate::{
    error::refusal,
    time::Time,
    tx::{SqlTx, on},
};

const KEY: &str = "SELECT tenant_id, name, hash, scopes, created_at, revoked_at FROM api_keys
    WHERE hash = $1 AND revoked_at IS NULL";
const KEYS: &str = "SELECT tenant_id, name, hash, scopes, created_at, revoked_at FROM api_keys
    ORDER BY tenant_id, name";
// The name of a revoked key may be used again.
const INSERT_KEY: &str = "INSERT INTO api_keys (tenant_id, name, hash, scopes, created_at)
    VALUES ($1, $2, $3, $4, $5) ON CONFLICT (tenant_id, name) DO UPDATE SET
        hash = excluded.hash, scopes = excluded.scopes, created_at = excluded.created_at,
        revoked_at = NULL
    WHERE api_keys.revoked_at IS NOT NULL";
const REVOKE_KEY: &str = "UPDATE api_keys SET revoked_at = $3
    WHERE tenant_id = $1 AND name = $2 AND revoked_at IS NULL";

const KEPT: &str = "SELECT fingerprint, status, body FROM idempotency_keys
    WHERE tenant_id = $1 AND actor = $2 AND key = $3";
const KEEP: &str = "INSERT INTO idempotency_keys
    (tenant_id, actor, key, fingerprint, status, body, created_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7)";
const FORGET: &str = "DELETE FROM idempotency_keys WHERE (tenant_id, actor, key) IN
    (SELECT tenant_id, actor, key FROM idempotency_keys WHERE created_at < $1
     ORDER BY created_at LIMIT $2)";

const AUDIT: &str = "INSERT INTO audit_log (tenant_id, at, actor, action, subject, details)
    VALUES ($1, $2, $3, $4, $5, $6)";
macro_rules! audited {
    ($which:literal) => {
        concat!(
            "SELECT id, at, actor, action, subject, details FROM (
                SELECT id, at, actor, action, subject, details FROM audit_log
                WHERE tenant_id = $1 AND id < $2 AND ",
            $which,
            " AND ($4 = '' OR action = $4 OR substr(action, 1, length($4) + 1) = $4 || '.')
             ORDER BY id DESC LIMIT $3) audited"
        )
    };
}
const AUDITED: &str = concat!(audited!("TRUE"), " ORDER BY id DESC");
// Each half from its index.
const AUDITED_OF: &str = concat!(
    audited!("actor = $5"),
    " UNION ",
    audited!("subject = $5"),
    " ORDER BY id DESC LIMIT $3"
);

#[derive(sqlx::FromRow)]
struct KeyRow {
    tenant_id: String,
    name: String,
    hash: String,
    scopes: String,
    created_at: Time,
    revoked_at: Option<Time>,
}

impl KeyRow {
    fn key(self) -> Result<StoredKey, Refusal> {
        let tenant = TenantId::new(self.tenant_id).map_err(Refusal::internal)?;
        let rights = Rights::parse(self.scopes.split(',')).map_err(Refusal::internal)?;
        Ok(StoredKey {
            holder: KeyHolder { tenant, name: self.name, rights },
            hash: self.hash,
            created_at: self.created_at.into(),
            revoked_at: self.revoked_at.map(Timestamp::from),
        })
    }
}

#[derive(sqlx::FromRow)]
struct AuditRow {
    id: i64,
    at: Time,
    actor: String,
    action: String,
    subject: String,
    details: String,
}

impl AuditRow {
    fn entry(self) -> Result<AuditEntry, Refusal> {
        let details = RawValue::from_string(self.details).map_err(Refusal::internal)?;
        Ok(AuditEntry {
            id: self.id,
            at: self.at.into(),
            actor: self.actor,
            action: self.action,
            subject: self.subject,
            details: details.into(),
        })
    }
}

#[async_trait]
impl ApiReads for SqlTx {
    async fn api_key(&mut self, hash: &str) -> Result<Option<StoredKey>, Refusal> {
        let row: Option<KeyRow> = on!(self.conn().await?, c => sqlx::query_as(KEY)
            .bind(hash).fetch_optional(c).await)
        .map_err(refusal)?;
        row.map(KeyRow::key).transpose()
    }

    async fn api_keys(&mut self) -> Result<Vec<StoredKey>, Refusal> {
        let rows: Vec<KeyRow> =
            on!(self.conn().await?, c => sqlx::query_as(KEYS).fetch_all(c).await)
                .map_err(refusal)?;
        rows.into_iter().map(KeyRow::key).collect()
    }

    async fn kept_reply(
        &mut self,
        tenant: &TenantId,
        actor: &str,
        key: &str,
    ) -> Result<Option<KeptReply>, Refusal> {
        let row: Option<(String, i64, String)> = on!(self.conn().await?, c => sqlx::query_as(KEPT)
            .bind(tenant.as_str()).bind(actor).bind(key).fetch_optional(c).await)
        .map_err(refusal)?;
        row.map(|(fingerprint, status, body)| {
            let status = u16::try_from(status).map_err(Refusal::internal)?;
            Ok(KeptReply { fingerprint, status, body })
        })
        .transpose()
    }

    async fn audit_entries(
        &mut self,
        tenant: &TenantId,
        filter: &AuditFilter,
        before: i64,
        limit: u32,
    ) -> Result<Vec<AuditEntry>, Refusal> {
        let statement = if filter.user.is_some() { AUDITED_OF } else { AUDITED };
        let rows: Vec<AuditRow> = on!(self.conn().await?, c => {
            let query = sqlx::query_as(statement)
                .bind(tenant.as_str()).bind(before).bind(i64::from(limit))
                .bind(filter.action.as_deref().unwrap_or_default());
            let query = match &filter.user {
                Some(user) => query.bind(user),
                None => query,
            };
            query.fetch_all(c).await
        })
        .map_err(refusal)?;
        rows.into_iter().map(AuditRow::entry).collect()
    }
}

#[async_trait]
impl ApiWrites for SqlTx {
    async fn insert_api_key(&mut self, key: &StoredKey) -> Result<bool, Refusal> {
        let StoredKey { holder, hash, created_at, .. } = key;
        on!(self.conn().await?, c => sqlx::query(INSERT_KEY)
            .bind(holder.tenant.as_str()).bind(&holder.name).bind(hash)
            .bind(holder.rights.to_string()).bind(Time(*created_at))
            .execute(c).await.map(|done| done.rows_affected() > 0))
        .map_err(refusal)
    }

    async fn revoke_api_key(
        &mut self,
        tenant: &TenantId,
        name: &str,
        now: Timestamp,
    ) -> Result<bool, Refusal> {
        on!(self.conn().await?, c => sqlx::query(REVOKE_KEY)
            .bind(tenant.as_str()).bind(name).bind(Time(now))
            .execute(c).await.map(|done| done.rows_affected() > 0))
        .map_err(refusal)
    }

    async fn keep_reply(
        &mut self,
        tenant: &TenantId,
        actor: &str,
        key: &str,
        reply: &KeptReply,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        on!(self.conn().await?, c => sqlx::query(KEEP)
            .bind(tenant.as_str()).bind(actor).bind(key).bind(&reply.fingerprint)
            .bind(i64::from(reply.status)).bind(&reply.body).bind(Time(now))
            .execute(c).await.map(|_| ()))
        .map_err(refusal)
    }

    async fn forget_replies(&mut self, before: Timestamp, limit: u32) -> Result<u64, Refusal> {
        on!(self.conn().await?, c => sqlx::query(FORGET)
            .bind(Time(before)).bind(i64::from(limit))
            .execute(c).await.map(|done| done.rows_affected()))
        .map_err(refusal)
    }

    async fn audit(
        &mut self,
        tenant: &TenantId,
        at: Timestamp,
        actor: &str,
        action: &str,
        subject: &str,
        details: &str,
    ) -> Result<(), Refusal> {
        on!(self.conn().await?, c => sqlx::query(AUDIT)
            .bind(tenant.as_str()).bind(Time(at)).bind(actor).bind(action).bind(subject)
            .bind(details).execute(c).await.map(|_| ()))
        .map_err(refusal)
    }
}
