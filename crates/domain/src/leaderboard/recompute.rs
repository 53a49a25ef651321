//! Folding every entry of a tenant anew from the results: some users at a time, each time in a
//! transaction of its own, so that nobody waits for long. In between both kinds of entries are
//! right, old and new.

use std::{collections::HashMap, time::Duration};

use jiff::tz::TimeZone;
use schemars::JsonSchema;
use serde::Serialize;

use super::{Folded, fold};
use crate::{
    contract::Scope,
    dispatch::{App, Cx},
    ids::{TenantId, Timestamp, UserId},
    ports::{Clock, Store, Tx},
    refusal::Refusal,
};

/// Users of one transaction.
const CHUNK: u32 = 500;

/// What was folded anew.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Recomputed {
    pub users: usize,
    pub entries: usize,
    /// Entries that were not what they should be.
    pub repaired: usize,
    /// False when the rest is being done without the asker.
    pub complete: bool,
    /// Where that begins.
    #[serde(skip)]
    pub rest_after: Option<UserId>,
}

/// Folds the entries of all users after one, for so long.
pub async fn recompute(
    app: &App,
    tenant: &TenantId,
    after: Option<UserId>,
    patience: Option<Duration>,
) -> Result<Recomputed, Refusal> {
    let zone = app.leaderboard.zone(tenant);
    fold_again(app.store.as_ref(), app.clock.as_ref(), zone, tenant, after, patience).await
}

/// As [`recompute`], beside a running server.
pub async fn fold_again(
    store: &dyn Store,
    clock: &dyn Clock,
    zone: &TimeZone,
    tenant: &TenantId,
    after: Option<UserId>,
    patience: Option<Duration>,
) -> Result<Recomputed, Refusal> {
    let until = patience.map(|patience| clock.now().after(patience));
    let mut done = Recomputed { rest_after: after, ..Recomputed::default() };
    loop {
        let mut tx = store.begin(tenant, Scope::Lane).await?;
        let after = done.rest_after.as_ref().map_or("", UserId::as_str);
        let users = tx.users_of_boards(tenant, after, CHUNK).await?;
        let Some(last) = users.last() else { break };
        let results = tx.counted_results(tenant, after, last.as_str()).await?;
        let entries = fold(zone, &results)?;
        done.users += users.len();
        done.entries += entries.len();
        let kept = tx.kept_entries(tenant, after, last.as_str()).await?;
        done.repaired += repair(tx.as_mut(), tenant, kept, entries, clock.now()).await?;
        tx.commit().await?;
        done.rest_after = Some(last.clone());
        if users.len() < usize::try_from(CHUNK).unwrap_or(usize::MAX) {
            break;
        }
        if until.is_some_and(|until| clock.now() >= until) {
            return Ok(done);
        }
    }
    Ok(Recomputed { complete: true, rest_after: None, ..done })
}

/// The user's specialty or standing has changed: their entries follow, in the same transaction.
pub(crate) async fn follow_user(cx: &mut Cx<'_>, user: &UserId) -> Result<(), Refusal> {
    let (tenant, now) = (cx.caller.tenant.clone(), cx.now);
    let zone = cx.app.leaderboard.zone(&tenant).clone();
    let tx = cx.tx().await?;
    let results = tx.counted_results_of(&tenant, user).await?;
    let entries = fold(&zone, &results)?;
    let kept = tx.kept_entries_of(&tenant, user).await?;
    repair(tx, &tenant, kept, entries, now).await.map(|_| ())
}

/// Writes what differs, and only that; says how much.
async fn repair(
    tx: &mut dyn Tx,
    tenant: &TenantId,
    kept: Vec<Folded>,
    right: Vec<Folded>,
    now: Timestamp,
) -> Result<usize, Refusal> {
    let key = |entry: &Folded| (entry.period, entry.period_start.clone(), entry.user.clone());
    let mut kept: HashMap<_, _> = kept.into_iter().map(|entry| (key(&entry), entry)).collect();
    let changed: Vec<Folded> = right
        .into_iter()
        .filter(|entry| kept.remove(&key(entry)).as_ref() != Some(entry))
        .collect();
    let gone: Vec<Folded> = kept.into_values().collect();
    let count = gone.len() + changed.len();
    if count > 0 {
        tx.replace_entries(tenant, &gone, &changed, now).await?;
    }
    Ok(count)
}
