//! Long polling through the engine: packets are fed at the pace the inbox takes them, and replies
//! are metered and renamed as on a WebSocket.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header, request::Parts},
    response::IntoResponse as _,
};
use bytes::Bytes;
use http_body_util::Full;
use socketioxide::socket::Sid;
use tokio::{sync::MutexGuard, time::timeout};

use super::{
    Edge, EngineError, address, bearer,
    eio3::{self, Dialect, Said, Session},
    engine::Engine,
    minimal, of_session,
    upgrade::Polling,
};
use crate::connection::{Closing, Connection, Connections};

/// Between the packets of one body.
pub const SEPARATOR: u8 = 0x1e;
pub const NOOP: &[u8] = b"6";
pub const PING: &[u8] = b"2";
pub const PONG: &[u8] = b"3";
const CLOSE: &[u8] = b"1";
const CONNECT: &[u8] = b"40";
const OK: &[u8] = b"ok";
/// A body that takes longer to arrive is not waited for.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Packets handed to the engine before the inbox is looked at again.
const CHUNK: usize = 64;
/// CONNECTs of a client that has not heard of any of them: ours have one for each namespace they
/// use, which are fewer than ten.
const MAX_CONNECTS: usize = 64;
/// And the bytes of the namespaces in them.
const MAX_CONNECT_BYTES: usize = 64 * 1024;

/// The engine's answer, on its way.
pub type Asked = Pin<Box<dyn Future<Output = Result<Bytes, EngineError>> + Send>>;

/// What a client asked to be connected to since a poll of its was answered last. To a namespace
/// there is not the engine itself says no, by that namespace's name, and nobody counts what waits
/// of that.
#[derive(Debug, Default)]
pub struct Connects {
    count: AtomicUsize,
    bytes: AtomicUsize,
}

impl Connects {
    /// Counts those in some packets in; false when there are too many.
    fn admit(&self, packets: &[u8]) -> bool {
        let mut count = 0;
        let mut bytes = 0;
        for packet in packets.split(|byte| *byte == SEPARATOR) {
            let Some(target) = packet.strip_prefix(CONNECT) else { continue };
            count += 1;
            if target.starts_with(b"/") {
                bytes += memchr::memchr(b',', target).unwrap_or(target.len());
            }
        }
        self.count.fetch_add(count, Ordering::Relaxed) + count <= MAX_CONNECTS
            && self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= MAX_CONNECT_BYTES
    }

    /// A poll was answered.
    fn forget(&self) {
        self.count.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
    }
}

impl<E: Engine> Edge<E> {
    pub(super) async fn polling(
        self,
        request: Request<Body>,
        connection: Option<Arc<Connection>>,
        dialect: Option<Dialect>,
    ) -> Result<Response<Body>, EngineError> {
        let (head, body) = request.into_parts();
        let Some(connection) = connection else { return self.open(&head, dialect).await };
        // One that began as a WebSocket, or has become one, does not poll.
        let polling = connection.polling().ok_or(EngineError::BadRequest)?;
        if polling.is_upgraded() {
            return Err(EngineError::BadRequest);
        }
        if head.method == Method::DELETE && self.is_asked_by_node(&head.headers) {
            polling.recall();
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
        let answer = match head.method {
            Method::GET => match &polling.eio3 {
                None => self.poll(&head, &connection, polling).await.map(answer),
                Some(session) => self.poll_eio3(&connection, polling, session).await,
            },
            Method::POST => self.post(&head, body, &connection, polling).await.map(answer),
            _ => Err(EngineError::BadRequest),
        };
        // One that was killed is removed when the engine has been told, too.
        let is_unknown = matches!(answer, Err(EngineError::UnknownSession));
        if let Some(sid) = connection.sid().filter(|_| is_unknown && !connection.is_killed()) {
            self.connections.remove(sid);
        }
        answer
    }

    async fn open(
        &self,
        head: &Parts,
        dialect: Option<Dialect>,
    ) -> Result<Response<Body>, EngineError> {
        let ip = address::client(&head.extensions);
        let origin = self.origins.id(&head.headers);
        let polling = Some(Polling::new(dialect.clone()));
        let connection = Arc::new(Connection::new(bearer(&head.headers), polling).on_page(origin));
        let waiting = self.connections.line_up(ip)?;
        self.connections.turn(waiting).await?;
        self.connections.begin(ip, &connection);
        let body = self.ask(minimal(head, &connection, Full::default())).await?;
        let sid = opened(&body).ok_or(EngineError::BadRequest)?;
        self.connections.insert(sid, &connection);
        self.take_first_ping(sid).await?;
        let body = self.tagged(sid, body);
        let Some(dialect) = dialect else { return Ok(self.signed(answer(body))) };
        if let Some(connect) = dialect.connects() {
            self.say(sid, connect.into()).await?;
        }
        self.tasks.spawn(self.clone().poll_for(connection, sid));
        Ok(self.signed(told(eio3::opening(&body))))
    }

    /// The answer to a new client names the node that holds its session, for a balancer to keep in
    /// mind.
    fn signed(&self, mut answer: Response<Body>) -> Response<Body> {
        if let Some(forwarder) = &self.forwarder {
            answer.headers_mut().extend(forwarder.nodes.signature());
        }
        answer
    }

    /// An open packet as the client gets it: in a cluster its session's id says where it is held.
    fn tagged(&self, sid: Sid, body: Bytes) -> Bytes {
        let Some(forwarder) = &self.forwarder else { return body };
        let (plain, tagged) = (sid.to_string(), forwarder.nodes.tagged(sid));
        String::from_utf8_lossy(&body).replacen(&plain, &tagged, 1).into()
    }

    fn is_asked_by_node(&self, headers: &HeaderMap) -> bool {
        self.forwarder.as_ref().is_some_and(|forwarder| forwarder.nodes.vouch_for(headers))
    }

    /// The published engine pings at once; the protocol has the first ping after one interval.
    async fn take_first_ping(&self, sid: Sid) -> Result<(), EngineError> {
        let first = poll(&self.engine, sid).ok_or(EngineError::BadRequest)?;
        // Nothing else can wait: nobody has been told of the session yet.
        if first.await? != PING {
            return Err(EngineError::BadRequest);
        }
        self.say(sid, Bytes::from_static(PONG)).await
    }

    /// Tells the engine something in the name of a client.
    async fn say(&self, sid: Sid, body: Bytes) -> Result<(), EngineError> {
        let uri = of_session::<E>("polling", sid).ok_or(EngineError::BadRequest)?;
        let post = Request::post(uri).body(Full::new(body));
        self.ask(post.map_err(|_| EngineError::BadRequest)?).await.map(drop)
    }

    async fn poll(
        &self,
        head: &Parts,
        connection: &Arc<Connection>,
        polling: &Polling,
    ) -> Result<Bytes, EngineError> {
        let Ok(slot) = polling.asked.try_lock() else {
            // A second poll beside the first: the engine ends the session.
            return self.ask(minimal(head, connection, Full::default())).await;
        };
        let mut wait = Wait::begin(&self.connections, connection, slot);
        let asked = wait
            .slot
            .get_or_insert_with(|| Box::pin(self.ask(minimal(head, connection, Full::default()))));
        let answered = tokio::select! {
            biased;
            answered = asked => Some(answered),
            () = polling.is_called_away() => None,
            () = polling.is_recalled() => None,
        };
        wait.is_left = true;
        let Some(answered) = answered else {
            drop(wait);
            // One that is over just now is not to be held by what is left here.
            if connection.sid().is_none_or(|sid| self.connections.get(sid).is_none()) {
                polling.let_go();
            }
            return Ok(Bytes::from_static(NOOP));
        };
        *wait.slot = None;
        drop(wait);
        let body = answered?;
        if connection.is_killed() {
            return Err(EngineError::UnknownSession);
        }
        polling.connects.forget();
        connection.count_written(body.len());
        Ok(renamed(connection, body))
    }

    /// Polls the engine for a client of Engine.IO 3 until it is gone or has a WebSocket: the
    /// engine's pings are not to wait for the client's polls.
    async fn poll_for(self, connection: Arc<Connection>, sid: Sid) {
        let Some(polling) = connection.polling() else { return };
        let Some(session) = &polling.eio3 else { return };
        loop {
            let mut slot = polling.asked.lock().await;
            if polling.is_upgraded() {
                return;
            }
            let Some(poll) = slot.take().or_else(|| poll(&self.engine, sid)) else { break };
            let asked = slot.insert(poll);
            let answered = tokio::select! {
                biased;
                answered = asked => answered,
                () = polling.has_upgraded() => return,
                () = connection.is_over() => break,
            };
            *slot = None;
            let Ok(body) = answered else { break };
            // Before anybody else has the slot: who takes over takes what waits, too.
            let is_asked = session.hear(&renamed(&connection, body));
            drop(slot);
            if is_asked && self.say(sid, Bytes::from_static(PONG)).await.is_err() {
                break;
            }
        }
        session.end();
        self.connections.remove(sid);
    }

    async fn poll_eio3(
        &self,
        connection: &Connection,
        polling: &Polling,
        session: &Session,
    ) -> Result<Response<Body>, EngineError> {
        let Some(turn) = session.turn() else {
            self.connections.kill(connection, Closing::Overloaded);
            return Err(EngineError::BadRequest);
        };
        let mut wait = Wait::begin(&self.connections, connection, turn);
        let said = loop {
            match session.say() {
                Said::Something(said) => break Ok(said),
                Said::Nothing => {}
                Said::NothingMore => break Err(EngineError::UnknownSession),
            }
            tokio::select! {
                () = session.more.notified() => {}
                () = polling.is_called_away() => break Ok(eio3::noop()),
                () = polling.is_recalled() => break Ok(eio3::noop()),
                () = connection.is_over() => break Err(EngineError::UnknownSession),
            }
        };
        wait.is_left = true;
        let said = said?;
        polling.connects.forget();
        connection.count_written(said.body().len());
        Ok(told(said))
    }

    async fn post(
        &self,
        head: &Parts,
        body: Body,
        connection: &Arc<Connection>,
        polling: &Polling,
    ) -> Result<Bytes, EngineError> {
        let is_binary = head
            .headers
            .get(header::CONTENT_TYPE)
            .is_some_and(|of| *of == "application/octet-stream");
        // Binary packets come as text, in base64.
        if is_binary && polling.eio3.is_none() {
            return Err(EngineError::BadRequest);
        }
        if connection.is_abandoned() {
            self.connections.kill(connection, Closing::SlowConsumer);
            return Err(EngineError::UnknownSession);
        }
        // A client has one POST open; more would be as many bodies in memory.
        let Some(_posting) = connection.begin_post() else {
            self.connections.kill(connection, Closing::Overloaded);
            return Err(EngineError::BadRequest);
        };
        let received = timeout(BODY_TIMEOUT, axum::body::to_bytes(body, self.greeting.max_payload));
        let received = tokio::select! {
            biased;
            received = received => received,
            // Nobody waits for the rest of it.
            () = connection.is_over() => return Err(EngineError::UnknownSession),
        };
        let body = match received {
            Ok(Ok(body)) => body,
            Ok(Err(_)) => return Err(EngineError::TooLarge),
            Err(_) => {
                self.connections.kill(connection, Closing::Overloaded);
                return Err(EngineError::BadRequest);
            }
        };
        let body = match &polling.eio3 {
            None => body,
            Some(session) => {
                let max_payload = self.greeting.max_payload;
                let Some(body) = session.translate(&body, is_binary, max_payload) else {
                    return Ok(Bytes::from_static(OK));
                };
                body
            }
        };
        let mut last = Bytes::from_static(OK);
        for (index, chunk) in chunks(&body).into_iter().enumerate() {
            if index > 0 {
                // The engine takes a whole body without letting others have a turn.
                tokio::task::yield_now().await;
            }
            connection.readable().await;
            if connection.is_killed() {
                return Err(EngineError::UnknownSession);
            }
            if E::IS_SOCKETIO && !polling.connects.admit(&chunk) {
                self.connections.kill(connection, Closing::Overloaded);
                return Err(EngineError::BadRequest);
            }
            let mut part = minimal(head, connection, Full::new(chunk));
            part.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
            last = self.ask(part).await.inspect_err(|_| self.forget(connection, polling))?;
        }
        // The engine tells of the end of sockets, and this session may have none.
        if body.split(|byte| *byte == SEPARATOR).any(|packet| packet == CLOSE) {
            self.forget(connection, polling);
        }
        Ok(last)
    }

    /// The engine has ended the session, or is about to, unless a WebSocket has taken over.
    fn forget(&self, connection: &Connection, polling: &Polling) {
        if let Some(sid) = connection.sid().filter(|_| !polling.is_upgraded()) {
            self.connections.remove(sid);
        }
    }

    /// Closes a polling session from our side.
    pub async fn close(&self, sid: Sid) {
        if let Some(uri) = of_session::<E>("polling", sid)
            && let Ok(close) = Request::post(uri).body(Full::new(Bytes::from_static(b"1")))
        {
            // A session that is gone already is what was wanted.
            let _ = self.ask(close).await;
        }
        self.connections.remove(sid);
    }

    fn ask(
        &self,
        request: Request<Full<Bytes>>,
    ) -> impl Future<Output = Result<Bytes, EngineError>> + Send + 'static {
        ask(&self.engine, request)
    }
}

/// A poll of the edge's own.
pub fn poll<E: Engine>(engine: &E, sid: Sid) -> Option<Asked> {
    let poll = Request::get(of_session::<E>("polling", sid)?).body(Full::default()).ok()?;
    Some(Box::pin(ask(engine, poll)))
}

fn ask<E: Engine>(
    engine: &E,
    request: Request<Full<Bytes>>,
) -> impl Future<Output = Result<Bytes, EngineError>> + Send + 'static {
    let asked = engine.ask(request);
    async move {
        let (status, body) = asked.await.ok_or(EngineError::BadRequest)?;
        if !status.is_success() {
            // The engine's own words carry its codes as text; ours are Node's.
            let is_unknown = memchr::memmem::find(&body, b"Session ID unknown").is_some();
            return Err(if is_unknown {
                EngineError::UnknownSession
            } else {
                EngineError::BadRequest
            });
        }
        Ok(body)
    }
}

/// A poll that waits. Dropped before it is left, the client has broken it off: that is how a
/// client on polling leaves, and the session ends with it.
struct Wait<'a, T: Default> {
    connections: &'a Connections,
    connection: &'a Connection,
    slot: MutexGuard<'a, T>,
    is_left: bool,
}

impl<'a, T: Default> Wait<'a, T> {
    fn begin(
        connections: &'a Connections,
        connection: &'a Connection,
        slot: MutexGuard<'a, T>,
    ) -> Self {
        connection.poll_begun();
        Self { connections, connection, slot, is_left: false }
    }
}

impl<T: Default> Drop for Wait<'_, T> {
    fn drop(&mut self) {
        self.connection.poll_ended();
        if !self.is_left {
            // The engine is not to go on waiting for it.
            *self.slot = T::default();
            self.connections.kill(self.connection, Closing::Left);
        }
    }
}

fn answer(body: Bytes) -> Response<Body> {
    let mut response = Response::new(body);
    let text = HeaderValue::from_static("text/plain; charset=UTF-8");
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    told(response)
}

/// What nobody is to keep.
fn told(response: Response<Bytes>) -> Response<Body> {
    let mut response = response.map(Body::from);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The session id of an open packet, `0{"sid":"…",…}`.
fn opened(body: &[u8]) -> Option<Sid> {
    #[derive(serde::Deserialize)]
    struct Open {
        sid: String,
    }
    serde_json::from_slice::<Open>(body.strip_prefix(b"0")?).ok()?.sid.parse().ok()
}

/// At most [`CHUNK`] packets each.
fn chunks(body: &Bytes) -> Vec<Bytes> {
    let mut cuts: Vec<usize> = memchr::memchr_iter(SEPARATOR, body)
        .enumerate()
        .filter_map(|(packets, at)| ((packets + 1) % CHUNK == 0).then_some(at))
        .collect();
    cuts.push(body.len());
    let mut from = 0;
    cuts.into_iter()
        .map(|to| {
            let chunk = body.slice(from..to);
            from = (to + 1).min(body.len());
            chunk
        })
        .collect()
}

/// The packets with CONNECT replies renamed.
pub fn renamed(connection: &Connection, body: Bytes) -> Bytes {
    if !connection.has_renames() {
        return body;
    }
    let packets: Vec<Bytes> = body
        .split(|byte| *byte == SEPARATOR)
        .map(|packet| {
            let this = connection.take_rename(|rename| (*rename.from == *packet).then_some(()));
            this.map_or_else(|| body.slice_ref(packet), |(rename, ())| rename.to.into())
        })
        .collect();
    packets.join(&SEPARATOR).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_cut_between_packets() {
        let body = Bytes::from(vec![b"42[\"a\"]".as_slice(); 130].join(&SEPARATOR));
        let parts = chunks(&body);
        assert_eq!(parts.len(), 3);
        assert_eq!(parts.join(&SEPARATOR), body);
        assert_eq!(chunks(&Bytes::new()).len(), 1);
    }

    #[test]
    fn a_connect_reply_carries_the_public_id() {
        let connection = Connection::new(None, Some(Polling::default()));
        let sid = Sid::new();
        connection.rename("/chat", sid, "abcdefghijklmnopqrst", None);
        let body = format!("2\u{1e}40/chat,{{\"sid\":\"{sid}\"}}\u{1e}42[\"x\",{{}}]");
        assert_eq!(
            renamed(&connection, body.into()),
            "2\u{1e}40/chat,{\"sid\":\"abcdefghijklmnopqrst\"}\u{1e}42[\"x\",{}]"
        );
        assert!(!connection.has_renames());
    }
}
