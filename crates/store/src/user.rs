//! Users.

use std::time::Duration;

use async_trait::async_trait;
use carillon_domain::{
    Refusal, TenantId, Timestamp, UserId,
    api::users::NewAccount,
    identity::{Account, Claims, Role, TokenRule, User, UserStatus},
    ports::{ChangedUser, UserReads, UserWrites},
};

use crate::{
    error::refusal,
    rows::Rows,
    time::Time,
    tx::{SqlTx, on},
};

const GET: &str = "SELECT id, name, role, avatar, status, claims_issued_at,
        tokens_valid_from, token_version, deleted_at IS NOT NULL AS is_deleted
    FROM users
    WHERE tenant_id = $1 AND id = $2";
macro_rules! select_accounts {
    ($rest:literal) => {
        concat!(
            "SELECT id, name, email, role, avatar, target_specialty, status,
                claims_issued_at IS NULL AS managed, tokens_valid_from, token_version, created_at,
                updated_at
             FROM users WHERE tenant_id = $1 AND deleted_at IS NULL AND ",
            $rest
        )
    };
}
const ACCOUNT: &str = select_accounts!("id = $2");
const ACCOUNTS: &str = select_accounts!("id > $2 ORDER BY id LIMIT $3");
const PUT: &str = "INSERT INTO users
    (tenant_id, id, name, email, role, avatar, target_specialty, status, created_at, updated_at,
     token_version)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9, $10)
    ON CONFLICT (tenant_id, id) DO UPDATE SET
        name = excluded.name, email = excluded.email, role = excluded.role,
        avatar = excluded.avatar, target_specialty = excluded.target_specialty,
        status = excluded.status, claims_issued_at = NULL, updated_at = excluded.updated_at,
        token_version = CASE WHEN excluded.token_version > users.token_version
            THEN excluded.token_version ELSE users.token_version END,
        deleted_at = NULL";
// What was refused before is refused for ever.
const REVOKE: &str = "UPDATE users SET
        tokens_valid_from = CASE WHEN tokens_valid_from > $3 THEN tokens_valid_from
            ELSE COALESCE($3, tokens_valid_from) END,
        token_version = CASE WHEN token_version > $4 THEN token_version ELSE $4 END
    WHERE tenant_id = $1 AND id = $2 AND deleted_at IS NULL";
const DELETE: &str = "UPDATE users SET name = 'Deleted user', email = NULL, avatar = NULL,
        target_specialty = NULL, role = 'STUDENT', status = 'SUSPENDED', claims_issued_at = NULL,
        tokens_valid_from = CASE WHEN tokens_valid_from > $4 THEN tokens_valid_from ELSE $4 END,
        deleted_at = $3, updated_at = $3
    WHERE tenant_id = $1 AND id = $2 AND deleted_at IS NULL";
const DELETE_WITH: [&str; 3] = [
    "DELETE FROM notifications WHERE tenant_id = $1 AND user_id = $2",
    "DELETE FROM online_users WHERE tenant_id = $1 AND user_id = $2",
    "DELETE FROM joined_rooms WHERE tenant_id = $1 AND user_id = $2",
];
const CHANGED_SQLITE: &str = "SELECT id, tenant_id, user_id FROM user_changes
    WHERE changed_at > CAST(unixepoch('subsec') * 1000 AS INTEGER) - $1";
const CHANGED_POSTGRES: &str = "SELECT id, tenant_id, user_id FROM user_changes
    WHERE changed_at > clock_timestamp() - $1 * interval '1 millisecond'";
const FORGET_CHANGES: &str = "DELETE FROM user_changes WHERE id IN
    (SELECT id FROM user_changes WHERE changed_at < $1 ORDER BY changed_at LIMIT $2)";
const LAST_SEEN: &str = "SELECT last_seen FROM online_users WHERE tenant_id = $1 AND user_id = $2";
static NOTE_SEEN: Rows = Rows::new(
    "INSERT INTO online_users (tenant_id, last_seen, user_id) VALUES",
    2,
    1,
    " ON CONFLICT (tenant_id, user_id) DO UPDATE SET last_seen = excluded.last_seen",
);
const PROVISION: &str = "INSERT INTO users
    (tenant_id, id, name, email, role, avatar, status, claims_issued_at, created_at, updated_at,
     token_version)
    VALUES ($1, $2, $3, $4, $5, $6, 'VERIFIED', $7, $8, $8, $9)
    ON CONFLICT (tenant_id, id) DO UPDATE SET
        name = excluded.name, email = excluded.email, role = excluded.role,
        avatar = excluded.avatar,
        claims_issued_at = excluded.claims_issued_at, updated_at = excluded.updated_at,
        token_version = CASE WHEN excluded.token_version > users.token_version
            THEN excluded.token_version ELSE users.token_version END
    WHERE users.claims_issued_at < excluded.claims_issued_at";

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    name: String,
    role: String,
    avatar: Option<String>,
    status: String,
    claims_issued_at: Option<Time>,
    tokens_valid_from: Option<Time>,
    token_version: i64,
    is_deleted: bool,
}

impl Row {
    fn user(self) -> Result<User, Refusal> {
        Ok(User {
            id: UserId::new(self.id).map_err(Refusal::internal)?,
            name: self.name,
            role: Role::parse(&self.role).ok_or_else(|| unknown("role", &self.role))?,
            avatar: self.avatar,
            status: UserStatus::parse(&self.status)
                .ok_or_else(|| unknown("status", &self.status))?,
            claims_issued_at: self.claims_issued_at.map(Timestamp::from),
            tokens: rule(self.tokens_valid_from, self.token_version),
            is_deleted: self.is_deleted,
        })
    }
}

#[derive(sqlx::FromRow)]
struct AccountRow {
    id: String,
    name: String,
    email: Option<String>,
    role: String,
    avatar: Option<String>,
    target_specialty: Option<String>,
    status: String,
    managed: bool,
    tokens_valid_from: Option<Time>,
    token_version: i64,
    created_at: Time,
    updated_at: Time,
}

impl AccountRow {
    fn account(self) -> Result<Account, Refusal> {
        Ok(Account {
            id: UserId::new(self.id).map_err(Refusal::internal)?,
            name: self.name,
            email: self.email,
            role: Role::parse(&self.role).ok_or_else(|| unknown("role", &self.role))?,
            avatar: self.avatar,
            target_specialty: self.target_specialty,
            status: UserStatus::parse(&self.status)
                .ok_or_else(|| unknown("status", &self.status))?,
            managed: self.managed,
            tokens: rule(self.tokens_valid_from, self.token_version),
            created_at: self.created_at.into(),
            updated_at: self.updated_at.into(),
        })
    }
}

fn rule(valid_from: Option<Time>, version: i64) -> TokenRule {
    TokenRule { valid_from: valid_from.map(Timestamp::from), version }
}

fn unknown(column: &str, value: &str) -> Refusal {
    Refusal::internal(format!("users.{column} holds the unknown value {value:?}"))
}

#[async_trait]
impl UserReads for SqlTx {
    async fn user(&mut self, tenant: &TenantId, user: &UserId) -> Result<Option<User>, Refusal> {
        let row: Option<Row> = on!(self.conn().await?, c => sqlx::query_as(GET)
            .bind(tenant.as_str()).bind(user.as_str()).fetch_optional(c).await)
        .map_err(refusal)?;
        row.map(Row::user).transpose()
    }

    async fn account(
        &mut self,
        tenant: &TenantId,
        user: &UserId,
    ) -> Result<Option<Account>, Refusal> {
        let row: Option<AccountRow> = on!(self.conn().await?, c => sqlx::query_as(ACCOUNT)
            .bind(tenant.as_str()).bind(user.as_str()).fetch_optional(c).await)
        .map_err(refusal)?;
        row.map(AccountRow::account).transpose()
    }

    async fn accounts(
        &mut self,
        tenant: &TenantId,
        after: &str,
        limit: u32,
    ) -> Result<Vec<Account>, Refusal> {
        let rows: Vec<AccountRow> = on!(self.conn().await?, c => sqlx::query_as(ACCOUNTS)
            .bind(tenant.as_str()).bind(after).bind(i64::from(limit)).fetch_all(c).await)
        .map_err(refusal)?;
        rows.into_iter().map(AccountRow::account).collect()
    }

    async fn last_seen(
        &mut self,
        tenant: &TenantId,
        user: &UserId,
    ) -> Result<Option<Timestamp>, Refusal> {
        let seen: Option<Time> = on!(self.conn().await?, c => sqlx::query_scalar(LAST_SEEN)
            .bind(tenant.as_str()).bind(user.as_str()).fetch_optional(c).await)
        .map_err(refusal)?;
        Ok(seen.map(Timestamp::from))
    }

    async fn changed_users(&mut self, within: Duration) -> Result<Vec<ChangedUser>, Refusal> {
        let changed = if self.is_sqlite() { CHANGED_SQLITE } else { CHANGED_POSTGRES };
        let within_ms = i64::try_from(within.as_millis()).unwrap_or(i64::MAX);
        let rows: Vec<(i64, String, String)> = on!(self.conn().await?, c => sqlx::query_as(changed)
            .bind(within_ms).fetch_all(c).await)
        .map_err(refusal)?;
        rows.into_iter()
            .map(|(id, tenant, user)| {
                Ok(ChangedUser { id, tenant: TenantId::new(tenant)?, user: UserId::new(user)? })
            })
            .collect::<Result<_, carillon_domain::ids::InvalidId>>()
            .map_err(Refusal::internal)
    }
}

#[async_trait]
impl UserWrites for SqlTx {
    async fn provision_user(
        &mut self,
        tenant: &TenantId,
        claims: &Claims,
        now: Timestamp,
    ) -> Result<User, Refusal> {
        // A token without `iat` makes a row, and any token that has one is newer.
        let issued_at = Time(claims.issue.at.unwrap_or_default());
        on!(self.conn().await?, c => sqlx::query(PROVISION)
            .bind(tenant.as_str()).bind(claims.user.as_str()).bind(claims.display_name())
            .bind(&claims.email).bind(claims.role.as_str()).bind(&claims.avatar)
            .bind(issued_at).bind(Time(now)).bind(claims.issue.version)
            .execute(c).await.map(|_| ()))
        .map_err(refusal)?;
        self.user(tenant, &claims.user).await?.ok_or(Refusal::NotFound)
    }

    async fn put_account(
        &mut self,
        tenant: &TenantId,
        account: &NewAccount,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        on!(self.conn().await?, c => sqlx::query(PUT)
            .bind(tenant.as_str()).bind(account.id.as_str()).bind(&account.name)
            .bind(&account.email).bind(account.role.as_str()).bind(&account.avatar)
            .bind(&account.target_specialty).bind(account.status.as_str()).bind(Time(now))
            .bind(account.token_version)
            .execute(c).await.map(|_| ()))
        .map_err(refusal)
    }

    async fn revoke_tokens(
        &mut self,
        tenant: &TenantId,
        user: &UserId,
        below: &TokenRule,
    ) -> Result<bool, Refusal> {
        on!(self.conn().await?, c => sqlx::query(REVOKE)
            .bind(tenant.as_str()).bind(user.as_str()).bind(below.valid_from.map(Time))
            .bind(below.version).execute(c).await.map(|done| done.rows_affected() > 0))
        .map_err(refusal)
    }

    async fn delete_user(
        &mut self,
        tenant: &TenantId,
        user: &UserId,
        now: Timestamp,
    ) -> Result<bool, Refusal> {
        // Also of somebody who is made again under that id, earlier tokens are refused.
        let next_second = Timestamp((now.0.div_euclid(1_000) + 1) * 1_000);
        for statement in DELETE_WITH {
            on!(self.conn().await?, c => sqlx::query(statement)
                .bind(tenant.as_str()).bind(user.as_str()).execute(c).await.map(|_| ()))
            .map_err(refusal)?;
        }
        on!(self.conn().await?, c => sqlx::query(DELETE)
            .bind(tenant.as_str()).bind(user.as_str()).bind(Time(now)).bind(Time(next_second))
            .execute(c).await.map(|done| done.rows_affected() > 0))
        .map_err(refusal)
    }

    async fn forget_user_changes(&mut self, before: Timestamp, limit: u32) -> Result<u64, Refusal> {
        on!(self.conn().await?, c => sqlx::query(FORGET_CHANGES)
            .bind(Time(before)).bind(i64::from(limit))
            .execute(c).await.map(|done| done.rows_affected()))
        .map_err(refusal)
    }

    async fn note_seen(
        &mut self,
        tenant: &TenantId,
        users: &[UserId],
        now: Timestamp,
    ) -> Result<(), Refusal> {
        for (statement, part) in NOTE_SEEN.parts(self.kind(), users) {
            on!(self.conn().await?, c => {
                let mut query = sqlx::query(statement).bind(tenant.as_str()).bind(Time(now));
                for user in part {
                    query = query.bind(user.as_str());
                }
                query.execute(c).await.map(|_| ())
            })
            .map_err(refusal)?;
        }
        Ok(())
    }
}
