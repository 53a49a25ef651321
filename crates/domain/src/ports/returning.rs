//! The rooms of sockets, kept for those who come back.

use async_trait::async_trait;

use super::Result;
use crate::{
    chat::returning::Noted,
    ids::{TenantId, Timestamp, UserId},
    recovery::{Claim, Session},
    session::Kept,
};

#[async_trait]
pub trait ReturnReads: Send {
    /// What the user is to be brought who has come to a namespace.
    async fn kept(
        &mut self,
        tenant: &TenantId,
        user: &UserId,
        namespace: &str,
        now: Timestamp,
    ) -> Result<Kept>;
    /// The sessions that clients claim, in the order of the claims.
    async fn sessions(&mut self, claims: &[Claim]) -> Result<Vec<Option<Session>>>;
}

#[async_trait]
pub trait ReturnWrites: Send {
    /// Writes changes, in their order, for this run of the server; of several tenants at once.
    async fn note_rooms(&mut self, node: &str, changes: &[Noted]) -> Result<()>;
    /// Sockets of other runs of the server, in all tenants, are lost since their users were last
    /// seen.
    async fn lose_rooms_of_others(&mut self, node: &str, now: Timestamp) -> Result<()>;
    /// The user has come back: after a while nobody else is put into the rooms of what was lost.
    async fn note_return(
        &mut self,
        tenant: &TenantId,
        user: &UserId,
        namespace: &str,
        now: Timestamp,
    ) -> Result<()>;
    /// Deletes sessions and rooms of sockets lost before an instant, at most `limit`; says how many.
    async fn forget_rooms(&mut self, before: Timestamp, limit: u32) -> Result<u64>;
}
