//! Leaderboard entries.

use async_trait::async_trait;

use super::Result;
use crate::{
    ids::{TenantId, Timestamp, UserId},
    leaderboard::{Board, Counted, Entry, Folded, Span, Standing, api::After},
};

#[async_trait]
pub trait LeaderboardReads: Send {
    /// What a board shows in a span, and a user's own place on it: one snapshot.
    async fn board_standing(
        &mut self,
        tenant: &TenantId,
        board: &Board,
        span: &Span,
        user: Option<&UserId>,
    ) -> Result<Standing>;
    /// The entries after a place, how many have a higher score than that place, and how many
    /// have its score or a higher one.
    async fn entries_after(
        &mut self,
        tenant: &TenantId,
        board: &Board,
        span: &Span,
        after: &After,
    ) -> Result<(Vec<Entry>, i64, i64)>;
    /// How often the entries of each tenant have changed.
    async fn leaderboard_revisions(&mut self) -> Result<Vec<(TenantId, i64)>>;
    /// Users after an id who have results that count, or entries, by id.
    async fn users_of_boards(
        &mut self,
        tenant: &TenantId,
        after: &str,
        limit: u32,
    ) -> Result<Vec<UserId>>;
    /// The results that count, of all users after one up to another.
    async fn counted_results(
        &mut self,
        tenant: &TenantId,
        after: &str,
        up_to: &str,
    ) -> Result<Vec<Counted>>;
    /// The results of one user that count.
    async fn counted_results_of(
        &mut self,
        tenant: &TenantId,
        user: &UserId,
    ) -> Result<Vec<Counted>>;
    /// The entries of all users after one up to another, as they are kept.
    async fn kept_entries(
        &mut self,
        tenant: &TenantId,
        after: &str,
        up_to: &str,
    ) -> Result<Vec<Folded>>;
    /// The entries of one user, as they are kept.
    async fn kept_entries_of(&mut self, tenant: &TenantId, user: &UserId) -> Result<Vec<Folded>>;
}

#[async_trait]
pub trait LeaderboardWrites: Send {
    /// Folds the results of users in these spans into entries; what has no results has none.
    async fn fold_entries(
        &mut self,
        tenant: &TenantId,
        users: &[UserId],
        spans: &[Span; 3],
        now: Timestamp,
    ) -> Result<()>;
    /// Removes some entries and writes others, new or not.
    async fn replace_entries(
        &mut self,
        tenant: &TenantId,
        gone: &[Folded],
        changed: &[Folded],
        now: Timestamp,
    ) -> Result<()>;
    /// Boards look different though their entries have not changed.
    async fn revise_boards(&mut self, tenant: &TenantId) -> Result<()>;
}
