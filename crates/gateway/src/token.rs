//! Signing tokens, for operators, scripts and `dev`.

use std::path::PathBuf;

use anyhow::Context as _;
use carillon_domain::identity::Role;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde::Serialize;

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

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Claims<'a> {
    user_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    role: Role,
    iat: i64,
    exp: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
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
    let key = app
        .keys
        .iter()
        .find(|key| key.algorithm == Algorithm::HS256)
        .context("the app has no HS256 key; its tokens are signed elsewhere")?;
    let secret = key.secret.as_ref().context("the key has no secret")?;
    let iat = jiff::Timestamp::now().as_second();
    let claims = Claims {
        user_id: user,
        name,
        role,
        iat,
        exp: iat.saturating_add(i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX)),
        iss: app.issuer.as_deref(),
        aud: app.audience.as_deref(),
    };
    let header = Header { kid: key.id.clone(), ..Header::new(Algorithm::HS256) };
    let key = EncodingKey::from_secret(secret.expose().as_bytes());
    Ok(encode(&header, &claims, &key)?)
}
