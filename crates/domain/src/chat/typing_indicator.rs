//! `typing-indicator`: in memory only, and gone by itself after 6 s.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

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
/// Its node tells that it has ended within this, and on its way it takes a moment.
const EXPIRY_ELSEWHERE: Duration =
    EXPIRY.saturating_add(REFRESH).saturating_add(Duration::from_secs(2));
/// More are not watched.
const MAX_ELSEWHERE: usize = 10_000;

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
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
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

/// Who types where, on this node, and whom others have told of.
#[derive(Debug, Default)]
pub struct Typists {
    now: Mutex<HashMap<Key, Since>>,
    elsewhere: Mutex<HashMap<Key, Since>>,
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

    /// Another node has told of somebody. It tells of their end, too, unless it is gone by then, or
    /// cannot be heard.
    pub fn hear(&self, tenant: &TenantId, told: &RawValue, now: Timestamp) {
        let Ok(Typing { room_id, user_id, user_name: name, is_typing }) =
            serde_json::from_str(told.get())
        else {
            return;
        };
        let mut elsewhere = self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (tenant.clone(), room_id, user_id);
        if !is_typing {
            elsewhere.remove(&key);
        } else if elsewhere.len() < MAX_ELSEWHERE || elsewhere.contains_key(&key) {
            elsewhere.insert(key, Since { name, told: now, repeated: now });
        }
    }

    /// Those who have not repeated it in time.
    pub fn expire(&self, now: Timestamp) -> Vec<Typist> {
        expired(&mut self.lock(), EXPIRY, now)
    }

    /// Those elsewhere of whom no end was told.
    pub fn expire_elsewhere(&self, now: Timestamp) -> Vec<Typist> {
        let mut elsewhere = self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner);
        expired(&mut elsewhere, EXPIRY_ELSEWHERE, now)
    }
}

fn expired(typists: &mut HashMap<Key, Since>, after: Duration, now: Timestamp) -> Vec<Typist> {
    typists
        .extract_if(|_, since| since.repeated.after(after) <= now)
        .map(|((tenant, room, user), since)| Typist { tenant, room, user, name: since.name })
        .collect()
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

    #[test]
    fn typing_elsewhere_of_which_no_end_is_told_ends() {
        let typists = Typists::default();
        let tell = |is_typing: bool, at: i64| {
            let (room_id, user_id) = (typist().room, typist().user);
            let told = Typing { room_id, user_id, user_name: "Ana".into(), is_typing };
            let told = serde_json::value::to_raw_value(&told).unwrap();
            typists.hear(&typist().tenant, &told, Timestamp(at));
        };
        tell(true, 0);
        tell(true, 3_000);
        assert!(typists.expire_elsewhere(Timestamp(13_999)).is_empty());
        assert_eq!(typists.expire_elsewhere(Timestamp(14_000)), [typist()]);
        tell(true, 20_000);
        tell(false, 21_000);
        assert!(typists.expire_elsewhere(Timestamp(99_000)).is_empty());
    }
}
