//! What happens by itself.
//!
//! What the whole cluster does once is done by the node that holds the lease (`leases.rs`), in
//! transactions that are kept only while it does: making attempts final, releasing and regrading
//! results, deleting what is kept no longer. The rest is every node's own: what it delivers, shows,
//! and knows in memory, and whom it cuts. Two of these look as if they were not. A notification is
//! pushed to sockets of this node only, and claimed by who pushes it. That another node is gone must be
//! seen at once, also when it was the holder: who comes back is put into their rooms by it.

mod exams;
mod leases;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use carillon_domain::{
    Effect, Refusal, TenantId, Timestamp, UserId,
    api::refused,
    chat::returning,
    contract::Scope,
    notification,
    ports::{ChangedUser, Lease, Tx},
    presence::NOTED_EVERY,
    session,
};
use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use self::leases::Held;
use crate::{
    edge::{Edge, tls::Certificates},
    gateway::Gateway,
    inbox::{self, Item},
    limits::Limiter,
};

/// Typing and presence are told within this of being due.
const TICK: Duration = Duration::from_millis(250);
/// The counter is compared with what was delivered this often.
const RELAY: Duration = Duration::from_secs(1);
/// An event that came early waits this long for the one before it.
const HOLE: Duration = Duration::from_millis(50);
/// Rights end within a second, whoever changed the user's row.
const RIGHTS: Duration = Duration::from_millis(500);
/// A change is acted upon for so long: somebody may be coming in by what held before.
const SETTLING: Duration = Duration::from_secs(5);
/// Who has just come is noted within this.
const NOTE: Duration = Duration::from_secs(2);
/// Who has just come may go on after a crash that comes later than this.
const ROOMS: Duration = Duration::from_millis(100);
/// Whose node is gone is put back into their rooms by another one from then on.
const TAKE_OVER: Duration = Duration::from_millis(500);
/// A refusal is in the audit log within this.
const REFUSALS: Duration = Duration::from_secs(1);
/// A board that has changed is shown within this, and the time that takes.
const BOARDS: Duration = Duration::from_millis(500);
/// What could not be pushed to somebody who listens is found within this.
const UNDELIVERED: Duration = Duration::from_secs(1);
/// A row may become visible so long after the time it bears.
const LATE: Duration = Duration::from_secs(30);
/// So many users are brought what they were not sent in one short transaction, and then everybody
/// else has a turn: some hundreds of users a second.
const AT_ONCE: usize = 25;
const BREATH: Duration = Duration::from_millis(25);
const SWEEP: Duration = Duration::from_secs(1);
const FORGET: Duration = Duration::from_mins(1);
/// Outbox rows and replies are kept this long, and deleted so many at a time.
const KEPT: Duration = Duration::from_hours(24);
const BATCH: u32 = 500;

/// Runs every job until `stop`.
pub async fn run(
    gateway: Arc<Gateway>,
    limiter: Arc<Limiter>,
    edge: Edge,
    certificates: Option<Arc<Certificates>>,
    stop: CancellationToken,
) {
    let (keeper, held) = leases::new();
    let jobs = async {
        tokio::join!(
            keeper.keep(&gateway),
            tick(&gateway),
            relay(&gateway),
            rights(&gateway),
            exams::finish_attempts(&gateway, &held),
            exams::carry_out_results(&gateway, &held),
            sweep(&gateway),
            note_seen(&gateway),
            note_rooms(&gateway),
            take_over(&gateway),
            note_refusals(&gateway),
            undelivered(&gateway),
            forget(&gateway, &limiter, &held),
            close(&gateway, edge),
            boards(&gateway),
            follow(certificates),
            gateway.authenticator.keep_keys_fresh(),
        )
    };
    stop.run_until_cancelled(Box::pin(jobs)).await;
    keeper.leave(&gateway).await;
}

fn every(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

async fn tick(gateway: &Gateway) {
    let mut ticks = every(TICK);
    loop {
        ticks.tick().await;
        // Who moved to another node while that was not heard is not gone.
        let hears = gateway.peers.as_ref().is_none_or(|peers| peers.talk.hears());
        for (tenant, effect, is_ours) in session::tick(&gateway.domain, hears) {
            if is_ours {
                gateway.fanout.deliver_system(&tenant, effect);
            } else {
                gateway.fanout.deliver_here(&tenant, effect);
            }
        }
        gateway.fanout.tell_crowds();
        gateway.fanout.expire(gateway.domain.clock.now());
    }
}

async fn relay(gateway: &Gateway) {
    let mut was_away = false;
    loop {
        let hole = async {
            gateway.fanout.hole.notified().await;
            tokio::time::sleep(HOLE).await;
        };
        // Either way the outbox is read.
        let _ = tokio::time::timeout(RELAY, hole).await;
        was_away = report("the outbox relay", gateway.fanout.repair().await, was_away);
    }
}

/// One line when it cannot go on, which is the database's doing or that of who holds its lease, and
/// one when it goes on.
fn report(what: &str, result: Result<(), Refusal>, was_away: bool) -> bool {
    match (result, was_away) {
        (Ok(()), true) => tracing::info!("{what} works again"),
        (Err(error), false) => {
            tracing::warn!(code = error.code().as_str(), "{what} has to wait");
            return true;
        }
        (Ok(()), false) => {}
        (Err(_), true) => return true,
    }
    false
}

async fn rights(gateway: &Arc<Gateway>) {
    let mut was_away = false;
    let mut changes = Changes::default();
    let mut ticks = every(RIGHTS);
    loop {
        ticks.tick().await;
        let result = changes.follow(gateway).await;
        was_away = report("the watch over users' rights", result, was_away);
    }
}

/// The changes of users' rows that were acted upon.
#[derive(Default)]
struct Changes {
    seen: HashMap<i64, Instant>,
    looked: Option<Instant>,
}

impl Changes {
    /// Brings the sockets of users who have changed up to date.
    async fn follow(&mut self, gateway: &Arc<Gateway>) -> Result<(), Refusal> {
        let now = Instant::now();
        let within = LATE + self.looked.map_or(Duration::ZERO, |at| now - at);
        self.seen.retain(|_, at| now - *at <= within + SETTLING);
        let changed = gateway.domain.store.read().await?.changed_users(within).await?;
        // One user may have changed several times, and only the latest is new.
        let mut due: HashMap<(TenantId, UserId), bool> = HashMap::new();
        for ChangedUser { id, tenant, user } in changed {
            let seen = *self.seen.entry(id).or_insert(now);
            if now - seen <= SETTLING {
                *due.entry((tenant, user)).or_default() |= seen == now;
            }
        }
        for ((tenant, user), is_new) in due {
            if let Err(refusal) = follow_user(gateway, &tenant, &user, is_new).await {
                // All that is new stays new until it could be followed.
                self.seen.retain(|_, seen| *seen != now);
                return Err(refusal);
            }
        }
        self.looked = Some(now);
        Ok(())
    }
}

/// Brings the sockets of one user up to date. Those whose caller is another one now, and all of
/// them after something new, are taken out of what they may not hear any more.
async fn follow_user(
    gateway: &Arc<Gateway>,
    tenant: &TenantId,
    user: &UserId,
    is_new: bool,
) -> Result<(), Refusal> {
    if gateway.fanout.seats_of(tenant, user).is_empty() {
        return Ok(());
    }
    let account = gateway.domain.store.read().await?.account(tenant, user).await?;
    let effect = match account {
        Some(account) => Effect::Know(Arc::new(account)),
        None => Effect::Cut(user.clone()),
    };
    let seats = gateway.fanout.seats_of(tenant, user);
    let before: Vec<_> = seats.iter().map(|seat| seat.current()).collect();
    gateway.fanout.deliver_here(tenant, effect);
    for (seat, before) in seats.into_iter().zip(before) {
        if is_new || !Arc::ptr_eq(&before, &seat.current()) {
            inbox::push(gateway, &seat.clone(), Item::Changed(seat));
        }
    }
    Ok(())
}

async fn sweep(gateway: &Gateway) {
    let mut ticks = every(SWEEP);
    loop {
        ticks.tick().await;
        gateway.connections.sweep();
        gateway.fanout.forget();
        let (users, sockets) = gateway.domain.presence.counts();
        gateway.metrics.present(gateway.connections.count(), sockets, users);
        gateway.metrics.unauthenticated(gateway.connections.unauthenticated());
        gateway.metrics.tasks(gateway.tasks.len());
        if let Some(peers) = &gateway.peers {
            gateway.metrics.cluster(peers.is_up(), peers.talk.peers());
        }
    }
}

async fn note_seen(gateway: &Gateway) {
    let mut was_away = false;
    let mut ticks = every(NOTE);
    loop {
        ticks.tick().await;
        let result = session::note_seen(&gateway.domain, NOTED_EVERY).await;
        was_away = report("noting who is here", result, was_away);
    }
}

async fn note_rooms(gateway: &Gateway) {
    let mut was_away = false;
    let mut ticks = every(ROOMS);
    loop {
        ticks.tick().await;
        let result = returning::write(&gateway.domain).await;
        was_away = report("noting who is in which room", result, was_away);
    }
}

/// Where there may be other nodes, one of them may be gone at any time.
async fn take_over(gateway: &Gateway) {
    if gateway.peers.is_none() {
        return;
    }
    let Ok(nobody) = TenantId::new("system") else { return };
    let mut was_away = false;
    let mut ticks = every(TAKE_OVER);
    loop {
        ticks.tick().await;
        let result = returning::take_over(&gateway.domain, &nobody).await;
        was_away = report("the watch over other nodes", result, was_away);
    }
}

async fn note_refusals(gateway: &Gateway) {
    let mut was_away = false;
    let mut ticks = every(REFUSALS);
    loop {
        ticks.tick().await;
        let result = refused::write(&gateway.domain).await;
        was_away = report("the audit log of refusals", result, was_away);
    }
}

async fn undelivered(gateway: &Gateway) {
    let mut was_away = false;
    let mut looked_at = HashMap::new();
    let mut ticks = every(UNDELIVERED);
    loop {
        ticks.tick().await;
        let result = deliver_kept(gateway, &mut looked_at).await;
        was_away = report("the delivery of notifications", result, was_away);
    }
}

/// Looks only at what was made since the last look: what is older and still not delivered is for
/// somebody who is not here, and comes to them when they do.
async fn deliver_kept(
    gateway: &Gateway,
    looked_at: &mut HashMap<TenantId, Timestamp>,
) -> Result<(), Refusal> {
    let domain = &gateway.domain;
    let tenants = domain.presence.tenants();
    looked_at.retain(|tenant, _| tenants.contains(tenant));
    for tenant in tenants {
        let now = domain.clock.now();
        let since = looked_at.get(&tenant).copied().unwrap_or(now).before(LATE);
        let users = notification::awaiting(domain, &tenant, since).await?;
        for some in users.chunks(AT_ONCE) {
            for effect in notification::deliver(domain, &tenant, some).await? {
                gateway.fanout.deliver_system(&tenant, effect);
            }
            tokio::time::sleep(BREATH).await;
        }
        looked_at.insert(tenant, now);
    }
    Ok(())
}

async fn forget(gateway: &Gateway, limiter: &Limiter, held: &Held) {
    let mut ticks = every(FORGET);
    let kept_ms = i64::try_from(KEPT.as_millis()).unwrap_or(i64::MAX);
    loop {
        ticks.tick().await;
        limiter.forget();
        gateway.connections.forget();
        let Some(lease) = held.lease() else { continue };
        let before = Timestamp(gateway.domain.clock.now().0 - kept_ms);
        // What is not deleted now is deleted in a minute.
        while let Ok(deleted) = forget_replies(gateway, lease, before).await
            && deleted == u64::from(BATCH)
        {}
        while let Ok(deleted) = forget_rooms(gateway, lease).await
            && deleted == u64::from(BATCH)
        {}
        while let Ok(deleted) = forget_user_changes(gateway, lease, before).await
            && deleted == u64::from(BATCH)
        {}
        while let Ok(deleted) = forget_published(gateway, lease, before).await
            && deleted == u64::from(BATCH)
        {}
    }
}

/// Of all tenants, in one statement; the transaction belongs to none of them.
async fn begin(gateway: &Gateway, lease: Lease) -> Result<Box<dyn Tx>, Refusal> {
    let nobody = TenantId::new("system").map_err(Refusal::internal)?;
    lease.begin(&*gateway.domain.store, &nobody, Scope::Rows).await
}

async fn forget_replies(
    gateway: &Gateway,
    lease: Lease,
    before: Timestamp,
) -> Result<u64, Refusal> {
    let mut tx = begin(gateway, lease).await?;
    let deleted = tx.forget_replies(before, BATCH).await?;
    tx.commit().await?;
    Ok(deleted)
}

async fn forget_rooms(gateway: &Gateway, lease: Lease) -> Result<u64, Refusal> {
    let before = returning::forgotten_before(gateway.domain.clock.now());
    let mut tx = begin(gateway, lease).await?;
    let deleted = tx.forget_rooms(before, BATCH).await?;
    tx.commit().await?;
    Ok(deleted)
}

async fn forget_user_changes(
    gateway: &Gateway,
    lease: Lease,
    before: Timestamp,
) -> Result<u64, Refusal> {
    let mut tx = begin(gateway, lease).await?;
    let deleted = tx.forget_user_changes(before, BATCH).await?;
    tx.commit().await?;
    Ok(deleted)
}

async fn forget_published(
    gateway: &Gateway,
    lease: Lease,
    before: Timestamp,
) -> Result<u64, Refusal> {
    let mut tx = begin(gateway, lease).await?;
    let deleted = tx.forget_published(before, BATCH).await?;
    tx.commit().await?;
    Ok(deleted)
}

async fn boards(gateway: &Gateway) {
    let mut was_away = false;
    let mut ticks = every(BOARDS);
    loop {
        ticks.tick().await;
        let result = gateway.fanout.boards.tick(&gateway.domain, &gateway.fanout).await;
        was_away = report("showing leaderboards", result, was_away);
    }
}

/// A renewed certificate is in force without a restart.
async fn follow(certificates: Option<Arc<Certificates>>) {
    if let Some(certificates) = certificates {
        certificates.follow().await;
    }
}

async fn close(gateway: &Gateway, edge: Edge) {
    loop {
        gateway.connections.killed_polling.notified().await;
        for sid in gateway.connections.to_close() {
            edge.close(sid).await;
        }
    }
}
