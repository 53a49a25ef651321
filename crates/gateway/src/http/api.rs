//! The server API: one route per row of the operations, for backends with a key.

use std::{
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::{FromRequestParts as _, RawPathParams, Request},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::{MethodFilter, MethodRouter, any, get},
};
use carillon_domain::{
    Code, Refusal, TenantId,
    api::{Idempotency, KeyHolder, Method, OPERATIONS, OperationRow, Performed, perform, refused},
};
use futures_util::FutureExt as _;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use tracing::Instrument as _;

use super::{keys::Keys, problem::Problem};
use crate::{gateway::Gateway, generate::openapi};

/// Bytes of a request's body.
pub const MAX_BODY: usize = 1 << 20;
/// Every request is answered within this.
const PATIENCE: Duration = Duration::from_secs(10);
/// Characters of an `Idempotency-Key`.
const MAX_IDEMPOTENCY_KEY: usize = 200;
/// What the routes are counted under, where commands have their namespace.
const NAMESPACE: &str = "/v1";

/// What the routes here need.
#[derive(Clone)]
pub struct Api {
    pub gateway: Arc<Gateway>,
    pub keys: Arc<Keys>,
}

/// `/v1/…`: everything there is, its description, and the same refusals for the rest.
pub fn routes(api: &Api) -> Router {
    let mut paths: BTreeMap<&str, MethodRouter> = BTreeMap::new();
    for row in OPERATIONS.iter().copied().flatten() {
        let api = api.clone();
        let handler = move |request: Request| serve(api, row, request);
        let route = paths.remove(row.path).unwrap_or_default();
        paths.insert(row.path, route.on(filter(row.method), handler));
    }
    let document = Bytes::from(openapi::text());
    let describe = move || {
        let json = HeaderValue::from_static("application/json");
        std::future::ready(([(header::CONTENT_TYPE, json)], document.clone()))
    };
    paths.insert("/v1/openapi.json", get(describe));
    let router = paths.into_iter().fold(Router::new(), |router, (path, methods)| {
        router.route(path, methods.fallback(wrong_method))
    });
    router.route("/v1", any(not_found)).route("/v1/{*rest}", any(not_found))
}

const fn filter(method: Method) -> MethodFilter {
    match method {
        Method::Get => MethodFilter::GET,
        Method::Put => MethodFilter::PUT,
        Method::Post => MethodFilter::POST,
        Method::Delete => MethodFilter::DELETE,
    }
}

async fn not_found() -> Response {
    Problem::new(StatusCode::NOT_FOUND, Code::NotFound, "no such resource").into_response()
}

async fn wrong_method() -> Response {
    let detail = "the resource does not take this method";
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, Code::Invalid, detail).into_response()
}

/// Answers one request. The work goes on when the client is gone: what was committed is told.
async fn serve(api: Api, row: &'static OperationRow, request: Request) -> Response {
    let began = Instant::now();
    let gateway = api.gateway.clone();
    let tasks = gateway.tasks.clone();
    let span =
        tracing::info_span!("operation", operation = row.name, caller.id = tracing::field::Empty);
    let work = async move {
        let answered = tokio::time::timeout(PATIENCE, answer(&api, row, request));
        match AssertUnwindSafe(answered).catch_unwind().await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Refused::Refusal(Refusal::Unavailable(None))),
            Err(_) => Err(Refused::Refusal(Refusal::internal("the operation panicked"))),
        }
    };
    let result = match tasks.spawn(work.instrument(span)).await {
        Ok(result) => result,
        Err(ended) => Err(Refused::Refusal(Refusal::internal(ended))),
    };
    let (response, code) = match result {
        Ok(performed) => (success(performed), None),
        Err(refused) => {
            let (problem, code) = refused.problem(&gateway, row);
            (problem.into_response(), Some(code))
        }
    };
    gateway.metrics.command(NAMESPACE, row.name, code, began.elapsed());
    response
}

/// Why a request is not answered as hoped.
enum Refused {
    Unauthenticated,
    Refusal(Refusal),
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self::Refusal(refusal)
    }
}

impl Refused {
    fn problem(self, gateway: &Gateway, row: &OperationRow) -> (Problem, Code) {
        match self {
            Self::Unauthenticated => {
                let detail = "a valid API key is needed: Authorization: Bearer …";
                let code = Code::Unauthenticated;
                (Problem::new(StatusCode::UNAUTHORIZED, code, detail), code)
            }
            Self::Refusal(refusal) => {
                let incident = incident(gateway, &refusal, row);
                let incident = incident.or_else(|| {
                    let is_scope = matches!(refusal, Refusal::Forbidden);
                    is_scope.then(|| format!("the key needs the scope {}", row.right.as_str()))
                });
                (Problem::of(&refusal, incident), refusal.code())
            }
        }
    }
}

/// What nobody expected: the log gets the cause, the client a number to name it by.
fn incident(gateway: &Gateway, refusal: &Refusal, row: &OperationRow) -> Option<String> {
    let Refusal::Internal(source) = refusal else { return None };
    let id = gateway.domain.ids.uuid();
    let (error, operation) = (source.as_ref(), row.name);
    tracing::error!(error.id = id, error, operation, "an operation failed");
    Some(format!("incident {id}"))
}

fn success(performed: Performed) -> Response {
    let text: Box<str> = performed.body.into();
    let mut response = Response::new(Body::from(String::from(text)));
    *response.status_mut() = StatusCode::from_u16(performed.status).unwrap_or(StatusCode::OK);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if performed.is_repeated {
        headers.insert("idempotency-replayed", HeaderValue::from_static("true"));
    }
    response
}

async fn answer(
    api: &Api,
    row: &'static OperationRow,
    request: Request,
) -> Result<Performed, Refused> {
    let now = api.gateway.domain.clock.now();
    let (mut parts, body) = request.into_parts();
    let holder = holder(api, &parts.headers).await;
    if let Err(Refused::Unauthenticated) = holder {
        let tenant = &api.gateway.default_tenant;
        note(&api.gateway, tenant, " unknown key".into(), row, Code::Unauthenticated);
    }
    let holder = holder?;
    tracing::Span::current().record("caller.id", tracing::field::display(&holder.name));
    let path = RawPathParams::from_request_parts(&mut parts, &()).await;
    let path = path.map_err(|_| Refusal::Invalid("the path is not UTF-8".into()))?;
    let path: Vec<(&str, &str)> = path.iter().collect();
    let body = to_bytes(body, MAX_BODY).await.map_err(|_| {
        Refusal::TooLarge(format!("a body of at most {MAX_BODY} bytes, received whole").into())
    })?;
    let schema = (row.payload)().to_value();
    let payload = merge(&schema, &path, parts.uri.query().unwrap_or_default(), &body)?;
    let idempotency = idempotency(&parts.headers, row, &payload)?;
    let asked = carillon_domain::api::Request { payload, idempotency };
    let performed = perform(&api.gateway.domain, &holder, row, asked, now).await;
    if let Err(Refusal::Forbidden) = performed {
        let actor = format!("api:{}", holder.name);
        note(&api.gateway, &holder.tenant, actor, row, Code::Forbidden);
    }
    let mut performed = performed?;
    for effect in std::mem::take(&mut performed.effects) {
        api.gateway.fanout.deliver_system(&holder.tenant, effect);
    }
    Ok(performed)
}

/// Whoever tries what their key does not allow is in the audit log.
fn note(gateway: &Gateway, tenant: &TenantId, actor: String, row: &OperationRow, code: Code) {
    let kind = refused::Kind {
        tenant: tenant.clone(),
        actor,
        action: "api.refused",
        subject: row.name.into(),
        reason: code.as_str(),
    };
    gateway.domain.refusals.note(kind, gateway.domain.clock.now());
}

async fn holder(api: &Api, headers: &HeaderMap) -> Result<KeyHolder, Refused> {
    let bearer = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, key)| key.trim());
    let key = bearer.ok_or(Refused::Unauthenticated)?;
    api.keys.find(&api.gateway.domain, key).await?.ok_or(Refused::Unauthenticated)
}

/// A client repeats a request under the same key; the fingerprint says whether it is the same.
fn idempotency(
    headers: &HeaderMap,
    row: &OperationRow,
    payload: &Map<String, Value>,
) -> Result<Option<Idempotency>, Refusal> {
    let Some(key) = headers.get("idempotency-key") else { return Ok(None) };
    let key = key.to_str().unwrap_or_default().trim();
    if key.is_empty() || key.len() > MAX_IDEMPOTENCY_KEY {
        let detail = "Idempotency-Key: 1 to 200 printable ASCII characters";
        return Err(Refusal::Invalid(detail.into()));
    }
    let mut hash = Sha256::new();
    hash.update(row.method.as_str());
    hash.update([0]);
    hash.update(row.path);
    hash.update([0]);
    // The parameters of the path are part of the payload.
    hash.update(serde_json::to_vec(payload).map_err(Refusal::internal)?);
    Ok(Some(Idempotency { key: key.to_owned(), fingerprint: hex(&hash.finalize()) }))
}

pub fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect()
}

/// Path, query and body as one object. The path wins, and nothing may contradict it.
fn merge(
    schema: &Value,
    path: &[(&str, &str)],
    query: &str,
    body: &[u8],
) -> Result<Map<String, Value>, Refusal> {
    let mut payload = match body.trim_ascii() {
        b"" => Map::new(),
        body => match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => fields,
            Ok(_) => return Err(Refusal::Invalid("the body is a JSON object".into())),
            Err(error) => {
                return Err(Refusal::Invalid(format!("the body is not JSON: {error}").into()));
            }
        },
    };
    for (name, text) in url::form_urlencoded::parse(query.as_bytes()) {
        let kind = Kind::of(schema, &name);
        let value = kind.read(&name, &text)?;
        match (payload.get_mut(&*name), kind) {
            (None, _) => {
                let value = if kind.is_list { Value::Array(vec![value]) } else { value };
                payload.insert(name.into_owned(), value);
            }
            (Some(Value::Array(items)), Kind { is_list: true, .. }) => items.push(value),
            (Some(_), _) => return Err(Refusal::Invalid(format!("{name}: given twice").into())),
        }
    }
    for (name, text) in path {
        let value = Kind::of(schema, name).read(name, text)?;
        if payload.get(*name).is_some_and(|given| *given != value) {
            let detail = format!("{name}: the path says {text}, the rest of the request does not");
            return Err(Refusal::Invalid(detail.into()));
        }
        payload.insert((*name).to_owned(), value);
    }
    Ok(payload)
}

/// What a text in a path or a query stands for.
#[derive(Clone, Copy)]
struct Kind {
    is_number: bool,
    is_boolean: bool,
    is_list: bool,
}

impl Kind {
    /// As the schema of the payload says.
    fn of(schema: &Value, name: &str) -> Self {
        let property = &schema["properties"][name];
        let is = |kind: &str| says(schema, property, kind);
        let is_list = is("array");
        let item = |kind: &str| says(schema, &property["items"], kind);
        let is_number = is("integer") || is("number") || item("integer") || item("number");
        Self { is_number, is_boolean: is("boolean"), is_list }
    }

    fn read(self, name: &str, text: &str) -> Result<Value, Refusal> {
        if !self.is_number && !self.is_boolean {
            return Ok(text.into());
        }
        let value = serde_json::from_str(text).ok().filter(|value: &Value| {
            (self.is_number && value.is_number()) || (self.is_boolean && value.is_boolean())
        });
        let kind = if self.is_number { "a number" } else { "true or false" };
        value.ok_or_else(|| Refusal::Invalid(format!("{name}: not {kind}").into()))
    }
}

/// Whether a schema admits that type, by itself or through what it refers to.
fn says(root: &Value, schema: &Value, kind: &str) -> bool {
    if let Some(target) = schema["$ref"].as_str() {
        let name = target.rsplit('/').next().unwrap_or_default();
        return says(root, &root["$defs"][name], kind);
    }
    let any = schema["anyOf"].as_array();
    any.is_some_and(|all| all.iter().any(|one| says(root, one, kind)))
        || match &schema["type"] {
            Value::String(name) => name == kind,
            Value::Array(names) => names.iter().any(|name| name == kind),
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use schemars::JsonSchema;
    use serde_json::json;

    use super::*;

    #[derive(JsonSchema)]
    #[expect(dead_code, reason = "only its schema is used")]
    struct Payload {
        id: String,
        limit: Option<u32>,
        seq: Option<carillon_domain::Seq>,
        tags: Option<Vec<String>>,
        strict: Option<bool>,
    }

    fn merged(path: &str, query: &str, body: &str) -> Result<Value, String> {
        let schema = schemars::schema_for!(Payload).to_value();
        merge(&schema, &[("id", path)], query, body.as_bytes())
            .map(Value::Object)
            .map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn path_query_and_body_make_one_object() {
        assert_eq!(
            merged("7", "limit=5&seq=9&tags=a&tags=b&strict=true", "").unwrap(),
            json!({ "id": "7", "limit": 5, "seq": 9, "tags": ["a", "b"], "strict": true })
        );
        assert_eq!(merged("x", "", "{\"id\":\"x\"}").unwrap(), json!({ "id": "x" }));
        assert_eq!(merged("a%", "", " ").unwrap(), json!({ "id": "a%" }));
    }

    #[test]
    fn what_contradicts_is_refused() {
        for (query, body, text) in [
            ("", "{\"id\":\"y\"}", "id: the path says x, the rest of the request does not"),
            ("limit=five", "", "limit: not a number"),
            ("limit=\"5\"", "", "limit: not a number"),
            ("limit=1&limit=2", "", "limit: given twice"),
            ("", "[]", "the body is a JSON object"),
        ] {
            assert_eq!(merged("x", query, body).unwrap_err(), text);
        }
        assert!(merged("x", "", "{").unwrap_err().starts_with("the body is not JSON: "));
    }
}
