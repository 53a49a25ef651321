//! Who somebody is, once a credential has been verified.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{Timestamp, UserId};

/// The canonical roles; each app maps its own words onto these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Role {
    SuperAdmin,
    ProgramAdmin,
    Mentor,
    Reviewer,
    Proctor,
    Student,
}

impl Role {
    pub const ALL: &'static [Self] = &[
        Self::SuperAdmin,
        Self::ProgramAdmin,
        Self::Mentor,
        Self::Reviewer,
        Self::Proctor,
        Self::Student,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SuperAdmin => "SUPER_ADMIN",
            Self::ProgramAdmin => "PROGRAM_ADMIN",
            Self::Mentor => "MENTOR",
            Self::Reviewer => "REVIEWER",
            Self::Proctor => "PROCTOR",
            Self::Student => "STUDENT",
        }
    }

    /// The role of that name, in the canonical spelling.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|role| role.as_str() == text)
    }

    /// Everybody who is not a student.
    pub const fn is_staff(self) -> bool {
        !matches!(self, Self::Student)
    }
}

/// Whether a user may use the platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum UserStatus {
    Verified,
    Pending,
    Suspended,
}

impl UserStatus {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Verified => "VERIFIED",
            Self::Pending => "PENDING",
            Self::Suspended => "SUSPENDED",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Self::Verified, Self::Pending, Self::Suspended]
            .into_iter()
            .find(|status| status.as_str() == text)
    }
}

/// A user's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub id: UserId,
    /// Never empty: clients take its first letter.
    pub name: String,
    pub role: Role,
    pub avatar: Option<String>,
    pub status: UserStatus,
    /// When the token this row was made from was issued; `None` for rows managed elsewhere.
    pub claims_issued_at: Option<Timestamp>,
    /// Which of the user's tokens still count.
    pub tokens: TokenRule,
    /// The row of a deleted user stays, so that no token makes it again.
    pub is_deleted: bool,
}

/// When a token was issued, and as which version of its user's tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Issue {
    pub at: Option<Timestamp>,
    /// 0 for a token that does not say.
    pub version: i64,
}

/// Which tokens of a user count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TokenRule {
    /// Tokens issued before this are refused; null when none was revoked.
    #[serde(rename = "tokensValidFrom")]
    pub valid_from: Option<Timestamp>,
    /// Tokens of a lower version are refused. Raised, never lowered.
    #[serde(rename = "tokenVersion")]
    pub version: i64,
}

impl TokenRule {
    /// One that does not say when it was issued is refused, once any was revoked.
    pub fn accepts(&self, token: Issue) -> bool {
        self.valid_from.is_none_or(|from| token.at.is_some_and(|at| at >= from))
            && token.version >= self.version
    }
}

/// Everything the server API shows of a user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Account {
    pub id: UserId,
    pub name: String,
    pub email: Option<String>,
    pub role: Role,
    pub avatar: Option<String>,
    pub target_specialty: Option<String>,
    pub status: UserStatus,
    /// Whether the row is managed here; otherwise it follows the user's tokens.
    pub managed: bool,
    #[serde(flatten)]
    pub tokens: TokenRule,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// What a verified token says about its bearer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    pub user: UserId,
    pub name: Option<String>,
    pub role: Role,
    pub email: Option<String>,
    pub avatar: Option<String>,
    /// A row made from claims follows the newest token only.
    pub issue: Issue,
}

impl Claims {
    /// The name to show: the claim, else the part of the address before `@`, else the id.
    pub fn display_name(&self) -> &str {
        let local_part = self.email.as_deref().and_then(|email| email.split('@').next());
        [self.name.as_deref(), local_part]
            .into_iter()
            .flatten()
            .map(str::trim)
            .find(|name| !name.is_empty())
            .unwrap_or(self.user.as_str())
    }
}
