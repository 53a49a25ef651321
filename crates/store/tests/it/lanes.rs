//! Lanes: one order per tenant, no hole, and nothing acknowledged that is not committed.

use std::sync::Arc;

use carillon_domain::{
    Effect, MessageId, Offset, Refusal, RoomId, Seq, UserId,
    chat::{NewMessage, Page, join_room::JoinRoom, send_message::SendMessage},
    contract::{Address, Command as _, Scope},
    ports::Store as _,
};
use sqlx::{Connection as _, Executor as _};

use crate::world::{World, caller, reply, tenant};

fn say(room: &str, message: String) -> SendMessage {
    SendMessage { room_id: RoomId::new(room).unwrap(), message, ..SendMessage::example() }
}

fn join(room: &str) -> JoinRoom {
    JoinRoom { room_id: RoomId::new(room).unwrap() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_two_writers_leave_no_hole_in_offset_or_seq() {
    const WRITERS: usize = 32;
    const EACH: usize = 12;
    for world in World::each().await {
        let world = Arc::new(world);
        let writers: Vec<_> = (0..WRITERS)
            .map(|n| {
                let world = world.clone();
                tokio::spawn(async move {
                    let of = if n % 2 == 0 { "even" } else { "odd" };
                    let who = caller(of, &format!("writer-{n}"));
                    let room = format!("room-{}", n % 3);
                    world.ask(&who, &join(&room)).await.unwrap();
                    for k in 0..EACH {
                        // Every third is refused after it has written: it gives its numbers back.
                        let message = if k % 3 == 2 { String::new() } else { format!("{k}") };
                        let refused = world.ask(&who, &say(&room, message)).await.is_err();
                        assert_eq!(refused, k % 3 == 2);
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.await.unwrap();
        }
        for of in ["even", "odd"] {
            let t = tenant(of);
            let mut reads = world.store.read().await.unwrap();
            let head = reads.head(&t).await.unwrap();
            let rows = reads.published_after(&t, Offset(0), 100_000).await.unwrap();
            let offsets: Vec<i64> = rows.iter().map(|row| row.offset.0).collect();
            assert_eq!(offsets, (1..=head.0).collect::<Vec<_>>());
            // In the order of offsets, each room's messages are in the order of seq.
            for room in ["room-0", "room-1", "room-2"] {
                let to = Address::Room(RoomId::new(room).unwrap());
                let seqs: Vec<i64> = rows
                    .iter()
                    .filter(|row| row.emit.to == to && row.emit.row.name == "receive-message")
                    .map(|row| {
                        let payload: serde_json::Value =
                            serde_json::from_str(row.emit.payload.get()).unwrap();
                        payload["seq"].as_i64().unwrap()
                    })
                    .collect();
                assert_eq!(seqs, (1..=i64::try_from(seqs.len()).unwrap()).collect::<Vec<_>>());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_is_cancelled_or_fails_gives_its_place_back() {
    for world in World::each().await {
        let ana = caller("t", "ana");
        world.ask(&ana, &join("algebra")).await.unwrap();
        // Dropped while it holds the lane, having written.
        let mut tx = world.store.begin(&tenant("t"), Scope::Lane).await.unwrap();
        let room = RoomId::new("geometry").unwrap();
        let kind = carillon_domain::chat::RoomKind::Direct;
        tx.create_room(&tenant("t"), &room, kind, carillon_domain::Timestamp(1)).await.unwrap();
        drop(tx);
        let done = world.ask(&ana, &say("algebra", "still here".into())).await.unwrap();
        assert_eq!(reply(&done)["seq"], 1);
        let mut reads = world.store.read().await.unwrap();
        assert!(reads.chat_room(&tenant("t"), &room).await.unwrap().is_none());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_of_one_batch_see_what_was_written_before_them_and_nothing_that_was_undone() {
    for world in World::each().await {
        let (ana, t) = (caller("t", "ana"), tenant("t"));
        let room = RoomId::new("algebra").unwrap();
        world.ask(&ana, &join("algebra")).await.unwrap();
        let keyed =
            SendMessage { client_msg_id: Some("k".into()), ..say("algebra", "under a key".into()) };
        let (keyed, again) = (&keyed, &keyed);
        let send = async |message: &SendMessage| {
            let done = world.ask(&ana, message).await.unwrap();
            reply(&done)["seq"].as_i64().unwrap()
        };
        let read = async |is_kept: bool| {
            let mut tx = world.store.begin(&t, Scope::Lane).await.unwrap();
            let seen = tx.messages(&t, &room, Page::After(Seq(0)), 99).await.unwrap();
            let head = tx.head(&t).await.unwrap();
            if is_kept {
                tx.commit().await.unwrap();
            }
            (seen.into_iter().map(|of| of.seq.0).collect::<Vec<_>>(), head.0)
        };
        let undone = async || {
            let mut tx = world.store.begin(&t, Scope::Lane).await.unwrap();
            tx.insert_message(&t, new_message(&room, "undone")).await.unwrap();
            let kind = carillon_domain::chat::RoomKind::Direct;
            let other = RoomId::new("geometry").unwrap();
            tx.create_room(&t, &other, kind, carillon_domain::Timestamp(1)).await.unwrap();
            tx.insert_message(&t, new_message(&room, "undone, too")).await.unwrap();
        };

        // What queues while the lane is held makes one batch, in this order.
        let held = world.store.begin(&t, Scope::Lane).await.unwrap();
        let (one, two, three) =
            (say("algebra", "1".into()), say("algebra", "2".into()), say("algebra", "3".into()));
        let batch = async {
            tokio::join!(
                biased;
                send(&one),
                undone(),
                send(&two),
                read(false),
                send(keyed),
                undone(),
                read(true),
                send(&three),
                send(again),
            )
        };
        let (results, ()) = tokio::join!(biased; batch, async { drop(held) });
        let (one, (), two, early, key, (), late, three, again) = results;
        assert_eq!((one, two, key, three, again), (1, 2, 3, 4, 3));
        assert_eq!(early, (vec![1, 2], 2));
        assert_eq!(late, (vec![1, 2, 3], 3));

        assert_eq!(read(false).await, (vec![1, 2, 3, 4], 4));
        let mut reads = world.store.read().await.unwrap();
        assert_eq!(reads.head(&t).await.unwrap(), Offset(4));
        assert_eq!(reads.published_after(&t, Offset(0), 99).await.unwrap().len(), 4);
        let geometry = RoomId::new("geometry").unwrap();
        assert!(reads.chat_room(&t, &geometry).await.unwrap().is_none());
        assert_eq!(reads.chat_room(&t, &room).await.unwrap().unwrap().last_seq, Seq(4));
    }
}

fn new_message(room: &RoomId, message: &str) -> NewMessage {
    NewMessage {
        id: MessageId::new(format!("id of {message}")).unwrap(),
        room: room.clone(),
        sender: UserId::new("ana").unwrap(),
        sender_name: "Ana".into(),
        sender_avatar: None,
        message: message.into(),
        message_type: "text".into(),
        file_url: None,
        file_name: None,
        file_size: None,
        client_msg_id: None,
        created_at: carillon_domain::Timestamp(1),
    }
}

/// COMMIT itself fails for the batch that holds a message "poison".
const POISON_SQLITE: &str = "
    CREATE TABLE nobody (id INTEGER PRIMARY KEY) STRICT;
    CREATE TABLE poisoned (id INTEGER REFERENCES nobody (id) DEFERRABLE INITIALLY DEFERRED) STRICT;
    CREATE TRIGGER poison AFTER INSERT ON chat_messages WHEN NEW.message = 'poison'
    BEGIN INSERT INTO poisoned (id) VALUES (1); END;";
const POISON_POSTGRES: &str = "
    CREATE TABLE nobody (id INT PRIMARY KEY);
    CREATE TABLE poisoned (id INT REFERENCES nobody (id) DEFERRABLE INITIALLY DEFERRED);
    CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO poisoned (id) VALUES (1); RETURN NULL; END $$;
    CREATE TRIGGER poison AFTER INSERT ON chat_messages FOR EACH ROW
        WHEN (NEW.message = 'poison') EXECUTE FUNCTION poison();";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_commit_fails_nothing_is_acknowledged_and_no_effect_leaves() {
    for world in World::each().await {
        world.sql(POISON_SQLITE, POISON_POSTGRES).await;
        let ana = caller("t", "ana");
        world.ask(&ana, &join("algebra")).await.unwrap();
        let refused = world.ask(&ana, &say("algebra", "poison".into())).await.unwrap_err();
        assert!(matches!(refused, Refusal::Unavailable(_)), "{refused:?}");

        let done = world.ask(&ana, &say("algebra", "antidote".into())).await.unwrap();
        assert_eq!(reply(&done)["seq"], 1, "the poisoned message gave its number back");
        let offsets: Vec<_> = done
            .effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::Emit(emit) => emit.offset,
                _ => None,
            })
            .collect();
        assert_eq!(offsets, [Offset(1)]);
    }
}

/// PostgreSQL answers COMMIT as ever where a statement has failed, and keeps nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_in_which_a_statement_has_failed_is_kept_or_refused() {
    for world in World::each().await {
        let t = tenant("t");
        let rename = "ALTER TABLE chat_members RENAME TO elsewhere";
        world.sql(rename, rename).await;
        let [algebra, geometry] = ["algebra", "geometry"].map(|id| RoomId::new(id).unwrap());
        let makes = async |room: &RoomId| {
            let mut tx = world.store.begin(&t, Scope::Lane).await.unwrap();
            let kind = carillon_domain::chat::RoomKind::Direct;
            tx.create_room(&t, room, kind, carillon_domain::Timestamp(1)).await.unwrap();
            tx.commit().await
        };
        let looks = async || {
            let mut tx = world.store.begin(&t, Scope::Lane).await.unwrap();
            tx.is_member(&t, &algebra, &UserId::new("ana").unwrap()).await.unwrap_err()
        };
        // What queues while the lane is held makes one batch, in this order.
        let held = world.store.begin(&t, Scope::Lane).await.unwrap();
        let batch = async { tokio::join!(biased; makes(&algebra), looks(), makes(&geometry)) };
        let ((made, _, later), ()) = tokio::join!(biased; batch, async { drop(held) });
        let mut reads = world.store.read().await.unwrap();
        for (room, made) in [(&algebra, &made), (&geometry, &later)] {
            let kept = reads.chat_room(&t, room).await.unwrap();
            assert_eq!(made.is_ok(), kept.is_some(), "{room}: {made:?}");
        }
        assert!(later.is_ok(), "who waited behind it begins anew: {later:?}");
    }
}

/// What `SQLite` keeps of it, to take it back, is 12 MB.
#[tokio::test]
async fn a_command_may_change_thousands_of_pages() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pages.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file).create_if_missing(true);
    let mut conn = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    let fill = "CREATE TABLE pages (id INTEGER PRIMARY KEY, body TEXT NOT NULL);
        WITH RECURSIVE n (id) AS (VALUES (1) UNION ALL SELECT id + 1 FROM n WHERE id < 3000)
        INSERT INTO pages SELECT id, hex(zeroblob(1500)) FROM n";
    conn.execute(fill).await.unwrap();
    let change = "UPDATE pages SET body = replace(body, '0', '1')";
    let changed = "SELECT count(*) FROM pages WHERE body LIKE '1%'";
    conn.execute("BEGIN IMMEDIATE; SAVEPOINT command").await.unwrap();
    conn.execute(change).await.unwrap();
    conn.execute("ROLLBACK TO SAVEPOINT command").await.unwrap();
    let count: i64 = sqlx::query_scalar(changed).fetch_one(&mut conn).await.unwrap();
    assert_eq!(count, 0);
    conn.execute(change).await.unwrap();
    conn.execute("COMMIT").await.unwrap();
    let count: i64 = sqlx::query_scalar(changed).fetch_one(&mut conn).await.unwrap();
    assert_eq!(count, 3_000);
}

/// What `.cargo/config.toml` asks for; no result of a statement would tell.
#[tokio::test]
async fn sqlite_does_not_plan_anew_for_each_bound_limit() {
    let mut conn = sqlx::SqliteConnection::connect("sqlite::memory:").await.unwrap();
    let options: Vec<String> =
        sqlx::query_scalar("PRAGMA compile_options").fetch_all(&mut conn).await.unwrap();
    assert!(options.iter().any(|option| option == "ENABLE_QPSG"), "{options:?}");
}
