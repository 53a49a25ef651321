//! Signing tokens, for operators, scripts and `dev`.

use std::path::PathBuf;

use anyhow::Context as _;
use carillon_domain::identity::Role;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Map, Value};

use crate::config::{App, Config};

/// What `carillon token` is asked for.
#[derive(Debug, clap::Args)]
pub struct Request {
    /// The user's id.
    #[arg(long)]
    user: String,
    /// `STUDENT`, `MENTOR`, `PROCTOR`, `REVIEWER`, `PROGRAM_ADMIN` or `SUPER_ADMIN`.
    #[arg(long, default_value = "STUDENT", value_parser = role)]
    role: Role,
    /// The name others see.
    #[arg(long)]
    name: Option<String>,
    /// Signs with a key of the first app of this tenant.
    #[arg(long)]
    tenant: Option<String>,
    /// Signs with a key of this app.
    #[arg(long)]
    app: Option<String>,
    /// How long the token is valid.
    #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
    ttl: std::time::Duration,
    /// A TOML file; the environment wins over it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

fn role(text: &str) -> Result<Role, String> {
    Role::parse(text).ok_or_else(|| format!("{text} is not a role"))
}

impl Request {
    pub fn sign(&self) -> anyhow::Result<String> {
        let config = Config::load(self.config.as_deref())?;
        let is_meant = |app: &&App| {
            self.app.as_ref().is_none_or(|id| *id == app.id)
                && self.tenant.as_ref().is_none_or(|tenant| tenant == app.tenant.as_str())
        };
        let app = config.apps.iter().find(is_meant).context("there is no such app")?;
        sign(app, &self.user, self.name.as_deref(), self.role, self.ttl)
    }
}

/// A token of an app with an HS256 key.
pub fn sign(
    app: &App,
    user: &str,
    name: Option<&str>,
    role: Role,
    ttl: std::time::Duration,
) -> anyhow::Result<String> {
    // Keys are listed newest first while they are rotated.
    let (key, secret) = app
        .keys
        .iter()
        .find_map(|key| Some((key, key.signing_secret()?)))
        .context("the app has no HS256 key; its tokens are signed elsewhere")?;
    let names = &app.claims;
    let iat = jiff::Timestamp::now().as_second();
    let exp = iat.saturating_add(i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX));
    let mut claims = Map::new();
    put(&mut claims, names.user.first().context("claims.user is empty")?, user.into());
    put(&mut claims, &names.role, role.as_str().into());
    put(&mut claims, "iat", iat.into());
    put(&mut claims, "exp", exp.into());
    let optional = [
        (names.name.as_str(), name),
        ("iss", app.issuer.0.first().map(String::as_str)),
        ("aud", app.audience.0.first().map(String::as_str)),
    ];
    for (claim, text) in optional {
        if let Some(text) = text {
            put(&mut claims, claim, text.into());
        }
    }
    let header = Header { kid: key.id.clone(), ..Header::new(Algorithm::HS256) };
    let key = EncodingKey::from_secret(secret.expose().as_bytes());
    Ok(encode(&header, &claims, &key)?)
}

/// A name with dots is a claim inside others.
fn put(claims: &mut Map<String, Value>, name: &str, value: Value) {
    let Some((first, rest)) = name.split_once('.').filter(|_| !name.contains("://")) else {
        claims.insert(name.to_owned(), value);
        return;
    };
    let inner = claims.entry(first).or_insert_with(|| Map::new().into());
    if let Value::Object(inner) = inner {
        put(inner, rest, value);
    }
}
