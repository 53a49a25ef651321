//! The append-only journal of an attempt: every entry carries a code over itself and the one
//! before, made with a key only the server has. Whoever changes, removes or cuts off an entry
//! cannot make the codes fit.

use std::fmt;

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::Sha256;

use super::{Attempt, grade::Marks, paper::Points};
use crate::ids::{AttemptId, QuestionId, Timestamp};

/// The server's key for journals.
#[derive(Clone)]
pub struct JournalKey(Vec<u8>);

impl JournalKey {
    pub fn new(secret: &str) -> Self {
        Self(secret.as_bytes().to_vec())
    }
}

impl fmt::Debug for JournalKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JournalKey")
    }
}

/// What an entry tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Entry {
    Started {
        paper_version: i64,
        /// The fingerprint of the paper.
        paper: String,
        order: Option<Vec<usize>>,
        deadline_at: Option<i64>,
    },
    Answered {
        answers: Vec<Saved>,
    },
    Paused,
    Resumed {
        deadline_at: Option<i64>,
    },
    Extended {
        seconds: i64,
        deadline_at: Option<i64>,
    },
    /// Staff ended it; it is submitted soon after.
    Forced,
    Submitted {
        by: String,
        completed_at: i64,
    },
    Graded {
        revision: i64,
        key_version: i64,
        /// The fingerprint of the paper whose keys were used.
        paper: String,
        awards: std::collections::BTreeMap<QuestionId, Points>,
        marks: Marks,
    },
}

/// One saved answer in an entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// The question's place in the paper.
    pub question: usize,
    pub version: i64,
    pub late: bool,
    pub answer: Value,
}

impl Entry {
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Started { .. } => "started",
            Self::Answered { .. } => "answered",
            Self::Paused => "paused",
            Self::Resumed { .. } => "resumed",
            Self::Extended { .. } => "extended",
            Self::Forced => "forced",
            Self::Submitted { .. } => "submitted",
            Self::Graded { .. } => "graded",
        }
    }
}

/// A row of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalRow {
    pub seq: i64,
    pub at: Timestamp,
    pub kind: String,
    /// Who caused it: a user's id, a backend's key, or the system.
    pub actor: String,
    /// The entry, as JSON.
    pub body: String,
    pub hash: String,
}

impl JournalRow {
    /// The code that belongs to this row after `previous`.
    pub fn code(&self, key: &JournalKey, attempt: &AttemptId, previous: &str) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(&key.0).expect("a key may have any length");
        let (seq, at) = (self.seq.to_string(), self.at.0.to_string());
        for part in [previous, attempt.as_str(), &seq, &at, &self.kind, &self.actor, &self.body] {
            // With its length in front, no two lists of parts read the same.
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part.as_bytes());
        }
        hex(&mac.finalize().into_bytes())
    }
}

impl Attempt {
    /// The next row of this attempt's journal; the attempt holds its head from then on.
    pub fn append(
        &mut self,
        key: &JournalKey,
        at: Timestamp,
        actor: &str,
        entry: &Entry,
    ) -> JournalRow {
        let mut row = JournalRow {
            seq: self.journal_len + 1,
            at,
            kind: entry.kind().to_owned(),
            actor: actor.to_owned(),
            body: serde_json::to_string(entry).expect("an entry is plain data"),
            hash: String::new(),
        };
        row.hash = row.code(key, &self.id, &self.journal_head);
        self.journal_len = row.seq;
        self.journal_head.clone_from(&row.hash);
        row
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
