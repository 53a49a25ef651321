//! Study groups, their members and invitations. Their rooms are rows of the chat tables, and
//! membership changes in both at once.

use async_trait::async_trait;
use carillon_domain::{
    Refusal, RoomId, TenantId, Timestamp, UserId,
    ids::GroupId,
    ports::{ChatWrites, StudyGroupReads, StudyGroupWrites},
    study_group::{Place, Standing, StudyGroup},
};
use serde_json::json;

use crate::{
    error::refusal,
    time::Time,
    tx::{SqlTx, on},
};

const GET: &str = "SELECT id, name, description, room_id, creator_id, max_members, specialty,
        is_public, created_at, updated_at, owner_id
    FROM study_groups WHERE tenant_id = $1 AND id = $2 AND deleted_at IS NULL";
const IDS: &str = "SELECT id FROM study_groups
    WHERE tenant_id = $1 AND id > $2 AND deleted_at IS NULL ORDER BY id LIMIT $3";
pub(crate) const GROUPS_OF: &str = "SELECT m.group_id FROM study_group_members m
    JOIN study_groups g ON g.tenant_id = m.tenant_id AND g.id = m.group_id
    WHERE m.tenant_id = $1 AND m.user_id = $2 AND g.deleted_at IS NULL ORDER BY m.group_id";
const MEMBERS: &str = "SELECT user_id FROM study_group_members
    WHERE tenant_id = $1 AND group_id = $2 ORDER BY place";
const STANDING: &str = "SELECT g.id, g.name, g.room_id, g.owner_id, g.is_public, m.is_admin,
        i.user_id AS invited
    FROM study_groups g
    LEFT JOIN study_group_members m
        ON m.tenant_id = g.tenant_id AND m.group_id = g.id AND m.user_id = $3
    LEFT JOIN study_group_invitations i
        ON i.tenant_id = g.tenant_id AND i.group_id = g.id AND i.user_id = $3
    WHERE g.tenant_id = $1 AND g.id = $2 AND g.deleted_at IS NULL";

const CREATE: &str = "INSERT INTO study_groups
    (tenant_id, id, room_id, name, description, specialty, creator_id, owner_id, max_members,
     is_public, created_at, updated_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)";
const CREATE_ROOM: &str = "INSERT INTO chat_rooms
    (tenant_id, id, name, type, metadata, created_at) VALUES ($1, $2, $3, 'STUDY_GROUP', $4, $5)";
/// Nobody comes into a full group, whoever asks.
const TAKE_PLACE: &str = "UPDATE study_groups
    SET member_count = member_count + 1, last_place = last_place + 1, updated_at = $3
    WHERE tenant_id = $1 AND id = $2 AND deleted_at IS NULL AND member_count < max_members
    RETURNING last_place, room_id";
const ADD: &str = "INSERT INTO study_group_members
    (tenant_id, group_id, user_id, place, joined_at) VALUES ($1, $2, $3, $4, $5)";
const USE_INVITATION: &str = "DELETE FROM study_group_invitations
    WHERE tenant_id = $1 AND group_id = $2 AND user_id = $3";
const REMOVE: &str = "DELETE FROM study_group_members
    WHERE tenant_id = $1 AND group_id = $2 AND user_id = $3";
const FREE_PLACE: &str = "UPDATE study_groups SET member_count = member_count - 1, updated_at = $3
    WHERE tenant_id = $1 AND id = $2 RETURNING member_count, room_id";
const REMOVE_FROM_ROOM: &str = "DELETE FROM chat_members
    WHERE tenant_id = $1 AND room_id = $2 AND user_id = $3";
const COUNT_OUT: &str = "UPDATE chat_rooms SET member_count = member_count - 1
    WHERE tenant_id = $1 AND id = $2";
const PASS_ON: &str = "UPDATE study_groups SET updated_at = $3, owner_id =
        (SELECT user_id FROM study_group_members
         WHERE tenant_id = $1 AND group_id = $2 ORDER BY is_admin DESC, place LIMIT 1)
    WHERE tenant_id = $1 AND id = $2 AND deleted_at IS NULL AND member_count > 0
    RETURNING owner_id";
const DELETE: &str = "UPDATE study_groups SET deleted_at = $3, updated_at = $3
    WHERE tenant_id = $1 AND id = $2 AND deleted_at IS NULL AND member_count = 0";
const DELETE_INVITATIONS: &str = "DELETE FROM study_group_invitations
    WHERE tenant_id = $1 AND group_id = $2";
const INVITE: &str = "INSERT INTO study_group_invitations
    (tenant_id, group_id, user_id, invited_by, created_at) VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT DO NOTHING";

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    name: String,
    description: Option<String>,
    room_id: String,
    creator_id: String,
    max_members: i64,
    specialty: Option<String>,
    is_public: bool,
    created_at: Time,
    updated_at: Time,
    owner_id: String,
}

impl Row {
    fn group(self, members: Vec<String>) -> Result<StudyGroup, Refusal> {
        let members = members.into_iter().map(user_id).collect::<Result<_, _>>()?;
        Ok(StudyGroup {
            id: GroupId::new(self.id).map_err(Refusal::internal)?,
            name: self.name,
            description: self.description,
            room_id: RoomId::new(self.room_id).map_err(Refusal::internal)?,
            creator_id: user_id(self.creator_id)?,
            members,
            max_members: self.max_members,
            specialty: self.specialty,
            is_public: self.is_public,
            created_at: self.created_at.into(),
            updated_at: self.updated_at.into(),
            owner_id: user_id(self.owner_id)?,
        })
    }
}

#[derive(sqlx::FromRow)]
struct StandingRow {
    id: String,
    name: String,
    room_id: String,
    owner_id: String,
    is_public: bool,
    is_admin: Option<bool>,
    invited: Option<String>,
}

fn user_id(id: String) -> Result<UserId, Refusal> {
    UserId::new(id).map_err(Refusal::internal)
}

#[async_trait]
impl StudyGroupReads for SqlTx {
    async fn study_group(
        &mut self,
        tenant: &TenantId,
        group: &GroupId,
    ) -> Result<Option<StudyGroup>, Refusal> {
        let row: Option<Row> = on!(self.conn().await?, c => sqlx::query_as(GET)
            .bind(tenant.as_str()).bind(group.as_str()).fetch_optional(c).await)
        .map_err(refusal)?;
        let Some(row) = row else { return Ok(None) };
        let members: Vec<String> = on!(self.conn().await?, c => sqlx::query_scalar(MEMBERS)
            .bind(tenant.as_str()).bind(group.as_str()).fetch_all(c).await)
        .map_err(refusal)?;
        row.group(members).map(Some)
    }

    async fn study_group_ids(
        &mut self,
        tenant: &TenantId,
        after: &str,
        limit: u32,
    ) -> Result<Vec<GroupId>, Refusal> {
        let rows: Vec<String> = on!(self.conn().await?, c => sqlx::query_scalar(IDS)
            .bind(tenant.as_str()).bind(after).bind(i64::from(limit)).fetch_all(c).await)
        .map_err(refusal)?;
        rows.into_iter().map(|id| GroupId::new(id).map_err(Refusal::internal)).collect()
    }

    async fn groups_of(
        &mut self,
        tenant: &TenantId,
        user: &UserId,
    ) -> Result<Vec<GroupId>, Refusal> {
        let ids: Vec<String> = on!(self.conn().await?, c => sqlx::query_scalar(GROUPS_OF)
            .bind(tenant.as_str()).bind(user.as_str()).fetch_all(c).await)
        .map_err(refusal)?;
        ids.into_iter().map(|id| GroupId::new(id).map_err(Refusal::internal)).collect()
    }

    async fn standing(
        &mut self,
        tenant: &TenantId,
        group: &GroupId,
        user: &UserId,
    ) -> Result<Option<Standing>, Refusal> {
        let row: Option<StandingRow> = on!(self.conn().await?, c => sqlx::query_as(STANDING)
            .bind(tenant.as_str()).bind(group.as_str()).bind(user.as_str())
            .fetch_optional(c).await)
        .map_err(refusal)?;
        row.map(|row| {
            Ok(Standing {
                group: GroupId::new(row.id).map_err(Refusal::internal)?,
                name: row.name,
                room: RoomId::new(row.room_id).map_err(Refusal::internal)?,
                owner: user_id(row.owner_id)?,
                is_public: row.is_public,
                place: match (row.is_admin, row.invited) {
                    (Some(true), _) => Place::Admin,
                    (Some(false), _) => Place::Member,
                    (None, Some(_)) => Place::Invited,
                    (None, None) => Place::Outside,
                },
            })
        })
        .transpose()
    }
}

#[async_trait]
impl StudyGroupWrites for SqlTx {
    async fn create_study_group(
        &mut self,
        tenant: &TenantId,
        group: &StudyGroup,
    ) -> Result<(), Refusal> {
        on!(self.conn().await?, c => sqlx::query(CREATE)
            .bind(tenant.as_str()).bind(group.id.as_str()).bind(group.room_id.as_str())
            .bind(&group.name).bind(&group.description).bind(&group.specialty)
            .bind(group.creator_id.as_str()).bind(group.owner_id.as_str())
            .bind(group.max_members).bind(group.is_public).bind(Time(group.created_at))
            .bind(Time(group.updated_at)).execute(c).await.map(|_| ()))
        .map_err(refusal)?;
        let metadata = json!({ "groupId": group.id }).to_string();
        on!(self.conn().await?, c => sqlx::query(CREATE_ROOM)
            .bind(tenant.as_str()).bind(group.room_id.as_str()).bind(&group.name)
            .bind(&metadata).bind(Time(group.created_at)).execute(c).await.map(|_| ()))
        .map_err(refusal)
    }

    async fn add_group_member(
        &mut self,
        tenant: &TenantId,
        group: &GroupId,
        user: &UserId,
        now: Timestamp,
    ) -> Result<bool, Refusal> {
        let taken: Option<(i64, String)> = on!(self.conn().await?, c => sqlx::query_as(TAKE_PLACE)
            .bind(tenant.as_str()).bind(group.as_str()).bind(Time(now))
            .fetch_optional(c).await)
        .map_err(refusal)?;
        let Some((place, room)) = taken else { return Ok(false) };
        on!(self.conn().await?, c => sqlx::query(ADD)
            .bind(tenant.as_str()).bind(group.as_str()).bind(user.as_str()).bind(place)
            .bind(Time(now)).execute(c).await.map(|_| ()))
        .map_err(refusal)?;
        on!(self.conn().await?, c => sqlx::query(USE_INVITATION)
            .bind(tenant.as_str()).bind(group.as_str()).bind(user.as_str())
            .execute(c).await.map(|_| ()))
        .map_err(refusal)?;
        let room = RoomId::new(room).map_err(Refusal::internal)?;
        self.add_member(tenant, &room, user, now).await?;
        Ok(true)
    }

    async fn remove_group_member(
        &mut self,
        tenant: &TenantId,
        group: &GroupId,
        user: &UserId,
        now: Timestamp,
    ) -> Result<Option<i64>, Refusal> {
        let was_in = on!(self.conn().await?, c => sqlx::query(REMOVE)
            .bind(tenant.as_str()).bind(group.as_str()).bind(user.as_str())
            .execute(c).await.map(|done| done.rows_affected() > 0))
        .map_err(refusal)?;
        if !was_in {
            return Ok(None);
        }
        let (left, room): (i64, String) = on!(self.conn().await?, c => sqlx::query_as(FREE_PLACE)
            .bind(tenant.as_str()).bind(group.as_str()).bind(Time(now)).fetch_one(c).await)
        .map_err(refusal)?;
        on!(self.conn().await?, c => sqlx::query(REMOVE_FROM_ROOM)
            .bind(tenant.as_str()).bind(&room).bind(user.as_str()).execute(c).await.map(|_| ()))
        .map_err(refusal)?;
        on!(self.conn().await?, c => sqlx::query(COUNT_OUT)
            .bind(tenant.as_str()).bind(&room).execute(c).await.map(|_| ()))
        .map_err(refusal)?;
        Ok(Some(left))
    }

    async fn pass_on_study_group(
        &mut self,
        tenant: &TenantId,
        group: &GroupId,
        now: Timestamp,
    ) -> Result<Option<UserId>, Refusal> {
        let owner: Option<String> = on!(self.conn().await?, c => sqlx::query_scalar(PASS_ON)
            .bind(tenant.as_str()).bind(group.as_str()).bind(Time(now))
            .fetch_optional(c).await)
        .map_err(refusal)?;
        owner.map(user_id).transpose()
    }

    async fn delete_study_group(
        &mut self,
        tenant: &TenantId,
        group: &GroupId,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        on!(self.conn().await?, c => sqlx::query(DELETE)
            .bind(tenant.as_str()).bind(group.as_str()).bind(Time(now))
            .execute(c).await.map(|_| ()))
        .map_err(refusal)?;
        on!(self.conn().await?, c => sqlx::query(DELETE_INVITATIONS)
            .bind(tenant.as_str()).bind(group.as_str()).execute(c).await.map(|_| ()))
        .map_err(refusal)
    }

    async fn invite_to_group(
        &mut self,
        tenant: &TenantId,
        group: &GroupId,
        user: &UserId,
        by: &UserId,
        now: Timestamp,
    ) -> Result<bool, Refusal> {
        on!(self.conn().await?, c => sqlx::query(INVITE)
            .bind(tenant.as_str()).bind(group.as_str()).bind(user.as_str()).bind(by.as_str())
            .bind(Time(now)).execute(c).await.map(|done| done.rows_affected() > 0))
        .map_err(refusal)
    }
}
