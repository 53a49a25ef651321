//! TLS of our own: a certificate from two files, read again when they change.
//!
//! Their content is compared, not their times: a renewal may replace a file, or a symbolic link to
//! the directory it is in. New and old do not have to change at once: a pair that does not fit is
//! refused, the old one stays, and the next look finds the other half.

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use anyhow::Context as _;
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio_rustls::TlsAcceptor;

use crate::config;

/// How often the files are read.
const EVERY: Duration = Duration::from_secs(2);

/// The certificate in force.
pub struct Certificates {
    certificate: PathBuf,
    key: PathBuf,
    current: RwLock<TlsAcceptor>,
    /// What was read last, sound or not.
    read: RwLock<Pair>,
}

#[derive(PartialEq, Eq)]
struct Pair {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Certificates {
    /// `None` where nothing is configured.
    pub async fn open(tls: &config::Tls) -> anyhow::Result<Option<Arc<Self>>> {
        let (Some(certificate), Some(key)) = (tls.certificate.clone(), tls.key.clone()) else {
            return Ok(None);
        };
        let pair = read(&certificate, &key).await?;
        let current = RwLock::new(acceptor(&pair)?);
        Ok(Some(Arc::new(Self { certificate, key, current, read: RwLock::new(pair) })))
    }

    pub fn acceptor(&self) -> TlsAcceptor {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks for new files for ever.
    pub async fn follow(&self) {
        loop {
            tokio::time::sleep(EVERY).await;
            match self.look().await {
                Ok(true) => tracing::info!("server.tls: the certificate has been renewed"),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!("server.tls: the old certificate stays: {error:#}");
                }
            }
        }
    }

    /// True when there is a new pair and it is in force; an error only once for each pair.
    async fn look(&self) -> anyhow::Result<bool> {
        // What is not there just now is being replaced.
        let Ok(pair) = read(&self.certificate, &self.key).await else { return Ok(false) };
        if *self.read.read().unwrap_or_else(PoisonError::into_inner) == pair {
            return Ok(false);
        }
        let acceptor = acceptor(&pair);
        *self.read.write().unwrap_or_else(PoisonError::into_inner) = pair;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = acceptor?;
        Ok(true)
    }
}

async fn read(certificate: &PathBuf, key: &PathBuf) -> anyhow::Result<Pair> {
    let cannot_read =
        |what: &str, path: &PathBuf| format!("{what}: cannot read {}", path.display());
    Ok(Pair {
        certificate: tokio::fs::read(certificate)
            .await
            .with_context(|| cannot_read("server.tls.certificate", certificate))?,
        key: tokio::fs::read(key).await.with_context(|| cannot_read("server.tls.key", key))?,
    })
}

fn acceptor(pair: &Pair) -> anyhow::Result<TlsAcceptor> {
    let chain = CertificateDer::pem_slice_iter(&pair.certificate)
        .collect::<Result<Vec<_>, _>>()
        .ok()
        .filter(|chain| !chain.is_empty())
        .context("server.tls.certificate has no certificate in PEM")?;
    let key = PrivateKeyDer::from_pem_slice(&pair.key)
        .ok()
        .context("server.tls.key has no private key in PEM")?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("server.tls.certificate and server.tls.key are no pair")?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Whoever comes back, as all do after a deploy, needs no new signature.
    config.ticketer = ring::Ticketer::new()?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
