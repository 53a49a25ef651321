//! Heartbeats with acknowledgements: what an event costs that touches no database.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use carillon_domain::{contract::Command as _, session::Heartbeat};
use clap::Args;
use futures_util::{TryStreamExt as _, stream::FuturesUnordered};
use tokio::time::timeout;

use crate::{
    asking::{Report, Tally},
    client::{Buffers, Client, Frame, is_ok},
    member::code,
    setup::Setup,
};

/// An answer that takes longer does not come.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, Args)]
pub struct Echoing {
    #[arg(long, default_value_t = 50)]
    connections: usize,
    /// Unanswered heartbeats per connection.
    #[arg(long, default_value_t = 1, conflicts_with = "rate")]
    in_flight: usize,
    /// Heartbeats a second by all connections together, each asking when it is answered.
    #[arg(long)]
    rate: Option<f64>,
}

impl Setup {
    pub async fn echo(&self, echoing: &Echoing) -> anyhow::Result<Report> {
        ensure!(echoing.in_flight > 0, "--in-flight 0 would send nothing");
        let names = Self::names(echoing.connections);
        let clients = self.connect(names, Buffers::ANSWERING).await?;
        let start = Instant::now();
        if echoing.rate.is_some() {
            return self.repeat(clients, echoing.rate, start, |_| Heartbeat::example()).await;
        }
        let (measured, end) = self.span(start);
        let tally = Tally::new(measured, end)?;
        let echoing = clients.into_iter().map(|client| keep(client, echoing.in_flight, &tally));
        let echoing = async {
            let mut echoing: FuturesUnordered<_> = echoing.collect();
            while echoing.try_next().await?.is_some() {}
            anyhow::Ok(())
        };
        let measuring = self.measure(start, "answered", || tally.answered());
        let (measured, ()) = tokio::try_join!(measuring, echoing)?;
        Ok(tally.report(measured))
    }
}

/// Keeps so many heartbeats unanswered until the end of the tally.
async fn keep(mut client: Client, in_flight: usize, tally: &Tally) -> anyhow::Result<()> {
    let mut waiting = VecDeque::with_capacity(in_flight);
    loop {
        while waiting.len() < in_flight && !tally.has_ended() {
            waiting.push_back((client.ask(&Heartbeat::example())?, Instant::now()));
        }
        if waiting.is_empty() {
            return Ok(());
        }
        let frame = timeout(PATIENCE, client.next()).await.context("heartbeat: no answer")??;
        match Frame::parse(&frame) {
            Frame::Reply(id, arguments) => {
                let place = waiting.iter().position(|(asked, _)| *asked == id);
                let (_, intended) = place
                    .and_then(|place| waiting.remove(place))
                    .with_context(|| format!("a second answer to {id}"))?;
                tally.count(intended, (!is_ok(arguments)).then(|| code(arguments)));
            }
            Frame::Disconnected => bail!("disconnected"),
            _ => {}
        }
    }
}
