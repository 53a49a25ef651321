//! The nodes of a cluster, as they find each other.

use std::time::Duration;

use carillon_domain::{
    contract::Scope,
    ports::{ClusterNode, Store as _},
};
use carillon_store::{Opener, SqlStore};
use sqlx::Connection as _;

use crate::world::{World, tenant};

const LONG: Duration = Duration::from_mins(1);

fn node(tag: &str, address: &str) -> ClusterNode {
    ClusterNode { tag: tag.into(), address: address.into(), secret: format!("secret of {tag}") }
}

/// Whether another run was at its address.
async fn note(world: &World, node: &ClusterNode) -> bool {
    let mut tx = world.store.begin(&tenant("system"), Scope::Rows).await.unwrap();
    let has_replaced = tx.note_node(node).await.unwrap();
    tx.commit().await.unwrap();
    has_replaced
}

async fn tags(world: &World, within: Duration) -> Vec<String> {
    let nodes = world.store.read().await.unwrap().nodes(within).await.unwrap();
    nodes.into_iter().map(|node| node.tag).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_find_each_other_until_they_leave() {
    for world in World::each().await {
        let (one, other) = (node("aaaaaa", "http://a:3001"), node("bbbbbb", "http://b:3001"));
        for node in [&one, &other, &one] {
            assert!(!note(&world, node).await);
        }
        let nodes = world.store.read().await.unwrap().nodes(LONG).await.unwrap();
        assert_eq!(nodes, [one.clone(), other]);
        assert!(!format!("{nodes:?}").contains("secret of"));
        let mut tx = world.store.begin(&tenant("system"), Scope::Rows).await.unwrap();
        tx.remove_node("bbbbbb").await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(tags(&world, LONG).await, ["aaaaaa"]);
        // A new run at the address of one that ended without a word.
        assert!(note(&world, &node("cccccc", &one.address)).await);
        assert_eq!(tags(&world, LONG).await, ["cccccc"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_silent_is_not_found_and_later_forgotten() {
    for world in World::each().await {
        for tag in ["aaaaaa", "bbbbbb"] {
            note(&world, &node(tag, tag)).await;
        }
        world
            .sql(
                "UPDATE nodes SET seen_at = seen_at - 90000 WHERE tag = 'aaaaaa'",
                "UPDATE nodes SET seen_at = seen_at - interval '90 s' WHERE tag = 'aaaaaa'",
            )
            .await;
        assert_eq!(tags(&world, LONG).await, ["bbbbbb"]);
        assert_eq!(tags(&world, LONG * 2).await, ["aaaaaa", "bbbbbb"]);
        let mut tx = world.store.begin(&tenant("system"), Scope::Rows).await.unwrap();
        tx.forget_nodes(LONG).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(tags(&world, LONG * 2).await, ["bbbbbb"]);
        // What was only silent comes back with all it had.
        note(&world, &node("aaaaaa", "aaaaaa")).await;
        assert_eq!(tags(&world, LONG).await, ["aaaaaa", "bbbbbb"]);
    }
}

/// Longer than a lock is waited for elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_start_together_take_turns_to_migrate() {
    for world in World::each().await {
        if world.is_sqlite() {
            continue;
        }
        let mut first = sqlx::PgConnection::connect(&world.url).await.unwrap();
        let turn = "SELECT pg_advisory_lock(x'636172696c6c6f6e'::bigint)";
        sqlx::query(turn).execute(&mut first).await.unwrap();
        let second = SqlStore::open(&world.url, Opener::Tool).await.unwrap();
        let mut migrated = std::pin::pin!(second.migrate());
        let waited = tokio::time::timeout(Duration::from_secs(3), migrated.as_mut()).await;
        assert!(waited.is_err(), "it is not its turn");
        first.close().await.unwrap();
        migrated.await.unwrap();
    }
}
