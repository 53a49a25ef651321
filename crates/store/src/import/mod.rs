//! Taking over an existing database: users, exams with their results, study groups, rooms with
//! their messages, and notifications.
//!
//! Ids are kept, so what was taken over before is found again and left alone: the import may be
//! repeated while the old system is still in use. Odd rows are mended where their meaning is clear
//! and skipped otherwise; either way they are counted.

use std::collections::{BTreeMap, HashMap, HashSet};

use carillon_domain::{
    Refusal, TenantId, Timestamp, chat::text, exam::journal::JournalKey, ports::Clock,
};

use crate::open::SqlStore;

mod exams;
mod groups;
mod notifications;
mod results;
mod rooms;
mod source;
mod target;
mod users;

pub use source::Source;
use target::Target;

/// Source rows of one page, and of one transaction.
const PAGE: usize = 300;
/// Ids shown with a reason.
const SHOWN_IDS: usize = 3;

/// Why an import stopped.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("--from must begin with postgres://")]
    NotPostgres,
    #[error("cannot connect to the source: {0}")]
    Unreachable(sqlx::Error),
    #[error("the source has no table {0}")]
    NoTable(&'static str),
    #[error("cannot read {0} of the source: {1}")]
    Unreadable(&'static str, sqlx::Error),
    #[error("database.url")]
    Target(#[from] Refusal),
}

/// What became of the rows of one table.
#[derive(Debug)]
pub struct Table {
    pub name: &'static str,
    pub read: u64,
    pub imported: u64,
    pub already_there: u64,
    pub skipped: Cases,
    /// Imported, but not as they were.
    pub mended: Cases,
}

/// Rows by reason.
#[derive(Debug, Default)]
pub struct Cases(pub BTreeMap<String, Case>);

#[derive(Debug, Default)]
pub struct Case {
    pub count: u64,
    /// The first few of them.
    pub ids: Vec<String>,
}

impl Cases {
    fn add(&mut self, reason: impl Into<String>, id: &str) {
        let case = self.0.entry(reason.into()).or_default();
        case.count += 1;
        if case.ids.len() < SHOWN_IDS && !case.ids.iter().any(|known| known == id) {
            case.ids.push(id.to_owned());
        }
    }

    pub fn count(&self) -> u64 {
        self.0.values().map(|case| case.count).sum()
    }
}

impl Table {
    fn new(name: &'static str) -> Self {
        let (skipped, mended) = (Cases::default(), Cases::default());
        Self { name, read: 0, imported: 0, already_there: 0, skipped, mended }
    }

    fn skip(&mut self, id: &str, reason: impl Into<String>) {
        self.read += 1;
        self.skipped.add(reason, id);
    }

    fn keep(&mut self) {
        self.read += 1;
        self.already_there += 1;
    }

    fn import(&mut self, id: &str, mends: Mends) {
        self.read += 1;
        self.imported += 1;
        for mend in mends.0 {
            self.mended.add(mend, id);
        }
    }
}

/// What had to be changed about one row.
#[derive(Debug, Default)]
struct Mends(Vec<&'static str>);

impl Mends {
    fn note(&mut self, what: &'static str) {
        if !self.0.contains(&what) {
            self.0.push(what);
        }
    }

    fn link(&mut self, link: Option<String>, what: &'static str) -> Option<String> {
        text::link("link", link).unwrap_or_else(|_| {
            self.note(what);
            None
        })
    }

    fn cut(&mut self, text: String, max_chars: usize, what: &'static str) -> String {
        match text.char_indices().nth(max_chars) {
            None => text,
            Some((end, _)) => {
                self.note(what);
                text[..end].to_owned()
            }
        }
    }

    fn cut_option(
        &mut self,
        text: Option<String>,
        max_chars: usize,
        what: &'static str,
    ) -> Option<String> {
        let text = text.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        text.map(|text| self.cut(text, max_chars, what))
    }
}

/// An instant every client can show; others count as missing.
fn instant(ms: Option<i64>) -> Option<Timestamp> {
    /// The end of the year 9999.
    const LAST: i64 = 253_402_300_799_999;
    ms.filter(|ms| (0..=LAST).contains(ms)).map(Timestamp)
}

/// Told after every page: the table so far, and how many rows it has in the source.
pub type Progress<'a> = dyn FnMut(&Table, u64) + Send + 'a;

/// One import.
pub struct Import<'a> {
    source: Source,
    target: Target<'a>,
    clock: &'a dyn Clock,
    key: JournalKey,
    progress: &'a mut Progress<'a>,
    total: u64,
    /// Names of the users of the source that can be taken over, by id.
    users: HashMap<String, String>,
    /// Exams of the source that were, or are, here.
    exams: HashSet<String>,
    /// Rooms that are here, or would be.
    rooms: HashSet<String>,
}

impl<'a> Import<'a> {
    /// An import that writes.
    pub fn new(
        source: Source,
        store: &'a SqlStore,
        tenant: &'a TenantId,
        clock: &'a dyn Clock,
        key: JournalKey,
        progress: &'a mut Progress<'a>,
    ) -> Self {
        Self::with(source, Target::new(Some(store), tenant, true), clock, key, progress)
    }

    /// An import that only says what it would do; `store` is `None` when there is no database yet.
    pub fn dry(
        source: Source,
        store: Option<&'a SqlStore>,
        tenant: &'a TenantId,
        clock: &'a dyn Clock,
        progress: &'a mut Progress<'a>,
    ) -> Self {
        let key = JournalKey::new("");
        Self::with(source, Target::new(store, tenant, false), clock, key, progress)
    }

    fn with(
        source: Source,
        target: Target<'a>,
        clock: &'a dyn Clock,
        key: JournalKey,
        progress: &'a mut Progress<'a>,
    ) -> Self {
        let (users, exams, rooms) = (HashMap::new(), HashSet::new(), HashSet::new());
        Self { source, target, clock, key, progress, total: 0, users, exams, rooms }
    }

    /// Takes everything over, in an order in which nothing refers to what comes later.
    pub async fn run(mut self) -> Result<Vec<Table>, ImportError> {
        let mut tables = vec![self.users().await?];
        tables.extend(self.exams().await?);
        tables.push(self.results().await?);
        // Before rooms: who is in the room of a group, the group decides.
        tables.push(self.groups().await?);
        tables.extend(self.rooms().await?);
        tables.push(self.messages().await?);
        tables.push(self.notifications().await?);
        self.source.close().await;
        Ok(tables)
    }

    fn told(&mut self, table: &Table) {
        (self.progress)(table, self.total);
    }

    async fn start(&mut self, name: &'static str) -> Result<Table, ImportError> {
        self.total = self.source.count(name).await?;
        let table = Table::new(name);
        self.told(&table);
        Ok(table)
    }
}
