//! One connection in one room: what it hears, and, when it publishes, when it sends.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write as _,
    future::pending,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use carillon_domain::{
    RoomId,
    chat::{join_room::JoinRoom, send_message::SendMessage},
    contract::Command,
};
use serde::Serialize;
use serde_json::Value;
use tokio::{
    sync::{Notify, watch},
    task::yield_now,
    time::sleep_until,
};

use crate::{
    client::{Client, Frame, is_ok},
    run::{Run, Schedule, per},
    tally::{Accepted, Marker, Tally},
};

/// A timer is this late at worst; the rest of a wait is spent turning.
const TIMER_GRAIN: Duration = Duration::from_millis(2);

/// When a publisher sends.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Pace {
    /// So many unanswered messages per publisher: the next one when one is answered and, with several
    /// nodes, has come to another.
    InFlight(usize),
    /// So many messages a second by all publishers together, whatever the server does. Latencies
    /// count from the instant a message was to be sent, so one that had to wait has waited.
    PerSecond(f64),
}

/// How many messages of each publisher of a room have come to another node, as one listener there
/// hears them. Without it only the near node would be waited for, and the far one fall behind.
#[derive(Debug)]
pub struct Crossed(Vec<AtomicU64>, Notify);

impl Crossed {
    pub fn new(publishers: usize) -> Self {
        Self((0..publishers).map(|_| AtomicU64::new(0)).collect(), Notify::new())
    }

    fn count(&self, publisher: usize) -> u64 {
        self.0.get(publisher).map_or(0, |count| count.load(Relaxed))
    }

    fn add(&self, publisher: usize) {
        if let Some(count) = self.0.get(publisher) {
            count.fetch_add(1, Relaxed);
            self.1.notify_waiters();
        }
    }
}

/// What a member is, where there are several nodes.
#[derive(Clone, Debug)]
pub enum Place {
    /// There is one node.
    Only,
    /// On the node that is written to. What it hears has not crossed to another: it is checked, but
    /// neither counted nor timed.
    Near(Arc<Crossed>),
    /// On another node. One in each room tells the publishers what has come.
    Far(Option<Arc<Crossed>>),
}

/// A member of a room.
pub struct Member {
    client: Client,
    run: Arc<Run>,
    /// By publisher of the room.
    heard: Vec<Tally>,
    publisher: Option<Publisher>,
    /// Reads nothing any more once the others talk.
    stalls: bool,
    place: Place,
    /// Refusals by code.
    refusals: BTreeMap<String, u64>,
}

/// The part of a member that writes.
pub struct Publisher {
    /// Among the publishers of the room.
    index: usize,
    /// Among all publishers, of whom there are so many.
    turn: u64,
    of: u64,
    pace: Pace,
    sent: u64,
    /// Not yet answered, by the number of the command: the message and when it was to be sent.
    waiting: HashMap<u64, (u64, Instant)>,
    refused: BTreeSet<u64>,
    /// Its text is completed for every message.
    template: SendMessage,
}

/// What is left of a member when the run is over.
#[derive(Debug)]
pub struct Outcome {
    pub heard: Vec<Tally>,
    /// Of a publisher: its place in the room, and what it knows to be accepted.
    pub accepted: Option<(usize, Accepted)>,
    pub refusals: BTreeMap<String, u64>,
    /// Why the connection did not last.
    pub lost: Option<String>,
}

impl Publisher {
    pub fn new(room: RoomId, index: usize, turn: u64, of: u64, pace: Pace) -> Self {
        Self {
            index,
            turn,
            of,
            pace,
            sent: 0,
            waiting: HashMap::new(),
            refused: BTreeSet::new(),
            template: SendMessage { room_id: room, ..SendMessage::example() },
        }
    }

    /// Messages that are not answered, or have not come to the other node.
    fn in_flight(&self, crossed: Option<&Crossed>) -> usize {
        let Some(crossed) = crossed else { return self.waiting.len() };
        let done = crossed.count(self.index) + self.refused.len() as u64;
        let crossing = self.sent.saturating_sub(done);
        self.waiting.len().max(usize::try_from(crossing).unwrap_or(usize::MAX))
    }

    /// What the server said yes to. Without an answer nothing was promised.
    fn accepted(self) -> (usize, Accepted) {
        let mut without = self.refused;
        without.extend(self.waiting.into_values().map(|(number, _)| number));
        (self.index, Accepted { sent: self.sent, without })
    }
}

impl Member {
    /// Joins the room.
    pub async fn enter(
        mut client: Client,
        run: Arc<Run>,
        room: RoomId,
        publishers: usize,
        publisher: Option<Publisher>,
    ) -> anyhow::Result<Self> {
        let asked = client.ask(&JoinRoom { room_id: room })?;
        loop {
            let frame = client.next().await?;
            run.other.increment();
            match Frame::parse(&frame) {
                Frame::Reply(id, arguments) if id == asked => {
                    ensure!(is_ok(arguments), "{} was refused: {arguments}", JoinRoom::NAME);
                    break;
                }
                Frame::Disconnected => bail!("disconnected while joining"),
                _ => {}
            }
        }
        let heard = (0..publishers).map(|_| Tally::default()).collect();
        Ok(Self {
            client,
            run,
            heard,
            publisher,
            stalls: false,
            place: Place::Only,
            refusals: BTreeMap::new(),
        })
    }

    /// There are several nodes.
    #[must_use]
    pub fn at(self, place: Place) -> Self {
        Self { place, ..self }
    }

    /// It reads nothing any more once the others talk, and no account is kept of what it hears.
    #[must_use]
    pub fn stalling(self) -> Self {
        Self { stalls: true, ..self }
    }

    /// Listens, and publishes when it is time, until the run is stopped.
    pub async fn live(
        mut self,
        mut started: watch::Receiver<()>,
        mut stopped: watch::Receiver<()>,
    ) -> Outcome {
        let lost = tokio::select! {
            Err(error) = self.take_part(&mut started) => Some(format!("{error:#}")),
            _ = stopped.changed() => None,
        };
        Outcome {
            heard: if self.stalls { Vec::new() } else { self.heard },
            accepted: self.publisher.map(Publisher::accepted),
            refusals: self.refusals,
            lost,
        }
    }

    /// Ends only with the connection.
    async fn take_part(&mut self, started: &mut watch::Receiver<()>) -> anyhow::Result<()> {
        if self.stalls {
            tokio::select! {
                ended = self.listen() => return ended,
                _ = started.changed() => return pending().await,
            }
        }
        if let Some(pace) = self.publisher.as_ref().map(|publisher| publisher.pace) {
            tokio::select! {
                ended = self.listen() => return ended,
                _ = started.changed() => {}
            }
            let schedule = *self.run.schedule.get().context("started without a schedule")?;
            match pace {
                Pace::InFlight(limit) => self.keep_in_flight(limit, schedule).await?,
                Pace::PerSecond(rate) => self.keep_rate(rate, schedule).await?,
            }
        }
        self.listen().await
    }

    async fn listen(&mut self) -> anyhow::Result<()> {
        loop {
            let frame = self.client.next().await?;
            self.hear(&frame)?;
        }
    }

    async fn keep_in_flight(&mut self, limit: usize, schedule: Schedule) -> anyhow::Result<()> {
        loop {
            let crossed = match &self.place {
                Place::Near(crossed) => Some(crossed.clone()),
                Place::Only | Place::Far(_) => None,
            };
            // Nothing that comes between looking and waiting is missed.
            let mut come = pin!(crossed.as_ref().map(|crossed| crossed.1.notified()));
            if let Some(come) = come.as_mut().as_pin_mut() {
                come.enable();
            }
            while self.waiting() < limit {
                let now = Instant::now();
                if now >= schedule.end {
                    return Ok(());
                }
                self.publish(now)?;
            }
            let Some(come) = come.as_mut().as_pin_mut() else {
                let frame = self.client.next().await?;
                self.hear(&frame)?;
                continue;
            };
            tokio::select! {
                frame = self.client.next() => self.hear(&frame?)?,
                () = come => {}
            }
        }
    }

    async fn keep_rate(&mut self, rate: f64, schedule: Schedule) -> anyhow::Result<()> {
        loop {
            let Some(publisher) = &self.publisher else { return Ok(()) };
            // The publishers take turns: this one's messages are every `of`-th of all.
            let place = publisher.turn + publisher.sent * publisher.of;
            let intended = schedule.start + Duration::from_secs_f64(per(place, rate));
            if intended >= schedule.end {
                return Ok(());
            }
            tokio::select! {
                frame = self.client.next() => self.hear(&frame?)?,
                () = due(intended) => {
                    self.run.record(intended, |latencies| &mut latencies.sending);
                    self.publish(intended)?;
                }
            }
        }
    }

    fn waiting(&self) -> usize {
        let crossed = match &self.place {
            Place::Near(crossed) => Some(&**crossed),
            Place::Only | Place::Far(_) => None,
        };
        self.publisher.as_ref().map_or(0, |publisher| publisher.in_flight(crossed))
    }

    fn publish(&mut self, intended: Instant) -> anyhow::Result<()> {
        let Some(publisher) = &mut self.publisher else { return Ok(()) };
        let nanoseconds = u64::try_from((intended - self.run.epoch).as_nanos())?;
        let marker = Marker { publisher: publisher.index, number: publisher.sent, nanoseconds };
        let text = publisher.template.message.len();
        write!(publisher.template.message, " {marker}")?;
        let id = self.client.ask(&publisher.template)?;
        publisher.template.message.truncate(text);
        publisher.waiting.insert(id, (publisher.sent, intended));
        publisher.sent += 1;
        self.run.sent.increment();
        Ok(())
    }

    /// Counts one frame.
    fn hear(&mut self, frame: &str) -> anyhow::Result<()> {
        match Frame::parse(frame) {
            Frame::Delivery(frame) => {
                let marker = Marker::find(frame).context("a message without a marker")?;
                let tally = self.heard.get_mut(marker.publisher).context("a foreign message")?;
                tally.hear(marker.number);
                match &self.place {
                    Place::Near(_) => {
                        self.run.near.increment();
                        return Ok(());
                    }
                    Place::Far(Some(crossed)) => crossed.add(marker.publisher),
                    Place::Only | Place::Far(None) => {}
                }
                self.run.delivered.increment();
                let intended = self.run.epoch + Duration::from_nanos(marker.nanoseconds);
                self.run.record(intended, |latencies| &mut latencies.delivery);
            }
            Frame::Reply(id, arguments) => self.answered(id, arguments)?,
            Frame::Refusal(frame) => self.refused(frame.trim_start_matches("42")),
            Frame::Disconnected => bail!("the server ended the session"),
            Frame::Open | Frame::Ping | Frame::Connected | Frame::Denied(_) | Frame::Other => {
                self.run.other.increment();
            }
        }
        Ok(())
    }

    fn answered(&mut self, id: u64, arguments: &str) -> anyhow::Result<()> {
        let waited = self.publisher.as_mut().and_then(|publisher| publisher.waiting.remove(&id));
        let (number, intended) = waited.with_context(|| format!("a second answer to {id}"))?;
        if is_ok(arguments) {
            self.run.acknowledged.increment();
            self.run.record(intended, |latencies| &mut latencies.reply);
            return Ok(());
        }
        self.run.refused.increment();
        if let Some(publisher) = &mut self.publisher {
            publisher.refused.insert(number);
        }
        self.refused(arguments);
        Ok(())
    }

    fn refused(&mut self, arguments: &str) {
        *self.refusals.entry(code(arguments)).or_default() += 1;
    }
}

/// The code of a refusal, in a reply or in the event `error`.
pub fn code(arguments: &str) -> String {
    let arguments: Vec<Value> = serde_json::from_str(arguments).unwrap_or_default();
    let code = arguments.iter().find_map(|argument| argument.get("code")?.as_str());
    code.unwrap_or("without a code").to_owned()
}

/// Returns at the instant or microseconds later; a timer alone is up to a millisecond late.
async fn due(instant: Instant) {
    let until_then = instant.saturating_duration_since(Instant::now());
    if let Some(rest) = until_then.checked_sub(TIMER_GRAIN) {
        sleep_until((Instant::now() + rest).into()).await;
    }
    while Instant::now() < instant {
        yield_now().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_of_a_refusal_is_found_in_both_forms() {
        assert_eq!(code(r#"[{"ok":false,"code":"RATE_LIMITED"}]"#), "RATE_LIMITED");
        assert_eq!(code(r#"["error",{"message":"no","code":"INVALID"}]"#), "INVALID");
        assert_eq!(code("[{}"), "without a code");
    }

    #[test]
    fn with_several_nodes_a_message_is_under_way_until_it_has_crossed() {
        let mut publisher =
            Publisher::new(RoomId::new("algebra").unwrap(), 1, 0, 1, Pace::InFlight(4));
        let crossed = Crossed::new(2);
        publisher.sent = 3;
        publisher.refused.insert(0);
        publisher.waiting.insert(9, (2, Instant::now()));
        assert_eq!((publisher.in_flight(None), publisher.in_flight(Some(&crossed))), (1, 2));
        crossed.add(1);
        crossed.add(1);
        assert_eq!(publisher.in_flight(Some(&crossed)), 1, "come, and not answered");
    }

    #[test]
    fn what_was_refused_or_not_answered_is_not_accepted() {
        let room = RoomId::new("algebra").unwrap();
        let mut publisher = Publisher::new(room, 2, 0, 1, Pace::InFlight(4));
        publisher.sent = 5;
        publisher.refused.insert(1);
        publisher.waiting.insert(9, (4, Instant::now()));
        let (index, accepted) = publisher.accepted();
        assert_eq!((index, accepted.count()), (2, 3));
        assert!(accepted.without.contains(&1) && accepted.without.contains(&4));
    }
}
