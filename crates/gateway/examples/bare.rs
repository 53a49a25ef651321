//! What Carillon is measured against: the chat contract on plain socketioxide behind
//! `axum::serve`, as far as the load generator speaks it. It keeps nothing: no database, no
//! history, no limits.
//!
//! `JWT_SECRET=… PORT=3003 cargo run --release --example bare`

use std::{
    collections::HashMap,
    env,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use axum::serve::ListenerExt as _;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use socketioxide::{
    SocketIo,
    extract::{AckSender, Data, Extension, SocketRef, TryData},
    handler::ConnectHandler as _,
};
use tokio::net::TcpListener;
use uuid::Uuid;

/// By room.
#[derive(Default)]
struct Seqs(Mutex<HashMap<String, i64>>);

impl Seqs {
    /// The room's newest number, after it has been raised by so much.
    fn raise(&self, room: &str, by: i64) -> i64 {
        let mut seqs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seq = seqs.entry(room.to_owned()).or_default();
        *seq += by;
        *seq
    }
}

#[derive(Deserialize)]
struct Auth {
    token: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Claims {
    user_id: String,
    name: String,
}

/// What every socket carries.
#[derive(Clone)]
struct Caller {
    claims: Arc<Claims>,
    seqs: Arc<Seqs>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JoinRoom {
    room_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SendMessage {
    room_id: String,
    message: String,
    client_msg_id: Option<String>,
}

/// The row that `receive-message` carries.
#[derive(Serialize)]
struct Row<'a> {
    id: &'a str,
    room_id: &'a str,
    sender_id: &'a str,
    sender_name: &'a str,
    sender_avatar: Option<&'a str>,
    message: &'a str,
    message_type: &'a str,
    file_url: Option<&'a str>,
    file_name: Option<&'a str>,
    file_size: Option<i64>,
    is_read: bool,
    created_at: &'a str,
    seq: i64,
    #[serde(rename = "clientMsgId")]
    client_msg_id: Option<&'a str>,
}

/// What acknowledges `send-message`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Sent<'a> {
    ok: bool,
    id: &'a str,
    room_id: &'a str,
    seq: i64,
    created_at: &'a str,
}

/// What acknowledges `join-room`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entered<'a> {
    ok: bool,
    room_id: &'a str,
    seq: i64,
    last_read_seq: i64,
    unread_count: i64,
}

/// Milliseconds, as JavaScript writes them.
fn now() -> String {
    format!("{:.3}", jiff::Timestamp::now())
}

fn verify(auth: &Auth, key: &DecodingKey) -> Result<Claims, &'static str> {
    let verified = decode(&auth.token, key, &Validation::new(Algorithm::HS256));
    Ok(verified.map_err(|_| "Invalid token")?.claims)
}

async fn connected(socket: SocketRef) {
    socket.on("join-room", join_room);
    socket.on("send-message", send_message);
    socket.on("heartbeat", heartbeat);
}

async fn join_room(
    socket: SocketRef,
    Data(JoinRoom { room_id }): Data<JoinRoom>,
    Extension(caller): Extension<Caller>,
    ack: AckSender,
) {
    socket.join(room_id.clone());
    let seq = caller.seqs.raise(&room_id, 0);
    let joined = json!({
        "roomId": room_id, "messages": [], "seq": seq, "lastReadSeq": 0, "unreadCount": 0,
        "hasMore": false,
    });
    socket.emit("room-joined", &joined).ok();
    let entered = Entered { ok: true, room_id: &room_id, seq, last_read_seq: 0, unread_count: 0 };
    ack.send(&entered).ok();
}

async fn send_message(
    io: SocketIo,
    Extension(caller): Extension<Caller>,
    Data(SendMessage { room_id, message, client_msg_id }): Data<SendMessage>,
    ack: AckSender,
) {
    let (id, created_at) = (Uuid::new_v4().to_string(), now());
    let seq = caller.seqs.raise(&room_id, 1);
    let row = Row {
        id: &id,
        room_id: &room_id,
        sender_id: &caller.claims.user_id,
        sender_name: &caller.claims.name,
        sender_avatar: None,
        message: &message,
        message_type: "text",
        file_url: None,
        file_name: None,
        file_size: None,
        is_read: false,
        created_at: &created_at,
        seq,
        client_msg_id: client_msg_id.as_deref(),
    };
    io.to(room_id.clone()).emit("receive-message", &row).await.ok();
    let sent = Sent { ok: true, id: &id, room_id: &room_id, seq, created_at: &created_at };
    ack.send(&sent).ok();
}

async fn heartbeat(socket: SocketRef, TryData(_): TryData<Value>, ack: AckSender) {
    let timestamp = now();
    socket.emit("heartbeat-ack", &json!({ "timestamp": timestamp })).ok();
    ack.send(&json!({ "ok": true, "timestamp": timestamp })).ok();
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let secret = env::var("JWT_SECRET").context("JWT_SECRET: what tokens are signed with")?;
    let port = env::var("PORT").unwrap_or_else(|_| "0".into());
    let key = Arc::new(DecodingKey::from_secret(secret.as_bytes()));
    let seqs = Arc::new(Seqs::default());
    let (layer, io) = SocketIo::builder()
        .ping_interval(Duration::from_secs(25))
        .ping_timeout(Duration::from_mins(1))
        .build_layer();
    let authenticate = move |socket: SocketRef, TryData(auth): TryData<Auth>| {
        let (key, seqs) = (key.clone(), seqs.clone());
        async move {
            let claims = Arc::new(verify(&auth.map_err(|_| "Authentication required")?, &key)?);
            socket.extensions.insert(Caller { claims, seqs });
            Ok::<(), &'static str>(())
        }
    };
    io.ns("/", connected.with(authenticate));

    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("ready on http://{}", listener.local_addr()?);
    let listener = listener.tap_io(|stream| {
        stream.set_nodelay(true).ok();
    });
    Ok(axum::serve(listener, axum::Router::new().layer(layer)).await?)
}
