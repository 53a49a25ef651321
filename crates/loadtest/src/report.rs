//! What a run has shown, as a table and as JSON.

use std::{collections::BTreeMap, fmt};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::{member::Pace, process::Memory, run::per, tally::Account};

/// What was done.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// With several, everybody writes on the first, and what arrives on the others is counted.
    pub nodes: usize,
    pub rooms: usize,
    /// Of each room, all connected.
    pub members: usize,
    /// Whom the members of a room are spread over; each is one of their own without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub users: Option<usize>,
    /// Of each room; the first of its members.
    pub publishers: usize,
    /// Of each room; the last of its members.
    pub stalled: usize,
    pub pace: Pace,
    pub warmup_seconds: f64,
    pub measured_seconds: f64,
    /// Of the generator.
    pub threads: usize,
}

/// What came of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub settings: Settings,
    pub acknowledged_per_second: f64,
    pub deliveries_per_second: f64,
    /// Where the server's process is known.
    pub deliveries_per_cpu_second: Option<f64>,
    pub reply: Latency,
    pub delivery: Latency,
    /// How late the generator sent; only at a fixed rate.
    pub sending: Option<Latency>,
    pub server: Option<Server>,
    /// The busy share of what the server needs besides, of one core, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub beside: BTreeMap<String, f64>,
    /// Of all its threads. Near 1 the generator measures itself.
    pub generator_busy_share: f64,
    /// Frames that are neither deliveries nor replies, while measuring.
    pub other_frames: u64,
    pub balance: Balance,
}

/// A distribution, from the instant a message was to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Latency {
    pub count: u64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
}

/// The server's process, or those of all its nodes together, while measuring.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Server {
    /// Of one core.
    pub busy_share: f64,
    pub resident_bytes: u64,
    pub peak_bytes: u64,
}

/// Whether everything came exactly once: over the whole run, warm-up and end included.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Balance {
    pub acknowledged: u64,
    /// Acknowledged messages, once for every member of their room.
    pub expected: u64,
    pub delivered: u64,
    #[serde(flatten)]
    pub account: Account,
    /// Commands refused, by code.
    pub refused: BTreeMap<String, u64>,
    /// Connections that did not last, by reason.
    pub lost: BTreeMap<String, u64>,
}

impl Server {
    pub fn of(memory: Memory, busy_share: f64) -> Self {
        let Memory { resident_bytes, peak_bytes } = memory;
        Self { busy_share, resident_bytes, peak_bytes }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mebibytes = |bytes| per(bytes, f64::from(1 << 20));
        let (now, peak) = (mebibytes(self.resident_bytes), mebibytes(self.peak_bytes));
        let busy = 100.0 * self.busy_share;
        write!(f, "{busy:.0} % of a core, {now:.1} MiB resident, {peak:.1} MiB at most")
    }
}

impl Latency {
    pub fn of(microseconds: &Histogram<u64>) -> Self {
        let at = |quantile| per(microseconds.value_at_quantile(quantile), 1_000.0);
        Self {
            count: microseconds.len(),
            p50_ms: at(0.5),
            p99_ms: at(0.99),
            max_ms: per(microseconds.max(), 1_000.0),
        }
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { p50_ms, p99_ms, max_ms, .. } = self;
        write!(f, "p50 {p50_ms:.2} ms   p99 {p99_ms:.2} ms   max {max_ms:.2} ms")
    }
}

impl Balance {
    /// Nothing missing, doubled, out of order, refused or lost.
    pub fn is_exact(&self) -> bool {
        self.account == Account::default() && self.refused.is_empty() && self.lost.is_empty()
    }
}

impl fmt::Display for Balance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Account { missing, duplicated, out_of_order } = self.account;
        write!(
            f,
            "{} of {} expected: {missing} missing, {duplicated} duplicated, \
             {out_of_order} out of order",
            self.delivered, self.expected
        )?;
        for (code, count) in &self.refused {
            write!(f, "\n{:<30}{count} × {code}", "refused")?;
        }
        for (reason, count) in &self.lost {
            write!(f, "\n{:<30}{count} × {reason}", "connections lost")?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Settings { nodes, rooms, members, publishers, pace, measured_seconds, .. } =
            &self.settings;
        let pace = match pace {
            Pace::InFlight(count) => format!("{count} in flight per publisher"),
            Pace::PerSecond(rate) => format!("{rate} messages/s in all"),
        };
        let mut row = |name: &str, value: &dyn fmt::Display| writeln!(f, "{name:<30}{value}");
        if *nodes > 1 {
            row("nodes", &format_args!("{nodes}, written to on the first, counted on the others"))?;
        }
        row("rooms × members", &format_args!("{rooms} × {members}, {publishers} publishing each"))?;
        row("pace", &format_args!("{pace}, {measured_seconds} s"))?;
        row("acknowledged", &format_args!("{:.0}/s", self.acknowledged_per_second))?;
        row("delivered", &format_args!("{:.0}/s", self.deliveries_per_second))?;
        match (&self.server, self.deliveries_per_cpu_second) {
            (Some(server), Some(per_second)) => {
                row("per CPU-second of the server", &format_args!("{per_second:.0}"))?;
                row("server", server)?;
            }
            _ => row("server CPU and memory", &"unknown without --server-pid")?,
        }
        for (name, busy) in &self.beside {
            row(name, &format_args!("{:.0} % of a core", 100.0 * busy))?;
        }
        row("acknowledgement", &self.reply)?;
        row("delivery", &self.delivery)?;
        if let Some(sending) = &self.sending {
            row("sent late by", sending)?;
        }
        row("generator busy", &format_args!("{:.0} %", 100.0 * self.generator_busy_share))?;
        row("other frames", &self.other_frames)?;
        row("deliveries in all", &self.balance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut histogram = Histogram::new_with_bounds(1, 60_000_000, 3).unwrap();
        for microseconds in 1..=100 {
            histogram.record(microseconds * 1_000).unwrap();
        }
        Report {
            settings: Settings {
                nodes: 1,
                rooms: 1,
                members: 1_000,
                users: None,
                publishers: 1,
                stalled: 0,
                pace: Pace::InFlight(4),
                warmup_seconds: 2.0,
                measured_seconds: 10.0,
                threads: 1,
            },
            acknowledged_per_second: 100.0,
            deliveries_per_second: 100_000.0,
            deliveries_per_cpu_second: None,
            reply: Latency::of(&histogram),
            delivery: Latency::of(&histogram),
            sending: None,
            server: None,
            beside: BTreeMap::new(),
            generator_busy_share: 0.5,
            other_frames: 0,
            balance: Balance { expected: 10, delivered: 9, ..Balance::default() },
        }
    }

    #[test]
    fn latencies_are_in_milliseconds() {
        let latency = report().reply;
        assert_eq!(latency.count, 100);
        assert!((latency.p50_ms - 50.0).abs() < 0.1 && (latency.p99_ms - 99.0).abs() < 0.1);
        assert!((latency.max_ms - 100.0).abs() < 0.1);
    }

    #[test]
    fn the_table_names_what_went_wrong() {
        let mut report = report();
        assert!(report.balance.is_exact());
        report.balance.account.missing = 1;
        report.balance.refused.insert("RATE_LIMITED".into(), 3);
        report.balance.lost.insert("reset".into(), 2);
        assert!(!report.balance.is_exact());
        let table = report.to_string();
        for part in ["9 of 10 expected: 1 missing", "3 × RATE_LIMITED", "2 × reset"] {
            assert!(table.contains(part), "{table}");
        }
        assert!(!table.contains("sent late") && !table.contains("nodes"), "{table}");
    }

    #[test]
    fn several_nodes_and_what_they_need_besides_are_told() {
        let mut report = report();
        report.settings.nodes = 2;
        report.beside.insert("redis".into(), 0.25);
        let table = report.to_string();
        assert!(table.contains("2, written to on the first"), "{table}");
        assert!(
            table.lines().any(|line| line.starts_with("redis") && line.ends_with("25 % of a core"))
        );
    }

    #[test]
    fn keys_of_the_json_carry_their_units() {
        let json = serde_json::to_value(report()).unwrap();
        assert_eq!(json["settings"]["pace"]["inFlight"], 4);
        assert_eq!(json["balance"]["missing"], 0);
        assert_eq!(json["balance"]["outOfOrder"], 0);
        assert!(json["delivery"]["p99Ms"].is_number());
        assert!(json["deliveriesPerCpuSecond"].is_null());
    }
}
