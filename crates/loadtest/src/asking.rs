//! Commands asked and answered one by one: answers of a running exam, boards, whole sittings.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
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
use futures_util::{StreamExt as _, TryStreamExt as _, stream, stream::FuturesUnordered};
use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::time::timeout;

use crate::{
    client::{Buffers, Client, Frame, is_ok},
    member::code,
    report::Latency,
    run::per,
    scenario::{ARRIVING, token},
    setup::{Measured, Setup},
};

/// An answer that takes longer does not come.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, Subcommand)]
pub enum Asking {
    /// Students join an exam and save answers. Raise `limits.rates.exam` for it.
    Autosave {
        #[command(flatten)]
        sitting: Sitting,
        /// They join over that time, one after another, and not all at once.
        #[arg(long, default_value = "0s", value_parser = humantime::parse_duration)]
        over: Duration,
    },
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

/// What came of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Answers.
    #[serde(flatten)]
    pub measured: Measured,
    pub reply: Latency,
    /// Of `join-exam`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub join: Option<Latency>,
    /// From the first to the last of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub joined_after_seconds: Option<f64>,
    pub refused: BTreeMap<String, u64>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Some(join), Some(seconds)) = (&self.join, self.joined_after_seconds) {
            writeln!(f, "joined           {seconds:.1} s   {join}")?;
        }
        writeln!(f, "answered         {}", self.measured)?;
        writeln!(f, "reply            {}", self.reply)?;
        for (code, count) in &self.refused {
            writeln!(f, "refused          {count} {code}")?;
        }
        Ok(())
    }
}

/// What was measured, shared by all who ask.
pub struct Tally {
    measured: Instant,
    end: Instant,
    inner: Mutex<Inner>,
}

struct Inner {
    answered: u64,
    reply: Histogram<u64>,
    refused: BTreeMap<String, u64>,
}

pub fn histogram() -> anyhow::Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 60_000_000, 3)?)
}

impl Tally {
    pub fn new(measured: Instant, end: Instant) -> anyhow::Result<Self> {
        let inner = Inner { answered: 0, reply: histogram()?, refused: BTreeMap::new() };
        Ok(Self { measured, end, inner: Mutex::new(inner) })
    }

    /// Counts an answer from the instant its question was to be asked.
    pub fn count(&self, intended: Instant, refusal: Option<String>) {
        let mut inner = self.lock();
        if let Some(code) = refusal {
            *inner.refused.entry(code).or_default() += 1;
            return;
        }
        inner.answered += 1;
        if (self.measured..self.end).contains(&intended) {
            let microseconds = u64::try_from(intended.elapsed().as_micros()).unwrap_or(u64::MAX);
            inner.reply.saturating_record(microseconds);
        }
    }

    pub fn has_ended(&self) -> bool {
        Instant::now() >= self.end
    }

    pub fn answered(&self) -> u64 {
        self.lock().answered
    }

    pub fn report(&self, measured: Measured) -> Report {
        let inner = self.lock();
        Report {
            measured,
            reply: Latency::of(&inner.reply),
            join: None,
            joined_after_seconds: None,
            refused: inner.refused.clone(),
        }
    }

    /// Of the answers, and the refusals by code.
    pub fn into_parts(self) -> (Latency, BTreeMap<String, u64>) {
        let inner = self.inner.into_inner().unwrap_or_else(PoisonError::into_inner);
        (Latency::of(&inner.reply), inner.refused)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks and waits; a refusal comes back by its code.
pub async fn ask<C: Command>(client: &mut Client, command: &C) -> anyhow::Result<Option<String>> {
    let id = client.ask(command)?;
    let answer = async {
        loop {
            let frame = client.next().await?;
            match Frame::parse(&frame) {
                Frame::Reply(of, arguments) if of == id => {
                    return Ok((!is_ok(arguments)).then(|| code(arguments)));
                }
                Frame::Disconnected => bail!("disconnected"),
                _ => {}
            }
        }
    };
    timeout(PATIENCE, answer).await.with_context(|| format!("{} is not answered", C::NAME))?
}

impl Setup {
    pub async fn ask(&self, asking: &Asking) -> anyhow::Result<Report> {
        match asking {
            Asking::Autosave { sitting, over } => self.autosave(sitting, *over).await,
            Asking::Boards(looking) => self.boards(looking).await,
            Asking::Sit(sitting) => self.sit(sitting).await,
        }
    }

    async fn autosave(&self, sitting: &Sitting, over: Duration) -> anyhow::Result<Report> {
        let names = Self::names(sitting.students);
        let clients = self.connect(names, Buffers::HEARING).await?;
        let (clients, joined) = join(clients, &sitting.exam, over).await?;
        let command = answers(sitting.exam.clone(), sitting.questions);
        let mut report = self.repeat(clients, sitting.rate, Instant::now(), command).await?;
        report.join = Some(joined.latency);
        report.joined_after_seconds = Some(joined.after_seconds);
        Ok(report)
    }

    async fn boards(&self, looking: &Looking) -> anyhow::Result<Report> {
        let names = (0..looking.users).map(|n| format!("{}-{n}", looking.like));
        let clients = self.connect(names, Buffers::HEARING).await?;
        let command = |_| LeaderboardRequest {
            specialty: looking.specialty.clone(),
            ..LeaderboardRequest::example()
        };
        self.repeat(clients, looking.rate, Instant::now(), command).await
    }

    /// Every client asks one thing after the other, from then on.
    pub async fn repeat<C: Command>(
        &self,
        clients: Vec<Client>,
        rate: Option<f64>,
        start: Instant,
        command: impl Fn(usize) -> C,
    ) -> anyhow::Result<Report> {
        let (measured, end) = self.span(start);
        let tally = Tally::new(measured, end)?;
        let repeating = self.keep_asking(clients, rate, start, &tally, command);
        let measuring = self.measure(start, "answered", || tally.answered());
        let (measured, ()) = tokio::try_join!(measuring, repeating)?;
        Ok(tally.report(measured))
    }

    /// Every client asks one thing after the other, from then on until the end of the tally.
    pub async fn keep_asking<C: Command>(
        &self,
        clients: Vec<Client>,
        rate: Option<f64>,
        start: Instant,
        tally: &Tally,
        command: impl Fn(usize) -> C,
    ) -> anyhow::Result<()> {
        let count = clients.len();
        let pace = rate.map(|rate| Duration::from_secs_f64(per(count as u64, rate)));
        let command = &command;
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
                if next >= tally.end {
                    break;
                }
                client.hear_until(next).await?;
                let refusal = ask(&mut client, &command(n)).await?;
                tally.count(next, refusal);
                next += pace.unwrap_or_default();
            }
            anyhow::Ok(())
        });
        // Each a future of its own in a set that polls only those that are woken.
        let mut asking: FuturesUnordered<_> = asking.collect();
        while asking.try_next().await?.is_some() {}
        Ok(())
    }

    /// Whole sittings, so many under way at a time; names are `load-0`, `load-1`, ….
    async fn sit(&self, sitting: &Sitting) -> anyhow::Result<Report> {
        let began = Instant::now();
        let tally = Tally::new(began, began + Duration::from_hours(24))?;
        let before = self.reading()?;
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
        let tally = Tally { end: Instant::now(), ..tally };
        let measured = self.measured(&before, tally.answered())?;
        Ok(tally.report(measured))
    }

    async fn sit_one(&self, sitting: &Sitting, n: usize, tally: &Tally) -> anyhow::Result<()> {
        let name = format!("load-{n}");
        let token = token(&self.secret, &name)?;
        let mut client = Client::connect(&self.target, &token, Buffers::HEARING).await?;
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

/// How the students of an exam came in.
pub struct Joined {
    /// Of `join-exam`.
    latency: Latency,
    /// From the first to the last of them.
    after_seconds: f64,
}

/// All students join the exam, over that time.
pub async fn join(
    mut clients: Vec<Client>,
    exam_id: &ExamId,
    over: Duration,
) -> anyhow::Result<(Vec<Client>, Joined)> {
    let (began, count) = (Instant::now(), clients.len());
    let joins = Tally::new(began, began + over + PATIENCE)?;
    let (join, joins) = (&JoinExam { exam_id: exam_id.clone() }, &joins);
    let joining = clients.iter_mut().enumerate().map(|(place, client)| async move {
        let turn = began + over.mul_f64(per(place as u64, per(count as u64, 1.0)));
        client.hear_until(turn).await?;
        let refusal = ask(client, join).await?;
        joins.count(turn, refusal);
        anyhow::Ok(())
    });
    futures_util::future::try_join_all(joining).await?;
    let after_seconds = began.elapsed().as_secs_f64();
    println!("{:>9} students joined after {after_seconds:.1} s", clients.len());
    let inner = joins.lock();
    ensure!(inner.refused.is_empty(), "join-exam was refused: {:?}", inner.refused);
    let latency = Latency::of(&inner.reply);
    drop(inner);
    Ok((clients, Joined { latency, after_seconds }))
}

/// Answers to the questions of an exam in turn, another one every time round: the same one again
/// would cost nothing.
pub fn answers(exam_id: ExamId, questions: usize) -> impl Fn(usize) -> ExamAnswer {
    let questions = questions.max(1);
    move |n| ExamAnswer {
        exam_id: exam_id.clone(),
        question_index: n % questions,
        answer: (n / questions % 4).into(),
    }
}
