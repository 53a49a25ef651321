//! What the operator sees. Each number is moved by the component that knows it; labels come from
//! closed sets.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use carillon_domain::Code;
use carillon_redis_adapter::link::Counters;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use crate::{auth, connection::Closing};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CommandLabels {
    ns: &'static str,
    command: &'static str,
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LeaseLabels {
    name: &'static str,
}

/// Buckets from half a millisecond to the 5 s within which everything is answered.
const SECONDS: [f64; 12] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// The numbers of one node.
pub struct Metrics {
    registry: Registry,
    pub auth: auth::Metrics,
    commands: Family<CommandLabels, Counter>,
    command_seconds: Histogram,
    closed: Family<ReasonLabels, Counter>,
    denied: Family<ReasonLabels, Counter>,
    proxied: Family<OutcomeLabels, Counter>,
    forwarded: Family<OutcomeLabels, Counter>,
    broadcasts: Counter,
    broadcast_bytes: Counter,
    repaired: Counter,
    finished: Counter,
    set_aside: Counter,
    leases: Family<LeaseLabels, Gauge>,
    connections: Gauge,
    tasks: Gauge,
    unauthenticated: Gauge,
    sockets: Gauge,
    users: Gauge,
    /// Shown as of [`Self::link`].
    redis: [Counter; 5],
    link: OnceLock<Arc<Counters>>,
    nodes: Gauge,
    redis_up: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("carillon");
        let command_seconds = Histogram::new(SECONDS);
        let metrics = Self {
            auth: auth::Metrics::default(),
            commands: Family::default(),
            command_seconds,
            closed: Family::default(),
            denied: Family::default(),
            proxied: Family::default(),
            forwarded: Family::default(),
            broadcasts: Counter::default(),
            broadcast_bytes: Counter::default(),
            repaired: Counter::default(),
            finished: Counter::default(),
            set_aside: Counter::default(),
            leases: Family::default(),
            connections: Gauge::default(),
            unauthenticated: Gauge::default(),
            tasks: Gauge::default(),
            sockets: Gauge::default(),
            users: Gauge::default(),
            redis: Default::default(),
            link: OnceLock::new(),
            nodes: Gauge::default(),
            redis_up: Gauge::default(),
            registry: Registry::default(),
        };
        registry.register("commands", "Commands by outcome", metrics.commands.clone());
        registry.register_with_unit(
            "command",
            "From receipt to answer",
            Unit::Seconds,
            metrics.command_seconds.clone(),
        );
        registry.register("closed", "Connections ended by the server", metrics.closed.clone());
        registry.register("denied", "Connects refused", metrics.denied.clone());
        registry.register(
            "proxied",
            "Requests passed to the school's backend, and what became of them",
            metrics.proxied.clone(),
        );
        registry.register(
            "forwarded",
            "Requests passed to the node that holds their session, and what became of them",
            metrics.forwarded.clone(),
        );
        metrics.auth.register(&mut registry);
        registry.register("broadcasts", "Events sent to rooms", metrics.broadcasts.clone());
        registry.register_with_unit(
            "broadcast",
            "Size of those events, once each",
            Unit::Bytes,
            metrics.broadcast_bytes.clone(),
        );
        registry.register(
            "outbox_repaired",
            "Durable events delivered from the outbox",
            metrics.repaired.clone(),
        );
        registry.register(
            "exam_attempts_finished",
            "Attempts made final at their deadline or by staff",
            metrics.finished.clone(),
        );
        registry.register(
            "exam_attempts_set_aside",
            "Attempts that could not be made final, and results neither released nor regraded",
            metrics.set_aside.clone(),
        );
        registry.register(
            "leases_held",
            "Whether this node does what the whole cluster does once",
            metrics.leases.clone(),
        );
        registry.register("connections", "Engine connections", metrics.connections.clone());
        registry.register(
            "unauthenticated",
            "Connections that have not authenticated",
            metrics.unauthenticated.clone(),
        );
        registry.register("tasks", "Tasks that a drain waits for", metrics.tasks.clone());
        registry.register("sockets", "Sockets in namespaces", metrics.sockets.clone());
        registry.register("users", "Users with a socket", metrics.users.clone());
        for (metric, (name, help)) in metrics.redis.iter().zip([
            ("redis_published", "Messages published to other nodes"),
            ("redis_dropped", "Messages not published: Redis was slow or away"),
            ("redis_received", "Messages of other nodes and emitters"),
            ("redis_overrun", "Messages received faster than they could be handled"),
            ("redis_malformed", "Messages that could not be read"),
        ]) {
            registry.register(name, help, metric.clone());
        }
        registry.register("redis_up", "Whether other nodes can be heard", metrics.redis_up.clone());
        registry.register("cluster_peers", "Other nodes that are there", metrics.nodes.clone());
        Self { registry, ..metrics }
    }
}

impl Metrics {
    /// One command was answered.
    pub fn command(
        &self,
        ns: &'static str,
        command: &'static str,
        refused: Option<Code>,
        took: Duration,
    ) {
        let code = refused.map_or("OK", Code::as_str);
        self.commands.get_or_create(&CommandLabels { ns, command, code }).inc();
        self.command_seconds.observe(took.as_secs_f64());
    }

    /// The server closed a connection.
    pub fn closed(&self, why: Closing) {
        self.closed.get_or_create(&ReasonLabels { reason: why.as_str() }).inc();
    }

    /// A connect was refused.
    pub fn denied(&self, reason: &'static str) {
        self.denied.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// A request was passed on, or not.
    pub fn proxied(&self, outcome: &'static str) {
        self.proxied.get_or_create(&OutcomeLabels { outcome }).inc();
    }

    /// A request for another node's session was passed on, or not.
    pub fn forwarded(&self, outcome: &'static str) {
        self.forwarded.get_or_create(&OutcomeLabels { outcome }).inc();
    }

    /// An event went out to a room.
    pub fn broadcast(&self, bytes: usize) {
        self.broadcasts.inc();
        self.broadcast_bytes.inc_by(bytes as u64);
    }

    /// Durable events were read back from the outbox.
    pub fn repaired(&self, events: usize) {
        self.repaired.inc_by(events as u64);
    }

    /// So many attempts were made final by the server.
    pub fn finished(&self, attempts: usize) {
        self.finished.inc_by(attempts as u64);
    }

    /// An attempt could not be made final.
    pub fn set_aside(&self) {
        self.set_aside.inc();
    }

    /// Whether this node holds a lease.
    pub fn lease(&self, name: &'static str, is_held: bool) {
        self.leases.get_or_create(&LeaseLabels { name }).set(i64::from(is_held));
    }

    /// Who is here now.
    pub fn present(&self, connections: usize, sockets: usize, users: usize) {
        let count = |gauge: &Gauge, number| gauge.set(i64::try_from(number).unwrap_or(i64::MAX));
        count(&self.connections, connections);
        count(&self.sockets, sockets);
        count(&self.users, users);
    }

    /// Who has not authenticated yet.
    pub fn unauthenticated(&self, number: usize) {
        self.unauthenticated.set(i64::try_from(number).unwrap_or(i64::MAX));
    }

    /// Whether other nodes can be heard, and how many there are.
    pub fn cluster(&self, is_up: bool, peers: usize) {
        self.redis_up.set(i64::from(is_up));
        self.nodes.set(i64::try_from(peers).unwrap_or(i64::MAX));
    }

    /// How many tasks run.
    pub fn tasks(&self, number: usize) {
        self.tasks.set(i64::try_from(number).unwrap_or(i64::MAX));
    }

    /// The messages to and from other nodes.
    pub fn follow_link(&self, counters: &Arc<Counters>) {
        let _ = self.link.set(counters.clone());
    }

    /// The text format of Prometheus.
    pub fn render(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        if let Some(counters) = self.link.get() {
            let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            let [published, dropped, received, overrun, malformed] = &self.redis;
            for (metric, counter) in [
                (published, &counters.published),
                (dropped, &counters.dropped),
                (received, &counters.received),
                (overrun, &counters.overrun),
                (malformed, &counters.malformed),
            ] {
                // Only ever ahead of what is shown.
                metric.inc_by(count(counter).saturating_sub(metric.get()));
            }
        }
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
