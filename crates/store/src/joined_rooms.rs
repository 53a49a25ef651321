//! The sockets and their rooms, kept for those who come back.

use std::collections::HashMap;

use async_trait::async_trait;
use carillon_domain::{
    ConnectionId, Offset, Refusal, RoomId, TenantId, Timestamp, UserId,
    chat::returning::{Change, MAX_ROOMS, Noted, SIBLINGS, forgotten_before},
    ids::ExamId,
    ports::{ReturnReads, ReturnWrites},
    presence::NOTED_EVERY,
    recovery::{Claim, Session},
    session::Kept,
};

use crate::{
    error::refusal,
    rows::Rows,
    time::Time,
    tx::{SqlTx, on},
};

static JOIN: Rows = Rows::new(
    "INSERT INTO joined_rooms
        (node_id, tenant_id, connection_id, room_id, user_id, namespace, joined_at, shown_offset)
     VALUES",
    1,
    7,
    // Shown again, it may not have arrived: what counts is what was shown first.
    " ON CONFLICT DO NOTHING",
);
static COME: Rows = Rows::new(
    "INSERT INTO recovery_sessions
        (node_id, tenant_id, connection_id, user_id, namespace, pid, since) VALUES",
    1,
    6,
    " ON CONFLICT DO NOTHING",
);
const CLOSE: &str = "DELETE FROM recovery_sessions WHERE tenant_id = $1 AND connection_id = $2";
static LOSE_SESSIONS: Rows = Rows::list(
    "UPDATE recovery_sessions SET lost_at = $3
     WHERE tenant_id = $2 AND lost_at IS NULL AND node_id = $1 AND connection_id IN (",
    3,
    ")",
);
static SESSIONS: Rows = Rows::new(
    "SELECT pid, column2 AS heard, tenant_id, user_id, namespace, connection_id, node_id, generation, since,
        lost_at,
        COALESCE((SELECT head FROM lanes WHERE lanes.tenant_id = recovery_sessions.tenant_id), 0)
            AS head,
        EXISTS (SELECT 1 FROM outbox WHERE outbox.tenant_id = recovery_sessions.tenant_id
            AND position = CASE WHEN since > column2 THEN since ELSE column2 END + 1)
            AS is_next_kept
    FROM (VALUES",
    0,
    2,
    ") claims JOIN recovery_sessions ON pid = column1",
);
const TAKE: &str = "UPDATE recovery_sessions
    SET generation = generation + 1, node_id = $3, lost_at = NULL
    WHERE pid = $1 AND generation = $2";
const ROOMS: &str = "SELECT j.room_id, j.shown_offset FROM joined_rooms j
    JOIN chat_members m
      ON m.tenant_id = j.tenant_id AND m.room_id = j.room_id AND m.user_id = j.user_id
    WHERE j.tenant_id = $1 AND j.connection_id = $2 AND j.namespace = $3 AND j.user_id = $4
    ORDER BY j.joined_at, j.room_id";
/// Both in one, for PostgreSQL: one row without a room where there are none.
const TAKE_AND_ROOMS: &str = "WITH taken AS (
        UPDATE recovery_sessions SET generation = generation + 1, node_id = $3, lost_at = NULL
        WHERE pid = $1 AND generation = $2
        RETURNING tenant_id, connection_id, namespace, user_id)
    SELECT j.room_id, j.shown_offset FROM taken t LEFT JOIN (joined_rooms j
        JOIN chat_members m
          ON m.tenant_id = j.tenant_id AND m.room_id = j.room_id AND m.user_id = j.user_id)
      ON j.tenant_id = t.tenant_id AND j.connection_id = t.connection_id
        AND j.namespace = t.namespace AND j.user_id = t.user_id
    ORDER BY j.joined_at, j.room_id";
// The loss of an older socket may have been written since it was taken.
static GO_ON: Rows = Rows::list(
    "UPDATE recovery_sessions SET lost_at = NULL
     WHERE tenant_id = $2 AND lost_at IS NOT NULL AND node_id = $1 AND connection_id IN (",
    2,
    ")",
);
static GO_ON_IN_ROOMS: Rows = Rows::list(
    "UPDATE joined_rooms SET node_id = $1, lost_at = NULL, returned_at = NULL
     WHERE tenant_id = $2 AND connection_id IN (",
    2,
    ")",
);
const FORGET_SESSIONS: &str = "DELETE FROM recovery_sessions WHERE pid IN
    (SELECT pid FROM recovery_sessions WHERE lost_at < $1 ORDER BY lost_at LIMIT $2)";
const LEAVE: &str = "DELETE FROM joined_rooms
    WHERE tenant_id = $1 AND connection_id = $2 AND room_id = $3";
static LOSE: Rows = Rows::list(
    "UPDATE joined_rooms SET lost_at = $3
     WHERE tenant_id = $2 AND lost_at IS NULL AND node_id = $1 AND connection_id IN (",
    3,
    ")",
);
pub(crate) const GO: &str = "DELETE FROM joined_rooms WHERE tenant_id = $1
    AND (connection_id = $2 OR user_id = $3 AND lost_at IS NOT NULL)";
/// What of earlier runs is lost, in `joined_rooms` or `recovery_sessions`.
macro_rules! lose_of_others_sqlite {
    ($table:literal) => {
        concat!(
            "UPDATE ",
            $table,
            " SET lost_at = COALESCE((SELECT min(o.last_seen + $3, $2)
                FROM online_users o
                WHERE o.tenant_id = ",
            $table,
            ".tenant_id AND o.user_id = ",
            $table,
            ".user_id), $2)
             WHERE lost_at IS NULL AND node_id <> $1"
        )
    };
}
/// The same, of runs that are not there: one that is holds a lock of its name (`stay.rs`). The few
/// names are stepped through in the index; of several nodes that look at once, each takes what the
/// others have not.
macro_rules! lose_of_others_postgres {
    ($table:literal) => {
        concat!(
            "WITH RECURSIVE runs (node_id) AS (
                (SELECT node_id FROM ",
            $table,
            " WHERE lost_at IS NULL ORDER BY node_id LIMIT 1)
                UNION ALL SELECT (SELECT t.node_id FROM ",
            $table,
            " t
                    WHERE t.lost_at IS NULL AND t.node_id > runs.node_id
                    ORDER BY t.node_id LIMIT 1)
                FROM runs WHERE runs.node_id IS NOT NULL)
             UPDATE ",
            $table,
            " SET lost_at = COALESCE(
                (SELECT least(o.last_seen + $3 * interval '1 millisecond', $2)
                 FROM online_users o
                 WHERE o.tenant_id = ",
            $table,
            ".tenant_id AND o.user_id = ",
            $table,
            ".user_id), $2)
             WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM ",
            $table,
            " WHERE lost_at IS NULL AND node_id = ANY (ARRAY(
                    SELECT node_id FROM runs WHERE node_id <> $1
                      AND (hashtext(node_id)::bigint & 4294967295)::oid NOT IN (
                        SELECT objid FROM pg_locks
                        WHERE locktype = 'advisory' AND granted AND objsubid = 2
                          AND classid = 1667330668 AND database =
                            (SELECT oid FROM pg_database WHERE datname = current_database()))))
                FOR UPDATE SKIP LOCKED))"
        )
    };
}
const LOSE_OF_OTHERS_SQLITE: [&str; 2] =
    [lose_of_others_sqlite!("joined_rooms"), lose_of_others_sqlite!("recovery_sessions")];
const LOSE_OF_OTHERS_POSTGRES: [&str; 2] =
    [lose_of_others_postgres!("joined_rooms"), lose_of_others_postgres!("recovery_sessions")];
const ROOM: i32 = 1;
const EXAM: i32 = 2;
/// Every socket that comes asks for all of it. Of the newest rooms the oldest first: the one joined
/// last is shown last.
pub(crate) const KEPT: &str = "SELECT kind, id FROM (
        SELECT 1 AS kind, room_id AS id, joined_at FROM (
            SELECT room_id, max(joined_at) AS joined_at FROM joined_rooms
            WHERE tenant_id = $1 AND user_id = $2 AND namespace = $3 AND lost_at >= $4
              AND (returned_at IS NULL OR returned_at >= $5)
            GROUP BY room_id ORDER BY 2 DESC LIMIT $6) newest
        UNION ALL SELECT 2, exam_id, NULL FROM exam_sessions
            WHERE tenant_id = $1 AND user_id = $2 AND status <> 'COMPLETED' AND left_at IS NULL
        UNION ALL SELECT 3, '', NULL WHERE EXISTS (
            SELECT 1 FROM notifications
            WHERE tenant_id = $1 AND user_id = $2 AND is_read = FALSE AND delivered_at IS NULL
              AND (expires_at IS NULL OR expires_at > $7))) kept
    ORDER BY kind, joined_at, id";
pub(crate) const RETURN: &str = "UPDATE joined_rooms SET returned_at = $4
    WHERE tenant_id = $1 AND user_id = $2 AND namespace = $3
      AND lost_at IS NOT NULL AND returned_at IS NULL";
const FORGET: &str = "DELETE FROM joined_rooms WHERE (tenant_id, connection_id, room_id) IN
    (SELECT tenant_id, connection_id, room_id FROM joined_rooms
     WHERE lost_at < $1 ORDER BY lost_at LIMIT $2)";

#[async_trait]
impl ReturnReads for SqlTx {
    async fn kept(
        &mut self,
        tenant: &TenantId,
        user: &UserId,
        namespace: &str,
        now: Timestamp,
    ) -> Result<Kept, Refusal> {
        let rows: Vec<(i32, String)> = on!(self.conn().await?, c => sqlx::query_as(KEPT)
            .bind(tenant.as_str()).bind(user.as_str()).bind(namespace)
            .bind(Time(forgotten_before(now))).bind(Time(now.before(SIBLINGS)))
            .bind(i64::from(MAX_ROOMS)).bind(Time(now)).fetch_all(c).await)
        .map_err(refusal)?;
        let mut kept = Kept::default();
        for (kind, id) in rows {
            match kind {
                ROOM => kept.rooms.push(RoomId::new(id).map_err(Refusal::internal)?),
                EXAM => kept.exams.push(ExamId::new(id).map_err(Refusal::internal)?),
                _ => kept.has_undelivered = true,
            }
        }
        Ok(kept)
    }

    async fn sessions(&mut self, claims: &[Claim]) -> Result<Vec<Option<Session>>, Refusal> {
        let mut found = HashMap::new();
        for (statement, part) in SESSIONS.parts(self.kind(), claims) {
            let rows: Vec<SessionRow> = on!(self.conn().await?, c => {
                let mut query = sqlx::query_as(statement);
                for claim in part {
                    query = query.bind(&claim.pid).bind(heard(claim));
                }
                query.fetch_all(c).await
            })
            .map_err(refusal)?;
            for row in rows {
                found.insert((row.pid.clone(), row.heard), row);
            }
        }
        let of = |claim: &Claim| found.get(&(claim.pid.clone(), heard(claim)));
        claims.iter().map(|claim| of(claim).map(SessionRow::session).transpose()).collect()
    }
}

#[async_trait]
impl ReturnWrites for SqlTx {
    async fn note_rooms(&mut self, node: &str, changes: &[Noted]) -> Result<(), Refusal> {
        let kind = |noted: &Noted| std::mem::discriminant(&noted.change);
        // What is of a kind in a row is written in one statement.
        for run in changes.chunk_by(|one, next| kind(one) == kind(next)) {
            match run[0].change {
                Change::Came { .. } => self.note_come(node, run).await?,
                Change::Joined { .. } => self.note_joined(node, run).await?,
                Change::WentOn => {
                    self.note_many(&GO_ON, node, None, run).await?;
                    self.note_many(&GO_ON_IN_ROOMS, node, None, run).await?;
                }
                Change::Lost(_) => {
                    self.note_many(&LOSE, node, newest_loss(run), run).await?;
                    self.note_many(&LOSE_SESSIONS, node, newest_loss(run), run).await?;
                }
                Change::Left(_) | Change::Closed | Change::Gone(_) => {
                    for noted in run {
                        self.note_one(noted).await?;
                    }
                }
            }
        }
        Ok(())
    }

    async fn lose_rooms_of_others(&mut self, node: &str, now: Timestamp) -> Result<(), Refusal> {
        let both = if self.is_sqlite() { LOSE_OF_OTHERS_SQLITE } else { LOSE_OF_OTHERS_POSTGRES };
        let noted_every = i64::try_from(NOTED_EVERY.as_millis()).unwrap_or(i64::MAX);
        for lose in both {
            on!(self.conn().await?, c => sqlx::query(lose)
                .bind(node).bind(Time(now)).bind(noted_every).execute(c).await.map(|_| ()))
            .map_err(refusal)?;
        }
        Ok(())
    }

    async fn note_return(
        &mut self,
        tenant: &TenantId,
        user: &UserId,
        namespace: &str,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        on!(self.conn().await?, c => sqlx::query(RETURN)
            .bind(tenant.as_str()).bind(user.as_str()).bind(namespace).bind(Time(now))
            .execute(c).await.map(|_| ()))
        .map_err(refusal)
    }

    async fn forget_rooms(&mut self, before: Timestamp, limit: u32) -> Result<u64, Refusal> {
        let sessions = on!(self.conn().await?, c => sqlx::query(FORGET_SESSIONS)
            .bind(Time(before)).bind(i64::from(limit))
            .execute(c).await.map(|done| done.rows_affected()))
        .map_err(refusal)?;
        let rooms = on!(self.conn().await?, c => sqlx::query(FORGET)
            .bind(Time(before)).bind(i64::from(limit))
            .execute(c).await.map(|done| done.rows_affected()))
        .map_err(refusal)?;
        Ok(rooms.max(sessions))
    }
}

/// What of a claim is compared. A client can say anything; there is one after each of these.
fn heard(claim: &Claim) -> i64 {
    claim.offset.map_or(0, |offset| offset.0.min(i64::MAX - 1))
}

/// A session, and the claim that found it.
#[derive(sqlx::FromRow)]
struct SessionRow {
    pid: String,
    heard: i64,
    tenant_id: String,
    user_id: String,
    namespace: String,
    connection_id: String,
    node_id: String,
    generation: i64,
    since: i64,
    lost_at: Option<Time>,
    head: i64,
    is_next_kept: bool,
}

impl SessionRow {
    fn session(&self) -> Result<Session, Refusal> {
        Ok(Session {
            tenant: TenantId::new(&*self.tenant_id).map_err(Refusal::internal)?,
            user: UserId::new(&*self.user_id).map_err(Refusal::internal)?,
            namespace: self.namespace.clone(),
            connection: ConnectionId::new(&*self.connection_id).map_err(Refusal::internal)?,
            node: self.node_id.clone(),
            generation: self.generation,
            since: Offset(self.since),
            lost_at: self.lost_at.as_ref().map(|Time(at)| *at),
            head: Offset(self.head),
            is_next_kept: self.is_next_kept,
        })
    }
}

/// They are noted ten times a second: one time will do for all that are noted together.
fn newest_loss(run: &[Noted]) -> Option<Timestamp> {
    let lost_at = |noted: &Noted| match noted.change {
        Change::Lost(at) => Some(at),
        _ => None,
    };
    run.iter().filter_map(lost_at).max()
}

impl SqlTx {
    /// A compare-and-set of the session's generation; the rooms of the session where it was.
    pub(crate) async fn take_session(
        &mut self,
        of: &Session,
        claim: &Claim,
        node: &str,
    ) -> Result<Option<Vec<(RoomId, Offset)>>, Refusal> {
        let rooms: Vec<(Option<String>, Option<i64>)> = if self.is_sqlite() {
            let taken = on!(self.conn().await?, c => sqlx::query(TAKE)
                .bind(&claim.pid).bind(of.generation).bind(node).execute(c).await
                .map(|done| done.rows_affected()))
            .map_err(refusal)?;
            if taken == 0 {
                return Ok(None);
            }
            on!(self.conn().await?, c => sqlx::query_as(ROOMS)
                .bind(of.tenant.as_str()).bind(of.connection.as_str())
                .bind(&of.namespace).bind(of.user.as_str()).fetch_all(c).await)
            .map_err(refusal)?
        } else {
            let rows: Vec<_> = on!(self.conn().await?, c => sqlx::query_as(TAKE_AND_ROOMS)
                .bind(&claim.pid).bind(of.generation).bind(node).fetch_all(c).await)
            .map_err(refusal)?;
            if rows.is_empty() {
                return Ok(None);
            }
            rows
        };
        let shown =
            |(room, shown)| Ok((RoomId::new(room).map_err(Refusal::internal)?, Offset(shown)));
        let rooms = rooms.into_iter().filter_map(|(room, shown)| room.zip(shown)).map(shown);
        rooms.collect::<Result<_, _>>().map(Some)
    }

    /// Writes of many sockets what is of one kind, by `(node, tenant, at)` and their connections.
    async fn note_many(
        &mut self,
        rows: &'static Rows,
        node: &str,
        at: Option<Timestamp>,
        run: &[Noted],
    ) -> Result<(), Refusal> {
        for of_tenant in run.chunk_by(|one, next| one.tenant == next.tenant) {
            for (statement, part) in rows.parts(self.kind(), of_tenant) {
                on!(self.conn().await?, c => {
                    let mut query = sqlx::query(statement).bind(node).bind(part[0].tenant.as_str());
                    if let Some(at) = at {
                        query = query.bind(Time(at));
                    }
                    for noted in part {
                        query = query.bind(noted.connection.as_str());
                    }
                    query.execute(c).await.map(|_| ())
                })
                .map_err(refusal)?;
            }
        }
        Ok(())
    }

    async fn note_one(&mut self, noted: &Noted) -> Result<(), Refusal> {
        let Noted { tenant, connection, change } = noted;
        let statements: &[&'static str] = match change {
            Change::Left(_) => &[LEAVE],
            Change::Gone(_) => &[GO, CLOSE],
            Change::Closed => &[CLOSE],
            // Of those there are many at a time.
            Change::Came { .. } | Change::Joined { .. } | Change::WentOn | Change::Lost(_) => &[],
        };
        for statement in statements {
            on!(self.conn().await?, c => {
                let query =
                    sqlx::query(*statement).bind(tenant.as_str()).bind(connection.as_str());
                let query = match change {
                    Change::Left(room) => query.bind(room.as_str()),
                    Change::Gone(user) if *statement == GO => query.bind(user.as_str()),
                    _ => query,
                };
                query.execute(c).await.map(|_| ())
            })
            .map_err(refusal)?;
        }
        Ok(())
    }

    async fn note_come(&mut self, node: &str, come: &[Noted]) -> Result<(), Refusal> {
        for (statement, part) in COME.parts(self.kind(), come) {
            on!(self.conn().await?, c => {
                let mut query = sqlx::query(statement).bind(node);
                for Noted { tenant, connection, change } in part {
                    let Change::Came { user, namespace, pid, since } = change else { continue };
                    query = query
                        .bind(tenant.as_str()).bind(connection.as_str()).bind(user.as_str())
                        .bind(*namespace).bind(pid.as_str()).bind(since.0);
                }
                query.execute(c).await.map(|_| ())
            })
            .map_err(refusal)?;
        }
        Ok(())
    }

    async fn note_joined(&mut self, node: &str, joined: &[Noted]) -> Result<(), Refusal> {
        for (statement, part) in JOIN.parts(self.kind(), joined) {
            on!(self.conn().await?, c => {
                let mut query = sqlx::query(statement).bind(node);
                for Noted { tenant, connection, change } in part {
                    let Change::Joined { user, namespace, room, at, shown } = change else {
                        continue;
                    };
                    query = query
                        .bind(tenant.as_str()).bind(connection.as_str()).bind(room.as_str())
                        .bind(user.as_str()).bind(*namespace).bind(Time(*at)).bind(shown.0);
                }
                query.execute(c).await.map(|_| ())
            })
            .map_err(refusal)?;
        }
        Ok(())
    }
}
