//! What Node's `@socket.io/redis-adapter` 8 publishes and understands, byte for byte.
//!
//! Broadcasts are `MessagePack`, requests and answers JSON text where Node writes that. Both
//! encodings are read everywhere. What is not in these shapes is an error, and never more.

use std::{io::Cursor, time::Duration};

use bytes::Bytes;
use rmpv::{Value, ValueRef};
use serde::{Serialize, Serializer, ser::Error as _};

/// Deeper values are refused.
const MAX_DEPTH: usize = 64;
/// The packet type of an event.
const EVENT: u64 = 2;
/// Events of these names are of the library itself: clients take one that comes from outside for a
/// broken packet, and close the connection (socket.io-parser, `RESERVED_EVENTS`).
const RESERVED: [&str; 6] =
    ["connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"];
/// The extension of `MessagePack`'s own timestamps, and the one of notepack before version 3.
const TIMESTAMP: i8 = -1;
const OLD_DATE: i8 = 0;

/// Something that came from Redis and cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("not MessagePack")]
    MessagePack,
    #[error("not JSON")]
    Json,
    #[error("not the shape of a broadcast")]
    Broadcast,
    #[error("not the shape of a request")]
    Request,
    #[error("a request of an unknown type")]
    UnknownRequest,
    #[error("not the shape of a response")]
    Response,
}

/// The sockets that are in any of `rooms`, or all of them where it is empty, but in none of
/// `except`. A room of a socket's own id is that socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    pub rooms: Vec<String>,
    pub except: Vec<String>,
}

/// An event on its way to every member.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Broadcast {
    pub namespace: String,
    /// The event's name and its arguments.
    pub data: Vec<Value>,
    pub to: Selection,
    pub is_volatile: bool,
    /// What members of our own kind add for each other; others pass over it.
    pub note: Option<Value>,
}

/// The key of [`Broadcast::note`] among the options.
const NOTE: &str = "carillon";

impl Broadcast {
    /// The channel it is published on: a single room has its own.
    pub fn channel(&self, prefix: &str) -> String {
        match &self.to.rooms[..] {
            [room] => format!("{prefix}#{}#{room}#", self.namespace),
            _ => format!("{prefix}#{}#", self.namespace),
        }
    }

    /// As published by the member of that id.
    pub fn encode(&self, uid: &str) -> Vec<u8> {
        let volatile = ("volatile".into(), ValueRef::Boolean(true));
        let mut options = self.options(self.is_volatile.then_some(volatile));
        if let Some(note) = &self.note {
            options.push((NOTE.into(), note.as_ref()));
        }
        let whole = ValueRef::Array(vec![uid.into(), self.packet(), ValueRef::Map(options)]);
        let mut bytes = Vec::with_capacity(512);
        rmpv::encode::write_value_ref(&mut bytes, &whole).expect("memory takes everything");
        bytes
    }

    fn packet(&self) -> ValueRef<'_> {
        ValueRef::Map(vec![
            ("type".into(), EVENT.into()),
            ("data".into(), ValueRef::Array(self.data.iter().map(Value::as_ref).collect())),
            ("nsp".into(), self.namespace.as_str().into()),
        ])
    }

    fn options<'a>(
        &'a self,
        flag: Option<(ValueRef<'a>, ValueRef<'a>)>,
    ) -> Vec<(ValueRef<'a>, ValueRef<'a>)> {
        let names = |names: &'a [String]| {
            ValueRef::Array(names.iter().map(|name| name.as_str().into()).collect())
        };
        vec![
            ("rooms".into(), names(&self.to.rooms)),
            ("except".into(), names(&self.to.except)),
            ("flags".into(), ValueRef::Map(Vec::from_iter(flag))),
        ]
    }

    /// The sender's id and what it sent; `None` instead where it was sent by `own`. Packets of
    /// other types than events carry nothing for clients of ours, and are an error.
    pub fn decode(own: &str, payload: &[u8]) -> Result<Option<Self>, Malformed> {
        if is_from(own, payload) {
            return Ok(None);
        }
        let Value::Array(parts) = unpack(payload)? else { return Err(Malformed::Broadcast) };
        let mut parts = parts.into_iter();
        let (Some(uid), Some(packet), Some(options)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(Malformed::Broadcast);
        };
        if uid.as_str().ok_or(Malformed::Broadcast)? == own {
            return Ok(None);
        }
        Self::from_parts(packet, options).map(Some)
    }

    fn from_parts(mut packet: Value, mut options: Value) -> Result<Self, Malformed> {
        if !options.is_map() || get(&packet, "type").and_then(Value::as_u64) != Some(EVENT) {
            return Err(Malformed::Broadcast);
        }
        let Some(Value::Array(data)) = take(&mut packet, "data") else {
            return Err(Malformed::Broadcast);
        };
        let name = data.first().and_then(Value::as_str).ok_or(Malformed::Broadcast)?;
        if RESERVED.contains(&name) {
            return Err(Malformed::Broadcast);
        }
        let namespace = match get(&packet, "nsp") {
            None | Some(Value::Nil) => "/",
            Some(namespace) => namespace.as_str().ok_or(Malformed::Broadcast)?,
        };
        let flags = get(&options, "flags");
        Ok(Self {
            namespace: namespace.to_owned(),
            data,
            to: selection(&options).ok_or(Malformed::Broadcast)?,
            is_volatile: flags.and_then(|flags| get(flags, "volatile")).is_some_and(is_true),
            note: take(&mut options, NOTE),
        })
    }
}

/// What one member asks of all.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Who asks; `None` for an emitter that says nothing.
    pub uid: Option<String>,
    /// Set where an answer is wanted.
    pub id: Option<String>,
    pub ask: Ask,
}

/// The kinds of requests.
#[derive(Clone, Debug, PartialEq)]
pub enum Ask {
    /// The ids of the sockets in rooms: what members before version 8 ask.
    Sockets(Vec<String>),
    /// All rooms there are.
    AllRooms,
    Join(Selection, Vec<String>),
    Leave(Selection, Vec<String>),
    /// And whether the whole connection is to be closed.
    Disconnect(Selection, bool),
    Fetch(Selection),
    /// The name and the arguments of an event for the servers themselves.
    ServerSideEmit(Vec<Value>),
    /// An event that clients answer, within a time.
    Broadcast(Broadcast, Duration),
}

/// Node's default where a broadcast that wants answers names no time.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);

impl Ask {
    const fn number(&self) -> u64 {
        match self {
            Self::Sockets(_) => 0,
            Self::AllRooms => 1,
            Self::Join(..) => 2,
            Self::Leave(..) => 3,
            Self::Disconnect(..) => 4,
            Self::Fetch(_) => 5,
            Self::ServerSideEmit(_) => 6,
            Self::Broadcast(..) => 7,
        }
    }
}

impl Request {
    /// As Node writes it: text, but for a broadcast that wants answers.
    pub fn encode(&self) -> Vec<u8> {
        let mut fields = Vec::new();
        if let Some(uid) = &self.uid {
            fields.push(("uid", Value::from(uid.as_str())));
        }
        let id = self.id.as_deref().map(|id| ("requestId", Value::from(id)));
        let number = ("type", Value::from(self.ask.number()));
        let opts = |of: &Selection| {
            let rooms = [("rooms", strings(&of.rooms)), ("except", strings(&of.except))];
            ("opts", map(rooms))
        };
        match &self.ask {
            Ask::Sockets(rooms) => {
                fields.extend(id.into_iter().chain([number, ("rooms", strings(rooms))]));
            }
            Ask::AllRooms => fields.extend(id.into_iter().chain([number])),
            Ask::Join(of, rooms) | Ask::Leave(of, rooms) => {
                fields.extend([number, opts(of), ("rooms", strings(rooms))]);
            }
            Ask::Disconnect(of, close) => {
                fields.extend([number, opts(of), ("close", Value::from(*close))]);
            }
            Ask::Fetch(of) => fields.extend(id.into_iter().chain([number, opts(of)])),
            Ask::ServerSideEmit(data) => {
                fields.extend(id.into_iter().chain([number, ("data", Value::Array(data.clone()))]));
            }
            Ask::Broadcast(broadcast, timeout) => {
                let timeout = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
                let options = broadcast.options(Some(("timeout".into(), timeout.into())));
                fields.extend(id.into_iter().chain([
                    number,
                    ("packet", broadcast.packet().to_owned()),
                    ("opts", ValueRef::Map(options).to_owned()),
                ]));
                return pack(&map(fields));
            }
        }
        text(&map(fields))
    }

    pub fn decode(payload: &[u8]) -> Result<Self, Malformed> {
        let value = read(payload)?;
        let number = get(&value, "type").and_then(Value::as_u64).ok_or(Malformed::Request)?;
        let string = |key| get(&value, key).and_then(Value::as_str).map(str::to_owned);
        // Before version 8 one socket was named instead of a selection.
        let of = || match (get(&value, "opts"), string("sid")) {
            (Some(options), _) => selection(options),
            (None, Some(sid)) => Some(Selection { rooms: vec![sid], except: Vec::new() }),
            (None, None) => None,
        };
        let rooms = || match (get(&value, "rooms"), get(&value, "room")) {
            (Some(rooms), _) => names(rooms),
            (None, Some(room)) => Some(vec![name(room)]),
            (None, None) => None,
        };
        let ask = match number {
            0 => rooms().map(Ask::Sockets),
            1 => Some(Ask::AllRooms),
            2 => of().zip(rooms()).map(|(of, rooms)| Ask::Join(of, rooms)),
            3 => of().zip(rooms()).map(|(of, rooms)| Ask::Leave(of, rooms)),
            4 => of().map(|of| Ask::Disconnect(of, get(&value, "close").is_some_and(is_true))),
            5 => of().map(Ask::Fetch),
            6 => match get(&value, "data") {
                Some(Value::Array(data)) => Some(Ask::ServerSideEmit(data.clone())),
                _ => None,
            },
            7 => {
                let options = get(&value, "opts").ok_or(Malformed::Request)?;
                let timeout = get(options, "flags")
                    .and_then(|flags| get(flags, "timeout"))
                    .and_then(Value::as_u64);
                let timeout = timeout.map_or(ANSWERED_WITHIN, Duration::from_millis);
                let packet = get(&value, "packet").ok_or(Malformed::Request)?;
                let broadcast = Broadcast::from_parts(packet.clone(), options.clone())?;
                Some(Ask::Broadcast(broadcast, timeout))
            }
            _ => return Err(Malformed::UnknownRequest),
        };
        Ok(Self {
            uid: string("uid"),
            id: string("requestId"),
            ask: ask.ok_or(Malformed::Request)?,
        })
    }
}

/// What a member answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    pub id: String,
    pub answer: Answer,
}

/// The kinds of answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Ids, or details, of sockets.
    Sockets(Vec<Value>),
    Rooms(Vec<String>),
    /// To a join, leave or disconnect of members before version 8.
    Done,
    /// To a server-side emit.
    Value(Value),
    /// So many clients were asked.
    ClientCount(u64),
    /// What one of them said.
    ClientAnswer(Value),
}

impl Response {
    /// As Node writes it: text, but for a client's answer.
    pub fn encode(&self) -> Vec<u8> {
        let id = ("requestId", Value::from(self.id.as_str()));
        match &self.answer {
            Answer::Sockets(sockets) => {
                text(&map([id, ("sockets", Value::Array(sockets.clone()))]))
            }
            Answer::Rooms(rooms) => text(&map([id, ("rooms", strings(rooms))])),
            Answer::Done => text(&map([id])),
            Answer::Value(value) => {
                text(&map([("type", Value::from(6)), id, ("data", value.clone())]))
            }
            Answer::ClientCount(count) => {
                text(&map([("type", Value::from(8)), id, ("clientCount", Value::from(*count))]))
            }
            Answer::ClientAnswer(value) => {
                pack(&map([("type", Value::from(9)), id, ("packet", value.clone())]))
            }
        }
    }

    pub fn decode(payload: &[u8]) -> Result<Self, Malformed> {
        let value = read(payload)?;
        let id = get(&value, "requestId").and_then(Value::as_str).ok_or(Malformed::Response)?;
        let answer = match get(&value, "type").and_then(Value::as_u64) {
            Some(6) => Some(Answer::Value(get(&value, "data").cloned().unwrap_or(Value::Nil))),
            Some(8) => get(&value, "clientCount").and_then(Value::as_u64).map(Answer::ClientCount),
            Some(9) => {
                Some(Answer::ClientAnswer(get(&value, "packet").cloned().unwrap_or(Value::Nil)))
            }
            // The others have no type; fields tell them apart.
            _ => match (get(&value, "sockets"), get(&value, "rooms")) {
                (Some(Value::Array(sockets)), _) => Some(Answer::Sockets(sockets.clone())),
                (None, Some(rooms)) => names(rooms).map(Answer::Rooms),
                (None, None) => Some(Answer::Done),
                _ => None,
            },
        };
        Ok(Self { id: id.to_owned(), answer: answer.ok_or(Malformed::Response)? })
    }
}

/// Whether a broadcast begins as those of that member do: an array of three, and its id. Redis
/// sends everybody their own, which need not be read further.
fn is_from(own: &str, payload: &[u8]) -> bool {
    let rest = payload.strip_prefix(&[0x93]).and_then(|rest| rest.split_first());
    rest.is_some_and(|(length, rest)| {
        usize::from(length ^ 0xa0) == own.len() && rest.starts_with(own.as_bytes())
    })
}

/// Either encoding: text begins with a brace.
fn read(payload: &[u8]) -> Result<Value, Malformed> {
    match payload.first() {
        Some(b'{') => serde_json::from_slice(payload).map_err(|_| Malformed::Json),
        _ => unpack(payload),
    }
}

fn unpack(payload: &[u8]) -> Result<Value, Malformed> {
    let mut rest = Cursor::new(payload);
    let value = rmpv::decode::read_value_with_max_depth(&mut rest, MAX_DEPTH)
        .map_err(|_| Malformed::MessagePack)?;
    // Node ends its process on trailing bytes; here they are no message.
    let is_whole = usize::try_from(rest.position()) == Ok(payload.len());
    if is_whole { Ok(value) } else { Err(Malformed::MessagePack) }
}

fn pack(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    rmpv::encode::write_value(&mut bytes, value).expect("memory takes everything");
    bytes
}

/// As Node's `JSON.stringify`: a buffer is an object.
fn text(value: &Value) -> Vec<u8> {
    serde_json::to_vec(&Json { value, keep: &|bytes: &[u8]| Kept::Buffer(bytes.to_vec()) })
        .unwrap_or_default()
}

fn map<'a>(fields: impl IntoIterator<Item = (&'a str, Value)>) -> Value {
    Value::Map(fields.into_iter().map(|(key, value)| (Value::from(key), value)).collect())
}

fn get<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    let fields = value.as_map()?;
    fields.iter().find(|(name, _)| name.as_str() == Some(key)).map(|(_, value)| value)
}

/// The value of a key, by itself.
fn take(value: &mut Value, key: &str) -> Option<Value> {
    let Value::Map(fields) = value else { return None };
    let found = fields.iter().position(|(name, _)| name.as_str() == Some(key))?;
    Some(fields.swap_remove(found).1)
}

fn is_true(value: &Value) -> bool {
    value.as_bool() == Some(true)
}

fn strings(names: &[String]) -> Value {
    Value::Array(names.iter().map(|name| Value::from(name.as_str())).collect())
}

/// A room that nobody is in: no name may contain this.
const NOBODYS: &str = "\0";

/// Rooms may be numbers where an application names them so. Anything else, as the `undefined` of a
/// field that is not set, is a room as well, but nobody's: left out, a list of it would be empty,
/// and mean everybody.
fn name(value: &Value) -> String {
    key(value).unwrap_or_else(|| NOBODYS.to_owned())
}

/// A text, or a number as one.
fn key(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => text.as_str().map(str::to_owned),
        Value::Integer(number) => Some(number.to_string()),
        _ => None,
    }
}

fn names(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Nil => Some(Vec::new()),
        value => Some(value.as_array()?.iter().map(name).collect()),
    }
}

/// Missing lists are empty: emitters of others leave them out.
fn selection(options: &Value) -> Option<Selection> {
    let list = |key| get(options, key).map_or(Some(Vec::new()), names);
    Some(Selection { rooms: list("rooms")?, except: list("except")? })
}

/// A value as JSON; what to do with bytes is up to the caller.
struct Json<'a, F> {
    value: &'a Value,
    keep: &'a F,
}

/// What stands for bytes.
enum Kept {
    /// The placeholder of an attachment.
    Attachment(usize),
    /// Node's own text for a buffer.
    Buffer(Vec<u8>),
}

impl<F: Fn(&[u8]) -> Kept> Serialize for Json<'_, F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Placeholder {
            _placeholder: bool,
            num: usize,
        }
        #[derive(Serialize)]
        struct Buffer {
            r#type: &'static str,
            data: Vec<u8>,
        }
        let of = |value| Json { value, keep: self.keep };
        match self.value {
            Value::Nil => serializer.serialize_unit(),
            Value::Boolean(value) => serializer.serialize_bool(*value),
            Value::Integer(number) => match (number.as_u64(), number.as_i64()) {
                (Some(number), _) => serializer.serialize_u64(number),
                (None, number) => serializer.serialize_i64(number.unwrap_or_default()),
            },
            Value::F32(number) => float(f64::from(*number), serializer),
            Value::F64(number) => float(*number, serializer),
            Value::String(text) => match text.as_str() {
                Some(text) => serializer.serialize_str(text),
                None => serializer.serialize_str(&String::from_utf8_lossy(text.as_bytes())),
            },
            Value::Binary(bytes) => match (self.keep)(bytes) {
                Kept::Attachment(num) => {
                    Placeholder { _placeholder: true, num }.serialize(serializer)
                }
                Kept::Buffer(data) => Buffer { r#type: "Buffer", data }.serialize(serializer),
            },
            Value::Array(values) => serializer.collect_seq(values.iter().map(of)),
            Value::Map(fields) => {
                let key = |key: &Value| {
                    self::key(key).ok_or_else(|| S::Error::custom("a key that is no name"))
                };
                let fields: Result<Vec<_>, _> =
                    fields.iter().map(|(name, value)| Ok((key(name)?, of(value)))).collect();
                serializer.collect_map(fields?)
            }
            Value::Ext(kind, bytes) => match time(*kind, bytes) {
                Some(text) => serializer.serialize_str(&text),
                None => serializer.serialize_unit(),
            },
        }
    }
}

/// Whole numbers as JavaScript shows them; what is no number is `null`.
fn float<S: Serializer>(number: f64, serializer: S) -> Result<S::Ok, S::Error> {
    /// Beyond this not every whole number is a float.
    const WHOLE: f64 = 9_007_199_254_740_992.0;
    if number.fract() == 0.0 && number.abs() < WHOLE {
        #[expect(clippy::cast_possible_truncation, reason = "whole, and small enough")]
        return serializer.serialize_i64(number as i64);
    }
    serializer.serialize_f64(number)
}

/// A date, as JavaScript writes it into JSON; `None` for what else extensions hold.
fn time(kind: i8, bytes: &[u8]) -> Option<String> {
    let at = match (kind, bytes.len()) {
        (TIMESTAMP, 4) => {
            let seconds = u32::from_be_bytes(bytes.try_into().ok()?);
            jiff::Timestamp::new(seconds.into(), 0)
        }
        (TIMESTAMP, 8) => {
            let both = u64::from_be_bytes(bytes.try_into().ok()?);
            let seconds = i64::try_from(both & 0x3_ffff_ffff).ok()?;
            jiff::Timestamp::new(seconds, i32::try_from(both >> 34).ok()?)
        }
        (TIMESTAMP, 12) => {
            let (nanoseconds, seconds) = bytes.split_at(4);
            let nanoseconds = i32::from_be_bytes(nanoseconds.try_into().ok()?);
            jiff::Timestamp::new(i64::from_be_bytes(seconds.try_into().ok()?), nanoseconds)
        }
        (OLD_DATE, 8) => {
            jiff::Timestamp::from_millisecond(i64::from_be_bytes(bytes.try_into().ok()?))
        }
        _ => return None,
    };
    Some(format!("{:.3}", at.ok()?))
}

/// An event for clients: `["name",…]`, with what is binary in it beside.
pub fn for_clients(data: &[Value]) -> Option<(String, Vec<Bytes>)> {
    let attachments = std::cell::RefCell::new(Vec::new());
    let keep = |bytes: &[u8]| {
        let mut attachments = attachments.borrow_mut();
        attachments.push(Bytes::copy_from_slice(bytes));
        Kept::Attachment(attachments.len() - 1)
    };
    let mut text = Vec::with_capacity(128);
    let mut serializer = serde_json::Serializer::new(&mut text);
    serializer.collect_seq(data.iter().map(|value| Json { value, keep: &keep })).ok()?;
    Some((String::from_utf8(text).ok()?, attachments.into_inner()))
}

/// A value as clients get it: times are texts, and what else only Node's packer knows is nothing.
pub fn for_client(value: &Value) -> Value {
    match value {
        Value::Ext(kind, bytes) => time(*kind, bytes).map_or(Value::Nil, Value::from),
        Value::Array(values) => values.iter().map(for_client).collect::<Vec<_>>().into(),
        Value::Map(fields) => {
            let fields = fields.iter().map(|(name, value)| (name.clone(), for_client(value)));
            Value::Map(fields.collect())
        }
        plain => plain.clone(),
    }
}

/// A JSON text as the value that is published.
pub fn from_json(text: &str) -> Option<Value> {
    serde_json::from_str(text).ok()
}

/// As JSON, for whoever asked.
pub fn to_json(value: &Value) -> Option<serde_json::Value> {
    serde_json::from_slice(&text(value)).ok()
}

/// The text of that JSON.
pub fn to_text(value: &Value) -> Option<String> {
    String::from_utf8(text(value)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
            .collect()
    }

    fn list(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn broadcast(namespace: &str, data: Vec<Value>, rooms: &[&str]) -> Broadcast {
        Broadcast {
            namespace: namespace.into(),
            data,
            to: Selection { rooms: list(rooms), except: Vec::new() },
            ..Broadcast::default()
        }
    }

    /// Published by the Node packages themselves, with that id.
    #[test]
    fn broadcasts_are_nodes_byte_for_byte() {
        let binary = Value::Binary(vec![1, 2, 3]);
        for (broadcast, channel, payload) in [
            (
                broadcast("/", vec!["hello".into(), "world".into(), 1.into()], &[]),
                "socket.io#/#",
                "93a641624364456683a47479706502a46461746193a568656c6c6fa5776f726c6401a36e7370a12f83a5726f6f6d7390a665786365707490a5666c61677380",
            ),
            (
                broadcast("/", vec!["hello".into(), 1.5.into()], &["room1"]),
                "socket.io#/#room1#",
                "93a641624364456683a47479706502a46461746192a568656c6c6fcb3ff8000000000000a36e7370a12f83a5726f6f6d7391a5726f6f6d31a665786365707490a5666c61677380",
            ),
            (
                broadcast("/chat", vec!["bin".into(), binary], &[]),
                "socket.io#/chat#",
                "93a641624364456683a47479706502a46461746192a362696ec403010203a36e7370a52f6368617483a5726f6f6d7390a665786365707490a5666c61677380",
            ),
        ] {
            assert_eq!(broadcast.channel("socket.io"), channel);
            assert_eq!(broadcast.encode("AbCdEf"), hex(payload), "{broadcast:?}");
            assert_eq!(Broadcast::decode("own", &hex(payload)), Ok(Some(broadcast)));
            assert_eq!(Broadcast::decode("AbCdEf", &hex(payload)), Ok(None), "one's own");
            let longer = Broadcast::decode("AbCdE", &hex(payload)).unwrap();
            assert!(longer.is_some(), "an id that begins as one's own is another");
        }
    }

    #[test]
    fn what_others_send_is_read_with_all_its_liberties() {
        // Two rooms, an exception, flags that are not all known.
        let node = hex(
            "93a641624364456683a47479706502a46461746195a16dffc3c081a16b91a176a36e7370a12f83a5726f6f6d7392a161a162a665786365707491a163a5666c61677382a8766f6c6174696c65c3a8636f6d7072657373c2",
        );
        let read = Broadcast::decode("own", &node).unwrap().unwrap();
        let selection = Selection { rooms: list(&["a", "b"]), except: list(&["c"]) };
        assert_eq!((read.to, read.is_volatile), (selection, true));
        let (text, _) = for_clients(&read.data).unwrap();
        assert_eq!(text, r#"["m",-1,true,null,{"k":["v"]}]"#);
        // The emitter has its options in another order.
        for payload in [
            "93a7656d697474657283a47479706502a46461746193a568656c6c6fa5776f726c6401a36e7370a12f83a5726f6f6d7390a5666c61677380a665786365707490",
            "93a7656d697474657283a47479706502a46461746191a568656c6c6fa36e7370a12f83a5726f6f6d7391a5726f6f6d31a5666c61677380a665786365707490",
        ] {
            assert!(Broadcast::decode("own", &hex(payload)).unwrap().is_some());
        }
        // No `nsp`, no `except`, a room that is a number.
        let packet = map([("type", 2.into()), ("data", Value::Array(vec!["x".into()]))]);
        let options = map([("rooms", Value::Array(vec![42.into()]))]);
        let sparse = pack(&Value::Array(vec!["rust".into(), packet, options]));
        let read = Broadcast::decode("own", &sparse).unwrap().unwrap();
        assert_eq!((read.namespace.as_str(), read.to.rooms), ("/", list(&["42"])));
        for name in RESERVED {
            let packet = map([("type", 2.into()), ("data", Value::Array(vec![name.into()]))]);
            let sent = pack(&Value::Array(vec!["rust".into(), packet, map([])]));
            assert_eq!(Broadcast::decode("own", &sent).unwrap_err(), Malformed::Broadcast);
        }
    }

    #[test]
    fn requests_are_nodes_byte_for_byte() {
        let of = Selection { rooms: list(&["room1"]), except: Vec::new() };
        let by = |uid: Option<&str>, id: Option<&str>, ask| Request {
            uid: uid.map(str::to_owned),
            id: id.map(str::to_owned),
            ask,
        };
        for (request, payload) in [
            (
                by(Some("AbCdEf"), None, Ask::Join(of.clone(), list(&["room2"]))),
                r#"{"uid":"AbCdEf","type":2,"opts":{"rooms":["room1"],"except":[]},"rooms":["room2"]}"#,
            ),
            (
                by(Some("AbCdEf"), None, Ask::Leave(of.clone(), list(&["room2"]))),
                r#"{"uid":"AbCdEf","type":3,"opts":{"rooms":["room1"],"except":[]},"rooms":["room2"]}"#,
            ),
            (
                by(Some("AbCdEf"), None, Ask::Disconnect(of.clone(), true)),
                r#"{"uid":"AbCdEf","type":4,"opts":{"rooms":["room1"],"except":[]},"close":true}"#,
            ),
            (
                by(Some("AbCdEf"), None, Ask::ServerSideEmit(vec!["ev".into(), 1.into()])),
                r#"{"uid":"AbCdEf","type":6,"data":["ev",1]}"#,
            ),
            (
                by(
                    Some("P4p8Vf"),
                    Some("-eJ7OI"),
                    Ask::ServerSideEmit(vec!["sse-ack".into(), 7.into()]),
                ),
                r#"{"uid":"P4p8Vf","requestId":"-eJ7OI","type":6,"data":["sse-ack",7]}"#,
            ),
            (
                by(Some("P4p8Vf"), Some("RlneS0"), Ask::Fetch(of.clone())),
                r#"{"uid":"P4p8Vf","requestId":"RlneS0","type":5,"opts":{"rooms":["room1"],"except":[]}}"#,
            ),
            (
                by(Some("P4p8Vf"), Some("45FiQS"), Ask::AllRooms),
                r#"{"uid":"P4p8Vf","requestId":"45FiQS","type":1}"#,
            ),
            (
                by(None, None, Ask::Join(of, list(&["room9"]))),
                r#"{"type":2,"opts":{"rooms":["room1"],"except":[]},"rooms":["room9"]}"#,
            ),
        ] {
            assert_eq!(String::from_utf8(request.encode()).unwrap(), payload);
            assert_eq!(Request::decode(payload.as_bytes()), Ok(request));
        }
        let asked = by(
            Some("P4p8Vf"),
            Some("d0mQgR"),
            Ask::Broadcast(
                broadcast("/", vec!["q".into(), "x".into()], &[]),
                Duration::from_millis(800),
            ),
        );
        let payload = hex(
            "85a3756964a6503470385666a9726571756573744964a664306d516752a47479706507a67061636b657483a47479706502a46461746192a171a178a36e7370a12fa46f70747383a5726f6f6d7390a665786365707490a5666c61677381a774696d656f7574cd0320",
        );
        assert_eq!(asked.encode(), payload);
        assert_eq!(Request::decode(&payload), Ok(asked));
        // Before version 8.
        let old = br#"{"type":2,"requestId":"r","sid":"abc","room":"x"}"#;
        let Ask::Join(of, rooms) = Request::decode(old).unwrap().ask else { panic!("a join") };
        assert_eq!((of.rooms, rooms), (list(&["abc"]), list(&["x"])));
    }

    #[test]
    fn answers_are_nodes_byte_for_byte() {
        let of = |id: &str, answer| Response { id: id.into(), answer };
        for (response, payload) in [
            (
                of("RlneS0", Answer::Sockets(Vec::new())),
                &br#"{"requestId":"RlneS0","sockets":[]}"#[..],
            ),
            (
                of("45FiQS", Answer::Rooms(list(&["a", "b"]))),
                br#"{"requestId":"45FiQS","rooms":["a","b"]}"#,
            ),
            (of("r", Answer::Done), br#"{"requestId":"r"}"#),
            (
                of("-eJ7OI", Answer::Value(map([("pong", 7.into())]))),
                br#"{"type":6,"requestId":"-eJ7OI","data":{"pong":7}}"#,
            ),
            (
                of("E0mQgR", Answer::ClientCount(1)),
                br#"{"type":8,"requestId":"E0mQgR","clientCount":1}"#,
            ),
        ] {
            assert_eq!(response.encode(), payload);
            assert_eq!(Response::decode(payload), Ok(response));
        }
        let said = map([("ok", true.into()), ("x", "x".into())]);
        let answer = of("d0mQgR", Answer::ClientAnswer(said));
        let payload =
            hex("83a47479706509a9726571756573744964a664306d516752a67061636b657482a26f6bc3a178a178");
        assert_eq!(answer.encode(), payload);
        assert_eq!(Response::decode(&payload), Ok(answer));
    }

    #[test]
    fn values_become_what_a_browser_would_have_been_shown() {
        let values = vec![
            "all".into(),
            Value::F64(2.0),
            Value::F64(f64::NAN),
            Value::Binary(vec![9]),
            map([("at", Value::Ext(-1, hex("3b8b87c06553f100")))]),
            Value::Ext(0, vec![0]),
            Value::Binary(vec![8]),
            Value::Ext(0, 1_700_000_000_123_i64.to_be_bytes().to_vec()),
        ];
        let (text, attachments) = for_clients(&values).unwrap();
        assert_eq!(
            text,
            r#"["all",2,null,{"_placeholder":true,"num":0},{"at":"2023-11-14T22:13:20.249Z"},null,{"_placeholder":true,"num":1},"2023-11-14T22:13:20.123Z"]"#
        );
        assert_eq!(attachments, [&[9][..], &[8][..]]);
        assert_eq!(text_of(&Value::Binary(vec![1, 2])), r#"{"type":"Buffer","data":[1,2]}"#);
    }

    fn text_of(value: &Value) -> String {
        String::from_utf8(text(value)).unwrap()
    }

    /// Every cut, every byte changed, and shapes that are none.
    #[test]
    fn nothing_that_arrives_is_worse_than_an_error() {
        let whole = broadcast("/", vec!["hello".into(), map([("a", 1.into())])], &["room1"])
            .encode("AbCdEf");
        for end in 0..whole.len() {
            assert!(Broadcast::decode("own", &whole[..end]).is_err(), "cut at {end}");
        }
        for at in 0..whole.len() {
            for byte in 0..=255 {
                let mut changed = whole.clone();
                changed[at] = byte;
                if let Ok(Some(read)) = Broadcast::decode("own", &changed) {
                    for_clients(&read.data);
                }
                let _ = Request::decode(&changed);
                let _ = Response::decode(&changed);
            }
        }
        let trailing = [&whole[..], &[0xc0]].concat();
        assert_eq!(Broadcast::decode("own", &trailing), Err(Malformed::MessagePack));
        let deep = [vec![0x91; 10_000], vec![0xc0]].concat();
        assert_eq!(Broadcast::decode("own", &deep), Err(Malformed::MessagePack));
        let endless = [&[0xdd, 0xff, 0xff, 0xff, 0xff][..], &whole].concat();
        assert_eq!(Broadcast::decode("own", &endless), Err(Malformed::MessagePack));
        let deep = "[".repeat(100_000);
        assert!(Request::decode(format!("{{\"type\":6,\"data\":{deep}").as_bytes()).is_err());
        for (payload, error) in [
            (&b"{}"[..], Malformed::Request),
            (br#"{"type":5}"#, Malformed::Request),
            (br#"{"type":5,"opts":{"rooms":{}}}"#, Malformed::Request),
            (br#"{"type":77}"#, Malformed::UnknownRequest),
            (b"{", Malformed::Json),
            (b"", Malformed::MessagePack),
        ] {
            assert_eq!(Request::decode(payload), Err(error));
        }
        assert_eq!(Response::decode(b"{}"), Err(Malformed::Response));
    }
}
