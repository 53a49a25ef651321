//! Connections, handed on from one use to the next.
//!
//! The pool of sqlx asks the database for a sign of life whenever a connection is taken and again
//! when it is given back: most uses are one statement, which then takes three ways to the database
//! and back. Here only a connection that was not used for a moment is asked, or for longer than
//! another one has broken.

use std::{
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sqlx::{Connection as _, Database, Error, Pool, pool::PoolConnection};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use crate::open::PATIENCE;

/// A connection used since is taken to be there.
const FRESH: Duration = Duration::from_secs(1);
/// Then it goes back to the pool, which replaces it when it is old.
const KEPT: Duration = Duration::from_mins(10);

/// As many connections as the pool may open.
pub(crate) struct Connections<DB: Database> {
    pool: Pool<DB>,
    places: Arc<Semaphore>,
    shelf: Arc<Shelf<DB>>,
}

struct Shelf<DB: Database>(Mutex<State<DB>>);

struct State<DB: Database> {
    /// Those that nobody uses.
    idle: Vec<Idle<DB>>,
    /// When one was last found broken: the others may be, too.
    broken_at: Instant,
}

struct Idle<DB: Database> {
    connection: PoolConnection<DB>,
    /// When the pool gave it.
    taken: Instant,
    used: Instant,
}

/// A connection while it is used.
pub(crate) struct Lent<DB: Database> {
    connection: Option<PoolConnection<DB>>,
    taken: Instant,
    of: Connections<DB>,
    _place: OwnedSemaphorePermit,
}

impl<DB: Database> Shelf<DB> {
    fn lock(&self) -> MutexGuard<'_, State<DB>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<DB: Database> Drop for Shelf<DB> {
    fn drop(&mut self) {
        // There may be no runtime any more, in which the pool could take them back.
        for idle in self.lock().idle.drain(..) {
            drop(idle.connection.detach());
        }
    }
}

impl<DB: Database> Clone for Connections<DB> {
    fn clone(&self) -> Self {
        let Self { pool, places, shelf } = self;
        Self { pool: pool.clone(), places: places.clone(), shelf: shelf.clone() }
    }
}

impl<DB: Database> Connections<DB> {
    pub(crate) fn new(pool: Pool<DB>) -> Self {
        let places = pool.options().get_max_connections() as usize;
        let shelf = Shelf(Mutex::new(State { idle: Vec::new(), broken_at: Instant::now() }));
        Self { pool, places: Arc::new(Semaphore::new(places)), shelf: Arc::new(shelf) }
    }

    /// Waits for one.
    pub(crate) async fn acquire(&self) -> Result<Lent<DB>, Error> {
        let deadline = Instant::now() + PATIENCE;
        let place = timeout_at(deadline, self.places.clone().acquire_owned());
        let place = place.await.map_err(|_| Error::PoolTimedOut)?.map_err(|_| Error::PoolClosed)?;
        loop {
            let (next, broken_at) = {
                let mut state = self.shelf.lock();
                (state.idle.pop(), state.broken_at)
            };
            let Some(Idle { mut connection, taken, used }) = next else { break };
            let is_there = used.elapsed() < FRESH && used > broken_at
                || matches!(timeout_at(deadline, connection.ping()).await, Ok(Ok(())));
            if is_there {
                let connection = Some(connection);
                return Ok(Lent { connection, taken, of: self.clone(), _place: place });
            }
            drop(connection.detach());
        }
        let opened = timeout_at(deadline, self.pool.acquire()).await;
        let connection = Some(opened.map_err(|_| Error::PoolTimedOut)??);
        Ok(Lent { connection, taken: Instant::now(), of: self.clone(), _place: place })
    }

    /// Closes them, and waits for those that are in use.
    pub(crate) async fn close(&self) {
        self.places.close();
        self.shelf.lock().idle.clear();
        self.pool.close().await;
    }
}

impl<DB: Database> Lent<DB> {
    /// Takes it out of the pool, which may open another.
    pub(crate) fn detach(mut self) -> Option<DB::Connection> {
        self.connection.take().map(PoolConnection::detach)
    }

    /// Closes it: nobody knows what state it is in.
    pub(crate) fn discard(self) {
        self.of.shelf.lock().broken_at = Instant::now();
        drop(self.detach());
    }
}

impl<DB: Database> Deref for Lent<DB> {
    type Target = DB::Connection;
    fn deref(&self) -> &DB::Connection {
        self.connection.as_ref().expect("present until it is given back")
    }
}

impl<DB: Database> DerefMut for Lent<DB> {
    fn deref_mut(&mut self) -> &mut DB::Connection {
        self.connection.as_mut().expect("present until it is given back")
    }
}

impl<DB: Database> Drop for Lent<DB> {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        let mut state = self.of.shelf.lock();
        // Looked at under the lock: whoever closes clears the list afterwards.
        if !self.of.places.is_closed() && self.taken.elapsed() < KEPT {
            state.idle.push(Idle { connection, taken: self.taken, used: Instant::now() });
        }
    }
}
