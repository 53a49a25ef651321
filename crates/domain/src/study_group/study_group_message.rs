//! `study-group-message`: `send-message` into the room of a group.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{StudyGroups, TEXTS, find};
use crate::{
    chat::send_message::{MessageSent, SendMessage},
    contract::{Class, Command, Handle, Policy},
    dispatch::Cx,
    ids::GroupId,
    refusal::Refusal,
};

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SendStudyGroupMessage {
    pub group_id: GroupId,
    /// As in `send-message`.
    pub message: String,
    /// As in `send-message`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_msg_id: Option<String>,
}

impl Command for SendStudyGroupMessage {
    type In = StudyGroups;
    type Reply = MessageSent;
    const NAME: &'static str = "study-group-message";
    const POLICY: Policy = Policy::new(
        Class::Message,
        "Group ID and message are required",
        SendMessage::POLICY.failed,
    )
    .max_bytes(SendMessage::POLICY.max_bytes)
    .texts(TEXTS);
    fn example() -> Self {
        let message = "Shall we go through case 7?".into();
        Self { group_id: GroupId::sample(), message, client_msg_id: None }
    }
}

impl Handle for SendStudyGroupMessage {
    async fn handle(self, cx: &mut Cx<'_>) -> Result<MessageSent, Refusal> {
        let standing = find(cx, &self.group_id).await?;
        standing.require_member()?;
        let message = SendMessage {
            room_id: standing.room,
            message: self.message,
            message_type: None,
            file_url: None,
            file_name: None,
            file_size: None,
            client_msg_id: self.client_msg_id,
        };
        message.handle(cx).await
    }
}
