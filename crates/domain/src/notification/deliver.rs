//! Bringing what is kept to those who have come to hear it.
//!
//! A row is delivered by the one transaction that sets its `delivered_at`, however many sockets
//! come at the same moment. None is left behind when its user comes just while it is stored:
//!
//! - In the lane, `store` looks whether the user listens only when its turn has come, and they are
//!   noted as listening in the turn of their first claim. What was stored before it is claimed by
//!   it, what comes after it is pushed, and is behind it in the order.
//! - What bypasses that order - a batch for many, a user who listens on another node, a claim that
//!   failed, or was not tried because nothing was to be seen yet - is found by [`awaiting`], which
//!   runs once a second and looks back a while.

use super::{App, Caller, Cx, Effect, NewNotification, Refusal, Scope, TenantId, Timestamp};
use super::{ToUser, UserId};

/// At most so many are brought to somebody who comes: the newest. Older ones still count as
/// unread.
const MAX_DELIVERED: u32 = 50;

/// What was stored for the user while they were away, if there is something. Called when a socket
/// of theirs has been here for a moment.
pub async fn deliver_stored(
    app: &App,
    caller: &Caller,
    has_undelivered: bool,
) -> Result<Vec<Effect>, Refusal> {
    let (tenant, user) = (&caller.tenant, &caller.user);
    // Most who come have missed nothing: they do not wait for the lane.
    let effects = if has_undelivered { welcome(app, tenant, user).await } else { Ok(Vec::new()) };
    // Whatever has happened: who is not noted is never sent anything at once.
    app.presence.settled(tenant, user);
    effects
}

async fn welcome(app: &App, tenant: &TenantId, user: &UserId) -> Result<Vec<Effect>, Refusal> {
    let now = app.clock.now();
    let system = Caller::system(tenant);
    let mut cx = Cx::new(app, &system, Scope::Lane, now);
    cx.tx().await?;
    app.presence.settled(tenant, user);
    claim(&mut cx, user).await?;
    cx.commit().await
}

/// Those who listen here and have not been sent something made since an instant.
pub async fn awaiting(
    app: &App,
    tenant: &TenantId,
    since: Timestamp,
) -> Result<Vec<UserId>, Refusal> {
    let mut users = app.store.read().await?.awaiting_delivery(tenant, since).await?;
    users.retain(|user| app.presence.listens(tenant, user));
    Ok(users)
}

/// Claims what these users have not been sent, in one transaction, and tells it to those of them
/// who still listen.
pub async fn deliver(
    app: &App,
    tenant: &TenantId,
    users: &[UserId],
) -> Result<Vec<Effect>, Refusal> {
    let system = Caller::system(tenant);
    let mut cx = Cx::new(app, &system, Scope::Lane, app.clock.now());
    cx.tx().await?;
    for user in users.iter().filter(|user| app.presence.listens(tenant, user)) {
        claim(&mut cx, user).await?;
    }
    cx.commit().await
}

async fn claim(cx: &mut Cx<'_>, user: &UserId) -> Result<(), Refusal> {
    let (tenant, now) = (&cx.caller.tenant, cx.now);
    for kept in cx.tx().await?.claim_notifications(tenant, user, now, MAX_DELIVERED).await? {
        cx.send(ToUser(user.clone()), &NewNotification(kept))?;
    }
    Ok(())
}
