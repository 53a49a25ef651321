//! Rooms, members and messages.

use std::collections::BTreeMap;

use async_trait::async_trait;
use carillon_domain::{
    MessageId, Refusal, RoomId, Seq, TenantId, Timestamp, UserId,
    api::rooms::RoomView,
    chat::{ChatMessage, ChatRoom, NewMessage, Page, RoomKind, Unread},
    ports::{ChatReads, ChatWrites},
};

use crate::{
    batch::Message,
    error::refusal,
    rows::Rows,
    time::Time,
    tx::{Held, SqlTx, on},
};

const ROOM: &str = "SELECT id, type AS kind, last_seq FROM chat_rooms
    WHERE tenant_id = $1 AND id = $2";
const ROOMS: &str = "SELECT id, name, type AS kind, member_count, last_seq, created_at
    FROM chat_rooms WHERE tenant_id = $1 AND id > $2 ORDER BY id LIMIT $3";
const IS_MEMBER: &str = "SELECT 1 FROM chat_members
    WHERE tenant_id = $1 AND room_id = $2 AND user_id = $3";
const MEMBERS: &str = "SELECT user_id FROM chat_members
    WHERE tenant_id = $1 AND room_id = $2 ORDER BY user_id";
const ROOMS_OF: &str = "SELECT room_id FROM chat_members
    WHERE tenant_id = $1 AND user_id = $2 ORDER BY joined_at DESC LIMIT $3";
/// Counted for each absent member with every message, so no further than anybody looks:
/// [`carillon_domain::chat::MAX_UNREAD`].
const UNREAD: &str = "SELECT r.last_seq, m.last_read_seq,
        (SELECT count(*) FROM
            (SELECT 1 FROM chat_messages c
             WHERE c.tenant_id = $1 AND c.room_id = $2
               AND c.seq > m.last_read_seq AND c.sender_id <> $3
             LIMIT 1000) unread)
    FROM chat_members m
    JOIN chat_rooms r ON r.tenant_id = m.tenant_id AND r.id = m.room_id
    WHERE m.tenant_id = $1 AND m.room_id = $2 AND m.user_id = $3";

macro_rules! select_messages {
    ($rest:literal) => {
        concat!(
            "SELECT id, room_id, sender_id, sender_name, sender_avatar, message, message_type,
                file_url, file_name, file_size, is_read, created_at, seq, client_msg_id
             FROM chat_messages WHERE tenant_id = $1 AND ",
            $rest
        )
    };
}
const BEFORE: &str = select_messages!("room_id = $2 AND seq < $3 ORDER BY seq DESC LIMIT $4");
const AFTER: &str = select_messages!("room_id = $2 AND seq > $3 ORDER BY seq LIMIT $4");
const BY_ID: &str = select_messages!("id = $2");
const BY_CLIENT_ID: &str = select_messages!("sender_id = $2 AND client_msg_id = $3");

const CREATE_ROOM: &str = "INSERT INTO chat_rooms (tenant_id, id, name, type, created_at)
    VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING";
const ADD_MEMBER: &str = "INSERT INTO chat_members
    (tenant_id, room_id, user_id, joined_seq, last_read_seq, joined_at)
    SELECT tenant_id, id, $3, last_seq, last_seq, $4 FROM chat_rooms
    WHERE tenant_id = $1 AND id = $2 ON CONFLICT DO NOTHING";
const COUNT_MEMBER: &str = "UPDATE chat_rooms SET member_count = member_count + 1
    WHERE tenant_id = $1 AND id = $2";
const REMOVE_MEMBER: &str = "DELETE FROM chat_members
    WHERE tenant_id = $1 AND room_id = $2 AND user_id = $3";
const COUNT_OUT: &str = "UPDATE chat_rooms SET member_count = member_count - 1
    WHERE tenant_id = $1 AND id = $2";
const NEWEST: &str = "SELECT last_seq, member_count FROM chat_rooms
    WHERE tenant_id = $1 AND id = $2";
static RAISE: Rows = Rows::new(
    "UPDATE chat_rooms SET last_seq = v.column3 FROM (VALUES",
    0,
    3,
    ") v WHERE chat_rooms.tenant_id = v.column1 AND chat_rooms.id = v.column2",
);
static INSERT: Rows = Rows::new(
    "INSERT INTO chat_messages
        (tenant_id, id, room_id, seq, sender_id, sender_name, sender_avatar, message,
         message_type, file_url, file_name, file_size, client_msg_id, created_at) VALUES",
    0,
    14,
    "",
);
const ADVANCE: &str = "UPDATE chat_members SET last_read_seq = $4
    WHERE tenant_id = $1 AND room_id = $2 AND user_id = $3 AND last_read_seq < $4";
const MARK: &str = "UPDATE chat_messages SET is_read = TRUE
    WHERE tenant_id = $1 AND id = $2 AND NOT is_read";

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    room_id: String,
    sender_id: String,
    sender_name: String,
    sender_avatar: Option<String>,
    message: String,
    message_type: String,
    file_url: Option<String>,
    file_name: Option<String>,
    file_size: Option<i64>,
    is_read: bool,
    created_at: Time,
    seq: i64,
    client_msg_id: Option<String>,
}

impl Row {
    fn message(self) -> Result<ChatMessage, Refusal> {
        Ok(ChatMessage {
            id: MessageId::new(self.id).map_err(Refusal::internal)?,
            room_id: RoomId::new(self.room_id).map_err(Refusal::internal)?,
            sender_id: UserId::new(self.sender_id).map_err(Refusal::internal)?,
            sender_name: self.sender_name,
            sender_avatar: self.sender_avatar,
            message: self.message,
            message_type: self.message_type,
            file_url: self.file_url,
            file_name: self.file_name,
            file_size: self.file_size,
            is_read: self.is_read,
            created_at: self.created_at.into(),
            seq: Seq(self.seq),
            client_msg_id: self.client_msg_id,
        })
    }
}

#[derive(sqlx::FromRow)]
struct RoomRow {
    id: String,
    name: String,
    kind: String,
    member_count: i64,
    last_seq: i64,
    created_at: Time,
}

/// Writes messages, and how far their rooms have come.
pub(crate) async fn write(held: &mut Held, messages: &[Message]) -> Result<(), sqlx::Error> {
    for (statement, part) in INSERT.parts(held.statement().kind(), messages) {
        on!(held.statement(), c => {
            let mut query = sqlx::query(statement);
            for Message { tenant, message: of, .. } in part {
                query = query
                    .bind(tenant.as_str()).bind(of.id.as_str()).bind(of.room_id.as_str())
                    .bind(of.seq.0).bind(of.sender_id.as_str()).bind(&of.sender_name)
                    .bind(&of.sender_avatar).bind(&of.message).bind(&of.message_type)
                    .bind(&of.file_url).bind(&of.file_name).bind(of.file_size)
                    .bind(&of.client_msg_id).bind(Time(of.created_at));
            }
            query.execute(c).await.map(|_| ())
        })?;
    }
    let rooms: BTreeMap<_, _> = messages
        .iter()
        .map(|Message { tenant, message: of, .. }| {
            ((tenant.as_str(), of.room_id.as_str()), of.seq.0)
        })
        .collect();
    let rooms: Vec<_> = rooms.into_iter().collect();
    for (statement, part) in RAISE.parts(held.statement().kind(), &rooms) {
        on!(held.statement(), c => {
            let query = part.iter().fold(sqlx::query(statement), |query, ((tenant, room), seq)| {
                query.bind(*tenant).bind(*room).bind(*seq)
            });
            query.execute(c).await.map(|_| ())
        })?;
    }
    Ok(())
}

impl SqlTx {
    /// The number of the room's newest message, and how many members it has.
    async fn newest(&mut self, tenant: &TenantId, room: &RoomId) -> Result<(i64, i64), Refusal> {
        if let Some(newest) = self.batch()?.newest_in(tenant, room) {
            return Ok(newest);
        }
        let found: Option<(i64, i64)> = on!(self.peek(), c => sqlx::query_as(NEWEST)
            .bind(tenant.as_str()).bind(room.as_str()).fetch_optional(c).await)
        .map_err(refusal)?;
        found.ok_or(Refusal::NotAMember)
    }

    async fn page(
        &mut self,
        statement: &'static str,
        tenant: &TenantId,
        room: &RoomId,
        from: Seq,
        limit: u32,
    ) -> Result<Vec<ChatMessage>, Refusal> {
        let rows: Vec<Row> = on!(self.conn().await?, c => sqlx::query_as(statement)
            .bind(tenant.as_str()).bind(room.as_str()).bind(from.0).bind(i64::from(limit))
            .fetch_all(c).await)
        .map_err(refusal)?;
        rows.into_iter().map(Row::message).collect()
    }

    async fn before(
        &mut self,
        tenant: &TenantId,
        room: &RoomId,
        seq: Seq,
        limit: u32,
    ) -> Result<Vec<ChatMessage>, Refusal> {
        let mut messages = self.page(BEFORE, tenant, room, seq, limit).await?;
        messages.reverse();
        Ok(messages)
    }
}

#[async_trait]
impl ChatReads for SqlTx {
    async fn chat_room(
        &mut self,
        tenant: &TenantId,
        room: &RoomId,
    ) -> Result<Option<ChatRoom>, Refusal> {
        let row: Option<(String, String, i64)> = on!(self.conn().await?, c => sqlx::query_as(ROOM)
            .bind(tenant.as_str()).bind(room.as_str()).fetch_optional(c).await)
        .map_err(refusal)?;
        row.map(|(id, kind, last_seq)| {
            let kind = RoomKind::parse(&kind)
                .ok_or_else(|| Refusal::internal(format!("chat_rooms.type holds {kind:?}")))?;
            let id = RoomId::new(id).map_err(Refusal::internal)?;
            Ok(ChatRoom { id, kind, last_seq: Seq(last_seq) })
        })
        .transpose()
    }

    async fn rooms(
        &mut self,
        tenant: &TenantId,
        after: &str,
        limit: u32,
    ) -> Result<Vec<RoomView>, Refusal> {
        let rows: Vec<RoomRow> = on!(self.conn().await?, c => sqlx::query_as(ROOMS)
            .bind(tenant.as_str()).bind(after).bind(i64::from(limit)).fetch_all(c).await)
        .map_err(refusal)?;
        rows.into_iter()
            .map(|row| {
                Ok(RoomView {
                    id: RoomId::new(row.id).map_err(Refusal::internal)?,
                    name: row.name,
                    kind: row.kind,
                    member_count: row.member_count,
                    last_seq: Seq(row.last_seq),
                    created_at: row.created_at.into(),
                })
            })
            .collect()
    }

    async fn members(&mut self, tenant: &TenantId, room: &RoomId) -> Result<Vec<UserId>, Refusal> {
        let rows: Vec<String> = on!(self.peek(), c => sqlx::query_scalar(MEMBERS)
            .bind(tenant.as_str()).bind(room.as_str()).fetch_all(c).await)
        .map_err(refusal)?;
        rows.into_iter().map(|id| UserId::new(id).map_err(Refusal::internal)).collect()
    }

    async fn is_member(
        &mut self,
        tenant: &TenantId,
        room: &RoomId,
        user: &UserId,
    ) -> Result<bool, Refusal> {
        let row: Option<i32> = on!(self.peek(), c => sqlx::query_scalar(IS_MEMBER)
            .bind(tenant.as_str()).bind(room.as_str()).bind(user.as_str())
            .fetch_optional(c).await)
        .map_err(refusal)?;
        Ok(row.is_some())
    }

    async fn rooms_of(
        &mut self,
        tenant: &TenantId,
        user: &UserId,
        limit: u32,
    ) -> Result<Vec<RoomId>, Refusal> {
        let rows: Vec<String> = on!(self.conn().await?, c => sqlx::query_scalar(ROOMS_OF)
            .bind(tenant.as_str()).bind(user.as_str()).bind(i64::from(limit))
            .fetch_all(c).await)
        .map_err(refusal)?;
        rows.into_iter().map(|id| RoomId::new(id).map_err(Refusal::internal)).collect()
    }

    async fn messages(
        &mut self,
        tenant: &TenantId,
        room: &RoomId,
        page: Page,
        limit: u32,
    ) -> Result<Vec<ChatMessage>, Refusal> {
        match page {
            Page::Latest => self.before(tenant, room, Seq(i64::MAX), limit).await,
            Page::Before(seq) => self.before(tenant, room, seq, limit).await,
            Page::After(seq) => self.page(AFTER, tenant, room, seq, limit).await,
            Page::Around(seq) => {
                let mut messages = self.before(tenant, room, seq, limit / 2).await?;
                let from = Seq(seq.0.saturating_sub(1));
                messages.extend(self.page(AFTER, tenant, room, from, limit - limit / 2).await?);
                Ok(messages)
            }
        }
    }

    async fn message(
        &mut self,
        tenant: &TenantId,
        message: &MessageId,
    ) -> Result<Option<ChatMessage>, Refusal> {
        let row: Option<Row> = on!(self.conn().await?, c => sqlx::query_as(BY_ID)
            .bind(tenant.as_str()).bind(message.as_str()).fetch_optional(c).await)
        .map_err(refusal)?;
        row.map(Row::message).transpose()
    }

    async fn message_by_client_id(
        &mut self,
        tenant: &TenantId,
        sender: &UserId,
        client_msg_id: &str,
    ) -> Result<Option<ChatMessage>, Refusal> {
        if let Self::Loan(loan) = self
            && let Some(message) = loan.batch().by_client_id(tenant, sender, client_msg_id)
        {
            return Ok(Some(message.clone()));
        }
        let row: Option<Row> = on!(self.peek(), c => sqlx::query_as(BY_CLIENT_ID)
            .bind(tenant.as_str()).bind(sender.as_str()).bind(client_msg_id)
            .fetch_optional(c).await)
        .map_err(refusal)?;
        row.map(Row::message).transpose()
    }

    async fn unread(
        &mut self,
        tenant: &TenantId,
        room: &RoomId,
        user: &UserId,
    ) -> Result<Unread, Refusal> {
        let row: Option<(i64, i64, i64)> = on!(self.conn().await?, c => sqlx::query_as(UNREAD)
            .bind(tenant.as_str()).bind(room.as_str()).bind(user.as_str())
            .fetch_optional(c).await)
        .map_err(refusal)?;
        let (last_seq, last_read, count) = row.ok_or(Refusal::NotAMember)?;
        Ok(Unread { last_seq: Seq(last_seq), last_read: Seq(last_read), count })
    }
}

#[async_trait]
impl ChatWrites for SqlTx {
    async fn create_room(
        &mut self,
        tenant: &TenantId,
        room: &RoomId,
        kind: RoomKind,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        on!(self.conn().await?, c => sqlx::query(CREATE_ROOM)
            .bind(tenant.as_str()).bind(room.as_str()).bind(format!("Room {room}"))
            .bind(kind.as_str()).bind(Time(now)).execute(c).await.map(|_| ()))
        .map_err(refusal)
    }

    async fn add_member(
        &mut self,
        tenant: &TenantId,
        room: &RoomId,
        user: &UserId,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let is_new = on!(self.conn().await?, c => sqlx::query(ADD_MEMBER)
            .bind(tenant.as_str()).bind(room.as_str()).bind(user.as_str()).bind(Time(now))
            .execute(c).await.map(|done| done.rows_affected() > 0))
        .map_err(refusal)?;
        if is_new {
            on!(self.conn().await?, c => sqlx::query(COUNT_MEMBER)
                .bind(tenant.as_str()).bind(room.as_str()).execute(c).await.map(|_| ()))
            .map_err(refusal)?;
        }
        Ok(())
    }

    async fn remove_member(
        &mut self,
        tenant: &TenantId,
        room: &RoomId,
        user: &UserId,
    ) -> Result<(), Refusal> {
        let was_member = on!(self.conn().await?, c => sqlx::query(REMOVE_MEMBER)
            .bind(tenant.as_str()).bind(room.as_str()).bind(user.as_str())
            .execute(c).await.map(|done| done.rows_affected() > 0))
        .map_err(refusal)?;
        if was_member {
            on!(self.conn().await?, c => sqlx::query(COUNT_OUT)
                .bind(tenant.as_str()).bind(room.as_str()).execute(c).await.map(|_| ()))
            .map_err(refusal)?;
        }
        Ok(())
    }

    async fn insert_message(
        &mut self,
        tenant: &TenantId,
        new: NewMessage,
    ) -> Result<(ChatMessage, i64), Refusal> {
        let (newest, member_count) = self.newest(tenant, &new.room).await?;
        let message = ChatMessage {
            id: new.id,
            room_id: new.room,
            sender_id: new.sender,
            sender_name: new.sender_name,
            sender_avatar: new.sender_avatar,
            message: new.message,
            message_type: new.message_type,
            file_url: new.file_url,
            file_name: new.file_name,
            file_size: new.file_size,
            is_read: false,
            created_at: new.created_at,
            seq: Seq(newest + 1),
            client_msg_id: new.client_msg_id,
        };
        self.batch()?.add_message(Message {
            tenant: tenant.clone(),
            message: message.clone(),
            member_count,
        });
        Ok((message, member_count))
    }

    async fn advance_read(
        &mut self,
        tenant: &TenantId,
        room: &RoomId,
        user: &UserId,
        seq: Seq,
    ) -> Result<bool, Refusal> {
        on!(self.conn().await?, c => sqlx::query(ADVANCE)
            .bind(tenant.as_str()).bind(room.as_str()).bind(user.as_str()).bind(seq.0)
            .execute(c).await.map(|done| done.rows_affected() > 0))
        .map_err(refusal)
    }

    async fn mark_read(&mut self, tenant: &TenantId, message: &MessageId) -> Result<bool, Refusal> {
        on!(self.conn().await?, c => sqlx::query(MARK)
            .bind(tenant.as_str()).bind(message.as_str())
            .execute(c).await.map(|done| done.rows_affected() > 0))
        .map_err(refusal)
    }
}
