//! `leaderboard-update`: folds every entry anew, and shows everybody the weekly board.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    Board, Leaderboards,
    events::{LeaderboardUpdated, ToViewers},
    ranked,
    recompute::{Recomputed, recompute},
    standing,
};
use crate::{
    contract::{Class, Command, Handle, Policy},
    dispatch::{Cx, Effect},
    identity::Role,
    refusal::{Code, Refusal},
};

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct LeaderboardUpdate {}

/// How long a client waits at most; what is left then is done without it.
const PATIENCE: Duration = Duration::from_millis(1_500);

impl Command for LeaderboardUpdate {
    type In = Leaderboards;
    type Reply = Recomputed;
    const NAME: &'static str = "leaderboard-update";
    const POLICY: Policy = Policy::new(
        Class::Leaderboard,
        "Failed to update leaderboard",
        "Failed to update leaderboard",
    )
    .rows_only()
    .roles(&[Role::SuperAdmin, Role::ProgramAdmin])
    .texts(&[(Code::Forbidden, "Unauthorized")]);
    fn example() -> Self {
        Self {}
    }
}

impl Handle for LeaderboardUpdate {
    async fn handle(self, cx: &mut Cx<'_>) -> Result<Recomputed, Refusal> {
        let done = recompute(cx.app, &cx.caller.tenant, None, Some(PATIENCE)).await?;
        cx.audit("leaderboard.recompute", "", &json!({ "users": done.users })).await?;
        announce(cx, &done).await?;
        Ok(done)
    }
}

/// Shows everybody the weekly board, and those who look at another one theirs; or leaves both to
/// whoever does the rest.
pub(super) async fn announce(cx: &mut Cx<'_>, done: &Recomputed) -> Result<(), Refusal> {
    if let Some(user) = &done.rest_after {
        cx.record(Effect::Recompute { after: user.clone() });
        return Ok(());
    }
    let board = Board::common();
    let entries = ranked(&standing(cx, &board, None).await?.entries, board.period, 1);
    let period = board.period;
    let updated = LeaderboardUpdated { period, specialty: None, entries, timestamp: cx.now };
    cx.send(ToViewers::Everyone, &updated)?;
    cx.record(Effect::ShowBoards);
    Ok(())
}
