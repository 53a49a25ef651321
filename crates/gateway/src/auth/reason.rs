//! Why a token is invalid: the client is told only that it is, the operator sees which.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

/// Why a token does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It cannot be read, or names no algorithm of ours.
    Malformed,
    /// No key of ours has signed it.
    Signature,
    Issuer,
    Audience,
    /// It belongs to another tenant.
    Tenant,
    /// It comes from a page that is not the app's.
    Origin,
    /// `exp` is missing, or something is of the wrong type.
    Claims,
    /// It names nobody, two different users, or somebody nobody can be.
    User,
    NotYet,
    Expired,
    Revoked,
    /// It was refused a moment ago.
    Remembered,
}

impl Reason {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Signature => "signature",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
            Self::Tenant => "tenant",
            Self::Origin => "origin",
            Self::Claims => "claims",
            Self::User => "user",
            Self::NotYet => "not_yet",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Remembered => "remembered",
        }
    }

    /// Whether the same token fails again while the keys are the same, wherever it comes from.
    pub const fn is_final(self) -> bool {
        match self {
            Self::Malformed
            | Self::Signature
            | Self::Issuer
            | Self::Audience
            | Self::Tenant
            | Self::Claims
            | Self::User => true,
            Self::Origin | Self::NotYet | Self::Expired | Self::Revoked | Self::Remembered => false,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Invalid {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refreshed {
    result: &'static str,
}

/// What authentication counts.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    invalid: Family<Invalid, Counter>,
    refreshes: Family<Refreshed, Counter>,
    expired: Counter,
}

impl Metrics {
    pub fn register(&self, registry: &mut Registry) {
        registry.register("invalid_tokens", "Tokens refused, by reason", self.invalid.clone());
        registry.register("key_refreshes", "Reads of key sets", self.refreshes.clone());
        registry.register("expired", "Sockets cut when their token ran out", self.expired.clone());
    }

    pub fn invalid(&self, reason: Reason) {
        self.invalid.get_or_create(&Invalid { reason: reason.as_str() }).inc();
    }

    pub fn expired(&self) {
        self.expired.inc();
    }

    pub fn refreshed(&self, is_ok: bool) {
        let result = if is_ok { "ok" } else { "failed" };
        self.refreshes.get_or_create(&Refreshed { result }).inc();
    }
}
