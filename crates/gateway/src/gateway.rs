//! What the parts of a running node share.

use std::sync::Arc;

use carillon_domain::{App as Domain, TenantId};
use socketioxide::SocketIo;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::{
    auth::Authenticator,
    cluster::Peers,
    coming::Coming,
    connection::Connections,
    fanout::Fanout,
    metrics::Metrics,
    socketio::{Adapter, NodeHub},
};

/// Rooms that are shown at a time to those who have gone on in them. Each takes its turn among what is
/// said: a herd that comes back is not to keep those waiting who talk.
pub const ROOMS_AT_ONCE: usize = 4;

/// One node.
pub struct Gateway {
    pub domain: Arc<Domain>,
    pub authenticator: Arc<Authenticator>,
    /// Where refusals are noted of those who cannot be told apart.
    pub default_tenant: TenantId,
    pub connections: Arc<Connections>,
    pub hub: Arc<NodeHub>,
    pub io: SocketIo<Adapter>,
    pub fanout: Fanout,
    /// The other nodes, where there may be some.
    pub peers: Option<Arc<Peers>>,
    pub metrics: Arc<Metrics>,
    /// See [`ROOMS_AT_ONCE`].
    pub showing: Semaphore,
    /// What those who come ask of the database.
    pub coming: Coming,
    /// The drains of inboxes, and whatever else must end before the process does.
    pub tasks: TaskTracker,
}
