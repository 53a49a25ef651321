//! `typing-indicator`: in memory only, and gone by itself after 6 s.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Chat;
use crate::{
    contract::{Class, Command, Event, Handle, Policy, Telling, ToOthers},
    dispatch::{Cx, Effect, Emit},
    ids::{RoomId, TenantId, Timestamp, UserId},
    refusal::Refusal,
};

/// Typing that is not repeated ends by itself.
const EXPIRY: Duration = Duration::from_secs(6);
/// A repeated start within this time is not told again.
const REFRESH: Duration = Duration::from_secs(3);

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TypingIndicator {
    pub room_id: RoomId,
    #[serde(default)]
    pub is_typing: bool,
}

/// Nothing to say.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Noted {}

/// Somebody types, or has stopped.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Typing {
    pub room_id: RoomId,
    pub user_id: UserId,
    pub user_name: String,
    pub is_typing: bool,
}
impl Event for Typing {
    type In = Chat;
    type To = ToOthers;
    const NAME: &'static str = "typing-indicator";
}

impl Command for TypingIndicator {
    type In = Chat;
    type Reply = Noted;
    const NAME: &'static str = "typing-indicator";
    const POLICY: Policy =
        Policy::new(Class::Typing, "Room ID is required", "Failed to update typing status")
            .ephemeral()
            .telling(Telling::RequiredOnly);
    fn room(&self) -> Option<&RoomId> {
        Some(&self.room_id)
    }
    fn example() -> Self {
        Self { room_id: RoomId::new("algebra").expect("a sound id"), is_typing: true }
    }
}

impl Handle for TypingIndicator {
    async fn handle(self, cx: &mut Cx<'_>) -> Result<Noted, Refusal> {
        let caller = cx.caller;
        let typist = Typist {
            tenant: caller.tenant.clone(),
            room: self.room_id.clone(),
            user: caller.user.clone(),
            name: caller.name.clone(),
        };
        let is_news = if self.is_typing {
            cx.app.typists.start(typist, cx.now)
        } else {
            cx.app.typists.stop(&caller.tenant, &self.room_id, &caller.user);
            true
        };
        if is_news {
            let event = Typing {
                room_id: self.room_id.clone(),
                user_id: caller.user.clone(),
                user_name: caller.name.clone(),
                is_typing: self.is_typing,
            };
            cx.send(ToOthers(self.room_id, caller.user.clone()), &event)?;
        }
        Ok(Noted {})
    }
}

/// Somebody typing in a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Typist {
    pub tenant: TenantId,
    pub room: RoomId,
    pub user: UserId,
    pub name: String,
}

impl Typist {
    /// Tells the others that this user has stopped.
    pub fn effect(self) -> Result<Effect, Refusal> {
        let event = Typing {
            room_id: self.room.clone(),
            user_id: self.user.clone(),
            user_name: self.name,
            is_typing: false,
        };
        Ok(Effect::Emit(Emit::new(ToOthers(self.room, self.user), &event)?))
    }
}

type Key = (TenantId, RoomId, UserId);

/// Who types where, on this node.
#[derive(Debug, Default)]
pub struct Typists {
    now: Mutex<HashMap<Key, Since>>,
}

#[derive(Debug)]
struct Since {
    name: String,
    told: Timestamp,
    repeated: Timestamp,
}

impl Typists {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Since>> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True when the others should be told.
    fn start(&self, typist: Typist, now: Timestamp) -> bool {
        let mut typists = self.lock();
        let key = (typist.tenant, typist.room, typist.user);
        if let Some(since) = typists.get_mut(&key) {
            since.repeated = now;
            let is_news = since.told.after(REFRESH) <= now;
            if is_news {
                since.told = now;
            }
            is_news
        } else {
            typists.insert(key, Since { name: typist.name, told: now, repeated: now });
            true
        }
    }

    /// `Some` when they were typing.
    pub fn stop(&self, tenant: &TenantId, room: &RoomId, user: &UserId) -> Option<Typist> {
        let key = (tenant.clone(), room.clone(), user.clone());
        let since = self.lock().remove(&key)?;
        Some(Typist { tenant: key.0, room: key.1, user: key.2, name: since.name })
    }

    /// Those who have not repeated it in time.
    pub fn expire(&self, now: Timestamp) -> Vec<Typist> {
        self.lock()
            .extract_if(|_, since| since.repeated.after(EXPIRY) <= now)
            .map(|((tenant, room, user), since)| Typist { tenant, room, user, name: since.name })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typist() -> Typist {
        Typist {
            tenant: TenantId::new("t").unwrap(),
            room: RoomId::new("algebra").unwrap(),
            user: UserId::new("ana").unwrap(),
            name: "Ana".into(),
        }
    }

    #[test]
    fn typing_is_told_once_in_three_seconds_and_ends_after_six() {
        let typists = Typists::default();
        assert!(typists.start(typist(), Timestamp(0)));
        assert!(!typists.start(typist(), Timestamp(2_999)));
        assert!(typists.start(typist(), Timestamp(3_000)));
        assert!(typists.expire(Timestamp(8_999)).is_empty());
        assert_eq!(typists.expire(Timestamp(9_000)), [typist()]);
        assert!(typists.expire(Timestamp(9_001)).is_empty());
    }
}
