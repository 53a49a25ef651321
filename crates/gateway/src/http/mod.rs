//! The HTTP routes beside Socket.IO.

pub mod api;
#[allow(dead_code, reason = "what asks others comes next")]
pub mod client;
pub mod health;
pub mod keys;
pub mod origin;
pub mod problem;
