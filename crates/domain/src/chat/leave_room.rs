//! `leave-room`: the socket hears no more of the room; its user stays a member.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Chat,
    events::{RoomLeft, UserLeftRoom},
    returning::Change,
};
use crate::{
    contract::{Class, Command, Handle, Policy, ToCaller, ToOthers},
    dispatch::Cx,
    ids::RoomId,
    refusal::Refusal,
};

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LeaveRoom {
    pub room_id: RoomId,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Left {
    pub room_id: RoomId,
}

impl Command for LeaveRoom {
    type In = Chat;
    type Reply = Left;
    const NAME: &'static str = "leave-room";
    const POLICY: Policy =
        Policy::new(Class::Room, "Room ID is required", "Failed to leave room").rows_only();
    fn example() -> Self {
        Self { room_id: RoomId::new("algebra").expect("a sound id") }
    }
}

impl Handle for LeaveRoom {
    async fn handle(self, cx: &mut Cx<'_>) -> Result<Left, Refusal> {
        let (app, caller, room_id) = (cx.app, cx.caller, self.room_id);
        if caller.joined.contains(&room_id) {
            let seen = app.presence.sockets_of(&caller.tenant, &caller.user, &room_id);
            cx.leave(room_id.clone());
            let left = Change::Left(room_id.clone());
            cx.after_commit(move || app.returning.note(caller, left));
            if seen.in_room <= 1 {
                if let Some(stopped) = app.typists.stop(&caller.tenant, &room_id, &caller.user) {
                    cx.record(stopped.effect()?);
                }
                let event = UserLeftRoom {
                    room_id: room_id.clone(),
                    user_id: caller.user.clone(),
                    user_name: caller.name.clone(),
                };
                cx.send(ToOthers(room_id.clone(), caller.user.clone()), &event)?;
            }
        }
        let left = room_id.clone();
        cx.after_commit(move || caller.joined.note_left(left));
        cx.send(ToCaller(), &RoomLeft { room_id: room_id.clone() })?;
        Ok(Left { room_id })
    }
}
