//! Clients that do what none should: open and say nothing, send what is too large, send too often.
//! Nothing is measured here; who is honest meanwhile (`come`) and the server's memory are.

use std::{
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::ensure;
use carillon_domain::{
    RoomId,
    chat::{join_room::JoinRoom, send_message::SendMessage},
    contract::Command as _,
};
use clap::{Args, Subcommand};
use serde::Serialize;
use tokio::{
    task::JoinSet,
    time::{sleep, sleep_until, timeout},
};

use crate::{
    asking::{ask, histogram},
    client::{Buffers, Client, Target},
    idle::live,
    report::Latency,
    run::{Counter, per},
    scenario::token,
    setup::Setup,
};

/// Between being cut off and coming back.
const PAUSE: Duration = Duration::from_millis(100);
/// Between sending what is due and what is due then.
const TICK: Duration = Duration::from_millis(1);

#[derive(Clone, Debug, Subcommand)]
pub enum Abuse {
    /// `WebSockets` that never CONNECT.
    Silent(Silent),
    /// Frames of one size, one after the other, on every connection.
    Frames(Frames),
    /// One client that sends messages, more than it may.
    Events(Events),
}

#[derive(Clone, Debug, Args)]
pub struct Silent {
    #[arg(long, default_value_t = 5_000)]
    sockets: usize,
    /// One that is closed is opened again.
    #[arg(long)]
    again: bool,
}

#[derive(Clone, Debug, Args)]
pub struct Frames {
    #[arg(long, default_value_t = 20)]
    connections: usize,
    /// Of the text of a message.
    #[arg(long, default_value_t = 999_000)]
    bytes: usize,
    /// They have not said who they are.
    #[arg(long)]
    strangers: bool,
}

#[derive(Clone, Debug, Args)]
pub struct Events {
    /// A second.
    #[arg(long, default_value_t = 10_000)]
    rate: u32,
}

/// What was done.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub opened: u64,
    /// Frames or events.
    pub sent: u64,
    pub sent_per_second: f64,
    /// Why connections ended, or did not come about.
    pub ended: BTreeMap<String, u64>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "opened           {}", self.opened)?;
        writeln!(f, "sent             {}, {:.0} a second", self.sent, self.sent_per_second)?;
        self.ended.iter().try_for_each(|(reason, n)| writeln!(f, "ended            {n} × {reason}"))
    }
}

#[derive(Default)]
struct Done {
    opened: Counter,
    sent: Counter,
    ended: Mutex<BTreeMap<String, u64>>,
}

impl Done {
    fn ended(&self, error: &anyhow::Error) {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        *ended.entry(format!("{error:#}")).or_default() += 1;
    }
}

/// Who abuses, and how.
#[derive(Clone, Copy)]
enum Way {
    Silent { again: bool },
    Frames { bytes: usize, is_stranger: bool },
    Events { rate: u32 },
}

impl Setup {
    pub async fn abuse(self: Arc<Self>, abuse: &Abuse) -> anyhow::Result<Report> {
        let (count, way) = match abuse {
            Abuse::Silent(Silent { sockets, again }) => (*sockets, Way::Silent { again: *again }),
            Abuse::Frames(Frames { connections, bytes, strangers }) => {
                (*connections, Way::Frames { bytes: *bytes, is_stranger: *strangers })
            }
            Abuse::Events(events) => (1, Way::Events { rate: events.rate }),
        };
        let done = Arc::new(Done::default());
        let began = Instant::now();
        let mut abusers = JoinSet::new();
        for name in Self::names(count) {
            let (setup, done) = (self.clone(), done.clone());
            abusers.spawn(async move { setup.go_on(way, &name, &done).await });
        }
        let end = began + self.warmup + self.duration;
        let mut next = began;
        while next < end {
            next += Duration::from_secs(1);
            sleep_until(next.into()).await;
            println!("{:>9} opened {:>9} sent", done.opened.get(), done.sent.get());
        }
        abusers.shutdown().await;
        let ended = done.ended.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let sent = done.sent.get();
        let sent_per_second = per(sent, began.elapsed().as_secs_f64());
        Ok(Report { opened: done.opened.get(), sent, sent_per_second, ended })
    }

    /// Comes back whenever it is cut off, unless it is to be silent once.
    async fn go_on(&self, way: Way, name: &str, done: &Done) {
        loop {
            let ended = match way {
                Way::Silent { .. } => self.be_silent(done).await,
                Way::Frames { bytes, is_stranger } => {
                    self.send_frames(bytes, (!is_stranger).then_some(name), done).await
                }
                Way::Events { rate } => self.send_events(name, rate, done).await,
            };
            if let Err(error) = ended {
                done.ended(&error);
            }
            if matches!(way, Way::Silent { again: false }) {
                return;
            }
            sleep(PAUSE).await;
        }
    }

    async fn be_silent(&self, done: &Done) -> anyhow::Result<()> {
        let client = Client::open(&self.target, Buffers::IDLE).await?;
        done.opened.increment();
        Err(live(client).await)
    }

    async fn send_frames(
        &self,
        bytes: usize,
        name: Option<&str>,
        done: &Done,
    ) -> anyhow::Result<()> {
        let mut client = match name {
            Some(name) => {
                let token = token(&self.secret, name)?;
                Client::connect(&self.target, &token, Buffers::IDLE).await?
            }
            None => Client::open(&self.target, Buffers::IDLE).await?,
        };
        done.opened.increment();
        let message = SendMessage { message: "a".repeat(bytes), ..SendMessage::example() };
        let text = format!("42[\"{}\",{}]", SendMessage::NAME, serde_json::to_string(&message)?);
        loop {
            client.send(text.clone())?;
            client.flush().await?;
            done.sent.increment();
        }
    }

    async fn send_events(&self, name: &str, rate: u32, done: &Done) -> anyhow::Result<()> {
        let token = token(&self.secret, name)?;
        let mut client = Client::connect(&self.target, &token, Buffers::ANSWERING).await?;
        done.opened.increment();
        let room = RoomId::new(format!("room-of-{name}"))?;
        let refusal = ask(&mut client, &JoinRoom { room_id: room.clone() }).await?;
        ensure!(refusal.is_none(), "join-room: {}", refusal.unwrap_or_default());
        let message = SendMessage { room_id: room, ..SendMessage::example() };
        let (began, mut sent) = (Instant::now(), 0);
        loop {
            sleep(TICK).await;
            while sent < u128::from(rate) * began.elapsed().as_millis() / 1_000 {
                client.ask(&message)?;
                sent += 1;
                done.sent.increment();
            }
            client.flush().await?;
        }
    }
}

#[derive(Clone, Debug, Args)]
pub struct Coming {
    /// Between one and the next.
    #[arg(long, default_value = "250ms", value_parser = humantime::parse_duration)]
    every: Duration,
    /// Who they are.
    #[arg(long, default_value_t = 50)]
    users: usize,
    /// The address of this machine that they come from.
    #[arg(long)]
    from: Option<IpAddr>,
}

/// How those came in who do what the shipped frontend does.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Came {
    pub came_in: u64,
    /// Given up after five reconnects, as the frontend does.
    pub kept_out: u64,
    /// Those who needed more than one attempt.
    pub again: u64,
    /// From the first attempt on.
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
    /// Why attempts failed.
    pub failed: BTreeMap<String, u64>,
}

impl fmt::Display for Came {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { came_in, kept_out, again, p50_ms, p99_ms, max_ms, .. } = self;
        writeln!(
            f,
            "came in          {came_in}, {again} of them not at once; {kept_out} kept out"
        )?;
        writeln!(
            f,
            "after            p50 {p50_ms:.1} ms   p99 {p99_ms:.1} ms   max {max_ms:.1} ms"
        )?;
        self.failed
            .iter()
            .try_for_each(|(reason, n)| writeln!(f, "failed           {n} × {reason}"))
    }
}

/// The stock client waits so long before each reconnect, and then no more; half of it more or less
/// at random, which is left out.
const RECONNECTS: [Duration; 5] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(5),
    Duration::from_secs(5),
];
/// And for an attempt.
const PATIENCE: Duration = Duration::from_secs(20);

impl Setup {
    /// Somebody honest comes every so often.
    pub async fn come(self: Arc<Self>, coming: &Coming) -> anyhow::Result<Came> {
        ensure!(coming.users > 0, "--users 0 would leave nobody to come");
        let names: Vec<String> = Self::names(coming.users).collect();
        let end = Instant::now() + self.warmup + self.duration;
        let mut under_way = JoinSet::new();
        let mut next = Instant::now();
        for n in 0.. {
            if next >= end {
                break;
            }
            sleep_until(next.into()).await;
            let (setup, name) = (self.clone(), names[n % names.len()].clone());
            let target = self.target.from(coming.from);
            under_way.spawn(async move { setup.come_in(&target, &name).await });
            next += coming.every;
        }
        let mut came = Came::default();
        let mut after = histogram()?;
        while let Some(one) = under_way.join_next().await {
            let (took, failures) = one??;
            came.again += u64::from(took.is_some() && !failures.is_empty());
            for failure in failures {
                *came.failed.entry(failure).or_default() += 1;
            }
            match took {
                Some(took) => {
                    came.came_in += 1;
                    after.saturating_record(u64::try_from(took.as_micros())?);
                }
                None => came.kept_out += 1,
            }
        }
        let latency = Latency::of(&after);
        Ok(Came { p50_ms: latency.p50_ms, p99_ms: latency.p99_ms, max_ms: latency.max_ms, ..came })
    }

    /// How long it took, unless it was given up; and why attempts failed.
    async fn come_in(
        &self,
        target: &Target,
        name: &str,
    ) -> anyhow::Result<(Option<Duration>, Vec<String>)> {
        let token = token(&self.secret, name)?;
        let began = Instant::now();
        let mut failures = Vec::new();
        for wait in RECONNECTS.iter().map(Some).chain([None]) {
            let coming = Client::connect(target, &token, Buffers::IDLE);
            match timeout(PATIENCE, coming).await {
                Ok(Ok(_)) => return Ok((Some(began.elapsed()), failures)),
                Ok(Err(error)) => failures.push(format!("{error:#}")),
                Err(_) => failures.push("it takes too long".into()),
            }
            let Some(wait) = wait else { break };
            sleep(*wait).await;
        }
        Ok((None, failures))
    }
}
