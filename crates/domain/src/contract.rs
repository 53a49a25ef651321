//! What an event is. The two static lists at the end are the only lists of events there are:
//! registration, admission, documentation, types and table tests are read from them.

use std::{collections::HashMap, sync::LazyLock, time::Duration};

use schemars::{JsonSchema, Schema, generate::SchemaSettings, schema_for};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use crate::{
    chat, credential,
    dispatch::{BoxFuture, Cx, run},
    exam,
    identity::Role,
    ids::{RoomId, UserId},
    leaderboard::{self, Board},
    notification, presence, recovery,
    refusal::{Code, Refusal},
    session, study_group,
};

/// A set of Socket.IO namespaces that carry the same events: views of one platform.
pub trait Namespace: Send + Sync + 'static {
    /// `/` and `/api` carry everything, a feature's own namespace its part.
    const PATHS: &'static [&'static str];
}

/// Every namespace a client may connect to.
pub const ALL_PATHS: &[&str] =
    &["/", "/api", "/chat", "/exam", "/leaderboard", "/notification", "/study-group"];

/// What exists everywhere: `error`, `heartbeat`, `carillon:*`.
#[derive(Debug)]
pub enum Everywhere {}
impl Namespace for Everywhere {
    const PATHS: &'static [&'static str] = ALL_PATHS;
}

/// Who receives an event.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Address {
    /// The one socket whose command this answers.
    Caller,
    /// Every socket of a user.
    User(UserId),
    /// Every socket that joined the room.
    Room(RoomId),
    /// Every socket in the room except those of the user it is about.
    Others(RoomId, UserId),
    /// Every socket of a user and every socket in any of the rooms, each once.
    Around(UserId, Vec<RoomId>),
    /// Every socket of the tenant.
    Tenant,
    /// The user is in the room from here on with all their sockets, and hears this, too.
    RoomWith(RoomId, UserId),
    /// The user is not in the room from here on, with none of their sockets; the others hear this.
    RoomWithout(RoomId, UserId),
    /// Every socket that looks at this board.
    Lookers(Board),
    /// Every socket of the tenant that never asked for a board.
    Bystanders,
}

impl Address {
    /// Whether sockets hear this because they are in the room.
    pub fn is_of(&self, room: &RoomId) -> bool {
        match self {
            Self::Room(to)
            | Self::Others(to, _)
            | Self::RoomWith(to, _)
            | Self::RoomWithout(to, _) => to == room,
            Self::Around(_, rooms) => rooms.contains(room),
            Self::Caller | Self::User(_) | Self::Tenant | Self::Lookers(_) | Self::Bystanders => {
                false
            }
        }
    }
}

/// A kind of address; an event names the only kind it can be sent to.
pub trait To: Into<Address> {
    /// For the documentation.
    const WHOM: &'static str;
}

macro_rules! addresses {
    ($($(#[$doc:meta])* $name:ident($($field:ident: $type:ty),*) = $whom:literal => $address:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name($(pub $type),*);
        impl From<$name> for Address {
            fn from($name($($field),*): $name) -> Self { $address }
        }
        impl To for $name {
            const WHOM: &'static str = $whom;
        }
    )*};
}
addresses! {
    /// The socket that sent the command.
    ToCaller() = "the caller" => Address::Caller;
    /// All of a user's sockets.
    ToUser(user: UserId) = "all sockets of one user" => Address::User(user);
    /// The whole room, the sender included.
    ToRoom(room: RoomId) = "the room" => Address::Room(room);
    /// Everybody of the tenant.
    ToTenant() = "everybody of the tenant" => Address::Tenant;
    /// The room, and from now on the user it is about.
    ToRoomWith(room: RoomId, user: UserId) = "the room, the newcomer included" => Address::RoomWith(room, user);
    /// The room, and from now on without the user it is about.
    ToRoomWithout(room: RoomId, user: UserId) = "those who remain in the room" => Address::RoomWithout(room, user);
    /// The room without the sockets of the user it is about.
    ToOthers(room: RoomId, user: UserId) = "the others in the room" => Address::Others(room, user);
}

/// Server to client. `To` is the only kind of address it can be sent to.
pub trait Event: Serialize + JsonSchema + 'static {
    type In: Namespace;
    type To: To;
    const NAME: &'static str;
    /// True: an outbox row in the transaction of the command, delivered in the tenant's order.
    /// Addressed to the caller it is an answer all the same, and no row.
    const DURABLE: bool = false;
    /// True: its last key is `participantCount`, which is counted when it leaves.
    const COUNTS: bool = false;
    /// True: in a large room only the latest of them is told, a few times a second. Two thousand who
    /// come in together would be told four million times.
    const PACED: bool = Self::COUNTS;
}

/// Client to server. The payload type is the definition; its newtypes are the validation.
pub trait Command: DeserializeOwned + Serialize + JsonSchema + Send + 'static {
    type In: Namespace;
    /// The acknowledgement beside `ok: true`; always an object.
    type Reply: Serialize + JsonSchema + Send;
    const NAME: &'static str;
    const POLICY: Policy;
    /// `Some`: the caller must have joined it or be a member.
    fn room(&self) -> Option<&RoomId> {
        None
    }
    /// True: shows the history of [`Self::enters`], and its socket is in that room afterwards.
    /// Live delivery of the room to the socket stands still meanwhile, so that nothing comes twice.
    const SHOWS_ROOM: bool = false;
    /// The room that is shown.
    fn enters(&self) -> Option<&RoomId> {
        None
    }
    /// One sample for documentation, table tests and the load test.
    fn example() -> Self;
}

/// What a command does once it is decoded and admitted.
#[diagnostic::on_unimplemented(
    message = "no handler for the command `{Self}`",
    label = "implement `Handle` beside its payload"
)]
pub trait Handle: Command {
    fn handle(self, cx: &mut Cx<'_>) -> impl Future<Output = Result<Self::Reply, Refusal>> + Send;
}

/// Commands that share a rate bucket. The bucket belongs to a user, across all their sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Chat messages; 60 a minute as the servers replaced.
    Message,
    /// Typing indicators.
    Typing,
    /// Read marks: the shipped frontend repeats them for every unread message it shows.
    Read,
    /// Joining, leaving and reading rooms.
    Room,
    /// Sitting an exam: nothing else drains this bucket.
    Exam,
    /// Looking at leaderboards.
    Leaderboard,
    /// Sending and reading notifications.
    Notification,
    /// Making, joining and leaving study groups.
    StudyGroup,
    /// What a school's backend asks through the server API, by key.
    Api,
    /// Showing a newer token.
    Auth,
    /// Signs of life.
    Heartbeat,
    /// What is no command at all.
    Invalid,
}

impl Class {
    pub const ALL: &'static [Self] = &[
        Self::Message,
        Self::Typing,
        Self::Read,
        Self::Room,
        Self::Exam,
        Self::Leaderboard,
        Self::Notification,
        Self::StudyGroup,
        Self::Api,
        Self::Auth,
        Self::Heartbeat,
        Self::Invalid,
    ];

    /// The name in configuration and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Message => "message",
            Self::Typing => "typing",
            Self::Read => "read",
            Self::Room => "room",
            Self::Exam => "exam",
            Self::Leaderboard => "leaderboard",
            Self::Notification => "notification",
            Self::StudyGroup => "study_group",
            Self::Api => "api",
            Self::Auth => "auth",
            Self::Heartbeat => "heartbeat",
            Self::Invalid => "invalid",
        }
    }

    /// The default: so many in a period, refilled evenly.
    pub const fn default_rate(self) -> Rate {
        match self {
            Self::Message | Self::StudyGroup => Rate::per_minute(60),
            Self::Typing | Self::Room => Rate::per_minute(240),
            Self::Read | Self::Exam => Rate::per_minute(1_200),
            Self::Heartbeat | Self::Leaderboard | Self::Notification | Self::Invalid => {
                Rate::per_minute(120)
            }
            Self::Api => Rate::per_minute(12_000),
            Self::Auth => Rate::per_minute(30),
        }
    }
}

/// So many commands in a period: the burst, and refilled evenly over the period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub count: u32,
    pub period: Duration,
}

impl Rate {
    pub const fn per_minute(count: u32) -> Self {
        Self { count, period: Duration::from_mins(1) }
    }
}

/// The text of every refusal for too many requests.
pub const RATE_LIMITED: &str = "Rate limit exceeded. Please slow down.";

/// What a command needs from the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Reads, all of one instant; nothing is written and nobody waits for it.
    Snapshot,
    /// Rows of its own, no durable event.
    Rows,
    /// What somebody adds to their running attempt: answers, journal, progress. It waits for nobody;
    /// where the attempt has changed meanwhile the commit is refused as `Outdated`.
    Sitting,
    /// Durable events: takes its turn in the tenant's lane.
    Lane,
}

/// Without an acknowledgement callback, which refusals are told by the `error` event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telling {
    All,
    /// Only a missing required field; the contract calls the rest silent.
    RequiredOnly,
    Nothing,
}

/// What is checked before a command runs, and how it is refused. Plain data.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    pub class: Class,
    pub scope: Scope,
    /// The whole payload, in bytes.
    pub max_bytes: usize,
    pub telling: Telling,
    /// Lost without harm: refused as `BUSY` when the inbox is full.
    pub ephemeral: bool,
    /// Looks at nothing in memory that an earlier command of the same connection changes once it is
    /// committed: the next one of the same kind may enter the lane behind it.
    pub overlaps: bool,
    /// `None`: everybody.
    pub roles: Option<&'static [Role]>,
    /// The contract's text for a missing or wrongly typed required field.
    pub required: &'static str,
    /// The contract's text for every failure that has no text of its own.
    pub failed: &'static str,
    /// Texts of single codes, where the contract has one.
    pub texts: &'static [(Code, &'static str)],
}

impl Policy {
    /// The common case: everybody, durable, every refusal told.
    pub const fn new(class: Class, required: &'static str, failed: &'static str) -> Self {
        Self {
            class,
            scope: Scope::Lane,
            max_bytes: 4 * 1024,
            telling: Telling::All,
            ephemeral: false,
            overlaps: false,
            roles: None,
            required,
            failed,
            texts: &[],
        }
    }
    #[must_use]
    pub const fn rows_only(self) -> Self {
        Self { scope: Scope::Rows, ..self }
    }
    #[must_use]
    pub const fn sitting(self) -> Self {
        Self { scope: Scope::Sitting, ..self }
    }
    #[must_use]
    pub const fn ephemeral(self) -> Self {
        Self { scope: Scope::Rows, ephemeral: true, ..self }
    }
    /// See [`Policy::overlaps`]. The first thing such a command waits for is its place in the lane,
    /// so that a connection's commands keep their order.
    #[must_use]
    pub const fn overlapping(self) -> Self {
        assert!(matches!(self.scope, Scope::Lane), "only a lane keeps their order");
        Self { overlaps: true, ..self }
    }
    #[must_use]
    pub const fn max_bytes(self, max_bytes: usize) -> Self {
        Self { max_bytes, ..self }
    }
    #[must_use]
    pub const fn telling(self, telling: Telling) -> Self {
        Self { telling, ..self }
    }
    #[must_use]
    pub const fn texts(self, texts: &'static [(Code, &'static str)]) -> Self {
        Self { texts, ..self }
    }
    #[must_use]
    pub const fn roles(self, roles: &'static [Role]) -> Self {
        Self { roles: Some(roles), ..self }
    }

    /// The contract's text for a refusal of this command.
    pub fn text(&self, refusal: &Refusal) -> &'static str {
        match refusal {
            Refusal::Required(_) => self.required,
            Refusal::RateLimited { .. } => RATE_LIMITED,
            Refusal::UnknownEvent => "Unknown event",
            _ => {
                let code = refusal.code();
                let own = self.texts.iter().find(|(of, _)| *of == code);
                own.map_or(self.failed, |(_, text)| text)
            }
        }
    }
}

type Run =
    for<'a, 'b> fn(&'a mut Cx<'b>, &'a RawValue) -> BoxFuture<'a, Result<Box<RawValue>, Refusal>>;

/// One row of [`COMMANDS`]: constants and function pointers.
pub struct Route {
    pub name: &'static str,
    pub paths: &'static [&'static str],
    pub policy: Policy,
    pub payload: fn() -> Schema,
    pub reply: fn() -> Schema,
    pub example: fn() -> String,
    /// [`Command::enters`] of a payload, for commands that show a room; `None` also where the
    /// payload does not decode.
    pub enters: Option<fn(&RawValue) -> Option<RoomId>>,
    pub run: Run,
}

impl std::fmt::Debug for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Route({})", self.name)
    }
}

/// The schema of something the server sends: every key is there, `null` when it is empty.
pub(crate) fn sent<T: JsonSchema>() -> Schema {
    SchemaSettings::draft2020_12().for_serialize().into_generator().into_root_schema_for::<T>()
}

fn entered<C: Command>(payload: &RawValue) -> Option<RoomId> {
    serde_json::from_str::<C>(payload.get()).ok()?.enters().cloned()
}

pub const fn route<C: Handle>() -> Route {
    Route {
        name: C::NAME,
        paths: <C::In as Namespace>::PATHS,
        policy: C::POLICY,
        payload: || schema_for!(C),
        reply: sent::<C::Reply>,
        example: || serde_json::to_string(&C::example()).expect("an example is plain data"),
        enters: if C::SHOWS_ROOM { Some(entered::<C>) } else { None },
        run: run::<C>,
    }
}

/// One row of [`EVENTS`].
pub struct EventRow {
    pub name: &'static str,
    pub paths: &'static [&'static str],
    pub whom: &'static str,
    pub durable: bool,
    pub paced: bool,
    /// See [`Event::COUNTS`].
    pub counts: bool,
    pub payload: fn() -> Schema,
}

impl std::fmt::Debug for EventRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EventRow({})", self.name)
    }
}

pub const fn event<E: Event>() -> EventRow {
    EventRow {
        name: E::NAME,
        paths: <E::In as Namespace>::PATHS,
        whom: <E::To as To>::WHOM,
        durable: E::DURABLE,
        paced: E::PACED,
        counts: E::COUNTS,
        payload: sent::<E>,
    }
}

/// The row of one event type, as a constant of static lifetime.
pub(crate) struct RowOf<E>(std::marker::PhantomData<E>);
impl<E: Event> RowOf<E> {
    pub(crate) const ROW: &'static EventRow = &event::<E>();
}

/// Everything a client can ask, by domain.
pub const COMMANDS: &[&[Route]] = &[
    session::COMMANDS,
    credential::COMMANDS,
    chat::COMMANDS,
    exam::COMMANDS,
    leaderboard::COMMANDS,
    notification::COMMANDS,
    study_group::COMMANDS,
];

/// Everything the server can tell, by domain.
pub const EVENTS: &[&[EventRow]] = &[
    session::EVENTS,
    credential::EVENTS,
    presence::EVENTS,
    recovery::EVENTS,
    chat::EVENTS,
    exam::EVENTS,
    leaderboard::EVENTS,
    notification::EVENTS,
    study_group::EVENTS,
];

/// The command of that name in that namespace.
pub fn find_command(path: &str, name: &str) -> Option<&'static Route> {
    static BY_NAME: LazyLock<HashMap<&str, &Route>> =
        LazyLock::new(|| COMMANDS.iter().copied().flatten().map(|row| (row.name, row)).collect());
    BY_NAME.get(name).copied().filter(|route| route.paths.contains(&path))
}

/// The event of that name.
pub fn find_event(name: &str) -> Option<&'static EventRow> {
    static BY_NAME: LazyLock<HashMap<&str, &EventRow>> =
        LazyLock::new(|| EVENTS.iter().copied().flatten().map(|row| (row.name, row)).collect());
    BY_NAME.get(name).copied()
}
