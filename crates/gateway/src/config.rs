//! What an operator can decide: defaults, then the TOML file, then the environment. Read once,
//! into final types; components receive their section, never the whole.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail, ensure};
use carillon_domain::{
    TenantId,
    api::Rights,
    contract::{Class, Rate},
    identity::Role,
    leaderboard,
    presence::RETURN_WINDOW,
};
use ipnet::IpNet;
use jiff::tz::TimeZone;
use jsonwebtoken::Algorithm;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use schemars::JsonSchema;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use url::Url;

use crate::http::{keys, origin};

/// Everything. Sections that a deployment does not mention keep their defaults.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub server: Server,
    pub operations: Operations,
    pub database: Database,
    pub redis: Redis,
    pub cluster: Cluster,
    pub auth: Auth,
    pub limits: Limits,
    pub recovery: Recovery,
    pub chat: Chat,
    pub exam: Exam,
    pub leaderboard: Leaderboard,
    pub proxy: Proxy,
    pub log: Log,
    /// One per frontend. Without any, the environment makes one: `sinaesta`.
    pub apps: Vec<App>,
    /// Keys for the server API, besides those made by `carillon apikey`.
    pub api_keys: Vec<ApiKey>,
    /// What was found odd while reading; told once logging runs.
    #[serde(skip)]
    pub warnings: Vec<String>,
}

/// The public listener.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// Address and port clients connect to. Also `WEBSOCKET_PORT`, `REALTIME_PORT`, `PORT`.
    pub listen: SocketAddr,
    /// Between two pings of the server to a client.
    pub ping_interval: Span,
    /// A client that does not answer a ping for this long is gone.
    pub ping_timeout: Span,
    /// Bytes of one frame or one polling request.
    pub max_payload: usize,
    /// Whether `socket.io-client` 1.x and 2.x may connect, which speak Engine.IO 3; Node's
    /// `allowEIO3`.
    pub allow_eio3: bool,
    /// How long a drain may take after SIGTERM, its notice included.
    pub drain: Span,
    /// Between `/readyz` turning 503 and the listener closing.
    pub drain_notice: Span,
    /// Networks of the balancers and proxies in front, such as `["10.0.0.0/8", "127.0.0.1"]`. What
    /// `Forwarded`, `X-Forwarded-For` and `X-Forwarded-Proto` say is believed from there only.
    pub trusted_proxies: Networks,
    /// Whether connections from `trusted_proxies` begin with a header of the PROXY protocol,
    /// version 1 or 2. One without it is closed.
    pub proxy_protocol: bool,
    /// `Strict-Transport-Security` of answers to what came over https; `0s` for none.
    pub hsts: Span,
    /// TLS without a proxy in front.
    pub tls: Tls,
}

/// A certificate of our own. Both files or neither.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// PEM: the certificate and those between it and a root. Read again when it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// PEM: its private key. Read again when it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

/// The listener for operators: metrics. Not for the public.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Operations {
    /// Address and port of `/metrics`.
    pub listen: SocketAddr,
}

/// Where everything acknowledged is kept.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Database {
    /// `sqlite:FILE` or `postgres://…`. Also `DATABASE_URL`.
    #[serde(serialize_with = "show_url")]
    pub url: Secret,
    /// Whether `serve` brings the schema up to date first.
    pub migrate: bool,
}

/// Where nodes meet. Without it, a node is alone.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Redis {
    /// `redis://…`, or `rediss://…` for TLS. Also `REDIS_URL`.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "show_redis_url")]
    pub url: Option<Secret>,
    /// PEM: who signs the certificate of `rediss://…`, where that is nobody the system trusts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// What the names of channels begin with; as the `key` of Node's adapter.
    pub prefix: String,
}

impl Default for Redis {
    fn default() -> Self {
        Self { url: None, ca_file: None, prefix: "socket.io".to_owned() }
    }
}

impl Redis {
    fn validate(&self) -> anyhow::Result<()> {
        let is_tls = self.url.as_ref().is_some_and(|url| url.expose().starts_with("rediss://"));
        ensure!(
            self.ca_file.is_none() || is_tls,
            "redis.ca_file is for a redis.url that begins with rediss://"
        );
        Ok(())
    }

    /// What `ca_file` holds.
    pub fn authorities(&self) -> anyhow::Result<Option<Vec<u8>>> {
        let Some(file) = &self.ca_file else { return Ok(None) };
        let pem = std::fs::read(file)
            .with_context(|| format!("redis.ca_file: cannot read {}", file.display()))?;
        let certificates = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
        ensure!(
            certificates.is_ok_and(|some| !some.is_empty()),
            "redis.ca_file has no certificate in PEM"
        );
        Ok(Some(pem))
    }
}

/// This node among others.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Cluster {
    /// The tenant whose rooms Node servers and emitters in the same Redis share; the default app's
    /// unless said otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub shared_tenant: Option<TenantId>,
    /// Where the other nodes reach this one's public listener: a host, `host:port`, or
    /// `https://host:port`. Without a port, that of `server.listen`. Needed where a balancer sends
    /// the requests of one polling session to several nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise: Option<String>,
}

/// Tokens, for all apps.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// How far clocks may differ when `exp` is checked; at most 30 s.
    pub leeway: Span,
    /// How long after `iat` a user seen in the last two minutes may come back with a token that
    /// has expired meanwhile.
    pub max_age: Span,
    /// Where `expiry = "enforce"`: how long before `exp` a socket is sent `auth-expiring`.
    pub expiring_notice: Span,
    /// Where `expiry = "enforce"`: how long after `exp` a socket is cut; at most 10 min.
    pub expiry_grace: Span,
}

/// What one user or one connection may use.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Commands of a user across all sockets of a node, by class: `message`, `typing`, `read`, `room`,
    /// `exam`, `leaderboard`, `notification`, `study_group`, `api`, `auth`, `heartbeat`, `invalid`; for example `message = "60/1m"`.
    pub rates: BTreeMap<String, RateText>,
    /// Bytes queued for a client that does not read, before it is closed.
    pub unsent_bytes: usize,
    /// A client that takes nothing of what waits for it for this long is closed.
    pub stalled: Span,
    /// Connections of one address (IPv6: of one /64) that may be open without having authenticated.
    /// Past it, some of them are closed; nobody is refused. In all, ten times as many.
    pub unauthenticated: usize,
    /// Connections of one address that may end without having authenticated. Past it, those that
    /// follow have 5 s for that instead of 45 s.
    pub failed_handshakes: RateText,
    /// Refused tokens that name one user; a connection that presents more is closed. A token that
    /// is good is never refused for it.
    pub failed_authentications: RateText,
}

/// Recovery of a connection's state, for `socket.io-client` 4.6 and later.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Recovery {
    /// Whether a client that lost its connection may go on as the same socket, and is sent what it
    /// missed.
    pub enabled: bool,
    /// For how long; at most 2 min.
    pub window: Span,
}

impl Default for Recovery {
    fn default() -> Self {
        Self { enabled: true, window: Span(RETURN_WINDOW) }
    }
}

/// Chat rooms.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Chat {
    /// Whether the first join creates a room that anyone of the tenant may join.
    pub open_rooms: bool,
}

/// Leaderboards.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Leaderboard {
    /// Where weeks and months begin: a name such as `Europe/Berlin`. An app may say otherwise for
    /// its tenant. After a change, `POST /v1/leaderboards/recompute`.
    pub time_zone: String,
}

/// Exams.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Exam {
    /// What is received up to this long after the deadline still counts; at most 60 s.
    pub grace: Span,
    /// What the journals of attempts are sealed with; at least 16 bytes. Without one, a key is
    /// made and kept in the database, where whoever can change journals can also read it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub journal_key: Option<Secret>,
}

/// The school's own backend, for every path that is not served here.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Proxy {
    /// Where it listens, such as `http://127.0.0.1:8080`. Without one, such paths are not found.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub upstream: Option<Url>,
    /// How long a connection to it may take, TLS included.
    pub connect_timeout: Span,
    /// How long it may take to begin its answer, once it has the request.
    pub timeout: Span,
    /// How long the rest of a request or an answer may make a pause.
    pub idle: Span,
}

/// Logging, to standard error.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    pub format: LogFormat,
    /// As `RUST_LOG`, which wins: `info`, `carillon=debug`.
    pub filter: String,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Human,
    Json,
}

/// One frontend: how its users prove who they are, and where it may be served from.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct App {
    pub id: String,
    /// The tenant its users belong to.
    #[schemars(with = "String")]
    pub tenant: TenantId,
    #[serde(default)]
    pub dialect: Dialect,
    /// The app of a client that nothing else assigns; the first one unless said otherwise.
    #[serde(default)]
    pub default: bool,
    /// Origins a browser may come from, exactly; without a scheme both http and https match.
    #[serde(default)]
    pub allowed_origins: Vec<String>,
    /// Whether a user's row is made from the token at first sight.
    #[serde(default)]
    pub provision_users: bool,
    /// Where weeks and months of its tenant begin, unless as in `leaderboard.time_zone`. Apps of
    /// one tenant must agree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    /// `outlive`: a connection lives on when its token has expired, and its user may come back with
    /// it for a while. `enforce`: it is cut unless the client sends `auth-refresh`.
    #[serde(default)]
    pub expiry: Expiry,
    /// When set, a token's `iss` must be it, or one of them.
    #[serde(default, skip_serializing_if = "OneOrMany::is_empty")]
    pub issuer: OneOrMany,
    /// When set, one of a token's `aud` must be it, or one of them.
    #[serde(default, skip_serializing_if = "OneOrMany::is_empty")]
    pub audience: OneOrMany,
    #[serde(default)]
    pub claims: ClaimNames,
    /// Their role = ours.
    #[serde(default)]
    pub roles: BTreeMap<String, Role>,
    #[serde(default)]
    pub keys: Vec<Key>,
}

/// Whose words a frontend speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Dialect {
    #[default]
    Sinaesta,
}

/// What a token's end means to a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Expiry {
    #[default]
    Outlive,
    Enforce,
}

/// One text, or a list of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(from = "OneOrManyTexts", into = "OneOrManyTexts")]
pub struct OneOrMany(pub Vec<String>);

#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
enum OneOrManyTexts {
    One(String),
    Many(Vec<String>),
}

impl From<OneOrManyTexts> for OneOrMany {
    fn from(texts: OneOrManyTexts) -> Self {
        match texts {
            OneOrManyTexts::One(text) => Self(vec![text]),
            OneOrManyTexts::Many(texts) => Self(texts),
        }
    }
}

impl From<OneOrMany> for OneOrManyTexts {
    fn from(OneOrMany(mut texts): OneOrMany) -> Self {
        match texts.pop() {
            Some(text) if texts.is_empty() => Self::One(text),
            last => Self::Many(texts.into_iter().chain(last).collect()),
        }
    }
}

impl OneOrMany {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The names of claims, where they differ from ours. `realm_access.roles` is the claim `roles`
/// inside `realm_access`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ClaimNames {
    /// The first that is present counts; when several are, they must agree.
    pub user: Vec<String>,
    /// A word, or a list of words of which the highest role counts.
    pub role: String,
    pub name: String,
    pub email: String,
    /// http, https or a path on the frontend's site.
    pub picture: String,
    /// When set, a token that has this claim must name the app's tenant in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
}

/// What verifies tokens: a secret, a public key, or a source of many keys. The algorithm belongs to
/// the key, not to the token.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// A token that has a `kid` is tried with the keys of that id, and with those that have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// HS256 (with `secret`), RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384 or `EdDSA`. With
    /// `jwks` it may be left out; otherwise only that algorithm is taken from the set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub algorithm: Option<Algorithm>,
    /// For HS256; at least 16 bytes. Also `JWT_SECRET`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Secret>,
    /// For the others: PEM, or the path of a file that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// A JSON Web Key Set: the path of a file, or an `https://` address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks: Option<String>,
    /// How often a `jwks` address is asked again, 10 s to 24 h, 10 min unless said otherwise; a file
    /// is read whenever it changes.
    #[serde(default = "every_ten_minutes", skip_serializing_if = "is_every_ten_minutes")]
    pub refresh: Span,
}

const fn every_ten_minutes() -> Span {
    Span::seconds(600)
}

fn is_every_ten_minutes(span: &Span) -> bool {
    *span == every_ten_minutes()
}

/// What a backend proves itself with.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// What journals and the audit log show.
    pub name: String,
    /// The tenant it acts for; that of the default app unless said otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub tenant: Option<TenantId>,
    /// The key itself: at least 16 random characters. Or `key_hash`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Secret>,
    /// The SHA-256 of the key, in hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_hash: Option<Secret>,
    /// What it may do, such as `users:write`; `*` for everything.
    pub scopes: Vec<String>,
}

impl ApiKey {
    /// As the database holds it.
    pub fn hash(&self) -> String {
        match (&self.key, &self.key_hash) {
            (Some(key), _) => keys::hash(key.expose()),
            (None, hash) => {
                hash.as_ref().map(|hash| hash.expose().to_lowercase()).unwrap_or_default()
            }
        }
    }

    fn validate(&self) -> anyhow::Result<()> {
        check_key_name(&self.name)?;
        Rights::parse(self.scopes.iter().map(String::as_str)).context("scopes")?;
        match (&self.key, &self.key_hash) {
            (Some(key), None) => {
                let different: BTreeSet<u8> = key.expose().bytes().collect();
                ensure!(
                    key.expose().len() >= 16 && different.len() >= 8,
                    "key is weak: use at least 16 random characters, or `carillon apikey create`"
                );
            }
            (None, Some(hash)) => ensure!(
                hash.expose().len() == 64 && hash.expose().bytes().all(|b| b.is_ascii_hexdigit()),
                "key_hash is a SHA-256: 64 hexadecimal digits"
            ),
            _ => bail!("either key or key_hash"),
        }
        Ok(())
    }
}

/// The name of a key stands in logs, journals and audits.
pub fn check_key_name(name: &str) -> anyhow::Result<()> {
    ensure!(
        (1..=64).contains(&name.chars().count()) && !name.chars().any(char::is_control),
        "the name of an API key is 1 to 64 characters"
    );
    Ok(())
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 3001)),
            ping_interval: Span::seconds(25),
            ping_timeout: Span::seconds(60),
            max_payload: 1_000_000,
            allow_eio3: false,
            drain: Span::seconds(20),
            drain_notice: Span::seconds(1),
            trusted_proxies: Networks::default(),
            proxy_protocol: false,
            hsts: Span::seconds(365 * 86_400),
            tls: Tls::default(),
        }
    }
}

impl Cluster {
    /// The address to advertise, for a listener at that port.
    pub fn advertised(&self, server: &Server, port: u16) -> anyhow::Result<Option<Url>> {
        let Some(text) = &self.advertise else { return Ok(None) };
        let own = if server.tls.certificate.is_some() { "https" } else { "http" };
        let scheme = if text.contains("://") { "" } else { &format!("{own}://") };
        let host = match text.parse() {
            Ok(IpAddr::V6(ip)) => format!("[{ip}]"),
            _ => text.clone(),
        };
        let mut url: Url = format!("{scheme}{host}").parse().context("cluster.advertise")?;
        ensure!(
            matches!(url.scheme(), "http" | "https")
                && url.has_host()
                && (url.username(), url.password()) == ("", None)
                && (url.path(), url.query(), url.fragment()) == ("/", None, None),
            "cluster.advertise is a host, host:port, or a URL with no more than that"
        );
        let is_anybody = match url.host() {
            Some(url::Host::Ipv4(ip)) => ip.is_unspecified(),
            Some(url::Host::Ipv6(ip)) => ip.is_unspecified(),
            Some(url::Host::Domain(_)) | None => false,
        };
        ensure!(!is_anybody, "cluster.advertise is where this node is reached, not 0.0.0.0");
        // A URL does not show the default port of its scheme; whoever writes it means it.
        let bare = text.trim_end_matches('/');
        let is_written = bare.rsplit(['/', ']']).next().is_some_and(|end| end.contains(':'));
        if !is_written || text.parse::<IpAddr>().is_ok() {
            // It has a host.
            let _ = url.set_port(Some(port));
        }
        Ok(Some(url))
    }
}

impl Default for Operations {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 9464)) }
    }
}

impl Default for Database {
    fn default() -> Self {
        Self { url: Secret::from("sqlite:carillon-data/carillon.db"), migrate: true }
    }
}

impl Default for Auth {
    fn default() -> Self {
        Self {
            leeway: Span::seconds(10),
            max_age: Span::seconds(8 * 3_600),
            expiring_notice: Span::seconds(60),
            expiry_grace: Span::seconds(30),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        let rates = Class::ALL
            .iter()
            .map(|class| (class.as_str().to_owned(), RateText(class.default_rate())))
            .collect();
        Self {
            rates,
            unsent_bytes: 1_000_000,
            stalled: Span::seconds(20),
            unauthenticated: 1_000,
            failed_handshakes: RateText(Rate { count: 600, period: Duration::from_mins(1) }),
            failed_authentications: RateText(Rate::per_minute(30)),
        }
    }
}

impl Default for Chat {
    fn default() -> Self {
        Self { open_rooms: true }
    }
}

impl Default for Leaderboard {
    fn default() -> Self {
        Self { time_zone: "UTC".into() }
    }
}

impl Default for Exam {
    fn default() -> Self {
        Self { grace: Span::seconds(2), journal_key: None }
    }
}

impl Default for Proxy {
    fn default() -> Self {
        Self {
            upstream: None,
            connect_timeout: Span::seconds(5),
            timeout: Span::seconds(60),
            idle: Span::seconds(5 * 60),
        }
    }
}

impl Proxy {
    fn validate(&self) -> anyhow::Result<()> {
        if let Some(upstream) = &self.upstream {
            ensure!(
                matches!(upstream.scheme(), "http" | "https") && upstream.has_host(),
                "proxy.upstream is an http or https URL"
            );
            ensure!(
                upstream.username().is_empty() && upstream.password().is_none(),
                "proxy.upstream has no place for credentials"
            );
            ensure!(
                upstream.path() == "/"
                    && upstream.query().is_none()
                    && upstream.fragment().is_none(),
                "proxy.upstream is a scheme, a host and a port: paths go on as they are"
            );
        }
        for (key, span) in [
            ("proxy.connect_timeout", self.connect_timeout),
            ("proxy.timeout", self.timeout),
            ("proxy.idle", self.idle),
        ] {
            ensure!(span.0 >= Duration::from_millis(100), "{key} must be at least 100 ms");
        }
        Ok(())
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Human, filter: "info".into() }
    }
}

impl Default for ClaimNames {
    fn default() -> Self {
        Self {
            user: ["userId", "id", "sub"].map(String::from).into(),
            role: "role".into(),
            name: "name".into(),
            email: "email".into(),
            picture: "picture".into(),
            tenant: None,
        }
    }
}

/// A text that is masked wherever the configuration is shown.
#[derive(Clone, Debug)]
pub struct Secret(SecretString);

impl Secret {
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(text.into()))
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

/// Shows a database's URL without its password and its parameters, which may hold one.
fn show_url<S: Serializer>(url: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
    let Ok(mut shown) = url::Url::parse(url.expose()) else { return url.serialize(serializer) };
    let has_password = shown.password().is_some();
    // What has no host has no password either.
    let _ = shown.set_password(has_password.then_some("***"));
    let has_query = shown.query().is_some();
    shown.set_query(has_query.then_some("***"));
    serializer.serialize_str(shown.as_str())
}

/// As [`show_url`], where there may be none.
#[expect(clippy::ref_option, reason = "serde hands over the field")]
fn show_redis_url<S: Serializer>(url: &Option<Secret>, serializer: S) -> Result<S::Ok, S::Error> {
    match url {
        Some(url) => show_url(url, serializer),
        None => serializer.serialize_none(),
    }
}

impl JsonSchema for Secret {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Secret".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "format": "password" })
    }
}

/// A duration, written `25s`, `2min`, `500ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl Span {
    const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map(Self).map_err(D::Error::custom)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (days, rest) = (self.0.as_secs() / 86_400, self.0.as_secs() % 86_400);
        if days >= 30 && rest == 0 {
            // In months and years of their average length, nobody would recognise it.
            return serializer.collect_str(&format_args!("{days}days"));
        }
        serializer.collect_str(&humantime::format_duration(self.0))
    }
}

/// Networks and single addresses: a list, or a text with commas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(pub Vec<IpNet>);

impl Networks {
    pub fn contain(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }
}

impl FromStr for Networks {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> anyhow::Result<Self> {
        text.split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(|part| match part.parse::<IpAddr>() {
                Ok(address) => Ok(address.into()),
                Err(_) => part.parse().with_context(|| format!("{part:?} is no network")),
            })
            .collect::<anyhow::Result<_>>()
            .map(Self)
    }
}

impl<'de> Deserialize<'de> for Networks {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Given {
            List(Vec<String>),
            Text(String),
        }
        let text = match Given::deserialize(deserializer)? {
            Given::List(list) => list.join(","),
            Given::Text(text) => text,
        };
        text.parse().map_err(|error| D::Error::custom(format_args!("{error:#}")))
    }
}

impl Serialize for Networks {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl JsonSchema for Networks {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Networks".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "array", "items": { "type": "string", "format": "ip-network" } })
    }
}

/// So many in a period, written `60/1m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateText(pub Rate);

impl FromStr for RateText {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (count, period) =
            text.split_once('/').context("a rate is a count and a period: 60/1m")?;
        let count: u32 = count.trim().parse().context("the count is not a whole number")?;
        let period = humantime::parse_duration(period.trim())?;
        ensure!(count > 0 && !period.is_zero(), "neither part of a rate may be zero");
        Ok(Self(Rate { count, period }))
    }
}

impl<'de> Deserialize<'de> for RateText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl Serialize for RateText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let period = humantime::format_duration(self.0.period);
        serializer.collect_str(&format_args!("{}/{period}", self.0.count))
    }
}

macro_rules! text_schema {
    ($($type:ident => $pattern:literal),*) => {$(
        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "format": $pattern })
            }
        }
    )*};
}
text_schema!(Span => "duration", RateText => "rate");

impl fmt::Display for RateText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0.count, humantime::format_duration(self.0.period))
    }
}

/// Variables by name.
pub type Environment = BTreeMap<String, String>;

/// Those that existing deployments set.
const KNOWN_NAMES: [&str; 8] = [
    "WEBSOCKET_PORT",
    "REALTIME_PORT",
    "PORT",
    "REDIS_URL",
    "DATABASE_URL",
    "JWT_SECRET",
    "ALLOWED_ORIGINS",
    "FRONTEND_URL",
];

/// The variables of the process. One of ours that is no text is refused, others are not looked at.
pub fn environment() -> anyhow::Result<Environment> {
    let mut environment = Environment::new();
    for (name, value) in std::env::vars_os() {
        let Ok(name) = name.into_string() else { continue };
        let is_ours = name.starts_with("CARILLON_") || KNOWN_NAMES.contains(&&*name);
        match value.into_string() {
            Ok(value) => _ = environment.insert(name, value),
            // It may be a secret.
            Err(_) => ensure!(!is_ours, "{name} is not valid UTF-8"),
        }
    }
    Ok(environment)
}

impl Config {
    /// Reads the file and the environment of the process.
    pub fn load(file: Option<&Path>) -> anyhow::Result<Self> {
        Self::from_parts(file, &environment()?)
    }

    /// Reads the file and the given environment.
    pub fn from_parts(file: Option<&Path>, environment: &Environment) -> anyhow::Result<Self> {
        let mut table = match file {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                let parsed = text.parse::<toml::Table>().map_err(|error| fault(&text, &error));
                parsed.with_context(|| format!("{} is not valid TOML", path.display()))?
            }
            None => toml::Table::new(),
        };
        for (name, value) in environment {
            overlay(&mut table, name, value)?;
        }
        let mut config: Self = table.try_into().context("the configuration is not valid")?;
        config.warnings = environment.keys().filter_map(|name| odd(name)).collect();
        config.apply_known_names(environment)?;
        config.validate()?;
        let odd_keys = config.odd_keys();
        config.warnings.extend(odd_keys);
        Ok(config)
    }

    /// The names existing deployments use.
    fn apply_known_names(&mut self, environment: &Environment) -> anyhow::Result<()> {
        let get = |name: &str| environment.get(name).filter(|value| !value.is_empty());
        if let Some((name, port)) = ["WEBSOCKET_PORT", "REALTIME_PORT", "PORT"]
            .iter()
            .find_map(|name| Some((name, get(name)?)))
        {
            let port = port.parse().with_context(|| format!("{name} is not a port: {port}"))?;
            self.server.listen.set_port(port);
        }
        if let Some(url) = get("REDIS_URL") {
            self.redis.url = Some(Secret::from(url.as_str()));
        }
        if let Some(url) = get("DATABASE_URL") {
            self.database.url = Secret::from(url.as_str());
        }
        let secret = get("JWT_SECRET").map(|secret| Secret::from(secret.as_str()));
        if self.apps.is_empty() {
            let secret = secret.context(
                "no [[apps]] and no JWT_SECRET: set JWT_SECRET to the secret your backend signs \
                 its tokens with",
            )?;
            let origins = get("ALLOWED_ORIGINS")
                .or_else(|| get("FRONTEND_URL"))
                .map_or(DEFAULT_ORIGINS, |v| v);
            self.apps.push(App::from_environment(secret, origins));
        } else if let Some(secret) = secret {
            for app in self.apps.iter_mut().filter(|app| app.keys.is_empty()) {
                app.keys.push(Key::hs256(secret.clone()));
            }
        }
        Ok(())
    }

    /// Every rule with a sentence that names the key.
    fn validate(&self) -> anyhow::Result<()> {
        ensure!(
            self.server.ping_interval.0 >= Duration::from_millis(100)
                && self.server.ping_timeout.0 >= Duration::from_millis(100),
            "server.ping_interval and server.ping_timeout must be at least 100 ms"
        );
        ensure!(
            (1_024..=64 * 1024 * 1024).contains(&self.server.max_payload),
            "server.max_payload must be between 1 KiB and 64 MiB"
        );
        ensure!(
            self.server.tls.certificate.is_some() == self.server.tls.key.is_some(),
            "server.tls.certificate and server.tls.key: both or neither"
        );
        ensure!(
            !self.server.proxy_protocol || !self.server.trusted_proxies.0.is_empty(),
            "server.proxy_protocol needs server.trusted_proxies: nobody else is believed"
        );
        self.cluster.advertised(&self.server, self.server.listen.port())?;
        ensure!(
            self.cluster.advertise.is_none() || !self.server.proxy_protocol,
            "cluster.advertise: nodes do not speak server.proxy_protocol to each other; let the \
             balancer name clients in X-Forwarded-For"
        );
        self.proxy.validate()?;
        self.redis.validate()?;
        ensure!(
            (Duration::from_secs(1)..=RETURN_WINDOW).contains(&self.recovery.window.0),
            "recovery.window must be 1 s to 2 min"
        );
        ensure!(self.auth.leeway.0 <= Duration::from_secs(30), "auth.leeway must be at most 30 s");
        ensure!(
            self.auth.expiry_grace.0 <= Duration::from_mins(10),
            "auth.expiry_grace must be at most 10 min"
        );
        ensure!(
            self.auth.expiring_notice.0 <= Duration::from_hours(1),
            "auth.expiring_notice must be at most 1 h"
        );
        ensure!(
            self.limits.unsent_bytes >= 64 * 1024,
            "limits.unsent_bytes must be at least 64 KiB"
        );
        ensure!(
            self.limits.unauthenticated >= 10,
            "limits.unauthenticated must be at least 10: clients need a moment to authenticate"
        );
        ensure!(self.exam.grace.0 <= Duration::from_mins(1), "exam.grace must be at most 60 s");
        ensure!(
            self.exam.journal_key.as_ref().is_none_or(|key| key.expose().len() >= 16),
            "exam.journal_key must have at least 16 bytes"
        );
        for name in self.limits.rates.keys() {
            ensure!(
                Class::ALL.iter().any(|class| class.as_str() == name),
                "limits.rates.{name}: there is no such class of commands"
            );
        }
        let mut ids = BTreeSet::new();
        for app in &self.apps {
            ensure!(ids.insert(&app.id), "two [[apps]] have the id {:?}", app.id);
            app.validate().with_context(|| format!("in the app {:?}", app.id))?;
        }
        ensure!(
            self.apps.iter().filter(|app| app.default).count() <= 1,
            "only one of the [[apps]] can be the default"
        );
        self.leaderboard_settings()?;
        let mut names = BTreeSet::new();
        for key in &self.api_keys {
            ensure!(
                names.insert((&key.tenant, &key.name)),
                "two [[api_keys]] of a tenant have the name {:?}",
                key.name
            );
            key.validate().with_context(|| format!("in the API key {:?}", key.name))?;
        }
        Ok(())
    }

    /// What works, and is probably not meant.
    fn odd_keys(&self) -> Vec<String> {
        let mut odd = Vec::new();
        if self.cluster.advertise.is_some() && self.database.url.expose().starts_with("sqlite:") {
            odd.push(
                "cluster.advertise: an SQLite file has one node; several need PostgreSQL".into(),
            );
        }
        let mut owners: BTreeMap<&str, (&str, &TenantId)> = BTreeMap::new();
        for app in &self.apps {
            for origin in app.allowed_origins.iter().filter(|origin| origin::is_nobodys(origin)) {
                odd.push(format!(
                    "the app {:?} allows {origin:?}, which is no page's origin",
                    app.id
                ));
            }
            let mut ids = BTreeSet::new();
            for key in &app.keys {
                if let Some(id) = &key.id
                    && !ids.insert(id)
                {
                    odd.push(format!(
                        "the app {:?} has two keys with the id {id:?}: a token with that kid is \
                         tried with both",
                        app.id
                    ));
                }
                if let Some(jwks) = key.jwks.as_deref().filter(|jwks| is_open_to_all(jwks)) {
                    odd.push(format!(
                        "the app {:?} has its jwks over http: whoever sits between here and {jwks} \
                         can make tokens; use https",
                        app.id
                    ));
                }
                let material = key.secret.as_ref().map(Secret::expose);
                let material = material.or(key.public_key.as_deref()).or(key.jwks.as_deref());
                let Some(material) = material else { continue };
                match owners.get(material) {
                    Some((other, tenant)) if *tenant != &app.tenant => odd.push(format!(
                        "the apps {other:?} and {:?} share a key, and have different tenants: \
                         without issuer, audience or claims.tenant its tokens are all {other:?}'s",
                        app.id
                    )),
                    Some(_) => {}
                    None => {
                        owners.insert(material, (&app.id, &app.tenant));
                    }
                }
            }
        }
        odd
    }

    /// The time zones of tenants.
    pub fn leaderboard_settings(&self) -> anyhow::Result<leaderboard::Settings> {
        let zone = |name: &str, key: &str| {
            TimeZone::get(name).with_context(|| format!("{key}: there is no time zone {name:?}"))
        };
        let time_zone = zone(&self.leaderboard.time_zone, "leaderboard.time_zone")?;
        let mut of_tenants = HashMap::new();
        for app in &self.apps {
            let Some(name) = &app.time_zone else { continue };
            let key = format!("time_zone of the app {:?}", app.id);
            let own = zone(name, &key)?;
            let other = of_tenants.insert(app.tenant.clone(), own.clone());
            ensure!(
                other.is_none_or(|other| other == own),
                "{key}: another app of the tenant {:?} says otherwise",
                app.tenant.as_str()
            );
        }
        Ok(leaderboard::Settings { time_zone, of_tenants })
    }

    /// The app of what nothing else assigns.
    pub fn default_app(&self) -> &App {
        let chosen = self.apps.iter().find(|app| app.default).or_else(|| self.apps.first());
        chosen.expect("a valid configuration has an app")
    }

    /// The rate of a class.
    pub fn rate(&self, class: Class) -> Rate {
        self.limits.rates.get(class.as_str()).map_or(class.default_rate(), |rate| rate.0)
    }
}

/// Where the replaced servers' frontends run in development.
const DEFAULT_ORIGINS: &str = "http://localhost:5173,http://localhost:3000";

impl App {
    /// The app of a deployment that configures nothing but the environment.
    pub fn from_environment(secret: Secret, origins: &str) -> Self {
        Self {
            id: "sinaesta".into(),
            tenant: TenantId::new("default").expect("a sound id"),
            dialect: Dialect::Sinaesta,
            default: true,
            allowed_origins: origins
                .split(',')
                .map(|origin| origin.trim().trim_end_matches('/').to_owned())
                .filter(|origin| !origin.is_empty())
                .collect(),
            provision_users: true,
            time_zone: None,
            expiry: Expiry::Outlive,
            issuer: OneOrMany::default(),
            audience: OneOrMany::default(),
            claims: ClaimNames::default(),
            roles: BTreeMap::new(),
            keys: vec![Key::hs256(secret)],
        }
    }

    fn validate(&self) -> anyhow::Result<()> {
        ensure!(!self.keys.is_empty(), "keys is empty: nobody could connect");
        ensure!(!self.claims.user.is_empty(), "claims.user is empty");
        for (name, claim) in [
            ("role", &self.claims.role),
            ("name", &self.claims.name),
            ("email", &self.claims.email),
            ("picture", &self.claims.picture),
        ] {
            ensure!(!claim.is_empty(), "claims.{name} is empty");
        }
        ensure!(self.claims.tenant.as_deref() != Some(""), "claims.tenant is empty");
        for (name, OneOrMany(texts)) in [("issuer", &self.issuer), ("audience", &self.audience)] {
            ensure!(!texts.iter().any(String::is_empty), "{name} is empty");
        }
        for key in &self.keys {
            key.validate()?;
        }
        Ok(())
    }
}

impl Key {
    pub fn hs256(secret: Secret) -> Self {
        Self {
            id: None,
            algorithm: Some(Algorithm::HS256),
            secret: Some(secret),
            public_key: None,
            jwks: None,
            refresh: every_ten_minutes(),
        }
    }

    /// What tokens can be signed with here.
    pub fn signing_secret(&self) -> Option<&Secret> {
        self.secret.as_ref().filter(|_| self.algorithm == Some(Algorithm::HS256))
    }

    fn validate(&self) -> anyhow::Result<()> {
        use Algorithm as A;
        ensure!(self.id.as_deref() != Some(""), "keys.id is empty");
        match (self.algorithm, &self.secret, &self.public_key, &self.jwks) {
            (Some(A::HS256), Some(secret), None, None) => check_strength(secret.expose()),
            (Some(A::HS256), ..) => {
                bail!("an HS256 key has a secret (or JWT_SECRET) and neither public_key nor jwks")
            }
            (Some(algorithm @ (A::HS384 | A::HS512)), ..) => {
                bail!("keys.algorithm {algorithm:?} is not supported")
            }
            (_, None, None, Some(jwks)) => self.validate_source(jwks),
            (Some(_), None, Some(_), None) => Ok(()),
            (Some(algorithm), ..) => {
                bail!("a {algorithm:?} key has either public_key or jwks, and no secret")
            }
            (None, ..) => bail!("keys.algorithm is missing"),
        }
    }

    fn validate_source(&self, jwks: &str) -> anyhow::Result<()> {
        ensure!(self.id.is_none(), "keys.id: the keys of a jwks have ids of their own");
        ensure!(
            (Duration::from_secs(10)..=Duration::from_hours(24)).contains(&self.refresh.0),
            "keys.refresh must be between 10 s and 24 h"
        );
        ensure!(!jwks.is_empty(), "keys.jwks is empty");
        if jwks.contains("://") {
            let url = url::Url::parse(jwks).context("keys.jwks is not an address")?;
            ensure!(
                matches!(url.scheme(), "http" | "https") && url.has_host(),
                "keys.jwks is neither the path of a file nor an https:// address"
            );
            ensure!(
                url.username().is_empty() && url.password().is_none(),
                "keys.jwks must not carry a user and a password: it stands in logs"
            );
        }
        Ok(())
    }
}

/// Secrets that stand in tutorials and in the servers replaced.
const KNOWN_SECRETS: [&str; 5] =
    ["your-secret-key", "your-super-secret-jwt-key", "your_jwt_secret", "changeme", "secret"];

fn check_strength(secret: &str) -> anyhow::Result<()> {
    let lower = secret.to_lowercase();
    let is_known = KNOWN_SECRETS.iter().any(|known| lower.starts_with(known) && lower.len() < 32);
    let different: BTreeSet<u8> = secret.bytes().collect();
    ensure!(
        !is_known && secret.len() >= 16 && different.len() >= 6,
        "JWT_SECRET (or keys.secret) is weak or a default: use at least 16 random bytes, better 32"
    );
    Ok(())
}

/// Whether an address is asked without TLS on another machine.
fn is_open_to_all(jwks: &str) -> bool {
    let Ok(url) = url::Url::parse(jwks) else { return false };
    url.scheme() == "http" && !crate::http::origin::is_localhost(jwks)
}

/// What to say of a variable that looks as if it were meant for us.
fn odd(name: &str) -> Option<String> {
    match name.strip_prefix("CARILLON_") {
        Some(rest) if !rest.contains("__") => {
            Some(format!("{name} is not a key: keys are CARILLON_<SECTION>__<KEY>"))
        }
        _ => None,
    }
}

/// Where a file is not TOML, and why. The line itself may hold a secret.
fn fault(text: &str, error: &toml::de::Error) -> anyhow::Error {
    let before = text.get(..error.span().unwrap_or_default().start).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|one| *one != '\n').count() + 1;
    anyhow!("line {line}, column {column}: {}", error.message())
}

/// `CARILLON_<SECTION>__<KEY>`: a TOML value, or a plain string.
fn overlay(table: &mut toml::Table, name: &str, value: &str) -> anyhow::Result<()> {
    let Some(rest) = name.strip_prefix("CARILLON_") else { return Ok(()) };
    if !rest.contains("__") {
        return Ok(());
    }
    let lower = rest.to_lowercase();
    let mut path: Vec<&str> = lower.split("__").collect();
    let key =
        path.pop().filter(|key| !key.is_empty()).with_context(|| format!("{name}: no key"))?;
    let mut section = table;
    for step in path {
        section = section
            .entry(step)
            .or_insert_with(|| toml::Table::new().into())
            .as_table_mut()
            .with_context(|| format!("{name}: {step} is not a section"))?;
    }
    // Numbers, booleans and lists are written as in TOML; anything else is text.
    let parsed = format!("value = {value}").parse::<toml::Table>().ok();
    let parsed = parsed.and_then(|mut table| table.remove("value"));
    section.insert(key.to_owned(), parsed.unwrap_or_else(|| value.into()));
    Ok(())
}

/// The default place of the SQLite file, made when it is needed.
pub fn ensure_directory(url: &str) -> anyhow::Result<()> {
    if let Some(path) = url.strip_prefix("sqlite:") {
        let path = PathBuf::from(path.trim_start_matches("//").split('?').next().unwrap_or(path));
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent)
                .with_context(|| format!("cannot create {}", parent.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(environment: &[(&str, &str)]) -> anyhow::Result<Config> {
        let environment =
            environment.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Config::from_parts(None, &environment)
    }

    const SECRET: (&str, &str) = ("JWT_SECRET", "0f8c1d4e5b6a79881726354433221100");

    #[test]
    fn the_names_of_existing_deployments_are_understood() {
        let config = from(&[
            SECRET,
            ("PORT", "1"),
            ("REALTIME_PORT", "4002"),
            ("DATABASE_URL", "postgres://u:p@db/x"),
            ("FRONTEND_URL", "https://app.example/, campus.example"),
        ])
        .unwrap();
        assert_eq!(config.server.listen.port(), 4002);
        assert_eq!(config.database.url.expose(), "postgres://u:p@db/x");
        assert_eq!(config.apps[0].allowed_origins, ["https://app.example", "campus.example"]);
        assert!(config.apps[0].provision_users);
    }

    #[test]
    fn every_key_can_be_set_by_the_environment() {
        let config = from(&[
            SECRET,
            ("CARILLON_SERVER__LISTEN", "127.0.0.1:9"),
            ("CARILLON_SERVER__PING_INTERVAL", "300ms"),
            ("CARILLON_LIMITS__RATES__MESSAGE", "10000/1m"),
            ("CARILLON_CHAT__OPEN_ROOMS", "false"),
            ("CARILLON_SERVER__TRUSTED_PROXIES", "10.0.0.0/8, 127.0.0.1"),
            ("CARILLON_SERVER__TLS__CERTIFICATE", "cert.pem"),
            ("CARILLON_SERVER__TLS__KEY", "key.pem"),
            ("CARILLON_SERVICE_HOST", "injected by the platform"),
        ])
        .unwrap();
        assert_eq!(config.server.listen.to_string(), "127.0.0.1:9");
        assert_eq!(config.server.ping_interval.0, Duration::from_millis(300));
        assert_eq!(config.rate(Class::Message).count, 10_000);
        assert_eq!(config.rate(Class::Typing), Class::Typing.default_rate());
        assert!(!config.chat.open_rooms);
        assert!(config.server.trusted_proxies.contain([10, 1, 2, 3].into()));
        assert!(!config.server.trusted_proxies.contain([127, 0, 0, 2].into()));
        let shown = toml::to_string(&config).unwrap();
        assert!(shown.contains("trusted_proxies = [\"10.0.0.0/8\", \"127.0.0.1/32\"]"), "{shown}");
        assert!(shown.contains("hsts = \"365days\"") && shown.contains("key.pem"), "{shown}");
        assert_eq!(config.warnings.len(), 1);
    }

    #[test]
    fn mistakes_stop_the_start_with_a_sentence_that_names_the_key() {
        for (environment, named) in [
            (vec![], "JWT_SECRET"),
            (vec![("JWT_SECRET", "your-secret-key")], "JWT_SECRET"),
            (vec![("JWT_SECRET", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")], "JWT_SECRET"),
            (vec![SECRET, ("PORT", "abc")], "PORT"),
            (vec![SECRET, ("CARILLON_SERVER__COLOUR", "red")], "colour"),
            (vec![SECRET, ("CARILLON_LIMITS__RATES__SHOUT", "1/1s")], "shout"),
            (vec![SECRET, ("CARILLON_AUTH__LEEWAY", "2min")], "auth.leeway"),
            (
                vec![SECRET, ("CARILLON_SERVER__TRUSTED_PROXIES", "[\"10.0.0.0/99\"]")],
                "10.0.0.0/99",
            ),
            (vec![SECRET, ("CARILLON_SERVER__PROXY_PROTOCOL", "true")], "server.trusted_proxies"),
            (vec![SECRET, ("CARILLON_PROXY__UPSTREAM", "backend:8080")], "proxy.upstream"),
            (vec![SECRET, ("CARILLON_PROXY__UPSTREAM", "nonsense")], "upstream"),
            (vec![SECRET, ("CARILLON_PROXY__UPSTREAM", "http://u:p@b.example")], "proxy.upstream"),
            (vec![SECRET, ("CARILLON_PROXY__UPSTREAM", "http://b.example/api")], "proxy.upstream"),
            (vec![SECRET, ("CARILLON_PROXY__IDLE", "0s")], "proxy.idle"),
            (vec![SECRET, ("CARILLON_LIMITS__UNAUTHENTICATED", "0")], "limits.unauthenticated"),
            (vec![SECRET, ("CARILLON_LIMITS__FAILED_HANDSHAKES", "0/1m")], "failed_handshakes"),
            (vec![SECRET, ("CARILLON_SERVER__TLS__KEY", "key.pem")], "server.tls.certificate"),
            (
                vec![SECRET, ("REDIS_URL", "redis://r"), ("CARILLON_REDIS__CA_FILE", "ca.pem")],
                "redis.ca_file",
            ),
            (
                vec![SECRET, ("CARILLON_LEADERBOARD__TIME_ZONE", "Mars/Olympus")],
                "leaderboard.time_zone",
            ),
        ] {
            let message = format!("{:#}", from(&environment).unwrap_err());
            assert!(message.contains(named), "{message}");
        }
    }

    #[test]
    fn a_node_is_reached_where_it_says() {
        let advertised = |text: &str, more: &[(&str, &str)]| {
            let environment = [&[SECRET, ("CARILLON_CLUSTER__ADVERTISE", text)], more].concat();
            let config = from(&environment)?;
            let url = config.cluster.advertised(&config.server, 3001)?;
            anyhow::Ok(url.map(|url| url.to_string()).unwrap_or_default())
        };
        for (text, expected) in [
            ("10.0.0.5", "http://10.0.0.5:3001/"),
            ("10.0.0.5:4000", "http://10.0.0.5:4000/"),
            ("node-a:80", "http://node-a/"),
            ("::1", "http://[::1]:3001/"),
            ("[::1]", "http://[::1]:3001/"),
            ("[::1]:4000", "http://[::1]:4000/"),
            ("https://node-a", "https://node-a:3001/"),
            ("https://node-a:443/", "https://node-a/"),
        ] {
            assert_eq!(advertised(text, &[]).unwrap(), expected, "{text}");
        }
        let tls = [("CARILLON_SERVER__TLS__CERTIFICATE", "a"), ("CARILLON_SERVER__TLS__KEY", "b")];
        assert_eq!(advertised("node-a", &tls).unwrap(), "https://node-a:3001/");
        let proxied = [
            ("CARILLON_SERVER__PROXY_PROTOCOL", "true"),
            ("CARILLON_SERVER__TRUSTED_PROXIES", "10.0.0.0/8"),
        ];
        for (text, more) in [
            ("0.0.0.0:3001", &[][..]),
            ("::", &[]),
            ("ftp://node-a", &[]),
            ("http://u:p@node-a", &[]),
            ("node-a/path", &[]),
            ("node-a", &proxied),
        ] {
            let error = format!("{:#}", advertised(text, more).unwrap_err());
            assert!(error.contains("cluster.advertise"), "{text}: {error}");
        }
        assert_eq!(from(&[SECRET]).unwrap().cluster.advertise, None);
        let alone = from(&[SECRET, ("CARILLON_CLUSTER__ADVERTISE", "node-a")]).unwrap();
        assert!(alone.warnings[0].contains("PostgreSQL"), "{:?}", alone.warnings);
    }

    #[test]
    fn an_app_says_how_its_tokens_are_read() {
        let app = |rest: &str| -> anyhow::Result<App> {
            let key =
                "[[keys]]\nid = \"2026\"\nalgorithm = \"HS256\"\nsecret = \"c5f1d1a0b7e84f6e93d2\"";
            let text = format!("id = \"campus\"\ntenant = \"campus\"\n{rest}\n{key}");
            let app: App = toml::from_str(&text)?;
            app.validate().map(|()| app)
        };
        let plain = app("").unwrap();
        assert_eq!((plain.expiry, plain.issuer.is_empty()), (Expiry::Outlive, true));
        let strict = app(
            "expiry = \"enforce\"\nissuer = \"https://a\"\naudience = [\"chat\", \"exams\"]\nclaims.tenant = \"org\"",
        )
        .unwrap();
        assert_eq!((strict.issuer.0.len(), strict.audience.0.len()), (1, 2));
        let shown = toml::to_string(&strict).unwrap();
        for line in [
            "expiry = \"enforce\"",
            "issuer = \"https://a\"",
            "audience = [\"chat\", \"exams\"]",
            "tenant = \"org\"",
            "secret = \"***\"",
        ] {
            assert!(shown.contains(line), "{shown}");
        }
        for (bad, named) in [
            ("audience = [\"\"]", "audience is empty"),
            ("claims.user = []", "claims.user is empty"),
            ("claims.role = \"\"", "claims.role is empty"),
            ("keys = [{ algorithm = \"RS256\", secret = \"c5f1d1a0b7e84f6e93d2\" }]", "keys"),
        ] {
            let error = app(bad).map(|_| ()).unwrap_err();
            assert!(format!("{error:#}").contains(named), "{error:#}");
        }
        for (name, value) in [
            ("CARILLON_AUTH__EXPIRY_GRACE", "11min"),
            ("CARILLON_AUTH__EXPIRING_NOTICE", "2h"),
            ("CARILLON_LIMITS__FAILED_AUTHENTICATIONS", "0/1m"),
        ] {
            let error = format!("{:#}", from(&[SECRET, (name, value)]).unwrap_err());
            let key = name.rsplit("__").next().unwrap().to_lowercase();
            assert!(error.contains(&key), "{error}");
        }
    }

    #[test]
    fn odd_keys_are_named() {
        let key = |id: &str, secret: &str| Key {
            id: Some(id.into()),
            ..Key::hs256(Secret::from(secret))
        };
        let mut one = App::from_environment(Secret::from("x"), "");
        one.keys = vec![key("a", "first"), key("a", "second")];
        let mut other = App { id: "other".into(), ..one.clone() };
        other.tenant = TenantId::new("other").unwrap();
        other.keys = vec![
            key("b", "second"),
            Key { jwks: Some("http://login.example/keys".into()), ..key("c", "third") },
        ];
        let odd = Config { apps: vec![one, other], ..Config::default() }.odd_keys();
        assert_eq!(odd.len(), 3, "{odd:?}");
        for (odd, named) in
            odd.iter().zip(["two keys with the id \"a\"", "share a key", "over http"])
        {
            assert!(odd.contains(named) && !odd.contains("second"), "{odd}");
        }
    }

    #[test]
    fn an_api_key_is_strong_has_scopes_and_is_never_shown() {
        let with = |keys: &str| -> anyhow::Result<Config> {
            let directory = std::env::temp_dir().join(format!("carillon-{}", uuid::Uuid::now_v7()));
            std::fs::write(&directory, keys)?;
            let environment = [(SECRET.0.to_owned(), SECRET.1.to_owned())].into();
            let config = Config::from_parts(Some(&directory), &environment);
            std::fs::remove_file(&directory)?;
            config
        };
        let key = |rest: &str| format!("[[api_keys]]\nname = \"backend\"\n{rest}\n");
        let good = "key = \"ck_3q8Zt1Vb7Xn5Lm2Kp9Rw4Yc6Hd0Jf8Gs\"\nscopes = [\"*\"]";
        let config = with(&key(good)).unwrap();
        assert_eq!(config.api_keys[0].hash().len(), 64);
        let shown = toml::to_string(&config).unwrap();
        assert!(!shown.contains("ck_3q8Z"), "{shown}");
        for (bad, named) in [
            ("key = \"short\"\nscopes = [\"*\"]", "key is weak"),
            ("key_hash = \"abc\"\nscopes = [\"*\"]", "key_hash"),
            ("scopes = [\"*\"]", "either key or key_hash"),
            ("key = \"ck_3q8Zt1Vb7Xn5Lm2Kp9Rw4Yc6Hd0Jf8Gs\"\nscopes = [\"fly\"]", "\"fly\" is not"),
            ("key = \"ck_3q8Zt1Vb7Xn5Lm2Kp9Rw4Yc6Hd0Jf8Gs\"\nscopes = []", "scope"),
        ] {
            let message = format!("{:#}", with(&key(bad)).unwrap_err());
            assert!(message.contains(named) && message.contains("backend"), "{message}");
        }
        let twice = key(good) + &key(good);
        assert!(format!("{:#}", with(&twice).unwrap_err()).contains("backend"));
    }

    #[test]
    fn secrets_are_masked_when_shown() {
        for url in ["postgres://u:hidden@db.example/x", "postgres://db.example/x?password=hidden"] {
            let secret = ("JWT_SECRET", "https://hidden.example/0f8c1d4e5b6a79881726354433221100");
            let config = from(&[secret, ("DATABASE_URL", url)]).unwrap();
            let shown = toml::to_string(&config).unwrap();
            assert!(!shown.contains("hidden"), "{shown}");
            assert!(shown.contains("db.example/x"), "{shown}");
        }
    }
}
