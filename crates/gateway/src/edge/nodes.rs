//! The nodes of a cluster, as this one knows them: whose a session is, and where its owner is.
//!
//! The id of a polling session begins with the tag of the node that holds it, so whoever gets a
//! request knows from the id alone where it belongs. Where a node is reached stands in the database,
//! which all of them have; it is read before it is needed and kept in memory, so that requests find
//! their way while the database is away.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use anyhow::Context as _;
use axum::http::{
    HeaderMap, HeaderName, HeaderValue, Uri,
    uri::{Authority, Scheme},
};
use carillon_domain::{
    Refusal, TenantId,
    contract::Scope,
    ports::{ClusterNode, Store},
};
use socketioxide::socket::Sid;
use subtle::ConstantTimeEq as _;
use tokio::{
    sync::Mutex,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;
use url::Url;

use super::address::{ClientAddress, Peer};

/// What a node proves itself with, and whom it speaks for: `<secret> <address> <scheme>`. A request
/// that has it, whatever it says, goes no further.
pub const HANDOVER: HeaderName = HeaderName::from_static("x-carillon-handover");

/// The node that holds a new session, by its tag.
const NODE: HeaderName = HeaderName::from_static("x-carillon-node");

/// Between tag and session id; in no session id of the engine.
const SEPARATOR: char = '.';
/// Five random bits a character.
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
const TAG_CHARS: usize = 6;
const SECRET_CHARS: usize = 40;
/// A node says that it is here, and looks who else is.
const EVERY: Duration = Duration::from_secs(3);
/// One that has not said so for this long is not asked for anything.
const SILENT: Duration = Duration::from_mins(1);
/// After so many looks without it. A database that has been away knows nobody for a moment.
const LOOKS: u32 = 5;
/// Its row is deleted after this.
const FORGOTTEN: Duration = Duration::from_hours(1);
/// Between two looks for somebody unknown; whoever asks meanwhile waits for the next.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// The cluster, from one of its nodes.
pub struct Nodes {
    store: Arc<dyn Store>,
    own: ClusterNode,
    known: RwLock<HashMap<String, Known>>,
    looked: Mutex<Look>,
}

/// Where the owner of a session is reached.
pub struct Owner {
    pub scheme: Scheme,
    pub authority: Authority,
    pub tag: String,
    secret: String,
}

struct Known {
    owner: Arc<Owner>,
    /// Looks in a row that did not find it.
    missed: u32,
}

/// The last look into the database.
struct Look {
    began: Instant,
    has_failed: bool,
}

/// Whose a session is.
#[derive(Debug, PartialEq, Eq)]
pub enum Whose<'a> {
    /// Ours; without the tag.
    Ours(&'a str),
    /// Of the node with that tag.
    Theirs(&'a str, Sid),
}

/// The database could not be asked.
#[derive(Debug)]
pub struct Away;

impl Nodes {
    /// Notes this node, reached at an address, and finds the others.
    pub async fn join(store: Arc<dyn Store>, address: &Url) -> anyhow::Result<Arc<Self>> {
        let own = ClusterNode {
            tag: random(TAG_CHARS),
            address: address.as_str().trim_end_matches('/').to_owned(),
            secret: random(SECRET_CHARS),
        };
        let looked = Mutex::new(Look { began: Instant::now(), has_failed: false });
        let nodes = Self { store, own, known: RwLock::default(), looked };
        nodes.note().await.context("this node cannot be noted in the database")?;
        nodes.look(Missing::Counted).await.context("the nodes cannot be read")?;
        tracing::info!(node.tag = nodes.own.tag, "in the cluster");
        Ok(Arc::new(nodes))
    }

    /// The session id that a client is given.
    pub fn tagged(&self, sid: Sid) -> String {
        format!("{}{SEPARATOR}{sid}", self.own.tag)
    }

    /// Says that a new session is ours.
    pub fn signature(&self) -> Option<(HeaderName, HeaderValue)> {
        Some((NODE, HeaderValue::from_str(&self.own.tag).ok()?))
    }

    /// Whose the session is that a client names.
    pub fn whose<'a>(&self, id: &'a str) -> Whose<'a> {
        whose(&self.own.tag, id)
    }

    /// Where a node is reached; `None` when there is none with that tag.
    pub async fn find(&self, tag: &str) -> Result<Option<Arc<Owner>>, Away> {
        if let Some(owner) = self.known(tag) {
            return Ok(Some(owner));
        }
        // However many ask for nodes that nobody knows, the database is asked five times a second.
        let asked = Instant::now();
        let mut last = self.looked.lock().await;
        if last.began < asked {
            sleep_until(last.began + LOOK_AGAIN).await;
            last.began = Instant::now();
            last.has_failed = self.look(Missing::Kept).await.is_err();
        }
        let has_failed = last.has_failed;
        drop(last);
        match self.known(tag) {
            None if has_failed => Err(Away),
            owner => Ok(owner),
        }
    }

    /// Stays known to the others, and follows who they are, until `end`; leaves then.
    pub async fn follow(&self, end: CancellationToken) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut was_away = false;
        while end.run_until_cancelled(ticks.tick()).await.is_some() {
            let result = self.keep().await;
            match (&result, was_away) {
                (Err(error), false) => {
                    let code = error.code().as_str();
                    tracing::warn!(code, "the list of nodes waits for the database");
                }
                (Ok(()), true) => tracing::info!("the list of nodes is followed again"),
                (Ok(()), false) | (Err(_), true) => {}
            }
            was_away = result.is_err();
        }
        if self.leave().await.is_err() {
            tracing::warn!("this node could not be taken from the list of nodes");
        }
    }

    /// The client that another node names; `None` when a request comes from no node.
    pub fn client_of(&self, peer: Peer, headers: &HeaderMap) -> Option<ClientAddress> {
        named(&self.own.secret, peer, headers)
    }

    /// Whether a request comes from another node.
    pub fn vouch_for(&self, headers: &HeaderMap) -> bool {
        let nobody = Peer { ip: [0, 0, 0, 0].into(), is_secure: false };
        self.client_of(nobody, headers).is_some()
    }

    async fn keep(&self) -> Result<(), Refusal> {
        if self.note().await? {
            tracing::warn!("cluster.advertise: another node has the same; neither can be reached");
        }
        self.look(Missing::Counted).await
    }

    fn known(&self, tag: &str) -> Option<Arc<Owner>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(tag).map(|known| known.owner.clone())
    }

    async fn look(&self, missing: Missing) -> Result<(), Refusal> {
        let nodes = self.store.read().await?.nodes(SILENT).await?;
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if missing == Missing::Counted {
            known.retain(|_, node| {
                node.missed += 1;
                node.missed <= LOOKS
            });
        }
        for node in nodes {
            // Whoever was here before us ended without a word.
            if node.address == self.own.address {
                continue;
            }
            if let Some(known) = known.get_mut(&node.tag) {
                known.missed = 0;
            } else if let Some(owner) = Owner::of(&node) {
                known.insert(node.tag, Known { owner: Arc::new(owner), missed: 0 });
            }
        }
        Ok(())
    }

    /// Says whether another run was at our address.
    async fn note(&self) -> Result<bool, Refusal> {
        let mut tx = self.store.begin(&nobody()?, Scope::Rows).await?;
        let has_replaced = tx.note_node(&self.own).await?;
        tx.forget_nodes(FORGOTTEN).await?;
        tx.commit().await?;
        Ok(has_replaced)
    }

    async fn leave(&self) -> Result<(), Refusal> {
        let mut tx = self.store.begin(&nobody()?, Scope::Rows).await?;
        tx.remove_node(&self.own.tag).await?;
        tx.commit().await
    }
}

impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nodes").field("own", &self.own).finish_non_exhaustive()
    }
}

/// What a look does with those it does not find.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Counted,
    Kept,
}

impl Owner {
    /// `None` when its address is none.
    fn of(node: &ClusterNode) -> Option<Self> {
        let uri = node.address.parse::<Uri>().ok()?.into_parts();
        let (tag, secret) = (node.tag.clone(), node.secret.clone());
        Some(Self { scheme: uri.scheme?, authority: uri.authority?, tag, secret })
    }

    /// What tells it that we are a node, and whom we speak for.
    pub fn handover(&self, client: ClientAddress) -> Option<HeaderValue> {
        let scheme = if client.is_secure { "https" } else { "http" };
        let text = format!("{} {} {scheme}", self.secret, client.ip);
        let mut value = HeaderValue::from_str(&text).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

fn whose<'a>(own: &str, id: &'a str) -> Whose<'a> {
    match id.split_once(SEPARATOR) {
        Some((tag, sid)) if tag == own => Whose::Ours(sid),
        Some((tag, sid)) if is_tag(tag) => match sid.parse() {
            Ok(sid) => Whose::Theirs(tag, sid),
            // Nobody's.
            Err(_) => Whose::Ours(id),
        },
        Some(_) | None => Whose::Ours(id),
    }
}

fn is_tag(text: &str) -> bool {
    text.len() == TAG_CHARS && text.bytes().all(|byte| ALPHABET.contains(&byte))
}

fn named(secret: &str, peer: Peer, headers: &HeaderMap) -> Option<ClientAddress> {
    let mut parts = headers.get(HANDOVER)?.to_str().ok()?.split(' ');
    let is_ours = parts.next()?.as_bytes().ct_eq(secret.as_bytes());
    let (ip, scheme) = (parts.next()?.parse().ok()?, parts.next()?);
    bool::from(is_ours).then(|| ClientAddress {
        ip,
        is_secure: scheme == "https",
        peer: peer.ip,
        is_forwarded: false,
    })
}

/// The list belongs to no tenant.
fn nobody() -> Result<TenantId, Refusal> {
    TenantId::new("system").map_err(Refusal::internal)
}

fn random(chars: usize) -> String {
    let mut bytes = vec![0; chars];
    getrandom::fill(&mut bytes).expect("the system has randomness");
    bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte & 31)])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_says_whose_the_session_is() {
        let sid = Sid::new();
        let text = sid.to_string();
        let (ours, theirs) = (format!("aaaaaa.{text}"), format!("bbbbbb.{text}"));
        assert_eq!(whose("aaaaaa", &ours), Whose::Ours(&text));
        assert_eq!(whose("aaaaaa", &theirs), Whose::Theirs("bbbbbb", sid));
        // Nobody is asked for what no node can have given out.
        for odd in [
            text.as_str(),
            "",
            ".",
            "bbbbbb.",
            "bbbbbb.short",
            &format!("bbbbb.{text}"),
            &format!("bbbbb/.{text}"),
            &format!("BBBBBB.{text}"),
            &format!("bbbbbb.{text}.{text}"),
            &format!("bbbbbb.{text}&x"),
        ] {
            assert_eq!(whose("aaaaaa", odd), Whose::Ours(odd));
        }
    }

    #[test]
    fn a_node_that_knows_the_secret_is_believed_about_the_client() {
        let peer = Peer { ip: [10, 0, 0, 2].into(), is_secure: false };
        let node = ClusterNode {
            tag: random(TAG_CHARS),
            address: "https://node-b:3001".into(),
            secret: random(SECRET_CHARS),
        };
        let owner = Owner::of(&node).unwrap();
        assert_eq!((owner.scheme.as_str(), owner.authority.as_str()), ("https", "node-b:3001"));
        let client = ClientAddress {
            ip: "2001:db8::1".parse().unwrap(),
            is_secure: true,
            peer: [10, 0, 0, 9].into(),
            is_forwarded: true,
        };
        let with =
            |value: &str| HeaderMap::from_iter([(HANDOVER, HeaderValue::from_str(value).unwrap())]);
        let value = owner.handover(client).unwrap();
        assert!(value.is_sensitive());
        let told = named(&node.secret, peer, &with(value.to_str().unwrap())).unwrap();
        assert_eq!((told.ip, told.is_secure, told.peer), (client.ip, true, peer.ip));
        assert!(!told.is_forwarded);
        let secret = &node.secret;
        for lie in [
            String::new(),
            secret.clone(),
            format!("{secret} nowhere https"),
            format!(" {secret} 192.0.2.1 https"),
            format!("{} 192.0.2.1 https", &secret[1..]),
            format!("{} 192.0.2.1 https", random(SECRET_CHARS)),
        ] {
            assert_eq!(named(secret, peer, &with(&lie)), None, "{lie}");
        }
        assert_eq!(named(secret, peer, &HeaderMap::new()), None);
    }
}
