//! Deadlines, and results that wait for release or regrading.

use std::time::Duration;

use carillon_domain::{
    Refusal, TenantId,
    exam::{finish, results},
    ids::AttemptId,
};
use futures_util::future::join_all;

use super::{every, report};
use crate::gateway::Gateway;

/// Deadlines are looked at this often.
const DEADLINES: Duration = Duration::from_millis(250);
/// Results that wait to be released or regraded, this often.
const RESULTS: Duration = Duration::from_millis(500);
/// So many attempts or results at a time.
const AT_ONCE: u32 = 64;

/// Makes due attempts final, a batch at a time: those of one tenant share its lane's commits.
pub(super) async fn finish_attempts(gateway: &Gateway) {
    let mut was_away = false;
    let mut ticks = every(DEADLINES);
    loop {
        ticks.tick().await;
        loop {
            let due = finish::due(&gateway.domain, AT_ONCE).await;
            let found = due.as_ref().map_or(0, Vec::len);
            let result = match due {
                Ok(due) => {
                    let ends = due.iter().map(|(tenant, of)| finish_attempt(gateway, tenant, of));
                    join_all(ends).await.into_iter().collect()
                }
                Err(refusal) => Err(refusal),
            };
            let is_well = result.is_ok();
            was_away = report("the watch over deadlines", result, was_away);
            if found < AT_ONCE as usize || !is_well {
                break;
            }
        }
    }
}

async fn finish_attempt(
    gateway: &Gateway,
    tenant: &TenantId,
    attempt: &AttemptId,
) -> Result<(), Refusal> {
    match finish::finish_due(&gateway.domain, tenant, attempt).await {
        Ok(effects) => {
            if !effects.is_empty() {
                gateway.metrics.finished();
            }
            for effect in effects {
                gateway.fanout.deliver_system(tenant, effect);
            }
            Ok(())
        }
        Err(refusal) if refusal.retry_after().is_some() => Err(refusal),
        Err(refusal) => {
            // One attempt that cannot be made final does not hold up the others.
            tracing::error!(
                tenant.id = %tenant,
                attempt.id = %attempt,
                error = &refusal as &dyn std::error::Error,
                "the attempt {attempt} cannot be made final and is set aside"
            );
            gateway.metrics.set_aside();
            finish::set_aside(&gateway.domain, tenant, attempt).await
        }
    }
}

/// Releases and regrades results that wait for it.
pub(super) async fn carry_out_results(gateway: &Gateway) {
    let mut was_away = false;
    let mut ticks = every(RESULTS);
    loop {
        ticks.tick().await;
        let result = async {
            let mut result = Ok(());
            for (tenant, of, due) in results::due(&gateway.domain, AT_ONCE).await? {
                match results::carry_out(&gateway.domain, &tenant, &of, due).await {
                    Ok(effects) => {
                        for effect in effects {
                            gateway.fanout.deliver_system(&tenant, effect);
                        }
                    }
                    Err(refusal) if refusal.retry_after().is_some() => return Err(refusal),
                    // One result that cannot be read does not hold up the others.
                    Err(refusal) => {
                        if !was_away {
                            let error = &refusal as &dyn std::error::Error;
                            tracing::error!(tenant.id = %tenant, result.id = %of, error, "the result {of} cannot be carried out");
                        }
                        result = Err(refusal);
                    }
                }
            }
            result
        };
        was_away = report("the release of results", result.await, was_away);
    }
}
