//! Deadlines, and results that wait for release or regrading.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use carillon_domain::{
    Refusal, TenantId,
    exam::{finish, results},
    ids::{AttemptId, ResultId},
    ports::Lease,
};
use futures_util::future::join_all;

use super::{every, leases::Held, report};
use crate::gateway::Gateway;

/// Deadlines are looked at this often.
const DEADLINES: Duration = Duration::from_millis(250);
/// Results that wait to be released or regraded, this often.
const RESULTS: Duration = Duration::from_millis(500);
/// So many attempts or results at a time.
const AT_ONCE: u32 = 64;

/// Makes due attempts final, a batch of each tenant's at a time.
pub(super) async fn finish_attempts(gateway: &Gateway, held: &Held) {
    let mut was_away = false;
    let mut ticks = every(DEADLINES);
    loop {
        ticks.tick().await;
        while let Some(lease) = held.lease() {
            let result = finish_some(gateway, lease).await;
            let may_be_more = result.as_ref().is_ok_and(|found| *found >= AT_ONCE as usize);
            was_away = report("the watch over deadlines", result.map(|_| ()), was_away);
            if !may_be_more {
                break;
            }
        }
    }
}

/// Says how many were due.
async fn finish_some(gateway: &Gateway, lease: Lease) -> Result<usize, Refusal> {
    let due = finish::due(&gateway.domain, AT_ONCE).await?;
    let found = due.len();
    let mut of_tenants: HashMap<TenantId, Vec<AttemptId>> = HashMap::new();
    for (tenant, attempt) in due {
        of_tenants.entry(tenant).or_default().push(attempt);
    }
    // A tenant whose lane is held does not hold up the others.
    let ends = of_tenants.iter().map(|(tenant, of)| finish_of_tenant(gateway, lease, tenant, of));
    join_all(ends).await.into_iter().collect::<Result<(), Refusal>>()?;
    Ok(found)
}

async fn finish_of_tenant(
    gateway: &Gateway,
    lease: Lease,
    tenant: &TenantId,
    attempts: &[AttemptId],
) -> Result<(), Refusal> {
    match finish_these(gateway, lease, tenant, attempts).await {
        Err(refusal) if refusal.retry_after().is_none() => {
            // One of them cannot be made final; the others can.
            for attempt in attempts {
                finish_alone(gateway, lease, tenant, attempt).await?;
            }
            Ok(())
        }
        result => result,
    }
}

async fn finish_these(
    gateway: &Gateway,
    lease: Lease,
    tenant: &TenantId,
    attempts: &[AttemptId],
) -> Result<(), Refusal> {
    let (finished, effects) = finish::finish_due(&gateway.domain, lease, tenant, attempts).await?;
    gateway.metrics.finished(finished);
    for effect in effects {
        gateway.fanout.deliver_system(tenant, effect);
    }
    Ok(())
}

async fn finish_alone(
    gateway: &Gateway,
    lease: Lease,
    tenant: &TenantId,
    attempt: &AttemptId,
) -> Result<(), Refusal> {
    match finish_these(gateway, lease, tenant, std::slice::from_ref(attempt)).await {
        Err(refusal) if refusal.retry_after().is_none() => {
            tracing::error!(
                tenant.id = %tenant,
                attempt.id = %attempt,
                error = &refusal as &dyn std::error::Error,
                "the attempt {attempt} cannot be made final and is set aside"
            );
            gateway.metrics.set_aside();
            finish::set_aside(&gateway.domain, lease, tenant, attempt).await
        }
        result => result,
    }
}

/// Releases and regrades results that wait for it, a batch at a time.
pub(super) async fn carry_out_results(gateway: &Gateway, held: &Held) {
    let mut was_away = false;
    // What could not be done is not tried again before a restart, and does not hold up the rest.
    let mut set_aside = HashSet::new();
    let mut ticks = every(RESULTS);
    loop {
        ticks.tick().await;
        let Some(lease) = held.lease() else { continue };
        let result = carry_out(gateway, lease, &mut set_aside).await;
        was_away = report("the release of results", result, was_away);
    }
}

async fn carry_out(
    gateway: &Gateway,
    lease: Lease,
    set_aside: &mut HashSet<(TenantId, ResultId)>,
) -> Result<(), Refusal> {
    let limit = AT_ONCE.saturating_add(u32::try_from(set_aside.len()).unwrap_or(u32::MAX));
    loop {
        let mut due = results::due(&gateway.domain, lease, limit).await?;
        due.retain(|(tenant, of, _)| !set_aside.contains(&(tenant.clone(), of.clone())));
        if due.is_empty() {
            return Ok(());
        }
        let tasks = due
            .iter()
            .map(|(tenant, of, due)| results::carry_out(&gateway.domain, lease, tenant, of, *due));
        for ((tenant, of, _), done) in due.iter().zip(join_all(tasks).await) {
            match done {
                Ok(effects) => {
                    for effect in effects {
                        gateway.fanout.deliver_system(tenant, effect);
                    }
                }
                Err(refusal) if refusal.retry_after().is_some() => return Err(refusal),
                Err(refusal) => {
                    tracing::error!(
                        tenant.id = %tenant,
                        result.id = %of,
                        error = &refusal as &dyn std::error::Error,
                        "the result {of} can be neither released nor regraded and is set aside"
                    );
                    gateway.metrics.set_aside();
                    set_aside.insert((tenant.clone(), of.clone()));
                }
            }
        }
    }
}
