//! Leaderboards that somebody looks at: when they change, those who look are shown.
//!
//! Who looks is known by rooms; here is only what each board showed last. A counter in the
//! database says whether a tenant's entries have changed, on whichever node, so nothing is asked
//! twice a second but that one number. What is shown is read once per list, however many look.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use carillon_domain::{
    App as Domain, Effect, Emit, Refusal, TenantId, Timestamp, UserId,
    leaderboard::{
        Board, MAX_LIMIT, Period, digest,
        events::{LeaderboardEntry, LeaderboardUpdated, ToViewers},
        list,
        recompute::recompute,
    },
};

use crate::fanout::{Fanout, board_room};

/// A board is shown at most this often to those who look at it.
const PACE: Duration = Duration::from_secs(1);
/// The weekly board is shown at most this often to those who never asked.
const COMMON_PACE: Duration = Duration::from_secs(30);

/// The boards of this node.
#[derive(Default)]
pub struct Boards {
    tenants: Mutex<HashMap<TenantId, Tenant>>,
}

#[derive(Default)]
struct Tenant {
    revision: i64,
    /// Of the week and of the month that are shown.
    starts: [String; 2],
    looked_at: HashMap<Board, Shown>,
    common: Shown,
    /// Users after this one are to be folded anew.
    recompute_after: Option<UserId>,
}

/// What those who see a board have seen.
#[derive(Clone, Debug, Default)]
struct Shown {
    /// `None`: not all of them the same.
    digest: Option<u64>,
    at: Option<Instant>,
    /// Whether it may have changed since.
    is_due: bool,
}

impl Shown {
    fn is_ready(&self, pace: Duration, now: Instant) -> bool {
        self.is_due && self.at.is_none_or(|at| now.duration_since(at) >= pace)
    }
}

impl Boards {
    fn lock(&self) -> MutexGuard<'_, HashMap<TenantId, Tenant>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before the first socket of a tenant is let in: what is there by then is no news to it.
    pub async fn begin(&self, domain: &Domain, tenant: &TenantId) -> Result<(), Refusal> {
        // The counter first: what changes meanwhile is looked at again.
        let revisions = domain.store.read().await?.leaderboard_revisions().await?;
        let revision = revisions.iter().find(|(of, _)| of == tenant).map_or(0, |(_, n)| *n);
        let (starts, now) = (starts(domain, tenant)?, domain.clock.now());
        let mut lists = Lists { domain, tenant, now, read: HashMap::new() };
        let digest = Some(digest(&lists.get(&Board::common()).await?));
        let common = Shown { digest, at: None, is_due: false };
        let begun = Tenant { revision, starts, common, ..Tenant::default() };
        self.lock().entry(tenant.clone()).or_insert(begun);
        Ok(())
    }

    /// A socket looks at a board; it was shown a list of that digest a moment ago.
    pub fn looked(&self, tenant: &TenantId, board: Board, seen: u64) {
        let mut tenants = self.lock();
        let boards = &mut tenants.entry(tenant.clone()).or_default().looked_at;
        let shown =
            boards.entry(board).or_insert(Shown { digest: Some(seen), at: None, is_due: false });
        if shown.digest != Some(seen) {
            shown.digest = None;
        }
        // What was committed between the snapshot and now is seen at the next look.
        shown.is_due = true;
    }

    /// Those who look are shown their boards again, changed or not.
    pub fn show_again(&self, tenant: &TenantId) {
        if let Some(tenant) = self.lock().get_mut(tenant) {
            for (board, shown) in &mut tenant.looked_at {
                // That one everybody has just been shown.
                if *board != Board::common() {
                    *shown = Shown { digest: None, at: None, is_due: true };
                }
            }
        }
    }

    /// The rest of the users is folded anew by the next ticks.
    pub fn recompute(&self, tenant: &TenantId, after: UserId) {
        self.lock().entry(tenant.clone()).or_default().recompute_after = Some(after);
    }

    /// Looks for changes, and shows them; called twice a second.
    pub async fn tick(&self, domain: &Domain, fanout: &Fanout) -> Result<(), Refusal> {
        let tenants = fanout.tenants();
        if tenants.is_empty() {
            return Ok(());
        }
        self.go_on_recomputing(domain, fanout).await?;
        let mut reads = domain.store.read().await?;
        let revisions: HashMap<TenantId, i64> =
            reads.leaderboard_revisions().await?.into_iter().collect();
        drop(reads);
        let mut result = Ok(());
        for tenant in tenants {
            let revision = revisions.get(&tenant).copied().unwrap_or_default();
            if let Err(refusal) = self.show_tenant(domain, fanout, &tenant, revision).await {
                // Whatever was not shown is looked at again.
                if let Some(known) = self.lock().get_mut(&tenant) {
                    known.revision = -1;
                }
                result = Err(refusal);
            }
        }
        result
    }

    async fn show_tenant(
        &self,
        domain: &Domain,
        fanout: &Fanout,
        tenant: &TenantId,
        revision: i64,
    ) -> Result<(), Refusal> {
        let now = domain.clock.now();
        let mut lists = Lists { domain, tenant, now, read: HashMap::new() };
        let due = self.due(tenant, revision, starts(domain, tenant)?, Instant::now());
        for board in due {
            let (to, pace_of) = match &board {
                Some(board) => {
                    if !fanout.is_anybody_in(&board_room(tenant, board)) {
                        self.forget(tenant, board);
                        continue;
                    }
                    (ToViewers::Lookers(board.clone()), board.clone())
                }
                None => (ToViewers::Bystanders, Board::common()),
            };
            let entries = lists.get(&pace_of).await?;
            if !self.has_changed(tenant, board.as_ref(), digest(&entries)) {
                continue;
            }
            let Board { period, specialty, .. } = pace_of;
            let updated = LeaderboardUpdated { period, specialty, entries, timestamp: now };
            fanout.deliver_system(tenant, Effect::Emit(Emit::new(to, &updated)?));
        }
        Ok(())
    }

    /// The boards to look at again now; `None` stands for those who never asked.
    fn due(
        &self,
        tenant: &TenantId,
        revision: i64,
        starts: [String; 2],
        now: Instant,
    ) -> Vec<Option<Board>> {
        let mut tenants = self.lock();
        let known = tenants.entry(tenant.clone()).or_default();
        if known.revision != revision || known.starts != starts {
            known.revision = revision;
            known.starts = starts;
            known.common.is_due = true;
            known.looked_at.values_mut().for_each(|shown| shown.is_due = true);
        }
        let mut due = Vec::new();
        if known.common.is_ready(COMMON_PACE, now) {
            known.common.is_due = false;
            due.push(None);
        }
        for (board, shown) in &mut known.looked_at {
            if shown.is_ready(PACE, now) {
                shown.is_due = false;
                due.push(Some(board.clone()));
            }
        }
        due
    }

    /// Notes what is about to be shown; false when it was shown already.
    fn has_changed(&self, tenant: &TenantId, board: Option<&Board>, digest: u64) -> bool {
        let mut tenants = self.lock();
        let Some(known) = tenants.get_mut(tenant) else { return false };
        let shown = match board {
            Some(board) => known.looked_at.get_mut(board),
            None => Some(&mut known.common),
        };
        let Some(shown) = shown.filter(|shown| shown.digest != Some(digest)) else { return false };
        shown.digest = Some(digest);
        shown.at = Some(Instant::now());
        true
    }

    fn forget(&self, tenant: &TenantId, board: &Board) {
        if let Some(known) = self.lock().get_mut(tenant) {
            known.looked_at.remove(board);
        }
    }

    /// Folds what a command had no time for, and then shows everybody.
    async fn go_on_recomputing(&self, domain: &Domain, fanout: &Fanout) -> Result<(), Refusal> {
        let pending: Vec<(TenantId, UserId)> = {
            let mut tenants = self.lock();
            let take = |(tenant, known): (&TenantId, &mut Tenant)| {
                Some((tenant.clone(), known.recompute_after.clone()?))
            };
            tenants.iter_mut().filter_map(take).collect()
        };
        for (tenant, after) in pending {
            // A slice per tick: boards are shown meanwhile.
            let done =
                recompute(domain, &tenant, Some(after.clone()), Some(Duration::from_millis(500)));
            let rest = done.await?.rest_after;
            let is_done = rest.is_none();
            if let Some(known) = self.lock().get_mut(&tenant)
                && known.recompute_after.as_ref() == Some(&after)
            {
                known.recompute_after = rest;
            }
            if is_done {
                self.announce(domain, fanout, &tenant).await?;
            }
        }
        Ok(())
    }

    async fn announce(
        &self,
        domain: &Domain,
        fanout: &Fanout,
        tenant: &TenantId,
    ) -> Result<(), Refusal> {
        let now = domain.clock.now();
        let mut lists = Lists { domain, tenant, now, read: HashMap::new() };
        let (board, to) = (Board::common(), ToViewers::Everyone);
        let entries = lists.get(&board).await?;
        let (period, specialty) = (board.period, None);
        let updated = LeaderboardUpdated { period, specialty, entries, timestamp: now };
        fanout.deliver_system(tenant, Effect::Emit(Emit::new(to, &updated)?));
        // Who looks at a list of a specialty has just been shown this one, on every node.
        fanout.deliver_system(tenant, Effect::ShowBoards);
        Ok(())
    }
}

/// When this week and this month began.
fn starts(domain: &Domain, tenant: &TenantId) -> Result<[String; 2], Refusal> {
    let (zone, now) = (domain.leaderboard.zone(tenant), domain.clock.now());
    Ok([Period::Weekly.span(zone, now)?.start, Period::Monthly.span(zone, now)?.start])
}

/// Lists read at one moment: one query for all lengths of a list.
struct Lists<'a> {
    domain: &'a Domain,
    tenant: &'a TenantId,
    now: Timestamp,
    read: HashMap<(Period, Option<String>), Vec<LeaderboardEntry>>,
}

impl Lists<'_> {
    async fn get(&mut self, board: &Board) -> Result<Vec<LeaderboardEntry>, Refusal> {
        let limit = usize::try_from(board.limit).unwrap_or(usize::MAX);
        let key = (board.period, board.specialty.clone());
        if let Some(entries) = self.read.get(&key) {
            return Ok(entries.iter().take(limit).cloned().collect());
        }
        let longest = Board { limit: MAX_LIMIT, ..board.clone() };
        let span = board.period.span(self.domain.leaderboard.zone(self.tenant), self.now)?;
        let mut reads = self.domain.store.read().await?;
        let entries = list(reads.as_mut(), self.tenant, &longest, &span).await?;
        let shown = entries.iter().take(limit).cloned().collect();
        self.read.insert(key, entries);
        Ok(shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn starts(week: &str) -> [String; 2] {
        [week.to_owned(), "2026-11-01".to_owned()]
    }

    #[test]
    fn a_board_is_looked_at_when_it_may_have_changed_and_its_time_has_come() {
        let (boards, tenant) = (Boards::default(), TenantId::new("t").unwrap());
        let monthly = Board { period: Period::Monthly, ..Board::common() };
        let began = Instant::now();
        let due = |revision, week: &str, after| {
            boards.due(&tenant, revision, starts(week), began + Duration::from_millis(after))
        };
        boards.looked(&tenant, monthly.clone(), 7);
        assert_eq!(due(0, "2026-11-16", 0), [None, Some(monthly.clone())]);
        assert!(due(0, "2026-11-16", 500).is_empty(), "nothing has changed");
        // Shown is noted with the time at which it was.
        assert!(boards.has_changed(&tenant, Some(&monthly), 8));
        assert!(boards.has_changed(&tenant, None, 8));
        assert!(!boards.has_changed(&tenant, None, 8), "the list is the same");
        assert!(due(1, "2026-11-16", 0).is_empty(), "too soon for either");
        assert_eq!(due(1, "2026-11-16", 2_000), [Some(monthly.clone())]);
        assert_eq!(due(1, "2026-11-16", 40_000), [None]);
        // The week rolls over by itself.
        assert_eq!(due(1, "2026-11-23", 80_000), [None, Some(monthly)]);
    }
}
