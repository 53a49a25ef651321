//! Whether a run of the server is there.
//!
//! On PostgreSQL each holds an advisory lock of its name, on a connection of its own: when the
//! process is killed the lock is gone at once, and while it hangs the lock stays. On SQLite there
//! is one run, and those before it are gone.

use std::sync::Arc;

use carillon_domain::Refusal;
use sqlx::{Connection as _, PgConnection, Postgres};
use tokio::{sync::Mutex, time::timeout};

use crate::{connections::Connections, error::refusal, open::PATIENCE};

/// The first half of the locks' keys: `carl`.
const LOCK: &str = "SELECT pg_try_advisory_lock(1667330668, hashtext($1))";

/// The connection that holds the lock, while there is one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stay(Arc<Mutex<Option<PgConnection>>>);

impl Stay {
    /// Holds the lock; a connection that has broken is replaced.
    pub async fn hold(&self, others: &Connections<Postgres>, node: &str) -> Result<(), Refusal> {
        let mut held = self.0.lock().await;
        if let Some(connection) = held.as_mut()
            && matches!(timeout(PATIENCE, connection.ping()).await, Ok(Ok(())))
        {
            return Ok(());
        }
        *held = None;
        // Taken out of the pool: it does the same for as long as the process lives.
        let lent = others.acquire().await.map_err(refusal)?;
        let Some(mut connection) = lent.detach() else { return Ok(()) };
        let locked = sqlx::query_scalar::<_, bool>(LOCK).bind(node).fetch_one(&mut connection);
        // Where it is still held by the connection that has broken, it is asked for again.
        if timeout(PATIENCE, locked).await.map_err(Refusal::internal)?.map_err(refusal)? {
            *held = Some(connection);
        }
        Ok(())
    }

    /// Lets go of it.
    pub async fn leave(&self) {
        if let Some(connection) = self.0.lock().await.take() {
            // The process ends anyhow.
            let _ = timeout(PATIENCE, connection.close()).await;
        }
    }
}
