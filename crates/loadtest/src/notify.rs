//! Notifications: one request of the school's backend, and everybody is told.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use clap::Args;
use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::json;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep_until, timeout_at},
};

use crate::{
    api::Api,
    asking::histogram,
    client::{Buffers, Client},
    report::Latency,
    setup::{Measured, Setup},
    tally::Marker,
};

/// A notification that takes longer does not come.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, Args)]
pub struct Notifying {
    #[command(flatten)]
    api: Api,
    /// Users connected and told, at most 10,000.
    #[arg(long, default_value_t = 1_000)]
    users: usize,
    /// Between one request and the next, or longer when not everybody is told by then.
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    every: Duration,
}

/// What came of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Deliveries.
    #[serde(flatten)]
    pub measured: Measured,
    /// Of the request.
    pub reply: Latency,
    /// From the request to each delivery.
    pub delivery: Latency,
    /// From each request to its last delivery.
    pub everybody: Latency,
    /// Deliveries that did not come, or came twice.
    pub missing: u64,
    pub duplicated: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "delivered        {}", self.measured)?;
        writeln!(f, "request          {}", self.reply)?;
        writeln!(f, "delivery         {}", self.delivery)?;
        writeln!(f, "to the last      {}", self.everybody)?;
        writeln!(f, "{} missing, {} duplicated", self.missing, self.duplicated)
    }
}

/// What those who listen share.
struct Heard {
    epoch: Instant,
    measured: Instant,
    delivered: watch::Sender<u64>,
    latency: Mutex<Histogram<u64>>,
}

impl Heard {
    /// Listens until the connection ends.
    async fn listen(self: Arc<Self>, mut client: Client) -> anyhow::Error {
        loop {
            let frame = match client.next().await {
                Ok(frame) => frame,
                Err(error) => return error,
            };
            if !frame.starts_with("42[\"new-notification\"") {
                continue;
            }
            let Some(marker) = Marker::find(&frame) else { continue };
            let intended = self.epoch + Duration::from_nanos(marker.nanoseconds);
            self.delivered.send_modify(|delivered| *delivered += 1);
            if intended >= self.measured {
                let mut latency = self.latency.lock().unwrap_or_else(PoisonError::into_inner);
                record(&mut latency, intended);
            }
        }
    }
}

fn record(latency: &mut Histogram<u64>, since: Instant) {
    latency.saturating_record(u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX));
}

impl Setup {
    pub async fn notify(&self, notifying: &Notifying) -> anyhow::Result<Report> {
        let users: Vec<String> = Self::names(notifying.users).collect();
        let clients = self.connect(users.clone(), Buffers::IDLE).await?;
        let epoch = Instant::now();
        let (measured, end) = self.span(epoch);
        let heard = Arc::new(Heard {
            epoch,
            measured,
            delivered: watch::Sender::new(0),
            latency: Mutex::new(histogram()?),
        });
        let mut listening = JoinSet::new();
        for client in clients {
            listening.spawn(heard.clone().listen(client));
        }
        let (mut reply, mut everybody) = (histogram()?, histogram()?);
        let (mut expected, mut number) = (0, 0);
        let notifying = async {
            let mut delivered = heard.delivered.subscribe();
            let mut next = epoch;
            while next < end {
                sleep_until(next.into()).await;
                let intended = Instant::now();
                let nanoseconds = u64::try_from((intended - epoch).as_nanos())?;
                let marker = Marker { publisher: 0, number, nanoseconds };
                let body = json!({
                    "users": users, "type": "SYSTEM", "title": "Exam tomorrow",
                    "message": format!("Room 12, nine o'clock. {marker}"),
                });
                notifying.api.request(&self.target, "POST", "/v1/notifications", &body).await?;
                if intended >= measured {
                    record(&mut reply, intended);
                }
                number += 1;
                expected += users.len() as u64;
                let all = delivered.wait_for(|delivered| *delivered >= expected);
                let is_told = timeout_at((intended + PATIENCE).into(), all).await.is_ok();
                if is_told && intended >= measured {
                    record(&mut everybody, intended);
                }
                next = (intended + notifying.every).max(Instant::now());
            }
            anyhow::Ok(())
        };
        let measuring = self.measure(epoch, "delivered", || *heard.delivered.borrow());
        let (measured, ()) = tokio::try_join!(measuring, notifying)?;
        let delivered = *heard.delivered.borrow();
        let latency = heard.latency.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Report {
            measured,
            reply: Latency::of(&reply),
            delivery: Latency::of(&latency),
            everybody: Latency::of(&everybody),
            missing: expected.saturating_sub(delivered),
            duplicated: delivered.saturating_sub(expected),
        })
    }
}
