//! `study-group-leave`: the place is free again.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{StudyGroups, find, remove};
use crate::{
    contract::{Class, Command, Handle, Policy},
    dispatch::Cx,
    ids::GroupId,
    refusal::{Code, Refusal},
};

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LeaveStudyGroup {
    pub group_id: GroupId,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LeftStudyGroup {
    pub group_id: GroupId,
}

impl Command for LeaveStudyGroup {
    type In = StudyGroups;
    type Reply = LeftStudyGroup;
    const NAME: &'static str = "study-group-leave";
    const POLICY: Policy =
        Policy::new(Class::StudyGroup, "Group ID is required", "Failed to leave study group")
            .texts(&[(Code::NotFound, "Study group not found")]);
    fn example() -> Self {
        Self { group_id: GroupId::sample() }
    }
}

impl Handle for LeaveStudyGroup {
    async fn handle(self, cx: &mut Cx<'_>) -> Result<LeftStudyGroup, Refusal> {
        let caller = cx.caller;
        let standing = find(cx, &self.group_id).await?;
        standing.require_member()?;
        remove(cx, standing, &caller.user, &caller.name).await?;
        Ok(LeftStudyGroup { group_id: self.group_id })
    }
}
