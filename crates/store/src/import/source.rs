//! The database to take over from. Every column is read as text, a whole number or milliseconds:
//! one odd value must not make a page unreadable.

use std::{str::FromStr as _, time::Duration};

use sqlx::{
    Connection as _, FromRow, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions, PgRow},
};
use tokio::time::timeout;

use super::{ImportError, PAGE};

const PATIENCE: Duration = Duration::from_secs(10);
/// Before the first of a table's ids.
const NIL: &str = "00000000-0000-0000-0000-000000000000";

const TABLES: [(&str, &str); 8] = [
    ("users", "SELECT count(*) FROM users"),
    ("exams", "SELECT count(*) FROM exams"),
    ("questions", "SELECT count(*) FROM questions"),
    ("exam_results", "SELECT count(*) FROM exam_results"),
    ("study_groups", "SELECT count(*) FROM study_groups"),
    ("chat_rooms", "SELECT count(*) FROM chat_rooms"),
    ("chat_messages", "SELECT count(*) FROM chat_messages"),
    ("notifications", "SELECT count(*) FROM notifications"),
];

/// Milliseconds of a time; `infinity` is none.
macro_rules! ms {
    ($column:literal) => {
        concat!(
            "CASE WHEN isfinite(t.",
            $column,
            ") THEN CAST(floor(extract(epoch FROM t.",
            $column,
            ") * 1000) AS bigint) END AS ",
            $column
        )
    };
}

const EXISTS: &str = "SELECT to_regclass($1) IS NOT NULL";
const USERS: &str = concat!(
    "SELECT t.id::text, t.email::text, t.name::text, t.role::text, t.avatar::text,
        t.status::text, t.target_specialty::text, ",
    ms!("created_at"),
    " FROM users t WHERE t.id > $1::uuid ORDER BY t.id LIMIT $2"
);
const EXAMS: &str = concat!(
    "SELECT t.id::text, t.title::text, t.topic::text, t.duration_minutes::float8, ",
    ms!("scheduled_start"),
    ", ",
    ms!("scheduled_end"),
    ", ",
    ms!("created_at"),
    " FROM exams t WHERE t.id > $1::uuid ORDER BY t.id LIMIT $2"
);
const QUESTIONS: &str = "SELECT t.id::text, t.text::text, to_json(t.options)::text AS options,
        t.correct_answer_index::bigint, t.points::float8
    FROM questions t WHERE t.exam_id = $1::uuid ORDER BY t.created_at, t.id";
const LOST_QUESTIONS: &str = "SELECT t.id::text FROM questions t
    LEFT JOIN exams e ON e.id = t.exam_id WHERE e.id IS NULL ORDER BY t.id";
const EXAMS_WITH_RESULTS: &str = "SELECT d.exam_id::text
    FROM (SELECT DISTINCT exam_id FROM exam_results WHERE exam_id IS NOT NULL) d ORDER BY d.exam_id";
const RESULTS: &str = concat!(
    "SELECT t.id::text, t.user_id::text, t.score::bigint, t.total_questions::bigint,
        to_json(t.answers)::text AS answers,
        COALESCE(t.completed_at, 'infinity')::text AS place, ",
    ms!("completed_at"),
    " FROM exam_results t
      WHERE t.exam_id = $1::uuid
        AND (COALESCE(t.completed_at, 'infinity'), t.id) > ($2::timestamptz, $3::uuid)
      ORDER BY COALESCE(t.completed_at, 'infinity'), t.id LIMIT $4"
);
const LOST_RESULTS: &str = "SELECT t.id::text FROM exam_results t
    WHERE t.exam_id IS NULL ORDER BY t.id";
const GROUPS: &str = concat!(
    "SELECT t.id::text, t.name::text, t.description::text, t.room_id::text, t.creator_id::text,
        to_json(t.members)::text AS members, t.max_members::bigint, t.specialty::text,
        t.is_public, ",
    ms!("created_at"),
    " FROM study_groups t WHERE t.id > $1::uuid ORDER BY t.id LIMIT $2"
);
const ROOMS: &str = concat!(
    "SELECT t.id::text, t.name::text, t.type::text AS kind,
        to_json(t.participants)::text AS participants, t.metadata::text, ",
    ms!("created_at"),
    " FROM chat_rooms t WHERE t.id > $1 ORDER BY t.id LIMIT $2"
);
const ROOMS_WITH_MESSAGES: &str = "SELECT d.room_id::text
    FROM (SELECT DISTINCT room_id FROM chat_messages WHERE room_id IS NOT NULL) d
    ORDER BY d.room_id";
const SENDERS: &str = "SELECT d.sender_id::text
    FROM (SELECT DISTINCT sender_id FROM chat_messages
        WHERE room_id = $1 AND sender_id IS NOT NULL) d
    ORDER BY d.sender_id";
const MESSAGES: &str = concat!(
    "SELECT t.id::text, t.sender_id::text, t.sender_name::text, t.sender_avatar::text,
        t.message::text, t.message_type::text, t.file_url::text, t.file_name::text,
        t.file_size::bigint, t.is_read,
        COALESCE(t.created_at, 'infinity')::text AS place, ",
    ms!("created_at"),
    " FROM chat_messages t
      WHERE t.room_id = $1
        AND (COALESCE(t.created_at, 'infinity'), t.id) > ($2::timestamptz, $3::uuid)
      ORDER BY COALESCE(t.created_at, 'infinity'), t.id LIMIT $4"
);
const LOST_MESSAGES: &str = "SELECT t.id::text FROM chat_messages t
    WHERE t.room_id IS NULL ORDER BY t.id";
const NOTIFICATIONS: &str = concat!(
    "SELECT t.id::text, t.user_id::text, t.type::text AS kind, t.title::text, t.message::text,
        t.data::text, t.is_read, t.priority::text, t.action_url::text, ",
    ms!("created_at"),
    " FROM notifications t WHERE t.id > $1::uuid ORDER BY t.id LIMIT $2"
);

#[derive(FromRow)]
pub(super) struct UserRow {
    pub id: String,
    pub email: Option<String>,
    pub name: Option<String>,
    pub role: Option<String>,
    pub avatar: Option<String>,
    pub status: Option<String>,
    pub target_specialty: Option<String>,
    pub created_at: Option<i64>,
}

#[derive(FromRow)]
pub(super) struct ExamRow {
    pub id: String,
    pub title: Option<String>,
    pub topic: Option<String>,
    pub duration_minutes: Option<f64>,
    pub scheduled_start: Option<i64>,
    pub scheduled_end: Option<i64>,
    pub created_at: Option<i64>,
}

#[derive(FromRow)]
pub(super) struct QuestionRow {
    pub id: String,
    pub text: Option<String>,
    /// A JSON array.
    pub options: Option<String>,
    pub correct_answer_index: Option<i64>,
    pub points: Option<f64>,
}

#[derive(FromRow)]
pub(super) struct ResultRow {
    pub id: String,
    pub user_id: Option<String>,
    pub score: Option<i64>,
    pub total_questions: Option<i64>,
    /// A JSON array.
    pub answers: Option<String>,
    pub completed_at: Option<i64>,
    place: String,
}

#[derive(FromRow)]
pub(super) struct GroupRow {
    pub id: String,
    pub name: Option<String>,
    pub description: Option<String>,
    pub room_id: Option<String>,
    pub creator_id: Option<String>,
    /// A JSON array.
    pub members: Option<String>,
    pub max_members: Option<i64>,
    pub specialty: Option<String>,
    pub is_public: Option<bool>,
    pub created_at: Option<i64>,
}

#[derive(FromRow)]
pub(super) struct RoomRow {
    pub id: String,
    pub name: Option<String>,
    pub kind: Option<String>,
    /// A JSON array.
    pub participants: Option<String>,
    pub metadata: Option<String>,
    pub created_at: Option<i64>,
}

#[derive(FromRow)]
pub(super) struct MessageRow {
    pub id: String,
    pub sender_id: Option<String>,
    pub sender_name: Option<String>,
    pub sender_avatar: Option<String>,
    pub message: Option<String>,
    pub message_type: Option<String>,
    pub file_url: Option<String>,
    pub file_name: Option<String>,
    pub file_size: Option<i64>,
    pub is_read: Option<bool>,
    pub created_at: Option<i64>,
    place: String,
}

#[derive(FromRow)]
pub(super) struct NotificationRow {
    pub id: String,
    pub user_id: Option<String>,
    pub kind: Option<String>,
    pub title: Option<String>,
    pub message: Option<String>,
    pub data: Option<String>,
    pub is_read: Option<bool>,
    pub priority: Option<String>,
    pub action_url: Option<String>,
    pub created_at: Option<i64>,
}

/// A place in rows by time and id.
pub(super) struct Place(String, String);

impl Default for Place {
    fn default() -> Self {
        Self("-infinity".into(), NIL.into())
    }
}

impl From<&ResultRow> for Place {
    fn from(row: &ResultRow) -> Self {
        Self(row.place.clone(), row.id.clone())
    }
}

impl From<&MessageRow> for Place {
    fn from(row: &MessageRow) -> Self {
        Self(row.place.clone(), row.id.clone())
    }
}

/// An open source. It is only ever read.
pub struct Source {
    pool: PgPool,
}

fn limit() -> i64 {
    i64::try_from(PAGE).expect("a page is small")
}

impl Source {
    /// Connects, and checks that the tables are there.
    pub async fn open(url: &str) -> Result<Self, ImportError> {
        if !url.starts_with("postgres:") && !url.starts_with("postgresql:") {
            return Err(ImportError::NotPostgres);
        }
        let options = PgConnectOptions::from_str(url).map_err(ImportError::Unreachable)?;
        let options = options.application_name("carillon import");
        // A pool would try for long where nobody answers.
        let first = timeout(PATIENCE, PgConnection::connect_with(&options)).await;
        let first = first.map_err(|_| ImportError::Unreachable(sqlx::Error::PoolTimedOut))?;
        first.map_err(ImportError::Unreachable)?.close().await.map_err(ImportError::Unreachable)?;
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .after_connect(|conn, _| {
                Box::pin(async move {
                    for setting in [
                        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
                        "SET DateStyle = 'ISO'",
                        "SET TimeZone = 'UTC'",
                    ] {
                        sqlx::query(setting).execute(&mut *conn).await?;
                    }
                    Ok(())
                })
            })
            .connect_with(options)
            .await
            .map_err(ImportError::Unreachable)?;
        for (table, _) in TABLES {
            let is_there: bool = sqlx::query_scalar(EXISTS)
                .bind(table)
                .fetch_one(&pool)
                .await
                .map_err(ImportError::Unreachable)?;
            if !is_there {
                return Err(ImportError::NoTable(table));
            }
        }
        Ok(Self { pool })
    }

    pub(super) async fn close(&self) {
        self.pool.close().await;
    }

    pub(super) async fn count(&self, table: &'static str) -> Result<u64, ImportError> {
        let statement = TABLES.iter().find(|(name, _)| *name == table);
        let (_, statement) = statement.ok_or(ImportError::NoTable(table))?;
        let count: i64 = sqlx::query_scalar(*statement)
            .fetch_one(&self.pool)
            .await
            .map_err(|error| ImportError::Unreadable(table, error))?;
        Ok(u64::try_from(count).unwrap_or_default())
    }

    /// A page of rows after an id.
    async fn page<T>(
        &self,
        table: &'static str,
        statement: &'static str,
        after: &str,
    ) -> Result<Vec<T>, ImportError>
    where
        T: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        sqlx::query_as(statement)
            .bind(after)
            .bind(limit())
            .fetch_all(&self.pool)
            .await
            .map_err(|error| ImportError::Unreadable(table, error))
    }

    /// A page of rows of one parent, after a place.
    async fn page_of<T>(
        &self,
        table: &'static str,
        statement: &'static str,
        parent: &str,
        after: &Place,
    ) -> Result<Vec<T>, ImportError>
    where
        T: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        sqlx::query_as(statement)
            .bind(parent)
            .bind(&after.0)
            .bind(&after.1)
            .bind(limit())
            .fetch_all(&self.pool)
            .await
            .map_err(|error| ImportError::Unreadable(table, error))
    }

    async fn texts(
        &self,
        table: &'static str,
        statement: &'static str,
    ) -> Result<Vec<String>, ImportError> {
        sqlx::query_scalar(statement)
            .fetch_all(&self.pool)
            .await
            .map_err(|error| ImportError::Unreadable(table, error))
    }

    pub(super) async fn users(&self, after: Option<&UserRow>) -> Result<Vec<UserRow>, ImportError> {
        self.page("users", USERS, after.map_or(NIL, |row| &row.id)).await
    }

    pub(super) async fn exams(&self, after: Option<&ExamRow>) -> Result<Vec<ExamRow>, ImportError> {
        self.page("exams", EXAMS, after.map_or(NIL, |row| &row.id)).await
    }

    /// All questions of an exam, in its order.
    pub(super) async fn questions(&self, exam: &str) -> Result<Vec<QuestionRow>, ImportError> {
        sqlx::query_as(QUESTIONS)
            .bind(exam)
            .fetch_all(&self.pool)
            .await
            .map_err(|error| ImportError::Unreadable("questions", error))
    }

    /// Questions of no exam.
    pub(super) async fn lost_questions(&self) -> Result<Vec<String>, ImportError> {
        self.texts("questions", LOST_QUESTIONS).await
    }

    pub(super) async fn exams_with_results(&self) -> Result<Vec<String>, ImportError> {
        self.texts("exam_results", EXAMS_WITH_RESULTS).await
    }

    pub(super) async fn results(
        &self,
        exam: &str,
        after: &Place,
    ) -> Result<Vec<ResultRow>, ImportError> {
        self.page_of("exam_results", RESULTS, exam, after).await
    }

    /// Results of no exam.
    pub(super) async fn lost_results(&self) -> Result<Vec<String>, ImportError> {
        self.texts("exam_results", LOST_RESULTS).await
    }

    pub(super) async fn groups(
        &self,
        after: Option<&GroupRow>,
    ) -> Result<Vec<GroupRow>, ImportError> {
        self.page("study_groups", GROUPS, after.map_or(NIL, |row| &row.id)).await
    }

    pub(super) async fn rooms(&self, after: Option<&RoomRow>) -> Result<Vec<RoomRow>, ImportError> {
        self.page("chat_rooms", ROOMS, after.map_or("", |row| &row.id)).await
    }

    pub(super) async fn rooms_with_messages(&self) -> Result<Vec<String>, ImportError> {
        self.texts("chat_messages", ROOMS_WITH_MESSAGES).await
    }

    /// Who has said something in a room.
    pub(super) async fn senders(&self, room: &str) -> Result<Vec<String>, ImportError> {
        sqlx::query_scalar(SENDERS)
            .bind(room)
            .fetch_all(&self.pool)
            .await
            .map_err(|error| ImportError::Unreadable("chat_messages", error))
    }

    pub(super) async fn messages(
        &self,
        room: &str,
        after: &Place,
    ) -> Result<Vec<MessageRow>, ImportError> {
        self.page_of("chat_messages", MESSAGES, room, after).await
    }

    /// Messages of no room.
    pub(super) async fn lost_messages(&self) -> Result<Vec<String>, ImportError> {
        self.texts("chat_messages", LOST_MESSAGES).await
    }

    pub(super) async fn notifications(
        &self,
        after: Option<&NotificationRow>,
    ) -> Result<Vec<NotificationRow>, ImportError> {
        self.page("notifications", NOTIFICATIONS, after.map_or(NIL, |row| &row.id)).await
    }
}

/// The ids of a JSON array, once each, and how many of its elements were none.
pub(super) fn ids(json: Option<&str>) -> (Vec<String>, usize) {
    let all: Vec<Option<String>> =
        json.and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default();
    let (given, mut ids) = (all.len(), Vec::<String>::new());
    for id in all.into_iter().flatten() {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    let missing = given - ids.len();
    (ids, missing)
}
