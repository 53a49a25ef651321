//! The edge: our own accept loop, and everything between a client's bytes and the engine.
//!
//! The engine gets a wrapped stream and a request with nothing but its query: the headers of a
//! handshake would otherwise be kept for as long as the connection lives.

pub mod accept;
pub mod address;
pub mod eio3;
pub mod engine;
pub mod forward;
pub mod nodes;
pub mod outlet;
mod polling;
mod proxy_protocol;
pub mod stream;
pub mod threshold;
pub mod tls;
pub mod upgrade;

use std::{borrow::Cow, fmt, net::IpAddr, sync::Arc};

use axum::{
    body::{Body, HttpBody as _},
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header,
        request,
    },
    response::IntoResponse as _,
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use engineioxide::service::NotFoundService;
use hyper::upgrade::Parts;
use hyper_util::rt::TokioIo;
use socketioxide::{service::SocketIoService, socket::Sid};
use tokio::{
    io::{AsyncRead, AsyncWrite, duplex},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;
use tokio_util::task::TaskTracker;
use tungstenite::handshake::derive_accept_key;

use self::{
    eio3::{Bridge, Dialect},
    engine::Engine,
    forward::Forwarder,
    nodes::Whose,
    outlet::{SharedTcp, Tcp},
    stream::{Opening, Pong, Stream},
    threshold::Greeting,
};
use crate::{
    connection::{Connection, Connections},
    http::origin::Origins,
    proxy::headers::{is_websocket, upgrade as upgrade_hop},
    socketio::Adapter,
    strangers::{Overrun, Waiting},
};

/// The Socket.IO path: polling, WebSocket and the upgrade from one to the other.
#[derive(Clone)]
pub struct Edge<E = SocketIoService<NotFoundService, Adapter>> {
    engine: E,
    connections: Arc<Connections>,
    origins: Arc<Origins>,
    greeting: Greeting,
    tasks: TaskTracker,
    /// Whether clients of Engine.IO 3 are let in.
    allow_eio3: bool,
    /// Set in a cluster.
    forwarder: Option<Arc<Forwarder>>,
}

/// A refusal in the shape of Node's engine.
#[derive(Clone, Copy)]
pub enum EngineError {
    UnknownTransport,
    UnknownSession,
    BadMethod,
    BadRequest,
    Forbidden,
    UnsupportedProtocol,
    Overrun,
    TooLarge,
    /// The node that holds the session cannot be asked.
    OwnerAway,
}

impl From<Overrun> for EngineError {
    fn from(_: Overrun) -> Self {
        Self::Overrun
    }
}

impl EngineError {
    fn response(self) -> Response<Body> {
        let (status, code, message) = match self {
            Self::UnknownTransport => (StatusCode::BAD_REQUEST, 0, "Transport unknown"),
            Self::UnknownSession => (StatusCode::BAD_REQUEST, 1, "Session ID unknown"),
            Self::BadMethod => (StatusCode::BAD_REQUEST, 2, "Bad handshake method"),
            Self::BadRequest => (StatusCode::BAD_REQUEST, 3, "Bad request"),
            Self::Forbidden => (StatusCode::FORBIDDEN, 4, "Forbidden"),
            Self::UnsupportedProtocol => {
                (StatusCode::BAD_REQUEST, 5, "Unsupported protocol version")
            }
            Self::Overrun => {
                let wait = [(header::RETRY_AFTER, "5")];
                return (StatusCode::TOO_MANY_REQUESTS, wait, "Too many handshakes")
                    .into_response();
            }
            Self::TooLarge => return StatusCode::PAYLOAD_TOO_LARGE.into_response(),
            Self::OwnerAway => {
                return (StatusCode::BAD_GATEWAY, "The session's node is away").into_response();
            }
        };
        (status, axum::Json(serde_json::json!({ "code": code, "message": message })))
            .into_response()
    }
}

/// What the query of an engine request says; of a name that is there twice the first.
#[derive(Default)]
struct Query<'a> {
    transport: Option<Cow<'a, str>>,
    protocol: Option<Cow<'a, str>>,
    sid: Option<Cow<'a, str>>,
}

impl<'a> Query<'a> {
    fn parse(query: &'a str) -> Self {
        let mut parsed = Self::default();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            let place = match &*name {
                "transport" => &mut parsed.transport,
                "EIO" => &mut parsed.protocol,
                "sid" => &mut parsed.sid,
                _ => continue,
            };
            place.get_or_insert(value);
        }
        parsed.sid = parsed.sid.filter(|sid| !sid.is_empty());
        parsed
    }
}

impl<E: Engine> Edge<E> {
    pub fn new(
        engine: E,
        connections: Arc<Connections>,
        origins: Arc<Origins>,
        greeting: Greeting,
        tasks: TaskTracker,
    ) -> Self {
        Self { engine, connections, origins, greeting, tasks, allow_eio3: false, forwarder: None }
    }

    /// Lets clients of Engine.IO 3 in, or not.
    #[must_use]
    pub fn with_eio3(self, allow_eio3: bool) -> Self {
        Self { allow_eio3, ..self }
    }

    /// One of several: sessions of other nodes are theirs.
    #[must_use]
    pub fn in_cluster(self, forwarder: Option<Arc<Forwarder>>) -> Self {
        Self { forwarder, ..self }
    }

    /// Answers one request to the Socket.IO path.
    pub async fn handle(self, request: Request<Body>) -> Response<Body> {
        self.route(request).await.unwrap_or_else(EngineError::response)
    }

    async fn route(self, mut request: Request<Body>) -> Result<Response<Body>, EngineError> {
        if !self.origins.allow(request.headers()) {
            return Err(EngineError::Forbidden);
        }
        let uri = request.uri().clone();
        let said = uri.query().unwrap_or_default();
        let query = Query::parse(said);
        let transport = query.transport.as_deref().unwrap_or_default();
        if !matches!(transport, "polling" | "websocket") {
            return Err(EngineError::UnknownTransport);
        }
        let protocol = query.protocol.as_deref().unwrap_or_default();
        let is_eio3 = match protocol {
            "4" => false,
            "3" if self.allow_eio3 => true,
            _ => return Err(EngineError::UnsupportedProtocol),
        };
        let sid = match (query.sid.as_deref(), &self.forwarder) {
            (Some(id), Some(forwarder)) => match forwarder.nodes.whose(id) {
                Whose::Theirs(tag, sid) => {
                    // Its owner might end the way there before it has told us.
                    if request.body().size_hint().lower() > self.greeting.max_payload as u64 {
                        return Err(EngineError::TooLarge);
                    }
                    let id = format!("{tag}.{sid}");
                    let mut target = target::<E>(protocol, transport, id);
                    if is_eio3 && eio3::wants_base64(said) {
                        target.push_str("&b64=1");
                    }
                    return forwarder.pass(request, transport, tag, &target).await;
                }
                Whose::Ours(sid) => Some(sid),
            },
            (sid, _) => sid,
        };
        let connection = match sid {
            Some(sid) if threshold::is_of_websocket(sid) => return Err(EngineError::BadRequest),
            Some(sid) => Some(
                sid.parse::<Sid>()
                    .ok()
                    .and_then(|sid| self.connections.get(sid))
                    .filter(|connection| !connection.is_killed())
                    .ok_or(EngineError::UnknownSession)?,
            ),
            None if request.method() != Method::GET => return Err(EngineError::BadMethod),
            None => None,
        };
        // A session goes on as it began.
        let dialect = match &connection {
            Some(connection) => {
                let began = connection.polling().and_then(|polling| polling.eio3.as_ref());
                began.map(|session| session.dialect.on_transport(said))
            }
            None => is_eio3.then(|| Dialect::new(said, E::IS_SOCKETIO)),
        };
        if dialect.is_some() != is_eio3 {
            return Err(EngineError::BadRequest);
        }
        // The engine knows of one version, and not that there are other nodes.
        *request.uri_mut() = if let Some(sid) = sid {
            of_session::<E>(transport, sid).ok_or(EngineError::UnknownSession)?
        } else {
            let plain = format!("{}?EIO=4&transport={transport}", E::PATH);
            plain.parse().map_err(|_| EngineError::BadRequest)?
        };
        match transport {
            "websocket" => self.websocket(request, connection, dialect),
            _ => self.polling(request, connection, dialect).await,
        }
    }

    fn websocket(
        self,
        mut request: Request<Body>,
        connection: Option<Arc<Connection>>,
        dialect: Option<Dialect>,
    ) -> Result<Response<Body>, EngineError> {
        let key = request
            .headers()
            .get(header::SEC_WEBSOCKET_KEY)
            .filter(|key| {
                request.method() == Method::GET
                    && is_websocket(request.headers())
                    && is_sound(key, request.headers())
            })
            .cloned()
            .ok_or(EngineError::BadRequest)?;
        let protocol = subprotocol(request.headers());
        let (connection, newcomer) = if let Some(connection) = connection {
            (connection, None)
        } else {
            let ip = address::client(request.extensions());
            let waiting = self.connections.line_up(ip)?;
            let origin = self.origins.id(request.headers());
            let connection = Connection::new(bearer(request.headers()), None).on_page(origin);
            (Arc::new(connection), Some(Newcomer { ip, waiting }))
        };
        let upgrade = hyper::upgrade::on(&mut request);
        let minimal = minimal(&request.into_parts().0, &connection, ());
        let tasks = self.tasks.clone();
        // Ends with the upgrade: the engine runs the connection in tasks of its own.
        tasks.spawn(async move {
            let Ok(upgraded) = upgrade.await else { return };
            let link = Link { edge: self, connection, minimal, newcomer, dialect };
            // Each in its own type, and its own place in memory: a plain connection is not to pay for
            // the other's buffers.
            match upgraded.downcast::<TokioIo<TcpStream>>() {
                Ok(Parts { io, read_buf, .. }) => {
                    let stream = io.into_inner();
                    accept::tune(&stream, accept::USER_TIMEOUT);
                    let stream = SharedTcp::new(stream);
                    let tcp = stream.write.clone();
                    Box::pin(link.carry(stream, copied(&read_buf), Some(tcp))).await;
                }
                Err(upgraded) => {
                    let Ok(Parts { io, read_buf, .. }) =
                        upgraded.downcast::<TokioIo<TlsStream<TcpStream>>>()
                    else {
                        return;
                    };
                    let stream = io.into_inner();
                    accept::tune(stream.get_ref().0, accept::USER_TIMEOUT);
                    Box::pin(link.carry(stream, copied(&read_buf), None)).await;
                }
            }
        });
        let accept = derive_accept_key(key.as_bytes());
        let mut response = Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header(header::SEC_WEBSOCKET_ACCEPT, accept)
            .body(Body::empty())
            .map_err(|_| EngineError::BadRequest)?;
        upgrade_hop(response.headers_mut());
        if let Some(protocol) = protocol {
            response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
        }
        Ok(response)
    }
}

/// Whether a handshake is of a version that we speak, and its key one (RFC 6455, 4.2.1).
fn is_sound(key: &HeaderValue, headers: &HeaderMap) -> bool {
    let version = headers.get(header::SEC_WEBSOCKET_VERSION).map(HeaderValue::as_bytes);
    // What Node takes: 8 is 13 under the name of a draft.
    matches!(version, Some(b"13" | b"8"))
        && BASE64.decode(key.as_bytes()).is_ok_and(|key| key.len() == 16)
}

/// Somebody who may have to wait for a turn: as an open WebSocket, which costs less than half of a
/// request that waits for its answer (`scripts/abuse silent`).
struct Newcomer {
    ip: IpAddr,
    waiting: Option<Waiting>,
}

/// A WebSocket on its way to the engine.
struct Link<E> {
    edge: Edge<E>,
    connection: Arc<Connection>,
    minimal: Request<()>,
    /// Set when it begins a connection; otherwise it is to take over from polling.
    newcomer: Option<Newcomer>,
    /// Set when its client speaks Engine.IO 3.
    dialect: Option<Dialect>,
}

impl<E: Engine> Link<E> {
    /// When the client has said something, or made up its mind; past the engine on `tcp`, if there
    /// is one.
    async fn carry<T>(self, mut stream: T, read: Bytes, tcp: Option<Tcp>)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Self { edge, connection, minimal, newcomer, dialect } = self;
        let Edge { engine, connections, greeting, tasks, .. } = edge;
        let let_out = || {
            // What goes past the engine is not translated.
            if let Some(tcp) = tcp.filter(|_| dialect.is_none()) {
                connections.let_out(&connection, tcp);
            }
        };
        let carry = |client, read, opening| {
            let (connection, connections) = (connection.clone(), connections.clone());
            let Some(dialect) = dialect.clone() else {
                let stream = Stream::new(client, read, opening, connection, connections);
                engine.carry(stream, minimal);
                return;
            };
            let (side, other) = duplex(eio3::PIPE);
            let max_payload = greeting.max_payload;
            let bridge = Bridge { client, read, engine: side, dialect, max_payload };
            let stream = Stream::new(other, Bytes::new(), opening, connection.clone(), connections);
            engine.carry(stream, minimal);
            tasks.spawn(async move { bridge.carry(&connection).await });
        };
        let Some(Newcomer { ip, waiting }) = newcomer else {
            let ask = || polling::poll(&engine, connection.sid()?);
            Box::pin(upgrade::upgrade(stream, read, &connection, ask, let_out, carry)).await;
            return;
        };
        let turn = connections.turn(waiting);
        let Some(read) = threshold::wait(&mut stream, read, turn).await else { return };
        connections.begin(ip, &connection);
        if dialect.is_some() {
            // Its client is told that it is connected before it says anything.
            carry(stream, read, Opening::Fresh(Pong::Edge));
        } else if let Some((read, pong)) = greeting.greet(&mut stream, read, &connection).await {
            let_out();
            carry(stream, read, Opening::Greeted(pong));
        }
    }
}

/// What is asked for of a session.
fn target<E: Engine>(protocol: &str, transport: &str, sid: impl fmt::Display) -> String {
    format!("{}?EIO={protocol}&transport={transport}&sid={sid}", E::PATH)
}

/// Where the engine answers for a session.
fn of_session<E: Engine>(transport: &str, sid: impl fmt::Display) -> Option<Uri> {
    target::<E>("4", transport, sid).parse().ok()
}

/// A request with nothing but method, query and the connection it belongs to.
fn minimal<B>(head: &request::Parts, connection: &Arc<Connection>, body: B) -> Request<B> {
    let mut minimal = Request::new(body);
    *minimal.method_mut() = head.method.clone();
    // Copied: the parsed one is a slice of the buffer that the request was read into, 8 KB that the
    // engine would keep for as long as the connection lives.
    if let Ok(uri) = Uri::try_from(head.uri.to_string()) {
        *minimal.uri_mut() = uri;
    }
    minimal.extensions_mut().insert(connection.clone());
    minimal
}

/// What was read past a request, without the buffer of 8 KB that it is a slice of.
fn copied(read: &Bytes) -> Bytes {
    Bytes::copy_from_slice(read)
}

/// The first of the protocols that a client offers, as Node's takes it: a browser that is answered
/// with none of them gives up.
fn subprotocol(headers: &HeaderMap) -> Option<HeaderValue> {
    let offered = headers.get(header::SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?;
    let first = offered.split(',').next()?.trim();
    // Names of headers are tokens, too.
    first.parse::<HeaderName>().ok()?;
    HeaderValue::from_str(first).ok()
}

fn bearer(headers: &HeaderMap) -> Option<Box<str>> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().into())
}
