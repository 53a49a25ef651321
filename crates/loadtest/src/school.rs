//! A school's day, mixed: most are just there, some chat, some sit an exam, some look at boards.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use carillon_domain::{
    contract::Command as _, ids::ExamId, leaderboard::leaderboard_request::LeaderboardRequest,
    session::Heartbeat,
};
use clap::Args;
use serde::Serialize;
use serde_json::json;

use crate::{
    api::Api,
    asking::{Tally, answers, join},
    client::Buffers,
    member::Pace,
    report::{Balance, Latency, Server, Settings},
    run::per,
    scenario::{Scenario, new_name},
    setup::Setup,
};

/// The shipped frontend sends two heartbeats every 30 s.
const HEARTBEAT_SECONDS: f64 = 15.0;

#[derive(Clone, Debug, Args)]
pub struct Schooling {
    #[command(flatten)]
    api: Api,
    /// Students who have a page open.
    #[arg(long, default_value_t = 1_000)]
    idle: usize,
    #[arg(long, default_value_t = 50)]
    rooms: usize,
    /// Of each room.
    #[arg(long, default_value_t = 10)]
    members: usize,
    /// Messages a second, all rooms together.
    #[arg(long, default_value_t = 20.0)]
    message_rate: f64,
    /// Students who sit an exam.
    #[arg(long, default_value_t = 300)]
    students: usize,
    /// Of the exam.
    #[arg(long, default_value_t = 20)]
    questions: usize,
    /// Answers a second, all students together.
    #[arg(long, default_value_t = 60.0)]
    answer_rate: f64,
    /// Users who look at boards.
    #[arg(long, default_value_t = 20)]
    viewers: usize,
    /// Boards a second, all viewers together.
    #[arg(long, default_value_t = 10.0)]
    board_rate: f64,
}

/// What came of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// By what was asked, and of messages also the deliveries; from the instant it was to be sent.
    pub latencies: BTreeMap<&'static str, Latency>,
    pub server: Option<Server>,
    pub generator_busy_share: f64,
    pub refused: BTreeMap<String, u64>,
    /// Of the messages.
    pub balance: Balance,
}

impl Report {
    pub fn is_sound(&self) -> bool {
        self.refused.is_empty() && self.balance.is_exact()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, latency) in &self.latencies {
            writeln!(f, "{kind:<17}{:>7} in all   {latency}", latency.count)?;
        }
        if let Some(server) = &self.server {
            writeln!(f, "{:<17}{server}", "server")?;
        }
        writeln!(f, "{:<17}{:.0} %", "generator busy", 100.0 * self.generator_busy_share)?;
        for (code, count) in &self.refused {
            writeln!(f, "{:<17}{count} {code}", "refused")?;
        }
        writeln!(f, "{:<17}{}", "deliveries", self.balance)
    }
}

impl Setup {
    pub async fn school(&self, schooling: &Schooling) -> anyhow::Result<Report> {
        let exam = self.provide(schooling).await?;
        let chat = Scenario {
            target: self.target.clone(),
            elsewhere: Vec::new(),
            secret: self.secret.clone(),
            settings: Settings {
                nodes: 1,
                rooms: schooling.rooms,
                members: schooling.members,
                users: None,
                publishers: 1,
                stalled: 0,
                pace: Pace::PerSecond(schooling.message_rate),
                warmup_seconds: self.warmup.as_secs_f64(),
                measured_seconds: self.duration.as_secs_f64(),
                threads: 1,
            },
            server: self.server.clone(),
            beside: Vec::new(),
        };
        let people = |kind: &'static str, count| {
            let names = Self::names(count).map(move |name| format!("{name}-{kind}"));
            self.connect(names, Buffers::HEARING)
        };
        let idle = people("idle", schooling.idle).await?;
        let viewers = people("viewer", schooling.viewers).await?;
        let students = people("student", schooling.students).await?;
        let (students, _) = join(students, &exam, Duration::ZERO).await?;
        let gathered = chat.gather().await?;

        let start = Instant::now();
        let (measured, end) = self.span(start);
        let tally = || Tally::new(measured, end);
        let (heartbeats, answered, boards) = (tally()?, tally()?, tally()?);
        let heartbeat_rate = per(schooling.idle as u64, HEARTBEAT_SECONDS);
        let at = |rate: f64| (rate > 0.0).then_some(rate);
        // Who has nothing to ask all day is not part of it.
        let unless = |rate: f64, clients| if rate > 0.0 { clients } else { Vec::new() };
        let (answer_rate, board_rate) = (schooling.answer_rate, schooling.board_rate);
        let (chat, (), (), ()) = tokio::try_join!(
            chat.measure(gathered, start),
            self.keep_asking(idle, at(heartbeat_rate), start, &heartbeats, |_| {
                Heartbeat::example()
            }),
            self.keep_asking(
                unless(answer_rate, students),
                at(answer_rate),
                start,
                &answered,
                answers(exam, schooling.questions),
            ),
            self.keep_asking(unless(board_rate, viewers), at(board_rate), start, &boards, |_| {
                LeaderboardRequest::example()
            },),
        )?;
        let mut refused = BTreeMap::new();
        let mut latencies =
            BTreeMap::from([("message", chat.reply), ("message delivery", chat.delivery)]);
        for (kind, tally) in [("heartbeat", heartbeats), ("answer", answered), ("board", boards)] {
            let (latency, codes) = tally.into_parts();
            latencies.insert(kind, latency);
            for (code, count) in codes {
                *refused.entry(code).or_default() += count;
            }
        }
        Ok(Report {
            latencies,
            server: chat.server,
            generator_busy_share: chat.generator_busy_share,
            refused,
            balance: chat.balance,
        })
    }

    /// An exam that everybody may sit.
    async fn provide(&self, schooling: &Schooling) -> anyhow::Result<ExamId> {
        let id = new_name();
        let question = json!({
            "kind": "single_choice", "text": "Is the empty set open?",
            "options": ["Yes", "No", "Sometimes", "Never"], "correct": [0], "points": 1,
        });
        let exam = json!({
            "title": "Load", "durationMinutes": 120, "attemptsAllowed": 1, "shuffle": false,
            "release": "manual", "questions": vec![question; schooling.questions.max(1)],
        });
        let path = format!("/v1/exams/{id}");
        schooling.api.request(&self.target, "PUT", &path, &exam).await?;
        Ok(ExamId::new(id)?)
    }
}
