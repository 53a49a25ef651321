//! Leaderboard entries: folded from results, read by rank.

use async_trait::async_trait;
use carillon_domain::{
    Refusal, TenantId, Timestamp, UserId,
    leaderboard::{Board, Counted, Entry, Folded, Period, Place, Span, Standing, api::After},
    ports::{LeaderboardReads, LeaderboardWrites},
};
use serde_json::{Value, json};

use crate::{
    error::refusal,
    rows::Rows,
    time::Time,
    tx::{SqlTx, on},
};

/// Suspended users are on no board.
macro_rules! counted {
    ($which:literal) => {
        concat!(
            "SELECT r.user_id, r.score, r.total_questions, r.completed_at,
                u.target_specialty AS specialty
             FROM exam_results r LEFT JOIN users u ON u.tenant_id = r.tenant_id AND u.id = r.user_id
             WHERE r.tenant_id = $1 AND r.released_at IS NOT NULL
               AND COALESCE(u.status, '') <> 'SUSPENDED' AND ",
            $which
        )
    };
}
const COUNTED: &str = counted!("r.user_id > $2 AND r.user_id <= $3");
const COUNTED_OF: &str = counted!("r.user_id = $2");

// Millionths of a percent of each result are rounded, and so is the average.
static FOLD: Rows = Rows::list(
    "INSERT INTO leaderboard_entries
    (tenant_id, period, period_start, user_id, specialty, total_score, exams_completed,
     percent_sum, average, reached_at, updated_at)
    SELECT $1, f.period, f.period_start, f.user_id, f.specialty, f.total_score, f.exams_completed,
        f.percent_sum, (f.percent_sum + f.exams_completed * 5000) / (f.exams_completed * 10000),
        f.reached_at, $2
    FROM (
        SELECT p.column1 AS period, p.column2 AS period_start, r.user_id,
            u.target_specialty AS specialty,
            CAST(sum(r.score) AS BIGINT) AS total_score,
            count(*) AS exams_completed,
            CAST(sum(CASE WHEN r.total_questions > 0
                THEN (r.score * 100000000 + r.total_questions / 2) / r.total_questions
                ELSE 0 END) AS BIGINT) AS percent_sum,
            COALESCE(max(CASE WHEN r.score > 0 THEN r.completed_at END), min(r.completed_at))
                AS reached_at
        FROM (VALUES ('weekly', $3, $4, $5), ('monthly', $6, $7, $8), ('all_time', $9, $10, $11)) p
        JOIN exam_results r ON r.tenant_id = $1 AND r.released_at IS NOT NULL
            AND r.completed_at >= p.column3 AND r.completed_at < p.column4
        LEFT JOIN users u ON u.tenant_id = $1 AND u.id = r.user_id
        WHERE COALESCE(u.status, '') <> 'SUSPENDED' AND r.user_id IN (",
    11,
    ")
        GROUP BY p.column1, p.column2, r.user_id, u.target_specialty
    ) f WHERE TRUE
    ON CONFLICT (tenant_id, period, period_start, user_id) DO UPDATE SET
        specialty = excluded.specialty, total_score = excluded.total_score,
        exams_completed = excluded.exams_completed, percent_sum = excluded.percent_sum,
        average = excluded.average, reached_at = excluded.reached_at,
        updated_at = excluded.updated_at",
);
static FORGET: Rows = Rows::list(
    "DELETE FROM leaderboard_entries
    WHERE tenant_id = $1 AND period = $2 AND period_start = $3
      AND NOT EXISTS (SELECT 1 FROM exam_results r LEFT JOIN users u
          ON u.tenant_id = $1 AND u.id = r.user_id
          WHERE r.tenant_id = $1 AND r.user_id = leaderboard_entries.user_id
            AND r.released_at IS NOT NULL
            AND r.completed_at >= $4 AND r.completed_at < $5
            AND COALESCE(u.status, '') <> 'SUSPENDED')
      AND user_id IN (",
    5,
    ")",
);
const REVISED: &str = "INSERT INTO leaderboard_revisions (tenant_id, revision) VALUES ($1, 1)
    ON CONFLICT (tenant_id) DO UPDATE SET revision = leaderboard_revisions.revision + 1";
const REVISIONS: &str = "SELECT tenant_id, revision FROM leaderboard_revisions";

const USERS: &str = "SELECT user_id FROM (SELECT DISTINCT user_id FROM exam_results
        WHERE tenant_id = $1 AND user_id > $2 AND released_at IS NOT NULL
        ORDER BY user_id LIMIT $3) a
    UNION SELECT user_id FROM (SELECT DISTINCT user_id FROM leaderboard_entries
        WHERE tenant_id = $1 AND user_id > $2 ORDER BY user_id LIMIT $3) b
    ORDER BY user_id LIMIT $3";
macro_rules! kept {
    ($which:literal) => {
        concat!(
            "SELECT period, period_start, user_id, specialty, total_score, exams_completed,
                percent_sum, average, reached_at FROM leaderboard_entries
             WHERE tenant_id = $1 AND ",
            $which
        )
    };
}
const KEPT: &str = kept!("user_id > $2 AND user_id <= $3");
const KEPT_OF: &str = kept!("user_id = $2");
const CLEAR_SQLITE: &str = "DELETE FROM leaderboard_entries
    WHERE tenant_id = $1 AND (period, period_start, user_id) IN
        (SELECT value->>0, value->>1, value->>2 FROM json_each($2))";
const CLEAR_POSTGRES: &str = "DELETE FROM leaderboard_entries
    WHERE tenant_id = $1 AND (period, period_start, user_id) IN
        (SELECT value->>0, value->>1, value->>2 FROM jsonb_array_elements($2::jsonb) AS rows(value))";
macro_rules! fill {
    ($values:literal) => {
        concat!(
            "INSERT INTO leaderboard_entries
                (tenant_id, updated_at, period, period_start, user_id, specialty, total_score,
                 exams_completed, percent_sum, average, reached_at) SELECT $1, $2, ",
            $values,
            " WHERE TRUE ON CONFLICT (tenant_id, period, period_start, user_id) DO UPDATE SET
                specialty = excluded.specialty, total_score = excluded.total_score,
                exams_completed = excluded.exams_completed, percent_sum = excluded.percent_sum,
                average = excluded.average, reached_at = excluded.reached_at,
                updated_at = excluded.updated_at"
        )
    };
}
const FILL_SQLITE: &str = fill!(
    "value->>0, value->>1, value->>2, value->>3, value->>4, value->>5, value->>6, value->>7,
     value->>8 FROM json_each($3)"
);
const FILL_POSTGRES: &str = fill!(
    "value->>0, value->>1, value->>2, value->>3, (value->>4)::bigint, (value->>5)::bigint,
     (value->>6)::bigint, (value->>7)::bigint,
     'epoch'::timestamptz + (value->>8)::bigint * interval '1 millisecond'
     FROM jsonb_array_elements($3::jsonb) AS rows(value)"
);

/// How many users of a board have more than a score: those in the rest of its bucket of 64, in
/// the rest of that one's bucket of 4,096, and in the buckets of 4,096 above.
macro_rules! above {
    ($board:expr, $score:literal) => {
        concat!(
            "(",
            above!($board, "0", $score, concat!($score, " | 63")),
            " + ",
            above!($board, "1", concat!($score, " >> 6"), concat!($score, " >> 6 | 63")),
            " + ",
            above!($board, "2", concat!($score, " >> 12"), "9223372036854775807"),
            ")"
        )
    };
    ($board:expr, $level:literal, $over:expr, $up_to:expr) => {
        concat!(
            "(SELECT CAST(COALESCE(sum(c.users), 0) AS BIGINT) FROM leaderboard_scores c
                WHERE c.tenant_id = $1 AND c.period = $2 AND c.period_start = $3
                  AND c.specialty = ",
            $board,
            " AND c.level = ",
            $level,
            " AND c.bucket > (",
            $over,
            ") AND c.bucket <= (",
            $up_to,
            "))"
        )
    };
}

// The list is limited before names are looked up. With the caller's own row it is one statement,
// and so one snapshot.
macro_rules! standing {
    ($filter:literal, $board:literal) => {
        concat!(
            "WITH shown AS (
                SELECT user_id, specialty, total_score, exams_completed, average, reached_at
                FROM leaderboard_entries
                WHERE tenant_id = $1 AND period = $2 AND period_start = $3 ",
            $filter,
            "   ORDER BY total_score DESC, average DESC, reached_at, user_id LIMIT $4
            ), own AS (
                SELECT user_id, specialty, total_score, exams_completed, average, reached_at
                FROM leaderboard_entries
                WHERE tenant_id = $1 AND period = $2 AND period_start = $3 AND user_id = $5 ",
            $filter,
            ")
            SELECT CAST(-1 AS BIGINT) AS above, s.user_id, COALESCE(u.name, s.user_id) AS user_name,
                u.avatar AS user_avatar, s.specialty, s.total_score, s.exams_completed, s.average,
                s.reached_at
            FROM shown s LEFT JOIN users u ON u.tenant_id = $1 AND u.id = s.user_id
            UNION ALL
            SELECT ",
            above!($board, "own.total_score"),
            ",
                own.user_id, own.user_id, NULL, own.specialty, own.total_score,
                own.exams_completed, own.average, own.reached_at
            FROM own"
        )
    };
}
const STANDING: &str = standing!("", "''");
const STANDING_OF_SPECIALTY: &str = standing!("AND specialty = $6", "$6");

macro_rules! after {
    ($filter:literal) => {
        concat!(
            "WITH shown AS (
                SELECT user_id, specialty, total_score, exams_completed, average, reached_at
                FROM leaderboard_entries
                WHERE tenant_id = $1 AND period = $2 AND period_start = $3 ",
            $filter,
            "     AND total_score <= $5 AND (total_score < $5
                    OR average < $6
                    OR average = $6 AND (reached_at > $7 OR reached_at = $7 AND user_id > $8))
                ORDER BY total_score DESC, average DESC, reached_at, user_id LIMIT $4
            )
            SELECT CAST(-1 AS BIGINT) AS above, s.user_id, COALESCE(u.name, s.user_id) AS user_name,
                u.avatar AS user_avatar, s.specialty, s.total_score, s.exams_completed, s.average,
                s.reached_at
            FROM shown s LEFT JOIN users u ON u.tenant_id = $1 AND u.id = s.user_id"
        )
    };
}
const AFTER: &str = after!("");
const AFTER_OF_SPECIALTY: &str = after!("AND specialty = $9");
const COUNTS: &str = concat!(
    "SELECT ",
    above!("$5", "$4"),
    ", CAST(COALESCE((SELECT users FROM leaderboard_scores
        WHERE tenant_id = $1 AND period = $2 AND period_start = $3 AND specialty = $5
          AND level = 0 AND bucket = $4), 0) AS BIGINT)"
);

#[derive(sqlx::FromRow)]
struct Row {
    above: i64,
    user_id: String,
    user_name: String,
    user_avatar: Option<String>,
    specialty: Option<String>,
    total_score: i64,
    exams_completed: i64,
    average: i64,
    reached_at: Time,
}

impl Row {
    fn entry(self) -> Result<Entry, Refusal> {
        Ok(Entry {
            user: UserId::new(self.user_id).map_err(Refusal::internal)?,
            user_name: self.user_name,
            user_avatar: self.user_avatar,
            specialty: self.specialty,
            total_score: self.total_score,
            exams_completed: self.exams_completed,
            average: self.average,
            reached_at: self.reached_at.into(),
        })
    }
}

#[derive(sqlx::FromRow)]
struct ResultRow {
    user_id: String,
    score: i64,
    total_questions: i64,
    completed_at: Time,
    specialty: Option<String>,
}

impl ResultRow {
    fn counted(self) -> Result<Counted, Refusal> {
        Ok(Counted {
            user: UserId::new(self.user_id).map_err(Refusal::internal)?,
            score: self.score,
            total_questions: self.total_questions,
            completed_at: self.completed_at.into(),
            specialty: self.specialty,
        })
    }
}

#[derive(sqlx::FromRow)]
struct KeptRow {
    period: String,
    period_start: String,
    user_id: String,
    specialty: Option<String>,
    total_score: i64,
    exams_completed: i64,
    percent_sum: i64,
    average: i64,
    reached_at: Time,
}

impl KeptRow {
    fn folded(self) -> Result<Folded, Refusal> {
        let unknown = || Refusal::internal("leaderboard_entries.period holds an unknown value");
        Ok(Folded {
            period: Period::parse(&self.period).ok_or_else(unknown)?,
            period_start: self.period_start,
            user: UserId::new(self.user_id).map_err(Refusal::internal)?,
            specialty: self.specialty,
            total_score: self.total_score,
            exams_completed: self.exams_completed,
            percent_sum: self.percent_sum,
            average: self.average,
            reached_at: self.reached_at.into(),
        })
    }
}

impl SqlTx {
    /// Removes the entries of users who have nothing in a span.
    async fn forget_entries(
        &mut self,
        tenant: &TenantId,
        users: &[UserId],
        spans: &[Span; 3],
    ) -> Result<(), Refusal> {
        for span in spans {
            for (statement, part) in FORGET.parts(self.kind(), users) {
                on!(self.conn().await?, c => {
                    let query = sqlx::query(statement)
                        .bind(tenant.as_str()).bind(span.period.as_str()).bind(&span.start)
                        .bind(Time(span.from)).bind(Time(span.to));
                    let query = part.iter().fold(query, |query, user| query.bind(user.as_str()));
                    query.execute(c).await.map(|_| ())
                })
                .map_err(refusal)?;
            }
        }
        Ok(())
    }

    /// A list of entries as JSON, for statements that take many.
    fn json(entries: &[Folded]) -> Result<String, Refusal> {
        let row = |entry: &Folded| {
            let key = (entry.period.as_str(), &entry.period_start, &entry.user, &entry.specialty);
            let numbers =
                [entry.total_score, entry.exams_completed, entry.percent_sum, entry.average];
            let [score, exams, percents, average] = numbers;
            json!([key.0, key.1, key.2, key.3, score, exams, percents, average, entry.reached_at.0])
        };
        let rows: Vec<Value> = entries.iter().map(row).collect();
        serde_json::to_string(&rows).map_err(Refusal::internal)
    }
}

#[async_trait]
impl LeaderboardReads for SqlTx {
    async fn board_standing(
        &mut self,
        tenant: &TenantId,
        board: &Board,
        span: &Span,
        user: Option<&UserId>,
    ) -> Result<Standing, Refusal> {
        let statement = if board.specialty.is_some() { STANDING_OF_SPECIALTY } else { STANDING };
        let rows: Vec<Row> = on!(self.conn().await?, c => {
            let query = sqlx::query_as(statement)
                .bind(tenant.as_str()).bind(span.period.as_str()).bind(&span.start)
                .bind(i64::from(board.limit)).bind(user.map_or("", UserId::as_str));
            let query = match &board.specialty {
                Some(specialty) => query.bind(specialty),
                None => query,
            };
            query.fetch_all(c).await
        })
        .map_err(refusal)?;
        let mut standing = Standing::default();
        for row in rows {
            match row.above {
                -1 => standing.entries.push(row.entry()?),
                above => standing.own = Some(Place { entry: row.entry()?, above }),
            }
        }
        // Looking up names may have changed the order.
        standing.entries.sort_by(|a, b| {
            (b.total_score, b.average, a.reached_at, &a.user).cmp(&(
                a.total_score,
                a.average,
                b.reached_at,
                &b.user,
            ))
        });
        Ok(standing)
    }

    async fn entries_after(
        &mut self,
        tenant: &TenantId,
        board: &Board,
        span: &Span,
        after: &After,
    ) -> Result<(Vec<Entry>, i64, i64), Refusal> {
        let statement = if board.specialty.is_some() { AFTER_OF_SPECIALTY } else { AFTER };
        let rows: Vec<Row> = on!(self.conn().await?, c => {
            let query = sqlx::query_as(statement)
                .bind(tenant.as_str()).bind(span.period.as_str()).bind(&span.start)
                .bind(i64::from(board.limit)).bind(after.total_score).bind(after.average)
                .bind(Time(after.reached_at)).bind(after.user.as_str());
            let query = match &board.specialty {
                Some(specialty) => query.bind(specialty),
                None => query,
            };
            query.fetch_all(c).await
        })
        .map_err(refusal)?;
        let mut entries: Vec<Entry> = rows.into_iter().map(Row::entry).collect::<Result<_, _>>()?;
        entries.sort_by(|a, b| {
            (b.total_score, b.average, a.reached_at, &a.user).cmp(&(
                a.total_score,
                a.average,
                b.reached_at,
                &b.user,
            ))
        });
        let (above, equal): (i64, i64) = on!(self.conn().await?, c => sqlx::query_as(COUNTS)
            .bind(tenant.as_str()).bind(span.period.as_str()).bind(&span.start)
            .bind(after.total_score).bind(board.specialty.as_deref().unwrap_or_default())
            .fetch_one(c).await)
        .map_err(refusal)?;
        Ok((entries, above, above + equal))
    }

    async fn leaderboard_revisions(&mut self) -> Result<Vec<(TenantId, i64)>, Refusal> {
        let rows: Vec<(String, i64)> =
            on!(self.conn().await?, c => sqlx::query_as(REVISIONS).fetch_all(c).await)
                .map_err(refusal)?;
        rows.into_iter()
            .map(|(tenant, revision)| Ok((TenantId::new(tenant)?, revision)))
            .collect::<Result<_, carillon_domain::ids::InvalidId>>()
            .map_err(Refusal::internal)
    }

    async fn users_of_boards(
        &mut self,
        tenant: &TenantId,
        after: &str,
        limit: u32,
    ) -> Result<Vec<UserId>, Refusal> {
        let rows: Vec<String> = on!(self.conn().await?, c => sqlx::query_scalar(USERS)
            .bind(tenant.as_str()).bind(after).bind(i64::from(limit)).fetch_all(c).await)
        .map_err(refusal)?;
        rows.into_iter().map(|id| UserId::new(id).map_err(Refusal::internal)).collect()
    }

    async fn counted_results(
        &mut self,
        tenant: &TenantId,
        after: &str,
        up_to: &str,
    ) -> Result<Vec<Counted>, Refusal> {
        let rows: Vec<ResultRow> = on!(self.conn().await?, c => sqlx::query_as(COUNTED)
            .bind(tenant.as_str()).bind(after).bind(up_to).fetch_all(c).await)
        .map_err(refusal)?;
        rows.into_iter().map(ResultRow::counted).collect()
    }

    async fn counted_results_of(
        &mut self,
        tenant: &TenantId,
        user: &UserId,
    ) -> Result<Vec<Counted>, Refusal> {
        let rows: Vec<ResultRow> = on!(self.conn().await?, c => sqlx::query_as(COUNTED_OF)
            .bind(tenant.as_str()).bind(user.as_str()).fetch_all(c).await)
        .map_err(refusal)?;
        rows.into_iter().map(ResultRow::counted).collect()
    }

    async fn kept_entries(
        &mut self,
        tenant: &TenantId,
        after: &str,
        up_to: &str,
    ) -> Result<Vec<Folded>, Refusal> {
        let rows: Vec<KeptRow> = on!(self.conn().await?, c => sqlx::query_as(KEPT)
            .bind(tenant.as_str()).bind(after).bind(up_to).fetch_all(c).await)
        .map_err(refusal)?;
        rows.into_iter().map(KeptRow::folded).collect()
    }

    async fn kept_entries_of(
        &mut self,
        tenant: &TenantId,
        user: &UserId,
    ) -> Result<Vec<Folded>, Refusal> {
        let rows: Vec<KeptRow> = on!(self.conn().await?, c => sqlx::query_as(KEPT_OF)
            .bind(tenant.as_str()).bind(user.as_str()).fetch_all(c).await)
        .map_err(refusal)?;
        rows.into_iter().map(KeptRow::folded).collect()
    }
}

#[async_trait]
impl LeaderboardWrites for SqlTx {
    async fn fold_entries(
        &mut self,
        tenant: &TenantId,
        users: &[UserId],
        spans: &[Span; 3],
        now: Timestamp,
    ) -> Result<(), Refusal> {
        for (statement, part) in FOLD.parts(self.kind(), users) {
            let folded = on!(self.conn().await?, c => {
                let mut query = sqlx::query(statement).bind(tenant.as_str()).bind(Time(now));
                for span in spans {
                    query = query.bind(&span.start).bind(Time(span.from)).bind(Time(span.to));
                }
                let query = part.iter().fold(query, |query, user| query.bind(user.as_str()));
                query.execute(c).await.map(|done| done.rows_affected())
            })
            .map_err(refusal)?;
            // Where nothing was folded, nothing may be left.
            if folded < (part.len() * spans.len()) as u64 {
                self.forget_entries(tenant, part, spans).await?;
            }
        }
        self.revise_boards(tenant).await
    }

    async fn replace_entries(
        &mut self,
        tenant: &TenantId,
        gone: &[Folded],
        changed: &[Folded],
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let (gone, changed) = (Self::json(gone)?, Self::json(changed)?);
        let (clear, fill) = if self.is_sqlite() {
            (CLEAR_SQLITE, FILL_SQLITE)
        } else {
            (CLEAR_POSTGRES, FILL_POSTGRES)
        };
        on!(self.conn().await?, c => sqlx::query(clear)
            .bind(tenant.as_str()).bind(&gone).execute(c).await.map(|_| ()))
        .map_err(refusal)?;
        on!(self.conn().await?, c => sqlx::query(fill)
            .bind(tenant.as_str()).bind(Time(now)).bind(&changed).execute(c).await.map(|_| ()))
        .map_err(refusal)?;
        self.revise_boards(tenant).await
    }

    async fn revise_boards(&mut self, tenant: &TenantId) -> Result<(), Refusal> {
        on!(self.conn().await?, c => sqlx::query(REVISED)
            .bind(tenant.as_str()).execute(c).await.map(|_| ()))
        .map_err(refusal)
    }
}
