//! Where the nodes of a cluster reach each other. There are few, so they are read all at once.

use std::time::Duration;

use async_trait::async_trait;
use carillon_domain::{
    Refusal,
    ports::{ClusterNode, NodeReads, NodeWrites},
};

use crate::{
    error::refusal,
    tx::{SqlTx, on},
};

const NODES_SQLITE: &str = "SELECT tag, address, secret FROM nodes
    WHERE seen_at > CAST(unixepoch('subsec') * 1000 AS INTEGER) - $1 ORDER BY tag";
const NODES_POSTGRES: &str = "SELECT tag, address, secret FROM nodes
    WHERE seen_at > clock_timestamp() - $1 * interval '1 millisecond' ORDER BY tag";
const REPLACE: &str = "DELETE FROM nodes WHERE address = $1 AND tag <> $2";
const NOTE_SQLITE: &str = "INSERT INTO nodes (tag, address, secret) VALUES ($1, $2, $3)
    ON CONFLICT (tag) DO UPDATE SET seen_at = CAST(unixepoch('subsec') * 1000 AS INTEGER)";
const NOTE_POSTGRES: &str = "INSERT INTO nodes (tag, address, secret) VALUES ($1, $2, $3)
    ON CONFLICT (tag) DO UPDATE SET seen_at = clock_timestamp()";
const REMOVE: &str = "DELETE FROM nodes WHERE tag = $1";
const FORGET_SQLITE: &str = "DELETE FROM nodes
    WHERE seen_at <= CAST(unixepoch('subsec') * 1000 AS INTEGER) - $1";
const FORGET_POSTGRES: &str = "DELETE FROM nodes
    WHERE seen_at <= clock_timestamp() - $1 * interval '1 millisecond'";

fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[async_trait]
impl NodeReads for SqlTx {
    async fn nodes(&mut self, within: Duration) -> Result<Vec<ClusterNode>, Refusal> {
        let nodes = if self.is_sqlite() { NODES_SQLITE } else { NODES_POSTGRES };
        let rows: Vec<(String, String, String)> = on!(self.conn().await?, c =>
            sqlx::query_as(nodes).bind(ms(within)).fetch_all(c).await)
        .map_err(refusal)?;
        let node = |(tag, address, secret)| ClusterNode { tag, address, secret };
        Ok(rows.into_iter().map(node).collect())
    }
}

#[async_trait]
impl NodeWrites for SqlTx {
    async fn note_node(&mut self, node: &ClusterNode) -> Result<bool, Refusal> {
        let note = if self.is_sqlite() { NOTE_SQLITE } else { NOTE_POSTGRES };
        let replaced = on!(self.conn().await?, c => sqlx::query(REPLACE)
            .bind(&node.address).bind(&node.tag).execute(c).await.map(|done| done.rows_affected()))
        .map_err(refusal)?;
        on!(self.conn().await?, c => sqlx::query(note)
            .bind(&node.tag).bind(&node.address).bind(&node.secret)
            .execute(c).await.map(|_| ()))
        .map_err(refusal)?;
        Ok(replaced > 0)
    }

    async fn remove_node(&mut self, tag: &str) -> Result<(), Refusal> {
        on!(self.conn().await?, c => sqlx::query(REMOVE).bind(tag).execute(c).await.map(|_| ()))
            .map_err(refusal)
    }

    async fn forget_nodes(&mut self, within: Duration) -> Result<(), Refusal> {
        let forget = if self.is_sqlite() { FORGET_SQLITE } else { FORGET_POSTGRES };
        on!(self.conn().await?, c => sqlx::query(forget)
            .bind(ms(within)).execute(c).await.map(|_| ()))
        .map_err(refusal)
    }
}
