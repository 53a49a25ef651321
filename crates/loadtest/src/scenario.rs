//! Chat fan-out: rooms full of members, some of whom write; everybody hears everything once.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use carillon_domain::{RoomId, identity::Role};
use futures_util::{StreamExt as _, stream};
use jsonwebtoken::{EncodingKey, Header, encode};
use serde::Serialize;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, sleep_until},
};

use crate::{
    client::{Buffers, Client, Target},
    member::{Crossed, Member, Outcome, Pace, Place, Publisher},
    process::{Process, Processes},
    report::{Balance, Latency, Report, Server, Settings},
    run::{Run, Schedule, per},
    tally::Accepted,
};

/// Handshakes under way at a time: a school arriving, not an attack.
pub const ARRIVING: usize = 64;
/// All is quiet when nothing came for this long.
const QUIET: Duration = Duration::from_millis(300);
/// The longest wait for quiet, and for answers and deliveries that do not come.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long duplicates are waited for: a server may repair from its outbox once a second.
const LINGER: Duration = Duration::from_millis(1_500);
/// Valid for longer than any run.
const TOKEN_SECONDS: i64 = 24 * 3_600;

/// What is done to the server.
pub struct Scenario {
    pub target: Target,
    /// Other nodes of its cluster. All who only listen are there, in turn.
    pub elsewhere: Vec<Target>,
    /// HS256.
    pub secret: String,
    pub settings: Settings,
    pub server: Option<Processes>,
    /// What the server needs besides, by name: a database, a broker.
    pub beside: Vec<(String, Process)>,
}

/// Everybody in their rooms, waiting to begin.
pub struct Gathered {
    run: Arc<Run>,
    signals: Signals,
    tasks: JoinSet<(usize, Outcome)>,
}

/// What every task of a run waits for.
struct Signals {
    start: watch::Sender<()>,
    stop: watch::Sender<()>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Claims<'a> {
    user_id: &'a str,
    name: &'a str,
    role: Role,
    iat: i64,
    exp: i64,
}

impl Scenario {
    /// Connects everybody, lets them talk, and counts.
    pub async fn run(&self) -> anyhow::Result<Report> {
        if let Some(server) = &self.server {
            server.cpu().context("--server-pid")?;
        }
        self.used_beside().context("--beside")?;
        let gathered = self.gather().await?;
        self.measure(gathered, Instant::now()).await
    }

    /// Lets those who are in their rooms talk from then on, and counts.
    pub async fn measure(&self, gathered: Gathered, start: Instant) -> anyhow::Result<Report> {
        let settings = &self.settings;
        let Gathered { run, signals, mut tasks } = gathered;
        let measured = start + Duration::from_secs_f64(settings.warmup_seconds);
        let end = measured + Duration::from_secs_f64(settings.measured_seconds);
        ensure!(run.schedule.set(Schedule { start, measured, end }).is_ok(), "started twice");
        signals.start.send_replace(());
        self.watch(&run, measured, "  (warming up)").await?;
        let (before, beside_before) = (run.count(self.server.as_ref())?, self.used_beside()?);
        self.watch(&run, end, "").await?;
        let span = run.count(self.server.as_ref())?.since(&before);
        let beside = self.used_beside()?.into_iter().zip(beside_before);
        let memory = self.server.as_ref().and_then(|server| server.memory().ok());

        self.settle(&run).await;
        signals.stop.send_replace(());
        let mut outcomes = Vec::with_capacity(tasks.len());
        while let Some(outcome) = tasks.join_next().await {
            outcomes.push(outcome?);
        }

        let (latencies, used) = (run.latencies(), span.used);
        Ok(Report {
            settings: settings.clone(),
            acknowledged_per_second: per(span.acknowledged, used.seconds),
            deliveries_per_second: per(span.delivered, used.seconds),
            deliveries_per_cpu_second: used.server_cpu_seconds.map(|cpu| per(span.delivered, cpu)),
            reply: Latency::of(&latencies.reply),
            delivery: Latency::of(&latencies.delivery),
            sending: matches!(settings.pace, Pace::PerSecond(_))
                .then(|| Latency::of(&latencies.sending)),
            server: memory
                .zip(used.server_cpu_seconds)
                .map(|(memory, cpu)| Server::of(memory, cpu / used.seconds)),
            beside: beside
                .map(|((name, now), (_, then))| {
                    (name, now.saturating_sub(then).as_secs_f64() / used.seconds)
                })
                .collect(),
            generator_busy_share: used.own_cpu_seconds
                / per(settings.threads as u64, 1.0)
                / used.seconds,
            other_frames: span.other,
            balance: balance(outcomes, run.delivered.get() + run.near.get()),
        })
    }

    /// CPU time used so far by what the server needs besides, its children included.
    fn used_beside(&self) -> anyhow::Result<Vec<(String, Duration)>> {
        let used =
            |(name, process): &(String, Process)| Ok((name.clone(), process.cpu_with_children()?));
        self.beside.iter().map(used).collect()
    }

    /// Everybody connected and in their room, each a task, and quiet.
    pub async fn gather(&self) -> anyhow::Result<Gathered> {
        let Settings { rooms, members, users, publishers, stalled, .. } = self.settings;
        ensure!(
            rooms > 0 && publishers > 0 && publishers + stalled <= members,
            "a room has at least one publisher, and those who publish or stall are members"
        );
        ensure!(
            self.elsewhere.is_empty() || publishers + stalled < members,
            "with several nodes somebody only listens: nothing else crosses from one to another"
        );
        ensure!(users != Some(0), "--users 0 would leave nobody to be a member");
        let run = Arc::new(Run::new()?);
        let signals = Signals { start: watch::Sender::new(()), stop: watch::Sender::new(()) };
        let began = Instant::now();
        // New rooms and users every time: what earlier runs left behind changes nothing.
        let name = new_name();
        let (name, shared) = (name.as_str(), &run);
        let total = rooms * members;
        let crossed: Vec<_> = (0..rooms).map(|_| Arc::new(Crossed::new(publishers))).collect();
        let crossed = &crossed;
        // Round the rooms, so that they fill together.
        let mut entering = stream::iter((0..total).map(|place| (place % rooms, place / rooms)))
            .map(|(room, seat)| async move {
                self.enter(shared, name, room, seat, &crossed[room])
                    .await
                    .map(|member| (room, member))
            })
            .buffer_unordered(ARRIVING);

        let mut tasks = JoinSet::new();
        let mut told = began;
        while let Some(entered) = entering.next().await {
            let (room, member) =
                entered.with_context(|| format!("after {} of {total} members", tasks.len()))?;
            let life = member.live(signals.start.subscribe(), signals.stop.subscribe());
            tasks.spawn(async move { (room, life.await) });
            if told.elapsed() >= Duration::from_secs(1) {
                told = Instant::now();
                println!("{:>7} of {total} members in their rooms", tasks.len());
            }
        }
        drop(entering);
        println!("{total:>7} members in their rooms after {:.1} s", began.elapsed().as_secs_f64());
        quiet(&run).await;
        Ok(Gathered { run, signals, tasks })
    }

    async fn enter(
        &self,
        run: &Arc<Run>,
        name: &str,
        room: usize,
        seat: usize,
        crossed: &Arc<Crossed>,
    ) -> anyhow::Result<Member> {
        let Settings { rooms, members, users, publishers, stalled, pace, .. } = self.settings;
        let user = users.map_or(seat, |users| seat % users);
        let token = token(&self.secret, &format!("{name}-{room}-{user}"))?;
        let room_id = RoomId::new(format!("{name}-{room}"))?;
        let publisher = (seat < publishers).then(|| {
            let (turn, of) = (seat * rooms + room, publishers * rooms);
            Publisher::new(room_id.clone(), seat, turn as u64, of as u64, pace)
        });
        let target = self.node_of(seat);
        let client = Client::connect(target, &token, Buffers::HEARING).await?;
        let member = Member::enter(client, run.clone(), room_id, publishers, publisher).await?;
        let member = member.at(self.place(crossed, seat));
        Ok(if seat < members - stalled { member } else { member.stalling() })
    }

    fn place(&self, crossed: &Arc<Crossed>, seat: usize) -> Place {
        if self.elsewhere.is_empty() {
            return Place::Only;
        }
        match seat.checked_sub(self.settings.publishers) {
            None => Place::Near(crossed.clone()),
            Some(listener) => Place::Far((listener == 0).then(|| crossed.clone())),
        }
    }

    /// Who writes does so on the first node.
    fn node_of(&self, seat: usize) -> &Target {
        let listener = seat.checked_sub(self.settings.publishers);
        let others = listener.and_then(|place| self.elsewhere.iter().cycle().nth(place));
        others.unwrap_or(&self.target)
    }

    /// A line a second until then.
    async fn watch(&self, run: &Run, until: Instant, remark: &str) -> anyhow::Result<()> {
        let server = self.server.as_ref();
        let mut before = run.count(server)?;
        let mut next = Instant::now();
        loop {
            next = until.min(next + Duration::from_secs(1));
            sleep_until(next.into()).await;
            let now = run.count(server)?;
            let span = now.since(&before);
            if span.used.seconds > 0.1 {
                let rate = |count| per(count, span.used.seconds);
                let (acknowledged, delivered) = (rate(span.acknowledged), rate(span.delivered));
                let used = span.used;
                println!(
                    "{acknowledged:>7.0} acknowledged/s {delivered:>9.0} delivered/s   \
                     {used}{remark}"
                );
            }
            before = now;
            if next >= until {
                return Ok(());
            }
        }
    }

    /// Waits until all is answered and delivered, or nothing moves any more.
    async fn settle(&self, run: &Run) {
        let members = (self.settings.members - self.settings.stalled) as u64;
        let mut last = (0, 0);
        let mut moved = Instant::now();
        while moved.elapsed() < PATIENCE {
            let acknowledged = run.acknowledged.get();
            let answered = acknowledged + run.refused.get();
            let delivered = run.delivered.get() + run.near.get();
            if answered == run.sent.get() && delivered >= acknowledged * members {
                return sleep(LINGER).await;
            }
            if (answered, delivered) != last {
                last = (answered, delivered);
                moved = Instant::now();
            }
            sleep(Duration::from_millis(50)).await;
        }
    }
}

/// A name that no other run has, not even one that began in the same millisecond.
pub fn new_name() -> String {
    format!("load-{:x}-{:x}", jiff::Timestamp::now().as_millisecond(), std::process::id())
}

/// A student's token, signed as the school's backend does.
pub fn token(secret: &str, user: &str) -> anyhow::Result<String> {
    let iat = jiff::Timestamp::now().as_second();
    let exp = iat + TOKEN_SECONDS;
    let claims = Claims { user_id: user, name: user, role: Role::Student, iat, exp };
    let key = EncodingKey::from_secret(secret.as_bytes());
    Ok(encode(&Header::default(), &claims, &key)?)
}

/// Waits until those who came in last are known to everybody.
async fn quiet(run: &Run) {
    let began = Instant::now();
    let mut heard = run.other.get();
    while began.elapsed() < PATIENCE {
        sleep(QUIET).await;
        let now = run.other.get();
        if now == heard {
            return;
        }
        heard = now;
    }
}

/// Holds what every member heard against what the publishers of its room know to be accepted.
fn balance(outcomes: Vec<(usize, Outcome)>, delivered: u64) -> Balance {
    let mut balance = Balance { delivered, ..Balance::default() };
    let mut accepted: BTreeMap<(usize, usize), Accepted> = BTreeMap::new();
    let mut members = Vec::with_capacity(outcomes.len());
    for (room, outcome) in outcomes {
        if let Some((index, of)) = outcome.accepted {
            accepted.insert((room, index), of);
        }
        for (code, count) in outcome.refusals {
            *balance.refused.entry(code).or_default() += count;
        }
        if let Some(reason) = outcome.lost {
            *balance.lost.entry(reason).or_default() += 1;
        }
        members.push((room, outcome.heard));
    }
    balance.acknowledged = accepted.values().map(Accepted::count).sum();
    for (room, heard) in members {
        for (index, tally) in heard.iter().enumerate() {
            if let Some(accepted) = accepted.get(&(room, index)) {
                balance.expected += accepted.count();
                balance.account += tally.account(accepted);
            }
        }
    }
    balance
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tally::{Account, Tally};

    fn outcome(heard: &[u64], accepted: Option<Accepted>, lost: Option<&str>) -> Outcome {
        let mut tally = Tally::default();
        for number in heard {
            tally.hear(*number);
        }
        Outcome {
            heard: vec![tally],
            accepted: accepted.map(|accepted| (0, accepted)),
            refusals: BTreeMap::new(),
            lost: lost.map(str::to_owned),
        }
    }

    #[test]
    fn members_are_held_against_the_publishers_of_their_own_room() {
        let sent = |sent| Some(Accepted { sent, ..Accepted::default() });
        let balance = balance(
            vec![
                (0, outcome(&[0, 1], None, None)),
                (1, outcome(&[0], sent(1), None)),
                (0, outcome(&[0, 0], sent(2), None)),
                (1, outcome(&[], None, Some("reset"))),
            ],
            5,
        );
        assert_eq!((balance.acknowledged, balance.expected, balance.delivered), (3, 6, 5));
        assert_eq!(balance.account, Account { missing: 2, duplicated: 1, out_of_order: 0 });
        assert_eq!(balance.lost["reset"], 1);
        assert!(!balance.is_exact());
    }
}
