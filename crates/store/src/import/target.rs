//! Our own database, as an import needs it: what is there already, and rows as they were elsewhere.

use std::collections::HashSet;

use carillon_domain::{
    Refusal, RoomId, TenantId, Timestamp, UserId,
    chat::RoomKind,
    contract::Scope,
    exam::Answer,
    identity::Account,
    ids::{AttemptId, ExamId},
    notification::Notification,
    ports::Tx as _,
    study_group::StudyGroup,
};
use serde_json::json;

use crate::{
    error::refusal,
    open::SqlStore,
    time::Time,
    tx::{SqlTx, on},
};

/// Which of some ids are there: on SQLite, and on `PostgreSQL`.
pub(super) struct Known(&'static str, &'static str);

macro_rules! known {
    ($column:literal, $table:literal, $which:literal) => {
        Known(
            concat!(
                "SELECT ",
                $column,
                " FROM ",
                $table,
                " WHERE tenant_id = $1 AND ",
                $column,
                " IN (SELECT value FROM json_each($2))",
                $which
            ),
            concat!(
                "SELECT ",
                $column,
                " FROM ",
                $table,
                " WHERE tenant_id = $1 AND ",
                $column,
                " IN (SELECT jsonb_array_elements_text($2::jsonb))",
                $which
            ),
        )
    };
}
/// Rows made from a token follow the source from now on.
pub(super) const USERS: Known = known!("id", "users", " AND claims_issued_at IS NULL");
pub(super) const RESULTS: Known = known!("id", "exam_results", "");
pub(super) const GROUPS: Known = known!("id", "study_groups", "");
pub(super) const GROUP_ROOMS: Known = known!("room_id", "study_groups", "");
pub(super) const ROOMS: Known = known!("id", "chat_rooms", "");
pub(super) const MESSAGES: Known = known!("id", "chat_messages", "");
/// Of pairs of a user and an id. SQLite keeps the order of a CROSS JOIN; left to itself it walks
/// through all notifications.
pub(super) const NOTIFICATIONS: Known = Known(
    "SELECT n.id FROM json_each($2) j CROSS JOIN notifications n
     ON n.tenant_id = $1 AND n.user_id = j.value->>0 AND n.id = j.value->>1",
    "SELECT n.id FROM jsonb_array_elements($2::jsonb) j JOIN notifications n
     ON n.tenant_id = $1 AND n.user_id = j->>0 AND n.id = j->>1",
);

const PAPERS: &str = "SELECT version, questions FROM exam_papers
    WHERE tenant_id = $1 AND exam_id = $2 ORDER BY version DESC";
const SITTING: &str = "SELECT user_id FROM exam_sessions
    WHERE tenant_id = $1 AND exam_id = $2 AND status <> 'COMPLETED'";
const MEMBERS: &str = "SELECT user_id FROM chat_members WHERE tenant_id = $1 AND room_id = $2";

const USER: &str = "INSERT INTO users
    (tenant_id, id, name, email, role, avatar, target_specialty, status, created_at, updated_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
    ON CONFLICT (tenant_id, id) DO UPDATE SET
        name = excluded.name, email = excluded.email, role = excluded.role,
        avatar = excluded.avatar, target_specialty = excluded.target_specialty,
        status = excluded.status, claims_issued_at = NULL, updated_at = excluded.updated_at
    WHERE users.claims_issued_at IS NOT NULL";
const ANSWERS_SQLITE: &str = "INSERT INTO exam_answers
        (tenant_id, session_id, question, answer, version, received_at, late)
    SELECT $1, $2, j.value->>0, j.value->>1, 1, $3, FALSE FROM json_each($4) j";
const ANSWERS_POSTGRES: &str = "INSERT INTO exam_answers
        (tenant_id, session_id, question, answer, version, received_at, late)
    SELECT $1, $2, (j->>0)::bigint, j->>1, 1, $3, FALSE FROM jsonb_array_elements($4::jsonb) j";
const ROOM: &str = "INSERT INTO chat_rooms (tenant_id, id, name, type, metadata, created_at)
    VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING";
const GROUP: &str = "INSERT INTO study_groups
    (tenant_id, id, room_id, name, description, specialty, creator_id, owner_id, max_members,
     member_count, last_place, is_public, created_at, updated_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $10, $11, $12, $12)
    ON CONFLICT DO NOTHING";
const GROUP_MEMBER: &str = "INSERT INTO study_group_members
    (tenant_id, group_id, user_id, place, joined_at) VALUES ($1, $2, $3, $4, $5)";
const TAKE_SEQS: &str = "UPDATE chat_rooms SET last_seq = last_seq + $3
    WHERE tenant_id = $1 AND id = $2 RETURNING last_seq";
const MESSAGE: &str = "INSERT INTO chat_messages
    (tenant_id, id, room_id, seq, sender_id, sender_name, sender_avatar, message, message_type,
     file_url, file_name, file_size, is_read, created_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)";
/// Who had read everything before has read the new ones up to the first that is not marked read.
const READ_ON: &str = "UPDATE chat_members SET last_read_seq = COALESCE(
        (SELECT min(c.seq) - 1 FROM chat_messages c
         WHERE c.tenant_id = $1 AND c.room_id = $2 AND c.seq > $3 AND NOT c.is_read
           AND c.sender_id <> chat_members.user_id), $4)
    WHERE tenant_id = $1 AND room_id = $2 AND last_read_seq = $3";
const NOTIFICATION: &str = "INSERT INTO notifications
    (tenant_id, id, user_id, type, title, message, data, is_read, priority, action_url, created_at,
     delivered_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11) ON CONFLICT DO NOTHING";

/// Where rows go.
pub(super) struct Target<'a> {
    store: Option<&'a SqlStore>,
    pub tenant: &'a TenantId,
    pub writes: bool,
}

/// A chat message before it has its place.
pub(super) struct Message {
    pub id: String,
    pub sender: UserId,
    pub sender_name: String,
    pub sender_avatar: Option<String>,
    pub message: String,
    pub message_type: String,
    pub file_url: Option<String>,
    pub file_name: Option<String>,
    pub file_size: Option<i64>,
    pub is_read: bool,
    pub created_at: Timestamp,
}

impl<'a> Target<'a> {
    pub fn new(store: Option<&'a SqlStore>, tenant: &'a TenantId, writes: bool) -> Self {
        Self { store, tenant, writes }
    }

    /// A transaction; `None` in a dry run. What locks rooms takes the lane, as the server does:
    /// neither can then wait for the other in a circle.
    pub async fn begin(&self, scope: Scope) -> Result<Option<SqlTx>, Refusal> {
        match self.store.filter(|_| self.writes) {
            Some(store) => store.transaction(self.tenant, scope).await.map(Some),
            None => Ok(None),
        }
    }

    pub async fn commit(tx: Option<SqlTx>) -> Result<(), Refusal> {
        match tx {
            Some(tx) => Box::new(tx).commit().await,
            None => Ok(()),
        }
    }

    /// Which of these ids, or of these pairs, are there.
    pub async fn known(
        &self,
        known: &Known,
        ids: impl IntoIterator<Item = impl serde::Serialize>,
    ) -> Result<HashSet<String>, Refusal> {
        let Some(store) = self.store else { return Ok(HashSet::new()) };
        let ids: Vec<_> = ids.into_iter().collect();
        let ids = serde_json::to_string(&ids).map_err(Refusal::internal)?;
        let mut reads = store.reader().await?;
        let statement = if reads.is_sqlite() { known.0 } else { known.1 };
        let rows: Vec<String> = on!(reads.conn().await?, c => sqlx::query_scalar(statement)
            .bind(self.tenant.as_str()).bind(ids).fetch_all(c).await)
        .map_err(refusal)?;
        Ok(rows.into_iter().collect())
    }

    /// Every version of an exam's paper, the newest first.
    pub async fn papers(&self, exam: &ExamId) -> Result<Vec<(i64, String)>, Refusal> {
        let Some(store) = self.store else { return Ok(Vec::new()) };
        let mut reads = store.reader().await?;
        on!(reads.conn().await?, c => sqlx::query_as(PAPERS)
            .bind(self.tenant.as_str()).bind(exam.as_str()).fetch_all(c).await)
        .map_err(refusal)
    }

    async fn users_by(
        &self,
        statement: &'static str,
        of: &str,
    ) -> Result<HashSet<String>, Refusal> {
        let Some(store) = self.store else { return Ok(HashSet::new()) };
        let mut reads = store.reader().await?;
        let rows: Vec<String> = on!(reads.conn().await?, c => sqlx::query_scalar(statement)
            .bind(self.tenant.as_str()).bind(of).fetch_all(c).await)
        .map_err(refusal)?;
        Ok(rows.into_iter().collect())
    }

    /// Who sits an exam now.
    pub async fn sitting(&self, exam: &ExamId) -> Result<HashSet<String>, Refusal> {
        self.users_by(SITTING, exam.as_str()).await
    }

    pub async fn members(&self, room: &RoomId) -> Result<HashSet<String>, Refusal> {
        self.users_by(MEMBERS, room.as_str()).await
    }
}

impl SqlTx {
    /// False when it was there and managed elsewhere.
    pub(super) async fn import_user(
        &mut self,
        tenant: &TenantId,
        user: &Account,
    ) -> Result<bool, Refusal> {
        on!(self.conn().await?, c => sqlx::query(USER)
            .bind(tenant.as_str()).bind(user.id.as_str()).bind(&user.name).bind(&user.email)
            .bind(user.role.as_str()).bind(&user.avatar).bind(&user.target_specialty)
            .bind(user.status.as_str()).bind(Time(user.created_at)).bind(Time(user.updated_at))
            .execute(c).await.map(|done| done.rows_affected() > 0))
        .map_err(refusal)
    }

    pub(super) async fn import_answers(
        &mut self,
        tenant: &TenantId,
        attempt: &AttemptId,
        answers: &[Answer],
        at: Timestamp,
    ) -> Result<(), Refusal> {
        let answers: Vec<_> = answers
            .iter()
            .map(|answer| json!([answer.question, answer.value.to_string()]))
            .collect();
        let answers = json!(answers).to_string();
        let statement = if self.is_sqlite() { ANSWERS_SQLITE } else { ANSWERS_POSTGRES };
        on!(self.conn().await?, c => sqlx::query(statement)
            .bind(tenant.as_str()).bind(attempt.as_str()).bind(Time(at)).bind(answers)
            .execute(c).await.map(|_| ()))
        .map_err(refusal)
    }

    /// False when it was there.
    pub(super) async fn import_room(
        &mut self,
        tenant: &TenantId,
        room: &RoomId,
        name: &str,
        kind: RoomKind,
        metadata: &str,
        created_at: Timestamp,
    ) -> Result<bool, Refusal> {
        on!(self.conn().await?, c => sqlx::query(ROOM)
            .bind(tenant.as_str()).bind(room.as_str()).bind(name).bind(kind.as_str())
            .bind(metadata).bind(Time(created_at))
            .execute(c).await.map(|done| done.rows_affected() > 0))
        .map_err(refusal)
    }

    /// The group and its members, and their places in its room; false when it, or another group in
    /// its room, was there.
    pub(super) async fn import_group(
        &mut self,
        tenant: &TenantId,
        group: &StudyGroup,
    ) -> Result<bool, Refusal> {
        use carillon_domain::ports::ChatWrites as _;
        let count = i64::try_from(group.members.len()).map_err(Refusal::internal)?;
        let is_new = on!(self.conn().await?, c => sqlx::query(GROUP)
            .bind(tenant.as_str()).bind(group.id.as_str()).bind(group.room_id.as_str())
            .bind(&group.name).bind(&group.description).bind(&group.specialty)
            .bind(group.creator_id.as_str()).bind(group.owner_id.as_str())
            .bind(group.max_members).bind(count).bind(group.is_public)
            .bind(Time(group.created_at))
            .execute(c).await.map(|done| done.rows_affected() > 0))
        .map_err(refusal)?;
        if !is_new {
            return Ok(false);
        }
        let metadata = json!({ "groupId": group.id }).to_string();
        let (room, at) = (&group.room_id, group.created_at);
        self.import_room(tenant, room, &group.name, RoomKind::StudyGroup, &metadata, at).await?;
        for (member, place) in group.members.iter().zip(1_i64..) {
            on!(self.conn().await?, c => sqlx::query(GROUP_MEMBER)
                .bind(tenant.as_str()).bind(group.id.as_str()).bind(member.as_str()).bind(place)
                .bind(Time(at)).execute(c).await.map(|_| ()))
            .map_err(refusal)?;
            self.add_member(tenant, room, member, at).await?;
        }
        Ok(true)
    }

    /// Messages after everything their room has; who had read all of that has read on.
    pub(super) async fn import_messages(
        &mut self,
        tenant: &TenantId,
        room: &RoomId,
        messages: &[Message],
    ) -> Result<(), Refusal> {
        let count = i64::try_from(messages.len()).map_err(Refusal::internal)?;
        let last: i64 = on!(self.conn().await?, c => sqlx::query_scalar(TAKE_SEQS)
            .bind(tenant.as_str()).bind(room.as_str()).bind(count).fetch_one(c).await)
        .map_err(refusal)?;
        let before = last - count;
        for (message, seq) in messages.iter().zip(before + 1..) {
            on!(self.conn().await?, c => sqlx::query(MESSAGE)
                .bind(tenant.as_str()).bind(&message.id).bind(room.as_str()).bind(seq)
                .bind(message.sender.as_str()).bind(&message.sender_name)
                .bind(&message.sender_avatar).bind(&message.message).bind(&message.message_type)
                .bind(&message.file_url).bind(&message.file_name).bind(message.file_size)
                .bind(message.is_read).bind(Time(message.created_at))
                .execute(c).await.map(|_| ()))
            .map_err(refusal)?;
        }
        on!(self.conn().await?, c => sqlx::query(READ_ON)
            .bind(tenant.as_str()).bind(room.as_str()).bind(before).bind(last)
            .execute(c).await.map(|_| ()))
        .map_err(refusal)
    }

    /// Delivered long ago; false when it was there.
    pub(super) async fn import_notification(
        &mut self,
        tenant: &TenantId,
        new: &Notification,
    ) -> Result<bool, Refusal> {
        on!(self.conn().await?, c => sqlx::query(NOTIFICATION)
            .bind(tenant.as_str()).bind(new.id.as_str()).bind(new.user_id.as_str())
            .bind(&new.kind).bind(&new.title).bind(&new.message)
            .bind(new.data.as_ref().map(|data| data.get())).bind(new.is_read)
            .bind(new.priority.as_str()).bind(&new.action_url).bind(Time(new.created_at))
            .execute(c).await.map(|done| done.rows_affected() > 0))
        .map_err(refusal)
    }
}

#[cfg(test)]
mod tests {
    use sqlx::{AssertSqlSafe, Row as _, SqlitePool};

    use super::*;
    use crate::open::SQLITE_MIGRATIONS;

    /// They are asked for every page of a table.
    #[tokio::test]
    async fn what_is_there_is_found_by_an_index() {
        let pool = SqlitePool::connect("sqlite::memory:").await.unwrap();
        SQLITE_MIGRATIONS.run(&pool).await.unwrap();
        let known = [USERS, RESULTS, GROUPS, GROUP_ROOMS, ROOMS, MESSAGES, NOTIFICATIONS];
        for statement in known.map(|known| known.0).into_iter().chain([PAPERS, SITTING, MEMBERS]) {
            let explained = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {statement}"));
            let rows = sqlx::query(explained).fetch_all(&pool).await.unwrap();
            let plan: Vec<String> = rows.iter().map(|row| row.get("detail")).collect();
            let scans = plan.iter().filter(|line| line.starts_with("SCAN"));
            let of_rows: Vec<_> = scans.filter(|line| !line.contains("VIRTUAL TABLE")).collect();
            assert!(of_rows.is_empty(), "{statement}: {plan:?}");
        }
    }
}
