//! Rooms and what was said in them, for those who must be able to look.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Cursor, Listed, Method, Operation, OperationRow, Right, operation, page};
use crate::{
    chat::{
        ChatMessage,
        chat_history::{ChatHistory, history},
    },
    dispatch::Cx,
    ids::{RoomId, Seq, Timestamp},
    refusal::Refusal,
};

pub const OPERATIONS: &[OperationRow] = &[operation::<ListRooms>(), operation::<ListMessages>()];

#[derive(Debug, Deserialize, JsonSchema)]
pub struct ListRooms {
    #[serde(default)]
    pub cursor: Option<Cursor>,
    /// 1 to 100; 50 unless said otherwise.
    #[serde(default)]
    pub limit: Option<u32>,
}

/// A chat room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RoomView {
    pub id: RoomId,
    pub name: String,
    /// `DIRECT`, `MENTOR`, `STUDY_GROUP` or `EXAM`.
    #[serde(rename = "type")]
    pub kind: String,
    pub member_count: i64,
    /// Of the newest message; 0 before the first.
    pub last_seq: Seq,
    pub created_at: Timestamp,
}

impl Operation for ListRooms {
    type Reply = Listed<RoomView>;
    const NAME: &'static str = "listRooms";
    const METHOD: Method = Method::Get;
    const PATH: &'static str = "/v1/rooms";
    const RIGHT: Right = Right::ReadChat;
    const SUMMARY: &'static str = "All chat rooms, by id";

    async fn handle(self, cx: &mut Cx<'_>) -> Result<Listed<RoomView>, Refusal> {
        let limit = page::limit(self.limit);
        let after = self.cursor.map(|cursor| cursor.keys::<1>()).transpose()?;
        let after = after.map(|[id]| id).unwrap_or_default();
        let rooms = cx.read().await?.rooms(&cx.caller.tenant, &after, limit + 1).await?;
        Ok(Listed::new(rooms, limit, |room| Cursor::after([room.id.as_str()])))
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct ListMessages {
    pub id: RoomId,
    /// At most one of `before`, `after` and `around`, each a `seq`; without any, the newest
    /// messages.
    #[serde(default)]
    pub before: Option<Seq>,
    #[serde(default)]
    pub after: Option<Seq>,
    #[serde(default)]
    pub around: Option<Seq>,
    /// `next` of the page before, instead of those three.
    #[serde(default)]
    pub cursor: Option<Cursor>,
    /// 1 to 100; 50 unless said otherwise.
    #[serde(default)]
    pub limit: Option<u32>,
}

/// A page of a room's history.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Messages {
    /// Oldest first.
    pub items: Vec<ChatMessage>,
    /// Further in the direction asked for; around a place, further back. Null at the end.
    pub next: Option<Cursor>,
    /// The room's newest `seq`.
    pub seq: Seq,
}

impl Operation for ListMessages {
    type Reply = Messages;
    const NAME: &'static str = "listMessages";
    const METHOD: Method = Method::Get;
    const PATH: &'static str = "/v1/rooms/{id}/messages";
    const RIGHT: Right = Right::ReadChat;
    const SUMMARY: &'static str = "Messages of a room, before, after or around a place";

    async fn handle(self, cx: &mut Cx<'_>) -> Result<Messages, Refusal> {
        let limit = page::limit(self.limit);
        let mut ask = ChatHistory {
            room_id: self.id,
            before: self.before,
            after: self.after,
            around: self.around,
            limit: Some(limit),
        };
        if let Some(cursor) = self.cursor {
            let [direction, seq] = cursor.keys()?;
            let unknown = || Refusal::Invalid("cursor: not one that was given out".into());
            let seq = Seq(seq.parse().map_err(|_| unknown())?);
            match direction.as_str() {
                "before" => ask.before = Some(seq),
                "after" => ask.after = Some(seq),
                _ => return Err(unknown()),
            }
        }
        let is_forward = ask.after.is_some();
        let page = history(cx.read().await?.as_mut(), &cx.caller.tenant, ask).await?;
        let next = match (is_forward, page.messages.first(), page.messages.last()) {
            (true, _, Some(last)) => Some(Cursor::after(["after", &last.seq.0.to_string()])),
            (false, Some(first), _) => Some(Cursor::after(["before", &first.seq.0.to_string()])),
            _ => None,
        };
        let next = next.filter(|_| page.has_more);
        Ok(Messages { items: page.messages, next, seq: page.seq })
    }
}
