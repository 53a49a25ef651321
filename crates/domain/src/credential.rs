//! A token while a connection lives: it may run out, and a newer one may take its place.
//!
//! Verifying is the gateway's, behind the port [`Credentials`](crate::ports::Credentials). Nothing
//! here shows a token to anybody.

use std::{fmt, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    contract::{
        Class, Command, Event, EventRow, Everywhere, Handle, Policy, Route, ToCaller, event, route,
    },
    dispatch::{Cx, Effect},
    identity::{Issue, User},
    ids::{AppId, TenantId, Timestamp},
    refusal::Refusal,
};

pub const COMMANDS: &[Route] = &[route::<AuthRefresh>()];
pub const EVENTS: &[EventRow] = &[event::<AuthExpiring>()];

/// Tokens with many claims are long.
pub const MAX_TOKEN: usize = 16 * 1024;
/// A token in its object.
const MAX_BYTES: usize = MAX_TOKEN + 1024;

/// A credential as it came. It is never shown.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Token(String);

impl Token {
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}

/// Who showed a token, and what it says.
#[derive(Clone, Debug)]
pub struct Bearer {
    pub app: AppId,
    pub tenant: TenantId,
    /// The row as it is now.
    pub user: User,
    pub issue: Issue,
    pub expires_at: Timestamp,
}

/// The client has a newer token of the same user.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct AuthRefresh {
    pub token: Token,
}

/// The newer token counts, for every socket of this connection.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuthRefreshed {
    pub expires_at: Timestamp,
}

impl Command for AuthRefresh {
    type In = Everywhere;
    type Reply = AuthRefreshed;
    const NAME: &'static str = "auth-refresh";
    const POLICY: Policy =
        Policy::new(Class::Auth, "Token is required", "Authentication error: Invalid token")
            .rows_only()
            .max_bytes(MAX_BYTES);
    fn example() -> Self {
        Self { token: Token("eyJhbGciOiJIUzI1NiJ9.eyJ1c2VySWQiOiJhbmEifQ.c2lnbmF0dXJl".into()) }
    }
}

impl Handle for AuthRefresh {
    async fn handle(self, cx: &mut Cx<'_>) -> Result<AuthRefreshed, Refusal> {
        let Bearer { app, tenant, user, issue, expires_at } =
            cx.app.credentials.verify(cx.app, &self.token).await?;
        let caller = cx.caller;
        if user.id != caller.user || tenant != caller.tenant {
            return Err(Refusal::OtherUser);
        }
        if caller.app.as_ref() != Some(&app) {
            return Err(Refusal::Unauthenticated);
        }
        // First: the row may have followed this token, and refuse the one before.
        cx.record(Effect::Extend(issue, expires_at));
        let is_another =
            user.name != caller.name || user.role != caller.role || user.avatar != caller.avatar;
        if is_another && let Some(account) = cx.read().await?.account(&tenant, &user.id).await? {
            cx.record(Effect::Know(Arc::new(account)));
        }
        Ok(AuthRefreshed { expires_at })
    }
}

/// The token of this connection runs out: unless a newer one is shown, it is cut.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuthExpiring {
    pub expires_at: Timestamp,
}

impl Event for AuthExpiring {
    type In = Everywhere;
    type To = ToCaller;
    const NAME: &'static str = "auth-expiring";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_never_shown() {
        let command = AuthRefresh::example();
        assert!(!format!("{command:?}").contains("eyJ"));
        assert!(command.token.expose().starts_with("eyJ"));
    }
}
