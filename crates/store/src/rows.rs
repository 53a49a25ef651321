//! Statements that take any number of rows.

use std::sync::{Arc, OnceLock};

use sqlx::AssertSqlSafe;

use crate::tx::Kind;

/// The longest list of one statement is two to the power of one less.
const SIZES: usize = 6;

/// A statement with a list of rows: the same text before the list and after it. Each number of
/// rows is a statement of its own to the database, so a list is taken in parts of 32, 16, 8, 4, 2
/// and 1, whose texts are made once.
pub(crate) struct Rows {
    before: &'static str,
    after: &'static str,
    /// Parameters of the whole statement, and whether every row begins with them.
    common: usize,
    repeats: bool,
    own: usize,
    /// For PostgreSQL and for SQLite.
    texts: [[OnceLock<Arc<str>>; SIZES]; 2],
}

impl Rows {
    /// Each row begins with the same `common` parameters and goes on with `own` of its own.
    pub(crate) const fn new(
        before: &'static str,
        common: usize,
        own: usize,
        after: &'static str,
    ) -> Self {
        Self::made(before, common, true, own, after)
    }

    /// A list of single values for `IN (…)`, after `common` parameters.
    pub(crate) const fn list(before: &'static str, common: usize, after: &'static str) -> Self {
        Self::made(before, common, false, 1, after)
    }

    const fn made(
        before: &'static str,
        common: usize,
        repeats: bool,
        own: usize,
        after: &'static str,
    ) -> Self {
        let texts = [const { [const { OnceLock::new() }; SIZES] }; 2];
        Self { before, after, common, repeats, own, texts }
    }

    /// The parts of a list, each with its statement for this database.
    pub(crate) fn parts<'a, T>(
        &'static self,
        kind: Kind,
        mut rows: &'a [T],
    ) -> impl Iterator<Item = (AssertSqlSafe<Arc<str>>, &'a [T])> {
        std::iter::from_fn(move || {
            let size = (rows.len().checked_ilog2()? as usize).min(SIZES - 1);
            let (part, rest) = rows.split_at(1 << size);
            rows = rest;
            let text =
                self.texts[kind as usize][size].get_or_init(|| self.text(kind, 1 << size).into());
            Some((AssertSqlSafe(text.clone()), part))
        })
    }

    /// `… ($1, $2, $3, $4), ($1, $2, $5, $6) …`
    fn text(&self, kind: Kind, rows: usize) -> String {
        // SQLite looks each numbered parameter up in a list of all.
        let is_numbered = kind == Kind::Postgres || self.common > 0;
        let mut text = self.before.to_owned();
        for row in 0..rows {
            text.push_str(if row == 0 { " (" } else { ", (" });
            let first = self.common + self.own * row + 1;
            let repeated = if self.repeats { self.common } else { 0 };
            for (n, place) in (1..=repeated).chain(first..first + self.own).enumerate() {
                let comma = if n == 0 { "" } else { ", " };
                let place = if is_numbered { format!("${place}") } else { "?".to_owned() };
                text.push_str(comma);
                text.push_str(&place);
            }
            text.push(')');
        }
        text.push_str(self.after);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_taken_in_parts_of_few_sizes() {
        static PLAIN: Rows = Rows::new("INSERT INTO t VALUES", 0, 2, "");
        static SELECT: Rows = Rows::list("SELECT 1 FROM t WHERE a = $1 AND b IN (", 1, ")");
        static INSERT: Rows = Rows::new("INSERT INTO t VALUES", 1, 2, " ON CONFLICT DO NOTHING");
        let rows: Vec<u8> = (0..75).collect();
        let parts: Vec<_> = INSERT.parts(Kind::Postgres, &rows).map(|(_, part)| part).collect();
        assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), [32, 32, 8, 2, 1]);
        assert_eq!(parts.concat(), rows);
        assert_eq!(INSERT.parts::<u8>(Kind::Sqlite, &[]).count(), 0);
        assert_eq!(
            INSERT.text(Kind::Sqlite, 2),
            "INSERT INTO t VALUES ($1, $2, $3), ($1, $4, $5) ON CONFLICT DO NOTHING"
        );
        assert_eq!(PLAIN.text(Kind::Sqlite, 2), "INSERT INTO t VALUES (?, ?), (?, ?)");
        assert_eq!(PLAIN.text(Kind::Postgres, 2), "INSERT INTO t VALUES ($1, $2), ($3, $4)");
        assert_eq!(
            SELECT.text(Kind::Postgres, 2),
            "SELECT 1 FROM t WHERE a = $1 AND b IN ( ($2), ($3))"
        );
    }
}
