//! What this node does for the cluster.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use carillon_domain::{
    Offset, RoomId,
    contract::{ALL_PATHS, find_event},
};
use carillon_redis_adapter::{
    Broadcast, Value,
    cluster::{self, Member},
    wire::{self, Selection},
};
use serde::{Serialize, Serializer, ser::SerializeTuple as _};
use socketioxide::AckError;
use tokio::sync::mpsc;

use super::{Peers, noted};
use crate::{gateway::Gateway, socketio::Seat};

/// What goes to `/` on other servers goes to everybody here who has the same one elsewhere.
const EVERYWHERE: [&str; 2] = ["/", "/api"];

/// This node, as a member of the cluster.
pub struct Node {
    gateway: Weak<Gateway>,
    peers: Arc<Peers>,
}

impl Node {
    pub fn new(gateway: &Arc<Gateway>, peers: Arc<Peers>) -> Self {
        Self { gateway: Arc::downgrade(gateway), peers }
    }

    /// An event of a server that is none of ours, or of an emitter.
    fn deliver_foreign(&self, gateway: &Gateway, broadcast: &wire::Broadcast) {
        let (rooms, except) = self.peers.names.rooms(&broadcast.to);
        if rooms.is_empty() {
            return;
        }
        let name = broadcast.data.first().and_then(Value::as_str).unwrap_or_default();
        let mut paths = paths_of(&broadcast.namespace);
        if broadcast.namespace == EVERYWHERE[0]
            && let Some(row) = find_event(name)
        {
            paths = row.paths;
        }
        let send = |data: &[Value]| {
            let Some((event, attachments)) = wire::for_clients(data) else { return };
            let event = event.into();
            gateway.hub.broadcast(&Broadcast { event, attachments, paths, rooms, except });
        };
        // A client takes a text at the end for an offset, and could not recover by another. Times
        // become texts.
        if !matches!(broadcast.data.last(), Some(Value::String(_) | Value::Ext(..))) {
            return send(&broadcast.data);
        }
        let mut data = broadcast.data.clone();
        gateway.fanout.at_position(self.peers.names.shared_tenant(), |position| {
            data.extend(position.map(|Offset(offset)| offset.to_string().into()));
            send(&data);
        });
    }

    /// The sockets of this node that are meant.
    fn seats(&self, gateway: &Gateway, namespace: &str, of: &Selection) -> Vec<Arc<Seat>> {
        let (rooms, except) = self.peers.names.rooms(of);
        if rooms.is_empty() {
            return Vec::new();
        }
        let mut seats = Vec::new();
        for path in paths_of(namespace) {
            let Some(namespace) = gateway.io.of(*path) else { continue };
            let sockets = gateway.hub.sockets(path, &rooms, &except).into_iter();
            let sockets = sockets.filter_map(|sid| namespace.get_socket(sid));
            seats.extend(sockets.filter_map(|socket| socket.extensions.get::<Arc<Seat>>()));
        }
        seats
    }

    fn each(&self, namespace: &str, of: &Selection, act: impl Fn(&Gateway, &Arc<Seat>)) {
        let Some(gateway) = self.gateway.upgrade() else { return };
        for seat in self.seats(&gateway, namespace, of) {
            act(&gateway, &seat);
        }
    }
}

/// The namespaces here that stand for one elsewhere.
fn paths_of(namespace: &str) -> &'static [&'static str] {
    if namespace == EVERYWHERE[0] {
        return &EVERYWHERE;
    }
    let at = ALL_PATHS.iter().position(|path| *path == namespace);
    at.map_or(&[], |at| &ALL_PATHS[at..=at])
}

/// Names that rooms may have.
fn room_ids(rooms: &[String]) -> impl Iterator<Item = RoomId> + '_ {
    rooms.iter().filter_map(|room| RoomId::new(room.as_str()).ok())
}

impl Member for Node {
    fn broadcast(&self, broadcast: wire::Broadcast) {
        let Some(gateway) = self.gateway.upgrade() else { return };
        match &broadcast.note {
            None => self.deliver_foreign(&gateway, &broadcast),
            Some(note) => match noted(&broadcast.data, note) {
                Some((tenant, emit)) => gateway.fanout.hear_emit(&tenant, emit),
                None => self.peers.counters().count_malformed(),
            },
        }
    }

    fn hear(&self, said: &[u8]) {
        let Some(gateway) = self.gateway.upgrade() else { return };
        if self.peers.talk.hear(&gateway, said).is_none() {
            self.peers.counters().count_malformed();
        }
    }

    fn sockets(&self, namespace: &str, of: &Selection) -> Vec<Value> {
        let Some(gateway) = self.gateway.upgrade() else { return Vec::new() };
        let (now, seats) =
            (gateway.domain.clock.now(), self.seats(&gateway, namespace, of).into_iter());
        let details = seats.filter_map(|seat| {
            let socket = seat.socket.upgrade()?;
            let id = seat.caller.connection.as_str();
            let mut rooms = vec![id.to_owned()];
            let shown = socket.rooms().into_iter().filter_map(|room| self.peers.names.shown(&room));
            rooms.extend(shown.filter(|room| room != id));
            let current = seat.current();
            let data = [
                ("userId", current.user.as_str()),
                ("userName", current.name.as_str()),
                ("role", current.role.as_str()),
            ];
            let data = data.map(|(key, value)| (Value::from(key), Value::from(value)));
            let connected = jiff::Timestamp::from_millisecond(seat.connected_at(now).0);
            let connected = connected.unwrap_or_default();
            Some(cluster::detail(id, &rooms, connected, Value::Map(data.into())))
        });
        details.collect()
    }

    fn rooms(&self, namespace: &str) -> Vec<String> {
        let Some(gateway) = self.gateway.upgrade() else { return Vec::new() };
        let rooms = paths_of(namespace).iter().flat_map(|path| gateway.hub.rooms(path));
        let mut rooms: Vec<String> =
            rooms.filter_map(|room| self.peers.names.shown(&room)).collect();
        rooms.sort_unstable();
        rooms.dedup();
        rooms
    }

    fn join(&self, namespace: &str, of: &Selection, rooms: &[String]) {
        self.each(namespace, of, |gateway, seat| {
            room_ids(rooms).for_each(|room| gateway.fanout.enter(seat, &room));
        });
    }

    fn leave(&self, namespace: &str, of: &Selection, rooms: &[String]) {
        self.each(namespace, of, |gateway, seat| {
            room_ids(rooms).for_each(|room| gateway.fanout.exit(seat, &room));
        });
    }

    fn disconnect(&self, namespace: &str, of: &Selection, close: bool) {
        self.each(namespace, of, |gateway, seat| {
            if close { gateway.fanout.cut_connection(seat) } else { gateway.fanout.cut(seat) }
        });
    }

    fn server_side_emit(&self, _: &str, _: &[Value]) -> Value {
        // Nothing here listens, and whoever asks does not wait for us.
        Value::Nil
    }

    fn ask(
        &self,
        broadcast: wire::Broadcast,
        within: Duration,
        answers: mpsc::UnboundedSender<Value>,
    ) -> usize {
        let Some(gateway) = self.gateway.upgrade() else { return 0 };
        let Some((name, arguments)) = broadcast.data.split_first() else { return 0 };
        let name = name.as_str().unwrap_or_default().to_owned();
        let arguments = Arguments(arguments.iter().map(wire::for_client).collect());
        let mut asked = 0;
        for seat in self.seats(&gateway, &broadcast.namespace, &broadcast.to) {
            let Some(socket) = seat.socket.upgrade() else { continue };
            let asking = socket.timeout(within).emit_with_ack::<_, Value>(&name, &arguments);
            let Ok(answer) = asking else { continue };
            asked += 1;
            let answers = answers.clone();
            tokio::spawn(async move {
                let value = match answer.await {
                    Ok(value) => value,
                    // An answer without a value, or with one that cannot be read, is one.
                    Err(AckError::Decode(_)) => Value::Nil,
                    Err(AckError::Timeout | AckError::Socket(_)) => return,
                };
                // Whoever asked has enough.
                let _ = answers.send(value);
            });
        }
        asked
    }
}

/// All arguments of an event, which the parser knows by their being a tuple.
struct Arguments(Vec<Value>);

impl Serialize for Arguments {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut tuple = serializer.serialize_tuple(self.0.len())?;
        for argument in &self.0 {
            tuple.serialize_element(argument)?;
        }
        tuple.end()
    }
}
