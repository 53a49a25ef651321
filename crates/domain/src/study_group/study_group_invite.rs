//! `study-group-invite`: opens a private group to one person, and tells them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{StudyGroups, TEXTS, find};
use crate::{
    contract::{Class, Command, Handle, Policy},
    dispatch::Cx,
    identity::{User, UserStatus},
    ids::{GroupId, UserId},
    notification::{self, Notice, Priority},
    refusal::Refusal,
};

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InviteToStudyGroup {
    pub group_id: GroupId,
    pub user_id: UserId,
}

/// They may join. An invitation takes no place.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InvitedToStudyGroup {
    pub group_id: GroupId,
    pub user_id: UserId,
}

impl Command for InviteToStudyGroup {
    type In = StudyGroups;
    type Reply = InvitedToStudyGroup;
    const NAME: &'static str = "study-group-invite";
    const POLICY: Policy = Policy::new(
        Class::StudyGroup,
        "Group ID and user ID are required",
        "Failed to invite to study group",
    )
    .texts(TEXTS);
    fn example() -> Self {
        let user_id = UserId::new("ben").expect("a sound id");
        Self { group_id: GroupId::sample(), user_id }
    }
}

impl Handle for InviteToStudyGroup {
    async fn handle(self, cx: &mut Cx<'_>) -> Result<InvitedToStudyGroup, Refusal> {
        let (caller, now) = (cx.caller, cx.now);
        let (tenant, group_id, user_id) = (&caller.tenant, self.group_id, self.user_id);
        let standing = find(cx, &group_id).await?;
        standing.require_manager(&caller.user)?;
        let tx = cx.tx().await?;
        let invited = tx.user(tenant, &user_id).await?;
        let is_gone = |user: User| user.is_deleted || user.status == UserStatus::Suspended;
        if invited.is_none_or(is_gone) {
            return Err(Refusal::Invalid("userId: nobody of that name".into()));
        }
        let theirs = tx.standing(tenant, &group_id, &user_id).await?;
        if theirs.is_some_and(|standing| standing.is_member()) {
            return Err(Refusal::AlreadyMember);
        }
        // Invited once more, they are not told once more.
        if tx.invite_to_group(tenant, &group_id, &user_id, &caller.user, now).await? {
            let notice = Notice {
                kind: "STUDY_GROUP",
                title: format!("Invitation to {}", standing.name),
                message: format!("{} invites you to join {}", caller.name, standing.name),
                data: Some(json!({ "groupId": group_id, "invitedBy": caller.user })),
                priority: Priority::Normal,
                action_url: None,
            };
            notification::tell(cx, vec![(user_id.clone(), notice)]).await?;
        }
        Ok(InvitedToStudyGroup { group_id, user_id })
    }
}
