//! `study-group-create`: a group with a room of its own, and its maker as the only member.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    StudyGroup, StudyGroups, TEXTS,
    events::{StudyGroupAvailable, StudyGroupCreated},
};
use crate::{
    chat::text,
    contract::{Class, Command, Handle, Policy, ToRoomWith, ToTenant},
    dispatch::Cx,
    ids::{GroupId, RoomId},
    refusal::Refusal,
};

const MAX_NAME_CHARS: usize = 255;
const MAX_DESCRIPTION_CHARS: usize = 2_000;
const MAX_SPECIALTY_CHARS: usize = 100;
const DEFAULT_MEMBERS: u32 = 10;

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreateStudyGroup {
    /// Plain text, at most 255 characters.
    pub name: String,
    /// Plain text, at most 2,000 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Plain text, at most 100 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub specialty: Option<String>,
    /// 2 to 500; 10 unless said otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_members: Option<u32>,
    /// Whether everybody sees it and may join; true unless said otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_public: Option<bool>,
}

/// The group as it was made.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Created {
    pub group: StudyGroup,
    pub room_id: RoomId,
}

impl Command for CreateStudyGroup {
    type In = StudyGroups;
    type Reply = Created;
    const NAME: &'static str = "study-group-create";
    const POLICY: Policy =
        Policy::new(Class::StudyGroup, "Group name is required", "Failed to create study group")
            .max_bytes(32 * 1024)
            .texts(TEXTS);
    fn example() -> Self {
        Self {
            name: "Cardiology, evenings".into(),
            description: Some("Case discussions".into()),
            specialty: Some("Cardiology".into()),
            max_members: Some(12),
            is_public: Some(true),
        }
    }
}

impl CreateStudyGroup {
    /// The group it asks for, as nobody's yet.
    fn group(self, cx: &Cx<'_>) -> Result<StudyGroup, Refusal> {
        let max_members = self.max_members.unwrap_or(DEFAULT_MEMBERS);
        if !(2..=500).contains(&max_members) {
            return Err(Refusal::Invalid("maxMembers: 2 to 500".into()));
        }
        let (ids, user) = (&cx.app.ids, &cx.caller.user);
        Ok(StudyGroup {
            name: text::plain("name", &self.name, MAX_NAME_CHARS)?,
            description: text::plain_option(
                "description",
                self.description,
                MAX_DESCRIPTION_CHARS,
            )?,
            specialty: text::plain_option("specialty", self.specialty, MAX_SPECIALTY_CHARS)?,
            id: GroupId::new(ids.uuid()).map_err(Refusal::internal)?,
            room_id: RoomId::new(format!("study-group:{}", ids.uuid()))
                .map_err(Refusal::internal)?,
            creator_id: user.clone(),
            members: vec![user.clone()],
            max_members: max_members.into(),
            is_public: self.is_public.unwrap_or(true),
            created_at: cx.now,
            updated_at: cx.now,
            owner_id: user.clone(),
        })
    }
}

impl Handle for CreateStudyGroup {
    async fn handle(self, cx: &mut Cx<'_>) -> Result<Created, Refusal> {
        let (caller, now) = (cx.caller, cx.now);
        let group = self.group(cx)?;
        let tx = cx.tx().await?;
        tx.create_study_group(&caller.tenant, &group).await?;
        if !tx.add_group_member(&caller.tenant, &group.id, &caller.user, now).await? {
            return Err(Refusal::internal("a new group has no place"));
        }
        let room_id = group.room_id.clone();
        let to = ToRoomWith(room_id.clone(), caller.user.clone());
        cx.send(to, &StudyGroupCreated(group.clone()))?;
        if group.is_public {
            let available = StudyGroupAvailable {
                id: group.id.clone(),
                name: group.name.clone(),
                description: group.description.clone(),
                specialty: group.specialty.clone(),
                current_members: 1,
                max_members: group.max_members,
            };
            cx.send(ToTenant(), &available)?;
        }
        Ok(Created { group, room_id })
    }
}
