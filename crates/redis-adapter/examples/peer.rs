//! A member of the cluster without sockets, to be told what to do: one JSON array a line on standard
//! input, one answer a line on standard output. How the adapter speaks to Node servers is tested
//! with it.
//!
//! `cargo run -p carillon-redis-adapter --example peer -- redis://127.0.0.1:6379`

use std::{env, sync::Arc, time::Duration};

use carillon_redis_adapter::{
    Value,
    cluster::{Cluster, Incomplete, Member},
    link::Link,
    wire::{Ask, Broadcast, Selection, from_json, to_json},
};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, stdin},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

/// Says on standard output what it was asked.
struct Peer;

impl Member for Peer {
    fn broadcast(&self, broadcast: Broadcast) {
        let data: Vec<_> = broadcast.data.iter().filter_map(to_json).collect();
        println!("{}", json!({ "broadcast": data, "rooms": broadcast.to.rooms }));
    }
    fn hear(&self, _: &[u8]) {}
    fn sockets(&self, _: &str, _: &Selection) -> Vec<Value> {
        Vec::new()
    }
    fn rooms(&self, _: &str) -> Vec<String> {
        Vec::new()
    }
    fn join(&self, _: &str, _: &Selection, _: &[String]) {}
    fn leave(&self, _: &str, _: &Selection, _: &[String]) {}
    fn disconnect(&self, _: &str, _: &Selection, _: bool) {}
    fn server_side_emit(&self, _: &str, data: &[Value]) -> Value {
        data.last().cloned().unwrap_or(Value::Nil)
    }
    fn ask(&self, _: Broadcast, _: Duration, _: mpsc::UnboundedSender<Value>) -> usize {
        0
    }
}

fn shown(values: Result<Vec<Value>, Incomplete>) -> serde_json::Value {
    match values {
        Ok(values) => values.iter().filter_map(to_json).collect(),
        Err(error) => json!({ "error": error.to_string() }),
    }
}

/// The values of a command; what is no value is nothing.
fn values(of: &serde_json::Value) -> Vec<Value> {
    let all = of.as_array().into_iter().flatten();
    all.filter_map(|value| from_json(&value.to_string())).collect()
}

async fn obey(cluster: &Cluster, command: &serde_json::Value) -> serde_json::Value {
    let room = command[1].as_str().map(str::to_owned);
    let to = Selection { rooms: room.into_iter().collect(), except: Vec::new() };
    let broadcast = |to| Broadcast {
        namespace: "/".to_owned(),
        data: values(&command[2]),
        to,
        ..Broadcast::default()
    };
    let rooms = || command[2].as_str().map(str::to_owned).into_iter().collect();
    match command[0].as_str().unwrap_or_default() {
        "emit" => cluster.broadcast(&broadcast(to)),
        "join" => cluster.tell("/", Ask::Join(to, rooms())),
        "leave" => cluster.tell("/", Ask::Leave(to, rooms())),
        "disconnect" => cluster.tell("/", Ask::Disconnect(to, true)),
        "fetch" => return shown(cluster.fetch_sockets("/", to).await),
        "rooms" => return cluster.rooms("/").await.map_or_else(|_| json!(null), |all| json!(all)),
        "server-side" => return shown(cluster.server_side_emit("/", values(&command[2])).await),
        "ask" => {
            let asked = cluster.ask(broadcast(to), Duration::from_secs(2)).await;
            return shown(asked.map(|(answers, _)| answers));
        }
        _ => return json!({ "error": "what?" }),
    }
    json!("ok")
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = env::args().nth(1).unwrap_or_else(|| "redis://127.0.0.1:6379".to_owned());
    let cluster = Cluster::new(Link::new(&url, None)?, "socket.io", &["/"]);
    let member: Arc<dyn Member> = Arc::new(Peer);
    let stop = CancellationToken::new();
    tokio::spawn(cluster.clone().run(Arc::downgrade(&member), stop.clone()));
    while cluster.link.up_since().is_none() {
        cluster.link.changed().await;
    }
    println!("{}", json!("ready"));
    let mut lines = BufReader::new(stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        println!("{}", obey(&cluster, &serde_json::from_str(&line)?).await);
    }
    stop.cancel();
    Ok(())
}
