//! Weeks and months, in the tenant's time zone. Boundaries are computed for each instant: a week
//! in which clocks change has 167 or 169 hours.

use jiff::{ToSpan as _, civil::Date, tz::TimeZone};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ids::Timestamp, refusal::Refusal};

/// What a board covers.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Period {
    /// From Monday.
    Weekly,
    /// From the 1st.
    Monthly,
    AllTime,
}

impl Period {
    pub const ALL: [Self; 3] = [Self::Weekly, Self::Monthly, Self::AllTime];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::AllTime => "all_time",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|period| period.as_str() == text)
    }

    /// The week, the month or everything that an instant belongs to.
    pub fn span(self, zone: &TimeZone, at: Timestamp) -> Result<Span, Refusal> {
        let instant = jiff::Timestamp::from_millisecond(at.0).map_err(Refusal::internal)?;
        let date = instant.to_zoned(zone.clone()).date();
        let (first, next) = match self {
            Self::Weekly => {
                let past = i64::from(date.weekday().to_monday_zero_offset());
                let monday = date.checked_sub(past.days()).map_err(Refusal::internal)?;
                (monday, monday.checked_add(7.days()).map_err(Refusal::internal)?)
            }
            Self::Monthly => {
                let first = date.first_of_month();
                (first, first.checked_add(1.month()).map_err(Refusal::internal)?)
            }
            Self::AllTime => return Ok(Span::ever()),
        };
        let (from, to) = (midnight(first, zone)?, midnight(next, zone)?);
        Ok(Span { period: self, start: first.to_string(), from, to })
    }
}

/// The first instant of a day; where clocks skip midnight, the one they skip to.
fn midnight(date: Date, zone: &TimeZone) -> Result<Timestamp, Refusal> {
    let start = date.to_zoned(zone.clone()).map_err(Refusal::internal)?;
    Ok(Timestamp(start.timestamp().as_millisecond()))
}

/// One week, one month, or everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    pub period: Period,
    /// The local date of its first day.
    pub start: String,
    pub from: Timestamp,
    /// The first instant that is not in it.
    pub to: Timestamp,
}

impl Span {
    /// The years 1 to 9999: what both databases can hold.
    fn ever() -> Self {
        Self {
            period: Period::AllTime,
            start: "0001-01-01".into(),
            from: Timestamp(-62_135_596_800_000),
            to: Timestamp(253_402_300_800_000),
        }
    }

    /// What an instant belongs to, one of each kind.
    pub fn all(zone: &TimeZone, at: Timestamp) -> Result<[Self; 3], Refusal> {
        Ok([
            Period::Weekly.span(zone, at)?,
            Period::Monthly.span(zone, at)?,
            Period::AllTime.span(zone, at)?,
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instant(text: &str) -> Timestamp {
        Timestamp(text.parse::<jiff::Timestamp>().unwrap().as_millisecond())
    }

    fn span(zone: &str, period: Period, at: &str) -> (String, i64) {
        let zone = TimeZone::get(zone).unwrap();
        let at = instant(at);
        let span = period.span(&zone, at).unwrap();
        assert!(span.from <= at && at < span.to);
        for inside in [span.from, Timestamp(span.to.0 - 1)] {
            assert_eq!(period.span(&zone, inside).unwrap(), span);
        }
        for outside in [Timestamp(span.from.0 - 1), span.to] {
            assert_ne!(period.span(&zone, outside).unwrap(), span);
        }
        (span.start, (span.to.0 - span.from.0) / 3_600_000)
    }

    #[test]
    fn a_week_begins_on_monday_and_is_as_long_as_its_clocks_make_it() {
        use Period::{Monthly, Weekly};
        for (zone, period, at, start, hours) in [
            ("UTC", Weekly, "2026-03-29T12:00:00Z", "2026-03-23", 168),
            ("Europe/Berlin", Weekly, "2026-03-29T12:00:00Z", "2026-03-23", 167),
            ("Europe/Berlin", Weekly, "2026-10-25T12:00:00Z", "2026-10-19", 169),
            ("America/New_York", Weekly, "2026-03-08T12:00:00Z", "2026-03-02", 167),
            ("America/New_York", Weekly, "2026-11-01T12:00:00Z", "2026-10-26", 169),
            // Sunday evening in New York, Monday in Berlin.
            ("America/New_York", Weekly, "2026-11-16T00:30:00Z", "2026-11-09", 168),
            ("Europe/Berlin", Weekly, "2026-11-15T23:30:00Z", "2026-11-16", 168),
            ("Europe/Berlin", Monthly, "2026-02-28T23:00:00Z", "2026-03-01", 743),
            ("UTC", Monthly, "2028-02-29T23:59:59.999Z", "2028-02-01", 696),
            // Clocks go from midnight to one.
            ("America/Santiago", Weekly, "2026-09-07T02:59:59Z", "2026-08-31", 167),
        ] {
            assert_eq!(span(zone, period, at), (start.to_owned(), hours), "{zone} {at}");
        }
    }

    #[test]
    fn ever_holds_everything() {
        let zone = TimeZone::get("Asia/Jakarta").unwrap();
        for at in ["0001-01-03T00:00:00Z", "2026-01-01T00:00:00Z", "9999-12-20T00:00:00Z"] {
            let span = Period::AllTime.span(&zone, instant(at)).unwrap();
            assert!(span.from <= instant(at) && instant(at) < span.to);
        }
        assert!(Period::parse("weekly").is_some() && Period::parse("daily").is_none());
    }
}
