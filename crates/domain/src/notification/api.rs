//! Notifications from the school's backend.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};

use super::{
    Priority,
    broadcast::{Audience, broadcast},
    notification_send::SendNotification,
};
use crate::{
    api::{Method, Operation, OperationRow, Right, operation},
    dispatch::Cx,
    identity::Role,
    ids::UserId,
    refusal::Refusal,
};

pub const OPERATIONS: &[OperationRow] = &[operation::<Notify>()];

/// Users named in one request.
const MAX_USERS: usize = 10_000;

/// To whom, and what; one of `users`, `roles` and `tenant`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Notify {
    /// Who is unknown or suspended is passed over.
    #[serde(default)]
    pub users: Option<Vec<UserId>>,
    /// Everybody who has one of them.
    #[serde(default)]
    pub roles: Option<Vec<Role>>,
    /// `true`: everybody.
    #[serde(default)]
    pub tenant: Option<bool>,
    /// `EXAM_UPDATE`, `MESSAGE`, `LEADERBOARD`, `SYSTEM`, or a word of one's own.
    #[serde(rename = "type")]
    pub kind: String,
    pub title: String,
    pub message: String,
    /// Any JSON of at most 8 KiB.
    #[serde(default)]
    #[schemars(with = "Option<serde_json::Value>")]
    pub data: Option<Box<RawValue>>,
    /// `normal` unless said otherwise.
    #[serde(default)]
    pub priority: Option<Priority>,
    /// http, https or a path on this site.
    #[serde(default)]
    pub action_url: Option<String>,
    /// The same key again, for the same user, is the same notification.
    #[serde(default)]
    pub dedupe_key: Option<String>,
    /// ISO 8601; from then on it counts nowhere.
    #[serde(default)]
    pub expires_at: Option<String>,
}

/// It is stored; who is connected is sent it a few at a time.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Notified {
    /// For how many users.
    pub notified: u64,
}

impl Operation for Notify {
    type Reply = Notified;
    const NAME: &'static str = "notify";
    const METHOD: Method = Method::Post;
    const PATH: &'static str = "/v1/notifications";
    const RIGHT: Right = Right::WriteNotifications;
    const SUMMARY: &'static str = "Notifies users, everybody of some roles, or a whole tenant";
    const STATUS: u16 = 202;

    async fn handle(self, cx: &mut Cx<'_>) -> Result<Notified, Refusal> {
        let audience = match (self.users, self.roles, self.tenant) {
            (Some(users), None, None) if users.len() <= MAX_USERS => Audience::Users(users),
            (Some(_), None, None) => {
                return Err(Refusal::Invalid("users: at most 10000".into()));
            }
            (None, Some(roles), None) => Audience::Roles(roles),
            (None, None, Some(true)) => Audience::Everybody,
            _ => {
                let fault = "one of users, roles and tenant (which is true)";
                return Err(Refusal::Invalid(fault.into()));
            }
        };
        let draft = SendNotification {
            user_id: None,
            kind: self.kind,
            title: self.title,
            message: self.message,
            data: self.data,
            priority: self.priority,
            action_url: self.action_url,
            dedupe_key: self.dedupe_key,
            collapse_key: None,
            expires_at: self.expires_at,
        }
        .draft(cx.now)?;
        let kind = draft.kind.clone();
        let notified = broadcast(cx, &audience, draft).await?;
        cx.audit("notify", &kind, &json!({ "notified": notified })).await?;
        Ok(Notified { notified })
    }
}
