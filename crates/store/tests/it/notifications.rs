//! Notifications: told once, counted truly, and to very many without anybody else noticing.

use std::{
    cell::Cell,
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use carillon_domain::{
    App, Caller, Code, ConnectionId, Cx, Effect, Timestamp, UserId,
    chat::{join_room::JoinRoom, send_message::SendMessage},
    contract::{Command as _, Scope},
    identity::Role,
    ids::NotificationId,
    notification::{
        self, Audience, Draft, Priority, notification_read::ReadNotification,
        notification_read_all::ReadAllNotifications, notification_send::SendNotification,
    },
    ports::Store as _,
    session,
};
use proptest::{prelude::*, test_runner::TestRunner};
use tokio::{runtime::Runtime, sync::oneshot::error::TryRecvError};

use crate::world::{World, caller, reply, tenant, user};

fn mentor() -> Caller {
    Caller { role: Role::Mentor, ..caller("t", "mentor") }
}

/// What a socket of the caller is brought a moment after it came.
async fn settled(app: &App, caller: &Caller) -> Vec<Effect> {
    let (effects, result) = session::settled(app, caller, false).await;
    result.unwrap();
    effects
}

fn to(id: &str) -> SendNotification {
    SendNotification { user_id: Some(user(id)), ..SendNotification::example() }
}

async fn send(world: &World, by: &Caller, command: &SendNotification) -> (String, Vec<Effect>) {
    let done = world.ask(by, command).await.unwrap();
    let id = reply(&done)["notificationId"].as_str().unwrap().to_owned();
    (id, done.effects)
}

/// The ids of the notifications pushed, with their users.
fn pushed(effects: &[Effect]) -> Vec<(String, String)> {
    let emits = effects.iter().filter_map(|effect| match effect {
        Effect::Emit(emit) if emit.row.name == "new-notification" => Some(emit),
        _ => None,
    });
    emits
        .map(|emit| {
            let row: serde_json::Value = serde_json::from_str(emit.payload.get()).unwrap();
            let text = |key: &str| row[key].as_str().unwrap().to_owned();
            (text("id"), text("user_id"))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_unknown_suspended_or_of_another_tenant_is_sent_nothing() {
    for world in World::each().await {
        world.provision(&["ana", "sid"]).await;
        let suspend = "UPDATE users SET status = 'SUSPENDED' WHERE id = 'sid'";
        world.sql(suspend, suspend).await;
        for id in ["sid", "nobody"] {
            let refusal = world.ask(&mentor(), &to(id)).await.unwrap_err();
            assert_eq!(refusal.code(), Code::NotFound, "{id}");
        }
        let stranger = Caller { role: Role::SuperAdmin, ..caller("other", "boss") };
        let refusal = world.ask(&stranger, &to("ana")).await.unwrap_err();
        assert_eq!(refusal.code(), Code::NotFound);
        assert!(world.ask(&mentor(), &to("ana")).await.is_ok());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_many_sockets_come_at_once_each_notification_is_claimed_once() {
    for world in World::each().await {
        let world = Arc::new(world);
        world.provision(&["ana"]).await;
        for _ in 0..5 {
            let mut stored = Vec::new();
            for _ in 0..7 {
                let (id, effects) = send(&world, &mentor(), &to("ana")).await;
                stored.push((id, "ana".to_owned()));
                assert_eq!(pushed(&effects), []);
            }
            let sockets: Vec<_> = (0..16)
                .map(|n| {
                    let world = world.clone();
                    tokio::spawn(async move {
                        let mut ana = caller("t", "ana");
                        let id = format!("socket-{n}");
                        ana.connection = carillon_domain::ConnectionId::new(id).unwrap();
                        session::connected(&world.app, &ana).await.unwrap();
                        let effects = settled(&world.app, &ana).await;
                        (ana, pushed(&effects))
                    })
                })
                .collect();
            let mut heard = Vec::new();
            let mut callers = Vec::new();
            for socket in sockets {
                let (ana, mut some) = socket.await.unwrap();
                heard.append(&mut some);
                callers.push(ana);
            }
            assert_eq!(heard, stored);
            for ana in &callers {
                session::disconnected(&world.app, ana, session::Ending::Lost);
            }
        }
    }
}

/// Whatever is sent while its user comes is pushed or claimed, once, and in the order of the lane.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stored_while_its_user_comes_is_neither_lost_nor_doubled() {
    for world in World::each().await {
        let world = Arc::new(world);
        for round in 0..20 {
            let id = format!("ana-{round}");
            world.provision(&[&id]).await;
            let ana = caller("t", &id);
            let senders: Vec<_> = (0..4)
                .map(|_| {
                    let (world, id) = (world.clone(), id.clone());
                    tokio::spawn(async move {
                        let mut all = Vec::new();
                        for _ in 0..5 {
                            all.push(send(&world, &mentor(), &to(&id)).await);
                        }
                        all
                    })
                })
                .collect();
            let since = world.app.clock.now();
            session::connected(&world.app, &ana).await.unwrap();
            let mut told = offsets(&settled(&world.app, &ana).await);
            let mut sent = HashSet::new();
            for sender in senders {
                for (id, effects) in sender.await.unwrap() {
                    sent.insert(id);
                    told.extend(offsets(&effects));
                }
            }
            // What the second look finds is only what came between a look and a claim.
            let late = notification::awaiting(
                &world.app,
                &ana.tenant,
                since.before(Duration::from_secs(30)),
            );
            let late = late.await.unwrap();
            told.extend(offsets(
                &notification::deliver(&world.app, &ana.tenant, &late).await.unwrap(),
            ));
            told.sort_unstable();
            let ids: Vec<_> = told.iter().map(|(_, id)| id.clone()).collect();
            assert_eq!(ids.len(), 20, "each is told once");
            assert_eq!(ids.into_iter().collect::<HashSet<_>>(), sent);
            assert_eq!(
                notification::awaiting(&world.app, &ana.tenant, Timestamp(0)).await.unwrap(),
                []
            );
        }
    }
}

/// A row is brought once: to a socket that cannot carry it, it would be lost.
#[tokio::test]
async fn a_page_that_hears_nothing_of_notifications_is_brought_none() {
    for world in World::each().await {
        world.provision(&["ana", "mentor"]).await;
        let (missed, _) = send(&world, &mentor(), &to("ana")).await;
        let exam = Caller { namespace: "/exam", ..caller("t", "ana") };
        session::connected(&world.app, &exam).await.unwrap();
        assert_eq!(pushed(&settled(&world.app, &exam).await), []);
        let (meanwhile, effects) = send(&world, &mentor(), &to("ana")).await;
        assert_eq!(pushed(&effects), []);
        let page = Caller { connection: ConnectionId::new("page").unwrap(), ..caller("t", "ana") };
        session::connected(&world.app, &page).await.unwrap();
        let brought = pushed(&settled(&world.app, &page).await);
        let ids: Vec<_> = brought.into_iter().map(|(id, _)| id).collect();
        assert_eq!(ids, [missed, meanwhile]);
    }
}

/// What queues while the lane is held makes one batch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_away_has_one_notification_of_a_room_whatever_a_batch_says_in_it() {
    for world in World::each().await {
        let (t, ana, ben) = (tenant("t"), caller("t", "ana"), caller("t", "ben"));
        world.provision(&["ana", "ben"]).await;
        for member in [&ana, &ben] {
            world.ask(member, &JoinRoom::example()).await.unwrap();
        }
        let say = async |text: &str| {
            let message = SendMessage { message: text.into(), ..SendMessage::example() };
            world.ask(&ana, &message).await.unwrap();
        };
        let undone = async || {
            let mut cx = Cx::new(&world.app, &ana, Scope::Lane, world.app.clock.now());
            let draft = Draft { collapse_key: Some("algebra".into()), ..draft(None) };
            notification::collapse(&mut cx, user("ben"), draft).await.unwrap();
        };
        let unread = async || {
            let mut tx = world.store.begin(&t, Scope::Lane).await.unwrap();
            tx.unread_notifications(&t, &user("ben"), world.app.clock.now()).await.unwrap()
        };
        let held = world.store.begin(&t, Scope::Lane).await.unwrap();
        let batch = async {
            tokio::join!(biased; undone(), unread(), say("1"), undone(), say("2"), unread(), say("3"))
        };
        let (results, ()) = tokio::join!(biased; batch, async { drop(held) });
        assert_eq!((results.1, results.5), (0, 1));
        say("4").await;

        session::connected(&world.app, &ben).await.unwrap();
        let told: Vec<serde_json::Value> = settled(&world.app, &ben)
            .await
            .iter()
            .filter_map(|effect| match effect {
                Effect::Emit(emit) if emit.row.name == "new-notification" => {
                    serde_json::from_str(emit.payload.get()).ok()
                }
                _ => None,
            })
            .collect();
        let [one] = &told[..] else { panic!("{told:?}") };
        assert_eq!((one["message"].as_str(), one["count"].as_i64()), (Some("4"), Some(4)));
        let ids: Vec<_> = pushed(&settled(&world.app, &ben).await);
        assert_eq!(ids, [], "it is delivered once");
    }
}

fn offsets(effects: &[Effect]) -> Vec<(i64, String)> {
    let emits = effects.iter().filter_map(|effect| match effect {
        Effect::Emit(emit) if emit.row.name == "new-notification" => emit.offset,
        _ => None,
    });
    emits.map(|offset| offset.0).zip(pushed(effects).into_iter().map(|(id, _)| id)).collect()
}

const MANY_SQLITE: &str =
    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000)
    INSERT INTO users (tenant_id, id, name, role, status, created_at, updated_at)
    SELECT 't', printf('u%05d', i), 'User', CASE WHEN i % 10 = 0 THEN 'MENTOR' ELSE 'STUDENT' END,
        CASE WHEN i % 100 = 7 THEN 'SUSPENDED' ELSE 'VERIFIED' END, 0, 0 FROM n";
const MANY_POSTGRES: &str = "INSERT INTO users (tenant_id, id, name, role, status, created_at, updated_at)
    SELECT 't', 'u' || lpad(i::text, 5, '0'), 'User', CASE WHEN i % 10 = 0 THEN 'MENTOR' ELSE 'STUDENT' END,
        CASE WHEN i % 100 = 7 THEN 'SUSPENDED' ELSE 'VERIFIED' END, now(), now()
    FROM generate_series(1, 10000) i";

async fn broadcast(world: &World, audience: Audience, draft: Draft) -> u64 {
    let system = Caller::system(&tenant("t"));
    let mut cx = Cx::new(&world.app, &system, Scope::Rows, world.app.clock.now());
    let stored = notification::broadcast(&mut cx, &audience, draft).await.unwrap();
    assert!(cx.commit().await.unwrap().is_empty());
    stored
}

fn draft(dedupe_key: Option<&str>) -> Draft {
    Draft {
        kind: "SYSTEM".into(),
        title: "Closed on Monday".into(),
        message: "All day".into(),
        dedupe_key: dedupe_key.map(str::to_owned),
        priority: Priority::High,
        ..Draft::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_are_reached_by_one_statement_and_nobody_else_waits() {
    for world in World::each().await {
        let world = Arc::new(world);
        world.sql(MANY_SQLITE, MANY_POSTGRES).await;
        world.provision(&["writer"]).await;
        // Every tenth is here.
        let here: Vec<Caller> =
            (1..=1_000).map(|n| caller("t", &format!("u{:05}", n * 10))).collect();
        for one in &here {
            session::connected(&world.app, one).await.unwrap();
            settled(&world.app, one).await;
        }
        let since = world.app.clock.now();

        let begun = Instant::now();
        assert_eq!(broadcast(&world, Audience::Everybody, draft(Some("monday"))).await, 9_901);
        let took = begun.elapsed();
        eprintln!("{}: 9,901 rows in {took:?}", world.store.kind());
        assert_eq!(broadcast(&world, Audience::Everybody, draft(Some("monday"))).await, 0);

        // Somebody who writes all the while: how often, and how long the worst of it took.
        let (over, is_over) = tokio::sync::oneshot::channel::<()>();
        let writing = {
            let world = world.clone();
            tokio::spawn(async move {
                let (mut is_over, mut times, mut worst) = (is_over, 0, Duration::ZERO);
                while is_over.try_recv() == Err(TryRecvError::Empty) {
                    let begun = Instant::now();
                    send(&world, &caller("t", "writer"), &SendNotification::example()).await;
                    worst = worst.max(begun.elapsed());
                    times += 1;
                }
                (times, worst)
            })
        };
        let t = tenant("t");
        let waiting = notification::awaiting(&world.app, &t, since).await.unwrap();
        assert_eq!(waiting.len(), 1_000);
        let begun = Instant::now();
        let (mut heard, deliveries) = (Vec::new(), waiting.chunks(50));
        let count = deliveries.len();
        for some in deliveries {
            heard.extend(pushed(&notification::deliver(&world.app, &t, some).await.unwrap()));
        }
        let took = begun.elapsed();
        drop(over);
        let (times, worst) = writing.await.unwrap();
        eprintln!(
            "{}: 1,000 delivered in {took:?}, {times} others waited at most {worst:?}",
            world.store.kind()
        );
        // Whoever queues just behind a long delivery goes with the next.
        assert!(times * 4 > count, "{times}");

        let ids: HashSet<_> = heard.iter().map(|(id, _)| id).collect();
        let users: HashSet<_> = heard.iter().map(|(_, user)| user.clone()).collect();
        let expected: HashSet<_> = here.iter().map(|one| one.user.to_string()).collect();
        assert_eq!((heard.len(), ids.len(), users), (1_000, 1_000, expected));
        assert_eq!(notification::awaiting(&world.app, &t, since).await.unwrap(), []);

        // The others find it when they come.
        let late = caller("t", "u00001");
        session::connected(&world.app, &late).await.unwrap();
        let effects = settled(&world.app, &late).await;
        assert_eq!(pushed(&effects).len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_audience_is_some_users_some_roles_or_everybody() {
    for world in World::each().await {
        world.sql(MANY_SQLITE, MANY_POSTGRES).await;
        let users = |ids: &[&str]| Audience::Users(ids.iter().map(|id| user(id)).collect());
        // One is suspended, one unknown, one named twice.
        let some = users(&["u00001", "u00007", "u00008", "u00008", "nobody", "it's"]);
        assert_eq!(broadcast(&world, some, draft(None)).await, 2);
        let mentors = Audience::Roles(vec![Role::Mentor, Role::Proctor]);
        assert_eq!(broadcast(&world, mentors, draft(None)).await, 1_000);
        assert_eq!(broadcast(&world, users(&[]), draft(None)).await, 0);
        // Two batches in the same millisecond have no id in common.
        assert_eq!(broadcast(&world, users(&["u00001"]), draft(None)).await, 1);
        let late = caller("t", "u00001");
        session::connected(&world.app, &late).await.unwrap();
        let effects = settled(&world.app, &late).await;
        let ids: HashSet<_> = pushed(&effects).into_iter().map(|(id, _)| id).collect();
        assert_eq!(ids.len(), 2);
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// To ana, under the n-th of a few dedupe or collapse keys, or none.
    Send(Option<u8>, Option<u8>),
    /// The n-th that was sent, counted from the newest.
    Read(usize),
    ReadUpTo(usize),
    ReadAll,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = || proptest::option::weighted(0.4, 0..3u8);
    let step = prop_oneof![
        3 => key().prop_map(|key| Step::Send(key, None)),
        3 => key().prop_map(|key| Step::Send(None, key)),
        3 => (0..6usize).prop_map(Step::Read),
        1 => (0..6usize).prop_map(Step::ReadUpTo),
        1 => Just(Step::ReadAll),
    ];
    proptest::collection::vec(step, 1..40)
}

/// Ids in the order in which they were last told, and whether they were read.
#[derive(Default)]
struct Model {
    rows: Vec<(String, bool)>,
    deduped: BTreeMap<u8, String>,
    collapsed: BTreeMap<u8, String>,
}

impl Model {
    fn unread(&self) -> usize {
        self.rows.iter().filter(|(_, is_read)| !is_read).count()
    }
    fn pick(&self, back: usize) -> Option<usize> {
        self.rows.len().checked_sub(back + 1)
    }
}

async fn play(world: &World, who: &UserId, steps: &[Step]) {
    let ana = caller("t", who.as_str());
    let (mut model, mut last_rev) = (Model::default(), 0);
    for step in steps {
        let counted = match step {
            Step::Send(dedupe, collapse) => {
                let command = SendNotification {
                    dedupe_key: dedupe.map(|key| key.to_string()),
                    collapse_key: collapse.map(|key| key.to_string()),
                    ..SendNotification::example()
                };
                let (id, _) = send(world, &ana, &command).await;
                let known = dedupe.and_then(|key| model.deduped.get(&key).cloned());
                let unread = collapse.and_then(|key| model.collapsed.get(&key).cloned());
                let unread = unread.filter(|id| model.rows.contains(&(id.clone(), false)));
                if let Some(known) = known {
                    assert_eq!(id, known);
                } else if let Some(unread) = unread {
                    assert_eq!(id, unread);
                    model.rows.retain(|(row, _)| *row != id);
                    model.rows.push((id, false));
                } else {
                    assert!(model.rows.iter().all(|(row, _)| *row != id));
                    dedupe.map(|key| model.deduped.insert(key, id.clone()));
                    collapse.map(|key| model.collapsed.insert(key, id.clone()));
                    model.rows.push((id, false));
                }
                None
            }
            Step::Read(back) => {
                let Some(index) = model.pick(*back) else { continue };
                model.rows[index].1 = true;
                let notification_id = NotificationId::new(&model.rows[index].0).unwrap();
                Some(world.ask(&ana, &ReadNotification { notification_id }).await.unwrap())
            }
            Step::ReadUpTo(back) => {
                let Some(index) = model.pick(*back) else { continue };
                model.rows[..=index].iter_mut().for_each(|row| row.1 = true);
                let up_to = NotificationId::new(&model.rows[index].0).ok();
                Some(world.ask(&ana, &ReadAllNotifications { up_to }).await.unwrap())
            }
            Step::ReadAll => {
                model.rows.iter_mut().for_each(|row| row.1 = true);
                Some(world.ask(&ana, &ReadAllNotifications { up_to: None }).await.unwrap())
            }
        };
        if let Some(done) = counted {
            assert_eq!(reply(&done)["unreadCount"], model.unread(), "{step:?}");
            let rev = reply(&done)["rev"].as_i64().unwrap();
            assert!(std::mem::replace(&mut last_rev, rev) < rev || rev == 0);
        }
        let (t, now) = (tenant("t"), world.app.clock.now());
        let mut reads = world.store.read().await.unwrap();
        let count = reads.unread_notifications(&t, who, now).await.unwrap();
        assert_eq!(usize::try_from(count).unwrap(), model.unread());
    }
}

#[test]
fn the_unread_count_is_always_what_a_recount_gives() {
    let runtime = Runtime::new().unwrap();
    for world in &runtime.block_on(World::each()) {
        let config =
            ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() };
        let cases = Cell::new(0);
        TestRunner::new(config)
            .run(&steps(), |steps| {
                cases.set(cases.get() + 1);
                let who = user(&format!("ana-{}", cases.get()));
                runtime.block_on(play(world, &who, &steps));
                Ok(())
            })
            .unwrap();
    }
}
