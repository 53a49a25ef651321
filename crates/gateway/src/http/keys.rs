//! API keys: those of the configuration, and those in the database.
//!
//! A key is 40 random characters. Nothing shorter than the whole search space helps to guess one,
//! so a plain SHA-256 is what is stored; and the database is asked at every request, so that a
//! revoked key stops at once.

use anyhow::anyhow;
use carillon_domain::{
    App as Domain, Refusal,
    api::{KeyHolder, Rights},
};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::api::hex;
use crate::config;

/// What every key begins with, so that one that leaked can be found.
const PREFIX: &str = "ck_";
/// Random characters behind it, of 62 different ones: 238 bits.
const LENGTH: usize = 40;

/// The keys of the configuration, as hashes.
pub struct Keys {
    configured: Vec<(String, KeyHolder)>,
}

impl Keys {
    pub fn new(config: &config::Config) -> anyhow::Result<Self> {
        let configured = config
            .api_keys
            .iter()
            .map(|key| {
                let rights = Rights::parse(key.scopes.iter().map(String::as_str))?;
                let tenant =
                    key.tenant.clone().unwrap_or_else(|| config.default_app().tenant.clone());
                let holder = KeyHolder { tenant, name: key.name.clone(), rights };
                Ok((key.hash(), holder))
            })
            .collect::<anyhow::Result<_>>()?;
        Ok(Self { configured })
    }

    /// Who holds this key.
    pub async fn find(&self, domain: &Domain, key: &str) -> Result<Option<KeyHolder>, Refusal> {
        let hash = hash(key);
        let is_same = |other: &str| bool::from(hash.as_bytes().ct_eq(other.as_bytes()));
        if let Some((_, holder)) = self.configured.iter().find(|(other, _)| is_same(other)) {
            return Ok(Some(holder.clone()));
        }
        // What cannot be a key of ours is not worth a question.
        if !key.starts_with(PREFIX) || key.len() != PREFIX.len() + LENGTH {
            return Ok(None);
        }
        let stored = domain.store.read().await?.api_key(&hash).await?;
        Ok(stored.filter(|stored| is_same(&stored.hash)).map(|stored| stored.holder))
    }
}

/// SHA-256 in hexadecimal digits.
pub fn hash(key: &str) -> String {
    hex(&Sha256::digest(key.as_bytes()))
}

/// A new key.
pub fn generate() -> anyhow::Result<String> {
    const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mut key = String::from(PREFIX);
    while key.len() < PREFIX.len() + LENGTH {
        let mut bytes = [0; 64];
        getrandom::fill(&mut bytes).map_err(|error| anyhow!("no randomness: {error}"))?;
        // Six bits each; the two values without a character are drawn again.
        let drawn = bytes.iter().filter_map(|byte| ALPHABET.get(usize::from(byte & 63)));
        let missing = PREFIX.len() + LENGTH - key.len();
        key.extend(drawn.take(missing).copied().map(char::from));
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_random_and_of_one_shape() {
        let (one, two) = (generate().unwrap(), generate().unwrap());
        assert_eq!(one.len(), 43);
        assert!(one.starts_with("ck_") && one != two);
        assert_eq!(hash("").len(), 64);
    }
}
