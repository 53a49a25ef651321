//! Durable events and the counter that orders them.

use std::sync::Arc;

use carillon_domain::{
    Emit, Offset, Refusal, TenantId, Timestamp, contract::find_event, ports::Published,
};
use serde_json::value::RawValue;

use crate::{
    error::refusal,
    time::Time,
    tx::{Held, on, values},
};

const RAISE: &str = "UPDATE lanes SET head = head + $2 WHERE tenant_id = $1 RETURNING head";
const MAKE: &str = "INSERT INTO lanes (tenant_id, head) VALUES ($1, $2)
    ON CONFLICT (tenant_id) DO UPDATE SET head = lanes.head + excluded.head RETURNING head";
const INSERT: &str =
    "INSERT INTO outbox (tenant_id, created_at, position, event, address, payload) VALUES";
/// Rows of one statement; each number of rows is a statement of its own to the database.
const ROWS: usize = 8;
const HEAD: &str = "SELECT head FROM lanes WHERE tenant_id = $1";
const HEADS: &str = "SELECT tenant_id, head FROM lanes";
const AFTER: &str = "SELECT position, event, address, payload FROM outbox
    WHERE tenant_id = $1 AND position > $2 ORDER BY position LIMIT $3";

const FORGET: &str = "DELETE FROM outbox WHERE (tenant_id, position) IN
    (SELECT tenant_id, position FROM outbox WHERE created_at < $1 ORDER BY created_at LIMIT $2)";

/// Raises the counter by the number of events and writes them below it.
pub(crate) async fn publish(
    held: &mut Held,
    tenant: &TenantId,
    now: Timestamp,
    events: &[&Emit],
) -> Result<Offset, sqlx::Error> {
    let count = i64::try_from(events.len()).unwrap_or(i64::MAX);
    let head: Option<i64> = on!(held.statement(), c => sqlx::query_scalar(RAISE)
        .bind(tenant.as_str()).bind(count).fetch_optional(c).await)?;
    let head = match head {
        Some(head) => head,
        None => on!(held.statement(), c => sqlx::query_scalar(MAKE)
            .bind(tenant.as_str()).bind(count).fetch_one(c).await)?,
    };
    let mut position = head - count;
    for some in events.chunks(ROWS) {
        let addresses: Vec<String> = some
            .iter()
            .map(|emit| serde_json::to_string(&emit.to))
            .collect::<Result<_, _>>()
            .map_err(|error| sqlx::Error::Encode(error.into()))?;
        let statement = sqlx::AssertSqlSafe(format!("{INSERT} {}", values(2, 4, some.len())));
        on!(held.statement(), c => {
            let mut query = sqlx::query(statement).bind(tenant.as_str()).bind(Time(now));
            for ((emit, address), position) in some.iter().zip(&addresses).zip(position + 1..) {
                query = query.bind(position).bind(emit.row.name).bind(address)
                    .bind(emit.payload.get());
            }
            query.execute(c).await.map(|_| ())
        })?;
        position += i64::try_from(some.len()).unwrap_or(i64::MAX);
    }
    Ok(Offset(head))
}

pub(crate) async fn forget(
    held: &mut Held,
    before: Timestamp,
    limit: u32,
) -> Result<u64, sqlx::Error> {
    on!(held.statement(), c => sqlx::query(FORGET).bind(Time(before)).bind(i64::from(limit))
        .execute(c).await.map(|done| done.rows_affected()))
}

pub(crate) async fn head(held: &mut Held, tenant: &TenantId) -> Result<Offset, sqlx::Error> {
    let head: Option<i64> = on!(held.statement(), c => sqlx::query_scalar(HEAD)
        .bind(tenant.as_str()).fetch_optional(c).await)?;
    Ok(Offset(head.unwrap_or(0)))
}

pub(crate) async fn heads(held: &mut Held) -> Result<Vec<(TenantId, Offset)>, sqlx::Error> {
    let rows: Vec<(String, i64)> =
        on!(held.statement(), c => sqlx::query_as(HEADS).fetch_all(c).await)?;
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
    held: &mut Held,
    tenant: &TenantId,
    after: Offset,
    limit: u32,
) -> Result<Vec<Published>, Refusal> {
    let rows: Vec<(i64, String, String, String)> = on!(held.statement(), c => sqlx::query_as(AFTER)
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
