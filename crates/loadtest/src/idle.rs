//! Connections that do nothing but live: what each of them holds, and what they cost together.

use std::{fmt, time::Duration};

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use crate::{
    client::{Buffers, Client, Frame},
    process::Processes,
    report::Server,
    run::per,
    setup::Setup,
};

#[derive(Clone, Debug, Args)]
pub struct Idling {
    #[arg(long, default_value_t = 5_000)]
    connections: usize,
    /// Connections made before the first reading, so that what a server allocates once, for
    /// whomever it meets first, is not divided among those that are counted.
    #[arg(long, default_value_t = 200)]
    before: usize,
}

/// What idle connections cost.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub connections: usize,
    /// What the server holds more than before, where its process is known.
    pub resident_bytes_per_connection: Option<f64>,
    /// The same by the proportional share of its pages.
    pub proportional_bytes_per_connection: Option<f64>,
    pub resident_bytes_before: Option<u64>,
    /// While nothing was done.
    pub server: Option<Server>,
    pub generator_busy_share: f64,
    /// Connections that did not last.
    pub lost: usize,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "connections      {}, {} of them lost", self.connections, self.lost)?;
        if let Some(bytes) = self.resident_bytes_per_connection {
            write!(f, "each             {bytes:.0} bytes resident")?;
            let share = self.proportional_bytes_per_connection;
            share.map_or(writeln!(f), |share| writeln!(f, ", {share:.0} by share"))?;
        }
        if let Some(server) = &self.server {
            writeln!(f, "server           {server}")?;
        }
        writeln!(f, "generator busy   {:.0} %", 100.0 * self.generator_busy_share)
    }
}

struct Held {
    resident: u64,
    proportional: Option<u64>,
}

fn held(server: &Processes) -> anyhow::Result<Held> {
    Ok(Held {
        resident: server.memory()?.resident_bytes,
        // Only the owner of a process may ask.
        proportional: server.proportional_bytes().ok(),
    })
}

impl Setup {
    pub async fn idle(&self, idling: &Idling) -> anyhow::Result<Report> {
        let held = || self.server.as_ref().map(held).transpose().context("--server-pid");
        let mut living = JoinSet::new();
        let earlier = Self::names(idling.before).map(|name| format!("{name}-before"));
        for client in self.connect(earlier, Buffers::IDLE).await? {
            living.spawn(live(client));
        }
        self.settle().await;
        let before = held()?;
        for client in self.connect(Self::names(idling.connections), Buffers::IDLE).await? {
            living.spawn(live(client));
        }
        self.settle().await;
        let after = held()?;

        let reading = self.reading()?;
        let end = Instant::now() + self.duration;
        let mut next = Instant::now();
        while next < end {
            next = end.min(next + Duration::from_secs(1));
            sleep_until(next).await;
            println!("{:>9} idle   {}", living.len(), self.reading()?.since(&reading));
        }
        let measured = self.measured(&reading, 0)?;
        let mut lost = 0;
        while let Some(ended) = living.try_join_next() {
            lost += 1;
            println!("lost: {:#}", ended?);
        }
        let each = |of: fn(&Held) -> Option<u64>| {
            let (before, after) = (before.as_ref().and_then(of)?, after.as_ref().and_then(of)?);
            Some(per(after.saturating_sub(before), per(idling.connections as u64, 1.0)))
        };
        Ok(Report {
            connections: idling.connections,
            resident_bytes_per_connection: each(|held| Some(held.resident)),
            proportional_bytes_per_connection: each(|held| held.proportional),
            resident_bytes_before: before.map(|held| held.resident),
            server: measured.server,
            generator_busy_share: measured.generator_busy_share,
            lost,
        })
    }

    /// What follows a connection, such as what it missed, has been done.
    async fn settle(&self) {
        sleep_until(Instant::now() + self.warmup).await;
    }
}

/// Answers pings; ends with the connection.
pub async fn live(mut client: Client) -> anyhow::Error {
    loop {
        match client.next().await {
            Ok(frame) if Frame::parse(&frame) == Frame::Disconnected => {
                return anyhow::anyhow!("disconnected");
            }
            Ok(_) => {}
            Err(error) => return error,
        }
    }
}
