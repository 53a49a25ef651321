//! What is told of study groups.
//!
//! Coming and going are told at their own place in the tenant's order, and the address of the
//! event is what opens and closes the room: who hears a message is who was a member when it was
//! committed, on every node.

use schemars::JsonSchema;
use serde::Serialize;

use super::{StudyGroup, StudyGroups};
use crate::{
    contract::{Event, ToRoom, ToRoomWith, ToRoomWithout, ToTenant, ToUser},
    ids::{GroupId, RoomId, UserId},
};

/// The group as it was made; its room has one member yet.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct StudyGroupCreated(pub StudyGroup);
impl Event for StudyGroupCreated {
    type In = StudyGroups;
    type To = ToRoomWith;
    const NAME: &'static str = "study-group-created";
    const DURABLE: bool = true;
}

/// A public group that anybody may join.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StudyGroupAvailable {
    pub id: GroupId,
    pub name: String,
    pub description: Option<String>,
    pub specialty: Option<String>,
    pub current_members: i64,
    pub max_members: i64,
}
impl Event for StudyGroupAvailable {
    type In = StudyGroups;
    type To = ToTenant;
    const NAME: &'static str = "study-group-available";
    const DURABLE: bool = true;
}

/// To who has joined: the group with them in it.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StudyGroupJoined {
    pub group: StudyGroup,
    pub room_id: RoomId,
}
impl Event for StudyGroupJoined {
    type In = StudyGroups;
    type To = ToUser;
    const NAME: &'static str = "study-group-joined";
    const DURABLE: bool = true;
}

/// Somebody has joined; they hear it, too.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StudyGroupMemberJoined {
    pub group_id: GroupId,
    pub user_id: UserId,
    pub user_name: String,
    /// As committed.
    pub member_count: i64,
}
impl Event for StudyGroupMemberJoined {
    type In = StudyGroups;
    type To = ToRoomWith;
    const NAME: &'static str = "study-group-member-joined";
    const DURABLE: bool = true;
}

/// Somebody has left, or was removed.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StudyGroupMemberLeft {
    pub group_id: GroupId,
    pub user_id: UserId,
    pub user_name: String,
    /// As committed.
    pub member_count: i64,
}
impl Event for StudyGroupMemberLeft {
    type In = StudyGroups;
    type To = ToRoomWithout;
    const NAME: &'static str = "study-group-member-left";
    const DURABLE: bool = true;
}

/// To who has left or was removed.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StudyGroupLeft {
    pub group_id: GroupId,
}
impl Event for StudyGroupLeft {
    type In = StudyGroups;
    type To = ToUser;
    const NAME: &'static str = "study-group-left";
    const DURABLE: bool = true;
}

/// The owner has left; the group is somebody else's now.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StudyGroupOwnerChanged {
    pub group_id: GroupId,
    pub owner_id: UserId,
}
impl Event for StudyGroupOwnerChanged {
    type In = StudyGroups;
    type To = ToRoom;
    const NAME: &'static str = "study-group-owner-changed";
    const DURABLE: bool = true;
}

/// The last member has left.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StudyGroupDeleted {
    pub group_id: GroupId,
}
impl Event for StudyGroupDeleted {
    type In = StudyGroups;
    type To = ToTenant;
    const NAME: &'static str = "study-group-deleted";
    const DURABLE: bool = true;
}
