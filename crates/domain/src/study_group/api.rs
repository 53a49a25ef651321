//! Study groups for the school's backend: to look, and to put people in or take them out.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Standing, StudyGroup, enter, remove};
use crate::{
    api::{Cursor, Listed, Method, Operation, OperationRow, Right, operation, page},
    dispatch::Cx,
    identity::User,
    ids::{GroupId, UserId},
    refusal::Refusal,
};

pub const OPERATIONS: &[OperationRow] = &[
    operation::<ListStudyGroups>(),
    operation::<GetStudyGroup>(),
    operation::<AddMember>(),
    operation::<RemoveMember>(),
];

#[derive(Debug, Deserialize, JsonSchema)]
pub struct ListStudyGroups {
    #[serde(default)]
    pub cursor: Option<Cursor>,
    /// 1 to 100; 50 unless said otherwise.
    #[serde(default)]
    pub limit: Option<u32>,
}

impl Operation for ListStudyGroups {
    type Reply = Listed<StudyGroup>;
    const NAME: &'static str = "listStudyGroups";
    const METHOD: Method = Method::Get;
    const PATH: &'static str = "/v1/study-groups";
    const RIGHT: Right = Right::ReadGroups;
    const SUMMARY: &'static str = "All study groups, private ones too, by id";

    async fn handle(self, cx: &mut Cx<'_>) -> Result<Listed<StudyGroup>, Refusal> {
        let (tenant, limit) = (&cx.caller.tenant, page::limit(self.limit));
        let after = self.cursor.map(|cursor| cursor.keys::<1>()).transpose()?;
        let after = after.map(|[id]| id).unwrap_or_default();
        let mut reads = cx.read().await?;
        let mut groups = Vec::new();
        for id in reads.study_group_ids(tenant, &after, limit + 1).await? {
            groups.extend(reads.study_group(tenant, &id).await?);
        }
        Ok(Listed::new(groups, limit, |group| Cursor::after([group.id.as_str()])))
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct GetStudyGroup {
    pub id: GroupId,
}

impl Operation for GetStudyGroup {
    type Reply = StudyGroup;
    const NAME: &'static str = "getStudyGroup";
    const METHOD: Method = Method::Get;
    const PATH: &'static str = "/v1/study-groups/{id}";
    const RIGHT: Right = Right::ReadGroups;
    const SUMMARY: &'static str = "One study group";

    async fn handle(self, cx: &mut Cx<'_>) -> Result<StudyGroup, Refusal> {
        let tenant = &cx.caller.tenant;
        cx.read().await?.study_group(tenant, &self.id).await?.ok_or(Refusal::NotFound)
    }
}

/// Who is in the group now.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Membership {
    pub group_id: GroupId,
    pub user_id: UserId,
    pub member_count: i64,
}

/// The group and the user, both of this tenant.
async fn found(
    cx: &mut Cx<'_>,
    group: &GroupId,
    user: &UserId,
) -> Result<(Standing, User), Refusal> {
    let tenant = &cx.caller.tenant;
    let tx = cx.tx().await?;
    let user = tx.user(tenant, user).await?.ok_or(Refusal::NotFound)?;
    let standing = tx.standing(tenant, group, &user.id).await?.ok_or(Refusal::NotFound)?;
    Ok((standing, user))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AddMember {
    pub id: GroupId,
    pub user_id: UserId,
}

impl Operation for AddMember {
    type Reply = Membership;
    const NAME: &'static str = "addStudyGroupMember";
    const METHOD: Method = Method::Put;
    const PATH: &'static str = "/v1/study-groups/{id}/members/{userId}";
    const RIGHT: Right = Right::WriteGroups;
    const SUMMARY: &'static str = "Puts a user into a study group, invited or not";

    async fn handle(self, cx: &mut Cx<'_>) -> Result<Membership, Refusal> {
        let (standing, user) = found(cx, &self.id, &self.user_id).await?;
        if user.is_deleted {
            return Err(Refusal::NotFound);
        }
        if standing.is_member() {
            return Err(Refusal::AlreadyMember);
        }
        let group = enter(cx, &standing.group, &user.id, &user.name).await?;
        let details = json!({ "userId": user.id });
        cx.audit("study-group.add", group.id.as_str(), &details).await?;
        let member_count = i64::try_from(group.members.len()).unwrap_or(i64::MAX);
        Ok(Membership { group_id: group.id, user_id: user.id, member_count })
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RemoveMember {
    pub id: GroupId,
    pub user_id: UserId,
}

impl Operation for RemoveMember {
    type Reply = Membership;
    const NAME: &'static str = "removeStudyGroupMember";
    const METHOD: Method = Method::Delete;
    const PATH: &'static str = "/v1/study-groups/{id}/members/{userId}";
    const RIGHT: Right = Right::WriteGroups;
    const SUMMARY: &'static str =
        "Takes a user out of a study group; an owner is followed by another, the last one ends it";

    async fn handle(self, cx: &mut Cx<'_>) -> Result<Membership, Refusal> {
        let (standing, user) = found(cx, &self.id, &self.user_id).await?;
        standing.require_member()?;
        let member_count = remove(cx, standing, &user.id, &user.name).await?;
        let details = json!({ "userId": user.id });
        cx.audit("study-group.remove", self.id.as_str(), &details).await?;
        Ok(Membership { group_id: self.id, user_id: user.id, member_count })
    }
}
