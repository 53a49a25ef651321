//! Who did what, when: the audit log. Append only; the deeds themselves write it.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Cursor, Listed, Method, Operation, OperationRow, Right, operation, page};
use crate::{dispatch::Cx, ids::Timestamp, refusal::Refusal};

pub const OPERATIONS: &[OperationRow] = &[operation::<ListAudit>()];

#[derive(Debug, Deserialize, JsonSchema)]
pub struct ListAudit {
    /// Only what this user, or `api:` and the name of a key, did, and what was done to them.
    #[serde(default)]
    pub user: Option<String>,
    /// Only this action, or with `exam` all that begin with `exam.`.
    #[serde(default)]
    pub action: Option<String>,
    #[serde(default)]
    pub cursor: Option<Cursor>,
    /// 1 to 100; 50 unless said otherwise.
    #[serde(default)]
    pub limit: Option<u32>,
}

/// Which deeds are asked for; all of them where nothing is said.
#[derive(Clone, Debug, Default)]
pub struct AuditFilter {
    pub user: Option<String>,
    pub action: Option<String>,
}

/// One deed.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditEntry {
    /// Grows with every deed.
    pub id: i64,
    pub at: Timestamp,
    /// A user's id, or `api:` and the name of a key; somebody who has proved nothing is a name
    /// that begins with a space.
    pub actor: String,
    /// `user.put`, `exam.control`, `auth.refused`, …
    pub action: String,
    /// What it was done to.
    pub subject: String,
    #[schemars(with = "serde_json::Value")]
    pub details: Arc<RawValue>,
}

impl Operation for ListAudit {
    type Reply = Listed<AuditEntry>;
    const NAME: &'static str = "listAudit";
    const METHOD: Method = Method::Get;
    const PATH: &'static str = "/v1/audit";
    const RIGHT: Right = Right::ReadAudit;
    const SUMMARY: &'static str = "The audit log, newest first";

    async fn handle(self, cx: &mut Cx<'_>) -> Result<Listed<AuditEntry>, Refusal> {
        let limit = page::limit(self.limit);
        let before = match self.cursor {
            Some(cursor) => {
                let [id] = cursor.keys()?;
                id.parse()
                    .map_err(|_| Refusal::Invalid("cursor: not one that was given out".into()))?
            }
            None => i64::MAX,
        };
        let asked = [("user", &self.user), ("action", &self.action)];
        for (name, text) in asked {
            if text.as_ref().is_some_and(|text| text.chars().any(char::is_control)) {
                return Err(Refusal::Invalid(format!("{name}: no control characters").into()));
            }
        }
        let filter = AuditFilter { user: self.user, action: self.action };
        let mut reads = cx.read().await?;
        let entries = reads.audit_entries(&cx.caller.tenant, &filter, before, limit + 1).await?;
        Ok(Listed::new(entries, limit, |entry| Cursor::after([&entry.id.to_string()])))
    }
}
