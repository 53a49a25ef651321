//! `leaderboard-request`: a board and one's own place on it, and from then on its changes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Board, DEFAULT_LIMIT, Leaderboards, MAX_LIMIT, Period, digest,
    events::{LeaderboardData, UserRank},
    ranked, specialty, standing,
};
use crate::{
    contract::{Class, Command, Handle, Policy, ToCaller},
    dispatch::{Cx, Effect},
    refusal::Refusal,
};

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct LeaderboardRequest {
    /// `weekly` unless said otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub period: Option<Period>,
    /// Only users of this specialty; ranks are among them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub specialty: Option<String>,
    /// 1 to 100; 50 unless said otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<i64>,
}

/// What the socket looks at now; the entries come as `leaderboard-data`.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Looking {
    pub period: Period,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub specialty: Option<String>,
    pub limit: u32,
    pub user_rank: Option<UserRank>,
}

const FAILED: &str = "Failed to fetch leaderboard";

impl Command for LeaderboardRequest {
    type In = Leaderboards;
    type Reply = Looking;
    const NAME: &'static str = "leaderboard-request";
    const POLICY: Policy = Policy::new(Class::Leaderboard, FAILED, FAILED).rows_only();
    fn example() -> Self {
        Self { period: Some(Period::Weekly), specialty: None, limit: Some(50) }
    }
}

impl Handle for LeaderboardRequest {
    async fn handle(self, cx: &mut Cx<'_>) -> Result<Looking, Refusal> {
        let limit = self.limit.unwrap_or(i64::from(DEFAULT_LIMIT)).clamp(1, i64::from(MAX_LIMIT));
        let board = Board {
            period: self.period.unwrap_or(Period::Weekly),
            specialty: specialty(self.specialty)?,
            limit: u32::try_from(limit).unwrap_or(DEFAULT_LIMIT),
        };
        let standing = standing(cx, &board, Some(&cx.caller.user)).await?;
        let entries = ranked(&standing.entries, board.period, 1);
        let seen = digest(&entries);
        let user_rank = standing.own.as_ref().map(UserRank::new);
        let data = LeaderboardData {
            period: board.period,
            specialty: board.specialty.clone(),
            entries,
            user_rank: user_rank.clone(),
            timestamp: cx.now,
        };
        cx.send(ToCaller(), &data)?;
        let Board { period, specialty, limit } = board.clone();
        cx.record(Effect::Look { board, seen });
        Ok(Looking { period, specialty, limit, user_rank })
    }
}
