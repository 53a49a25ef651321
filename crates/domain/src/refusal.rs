//! Every answer that is a "no".

use std::{borrow::Cow, error::Error, time::Duration};

use serde::Serialize;

type Source = Box<dyn Error + Send + Sync>;

/// The stable word for a refusal, one list for socket and HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Code {
    Invalid,
    Unauthenticated,
    Forbidden,
    NotFound,
    Conflict,
    RateLimited,
    TooLarge,
    Busy,
    Unavailable,
    Internal,
    NotAMember,
    IdempotencyMismatch,
    AttemptClosed,
    Paused,
    Superseded,
    UnknownQuestion,
    GroupFull,
    AlreadyMember,
}

impl Code {
    /// The word as it stands on the wire and in metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "INVALID",
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::Forbidden => "FORBIDDEN",
            Self::NotFound => "NOT_FOUND",
            Self::Conflict => "CONFLICT",
            Self::RateLimited => "RATE_LIMITED",
            Self::TooLarge => "TOO_LARGE",
            Self::Busy => "BUSY",
            Self::Unavailable => "UNAVAILABLE",
            Self::Internal => "INTERNAL",
            Self::NotAMember => "NOT_A_MEMBER",
            Self::IdempotencyMismatch => "IDEMPOTENCY_MISMATCH",
            Self::AttemptClosed => "ATTEMPT_CLOSED",
            Self::Paused => "PAUSED",
            Self::Superseded => "SUPERSEDED",
            Self::UnknownQuestion => "UNKNOWN_QUESTION",
            Self::GroupFull => "GROUP_FULL",
            Self::AlreadyMember => "ALREADY_MEMBER",
        }
    }
}

/// An expected no, or an unexpected failure wrapped so that nothing of it reaches a client.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// A required field is missing, empty or of the wrong type.
    #[error("a required field is missing or of the wrong type: {0}")]
    Required(Cow<'static, str>),
    /// Anything else that is wrong with the payload; the text is safe to show.
    #[error("{0}")]
    Invalid(Cow<'static, str>),
    #[error("no such event")]
    UnknownEvent,
    /// Whatever let the caller in does so no more, or what they show proves nothing.
    #[error("not authenticated")]
    Unauthenticated,
    /// The credential is good, and somebody else's: whoever shows it is not who came.
    #[error("the credential is another user's")]
    OtherUser,
    /// What the command was judged by changed while it ran, the caller's rights or their attempt:
    /// nothing was kept, and the same command is judged anew.
    #[error("what it was judged by has changed")]
    Outdated,
    #[error("{0}")]
    TooLarge(Cow<'static, str>),
    /// Foreign or absent: the two look the same.
    #[error("not allowed")]
    Forbidden,
    #[error("no such object")]
    NotFound,
    #[error("not a member of this room")]
    NotAMember,
    #[error("the key was used for something else")]
    IdempotencyMismatch,
    /// It contradicts what there is; the text is safe to show.
    #[error("{0}")]
    Conflict(Cow<'static, str>),
    /// The attempt, or the exam, takes nothing any more; the text is safe to show.
    #[error("{0}")]
    AttemptClosed(Cow<'static, str>),
    #[error("the attempt is paused")]
    Paused,
    /// The paper has no such question.
    #[error("{0}")]
    UnknownQuestion(Cow<'static, str>),
    #[error("the study group is full")]
    GroupFull,
    #[error("already a member")]
    AlreadyMember,
    #[error("too many requests")]
    RateLimited { retry_after: Duration },
    #[error("overloaded")]
    Busy { retry_after: Duration },
    /// The database is away; nothing was kept.
    #[error("temporarily unavailable")]
    Unavailable(#[source] Option<Source>),
    #[error("internal error")]
    Internal(#[source] Source),
}

impl Refusal {
    /// An unexpected failure; the client sees a code, the log the chain.
    pub fn internal(source: impl Into<Source>) -> Self {
        Self::Internal(source.into())
    }

    /// The database could not be asked.
    pub fn unavailable(source: impl Into<Source>) -> Self {
        Self::Unavailable(Some(source.into()))
    }

    pub const fn code(&self) -> Code {
        match self {
            Self::Required(_) | Self::Invalid(_) | Self::UnknownEvent => Code::Invalid,
            Self::TooLarge(_) => Code::TooLarge,
            Self::Unauthenticated | Self::OtherUser => Code::Unauthenticated,
            Self::Forbidden => Code::Forbidden,
            Self::NotFound => Code::NotFound,
            Self::NotAMember => Code::NotAMember,
            Self::IdempotencyMismatch => Code::IdempotencyMismatch,
            Self::Conflict(_) => Code::Conflict,
            Self::AttemptClosed(_) => Code::AttemptClosed,
            Self::Paused => Code::Paused,
            Self::UnknownQuestion(_) => Code::UnknownQuestion,
            Self::GroupFull => Code::GroupFull,
            Self::AlreadyMember => Code::AlreadyMember,
            Self::RateLimited { .. } => Code::RateLimited,
            Self::Busy { .. } => Code::Busy,
            Self::Unavailable(_) | Self::Outdated => Code::Unavailable,
            Self::Internal(_) => Code::Internal,
        }
    }

    /// How long to wait before the same request may succeed; `None` where it never will.
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after } | Self::Busy { retry_after } => Some(*retry_after),
            Self::Unavailable(_) | Self::Outdated => Some(Duration::from_secs(1)),
            _ => None,
        }
    }

    /// What more can be said to the caller than the contract's text.
    fn detail(&self) -> Option<&str> {
        match self {
            Self::Required(text)
            | Self::Invalid(text)
            | Self::TooLarge(text)
            | Self::Conflict(text)
            | Self::AttemptClosed(text)
            | Self::UnknownQuestion(text) => Some(text),
            _ => None,
        }
    }

    /// The refusal as it is told: `message` is the contract's text, chosen by the command.
    pub fn told<'a>(&'a self, message: &'a str) -> Told<'a> {
        let retry_after = self.retry_after();
        Told {
            code: self.code(),
            message,
            retryable: retry_after.is_some() || matches!(self, Self::Internal(_)),
            retry_after_ms: retry_after
                .map(|wait| u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)),
            detail: self.detail(),
        }
    }
}

/// The body of the `error` event, and behind `ok: false` of an acknowledgement.
#[derive(Debug, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Told<'a> {
    pub message: &'a str,
    pub code: Code,
    pub retryable: bool,
    /// Milliseconds to wait before trying again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// Which field, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<&'a str>,
}
