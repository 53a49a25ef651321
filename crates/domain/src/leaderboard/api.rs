//! Leaderboards for the school's backend.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Board, Entry, Period,
    events::LeaderboardEntry,
    leaderboard_update::announce,
    ranked,
    recompute::{Recomputed, recompute},
    specialty,
};
use crate::{
    api::{Cursor, Method, Operation, OperationRow, Right, operation, page},
    dispatch::Cx,
    ids::{Timestamp, UserId},
    refusal::Refusal,
};

pub const OPERATIONS: &[OperationRow] =
    &[operation::<GetLeaderboard>(), operation::<RecomputeLeaderboards>()];

#[derive(Debug, Deserialize, JsonSchema)]
pub struct GetLeaderboard {
    pub period: Period,
    /// Only users of this specialty; ranks are among them.
    #[serde(default)]
    pub specialty: Option<String>,
    #[serde(default)]
    pub cursor: Option<Cursor>,
    /// 1 to 100; 50 unless said otherwise.
    #[serde(default)]
    pub limit: Option<u32>,
}

/// A page of a board.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BoardPage {
    pub period: Period,
    /// The local date on which the period began.
    pub period_start: String,
    pub items: Vec<LeaderboardEntry>,
    /// For the parameter `cursor` of the next request; null at the end.
    pub next: Option<Cursor>,
}

/// The place after which a page begins.
#[derive(Clone, Debug)]
pub struct After {
    pub total_score: i64,
    pub average: i64,
    pub reached_at: Timestamp,
    pub user: UserId,
}

impl After {
    fn read(cursor: &Cursor) -> Result<Self, Refusal> {
        let invalid = || Refusal::Invalid("cursor: not one that was given out".into());
        let [total_score, average, reached_at, user] = cursor.keys()?;
        let number = |text: &str| text.parse().map_err(|_| invalid());
        Ok(Self {
            total_score: number(&total_score)?,
            average: number(&average)?,
            reached_at: Timestamp(number(&reached_at)?),
            user: UserId::new(user).map_err(|_| invalid())?,
        })
    }
}

impl Operation for GetLeaderboard {
    type Reply = BoardPage;
    const NAME: &'static str = "getLeaderboard";
    const METHOD: Method = Method::Get;
    const PATH: &'static str = "/v1/leaderboards/{period}";
    const RIGHT: Right = Right::ReadLeaderboards;
    const SUMMARY: &'static str = "The board of this week, of this month, or of all time";

    async fn handle(self, cx: &mut Cx<'_>) -> Result<BoardPage, Refusal> {
        let limit = page::limit(self.limit);
        let tenant = &cx.caller.tenant;
        let span = self.period.span(cx.app.leaderboard.zone(tenant), cx.now)?;
        let board =
            Board { period: self.period, specialty: specialty(self.specialty)?, limit: limit + 1 };
        let after = self.cursor.as_ref().map(After::read).transpose()?;
        let mut reads = cx.read().await?;
        let (mut entries, above, at_or_above) = match &after {
            None => (reads.board_standing(tenant, &board, &span, None).await?.entries, 0, 0),
            Some(after) => reads.entries_after(tenant, &board, &span, after).await?,
        };
        let wanted = usize::try_from(limit).unwrap_or(usize::MAX);
        let has_more = entries.len() > wanted;
        entries.truncate(wanted);
        let next = entries.last().filter(|_| has_more).map(|last| {
            let [score, average, at] =
                [last.total_score, last.average, last.reached_at.0].map(|n| n.to_string());
            Cursor::after([&score, &average, &at, last.user.as_str()])
        });
        // Those with the last score of the page before share its rank.
        let last_score = after.map(|after| after.total_score);
        let is_tie = |entry: &&Entry| Some(entry.total_score) == last_score;
        let ties = entries.iter().take_while(is_tie).count();
        let (same, rest) = entries.split_at(ties);
        let mut items = ranked(same, self.period, above + 1);
        items.extend(ranked(rest, self.period, at_or_above + 1));
        Ok(BoardPage { period: self.period, period_start: span.start, items, next })
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct RecomputeLeaderboards {}

/// What is left then is done without the client.
const PATIENCE: Duration = Duration::from_secs(5);

impl Operation for RecomputeLeaderboards {
    type Reply = Recomputed;
    const NAME: &'static str = "recomputeLeaderboards";
    const METHOD: Method = Method::Post;
    const PATH: &'static str = "/v1/leaderboards/recompute";
    const RIGHT: Right = Right::WriteLeaderboards;
    const SUMMARY: &'static str =
        "Folds every entry anew from the results, for example in another time zone";
    const REPEATABLE: bool = true;

    async fn handle(self, cx: &mut Cx<'_>) -> Result<Recomputed, Refusal> {
        let done = recompute(cx.app, &cx.caller.tenant, None, Some(PATIENCE)).await?;
        announce(cx, &done).await?;
        cx.audit("leaderboard.recompute", "", &serde_json::json!({ "users": done.users })).await?;
        Ok(done)
    }
}
