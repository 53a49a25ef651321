//! Requests to the sessions of other nodes, passed on to them.
//!
//! A poll that is broken off is broken off at the owner, too: that is how a client on polling
//! leaves. The other way round a failure of the owner's is told as an HTTP error, on which stock
//! clients come back at once with a new session.

use std::{
    convert::Infallible,
    error::Error as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    body::Body,
    http::{
        HeaderMap, HeaderName, Method, Request, Response, StatusCode, Uri, header, request::Parts,
    },
};
use hyper::body::Incoming;
use hyper_util::client::legacy::Error as ClientError;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    EngineError, address,
    nodes::{HANDOVER, Nodes, Owner},
};
use crate::{http::client::Client, metrics::Metrics, proxy};

/// A node that is not reached by then is gone.
const CONNECT: Duration = Duration::from_secs(2);
/// Past the ping timeout an owner has answered every poll.
const MARGIN: Duration = Duration::from_secs(5);
/// The owner is asked again to let a poll go after so long.
const RECALL: Duration = Duration::from_millis(500);
/// Failures of so long are one line in the log.
const BURST: Duration = Duration::from_secs(30);

/// What goes with a request: nothing that only concerns the way to this node.
const OF_REQUEST: [HeaderName; 6] = [
    header::HOST,
    header::ORIGIN,
    header::CONTENT_TYPE,
    header::SEC_WEBSOCKET_KEY,
    header::SEC_WEBSOCKET_PROTOCOL,
    header::SEC_WEBSOCKET_VERSION,
];
/// What comes back with an answer; the rest of it is this node's affair.
const OF_ANSWER: [HeaderName; 4] = [
    header::CONTENT_TYPE,
    header::CACHE_CONTROL,
    header::SEC_WEBSOCKET_ACCEPT,
    header::SEC_WEBSOCKET_PROTOCOL,
];

/// The way to other nodes.
pub struct Forwarder {
    pub nodes: Arc<Nodes>,
    client: Client,
    patience: Duration,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
    /// This node is going away.
    stop: CancellationToken,
    tunnels: Arc<Tunnels>,
    warned: Mutex<Option<Instant>>,
}

/// Upgraded connections whose sessions other nodes hold.
#[derive(Default)]
struct Tunnels {
    open: AtomicUsize,
    /// When this node goes away, they end over so many milliseconds.
    ends_over_ms: AtomicU64,
}

/// One of them.
struct Tunnel(Arc<Tunnels>);

impl Tunnel {
    fn open(among: &Arc<Tunnels>) -> Self {
        among.open.fetch_add(1, Ordering::Relaxed);
        Self(among.clone())
    }

    /// Waits until it has its turn to end.
    async fn is_over(&self, stop: CancellationToken) {
        stop.cancelled().await;
        let mut random = [0; 8];
        let _ = getrandom::fill(&mut random);
        let over = self.0.ends_over_ms.load(Ordering::Acquire).max(1);
        sleep(Duration::from_millis(u64::from_le_bytes(random) % over)).await;
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why a request was not answered by the owner of its session.
enum Failure {
    Unknown,
    /// Who the owner is could not be looked up.
    Directory,
    Unreachable(ClientError),
    Broken(ClientError),
    Slow,
}

impl Failure {
    const fn outcome(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Directory => "directory",
            Self::Unreachable(_) => "unreachable",
            Self::Broken(_) => "broken",
            Self::Slow => "timeout",
        }
    }
}

impl From<&Failure> for EngineError {
    fn from(failure: &Failure) -> Self {
        match failure {
            Failure::Unknown => Self::UnknownSession,
            Failure::Directory | Failure::Unreachable(_) | Failure::Broken(_) | Failure::Slow => {
                Self::OwnerAway
            }
        }
    }
}

impl Forwarder {
    /// `silent` is how long a client may be, and with it a poll. What runs on ends with `stop`.
    pub fn new(
        nodes: Arc<Nodes>,
        silent: Duration,
        metrics: Arc<Metrics>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> anyhow::Result<Self> {
        let client = Client::new(CONNECT)?;
        let patience = silent + MARGIN;
        Ok(Self {
            nodes,
            client,
            patience,
            metrics,
            tasks,
            stop,
            tunnels: Arc::default(),
            warned: Mutex::default(),
        })
    }

    /// How many upgraded connections pass here on their way to another node.
    pub fn tunnels(&self) -> usize {
        self.tunnels.open.load(Ordering::Relaxed)
    }

    /// When this node goes away, they end over that time.
    pub fn end_over(&self, time: Duration) {
        let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.tunnels.ends_over_ms.store(ms, Ordering::Release);
    }

    /// Answers a request to a session of another node as its owner, whom `tag` names, does to
    /// `target`.
    pub async fn pass(
        &self,
        request: Request<Body>,
        transport: &str,
        tag: &str,
        target: &str,
    ) -> Result<Response<Body>, EngineError> {
        if !matches!(*request.method(), Method::GET | Method::POST) {
            return Err(EngineError::BadRequest);
        }
        let is_upgrade = transport == "websocket";
        if is_upgrade && !proxy::headers::is_websocket(request.headers()) {
            return Err(EngineError::BadRequest);
        }
        // Whoever passed it on was mistaken about us; it does not travel any further.
        let found = if request.headers().contains_key(HANDOVER) {
            Err(Failure::Unknown)
        } else {
            self.find(tag).await
        };
        let answer = match found {
            Ok(owner) if is_upgrade => self.tunnel(request, &owner, target).await,
            Ok(owner) => self.ask(request, &owner, target).await,
            Err(failure) => Err(failure),
        };
        self.metrics.forwarded(answer.as_ref().map_or_else(Failure::outcome, |_| "answered"));
        answer.map_err(|failure| {
            self.warn(&failure, tag);
            EngineError::from(&failure)
        })
    }

    async fn find(&self, tag: &str) -> Result<Arc<Owner>, Failure> {
        let found = self.nodes.find(tag).await.map_err(|_| Failure::Directory)?;
        found.ok_or(Failure::Unknown)
    }

    async fn ask(
        &self,
        request: Request<Body>,
        owner: &Owner,
        target: &str,
    ) -> Result<Response<Body>, Failure> {
        let (head, body) = request.into_parts();
        let is_poll = head.method == Method::GET;
        let body = if head.method == Method::POST { body } else { Body::empty() };
        let handed = hand_over(&head, body, owner, target).ok_or(Failure::Unknown)?;
        let answered = self.send(handed);
        let answer = if is_poll {
            tokio::select! {
                answer = answered => answer?,
                never = self.recall(&head, owner, target) => match never {},
            }
        } else {
            answered.await?
        };
        Ok(told(answer.map(Body::new)))
    }

    async fn tunnel(
        &self,
        mut request: Request<Body>,
        owner: &Owner,
        target: &str,
    ) -> Result<Response<Body>, Failure> {
        let from_client = hyper::upgrade::on(&mut request);
        let (head, _) = request.into_parts();
        let mut handed = hand_over(&head, Body::empty(), owner, target).ok_or(Failure::Unknown)?;
        proxy::headers::upgrade(handed.headers_mut());
        let mut answer = self.send(handed).await?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Ok(told(answer.map(Body::new)));
        }
        let from_owner = hyper::upgrade::on(&mut answer);
        let mut answer = told(answer.map(|_| Body::empty()));
        proxy::headers::upgrade(answer.headers_mut());
        let (tunnel, stop) = (Tunnel::open(&self.tunnels), self.stop.clone());
        self.tasks.spawn(async move {
            proxy::tunnel(from_client, from_owner, tunnel.is_over(stop)).await;
        });
        Ok(answer)
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, Failure> {
        match timeout(self.patience, self.client.send(request)).await {
            Ok(answer) => answer.map_err(|error| {
                if error.is_connect() {
                    Failure::Unreachable(error)
                } else {
                    Failure::Broken(error)
                }
            }),
            Err(_) => Err(Failure::Slow),
        }
    }

    /// When this node goes away, the owner is asked to answer the poll at once: the session goes on,
    /// and the client's next poll takes another way.
    async fn recall(&self, head: &Parts, owner: &Owner, target: &str) -> Infallible {
        self.stop.cancelled().await;
        loop {
            if let Some(mut recall) = hand_over(head, Body::empty(), owner, target) {
                *recall.method_mut() = Method::DELETE;
                // The poll itself says whether that has been of any use.
                let _ = timeout(CONNECT, self.client.send(recall)).await;
            }
            sleep(RECALL).await;
        }
    }

    /// One line for many failures.
    fn warn(&self, failure: &Failure, tag: &str) {
        let cause = match failure {
            Failure::Unreachable(error) | Failure::Broken(error) => {
                let cause = error.source().map(ToString::to_string);
                cause.unwrap_or_else(|| error.to_string())
            }
            Failure::Slow | Failure::Directory => String::new(),
            Failure::Unknown => return,
        };
        let now = Instant::now();
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.is_none_or(|last| now.duration_since(last) > BURST) {
            let outcome = failure.outcome();
            tracing::warn!(outcome, cause, node.tag = tag, "a request could not be passed on");
        }
        *warned = Some(now);
    }
}

/// The request as the owner is to get it.
fn hand_over(head: &Parts, body: Body, owner: &Owner, target: &str) -> Option<Request<Body>> {
    let client = address::of(&head.extensions);
    let mut request = Request::new(body);
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = Uri::builder()
        .scheme(owner.scheme.clone())
        .authority(owner.authority.clone())
        .path_and_query(target)
        .build()
        .ok()?;
    copy(&OF_REQUEST, &head.headers, request.headers_mut());
    request.headers_mut().insert(HANDOVER, owner.handover(client)?);
    Some(request)
}

/// The owner's answer as the client is to get it.
fn told(answer: Response<Body>) -> Response<Body> {
    let (head, body) = answer.into_parts();
    let mut told = Response::new(body);
    *told.status_mut() = head.status;
    copy(&OF_ANSWER, &head.headers, told.headers_mut());
    told
}

fn copy(names: &[HeaderName], from: &HeaderMap, to: &mut HeaderMap) {
    for name in names {
        if let Some(value) = from.get(name) {
            to.insert(name, value.clone());
        }
    }
}
