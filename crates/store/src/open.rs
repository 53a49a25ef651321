//! Opening a database by its URL, and the promises it must keep.

use std::{
    collections::HashMap,
    fs::{File, TryLockError},
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use carillon_domain::{
    Offset, Refusal, RoomId, TenantId, Timestamp,
    contract::Scope,
    ports::{Reads, Store, Tx},
    recovery::{Claim, Session},
};
use sqlx::{
    Connection as _, Postgres, Sqlite,
    migrate::Migrator,
    postgres::{PgConnectOptions, PgPoolOptions},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    connections::Connections,
    error::refusal,
    lane::{Lane, Source},
    stay::Stay,
    time::Time,
    together::Line,
    tx::{Conn, Held, SqlTx},
};

pub(crate) static SQLITE_MIGRATIONS: Migrator = sqlx::migrate!("../../migrations/sqlite");
static POSTGRES_MIGRATIONS: Migrator = sqlx::migrate!("../../migrations/postgres");

/// Waiting for a connection or a lock any longer means the database is away; below the 3 s within
/// which every operation is answered.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);
const OTHER_CONNECTIONS: u32 = 12;
/// Beside those, for the lanes: who talks does not queue behind everybody who comes back.
const LANE_CONNECTIONS: u32 = 4;
const SQLITE_READERS: u32 = 4;
/// Pages in the write-ahead log before they are brought into the file, 16 MiB: the same ones are
/// changed again and again.
const LOG: &str = "4000";
/// Statements that a connection keeps prepared: more than there are.
const PREPARED: usize = 512;

const SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// The lock of whoever migrates: "carillon".
const MIGRATING: i64 = 0x6361_7269_6c6c_6f6e;

const VERSION: &str = "SELECT max(version) FROM _sqlx_migrations WHERE success";

/// Why a database could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("database.url must begin with sqlite: or postgres://")]
    UnknownScheme,
    #[error("another server uses {}; one server per SQLite file", .0.display())]
    InUse(PathBuf),
    #[error(
        "PostgreSQL runs with {0} = {1}: an acknowledged write could be lost. \
         Set it to {2} in postgresql.conf or for this role"
    )]
    NotDurable(&'static str, String, &'static str),
    #[error("the database is not up to date; `carillon migrate` brings it there")]
    Outdated,
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    #[error(transparent)]
    Migration(#[from] sqlx::migrate::MigrateError),
}

/// An open database.
pub struct SqlStore {
    backend: Backend,
    /// The writers of the lanes, and what ends them.
    tasks: TaskTracker,
    stop: CancellationToken,
}

enum Backend {
    Sqlite {
        readers: Connections<Sqlite>,
        writers: Connections<Sqlite>,
        writer: Lane,
        _lock: Option<File>,
    },
    Postgres {
        others: Connections<Postgres>,
        writers: Connections<Postgres>,
        lanes: Mutex<HashMap<TenantId, Lane>>,
        sittings: Line,
        stay: Stay,
    },
}

/// Who opens the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opener {
    /// Claims an SQLite file for itself.
    Server,
    /// Works beside a running server.
    Tool,
}

impl SqlStore {
    /// Opens the database of the URL and checks that a commit is on disk when it returns.
    pub async fn open(url: &str, opener: Opener) -> Result<Self, OpenError> {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let backend = if url.starts_with("sqlite:") {
            open_sqlite(url, opener, &tasks, &stop).await?
        } else if url.starts_with("postgres:") || url.starts_with("postgresql:") {
            open_postgres(url, &tasks, &stop).await?
        } else {
            return Err(OpenError::UnknownScheme);
        };
        Ok(Self { backend, tasks, stop })
    }

    /// Opens a database to look into it, without making or changing anything; `None` when there is
    /// nothing yet.
    pub async fn look_into(url: &str) -> Result<Option<Self>, OpenError> {
        if url.starts_with("sqlite:")
            && !SqliteConnectOptions::from_str(url)?.get_filename().exists()
        {
            return Ok(None);
        }
        let store = Self::open(url, Opener::Tool).await?;
        let (version, newest): (Result<Option<i64>, _>, _) = match &store.backend {
            Backend::Sqlite { readers, .. } => {
                let mut conn = readers.acquire().await?;
                let version = sqlx::query_scalar(VERSION).fetch_one(&mut *conn).await;
                (version, SQLITE_MIGRATIONS.iter().map(|of| of.version).max())
            }
            Backend::Postgres { others, .. } => {
                let mut conn = others.acquire().await?;
                let version = sqlx::query_scalar(VERSION).fetch_one(&mut *conn).await;
                (version, POSTGRES_MIGRATIONS.iter().map(|of| of.version).max())
            }
        };
        match version {
            Ok(version) if version == newest => return Ok(Some(store)),
            Ok(Some(_)) => return Err(OpenError::Outdated),
            Ok(None) | Err(sqlx::Error::Database(_)) => {}
            Err(error) => return Err(error.into()),
        }
        store.close().await;
        Ok(None)
    }

    /// Brings the schema up to date.
    pub async fn migrate(&self) -> Result<(), OpenError> {
        match &self.backend {
            Backend::Sqlite { writers, .. } => {
                SQLITE_MIGRATIONS.run(&mut *writers.acquire().await?).await?;
            }
            Backend::Postgres { others, .. } => migrate_postgres(others).await?,
        }
        Ok(())
    }

    /// The name for logs and health: `sqlite` or `postgres`.
    pub fn kind(&self) -> &'static str {
        match self.backend {
            Backend::Sqlite { .. } => "sqlite",
            Backend::Postgres { .. } => "postgres",
        }
    }

    /// Whether other runs of the server may use it.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self.backend, Backend::Postgres { .. })
    }

    /// What time the database says it is; `None` on SQLite, which has the machine's clock.
    pub async fn clock(&self) -> Result<Option<Timestamp>, Refusal> {
        let Backend::Postgres { others, .. } = &self.backend else { return Ok(None) };
        let mut conn = others.acquire().await.map_err(refusal)?;
        let asked = sqlx::query_scalar::<_, Time>("SELECT clock_timestamp()").fetch_one(&mut *conn);
        Ok(Some(asked.await.map_err(refusal)?.0))
    }

    /// Waits for running batches and closes; what is begun after that is refused.
    pub async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        match &self.backend {
            Backend::Sqlite { readers, writers, .. } => {
                readers.close().await;
                writers.close().await;
            }
            Backend::Postgres { others, writers, stay, .. } => {
                stay.leave().await;
                writers.close().await;
                others.close().await;
            }
        }
    }

    pub(crate) async fn transaction(
        &self,
        tenant: &TenantId,
        scope: Scope,
    ) -> Result<SqlTx, Refusal> {
        match (&self.backend, scope) {
            (_, Scope::Snapshot) => {
                let conn = self.connection().await?;
                let begin = match conn {
                    Conn::Postgres(_) => SNAPSHOT,
                    // The first statement sets the instant.
                    Conn::Sqlite(_) => "BEGIN",
                };
                Ok(SqlTx::Held(Held::begun(conn, begin).await.map_err(refusal)?))
            }
            (Backend::Postgres { .. }, Scope::Rows) => {
                let conn = self.connection().await?;
                Ok(SqlTx::Held(Held::begun(conn, "BEGIN").await.map_err(refusal)?))
            }
            (Backend::Postgres { sittings, .. }, Scope::Sitting) => {
                Ok(SqlTx::Sitting(sittings.begin(self.connection().await?.into())))
            }
            (Backend::Postgres { .. }, Scope::Lane) | (Backend::Sqlite { .. }, _) => {
                Ok(SqlTx::Loan(self.lane(tenant).borrow().await?))
            }
        }
    }

    pub(crate) async fn reader(&self) -> Result<SqlTx, Refusal> {
        Ok(SqlTx::Held(self.connection().await?.into()))
    }

    /// One to read from; on PostgreSQL, to write, too.
    async fn connection(&self) -> Result<Conn, Refusal> {
        let conn = match &self.backend {
            Backend::Sqlite { readers, .. } => readers.acquire().await.map(Conn::Sqlite),
            Backend::Postgres { others, .. } => others.acquire().await.map(Conn::Postgres),
        };
        conn.map_err(refusal)
    }

    fn lane(&self, tenant: &TenantId) -> Lane {
        match &self.backend {
            Backend::Sqlite { writer, .. } => writer.clone(),
            Backend::Postgres { writers, lanes, .. } => lanes
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .entry(tenant.clone())
                .or_insert_with(|| {
                    let source = Source::Postgres(writers.clone(), tenant.clone());
                    let (lane, served) = Lane::new(source, self.stop.clone());
                    self.tasks.spawn(served);
                    lane
                })
                .clone(),
        }
    }
}

#[async_trait]
impl Store for SqlStore {
    async fn begin(&self, tenant: &TenantId, scope: Scope) -> Result<Box<dyn Tx>, Refusal> {
        Ok(Box::new(self.transaction(tenant, scope).await?))
    }

    async fn read(&self) -> Result<Box<dyn Reads>, Refusal> {
        Ok(Box::new(self.reader().await?))
    }

    async fn stay(&self, node: &str) -> Result<(), Refusal> {
        match &self.backend {
            Backend::Sqlite { .. } => Ok(()),
            Backend::Postgres { others, stay, .. } => stay.hold(others, node).await,
        }
    }

    async fn take_session(
        &self,
        session: &Session,
        claim: &Claim,
        node: &str,
    ) -> Result<Option<Vec<(RoomId, Offset)>>, Refusal> {
        if let Backend::Postgres { .. } = self.backend {
            // One statement is a transaction of its own.
            return self.reader().await?.take_session(session, claim, node).await;
        }
        let mut tx = self.transaction(&session.tenant, Scope::Rows).await?;
        let taken = tx.take_session(session, claim, node).await?;
        Tx::commit(Box::new(tx)).await?;
        Ok(taken)
    }
}

async fn open_sqlite(
    url: &str,
    opener: Opener,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Result<Backend, OpenError> {
    let options = SqliteConnectOptions::from_str(url)?
        .create_if_missing(true)
        .foreign_keys(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(PATIENCE)
        .statement_cache_capacity(PREPARED);
    let lock = match opener {
        Opener::Server => Some(claim(&options.get_filename().with_added_extension("lock"))?),
        Opener::Tool => None,
    };
    let pool = |most| SqlitePoolOptions::new().max_connections(most).acquire_timeout(PATIENCE);
    let writing = options.clone().pragma("wal_autocheckpoint", LOG);
    let writers = Connections::new(pool(1).connect_with(writing).await?);
    let reading = options.create_if_missing(false).pragma("query_only", "on");
    let readers = Connections::new(pool(SQLITE_READERS).connect_with(reading).await?);
    let (writer, served) = Lane::new(Source::Sqlite(writers.clone()), stop.clone());
    tasks.spawn(served);
    Ok(Backend::Sqlite { readers, writers, writer, _lock: lock })
}

/// The file stays locked for as long as it is open, and no longer, however the process ends.
fn claim(path: &Path) -> Result<File, OpenError> {
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse(path.with_extension(""))),
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}

/// Nodes that start together take turns, however long the first one takes; no migration itself waits
/// long for a lock, because everybody else would wait behind it.
async fn migrate_postgres(others: &Connections<Postgres>) -> Result<(), OpenError> {
    let mut conn = others.acquire().await?;
    sqlx::query("SET lock_timeout = '10min'").execute(&mut *conn).await?;
    sqlx::query("SELECT pg_advisory_lock($1)").bind(MIGRATING).execute(&mut *conn).await?;
    sqlx::query("RESET lock_timeout").execute(&mut *conn).await?;
    let migrated = POSTGRES_MIGRATIONS.run(&mut *conn).await;
    // The turn ends with the connection.
    if let Some(conn) = conn.detach() {
        conn.close().await?;
    }
    Ok(migrated?)
}

async fn open_postgres(
    url: &str,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Result<Backend, OpenError> {
    // A lock that is not had in time is given up by the server, too, and a transaction whose
    // client has vanished does not keep its lane.
    let options = PgConnectOptions::from_str(url)?
        .application_name("carillon")
        .statement_cache_capacity(PREPARED)
        .options([("lock_timeout", "2000"), ("idle_in_transaction_session_timeout", "5000")]);
    let pool = |most| PgPoolOptions::new().max_connections(most).acquire_timeout(PATIENCE);
    let others = Connections::new(pool(OTHER_CONNECTIONS).connect_with(options.clone()).await?);
    let writers = Connections::new(pool(LANE_CONNECTIONS).connect_lazy_with(options));
    let mut conn = others.acquire().await?;
    for (setting, unsafe_value, remedy) in
        [("fsync", "off", "on"), ("synchronous_commit", "off", "on")]
    {
        let value: String = sqlx::query_scalar("SELECT current_setting($1)")
            .bind(setting)
            .fetch_one(&mut *conn)
            .await?;
        if value == unsafe_value {
            return Err(OpenError::NotDurable(setting, value, remedy));
        }
    }
    drop(conn);
    let (sittings, served) = Line::new(others.clone(), stop.clone());
    tasks.spawn(served);
    let (lanes, stay) = (Mutex::default(), Stay::default());
    Ok(Backend::Postgres { others, writers, lanes, sittings, stay })
}
