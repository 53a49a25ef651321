//! The store behind its ports, and the domain on top of it, against both databases.
//!
//! `PostgreSQL` is used when `CARILLON_TEST_POSTGRES` names a server; `scripts/test` starts one.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so")]

mod attempts;
mod audit;
mod conformance;
mod exams;
mod groups;
mod lanes;
mod leaderboard;
mod leases;
mod nodes;
mod notifications;
mod returning;
mod tenants;
mod unread;
mod world;
