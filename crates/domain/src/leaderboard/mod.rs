//! Who has done how well, by week, by month and ever.

use crate::contract::{EventRow, Namespace, Route};

pub const COMMANDS: &[Route] = &[];
pub const EVENTS: &[EventRow] = &[];

/// On `/`, `/api` and `/leaderboard`.
#[derive(Debug)]
pub enum Leaderboards {}
impl Namespace for Leaderboards {
    const PATHS: &'static [&'static str] = &["/", "/api", "/leaderboard"];
}
