//! Leases: what the whole cluster does once is done by whoever holds one.

use std::{sync::Arc, time::Duration};

use carillon_domain::{
    RoomId, TenantId, Timestamp,
    chat::RoomKind,
    contract::Scope,
    exam::{finish, results},
    ports::{Lease, Leases as _, Store as _},
};
use serde_json::json;
use sqlx::Connection as _;

use crate::{
    exams::{findings, finish_all, provide, session},
    world::{World, caller, tenant},
};

const LONG: Duration = Duration::from_mins(1);

async fn take(world: &World, holder: &str) -> Option<i64> {
    let lease = world.store.take_lease("work", holder, LONG).await.unwrap();
    lease.map(|lease| lease.fence)
}

/// As if its time were up.
async fn run_out(world: &World) {
    world.sql("", "UPDATE leases SET expires_at = clock_timestamp()").await;
}

/// Those on PostgreSQL: there may be several nodes.
async fn shared() -> Vec<World> {
    World::each().await.into_iter().filter(|world| !world.is_sqlite()).collect()
}

async fn write(tx: &mut dyn carillon_domain::ports::Tx, room: &str) {
    let room = RoomId::new(room).unwrap();
    tx.create_room(&tenant("t"), &room, RoomKind::Mentor, Timestamp(1)).await.unwrap();
}

async fn is_written(world: &World, room: &str) -> bool {
    let mut reads = world.store.read().await.unwrap();
    reads.chat_room(&tenant("t"), &RoomId::new(room).unwrap()).await.unwrap().is_some()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_an_sqlite_file_holds_every_lease() {
    let world = World::sqlite().await;
    let lease = world.store.take_lease("work", "a", LONG).await.unwrap().unwrap();
    // A later run: the one before it is gone, or the file would be locked.
    assert_eq!(world.store.take_lease("work", "b", LONG).await.unwrap(), Some(lease));
    for scope in [Scope::Lane, Scope::Rows] {
        let mut tx = lease.begin(&*world.store, &tenant("t"), scope).await.unwrap();
        write(&mut *tx, "algebra").await;
        tx.commit().await.unwrap();
    }
    assert!(is_written(&world, "algebra").await);
    world.store.leave_lease(lease).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_one_runs_until_its_time_is_up() {
    for world in shared().await {
        assert_eq!(take(&world, "a").await, Some(1));
        assert_eq!(take(&world, "b").await, None);
        // Renewed, it is the same one.
        assert_eq!(take(&world, "a").await, Some(1));
        run_out(&world).await;
        assert_eq!(take(&world, "a").await, Some(1));
        run_out(&world).await;
        assert_eq!(take(&world, "b").await, Some(2));
        assert_eq!(take(&world, "a").await, None);
        // Other work is another's.
        let other = world.store.take_lease("other work", "a", Duration::ZERO).await.unwrap();
        assert_eq!(other, Some(Lease { name: "other work", fence: 1 }));
        let other = world.store.take_lease("other work", "c", LONG).await.unwrap();
        assert_eq!(other, Some(Lease { name: "other work", fence: 2 }));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_is_let_go_of_is_free_at_once() {
    for world in shared().await {
        assert_eq!(take(&world, "a").await, Some(1));
        let of_a = Lease { name: "work", fence: 1 };
        world.store.leave_lease(of_a).await.unwrap();
        assert_eq!(take(&world, "b").await, Some(2));
        // It is not a's to let go of any more.
        world.store.leave_lease(of_a).await.unwrap();
        assert_eq!(take(&world, "c").await, None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_ten_who_ask_at_once_one_has_it() {
    for world in shared().await {
        let world = Arc::new(world);
        for round in 0..40 {
            let asked: Vec<_> = (0..10)
                .map(|n| {
                    let world = world.clone();
                    tokio::spawn(async move { take(&world, &format!("{round}-{n}")).await })
                })
                .collect();
            let mut fences = Vec::new();
            for asked in asked {
                fences.extend(asked.await.unwrap());
            }
            // The first of two finds no row.
            assert_eq!(fences, [round % 2 + 1]);
            if round % 2 == 0 {
                run_out(&world).await;
            } else {
                world.sql("", "DELETE FROM leases").await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_earlier_holder_writes_is_undone() {
    for world in shared().await {
        let t = tenant("t");
        let (store, lease) = (&*world.store, Lease { name: "work", fence: 1 });
        assert_eq!(take(&world, "a").await, Some(lease.fence));
        for (scope, room) in [(Scope::Lane, "algebra"), (Scope::Rows, "biology")] {
            let mut tx = lease.begin(store, &t, scope).await.unwrap();
            write(&mut *tx, room).await;
            tx.commit().await.unwrap();
            assert!(is_written(&world, room).await);
        }
        run_out(&world).await;
        assert_eq!(take(&world, "b").await, Some(2));
        for (scope, room) in [(Scope::Lane, "chemistry"), (Scope::Rows, "drawing")] {
            let refusal = lease.begin(store, &t, scope).await.err().unwrap();
            assert!(refusal.retry_after().is_some(), "{refusal}");
            let mut tx = world.store.begin(&t, scope).await.unwrap();
            write(&mut *tx, room).await;
            assert!(tx.check_lease(lease).await.is_err());
            drop(tx);
            assert!(!is_written(&world, room).await);
        }
        // Whoever shares the batch does not notice.
        let tx = world.store.begin(&t, Scope::Lane).await.unwrap();
        let late = lease.begin(store, &t, Scope::Lane);
        let next = async {
            let mut tx = world.store.begin(&t, Scope::Lane).await.unwrap();
            write(&mut *tx, "english").await;
            tx.commit().await
        };
        let (first, late, next) = tokio::join!(tx.commit(), late, next);
        first.unwrap();
        assert!(late.is_err());
        next.unwrap();
        assert!(is_written(&world, "english").await);
    }
}

/// Whether somebody waits for a lock.
async fn somebody_waits(world: &World) -> bool {
    const WAITING: &str = "SELECT EXISTS (SELECT 1 FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock')";
    let mut conn = sqlx::PgConnection::connect(&world.url).await.unwrap();
    sqlx::query_scalar(WAITING).fetch_one(&mut conn).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_takeover_waits_for_what_the_holder_has_begun() {
    for world in shared().await {
        let world = Arc::new(world);
        for (round, scope) in [(1, Scope::Lane), (3, Scope::Rows)] {
            assert_eq!(take(&world, "a").await, Some(round));
            let lease = Lease { name: "work", fence: round };
            let mut tx = lease.begin(&*world.store, &tenant("t"), scope).await.unwrap();
            // Neither its own renewal nor those who only ask wait for it.
            assert_eq!(take(&world, "a").await, Some(round));
            assert_eq!(take(&world, "b").await, None);
            run_out(&world).await;
            let taking = tokio::spawn({
                let world = world.clone();
                async move { take(&world, "b").await }
            });
            while !somebody_waits(&world).await {
                assert!(!taking.is_finished(), "the lease was taken from under a transaction");
            }
            let room = format!("room-{round}");
            write(&mut *tx, &room).await;
            tx.commit().await.unwrap();
            assert_eq!(taking.await.unwrap(), Some(round + 1));
            assert!(is_written(&world, &room).await);
            assert!(lease.begin(&*world.store, &tenant("t"), scope).await.is_err());
            run_out(&world).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_has_slept_makes_nothing_final() {
    for world in shared().await {
        provide(&world, json!({ "release": "manual" })).await;
        session(&world, &caller("t", "ana")).await;
        world.advance(Duration::from_hours(1));
        let due = finish::due(&world.app, 64).await.unwrap();
        let attempt = due[0].1.clone();
        let t: TenantId = tenant("t");

        let slept = world.lease().await;
        run_out(&world).await;
        let taken = world.store.take_lease(slept.name, "another run", LONG).await.unwrap().unwrap();
        assert!(taken.fence > slept.fence);
        let ids = std::slice::from_ref(&attempt);
        let refusal = finish::finish_due(&world.app, slept, &t, ids).await.unwrap_err();
        // Not a fault of the attempt's.
        assert!(refusal.retry_after().is_some(), "{refusal}");
        assert!(finish::set_aside(&world.app, slept, &t, &attempt).await.is_err());
        assert_eq!(finish::due(&world.app, 64).await.unwrap(), due);

        let (finished, _) = finish::finish_due(&world.app, taken, &t, ids).await.unwrap();
        assert_eq!(finished, 1);
        let mut tx = world.store.begin(&t, Scope::Rows).await.unwrap();
        tx.release_exam(&t, &crate::exams::exam_id(), world.app.clock.now()).await.unwrap();
        tx.commit().await.unwrap();
        let due = results::due(&world.app, taken, 10).await.unwrap();
        let (_, result, what) = &due[0];
        assert!(results::carry_out(&world.app, slept, &t, result, *what).await.is_err());
        assert_eq!(results::due(&world.app, taken, 10).await.unwrap(), due);
        assert!(
            !results::carry_out(&world.app, taken, &t, result, *what).await.unwrap().is_empty()
        );

        run_out(&world).await;
        assert!(finish_all(&world).await.is_empty());
        assert_eq!(findings(&world).await, [""; 0]);
    }
}
