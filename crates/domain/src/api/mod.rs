//! What a school's backend can ask for, with a key, over HTTP.
//!
//! An operation is defined once, as an event is: its payload type is what the path, the query and
//! the body of a request make together, and one row of [`OPERATIONS`] carries everything else.
//! Routes, the OpenAPI document and the table tests are read from that list. Operations take the
//! path of every command: one transaction, effects after the commit.

use std::{borrow::Cow, collections::BTreeSet, fmt};

use schemars::{JsonSchema, Schema, schema_for};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, value::RawValue};

use crate::{
    contract::{Class, Scope, sent},
    dispatch::{App, BoxFuture, Caller, Cx, Effect, take},
    exam,
    ids::{TenantId, Timestamp},
    leaderboard, notification,
    refusal::Refusal,
    study_group,
};

pub mod audit;
pub mod connections;
pub mod page;
pub mod refused;
pub mod rooms;
pub mod users;

pub use self::page::{Cursor, Listed};

/// Every operation there is, by domain.
pub const OPERATIONS: &[&[OperationRow]] = &[
    users::OPERATIONS,
    exam::api::OPERATIONS,
    rooms::OPERATIONS,
    connections::OPERATIONS,
    leaderboard::api::OPERATIONS,
    notification::api::OPERATIONS,
    study_group::api::OPERATIONS,
    audit::OPERATIONS,
];

/// The HTTP methods in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Method {
    Get,
    Put,
    Post,
    Delete,
}

impl Method {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Post => "POST",
            Self::Delete => "DELETE",
        }
    }

    /// Whether it changes anything; what does takes its turn in the tenant's lane.
    pub const fn writes(self) -> bool {
        !matches!(self, Self::Get)
    }

    /// Whether a request has a body; the others are all path and query.
    pub const fn has_body(self) -> bool {
        matches!(self, Self::Put | Self::Post)
    }
}

/// What a key may be allowed to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Right {
    ReadUsers,
    WriteUsers,
    ReadExams,
    WriteExams,
    ReadChat,
    WriteNotifications,
    ReadGroups,
    WriteGroups,
    ReadLeaderboards,
    WriteLeaderboards,
    ReadPresence,
    WriteConnections,
    ReadAudit,
}

impl Right {
    pub const ALL: &'static [Self] = &[
        Self::ReadUsers,
        Self::WriteUsers,
        Self::ReadExams,
        Self::WriteExams,
        Self::ReadChat,
        Self::WriteNotifications,
        Self::ReadGroups,
        Self::WriteGroups,
        Self::ReadLeaderboards,
        Self::WriteLeaderboards,
        Self::ReadPresence,
        Self::WriteConnections,
        Self::ReadAudit,
    ];

    /// The scope of a key, as configuration and command line spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ReadUsers => "users:read",
            Self::WriteUsers => "users:write",
            Self::ReadExams => "exams:read",
            Self::WriteExams => "exams:write",
            Self::ReadChat => "chat:read",
            Self::WriteNotifications => "notifications:write",
            Self::ReadGroups => "groups:read",
            Self::WriteGroups => "groups:write",
            Self::ReadLeaderboards => "leaderboards:read",
            Self::WriteLeaderboards => "leaderboards:write",
            Self::ReadPresence => "presence:read",
            Self::WriteConnections => "connections:write",
            Self::ReadAudit => "audit:read",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|right| right.as_str() == text)
    }
}

/// The scopes of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rights {
    All,
    These(BTreeSet<Right>),
}

/// A scope that does not exist, or none at all.
#[derive(Debug, thiserror::Error)]
pub enum InvalidScope {
    #[error("{0:?} is not a scope")]
    Unknown(String),
    #[error("without a scope a key may do nothing")]
    Missing,
}

impl Rights {
    /// Reads a list of scopes; `*` stands for all of them.
    pub fn parse<'a>(scopes: impl IntoIterator<Item = &'a str>) -> Result<Self, InvalidScope> {
        let mut rights = BTreeSet::new();
        let mut is_all = false;
        for scope in scopes.into_iter().map(str::trim).filter(|scope| !scope.is_empty()) {
            if scope == "*" {
                is_all = true;
                continue;
            }
            let right = Right::parse(scope).ok_or_else(|| InvalidScope::Unknown(scope.into()))?;
            rights.insert(right);
        }
        match (is_all, rights.is_empty()) {
            (true, _) => Ok(Self::All),
            (false, true) => Err(InvalidScope::Missing),
            (false, false) => Ok(Self::These(rights)),
        }
    }

    pub fn allow(&self, right: Right) -> bool {
        match self {
            Self::All => true,
            Self::These(rights) => rights.contains(&right),
        }
    }
}

/// As [`Rights::parse`] reads it.
impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::These(rights) => {
                let names: Vec<&str> = rights.iter().map(|right| right.as_str()).collect();
                f.write_str(&names.join(","))
            }
        }
    }
}

/// Whoever holds a key: one backend of one tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyHolder {
    pub tenant: TenantId,
    /// The key's name: what journals and audits show.
    pub name: String,
    pub rights: Rights,
}

/// A key as it is stored: never the key itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredKey {
    pub holder: KeyHolder,
    /// SHA-256, in hexadecimal digits. A key is 40 random characters: there is nothing to guess
    /// that a slow hash would have to protect.
    pub hash: String,
    pub created_at: Timestamp,
    pub revoked_at: Option<Timestamp>,
}

/// A reply kept under an `Idempotency-Key`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptReply {
    /// What was asked for, as a hash.
    pub fingerprint: String,
    pub status: u16,
    pub body: String,
}

/// One request of the server API. The payload type is the definition, as with commands: what the
/// path parameters, the query and the body make together.
///
/// ```text
/// #[derive(Deserialize, JsonSchema)]
/// #[serde(rename_all = "camelCase")]
/// pub struct GetExam { pub id: ExamId }
/// impl Operation for GetExam {
///     type Reply = ExamView;
///     const NAME: &'static str = "getExam";
///     const METHOD: Method = Method::Get;
///     const PATH: &'static str = "/v1/exams/{id}";
///     const RIGHT: Right = Right::ReadExams;
///     const SUMMARY: &'static str = "One exam";
///     async fn handle(self, cx: &mut Cx<'_>) -> Result<ExamView, Refusal> { … }
/// }
/// pub const OPERATIONS: &[OperationRow] = &[operation::<GetExam>()];
/// ```
///
/// Unknown fields are refused at the top; a nested type refuses its own with
/// `#[serde(deny_unknown_fields)]`. Writes use `cx.tx()` and say what they did with
/// [`Cx::audit`]; reads use `cx.read()`. What belongs to another tenant is [`Refusal::NotFound`].
pub trait Operation: DeserializeOwned + JsonSchema + Send + 'static {
    /// A JSON object; a list is [`Listed`].
    type Reply: Serialize + JsonSchema + Send;
    /// In the OpenAPI document (`operationId`) and in metrics.
    const NAME: &'static str;
    const METHOD: Method;
    /// `/v1/users/{id}`: every parameter is a field of the payload.
    const PATH: &'static str;
    const RIGHT: Right;
    const SUMMARY: &'static str;
    /// The status of success.
    const STATUS: u16 = 200;
    /// True: doing it twice is doing it once, so no reply is kept under a key; it may open
    /// transactions of its own.
    const REPEATABLE: bool = false;

    fn handle(self, cx: &mut Cx<'_>) -> impl Future<Output = Result<Self::Reply, Refusal>> + Send;
}

type Run = for<'a, 'b> fn(
    &'a mut Cx<'b>,
    Map<String, Value>,
) -> BoxFuture<'a, Result<Box<RawValue>, Refusal>>;

/// One row of [`OPERATIONS`]: constants and function pointers.
pub struct OperationRow {
    pub name: &'static str,
    pub method: Method,
    pub path: &'static str,
    pub right: Right,
    pub summary: &'static str,
    pub status: u16,
    pub repeatable: bool,
    pub payload: fn() -> Schema,
    pub reply: fn() -> Schema,
    run: Run,
}

impl fmt::Debug for OperationRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OperationRow({} {})", self.method.as_str(), self.path)
    }
}

impl OperationRow {
    /// The names in braces in the path.
    pub fn parameters(&self) -> impl Iterator<Item = &'static str> {
        self.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
    }
}

pub const fn operation<O: Operation>() -> OperationRow {
    OperationRow {
        name: O::NAME,
        method: O::METHOD,
        path: O::PATH,
        right: O::RIGHT,
        summary: O::SUMMARY,
        status: O::STATUS,
        repeatable: O::REPEATABLE,
        payload: || schema_for!(O),
        reply: sent::<O::Reply>,
        run: run::<O>,
    }
}

/// A request once it has been read, before anything is decided.
#[derive(Debug)]
pub struct Request {
    /// Path, query and body in one.
    pub payload: Map<String, Value>,
    pub idempotency: Option<Idempotency>,
}

/// A client that may repeat a request says so by a key of its own.
#[derive(Debug)]
pub struct Idempotency {
    pub key: String,
    /// A hash of the method, the path and everything sent.
    pub fingerprint: String,
}

/// What a request did, once it is committed.
#[derive(Debug)]
pub struct Performed {
    pub status: u16,
    pub body: Box<RawValue>,
    pub effects: Vec<Effect>,
    /// Whether this is the reply of an earlier request with the same `Idempotency-Key`.
    pub is_repeated: bool,
}

/// Runs one operation: right, rate, decode, handle, commit. What comes back has happened.
pub async fn perform(
    app: &App,
    holder: &KeyHolder,
    row: &OperationRow,
    request: Request,
    now: Timestamp,
) -> Result<Performed, Refusal> {
    let caller = Caller::agent(&holder.tenant, &format!("api:{}", holder.name));
    take(app, &caller, Class::Api)?;
    if !holder.rights.allow(row.right) {
        return Err(Refusal::Forbidden);
    }
    let scope = if row.method.writes() { Scope::Lane } else { Scope::Rows };
    let mut cx = Cx::new(app, &caller, scope, now);
    let idempotency = request.idempotency.filter(|_| row.method.writes() && !row.repeatable);
    if let Some(Idempotency { key, fingerprint }) = &idempotency {
        // Writes of a tenant take turns, so that of two with the same key one finds the other's.
        let actor = caller.user.as_str();
        if let Some(kept) = cx.tx().await?.kept_reply(&caller.tenant, actor, key).await? {
            if kept.fingerprint != *fingerprint {
                return Err(Refusal::IdempotencyMismatch);
            }
            let body = RawValue::from_string(kept.body).map_err(Refusal::internal)?;
            let (status, effects) = (kept.status, Vec::new());
            return Ok(Performed { status, body, effects, is_repeated: true });
        }
    }
    let body = (row.run)(&mut cx, request.payload).await?;
    if let Some(Idempotency { key, fingerprint }) = idempotency {
        let reply = KeptReply { fingerprint, status: row.status, body: body.get().to_owned() };
        let actor = caller.user.as_str();
        cx.tx().await?.keep_reply(&caller.tenant, actor, &key, &reply, now).await?;
    }
    let effects = cx.commit().await?;
    Ok(Performed { status: row.status, body, effects, is_repeated: false })
}

fn run<'a, O: Operation>(
    cx: &'a mut Cx<'_>,
    payload: Map<String, Value>,
) -> BoxFuture<'a, Result<Box<RawValue>, Refusal>> {
    Box::pin(async move {
        let operation = decode::<O>(payload)?;
        let reply = operation.handle(cx).await?;
        serde_json::value::to_raw_value(&reply).map_err(Refusal::internal)
    })
}

/// Refuses unknown fields, and names the place of whatever is wrong.
fn decode<O: Operation>(payload: Map<String, Value>) -> Result<O, Refusal> {
    let schema = schema_for!(O);
    let known = schema.get("properties").and_then(Value::as_object);
    let is_known = |name: &str| known.is_some_and(|known| known.contains_key(name));
    if let Some(stranger) = payload.keys().find(|name| !is_known(name)) {
        let names: Vec<&str> = known.into_iter().flatten().map(|(name, _)| name.as_str()).collect();
        let known = if names.is_empty() { "none".into() } else { names.join(", ") };
        return Err(Refusal::Invalid(format!("unknown field {stranger}; known: {known}").into()));
    }
    serde_path_to_error::deserialize(Value::Object(payload)).map_err(|error| {
        let path = error.path().to_string();
        let detail: Cow<'static, str> = if path == "." {
            error.into_inner().to_string().into()
        } else {
            format!("{path}: {}", error.into_inner()).into()
        };
        Refusal::Invalid(detail)
    })
}

impl Cx<'_> {
    /// Notes in the audit log, in the transaction of the deed, who did what to whom.
    pub async fn audit(
        &mut self,
        action: &str,
        subject: &str,
        details: &(impl Serialize + Sync),
    ) -> Result<(), Refusal> {
        let details = serde_json::to_string(details).map_err(Refusal::internal)?;
        let (tenant, actor, now) = (self.caller.tenant.clone(), self.caller.user.clone(), self.now);
        self.tx().await?.audit(&tenant, now, actor.as_str(), action, subject, &details).await
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use serde_json::json;

    use super::*;

    fn rows() -> impl Iterator<Item = &'static OperationRow> {
        OPERATIONS.iter().copied().flatten()
    }

    #[test]
    fn names_and_routes_are_unique() {
        let (mut names, mut routes) = (HashSet::new(), HashSet::new());
        for row in rows() {
            assert!(names.insert(row.name), "{} twice", row.name);
            assert!(routes.insert((row.method, row.path)), "{row:?} twice");
            assert!(row.path.starts_with("/v1/"), "{row:?}");
            assert!(row.name.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{row:?}");
        }
    }

    #[test]
    fn every_path_parameter_is_a_field_of_the_payload() {
        for row in rows() {
            let schema = (row.payload)().to_value();
            for parameter in row.parameters() {
                assert!(!schema["properties"][parameter].is_null(), "{row:?}");
            }
        }
    }

    #[test]
    fn rights_read_back_as_they_are_shown() {
        for right in Right::ALL {
            assert_eq!(Right::parse(right.as_str()), Some(*right));
        }
        let some = Rights::parse(["exams:write", " users:read"]).unwrap();
        assert_eq!(some.to_string(), "users:read,exams:write");
        assert!(some.allow(Right::ReadUsers) && !some.allow(Right::WriteUsers));
        assert_eq!(Rights::parse(["users:read", "*"]).unwrap(), Rights::All);
        assert!(Rights::parse(["users:fly"]).is_err());
        assert!(Rights::parse([""]).is_err());
    }

    #[test]
    fn what_is_wrong_is_named_by_its_place() {
        let refused = |payload: Value| {
            let Value::Object(payload) = payload else { panic!("an object") };
            match decode::<users::PutUser>(payload) {
                Err(Refusal::Invalid(detail)) => detail.into_owned(),
                other => panic!("{other:?}"),
            }
        };
        let text = refused(json!({ "id": "ana", "name": "Ana", "role": "STUDENT", "colour": 1 }));
        assert!(text.starts_with("unknown field colour; known: "), "{text}");
        let text = refused(json!({ "id": "ana", "name": "Ana" }));
        assert_eq!(text, "missing field `role`");
        let text = refused(json!({ "id": "ana", "name": "Ana", "role": "KING" }));
        assert!(text.starts_with("role: unknown variant `KING`"), "{text}");
    }
}
