//! Our Socket.IO adapter: local delivery first, and one broadcast served to every namespace that
//! carries its event.
//!
//! [`Hub`] knows the adapters of all namespaces of this node. A broadcast is handed to it once,
//! with the namespaces it belongs to; it is encoded once per namespace, because the text names
//! the namespace. A [`Tap`] sees every broadcast that passes: what carries it to other nodes and
//! to clients on a plain WebSocket. It may also take frames itself, past the engine.

use std::{
    convert::Infallible,
    fmt,
    sync::{Arc, PoisonError, RwLock, Weak},
    time::Duration,
};

use bytes::Bytes;
use engineioxide::Str;
use socketioxide_core::{
    Sid, Value,
    adapter::{
        BroadcastFlags, BroadcastOptions, CoreAdapter, CoreLocalAdapter, DefinedAdapter, Room,
        SocketEmitter,
    },
    packet::Packet,
};

/// One event on its way to sockets.
#[derive(Clone, Debug)]
pub struct Broadcast {
    /// `["name",{…}]`
    pub event: Str,
    /// What is binary in it, in the order of its placeholders.
    pub attachments: Vec<Bytes>,
    /// The namespaces that carry it.
    pub paths: &'static [&'static str],
    /// Sockets in any of these rooms, each once.
    pub rooms: Vec<Room>,
    /// But not those in any of these.
    pub except: Vec<Room>,
}

/// Sees what passes the hub.
pub trait Tap: Send + Sync {
    /// A broadcast is about to be delivered to the sockets of this node.
    fn broadcast(&self, broadcast: &Broadcast);
    /// So many bytes were queued for a connection in the engine.
    fn queued(&self, connection: Sid, bytes: usize);
    /// Takes a whole WebSocket frame for each of these connections, or has it sent by the engine, in
    /// whichever way it keeps its place in the connection's order. Leaves those for which it can do
    /// neither.
    fn express(&self, connections: &mut Vec<Sid>, frame: &Bytes, by_engine: &mut dyn FnMut(Sid));
}

/// A WebSocket frame as a server sends it: one text, not masked.
pub fn text_frame(text: &str) -> Bytes {
    frame(text, "/", "")
}

/// The WebSocket frame of an event.
pub fn event_frame(path: &str, event: &str) -> Bytes {
    frame("42", path, event)
}

/// The frames of an event with binary in it: its text, and then each attachment.
fn binary_frames(path: &str, event: &str, attachments: &[Bytes]) -> Bytes {
    let mut frames = frame(&format!("45{}-", attachments.len()), path, event).to_vec();
    for attachment in attachments {
        frames.push(0x82);
        put_length(&mut frames, attachment.len());
        frames.extend_from_slice(attachment);
    }
    frames.into()
}

/// The frame that answers a client's event of that number.
pub fn ack_frame(path: &str, id: i64, reply: &str) -> Bytes {
    frame("43", path, &format!("{id}[{reply}]"))
}

fn frame(kind: &str, path: &str, rest: &str) -> Bytes {
    let (path, comma) = if path == "/" { ("", "") } else { (path, ",") };
    let length = kind.len() + path.len() + comma.len() + rest.len();
    let head = match length {
        0..=125 => 2,
        126..=0xffff => 4,
        _ => 10,
    };
    // Full to the last byte it becomes `Bytes` as it is.
    let mut frame = Vec::with_capacity(head + length);
    frame.push(0x81);
    put_length(&mut frame, length);
    for part in [kind, path, comma, rest] {
        frame.extend_from_slice(part.as_bytes());
    }
    frame.into()
}

/// RFC 6455, section 5.2.
fn put_length(frame: &mut Vec<u8>, length: usize) {
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ 0..=125), _) => frame.push(short),
        (_, Ok(medium)) => {
            frame.push(126);
            frame.extend(medium.to_be_bytes());
        }
        _ => {
            frame.push(127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
}

/// The adapters of this node's namespaces.
pub struct Hub<E: SocketEmitter> {
    views: RwLock<Vec<Weak<NodeAdapter<E>>>>,
    tap: Arc<dyn Tap>,
}

impl<E: SocketEmitter> fmt::Debug for Hub<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hub")
    }
}

impl<E: SocketEmitter> Hub<E> {
    pub fn new(tap: Arc<dyn Tap>) -> Arc<Self> {
        Arc::new(Self { views: RwLock::default(), tap })
    }

    /// Delivers to the sockets of this node, in every namespace the event belongs to.
    pub fn broadcast(&self, broadcast: &Broadcast) {
        self.tap.broadcast(broadcast);
        for view in self.views(|path| broadcast.paths.contains(&path)) {
            let mut options = BroadcastOptions::default();
            options.rooms.extend(broadcast.rooms.iter().cloned());
            options.except.extend(broadcast.except.iter().cloned());
            view.deliver(&broadcast.event, &broadcast.attachments, options);
        }
    }

    /// Delivers to one socket, through the engine whatever the connection is.
    pub fn send_by_engine(&self, path: &str, socket: Sid, event: &Str) {
        for view in self.views(|of| of == path) {
            view.by_engine(event, &[], BroadcastOptions::new(socket));
        }
    }

    /// The sockets of a namespace that are in any of some rooms and in none of others, each once.
    pub fn sockets(&self, path: &str, rooms: &[Room], except: &[Room]) -> Vec<Sid> {
        let mut options = BroadcastOptions::default();
        options.rooms.extend(rooms.iter().cloned());
        options.except.extend(except.iter().cloned());
        let views = self.views(|of| of == path);
        views.iter().flat_map(|view| view.local.sockets(options.clone())).collect()
    }

    /// The rooms of a namespace.
    pub fn rooms(&self, path: &str) -> Vec<Room> {
        let mut options = BroadcastOptions::default();
        options.add_flag(BroadcastFlags::Broadcast);
        let views = self.views(|of| of == path);
        views.iter().flat_map(|view| view.local.rooms(options.clone())).collect()
    }

    /// The connections that have a socket in the room, in any namespace.
    pub fn connections_in(&self, room: &Room) -> Vec<Sid> {
        let mut connections = Vec::new();
        for view in self.views(|_| true) {
            let mut options = BroadcastOptions::default();
            options.rooms.push(room.clone());
            connections.extend(view.local.sockets(options));
        }
        connections.sort_unstable();
        connections.dedup();
        connections
    }

    fn views(&self, is_wanted: impl Fn(&str) -> bool) -> Vec<Arc<NodeAdapter<E>>> {
        let views = self.views.read().unwrap_or_else(PoisonError::into_inner);
        views
            .iter()
            .filter_map(Weak::upgrade)
            .filter(|view| is_wanted(view.local.path().as_str()))
            .collect()
    }
}

/// The adapter of one namespace.
pub struct NodeAdapter<E: SocketEmitter> {
    local: CoreLocalAdapter<E>,
    hub: Arc<Hub<E>>,
}

impl<E: SocketEmitter> fmt::Debug for NodeAdapter<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeAdapter({})", self.local.path())
    }
}

impl<E: SocketEmitter> NodeAdapter<E> {
    fn deliver(&self, event: &Str, attachments: &[Bytes], options: BroadcastOptions) {
        let mut rest = self.local.sockets(options.clone());
        if rest.is_empty() {
            return;
        }
        let path = self.local.path();
        let frame = if attachments.is_empty() {
            event_frame(path, event)
        } else {
            binary_frames(path, event, attachments)
        };
        let all = rest.len();
        self.hub.tap.express(&mut rest, &frame, &mut |socket| {
            self.by_engine(event, attachments, BroadcastOptions::new(socket));
        });
        // Never more than what will be counted out, in whichever form it leaves.
        let bytes = event.len() + attachments.iter().map(Bytes::len).sum::<usize>();
        for socket in &rest {
            self.hub.tap.queued(*socket, bytes);
        }
        if rest.len() == all {
            // Encoded once for all of them.
            self.by_engine(event, attachments, options);
            return;
        }
        for socket in rest {
            self.by_engine(event, attachments, BroadcastOptions::new(socket));
        }
    }

    fn by_engine(&self, event: &Str, attachments: &[Bytes], options: BroadcastOptions) {
        let attached = (!attachments.is_empty()).then(|| attachments.iter().cloned().collect());
        let packet = Packet::event(self.local.path().clone(), Value::Str(event.clone(), attached));
        // A queue never fills: a connection is closed by the bytes it holds unsent long before.
        // What fails here is a socket that is closing, and its client will ask for what it missed.
        if let Err(failed) = self.local.broadcast(packet, options) {
            tracing::debug!(sockets = failed.len(), "sockets were gone before a delivery");
        }
    }
}

impl<E: SocketEmitter> CoreAdapter<E> for NodeAdapter<E> {
    type Error = Infallible;
    type State = Arc<Hub<E>>;
    type AckStream = E::AckStream;
    type InitRes = ();

    fn new(hub: &Self::State, local: CoreLocalAdapter<E>) -> Self {
        Self { local, hub: hub.clone() }
    }

    fn init(self: Arc<Self>, on_success: impl FnOnce() + Send + 'static) -> Self::InitRes {
        let mut views = self.hub.views.write().unwrap_or_else(PoisonError::into_inner);
        views.push(Arc::downgrade(&self));
        drop(views);
        on_success();
    }

    async fn broadcast_with_ack(
        &self,
        packet: Packet,
        mut options: BroadcastOptions,
        timeout: Option<Duration>,
    ) -> Result<Self::AckStream, Self::Error> {
        options.add_flag(BroadcastFlags::Local);
        Ok(self.local.broadcast_with_ack(packet, options, timeout).0)
    }

    fn get_local(&self) -> &CoreLocalAdapter<E> {
        &self.local
    }
}

impl<E: SocketEmitter> DefinedAdapter for NodeAdapter<E> {}
