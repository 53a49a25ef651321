//! From a handshake to a caller: which app's key verifies the token, what its claims say, and
//! whether that user may come in.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context as _;
use carillon_domain::{
    App as Domain, Refusal, TenantId, Timestamp, UserId,
    contract::Scope,
    identity::{Claims, Issue, Role, User, UserStatus},
    presence::RETURN_WINDOW,
};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header, errors::ErrorKind};
use serde_json::{Map, Value};

use crate::config::{self, ClaimNames};

/// Why a client is told `connect_error`. Only for a definite refusal of the credential: what
/// passes by itself closes the transport instead.
#[derive(Debug, thiserror::Error)]
pub enum Denied {
    #[error("Authentication error: No token provided")]
    NoToken,
    #[error("Authentication error: Invalid token")]
    InvalidToken,
    #[error("Authentication error: User not found")]
    UserNotFound,
    #[error("Authentication error: Account suspended")]
    Suspended,
    /// Not told: the database could not be asked.
    #[error("temporarily unavailable")]
    Away(#[source] Refusal),
}

/// The apps and their keys, ready to verify.
pub struct Authenticator {
    apps: Vec<App>,
    max_age: Duration,
}

struct App {
    tenant: TenantId,
    provision_users: bool,
    claims: ClaimNames,
    roles: BTreeMap<String, Role>,
    keys: Vec<Key>,
}

struct Key {
    id: Option<String>,
    decoding: DecodingKey,
    validation: Validation,
}

/// A token that an app's key has verified.
struct Verified<'a> {
    app: &'a App,
    claims: Claims,
    has_expired: bool,
}

/// Who came, and to which tenant.
#[derive(Debug)]
pub struct Identity {
    pub tenant: TenantId,
    pub user: User,
    pub issue: Issue,
}

impl Authenticator {
    pub fn new(apps: &[config::App], auth: &config::Auth) -> anyhow::Result<Self> {
        // A token that two apps could verify belongs to the default one.
        let mut apps: Vec<&config::App> = apps.iter().collect();
        apps.sort_by_key(|app| !app.default);
        let apps = apps
            .into_iter()
            .map(|app| App::new(app, auth).with_context(|| format!("in the app {:?}", app.id)))
            .collect::<anyhow::Result<_>>()?;
        Ok(Self { apps, max_age: auth.max_age.0 })
    }

    /// Verifies the token, finds or makes the user's row, and checks that they may come in.
    pub async fn authenticate(
        &self,
        domain: &Domain,
        token: Option<&str>,
    ) -> Result<Identity, Denied> {
        let token = token.filter(|token| !token.is_empty()).ok_or(Denied::NoToken)?;
        let verified = self.verify(token).ok_or(Denied::InvalidToken)?;
        let (app, claims) = (verified.app, verified.claims);
        let now = domain.clock.now();
        if verified.has_expired && !self.may_return(domain, app, &claims, now).await? {
            return Err(Denied::InvalidToken);
        }
        let user = find_user(domain, app, &claims, now)
            .await
            .map_err(Denied::Away)?
            .ok_or(Denied::UserNotFound)?;
        if user.is_deleted {
            return Err(Denied::UserNotFound);
        }
        if !user.tokens.accepts(claims.issue) {
            return Err(Denied::InvalidToken);
        }
        match user.status {
            UserStatus::Suspended => Err(Denied::Suspended),
            UserStatus::Verified | UserStatus::Pending => {
                Ok(Identity { tenant: app.tenant.clone(), user, issue: claims.issue })
            }
        }
    }

    /// The first app with a key that verifies the token decides.
    fn verify(&self, token: &str) -> Option<Verified<'_>> {
        let header = decode_header(token).ok()?;
        self.apps.iter().find_map(|app| {
            app.keys
                .iter()
                .filter(|key| key.fits(header.alg, header.kid.as_deref()))
                .find_map(|key| key.verify(token))
                .and_then(|(claims, has_expired)| {
                    Some(Verified { app, claims: app.read(&claims)?, has_expired })
                })
        })
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
        Ok(seen.is_some_and(|seen| seen.after(RETURN_WINDOW) >= now))
    }
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

impl App {
    fn new(app: &config::App, auth: &config::Auth) -> anyhow::Result<Self> {
        let keys =
            app.keys.iter().map(|key| Key::new(key, app, auth)).collect::<anyhow::Result<_>>()?;
        Ok(Self {
            tenant: app.tenant.clone(),
            provision_users: app.provision_users,
            claims: app.claims.clone(),
            roles: app.roles.clone(),
            keys,
        })
    }

    /// `None` where the claims name no user, or two different ones.
    fn read(&self, claims: &Map<String, Value>) -> Option<Claims> {
        let mut ids = self.claims.user.iter().filter_map(|name| claims.get(name)).map(id_text);
        let user = ids.next()??;
        if ids.any(|other| other.as_ref() != Some(&user)) {
            return None;
        }
        let text = |name: &str| claims.get(name).and_then(Value::as_str).map(str::to_owned);
        let seconds = claims.get("iat").and_then(Value::as_f64);
        Some(Claims {
            user: UserId::new(user).ok()?,
            name: text(&self.claims.name),
            role: text(&self.claims.role).map_or(Role::Student, |role| self.role(&role)),
            email: text("email"),
            #[expect(clippy::cast_possible_truncation, reason = "a time in ms fits an i64")]
            issue: Issue {
                at: seconds.map(|seconds| Timestamp((seconds * 1_000.0) as i64)),
                version: claims.get("tokenVersion").and_then(Value::as_i64).unwrap_or(0),
            },
        })
    }

    /// The app's own mapping, then the words of the systems replaced, then STUDENT.
    fn role(&self, theirs: &str) -> Role {
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

/// Numbers count as their decimal text.
fn id_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) if number.is_i64() || number.is_u64() => Some(number.to_string()),
        _ => None,
    }
}

impl Key {
    fn new(key: &config::Key, app: &config::App, auth: &config::Auth) -> anyhow::Result<Self> {
        let pem = key.public_key.as_deref().unwrap_or_default().as_bytes();
        let decoding = match key.algorithm {
            Algorithm::RS256 => DecodingKey::from_rsa_pem(pem),
            Algorithm::ES256 => DecodingKey::from_ec_pem(pem),
            Algorithm::EdDSA => DecodingKey::from_ed_pem(pem),
            _ => {
                let secret = key.secret.as_ref().context("an HS256 key has a secret")?;
                Ok(DecodingKey::from_secret(secret.expose().as_bytes()))
            }
        };
        let mut validation = Validation::new(key.algorithm);
        validation.leeway = auth.leeway.0.as_secs();
        validation.validate_nbf = true;
        validation.validate_aud = app.audience.is_some();
        let mut required = vec!["exp"];
        if let Some(audience) = &app.audience {
            validation.set_audience(&[audience]);
            required.push("aud");
        }
        if let Some(issuer) = &app.issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        validation.set_required_spec_claims(&required);
        let decoding = decoding.context("public_key is not a PEM key of that algorithm")?;
        Ok(Self { id: key.id.clone(), decoding, validation })
    }

    /// The algorithm is the key's; a token that names another is not tried.
    fn fits(&self, algorithm: Algorithm, kid: Option<&str>) -> bool {
        self.validation.algorithms.contains(&algorithm)
            && match (&self.id, kid) {
                (Some(id), Some(kid)) => id == kid,
                _ => true,
            }
    }

    /// The claims, and whether the token has expired.
    fn verify(&self, token: &str) -> Option<(Map<String, Value>, bool)> {
        match decode(token, &self.decoding, &self.validation) {
            Ok(verified) => Some((verified.claims, false)),
            Err(error) if matches!(error.kind(), ErrorKind::ExpiredSignature) => {
                let mut lenient = self.validation.clone();
                lenient.validate_exp = false;
                Some((decode(token, &self.decoding, &lenient).ok()?.claims, true))
            }
            Err(_) => None,
        }
    }
}
