//! Who has done how well, by week, by month and ever.
//!
//! An entry is a fold over the released results of a user. [`revise`] folds anew what one result
//! belongs to, in the transaction that changed the result; [`recompute`] folds everything. Both
//! come to the same, so recomputing is harmless at any time.

use std::collections::{BTreeSet, HashMap};

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use crate::{
    contract::{EventRow, Namespace, Route, event, route},
    dispatch::Cx,
    ids::{TenantId, Timestamp, UserId},
    ports::Reads,
    refusal::Refusal,
};

pub mod api;
pub mod events;
pub mod leaderboard_request;
pub mod leaderboard_update;
mod period;
pub mod recompute;

pub use self::period::{Period, Span};
use self::{
    events::{LeaderboardData, LeaderboardEntry, LeaderboardUpdated, UserRank},
    leaderboard_request::LeaderboardRequest,
    leaderboard_update::LeaderboardUpdate,
};

pub const COMMANDS: &[Route] = &[route::<LeaderboardRequest>(), route::<LeaderboardUpdate>()];
pub const EVENTS: &[EventRow] = &[event::<LeaderboardData>(), event::<LeaderboardUpdated>()];

/// On `/`, `/api` and `/leaderboard`.
#[derive(Debug)]
pub enum Leaderboards {}
impl Namespace for Leaderboards {
    const PATHS: &'static [&'static str] = &["/", "/api", "/leaderboard"];
}

/// Entries a board shows unless the request says otherwise, and at most.
pub const DEFAULT_LIMIT: u32 = 50;
pub const MAX_LIMIT: u32 = 100;
/// Characters of a specialty.
pub const MAX_SPECIALTY: usize = 100;

/// `[leaderboard]` of the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where days begin, unless the tenant says otherwise.
    pub time_zone: TimeZone,
    pub of_tenants: HashMap<TenantId, TimeZone>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { time_zone: TimeZone::UTC, of_tenants: HashMap::new() }
    }
}

impl Settings {
    pub fn zone(&self, tenant: &TenantId) -> &TimeZone {
        self.of_tenants.get(tenant).unwrap_or(&self.time_zone)
    }
}

/// What somebody looks at.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Board {
    pub period: Period,
    /// `None`: everybody.
    pub specialty: Option<String>,
    pub limit: u32,
}

impl Board {
    /// What everybody gets who never asked for anything.
    pub const fn common() -> Self {
        Self { period: Period::Weekly, specialty: None, limit: DEFAULT_LIMIT }
    }
}

/// An entry's row, with the user's name and picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub user: UserId,
    /// Never empty: clients take its first letter.
    pub user_name: String,
    pub user_avatar: Option<String>,
    pub specialty: Option<String>,
    pub total_score: i64,
    pub exams_completed: i64,
    /// Hundredths of a percent.
    pub average: i64,
    pub reached_at: Timestamp,
}

/// A user's own place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub entry: Entry,
    /// How many have a higher score.
    pub above: i64,
}

/// What a board shows, and where somebody stands on it: one snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    pub entries: Vec<Entry>,
    pub own: Option<Place>,
}

/// A change of what a user has done: a result released, revised or voided.
#[derive(Clone, Debug)]
pub struct Change {
    pub user: UserId,
    /// Of the result: where it counts.
    pub completed_at: Timestamp,
    /// By how many results, by which score, and by how many hundredths of a percent.
    pub results: i64,
    pub score: i64,
    pub percent: i64,
}

impl Change {
    /// A result may be revised without any of this: other points for the same right answers.
    const fn is_none(&self) -> bool {
        self.results == 0 && self.score == 0 && self.percent == 0
    }
}

/// Brings the three entries of each user up to date, in the lane, once the rows of their results
/// say what is true now.
pub async fn revise(cx: &mut Cx<'_>, changes: &[Change]) -> Result<(), Refusal> {
    let (tenant, now) = (cx.caller.tenant.clone(), cx.now);
    let zone = cx.app.leaderboard.zone(&tenant);
    let mut users: HashMap<[Span; 3], BTreeSet<&UserId>> = HashMap::new();
    for change in changes.iter().filter(|change| !change.is_none()) {
        let spans = Span::all(zone, change.completed_at)?;
        users.entry(spans).or_default().insert(&change.user);
    }
    for (spans, users) in users {
        let users: Vec<_> = users.into_iter().cloned().collect();
        cx.tx().await?.fold_entries(&tenant, &users, &spans, now).await?;
    }
    Ok(())
}

/// What a board shows now.
pub async fn standing(
    cx: &mut Cx<'_>,
    board: &Board,
    user: Option<&UserId>,
) -> Result<Standing, Refusal> {
    let span = board.period.span(cx.app.leaderboard.zone(&cx.caller.tenant), cx.now)?;
    cx.read().await?.board_standing(&cx.caller.tenant, board, &span, user).await
}

/// The rows of a list as they are told: equal scores have equal ranks, and the next rank is what
/// it would be without ties (1, 2, 2, 4).
pub fn ranked(entries: &[Entry], period: Period, first_rank: i64) -> Vec<LeaderboardEntry> {
    let (mut rank, mut score) = (first_rank, entries.first().map_or(0, |entry| entry.total_score));
    let places = (1..).zip(entries);
    places
        .map(|(place, entry)| {
            if entry.total_score != score {
                (rank, score) = (first_rank + place - 1, entry.total_score);
            }
            LeaderboardEntry::new(entry, rank, period)
        })
        .collect()
}

/// The list of a board at a moment, for those who look at it.
pub async fn list(
    reads: &mut dyn Reads,
    tenant: &TenantId,
    board: &Board,
    span: &Span,
) -> Result<Vec<LeaderboardEntry>, Refusal> {
    let standing = reads.board_standing(tenant, board, span, None).await?;
    Ok(ranked(&standing.entries, board.period, 1))
}

/// A short form of a list that differs when the list does.
pub fn digest(entries: &[LeaderboardEntry]) -> u64 {
    use std::hash::{DefaultHasher, Hasher as _};
    let mut hasher = DefaultHasher::new();
    for entry in entries {
        entry.digest(&mut hasher);
    }
    hasher.finish()
}

/// One result that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    pub user: UserId,
    pub score: i64,
    pub total_questions: i64,
    pub completed_at: Timestamp,
    /// The user's.
    pub specialty: Option<String>,
}

impl Counted {
    /// Millionths of a percent, rounded; a result without questions counts as 0.
    const fn percent(&self) -> i64 {
        if self.total_questions <= 0 {
            return 0;
        }
        (self.score * 100_000_000 + self.total_questions / 2) / self.total_questions
    }
}

/// An entry's row as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folded {
    pub period: Period,
    pub period_start: String,
    pub user: UserId,
    pub specialty: Option<String>,
    pub total_score: i64,
    pub exams_completed: i64,
    /// Millionths of a percent.
    pub percent_sum: i64,
    /// Hundredths of a percent.
    pub average: i64,
    pub reached_at: Timestamp,
}

/// Every entry that follows from some results.
pub fn fold(zone: &TimeZone, results: &[Counted]) -> Result<Vec<Folded>, Refusal> {
    let mut entries: HashMap<(Period, String, &UserId), (Folded, Option<Timestamp>)> =
        HashMap::new();
    for result in results {
        for span in Span::all(zone, result.completed_at)? {
            let key = (span.period, span.start.clone(), &result.user);
            let (entry, last) = entries.entry(key).or_insert_with(|| {
                let entry = Folded {
                    period: span.period,
                    period_start: span.start,
                    user: result.user.clone(),
                    specialty: result.specialty.clone(),
                    total_score: 0,
                    exams_completed: 0,
                    percent_sum: 0,
                    average: 0,
                    reached_at: result.completed_at,
                };
                (entry, None)
            });
            entry.total_score += result.score;
            entry.exams_completed += 1;
            entry.percent_sum += result.percent();
            // The total was reached with the last exam that added to it; 0 with the first exam.
            entry.reached_at = entry.reached_at.min(result.completed_at);
            if result.score > 0 {
                *last = (*last).max(Some(result.completed_at));
            }
        }
    }
    let folded = entries.into_values().map(|(entry, last)| {
        let exams = entry.exams_completed;
        Folded {
            average: (entry.percent_sum + exams * 5_000) / (exams * 10_000),
            reached_at: last.unwrap_or(entry.reached_at),
            ..entry
        }
    });
    Ok(folded.collect())
}

/// [`Entry::average`] and the like as clients get it: percent with two decimals.
pub(crate) fn in_percent(hundredths: i64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "at most 10,000")]
    let hundredths = hundredths as f64;
    hundredths / 100.0
}

impl UserRank {
    pub(crate) fn new(place: &Place) -> Self {
        Self {
            rank: place.above + 1,
            total_score: place.entry.total_score,
            exams_completed: place.entry.exams_completed,
            average_score: in_percent(place.entry.average),
        }
    }
}

/// How a refused board is explained.
pub(crate) fn specialty(asked: Option<String>) -> Result<Option<String>, Refusal> {
    let asked = asked.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
    match asked {
        Some(text) if text.chars().count() > MAX_SPECIALTY || text.contains(char::is_control) => {
            Err(Refusal::Invalid("specialty: at most 100 printable characters".into()))
        }
        asked => Ok(asked),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(user: &str, total_score: i64) -> Entry {
        Entry {
            user: UserId::new(user).unwrap(),
            user_name: user.into(),
            user_avatar: None,
            specialty: None,
            total_score,
            exams_completed: 1,
            average: 6_667,
            reached_at: Timestamp(0),
        }
    }

    #[test]
    fn equal_scores_have_equal_ranks_and_leave_a_gap() {
        let entries = [entry("a", 9), entry("b", 7), entry("c", 7), entry("d", 1)];
        let ranks = |first| {
            let rows = ranked(&entries, Period::Weekly, first);
            rows.into_iter().map(|row| row.rank).collect::<Vec<_>>()
        };
        assert_eq!(ranks(1), [1, 2, 2, 4]);
        assert_eq!(ranks(11), [11, 12, 12, 14]);
        assert!(ranked(&[], Period::Weekly, 1).is_empty());
    }

    #[test]
    fn an_average_is_a_number_with_two_decimals() {
        let row = &ranked(&[entry("a", 2)], Period::AllTime, 1)[0];
        let text = serde_json::to_string(row).unwrap();
        assert_eq!(
            text,
            "{\"user_id\":\"a\",\"user_name\":\"a\",\"user_avatar\":null,\"specialty\":null,\
             \"total_score\":2,\"exams_completed\":1,\"average_score\":66.67,\"rank\":1,\
             \"period\":\"all_time\"}"
        );
    }

    #[test]
    fn a_result_without_questions_counts_as_nothing_and_two_thirds_are_rounded() {
        let counted = |score, total_questions, at| Counted {
            user: UserId::new("a").unwrap(),
            score,
            total_questions,
            completed_at: Timestamp(at),
            specialty: None,
        };
        let of = |results: &[Counted]| {
            let all = fold(&TimeZone::UTC, results).unwrap();
            let entry = all.into_iter().find(|entry| entry.period == Period::AllTime).unwrap();
            (entry.total_score, entry.exams_completed, entry.average, entry.reached_at.0)
        };
        assert_eq!(of(&[counted(0, 0, 5)]), (0, 1, 0, 5));
        assert_eq!(of(&[counted(2, 3, 5)]), (2, 1, 6_667, 5));
        assert_eq!(of(&[counted(1, 1, 7), counted(0, 1, 9), counted(0, 1, 3)]), (1, 3, 3_333, 7));
        assert_eq!(of(&[counted(0, 1, 9), counted(0, 1, 3)]), (0, 2, 0, 3));
    }
}
