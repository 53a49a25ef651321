//! What chat tells. Keys are the contract's: camelCase where it builds the payload by hand,
//! `snake_case` where it sends a row.

use schemars::JsonSchema;
use serde::Serialize;

use super::{Chat, ChatMessage, Unread};
use crate::{
    contract::{Event, ToCaller, ToOthers, ToRoom, ToUser},
    ids::{MessageId, RoomId, Seq, UserId},
};

/// The answer to `join-room`: the room's newest messages, and where the caller stands in it.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RoomJoined {
    pub room_id: RoomId,
    /// Oldest first, at most 50.
    pub messages: Vec<ChatMessage>,
    /// The room's newest `seq`.
    pub seq: Seq,
    pub last_read_seq: Seq,
    /// 1,000 where there are more.
    pub unread_count: i64,
    /// Whether there are older messages.
    pub has_more: bool,
}
impl Event for RoomJoined {
    type In = Chat;
    type To = ToCaller;
    const NAME: &'static str = "room-joined";
}

/// Somebody entered the room with their first socket.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UserJoinedRoom {
    pub room_id: RoomId,
    pub user_id: UserId,
    pub user_name: String,
}
impl Event for UserJoinedRoom {
    type In = Chat;
    type To = ToOthers;
    const NAME: &'static str = "user-joined-room";
    const PACED: bool = true;
}

/// Somebody left the room with their last socket.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UserLeftRoom {
    pub room_id: RoomId,
    pub user_id: UserId,
    pub user_name: String,
}
impl Event for UserLeftRoom {
    type In = Chat;
    type To = ToOthers;
    const NAME: &'static str = "user-left-room";
    const PACED: bool = true;
}

/// The answer to `leave-room`.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RoomLeft {
    pub room_id: RoomId,
}
impl Event for RoomLeft {
    type In = Chat;
    type To = ToCaller;
    const NAME: &'static str = "room-left";
}

/// A message, to everybody in the room, its sender included.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct ReceiveMessage(pub ChatMessage);
impl Event for ReceiveMessage {
    type In = Chat;
    type To = ToRoom;
    const NAME: &'static str = "receive-message";
    const DURABLE: bool = true;
}

/// A message arrived in a room the user is a member of but has not open.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewMessageNotification {
    pub room_id: RoomId,
    pub sender_name: String,
    /// The first 100 characters.
    pub message: String,
}
impl Event for NewMessageNotification {
    type In = Chat;
    type To = ToUser;
    const NAME: &'static str = "new-message-notification";
}

/// Somebody has read a message: to its author, and to the reader's own sockets.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MessageRead {
    pub message_id: MessageId,
    pub room_id: RoomId,
    pub read_by: UserId,
}
impl Event for MessageRead {
    type In = Chat;
    type To = ToUser;
    const NAME: &'static str = "message-read";
}

/// What a user has not read in a room; a lower `rev` than one already seen is stale.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UnreadCount {
    pub room_id: RoomId,
    /// 1,000 where there are more.
    pub unread_count: i64,
    pub last_read_seq: Seq,
    pub rev: i64,
}
impl UnreadCount {
    pub fn new(room_id: RoomId, unread: &Unread) -> Self {
        Self {
            room_id,
            unread_count: unread.count,
            last_read_seq: unread.last_read,
            rev: unread.rev(),
        }
    }
}
impl Event for UnreadCount {
    type In = Chat;
    type To = ToUser;
    const NAME: &'static str = "unread-count";
}
