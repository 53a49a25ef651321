//! Commands asked and answered one by one: answers of a running exam, boards, whole sittings.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use carillon_domain::{
    contract::Command,
    exam::{exam_answer::ExamAnswer, exam_complete::ExamComplete, join_exam::JoinExam},
    ids::ExamId,
    leaderboard::leaderboard_request::LeaderboardRequest,
};
use clap::{Args, Subcommand};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::time::{sleep_until, timeout};

use crate::{
    client::{Client, Frame, Target, is_ok},
    process::Process,
    report::{Latency, Server},
    run::per,
    scenario::{ARRIVING, token},
};

/// An answer that takes longer does not come.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, Subcommand)]
pub enum Asking {
    /// Students join an exam and save answers. Raise `limits.rates.exam` for it.
    Autosave(Sitting),
    /// Users ask for their board. Raise `limits.rates.leaderboard` for it.
    Boards(Looking),
    /// Students come, answer every question, complete, and go: fills boards, too.
    Sit(Sitting),
}

#[derive(Clone, Debug, Args)]
pub struct Sitting {
    /// An exam of single choice questions with four options each.
    #[arg(long)]
    exam: ExamId,
    #[arg(long, default_value_t = 100)]
    students: usize,
    /// Of the exam.
    #[arg(long, default_value_t = 10)]
    questions: usize,
    /// Answers a second by all students together; without it each sends the next when one is
    /// answered.
    #[arg(long)]
    rate: Option<f64>,
}

#[derive(Clone, Debug, Args)]
pub struct Looking {
    #[arg(long, default_value_t = 10)]
    users: usize,
    /// The exam they have sat with `sit`, under the same names.
    #[arg(long, default_value = "load")]
    like: String,
    #[arg(long)]
    specialty: Option<String>,
    /// Requests a second by all users together.
    #[arg(long)]
    rate: Option<f64>,
}

/// What is done to the server.
pub struct Scenario {
    pub target: Target,
    pub secret: String,
    pub warmup: Duration,
    pub duration: Duration,
    pub server: Option<Process>,
}

/// What came of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub answered_per_second: f64,
    pub answered_per_cpu_second: Option<f64>,
    pub reply: Latency,
    /// Of `join-exam`, all students at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub join: Option<Latency>,
    /// From the first to the last of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub joined_after_seconds: Option<f64>,
    pub refused: BTreeMap<String, u64>,
    pub server: Option<Server>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Some(join), Some(seconds)) = (&self.join, self.joined_after_seconds) {
            writeln!(f, "joined           {seconds:.1} s   {join}")?;
        }
        writeln!(f, "answered         {:.0} a second", self.answered_per_second)?;
        if let Some(rate) = self.answered_per_cpu_second {
            writeln!(f, "per CPU second   {rate:.0}")?;
        }
        writeln!(f, "reply            {}", self.reply)?;
        if let Some(server) = &self.server {
            let (busy, bytes) = (100.0 * server.busy_share, server.resident_bytes >> 20);
            writeln!(f, "server           {busy:.0} % busy, {bytes} MiB resident")?;
        }
        for (code, count) in &self.refused {
            writeln!(f, "refused          {count} {code}")?;
        }
        Ok(())
    }
}

/// What was measured, shared by all who ask.
struct Tally {
    measured: Instant,
    end: Instant,
    inner: Mutex<Inner>,
}

struct Inner {
    reply: Histogram<u64>,
    refused: BTreeMap<String, u64>,
}

fn histogram() -> anyhow::Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 60_000_000, 3)?)
}

impl Tally {
    fn new(measured: Instant, end: Instant) -> anyhow::Result<Self> {
        let inner = Inner { reply: histogram()?, refused: BTreeMap::new() };
        Ok(Self { measured, end, inner: Mutex::new(inner) })
    }

    /// Counts an answer from the instant its question was to be asked.
    fn count(&self, intended: Instant, refusal: Option<String>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(code) = refusal {
            *inner.refused.entry(code).or_default() += 1;
        } else if intended >= self.measured && intended < self.end {
            let microseconds = u64::try_from(intended.elapsed().as_micros()).unwrap_or(u64::MAX);
            inner.reply.saturating_record(microseconds);
        }
    }
}

/// Asks and waits; a refusal comes back by its code.
async fn ask<C: Command>(client: &mut Client, command: &C) -> anyhow::Result<Option<String>> {
    let id = client.ask(command)?;
    let answer = async {
        loop {
            let frame = client.next().await?;
            match Frame::parse(&frame) {
                Frame::Reply(of, arguments) if of == id => {
                    let refused = || arguments.split("\"code\":\"").nth(1)?.split('"').next();
                    let code = || refused().unwrap_or("?").to_owned();
                    return Ok((!is_ok(arguments)).then(code));
                }
                Frame::Disconnected => bail!("disconnected"),
                _ => {}
            }
        }
    };
    timeout(PATIENCE, answer).await.with_context(|| format!("{} is not answered", C::NAME))?
}

impl Scenario {
    pub async fn run(&self, asking: &Asking) -> anyhow::Result<Report> {
        match asking {
            Asking::Autosave(sitting) => self.autosave(sitting).await,
            Asking::Boards(looking) => self.boards(looking).await,
            Asking::Sit(sitting) => self.sit(sitting).await,
        }
    }

    async fn connect(&self, names: Vec<String>) -> anyhow::Result<Vec<Client>> {
        stream::iter(names)
            .map(|name| async move {
                Client::connect(&self.target, &token(&self.secret, &name)?).await
            })
            .buffer_unordered(ARRIVING)
            .try_collect()
            .await
    }

    async fn autosave(&self, sitting: &Sitting) -> anyhow::Result<Report> {
        let name = format!("load-{:x}", jiff::Timestamp::now().as_millisecond());
        let names = (0..sitting.students).map(|n| format!("{name}-{n}")).collect();
        let mut clients = self.connect(names).await?;
        println!("{:>7} students connected", clients.len());
        let began = Instant::now();
        let joins = Tally::new(began, began + PATIENCE)?;
        let join = JoinExam { exam_id: sitting.exam.clone() };
        let joining = clients.iter_mut().map(|client| async {
            let refusal = ask(client, &join).await?;
            joins.count(began, refusal);
            anyhow::Ok(())
        });
        futures_util::future::try_join_all(joining).await?;
        let joined_after = began.elapsed().as_secs_f64();
        let joins = joins.inner.into_inner().unwrap_or_else(PoisonError::into_inner);
        ensure!(joins.refused.is_empty(), "join-exam was refused: {:?}", joins.refused);
        println!("{:>7} students joined after {joined_after:.1} s", sitting.students);

        let questions = sitting.questions.max(1);
        let command = |n: usize| ExamAnswer {
            exam_id: sitting.exam.clone(),
            question_index: n % questions,
            // Another answer every time: the same one again would cost nothing.
            answer: (n / questions % 4).into(),
        };
        let mut report = self.repeat(clients, sitting.rate, command).await?;
        report.join = Some(Latency::of(&joins.reply));
        report.joined_after_seconds = Some(joined_after);
        Ok(report)
    }

    async fn boards(&self, looking: &Looking) -> anyhow::Result<Report> {
        let names = (0..looking.users).map(|n| format!("{}-{n}", looking.like)).collect();
        let clients = self.connect(names).await?;
        let command = |_| LeaderboardRequest {
            specialty: looking.specialty.clone(),
            ..LeaderboardRequest::example()
        };
        self.repeat(clients, looking.rate, command).await
    }

    /// Every client asks one thing after the other.
    async fn repeat<C: Command>(
        &self,
        clients: Vec<Client>,
        rate: Option<f64>,
        command: impl Fn(usize) -> C,
    ) -> anyhow::Result<Report> {
        let start = Instant::now();
        let measured = start + self.warmup;
        let tally = Arc::new(Tally::new(measured, measured + self.duration)?);
        let count = clients.len();
        let pace = rate.map(|rate| Duration::from_secs_f64(per(count as u64, rate)));
        let watch = self.watch(&tally);
        let (tally, command) = (&tally, &command);
        let asking = clients.into_iter().enumerate().map(|(place, mut client)| async move {
            // Those who ask at a rate begin one after another.
            let share = |pace: Duration| pace.mul_f64(per(place as u64, per(count as u64, 1.0)));
            let mut next = start + pace.map(share).unwrap_or_default();
            for n in place.. {
                // In a closed loop a question is to be asked when the last one is answered.
                next = match pace {
                    Some(_) => next,
                    None => Instant::now(),
                };
                sleep_until(next.into()).await;
                let refusal = ask(&mut client, &command(n)).await?;
                tally.count(next, refusal);
                next += pace.unwrap_or_default();
                if Instant::now() >= tally.end {
                    break;
                }
            }
            anyhow::Ok(())
        });
        let (cpu, _) = tokio::try_join!(
            watch,
            futures_util::future::try_join_all(asking.collect::<Vec<_>>())
        )?;
        Ok(self.report(tally, cpu))
    }

    /// CPU seconds of the server while it was measured.
    async fn watch(&self, tally: &Arc<Tally>) -> anyhow::Result<Option<f64>> {
        let tally = tally.clone();
        let cpu = || self.server.as_ref().map(Process::cpu).transpose();
        sleep_until(tally.measured.into()).await;
        let before = cpu()?;
        sleep_until(tally.end.into()).await;
        let after = cpu()?;
        Ok(after.zip(before).map(|(after, before)| after.saturating_sub(before).as_secs_f64()))
    }

    fn report(&self, tally: &Tally, cpu: Option<f64>) -> Report {
        let inner = tally.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = (tally.end - tally.measured).as_secs_f64();
        let memory = self.server.as_ref().and_then(|server| server.memory().ok());
        Report {
            answered_per_second: per(inner.reply.len(), seconds),
            answered_per_cpu_second: cpu.map(|cpu| per(inner.reply.len(), cpu)),
            reply: Latency::of(&inner.reply),
            join: None,
            joined_after_seconds: None,
            refused: inner.refused.clone(),
            server: memory.zip(cpu).map(|(memory, cpu)| Server {
                busy_share: cpu / seconds,
                resident_bytes: memory.resident_bytes,
                peak_bytes: memory.peak_bytes,
            }),
        }
    }

    /// Whole sittings, so many under way at a time; names are `load-0`, `load-1`, ….
    async fn sit(&self, sitting: &Sitting) -> anyhow::Result<Report> {
        let began = Instant::now();
        let tally = Tally::new(began, began + Duration::from_hours(24))?;
        let cpu = |at: &str| {
            let cpu = self.server.as_ref().map(Process::cpu).transpose();
            cpu.with_context(|| format!("the server's CPU time {at}"))
        };
        let before = cpu("before")?;
        let sittings = stream::iter(0..sitting.students).map(|n| self.sit_one(sitting, n, &tally));
        let mut sittings = sittings.buffer_unordered(ARRIVING);
        let (mut done, mut told) = (0, began);
        while let Some(result) = sittings.next().await {
            result?;
            done += 1;
            if told.elapsed() >= Duration::from_secs(2) {
                told = Instant::now();
                println!("{done:>7} of {} students are done", sitting.students);
            }
        }
        drop(sittings);
        let used = cpu("after")?
            .zip(before)
            .map(|(after, before)| after.saturating_sub(before).as_secs_f64());
        let tally = Tally { end: Instant::now(), ..tally };
        Ok(self.report(&tally, used))
    }

    async fn sit_one(&self, sitting: &Sitting, n: usize, tally: &Tally) -> anyhow::Result<()> {
        let name = format!("load-{n}");
        let mut client = Client::connect(&self.target, &token(&self.secret, &name)?).await?;
        let exam_id = sitting.exam.clone();
        let counted = |refusal| tally.count(Instant::now(), refusal);
        counted(ask(&mut client, &JoinExam { exam_id: exam_id.clone() }).await?);
        for question_index in 0..sitting.questions {
            // As good as random, and the same in every run.
            let answer = ((n * 2_654_435_761) >> (question_index % 24)) % 4;
            let exam_id = exam_id.clone();
            let answer = ExamAnswer { exam_id, question_index, answer: answer.into() };
            counted(ask(&mut client, &answer).await?);
        }
        let began = Instant::now();
        let refusal = ask(&mut client, &ExamComplete { exam_id }).await?;
        tally.count(began, refusal);
        Ok(())
    }
}
