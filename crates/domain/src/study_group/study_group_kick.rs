//! `study-group-kick`: the owner or an admin takes somebody else out.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{StudyGroups, TEXTS, find, remove};
use crate::{
    contract::{Class, Command, Handle, Policy},
    dispatch::Cx,
    ids::{GroupId, UserId},
    refusal::Refusal,
};

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KickFromStudyGroup {
    pub group_id: GroupId,
    pub user_id: UserId,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KickedFromStudyGroup {
    pub group_id: GroupId,
    pub user_id: UserId,
    pub member_count: i64,
}

impl Command for KickFromStudyGroup {
    type In = StudyGroups;
    type Reply = KickedFromStudyGroup;
    const NAME: &'static str = "study-group-kick";
    const POLICY: Policy = Policy::new(
        Class::StudyGroup,
        "Group ID and user ID are required",
        "Failed to remove from study group",
    )
    .texts(TEXTS);
    fn example() -> Self {
        let user_id = UserId::new("ben").expect("a sound id");
        Self { group_id: GroupId::sample(), user_id }
    }
}

impl Handle for KickFromStudyGroup {
    async fn handle(self, cx: &mut Cx<'_>) -> Result<KickedFromStudyGroup, Refusal> {
        let caller = cx.caller;
        let standing = find(cx, &self.group_id).await?;
        standing.require_manager(&caller.user)?;
        if self.user_id == standing.owner {
            return Err(Refusal::Forbidden);
        }
        let user = cx.tx().await?.user(&caller.tenant, &self.user_id).await?;
        let name = user.map_or_else(|| self.user_id.to_string(), |user| user.name);
        let member_count = remove(cx, standing, &self.user_id, &name).await?;
        let Self { group_id, user_id } = self;
        Ok(KickedFromStudyGroup { group_id, user_id, member_count })
    }
}
