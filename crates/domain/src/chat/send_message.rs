//! `send-message`: stored under the room's next `seq`, then to everybody in the room.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Chat, NewMessage, absent, events::ReceiveMessage, join_room, text};
use crate::{
    contract::{Class, Command, Handle, Policy, ToRoom},
    dispatch::{Caller, Cx},
    ids::{MessageId, RoomId, Seq, Timestamp},
    refusal::Refusal,
};

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SendMessage {
    pub room_id: RoomId,
    /// HTML of which `b`, `i`, `em`, `strong`, `a`, `br` and `p` are kept; at most 4,000
    /// characters.
    pub message: String,
    /// `text` unless said otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_type: Option<String>,
    /// http, https or a path on this site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_url: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_name: Option<String>,
    /// Bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_size: Option<u64>,
    /// A key of the sender's: the same key again is the same message, not a second one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_msg_id: Option<String>,
}

/// The message is stored and on its way.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MessageSent {
    pub id: MessageId,
    pub room_id: RoomId,
    pub seq: Seq,
    pub created_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_msg_id: Option<String>,
}

impl Command for SendMessage {
    type In = Chat;
    type Reply = MessageSent;
    const NAME: &'static str = "send-message";
    const POLICY: Policy =
        Policy::new(Class::Message, "Room ID and message are required", "Failed to send message")
            .max_bytes(50 * 1024)
            .overlapping();
    fn room(&self) -> Option<&RoomId> {
        Some(&self.room_id)
    }
    fn example() -> Self {
        Self {
            room_id: RoomId::new("algebra").expect("a sound id"),
            message: "Is the empty set open?".into(),
            message_type: None,
            file_url: None,
            file_name: None,
            file_size: None,
            client_msg_id: None,
        }
    }
}

impl Handle for SendMessage {
    async fn handle(self, cx: &mut Cx<'_>) -> Result<MessageSent, Refusal> {
        let (caller, now) = (cx.caller, cx.now);
        let message = text::sanitise(&self.message)?;
        let new = NewMessage {
            id: MessageId::new(cx.app.ids.uuid()).map_err(Refusal::internal)?,
            room: self.room_id,
            sender: caller.user.clone(),
            sender_name: caller.name.clone(),
            sender_avatar: caller.avatar.clone(),
            message,
            message_type: text::short("messageType", self.message_type, 50)?
                .unwrap_or_else(|| "text".into()),
            file_url: text::link("fileUrl", self.file_url)?,
            file_name: text::short("fileName", self.file_name, 255)?,
            file_size: text::byte_count("fileSize", self.file_size)?,
            client_msg_id: text::short("clientMsgId", self.client_msg_id, 128)?,
            created_at: now,
        };

        if is_lost(caller, &new.room) {
            join_room::show(cx, &new.room, false).await?;
        }
        let tx = cx.tx().await?;
        if let Some(key) = &new.client_msg_id
            && let Some(earlier) =
                tx.message_by_client_id(&caller.tenant, &caller.user, key).await?
        {
            let same = earlier.room_id == new.room
                && earlier.message == new.message
                && earlier.message_type == new.message_type
                && earlier.file_url == new.file_url
                && earlier.file_name == new.file_name
                && earlier.file_size == new.file_size;
            return if same { Ok(earlier.into()) } else { Err(Refusal::IdempotencyMismatch) };
        }
        let (message, member_count) = tx.insert_message(&caller.tenant, new).await?;
        if let Some(stopped) = cx.app.typists.stop(&caller.tenant, &message.room_id, &caller.user) {
            cx.record(stopped.effect()?);
        }
        cx.send(ToRoom(message.room_id.clone()), &ReceiveMessage(message.clone()))?;
        absent::tell(cx, &message, member_count).await?;
        Ok(message.into())
    }
}

/// A page that was away for too long to be put back does not know that it is in no room any more: it
/// would send into one of which it hears nothing, not even what it sends. A socket that has left a
/// room stays out, and a study group is heard by all of its members' sockets.
fn is_lost(caller: &Caller, room: &RoomId) -> bool {
    !caller.joined.contains(room) && !caller.joined.has_left(room) && !room.is_study_group()
}

impl From<super::ChatMessage> for MessageSent {
    fn from(message: super::ChatMessage) -> Self {
        Self {
            id: message.id,
            room_id: message.room_id,
            seq: message.seq,
            created_at: message.created_at,
            client_msg_id: message.client_msg_id,
        }
    }
}
