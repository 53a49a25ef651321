//! A JSON Web Key Set, read key by key: one that nobody here can use does not spoil the others.

use anyhow::{Context as _, bail, ensure};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};
use serde::Deserialize;
use serde_json::Value;

use super::keys::{Key, MIN_RSA_BYTES};

/// Bytes of a whole set, and keys in it.
pub const MAX_BYTES: usize = 1 << 20;
const MAX_KEYS: usize = 100;

/// What a set holds.
#[derive(Default)]
pub struct KeySet {
    pub keys: Vec<Key>,
    /// What was left out, and why; one sentence each.
    pub warnings: Vec<String>,
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Value>,
}

/// The members that matter, as text: whatever is of another type is as good as absent.
struct Jwk<'a>(&'a Value);

impl<'a> Jwk<'a> {
    fn text(&self, name: &str) -> Option<&'a str> {
        self.0.get(name)?.as_str()
    }

    fn need(&self, name: &str) -> anyhow::Result<&'a str> {
        self.text(name).with_context(|| format!("has no {name:?}"))
    }
}

impl KeySet {
    /// Reads a set; with `only`, no other algorithm is taken from it.
    pub fn parse(text: &[u8], only: Option<Algorithm>) -> anyhow::Result<Self> {
        ensure!(text.len() <= MAX_BYTES, "it is larger than {MAX_BYTES} bytes");
        let Set { keys } = serde_json::from_slice(text).map_err(|error| {
            anyhow::anyhow!("it is not a JSON Web Key Set: {:?}", error.classify())
        })?;
        ensure!(keys.len() <= MAX_KEYS, "it has more than {MAX_KEYS} keys");
        let mut set = Self::default();
        let mut seen = Vec::new();
        for (index, value) in keys.iter().enumerate() {
            if seen.contains(&value) {
                continue;
            }
            seen.push(value);
            let jwk = Jwk(value);
            // An id is the provider's text: it stands in a log.
            let name = match jwk.text("kid") {
                Some(kid) => format!("the key {:?}", kid.chars().take(64).collect::<String>()),
                None => format!("the key at {index}"),
            };
            match read(&jwk, only) {
                Ok(Some(key)) => set.keys.push(key),
                Ok(None) => {}
                Err(reason) => set.warnings.push(format!("{name} {reason:#}: left out")),
            }
            if value.get("d").is_some() {
                set.warnings.push(format!("{name} holds its private half: whoever reads it signs"));
            }
        }
        Ok(set)
    }
}

/// `None` for what is meant for something else.
fn read(jwk: &Jwk<'_>, only: Option<Algorithm>) -> anyhow::Result<Option<Key>> {
    if jwk.text("use").is_some_and(|usage| usage != "sig") {
        return Ok(None);
    }
    let operations = jwk.0.get("key_ops").and_then(Value::as_array);
    if operations.is_some_and(|all| !all.iter().any(|one| one == "verify")) {
        return Ok(None);
    }
    let family = match jwk.need("kty")? {
        "RSA" => AlgorithmFamily::Rsa,
        "EC" => AlgorithmFamily::Ec,
        "OKP" => AlgorithmFamily::Ed,
        "oct" => bail!("is a secret, which nobody should publish"),
        _ => bail!("is of an unknown type"),
    };
    // RSA serves several algorithms; without a word it is the one nearly everybody means.
    let by_type = match (family, jwk.text("crv")) {
        (AlgorithmFamily::Rsa, _) => {
            only.filter(|only| only.family() == family).unwrap_or(Algorithm::RS256)
        }
        (AlgorithmFamily::Ec, Some("P-256")) => Algorithm::ES256,
        (AlgorithmFamily::Ec, Some("P-384")) => Algorithm::ES384,
        (AlgorithmFamily::Ed, Some("Ed25519")) => Algorithm::EdDSA,
        _ => bail!("is on a curve that is not supported"),
    };
    let algorithm = match jwk.text("alg") {
        None => by_type,
        Some("Ed25519") => Algorithm::EdDSA,
        Some(named) => {
            named.parse().ok().with_context(|| "names an algorithm that is not supported")?
        }
    };
    let fits = if family == AlgorithmFamily::Rsa {
        algorithm.family() == family
    } else {
        algorithm == by_type
    };
    ensure!(fits, "names the algorithm {algorithm:?}, which its type does not allow");
    if only.is_some_and(|only| only != algorithm) {
        return Ok(None);
    }
    let decoding = match family {
        AlgorithmFamily::Rsa => {
            let modulus = jwk.need("n")?;
            // Six bits a character.
            ensure!(modulus.len() * 3 / 4 >= MIN_RSA_BYTES, "has less than 2048 bits");
            DecodingKey::from_rsa_components(modulus, jwk.need("e")?)
        }
        AlgorithmFamily::Ec => {
            let (x, y) = (jwk.need("x")?, jwk.need("y")?);
            let length = if algorithm == Algorithm::ES256 { 43 } else { 64 };
            ensure!(x.len() == length && y.len() == length, "is not a point of its curve");
            DecodingKey::from_ec_components(x, y)
        }
        AlgorithmFamily::Ed | AlgorithmFamily::Hmac => {
            let x = jwk.need("x")?;
            ensure!(x.len() == 43, "is not an Ed25519 key");
            DecodingKey::from_ed_components(x)
        }
    };
    let decoding = decoding.ok().context("is not written in base64url")?;
    Ok(Some(Key::new(jwk.text("kid").map(str::to_owned), algorithm, decoding)))
}
