//! What a token says, in an app's own words.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context as _;
use carillon_domain::{
    AppId, TenantId, Timestamp, UserId,
    api::users::{MAX_EMAIL, MAX_NAME},
    chat::text,
    identity::{Claims, Issue, Role},
};
use jsonwebtoken::Algorithm;
use serde_json::{Map, Value};

use super::{keys::Key, reason::Reason, source::Source};
use crate::{
    config::{self, ClaimNames, Expiry},
    http::origin::{OriginId, Origins},
};

/// A token issued so far in the future says nothing about when it was issued.
const FAR_AHEAD: Duration = Duration::from_mins(5);

/// One frontend: its keys, and how its tokens are read.
pub struct App {
    pub id: AppId,
    pub tenant: TenantId,
    pub provision_users: bool,
    pub expiry: Expiry,
    pub keys: Vec<Key>,
    pub sources: Vec<Arc<Source>>,
    issuers: Vec<String>,
    audiences: Vec<String>,
    names: ClaimNames,
    roles: BTreeMap<String, Role>,
    /// `None`: wherever any app may be served from.
    origins: Option<Vec<OriginId>>,
}

/// What a verified token says.
pub struct Said {
    pub claims: Claims,
    pub expires_at: Timestamp,
    pub has_expired: bool,
}

/// The time tokens are judged at.
#[derive(Clone, Copy)]
pub struct Moment {
    pub now: Timestamp,
    pub leeway: Duration,
}

impl App {
    pub fn new(
        app: &config::App,
        sources: Vec<Arc<Source>>,
        origins: &Origins,
    ) -> anyhow::Result<Self> {
        let keys = app.keys.iter().map(Key::from_config).filter_map(Result::transpose);
        Ok(Self {
            id: AppId::new(&app.id).context("the id of an app is 1 to 128 characters")?,
            tenant: app.tenant.clone(),
            provision_users: app.provision_users,
            expiry: app.expiry,
            keys: keys.collect::<anyhow::Result<_>>()?,
            sources,
            issuers: app.issuer.0.clone(),
            audiences: app.audience.0.clone(),
            names: app.claims.clone(),
            roles: app.roles.clone(),
            origins: (!app.allowed_origins.is_empty()).then(|| origins.of(app)),
        })
    }

    /// Whether a page of that origin is this app's; a client that is no page has none.
    pub fn is_served_from(&self, origin: Option<OriginId>) -> bool {
        match (&self.origins, origin) {
            (Some(own), Some(origin)) => own.contains(&origin),
            _ => true,
        }
    }

    /// Every key that may have signed such a token.
    pub fn verify(
        &self,
        token: &str,
        algorithm: Algorithm,
        kid: Option<&str>,
    ) -> Option<Map<String, Value>> {
        let try_all = |keys: &[Key]| {
            keys.iter().filter(|key| key.fits(algorithm, kid)).find_map(|key| key.verify(token))
        };
        try_all(&self.keys)
            .or_else(|| self.sources.iter().find_map(|source| try_all(&source.keys().keys)))
    }

    /// Whether issuer and audience are this app's.
    pub fn is_addressed(&self, claims: &Map<String, Value>) -> Result<(), Reason> {
        let is_one = |value: &Value, of: &[String]| {
            value.as_str().is_some_and(|text| of.iter().any(|one| one == text))
        };
        if !self.issuers.is_empty()
            && !claims.get("iss").is_some_and(|issuer| is_one(issuer, &self.issuers))
        {
            return Err(Reason::Issuer);
        }
        let is_meant = |audience: &Value| match audience {
            Value::Array(several) => several.iter().any(|one| is_one(one, &self.audiences)),
            one => is_one(one, &self.audiences),
        };
        if !self.audiences.is_empty() && !claims.get("aud").is_some_and(is_meant) {
            return Err(Reason::Audience);
        }
        Ok(())
    }

    /// Judges and reads what a key of this app has signed.
    pub fn read(&self, claims: &Map<String, Value>, at: Moment) -> Result<Said, Reason> {
        self.is_addressed(claims)?;
        let expires_at = instant(claims, "exp").ok_or(Reason::Claims)?;
        if claims.contains_key("nbf") {
            let not_before = instant(claims, "nbf").ok_or(Reason::Claims)?;
            if not_before > at.now.after(at.leeway) {
                return Err(Reason::NotYet);
            }
        }
        if let Some(tenant) = self.names.tenant.as_deref().and_then(|name| find(claims, name))
            && id_text(tenant).as_deref() != Some(self.tenant.as_str())
        {
            return Err(Reason::Tenant);
        }
        let user = self.user(claims).ok_or(Reason::User)?;
        let text = |name: &str, max: usize| {
            let text = find(claims, name).and_then(Value::as_str)?;
            Some(text.chars().filter(|c| !c.is_control()).take(max).collect::<String>())
        };
        let issued_at = instant(claims, "iat").filter(|at_iat| *at_iat <= at.now.after(FAR_AHEAD));
        Ok(Said {
            claims: Claims {
                user,
                name: text(&self.names.name, MAX_NAME),
                role: self.role(find(claims, &self.names.role)),
                email: text(&self.names.email, MAX_EMAIL).filter(|email| !email.is_empty()),
                avatar: find(claims, &self.names.picture)
                    .and_then(Value::as_str)
                    .and_then(|link| text::link("picture", Some(link.to_owned())).ok().flatten()),
                issue: Issue {
                    at: issued_at,
                    version: find(claims, "tokenVersion").and_then(Value::as_i64).unwrap_or(0),
                },
            },
            expires_at,
            has_expired: expires_at.after(at.leeway) <= at.now,
        })
    }

    /// `None` where the claims name nobody, two different users, or somebody nobody can be.
    pub fn user(&self, claims: &Map<String, Value>) -> Option<UserId> {
        let mut ids = self.names.user.iter().filter_map(|name| find(claims, name)).map(id_text);
        let user = ids.next()??;
        if ids.any(|other| other.as_ref() != Some(&user)) {
            return None;
        }
        UserId::new(user).ok().filter(|user| !user.is_reserved())
    }

    /// Whom a token claims to be, verified or not: what failures are counted under.
    pub fn claimed_user(&self, claims: &Map<String, Value>) -> Option<String> {
        self.names.user.iter().find_map(|name| find(claims, name)).and_then(id_text)
    }

    /// Of several roles the highest.
    fn role(&self, claim: Option<&Value>) -> Role {
        let rank = |role: &Role| Role::ALL.iter().position(|one| one == role);
        let words: &[Value] = match claim {
            Some(Value::Array(words)) => words,
            Some(word) => std::slice::from_ref(word),
            None => &[],
        };
        let roles = words.iter().filter_map(Value::as_str).map(|word| self.role_of(word));
        roles.min_by_key(rank).unwrap_or(Role::Student)
    }

    /// The app's own mapping, then the words of the systems replaced, then STUDENT.
    fn role_of(&self, theirs: &str) -> Role {
        if let Some(role) = self.roles.get(theirs) {
            return *role;
        }
        match theirs.to_uppercase().as_str() {
            "TEACHER" | "EDUCATOR" | "LECTURER" => Role::Mentor,
            "ADMIN" | "ORGANIZATION_ADMIN" => Role::ProgramAdmin,
            "INVIGILATOR" => Role::Proctor,
            canonical => Role::parse(canonical).unwrap_or(Role::Student),
        }
    }
}

/// The claim of that name; else, step by step, the one inside others: names may hold dots, too.
fn find<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let found = claims.get(name).or_else(|| {
        let mut steps = name.split('.');
        let first = claims.get(steps.next()?)?;
        let mut is_nested = false;
        let found = steps.try_fold(first, |value, step| {
            is_nested = true;
            value.get(step)
        });
        found.filter(|_| is_nested)
    });
    found.filter(|value| !value.is_null())
}

/// A claim in seconds since 1970, perhaps with a fraction.
pub fn instant(claims: &Map<String, Value>, name: &str) -> Option<Timestamp> {
    let seconds = claims.get(name)?.as_f64()?;
    #[expect(clippy::cast_possible_truncation, reason = "a float that is too large saturates")]
    Some(Timestamp((seconds * 1_000.0) as i64))
}

/// Numbers count as their decimal text.
fn id_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) if number.is_i64() || number.is_u64() => Some(number.to_string()),
        _ => None,
    }
}
