//! `chat-history`: pages of a room by `seq`, before, after or around a place.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Chat, ChatMessage, PAGE, Page, fit};
use crate::{
    contract::{Class, Command, Event, Handle, Policy, ToCaller},
    dispatch::Cx,
    ids::{RoomId, Seq, TenantId},
    ports::Reads,
    refusal::Refusal,
};

/// The largest page.
const MAX_PAGE: u32 = 100;

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChatHistory {
    pub room_id: RoomId,
    /// At most one of `before`, `after` and `around`; without any, the newest messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Seq>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Seq>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub around: Option<Seq>,
    /// 1 to 100; 50 unless said otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// A page of a room's history; also sent as an event when no acknowledgement was asked for.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HistoryPage {
    pub room_id: RoomId,
    /// Oldest first.
    pub messages: Vec<ChatMessage>,
    /// Whether there is more in the direction asked for; around a place, before it.
    pub has_more: bool,
    /// The room's newest `seq`.
    pub seq: Seq,
}
impl Event for HistoryPage {
    type In = Chat;
    type To = ToCaller;
    const NAME: &'static str = "chat-history";
}

impl Command for ChatHistory {
    type In = Chat;
    type Reply = HistoryPage;
    const NAME: &'static str = "chat-history";
    const POLICY: Policy =
        Policy::new(Class::Room, "Room ID is required", "Failed to load messages").rows_only();
    fn room(&self) -> Option<&RoomId> {
        Some(&self.room_id)
    }
    fn example() -> Self {
        Self {
            room_id: RoomId::new("algebra").expect("a sound id"),
            before: Some(Seq(120)),
            after: None,
            around: None,
            limit: Some(50),
        }
    }
}

impl Handle for ChatHistory {
    async fn handle(self, cx: &mut Cx<'_>) -> Result<HistoryPage, Refusal> {
        let page = history(cx.read().await?.as_mut(), &cx.caller.tenant, self).await?;
        if !cx.acknowledged {
            cx.send(ToCaller(), &page)?;
        }
        Ok(page)
    }
}

/// The page that is asked for, of a room the asker may read.
pub(crate) async fn history(
    reads: &mut dyn Reads,
    tenant: &TenantId,
    ask: ChatHistory,
) -> Result<HistoryPage, Refusal> {
    let page = match (ask.before, ask.after, ask.around) {
        (None, None, None) => Page::Latest,
        (Some(seq), None, None) => Page::Before(seq),
        (None, Some(seq), None) => Page::After(seq),
        (None, None, Some(seq)) => Page::Around(seq),
        _ => return Err(Refusal::Invalid("one of before, after and around".into())),
    };
    let limit = ask.limit.unwrap_or(PAGE).clamp(1, MAX_PAGE);
    let room = reads.chat_room(tenant, &ask.room_id).await?.ok_or(Refusal::NotFound)?;
    let messages = reads.messages(tenant, &ask.room_id, page, limit).await?;
    let messages = match page {
        Page::Latest | Page::Before(_) => fit(messages, Seq(i64::MAX)),
        Page::After(_) => fit(messages, Seq(0)),
        Page::Around(place) => fit(messages, place),
    };
    let has_more = match page {
        Page::After(seq) => {
            messages.last().map_or(room.last_seq > seq, |last| last.seq < room.last_seq)
        }
        Page::Latest | Page::Before(_) | Page::Around(_) => {
            messages.first().is_some_and(|first| first.seq > Seq(1))
        }
    };
    Ok(HistoryPage { room_id: ask.room_id, messages, has_more, seq: room.last_seq })
}
