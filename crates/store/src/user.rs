//! Users.

use async_trait::async_trait;
use carillon_domain::{
    Refusal, TenantId, Timestamp, UserId,
    api::users::NewAccount,
    identity::{Account, Claims, Role, User, UserStatus},
    ports::{UserReads, UserWrites},
};

use crate::{
    error::refusal,
    time::Time,
    tx::{SqlTx, on},
};

const GET: &str = "SELECT id, name, role, avatar, status, claims_issued_at, tokens_valid_from
    FROM users
    WHERE tenant_id = $1 AND id = $2";
macro_rules! select_accounts {
    ($rest:literal) => {
        concat!(
            "SELECT id, name, email, role, avatar, target_specialty, status,
                claims_issued_at IS NULL AS managed, tokens_valid_from, created_at, updated_at
             FROM users WHERE tenant_id = $1 AND ",
            $rest
        )
    };
}
const ACCOUNT: &str = select_accounts!("id = $2");
const ACCOUNTS: &str = select_accounts!("id > $2 ORDER BY id LIMIT $3");
const PUT: &str = "INSERT INTO users
    (tenant_id, id, name, email, role, avatar, target_specialty, status, created_at, updated_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9)
    ON CONFLICT (tenant_id, id) DO UPDATE SET
        name = excluded.name, email = excluded.email, role = excluded.role,
        avatar = excluded.avatar, target_specialty = excluded.target_specialty,
        status = excluded.status, claims_issued_at = NULL, updated_at = excluded.updated_at";
const REVOKE: &str = "UPDATE users SET tokens_valid_from = $3 WHERE tenant_id = $1 AND id = $2";
const LAST_SEEN: &str = "SELECT last_seen FROM online_users WHERE tenant_id = $1 AND user_id = $2";
const NOTE_SEEN: &str = "INSERT INTO online_users (tenant_id, user_id, last_seen)
    VALUES ($1, $2, $3) ON CONFLICT (tenant_id, user_id) DO UPDATE SET last_seen = excluded.last_seen";
const SUSPENDED: &str = "SELECT tenant_id, id FROM users WHERE status = 'SUSPENDED'";
const PROVISION: &str = "INSERT INTO users
    (tenant_id, id, name, email, role, avatar, status, claims_issued_at, created_at, updated_at)
    VALUES ($1, $2, $3, $4, $5, $6, 'VERIFIED', $7, $8, $8)
    ON CONFLICT (tenant_id, id) DO UPDATE SET
        name = excluded.name, email = excluded.email, role = excluded.role,
        avatar = excluded.avatar,
        claims_issued_at = excluded.claims_issued_at, updated_at = excluded.updated_at
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
            tokens_valid_from: self.tokens_valid_from.map(Timestamp::from),
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
            tokens_valid_from: self.tokens_valid_from.map(Timestamp::from),
            created_at: self.created_at.into(),
            updated_at: self.updated_at.into(),
        })
    }
}

fn unknown(column: &str, value: &str) -> Refusal {
    Refusal::internal(format!("users.{column} holds the unknown value {value:?}"))
}

#[async_trait]
impl UserReads for SqlTx {
    async fn user(&mut self, tenant: &TenantId, user: &UserId) -> Result<Option<User>, Refusal> {
        let row: Option<Row> = on!(self.conn(), c => sqlx::query_as(GET)
            .bind(tenant.as_str()).bind(user.as_str()).fetch_optional(c).await)
        .map_err(refusal)?;
        row.map(Row::user).transpose()
    }

    async fn account(
        &mut self,
        tenant: &TenantId,
        user: &UserId,
    ) -> Result<Option<Account>, Refusal> {
        let row: Option<AccountRow> = on!(self.conn(), c => sqlx::query_as(ACCOUNT)
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
        let rows: Vec<AccountRow> = on!(self.conn(), c => sqlx::query_as(ACCOUNTS)
            .bind(tenant.as_str()).bind(after).bind(i64::from(limit)).fetch_all(c).await)
        .map_err(refusal)?;
        rows.into_iter().map(AccountRow::account).collect()
    }

    async fn last_seen(
        &mut self,
        tenant: &TenantId,
        user: &UserId,
    ) -> Result<Option<Timestamp>, Refusal> {
        let seen: Option<Time> = on!(self.conn(), c => sqlx::query_scalar(LAST_SEEN)
            .bind(tenant.as_str()).bind(user.as_str()).fetch_optional(c).await)
        .map_err(refusal)?;
        Ok(seen.map(Timestamp::from))
    }

    async fn suspended_users(&mut self) -> Result<Vec<(TenantId, UserId)>, Refusal> {
        let rows: Vec<(String, String)> =
            on!(self.conn(), c => sqlx::query_as(SUSPENDED).fetch_all(c).await).map_err(refusal)?;
        rows.into_iter()
            .map(|(tenant, user)| Ok((TenantId::new(tenant)?, UserId::new(user)?)))
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
        let issued_at = Time(claims.issued_at.unwrap_or_default());
        on!(self.conn(), c => sqlx::query(PROVISION)
            .bind(tenant.as_str()).bind(claims.user.as_str()).bind(claims.display_name())
            .bind(&claims.email).bind(claims.role.as_str()).bind(&claims.avatar)
            .bind(issued_at).bind(Time(now))
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
        on!(self.conn(), c => sqlx::query(PUT)
            .bind(tenant.as_str()).bind(account.id.as_str()).bind(&account.name)
            .bind(&account.email).bind(account.role.as_str()).bind(&account.avatar)
            .bind(&account.target_specialty).bind(account.status.as_str()).bind(Time(now))
            .execute(c).await.map(|_| ()))
        .map_err(refusal)
    }

    async fn revoke_tokens(
        &mut self,
        tenant: &TenantId,
        user: &UserId,
        from: Timestamp,
    ) -> Result<bool, Refusal> {
        on!(self.conn(), c => sqlx::query(REVOKE)
            .bind(tenant.as_str()).bind(user.as_str()).bind(Time(from))
            .execute(c).await.map(|done| done.rows_affected() > 0))
        .map_err(refusal)
    }

    async fn note_seen(
        &mut self,
        tenant: &TenantId,
        users: &[UserId],
        now: Timestamp,
    ) -> Result<(), Refusal> {
        for user in users {
            on!(self.conn(), c => sqlx::query(NOTE_SEEN)
                .bind(tenant.as_str()).bind(user.as_str()).bind(Time(now))
                .execute(c).await.map(|_| ()))
            .map_err(refusal)?;
        }
        Ok(())
    }
}
