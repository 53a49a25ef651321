//! The store behind its ports, and the domain on top of it, against both databases.
//!
//! `PostgreSQL` is used when `CARILLON_TEST_POSTGRES` names a server; `scripts/test` starts one.

mod conformance;
mod lanes;
mod unread;
mod world;
