//! `join-room`: membership, history, and from then on every message.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Chat, PAGE, Page, Unread,
    events::{RoomJoined, UserJoinedRoom},
    fit, may_enter,
    returning::Change,
};
use crate::{
    contract::{Class, Command, Handle, Policy, ToCaller, ToOthers},
    dispatch::Cx,
    ids::{RoomId, Seq},
    presence::{Status, ToAcquainted, UserStatusChange},
    refusal::Refusal,
};

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JoinRoom {
    pub room_id: RoomId,
}

/// Where the caller stands in the room; the messages come as `room-joined`.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Entered {
    pub room_id: RoomId,
    pub seq: Seq,
    pub last_read_seq: Seq,
    /// 1,000 where there are more.
    pub unread_count: i64,
}

impl Command for JoinRoom {
    type In = Chat;
    type Reply = Entered;
    const NAME: &'static str = "join-room";
    const POLICY: Policy = Policy::new(Class::Room, "Room ID is required", "Failed to join room");
    const SHOWS_ROOM: bool = true;
    fn enters(&self) -> Option<&RoomId> {
        Some(&self.room_id)
    }
    fn example() -> Self {
        Self { room_id: RoomId::new("algebra").expect("a sound id") }
    }
}

impl Handle for JoinRoom {
    async fn handle(self, cx: &mut Cx<'_>) -> Result<Entered, Refusal> {
        let (app, caller, now) = (cx.app, cx.caller, cx.now);
        let (tenant, user, room_id) = (&caller.tenant, &caller.user, self.room_id);

        let tx = cx.tx().await?;
        let is_new = !tx.is_member(tenant, &room_id, user).await?;
        if is_new {
            may_enter(app, caller, tx, &room_id).await?;
            tx.create_room(tenant, &room_id, room_id.kind(), now).await?;
            tx.add_member(tenant, &room_id, user, now).await?;
        }
        show(cx, &room_id, is_new).await
    }
}

/// Shows the room to the caller, a member of it, and lets their socket into it.
pub(super) async fn show(
    cx: &mut Cx<'_>,
    room_id: &RoomId,
    is_new: bool,
) -> Result<Entered, Refusal> {
    let (app, caller, now) = (cx.app, cx.caller, cx.now);
    let (tenant, user) = (&caller.tenant, &caller.user);
    let tx = cx.tx().await?;
    let messages = tx.messages(tenant, room_id, Page::Latest, PAGE).await?;
    let messages = fit(messages, Seq(i64::MAX));
    let has_more = messages.first().is_some_and(|oldest| oldest.seq > Seq(1));
    let unread = tx.unread(tenant, room_id, user).await?;
    let after = tx.head(tenant).await?;

    let Unread { last_seq: seq, last_read: last_read_seq, count: unread_count } = unread;
    let joined = RoomJoined {
        room_id: room_id.clone(),
        messages,
        seq,
        last_read_seq,
        unread_count,
        has_more,
    };
    cx.send(ToCaller(), &joined)?;
    cx.join(room_id.clone(), after);
    tell_presence(cx, room_id, is_new)?;
    let kept = Change::Joined {
        user: user.clone(),
        namespace: caller.namespace,
        room: room_id.clone(),
        at: now,
        shown: after,
    };
    let room = room_id.clone();
    cx.after_commit(move || {
        app.returning.note(caller, kept);
        caller.joined.note_brought(room, false);
    });
    Ok(Entered { room_id: room_id.clone(), seq, last_read_seq, unread_count })
}

/// The joiner learns who is online; the others, that the joiner is.
fn tell_presence(cx: &mut Cx<'_>, room: &RoomId, is_new: bool) -> Result<(), Refusal> {
    let (app, caller) = (cx.app, cx.caller);
    if app.presence.sockets_of(&caller.tenant, &caller.user, room).in_room == 0 {
        let event = UserJoinedRoom {
            room_id: room.clone(),
            user_id: caller.user.clone(),
            user_name: caller.name.clone(),
        };
        cx.send(ToOthers(room.clone(), caller.user.clone()), &event)?;
    }
    for (user_id, user_name) in app.presence.online_members(&caller.tenant, room) {
        if user_id != caller.user {
            let event = UserStatusChange::new(&user_id, &user_name, Status::Online);
            cx.send(ToAcquainted::Newcomer, &event)?;
        }
    }
    if is_new {
        let event = UserStatusChange::new(&caller.user, &caller.name, Status::Online);
        cx.send(ToAcquainted::Room(room.clone(), caller.user.clone()), &event)?;
    }
    Ok(())
}
