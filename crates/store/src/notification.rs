//! Notifications.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use carillon_domain::{
    Refusal, TenantId, Timestamp, UserId,
    ids::NotificationId,
    notification::{Audience, Batch, Notification, Priority, Stored, Unstored},
    ports::{NotificationReads, NotificationWrites},
};
use serde_json::value::RawValue;

use crate::{
    batch::Unheard,
    error::refusal,
    rows::Rows,
    time::Time,
    tx::{Held, SqlTx, on},
};

const UNREAD: &str = "SELECT count(*) FROM notifications
    WHERE tenant_id = $1 AND user_id = $2 AND is_read = FALSE
      AND (expires_at IS NULL OR expires_at > $3)";
/// Without DISTINCT: SQLite would walk the whole tenant in the order of users.
const AWAITING: &str = "SELECT user_id FROM notifications
    WHERE tenant_id = $1 AND created_at >= $2 AND delivered_at IS NULL AND is_read = FALSE";
const EXISTS: &str = "SELECT 1 FROM notifications
    WHERE tenant_id = $1 AND user_id = $2 AND id = $3";
const BY_DEDUPE_KEY: &str = "SELECT id FROM notifications
    WHERE tenant_id = $1 AND user_id = $2 AND dedupe_key = $3";

macro_rules! insert {
    ($values:literal) => {
        concat!(
            "INSERT INTO notifications
                (tenant_id, id, user_id, type, title, message, data, priority, action_url,
                 created_at, delivered_at, expires_at, dedupe_key, collapse_key) VALUES",
            $values
        )
    };
}
const INSERT: &str = insert!(
    " ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) ON CONFLICT DO NOTHING"
);
static INSERT_PLAIN: Rows = Rows::new(insert!(""), 1, 13, "");
/// What has expired counts no more.
const COLLAPSE: &str = "UPDATE notifications
    SET type = $4, title = $5, message = $6, data = $7, priority = $8, action_url = $9,
        created_at = $10, delivered_at = $11, expires_at = $12,
        occurrences = CASE WHEN expires_at <= $10 THEN 0 ELSE occurrences END + 1
    WHERE tenant_id = $1 AND user_id = $2 AND collapse_key = $3 AND NOT is_read
    RETURNING id, occurrences";

/// What `COLLAPSE` and then `INSERT` do, for many and for several times at once.
static COLLAPSE_MANY: Rows = Rows::new(
    "INSERT INTO notifications
        (tenant_id, id, user_id, type, title, message, data, priority, action_url, created_at,
         expires_at, collapse_key, occurrences) VALUES",
    0,
    13,
    " ON CONFLICT (tenant_id, user_id, collapse_key) WHERE collapse_key IS NOT NULL AND NOT is_read
     DO UPDATE SET type = excluded.type, title = excluded.title, message = excluded.message,
        data = excluded.data, priority = excluded.priority, action_url = excluded.action_url,
        created_at = excluded.created_at, delivered_at = NULL, expires_at = excluded.expires_at,
        occurrences = CASE WHEN notifications.expires_at <= excluded.created_at THEN 0
            ELSE notifications.occurrences END + excluded.occurrences",
);

/// The ids of a batch are its prefix and twelve hexadecimal digits: the batch's number plus the
/// row's, modulo 2^48.
macro_rules! insert_many {
    ($digits:literal, $elements:literal, $list:literal) => {
        concat!(
            "INSERT INTO notifications
                (tenant_id, id, user_id, type, title, message, data, priority, action_url,
                 created_at, expires_at, dedupe_key)
             SELECT u.tenant_id, $2 || ",
            $digits,
            ", u.id, $4, $5, $6, $7, $8, $9, $10, $11, $12
             FROM (SELECT tenant_id, id,
                       ($3 + row_number() OVER (ORDER BY id)) % 281474976710656 AS number
                   FROM users
                   WHERE tenant_id = $1 AND status <> 'SUSPENDED'
                     AND ($13 IS NULL OR id IN (",
            $elements,
            "($13",
            $list,
            ")))
                     AND ($14 IS NULL OR role IN (",
            $elements,
            "($14",
            $list,
            ")))) u
             WHERE TRUE ON CONFLICT DO NOTHING"
        )
    };
}
const INSERT_MANY_SQLITE: &str =
    insert_many!("printf('%012x', u.number)", "SELECT value FROM json_each", "");
const INSERT_MANY_POSTGRES: &str =
    insert_many!("lpad(to_hex(u.number), 12, '0')", "SELECT jsonb_array_elements_text", "::jsonb");

const CLAIM: &str = "UPDATE notifications SET delivered_at = $3
    WHERE tenant_id = $1 AND user_id = $2 AND delivered_at IS NULL AND id IN (
        SELECT id FROM notifications
        WHERE tenant_id = $1 AND user_id = $2 AND is_read = FALSE AND delivered_at IS NULL
          AND (expires_at IS NULL OR expires_at > $3)
        ORDER BY created_at DESC, id DESC LIMIT $4)
    RETURNING id, user_id, type AS kind, title, message, data, is_read, priority, action_url,
        created_at, occurrences";
const PASS_OVER: &str = "UPDATE notifications SET delivered_at = $3
    WHERE tenant_id = $1 AND user_id = $2 AND is_read = FALSE AND delivered_at IS NULL";
const READ: &str = "UPDATE notifications SET is_read = TRUE
    WHERE tenant_id = $1 AND user_id = $2 AND id = $3";
const READ_ALL: &str = "UPDATE notifications SET is_read = TRUE
    WHERE tenant_id = $1 AND user_id = $2 AND is_read = FALSE AND created_at <= $3";
const READ_UP_TO: &str = "UPDATE notifications SET is_read = TRUE
    WHERE tenant_id = $1 AND user_id = $2 AND is_read = FALSE AND (created_at, id) <=
        (SELECT created_at, id FROM notifications
         WHERE tenant_id = $1 AND user_id = $2 AND id = $3)";

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    user_id: String,
    kind: String,
    title: String,
    message: String,
    data: Option<String>,
    is_read: bool,
    priority: String,
    action_url: Option<String>,
    created_at: Time,
    occurrences: i64,
}

impl Row {
    fn notification(self) -> Result<Notification, Refusal> {
        let priority = Priority::parse(&self.priority).ok_or_else(|| {
            Refusal::internal(format!("notifications.priority holds {:?}", self.priority))
        })?;
        let data = self.data.map(RawValue::from_string).transpose().map_err(Refusal::internal)?;
        Ok(Notification {
            id: NotificationId::new(self.id).map_err(Refusal::internal)?,
            user_id: UserId::new(self.user_id).map_err(Refusal::internal)?,
            kind: self.kind,
            title: self.title,
            message: self.message,
            data: data.map(Arc::from),
            is_read: self.is_read,
            priority,
            action_url: self.action_url,
            created_at: self.created_at.into(),
            count: Notification::count(self.occurrences),
        })
    }
}

fn notification_id(id: String) -> Result<NotificationId, Refusal> {
    NotificationId::new(id).map_err(Refusal::internal)
}

/// Writes notifications that nobody has been sent: what is said to one user under one collapse key
/// is one row, the latest.
pub(crate) async fn write(held: &mut Held, unheard: &[Unheard]) -> Result<(), sqlx::Error> {
    let mut rows: BTreeMap<_, (&Unheard, i64)> = BTreeMap::new();
    for one in unheard {
        let new = &one.new.notification;
        let key = one.new.collapse_key.as_deref().unwrap_or(new.id.as_str());
        let row = rows.entry((one.tenant.as_str(), new.user_id.as_str(), key)).or_insert((one, 0));
        *row = (one, row.1 + 1);
    }
    let rows: Vec<_> = rows.into_values().collect();
    for (statement, part) in COLLAPSE_MANY.parts(held.statement().kind(), &rows) {
        on!(held.statement(), c => {
            let mut query = sqlx::query(statement);
            for (Unheard { tenant, new: unstored }, occurrences) in part {
                let new = &unstored.notification;
                query = query
                    .bind(tenant.as_str()).bind(new.id.as_str()).bind(new.user_id.as_str())
                    .bind(&new.kind).bind(&new.title).bind(&new.message)
                    .bind(new.data.as_ref().map(|data| data.get()))
                    .bind(new.priority.as_str()).bind(&new.action_url)
                    .bind(Time(new.created_at)).bind(unstored.expires_at.map(Time))
                    .bind(&unstored.collapse_key).bind(occurrences);
            }
            query.execute(c).await.map(|_| ())
        })?;
    }
    Ok(())
}

#[async_trait]
impl NotificationReads for SqlTx {
    async fn unread_notifications(
        &mut self,
        tenant: &TenantId,
        user: &UserId,
        now: Timestamp,
    ) -> Result<i64, Refusal> {
        on!(self.conn().await?, c => sqlx::query_scalar(UNREAD)
            .bind(tenant.as_str()).bind(user.as_str()).bind(Time(now)).fetch_one(c).await)
        .map_err(refusal)
    }

    async fn awaiting_delivery(
        &mut self,
        tenant: &TenantId,
        since: Timestamp,
    ) -> Result<Vec<UserId>, Refusal> {
        let mut rows: Vec<String> = on!(self.conn().await?, c => sqlx::query_scalar(AWAITING)
            .bind(tenant.as_str()).bind(Time(since)).fetch_all(c).await)
        .map_err(refusal)?;
        rows.sort_unstable();
        rows.dedup();
        rows.into_iter().map(|id| UserId::new(id).map_err(Refusal::internal)).collect()
    }
}

#[async_trait]
impl NotificationWrites for SqlTx {
    async fn insert_notification(
        &mut self,
        tenant: &TenantId,
        unstored: &Unstored,
    ) -> Result<Stored, Refusal> {
        let new = &unstored.notification;
        let data = new.data.as_ref().map(|data| data.get());
        let (delivered, expires) = (unstored.delivered_at.map(Time), unstored.expires_at.map(Time));
        if let Some(key) = &unstored.collapse_key {
            let row: Option<(String, i64)> = on!(self.conn().await?, c => sqlx::query_as(COLLAPSE)
                .bind(tenant.as_str()).bind(new.user_id.as_str()).bind(key)
                .bind(&new.kind).bind(&new.title).bind(&new.message).bind(data)
                .bind(new.priority.as_str()).bind(&new.action_url).bind(Time(new.created_at))
                .bind(delivered).bind(expires).fetch_optional(c).await)
            .map_err(refusal)?;
            if let Some((id, occurrences)) = row {
                return Ok(Stored::Collapsed { id: notification_id(id)?, occurrences });
            }
        }
        let is_new = on!(self.conn().await?, c => sqlx::query(INSERT)
            .bind(tenant.as_str()).bind(new.id.as_str()).bind(new.user_id.as_str())
            .bind(&new.kind).bind(&new.title).bind(&new.message).bind(data)
            .bind(new.priority.as_str()).bind(&new.action_url).bind(Time(new.created_at))
            .bind(delivered).bind(expires).bind(&unstored.dedupe_key).bind(&unstored.collapse_key)
            .execute(c).await.map(|done| done.rows_affected() > 0))
        .map_err(refusal)?;
        if is_new {
            return Ok(Stored::New);
        }
        let earlier: Option<String> =
            on!(self.conn().await?, c => sqlx::query_scalar(BY_DEDUPE_KEY)
            .bind(tenant.as_str()).bind(new.user_id.as_str()).bind(&unstored.dedupe_key)
            .fetch_optional(c).await)
            .map_err(refusal)?;
        let earlier = earlier.ok_or_else(|| Refusal::internal("a notification's id twice"))?;
        Ok(Stored::Known(notification_id(earlier)?))
    }

    fn collapse_unheard(&mut self, tenant: &TenantId, new: Unstored) -> Result<(), Refusal> {
        self.batch()?.add_unheard(Unheard { tenant: tenant.clone(), new });
        Ok(())
    }

    async fn insert_plain(&mut self, tenant: &TenantId, all: &[Unstored]) -> Result<(), Refusal> {
        for (statement, part) in INSERT_PLAIN.parts(self.kind(), all) {
            on!(self.conn().await?, c => {
                let mut query = sqlx::query(statement).bind(tenant.as_str());
                for unstored in part {
                    let new = &unstored.notification;
                    query = query.bind(new.id.as_str()).bind(new.user_id.as_str())
                        .bind(&new.kind).bind(&new.title).bind(&new.message)
                        .bind(new.data.as_ref().map(|data| data.get()))
                        .bind(new.priority.as_str()).bind(&new.action_url)
                        .bind(Time(new.created_at)).bind(unstored.delivered_at.map(Time))
                        .bind(unstored.expires_at.map(Time)).bind(&unstored.dedupe_key)
                        .bind(&unstored.collapse_key);
                }
                query.execute(c).await.map(|_| ())
            })
            .map_err(refusal)?;
        }
        Ok(())
    }

    async fn insert_notifications(
        &mut self,
        tenant: &TenantId,
        audience: &Audience,
        batch: &Batch,
        now: Timestamp,
    ) -> Result<u64, Refusal> {
        let draft = &batch.draft;
        let (users, roles) = match audience {
            Audience::Users(users) => (Some(serde_json::to_string(users)), None),
            Audience::Roles(roles) => (None, Some(serde_json::to_string(roles))),
            Audience::Everybody => (None, None),
        };
        let users = users.transpose().map_err(Refusal::internal)?;
        let roles = roles.transpose().map_err(Refusal::internal)?;
        let data = draft.data.as_ref().map(|data| data.get());
        let statement = if self.is_sqlite() { INSERT_MANY_SQLITE } else { INSERT_MANY_POSTGRES };
        on!(self.conn().await?, c => sqlx::query(statement)
            .bind(tenant.as_str()).bind(&batch.prefix).bind(batch.number)
            .bind(&draft.kind).bind(&draft.title).bind(&draft.message).bind(data)
            .bind(draft.priority.as_str()).bind(&draft.action_url).bind(Time(now))
            .bind(draft.expires_at.map(Time)).bind(&draft.dedupe_key).bind(users).bind(roles)
            .execute(c).await.map(|done| done.rows_affected()))
        .map_err(refusal)
    }

    async fn claim_notifications(
        &mut self,
        tenant: &TenantId,
        user: &UserId,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<Notification>, Refusal> {
        let rows: Vec<Row> = on!(self.conn().await?, c => sqlx::query_as(CLAIM)
            .bind(tenant.as_str()).bind(user.as_str()).bind(Time(now)).bind(i64::from(limit))
            .fetch_all(c).await)
        .map_err(refusal)?;
        if rows.len() == limit as usize {
            on!(self.conn().await?, c => sqlx::query(PASS_OVER)
                .bind(tenant.as_str()).bind(user.as_str()).bind(Time(now))
                .execute(c).await.map(|_| ()))
            .map_err(refusal)?;
        }
        let mut claimed = rows.into_iter().map(Row::notification).collect::<Result<Vec<_>, _>>()?;
        claimed.sort_by(|one, other| (one.created_at, &one.id).cmp(&(other.created_at, &other.id)));
        Ok(claimed)
    }

    async fn read_notification(
        &mut self,
        tenant: &TenantId,
        user: &UserId,
        id: &NotificationId,
    ) -> Result<bool, Refusal> {
        on!(self.conn().await?, c => sqlx::query(READ)
            .bind(tenant.as_str()).bind(user.as_str()).bind(id.as_str())
            .execute(c).await.map(|done| done.rows_affected() > 0))
        .map_err(refusal)
    }

    async fn read_notifications(
        &mut self,
        tenant: &TenantId,
        user: &UserId,
        made_by: Timestamp,
    ) -> Result<(), Refusal> {
        on!(self.conn().await?, c => sqlx::query(READ_ALL)
            .bind(tenant.as_str()).bind(user.as_str()).bind(Time(made_by))
            .execute(c).await.map(|_| ()))
        .map_err(refusal)
    }

    async fn read_notifications_up_to(
        &mut self,
        tenant: &TenantId,
        user: &UserId,
        id: &NotificationId,
    ) -> Result<bool, Refusal> {
        let own: Option<i32> = on!(self.conn().await?, c => sqlx::query_scalar(EXISTS)
            .bind(tenant.as_str()).bind(user.as_str()).bind(id.as_str())
            .fetch_optional(c).await)
        .map_err(refusal)?;
        if own.is_none() {
            return Ok(false);
        }
        on!(self.conn().await?, c => sqlx::query(READ_UP_TO)
            .bind(tenant.as_str()).bind(user.as_str()).bind(id.as_str())
            .execute(c).await.map(|_| true))
        .map_err(refusal)
    }
}

#[cfg(test)]
mod tests {
    use sqlx::{AssertSqlSafe, Row as _, SqlitePool};

    use super::*;
    use crate::{
        joined_rooms::{GO, KEPT, RETURN},
        open::SQLITE_MIGRATIONS,
        study_group::GROUPS_OF,
    };

    /// What grows with the number of users, or with what one of them keeps.
    #[tokio::test]
    async fn what_is_asked_for_everybody_or_often_is_found_by_an_index() {
        let pool = SqlitePool::connect("sqlite::memory:").await.unwrap();
        SQLITE_MIGRATIONS.run(&pool).await.unwrap();
        for (statement, index) in [
            (UNREAD, "notifications_unread"),
            (KEPT, "notifications_unread"),
            (KEPT, "exam_sessions_running_of_user"),
            (KEPT, "joined_rooms_by_user"),
            (GO, "joined_rooms_by_user"),
            (RETURN, "joined_rooms_by_user"),
            (GROUPS_OF, "study_group_members_by_user"),
            (CLAIM, "notifications_unread"),
            (AWAITING, "notifications_undelivered"),
            (COLLAPSE, "notifications_by_collapse_key"),
            (BY_DEDUPE_KEY, "notifications_by_dedupe_key"),
        ] {
            let explained = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {statement}"));
            let rows = sqlx::query(explained).fetch_all(&pool).await.unwrap();
            let plan: Vec<String> = rows.iter().map(|row| row.get("detail")).collect();
            assert!(plan.iter().any(|line| line.contains(index)), "{statement}: {plan:?}");
            let is_walk = |line: &String| {
                ["notifications", "exam_sessions", "joined_rooms"]
                    .iter()
                    .any(|table| line.starts_with(&format!("SCAN {table}")))
            };
            assert!(!plan.iter().any(is_walk), "{statement}: {plan:?}");
        }
    }
}
