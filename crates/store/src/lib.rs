//! The database, behind the ports of the domain: SQLite by default, PostgreSQL in production.
//!
//! One SQL text serves both where they agree. On SQLite every write passes one batching writer;
//! on PostgreSQL each tenant has a lane, answers are written by one statement with those of others,
//! and other commands without durable events have a transaction each.

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
mod together;
mod tx;
mod user;

pub use open::{OpenError, Opener, SqlStore};
