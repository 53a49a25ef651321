//! From a database's failure to an answer.

use carillon_domain::Refusal;

/// SQLite: BUSY, LOCKED, NOMEM, READONLY, IOERR, FULL, CANTOPEN; primary result codes.
const SQLITE_AWAY: [i32; 7] = [5, 6, 7, 8, 10, 13, 14];
/// PostgreSQL: connection exceptions, transactions in which something else has failed, insufficient
/// resources, operator intervention, and transactions to be tried again.
const POSTGRES_AWAY: [&str; 6] = ["08", "25", "53", "57", "40", "55"];

/// What passes by itself is `UNAVAILABLE`; the rest is a defect of ours.
pub(crate) fn refusal(error: sqlx::Error) -> Refusal {
    let is_away = match &error {
        sqlx::Error::Database(failure) => {
            let code = failure.code().unwrap_or_default();
            if failure.try_downcast_ref::<sqlx::sqlite::SqliteError>().is_some() {
                // Extended codes carry the primary code in the low byte.
                code.parse::<i32>().is_ok_and(|code| SQLITE_AWAY.contains(&(code & 0xff)))
            } else {
                POSTGRES_AWAY.iter().any(|class| code.starts_with(class))
            }
        }
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        _ => false,
    };
    if is_away { Refusal::unavailable(error) } else { Refusal::internal(error) }
}
