//! Users as the school's backend manages them. A row written here wins over tokens.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Cursor, Listed, Method, Operation, OperationRow, Right, operation, page};
use crate::{
    chat::text,
    dispatch::{Cx, Effect},
    identity::{Account, Role, TokenRule, UserStatus},
    ids::{Timestamp, UserId},
    leaderboard::recompute::follow_user,
    refusal::Refusal,
    study_group,
};

pub const OPERATIONS: &[OperationRow] = &[
    operation::<PutUser>(),
    operation::<GetUser>(),
    operation::<ListUsers>(),
    operation::<RevokeTokens>(),
    operation::<DeleteUser>(),
    operation::<CutUser>(),
];

/// Characters of a name, an address and a specialty.
pub const MAX_NAME: usize = 200;
pub const MAX_EMAIL: usize = 320;
const MAX_SPECIALTY: usize = 100;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PutUser {
    pub id: UserId,
    /// What others see; not empty.
    pub name: String,
    #[serde(default)]
    pub email: Option<String>,
    pub role: Role,
    /// http, https or a path on this site.
    #[serde(default)]
    pub avatar: Option<String>,
    #[serde(default)]
    pub target_specialty: Option<String>,
    /// `VERIFIED` unless said otherwise. `SUSPENDED` cuts the user's connections.
    #[serde(default)]
    pub status: Option<UserStatus>,
    /// Tokens whose `tokenVersion` is lower are refused. A version that is lower than the one
    /// there is changes nothing.
    #[serde(default)]
    pub token_version: Option<i64>,
}

/// What a row is made from.
#[derive(Clone, Debug)]
pub struct NewAccount {
    pub id: UserId,
    pub name: String,
    pub email: Option<String>,
    pub role: Role,
    pub avatar: Option<String>,
    pub target_specialty: Option<String>,
    pub status: UserStatus,
    pub token_version: i64,
}

impl Operation for PutUser {
    type Reply = Account;
    const NAME: &'static str = "putUser";
    const METHOD: Method = Method::Put;
    const PATH: &'static str = "/v1/users/{id}";
    const RIGHT: Right = Right::WriteUsers;
    const SUMMARY: &'static str = "Makes or replaces a user; from then on tokens change nothing";

    async fn handle(self, cx: &mut Cx<'_>) -> Result<Account, Refusal> {
        if self.id.is_reserved() {
            return Err(Refusal::Invalid("id: begins with a space or with \"api:\"".into()));
        }
        let name = text::short("name", Some(self.name.trim().to_owned()), MAX_NAME)?;
        let account = NewAccount {
            id: self.id,
            name: name.ok_or(Refusal::Invalid("name: empty".into()))?,
            email: text::short("email", self.email, MAX_EMAIL)?,
            role: self.role,
            avatar: text::link("avatar", self.avatar)?,
            target_specialty: text::short("targetSpecialty", self.target_specialty, MAX_SPECIALTY)?,
            status: self.status.unwrap_or(UserStatus::Verified),
            token_version: token_version(self.token_version)?.unwrap_or(0),
        };
        let (tenant, now) = (cx.caller.tenant.clone(), cx.now);
        let tx = cx.tx().await?;
        let before = tx.account(&tenant, &account.id).await?;
        tx.put_account(&tenant, &account, now).await?;
        let after = tx.account(&tenant, &account.id).await?.ok_or(Refusal::NotFound)?;
        let details = json!({
            "role": { "before": before.as_ref().map(|user| user.role), "after": after.role },
            "status": { "before": before.as_ref().map(|user| user.status), "after": after.status },
        });
        cx.audit("user.put", after.id.as_str(), &details).await?;
        let shown = |user: &Account| (user.target_specialty.clone(), user.status);
        // Who is new may have results from before they were deleted.
        if before.as_ref().is_none_or(|before| shown(before) != shown(&after)) {
            follow_user(cx, &after.id).await?;
        }
        let looks = |user: &Account| (user.name.clone(), user.avatar.clone());
        if before.as_ref().is_some_and(|before| looks(before) != looks(&after)) {
            cx.tx().await?.revise_boards(&tenant).await?;
        }
        cx.record(Effect::Know(Arc::new(after.clone())));
        Ok(after)
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct GetUser {
    pub id: UserId,
}

impl Operation for GetUser {
    type Reply = Account;
    const NAME: &'static str = "getUser";
    const METHOD: Method = Method::Get;
    const PATH: &'static str = "/v1/users/{id}";
    const RIGHT: Right = Right::ReadUsers;
    const SUMMARY: &'static str = "One user";

    async fn handle(self, cx: &mut Cx<'_>) -> Result<Account, Refusal> {
        let account = cx.read().await?.account(&cx.caller.tenant, &self.id).await?;
        account.ok_or(Refusal::NotFound)
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct ListUsers {
    #[serde(default)]
    pub cursor: Option<Cursor>,
    /// 1 to 100; 50 unless said otherwise.
    #[serde(default)]
    pub limit: Option<u32>,
}

impl Operation for ListUsers {
    type Reply = Listed<Account>;
    const NAME: &'static str = "listUsers";
    const METHOD: Method = Method::Get;
    const PATH: &'static str = "/v1/users";
    const RIGHT: Right = Right::ReadUsers;
    const SUMMARY: &'static str = "All users, by id";

    async fn handle(self, cx: &mut Cx<'_>) -> Result<Listed<Account>, Refusal> {
        let limit = page::limit(self.limit);
        let after = self.cursor.map(|cursor| cursor.keys::<1>()).transpose()?;
        let after = after.map(|[id]| id).unwrap_or_default();
        let accounts = cx.read().await?.accounts(&cx.caller.tenant, &after, limit + 1).await?;
        Ok(Listed::new(accounts, limit, |user| Cursor::after([user.id.as_str()])))
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RevokeTokens {
    pub id: UserId,
    /// Refuses tokens issued before this; now, unless said otherwise or `tokenVersion` is given.
    #[serde(default)]
    pub before: Option<Timestamp>,
    /// Refuses tokens whose claim `tokenVersion` is lower; one without the claim counts as 0.
    #[serde(default)]
    pub token_version: Option<i64>,
}

/// Which tokens of a user still count.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Revoked {
    pub id: UserId,
    /// Unless said otherwise, `iat` must not be before the next full second, since it is in
    /// seconds.
    #[serde(flatten)]
    pub tokens: TokenRule,
}

fn token_version(given: Option<i64>) -> Result<Option<i64>, Refusal> {
    if given.is_some_and(|version| version < 0) {
        return Err(Refusal::Invalid("tokenVersion: less than 0".into()));
    }
    Ok(given)
}

impl Operation for RevokeTokens {
    type Reply = Revoked;
    const NAME: &'static str = "revokeTokens";
    const METHOD: Method = Method::Post;
    const PATH: &'static str = "/v1/users/{id}/revoke";
    const RIGHT: Right = Right::WriteUsers;
    const SUMMARY: &'static str =
        "Refuses tokens issued to the user so far, and cuts the connections made with them";

    async fn handle(self, cx: &mut Cx<'_>) -> Result<Revoked, Refusal> {
        let tenant = cx.caller.tenant.clone();
        let version = token_version(self.token_version)?;
        // A token of this very second may be older or newer than this moment: it is refused.
        let next_second = Timestamp((cx.now.0.div_euclid(1_000) + 1) * 1_000);
        let valid_from = self.before.or_else(|| version.is_none().then_some(next_second));
        let below = TokenRule { valid_from, version: version.unwrap_or(0) };
        let tx = cx.tx().await?;
        if !tx.revoke_tokens(&tenant, &self.id, &below).await? {
            return Err(Refusal::NotFound);
        }
        let account = tx.account(&tenant, &self.id).await?.ok_or(Refusal::NotFound)?;
        cx.audit("user.revoke", self.id.as_str(), &account.tokens).await?;
        let tokens = account.tokens;
        cx.record(Effect::Know(Arc::new(account)));
        Ok(Revoked { id: self.id, tokens })
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct DeleteUser {
    pub id: UserId,
}

/// The user is gone.
#[derive(Debug, Serialize, JsonSchema)]
pub struct UserDeleted {
    pub id: UserId,
}

impl Operation for DeleteUser {
    type Reply = UserDeleted;
    const NAME: &'static str = "deleteUser";
    const METHOD: Method = Method::Delete;
    const PATH: &'static str = "/v1/users/{id}";
    const RIGHT: Right = Right::WriteUsers;
    const SUMMARY: &'static str =
        "Deletes a user: their name, address, groups and rooms; results and messages stay";

    async fn handle(self, cx: &mut Cx<'_>) -> Result<UserDeleted, Refusal> {
        let (tenant, now) = (cx.caller.tenant.clone(), cx.now);
        let tx = cx.tx().await?;
        let account = tx.account(&tenant, &self.id).await?.ok_or(Refusal::NotFound)?;
        study_group::withdraw(cx, &self.id, &account.name).await?;
        let tx = cx.tx().await?;
        for room in tx.rooms_of(&tenant, &self.id, u32::MAX).await? {
            tx.remove_member(&tenant, &room, &self.id).await?;
        }
        tx.delete_user(&tenant, &self.id, now).await?;
        cx.audit("user.delete", self.id.as_str(), &json!({ "role": account.role })).await?;
        follow_user(cx, &self.id).await?;
        cx.record(Effect::Cut(self.id.clone()));
        Ok(UserDeleted { id: self.id })
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct CutUser {
    pub id: UserId,
}

/// The connections of this user are gone.
#[derive(Debug, Serialize, JsonSchema)]
pub struct CutDone {
    pub id: UserId,
}

impl Operation for CutUser {
    type Reply = CutDone;
    const NAME: &'static str = "cutConnections";
    const METHOD: Method = Method::Delete;
    const PATH: &'static str = "/v1/users/{id}/connections";
    const RIGHT: Right = Right::WriteConnections;
    const SUMMARY: &'static str = "Disconnects every socket of the user; they may come back";

    async fn handle(self, cx: &mut Cx<'_>) -> Result<CutDone, Refusal> {
        let tenant = cx.caller.tenant.clone();
        if cx.tx().await?.user(&tenant, &self.id).await?.is_none() {
            return Err(Refusal::NotFound);
        }
        cx.audit("user.cut", self.id.as_str(), &json!({})).await?;
        cx.record(Effect::Cut(self.id.clone()));
        Ok(CutDone { id: self.id })
    }
}
