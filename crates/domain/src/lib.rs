//! What Carillon does, without a transport and without a database.
//!
//! A command comes in as a payload, passes [`dispatch`], and ends as committed rows and a list of
//! effects. The crate declares what it needs from outside in [`ports`]; it never sends anything.

pub mod api;
pub mod chat;
pub mod contract;
pub mod credential;
pub mod dispatch;
pub mod exam;
pub mod identity;
pub mod ids;
pub mod leaderboard;
pub mod notification;
pub mod ports;
pub mod presence;
pub mod recovery;
pub mod refusal;
pub mod session;
pub mod study_group;

pub use contract::{COMMANDS, EVENTS};
pub use dispatch::{App, Caller, Cx, Done, Effect, Emit};
pub use ids::{AppId, ConnectionId, MessageId, Offset, RoomId, Seq, TenantId, Timestamp, UserId};
pub use refusal::{Code, Refusal};

#[cfg(test)]
mod tables;
