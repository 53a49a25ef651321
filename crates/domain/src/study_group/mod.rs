//! Students who learn together, with a room of their own.
//!
//! Every change of a group runs in the tenant's lane, so two never overlap: the last place has one
//! taker, the last member to leave is one person. A group without members does not exist.

use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    contract::{
        EventRow, Namespace, Route, ToRoom, ToRoomWith, ToRoomWithout, ToTenant, ToUser, event,
        route,
    },
    dispatch::Cx,
    ids::{GroupId, RoomId, Timestamp, UserId},
    refusal::{Code, Refusal},
};

pub mod api;
pub mod events;
pub mod study_group_create;
pub mod study_group_invite;
pub mod study_group_join;
pub mod study_group_kick;
pub mod study_group_leave;
pub mod study_group_message;

use self::{
    events::{
        StudyGroupAvailable, StudyGroupCreated, StudyGroupDeleted, StudyGroupJoined,
        StudyGroupLeft, StudyGroupMemberJoined, StudyGroupMemberLeft, StudyGroupOwnerChanged,
    },
    study_group_create::CreateStudyGroup,
    study_group_invite::InviteToStudyGroup,
    study_group_join::JoinStudyGroup,
    study_group_kick::KickFromStudyGroup,
    study_group_leave::LeaveStudyGroup,
    study_group_message::SendStudyGroupMessage,
};

pub const COMMANDS: &[Route] = &[
    route::<CreateStudyGroup>(),
    route::<JoinStudyGroup>(),
    route::<LeaveStudyGroup>(),
    route::<SendStudyGroupMessage>(),
    route::<InviteToStudyGroup>(),
    route::<KickFromStudyGroup>(),
];
pub const EVENTS: &[EventRow] = &[
    event::<StudyGroupCreated>(),
    event::<StudyGroupAvailable>(),
    event::<StudyGroupJoined>(),
    event::<StudyGroupMemberJoined>(),
    event::<StudyGroupMemberLeft>(),
    event::<StudyGroupLeft>(),
    event::<StudyGroupOwnerChanged>(),
    event::<StudyGroupDeleted>(),
];

/// On `/`, `/api` and `/study-group`.
#[derive(Debug)]
pub enum StudyGroups {}
impl Namespace for StudyGroups {
    const PATHS: &'static [&'static str] = &["/", "/api", "/study-group"];
}

/// The contract's texts for refusals that every command of a group shares.
const TEXTS: &[(Code, &str)] = &[
    (Code::NotFound, "Study group not found"),
    (Code::NotAMember, "Not a member of this group"),
    (Code::AlreadyMember, "Already a member of this group"),
    (Code::GroupFull, "Study group is full"),
];

/// A group as it stands in the database and on the wire: the contract's row and its owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct StudyGroup {
    pub id: GroupId,
    /// Plain text.
    pub name: String,
    pub description: Option<String>,
    pub room_id: RoomId,
    pub creator_id: UserId,
    /// In the order in which they joined.
    pub members: Vec<UserId>,
    pub max_members: i64,
    pub specialty: Option<String>,
    pub is_public: bool,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub owner_id: UserId,
}

/// A group as one user stands to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub group: GroupId,
    pub name: String,
    pub room: RoomId,
    pub owner: UserId,
    pub is_public: bool,
    pub place: Place,
}

/// What a user is to a group, beside owning it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Outside,
    Invited,
    Member,
    Admin,
}

impl Standing {
    const fn is_member(&self) -> bool {
        matches!(self.place, Place::Member | Place::Admin)
    }

    fn require_member(&self) -> Result<(), Refusal> {
        if self.is_member() { Ok(()) } else { Err(Refusal::NotAMember) }
    }

    /// The owner and admins decide who else is in it.
    fn require_manager(&self, user: &UserId) -> Result<(), Refusal> {
        self.require_member()?;
        if self.place == Place::Admin || self.owner == *user {
            Ok(())
        } else {
            Err(Refusal::Forbidden)
        }
    }
}

/// How the caller stands to a group. A private one is absent to who is neither in it nor invited.
async fn find(cx: &mut Cx<'_>, group: &GroupId) -> Result<Standing, Refusal> {
    let caller = cx.caller;
    let standing = cx.tx().await?.standing(&caller.tenant, group, &caller.user).await?;
    standing
        .filter(|standing| standing.is_public || standing.place != Place::Outside)
        .ok_or(Refusal::NotFound)
}

/// Gives a user a place, if there is one; the room and the user are told. Returns the group with
/// them in it.
async fn enter(
    cx: &mut Cx<'_>,
    group: &GroupId,
    user: &UserId,
    user_name: &str,
) -> Result<StudyGroup, Refusal> {
    let (tenant, now) = (&cx.caller.tenant, cx.now);
    let tx = cx.tx().await?;
    if !tx.add_group_member(tenant, group, user, now).await? {
        return Err(Refusal::GroupFull);
    }
    let group = tx.study_group(tenant, group).await?.ok_or(Refusal::NotFound)?;
    let came = StudyGroupMemberJoined {
        group_id: group.id.clone(),
        user_id: user.clone(),
        user_name: user_name.to_owned(),
        member_count: i64::try_from(group.members.len()).unwrap_or(i64::MAX),
    };
    cx.send(ToRoomWith(group.room_id.clone(), user.clone()), &came)?;
    let joined = StudyGroupJoined { room_id: group.room_id.clone(), group: group.clone() };
    cx.send(ToUser(user.clone()), &joined)?;
    Ok(group)
}

/// Takes a user who is no more out of every group.
pub(crate) async fn withdraw(
    cx: &mut Cx<'_>,
    user: &UserId,
    user_name: &str,
) -> Result<(), Refusal> {
    let tenant = &cx.caller.tenant;
    for group in cx.tx().await?.groups_of(tenant, user).await? {
        let standing = cx.tx().await?.standing(tenant, &group, user).await?;
        if let Some(standing) = standing.filter(Standing::is_member) {
            remove(cx, standing, user, user_name).await?;
        }
    }
    Ok(())
}

/// Takes a member out, by their own will or another's, with everything that follows: an owner's
/// group gets another owner, a group without members is gone. Returns how many are left.
async fn remove(
    cx: &mut Cx<'_>,
    standing: Standing,
    user: &UserId,
    user_name: &str,
) -> Result<i64, Refusal> {
    let (app, tenant, now) = (cx.app, &cx.caller.tenant, cx.now);
    let Standing { group, room, owner, .. } = standing;
    let tx = cx.tx().await?;
    let member_count =
        tx.remove_group_member(tenant, &group, user, now).await?.ok_or(Refusal::NotAMember)?;
    let heir = match member_count {
        0 => {
            tx.delete_study_group(tenant, &group, now).await?;
            None
        }
        _ if owner == *user => tx.pass_on_study_group(tenant, &group, now).await?,
        _ => None,
    };
    if let Some(stopped) = app.typists.stop(tenant, &room, user) {
        cx.record(stopped.effect()?);
    }
    let left = StudyGroupMemberLeft {
        group_id: group.clone(),
        user_id: user.clone(),
        user_name: user_name.to_owned(),
        member_count,
    };
    cx.send(ToRoomWithout(room.clone(), user.clone()), &left)?;
    cx.send(ToUser(user.clone()), &StudyGroupLeft { group_id: group.clone() })?;
    if let Some(owner_id) = heir {
        cx.send(ToRoom(room), &StudyGroupOwnerChanged { group_id: group.clone(), owner_id })?;
    }
    if member_count == 0 {
        cx.send(ToTenant(), &StudyGroupDeleted { group_id: group })?;
    }
    Ok(member_count)
}
