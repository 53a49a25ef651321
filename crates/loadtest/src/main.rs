//! Load for a Carillon server, or for one that speaks as much of its contract: chat fan-out,
//! counted and timed at the receiving end; commands, timed at the asking end; connections.

mod abuse;
mod api;
mod asking;
mod client;
mod connect;
mod echo;
mod entering;
mod idle;
mod member;
mod notify;
mod process;
mod report;
mod run;
mod scenario;
mod school;
mod setup;
mod tally;

use std::{
    fmt::Display, fs::File, io::BufWriter, path::PathBuf, process::ExitCode, sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use clap::{Parser, Subcommand};
use serde::Serialize;
use tokio::runtime::Builder;
use url::Url;

use crate::{
    abuse::{Abuse, Coming},
    asking::Asking,
    client::Target,
    connect::Connecting,
    echo::Echoing,
    entering::Entering,
    idle::Idling,
    member::Pace,
    notify::Notifying,
    process::{Process, Processes},
    report::{Report, Settings},
    scenario::Scenario,
    school::Schooling,
    setup::Setup,
};

/// Fills chat rooms, lets some members write, and reports what arrives, how fast and whether
/// exactly once. Raise the server's limits for it: `limits.rates.message` and `limits.rates.room`.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Something else than chat.
    #[command(subcommand)]
    load: Option<Load>,
    /// The server, as a frontend names it. Said again, for chat only, another node of its cluster:
    /// all who write are on the first, all who only listen on the others, in turn, and counted and
    /// timed is what arrives there.
    #[arg(long, global = true, default_value = "http://127.0.0.1:3001")]
    url: Vec<Url>,
    /// The HS256 secret that the server verifies tokens with.
    #[arg(long, global = true, env = "JWT_SECRET", hide_env_values = true, default_value = "")]
    secret: String,
    /// Rooms.
    #[arg(long, default_value_t = 1)]
    rooms: usize,
    /// Members of each room, all connected.
    #[arg(long, default_value_t = 100)]
    members: usize,
    /// Users whom the members of a room are spread over; everybody is one of their own without it.
    /// Entering makes every user known to everybody in the room: with 5,000 that takes a while.
    #[arg(long)]
    users: Option<usize>,
    /// Members of each room who write.
    #[arg(long, default_value_t = 1)]
    publishers: usize,
    /// Members of each room who read nothing any more once the others talk; not its publishers.
    #[arg(long, default_value_t = 0)]
    stalled: usize,
    /// Unanswered messages per publisher: the next is sent when one is answered and, with several
    /// nodes, has come to another.
    #[arg(long, default_value_t = 1, conflicts_with = "rate")]
    in_flight: usize,
    /// Messages a second by all publishers together, whatever the server does. Latencies count
    /// from the instant a message was to be sent.
    #[arg(long)]
    rate: Option<f64>,
    /// How long is measured.
    #[arg(long, global = true, default_value = "10s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// How long before that is not.
    #[arg(long, global = true, default_value = "2s", value_parser = humantime::parse_duration)]
    warmup: Duration,
    /// Threads of the generator. Give it a core of its own rather than more threads.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Reads CPU time and memory of this process. Said again, of another node: they are added up.
    #[arg(long, global = true, value_name = "PID")]
    server_pid: Vec<u32>,
    /// Tells, beside the server's, the CPU time of this process and its children: what the server
    /// needs besides, such as a database. May be said again.
    #[arg(long, value_name = "NAME=PID", value_parser = named)]
    beside: Vec<(String, u32)>,
    /// Writes the report there, too.
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What is done besides chat.
#[derive(Clone, Debug, Subcommand)]
enum Load {
    #[command(flatten)]
    Asking(Asking),
    /// Clients that do what none should; to be watched with `come` and `--server-pid` beside it.
    #[command(subcommand)]
    Abuse(Abuse),
    /// Somebody honest comes every so often, as the shipped frontend does: how long until they are
    /// in.
    Come(Coming),
    /// Users connect and go, many at once or at a rate.
    Connect(Connecting),
    /// Heartbeats with acknowledgements, which touch no database. Raise `limits.rates.heartbeat`.
    Echo(Echoing),
    /// Sockets that enter a room where others sit and leave it again. Raise `limits.rates.room`.
    Enter(Entering),
    /// Connections that do nothing: the server's memory for each of them, and its CPU time.
    Idle(Idling),
    /// The school's backend notifies everybody, again and again.
    Notify(Notifying),
    /// All of it at modest rates: idle students, chat, an exam, boards.
    School(Schooling),
}

impl Cli {
    fn pace(&self) -> anyhow::Result<Pace> {
        let Some(rate) = self.rate else {
            ensure!(self.in_flight > 0, "--in-flight 0 would send nothing");
            return Ok(Pace::InFlight(self.in_flight));
        };
        ensure!(rate.is_finite() && rate > 0.0, "--rate is a number of messages a second");
        Ok(Pace::PerSecond(rate))
    }

    fn scenario(&self) -> anyhow::Result<Scenario> {
        ensure!(!self.duration.is_zero(), "--duration 0 would measure nothing");
        let mut nodes = self.url.iter().map(Target::new);
        let beside = self.beside.iter().map(|(name, id)| (name.clone(), Process::of_id(*id)));
        Ok(Scenario {
            target: nodes.next().context("--url: no server")??,
            elsewhere: nodes.collect::<anyhow::Result<_>>()?,
            secret: self.secret.clone(),
            settings: Settings {
                nodes: self.url.len(),
                rooms: self.rooms,
                members: self.members,
                users: self.users,
                publishers: self.publishers,
                stalled: self.stalled,
                pace: self.pace()?,
                warmup_seconds: self.warmup.as_secs_f64(),
                measured_seconds: self.duration.as_secs_f64(),
                threads: self.threads.max(1),
            },
            server: Processes::of_ids(&self.server_pid),
            beside: beside.collect(),
        })
    }

    fn run(&self) -> anyhow::Result<Report> {
        let scenario = self.scenario()?;
        // One thread is the current one: no hand-over between threads is measured.
        let runtime = match scenario.settings.threads {
            1 => Builder::new_current_thread().enable_all().build()?,
            threads => Builder::new_multi_thread().worker_threads(threads).enable_all().build()?,
        };
        runtime.block_on(scenario.run())
    }

    /// `false` when anything was refused or lost.
    fn load(&self, load: &Load) -> anyhow::Result<bool> {
        ensure!(!self.duration.is_zero(), "--duration 0 would measure nothing");
        let [url] = &self.url[..] else { bail!("several nodes, each a --url: for chat only") };
        let setup = Arc::new(Setup {
            target: Target::new(url)?,
            secret: self.secret.clone(),
            warmup: self.warmup,
            duration: self.duration,
            server: Processes::of_ids(&self.server_pid),
        });
        let runtime = Builder::new_current_thread().enable_all().build()?;
        match load {
            Load::Asking(asking) => {
                let report = runtime.block_on(setup.ask(asking))?;
                self.tell(&report, report.refused.is_empty())
            }
            Load::Abuse(abuse) => {
                let report = runtime.block_on(setup.abuse(abuse))?;
                self.tell(&report, true)
            }
            Load::Come(coming) => {
                let report = runtime.block_on(setup.come(coming))?;
                self.tell(&report, report.kept_out == 0)
            }
            Load::Connect(connecting) => {
                let report = runtime.block_on(setup.storm(connecting))?;
                self.tell(&report, report.failed.is_empty())
            }
            Load::Echo(echoing) => {
                let report = runtime.block_on(setup.echo(echoing))?;
                self.tell(&report, report.refused.is_empty())
            }
            Load::Enter(entering) => {
                let report = runtime.block_on(setup.enter(entering))?;
                self.tell(&report, true)
            }
            Load::Idle(idling) => {
                let report = runtime.block_on(setup.idle(idling))?;
                self.tell(&report, report.lost == 0)
            }
            Load::Notify(notifying) => {
                let report = runtime.block_on(setup.notify(notifying))?;
                self.tell(&report, report.missing == 0 && report.duplicated == 0)
            }
            Load::School(schooling) => {
                let report = runtime.block_on(setup.school(schooling))?;
                self.tell(&report, report.is_sound())
            }
        }
    }

    fn tell(&self, report: &(impl Display + Serialize), is_sound: bool) -> anyhow::Result<bool> {
        print!("\n{report}");
        self.write(report)?;
        Ok(is_sound)
    }

    fn write(&self, report: &impl Serialize) -> anyhow::Result<()> {
        let Some(path) = &self.json else { return Ok(()) };
        let file =
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(serde_json::to_writer_pretty(BufWriter::new(file), report)?)
    }
}

/// `name=number`.
fn named(text: &str) -> anyhow::Result<(String, u32)> {
    let (name, id) = text.split_once('=').context("a name, = and the number of a process")?;
    Ok((name.to_owned(), id.parse()?))
}

/// Fails when a delivery is missing, comes twice or out of order, and when anything was refused.
fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    ensure!(!cli.secret.is_empty(), "--secret or JWT_SECRET: what the server verifies tokens with");
    // A connection is an open file; what the system does not allow shows when they run out.
    rlimit::increase_nofile_limit(u64::MAX).context("the limit of open files")?;
    let is_sound = if let Some(load) = &cli.load {
        cli.load(load)?
    } else {
        let report = cli.run()?;
        cli.tell(&report, report.balance.is_exact())?
    };
    Ok(if is_sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn cli(arguments: &[&str]) -> Cli {
        let arguments = ["carillon-loadtest", "--secret", "x"].iter().chain(arguments);
        Cli::try_parse_from(arguments).unwrap()
    }

    #[test]
    fn the_options_are_sound() {
        Cli::command().debug_assert();
        let scenario = cli(&["--rooms", "100", "--members", "10"]).scenario().unwrap();
        assert_eq!((scenario.settings.rooms, scenario.settings.members), (100, 10));
    }

    #[test]
    fn another_url_is_another_node_and_its_process_counts() {
        let two =
            ["--url", "http://a", "--url", "http://b", "--server-pid", "1", "--server-pid", "2"];
        let scenario = cli(&two).scenario().unwrap();
        assert_eq!((scenario.settings.nodes, scenario.elsewhere.len()), (2, 1));
        assert_eq!(cli(&["--beside", "redis=7"]).beside, [("redis".to_owned(), 7)]);
        let echo = cli(&["echo", "--url", "http://a", "--url", "http://b"]);
        assert!(echo.load(echo.load.as_ref().unwrap()).is_err(), "only chat knows several");
    }

    #[test]
    fn a_rate_makes_an_open_loop_and_nonsense_is_refused() {
        assert!(matches!(cli(&["--rate", "50"]).pace().unwrap(), Pace::PerSecond(50.0)));
        assert!(matches!(cli(&["--in-flight", "4"]).pace().unwrap(), Pace::InFlight(4)));
        for nonsense in [["--rate", "0"], ["--rate", "NaN"], ["--in-flight", "0"]] {
            assert!(cli(&nonsense).pace().is_err(), "{nonsense:?}");
        }
    }
}
