//! Every port method, on both databases.

use std::time::Duration;

use carillon_domain::{
    MessageId, Offset, RoomId, Seq, Timestamp,
    chat::{NewMessage, Page, RoomKind, Unread},
    contract::{Address, Scope},
    identity::{Claims, Issue, Role, UserStatus},
    notification::{Notification, Priority, Unstored},
    ports::Store as _,
};

use crate::world::{World, tenant, user};

const NOW: Timestamp = Timestamp(1_700_000_000_123);

fn room(id: &str) -> RoomId {
    RoomId::new(id).unwrap()
}

fn message(id: &str, of: &RoomId, sender: &str) -> NewMessage {
    NewMessage {
        id: MessageId::new(id).unwrap(),
        room: of.clone(),
        sender: user(sender),
        sender_name: sender.into(),
        sender_avatar: None,
        message: format!("message {id} – ∅"),
        message_type: "text".into(),
        file_url: Some("/uploads/a.pdf".into()),
        file_name: Some("a.pdf".into()),
        file_size: Some(5_000_000_000),
        client_msg_id: Some(format!("key-{id}")),
        created_at: NOW,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rooms_members_and_messages_read_back_as_written() {
    for world in World::each().await {
        let (t, algebra) = (tenant("t"), room("algebra"));
        let mut tx = world.store.begin(&t, Scope::Lane).await.unwrap();
        tx.create_room(&t, &algebra, RoomKind::Direct, NOW).await.unwrap();
        tx.create_room(&t, &algebra, RoomKind::Mentor, NOW).await.unwrap();
        for who in ["ana", "ben", "ana"] {
            tx.add_member(&t, &algebra, &user(who), NOW).await.unwrap();
        }
        for n in 1..=7 {
            let who = if n % 2 == 0 { "ana" } else { "ben" };
            let new = message(&n.to_string(), &algebra, who);
            let (stored, members) = tx.insert_message(&t, new).await.unwrap();
            assert_eq!((stored.seq, members), (Seq(n), 2));
        }
        tx.commit().await.unwrap();

        let mut reads = world.store.read().await.unwrap();
        let found = reads.chat_room(&t, &algebra).await.unwrap().unwrap();
        assert_eq!((found.kind, found.last_seq), (RoomKind::Direct, Seq(7)));
        assert!(reads.chat_room(&tenant("other"), &algebra).await.unwrap().is_none());
        assert_eq!(reads.members(&t, &algebra).await.unwrap(), [user("ana"), user("ben")]);
        assert!(reads.is_member(&t, &algebra, &user("ben")).await.unwrap());
        assert!(!reads.is_member(&t, &algebra, &user("eve")).await.unwrap());
        assert_eq!(reads.rooms_of(&t, &user("ana"), 10).await.unwrap(), [room("algebra")]);

        for (page, limit, expected) in [
            (Page::Latest, 3, vec![5, 6, 7]),
            (Page::Before(Seq(4)), 2, vec![2, 3]),
            (Page::Before(Seq(1)), 2, vec![]),
            (Page::After(Seq(5)), 9, vec![6, 7]),
            (Page::After(Seq(1)), 2, vec![2, 3]),
            (Page::Around(Seq(4)), 4, vec![2, 3, 4, 5]),
            (Page::Around(Seq(1)), 4, vec![1, 2]),
        ] {
            let page = reads.messages(&t, &algebra, page, limit).await.unwrap();
            let seqs: Vec<i64> = page.iter().map(|message| message.seq.0).collect();
            assert_eq!(seqs, expected);
        }
        let third = reads.message(&t, &MessageId::new("3").unwrap()).await.unwrap().unwrap();
        assert_eq!(third.message, "message 3 – ∅");
        assert_eq!(third.created_at, NOW);
        assert_eq!(third.file_size, Some(5_000_000_000));
        let by_key = reads.message_by_client_id(&t, &user("ben"), "key-3").await.unwrap();
        assert_eq!(by_key.as_ref(), Some(&third));
        assert!(reads.message_by_client_id(&t, &user("ana"), "key-3").await.unwrap().is_none());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_position_never_goes_back() {
    for world in World::each().await {
        let (t, algebra) = (tenant("t"), room("algebra"));
        let mut tx = world.store.begin(&t, Scope::Lane).await.unwrap();
        tx.create_room(&t, &algebra, RoomKind::Direct, NOW).await.unwrap();
        tx.add_member(&t, &algebra, &user("ana"), NOW).await.unwrap();
        for n in 1..=4 {
            tx.insert_message(&t, message(&n.to_string(), &algebra, "ben")).await.unwrap();
        }
        tx.insert_message(&t, message("5", &algebra, "ana")).await.unwrap();
        tx.commit().await.unwrap();

        let mut tx = world.store.begin(&t, Scope::Rows).await.unwrap();
        for (seq, moved) in [(2, true), (1, false), (2, false), (3, true)] {
            assert_eq!(tx.advance_read(&t, &algebra, &user("ana"), Seq(seq)).await.unwrap(), moved);
        }
        let id = MessageId::new("3").unwrap();
        assert!(tx.mark_read(&t, &id).await.unwrap());
        assert!(!tx.mark_read(&t, &id).await.unwrap());
        tx.commit().await.unwrap();

        let mut reads = world.store.read().await.unwrap();
        let unread = reads.unread(&t, &algebra, &user("ana")).await.unwrap();
        assert_eq!(unread, Unread { last_seq: Seq(5), last_read: Seq(3), count: 1 });
        assert!(reads.message(&t, &id).await.unwrap().unwrap().is_read);
        assert!(reads.unread(&t, &algebra, &user("eve")).await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_made_from_claims_follows_newer_tokens_only() {
    for world in World::each().await {
        let t = tenant("t");
        let claims = |name: &str, role, issued| Claims {
            user: user("ana"),
            name: Some(name.into()),
            role,
            email: Some(format!("{name}@campus.example")),
            avatar: Some(format!("/{name}.png")),
            issue: Issue { at: Some(Timestamp(issued)), version: 0 },
        };
        for (given, name, role) in [
            (claims("Ana", Role::Student, 1_000), "Ana", Role::Student),
            (claims("Ana Maria", Role::Mentor, 2_000), "Ana Maria", Role::Mentor),
            (claims("Old", Role::SuperAdmin, 1_500), "Ana Maria", Role::Mentor),
        ] {
            let mut tx = world.store.begin(&t, Scope::Rows).await.unwrap();
            let row = tx.provision_user(&t, &given, NOW).await.unwrap();
            tx.commit().await.unwrap();
            assert_eq!((row.name.as_str(), row.role), (name, role));
            assert_eq!(row.avatar, Some(format!("/{name}.png")));
            let account = world.store.read().await.unwrap().account(&t, &user("ana")).await;
            let email = account.unwrap().unwrap().email;
            assert_eq!(email, Some(format!("{name}@campus.example")));
        }
        let managed = "UPDATE users SET claims_issued_at = NULL, status = 'SUSPENDED'";
        world.sql(managed, managed).await;
        let mut tx = world.store.begin(&t, Scope::Rows).await.unwrap();
        let row = tx.provision_user(&t, &claims("New", Role::Student, 9_000), NOW).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!((row.name.as_str(), row.status), ("Ana Maria", UserStatus::Suspended));
        assert_eq!((row.role, row.avatar.as_deref()), (Role::Mentor, Some("/Ana Maria.png")));
        let mut tx = world.store.begin(&t, Scope::Rows).await.unwrap();
        for seen in [NOW, Timestamp(NOW.0 + 5)] {
            tx.note_seen(&t, &[user("ana"), user("ben")], seen).await.unwrap();
        }
        tx.commit().await.unwrap();
        let mut reads = world.store.read().await.unwrap();
        let seen = reads.last_seen(&t, &user("ben")).await.unwrap();
        assert_eq!(seen, Some(Timestamp(NOW.0 + 5)));
        assert_eq!(reads.last_seen(&t, &user("eve")).await.unwrap(), None);
        let changed = reads.changed_users(Duration::from_mins(1)).await.unwrap();
        assert!(changed.iter().all(|change| (&change.tenant, &change.user) == (&t, &user("ana"))));
        // A newer token, and what was done past the store; not the token that was ignored.
        assert_eq!(changed.len(), 2, "{changed:?}");
        assert!(reads.user(&tenant("other"), &user("ana")).await.unwrap().is_none());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_outbox_reads_back_in_order_and_forgets_what_is_old() {
    for world in World::each().await {
        let t = tenant("t");
        for n in 0..5 {
            let notification = Notification {
                id: carillon_domain::ids::NotificationId::new(format!("n{n}")).unwrap(),
                user_id: user("ana"),
                kind: "SYSTEM".into(),
                title: "t".into(),
                message: "m".into(),
                data: None,
                is_read: false,
                priority: Priority::Urgent,
                action_url: None,
                created_at: NOW,
                count: None,
            };
            let unstored = Unstored {
                notification: notification.clone(),
                delivered_at: None,
                expires_at: None,
                dedupe_key: None,
                collapse_key: None,
            };
            let mut tx = world.store.begin(&t, Scope::Lane).await.unwrap();
            tx.insert_notification(&t, &unstored).await.unwrap();
            let to = carillon_domain::contract::ToUser(user("ana"));
            let event = carillon_domain::notification::NewNotification(notification);
            let emit = carillon_domain::Emit::new(to, &event).unwrap();
            let at = Timestamp(NOW.0 + n);
            let last = tx.publish(&t, at, &[&emit, &emit]).await.unwrap();
            assert_eq!(last, Offset(2 * n + 2));
            tx.commit().await.unwrap();
        }
        let mut reads = world.store.read().await.unwrap();
        assert_eq!(reads.head(&t).await.unwrap(), Offset(10));
        assert_eq!(reads.head(&tenant("other")).await.unwrap(), Offset(0));
        assert_eq!(reads.heads().await.unwrap(), [(t.clone(), Offset(10))]);
        let rows = reads.published_after(&t, Offset(3), 4).await.unwrap();
        let offsets: Vec<i64> = rows.iter().map(|row| row.offset.0).collect();
        assert_eq!(offsets, [4, 5, 6, 7]);
        assert_eq!(rows[0].emit.row.name, "new-notification");
        assert_eq!(rows[0].emit.to, Address::User(user("ana")));
        assert!(rows[0].emit.payload.get().contains(r#""priority":"urgent""#));
        drop(reads);

        for deleted in [3, 1, 0] {
            let mut tx = world.store.begin(&tenant("system"), Scope::Rows).await.unwrap();
            assert_eq!(tx.forget_published(Timestamp(NOW.0 + 2), 3).await.unwrap(), deleted);
            tx.commit().await.unwrap();
        }
        let mut reads = world.store.read().await.unwrap();
        assert_eq!(reads.published_after(&t, Offset(0), 99).await.unwrap().len(), 6);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_server_on_one_sqlite_file_is_told_so_and_a_tool_is_not() {
    use carillon_store::{OpenError, Opener, SqlStore};
    let world = World::sqlite().await;
    let second = SqlStore::open(&world.url, Opener::Server).await.err().unwrap();
    assert!(matches!(second, OpenError::InUse(_)));
    assert!(second.to_string().contains("carillon.db; one server per SQLite file"), "{second}");
    SqlStore::open(&world.url, Opener::Tool).await.unwrap().migrate().await.unwrap();
}

#[test]
fn both_databases_have_the_same_migrations() {
    let names = |folder: &str| {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../migrations");
        let mut names: Vec<String> = std::fs::read_dir(path.join(folder))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names("sqlite"), names("postgres"));
}
