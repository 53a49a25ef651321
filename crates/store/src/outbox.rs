//! Durable events and the counter that orders them.

use std::{collections::BTreeMap, sync::Arc};

use carillon_domain::{
    Emit, Offset, Refusal, TenantId, Timestamp, contract::find_event, ports::Published,
};
use serde_json::value::RawValue;

use crate::{
    batch::Event,
    error::refusal,
    rows::Rows,
    time::Time,
    tx::{Held, Statement, on},
};

static INSERT: Rows = Rows::new(
    "INSERT INTO outbox (tenant_id, created_at, position, event, address, payload) VALUES",
    0,
    6,
    "",
);
static RAISE: Rows = Rows::new(
    "INSERT INTO lanes (tenant_id, head) VALUES",
    0,
    2,
    " ON CONFLICT (tenant_id) DO UPDATE SET head = excluded.head",
);
const HEAD: &str = "SELECT head FROM lanes WHERE tenant_id = $1";
const HEADS: &str = "SELECT tenant_id, head FROM lanes";
const AFTER: &str = "SELECT position, event, address, payload FROM outbox
    WHERE tenant_id = $1 AND position > $2 ORDER BY position LIMIT $3";

const FORGET: &str = "DELETE FROM outbox WHERE (tenant_id, position) IN
    (SELECT tenant_id, position FROM outbox WHERE created_at < $1 ORDER BY created_at LIMIT $2)";

/// Writes events, and the counters of their tenants as they then stand.
pub(crate) async fn write(held: &mut Held, events: &[Event]) -> Result<(), sqlx::Error> {
    for (statement, part) in INSERT.parts(held.statement().kind(), events) {
        on!(held.statement(), c => {
            let mut query = sqlx::query(statement);
            for event in part {
                query = query.bind(event.tenant.as_str()).bind(Time(event.created_at))
                    .bind(event.position).bind(event.emit.row.name).bind(&event.address)
                    .bind(event.emit.payload.get());
            }
            query.execute(c).await.map(|_| ())
        })?;
    }
    let heads: BTreeMap<_, _> =
        events.iter().map(|event| (event.tenant.as_str(), event.position)).collect();
    let heads: Vec<_> = heads.into_iter().collect();
    for (statement, part) in RAISE.parts(held.statement().kind(), &heads) {
        on!(held.statement(), c => {
            let query = part.iter().fold(sqlx::query(statement), |query, (tenant, head)| {
                query.bind(*tenant).bind(*head)
            });
            query.execute(c).await.map(|_| ())
        })?;
    }
    Ok(())
}

pub(crate) async fn forget(
    statement: Statement<'_>,
    before: Timestamp,
    limit: u32,
) -> Result<u64, sqlx::Error> {
    on!(statement, c => sqlx::query(FORGET).bind(Time(before)).bind(i64::from(limit))
        .execute(c).await.map(|done| done.rows_affected()))
}

pub(crate) async fn head(
    statement: Statement<'_>,
    tenant: &TenantId,
) -> Result<Offset, sqlx::Error> {
    let head: Option<i64> = on!(statement, c => sqlx::query_scalar(HEAD)
        .bind(tenant.as_str()).fetch_optional(c).await)?;
    Ok(Offset(head.unwrap_or(0)))
}

pub(crate) async fn heads(
    statement: Statement<'_>,
) -> Result<Vec<(TenantId, Offset)>, sqlx::Error> {
    let rows: Vec<(String, i64)> = on!(statement, c => sqlx::query_as(HEADS).fetch_all(c).await)?;
    rows.into_iter()
        .map(|(tenant, head)| {
            let tenant =
                TenantId::new(tenant).map_err(|error| sqlx::Error::Decode(error.into()))?;
            Ok((tenant, Offset(head)))
        })
        .collect()
}

/// Rows this version cannot read any more are an error: an event must not vanish silently.
pub(crate) async fn published_after(
    statement: Statement<'_>,
    tenant: &TenantId,
    after: Offset,
    limit: u32,
) -> Result<Vec<Published>, Refusal> {
    let rows: Vec<(i64, String, String, String)> = on!(statement, c => sqlx::query_as(AFTER)
        .bind(tenant.as_str()).bind(after.0).bind(i64::from(limit)).fetch_all(c).await)
    .map_err(refusal)?;
    rows.into_iter()
        .map(|(position, event, address, payload)| {
            let offset = Offset(position);
            let row = find_event(&event)
                .ok_or_else(|| Refusal::internal(format!("unknown event {event} in the outbox")))?;
            let to = serde_json::from_str(&address).map_err(Refusal::internal)?;
            let payload: Arc<RawValue> =
                RawValue::from_string(payload).map_err(Refusal::internal)?.into();
            Ok(Published {
                offset,
                emit: Emit { row, to, payload, offset: Some(offset), counting: None },
            })
        })
        .collect()
}
