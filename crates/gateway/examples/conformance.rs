//! The edge with nothing behind it but the fixture of the protocols' own test suites: a raw echo
//! on `/engine.io/`, and on `/socket.io/` the namespaces `/` and `/custom`.
//!
//! `PORT=3000 cargo run --example conformance`

use std::{env, fmt, sync::Arc, time::Duration};

use axum::{Router, extract::Request, routing::any};
use bytes::Bytes;
use carillon_domain::contract::Rate;
use carillon_gateway::{
    connection::{Connections, Limits},
    edge::{Edge, accept, engine::Engine, threshold::Greeting},
    http::origin::Origins,
    metrics::Metrics,
    socketio::{Adapter, NodeHub},
};
use engineioxide::{
    DisconnectReason, Str, config::EngineIoConfig, handler::EngineIoHandler,
    service::EngineIoService, socket::Socket,
};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{SeqAccess, Visitor},
    ser::SerializeTuple as _,
};
use socketioxide::{
    SocketIo,
    extract::{AckSender, Data, SocketRef, TryData},
};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const PING_INTERVAL: Duration = Duration::from_millis(300);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const PING_TIMEOUT: Duration = Duration::from_millis(200);
const MAX_PAYLOAD: u32 = 1_000_000;

/// Sends every message back as it came.
#[derive(Debug)]
struct Echo;

impl EngineIoHandler for Echo {
    type Data = ();

    fn on_connect(self: Arc<Self>, _: Arc<Socket<()>>) {}
    fn on_disconnect(&self, _: Arc<Socket<()>>, _: DisconnectReason) {}
    fn on_message(self: &Arc<Self>, message: Str, socket: Arc<Socket<()>>) {
        // A client that is gone hears nothing.
        let _ = socket.emit(message);
    }
    fn on_binary(self: &Arc<Self>, data: Bytes, socket: Arc<Socket<()>>) {
        let _ = socket.emit_binary(data);
    }
}

/// The arguments of an event, however many, with whatever binary is in them.
#[derive(Debug)]
struct Arguments(Vec<rmpv::Value>);

impl Serialize for Arguments {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut tuple = serializer.serialize_tuple(self.0.len())?;
        for argument in &self.0 {
            tuple.serialize_element(argument)?;
        }
        tuple.end()
    }
}

impl<'de> Deserialize<'de> for Arguments {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Vec<rmpv::Value>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("arguments")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<Self::Value, A::Error> {
                let mut arguments = Vec::new();
                while let Some(argument) = all.next_element()? {
                    arguments.push(argument);
                }
                Ok(arguments)
            }
        }
        // As a tuple: the parser takes that for all arguments rather than for the first.
        deserializer.deserialize_tuple(1, Each).map(Self)
    }
}

async fn connected(socket: SocketRef<Adapter>, TryData(auth): TryData<rmpv::Value>) {
    let auth = auth.unwrap_or_else(|_| rmpv::Value::Map(Vec::new()));
    // A client that is gone hears nothing.
    let _ = socket.emit("auth", &auth);
    socket.on("message", async |socket: SocketRef<Adapter>, Data(all): Data<Arguments>| {
        let _ = socket.emit("message-back", &all);
    });
    socket.on("message-with-ack", async |Data(all): Data<Arguments>, ack: AckSender<Adapter>| {
        let _ = ack.send(&all);
    });
}

/// The edge of one engine, as a route.
fn route<E: Engine>(engine: E, connections: &Arc<Connections>) -> Router {
    let origins = Arc::new(Origins::new(&[], true));
    let greeting = Greeting {
        ping_interval: PING_INTERVAL,
        ping_timeout: PING_TIMEOUT,
        max_payload: MAX_PAYLOAD as usize,
        // There is no CONNECT without Socket.IO.
        connect_timeout: if E::IS_SOCKETIO { CONNECT_TIMEOUT } else { Duration::MAX },
    };
    let edge = Edge::new(engine, connections.clone(), origins, greeting, TaskTracker::new())
        .with_eio3(true);
    Router::new().route(E::PATH, any(move |request: Request| edge.clone().handle(request)))
}

fn connections() -> Arc<Connections> {
    let often = Rate { count: 100_000, period: Duration::from_secs(1) };
    let limits = Limits {
        unsent_bytes: u64::from(MAX_PAYLOAD),
        stalled: PING_INTERVAL + PING_TIMEOUT,
        paused: PING_TIMEOUT / 2,
        silent: PING_INTERVAL + PING_TIMEOUT,
        unauthenticated: 100_000,
        failed_handshakes: often,
    };
    Connections::new(limits, Arc::new(Metrics::default()))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config = EngineIoConfig::builder()
        .ping_interval(PING_INTERVAL)
        .ping_timeout(PING_TIMEOUT)
        .max_payload(u64::from(MAX_PAYLOAD))
        .build();
    let echo = EngineIoService::with_config(Arc::new(Echo), config);

    let ours = connections();
    let (service, io) = SocketIo::builder()
        .ping_interval(PING_INTERVAL)
        .ping_timeout(PING_TIMEOUT)
        .max_payload(u64::from(MAX_PAYLOAD))
        .connect_timeout(CONNECT_TIMEOUT)
        .with_adapter::<Adapter>(NodeHub::new(ours.clone()))
        .build_svc();
    for path in ["/", "/custom"] {
        io.ns(path, connected);
    }

    let port = env::var("PORT").unwrap_or_else(|_| "3000".into()).parse()?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    println!("listening on {}", listener.local_addr()?);
    let router = route(echo, &connections()).merge(route(service, &ours));
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    accept::serve(listener, Arc::default(), router, tasks, stop).await;
    Ok(())
}
