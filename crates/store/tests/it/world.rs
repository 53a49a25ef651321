//! A domain over a fresh database.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use carillon_domain::{
    App, Caller, ConnectionId, Done, Effect, Refusal, TenantId, Timestamp, UserId,
    api::refused::Refusals,
    chat::{Settings, returning::Returning, typing_indicator::Typists},
    contract::{Class, Command, Scope, find_command},
    credential::{Bearer, Token},
    dispatch::{Joined, dispatch},
    exam,
    identity::{Claims, Issue, Role},
    leaderboard,
    ports::{Admission, Clock, Credentials, Ids, Lease, Leases as _, Store as _},
    presence::Presence,
    recovery,
};
use carillon_store::{Opener, SqlStore};
use serde_json::{Value, value::RawValue};
use sqlx::{Connection as _, Executor as _};
use tempfile::TempDir;

/// A database that is gone with the test, and the domain over it.
pub struct World {
    pub app: App,
    pub store: Arc<SqlStore>,
    pub url: String,
    clock: Arc<Ticking>,
    _directory: TempDir,
}

struct Ticking(AtomicI64);
impl Clock for Ticking {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

#[derive(Default)]
struct Counting(AtomicU64);
impl Ids for Counting {
    fn uuid(&self) -> String {
        format!("id-{:08}", self.0.fetch_add(1, Ordering::Relaxed))
    }
}

struct NoKeys;
#[async_trait::async_trait]
impl Credentials for NoKeys {
    async fn verify(&self, _: &App, _: &Token) -> Result<Bearer, Refusal> {
        Err(Refusal::Unavailable(None))
    }
}

struct Everybody;
impl Admission for Everybody {
    fn admit(&self, _: &Caller, _: Class) -> Result<(), Duration> {
        Ok(())
    }
}

impl World {
    async fn open(url: String, directory: TempDir) -> Self {
        let store = Arc::new(SqlStore::open(&url, Opener::Server).await.unwrap());
        store.migrate().await.unwrap();
        let clock = Arc::new(Ticking(AtomicI64::new(1_700_000_000_000)));
        let app = App {
            store: store.clone(),
            clock: clock.clone(),
            ids: Arc::new(Counting::default()),
            admission: Arc::new(Everybody),
            credentials: Arc::new(NoKeys),
            presence: Presence::default(),
            typists: Typists::default(),
            chat: Settings::default(),
            returning: Returning::new("this run".into()),
            refusals: Refusals::default(),
            exams: exam::State::new(exam_settings(), Timestamp(0)),
            leaderboard: leaderboard::Settings::default(),
            recovery: recovery::Settings::default(),
        };
        Self { app, store, url, clock, _directory: directory }
    }

    pub async fn sqlite() -> Self {
        let directory = TempDir::new().unwrap();
        let url = format!("sqlite:{}", directory.path().join("carillon.db").display());
        Self::open(url, directory).await
    }

    /// One world per database there is.
    pub async fn each() -> Vec<Self> {
        let mut worlds = vec![Self::sqlite().await];
        match std::env::var("CARILLON_TEST_POSTGRES") {
            Ok(server) => {
                let url = fresh(&server).await;
                worlds.push(Self::open(url, TempDir::new().unwrap()).await);
            }
            Err(_) => eprintln!("skipped on PostgreSQL: CARILLON_TEST_POSTGRES is not set"),
        }
        worlds
    }

    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        let ms = i64::try_from(by.as_millis()).unwrap();
        self.clock.0.fetch_add(ms, Ordering::Relaxed);
    }

    /// What this run does what is done once with.
    pub async fn lease(&self) -> Lease {
        let node = self.app.returning.node();
        let lease = self.store.take_lease("periodic", node, Duration::from_hours(1)).await;
        lease.unwrap().unwrap()
    }

    pub fn is_sqlite(&self) -> bool {
        self.store.kind() == "sqlite"
    }

    /// Runs statements past the store.
    pub async fn sql(&self, sqlite: &'static str, postgres: &'static str) {
        if self.is_sqlite() {
            let mut conn = sqlx::SqliteConnection::connect(&self.url).await.unwrap();
            conn.execute(sqlite).await.unwrap();
        } else {
            let mut conn = sqlx::PgConnection::connect(&self.url).await.unwrap();
            conn.execute(postgres).await.unwrap();
        }
    }

    /// Makes rows for users of the tenant `t`.
    pub async fn provision(&self, ids: &[&str]) {
        let t = tenant("t");
        let mut tx = self.store.begin(&t, Scope::Rows).await.unwrap();
        for id in ids {
            let claims = Claims {
                user: user(id),
                name: Some((*id).into()),
                role: Role::Student,
                email: None,
                avatar: None,
                issue: Issue::default(),
            };
            tx.provision_user(&t, &claims, self.app.clock.now()).await.unwrap();
        }
        tx.commit().await.unwrap();
    }

    /// Runs a command as a socket of this user would.
    pub async fn ask<C: Command>(&self, caller: &Caller, command: &C) -> Result<Done, Refusal> {
        let route = find_command("/", C::NAME).unwrap();
        let payload = serde_json::value::to_raw_value(command).unwrap();
        let now = self.app.clock.now();
        let done = loop {
            match dispatch(&self.app, caller, route, &payload, now, true).await {
                Err(Refusal::Outdated) => {}
                judged => break judged?,
            }
        };
        for effect in &done.effects {
            if let Effect::Join { room, .. } = effect {
                caller.joined.insert(room.clone());
            }
        }
        Ok(done)
    }
}

pub fn tenant(id: &str) -> TenantId {
    TenantId::new(id).unwrap()
}

pub fn user(id: &str) -> UserId {
    UserId::new(id).unwrap()
}

pub fn caller(tenant_id: &str, id: &str) -> Caller {
    Caller {
        app: None,
        tenant: tenant(tenant_id),
        user: user(id),
        name: id.into(),
        avatar: None,
        role: Role::Student,
        connection: ConnectionId::new(format!("connection-of-{id}")).unwrap(),
        namespace: "/",
        joined: Joined::default(),
        told: carillon_domain::exam::Told::default(),
        grant: carillon_domain::dispatch::Grant::default(),
    }
}

/// The acknowledgement as JSON.
pub fn reply(done: &Done) -> Value {
    let reply: &RawValue = &done.reply;
    serde_json::from_str(reply.get()).unwrap()
}

async fn fresh(server: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = format!("store_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let mut conn = sqlx::PgConnection::connect(server).await.unwrap();
    let create = sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"));
    conn.execute(create).await.unwrap();
    let (base, _) = server.rsplit_once('/').unwrap();
    format!("{base}/{name}")
}

pub fn exam_settings() -> exam::Settings {
    exam::Settings {
        grace: Duration::from_secs(2),
        journal_key: exam::journal::JournalKey::new("a key for tests"),
    }
}
