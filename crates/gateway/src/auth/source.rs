//! A source of many keys: a JSON Web Key Set in a file or at an address, read again and again.
//!
//! What was read last verifies until something newer has been read: nobody is turned away because
//! a source is away for a while. One task owns each source. A handshake whose token names a key
//! that is not known asks it to look, and waits a moment; all that come within the same half
//! minute share that one look.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use axum::body::Body;
use carillon_domain::{Timestamp, ports::Clock};
use http::{Request, Uri, header};
use http_body_util::{BodyExt as _, Limited};
use jsonwebtoken::{Algorithm, AlgorithmFamily};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::AsyncReadExt as _,
    sync::{Notify, watch},
    time::timeout,
};
use url::Url;

use super::{
    jwks::{KeySet, MAX_BYTES},
    reason::Metrics,
};
use crate::{config, http::client::Client};

/// A file is looked at this often.
const FILE: Duration = Duration::from_secs(2);
/// Unknown keys cause one look in so long.
const COOLDOWN: Duration = Duration::from_secs(30);
/// A handshake waits this long for it.
const PATIENCE: Duration = Duration::from_secs(2);
/// A source answers within this, redirects included.
const TIMEOUT: Duration = Duration::from_secs(5);
const MAX_REDIRECTS: usize = 3;
/// A source that is away is asked again after a second, then two, up to this.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

pub struct Source {
    place: Place,
    /// How it stands in logs.
    shown: String,
    only: Option<Algorithm>,
    refresh: Duration,
    current: RwLock<Current>,
    /// Raised with every change of any key set.
    generation: Arc<AtomicU64>,
    made: Instant,
    /// Rung when a handshake wants it to look.
    wanted: Notify,
    wanted_at: Mutex<Option<Instant>>,
    rounds: watch::Sender<Option<Round>>,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
}

enum Place {
    File(PathBuf),
    Address(Url),
}

#[derive(Default)]
struct Current {
    keys: Arc<KeySet>,
    /// The SHA-256 of what they were read from.
    digest: Option<[u8; 32]>,
}

/// One look at the source.
#[derive(Clone, Copy)]
struct Round {
    began: Instant,
    began_at: Timestamp,
    is_ok: bool,
}

/// What is known of a token whose key is not, after another look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Looked {
    /// The source was read after the token was made: it does not have the key.
    Settled,
    /// It could not be read, or may have the key by now.
    Unsure,
}

/// What sources share.
#[derive(Clone)]
pub struct Shared {
    pub generation: Arc<AtomicU64>,
    pub clock: Arc<dyn Clock>,
    pub metrics: Metrics,
}

impl Source {
    /// `None` for a key that is no source. A file that cannot be read is an error, an address that
    /// does not answer is not: it is asked in the background.
    pub fn from_config(key: &config::Key, shared: &Shared) -> anyhow::Result<Option<Self>> {
        let Some(jwks) = &key.jwks else { return Ok(None) };
        let (place, shown) = if jwks.contains("://") {
            let url = Url::parse(jwks).context("keys.jwks is not an address")?;
            let mut shown = url.clone();
            shown.set_query(None);
            (Place::Address(url), shown.to_string())
        } else {
            (Place::File(jwks.into()), jwks.clone())
        };
        let source = Self {
            place,
            shown,
            only: key.algorithm,
            refresh: key.refresh.0,
            current: RwLock::default(),
            generation: shared.generation.clone(),
            made: Instant::now(),
            wanted: Notify::new(),
            wanted_at: Mutex::default(),
            rounds: watch::Sender::new(None),
            clock: shared.clock.clone(),
            metrics: shared.metrics.clone(),
        };
        if let Place::File(path) = &source.place {
            let began = source.begin();
            let text = std::fs::read(path)
                .with_context(|| format!("keys.jwks: cannot read the file {jwks:?}"))?;
            source.take(&text).with_context(|| format!("keys.jwks: the file {jwks:?}"))?;
            ensure!(
                !source.keys().keys.is_empty(),
                "keys.jwks: the file {jwks:?} holds no key that can be used"
            );
            source.rounds.send_replace(Some(Round { is_ok: true, ..began }));
        }
        Ok(Some(source))
    }

    /// Whether another entry of the configuration means the same keys.
    pub fn is(&self, key: &config::Key) -> bool {
        let jwks = key.jwks.as_deref();
        self.only == key.algorithm
            && self.refresh == key.refresh.0
            && match &self.place {
                Place::File(path) => jwks.map(std::path::Path::new) == Some(path),
                Place::Address(url) => {
                    jwks.and_then(|jwks| Url::parse(jwks).ok()).as_ref() == Some(url)
                }
            }
    }

    /// The keys of now.
    pub fn keys(&self) -> Arc<KeySet> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).keys.clone()
    }

    /// Whether it may have, or come to have, a key for a token of that algorithm and id beside
    /// those it has.
    pub fn may_hold(&self, algorithm: Algorithm, kid: Option<&str>) -> bool {
        let keys = self.keys();
        let is_known = match kid {
            Some(kid) => keys.keys.iter().any(|key| key.id() == Some(kid)),
            // Where every key has an id, a token without one was not signed by any of them.
            None => !keys.keys.is_empty() && keys.keys.iter().all(|key| key.id().is_some()),
        };
        !is_known
            && algorithm.family() != AlgorithmFamily::Hmac
            && self.only.is_none_or(|only| only == algorithm)
    }

    /// Looks at the source again, unless that was done a moment ago for another token.
    pub async fn look_again(&self, presented: Instant, issued_at: Option<Timestamp>) -> Looked {
        let wanted_at = self.want();
        let mut rounds = self.rounds.subscribe();
        let is_later = |round: &Option<Round>| round.is_some_and(|round| round.began >= wanted_at);
        let round = match timeout(PATIENCE, rounds.wait_for(is_later)).await {
            Ok(Ok(round)) => *round,
            Ok(Err(_)) | Err(_) => None,
        };
        let is_settled = round.is_some_and(|round| {
            // Tokens carry whole seconds; a key is published before it signs.
            let is_older = issued_at.is_some_and(|issued| issued <= round.began_at);
            round.is_ok && (round.began >= presented || is_older)
        });
        if is_settled { Looked::Settled } else { Looked::Unsure }
    }

    /// When the look was wanted that this token shares.
    fn want(&self) -> Instant {
        if self.rounds.borrow().is_none() {
            // The first look is on its way.
            return self.made;
        }
        let mut wanted_at = self.wanted_at.lock().unwrap_or_else(PoisonError::into_inner);
        match *wanted_at {
            Some(at) if at.elapsed() < COOLDOWN => at,
            _ => {
                self.wanted.notify_one();
                *wanted_at.insert(Instant::now())
            }
        }
    }

    /// Keeps the keys fresh; ends with the node.
    pub async fn run(&self, client: &Client) {
        let mut failures = 0;
        let mut pause = match self.place {
            Place::File(_) => FILE,
            Place::Address(_) => Duration::ZERO,
        };
        loop {
            // Wanted or due, it is read.
            let _ = timeout(pause, self.wanted.notified()).await;
            let began = self.begin();
            let result = self.read(client).await.and_then(|text| self.take(&text));
            let is_ok = self.report(result, failures > 0);
            failures = if is_ok { 0 } else { failures + 1 };
            self.rounds.send_replace(Some(Round { is_ok, ..began }));
            pause = match self.place {
                Place::File(_) => FILE,
                Place::Address(_) if is_ok => self.refresh,
                Place::Address(_) => {
                    Duration::from_secs(1 << (failures - 1).min(5)).min(MAX_BACKOFF)
                }
            };
        }
    }

    fn begin(&self) -> Round {
        Round { began: Instant::now(), began_at: self.clock.now(), is_ok: false }
    }

    /// One line when the source goes, one when it is back, one for every change.
    fn report(&self, result: anyhow::Result<bool>, was_away: bool) -> bool {
        let shown = &self.shown;
        match result {
            Ok(has_changed) => {
                // A file is read all the time.
                if has_changed || matches!(self.place, Place::Address(_)) {
                    self.metrics.refreshed(true);
                }
                if was_away {
                    tracing::info!(keys.source = shown, "{shown} can be read again");
                }
                true
            }
            Err(error) => {
                self.metrics.refreshed(false);
                if !was_away {
                    tracing::warn!(
                        keys.source = shown,
                        "{shown} cannot be read, the keys known so far are kept: {error:#}"
                    );
                }
                false
            }
        }
    }

    async fn read(&self, client: &Client) -> anyhow::Result<Vec<u8>> {
        match &self.place {
            Place::File(path) => {
                let mut text = Vec::new();
                let file = tokio::fs::File::open(path).await.context("cannot open the file")?;
                file.take(MAX_BYTES as u64 + 1).read_to_end(&mut text).await?;
                Ok(text)
            }
            Place::Address(url) => {
                let fetched = timeout(TIMEOUT, fetch(client, url)).await;
                fetched.unwrap_or_else(|_| bail!("no answer within {TIMEOUT:?}"))
            }
        }
    }

    /// Puts what was read in place of the keys so far; false when it is the same.
    fn take(&self, text: &[u8]) -> anyhow::Result<bool> {
        let digest: [u8; 32] = Sha256::digest(text).into();
        let known = self.current.read().unwrap_or_else(PoisonError::into_inner).digest;
        if known == Some(digest) {
            return Ok(false);
        }
        let keys = Arc::new(KeySet::parse(text, self.only)?);
        let shown = &self.shown;
        for warning in &keys.warnings {
            tracing::warn!(keys.source = shown, "in {shown} {warning}");
        }
        let count = keys.keys.len();
        tracing::info!(keys.source = shown, keys.count = count, "{shown} holds {count} keys");
        if count == 0 {
            tracing::warn!(keys.source = shown, "{shown} holds no key: nobody can connect by it");
        }
        let digest = Some(digest);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Current { keys, digest };
        self.generation.fetch_add(1, Ordering::AcqRel);
        Ok(true)
    }
}

/// Follows redirects within the same host: another one was not named by the operator.
async fn fetch(client: &Client, url: &Url) -> anyhow::Result<Vec<u8>> {
    let mut url = url.clone();
    for _ in 0..=MAX_REDIRECTS {
        let request = Request::get(url.as_str().parse::<Uri>()?)
            .header(header::ACCEPT, "application/jwk-set+json, application/json")
            .body(Body::empty())?;
        let response = client.send(request).await?;
        let status = response.status();
        if status.is_redirection() {
            let location = response.headers().get(header::LOCATION);
            let location = location.context("a redirect to nowhere")?.to_str()?;
            let next = url.join(location)?;
            ensure!(next.origin() == url.origin(), "a redirect to another host");
            url = next;
            continue;
        }
        ensure!(status.is_success(), "the answer is {status}");
        let body = Limited::new(response.into_body(), MAX_BYTES).collect().await;
        let body = body.map_err(|_| anyhow::anyhow!("the answer broke off, or is too large"))?;
        return Ok(body.to_bytes().to_vec());
    }
    bail!("more than {MAX_REDIRECTS} redirects")
}
