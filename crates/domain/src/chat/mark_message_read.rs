//! `mark-message-read`: moves the reader's position; tells the author and the reader's sockets.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Chat, Unread,
    events::{MessageRead, UnreadCount},
};
use crate::{
    contract::{Class, Command, Handle, Policy, Telling, ToUser},
    dispatch::Cx,
    ids::{MessageId, Seq},
    refusal::Refusal,
};

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MarkMessageRead {
    pub message_id: MessageId,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Marked {
    pub message_id: MessageId,
    pub last_read_seq: Seq,
    /// 1,000 where there are more.
    pub unread_count: i64,
}

impl Marked {
    fn new(message_id: MessageId, unread: &Unread) -> Self {
        Self { message_id, last_read_seq: unread.last_read, unread_count: unread.count }
    }
}

impl Command for MarkMessageRead {
    type In = Chat;
    type Reply = Marked;
    const NAME: &'static str = "mark-message-read";
    const POLICY: Policy =
        Policy::new(Class::Read, "Message ID is required", "Failed to mark message as read")
            .rows_only()
            .telling(Telling::RequiredOnly);
    fn example() -> Self {
        let id = "0190a1b2-c3d4-7e5f-8a6b-0c1d2e3f4a5b";
        Self { message_id: MessageId::new(id).expect("a sound id") }
    }
}

impl Handle for MarkMessageRead {
    async fn handle(self, cx: &mut Cx<'_>) -> Result<Marked, Refusal> {
        let caller = cx.caller;
        let (tenant, user) = (&caller.tenant, &caller.user);
        let tx = cx.tx().await?;
        let message = tx.message(tenant, &self.message_id).await?.ok_or(Refusal::NotAMember)?;
        let room = &message.room_id;
        if !tx.is_member(tenant, room, user).await? {
            return Err(Refusal::NotAMember);
        }
        if message.sender_id == *user {
            let unread = tx.unread(tenant, room, user).await?;
            return Ok(Marked::new(message.id, &unread));
        }
        let is_first_reader = tx.mark_read(tenant, &message.id).await?;
        let has_moved = tx.advance_read(tenant, room, user, message.seq).await?;
        let unread = tx.unread(tenant, room, user).await?;

        let read = MessageRead {
            message_id: message.id.clone(),
            room_id: room.clone(),
            read_by: user.clone(),
        };
        // The reader is told every time: the shipped frontend repeats the mark until it is.
        cx.send(ToUser(user.clone()), &read)?;
        if is_first_reader || has_moved {
            cx.send(ToUser(message.sender_id), &read)?;
        }
        if has_moved {
            let count = UnreadCount::new(message.room_id, &unread);
            cx.send(ToUser(user.clone()), &count)?;
        }
        Ok(Marked::new(message.id, &unread))
    }
}
