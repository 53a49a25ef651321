//! Refusals in the audit log: who was turned away, from what, and why.
//!
//! A flood of refusals must not become a flood of writes: of each kind the first is written at
//! once, and what follows is counted and written once a minute.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use serde_json::json;

use crate::{
    contract::Scope,
    dispatch::App,
    ids::{TenantId, Timestamp},
    refusal::Refusal,
};

/// Kinds counted apart; what comes beyond is counted together, by tenant and action.
const MAX_KINDS: usize = 500;
/// Between two rows of one kind.
const AGAIN: Duration = Duration::from_mins(1);
/// Who stands for those who are counted together; no user's id begins with a space.
const OTHERS: &str = " others";

/// What is counted as one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Kind {
    pub tenant: TenantId,
    /// A user, a key as `api:name`, or somebody who has proved nothing: a name that begins with a
    /// space.
    pub actor: String,
    /// `auth.refused`, `command.refused`, `api.refused`.
    pub action: &'static str,
    /// What it was about: a command, an operation, the user that a bad token names.
    pub subject: String,
    /// A code, or why a credential was not taken.
    pub reason: &'static str,
}

#[derive(Debug)]
struct Count {
    since: Timestamp,
    waiting: u64,
    written_at: Option<Timestamp>,
}

/// Refusals that are not written yet.
#[derive(Debug, Default)]
pub struct Refusals {
    kinds: Mutex<HashMap<Kind, Count>>,
}

impl Refusals {
    /// Counts a refusal.
    pub fn note(&self, mut kind: Kind, now: Timestamp) {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        if kinds.len() >= MAX_KINDS && !kinds.contains_key(&kind) {
            kind = Kind { actor: OTHERS.into(), subject: String::new(), ..kind };
        }
        let fresh = Count { since: now, waiting: 0, written_at: None };
        let count = kinds.entry(kind).or_insert(fresh);
        if count.waiting == 0 {
            count.since = now;
        }
        count.waiting += 1;
    }

    /// What is to be written now. Kinds of which nothing was heard since the last row are
    /// forgotten.
    fn due(&self, now: Timestamp) -> Vec<(Kind, u64, Timestamp)> {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = |count: &Count| count.written_at.is_none_or(|at| at.after(AGAIN) <= now);
        kinds.retain(|_, count| count.waiting > 0 || !is_due(count));
        let due = kinds.iter_mut().filter(|(_, count)| count.waiting > 0 && is_due(count));
        due.map(|(kind, count)| {
            count.written_at = Some(now);
            (kind.clone(), std::mem::take(&mut count.waiting), count.since)
        })
        .collect()
    }

    /// What could not be written is due again.
    fn put_back(&self, rest: Vec<(Kind, u64, Timestamp)>) {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        for (kind, waiting, since) in rest {
            let count = kinds.entry(kind).or_insert(Count { since, waiting: 0, written_at: None });
            count.waiting += waiting;
            count.since = since;
            count.written_at = None;
        }
    }
}

/// Writes what is due to the audit log. Called about once a second.
pub async fn write(app: &App) -> Result<(), Refusal> {
    let now = app.clock.now();
    let due = app.refusals.due(now);
    let Some((first, ..)) = due.first() else { return Ok(()) };
    let written = async {
        let mut tx = app.store.begin(&first.tenant, Scope::Rows).await?;
        for (kind, count, since) in &due {
            let details = json!({ "reason": kind.reason, "count": count, "since": since });
            let Kind { tenant, actor, action, subject, .. } = kind;
            tx.audit(tenant, now, actor, action, subject, &details.to_string()).await?;
        }
        tx.commit().await
    };
    if let Err(refusal) = written.await {
        app.refusals.put_back(due);
        return Err(refusal);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(actor: &str) -> Kind {
        Kind {
            tenant: TenantId::new("t").unwrap(),
            actor: actor.into(),
            action: "command.refused",
            subject: "exam-control".into(),
            reason: "FORBIDDEN",
        }
    }

    fn counts(refusals: &Refusals, at: i64) -> Vec<(String, u64, i64)> {
        let mut due = refusals.due(Timestamp(at));
        due.sort_by(|one, other| one.0.actor.cmp(&other.0.actor));
        due.into_iter().map(|(kind, count, since)| (kind.actor, count, since.0)).collect()
    }

    #[test]
    fn the_first_is_written_at_once_and_the_rest_once_a_minute() {
        let refusals = Refusals::default();
        refusals.note(kind("ana"), Timestamp(0));
        assert_eq!(counts(&refusals, 10), [("ana".into(), 1, 0)]);
        for at in 20..25 {
            refusals.note(kind("ana"), Timestamp(at));
        }
        refusals.note(kind("ben"), Timestamp(30));
        assert_eq!(counts(&refusals, 1_000), [("ben".into(), 1, 30)]);
        assert_eq!(counts(&refusals, 60_009), []);
        assert_eq!(counts(&refusals, 60_010), [("ana".into(), 5, 20)]);
        assert_eq!(counts(&refusals, 200_000), []);
        assert!(refusals.kinds.lock().unwrap().is_empty(), "nothing more to remember");
    }

    #[test]
    fn what_cannot_be_written_is_written_later() {
        let refusals = Refusals::default();
        refusals.note(kind("ana"), Timestamp(0));
        let due = refusals.due(Timestamp(1));
        refusals.note(kind("ana"), Timestamp(2));
        refusals.put_back(due);
        assert_eq!(counts(&refusals, 3), [("ana".into(), 2, 0)]);
    }

    #[test]
    fn a_flood_of_names_is_counted_together() {
        let refusals = Refusals::default();
        for n in 0..10 * MAX_KINDS {
            refusals.note(kind(&format!("user-{n}")), Timestamp(0));
        }
        let due = counts(&refusals, 1);
        assert_eq!(due.len(), MAX_KINDS + 1);
        let together = u64::try_from(9 * MAX_KINDS).unwrap();
        assert_eq!(due.first(), Some(&(OTHERS.into(), together, 0)));
    }
}
