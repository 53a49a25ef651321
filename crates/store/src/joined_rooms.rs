//! The rooms of sockets, kept for those who come back.

use async_trait::async_trait;
use carillon_domain::{
    Refusal, RoomId, TenantId, Timestamp, UserId,
    chat::returning::{Change, MAX_ROOMS, Noted, SIBLINGS, forgotten_before},
    ports::{ReturnReads, ReturnWrites},
    presence::NOTED_EVERY,
};

use crate::{
    error::refusal,
    rows::Rows,
    time::Time,
    tx::{SqlTx, on},
};

static JOIN: Rows = Rows::new(
    "INSERT INTO joined_rooms
        (node_id, tenant_id, connection_id, room_id, user_id, namespace, joined_at) VALUES",
    1,
    6,
    " ON CONFLICT DO NOTHING",
);
const LEAVE: &str = "DELETE FROM joined_rooms
    WHERE tenant_id = $1 AND connection_id = $2 AND room_id = $3";
const LOSE: &str = "UPDATE joined_rooms SET lost_at = $3
    WHERE tenant_id = $1 AND connection_id = $2 AND lost_at IS NULL";
const GO: &str = "DELETE FROM joined_rooms WHERE tenant_id = $1
    AND (connection_id = $2 OR user_id = $3 AND lost_at IS NOT NULL)";
const LOSE_OF_OTHERS_SQLITE: &str = "UPDATE joined_rooms SET lost_at = COALESCE(
        (SELECT min(o.last_seen + $3, $2) FROM online_users o
         WHERE o.tenant_id = joined_rooms.tenant_id AND o.user_id = joined_rooms.user_id), $2)
    WHERE lost_at IS NULL AND node_id <> $1";
const LOSE_OF_OTHERS_POSTGRES: &str = "UPDATE joined_rooms SET lost_at = COALESCE(
        (SELECT least(o.last_seen + $3 * interval '1 millisecond', $2) FROM online_users o
         WHERE o.tenant_id = joined_rooms.tenant_id AND o.user_id = joined_rooms.user_id), $2)
    WHERE lost_at IS NULL AND node_id <> $1";
// Of the newest the oldest first: the room joined last is shown last.
const LOST: &str = "SELECT room_id FROM (SELECT room_id, max(joined_at) AS joined_at
        FROM joined_rooms
        WHERE tenant_id = $1 AND user_id = $2 AND namespace = $3 AND lost_at >= $4
          AND (returned_at IS NULL OR returned_at >= $5)
        GROUP BY room_id ORDER BY 2 DESC LIMIT $6) newest
    ORDER BY joined_at, room_id";
const RETURN: &str = "UPDATE joined_rooms SET returned_at = $4
    WHERE tenant_id = $1 AND user_id = $2 AND namespace = $3
      AND lost_at IS NOT NULL AND returned_at IS NULL";
const FORGET: &str = "DELETE FROM joined_rooms WHERE (tenant_id, connection_id, room_id) IN
    (SELECT tenant_id, connection_id, room_id FROM joined_rooms
     WHERE lost_at < $1 ORDER BY lost_at LIMIT $2)";

#[async_trait]
impl ReturnReads for SqlTx {
    async fn lost_rooms(
        &mut self,
        tenant: &TenantId,
        user: &UserId,
        namespace: &str,
        now: Timestamp,
    ) -> Result<Vec<RoomId>, Refusal> {
        let rows: Vec<String> = on!(self.conn().await?, c => sqlx::query_scalar(LOST)
            .bind(tenant.as_str()).bind(user.as_str()).bind(namespace)
            .bind(Time(forgotten_before(now))).bind(Time(now.before(SIBLINGS)))
            .bind(i64::from(MAX_ROOMS)).fetch_all(c).await)
        .map_err(refusal)?;
        rows.into_iter().map(|id| RoomId::new(id).map_err(Refusal::internal)).collect()
    }
}

#[async_trait]
impl ReturnWrites for SqlTx {
    async fn note_rooms(&mut self, node: &str, changes: &[Noted]) -> Result<(), Refusal> {
        let is_join = |noted: &Noted| matches!(noted.change, Change::Joined { .. });
        // What was joined in a row is written in one statement.
        for run in changes.chunk_by(|one, next| is_join(one) && is_join(next)) {
            if is_join(&run[0]) {
                self.note_joined(node, run).await?;
                continue;
            }
            for Noted { tenant, connection, change } in run {
                let statement = match change {
                    Change::Left(_) => LEAVE,
                    Change::Lost(_) => LOSE,
                    Change::Gone(_) => GO,
                    Change::Joined { .. } => continue,
                };
                on!(self.conn().await?, c => {
                    let query =
                        sqlx::query(statement).bind(tenant.as_str()).bind(connection.as_str());
                    let query = match change {
                        Change::Left(room) => query.bind(room.as_str()),
                        Change::Lost(at) => query.bind(Time(*at)),
                        Change::Gone(user) => query.bind(user.as_str()),
                        Change::Joined { .. } => query,
                    };
                    query.execute(c).await.map(|_| ())
                })
                .map_err(refusal)?;
            }
        }
        Ok(())
    }

    async fn lose_rooms_of_others(&mut self, node: &str, now: Timestamp) -> Result<(), Refusal> {
        let lose = if self.is_sqlite() { LOSE_OF_OTHERS_SQLITE } else { LOSE_OF_OTHERS_POSTGRES };
        let noted_every = i64::try_from(NOTED_EVERY.as_millis()).unwrap_or(i64::MAX);
        on!(self.conn().await?, c => sqlx::query(lose)
            .bind(node).bind(Time(now)).bind(noted_every).execute(c).await.map(|_| ()))
        .map_err(refusal)
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
        on!(self.conn().await?, c => sqlx::query(FORGET)
            .bind(Time(before)).bind(i64::from(limit))
            .execute(c).await.map(|done| done.rows_affected()))
        .map_err(refusal)
    }
}

impl SqlTx {
    async fn note_joined(&mut self, node: &str, joined: &[Noted]) -> Result<(), Refusal> {
        for (statement, part) in JOIN.parts(self.kind(), joined) {
            on!(self.conn().await?, c => {
                let mut query = sqlx::query(statement).bind(node);
                for Noted { tenant, connection, change } in part {
                    let Change::Joined { user, namespace, room, at } = change else { continue };
                    query = query
                        .bind(tenant.as_str()).bind(connection.as_str()).bind(room.as_str())
                        .bind(user.as_str()).bind(*namespace).bind(Time(*at));
                }
                query.execute(c).await.map(|_| ())
            })
            .map_err(refusal)?;
        }
        Ok(())
    }
}
