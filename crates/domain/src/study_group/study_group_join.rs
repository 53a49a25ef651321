//! `study-group-join`: a place, if there is one and the caller may have it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    StudyGroups, TEXTS,
    events::{StudyGroupJoined, StudyGroupMemberJoined},
    find,
};
use crate::{
    contract::{Class, Command, Handle, Policy, ToRoomWith, ToUser},
    dispatch::Cx,
    ids::GroupId,
    refusal::Refusal,
};

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JoinStudyGroup {
    pub group_id: GroupId,
}

impl Command for JoinStudyGroup {
    type In = StudyGroups;
    type Reply = StudyGroupJoined;
    const NAME: &'static str = "study-group-join";
    const POLICY: Policy =
        Policy::new(Class::StudyGroup, "Group ID is required", "Failed to join study group")
            .texts(TEXTS);
    fn example() -> Self {
        Self { group_id: GroupId::sample() }
    }
}

impl Handle for JoinStudyGroup {
    async fn handle(self, cx: &mut Cx<'_>) -> Result<StudyGroupJoined, Refusal> {
        let (caller, now) = (cx.caller, cx.now);
        let (tenant, user, group_id) = (&caller.tenant, &caller.user, &self.group_id);
        if find(cx, group_id).await?.is_member() {
            return Err(Refusal::AlreadyMember);
        }
        let tx = cx.tx().await?;
        if !tx.add_group_member(tenant, group_id, user, now).await? {
            return Err(Refusal::GroupFull);
        }
        let group = tx.study_group(tenant, group_id).await?.ok_or(Refusal::NotFound)?;
        let came = StudyGroupMemberJoined {
            group_id: self.group_id,
            user_id: user.clone(),
            user_name: caller.name.clone(),
            member_count: i64::try_from(group.members.len()).unwrap_or(i64::MAX),
        };
        cx.send(ToRoomWith(group.room_id.clone(), user.clone()), &came)?;
        let joined = StudyGroupJoined { room_id: group.room_id.clone(), group };
        cx.send(ToUser(user.clone()), &joined)?;
        Ok(joined)
    }
}
