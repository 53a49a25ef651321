//! What the domain needs from outside. `store` implements the database ports, `gateway` the rest.

use std::time::Duration;

use async_trait::async_trait;

mod api;
mod exam;
mod leaderboard;
mod leases;
mod nodes;
mod notification;
mod returning;
mod study_group;

pub use self::{
    api::{ApiReads, ApiWrites},
    exam::{ExamReads, ExamWrites},
    leaderboard::{LeaderboardReads, LeaderboardWrites},
    leases::{Lease, LeaseChecks, Leases},
    nodes::{ClusterNode, NodeReads, NodeWrites},
    notification::{NotificationReads, NotificationWrites},
    returning::{ReturnReads, ReturnWrites},
    study_group::{StudyGroupReads, StudyGroupWrites},
};

use crate::{
    api::{rooms::RoomView, users::NewAccount},
    chat::{ChatMessage, ChatRoom, NewMessage, Page, RoomKind, Unread},
    contract::{Class, Scope},
    credential::{Bearer, Token},
    dispatch::{App, Caller, Emit},
    identity::{Account, Claims, TokenRule, User},
    ids::{MessageId, Offset, RoomId, Seq, TenantId, Timestamp, UserId},
    recovery::{Claim, Session},
    refusal::Refusal,
};

pub(crate) type Result<T> = std::result::Result<T, Refusal>;

/// The time everything is judged by.
pub trait Clock: Send + Sync {
    fn now(&self) -> Timestamp;
}

/// Mints ids: time-ordered UUIDs.
pub trait Ids: Send + Sync {
    fn uuid(&self) -> String;
}

/// The rate limits.
pub trait Admission: Send + Sync {
    /// Takes one from the caller's bucket, or says how long until there is one.
    fn admit(&self, caller: &Caller, class: Class) -> std::result::Result<(), Duration>;
}

/// The keys of the apps, and what they verify.
#[async_trait]
pub trait Credentials: Send + Sync {
    /// Whose token this is, if it counts now: signed, not expired, its user neither suspended nor
    /// their tokens revoked. Their row has followed it where it follows tokens.
    async fn verify(&self, app: &App, token: &Token) -> Result<Bearer>;
}

/// The database.
#[async_trait]
pub trait Store: Leases {
    /// A transaction. In [`Scope::Lane`] the tenant's lane is held until it ends.
    async fn begin(&self, tenant: &TenantId, scope: Scope) -> Result<Box<dyn Tx>>;
    /// A connection to read from, each statement by itself.
    async fn read(&self) -> Result<Box<dyn Reads>>;
    /// This run of the server is there: others see that it is, for as long as it lives. Called
    /// before anybody is let in, and again and again.
    async fn stay(&self, node: &str) -> Result<()>;
    /// A socket of this run of the server, `node`, goes on with a session, unless somebody has since
    /// it was of that generation (`None`); committed when it returns. The chat rooms it goes on in:
    /// those of the session that its user belongs to, and up to where each was shown.
    async fn take_session(
        &self,
        session: &Session,
        claim: &Claim,
        node: &str,
    ) -> Result<Option<Vec<(RoomId, Offset)>>>;
}

/// Everything that can be read, inside a transaction or a snapshot.
pub trait Reads:
    UserReads
    + ChatReads
    + OutboxReads
    + ExamReads
    + LeaderboardReads
    + NodeReads
    + NotificationReads
    + ReturnReads
    + StudyGroupReads
    + ApiReads
{
}
impl<T> Reads for T where
    T: UserReads
        + ChatReads
        + OutboxReads
        + ExamReads
        + LeaderboardReads
        + NodeReads
        + NotificationReads
        + ReturnReads
        + StudyGroupReads
        + ApiReads
{
}

/// A running transaction. Dropped without `commit` it is undone.
#[async_trait]
pub trait Tx:
    Reads
    + UserWrites
    + ChatWrites
    + ExamWrites
    + LeaderboardWrites
    + LeaseChecks
    + NodeWrites
    + NotificationWrites
    + ReturnWrites
    + StudyGroupWrites
    + ApiWrites
{
    /// Writes durable events to the outbox and returns the offset of the last; the tenant's
    /// counter is raised by their number, so offsets have no hole.
    async fn publish(
        &mut self,
        tenant: &TenantId,
        now: Timestamp,
        events: &[&Emit],
    ) -> Result<Offset>;
    /// Deletes the oldest outbox rows of all tenants made before an instant, at most `limit`; says how
    /// many.
    async fn forget_published(&mut self, before: Timestamp, limit: u32) -> Result<u64>;
    /// Returns once everything is on disk.
    async fn commit(self: Box<Self>) -> Result<()>;
}

/// A row of the outbox.
#[derive(Clone, Debug)]
pub struct Published {
    pub offset: Offset,
    pub emit: Emit,
}

#[async_trait]
pub trait OutboxReads: Send {
    /// The offset of the tenant's newest durable event; 0 before the first.
    async fn head(&mut self, tenant: &TenantId) -> Result<Offset>;
    /// The heads of all tenants that have one.
    async fn heads(&mut self) -> Result<Vec<(TenantId, Offset)>>;
    /// Durable events after an offset, in order.
    async fn published_after(
        &mut self,
        tenant: &TenantId,
        after: Offset,
        limit: u32,
    ) -> Result<Vec<Published>>;
}

/// A change of a user's row, whoever made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedUser {
    /// Of the change.
    pub id: i64,
    pub tenant: TenantId,
    pub user: UserId,
}

#[async_trait]
pub trait UserReads: Send {
    async fn user(&mut self, tenant: &TenantId, user: &UserId) -> Result<Option<User>>;
    /// Everything about a user.
    async fn account(&mut self, tenant: &TenantId, user: &UserId) -> Result<Option<Account>>;
    /// Users after an id, by id.
    async fn accounts(
        &mut self,
        tenant: &TenantId,
        after: &str,
        limit: u32,
    ) -> Result<Vec<Account>>;
    /// When the user was last noted as being here.
    async fn last_seen(&mut self, tenant: &TenantId, user: &UserId) -> Result<Option<Timestamp>>;
    /// Users of all tenants whose rights or name changed within so long, by the database's clock.
    async fn changed_users(&mut self, within: Duration) -> Result<Vec<ChangedUser>>;
}

#[async_trait]
pub trait UserWrites: Send {
    /// Makes the user's row from claims, or lets it follow a newer token; a row managed elsewhere
    /// is left as it is. Returns the row as it then stands.
    async fn provision_user(
        &mut self,
        tenant: &TenantId,
        claims: &Claims,
        now: Timestamp,
    ) -> Result<User>;
    /// Makes or replaces the row; from then on it is managed here.
    async fn put_account(
        &mut self,
        tenant: &TenantId,
        account: &NewAccount,
        now: Timestamp,
    ) -> Result<()>;
    /// Refuses, from now on, tokens that this rule does not accept; false when there is no such
    /// user. What was refused before stays refused.
    async fn revoke_tokens(
        &mut self,
        tenant: &TenantId,
        user: &UserId,
        below: &TokenRule,
    ) -> Result<bool>;
    /// Forgets who the user was; false when there is no such user.
    async fn delete_user(
        &mut self,
        tenant: &TenantId,
        user: &UserId,
        now: Timestamp,
    ) -> Result<bool>;
    /// Deletes the oldest notes of changes made before an instant, at most `limit`; says how many.
    async fn forget_user_changes(&mut self, before: Timestamp, limit: u32) -> Result<u64>;
    /// Notes that these users are here.
    async fn note_seen(
        &mut self,
        tenant: &TenantId,
        users: &[UserId],
        now: Timestamp,
    ) -> Result<()>;
}

#[async_trait]
pub trait ChatReads: Send {
    async fn chat_room(&mut self, tenant: &TenantId, room: &RoomId) -> Result<Option<ChatRoom>>;
    /// Rooms after an id, by id.
    async fn rooms(&mut self, tenant: &TenantId, after: &str, limit: u32) -> Result<Vec<RoomView>>;
    async fn members(&mut self, tenant: &TenantId, room: &RoomId) -> Result<Vec<UserId>>;
    async fn is_member(&mut self, tenant: &TenantId, room: &RoomId, user: &UserId) -> Result<bool>;
    /// The rooms a user is a member of, newest membership first.
    async fn rooms_of(
        &mut self,
        tenant: &TenantId,
        user: &UserId,
        limit: u32,
    ) -> Result<Vec<RoomId>>;
    /// Messages of a room, oldest first.
    async fn messages(
        &mut self,
        tenant: &TenantId,
        room: &RoomId,
        page: Page,
        limit: u32,
    ) -> Result<Vec<ChatMessage>>;
    async fn message(
        &mut self,
        tenant: &TenantId,
        message: &MessageId,
    ) -> Result<Option<ChatMessage>>;
    /// The message this sender sent under this key.
    async fn message_by_client_id(
        &mut self,
        tenant: &TenantId,
        sender: &UserId,
        client_msg_id: &str,
    ) -> Result<Option<ChatMessage>>;
    /// Where a member stands in a room.
    async fn unread(&mut self, tenant: &TenantId, room: &RoomId, user: &UserId) -> Result<Unread>;
}

#[async_trait]
pub trait ChatWrites: Send {
    /// Makes the room unless it exists.
    async fn create_room(
        &mut self,
        tenant: &TenantId,
        room: &RoomId,
        kind: RoomKind,
        now: Timestamp,
    ) -> Result<()>;
    /// Makes the user a member who has nothing unread, unless they are one.
    async fn add_member(
        &mut self,
        tenant: &TenantId,
        room: &RoomId,
        user: &UserId,
        now: Timestamp,
    ) -> Result<()>;
    /// The user is no member of the room any more.
    async fn remove_member(
        &mut self,
        tenant: &TenantId,
        room: &RoomId,
        user: &UserId,
    ) -> Result<()>;
    /// Takes the room's next `seq` and stores the message; also says how many members there are.
    async fn insert_message(
        &mut self,
        tenant: &TenantId,
        message: NewMessage,
    ) -> Result<(ChatMessage, i64)>;
    /// Moves the read position forward, never back; true when it moved.
    async fn advance_read(
        &mut self,
        tenant: &TenantId,
        room: &RoomId,
        user: &UserId,
        seq: Seq,
    ) -> Result<bool>;
    /// Sets the message's `is_read`; true when it was not set.
    async fn mark_read(&mut self, tenant: &TenantId, message: &MessageId) -> Result<bool>;
}
