//! The HTTP routes beside Socket.IO.

pub mod api;
pub mod client;
pub mod health;
pub mod keys;
pub mod origin;
pub mod problem;
