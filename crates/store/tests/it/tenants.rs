//! Tenants never see each other: every command and every operation there is, asked with the ids of
//! another tenant's objects, tells nothing of them and changes nothing about them.

use std::{collections::BTreeMap, fmt::Write as _};

use carillon_domain::{
    COMMANDS, Caller, Cx, Done, Effect, TenantId,
    api::{KeyHolder, OPERATIONS, Request, Rights, perform},
    chat::{join_room::JoinRoom, send_message::SendMessage},
    contract::{Command as _, Scope},
    dispatch::dispatch,
    exam::{
        define::{ExamInput, define},
        exam_answer::ExamAnswer,
        exam_complete::ExamComplete,
        join_exam::JoinExam,
    },
    identity::{Claims, Role},
    ids::{ExamId, RoomId},
    ports::Store as _,
    study_group::study_group_create::CreateStudyGroup,
};
use serde_json::{Map, Value, json, value::RawValue};
use sqlx::{Connection as _, Row as _};

use crate::world::{World, caller, reply, tenant};

/// Part of everything the other tenant has ever written.
const SECRET: &str = "xyzzy";

/// What one command did, once its effects have been delivered.
async fn ask(
    world: &World,
    who: &Caller,
    command: &impl carillon_domain::contract::Command,
) -> Done {
    world.ask(who, command).await.unwrap()
}

/// A tenant with one of everything; the ids by the names payloads use for them.
async fn furnish(world: &World, of: &TenantId) -> BTreeMap<&'static str, String> {
    let ana = Caller { role: Role::ProgramAdmin, ..caller(of.as_str(), "ana-xyzzy") };
    let now = world.app.clock.now();
    let mut tx = world.store.begin(of, Scope::Lane).await.unwrap();
    let claims = Claims {
        user: ana.user.clone(),
        name: Some("xyzzy".into()),
        role: Role::Student,
        email: None,
        avatar: None,
        issue: carillon_domain::identity::Issue::default(),
    };
    tx.provision_user(of, &claims, now).await.unwrap();
    tx.commit().await.unwrap();

    let room = RoomId::new("room-xyzzy").unwrap();
    ask(world, &ana, &JoinRoom { room_id: room.clone() }).await;
    let words = SendMessage { room_id: room, message: "xyzzy".into(), ..SendMessage::example() };
    let message = reply(&ask(world, &ana, &words).await)["id"].clone();

    let exam = ExamId::new("exam-1").unwrap();
    let input: ExamInput = serde_json::from_value(json!({ "title": "xyzzy", "questions": [
        { "id": "q-1", "kind": "short_text", "text": "xyzzy?", "correct": "xyzzy" },
    ] }))
    .unwrap();
    let mut cx = Cx::new(&world.app, &ana, Scope::Lane, now);
    define(&mut cx, exam.clone(), &input).await.unwrap();
    cx.commit().await.unwrap();
    ask(world, &ana, &JoinExam { exam_id: exam.clone() }).await;
    let answer = ExamAnswer { exam_id: exam.clone(), question_index: 0, answer: "xyzzy".into() };
    ask(world, &ana, &answer).await;
    ask(world, &ana, &ExamComplete { exam_id: exam }).await;

    let group = CreateStudyGroup { name: "xyzzy".into(), ..CreateStudyGroup::example() };
    let group = reply(&ask(world, &ana, &group).await)["group"]["id"].clone();
    let notification = first(world, "SELECT id FROM notifications").await;
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    BTreeMap::from([
        ("userId", "ana-xyzzy".to_owned()),
        ("roomId", "room-xyzzy".to_owned()),
        ("messageId", text(&message)),
        ("examId", "exam-1".to_owned()),
        ("questionId", "q-1".to_owned()),
        ("groupId", text(&group)),
        ("notificationId", notification),
    ])
}

async fn first(world: &World, statement: &'static str) -> String {
    if world.is_sqlite() {
        let mut conn = sqlx::SqliteConnection::connect(&world.url).await.unwrap();
        sqlx::query_scalar(statement).fetch_one(&mut conn).await.unwrap()
    } else {
        let mut conn = sqlx::PgConnection::connect(&world.url).await.unwrap();
        sqlx::query_scalar(statement).fetch_one(&mut conn).await.unwrap()
    }
}

/// Everything a tenant has in the database, as text: tables of `SQLite`, which has the same ones.
async fn everything_of(world: &World, of: &TenantId) -> String {
    let mut conn = sqlx::SqliteConnection::connect(&world.url).await.unwrap();
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT m.name FROM sqlite_master m JOIN pragma_table_info(m.name) c
         WHERE m.type = 'table' AND c.name = 'tenant_id' ORDER BY m.name",
    )
    .fetch_all(&mut conn)
    .await
    .unwrap();
    assert!(tables.len() > 10, "{tables:?}");
    let mut all = String::new();
    for table in tables {
        let columns: Vec<String> = sqlx::query_scalar("SELECT name FROM pragma_table_info($1)")
            .bind(&table)
            .fetch_all(&mut conn)
            .await
            .unwrap();
        let columns = columns.iter().map(|name| format!("quote({name})")).collect::<Vec<_>>();
        let rows = format!(
            "SELECT {} AS line FROM {table} WHERE tenant_id = $1 ORDER BY 1",
            columns.join("||','||")
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(rows)).bind(of.as_str());
        for row in rows.fetch_all(&mut conn).await.unwrap() {
            writeln!(all, "{table}: {}", row.get::<String, _>("line")).unwrap();
        }
    }
    all
}

fn told(effects: &[Effect]) -> String {
    let payloads = effects.iter().filter_map(|effect| match effect {
        Effect::Emit(emit) => Some(emit.payload.get().to_owned()),
        _ => None,
    });
    payloads.collect()
}

/// What is left of a text without the ids that were in the question.
fn without(mut text: String, ids: &BTreeMap<&'static str, String>) -> String {
    for id in ids.values() {
        text = text.replace(id, "");
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_with_foreign_ids_tells_nothing_and_changes_nothing() {
    for world in World::each().await {
        let (theirs, ours) = (tenant("theirs"), tenant("ours"));
        let ids = furnish(&world, &theirs).await;
        let before =
            if world.is_sqlite() { everything_of(&world, &theirs).await } else { String::new() };
        assert!(!world.is_sqlite() || before.contains(SECRET));
        for role in [Role::Student, Role::SuperAdmin] {
            for route in COMMANDS.iter().copied().flatten() {
                let eve = Caller { role, ..caller(ours.as_str(), "eve") };
                let mut payload: Map<String, Value> =
                    serde_json::from_str(&(route.example)()).unwrap();
                for (name, id) in &ids {
                    if payload.contains_key(*name) {
                        payload.insert((*name).to_owned(), json!(id));
                    }
                }
                let payload = serde_json::value::to_raw_value(&payload).unwrap();
                let now = world.app.clock.now();
                let done = dispatch(&world.app, &eve, route, &payload, now, true).await;
                if let Ok(Done { reply, effects }) = done {
                    let text = without(told(&effects) + reply.get(), &ids);
                    assert!(!text.contains(SECRET), "{route:?}: {text}");
                }
            }
        }
        if world.is_sqlite() {
            assert_eq!(everything_of(&world, &theirs).await, before);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operation_with_foreign_ids_tells_nothing_and_changes_nothing() {
    for world in World::each().await {
        let (theirs, ours) = (tenant("theirs"), tenant("ours"));
        let ids = furnish(&world, &theirs).await;
        let before =
            if world.is_sqlite() { everything_of(&world, &theirs).await } else { String::new() };
        let key = KeyHolder { tenant: ours, name: "backend".into(), rights: Rights::All };
        let bodies = BTreeMap::from([
            ("createExam", json!({ "id": "exam-1", "title": "t", "questions": [] })),
            ("putExam", json!({ "title": "t", "questions": [] })),
            ("putUser", json!({ "name": "n", "role": "STUDENT" })),
            ("controlExam", json!({ "action": "close" })),
            ("notify", json!({ "tenant": true, "type": "t", "title": "t", "message": "m" })),
        ]);
        for row in OPERATIONS.iter().copied().flatten() {
            let mut payload = match bodies.get(row.name) {
                Some(Value::Object(body)) => body.clone(),
                _ => Map::new(),
            };
            for parameter in row.parameters() {
                let kind = row.path.split('/').nth(2).unwrap();
                let id = match (kind, parameter) {
                    (_, "userId") => ids["userId"].clone(),
                    ("exams", _) => ids["examId"].clone(),
                    ("rooms", _) => ids["roomId"].clone(),
                    ("groups" | "study-groups", _) => ids["groupId"].clone(),
                    ("leaderboards", _) => "weekly".to_owned(),
                    _ => ids["userId"].clone(),
                };
                payload.insert(parameter.to_owned(), json!(id));
            }
            let request = Request { payload, idempotency: None };
            let done = perform(&world.app, &key, row, request, world.app.clock.now()).await;
            match done {
                Ok(done) => {
                    let text = without(told(&done.effects) + RawValue::get(&done.body), &ids);
                    assert!(!text.contains(SECRET), "{row:?}: {text}");
                }
                // Nothing that is wrong with the request itself may hide what would be told.
                Err(refusal) => {
                    assert_ne!(refusal.code().as_str(), "INVALID", "{row:?}: {refusal}");
                }
            }
        }
        if world.is_sqlite() {
            assert_eq!(everything_of(&world, &theirs).await, before);
        }
    }
}
