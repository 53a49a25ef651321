//! The audit log, as those who have the database itself find it.

use sqlx::{Connection as _, Executor as _};

use crate::world::World;

/// Whatever the statement, and whoever says it.
#[tokio::test]
async fn the_audit_log_only_grows() {
    for world in World::each().await {
        world
            .sql(
                "INSERT INTO audit_log (tenant_id, at, actor, action, subject, details)
                    VALUES ('t', 0, 'ana', 'user.put', 'ben', '{}')",
                "INSERT INTO audit_log (tenant_id, at, actor, action, subject, details)
                    VALUES ('t', now(), 'ana', 'user.put', 'ben', '{}')",
            )
            .await;
        let of_sqlite = [
            "UPDATE audit_log SET actor = 'eve'",
            "DELETE FROM audit_log",
            "REPLACE INTO audit_log SELECT id, tenant_id, at, 'eve', action, subject, details
                FROM audit_log",
        ];
        let of_postgres =
            ["UPDATE audit_log SET actor = 'eve'", "DELETE FROM audit_log", "TRUNCATE audit_log"];
        for (sqlite, postgres) in of_sqlite.into_iter().zip(of_postgres) {
            let refused = if world.is_sqlite() {
                let mut conn = sqlx::SqliteConnection::connect(&world.url).await.unwrap();
                conn.execute(sqlite).await.map(|_| ())
            } else {
                let mut conn = sqlx::PgConnection::connect(&world.url).await.unwrap();
                conn.execute(postgres).await.map(|_| ())
            };
            let refused = refused.unwrap_err().to_string();
            assert!(refused.contains("append only"), "{refused}");
        }
    }
}
