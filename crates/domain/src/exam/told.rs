//! What a page knows of the answers of its attempts. Only that may a snapshot of it replace: what it
//! does not know of, it cannot have meant to change.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use super::{Attempt, RETURN_WINDOW, lock};
use crate::{
    dispatch::Caller,
    ids::{AttemptId, ConnectionId, ExamId, TenantId, Timestamp, UserId},
};

/// A page sits few exams.
const ATTEMPTS: usize = 8;
/// Lost pages that are remembered of a user, the newest of them.
const PAGES: usize = 8;
/// What a page has sent before it was told something it did not ask for is here by then. Stock
/// clients send what they kept as soon as they are connected.
const ARRIVING: Duration = Duration::from_secs(2);

/// By question.
type Versions = BTreeMap<usize, i64>;

/// Of the page of one socket. Clones are the same socket's.
#[derive(Clone, Debug, Default)]
pub struct Told(Arc<Mutex<Vec<Shown>>>);

/// An attempt the page shows, or has shown.
#[derive(Clone, Debug)]
struct Shown {
    exam: ExamId,
    id: AttemptId,
    /// From when on whatever comes from the page was sent with this in view.
    since: Timestamp,
    /// What it has asked for or written itself.
    known: Versions,
    /// What it was told without asking, and from when on that counts.
    arriving: Option<(Timestamp, Versions)>,
}

impl Shown {
    fn knows(&self, question: usize, version: i64, now: Timestamp) -> bool {
        let arrived = self.arriving.iter().filter(|(from, _)| *from <= now);
        let mut versions = arrived.map(|(_, versions)| versions).chain([&self.known]);
        versions.any(|versions| versions.get(&question).is_some_and(|known| *known >= version))
    }

    /// Keeps what another page knows, too.
    fn limit_to(&mut self, other: &Self) {
        self.since = self.since.max(other.since);
        self.known.retain(|question, version| {
            let known = other.known.get(question);
            *version = known.map_or(0, |known| (*version).min(*known));
            known.is_some()
        });
    }
}

impl Told {
    /// The page has these versions: it wrote them, or asked for them.
    pub(super) fn tell(
        &self,
        (exam, id): (&ExamId, &AttemptId),
        versions: impl IntoIterator<Item = (usize, i64)>,
        now: Timestamp,
    ) {
        let mut shown = lock(&self.0);
        let shown = find(&mut shown, exam, id, now);
        shown.since = shown.since.min(now);
        raise(&mut shown.known, versions);
    }

    /// The page is told of these without having asked.
    pub(super) fn bring(
        &self,
        (exam, id): (&ExamId, &AttemptId),
        versions: impl IntoIterator<Item = (usize, i64)>,
        now: Timestamp,
    ) {
        let mut shown = lock(&self.0);
        let from = now.after(ARRIVING);
        let shown = find(&mut shown, exam, id, from);
        let (since, arriving) = shown.arriving.get_or_insert_default();
        *since = from;
        raise(arriving, versions);
    }

    pub(super) fn knows(
        &self,
        id: &AttemptId,
        question: usize,
        version: i64,
        now: Timestamp,
    ) -> bool {
        lock(&self.0)
            .iter()
            .find(|shown| shown.id == *id)
            .is_some_and(|shown| shown.knows(question, version, now))
    }

    /// The attempt that the page shows instead of this newer one. A page that was shown none may
    /// have been shown it by a connection before.
    pub(super) fn earlier(&self, newest: &Attempt, now: Timestamp) -> Option<AttemptId> {
        let shown = lock(&self.0);
        if shown.iter().any(|shown| shown.id == newest.id && shown.since <= now) {
            return None;
        }
        let is_earlier = |shown: &&Shown| shown.exam == newest.exam && shown.id != newest.id;
        shown.iter().rev().find(is_earlier).map(|shown| shown.id.clone())
    }
}

fn find<'a>(
    all: &'a mut Vec<Shown>,
    exam: &ExamId,
    id: &AttemptId,
    since: Timestamp,
) -> &'a mut Shown {
    let at = all.iter().position(|shown| shown.id == *id).unwrap_or_else(|| {
        if all.len() >= ATTEMPTS {
            all.remove(0);
        }
        let (exam, id, known) = (exam.clone(), id.clone(), Versions::new());
        all.push(Shown { exam, id, since, known, arriving: None });
        all.len() - 1
    });
    &mut all[at]
}

fn raise(known: &mut Versions, versions: impl IntoIterator<Item = (usize, i64)>) {
    for (question, version) in versions {
        let known = known.entry(question).or_default();
        *known = version.max(*known);
    }
}

/// Pages whose sockets were lost a moment ago: they come back with what they knew.
#[derive(Debug, Default)]
pub(super) struct Pages(Mutex<HashMap<(TenantId, UserId), Vec<Page>>>);

#[derive(Debug)]
struct Page {
    connection: ConnectionId,
    lost_at: Timestamp,
    shown: Vec<Shown>,
}

impl Pages {
    /// A socket is lost.
    pub(super) fn keep(&self, caller: &Caller, now: Timestamp) {
        let shown = lock(&caller.told.0).clone();
        if shown.is_empty() {
            return;
        }
        let mut pages = lock(&self.0);
        let of_user = pages.entry((caller.tenant.clone(), caller.user.clone())).or_default();
        of_user.retain(|page| page.connection != caller.connection);
        if of_user.len() >= PAGES {
            of_user.remove(0);
        }
        of_user.push(Page { connection: caller.connection.clone(), lost_at: now, shown });
    }

    /// What the page of a socket that comes knows: what that of the socket knew where it goes on, and
    /// otherwise at least what all lost ones knew that showed an attempt.
    pub(super) fn told(&self, tenant: &TenantId, user: &UserId, connection: &ConnectionId) -> Told {
        let pages = lock(&self.0);
        let Some(of_user) = pages.get(&(tenant.clone(), user.clone())) else {
            return Told::default();
        };
        let own = of_user.iter().find(|page| page.connection == *connection);
        if let Some(page) = own {
            return Told(Arc::new(Mutex::new(page.shown.clone())));
        }
        let mut common: Vec<Shown> = Vec::new();
        for shown in of_user.iter().flat_map(|page| &page.shown) {
            match common.iter_mut().find(|other| other.id == shown.id) {
                Some(other) => other.limit_to(shown),
                None => common.push(Shown { arriving: None, ..shown.clone() }),
            }
        }
        Told(Arc::new(Mutex::new(common)))
    }

    /// Whether a socket goes on where another one was lost here.
    pub(super) fn has(&self, caller: &Caller) -> bool {
        let pages = lock(&self.0);
        let of_user = pages.get(&(caller.tenant.clone(), caller.user.clone()));
        of_user.into_iter().flatten().any(|page| page.connection == caller.connection)
    }

    pub(super) fn expire(&self, now: Timestamp) {
        lock(&self.0).retain(|_, of_user| {
            of_user.retain(|page| page.lost_at.after(RETURN_WINDOW) >= now);
            !of_user.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exam::tests::attempt;

    fn caller(user: &str, connection: &str) -> Caller {
        Caller {
            user: UserId::new(user).unwrap(),
            connection: ConnectionId::new(connection).unwrap(),
            ..Caller::system(&TenantId::new("t").unwrap())
        }
    }

    fn newer() -> Attempt {
        Attempt { id: AttemptId::new("newer").unwrap(), number: 2, ..attempt() }
    }

    fn of(attempt: &Attempt) -> (&ExamId, &AttemptId) {
        (&attempt.exam, &attempt.id)
    }

    #[test]
    fn a_page_knows_what_it_wrote_or_asked_for() {
        let (told, now) = (Told::default(), Timestamp(0));
        let (first, second) = (attempt(), newer());
        assert!(!told.knows(&first.id, 0, 1, now));
        told.tell(of(&first), [(0, 2), (1, 1)], now);
        let knows = |question, version| told.knows(&first.id, question, version, now);
        assert!(knows(0, 2) && knows(0, 1) && !knows(0, 3));
        told.tell(of(&first), [(0, 1)], now);
        assert!(knows(0, 2), "an older version is no news");
        assert!(!told.knows(&second.id, 0, 1, now));
    }

    #[test]
    fn what_a_page_did_not_ask_for_counts_when_it_must_have_it() {
        let (told, now) = (Told::default(), Timestamp(0));
        let (attempt, later) = (attempt(), now.after(ARRIVING));
        told.bring(of(&attempt), [(0, 2)], now);
        assert!(!told.knows(&attempt.id, 0, 2, now));
        assert!(told.knows(&attempt.id, 0, 2, later));
        told.tell(of(&attempt), [(0, 2)], now);
        assert!(told.knows(&attempt.id, 0, 2, now), "it asked");
    }

    #[test]
    fn a_page_that_shows_an_earlier_attempt_is_known() {
        let (told, now) = (Told::default(), Timestamp(0));
        let (first, second) = (attempt(), newer());
        assert_eq!(told.earlier(&second, now), None, "it was shown none");
        told.tell(of(&first), [], now);
        assert_eq!(told.earlier(&first, now), None);
        assert_eq!(told.earlier(&second, now), Some(first.id.clone()));
        told.bring(of(&second), [], now);
        assert_eq!(told.earlier(&second, now), Some(first.id), "it may not know yet");
        assert_eq!(told.earlier(&second, now.after(ARRIVING)), None);
    }

    #[test]
    fn a_page_comes_back_with_what_it_knew() {
        let (pages, now, attempt) = (Pages::default(), Timestamp(0), attempt());
        let (first, second) = (caller("ana", "a1"), caller("ana", "a2"));
        first.told.tell(of(&attempt), [(0, 3), (1, 1)], now);
        second.told.tell(of(&attempt), [(0, 2)], now);
        for page in [&first, &second] {
            pages.keep(page, now);
        }
        let knows = |caller: &Caller, question, version| {
            caller.told.knows(&attempt.id, question, version, now)
        };
        let comes = |user: &str, connection: &str| {
            let new = caller(user, connection);
            Caller { told: pages.told(&new.tenant, &new.user, &new.connection), ..new }
        };
        let (again, new) = (comes("ana", "a1"), comes("ana", "a3"));
        assert!(pages.has(&again) && !pages.has(&new));
        assert!(knows(&again, 0, 3) && knows(&again, 1, 1));
        // Which of the two it was, nobody knows.
        assert!(knows(&new, 0, 2) && !knows(&new, 0, 3) && !knows(&new, 1, 1));
        assert!(!knows(&comes("ben", "b1"), 0, 1));
        pages.expire(now.after(RETURN_WINDOW + Duration::from_millis(1)));
        assert!(!pages.has(&again));
    }
}
