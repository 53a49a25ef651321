//! Members who are not in the room when a message arrives: what they are told, and kept for them.

use serde_json::json;

use super::{
    ChatMessage,
    events::{NewMessageNotification, UnreadCount},
};
use crate::{
    contract::ToUser,
    dispatch::Cx,
    ids::UserId,
    notification::{self, Draft, Notice, Priority},
    refusal::Refusal,
};

/// In a larger room nobody is notified of single messages: one message would write thousands of
/// rows while everybody else waits. Joining shows what was missed.
const MAX_NOTIFIED: i64 = 200;
/// Characters of the message that a notification shows; the contract's.
const EXCERPT: usize = 100;

/// Records what follows from a message for those who do not see it.
pub(super) async fn tell(
    cx: &mut Cx<'_>,
    message: &ChatMessage,
    member_count: i64,
) -> Result<(), Refusal> {
    let (app, caller) = (cx.app, cx.caller);
    let (tenant, room) = (&caller.tenant, &message.room_id);
    if member_count > MAX_NOTIFIED || app.presence.see_everything(tenant, room, member_count) {
        return Ok(());
    }
    for member in cx.tx().await?.members(tenant, room).await? {
        if member == caller.user {
            continue;
        }
        let seen = app.presence.sockets_of(tenant, &member, room);
        if seen.in_room == 0 {
            notify(cx, message, member.clone()).await?;
        }
        if seen.elsewhere > 0 {
            let unread = cx.tx().await?.unread(tenant, room, &member).await?;
            cx.send(ToUser(member), &UnreadCount::new(room.clone(), &unread))?;
        }
    }
    Ok(())
}

async fn notify(cx: &mut Cx<'_>, message: &ChatMessage, to: UserId) -> Result<(), Refusal> {
    let excerpt: String = message.message.chars().take(EXCERPT).collect();
    let hint = NewMessageNotification {
        room_id: message.room_id.clone(),
        sender_name: message.sender_name.clone(),
        message: excerpt.clone(),
    };
    cx.send(ToUser(to.clone()), &hint)?;
    let notice = Notice {
        kind: "MESSAGE",
        title: format!("New message from {}", message.sender_name),
        message: excerpt,
        data: Some(json!({ "roomId": message.room_id, "messageId": message.id })),
        priority: Priority::Normal,
        action_url: None,
    };
    // A room that is not read is one notification, whatever is said in it.
    let collapse_key = Some(message.room_id.to_string());
    let draft = Draft { collapse_key, ..Draft::try_from(notice)? };
    notification::collapse(cx, to, draft).await
}
