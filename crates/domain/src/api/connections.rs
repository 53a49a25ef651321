//! Who is here, as this node sees it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Cursor, Listed, Method, Operation, OperationRow, Right, operation, page};
use crate::{
    dispatch::Cx,
    ids::{ConnectionId, UserId},
    refusal::Refusal,
};

pub const OPERATIONS: &[OperationRow] =
    &[operation::<ListPresence>(), operation::<ListConnections>()];

#[derive(Debug, Deserialize, JsonSchema)]
pub struct ListPresence {
    #[serde(default)]
    pub cursor: Option<Cursor>,
    /// 1 to 100; 50 unless said otherwise.
    #[serde(default)]
    pub limit: Option<u32>,
}

/// Somebody who is online.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OnlineUser {
    pub user_id: UserId,
    pub user_name: String,
    /// Sockets; a page opens two. 0 for a moment after the last one is gone.
    pub connections: usize,
    /// Rooms that any of them has joined.
    pub rooms: usize,
}

impl Operation for ListPresence {
    type Reply = Listed<OnlineUser>;
    const NAME: &'static str = "listPresence";
    const METHOD: Method = Method::Get;
    const PATH: &'static str = "/v1/presence";
    const RIGHT: Right = Right::ReadPresence;
    const SUMMARY: &'static str = "Users who are online, by id";

    async fn handle(self, cx: &mut Cx<'_>) -> Result<Listed<OnlineUser>, Refusal> {
        let limit = page::limit(self.limit);
        let after = self.cursor.map(|cursor| cursor.keys::<1>()).transpose()?;
        let after = after.map(|[id]| id).unwrap_or_default();
        let count = usize::try_from(limit).unwrap_or(usize::MAX) + 1;
        let online = cx.app.presence.online_users(&cx.caller.tenant, &after, count);
        Ok(Listed::new(online, limit, |user| Cursor::after([user.user_id.as_str()])))
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct ListConnections {
    #[serde(default)]
    pub cursor: Option<Cursor>,
    /// 1 to 100; 50 unless said otherwise.
    #[serde(default)]
    pub limit: Option<u32>,
}

/// One socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Connected {
    /// The public id, as the client knows it.
    pub id: ConnectionId,
    pub user_id: UserId,
}

impl Operation for ListConnections {
    type Reply = Listed<Connected>;
    const NAME: &'static str = "listConnections";
    const METHOD: Method = Method::Get;
    const PATH: &'static str = "/v1/connections";
    const RIGHT: Right = Right::ReadPresence;
    const SUMMARY: &'static str = "Sockets that are connected, by id";

    async fn handle(self, cx: &mut Cx<'_>) -> Result<Listed<Connected>, Refusal> {
        let limit = page::limit(self.limit);
        let after = self.cursor.map(|cursor| cursor.keys::<1>()).transpose()?;
        let after = after.map(|[id]| id).unwrap_or_default();
        let count = usize::try_from(limit).unwrap_or(usize::MAX) + 1;
        let sockets = cx.app.presence.connections(&cx.caller.tenant, &after, count);
        Ok(Listed::new(sockets, limit, |socket| Cursor::after([socket.id.as_str()])))
    }
}
