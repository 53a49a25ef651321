//! What leaderboards tell. Rows have `snake_case` keys, as the contract has them.

use std::hash::{Hash as _, Hasher};

use schemars::JsonSchema;
use serde::Serialize;

use super::{Board, Entry, Leaderboards, Period, in_percent};
use crate::{
    contract::{Address, Event, To, ToCaller},
    ids::{Timestamp, UserId},
};

/// One line of a board.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct LeaderboardEntry {
    pub user_id: UserId,
    /// Never empty: clients take its first letter.
    pub user_name: String,
    pub user_avatar: Option<String>,
    pub specialty: Option<String>,
    pub total_score: i64,
    pub exams_completed: i64,
    /// Percent, with two decimals.
    pub average_score: f64,
    /// Equal scores have equal ranks: 1, 2, 2, 4.
    pub rank: i64,
    pub period: Period,
}

impl LeaderboardEntry {
    pub(super) fn new(entry: &Entry, rank: i64, period: Period) -> Self {
        Self {
            user_id: entry.user.clone(),
            user_name: entry.user_name.clone(),
            user_avatar: entry.user_avatar.clone(),
            specialty: entry.specialty.clone(),
            total_score: entry.total_score,
            exams_completed: entry.exams_completed,
            average_score: in_percent(entry.average),
            rank,
            period,
        }
    }

    pub(super) fn digest(&self, hasher: &mut impl Hasher) {
        let texts = (&self.user_id, &self.user_name, &self.user_avatar, &self.specialty);
        let numbers = (self.total_score, self.exams_completed, self.average_score.to_bits());
        (texts, numbers, self.rank, self.period).hash(hasher);
    }
}

/// Where the caller stands.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct UserRank {
    pub rank: i64,
    pub total_score: i64,
    pub exams_completed: i64,
    /// Percent, with two decimals.
    pub average_score: f64,
}

/// The answer to `leaderboard-request`.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LeaderboardData {
    pub period: Period,
    /// Only when one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub specialty: Option<String>,
    pub entries: Vec<LeaderboardEntry>,
    /// The caller's own place on this board; null without an entry.
    pub user_rank: Option<UserRank>,
    pub timestamp: Timestamp,
}
impl Event for LeaderboardData {
    type In = Leaderboards;
    type To = ToCaller;
    const NAME: &'static str = "leaderboard-data";
}

/// A board has changed: to those who look at it, at most once a second; the weekly one also to
/// those who never asked, at most every 30 seconds.
#[derive(Debug, Serialize, JsonSchema)]
pub struct LeaderboardUpdated {
    pub period: Period,
    /// Only for a board of one specialty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub specialty: Option<String>,
    pub entries: Vec<LeaderboardEntry>,
    pub timestamp: Timestamp,
}

/// Those who see a board.
#[derive(Debug)]
pub enum ToViewers {
    /// Sockets whose last request was for this board.
    Lookers(Board),
    /// Sockets that never asked.
    Bystanders,
    Everyone,
}
impl From<ToViewers> for Address {
    fn from(to: ToViewers) -> Self {
        match to {
            ToViewers::Lookers(board) => Self::Lookers(board),
            ToViewers::Bystanders => Self::Bystanders,
            ToViewers::Everyone => Self::Tenant,
        }
    }
}
impl To for ToViewers {
    const WHOM: &'static str = "those who look at the board, or who never asked";
}

impl Event for LeaderboardUpdated {
    type In = Leaderboards;
    type To = ToViewers;
    const NAME: &'static str = "leaderboard-updated";
}
