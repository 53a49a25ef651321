//! `carillon apikey`: keys for the server API, beside a running server.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use carillon_domain::{
    TenantId, Timestamp,
    api::{KeyHolder, Right, Rights, StoredKey},
    contract::Scope,
    ports::Store as _,
};
use carillon_store::{Opener, SqlStore};
use clap::{Args, Subcommand};

use crate::{
    config::{self, Config},
    http::keys,
};

#[derive(Debug, Subcommand)]
pub enum Request {
    /// Makes a key and prints it; it is shown once.
    Create(Create),
    /// Shows every key, never the key itself.
    List(Open),
    /// Ends a key at once.
    Revoke(Revoke),
}

/// Where the keys are.
#[derive(Debug, Args)]
pub struct Open {
    /// A TOML file; the environment wins over it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Create {
    /// What journals and the audit log show.
    #[arg(long)]
    name: String,
    /// The tenant of the default app unless said otherwise.
    #[arg(long)]
    tenant: Option<String>,
    /// Separated by commas, such as `users:write,exams:read`; `*` for all.
    #[arg(long)]
    scopes: String,
    #[command(flatten)]
    open: Open,
}

#[derive(Debug, Args)]
pub struct Revoke {
    #[arg(long)]
    name: String,
    /// The tenant of the default app unless said otherwise.
    #[arg(long)]
    tenant: Option<String>,
    #[command(flatten)]
    open: Open,
}

impl Open {
    pub async fn open(&self) -> anyhow::Result<(Config, SqlStore)> {
        let config = Config::load(self.config.as_deref())?;
        let url = config.database.url.expose();
        config::ensure_directory(url)?;
        let store = SqlStore::open(url, Opener::Tool).await.context("database.url")?;
        if config.database.migrate {
            store.migrate().await.context("cannot migrate the database")?;
        }
        Ok((config, store))
    }
}

/// The tenant named, else that of the default app.
pub fn tenant(config: &Config, given: Option<&str>) -> anyhow::Result<TenantId> {
    match given {
        Some(tenant) => Ok(TenantId::new(tenant)?),
        None => Ok(config.default_app().tenant.clone()),
    }
}

fn now() -> Timestamp {
    Timestamp(jiff::Timestamp::now().as_millisecond())
}

impl Request {
    pub async fn run(&self) -> anyhow::Result<()> {
        match self {
            Self::Create(create) => create.run().await,
            Self::List(open) => list(open).await,
            Self::Revoke(revoke) => revoke.run().await,
        }
    }
}

impl Create {
    async fn run(&self) -> anyhow::Result<()> {
        config::check_key_name(&self.name)?;
        let rights = Rights::parse(self.scopes.split(',')).with_context(|| {
            let all: Vec<&str> = Right::ALL.iter().map(|right| right.as_str()).collect();
            format!("--scopes is a list of *, {}", all.join(", "))
        })?;
        let (config, store) = self.open.open().await?;
        let tenant = tenant(&config, self.tenant.as_deref())?;
        let key = keys::generate()?;
        let stored = StoredKey {
            holder: KeyHolder { tenant: tenant.clone(), name: self.name.clone(), rights },
            hash: keys::hash(&key),
            created_at: now(),
            revoked_at: None,
        };
        let mut tx = store.begin(&tenant, Scope::Rows).await?;
        let is_new = tx.insert_api_key(&stored).await?;
        ensure!(is_new, "{tenant} has a key named {:?}; revoke it first", self.name);
        tx.commit().await?;
        store.close().await;
        println!("{key}");
        Ok(())
    }
}

async fn list(open: &Open) -> anyhow::Result<()> {
    let (_, store) = open.open().await?;
    let keys = store.read().await?.api_keys().await?;
    store.close().await;
    for StoredKey { holder, created_at, revoked_at, .. } in keys {
        let state = revoked_at.map_or_else(|| "in use".into(), |at| format!("revoked {at}"));
        let KeyHolder { tenant, name, rights } = holder;
        println!("{tenant}\t{name}\t{rights}\tmade {created_at}\t{state}");
    }
    Ok(())
}

impl Revoke {
    async fn run(&self) -> anyhow::Result<()> {
        let (config, store) = self.open.open().await?;
        let tenant = tenant(&config, self.tenant.as_deref())?;
        let mut tx = store.begin(&tenant, Scope::Rows).await?;
        let was_there = tx.revoke_api_key(&tenant, &self.name, now()).await?;
        ensure!(was_there, "{tenant} has no key named {:?} in use", self.name);
        tx.commit().await?;
        store.close().await;
        println!("revoked");
        Ok(())
    }
}
