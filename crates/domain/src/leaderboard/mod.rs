//! Who has done how well, by week, by month and ever.

use crate::{
    contract::{EventRow, Namespace, Route},
    dispatch::Cx,
    ids::{Timestamp, UserId},
    refusal::Refusal,
};

pub const COMMANDS: &[Route] = &[];
pub const EVENTS: &[EventRow] = &[];

/// On `/`, `/api` and `/leaderboard`.
#[derive(Debug)]
pub enum Leaderboards {}
impl Namespace for Leaderboards {
    const PATHS: &'static [&'static str] = &["/", "/api", "/leaderboard"];
}

/// A change of what a user has done: a result released, revised or voided.
#[derive(Clone, Debug)]
pub struct Change {
    pub user: UserId,
    pub completed_at: Timestamp,
    pub results: i64,
    pub score: i64,
    pub percent: i64,
}

pub async fn revise(cx: &mut Cx<'_>, _: &Change) -> Result<(), Refusal> {
    cx.tx().await.map(|_| ())
}
