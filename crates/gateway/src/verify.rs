//! `carillon exam verify`: whether what is stored of an exam is what happened.

use anyhow::{Context as _, bail};
use carillon_domain::{
    exam::{journal::JournalKey, verify},
    ids::ExamId,
    ports::Store as _,
};
use clap::{Args, Subcommand};

use crate::{
    apikey::{Open, tenant},
    app,
};

#[derive(Debug, Subcommand)]
pub enum Request {
    /// Folds state and result of every attempt again from its journal, and finds any entry that was
    /// changed, removed or cut off.
    Verify(Verify),
}

#[derive(Debug, Args)]
pub struct Verify {
    /// The id of the exam.
    exam: String,
    /// The tenant of the default app unless said otherwise.
    #[arg(long)]
    tenant: Option<String>,
    #[command(flatten)]
    open: Open,
}

impl Request {
    pub async fn run(self) -> anyhow::Result<()> {
        let Self::Verify(Verify { exam, tenant: of, open }) = self;
        let (config, store) = open.open().await?;
        let tenant = tenant(&config, of.as_deref())?;
        let exam = ExamId::new(&exam)?;
        let key = match &config.exam.journal_key {
            Some(key) => JournalKey::new(key.expose()),
            None => app::stored_journal_key(&store).await?,
        };
        let mut reads = store.read().await?;
        reads.exam(&tenant, &exam).await?.with_context(|| {
            format!("the tenant {tenant} has no exam {exam}; --tenant names another")
        })?;
        let report = verify::verify(reads.as_mut(), &key, &tenant, &exam).await?;
        drop(reads);
        store.close().await;
        for finding in &report.findings {
            println!("{finding}");
        }
        let counted = format!("{} attempts, {} entries", report.attempts, report.entries);
        if !report.findings.is_empty() {
            bail!("{} findings in {counted}", report.findings.len());
        }
        println!("{counted}: everything fits.");
        Ok(())
    }
}
