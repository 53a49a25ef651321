//! `study-group-join`: a place, if there is one and the caller may have it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{StudyGroups, TEXTS, enter, events::StudyGroupJoined, find};
use crate::{
    contract::{Class, Command, Handle, Policy},
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
        let caller = cx.caller;
        if find(cx, &self.group_id).await?.is_member() {
            return Err(Refusal::AlreadyMember);
        }
        let group = enter(cx, &self.group_id, &caller.user, &caller.name).await?;
        Ok(StudyGroupJoined { room_id: group.room_id.clone(), group })
    }
}
