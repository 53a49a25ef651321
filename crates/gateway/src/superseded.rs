//! Sessions that somebody else goes on with. A socket may be told that before it has arrived: two nodes
//! that were shown the same private id at once take the session one after the other, and the second
//! may be there first.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use carillon_domain::ConnectionId;

/// Whoever took a session before has arrived by then, or does not arrive.
const REMEMBERED: Duration = Duration::from_secs(30);
/// At most so many; a herd has few, and of those the oldest have arrived.
const MAX: usize = 10_000;

/// The newest generation of each session that was gone on with lately.
#[derive(Default)]
pub struct Superseded(Mutex<State>);

#[derive(Default)]
struct State {
    generations: HashMap<ConnectionId, i64>,
    order: VecDeque<(Instant, ConnectionId, i64)>,
}

impl Superseded {
    /// Somebody goes on with the session of that public id, as it was in that generation.
    pub fn note(&self, id: &ConnectionId, generation: i64) {
        let mut state = self.lock();
        let is_old = |(at, ..): &(Instant, ConnectionId, i64)| at.elapsed() >= REMEMBERED;
        while state.order.len() >= MAX || state.order.front().is_some_and(is_old) {
            let Some((_, oldest, of)) = state.order.pop_front() else { break };
            if state.generations.get(&oldest) == Some(&of) {
                state.generations.remove(&oldest);
            }
        }
        let newest = state.generations.entry(id.clone()).or_insert(generation);
        *newest = generation.max(*newest);
        state.order.push_back((Instant::now(), id.clone(), generation));
    }

    /// Whether somebody else goes on for a socket that has the session in that generation.
    pub fn covers(&self, id: &ConnectionId, generation: i64) -> bool {
        self.lock().generations.get(id).is_some_and(|newest| generation <= *newest)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: usize) -> ConnectionId {
        ConnectionId::new(format!("{n:020}")).unwrap()
    }

    #[test]
    fn only_who_came_before_gives_way() {
        let superseded = Superseded::default();
        assert!(!superseded.covers(&id(1), 0));
        superseded.note(&id(1), 2);
        superseded.note(&id(1), 1);
        assert!(superseded.covers(&id(1), 2), "heard late, what is older takes nothing back");
        assert!(!superseded.covers(&id(1), 3), "the heir itself");
        assert!(!superseded.covers(&id(2), 0));
    }

    #[test]
    fn only_so_many_are_remembered() {
        let superseded = Superseded::default();
        (0..=MAX).for_each(|n| superseded.note(&id(n), 0));
        assert!(!superseded.covers(&id(0), 0));
        assert!(superseded.covers(&id(1), 0) && superseded.covers(&id(MAX), 0));
        assert_eq!(superseded.lock().generations.len(), MAX);
    }
}
