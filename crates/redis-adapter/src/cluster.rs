//! The classic protocol of `@socket.io/redis-adapter`: broadcasts, and requests to all members.
//!
//! A member of the cluster is one namespace of one process. Nothing is kept in Redis; how many
//! answers a request has is how many are subscribed to the channel it is asked on, so whoever is
//! subscribed answers every request, also with nothing.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use rmpv::Value;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    link::{self, Incoming, Link, Subscriptions, count},
    wire::{Answer, Ask, Broadcast, Malformed, Request, Response, Selection},
};

/// Node's limit for the answers to a request.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);
/// What cannot be read is told of this often.
const TOLD_EVERY: Duration = Duration::from_mins(1);
/// Random characters of an id; Node's.
const ID_LENGTH: usize = 6;

/// What this node does for the cluster. Called in the order in which messages come, so nothing
/// here waits.
pub trait Member: Send + Sync {
    /// Somebody else has an event for sockets.
    fn broadcast(&self, broadcast: Broadcast);
    /// A node of our own kind says something.
    fn hear(&self, said: &[u8]);
    /// The sockets of this node, as [`detail`] shows them.
    fn sockets(&self, namespace: &str, of: &Selection) -> Vec<Value>;
    /// The rooms of this node.
    fn rooms(&self, namespace: &str) -> Vec<String>;
    fn join(&self, namespace: &str, of: &Selection, rooms: &[String]);
    fn leave(&self, namespace: &str, of: &Selection, rooms: &[String]);
    /// Disconnects sockets, or closes their whole connections.
    fn disconnect(&self, namespace: &str, of: &Selection, close: bool);
    /// An event for servers; what is returned is the answer, where one is wanted.
    fn server_side_emit(&self, namespace: &str, data: &[Value]) -> Value;
    /// An event that clients of this node answer within a time; says how many were asked.
    fn ask(
        &self,
        broadcast: Broadcast,
        within: Duration,
        answers: mpsc::UnboundedSender<Value>,
    ) -> usize;
}

/// A socket as Node describes it, without what is nobody else's business: headers, address, and
/// what it authenticated by.
pub fn detail(id: &str, rooms: &[String], connected: jiff::Timestamp, data: Value) -> Value {
    let text = |text: &str| Value::from(text);
    let handshake = [
        ("headers", Value::Map(Vec::new())),
        ("time", Value::from(connected.strftime("%a %b %d %Y %H:%M:%S GMT+0000").to_string())),
        ("address", text("")),
        ("xdomain", false.into()),
        ("secure", false.into()),
        ("issued", connected.as_millisecond().into()),
        ("url", text("/socket.io/")),
        ("query", Value::Map(Vec::new())),
        ("auth", Value::Map(Vec::new())),
    ];
    let map = |fields: Vec<(&str, Value)>| {
        Value::Map(fields.into_iter().map(|(key, value)| (text(key), value)).collect())
    };
    map(vec![
        ("id", text(id)),
        ("handshake", map(handshake.into())),
        ("rooms", Value::Array(rooms.iter().map(|room| text(room)).collect())),
        ("data", data),
    ])
}

/// Why a request has no whole answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Incomplete {
    #[error("Redis is away")]
    Away,
    #[error("{missing} members have not answered")]
    Timeout { missing: usize },
}

/// One namespace of this process in the cluster.
struct Space {
    path: &'static str,
    uid: String,
    broadcasts: String,
    requests: String,
    responses: String,
    own_responses: String,
}

impl Space {
    fn new(prefix: &str, path: &'static str) -> Self {
        let uid = random_id();
        Self {
            path,
            broadcasts: format!("{prefix}#{path}#"),
            requests: format!("{prefix}-request#{path}#"),
            responses: format!("{prefix}-response#{path}#"),
            own_responses: format!("{prefix}-response#{path}#{uid}#"),
            uid,
        }
    }
}

/// This process in the cluster.
pub struct Cluster {
    pub link: Arc<Link>,
    prefix: String,
    spaces: Vec<Space>,
    /// Where nodes of our own kind talk to each other.
    ours: String,
    pending: Mutex<HashMap<String, mpsc::UnboundedSender<Answer>>>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cluster({})", self.prefix)
    }
}

impl Cluster {
    pub fn new(link: Arc<Link>, prefix: &str, paths: &[&'static str]) -> Arc<Self> {
        Arc::new(Self {
            link,
            prefix: prefix.to_owned(),
            spaces: paths.iter().map(|path| Space::new(prefix, path)).collect(),
            ours: format!("{prefix}-carillon#"),
            pending: Mutex::default(),
        })
    }

    /// Keeps the connections and hands what comes to `member`, until `stop`.
    pub async fn run(self: Arc<Self>, member: Weak<dyn Member>, stop: CancellationToken) {
        let (sender, mut receiver) = link::inbox();
        let of = |of: fn(&Space) -> &String| self.spaces.iter().map(of).cloned();
        let subscriptions = Subscriptions {
            channels: of(|space| &space.requests)
                .chain(of(|space| &space.responses))
                .chain(of(|space| &space.own_responses))
                .chain([self.ours.clone()])
                .collect(),
            patterns: of(|space| &space.broadcasts).map(|channel| glob(&channel)).collect(),
        };
        let handle = async {
            let mut told = None::<Instant>;
            while let Some(incoming) = receiver.recv().await {
                let Some(member) = member.upgrade() else { return };
                let Err(malformed) = self.handle(&incoming, &member) else { continue };
                count(&self.link.counters.malformed);
                if told.is_none_or(|told| told.elapsed() > TOLD_EVERY) {
                    told = Some(Instant::now());
                    tracing::warn!("a message of the cluster cannot be read: {malformed}");
                }
            }
        };
        let run = self.link.clone().run(subscriptions, sender, stop.clone());
        // What is left is published after `stop`, so only what comes ends at once.
        tokio::join!(run, stop.run_until_cancelled(handle));
    }

    fn handle(&self, incoming: &Incoming, member: &Arc<dyn Member>) -> Result<(), Malformed> {
        // Another encoding is the name of no room of ours.
        let Ok(channel) = std::str::from_utf8(&incoming.channel) else { return Ok(()) };
        let payload = &incoming.payload;
        if channel == self.ours {
            member.hear(payload);
            return Ok(());
        }
        for space in &self.spaces {
            if channel.starts_with(&space.broadcasts) {
                if let Some(broadcast) = Broadcast::decode(&space.uid, payload)?
                    && broadcast.namespace == space.path
                {
                    member.broadcast(broadcast);
                }
                return Ok(());
            }
            if channel == space.requests {
                let request = Request::decode(payload);
                return match request {
                    Ok(request) => {
                        self.answer(space, request, member);
                        Ok(())
                    }
                    Err(malformed) => Err(malformed),
                };
            }
            if channel == space.responses || channel == space.own_responses {
                let Response { id, answer } = Response::decode(payload)?;
                if let Some(waiting) = self.pending().get(&id) {
                    // Whoever waited has enough.
                    let _ = waiting.send(answer);
                }
                return Ok(());
            }
        }
        Ok(())
    }

    fn answer(&self, space: &Space, request: Request, member: &Arc<dyn Member>) {
        let Request { uid, id, ask } = request;
        let path = space.path;
        // One's own are done already.
        if uid.as_ref() == Some(&space.uid) {
            return;
        }
        let reply = |answer| {
            if let Some(id) = id.clone() {
                self.link.publish(space.responses.clone(), Response { id, answer }.encode());
            }
        };
        // Servers of before version 8 ask for a socket to be moved, and whoever has it answers.
        let is_here = |of: &Selection| id.is_some() && !member.sockets(path, of).is_empty();
        match ask {
            Ask::Sockets(rooms) => {
                let of = Selection { rooms, except: Vec::new() };
                let ids = member
                    .sockets(path, &of)
                    .into_iter()
                    .filter_map(|socket| Some(socket.as_map()?.first()?.1.clone()));
                reply(Answer::Sockets(ids.collect()));
            }
            Ask::AllRooms => reply(Answer::Rooms(member.rooms(path))),
            Ask::Join(of, rooms) => {
                let is_here = is_here(&of);
                member.join(path, &of, &rooms);
                if is_here {
                    reply(Answer::Done);
                }
            }
            Ask::Leave(of, rooms) => {
                let is_here = is_here(&of);
                member.leave(path, &of, &rooms);
                if is_here {
                    reply(Answer::Done);
                }
            }
            Ask::Disconnect(of, close) => {
                let is_here = is_here(&of);
                member.disconnect(path, &of, close);
                if is_here {
                    reply(Answer::Done);
                }
            }
            Ask::Fetch(of) => reply(Answer::Sockets(member.sockets(path, &of))),
            Ask::ServerSideEmit(data) => reply(Answer::Value(member.server_side_emit(path, &data))),
            Ask::Broadcast(broadcast, within) => {
                let (sender, mut answers) = mpsc::unbounded_channel();
                let asked = member.ask(broadcast, within, sender);
                reply(Answer::ClientCount(asked as u64));
                let (link, channel) = (self.link.clone(), space.responses.clone());
                let Some(id) = id else { return };
                tokio::spawn(async move {
                    let end = Instant::now() + within;
                    while let Ok(Some(value)) = timeout_at(end, answers.recv()).await {
                        let answer = Answer::ClientAnswer(value);
                        link.publish(channel.clone(), Response { id: id.clone(), answer }.encode());
                    }
                });
            }
        }
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<String, mpsc::UnboundedSender<Answer>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn space(&self, path: &str) -> Option<&Space> {
        self.spaces.iter().find(|space| space.path == path)
    }

    /// Publishes an event for the sockets of all others. Never waits.
    pub fn broadcast(&self, broadcast: &Broadcast) {
        if let Some(space) = self.space(&broadcast.namespace) {
            self.link.publish(broadcast.channel(&self.prefix), broadcast.encode(&space.uid));
        }
    }

    /// Says something to the nodes of our own kind. Never waits.
    pub fn say(&self, said: Vec<u8>) {
        self.link.publish(self.ours.clone(), said);
    }

    /// Asks all others for something that has no answer: joins, leaves, disconnects. Never waits.
    pub fn tell(&self, path: &str, ask: Ask) {
        if let Some(space) = self.space(path) {
            let request = Request { uid: Some(space.uid.clone()), id: None, ask };
            self.link.publish(space.requests.clone(), request.encode());
        }
    }

    /// Sockets of the others.
    pub async fn fetch_sockets(&self, path: &str, of: Selection) -> Result<Vec<Value>, Incomplete> {
        let answers = self.ask_all(path, Ask::Fetch(of)).await?;
        let sockets = answers.into_iter().map(|answer| match answer {
            Answer::Sockets(sockets) => sockets,
            _ => Vec::new(),
        });
        Ok(sockets.flatten().collect())
    }

    /// Rooms of the others.
    pub async fn rooms(&self, path: &str) -> Result<Vec<String>, Incomplete> {
        let answers = self.ask_all(path, Ask::AllRooms).await?;
        let rooms = answers.into_iter().map(|answer| match answer {
            Answer::Rooms(rooms) => rooms,
            _ => Vec::new(),
        });
        let mut rooms: Vec<String> = rooms.flatten().collect();
        rooms.sort_unstable();
        rooms.dedup();
        Ok(rooms)
    }

    /// What the others answer to an event for servers.
    pub async fn server_side_emit(
        &self,
        path: &str,
        data: Vec<Value>,
    ) -> Result<Vec<Value>, Incomplete> {
        let answers = self.ask_all(path, Ask::ServerSideEmit(data)).await?;
        let values = answers.into_iter().filter_map(|answer| match answer {
            Answer::Value(value) => Some(value),
            _ => None,
        });
        Ok(values.collect())
    }

    /// One answer of each other member.
    async fn ask_all(&self, path: &str, ask: Ask) -> Result<Vec<Answer>, Incomplete> {
        let space = self.space(path).ok_or(Incomplete::Away)?;
        let members = self.link.subscribers(&space.requests).await.ok_or(Incomplete::Away)?;
        let others = members.saturating_sub(1);
        if others == 0 {
            return Ok(Vec::new());
        }
        let end = Instant::now() + ANSWERED_WITHIN;
        let mut question = self.question(space, ask);
        let mut answers = Vec::new();
        while answers.len() < others {
            match timeout_at(end, question.answers.recv()).await {
                Ok(Some(answer)) => answers.push(answer),
                _ => return Err(Incomplete::Timeout { missing: others - answers.len() }),
            }
        }
        Ok(answers)
    }

    /// What clients of the others answer to an event, within a time; and how many have not.
    pub async fn ask(
        &self,
        broadcast: Broadcast,
        within: Duration,
    ) -> Result<(Vec<Value>, usize), Incomplete> {
        let end = Instant::now() + within;
        let space = self.space(&broadcast.namespace).ok_or(Incomplete::Away)?;
        let members = self.link.subscribers(&space.requests).await.ok_or(Incomplete::Away)?;
        let mut counts = members.saturating_sub(1);
        let (mut asked, mut values) = (0, Vec::new());
        let mut question = self.question(space, Ask::Broadcast(broadcast, within));
        while counts > 0 || values.len() < asked {
            match timeout_at(end, question.answers.recv()).await {
                Ok(Some(Answer::ClientCount(count))) => {
                    counts = counts.saturating_sub(1);
                    asked += usize::try_from(count).unwrap_or(0);
                }
                Ok(Some(Answer::ClientAnswer(value))) => values.push(value),
                Ok(Some(_)) => {}
                _ if counts > 0 => return Err(Incomplete::Timeout { missing: counts }),
                _ => break,
            }
        }
        let missing = asked.saturating_sub(values.len());
        Ok((values, missing))
    }

    fn question(&self, space: &Space, ask: Ask) -> Question<'_> {
        let id = random_id();
        let (sender, answers) = mpsc::unbounded_channel();
        self.pending().insert(id.clone(), sender);
        let request = Request { uid: Some(space.uid.clone()), id: Some(id.clone()), ask };
        self.link.publish(space.requests.clone(), request.encode());
        Question { cluster: self, id, answers }
    }
}

/// A request that waits for answers.
struct Question<'a> {
    cluster: &'a Cluster,
    id: String,
    answers: mpsc::UnboundedReceiver<Answer>,
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        self.cluster.pending().remove(&self.id);
    }
}

/// Everything that begins so.
fn glob(prefix: &str) -> String {
    let mut pattern = String::with_capacity(prefix.len() + 1);
    for character in prefix.chars() {
        if matches!(character, '*' | '?' | '[' | ']' | '\\') {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern.push('*');
    pattern
}

fn random_id() -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut bytes = [0; ID_LENGTH];
    getrandom::fill(&mut bytes).expect("the system has randomness");
    bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte & 63)])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_no_pattern() {
        assert_eq!(glob("socket.io#/#"), "socket.io#/#*");
        assert_eq!(glob("a*[b]"), "a\\*\\[b\\]*");
    }
}
