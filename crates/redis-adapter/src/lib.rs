//! How events reach sockets, on this node and on others.
//!
//! [`local`] is the adapter that socketioxide delivers through: this node's sockets, first and
//! without waiting for anything. [`cluster`] is the classic protocol of Node's
//! `@socket.io/redis-adapter`, in the format of [`wire`], over the connections to Redis that
//! [`link`] keeps: Node servers and emitters stand in the same cluster.

pub mod cluster;
pub mod link;
mod local;
pub mod wire;

pub use local::{Broadcast, Hub, NodeAdapter, Tap, ack_frame, event_frame, text_frame};
pub use rmpv::Value;
