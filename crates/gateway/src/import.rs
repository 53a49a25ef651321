//! `carillon import`: takes an existing database over.

use std::{
    io::{IsTerminal as _, Write as _},
    path::PathBuf,
};

use anyhow::Context as _;
use carillon_domain::{TenantId, exam::journal::JournalKey, leaderboard::recompute};
use carillon_store::{
    OpenError, SqlStore,
    import::{Cases, Import, Source, Table},
};
use clap::Args;

use crate::{apikey::tenant, app, clock::SystemClock, config::Config};

/// Takes over users, exams, results, study groups, rooms, messages and notifications. Repeating it
/// brings what is new and leaves alone what is there.
#[derive(Debug, Args)]
pub struct Request {
    /// The database to read: postgres://…
    #[arg(long, value_name = "URL")]
    from: String,
    /// The tenant of the default app unless said otherwise.
    #[arg(long)]
    tenant: Option<String>,
    /// Reads and checks everything, and writes nothing.
    #[arg(long)]
    dry_run: bool,
    /// A TOML file; the environment wins over it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Request {
    pub async fn run(&self) -> anyhow::Result<()> {
        let config = Config::load(self.config.as_deref())?;
        let tenant = tenant(&config, self.tenant.as_deref())?;
        let source = Source::open(&self.from).await?;
        if self.dry_run {
            look(&config, &tenant, source).await
        } else {
            take(&config, &tenant, source).await
        }
    }
}

async fn look(config: &Config, tenant: &TenantId, source: Source) -> anyhow::Result<()> {
    let url = config.database.url.expose();
    let store = SqlStore::look_into(url).await.context("database.url")?;
    let mut line = Line::default();
    let mut progress = |table: &Table, total: u64| line.show(table, total);
    let import = Import::dry(source, store.as_ref(), tenant, &SystemClock, &mut progress);
    let tables = import.run().await?;
    line.end();
    if let Some(store) = store {
        store.close().await;
    }
    report(&tables);
    println!("A dry run: nothing was written.");
    Ok(())
}

async fn take(config: &Config, tenant: &TenantId, source: Source) -> anyhow::Result<()> {
    let store = match app::open_store(config).await {
        Err(error) if matches!(error.downcast_ref(), Some(OpenError::InUse(_))) => {
            return Err(error.context("stop the server for the import"));
        }
        opened => opened?,
    };
    let key = match &config.exam.journal_key {
        Some(key) => JournalKey::new(key.expose()),
        None => app::stored_journal_key(&store).await?,
    };
    let mut line = Line::default();
    let mut progress = |table: &Table, total: u64| line.show(table, total);
    let import = Import::new(source, &store, tenant, &SystemClock, key, &mut progress);
    let tables = import.run().await.context("stopped; what was imported before is kept")?;
    line.end();
    let settings = config.leaderboard_settings()?;
    let zone = settings.zone(tenant);
    let done = recompute::fold_again(&store, &SystemClock, zone, tenant, None, None).await?;
    store.close().await;
    report(&tables);
    println!("leaderboards: {} users, {} entries changed", done.users, done.repaired);
    Ok(())
}

/// How far a table is. A terminal shows it all the time; elsewhere each table is one line.
#[derive(Default)]
struct Line {
    table: Option<(&'static str, String)>,
}

impl Line {
    const BAR: u64 = 30;

    fn show(&mut self, table: &Table, total: u64) {
        if self.table.as_ref().is_some_and(|(name, _)| *name != table.name) {
            self.end();
        }
        let filled = (table.read.min(total) * Self::BAR).checked_div(total).unwrap_or(Self::BAR);
        let bar: String = (0..Self::BAR).map(|at| if at < filled { '#' } else { '.' }).collect();
        let text = format!("{:<14} [{bar}] {}/{total}", table.name, table.read);
        if std::io::stderr().is_terminal() {
            eprint!("\r{text}");
            // A line that is not shown is not missed.
            let _ = std::io::stderr().flush();
        }
        self.table = Some((table.name, text));
    }

    fn end(&mut self) {
        if let Some((_, text)) = self.table.take() {
            if std::io::stderr().is_terminal() {
                eprintln!();
            } else {
                eprintln!("{text}");
            }
        }
    }
}

fn report(tables: &[Table]) {
    for table in tables {
        println!(
            "{}: {} imported, {} already there, {} skipped",
            table.name,
            table.imported,
            table.already_there,
            table.skipped.count()
        );
        list("skipped", &table.skipped);
        list("mended", &table.mended);
    }
}

fn list(what: &str, cases: &Cases) {
    for (reason, case) in &cases.0 {
        let more = if case.count > case.ids.len() as u64 { ", …" } else { "" };
        println!("  {what} {}: {reason} ({}{more})", case.count, case.ids.join(", "));
    }
}
