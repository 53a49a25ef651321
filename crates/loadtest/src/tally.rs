//! Exactly once, counted: every message carries who sent it, its number and its instant, and every
//! member keeps account of what it heard from each publisher.

use std::{collections::BTreeSet, fmt, ops::AddAssign};

use serde::Serialize;

/// What a message's text ends with: `~publisher.number.nanoseconds~`. It survives the sanitiser,
/// and no id or key of the row contains its first character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marker {
    /// Counted from 0 within a room.
    pub publisher: usize,
    /// Counted from 0 within a publisher.
    pub number: u64,
    /// When it was to be sent, since the start of the run.
    pub nanoseconds: u64,
}

impl fmt::Display for Marker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "~{}.{}.{}~", self.publisher, self.number, self.nanoseconds)
    }
}

impl Marker {
    /// The marker in a frame, found without decoding it.
    pub fn find(frame: &str) -> Option<Self> {
        let start = memchr::memchr(b'~', frame.as_bytes())?;
        let mut rest = frame.as_bytes()[start + 1..].iter();
        let mut number = |end: u8| -> Option<u64> {
            let mut value: Option<u64> = None;
            for byte in rest.by_ref() {
                if !byte.is_ascii_digit() {
                    return value.filter(|_| *byte == end);
                }
                let digit = u64::from(byte - b'0');
                value = Some(value.unwrap_or(0).checked_mul(10)?.checked_add(digit)?);
            }
            None
        };
        let (publisher, number, nanoseconds) = (number(b'.')?, number(b'.')?, number(b'~')?);
        Some(Self { publisher: usize::try_from(publisher).ok()?, number, nanoseconds })
    }
}

/// What one member heard from one publisher.
#[derive(Debug, Default)]
pub struct Tally {
    /// Every number below was heard, or is a hole.
    next: u64,
    holes: BTreeSet<u64>,
    duplicated: u64,
    out_of_order: u64,
}

impl Tally {
    pub fn hear(&mut self, number: u64) {
        if number >= self.next {
            self.holes.extend(self.next..number);
            self.next = number + 1;
        } else if self.holes.remove(&number) {
            self.out_of_order += 1;
        } else {
            self.duplicated += 1;
        }
    }

    /// What a member got of what its publisher knows to be accepted.
    pub fn account(&self, accepted: &Accepted) -> Account {
        let unheard = self.holes.iter().copied().chain(self.next..accepted.sent);
        let missing = unheard.filter(|number| !accepted.without.contains(number)).count();
        Account {
            missing: missing as u64,
            duplicated: self.duplicated,
            out_of_order: self.out_of_order,
        }
    }
}

/// The messages of one publisher that were acknowledged: all below `sent`, without some.
#[derive(Debug, Default)]
pub struct Accepted {
    pub sent: u64,
    /// Refused, or not answered.
    pub without: BTreeSet<u64>,
}

impl Accepted {
    pub fn count(&self) -> u64 {
        self.sent - self.without.len() as u64
    }
}

/// How far deliveries were from exactly once and in order. All zero is the promise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Account {
    pub missing: u64,
    pub duplicated: u64,
    pub out_of_order: u64,
}

impl AddAssign for Account {
    fn add_assign(&mut self, other: Self) {
        self.missing += other.missing;
        self.duplicated += other.duplicated;
        self.out_of_order += other.out_of_order;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_found_in_a_frame() {
        let marker = Marker { publisher: 3, number: 41, nanoseconds: 12_345_678_901 };
        let frame = format!(r#"42["receive-message",{{"message":"Open? {marker}","seq":7}}]"#);
        assert_eq!(Marker::find(&frame), Some(marker));
    }

    #[test]
    fn what_only_looks_like_a_marker_is_none() {
        for frame in
            ["", "no marker", "~", "~1.2", "~1.2.~3", "~1.x.3~", "~1.2.99999999999999999999~"]
        {
            assert_eq!(Marker::find(frame), None, "{frame}");
        }
    }

    fn account(heard: &[u64], sent: u64, without: &[u64]) -> Account {
        let mut tally = Tally::default();
        for number in heard {
            tally.hear(*number);
        }
        tally.account(&Accepted { sent, without: without.iter().copied().collect() })
    }

    #[test]
    fn exactly_once_and_in_order_leaves_nothing_to_tell() {
        assert_eq!(account(&[0, 1, 2], 3, &[]), Account::default());
        assert_eq!(account(&[], 0, &[]), Account::default());
    }

    #[test]
    fn holes_and_a_missing_end_are_missing() {
        assert_eq!(account(&[0, 3], 6, &[]).missing, 4);
    }

    #[test]
    fn what_was_refused_is_not_missing() {
        assert_eq!(account(&[0, 2], 4, &[1, 3]), Account::default());
    }

    #[test]
    fn a_repeat_is_a_duplicate_and_a_late_one_is_out_of_order() {
        let account = account(&[0, 2, 1, 1, 0], 3, &[]);
        assert_eq!(account, Account { missing: 0, duplicated: 2, out_of_order: 1 });
    }
}
