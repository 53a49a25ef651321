//! Refusals of the server API, as `application/problem+json`, with the codes of the socket.

use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use carillon_domain::{Code, Refusal};
use schemars::JsonSchema;
use serde::Serialize;

/// A refusal. `type` is always `about:blank`: `code` says what it is.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    /// What is wrong, and where.
    detail: String,
    code: Code,
    /// Whether the same request may succeed later.
    retryable: bool,
    /// Milliseconds to wait before that.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
}

/// The one mapping from codes to HTTP.
pub const fn status(code: Code) -> StatusCode {
    match code {
        Code::Invalid => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::Forbidden | Code::NotAMember => StatusCode::FORBIDDEN,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::Conflict
        | Code::AttemptClosed
        | Code::Paused
        | Code::Superseded
        | Code::GroupFull
        | Code::AlreadyMember => StatusCode::CONFLICT,
        Code::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Code::IdempotencyMismatch | Code::UnknownQuestion => StatusCode::UNPROCESSABLE_ENTITY,
        Code::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        Code::Busy | Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl Problem {
    /// A refusal that is told once and for all.
    pub fn new(status: StatusCode, code: Code, detail: impl Into<String>) -> Self {
        Self {
            kind: "about:blank",
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail: detail.into(),
            code,
            retryable: false,
            retry_after_ms: None,
        }
    }

    /// The same request may succeed later.
    #[must_use]
    pub fn retryable(self) -> Self {
        Self { retryable: true, ..self }
    }

    /// `incident` names an unexpected failure in the log; nothing else of it is told.
    pub fn of(refusal: &Refusal, incident: Option<String>) -> Self {
        let code = refusal.code();
        let detail = incident.unwrap_or_else(|| refusal.to_string());
        let told = refusal.told("");
        let (retryable, retry_after_ms) = (told.retryable, told.retry_after_ms);
        Self { retryable, retry_after_ms, ..Self::new(status(code), code, detail) }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let text = serde_json::to_string(&self).unwrap_or_default();
        let mut response = Response::new(Body::from(text));
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(wait) = self.retry_after_ms {
            // Whole seconds, upwards: earlier would be refused again.
            headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.div_ceil(1_000)));
        }
        if self.code == Code::Unauthenticated {
            headers.insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer realm=\"carillon\""),
            );
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_refusal_says_when_to_come_back() {
        let refusal = Refusal::RateLimited { retry_after: Duration::from_millis(1_200) };
        let response = Problem::of(&refusal, None).into_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[header::RETRY_AFTER], "2");
        let internal = Problem::of(&Refusal::internal("secret"), Some("incident 7".into()));
        assert_eq!((internal.detail.as_str(), internal.retryable), ("incident 7", true));
    }
}
