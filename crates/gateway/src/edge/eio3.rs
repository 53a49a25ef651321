//! Clients of Engine.IO 3 (`socket.io-client` 1.x and 2.x), where `server.allow_eio3` lets them in.
//!
//! The engine speaks version 4. What the older one does otherwise is put right here, packet by
//! packet: the client pings and the server answers; a polling body says how long each packet is; a
//! binary packet says that it is a message; the server connects `/` unasked; CONNECT has no
//! payload, and what it would carry is in a query.

use std::{
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

use axum::http::{HeaderValue, Response, header};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Map, Value};
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream},
    sync::{Notify, mpsc},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message,
        protocol::{Role, WebSocketConfig},
    },
};

use super::polling::{NOOP, PING, PONG, SEPARATOR};
use crate::connection::Connection;

/// What a query says about the connection rather than about the client.
const NOT_OF_THE_CLIENT: [&str; 6] = ["EIO", "b64", "j", "sid", "t", "transport"];
/// Bytes between the engine and a client on their way through.
pub const PIPE: usize = 16 * 1024;
/// Pings of a client that have not been answered yet; more are left unanswered.
const UNANSWERED: usize = 16;
/// Bytes of a ping that are said back; one with more of them is answered with none.
const SAID_BACK: usize = 125;
/// A body may grow so much on its way to the engine, by base64 and by what a CONNECT carries.
const GROWTH: usize = 2;
/// Between the length and the packet in a binary body.
const END_OF_LENGTH: u8 = 0xff;
/// What a binary packet begins with: its type, a message.
const MESSAGE: u8 = 4;

/// A packet in version 4: a text with its type in front, or the bytes of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    Text(String),
    Binary(Bytes),
}

/// How one client speaks.
#[derive(Clone, Debug)]
pub struct Dialect {
    /// The payload of a CONNECT by itself; nothing where Engine.IO is all there is.
    auth: Option<Map<String, Value>>,
    /// It wants binary packets as text.
    wants_base64: bool,
}

impl Dialect {
    /// By the query of its handshake.
    pub fn new(query: &str, is_socketio: bool) -> Self {
        Self { auth: is_socketio.then(|| auth(query)), wants_base64: wants_base64(query) }
    }

    /// On the transport that the same client asks for by this query. What it said of itself need not
    /// be said again.
    #[must_use]
    pub fn on_transport(&self, query: &str) -> Self {
        Self { auth: self.auth.clone(), wants_base64: wants_base64(query) }
    }

    /// The packet that connects `/`, as the engine wants it.
    pub fn connects(&self) -> Option<String> {
        self.auth.as_ref().map(|auth| format!("40{}", Value::from(auth.clone())))
    }

    /// What the engine is to hear of a packet.
    fn for_engine(&self, packet: Packet) -> Option<Packet> {
        let Packet::Text(text) = &packet else { return Some(packet) };
        let (Some(auth), Some(target)) = (&self.auth, text.strip_prefix("40")) else {
            return Some(packet);
        };
        let target = target.split(',').next().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        // The server has done that by itself.
        if matches!(path, "" | "/") {
            return None;
        }
        let mut auth = auth.clone();
        auth.extend(self::auth(query));
        Some(Packet::Text(format!("40{path},{}", Value::from(auth))))
    }

    /// What the client is to hear of a packet.
    fn for_client(&self, packet: Packet) -> Packet {
        let Packet::Text(text) = &packet else { return packet };
        if self.auth.is_none() || !(text.starts_with("40") || text.starts_with("44")) {
            return packet;
        }
        let Some((head, payload)) = text.find('{').map(|at| text.split_at(at)) else {
            return packet;
        };
        Packet::Text(if head.starts_with("40") {
            head.to_owned()
        } else {
            format!("{head}{}", reason(payload))
        })
    }
}

/// The reason of a refusal: of version 3 it is the error's data or message, and only what is no
/// namespace at all is told as now.
fn reason(payload: &str) -> String {
    let Ok(Value::Object(mut error)) = serde_json::from_str(payload) else {
        return payload.to_owned();
    };
    match (error.remove("data"), error.get("message")) {
        (Some(data), _) => data.to_string(),
        (None, Some(message)) if message != "Invalid namespace" => message.to_string(),
        _ => payload.to_owned(),
    }
}

fn pairs(query: &str) -> url::form_urlencoded::Parse<'_> {
    url::form_urlencoded::parse(query.as_bytes())
}

/// Whether a transport is to carry binary packets as text.
pub fn wants_base64(query: &str) -> bool {
    pairs(query).any(|(name, value)| name == "b64" && !matches!(&*value, "" | "0"))
}

/// What a client says of itself in a query.
fn auth(query: &str) -> Map<String, Value> {
    pairs(query)
        .filter(|(name, _)| !NOT_OF_THE_CLIENT.contains(&&**name))
        .map(|(name, value)| (name.into_owned(), value.into_owned().into()))
        .collect()
}

/// The engine's pings are answered while the client sends its own.
#[derive(Debug, Default)]
struct Heartbeat {
    has_pinged: bool,
    owes: bool,
}

impl Heartbeat {
    /// Whether the engine is to be answered now.
    fn client_pings(&mut self) -> bool {
        self.has_pinged = !self.owes;
        std::mem::take(&mut self.owes)
    }

    /// Whether the engine is to be answered now.
    fn engine_pings(&mut self) -> bool {
        self.owes = !self.has_pinged;
        std::mem::take(&mut self.has_pinged)
    }
}

/// What a session of version 3 has beside others while it polls.
#[derive(Debug)]
pub struct Session {
    pub dialect: Dialect,
    state: Mutex<State>,
    /// The one poll that a client may have open.
    turn: tokio::sync::Mutex<()>,
    /// Rung when there is something to say, or nothing more.
    pub more: Notify,
}

/// The answer to a poll.
pub enum Said {
    Something(Response<Bytes>),
    /// So far.
    Nothing,
    NothingMore,
}

#[derive(Debug, Default)]
struct State {
    heartbeat: Heartbeat,
    /// For the client's next poll: what the engine said, which is counted as on every transport, and
    /// answers to pings, which are few and short.
    waiting: Vec<Packet>,
    /// Of them, answers to the client's own pings.
    pongs: usize,
    has_ended: bool,
}

impl Session {
    pub fn new(dialect: Dialect) -> Self {
        let (state, turn, more) = Default::default();
        Self { dialect, state, turn, more }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held by a poll; `None` while there is another one.
    pub fn turn(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        self.turn.try_lock().ok()
    }

    /// Takes the engine's answer to a poll; true when the engine is to be answered a ping.
    pub fn hear(&self, body: &[u8]) -> bool {
        let mut state = self.state();
        let mut answers = false;
        for packet in body.split(|byte| *byte == SEPARATOR).filter(|packet| !packet.is_empty()) {
            if packet == PING {
                answers |= state.heartbeat.engine_pings();
            } else {
                state.waiting.push(self.dialect.for_client(taken(packet)));
            }
        }
        drop(state);
        self.more.notify_one();
        answers
    }

    /// The engine has nothing more for the client.
    pub fn end(&self) {
        self.state().has_ended = true;
        self.more.notify_one();
    }

    /// Takes what there is to say.
    pub fn say(&self) -> Said {
        let mut state = self.state();
        let waiting = std::mem::take(&mut state.waiting);
        state.pongs = 0;
        match state.has_ended {
            _ if !waiting.is_empty() => Said::Something(body(&waiting, self.dialect.wants_base64)),
            false => Said::Nothing,
            true => Said::NothingMore,
        }
    }

    /// A body for the engine in place of one of the client's; `None` when there is nothing in it
    /// for the engine. In place of what cannot be read, or grows without measure, it gets what is
    /// not a packet of any version, and ends the session.
    pub fn translate(&self, body: &[u8], is_binary: bool, max_payload: usize) -> Option<Bytes> {
        let not_a_packet = Some(Bytes::from_static(b"?"));
        let packets = if is_binary { binary_packets(body) } else { text_packets(body) };
        let Some(packets) = packets else { return not_a_packet };
        let mut left = max_payload.saturating_mul(GROWTH);
        let mut state = self.state();
        let mut said = Vec::new();
        for packet in packets {
            if let Some(pong) = pong(&packet) {
                if state.pongs < UNANSWERED {
                    state.pongs += 1;
                    state.waiting.push(pong);
                    self.more.notify_one();
                }
                if state.heartbeat.client_pings() {
                    said.push(PONG.to_vec());
                }
            } else if let Some(packet) = self.dialect.for_engine(packet).map(given) {
                // Every CONNECT carries the query of the handshake.
                let Some(rest) = left.checked_sub(packet.len()) else { return not_a_packet };
                left = rest;
                said.push(packet);
            }
        }
        (!said.is_empty()).then(|| said.join(&SEPARATOR).into())
    }
}

/// The answer to a client's ping, which is anything but a probe.
fn pong(packet: &Packet) -> Option<Packet> {
    match packet {
        Packet::Text(text) if text != "2probe" => {
            let said = Some(text.strip_prefix('2')?).filter(|said| said.len() <= SAID_BACK);
            Some(Packet::Text(format!("3{}", said.unwrap_or_default())))
        }
        _ => None,
    }
}

/// A packet of the engine's polling body.
fn taken(packet: &[u8]) -> Packet {
    match packet {
        // The engine encoded it.
        [b'b', encoded @ ..] => Packet::Binary(BASE64.decode(encoded).unwrap_or_default().into()),
        text => Packet::Text(String::from_utf8_lossy(text).into_owned()),
    }
}

/// A packet for the engine's polling body.
fn given(packet: Packet) -> Vec<u8> {
    match packet {
        Packet::Text(text) => text.into_bytes(),
        Packet::Binary(bytes) => format!("b{}", BASE64.encode(bytes)).into_bytes(),
    }
}

fn base64(bytes: &[u8]) -> String {
    format!("b4{}", BASE64.encode(bytes))
}

/// A text of the client's: it may be a binary packet.
fn text_packet(text: &str) -> Option<Packet> {
    match text.strip_prefix('b') {
        _ if text.is_empty() => None,
        Some(encoded) => {
            let bytes = BASE64.decode(encoded.strip_prefix('4')?).ok()?;
            Some(Packet::Binary(bytes.into()))
        }
        None => Some(Packet::Text(text.to_owned())),
    }
}

/// The packets of a text body, `<length>:<packet>` each; a length counts UTF-16 code units.
fn text_packets(body: &[u8]) -> Option<Vec<Packet>> {
    let mut rest = std::str::from_utf8(body).ok()?;
    let mut packets = Vec::new();
    while !rest.is_empty() {
        let (length, from) = rest.split_once(':')?;
        let mut left = length.parse::<usize>().ok()?;
        let mut chars = from.chars();
        while left > 0 {
            left = left.checked_sub(chars.next()?.len_utf16())?;
        }
        let end = from.len() - chars.as_str().len();
        packets.push(text_packet(&from[..end])?);
        rest = &from[end..];
    }
    Some(packets)
}

/// The packets of a binary body: `0` for a text or `1`, a byte for each digit of the length in
/// bytes, 255, and the packet.
fn binary_packets(body: &[u8]) -> Option<Vec<Packet>> {
    let mut rest = body;
    let mut packets = Vec::new();
    while let Some((kind, from)) = rest.split_first() {
        let digits =
            memchr::memchr(END_OF_LENGTH, from).filter(|digits| matches!(digits, 1..=10))?;
        let mut length = 0_usize;
        for digit in &from[..digits] {
            length = length.checked_mul(10)?.checked_add(usize::from(*digit))?;
        }
        let (packet, after) = from[digits + 1..].split_at_checked(length)?;
        packets.push(match kind {
            0 => text_packet(std::str::from_utf8(packet).ok()?)?,
            1 => Packet::Binary(Bytes::copy_from_slice(packet.strip_prefix(&[MESSAGE])?)),
            _ => return None,
        });
        rest = after;
    }
    Some(packets)
}

/// The answer to a poll: text, unless something in it is binary and the client takes that.
fn body(packets: &[Packet], wants_base64: bool) -> Response<Bytes> {
    let is_binary =
        !wants_base64 && packets.iter().any(|packet| matches!(packet, Packet::Binary(_)));
    let mut body = BytesMut::new();
    for packet in packets {
        match packet {
            Packet::Text(text) if is_binary => put_binary(&mut body, 0, &[text.as_bytes()]),
            Packet::Binary(bytes) if is_binary => put_binary(&mut body, 1, &[&[MESSAGE], bytes]),
            Packet::Text(text) => put_text(&mut body, text),
            Packet::Binary(bytes) => put_text(&mut body, &base64(bytes)),
        }
    }
    let mut response = Response::new(body.freeze());
    let content = if is_binary { "application/octet-stream" } else { "text/plain; charset=UTF-8" };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content));
    response
}

/// Packets of the engine's as the first body of a session.
pub fn opening(packet: &[u8]) -> Response<Bytes> {
    body(&[taken(packet)], true)
}

/// Nothing to say.
pub fn noop() -> Response<Bytes> {
    opening(NOOP)
}

fn put_text(body: &mut BytesMut, text: &str) {
    body.put_slice(format!("{}:", text.encode_utf16().count()).as_bytes());
    body.put_slice(text.as_bytes());
}

fn put_binary(body: &mut BytesMut, kind: u8, parts: &[&[u8]]) {
    body.put_u8(kind);
    let length: usize = parts.iter().map(|part| part.len()).sum();
    body.extend(length.to_string().bytes().map(|digit| digit - b'0'));
    body.put_u8(END_OF_LENGTH);
    for part in parts {
        body.put_slice(part);
    }
}

/// A packet of a client's WebSocket; `None` when it is none.
fn client_packet(message: Message) -> Option<Packet> {
    match message {
        Message::Text(text) => text_packet(&text),
        Message::Binary(bytes) => {
            (bytes.first() == Some(&MESSAGE)).then(|| Packet::Binary(bytes.slice(1..)))
        }
        _ => None,
    }
}

/// The same for the client.
fn client_message(packet: Packet, wants_base64: bool) -> Message {
    match packet {
        Packet::Text(text) => Message::text(text),
        Packet::Binary(bytes) if wants_base64 => Message::text(base64(&bytes)),
        Packet::Binary(bytes) => Message::binary([&[MESSAGE], &bytes[..]].concat()),
    }
}

fn engine_message(packet: Packet) -> Message {
    match packet {
        Packet::Text(text) => Message::text(text),
        Packet::Binary(bytes) => Message::binary(bytes),
    }
}

/// A WebSocket of a client, and what the engine takes for it.
pub struct Bridge<T> {
    pub client: T,
    /// What was read of the client's.
    pub read: Bytes,
    pub engine: DuplexStream,
    pub dialect: Dialect,
    pub max_payload: usize,
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Bridge<T> {
    /// Carries packets both ways until one side or `connection` is over.
    pub async fn carry(self, connection: &Connection) {
        let state = connection
            .polling()
            .and_then(|polling| polling.eio3.as_ref())
            .map(|session| std::mem::take(&mut *session.state()));
        let carried = async {
            // Whoever hears of it finds the other side closed.
            let _ = self.packets(state.unwrap_or_default()).await;
        };
        tokio::select! {
            () = carried => {}
            () = connection.is_over() => {}
        }
    }

    async fn packets(self, State { heartbeat, waiting, .. }: State) -> Result<(), Error> {
        let Self { client, read, engine, dialect, max_payload } = self;
        let limits = WebSocketConfig::default()
            .max_message_size(Some(max_payload))
            .max_frame_size(Some(max_payload));
        let client =
            WebSocketStream::from_partially_read(client, read.to_vec(), Role::Server, Some(limits));
        let engine = WebSocketStream::from_raw_socket(engine, Role::Client, None);
        let (mut to_client, mut from_client) = client.await.split();
        let (mut to_engine, mut from_engine) = engine.await.split();
        let heartbeat = Mutex::new(heartbeat);
        let beat = || heartbeat.lock().unwrap_or_else(PoisonError::into_inner);
        let (answer_client, mut client_answers) = mpsc::channel(UNANSWERED);
        let (answer_engine, mut engine_answers) = mpsc::channel(UNANSWERED);
        let base64 = dialect.wants_base64;

        let up = async {
            loop {
                let packet = tokio::select! {
                    Some(answer) = engine_answers.recv() => Some(answer),
                    said = from_client.next() => {
                        let Some(said) = said else { break };
                        let packet = match said? {
                            // Answered by the socket itself.
                            Message::Ping(_) | Message::Pong(_) => continue,
                            Message::Close(_) => break,
                            said => client_packet(said).ok_or(not_a_packet())?,
                        };
                        if let Some(pong) = pong(&packet) {
                            // One who floods is not answered more than it takes.
                            let _ = answer_client.try_send(pong);
                            beat().client_pings().then(|| Packet::Text("3".to_owned()))
                        } else {
                            dialect.for_engine(packet)
                        }
                    }
                };
                if let Some(packet) = packet {
                    to_engine.send(engine_message(packet)).await?;
                }
            }
            Ok::<_, Error>(())
        };
        let down = async {
            for packet in waiting {
                to_client.send(client_message(packet, base64)).await?;
            }
            loop {
                let packet = tokio::select! {
                    Some(answer) = client_answers.recv() => answer,
                    said = from_engine.next() => match said {
                        Some(Ok(Message::Text(text))) if text.as_bytes() == PING => {
                            if beat().engine_pings() {
                                let _ = answer_engine.try_send(Packet::Text("3".to_owned()));
                            }
                            continue;
                        }
                        Some(Ok(Message::Text(text))) => {
                            if let Some(connect) = dialect.connects().filter(|_| text.starts_with('0')) {
                                let _ = answer_engine.try_send(Packet::Text(connect));
                            }
                            dialect.for_client(Packet::Text(text.to_string()))
                        }
                        Some(Ok(Message::Binary(bytes))) => Packet::Binary(bytes),
                        Some(Ok(Message::Close(_)) | Err(_)) | None => {
                            return to_client.send(Message::Close(None)).await;
                        }
                        Some(Ok(_)) => continue,
                    },
                };
                to_client.send(client_message(packet, base64)).await?;
            }
        };
        tokio::select! {
            ended = up => ended,
            ended = down => ended,
        }
    }
}

fn not_a_packet() -> Error {
    Error::Io(io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packet() -> impl Strategy<Value = Packet> {
        let text = "4.{0,20}".prop_map(Packet::Text);
        let bytes = proptest::collection::vec(any::<u8>(), 0..300);
        prop_oneof![text, bytes.prop_map(|bytes| Packet::Binary(bytes.into()))]
    }

    proptest! {
        #[test]
        fn a_body_is_read_as_it_was_written(
            packets in proptest::collection::vec(packet(), 1..8),
            wants_base64: bool,
        ) {
            let written = body(&packets, wants_base64);
            let is_binary = written.headers()[header::CONTENT_TYPE] == "application/octet-stream";
            let read = if is_binary { binary_packets } else { text_packets };
            prop_assert_eq!(read(written.body()), Some(packets));
        }

        /// Whatever is changed in a body, it is read or refused.
        #[test]
        fn a_spoilt_body_does_no_harm(
            packets in proptest::collection::vec(packet(), 1..4),
            wants_base64: bool,
            at: prop::sample::Index,
            byte: u8,
            cut: prop::sample::Index,
        ) {
            let mut spoilt = body(&packets, wants_base64).body().to_vec();
            let at = at.index(spoilt.len());
            spoilt[at] = byte;
            spoilt.truncate(cut.index(spoilt.len() + 1));
            let _ = (text_packets(&spoilt), binary_packets(&spoilt));
        }
    }

    #[test]
    fn the_engine_is_answered_once_for_each_ping_while_the_client_pings() {
        let mut heartbeat = Heartbeat::default();
        assert!(!heartbeat.engine_pings(), "the client has yet to ping");
        assert!(heartbeat.client_pings());
        assert!(!heartbeat.client_pings() && !heartbeat.client_pings());
        assert!(heartbeat.engine_pings());
        assert!(!heartbeat.engine_pings(), "nothing since");
    }

    #[test]
    fn a_body_does_not_grow_without_measure() {
        let query = format!("EIO=3&transport=polling&token={}", "t".repeat(5_000));
        let session = Session::new(Dialect::new(&query, true));
        let connects = |count| "5:40/ab".repeat(count);
        for (count, is_taken) in [(10, true), (100_000, false)] {
            let said = session.translate(connects(count).as_bytes(), false, 1_000_000).unwrap();
            assert_eq!(said.starts_with(b"40/ab,{"), is_taken);
            assert!(said.len() <= 2_000_000);
        }
        // Base64 makes a third more of it.
        let binary = body(&[Packet::Binary(Bytes::from(vec![7; 990_000]))], false);
        let said = session.translate(binary.body(), true, 1_000_000).unwrap();
        assert_eq!(said.len(), 1_320_001);
    }

    #[test]
    fn what_a_ping_says_is_said_back_if_it_is_little() {
        for (said, answer) in [("2", Some("3")), ("2a", Some("3a")), ("2probe", None), ("4a", None)]
        {
            let answer = answer.map(|answer| Packet::Text(answer.to_owned()));
            assert_eq!(pong(&Packet::Text(said.to_owned())), answer);
        }
        let long = Packet::Text(format!("2{}", "a".repeat(126)));
        assert_eq!(pong(&long), Some(Packet::Text("3".to_owned())));
    }

    #[test]
    fn a_refusal_is_told_as_its_data_or_its_message() {
        let dialect = Dialect::new("EIO=3&transport=polling&token=t", true);
        assert_eq!(dialect.connects().as_deref(), Some(r#"40{"token":"t"}"#));
        for (said, heard) in [
            (r#"44{"message":"no"}"#, r#"44"no""#),
            (r#"44/x,{"message":"no","data":{"code":1}}"#, r#"44/x,{"code":1}"#),
            (r#"44/x,{"message":"Invalid namespace"}"#, r#"44/x,{"message":"Invalid namespace"}"#),
            (r#"40/x,{"sid":"abc","pid":"def"}"#, "40/x,"),
            (r#"42["sid",{}]"#, r#"42["sid",{}]"#),
        ] {
            let heard = Packet::Text(heard.to_owned());
            assert_eq!(dialect.for_client(Packet::Text(said.to_owned())), heard);
        }
    }
}
