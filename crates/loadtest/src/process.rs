//! CPU time and memory of a process, from `/proc`.

use std::{
    fmt, fs,
    iter::Sum,
    time::{Duration, Instant},
};

use anyhow::Context as _;

/// The kernel counts CPU time for user space in hundredths of a second on every Linux.
const TICK: Duration = Duration::from_millis(10);

/// A process, named as in `/proc`: a number, or `self`.
#[derive(Clone, Debug)]
pub struct Process(String);

/// A server: its process, or those of all its nodes, whose use is added up.
#[derive(Clone, Debug)]
pub struct Processes(Vec<Process>);

impl Processes {
    /// `None` without any.
    pub fn of_ids(ids: &[u32]) -> Option<Self> {
        (!ids.is_empty()).then(|| Self(ids.iter().copied().map(Process::of_id).collect()))
    }

    pub fn cpu(&self) -> anyhow::Result<Duration> {
        self.0.iter().map(Process::cpu).sum()
    }

    pub fn memory(&self) -> anyhow::Result<Memory> {
        self.0.iter().map(Process::memory).sum()
    }

    pub fn proportional_bytes(&self) -> anyhow::Result<u64> {
        self.0.iter().map(Process::proportional_bytes).sum()
    }
}

impl Process {
    pub fn of_id(id: u32) -> Self {
        Self(id.to_string())
    }

    pub fn this() -> Self {
        Self("self".into())
    }

    /// CPU time used so far, by all threads, in user space and in the kernel.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        cpu(&self.read("stat")?).with_context(|| format!("/proc/{}/stat", self.0))
    }

    /// The same, with the time of its children, living and dead: a database forks.
    pub fn cpu_with_children(&self) -> anyhow::Result<Duration> {
        let stat = self.read("stat")?;
        let dead = cpu_after(&stat, 13).with_context(|| format!("/proc/{}/stat", self.0))?;
        let children = self.children();
        // One that is gone by now is among the dead of the next reading.
        let living = children
            .split_whitespace()
            .filter_map(|id| Self(id.to_owned()).cpu_with_children().ok());
        Ok(self.cpu()? + dead + living.sum::<Duration>())
    }

    /// Their numbers; each thread knows its own.
    fn children(&self) -> String {
        let threads = fs::read_dir(format!("/proc/{}/task", self.0)).into_iter().flatten();
        let of = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("children")).ok();
        threads.flatten().filter_map(of).collect()
    }

    /// Resident bytes now, and at most so far.
    pub fn memory(&self) -> anyhow::Result<Memory> {
        memory(&self.read("status")?).with_context(|| format!("/proc/{}/status", self.0))
    }

    /// Resident bytes, of what is shared with other processes only its share.
    pub fn proportional_bytes(&self) -> anyhow::Result<u64> {
        bytes(&self.read("smaps_rollup")?, "Pss:").context("no PSS")
    }

    fn read(&self, name: &str) -> anyhow::Result<String> {
        let path = format!("/proc/{}/{name}", self.0);
        fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    pub resident_bytes: u64,
    pub peak_bytes: u64,
}

impl Sum for Memory {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self { resident_bytes: 0, peak_bytes: 0 }, |sum, of| Self {
            resident_bytes: sum.resident_bytes + of.resident_bytes,
            peak_bytes: sum.peak_bytes + of.peak_bytes,
        })
    }
}

/// Fields 14 and 15.
fn cpu(stat: &str) -> Option<Duration> {
    cpu_after(stat, 11)
}

/// Two neighbouring times, so many fields after the second, which is a name in brackets that may
/// contain anything.
fn cpu_after(stat: &str, skipped: usize) -> Option<Duration> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(skipped);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    Some(TICK * (user + system))
}

fn memory(status: &str) -> Option<Memory> {
    Some(Memory { resident_bytes: bytes(status, "VmRSS:")?, peak_bytes: bytes(status, "VmHWM:")? })
}

fn bytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024)
}

/// CPU time of the server, where it is known, and of this process, at an instant.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    at: Instant,
    server: Option<Duration>,
    own: Duration,
}

/// What was used between two readings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Used {
    pub seconds: f64,
    pub server_cpu_seconds: Option<f64>,
    pub own_cpu_seconds: f64,
}

impl Reading {
    pub fn now(server: Option<&Processes>) -> anyhow::Result<Self> {
        Ok(Self {
            at: Instant::now(),
            // A server that dies is reported by what it no longer does.
            server: server.and_then(|server| server.cpu().ok()),
            own: Process::this().cpu()?,
        })
    }

    pub fn since(&self, before: &Self) -> Used {
        let cpu = self.server.zip(before.server);
        Used {
            seconds: (self.at - before.at).as_secs_f64(),
            server_cpu_seconds: cpu.map(|(now, then)| now.saturating_sub(then).as_secs_f64()),
            own_cpu_seconds: self.own.saturating_sub(before.own).as_secs_f64(),
        }
    }
}

impl fmt::Display for Used {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |cpu: f64| format!("{:.0} %", 100.0 * cpu / self.seconds);
        let server = self.server_cpu_seconds.map_or_else(|| "?".into(), percent);
        write!(f, "server {server}   generator {}", percent(self.own_cpu_seconds))
    }
}

#[cfg(test)]
mod tests {
    use std::{process::Command, thread};

    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_shift_the_fields() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 500 0 0 0 150 50 0 0 20 0 3 0 99 1000 20";
        assert_eq!(cpu(stat), Some(Duration::from_secs(2)));
        assert_eq!(cpu_after(stat, 13), Some(Duration::ZERO), "no child has ended");
        assert_eq!(cpu("7 (short) S 1"), None);
    }

    #[test]
    fn memory_is_in_bytes() {
        let status = "Name:\tcarillon\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        let found = memory(status);
        assert_eq!(found, Some(Memory { resident_bytes: 1_048_576, peak_bytes: 2_097_152 }));
    }

    #[test]
    fn this_process_can_be_read() {
        let this = Process::this();
        assert!(this.cpu().is_ok());
        assert!(this.memory().unwrap().resident_bytes > 0);
        assert!(this.proportional_bytes().unwrap() > 0);
    }

    #[test]
    fn nodes_are_added_up() {
        assert!(Processes::of_ids(&[]).is_none());
        let this = std::process::id();
        let [one, two] = [&[this][..], &[this, this]]
            .map(|ids| Processes::of_ids(ids).unwrap().memory().unwrap().peak_bytes);
        // The kernel's counters are exact to some pages.
        assert!(two > one + one / 2, "{one} {two}");
        assert!(Processes::of_ids(&[this, u32::MAX]).unwrap().cpu().is_err(), "one is not there");
    }

    #[test]
    fn children_are_counted_while_they_live_and_afterwards() {
        let mut child = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        let (this, busy) = (Process::of_id(std::process::id()), Duration::from_millis(50));
        while Process::of_id(child.id()).cpu().unwrap() < busy {
            thread::yield_now();
        }
        let living = this.cpu_with_children().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let dead = this.cpu_with_children().unwrap();
        assert!(living >= busy && dead >= living, "{living:?} {dead:?}");
    }

    #[test]
    fn what_was_used_lies_between_two_readings() {
        let at = Instant::now();
        let reading = |milliseconds, server| Reading {
            at: at + Duration::from_millis(milliseconds),
            server,
            own: Duration::from_millis(milliseconds / 2),
        };
        let before = reading(0, Some(Duration::from_secs(1)));
        let used = reading(2_000, Some(Duration::from_secs(2))).since(&before);
        assert_eq!(used.to_string(), "server 50 %   generator 50 %");
        assert_eq!(reading(2_000, None).since(&before).server_cpu_seconds, None);
    }
}
