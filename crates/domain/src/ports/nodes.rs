//! Where the nodes of a cluster reach each other.

use std::{fmt, time::Duration};

use async_trait::async_trait;

use super::Result;

/// One run of a node, as the others know it.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterNode {
    /// What the ids of its sessions begin with.
    pub tag: String,
    /// A URL: scheme, host and port.
    pub address: String,
    /// What the others prove themselves with to it. Never shown.
    pub secret: String,
}

impl fmt::Debug for ClusterNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterNode")
            .field("tag", &self.tag)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

#[async_trait]
pub trait NodeReads: Send {
    /// The nodes that were seen within so long, by the database's clock.
    async fn nodes(&mut self, within: Duration) -> Result<Vec<ClusterNode>>;
}

#[async_trait]
pub trait NodeWrites: Send {
    /// Notes that this node is here, anew if it was forgotten. Says whether another was noted at its
    /// address, which then is not any more.
    async fn note_node(&mut self, node: &ClusterNode) -> Result<bool>;
    /// The node is going away.
    async fn remove_node(&mut self, tag: &str) -> Result<()>;
    /// Deletes the nodes that were not seen within so long, by the database's clock.
    async fn forget_nodes(&mut self, within: Duration) -> Result<()>;
}
