//! What must hold for every row of the tables. A new command is tested by being listed.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use serde_json::value::RawValue;

use crate::{
    App, Caller, ConnectionId, Offset, Refusal, RoomId, TenantId, Timestamp, UserId,
    chat::{self, typing_indicator::Typists},
    contract::{ALL_PATHS, COMMANDS, Class, EVENTS, Rate, Route, Scope, find_command},
    credential::{Bearer, Token},
    dispatch::{Joined, dispatch},
    exam,
    identity::Role,
    leaderboard,
    ports::{Admission, Clock, Credentials, Ids, Lease, Leases, Reads, Store, Tx},
    presence::Presence,
    recovery::{Claim, Session},
};

/// A database that is away.
struct Away;
#[async_trait]
impl Store for Away {
    async fn begin(&self, _: &TenantId, _: Scope) -> Result<Box<dyn Tx>, Refusal> {
        Err(Refusal::Unavailable(None))
    }
    async fn read(&self) -> Result<Box<dyn Reads>, Refusal> {
        Err(Refusal::Unavailable(None))
    }
    async fn stay(&self, _: &str) -> Result<(), Refusal> {
        Err(Refusal::Unavailable(None))
    }
    async fn take_session(
        &self,
        _: &Session,
        _: &Claim,
        _: &str,
    ) -> Result<Option<Vec<(RoomId, Offset)>>, Refusal> {
        Err(Refusal::Unavailable(None))
    }
}

#[async_trait]
impl Leases for Away {
    async fn take_lease(
        &self,
        _: &'static str,
        _: &str,
        _: Duration,
    ) -> Result<Option<Lease>, Refusal> {
        Err(Refusal::Unavailable(None))
    }
    async fn leave_lease(&self, _: Lease) -> Result<(), Refusal> {
        Err(Refusal::Unavailable(None))
    }
}

struct Noon;
impl Clock for Noon {
    fn now(&self) -> Timestamp {
        Timestamp(1_700_000_000_000)
    }
}

struct SameId;
impl Ids for SameId {
    fn uuid(&self) -> String {
        "0190a1b2-c3d4-7e5f-8a6b-0c1d2e3f4a5b".into()
    }
}

/// Keys that cannot be asked for.
struct NoKeys;
#[async_trait]
impl Credentials for NoKeys {
    async fn verify(&self, _: &App, _: &Token) -> Result<Bearer, Refusal> {
        Err(Refusal::Unavailable(None))
    }
}

/// So many commands of any class, then no more.
struct Burst(Mutex<u32>);
impl Admission for Burst {
    fn admit(&self, _: &Caller, _: Class) -> Result<(), Duration> {
        let mut left = self.0.lock().unwrap();
        *left = left.checked_sub(1).ok_or(Duration::from_millis(1_500))?;
        Ok(())
    }
}

fn app(burst: u32) -> App {
    App {
        store: Arc::new(Away),
        clock: Arc::new(Noon),
        ids: Arc::new(SameId),
        admission: Arc::new(Burst(Mutex::new(burst))),
        credentials: Arc::new(NoKeys),
        presence: Presence::default(),
        typists: Typists::default(),
        chat: chat::Settings::default(),
        returning: chat::returning::Returning::new("node".into()),
        refusals: crate::api::refused::Refusals::default(),
        exams: exam::State::new(
            exam::Settings {
                grace: Duration::from_secs(2),
                journal_key: exam::journal::JournalKey::new("a key for tests"),
            },
            Timestamp(0),
        ),
        leaderboard: leaderboard::Settings::default(),
        recovery: crate::recovery::Settings::default(),
    }
}

/// Somebody whom nothing but their role lets in.
fn stranger(role: Role) -> Caller {
    Caller {
        app: None,
        tenant: TenantId::new("t").unwrap(),
        user: UserId::new("stranger").unwrap(),
        name: "Stranger".into(),
        avatar: None,
        role,
        connection: ConnectionId::new("c").unwrap(),
        namespace: "/",
        joined: Joined::default(),
        told: crate::exam::Told::default(),
        grant: crate::dispatch::Grant::default(),
    }
}

async fn ask(app: &App, route: &Route, payload: &str) -> Result<(), Refusal> {
    let payload = RawValue::from_string(payload.into()).unwrap();
    let now = app.clock.now();
    let role = route.policy.roles.and_then(|roles| roles.first()).copied();
    let caller = stranger(role.unwrap_or(Role::Student));
    dispatch(app, &caller, route, &payload, now, true).await.map(|_| ())
}

fn commands() -> impl Iterator<Item = &'static Route> {
    COMMANDS.iter().copied().flatten()
}

#[tokio::test]
async fn every_example_decodes() {
    for route in commands() {
        match ask(&app(1), route, &(route.example)()).await {
            Ok(()) | Err(Refusal::Unavailable(_) | Refusal::NotAMember) => {}
            Err(other) => panic!("{route:?} refuses its own example: {other:?}"),
        }
    }
}

#[tokio::test]
async fn no_argument_null_and_an_empty_object_are_the_same() {
    for route in commands() {
        let mut answers = Vec::new();
        for payload in ["null", "{}"] {
            answers.push(
                ask(&app(1), route, payload)
                    .await
                    .err()
                    .map(|refusal| (refusal.code(), route.policy.text(&refusal))),
            );
        }
        assert_eq!(answers[0], answers[1], "{route:?}");
        let has_required = (route.payload)().get("required").is_some();
        if has_required {
            assert_eq!(answers[0].unwrap().1, route.policy.required, "{route:?}");
        }
    }
}

#[tokio::test]
async fn garbage_is_refused_with_the_required_text() {
    for route in commands() {
        for garbage in ["[]", "7", "\"text\"", "true", "[[[[]]]]"] {
            let refusal = ask(&app(1), route, garbage).await.unwrap_err();
            assert_eq!(refusal.code().as_str(), "INVALID", "{route:?} {garbage}");
            assert_eq!(route.policy.text(&refusal), route.policy.required, "{route:?} {garbage}");
        }
    }
}

/// Numbers that look random, the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        // Knuth's constants.
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % limit
    }
}

/// What clients of all kinds send by mistake, or on purpose.
const ODD: &[&str] = &[
    "null",
    "true",
    "0",
    "-1",
    "1e400",
    "9007199254740993",
    "0.1",
    "\"\"",
    "\"\\u0000\"",
    "\"\\ud800\"",
    "\"\\u202e<script>\"",
    "[]",
    "{}",
    "[{}]",
    "[[[[[[[[]]]]]]]]",
    "{\"\":{\"__proto__\":[]}}",
    "\"a\\u0000b\"",
    "\"%00../../\"",
    "\"𝄞\"",
    "18446744073709551616",
];

/// One value changed, one key gone, or one place of the text spoilt.
fn mutated(example: &str, dice: &mut Dice) -> String {
    let Ok(serde_json::Value::Object(fields)) = serde_json::from_str(example) else {
        return ODD[dice.below(ODD.len())].to_owned();
    };
    let chosen = dice.below(fields.len().max(1));
    let kind = dice.below(4);
    let members = fields.iter().enumerate().filter_map(|(index, (name, value))| {
        let name = serde_json::to_string(name).unwrap();
        match (index == chosen, kind) {
            (true, 0) => None,
            (true, 1) => Some(format!("{name}:{}", ODD[dice.below(ODD.len())])),
            // The key twice.
            (true, 2) => Some(format!("{name}:{value},{name}:{}", ODD[dice.below(ODD.len())])),
            _ => Some(format!("{name}:{value}")),
        }
    });
    let mut text = format!("{{{}}}", members.collect::<Vec<_>>().join(","));
    if kind == 3 {
        let at = (0..=dice.below(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap();
        text.insert_str(at, ["\\", "\"", ",", "{", "0", "é", "\u{0}", ":"][dice.below(8)]);
    }
    text
}

/// `CARILLON_FUZZ_SECONDS` makes it longer.
#[tokio::test]
async fn whatever_is_sent_nothing_panics_and_nothing_is_an_internal_error() {
    let seconds = std::env::var("CARILLON_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let until = std::time::Instant::now() + Duration::from_secs(seconds.unwrap_or(1));
    let mut dice = Dice(20_130_301);
    while std::time::Instant::now() < until {
        for route in commands() {
            let payload = mutated(&(route.example)(), &mut dice);
            // The engine has read the text before: what is no JSON does not come this far.
            if serde_json::from_str::<&RawValue>(&payload).is_err() {
                continue;
            }
            if let Err(refusal) = ask(&app(1), route, &payload).await {
                assert_ne!(refusal.code().as_str(), "INTERNAL", "{route:?} {payload} {refusal:?}");
            }
        }
    }
}

#[tokio::test]
async fn who_has_not_the_role_is_refused() {
    for route in commands() {
        let Some(roles) = route.policy.roles else { continue };
        for role in Role::ALL.iter().filter(|role| !roles.contains(role)) {
            let payload = RawValue::from_string((route.example)()).unwrap();
            let app = app(1);
            let result =
                dispatch(&app, &stranger(*role), route, &payload, app.clock.now(), true).await;
            assert_eq!(result.unwrap_err().code().as_str(), "FORBIDDEN", "{route:?} {role:?}");
        }
    }
}

#[tokio::test]
async fn what_is_larger_than_the_policy_allows_is_refused_before_it_is_decoded() {
    for route in commands() {
        let huge = format!("{{\"x\":\"{}\"}}", "x".repeat(route.policy.max_bytes));
        let refusal = ask(&app(1), route, &huge).await.unwrap_err();
        assert_eq!(refusal.code().as_str(), "TOO_LARGE", "{route:?}");
    }
}

#[tokio::test]
async fn the_eleventh_in_a_burst_of_ten_is_refused_and_told_when_to_come_back() {
    for route in commands() {
        let app = app(10);
        for n in 0..11 {
            let result = ask(&app, route, &(route.example)()).await;
            let is_limited = matches!(result, Err(Refusal::RateLimited { .. }));
            assert_eq!(is_limited, n == 10, "{route:?} {n}");
            if let Err(refusal @ Refusal::RateLimited { .. }) = result {
                let told = refusal.told(route.policy.text(&refusal));
                assert_eq!(told.retry_after_ms, Some(1_500));
                assert_eq!(told.message, "Rate limit exceeded. Please slow down.");
            }
        }
    }
}

#[tokio::test]
async fn with_the_database_away_whatever_needs_it_is_unavailable_and_the_rest_works() {
    for route in commands() {
        let result = ask(&app(1), route, &(route.example)()).await;
        match result {
            Ok(()) => {}
            Err(refusal) => assert!(
                matches!(refusal, Refusal::Unavailable(_))
                    || (route.policy.ephemeral && matches!(refusal, Refusal::NotAMember)),
                "{route:?}: {refusal:?}"
            ),
        }
    }
}

#[test]
fn names_are_unique_per_path_and_need_no_escaping() {
    let is_plain = |name: &str| {
        name.bytes().all(
            |byte| matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b':'),
        )
    };
    let mut seen = HashSet::new();
    for route in commands() {
        for path in route.paths {
            assert!(ALL_PATHS.contains(path));
            assert!(seen.insert((path, route.name)), "{} twice on {path}", route.name);
            assert_eq!(find_command(path, route.name).unwrap().name, route.name);
        }
        assert!(is_plain(route.name));
    }
    let mut seen = HashSet::new();
    for row in EVENTS.iter().copied().flatten() {
        assert!(seen.insert(row.name), "{} twice", row.name);
        assert!(is_plain(row.name) && row.paths.iter().all(|path| ALL_PATHS.contains(path)));
    }
}

#[test]
fn the_main_namespaces_carry_everything() {
    let paths = commands()
        .map(|route| route.paths)
        .chain(EVENTS.iter().copied().flatten().map(|row| row.paths));
    for paths in paths {
        assert!(paths.contains(&"/") && paths.contains(&"/api"));
    }
}

#[test]
fn chat_messages_have_the_contracts_rate() {
    assert_eq!(Class::Message.default_rate(), Rate::per_minute(60));
}
