//! Leaderboards: what is folded with every result equals what is folded anew, equals a recount;
//! ranks, pages and their indexes; on both databases.

use std::collections::{BTreeMap, BTreeSet};

use carillon_domain::{
    Cx, TenantId, Timestamp, UserId,
    api::{KeyHolder, OPERATIONS, Request, Rights, perform},
    contract::Scope,
    identity::Role,
    leaderboard::{
        Board, Change, Period, Span, leaderboard_request::LeaderboardRequest,
        leaderboard_update::LeaderboardUpdate, recompute::recompute, revise,
    },
    ports::Store as _,
};
use jiff::{civil::Weekday, tz::TimeZone};
use proptest::prelude::*;
use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _, Row as _};
use tokio::runtime::Runtime;

use crate::world::{World, caller, reply, tenant, user};

const ZONES: [&str; 3] = ["UTC", "Europe/Berlin", "America/New_York"];
/// Where clocks change, and where weeks, months and years begin.
const EDGES: [&str; 6] = [
    "2026-03-29T00:30:00Z",
    "2026-10-25T00:30:00Z",
    "2026-03-08T06:30:00Z",
    "2026-11-01T05:30:00Z",
    "2026-12-31T22:59:59.999Z",
    "2026-11-15T23:00:00Z",
];
const PEOPLE: [&str; 3] = ["ana", "ben", "cem"];

#[derive(Clone, Debug)]
enum Step {
    Release {
        who: usize,
        at: i64,
        score: i64,
        total: i64,
    },
    /// The newest but so many is graded again.
    Regrade(usize, i64),
    Void(usize),
    /// The user is somebody else from now on.
    Put {
        who: usize,
        specialty: Option<&'static str>,
        suspended: bool,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let at = (0..EDGES.len(), -30_i64..30).prop_map(|(edge, hours)| {
        let edge: jiff::Timestamp = EDGES[edge].parse().unwrap();
        edge.as_millisecond() + hours * 3_600_000
    });
    let who = 0..PEOPLE.len();
    let release = (who.clone(), at, 0_i64..4, 0_i64..4).prop_map(|(who, at, score, total)| {
        Step::Release { who, at, score: score.min(total), total }
    });
    let put = (who, prop_oneof![Just(None), Just(Some("Cardiology"))], prop::bool::weighted(0.3))
        .prop_map(|(who, specialty, suspended)| Step::Put { who, specialty, suspended });
    let step = prop_oneof![
        6 => release,
        2 => (0_usize..4, 0_i64..4).prop_map(|(back, score)| Step::Regrade(back, score)),
        2 => (0_usize..4).prop_map(Step::Void),
        2 => put,
    ];
    prop::collection::vec(step, 1..25)
}

/// A row as both databases show it.
type Line = (String, String, String, Option<String>, i64, i64, i64, i64, i64);

/// Period, its start, user.
type Group = (String, String, usize);

#[derive(Default)]
struct Model {
    results: Vec<(usize, i64, i64, i64)>,
    specialties: BTreeMap<usize, &'static str>,
    suspended: BTreeSet<usize>,
}

impl Model {
    /// Counts everything by hand.
    fn lines(&self, zone: &TimeZone) -> Vec<Line> {
        let mut lines: BTreeMap<Group, Vec<(i64, i64, i64)>> = BTreeMap::new();
        for &(who, at, score, total) in &self.results {
            if self.suspended.contains(&who) {
                continue;
            }
            let instant = jiff::Timestamp::from_millisecond(at).unwrap();
            let date = instant.to_zoned(zone.clone()).date();
            let mut monday = date;
            while monday.weekday() != Weekday::Monday {
                monday = monday.yesterday().unwrap();
            }
            let month = format!("{:04}-{:02}-01", date.year(), date.month());
            for (period, start) in [
                ("weekly", monday.to_string()),
                ("monthly", month),
                ("all_time", "0001-01-01".to_owned()),
            ] {
                lines.entry((period.into(), start, who)).or_default().push((at, score, total));
            }
        }
        let line = |((period, start, who), results): (Group, Vec<_>)| {
            let count = i64::try_from(results.len()).unwrap();
            let sum: i64 = results.iter().map(|(_, score, _)| score).sum();
            let percent = |&(_, score, total): &(i64, i64, i64)| {
                if total == 0 { 0 } else { (score * 100_000_000 + total / 2) / total }
            };
            let percents: i64 = results.iter().map(percent).sum();
            let scoring = results.iter().filter(|(_, score, _)| *score > 0).map(|(at, ..)| *at);
            let first = results.iter().map(|(at, ..)| *at).min().unwrap();
            let reached = scoring.max().unwrap_or(first);
            let average = (percents + count * 5_000) / (count * 10_000);
            let specialty = self.specialties.get(&who).map(|text| (*text).to_owned());
            let name = PEOPLE[who].to_owned();
            (period, start, name, specialty, sum, count, percents, average, reached)
        };
        let mut all: Vec<Line> = lines.into_iter().map(line).collect();
        all.sort();
        all
    }
}

/// How many have a score: period, its start, specialty or empty, level, bucket of scores, users.
type Score = (String, String, String, i32, i64, i64);

impl Model {
    fn scores(&self, zone: &TimeZone) -> Vec<Score> {
        let mut users: BTreeMap<_, i64> = BTreeMap::new();
        for (period, start, _, specialty, score, ..) in self.lines(zone) {
            for board in specialty.into_iter().chain([String::new()]) {
                for level in 0..3 {
                    let bucket = score >> (6 * level);
                    let key = (period.clone(), start.clone(), board.clone(), level, bucket);
                    *users.entry(key).or_default() += 1;
                }
            }
        }
        users
            .into_iter()
            .map(|((period, start, of, level, bucket), n)| (period, start, of, level, bucket, n))
            .collect()
    }
}

const SCORES: &str =
    "SELECT period, period_start, specialty, level, bucket, users FROM leaderboard_scores";

async fn scores(world: &World) -> Vec<Score> {
    let mut scores: Vec<Score> = if world.is_sqlite() {
        let mut conn = sqlx::SqliteConnection::connect(&world.url).await.unwrap();
        sqlx::query_as(SCORES).fetch_all(&mut conn).await.unwrap()
    } else {
        let mut conn = sqlx::PgConnection::connect(&world.url).await.unwrap();
        sqlx::query_as(SCORES).fetch_all(&mut conn).await.unwrap()
    };
    scores.sort();
    scores
}

const LINES: &str = "SELECT period, period_start, user_id, specialty, total_score,
    exams_completed, percent_sum, average, reached_at FROM leaderboard_entries";
const LINES_POSTGRES: &str = "SELECT period, period_start, user_id, specialty, total_score,
    exams_completed, percent_sum, average, (extract(epoch FROM reached_at) * 1000)::bigint
    FROM leaderboard_entries";

async fn lines(world: &World) -> Vec<Line> {
    let mut lines: Vec<Line> = if world.is_sqlite() {
        let mut conn = sqlx::SqliteConnection::connect(&world.url).await.unwrap();
        sqlx::query_as(LINES).fetch_all(&mut conn).await.unwrap()
    } else {
        let mut conn = sqlx::PgConnection::connect(&world.url).await.unwrap();
        sqlx::query_as(LINES_POSTGRES).fetch_all(&mut conn).await.unwrap()
    };
    lines.sort();
    lines
}

async fn execute(world: &World, statement: String) {
    if world.is_sqlite() {
        let mut conn = sqlx::SqliteConnection::connect(&world.url).await.unwrap();
        conn.execute(sqlx::AssertSqlSafe(statement)).await.unwrap();
    } else {
        let mut conn = sqlx::PgConnection::connect(&world.url).await.unwrap();
        conn.execute(sqlx::AssertSqlSafe(statement)).await.unwrap();
    }
}

fn instant(world: &World, at: i64) -> String {
    if world.is_sqlite() {
        at.to_string()
    } else {
        format!("'epoch'::timestamptz + {at} * interval '1 millisecond'")
    }
}

/// Writes a released result, as the end of an exam does.
async fn write_result(world: &World, id: &str, who: &str, at: i64, score: i64, total: i64) {
    let at = instant(world, at);
    execute(
        world,
        format!(
            "INSERT INTO exam_results (tenant_id, id, exam_id, user_id, session_id, attempt_no,
                score, total_questions, answers, points, max_points, pending_review, revision,
                key_version, completed_at, released_at, journal_len, journal_head)
             VALUES ('t', '{id}', 'exam', '{who}', 's-{id}', 1, {score}, {total}, '[]', 0, 0, FALSE, 1,
                1, {at}, {at}, 0, '')"
        ),
    )
    .await;
}

async fn changed(world: &World, who: &str, at: i64, results: i64, score: i64) {
    let system = caller("t", "system");
    let mut cx = Cx::new(&world.app, &system, Scope::Lane, world.app.clock.now());
    let change =
        Change { user: user(who), completed_at: Timestamp(at), results, score, percent: score };
    revise(&mut cx, &[change]).await.unwrap();
    cx.commit().await.unwrap();
}

fn backend() -> KeyHolder {
    KeyHolder { tenant: tenant("t"), name: "tests".into(), rights: Rights::All }
}

/// Asks the server API.
async fn api(world: &World, name: &str, payload: Value) -> Value {
    let row = OPERATIONS.iter().copied().flatten().find(|row| row.name == name).unwrap();
    let Value::Object(payload) = payload else { panic!("an object") };
    let request = Request { payload, idempotency: None };
    let done = perform(&world.app, &backend(), row, request, world.app.clock.now()).await.unwrap();
    serde_json::from_str(done.body.get()).unwrap()
}

async fn play(world: &World, model: &mut Model, n: usize, step: &Step) {
    let pick = |model: &Model, back: usize| model.results.len().checked_sub(back + 1);
    match *step {
        Step::Release { who, at, score, total } => {
            model.results.push((who, at, score, total));
            write_result(world, &format!("r{n}-{at}"), PEOPLE[who], at, score, total).await;
            changed(world, PEOPLE[who], at, 1, score).await;
        }
        Step::Regrade(back, score) => {
            let Some(index) = pick(model, back) else { return };
            let (who, at, before, total) = model.results[index];
            let score = score.min(total);
            model.results[index].2 = score;
            let one = one_result(world, who, at, before, total);
            execute(world, format!("UPDATE exam_results SET score = {score} WHERE id = {one}"))
                .await;
            changed(world, PEOPLE[who], at, 0, score - before).await;
        }
        Step::Void(back) => {
            let Some(index) = pick(model, back) else { return };
            let (who, at, before, total) = model.results.remove(index);
            let one = one_result(world, who, at, before, total);
            execute(world, format!("DELETE FROM exam_results WHERE id = {one}")).await;
            changed(world, PEOPLE[who], at, -1, -before).await;
        }
        Step::Put { who, specialty, suspended } => {
            match specialty {
                Some(text) => model.specialties.insert(who, text),
                None => model.specialties.remove(&who),
            };
            if suspended {
                model.suspended.insert(who)
            } else {
                model.suspended.remove(&who)
            };
            let status = if suspended { "SUSPENDED" } else { "VERIFIED" };
            let payload = json!({
                "id": PEOPLE[who], "name": "Somebody", "role": "STUDENT",
                "targetSpecialty": specialty, "status": status,
            });
            api(world, "putUser", payload).await;
        }
    }
}

/// Any of the results that look like this.
fn one_result(world: &World, who: usize, at: i64, score: i64, total: i64) -> String {
    let (who, at) = (PEOPLE[who], instant(world, at));
    format!(
        "(SELECT min(id) FROM exam_results WHERE user_id = '{who}' AND completed_at = {at}
          AND score = {score} AND total_questions = {total})"
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, ..ProptestConfig::default() })]

    #[test]
    fn entries_folded_with_every_change_equal_a_recount_and_a_recomputation(
        zone in 0..ZONES.len(), steps in steps()
    ) {
        let runtime = Runtime::new().unwrap();
        runtime.block_on(async {
            for mut world in World::each().await {
                let zone = TimeZone::get(ZONES[zone]).unwrap();
                world.app.leaderboard.of_tenants.insert(tenant("t"), zone.clone());
                for who in PEOPLE {
                    let new = json!({ "id": who, "name": who, "role": "STUDENT" });
                    api(&world, "putUser", new).await;
                }
                let mut model = Model::default();
                for (n, step) in steps.iter().enumerate() {
                    play(&world, &mut model, n, step).await;
                    assert_eq!(lines(&world).await, model.lines(&zone), "after {step:?}");
                    assert_eq!(scores(&world).await, model.scores(&zone), "after {step:?}");
                }
                for _ in 0..2 {
                    let done = recompute(&world.app, &tenant("t"), None, None).await.unwrap();
                    assert!(done.complete);
                    assert_eq!(done.repaired, 0);
                    assert_eq!(lines(&world).await, model.lines(&zone));
                }
            }
        });
    }
}

const NOON: i64 = 1_700_000_000_000;

/// A world in which these have the score, in that order.
async fn with_scores(world: &World, scores: &[(&str, Option<&str>, i64)]) {
    for (n, (who, specialty, score)) in (0..).zip(scores) {
        let new = json!({
            "id": who, "name": format!("{who} Name"), "role": "STUDENT", "avatar": "/a.png",
            "targetSpecialty": specialty,
        });
        api(world, "putUser", new).await;
        write_result(world, &format!("r{n}"), who, NOON + n, *score, 10).await;
        changed(world, who, NOON + n, 1, *score).await;
    }
}

async fn board(world: &World, who: &str, payload: Value) -> Value {
    let request: LeaderboardRequest = serde_json::from_value(payload).unwrap();
    let done = world.ask(&caller("t", who), &request).await.unwrap();
    let data = done.effects.iter().find_map(|effect| match effect {
        carillon_domain::Effect::Emit(emit) => Some(emit.payload.get()),
        _ => None,
    });
    serde_json::from_str(data.unwrap()).unwrap()
}

fn ranks(entries: &Value) -> Vec<(String, i64)> {
    let name = |entry: &Value| entry["user_id"].as_str().unwrap().to_owned();
    let entries = entries.as_array().unwrap();
    entries.iter().map(|entry| (name(entry), entry["rank"].as_i64().unwrap())).collect()
}

fn expect(of: &[(&str, i64)]) -> Vec<(String, i64)> {
    of.iter().map(|(who, rank)| ((*who).to_owned(), *rank)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_board_is_ranked_by_score_and_a_filtered_one_among_its_own() {
    for world in World::each().await {
        let (heart, skin) = (Some("Cardiology"), Some("Dermatology"));
        with_scores(
            &world,
            &[
                ("eve", heart, 7),
                ("ana", heart, 9),
                ("dan", skin, 7),
                ("ben", skin, 7),
                ("cem", None, 2),
            ],
        )
        .await;
        let everybody = board(&world, "dan", json!({})).await;
        // Equal in score and average: who reached it first comes first.
        let order = [("ana", 1), ("eve", 2), ("dan", 2), ("ben", 2), ("cem", 5)];
        assert_eq!(ranks(&everybody["entries"]), expect(&order));
        assert!(everybody.get("specialty").is_none());
        assert_eq!(
            everybody["userRank"],
            json!({ "rank": 2, "total_score": 7, "exams_completed": 1, "average_score": 70.0 })
        );
        assert_eq!(
            everybody["entries"][1],
            json!({
                "user_id": "eve", "user_name": "eve Name", "user_avatar": "/a.png",
                "specialty": "Cardiology", "total_score": 7, "exams_completed": 1,
                "average_score": 70.0, "rank": 2, "period": "weekly",
            })
        );

        let skin = board(&world, "ben", json!({ "specialty": "Dermatology", "limit": 1 })).await;
        assert_eq!(ranks(&skin["entries"]), expect(&[("dan", 1)]));
        assert_eq!(
            (&skin["specialty"], &skin["userRank"]["rank"]),
            (&json!("Dermatology"), &json!(1))
        );
        let foreign = board(&world, "ana", json!({ "specialty": "Dermatology" })).await;
        assert_eq!(foreign["userRank"], Value::Null);
        let none = board(&world, "nobody", json!({ "specialty": "  ", "limit": -5 })).await;
        assert_eq!(ranks(&none["entries"]), expect(&[("ana", 1)]));
        assert!(none.get("specialty").is_none() && none["userRank"].is_null());
        for period in ["monthly", "all_time"] {
            let board = board(&world, "cem", json!({ "period": period })).await;
            assert_eq!(board["userRank"]["rank"], 5);
        }
        // Suspended users leave, and ranks close up.
        let gone = json!({
            "id": "ana", "name": "Ana", "role": "STUDENT", "targetSpecialty": "Cardiology",
            "status": "SUSPENDED",
        });
        api(&world, "putUser", gone).await;
        let left = board(&world, "cem", json!({})).await;
        assert_eq!(ranks(&left["entries"])[0], ("eve".to_owned(), 1));
        assert_eq!(left["userRank"]["rank"], 4);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_board_is_read_in_pages_that_keep_their_ranks() {
    for world in World::each().await {
        let people: Vec<(String, i64)> =
            (0..23).map(|n| (format!("user-{n:02}"), 9 - n / 5)).collect();
        let scores: Vec<_> =
            people.iter().map(|(who, score)| (who.as_str(), None, *score)).collect();
        with_scores(&world, &scores).await;
        let whole =
            api(&world, "getLeaderboard", json!({ "period": "all_time", "limit": 100 })).await;
        assert_eq!(whole["next"], Value::Null);
        for limit in [1, 4, 7] {
            let mut items = Vec::new();
            let mut cursor = Value::Null;
            loop {
                let mut ask = json!({ "period": "all_time", "limit": limit });
                if !cursor.is_null() {
                    ask["cursor"] = cursor;
                }
                let page = api(&world, "getLeaderboard", ask).await;
                items.extend(page["items"].as_array().unwrap().clone());
                cursor = page["next"].clone();
                if cursor.is_null() {
                    break;
                }
            }
            assert_eq!(Value::from(items), whole["items"], "pages of {limit}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_present_week_is_weekly() {
    for world in World::each().await {
        let day = 86_400_000;
        for (n, ago) in [0, 6 * day, 8 * day, 40 * day].into_iter().enumerate() {
            write_result(&world, &format!("r{n}"), "ana", NOON - ago, 1, 1).await;
            changed(&world, "ana", NOON - ago, 1, 1).await;
        }
        // 14 November 2023 is a Tuesday.
        for (period, score) in [("weekly", 1), ("monthly", 3), ("all_time", 4)] {
            let board = board(&world, "ana", json!({ "period": period })).await;
            assert_eq!(board["userRank"]["total_score"], score, "{period}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_admins_recompute_and_it_repairs_what_was_changed_by_hand() {
    for world in World::each().await {
        with_scores(&world, &[("ana", None, 9), ("ben", None, 7)]).await;
        let right = lines(&world).await;
        let wrong = "UPDATE leaderboard_entries SET total_score = 1, specialty = 'x'";
        world.sql(wrong, wrong).await;
        let stray = "INSERT INTO leaderboard_entries SELECT 't', period, period_start, 'ghost',
            specialty, total_score, exams_completed, percent_sum, average, reached_at, updated_at
            FROM leaderboard_entries WHERE user_id = 'ana'";
        world.sql(stray, stray).await;
        let mut ada = caller("t", "ada");
        for role in [Role::Student, Role::Mentor, Role::Reviewer, Role::Proctor] {
            ada.role = role;
            let refusal = world.ask(&ada, &LeaderboardUpdate {}).await.unwrap_err();
            assert_eq!(refusal.code().as_str(), "FORBIDDEN");
        }
        ada.role = Role::ProgramAdmin;
        let done = world.ask(&ada, &LeaderboardUpdate {}).await.unwrap();
        assert_eq!(reply(&done)["complete"], true);
        assert_eq!(reply(&done)["repaired"], 9);
        assert_eq!(lines(&world).await, right);
    }
}

/// The statements of `EXPLAIN` name their index.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_and_ranks_come_from_an_index() {
    for world in World::each().await {
        many(&world, 5_000).await;
        for filter in ["", "AND specialty = 'Cardiology'"] {
            let index = if filter.is_empty() {
                "leaderboard_entries_by_rank"
            } else {
                "leaderboard_entries_by_rank_of_specialty"
            };
            let place =
                "WHERE tenant_id = 't' AND period = 'weekly' AND period_start = '2023-11-13'";
            for (index, statement) in [
                (
                    index,
                    format!(
                        "SELECT user_id FROM leaderboard_entries {place} {filter}
                         ORDER BY total_score DESC, average DESC, reached_at, user_id LIMIT 50"
                    ),
                ),
                (
                    "leaderboard_scores",
                    format!(
                        "SELECT sum(users) FROM leaderboard_scores {place}
                         AND specialty = 'Cardiology' AND level = 1 AND bucket > 128 AND bucket <= 191"
                    ),
                ),
            ] {
                let plan = explain(&world, &statement).await;
                assert!(!plan.contains("SCAN") && !plan.contains("Seq Scan"), "{plan}");
                assert!(plan.contains(index), "{statement}\n{plan}");
                assert!(!plan.contains("TEMP B-TREE") && !plan.contains("Sort"), "{plan}");
            }
        }
    }
}

async fn explain(world: &World, statement: &str) -> String {
    if world.is_sqlite() {
        let mut conn = sqlx::SqliteConnection::connect(&world.url).await.unwrap();
        let statement = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {statement}"));
        let rows = sqlx::query(statement).fetch_all(&mut conn).await.unwrap();
        rows.iter().map(|row| row.get::<String, _>(3) + "\n").collect()
    } else {
        let mut conn = sqlx::PgConnection::connect(&world.url).await.unwrap();
        let statement = sqlx::AssertSqlSafe(format!("EXPLAIN {statement}"));
        let rows = sqlx::query(statement).fetch_all(&mut conn).await.unwrap();
        rows.iter().map(|row| row.get::<String, _>(0) + "\n").collect()
    }
}

/// So many users with one result each, folded.
async fn many(world: &World, count: i64) {
    let series = if world.is_sqlite() {
        format!("WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {count})")
    } else {
        format!("WITH n(n) AS (SELECT generate_series(1, {count}))")
    };
    let (day, pad) = if world.is_sqlite() {
        ("1700000000000 + n % 86400000", "printf('u%06d', n)")
    } else {
        (
            "'epoch'::timestamptz + (1700000000000 + n % 86400000) * interval '1 millisecond'",
            "'u' || lpad(n::text, 6, '0')",
        )
    };
    execute(
        world,
        format!(
            "{series} INSERT INTO exam_results (tenant_id, id, exam_id, user_id, session_id,
                attempt_no, score, total_questions, answers, points, max_points, pending_review,
                revision, key_version, completed_at, released_at, journal_len, journal_head)
             SELECT 't', 'r' || n, 'exam', {pad}, 's' || n, 1, (n * 7919) % 10000, 10000, '[]', 0, 0,
                FALSE, 1, 1, {day}, {day}, 0, '' FROM n"
        ),
    )
    .await;
    let now = instant(world, NOON);
    execute(
        world,
        format!(
            "{series} INSERT INTO users (tenant_id, id, name, role, status, target_specialty,
                created_at, updated_at)
             SELECT 't', {pad}, 'User ' || n, 'STUDENT', 'VERIFIED',
                CASE WHEN n % 3 = 0 THEN 'Cardiology' END, {now}, {now} FROM n"
        ),
    )
    .await;
    let done = recompute(&world.app, &tenant("t"), None, None).await.unwrap();
    assert_eq!(i64::try_from(done.users).unwrap(), count);
    if !world.is_sqlite() {
        execute(world, "VACUUM ANALYZE".into()).await;
    }
}

/// Scores in several buckets of every level.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rank_is_one_more_than_those_above() {
    for world in World::each().await {
        many(&world, 5_000).await;
        // 5,000 scores below 10,000, one of each.
        let score_of = |n: i64| (n * 7919) % 10_000;
        for (specialty, every) in [(None, 1), (Some("Cardiology".to_owned()), 3)] {
            let board = Board { period: Period::Weekly, specialty, limit: 1 };
            let span = Period::Weekly.span(&TimeZone::UTC, Timestamp(NOON)).unwrap();
            for n in (3..=5_000).step_by(177) {
                let who = UserId::new(format!("u{n:06}")).unwrap();
                let mut reads = world.store.read().await.unwrap();
                let standing = reads.board_standing(&tenant("t"), &board, &span, Some(&who)).await;
                let counted = (1..=5_000).filter(|other| other % every == 0);
                let above = counted.filter(|other| score_of(*other) > score_of(n)).count();
                assert_eq!(
                    standing.unwrap().own.map(|own| own.above),
                    i64::try_from(above).ok(),
                    "{}: {n} of {every}",
                    world.store.kind()
                );
            }
        }
    }
}

/// Not a test but a measurement: `cargo test --workspace --test it -- --ignored --nocapture own_rank`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn own_rank_among_a_hundred_thousand() {
    for world in World::each().await {
        let began = std::time::Instant::now();
        many(&world, 100_000).await;
        println!("{}: 100,000 made and folded in {:?}", world.store.kind(), began.elapsed());
        let began = std::time::Instant::now();
        recompute(&world.app, &tenant("t"), None, None).await.unwrap();
        println!("{}: folded anew in {:?}", world.store.kind(), began.elapsed());
        let t: TenantId = tenant("t");
        for specialty in [None, Some("Cardiology".to_owned())] {
            let board = Board { period: Period::Weekly, specialty, limit: 50 };
            let zone = TimeZone::UTC;
            let span: Span = Period::Weekly.span(&zone, Timestamp(NOON)).unwrap();
            let mut took = Vec::new();
            for n in 0..500_i64 {
                let who = UserId::new(format!("u{:06}", (n * 199) * 3 % 100_000)).unwrap();
                let began = std::time::Instant::now();
                let mut reads = world.store.read().await.unwrap();
                reads.board_standing(&t, &board, &span, Some(&who)).await.unwrap();
                took.push(began.elapsed());
            }
            took.sort();
            println!(
                "{} {:?}: p50 {:?} p99 {:?}",
                world.store.kind(),
                board.specialty,
                took[250],
                took[494]
            );
        }
    }
}
