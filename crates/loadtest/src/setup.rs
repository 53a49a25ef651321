//! What every scenario but chat shares: whom it loads, for how long, and what that costs.

use std::{
    fmt,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;
use tokio::time::sleep_until;

use crate::{
    client::{Buffers, Client, Target},
    process::{Processes, Reading},
    report::Server,
    run::per,
    scenario::{ARRIVING, new_name, token},
};

/// Whom, and for how long.
pub struct Setup {
    pub target: Target,
    /// HS256.
    pub secret: String,
    pub warmup: Duration,
    pub duration: Duration,
    pub server: Option<Processes>,
}

/// What was counted while it was measured, and what that cost.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Measured {
    pub per_second: f64,
    /// Of the server, where its process is known.
    pub per_cpu_second: Option<f64>,
    pub server: Option<Server>,
    /// Near 1 the generator measures itself.
    pub generator_busy_share: f64,
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0}/s", self.per_second)?;
        if let Some(rate) = self.per_cpu_second {
            write!(f, ", {rate:.0} per CPU-second of the server")?;
        }
        if let Some(server) = &self.server {
            write!(f, "\nserver           {server}")?;
        }
        write!(f, "\ngenerator busy   {:.0} %", 100.0 * self.generator_busy_share)
    }
}

impl Setup {
    /// New users every time: what earlier runs left behind changes nothing.
    pub fn names(count: usize) -> impl Iterator<Item = String> {
        let name = new_name();
        (0..count).map(move |n| format!("{name}-{n}"))
    }

    /// A socket of its own for everybody.
    pub async fn connect(
        &self,
        names: impl IntoIterator<Item = String>,
        buffers: Buffers,
    ) -> anyhow::Result<Vec<Client>> {
        if let Some(server) = &self.server {
            server.cpu().context("--server-pid")?;
        }
        let began = Instant::now();
        let mut told = began;
        let mut clients = Vec::new();
        let mut connecting = stream::iter(names)
            .map(|name| async move {
                Client::connect(&self.target, &token(&self.secret, &name)?, buffers).await
            })
            .buffer_unordered(ARRIVING);
        while let Some(client) =
            connecting.try_next().await.with_context(|| format!("after {}", clients.len()))?
        {
            clients.push(client);
            if told.elapsed() >= Duration::from_secs(1) {
                told = Instant::now();
                println!("{:>9} connected", clients.len());
            }
        }
        println!("{:>9} connected after {:.1} s", clients.len(), began.elapsed().as_secs_f64());
        Ok(clients)
    }

    /// When what begins now is measured.
    pub fn span(&self, start: Instant) -> (Instant, Instant) {
        (start + self.warmup, start + self.warmup + self.duration)
    }

    /// Lets the warm-up pass, and measures; a line a second says how it goes.
    pub async fn measure(
        &self,
        start: Instant,
        what: &str,
        count: impl Fn() -> u64,
    ) -> anyhow::Result<Measured> {
        let (measured, end) = self.span(start);
        self.watch(measured, what, "  (warming up)", &count).await?;
        let before = (count(), self.reading()?);
        self.watch(end, what, "", &count).await?;
        self.measured(&before.1, count() - before.0)
    }

    pub fn reading(&self) -> anyhow::Result<Reading> {
        Reading::now(self.server.as_ref())
    }

    /// What so many cost since then.
    pub fn measured(&self, before: &Reading, count: u64) -> anyhow::Result<Measured> {
        let used = self.reading()?.since(before);
        let memory = self.server.as_ref().and_then(|server| server.memory().ok());
        Ok(Measured {
            per_second: per(count, used.seconds),
            per_cpu_second: used.server_cpu_seconds.map(|cpu| per(count, cpu)),
            server: memory
                .zip(used.server_cpu_seconds)
                .map(|(memory, cpu)| Server::of(memory, cpu / used.seconds)),
            generator_busy_share: used.own_cpu_seconds / used.seconds,
        })
    }

    async fn watch(
        &self,
        until: Instant,
        what: &str,
        remark: &str,
        count: &impl Fn() -> u64,
    ) -> anyhow::Result<()> {
        let mut before = (count(), self.reading()?);
        let mut next = Instant::now();
        while next < until {
            next = until.min(next + Duration::from_secs(1));
            sleep_until(next.into()).await;
            let now = (count(), self.reading()?);
            let used = now.1.since(&before.1);
            if used.seconds > 0.1 {
                let rate = per(now.0 - before.0, used.seconds);
                println!("{rate:>9.0} {what}/s   {used}{remark}");
            }
            before = now;
        }
        Ok(())
    }
}
