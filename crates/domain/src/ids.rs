//! The names of things. Two ids never share a type, and all of them are cheap to clone.

use std::{borrow::Cow, fmt, sync::Arc};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Ids of other systems are opaque text of at most this many characters.
pub const MAX_ID_CHARS: usize = 128;

/// Why a text is not an id.
#[derive(Debug, thiserror::Error)]
#[error("an id is 1 to 128 characters without control characters")]
pub struct InvalidId;

macro_rules! text_id {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks length and characters; see [`MAX_ID_CHARS`].
            pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidId> {
                let text = text.as_ref();
                let sound = !text.is_empty()
                    && text.chars().count() <= MAX_ID_CHARS
                    && !text.chars().any(char::is_control);
                if sound { Ok(Self(text.into())) } else { Err(InvalidId) }
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::new(Cow::<str>::deserialize(deserializer)?).map_err(D::Error::custom)
            }
        }

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "minLength": 1, "maxLength": MAX_ID_CHARS })
            }
        }
    )*};
}

text_id! {
    /// A school or company; nothing crosses from one to another.
    TenantId
    /// A person, as the credential names them.
    UserId
    /// A frontend, as the configuration names it.
    AppId
    /// A chat room, as clients name it.
    RoomId
    /// A chat message; minted here as a `UUIDv7`.
    MessageId
    /// A stored notification; minted here as a `UUIDv7`.
    NotificationId
    /// One Socket.IO socket or WebSocket, as others may see it: 20 characters, as Node's. The
    /// engine's session id is a secret and something else.
    ConnectionId
    /// An exam, as the school's backend names it.
    ExamId
    /// A question of an exam's paper.
    QuestionId
    /// One student's attempt at an exam; minted here as a `UUIDv7`.
    AttemptId
    /// The result of an attempt; minted here as a `UUIDv7`.
    ResultId
    /// A study group; minted here as a `UUIDv7`.
    GroupId
}

impl GroupId {
    /// For examples.
    pub(crate) fn sample() -> Self {
        Self::new("0190a1b2-c3d4-7e5f-8a6b-0c1d2e3f4a5b").expect("a sound id")
    }
}

impl UserId {
    /// Whether nobody may be called so: journals and audits name the system by a leading space and
    /// backends by `api:`.
    pub fn is_reserved(&self) -> bool {
        self.0.starts_with(char::is_whitespace) || self.0.starts_with("api:")
    }
}

impl RoomId {
    /// The room of everybody who sits an exam. Longer than what clients may name, by its prefix.
    pub fn of_exam(exam: &ExamId) -> Self {
        Self(format!("exam:{exam}").into())
    }

    /// The exam this is the room of.
    pub fn exam(&self) -> Option<ExamId> {
        ExamId::new(self.0.strip_prefix("exam:")?).ok()
    }

    /// Whether this is the room of a study group.
    pub fn is_study_group(&self) -> bool {
        self.0.starts_with("study-group:")
    }
}

/// A position in everything a tenant has published: gapless, in commit order.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Offset(pub i64);

/// A position in one room: gapless, in commit order.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(transparent)]
pub struct Seq(pub i64);

/// An instant in UTC milliseconds; ISO 8601 with milliseconds and `Z` on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// This instant plus a duration.
    #[must_use]
    pub fn after(self, duration: std::time::Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    /// This instant less a duration.
    #[must_use]
    pub fn before(self, duration: std::time::Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(instant) => write!(f, "{instant:.3}"),
            Err(_) => f.write_str("1970-01-01T00:00:00.000Z"),
        }
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        let instant: jiff::Timestamp = text.parse().map_err(|_| {
            D::Error::custom("an instant is written as in 2026-01-31T09:00:00.000Z")
        })?;
        Ok(Self(instant.as_millisecond()))
    }
}

impl JsonSchema for Timestamp {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Timestamp".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "date-time" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_reads_as_javascript_writes_it() {
        assert_eq!(Timestamp(1_700_000_000_007).to_string(), "2023-11-14T22:13:20.007Z");
        assert_eq!(Timestamp(1_700_000_000_000).to_string(), "2023-11-14T22:13:20.000Z");
    }

    #[test]
    fn nobody_is_called_as_the_system_or_as_a_backend() {
        for reserved in [" system", " ana", "\u{a0}ana", "api:", "api:backend"] {
            assert!(UserId::new(reserved).unwrap().is_reserved(), "{reserved:?}");
        }
        for free in ["ana", "api", "Api:ana", "ana api:", "42"] {
            assert!(!UserId::new(free).unwrap().is_reserved(), "{free:?}");
        }
    }

    #[test]
    fn an_id_is_short_printable_text() {
        assert!(RoomId::new("mentor:7").is_ok());
        assert!(RoomId::new("é".repeat(128)).is_ok());
        for bad in ["", "a\nb", &"x".repeat(129)] {
            assert!(UserId::new(bad).is_err(), "{bad:?}");
        }
        let exam = ExamId::new("x".repeat(128)).unwrap();
        assert_eq!(RoomId::of_exam(&exam).exam(), Some(exam));
        assert!(serde_json::from_str::<RoomId>("7").is_err());
    }
}
