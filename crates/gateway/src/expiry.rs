//! Sockets that are cut when their token runs out, where their app says so.
//!
//! One list, ordered by what is due next: a socket that waits costs an entry and no task.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use carillon_domain::{ConnectionId, Timestamp};

use crate::{config, socketio::Seat};

/// Who is watched, and when something is due.
pub struct Expiries {
    /// Before the end a socket is told, and after it is cut.
    notice: Duration,
    grace: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    watched: HashMap<ConnectionId, Watched>,
    due: BTreeSet<(Timestamp, ConnectionId)>,
}

struct Watched {
    seat: Weak<Seat>,
    expires_at: Timestamp,
    due_at: Timestamp,
    is_told: bool,
    /// It showed another token, and nobody could say whether that one is good.
    is_unsure: bool,
}

/// What a token's end means to a socket now.
pub enum Due {
    /// It is to be told.
    Tell(Arc<Seat>, Timestamp),
    /// It is over.
    Cut(Arc<Seat>),
    /// It is over, but perhaps the client has a newer token: it may come back with that.
    Close(Arc<Seat>),
}

impl Expiries {
    pub fn new(auth: &config::Auth) -> Self {
        let (notice, grace) = (auth.expiring_notice.0, auth.expiry_grace.0);
        Self { notice, grace, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The socket's token counts until then.
    pub fn watch(&self, seat: &Arc<Seat>, expires_at: Timestamp) {
        let id = seat.caller.connection.clone();
        let watched = Watched {
            seat: Arc::downgrade(seat),
            expires_at,
            due_at: expires_at.before(self.notice),
            is_told: false,
            is_unsure: false,
        };
        self.lock().watch(id, watched);
    }

    /// A socket that is watched has a newer token.
    pub fn extend(&self, seat: &Arc<Seat>, expires_at: Timestamp) {
        if self.lock().watched.contains_key(&seat.caller.connection) {
            self.watch(seat, expires_at);
        }
    }

    /// A newer token was shown, and could not be judged.
    pub fn doubt(&self, seat: &Seat) {
        if let Some(watched) = self.lock().watched.get_mut(&seat.caller.connection) {
            watched.is_unsure = true;
        }
    }

    /// The socket is gone.
    pub fn forget(&self, seat: &Seat) {
        self.lock().forget(&seat.caller.connection);
    }

    /// Everything that has become due, each once.
    pub fn due(&self, now: Timestamp) -> Vec<Due> {
        let mut state = self.lock();
        let mut due = Vec::new();
        while let Some((at, id)) = state.due.first().cloned() {
            if at > now {
                break;
            }
            let Some(watched) = state.forget(&id) else { break };
            let Some(seat) = watched.seat.upgrade() else { continue };
            if !watched.is_told {
                due.push(Due::Tell(seat, watched.expires_at));
                let due_at = watched.expires_at.after(self.grace);
                state.watch(id, Watched { due_at, is_told: true, ..watched });
            } else if watched.is_unsure {
                due.push(Due::Close(seat));
            } else {
                due.push(Due::Cut(seat));
            }
        }
        due
    }
}

impl State {
    fn watch(&mut self, id: ConnectionId, watched: Watched) {
        self.forget(&id);
        self.due.insert((watched.due_at, id.clone()));
        self.watched.insert(id, watched);
    }

    fn forget(&mut self, id: &ConnectionId) -> Option<Watched> {
        let watched = self.watched.remove(id)?;
        self.due.remove(&(watched.due_at, id.clone()));
        Some(watched)
    }
}
