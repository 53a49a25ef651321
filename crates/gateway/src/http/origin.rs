//! Which web pages may talk to us: an exact list, on every transport.

use std::sync::Arc;

use axum::{
    Router,
    extract::Request,
    http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts},
    middleware::{Next, from_fn},
    response::Response,
};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::config::App;

/// The place of an origin in the table of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OriginId(u16);

/// The allowed origins of all apps, each once.
#[derive(Debug, Default)]
pub struct Origins {
    exact: Vec<String>,
    /// `dev`: any page served from this machine.
    any_localhost: bool,
}

impl Origins {
    pub fn new(apps: &[App], any_localhost: bool) -> Self {
        let mut exact = Vec::new();
        for origin in apps.iter().flat_map(|app| &app.allowed_origins).flat_map(|one| written(one))
        {
            if !exact.contains(&origin) {
                exact.push(origin);
            }
        }
        Self { exact, any_localhost }
    }

    /// The origins of one app.
    pub fn of(&self, app: &App) -> Vec<OriginId> {
        let own = app.allowed_origins.iter().flat_map(|one| written(one));
        own.filter_map(|origin| self.find(&origin)).collect()
    }

    /// The origin of a request; `None` without one, or where any page of this machine may come.
    pub fn id(&self, headers: &HeaderMap) -> Option<OriginId> {
        self.find(&headers.get(header::ORIGIN)?.to_str().ok()?.to_lowercase())
    }

    fn find(&self, origin: &str) -> Option<OriginId> {
        let index = self.exact.iter().position(|one| one == origin)?;
        u16::try_from(index).ok().map(OriginId)
    }

    /// Whether a request may pass. A client that is no browser sends no `Origin`, or, as those of
    /// Python do, the address it asks; a page of that very address is ours.
    pub fn allow(&self, headers: &HeaderMap) -> bool {
        let Some(origin) = headers.get(header::ORIGIN) else { return true };
        self.allow_origin(origin) || is_own(origin, headers.get(header::HOST))
    }

    fn allow_origin(&self, origin: &HeaderValue) -> bool {
        let Ok(origin) = origin.to_str() else { return false };
        let origin = origin.to_lowercase();
        self.exact.contains(&origin) || (self.any_localhost && is_localhost(&origin))
    }
}

/// Whether an origin is the very host that was asked.
fn is_own(origin: &HeaderValue, host: Option<&HeaderValue>) -> bool {
    let (Ok(origin), Some(Ok(host))) = (origin.to_str(), host.map(HeaderValue::to_str)) else {
        return false;
    };
    let named = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    named.is_some_and(|named| named.eq_ignore_ascii_case(host))
}

/// As a browser writes it; without a scheme both http and https are meant.
fn written(origin: &str) -> Vec<String> {
    let origin = origin.trim_end_matches('/').to_lowercase();
    if origin.contains("://") {
        vec![origin]
    } else {
        vec![format!("https://{origin}"), format!("http://{origin}")]
    }
}

/// Whether no page has that origin: one is a scheme, a host and a port that is not the scheme's own.
pub fn is_nobodys(origin: &str) -> bool {
    let is_somebodys = |one: &String| {
        !one.starts_with("http")
            || !one.contains('*')
                && url::Url::parse(one).is_ok_and(|url| url.origin().ascii_serialization() == *one)
    };
    !written(origin).iter().any(is_somebodys)
}

pub fn is_localhost(origin: &str) -> bool {
    url::Url::parse(origin).is_ok_and(|url| {
        matches!(url.scheme(), "http" | "https")
            && match url.host() {
                Some(url::Host::Domain(name)) => {
                    name == "localhost" || name.ends_with(".localhost")
                }
                Some(url::Host::Ipv4(address)) => address.is_loopback(),
                Some(url::Host::Ipv6(address)) => address.is_loopback(),
                None => false,
            }
    })
}

/// CORS with credentials for those origins, on refusals too: a browser reports one without the
/// headers as something else. They may send whatever headers they ask for, as with Node's.
pub fn with_cors(router: Router, origins: Arc<Origins>) -> Router {
    let cors = CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(move |origin, _: &Parts| origins.allow_origin(origin)))
        .allow_credentials(true)
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
        .allow_headers(AllowHeaders::mirror_request());
    router.layer(cors).layer(from_fn(preflight))
}

/// An answer to a preflight has no content, as Node's.
async fn preflight(request: Request, next: Next) -> Response {
    let is_preflight = request.method() == Method::OPTIONS;
    let mut answer = next.run(request).await;
    if is_preflight && answer.status() == StatusCode::OK {
        *answer.status_mut() = StatusCode::NO_CONTENT;
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    #[test]
    fn an_origin_that_no_page_has_is_known() {
        for origin in [
            "*",
            "https://*.example",
            "https://app.example/path",
            "",
            "https://",
            "a b",
            "https://x:443",
        ] {
            assert!(is_nobodys(origin), "{origin}");
        }
        for origin in [
            "https://app.example",
            "https://App.example/",
            "campus.example",
            "http://127.0.0.1:5173",
            "[::1]:3000",
            "capacitor://localhost",
        ] {
            assert!(!is_nobodys(origin), "{origin}");
        }
    }

    #[test]
    fn origins_are_matched_exactly() {
        let app = App::from_environment(Secret::from("x"), "https://app.example, campus.example");
        let origins = Origins::new(&[app], false);
        let allow = |origin: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
            origins.allow(&headers)
        };
        assert!(origins.allow(&HeaderMap::new()));
        for good in ["https://app.example", "http://campus.example", "https://campus.example"] {
            assert!(allow(good), "{good}");
        }
        for bad in [
            "http://app.example",
            "https://app.example.evil.example",
            "https://evil-app.example",
            "https://app.example:8443",
            "null",
            "http://localhost:5173",
        ] {
            assert!(!allow(bad), "{bad}");
        }
        for (origin, host, is_allowed) in [
            ("http://school.example:3001", "School.example:3001", true),
            ("https://school.example", "school.example", true),
            ("https://school.example", "school.example:3001", false),
            ("https://evil.example", "school.example", false),
            ("school.example", "school.example", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
            headers.insert(header::HOST, HeaderValue::from_static(host));
            assert_eq!(origins.allow(&headers), is_allowed, "{origin} at {host}");
        }
        assert!(
            Origins::new(&[], true).allow_origin(&HeaderValue::from_static("http://localhost:1"))
        );
        assert!(
            !Origins::new(&[], true)
                .allow_origin(&HeaderValue::from_static("http://localhost.evil.example"))
        );
    }
}
