//! Members who are not in the room when a message arrives: what they are told, and kept for them.

use std::sync::Arc;

use serde_json::json;

use super::{
    ChatMessage,
    events::{NewMessageNotification, UnreadCount},
};
use crate::{
    contract::ToUser,
    dispatch::Cx,
    ids::{NotificationId, UserId},
    notification::{NewNotification, Notification, Priority},
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
    let data = json!({ "roomId": message.room_id, "messageId": message.id });
    let notification = Notification {
        id: NotificationId::new(cx.app.ids.uuid()).map_err(Refusal::internal)?,
        user_id: to.clone(),
        kind: "MESSAGE".into(),
        title: format!("New message from {}", message.sender_name),
        message: excerpt.clone(),
        data: Some(Arc::from(serde_json::value::to_raw_value(&data).map_err(Refusal::internal)?)),
        is_read: false,
        priority: Priority::Normal,
        action_url: None,
        created_at: cx.now,
    };
    let tenant = cx.caller.tenant.clone();
    cx.tx().await?.insert_notification(&tenant, &notification).await?;
    let hint = NewMessageNotification {
        room_id: message.room_id.clone(),
        sender_name: message.sender_name.clone(),
        message: excerpt,
    };
    cx.send(ToUser(to.clone()), &hint)?;
    cx.send(ToUser(to), &NewNotification(notification))
}
