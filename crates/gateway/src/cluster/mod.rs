//! This node among others: what it publishes, and what it does with what they publish.
//!
//! A broadcast is published once, in the format of Node's adapter. What nodes of our own kind need
//! to deliver it by the same path as if it were theirs (tenant, address, offset) is a note that Node
//! passes over. Local delivery has happened by then, or happens without waiting for it.

mod names;
mod node;
mod talk;

use std::sync::Arc;

use carillon_domain::{
    Emit, Offset, TenantId, contract::Address, contract::find_event, presence::elsewhere::NodeId,
};
use carillon_redis_adapter::{
    Value,
    cluster::{Cluster, Member},
    link::{Counters, Link},
    wire::{self, Selection},
};
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

pub use self::{
    names::Names,
    node::Node,
    talk::{Talk, What},
};
use crate::{config::Config, gateway::Gateway};

/// The namespace everything is published on.
const PUBLISHED_ON: &str = "/";

/// The other nodes.
pub struct Peers {
    pub cluster: Arc<Cluster>,
    pub names: Names,
    pub talk: Talk,
}

impl Peers {
    /// `None` without a Redis to meet at.
    pub fn new(config: &Config, node: NodeId) -> anyhow::Result<Option<Arc<Self>>> {
        let Some(url) = &config.redis.url else { return Ok(None) };
        // The library's own words may repeat the URL, and with it a password.
        let link = Link::new(url.expose(), config.redis.authorities()?).map_err(|error| {
            anyhow::anyhow!("redis.url: not a usable address ({})", error.category())
        })?;
        let paths = carillon_domain::contract::ALL_PATHS;
        let cluster = Cluster::new(link, &config.redis.prefix, paths);
        let shared = config.cluster.shared_tenant.clone();
        let names = Names::new(shared.unwrap_or_else(|| config.default_app().tenant.clone()));
        Ok(Some(Arc::new(Self { talk: Talk::new(node, cluster.clone()), cluster, names })))
    }

    pub fn counters(&self) -> &Arc<Counters> {
        &self.cluster.link.counters
    }

    /// Whether other nodes can be heard.
    pub fn is_up(&self) -> bool {
        self.cluster.link.up_since().is_some()
    }

    /// Publishes an event for the sockets of other nodes. Never waits.
    pub fn publish(&self, tenant: &TenantId, emit: &Emit) {
        let Some(to) = self.names.selection(tenant, &emit.to) else { return };
        let Some(payload) = wire::from_json(emit.payload.get()) else { return };
        let Ok(address) = serde_json::to_string(&emit.to) else { return };
        let offset = emit.offset.map_or(Value::Nil, |Offset(offset)| offset.into());
        let note = [Value::from(tenant.as_str()), address.into(), offset];
        self.cluster.broadcast(&wire::Broadcast {
            namespace: PUBLISHED_ON.to_owned(),
            data: vec![emit.row.name.into(), payload],
            to,
            is_volatile: false,
            note: Some(Value::Array(note.into())),
        });
    }
}

/// What a node of our own kind has published; `None` when it is not what one would.
fn noted(data: &[Value], note: &Value) -> Option<(TenantId, Emit)> {
    let [tenant, address, offset] = &note.as_array()?[..] else { return None };
    let [name, payload, ..] = data else { return None };
    let tenant = TenantId::new(tenant.as_str()?).ok()?;
    let to: Address = serde_json::from_str(address.as_str()?).ok()?;
    let offset = match offset {
        Value::Nil => None,
        offset => Some(Offset(offset.as_i64()?)),
    };
    let row = find_event(name.as_str()?)?;
    let payload = RawValue::from_string(wire::to_text(payload)?).ok()?.into();
    Some((tenant, Emit { row, to, payload, offset, counting: None }))
}

/// Takes part in the cluster until stopped, and then says goodbye.
pub async fn take_part(gateway: Arc<Gateway>, stop: CancellationToken) {
    let Some(peers) = gateway.peers.clone() else { return };
    let node: Arc<dyn Member> = Arc::new(Node::new(&gateway, peers.clone()));
    let left = CancellationToken::new();
    let talk = async {
        peers.talk.run(&gateway, &stop).await;
        peers.talk.leave(&gateway);
        left.cancel();
    };
    tokio::join!(peers.cluster.clone().run(Arc::downgrade(&node), left.clone()), talk);
}

/// Everybody, where no room is named.
fn is_to_all(of: &Selection) -> bool {
    of.rooms.is_empty()
}
