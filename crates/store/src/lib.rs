//! The database, behind the ports of the domain: SQLite by default, PostgreSQL in production.
//!
//! One SQL text serves both where they agree. On SQLite every write passes one batching writer;
//! on PostgreSQL each tenant has a lane, and commands without durable events a transaction each.

mod api;
mod batch;
mod chat;
mod connections;
mod error;
mod exam;
pub mod import;
mod joined_rooms;
mod lane;
mod leaderboard;
mod leases;
mod nodes;
mod notification;
mod open;
mod outbox;
mod rows;
mod sitting;
mod stay;
mod study_group;
mod time;
mod tx;
mod user;

pub use open::{OpenError, Opener, SqlStore};
