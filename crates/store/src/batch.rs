//! What the commands of one batch have written so far.
//!
//! Every statement is a way to the database and back, so what a command only adds (messages,
//! durable events, notifications that nobody hears yet) is kept in memory, numbered under the lane,
//! and written for the whole batch in a few statements. A command that does nothing else never sees
//! a savepoint. Whoever runs a statement of its own gets one, and finds what was said before it
//! written.

use std::{collections::HashMap, mem::take};

use carillon_domain::{
    Emit, Offset, Refusal, RoomId, TenantId, Timestamp, UserId, chat::ChatMessage,
    notification::Unstored,
};

use crate::{
    chat,
    error::refusal,
    notification, outbox,
    sitting::{self, Sittings},
    tx::{Held, Statement},
};

/// The running transaction of a batch.
pub(crate) struct Batch {
    held: Held,
    savepoint: Savepoint,
    /// Cleared when what belongs to earlier commands was lost: nobody in the batch may go on.
    is_sound: bool,
    known: Known,
    /// Of these the database knows nothing yet.
    messages: Vec<Message>,
    unheard: Vec<Unheard>,
    sittings: Sittings,
    events: Vec<Event>,
    /// Where in each the running command's begin.
    own: Own,
}

#[derive(Clone, Copy, Default)]
struct Own {
    messages: usize,
    unheard: usize,
    sittings: sitting::Mark,
    events: usize,
}

/// What the database has, as far as it need not be read again.
#[derive(Default)]
pub(crate) struct Known {
    /// The offset of each tenant's newest event.
    heads: HashMap<TenantId, i64>,
    /// The number of each room's newest message, and how many members the room has.
    rooms: HashMap<(TenantId, RoomId), (i64, i64)>,
}

/// Rooms kept in mind; then all are forgotten.
const MAX_ROOMS: usize = 10_000;

impl Known {
    /// Nothing but the head of one tenant.
    pub(crate) fn head(tenant: TenantId, head: i64) -> Self {
        Self { heads: HashMap::from([(tenant, head)]), ..Self::default() }
    }
}

#[derive(PartialEq, Eq)]
enum Savepoint {
    None,
    /// Of an earlier command.
    Left,
    /// Of the running command.
    Own,
}

/// A message that waits to be written.
pub(crate) struct Message {
    pub tenant: TenantId,
    pub message: ChatMessage,
    pub member_count: i64,
}

/// A notification that waits to be written.
pub(crate) struct Unheard {
    pub tenant: TenantId,
    pub new: Unstored,
}

/// A durable event that waits to be written.
pub(crate) struct Event {
    pub tenant: TenantId,
    pub created_at: Timestamp,
    pub position: i64,
    pub emit: Emit,
    /// As JSON.
    pub address: String,
}

impl Batch {
    /// A transaction that has begun.
    pub(crate) fn new(held: Held, known: Known) -> Self {
        Self {
            held,
            savepoint: Savepoint::None,
            is_sound: true,
            known,
            messages: Vec::new(),
            unheard: Vec::new(),
            sittings: Sittings::default(),
            events: Vec::new(),
            own: Own::default(),
        }
    }

    /// What is written from now on is the next command's.
    pub(crate) fn next_command(&mut self) {
        self.own = Own {
            messages: self.messages.len(),
            unheard: self.unheard.len(),
            sittings: self.sittings.mark(),
            events: self.events.len(),
        };
        if self.savepoint == Savepoint::Own {
            self.savepoint = Savepoint::Left;
        }
    }

    /// Takes back what the running command has written. Fails where that leaves a transaction in
    /// which nothing more can be done.
    pub(crate) async fn undo_command(&mut self) -> Result<(), sqlx::Error> {
        self.messages.truncate(self.own.messages);
        self.unheard.truncate(self.own.unheard);
        self.sittings.truncate(self.own.sittings);
        self.events.truncate(self.own.events);
        if self.savepoint == Savepoint::Own {
            self.held.run("ROLLBACK TO SAVEPOINT command").await?;
        }
        self.held.goes_on()
    }

    /// Writes what waits, and ends the transaction. Says what is known from then on.
    pub(crate) async fn commit(mut self) -> Result<Known, sqlx::Error> {
        if !self.is_sound {
            return Err(sqlx::Error::WorkerCrashed);
        }
        chat::write(&mut self.held, &self.messages).await?;
        notification::write(&mut self.held, &self.unheard).await?;
        self.sittings.write(&mut self.held).await?;
        outbox::write(&mut self.held, &self.events).await?;
        self.held.commit().await?;
        for event in self.events {
            self.known.heads.insert(event.tenant, event.position);
        }
        if self.known.rooms.len() > MAX_ROOMS {
            self.known.rooms.clear();
        }
        for Message { tenant, message, member_count } in self.messages {
            self.known.rooms.insert((tenant, message.room_id), (message.seq.0, member_count));
        }
        Ok(self.known)
    }

    /// For statements that only read, and nothing of what waits.
    pub(crate) fn peek(&mut self) -> Statement<'_> {
        self.held.statement()
    }

    /// For every other statement.
    pub(crate) async fn direct(&mut self) -> Result<&mut Held, sqlx::Error> {
        // Whatever it is may change a room.
        self.known.rooms.clear();
        if self.savepoint != Savepoint::Own {
            let is_sound = std::mem::replace(&mut self.is_sound, false);
            let messages: Vec<_> = self.messages.drain(..self.own.messages).collect();
            let unheard: Vec<_> = self.unheard.drain(..self.own.unheard).collect();
            let sittings = self.sittings.before(self.own.sittings);
            self.own = Own { events: self.own.events, ..Own::default() };
            chat::write(&mut self.held, &messages).await?;
            notification::write(&mut self.held, &unheard).await?;
            sittings.write(&mut self.held).await?;
            self.set_savepoint().await?;
            self.is_sound = is_sound;
        }
        let (messages, unheard) = (take(&mut self.messages), take(&mut self.unheard));
        chat::write(&mut self.held, &messages).await?;
        notification::write(&mut self.held, &unheard).await?;
        take(&mut self.sittings).write(&mut self.held).await?;
        Ok(&mut self.held)
    }

    /// The earlier one is released on the same way.
    async fn set_savepoint(&mut self) -> Result<(), sqlx::Error> {
        if self.savepoint == Savepoint::Left {
            self.held.run_both("RELEASE SAVEPOINT command; SAVEPOINT command").await?;
        } else {
            self.held.run("SAVEPOINT command").await?;
        }
        self.savepoint = Savepoint::Own;
        Ok(())
    }

    /// The number of the room's newest message, and how many members the room has; `None` when
    /// the database has to be asked.
    pub(crate) fn newest_in(&self, tenant: &TenantId, room: &RoomId) -> Option<(i64, i64)> {
        let is_meant = |of: &&Message| of.message.room_id == *room && of.tenant == *tenant;
        let waiting = self.messages.iter().rev().find(is_meant);
        let waiting = waiting.map(|of| (of.message.seq.0, of.member_count));
        waiting.or_else(|| self.known.rooms.get(&(tenant.clone(), room.clone())).copied())
    }

    /// The message somebody sent under a key of theirs, if it waits.
    pub(crate) fn by_client_id(
        &self,
        tenant: &TenantId,
        sender: &UserId,
        key: &str,
    ) -> Option<&ChatMessage> {
        self.messages
            .iter()
            .find(|of| {
                of.message.client_msg_id.as_deref() == Some(key)
                    && of.message.sender_id == *sender
                    && of.tenant == *tenant
            })
            .map(|of| &of.message)
    }

    pub(crate) fn add_message(&mut self, message: Message) {
        self.messages.push(message);
    }

    pub(crate) fn add_unheard(&mut self, unheard: Unheard) {
        self.unheard.push(unheard);
    }

    /// What waits of running attempts.
    pub(crate) fn sittings(&mut self) -> &mut Sittings {
        &mut self.sittings
    }

    /// The offset of the tenant's newest event.
    pub(crate) async fn head(&mut self, tenant: &TenantId) -> Result<i64, sqlx::Error> {
        if let Some(event) = self.events.iter().rev().find(|event| event.tenant == *tenant) {
            return Ok(event.position);
        }
        if let Some(head) = self.known.heads.get(tenant) {
            return Ok(*head);
        }
        let head = outbox::head(self.held.statement(), tenant).await?.0;
        self.known.heads.insert(tenant.clone(), head);
        Ok(head)
    }

    /// Numbers durable events; returns the offset of the last.
    pub(crate) async fn publish(
        &mut self,
        tenant: &TenantId,
        now: Timestamp,
        events: &[&Emit],
    ) -> Result<Offset, Refusal> {
        let mut position = self.head(tenant).await.map_err(refusal)?;
        for emit in events {
            position += 1;
            self.events.push(Event {
                tenant: tenant.clone(),
                created_at: now,
                position,
                emit: (*emit).clone(),
                address: serde_json::to_string(&emit.to).map_err(Refusal::internal)?,
            });
        }
        Ok(Offset(position))
    }
}
