//! Rooms and messages.

use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    contract::{EventRow, Namespace, Route, ToCaller, ToOthers, event, route},
    dispatch::{App, Caller, Cx, Effect},
    identity::Role,
    ids::{MessageId, RoomId, Seq, Timestamp, UserId},
    ports::Reads,
    refusal::Refusal,
};

mod absent;
pub mod chat_history;
pub mod events;
pub mod join_room;
pub mod leave_room;
pub mod mark_message_read;
pub mod returning;
pub mod send_message;
pub mod text;
pub mod typing_indicator;

use self::{
    chat_history::{ChatHistory, HistoryPage},
    events::{
        MessageRead, NewMessageNotification, ReceiveMessage, RoomJoined, RoomLeft, UnreadCount,
        UserJoinedRoom, UserLeftRoom,
    },
    join_room::JoinRoom,
    leave_room::LeaveRoom,
    mark_message_read::MarkMessageRead,
    send_message::SendMessage,
    typing_indicator::{Typing, TypingIndicator},
};

pub const COMMANDS: &[Route] = &[
    route::<JoinRoom>(),
    route::<LeaveRoom>(),
    route::<SendMessage>(),
    route::<TypingIndicator>(),
    route::<MarkMessageRead>(),
    route::<ChatHistory>(),
];

pub const EVENTS: &[EventRow] = &[
    event::<RoomJoined>(),
    event::<UserJoinedRoom>(),
    event::<RoomLeft>(),
    event::<UserLeftRoom>(),
    event::<ReceiveMessage>(),
    event::<NewMessageNotification>(),
    event::<Typing>(),
    event::<MessageRead>(),
    event::<UnreadCount>(),
    event::<HistoryPage>(),
];

/// Chat and presence, on `/`, `/api` and `/chat`.
#[derive(Debug)]
pub enum Chat {}
impl Namespace for Chat {
    const PATHS: &'static [&'static str] = &["/", "/api", "/chat"];
}

/// `[chat]` of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Whether the first join creates a room that anyone of the tenant may join.
    pub open_rooms: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { open_rooms: true }
    }
}

/// Messages a join shows, and the default page of the history.
pub const PAGE: u32 = 50;
/// Characters of a message, after NFC.
pub const MAX_MESSAGE_CHARS: usize = 4_000;

/// What a room is for; decided by its id when it is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoomKind {
    Direct,
    Mentor,
    StudyGroup,
    Exam,
}

impl RoomKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "DIRECT",
            Self::Mentor => "MENTOR",
            Self::StudyGroup => "STUDY_GROUP",
            Self::Exam => "EXAM",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Self::Direct, Self::Mentor, Self::StudyGroup, Self::Exam]
            .into_iter()
            .find(|kind| kind.as_str() == text)
    }
}

/// A room's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatRoom {
    pub id: RoomId,
    pub kind: RoomKind,
    /// The `seq` of the newest message; 0 before the first.
    pub last_seq: Seq,
}

/// What a member has not read. Always what a recount would give: it is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unread {
    /// The room's newest `seq`.
    pub last_seq: Seq,
    /// Messages up to here count as read; never decreases.
    pub last_read: Seq,
    /// Messages of others after it; where there are more, [`MAX_UNREAD`].
    pub count: i64,
}

/// Unread messages are counted up to this.
pub const MAX_UNREAD: i64 = 1_000;

impl Unread {
    /// Grows with every change of the count: it changes only when one of the two positions does,
    /// and neither ever decreases.
    pub const fn rev(&self) -> i64 {
        self.last_seq.0 + self.last_read.0
    }
}

/// A message as it stands in the database and on the wire: the contract's row, `seq` and
/// `clientMsgId`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ChatMessage {
    pub id: MessageId,
    pub room_id: RoomId,
    pub sender_id: UserId,
    /// Never empty: clients take its first letter.
    pub sender_name: String,
    pub sender_avatar: Option<String>,
    /// Sanitised HTML.
    pub message: String,
    pub message_type: String,
    pub file_url: Option<String>,
    pub file_name: Option<String>,
    /// Bytes.
    pub file_size: Option<i64>,
    pub is_read: bool,
    pub created_at: Timestamp,
    pub seq: Seq,
    #[serde(rename = "clientMsgId")]
    pub client_msg_id: Option<String>,
}

/// A message before it has its place.
#[derive(Clone, Debug)]
pub struct NewMessage {
    pub id: MessageId,
    pub room: RoomId,
    pub sender: UserId,
    pub sender_name: String,
    pub sender_avatar: Option<String>,
    pub message: String,
    pub message_type: String,
    pub file_url: Option<String>,
    pub file_name: Option<String>,
    pub file_size: Option<i64>,
    pub client_msg_id: Option<String>,
    pub created_at: Timestamp,
}

/// Which part of a room's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    Latest,
    Before(Seq),
    After(Seq),
    /// Half before and half from here on.
    Around(Seq),
}

/// Bytes of messages in one answer: well below what a client may have unsent.
const PAGE_BYTES: usize = 256 * 1024;
/// What a row has besides its texts.
const ROW_BYTES: usize = 512;

impl ChatMessage {
    /// About what it takes on the wire.
    fn bytes(&self) -> usize {
        let file = self.file_url.as_ref().map_or(0, String::len);
        self.message.len() + file + ROW_BYTES
    }
}

/// The messages nearest to a place that fit into one answer: of those before it the newest, of
/// those from it on the oldest. Nothing between them is missing.
fn fit(messages: Vec<ChatMessage>, place: Seq) -> Vec<ChatMessage> {
    let (mut before, mut rest): (Vec<_>, Vec<_>) =
        messages.into_iter().partition(|message| message.seq < place);
    let share = if before.is_empty() || rest.is_empty() { PAGE_BYTES } else { PAGE_BYTES / 2 };
    let fitting = |bytes: &mut usize, message: &ChatMessage| {
        *bytes += message.bytes();
        (*bytes <= share).then_some(())
    };
    let newest = before.iter().rev().scan(0, fitting).count().max(1);
    before.drain(..before.len().saturating_sub(newest));
    rest.truncate(rest.iter().scan(0, fitting).count().max(1));
    before.append(&mut rest);
    before
}

/// What the id of a room says about who may enter it.
enum Door<'a> {
    Open,
    Mentor(&'a str),
    MembersOnly,
    Reserved,
}

impl RoomId {
    fn door(&self) -> Door<'_> {
        let id = self.as_str();
        match id.split_once(':') {
            Some(("user" | "exam", _)) => Door::Reserved,
            Some(("study-group", _)) => Door::MembersOnly,
            Some(("mentor", user)) => Door::Mentor(user),
            _ => Door::Open,
        }
    }

    /// Whether no chat may have this id: rooms of users and of exams are something else.
    pub fn is_reserved(&self) -> bool {
        matches!(self.door(), Door::Reserved)
    }

    /// What a room of this id is for.
    pub fn kind(&self) -> RoomKind {
        match self.door() {
            Door::Mentor(_) => RoomKind::Mentor,
            Door::MembersOnly => RoomKind::StudyGroup,
            Door::Open | Door::Reserved => RoomKind::Direct,
        }
    }
}

/// Rooms are joined by right, not by name. Asked only of those who are not
/// members yet.
pub(crate) async fn may_enter(
    app: &App,
    caller: &Caller,
    reads: &mut (impl Reads + ?Sized),
    room: &RoomId,
) -> Result<(), Refusal> {
    let allowed = match room.door() {
        Door::Open => app.chat.open_rooms && !app.presence.is_connection(room.as_str()),
        Door::Mentor(user) if user == caller.user.as_str() => true,
        Door::Mentor(_) if caller.role.is_staff() => true,
        Door::Mentor(user) => match UserId::new(user) {
            Ok(user) => reads
                .user(&caller.tenant, &user)
                .await?
                .is_some_and(|mentor| mentor.role == Role::Mentor),
            Err(_) => false,
        },
        Door::MembersOnly | Door::Reserved => false,
    };
    if allowed { Ok(()) } else { Err(Refusal::Forbidden) }
}

/// The caller's rights have changed: a room that only their role let them into is left for good.
pub(crate) async fn review(cx: &mut Cx<'_>, room: &RoomId) -> Result<(), Refusal> {
    let (app, caller) = (cx.app, cx.caller);
    if !matches!(room.door(), Door::Mentor(_)) {
        return Ok(());
    }
    let tx = cx.tx().await?;
    match may_enter(app, caller, tx, room).await {
        Err(Refusal::Forbidden) => {}
        kept => return kept,
    }
    tx.remove_member(&caller.tenant, room, &caller.user).await?;
    cx.record(Effect::Expel(caller.user.clone(), room.clone()));
    cx.send(ToCaller(), &RoomLeft { room_id: room.clone() })?;
    let event = UserLeftRoom {
        room_id: room.clone(),
        user_id: caller.user.clone(),
        user_name: caller.name.clone(),
    };
    cx.send(ToOthers(room.clone(), caller.user.clone()), &event)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(seq: i64, chars: usize) -> ChatMessage {
        ChatMessage {
            id: MessageId::new("m").unwrap(),
            room_id: RoomId::new("algebra").unwrap(),
            sender_id: UserId::new("ana").unwrap(),
            sender_name: "Ana".into(),
            sender_avatar: None,
            message: "x".repeat(chars),
            message_type: "text".into(),
            file_url: None,
            file_name: None,
            file_size: None,
            is_read: false,
            created_at: Timestamp(0),
            seq: Seq(seq),
            client_msg_id: None,
        }
    }

    fn fitting(count: i64, chars: usize, place: i64) -> Vec<i64> {
        let messages = (1..=count).map(|seq| message(seq, chars)).collect();
        fit(messages, Seq(place)).into_iter().map(|message| message.seq.0).collect()
    }

    #[test]
    fn an_answer_holds_what_is_nearest_to_the_place_and_has_no_hole() {
        let all: Vec<i64> = (1..=50).collect();
        assert_eq!(fitting(50, 100, i64::MAX), all);
        assert_eq!(fitting(50, 20_000, i64::MAX), (39..=50).collect::<Vec<_>>());
        assert_eq!(fitting(50, 20_000, 0), (1..=12).collect::<Vec<_>>());
        assert_eq!(fitting(50, 20_000, 25), (19..=30).collect::<Vec<_>>());
        assert_eq!(fitting(3, 400_000, i64::MAX), [3], "one is shown, whatever its size");
        assert_eq!(fitting(0, 1, 5), [0; 0]);
    }
}
