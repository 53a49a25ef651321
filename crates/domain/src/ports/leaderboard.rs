//! Leaderboard entries.

use async_trait::async_trait;

#[async_trait]
pub trait LeaderboardReads: Send {}

#[async_trait]
pub trait LeaderboardWrites: Send {}
