//! The HTTP routes beside Socket.IO.

pub mod health;
pub mod origin;
