//! A school arriving: handshake, token, CONNECT, and away again.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use carillon_domain::{RoomId, chat::join_room::JoinRoom};
use clap::Args;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{
    task::JoinSet,
    time::{sleep_until, timeout},
};

use crate::{
    asking::{ask, histogram},
    client::{Buffers, Client, Target},
    report::Latency,
    run::per,
    scenario::token,
    setup::{Measured, Setup},
};

/// A connection that takes longer does not come about.
const PATIENCE: Duration = Duration::from_secs(20);
/// Handshakes under way when a rate is too high for the server.
const MOST: usize = 10_000;

#[derive(Clone, Debug, Args)]
pub struct Connecting {
    /// Handshakes under way at a time.
    #[arg(long, default_value_t = 16, conflicts_with = "rate")]
    concurrent: usize,
    /// Connections a second, whatever the server does.
    #[arg(long)]
    rate: Option<f64>,
    /// Who they are; from the second time on they are known.
    #[arg(long, default_value_t = 500)]
    users: usize,
    /// Each enters a room of its own before it goes.
    #[arg(long)]
    join: bool,
    /// Whoever has been there goes on as the same socket, in the room it was in.
    #[arg(long)]
    recover: bool,
}

/// What came of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Connections.
    #[serde(flatten)]
    pub measured: Measured,
    /// From the instant a connection was to be begun to the reply to its CONNECT.
    pub connect: Latency,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub join: Option<Latency>,
    /// Those that went on as the same socket.
    pub recovered: u64,
    /// By reason.
    pub failed: BTreeMap<String, u64>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "connected        {}", self.measured)?;
        writeln!(f, "connect          {}", self.connect)?;
        if let Some(join) = &self.join {
            writeln!(f, "join-room        {join}")?;
        }
        if self.recovered > 0 {
            writeln!(f, "went on          {}", self.recovered)?;
        }
        self.failed
            .iter()
            .try_for_each(|(reason, n)| writeln!(f, "failed           {n} × {reason}"))
    }
}

/// What all connections share.
struct Storm {
    target: Target,
    users: Vec<User>,
    joins: bool,
    recovers: bool,
    measured: Instant,
    end: Instant,
    tally: Mutex<Tally>,
}

struct User {
    room: RoomId,
    token: String,
    /// What it was told when it came last: `{"sid":…,"pid":…}`.
    session: Mutex<Option<Session>>,
}

/// Of a CONNECT reply.
#[derive(Clone, Deserialize)]
struct Session {
    sid: String,
    pid: Option<String>,
}

impl User {
    fn session(&self) -> MutexGuard<'_, Option<Session>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Tally {
    connected: u64,
    recovered: u64,
    connect: Histogram<u64>,
    join: Histogram<u64>,
    failed: BTreeMap<String, u64>,
}

impl Storm {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, intended: Instant, of: fn(&mut Tally) -> &mut Histogram<u64>) {
        if (self.measured..self.end).contains(&intended) {
            let microseconds = u64::try_from(intended.elapsed().as_micros()).unwrap_or(u64::MAX);
            of(&mut self.tally()).saturating_record(microseconds);
        }
    }

    /// One connection, from beginning to end.
    async fn one(&self, n: usize, intended: Instant) {
        let coming = timeout(PATIENCE, self.come_and_go(n, intended));
        let result = coming.await.context("it takes too long").flatten();
        if let Err(error) = result {
            *self.tally().failed.entry(format!("{error:#}")).or_default() += 1;
        }
    }

    async fn come_and_go(&self, n: usize, intended: Instant) -> anyhow::Result<()> {
        let user = &self.users[n % self.users.len()];
        let mut client = Client::open(&self.target, Buffers::IDLE).await?;
        let before = user.session().take();
        let pid = before.as_ref().and_then(|session| session.pid.as_ref());
        let reply = client.enter(&json!({ "token": user.token, "pid": pid })).await?;
        self.record(intended, |tally| &mut tally.connect);
        self.tally().connected += 1;
        if self.recovers {
            let session: Session = serde_json::from_str(&reply[2..]).context("40")?;
            let is_same = before.is_some_and(|before| before.sid == session.sid);
            *user.session() = Some(session);
            if is_same {
                self.tally().recovered += 1;
                return Ok(());
            }
        }
        if self.joins {
            let began = Instant::now();
            let refusal = ask(&mut client, &JoinRoom { room_id: user.room.clone() }).await?;
            ensure!(refusal.is_none(), "join-room: {}", refusal.unwrap_or_default());
            self.record(began, |tally| &mut tally.join);
        }
        Ok(())
    }
}

impl Setup {
    pub async fn storm(&self, connecting: &Connecting) -> anyhow::Result<Report> {
        ensure!(connecting.users > 0, "--users 0 would leave nobody to connect");
        ensure!(connecting.concurrent > 0, "--concurrent 0 would connect nobody");
        ensure!(connecting.rate.is_none_or(|rate| rate > 0.0), "--rate is connections a second");
        ensure!(
            !connecting.recover || connecting.concurrent <= connecting.users,
            "--recover: nobody is two at a time, so --users are more than --concurrent"
        );
        let user = |name: String| {
            Ok(User {
                room: RoomId::new(format!("desk-{name}"))?,
                token: token(&self.secret, &name)?,
                session: Mutex::default(),
            })
        };
        let users = Self::names(connecting.users).map(user).collect::<anyhow::Result<_>>()?;
        let start = Instant::now();
        let (measured, end) = self.span(start);
        let tally = Tally {
            connected: 0,
            recovered: 0,
            connect: histogram()?,
            join: histogram()?,
            failed: BTreeMap::new(),
        };
        let target = self.target.clone();
        let (joins, recovers, tally) = (connecting.join, connecting.recover, Mutex::new(tally));
        let storm = Arc::new(Storm { target, users, joins, recovers, measured, end, tally });
        let blowing = async {
            match connecting.rate {
                Some(rate) => at_rate(&storm, start, rate).await,
                None => at_a_time(&storm, connecting.concurrent).await,
            }
        };
        let measuring = self.measure(start, "connected", || storm.tally().connected);
        let (measured, ()) = tokio::try_join!(measuring, blowing)?;
        let tally = storm.tally();
        Ok(Report {
            measured,
            connect: Latency::of(&tally.connect),
            join: joins.then(|| Latency::of(&tally.join)),
            recovered: tally.recovered,
            failed: tally.failed.clone(),
        })
    }
}

/// The next one when one is done.
async fn at_a_time(storm: &Arc<Storm>, concurrent: usize) -> anyhow::Result<()> {
    let mut chains = JoinSet::new();
    for chain in 0..concurrent {
        let storm = storm.clone();
        chains.spawn(async move {
            let mut n = chain;
            while Instant::now() < storm.end {
                storm.one(n, Instant::now()).await;
                n += concurrent;
            }
        });
    }
    while let Some(ended) = chains.join_next().await {
        ended?;
    }
    Ok(())
}

/// One after the other when it is time, done or not.
async fn at_rate(storm: &Arc<Storm>, start: Instant, rate: f64) -> anyhow::Result<()> {
    let mut under_way = JoinSet::new();
    for n in 0.. {
        let intended = start + Duration::from_secs_f64(per(n as u64, rate));
        if intended >= storm.end {
            break;
        }
        sleep_until(intended.into()).await;
        while let Some(ended) = under_way.try_join_next() {
            ended?;
        }
        ensure!(under_way.len() < MOST, "{MOST} handshakes under way: the rate is too high");
        let storm = storm.clone();
        under_way.spawn(async move { storm.one(n, intended).await });
    }
    while let Some(ended) = under_way.join_next().await {
        ended?;
    }
    Ok(())
}
