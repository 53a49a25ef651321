//! Rooms, who is in them, and what was said.
//!
//! Imported messages come after everything a room has: in a new room that is their own order, and
//! in one that went on here nothing is numbered again.

use carillon_domain::{
    Refusal, RoomId, UserId,
    chat::{MAX_MESSAGE_CHARS, RoomKind, text},
    contract::Scope,
    ports::ChatWrites as _,
};

use super::{
    Import, ImportError, Mends, PAGE, Table, instant,
    source::{self, MessageRow, Place, RoomRow},
    target::{self, Message, Target},
};

const RESERVED: &str = "the room is named user:… or exam:…, which is no chat";
const MAX_NAME: usize = 255;

impl Import<'_> {
    pub(super) async fn rooms(&mut self) -> Result<[Table; 2], ImportError> {
        let mut members = Table::new("room members");
        let mut rooms = self.start("chat_rooms").await?;
        let mut rows: Vec<RoomRow> = Vec::new();
        loop {
            rows = self.source.rooms(rows.last()).await?;
            if rows.is_empty() {
                break;
            }
            let known = self.target.known(&target::ROOMS, rows.iter().map(|row| &row.id)).await?;
            let mut tx = self.target.begin(Scope::Lane).await?;
            let mut written = 0;
            for row in &rows {
                let room = match RoomId::new(&row.id) {
                    Err(_) => {
                        rooms.skip(&row.id, "the id is longer than 128 characters, or none");
                        continue;
                    }
                    Ok(room) if room.is_reserved() => {
                        rooms.skip(&row.id, RESERVED);
                        continue;
                    }
                    Ok(room) => room,
                };
                // A group's room may have been made, or would be, with its group.
                let is_new = !known.contains(&row.id) && !self.rooms.contains(&row.id);
                self.rooms.insert(row.id.clone());
                let (participants, missing) = source::ids(row.participants.as_deref());
                for _ in 0..missing {
                    members.skip(&row.id, "listed twice, or none");
                }
                let (name, kind, mends) = room_row(row, &room);
                let at = instant(row.created_at).unwrap_or_else(|| self.clock.now());
                if is_new {
                    if let Some(tx) = &mut tx {
                        let metadata = row.metadata.as_deref().unwrap_or("{}");
                        let tenant = self.target.tenant;
                        tx.import_room(tenant, &room, &name, kind, metadata, at).await?;
                    }
                    rooms.import(&row.id, mends);
                } else {
                    rooms.keep();
                }
                if room.is_study_group() {
                    // Of a group's room exactly its members are members.
                    continue;
                }
                let here = self.target.members(&room).await?;
                for participant in participants {
                    if !self.users.contains_key(&participant) {
                        members.skip(&participant, "the user does not exist, or was skipped");
                    } else if here.contains(&participant) {
                        members.keep();
                    } else {
                        if let Some(tx) = &mut tx {
                            let user = UserId::new(&participant).map_err(Refusal::internal)?;
                            tx.add_member(self.target.tenant, &room, &user, at).await?;
                            written += 1;
                        }
                        if written >= PAGE {
                            Target::commit(tx).await?;
                            tx = self.target.begin(Scope::Lane).await?;
                            written = 0;
                        }
                        members.import(&participant, Mends::default());
                    }
                }
            }
            Target::commit(tx).await?;
            self.told(&rooms);
        }
        self.total = members.read;
        self.told(&members);
        Ok([rooms, members])
    }

    pub(super) async fn messages(&mut self) -> Result<Table, ImportError> {
        let mut table = self.start("chat_messages").await?;
        for id in self.source.rooms_with_messages().await? {
            let room = RoomId::new(&id).map_err(|_| "the room's id is longer than 128 characters");
            let room =
                room.and_then(|room| if room.is_reserved() { Err(RESERVED) } else { Ok(room) });
            self.messages_of(&mut table, &id, room).await?;
        }
        for id in self.source.lost_messages().await? {
            table.skip(&id, "without a room");
        }
        self.told(&table);
        Ok(table)
    }

    async fn messages_of(
        &mut self,
        table: &mut Table,
        id: &str,
        room: Result<RoomId, &'static str>,
    ) -> Result<(), ImportError> {
        let mut after = Place::default();
        loop {
            let rows = self.source.messages(id, &after).await?;
            let Some(end) = rows.last() else { return Ok(()) };
            after = Place::from(end);
            let room = match &room {
                Ok(room) => room,
                Err(reason) => {
                    for row in &rows {
                        table.skip(&row.id, *reason);
                    }
                    self.told(table);
                    continue;
                }
            };
            self.make_room(table, room, &rows).await?;
            let ids = rows.iter().map(|row| &row.id);
            let known = self.target.known(&target::MESSAGES, ids).await?;
            let mut new = Vec::new();
            for row in &rows {
                if known.contains(&row.id) {
                    table.keep();
                    continue;
                }
                match self.message(row) {
                    Ok((message, mends)) => {
                        new.push(message);
                        table.import(&row.id, mends);
                    }
                    Err(reason) => table.skip(&row.id, reason),
                }
            }
            if !new.is_empty()
                && let Some(mut tx) = self.target.begin(Scope::Lane).await?
            {
                tx.import_messages(self.target.tenant, room, &new).await?;
                Target::commit(Some(tx)).await?;
            }
            self.told(table);
        }
    }

    /// Messages may be in a room that has no row; whoever spoke there was in it.
    async fn make_room(
        &mut self,
        table: &mut Table,
        room: &RoomId,
        rows: &[MessageRow],
    ) -> Result<(), ImportError> {
        if !self.rooms.insert(room.as_str().to_owned()) {
            return Ok(());
        }
        if !self.target.known(&target::ROOMS, [room]).await?.is_empty() {
            return Ok(());
        }
        table
            .mended
            .add("in a room without a row: made, with those who spoke in it", room.as_str());
        let Some(mut tx) = self.target.begin(Scope::Lane).await? else { return Ok(()) };
        let first = rows.iter().find_map(|row| instant(row.created_at));
        let at = first.unwrap_or_else(|| self.clock.now());
        let (tenant, name) = (self.target.tenant, format!("Room {room}"));
        tx.import_room(tenant, room, &name, room.kind(), "{}", at).await?;
        if !room.is_study_group() {
            for sender in self.source.senders(room.as_str()).await? {
                if self.users.contains_key(&sender) {
                    let user = UserId::new(&sender).map_err(Refusal::internal)?;
                    tx.add_member(tenant, room, &user, at).await?;
                }
            }
        }
        Target::commit(Some(tx)).await?;
        Ok(())
    }

    fn message(&self, row: &MessageRow) -> Result<(Message, Mends), &'static str> {
        let mut mends = Mends::default();
        let sender = row.sender_id.as_deref().ok_or("without a sender")?;
        let known_name = self.users.get(sender);
        if known_name.is_none() {
            mends.note("the sender does not exist: kept under their name");
        }
        let name = row.sender_name.as_deref().map(str::trim).filter(|name| !name.is_empty());
        let sender_name = name.map_or_else(
            || {
                mends.note("without the sender's name: the user's, or the id");
                known_name.cloned().unwrap_or_else(|| sender.to_owned())
            },
            str::to_owned,
        );
        let file_url = mends.link(row.file_url.clone(), "a file that is no link: left out");
        let file_name = row.file_name.clone();
        let file_name = mends.cut_option(file_name, 255, "a file's name was cut short");
        let said = mends.cut(
            row.message.clone().unwrap_or_default(),
            MAX_MESSAGE_CHARS,
            "longer than 4000 characters: cut short",
        );
        let message = match text::sanitise(&said) {
            Ok(message) => message,
            Err(_) if file_url.is_some() => {
                mends.note("a file without a text: its name");
                file_name
                    .as_deref()
                    .and_then(|name| text::sanitise(name).ok())
                    .unwrap_or_else(|| "File".into())
            }
            Err(_) => return Err("nothing to show"),
        };
        let kind = row.message_type.clone();
        let kind = mends.cut_option(kind, 50, "the type was cut short");
        let message = Message {
            id: row.id.clone(),
            sender: UserId::new(sender).map_err(|_| "the sender's id is none")?,
            sender_name: mends.cut(sender_name, 200, "the sender's name was cut short"),
            sender_avatar: mends
                .link(row.sender_avatar.clone(), "an avatar that is no link: without"),
            message,
            message_type: kind.unwrap_or_else(|| "text".into()),
            file_url,
            file_name,
            file_size: row.file_size.filter(|size| {
                if *size < 0 {
                    mends.note("a file of less than nothing: without its size");
                }
                *size >= 0
            }),
            is_read: row.is_read.unwrap_or(false),
            created_at: instant(row.created_at).unwrap_or_else(|| {
                mends.note("without a date: the time of the import");
                self.clock.now()
            }),
        };
        Ok((message, mends))
    }
}

fn room_row(row: &RoomRow, room: &RoomId) -> (String, RoomKind, Mends) {
    let mut mends = Mends::default();
    let kind = row.kind.as_deref().and_then(RoomKind::parse).unwrap_or_else(|| {
        mends.note("an unknown type: as its id says");
        room.kind()
    });
    let name = mends.cut_option(row.name.clone(), MAX_NAME, "the name was cut short");
    let name = name.unwrap_or_else(|| {
        mends.note("without a name: called by the id");
        format!("Room {room}")
    });
    if instant(row.created_at).is_none() {
        mends.note("without a date: the time of the import");
    }
    (name, kind, mends)
}
