//! From a handshake to a caller: which app's key verifies the token, what its claims say, and
//! whether that user may come in.

mod claims;
mod failures;
mod jwks;
mod keys;
mod reason;
mod source;
#[cfg(test)]
mod tests;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use async_trait::async_trait;
use carillon_domain::{
    App as Domain, AppId, Refusal, TenantId, Timestamp, UserId,
    contract::Scope,
    credential::{Bearer, MAX_TOKEN, Token},
    identity::{Claims, Issue, User, UserStatus},
    ports::{Clock, Credentials},
    presence::NOTED_WINDOW,
};
use futures_util::future::join_all;
use jsonwebtoken::{Algorithm, dangerous::insecure_decode_claims, decode_header};
use serde_json::{Map, Value};

pub use self::reason::{Metrics, Reason};
use self::{
    claims::{App, Moment, Said, instant},
    failures::{Failures, Fingerprint},
    source::{Looked, Shared, Source},
};
use crate::{
    clock::SystemClock,
    config::{self, Config, Expiry},
    http::{
        client::Client,
        origin::{OriginId, Origins},
    },
};

/// How long it may take to reach a source of keys.
const CONNECT: Duration = Duration::from_secs(3);

/// Why a client is told `connect_error`. Only for a definite refusal of the credential: what
/// passes by itself closes the transport instead.
#[derive(Debug, thiserror::Error)]
pub enum Denied {
    #[error("Authentication error: No token provided")]
    NoToken,
    #[error("Authentication error: Invalid token")]
    InvalidToken(Reason),
    #[error("Authentication error: User not found")]
    UserNotFound,
    #[error("Authentication error: Account suspended")]
    Suspended,
    /// Not told: the database could not be asked.
    #[error("temporarily unavailable")]
    Away(#[source] Refusal),
    /// Not told: the token may be signed by a key that could not be read.
    #[error("temporarily unavailable")]
    KeysAway,
}

impl Denied {
    /// As metrics and the audit log name it.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::NoToken => "no_token",
            Self::InvalidToken(_) => "invalid_token",
            Self::UserNotFound => "user_not_found",
            Self::Suspended => "suspended",
            Self::Away(_) => "unavailable",
            Self::KeysAway => "keys_unavailable",
        }
    }
}

/// The apps and their keys, ready to verify.
pub struct Authenticator {
    apps: Vec<App>,
    sources: Vec<Arc<Source>>,
    /// Raised with every change of a key set.
    generation: Arc<AtomicU64>,
    failures: Failures,
    metrics: Metrics,
    leeway: Duration,
    max_age: Duration,
}

/// What a client shows.
#[derive(Clone, Copy)]
pub struct Presented<'a> {
    pub token: Option<&'a str>,
    /// The page it comes from.
    pub origin: Option<OriginId>,
}

/// A token before any of it is believed.
struct Unverified<'a> {
    token: &'a str,
    algorithm: Algorithm,
    kid: Option<String>,
    claims: Map<String, Value>,
    origin: Option<OriginId>,
    presented: Instant,
}

/// A token that an app's key has verified.
struct Verified<'a> {
    app: &'a App,
    said: Said,
}

/// Who came, and to which tenant.
#[derive(Debug)]
pub struct Identity {
    pub app: AppId,
    pub tenant: TenantId,
    pub user: User,
    pub expires_at: Timestamp,
    pub expiry: Expiry,
    pub issue: Issue,
}

/// Whether a token that has expired may still bring somebody back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lapsed {
    MayReturn,
    Refused,
}

/// Whether every key of the configuration can be used; addresses are not asked.
pub fn check(config: &Config) -> anyhow::Result<()> {
    let origins = Origins::new(&config.apps, false);
    Authenticator::new(config, &origins, Arc::new(SystemClock), Metrics::default()).map(|_| ())
}

impl Authenticator {
    pub fn new(
        config: &Config,
        origins: &Origins,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> anyhow::Result<Self> {
        let generation = Arc::new(AtomicU64::new(0));
        let shared = Shared { generation: generation.clone(), clock, metrics: metrics.clone() };
        let mut sources: Vec<Arc<Source>> = Vec::new();
        // A token that two apps could verify belongs to the default one.
        let mut apps: Vec<&config::App> = config.apps.iter().collect();
        apps.sort_by_key(|app| !app.default);
        let mut ready = Vec::new();
        for app in apps {
            let name = || format!("in the app {:?}", app.id);
            let own = sources_of(app, &mut sources, &shared).with_context(name)?;
            ready.push(App::new(app, own, origins).with_context(name)?);
        }
        Ok(Self {
            apps: ready,
            sources,
            generation,
            failures: Failures::new(config.limits.failed_authentications.0),
            metrics,
            leeway: config.auth.leeway.0,
            max_age: config.auth.max_age.0,
        })
    }

    /// Keeps the keys of all sources fresh; never ends by itself.
    pub async fn keep_keys_fresh(&self) {
        if self.sources.is_empty() {
            return std::future::pending().await;
        }
        match Client::new(CONNECT) {
            Ok(client) => {
                join_all(self.sources.iter().map(|source| source.run(&client))).await;
            }
            Err(error) => {
                tracing::error!("no key set can be asked for: {error:#}");
                std::future::pending::<()>().await;
            }
        }
    }

    /// Verifies the token, finds or makes the user's row, and checks that they may come in.
    pub async fn authenticate(
        &self,
        domain: &Domain,
        presented: Presented<'_>,
    ) -> Result<Identity, Denied> {
        self.admit(domain, presented, Lapsed::MayReturn).await
    }

    /// Counts a refused token under the user it claims to be; true when there were too many. Good
    /// tokens never come here.
    pub fn is_one_too_many(&self, token: &str) -> bool {
        let user = self.claimed_user(token);
        self.failures.count(user.as_deref().unwrap_or_default())
    }

    /// Whom a token names, which proves nothing; no longer than an id.
    pub fn claimed_user(&self, token: &str) -> Option<String> {
        let claims: Map<String, Value> = match token.len() {
            0..=MAX_TOKEN => insecure_decode_claims(token).ok()?,
            _ => return None,
        };
        let user = self.apps.iter().find_map(|app| app.claimed_user(&claims))?;
        Some(user.chars().filter(|char| !char.is_control()).take(128).collect())
    }

    /// Whose token it is, when a key of ours has signed it; whether it counts is another question.
    /// It may name somebody nobody can be.
    pub fn bearer(&self, token: &str) -> Option<(TenantId, Option<UserId>)> {
        let generation = self.generation.load(Ordering::Acquire);
        if token.len() > MAX_TOKEN || self.failures.knows(Fingerprint::of(token), generation) {
            return None;
        }
        let token = Unverified::read(token, None)?;
        self.apps.iter().find_map(|app| {
            let claims = app.verify(token.token, token.algorithm, token.kid.as_deref())?;
            Some((app.tenant.clone(), app.user(&claims)))
        })
    }

    async fn admit(
        &self,
        domain: &Domain,
        presented: Presented<'_>,
        lapsed: Lapsed,
    ) -> Result<Identity, Denied> {
        let result = self.judge(domain, presented, lapsed).await;
        if let Err(Denied::InvalidToken(reason)) = &result {
            self.metrics.invalid(*reason);
        }
        result
    }

    async fn judge(
        &self,
        domain: &Domain,
        presented: Presented<'_>,
        lapsed: Lapsed,
    ) -> Result<Identity, Denied> {
        let token = presented.token.filter(|token| !token.is_empty()).ok_or(Denied::NoToken)?;
        let now = domain.clock.now();
        let Verified { app, said } = self.recognise(token, presented.origin, now).await?;
        let Said { claims, expires_at, has_expired } = said;
        if has_expired {
            let may_return = lapsed == Lapsed::MayReturn
                && app.expiry == Expiry::Outlive
                && self.may_return(domain, app, &claims, now).await?;
            if !may_return {
                return Err(Denied::InvalidToken(Reason::Expired));
            }
        }
        let found = find_user(domain, app, &claims, now).await.map_err(Denied::Away)?;
        let user = found.filter(|user| !user.is_deleted).ok_or(Denied::UserNotFound)?;
        if !user.tokens.accepts(claims.issue) {
            return Err(Denied::InvalidToken(Reason::Revoked));
        }
        match user.status {
            UserStatus::Suspended => Err(Denied::Suspended),
            UserStatus::Verified | UserStatus::Pending => Ok(Identity {
                app: app.id.clone(),
                tenant: app.tenant.clone(),
                user,
                expires_at,
                expiry: app.expiry,
                issue: claims.issue,
            }),
        }
    }

    /// The first app that has signed the token and takes it decides. A key that is not known yet
    /// is looked for before anybody is refused.
    async fn recognise(
        &self,
        token: &str,
        origin: Option<OriginId>,
        now: Timestamp,
    ) -> Result<Verified<'_>, Denied> {
        if token.len() > MAX_TOKEN {
            return Err(Denied::InvalidToken(Reason::Malformed));
        }
        let print = Fingerprint::of(token);
        let generation = self.generation.load(Ordering::Acquire);
        if self.failures.knows(print, generation) {
            return Err(Denied::InvalidToken(Reason::Remembered));
        }
        let mut result = Err(Reason::Malformed);
        if let Some(unverified) = Unverified::read(token, origin) {
            result = self.try_keys(&unverified, now);
            if let Err(Reason::Signature) = result {
                let looked = self.look_for_key(&unverified).await;
                if looked.is_some() {
                    result = self.try_keys(&unverified, now);
                }
                if looked == Some(Looked::Unsure) && matches!(result, Err(Reason::Signature)) {
                    return Err(Denied::KeysAway);
                }
            }
        }
        result.map_err(|reason| {
            if reason.is_final() {
                self.failures.remember(print, generation);
            }
            Denied::InvalidToken(reason)
        })
    }

    fn try_keys(&self, token: &Unverified<'_>, now: Timestamp) -> Result<Verified<'_>, Reason> {
        let moment = Moment { now, leeway: self.leeway };
        let mut reason = Reason::Signature;
        for app in &self.apps {
            let Some(claims) = app.verify(token.token, token.algorithm, token.kid.as_deref())
            else {
                continue;
            };
            match app.read(&claims, moment) {
                Ok(said) if app.is_served_from(token.origin) => return Ok(Verified { app, said }),
                Ok(_) => reason = Reason::Origin,
                Err(other) => reason = other,
            }
        }
        Err(reason)
    }

    /// Looks again at every source that may have the key by now; `None` when there is none.
    async fn look_for_key(&self, token: &Unverified<'_>) -> Option<Looked> {
        let mut wanted: Vec<&Source> = Vec::new();
        for app in self.apps.iter().filter(|app| app.is_addressed(&token.claims).is_ok()) {
            for source in &app.sources {
                if source.may_hold(token.algorithm, token.kid.as_deref())
                    && !wanted.iter().any(|other| std::ptr::eq(*other, &raw const **source))
                {
                    wanted.push(source);
                }
            }
        }
        let issued_at = instant(&token.claims, "iat");
        let looks = wanted.iter().map(|source| source.look_again(token.presented, issued_at));
        let looked = join_all(looks).await;
        match looked.contains(&Looked::Unsure) {
            _ if looked.is_empty() => None,
            true => Some(Looked::Unsure),
            false => Some(Looked::Settled),
        }
    }

    /// An expired token may bring back somebody who was here a moment ago: the shipped frontend
    /// sends the token it captured when the page was loaded.
    async fn may_return(
        &self,
        domain: &Domain,
        app: &App,
        claims: &Claims,
        now: Timestamp,
    ) -> Result<bool, Denied> {
        if claims.issue.at.is_none_or(|issued| issued.after(self.max_age) < now) {
            return Ok(false);
        }
        if domain.presence.is_recent(&app.tenant, &claims.user, now) {
            return Ok(true);
        }
        // Perhaps here before this node was restarted.
        let seen = async {
            let mut reads = domain.store.read().await?;
            reads.last_seen(&app.tenant, &claims.user).await
        };
        let seen = seen.await.map_err(Denied::Away)?;
        Ok(seen.is_some_and(|seen| seen.after(NOTED_WINDOW) >= now))
    }
}

#[async_trait]
impl Credentials for Authenticator {
    /// A token shown while connected is a newer one: one that has expired proves nothing.
    async fn verify(&self, app: &Domain, token: &Token) -> Result<Bearer, Refusal> {
        let presented = Presented { token: Some(token.expose()), origin: None };
        match self.admit(app, presented, Lapsed::Refused).await {
            Ok(Identity { app, tenant, user, issue, expires_at, .. }) => {
                Ok(Bearer { app, tenant, user, issue, expires_at })
            }
            Err(Denied::Away(refusal)) => Err(refusal),
            Err(Denied::KeysAway) => Err(Refusal::Unavailable(None)),
            Err(
                Denied::NoToken
                | Denied::InvalidToken(_)
                | Denied::UserNotFound
                | Denied::Suspended,
            ) => Err(Refusal::Unauthenticated),
        }
    }
}

impl<'a> Unverified<'a> {
    /// `None` for what is no token, or names no algorithm of ours.
    fn read(token: &'a str, origin: Option<OriginId>) -> Option<Self> {
        let header = decode_header(token).ok()?;
        if header.crit.is_some() {
            // It must be understood, and is not.
            return None;
        }
        Some(Self {
            token,
            algorithm: header.alg,
            kid: header.kid,
            claims: insecure_decode_claims(token).ok()?,
            origin,
            presented: Instant::now(),
        })
    }
}

/// The sources an app names; those that others name, too, are shared.
fn sources_of(
    app: &config::App,
    sources: &mut Vec<Arc<Source>>,
    shared: &Shared,
) -> anyhow::Result<Vec<Arc<Source>>> {
    let mut own = Vec::new();
    for key in &app.keys {
        if let Some(known) = sources.iter().find(|source| source.is(key)) {
            own.push(known.clone());
        } else if let Some(source) = Source::from_config(key, shared)? {
            let source = Arc::new(source);
            sources.push(source.clone());
            own.push(source);
        }
    }
    Ok(own)
}

/// The user's row; made, or brought up to date, from the claims where the app says so.
async fn find_user(
    domain: &Domain,
    app: &App,
    claims: &Claims,
    now: Timestamp,
) -> Result<Option<User>, Refusal> {
    let found = domain.store.read().await?.user(&app.tenant, &claims.user).await?;
    let is_current = match &found {
        Some(user) => user.claims_issued_at.is_none_or(|of| Some(of) >= claims.issue.at),
        None => !app.provision_users,
    };
    if is_current || !app.provision_users {
        return Ok(found);
    }
    let mut tx = domain.store.begin(&app.tenant, Scope::Rows).await?;
    let user = tx.provision_user(&app.tenant, claims, now).await?;
    tx.commit().await?;
    Ok(Some(user))
}
