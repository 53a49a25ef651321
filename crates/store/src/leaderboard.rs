//! Leaderboard entries.

use async_trait::async_trait;
use carillon_domain::ports::{LeaderboardReads, LeaderboardWrites};

use crate::tx::SqlTx;

#[async_trait]
impl LeaderboardReads for SqlTx {}

#[async_trait]
impl LeaderboardWrites for SqlTx {}
