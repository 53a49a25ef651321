//! Sockets that enter a room and leave it again, over and over, while others sit in it.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::ensure;
use carillon_domain::{
    RoomId,
    chat::{join_room::JoinRoom, leave_room::LeaveRoom},
};
use clap::Args;
use futures_util::{StreamExt as _, stream};
use serde::Serialize;
use tokio::{task::JoinSet, time::sleep};

use crate::{
    asking::{Tally, ask},
    client::{Buffers, Client},
    report::Latency,
    run::Counter,
    scenario::{ARRIVING, token},
    setup::{Measured, Setup},
};

/// All is quiet when nothing came for this long.
const QUIET: Duration = Duration::from_secs(2);
/// The longest wait for that.
const PATIENCE: Duration = Duration::from_mins(1);

#[derive(Clone, Debug, Args)]
pub struct Entering {
    /// Who sits in the room, each a user with one socket.
    #[arg(long, default_value_t = 100)]
    sitting: usize,
    /// Sockets that enter and leave.
    #[arg(long, default_value_t = 10)]
    coming: usize,
    /// They are second sockets of users who sit in the room: nobody is told that they come and go.
    #[arg(long)]
    again: bool,
    /// Sockets a second that enter and leave, all together; without it each enters when it has
    /// left.
    #[arg(long)]
    rate: Option<f64>,
}

/// What came of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub sitting: usize,
    /// Times a socket has entered and left.
    #[serde(flatten)]
    pub measured: Measured,
    /// Of both together.
    pub reply: Latency,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "came and went    {}", self.measured)?;
        writeln!(f, "join and leave   {}", self.reply)
    }
}

impl Setup {
    pub async fn enter(&self, entering: &Entering) -> anyhow::Result<Report> {
        let Entering { sitting, coming, again, rate } = *entering;
        ensure!(!again || coming <= sitting, "--again: those who come are among those who sit");
        ensure!(rate.is_none_or(|rate| rate > 0.0), "--rate is sockets a second");
        let names: Vec<String> = Self::names(sitting).collect();
        let room = RoomId::new(format!("hall-{}", Self::names(1).collect::<String>()))?;
        let heard = Arc::new(Counter::default());
        // Each listens from the moment it is in: who does not read is cut off.
        let mut living = JoinSet::new();
        let mut sitting_down = stream::iter(names.clone())
            .map(|name| self.sit_down(name, &room))
            .buffer_unordered(ARRIVING);
        while let Some(client) = sitting_down.next().await {
            living.spawn(listen(client?, heard.clone()));
        }
        drop(sitting_down);
        println!("{:>9} sit in the room", living.len());
        let names = names.into_iter().take(coming);
        let names = names.map(|name| if again { name } else { format!("{name}-new") });
        let comers = self.connect(names, Buffers::HEARING).await?;
        quiet(&heard).await;

        let start = Instant::now();
        let (measured, end) = self.span(start);
        let tally = Tally::new(measured, end)?;
        let coming_and_going = come_and_go(comers, &room, rate, start, &tally);
        let measuring = self.measure(start, "came and went", || tally.answered());
        let (measured, ()) = tokio::try_join!(measuring, coming_and_going)?;
        if let Some(lost) = living.try_join_next() {
            return Err(lost?.context("somebody who sits there was lost"));
        }
        let (reply, refused) = tally.into_parts();
        ensure!(refused.is_empty(), "refused: {refused:?}");
        Ok(Report { sitting, measured, reply })
    }
}

impl Setup {
    async fn sit_down(&self, name: String, room: &RoomId) -> anyhow::Result<Client> {
        let token = token(&self.secret, &name)?;
        let mut client = Client::connect(&self.target, &token, Buffers::IDLE).await?;
        let refusal = ask(&mut client, &JoinRoom { room_id: room.clone() }).await?;
        ensure!(refusal.is_none(), "join-room: {}", refusal.unwrap_or_default());
        Ok(client)
    }
}

/// Ends with the connection.
async fn listen(mut client: Client, heard: Arc<Counter>) -> anyhow::Error {
    loop {
        match client.next().await {
            Ok(_) => heard.increment(),
            Err(error) => return error,
        }
    }
}

/// Waits until those who came in last are known to everybody.
async fn quiet(heard: &Counter) {
    let began = Instant::now();
    let mut before = None;
    while before != Some(heard.get()) && began.elapsed() < PATIENCE {
        before = Some(heard.get());
        sleep(QUIET).await;
    }
}

async fn come_and_go(
    comers: Vec<Client>,
    room: &RoomId,
    rate: Option<f64>,
    start: Instant,
    tally: &Tally,
) -> anyhow::Result<()> {
    let (join, leave) = (JoinRoom { room_id: room.clone() }, LeaveRoom { room_id: room.clone() });
    let count = comers.len();
    #[expect(clippy::cast_precision_loss, reason = "sockets of a load test")]
    let pace = rate.map(|rate| Duration::from_secs_f64(count as f64 / rate));
    let (join, leave) = (&join, &leave);
    let going = comers.into_iter().enumerate().map(|(place, mut client)| async move {
        #[expect(clippy::cast_precision_loss, reason = "sockets of a load test")]
        let share = |pace: Duration| pace.mul_f64(place as f64 / count as f64);
        let mut next = start + pace.map(share).unwrap_or_default();
        while !tally.has_ended() {
            client.hear_until(next).await?;
            let intended = pace.map_or_else(Instant::now, |_| next);
            let joined = ask(&mut client, join).await?;
            tally.count(intended, joined.or(ask(&mut client, leave).await?));
            next += pace.unwrap_or_default();
        }
        anyhow::Ok(())
    });
    futures_util::future::try_join_all(going).await?;
    Ok(())
}
