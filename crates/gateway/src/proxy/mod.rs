//! Everything Carillon does not serve goes to the school's own backend, so that both share one
//! origin: frontends keep one URL, and browsers see no cross-origin request.
//!
//! A request goes on as it came: method, target, headers, body, byte for byte and as it arrives;
//! only what HTTP says ends at each hop ends here. The target is the configured one and nothing
//! else: no part of a request can name another.

mod body;
pub mod headers;

use std::{
    error::Error as _,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use axum::{
    body::{Body, HttpBody as _},
    http::{
        HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header,
        request::Parts,
        uri::{Authority, Scheme},
    },
    response::IntoResponse as _,
};
use carillon_domain::Code;
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::{client::legacy::Error as ClientError, rt::TokioIo};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, copy, split},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::body::{Passing, Progress};
use crate::{
    config,
    edge::address::ClientAddress,
    http::{client::Client, problem::Problem},
    metrics::Metrics,
};

/// What shows that a request has been here before. `Via` would say so too, but with it in a request
/// nginx, for one, no longer compresses the answer.
const CDN_LOOP: &str = "cdn-loop";
/// When one side of a tunnel has ended, the other may finish what it was saying.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Failures of so long are one line in the log.
const BURST: Duration = Duration::from_secs(30);

/// The way to the school's backend.
#[derive(Clone)]
pub struct Proxy(Arc<Shared>);

struct Shared {
    scheme: Scheme,
    authority: Authority,
    client: Client,
    timeout: Duration,
    idle: Duration,
    /// This process, among all that may be on a request's way.
    mark: String,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
    stop: CancellationToken,
    warned: Mutex<Option<Instant>>,
}

/// Why a request was not answered by the backend.
#[derive(Debug)]
enum Failure {
    /// Not a path: `http://other.example/`, `*`.
    Target,
    Connect,
    Hosts,
    Loop,
    Unreachable(ClientError),
    Broken(ClientError),
    Slow,
    /// The client stopped sending.
    Stalled,
}

impl Failure {
    const fn outcome(&self) -> &'static str {
        match self {
            Self::Target | Self::Connect | Self::Hosts => "refused",
            Self::Loop => "loop",
            Self::Unreachable(_) => "unreachable",
            Self::Broken(_) => "broken",
            Self::Slow => "timeout",
            Self::Stalled => "stalled",
        }
    }

    fn problem(&self) -> Problem {
        let unavailable = |status, detail: &str| Problem::new(status, Code::Unavailable, detail);
        let invalid = |status, detail: &str| Problem::new(status, Code::Invalid, detail);
        match self {
            Self::Target => invalid(StatusCode::BAD_REQUEST, "the request's target is not a path"),
            Self::Connect => invalid(StatusCode::METHOD_NOT_ALLOWED, "this is no open proxy"),
            Self::Hosts => invalid(StatusCode::BAD_REQUEST, "more than one Host"),
            Self::Stalled => invalid(StatusCode::REQUEST_TIMEOUT, "the request did not go on"),
            Self::Loop => {
                unavailable(StatusCode::LOOP_DETECTED, "proxy.upstream leads back to this server")
            }
            Self::Unreachable(_) => {
                unavailable(StatusCode::BAD_GATEWAY, "the backend cannot be reached").retryable()
            }
            Self::Broken(_) => {
                unavailable(StatusCode::BAD_GATEWAY, "the backend ended without an answer")
                    .retryable()
            }
            Self::Slow => {
                unavailable(StatusCode::GATEWAY_TIMEOUT, "the backend does not answer").retryable()
            }
        }
    }
}

impl Proxy {
    /// `None` where no backend is configured. What runs on after its answer, a tunnel or an event
    /// stream, ends with `stop`.
    pub fn new(
        config: &config::Proxy,
        metrics: Arc<Metrics>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> anyhow::Result<Option<Self>> {
        let Some(upstream) = &config.upstream else { return Ok(None) };
        let upstream: Uri = upstream.as_str().parse().context("proxy.upstream")?;
        let parts = upstream.into_parts();
        let shared = Shared {
            scheme: parts.scheme.context("proxy.upstream has no scheme")?,
            authority: parts.authority.context("proxy.upstream has no host")?,
            client: Client::new(config.connect_timeout.0)?,
            timeout: config.timeout.0,
            idle: config.idle.0,
            mark: format!("carillon-{}", uuid::Uuid::new_v4().simple()),
            metrics,
            tasks,
            stop,
            warned: Mutex::default(),
        };
        Ok(Some(Self(Arc::new(shared))))
    }

    /// Answers a request with the backend's answer.
    pub async fn pass(self, request: Request<Body>) -> Response<Body> {
        match self.ask(request).await {
            Ok(response) => {
                self.0.metrics.proxied("answered");
                response
            }
            Err(failure) => {
                self.0.metrics.proxied(failure.outcome());
                self.warn(&failure);
                failure.problem().into_response()
            }
        }
    }

    async fn ask(&self, mut request: Request<Body>) -> Result<Response<Body>, Failure> {
        let from_client =
            headers::is_websocket(request.headers()).then(|| hyper::upgrade::on(&mut request));
        let (mut head, body) = request.into_parts();
        self.check(&head)?;
        head.uri = self.target(&head.uri)?;
        head.version = Version::HTTP_11;
        let client = head.extensions.get::<ClientAddress>().copied();
        let client = client.expect("the accept loop says who asks");
        head.extensions.clear();
        let is_chunked = head.headers.contains_key(header::TRANSFER_ENCODING);
        headers::end_hop(&mut head.headers);
        headers::tell_client(&mut head.headers, &client);
        if is_chunked {
            // Two lengths are how requests are smuggled. And without this, what comes with a GET
            // would not be sent.
            head.headers.remove(header::CONTENT_LENGTH);
            head.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        if from_client.is_some() {
            headers::upgrade(&mut head.headers);
        }
        if let Ok(mark) = HeaderValue::from_str(&self.0.mark) {
            head.headers.append(CDN_LOOP, mark);
        }

        let mut response = self.send(head, body).await?;
        let is_switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let from_backend = is_switched.then(|| hyper::upgrade::on(&mut response));
        let (mut head, body) = response.into_parts();
        head.extensions.clear();
        head.version = Version::HTTP_11;
        headers::end_hop(&mut head.headers);
        if let (Some(from_client), Some(from_backend)) = (from_client, from_backend) {
            headers::upgrade(&mut head.headers);
            let stop = self.0.stop.clone().cancelled_owned();
            self.0.tasks.spawn(tunnel(from_client, from_backend, stop));
            return Ok(Response::from_parts(head, Body::empty()));
        }
        // Such a stream has no end to wait for; its client asks again by itself.
        let is_endless = headers::is_event_stream(&head.headers);
        let stop = is_endless.then(|| self.0.stop.clone());
        let body = Passing::new(body, self.0.idle).until(stop);
        Ok(Response::from_parts(head, Body::new(body)))
    }

    fn check(&self, head: &Parts) -> Result<(), Failure> {
        if head.method == Method::CONNECT {
            return Err(Failure::Connect);
        }
        if head.headers.get_all(header::HOST).iter().count() > 1 {
            return Err(Failure::Hosts);
        }
        let been = head.headers.get_all(CDN_LOOP).iter();
        let has_been_here = been
            .filter_map(|line| line.to_str().ok())
            .any(|line| line.split(',').any(|mark| mark.trim() == self.0.mark));
        if has_been_here { Err(Failure::Loop) } else { Ok(()) }
    }

    /// The same path and query at the backend.
    fn target(&self, asked: &Uri) -> Result<Uri, Failure> {
        let is_path = asked.scheme().is_none()
            && asked.authority().is_none()
            && asked.path().starts_with('/');
        let path = asked.path_and_query().filter(|_| is_path).ok_or(Failure::Target)?;
        Uri::builder()
            .scheme(self.0.scheme.clone())
            .authority(self.0.authority.clone())
            .path_and_query(path.clone())
            .build()
            .map_err(|_| Failure::Target)
    }

    async fn send(&self, head: Parts, body: Body) -> Result<Response<Incoming>, Failure> {
        // A backend may close a connection just when it is used again. What changes nothing may
        // then be asked once more.
        let again = (head.method.is_safe() && body.is_end_stream()).then(|| head.clone());
        let progress = Arc::new(Progress::default());
        let body = Passing::new(body, self.0.idle).watched(progress.clone());
        let first = self.0.client.send(Request::from_parts(head, Body::new(body)));
        let answered = async {
            match (first.await, again) {
                (Err(error), Some(head)) if !error.is_connect() => {
                    self.0.client.send(Request::from_parts(head, Body::empty())).await
                }
                (answer, _) => answer,
            }
        };
        tokio::select! {
            answer = answered => answer.map_err(|error| match error {
                _ if progress.has_stalled() => Failure::Stalled,
                error if error.is_connect() => Failure::Unreachable(error),
                error => Failure::Broken(error),
            }),
            () = progress.silent_for(self.0.timeout) => Err(Failure::Slow),
        }
    }

    /// One line for many failures. Neither path nor query: both may hold what is nobody's business.
    fn warn(&self, failure: &Failure) {
        let cause = match failure {
            Failure::Unreachable(error) | Failure::Broken(error) => {
                let cause = error.source().map(ToString::to_string);
                cause.unwrap_or_else(|| error.to_string())
            }
            Failure::Slow | Failure::Loop => String::new(),
            Failure::Target | Failure::Connect | Failure::Hosts | Failure::Stalled => return,
        };
        let now = Instant::now();
        let mut warned = self.0.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.is_none_or(|last| now.duration_since(last) > BURST) {
            let outcome = failure.outcome();
            tracing::warn!(outcome, cause, "a request could not be passed to proxy.upstream");
        }
        *warned = Some(now);
    }
}

/// Copies both ways until one side ends, or until `stop`.
pub async fn tunnel(
    from_client: OnUpgrade,
    from_backend: OnUpgrade,
    stop: impl Future<Output = ()>,
) {
    let (Ok(client), Ok(backend)) = tokio::join!(from_client, from_backend) else { return };
    let (mut from_client, mut to_client) = split(TokioIo::new(client));
    let (mut from_backend, mut to_backend) = split(TokioIo::new(backend));
    let there = pass_all(&mut from_client, &mut to_backend);
    let back = pass_all(&mut from_backend, &mut to_client);
    tokio::pin!(there, back);
    let either = async {
        tokio::select! {
            () = &mut there => { let _ = timeout(LAST_WORDS, back).await; }
            () = &mut back => { let _ = timeout(LAST_WORDS, there).await; }
        }
    };
    tokio::select! {
        () = either => {}
        () = stop => {}
    }
}

async fn pass_all(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) {
    // A side that breaks has ended.
    let _ = copy(from, to).await;
    let _ = to.shutdown().await;
}
