//! One key, and the one algorithm it verifies.

use anyhow::{Context as _, bail, ensure};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, Validation, decode};
use serde_json::{Map, Value};

use crate::config;

/// Bytes of an RSA modulus of 2,048 bits; with less, signatures can be forged.
pub const MIN_RSA_BYTES: usize = 256;

/// A key, ready to verify.
pub struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    decoding: DecodingKey,
    /// Signature and algorithm, nothing else: what the claims say is the app's to judge.
    validation: Validation,
}

impl Key {
    pub fn new(id: Option<String>, algorithm: Algorithm, decoding: DecodingKey) -> Self {
        let mut validation = Validation::new(algorithm);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        Self { id, algorithm, decoding, validation }
    }

    /// `None` for a source of many keys.
    pub fn from_config(key: &config::Key) -> anyhow::Result<Option<Self>> {
        let Some(algorithm) = key.algorithm.filter(|_| key.jwks.is_none()) else { return Ok(None) };
        let decoding = match (&key.secret, &key.public_key) {
            (Some(secret), _) => DecodingKey::from_secret(secret.expose().as_bytes()),
            (None, Some(public_key)) => public(algorithm, public_key)?,
            (None, None) => bail!("the key has neither a secret nor a public_key"),
        };
        Ok(Some(Self::new(key.id.clone(), algorithm, decoding)))
    }

    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// The algorithm is the key's; a token that names another is not tried.
    pub fn fits(&self, algorithm: Algorithm, kid: Option<&str>) -> bool {
        self.algorithm == algorithm
            && match (&self.id, kid) {
                (Some(id), Some(kid)) => id == kid,
                _ => true,
            }
    }

    /// The claims, when the signature is this key's.
    pub fn verify(&self, token: &str) -> Option<Map<String, Value>> {
        Some(decode(token, &self.decoding, &self.validation).ok()?.claims)
    }
}

/// A public key in PEM, or in the file of that path.
fn public(algorithm: Algorithm, text: &str) -> anyhow::Result<DecodingKey> {
    let from_file;
    let pem = if text.contains("-----BEGIN") {
        text
    } else {
        from_file = std::fs::read_to_string(text.trim())
            .with_context(|| format!("keys.public_key: cannot read the file {:?}", text.trim()))?;
        &from_file
    };
    let decoding = match algorithm.family() {
        AlgorithmFamily::Rsa => DecodingKey::from_rsa_pem(pem.as_bytes()),
        AlgorithmFamily::Ec => DecodingKey::from_ec_pem(pem.as_bytes()),
        AlgorithmFamily::Ed => DecodingKey::from_ed_pem(pem.as_bytes()),
        AlgorithmFamily::Hmac => bail!("keys.public_key is not for {algorithm:?}"),
    }
    .with_context(|| format!("keys.public_key is not a PEM key for {algorithm:?}"))?;
    let bytes = decoding.try_get_as_bytes().context("keys.public_key")?.len();
    match algorithm {
        // An uncompressed point: one byte and two coordinates.
        Algorithm::ES256 => ensure!(bytes == 65, "keys.public_key is not on the curve P-256"),
        Algorithm::ES384 => ensure!(bytes == 97, "keys.public_key is not on the curve P-384"),
        Algorithm::EdDSA => ensure!(bytes == 32, "keys.public_key is not an Ed25519 key"),
        _ => ensure!(bytes >= MIN_RSA_BYTES, "keys.public_key has less than 2048 bits"),
    }
    Ok(decoding)
}
