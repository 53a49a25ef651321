//! One notification for many.

use super::{Cx, Draft, Refusal, Role, UserId};

/// For whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Audience {
    /// These; who is unknown or suspended is passed over.
    Users(Vec<UserId>),
    /// Everybody who has one of these roles.
    Roles(Vec<Role>),
    /// Everybody of the tenant.
    Everybody,
}

/// One notification for many, before it is stored.
///
/// Its rows are made by the database, so their ids are, too: the first 24 characters of a `UUIDv7`
/// that is the batch's own, and in place of its last twelve digits a number that begins at those
/// and grows from row to row. Two rows of a batch differ in the number, two batches in the rest;
/// every id is a `UUIDv7` of the batch's time, and no random generator of a database is asked.
#[derive(Clone, Debug)]
pub struct Batch {
    pub draft: Draft,
    /// What all ids begin with.
    pub prefix: String,
    /// The first row's number is one more; modulo 2^48.
    pub number: i64,
}

impl Batch {
    fn new(draft: Draft, id: &str) -> Self {
        let (prefix, digits) = id.split_at(id.rfind('-').map_or(0, |dash| dash + 1));
        let number = i64::from_str_radix(digits, 16).unwrap_or(0);
        Self { draft, prefix: prefix.to_owned(), number }
    }
}

/// Stores a notification for everybody of an audience who is not suspended, and returns for how
/// many. Who has one with the draft's dedupe key already gets no second; a collapse key is of no
/// use here and ignored.
///
/// One statement: ten thousand rows take about as long as ten thousand rows of anything. Nothing
/// is sent by it. The rows are delivered by the job that delivers whatever was missed, a few users
/// at a time, so the answer to whoever asked means "stored for so many", not "shown". It needs no
/// lane: give it a [`Cx`] of [`Scope::Rows`](crate::contract::Scope::Rows), and commands of the
/// tenant do not wait for it on `PostgreSQL`. The draft's texts are stored as they are: the caller
/// has checked them.
pub async fn broadcast(cx: &mut Cx<'_>, audience: &Audience, draft: Draft) -> Result<u64, Refusal> {
    let (tenant, now) = (cx.caller.tenant.clone(), cx.now);
    let batch = Batch::new(draft, &cx.app.ids.uuid());
    cx.tx().await?.insert_notifications(&tenant, audience, &batch, now).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_numbers_its_rows_from_its_own_id() {
        let batch = Batch::new(Draft::default(), "0190a1b2-c3d4-7e5f-8a6b-0c1d2e3f4a5b");
        assert_eq!(batch.prefix, "0190a1b2-c3d4-7e5f-8a6b-");
        assert_eq!(batch.number, 0x0c1d_2e3f_4a5b);
    }
}
