//! The wiring of one node, from top to bottom.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use axum::{Router, extract::Request, http::HeaderValue, routing::any};
use carillon_domain::{
    App as Domain, TenantId,
    api::refused::Refusals,
    chat::{
        self,
        returning::{self, Returning},
    },
    contract::Scope,
    exam::{self, journal::JournalKey},
    ports::{Clock, Ids, Store as _},
    presence::{Presence, elsewhere::NodeId},
    recovery,
};
use carillon_store::{Opener, SqlStore};
use socketioxide::{ParserConfig, SocketIo};
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    auth::Authenticator,
    clock::{self, DatabaseClock},
    cluster::{self, Peers},
    coming::Coming,
    config::{self, Config},
    connection::{Connections, Limits, OUTBOUND_SLOTS},
    edge::{
        Edge,
        accept::{self, Entrance},
        forward::Forwarder,
        nodes::Nodes,
        threshold::Greeting,
        tls::Certificates,
    },
    expiry::Expiries,
    fanout::Fanout,
    gateway::{Gateway, ROOMS_AT_ONCE},
    http::{
        api::{self, Api},
        health::{self, Health},
        keys::Keys,
        origin::{self, Origins},
    },
    jobs,
    limits::Limiter,
    metrics::Metrics,
    proxy::Proxy,
    shutdown,
    socketio::{self, Adapter, NodeHub},
};

/// The read buffer of a WebSocket; larger messages grow it while they are read.
const READ_BUFFER: usize = 384;
/// A client that has not finished CONNECT by then is closed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(45);
/// Past the ping timeout, the engine has closed a polling session by itself.
const SILENCE: Duration = Duration::from_secs(10);
/// Binary attachments of a packet; current clients refuse more.
const MAX_ATTACHMENTS: usize = 10;

/// Everything is committed by then; connections that hang are left to the process's end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How a node differs between `dev` and `serve`.
pub struct Options {
    pub any_localhost_origin: bool,
    /// Routes of `dev`.
    pub extra: Router,
}

/// A node that listens, before it serves.
pub struct Node {
    pub address: SocketAddr,
    listener: TcpListener,
    operations: Option<TcpListener>,
    entrance: Arc<Entrance>,
    router: Router,
    operations_router: Router,
    stop: CancellationToken,
    /// Set in a cluster.
    cluster: Option<Arc<Forwarder>>,
    gateway: Arc<Gateway>,
    health: Health,
    limiter: Arc<Limiter>,
    edge: Edge,
    store: Arc<SqlStore>,
    clock: Option<Arc<DatabaseClock>>,
    drain: Duration,
    drain_notice: Duration,
}

struct UuidsV7;
impl Ids for UuidsV7 {
    fn uuid(&self) -> String {
        uuid::Uuid::now_v7().to_string()
    }
}

impl Node {
    /// Opens the database, wires everything and binds the ports.
    pub async fn start(config: &Config, options: Options) -> anyhow::Result<Self> {
        let mut entrance = entrance(config).await?;
        let store = Arc::new(open_store(config).await?);
        let limiter = Arc::new(Limiter::new(config));
        let metrics = Arc::new(Metrics::default());
        let origins = Arc::new(Origins::new(&config.apps, options.any_localhost_origin));
        let auth_metrics = metrics.auth.clone();
        let (clock, of_database) = clock::of(&store).await?;
        let authenticator =
            Arc::new(Authenticator::new(config, &origins, clock.clone(), auth_metrics)?);
        let node = NodeId::from(UuidsV7.uuid());
        let domain = domain(config, &node, &store, clock, &limiter, &authenticator).await?;
        returning::take_over(&domain, &TenantId::new("system")?)
            .await
            .context("cannot read who was here")?;
        let peers = Peers::new(config, node)?;
        if let Some(peers) = &peers {
            let ring = peers.talk.ring.clone();
            domain.presence.share(peers.talk.node.clone(), move || ring.notify_one());
            metrics.follow_link(peers.counters());
        }
        let connections = Connections::new(limits(config), metrics.clone());
        let hub = NodeHub::new(connections.clone());
        let (engine, io) = engine(config, hub.clone());
        let gateway = Arc::new(Gateway {
            authenticator,
            default_tenant: config.default_app().tenant.clone(),
            fanout: Fanout::new(
                hub.clone(),
                io.clone(),
                domain.clone(),
                connections.clone(),
                metrics.clone(),
                Expiries::new(&config.auth),
                peers.clone(),
            ),
            peers,
            coming: Coming::new(&domain),
            domain,
            connections: connections.clone(),
            hub,
            io,
            metrics: metrics.clone(),
            showing: Semaphore::new(ROOMS_AT_ONCE),
            tasks: TaskTracker::new(),
        });
        socketio::register(&gateway);

        let stop = CancellationToken::new();
        let listener = bind(config.server.listen, "server.listen").await?;
        let cluster = join_cluster(config, &listener, &gateway, &stop).await?;
        entrance.nodes = cluster.as_ref().map(|forwarder| forwarder.nodes.clone());
        let edge = Edge::new(
            engine,
            connections,
            origins.clone(),
            greeting(config),
            gateway.tasks.clone(),
        )
        .with_eio3(config.server.allow_eio3)
        .in_cluster(cluster.clone());
        let health = Health::new(gateway.clone());
        let for_requests = edge.clone();
        let api = Api { gateway: gateway.clone(), keys: Arc::new(Keys::new(config)?) };
        let router = Router::new()
            .route("/socket.io/", any(move |request: Request| for_requests.clone().handle(request)))
            .merge(health::routes(health.clone()))
            .merge(api::routes(&api))
            .merge(options.extra)
            // Ours, whatever it says; what follows it may be a session's id.
            .route("/socket.io", any(health::not_found))
            .route("/socket.io/{*rest}", any(health::not_found));
        let tasks = gateway.tasks.clone();
        let router = match Proxy::new(&config.proxy, metrics.clone(), tasks, stop.clone())? {
            // The backend answers preflights of its own paths.
            Some(proxy) => origin::with_cors(router, origins)
                .fallback(move |request: Request| proxy.clone().pass(request)),
            None => origin::with_cors(router.fallback(health::not_found), origins),
        };
        let operations = bind_operations(config.operations.listen).await?;
        Ok(Self {
            address: listener.local_addr()?,
            listener,
            operations,
            entrance: Arc::new(entrance),
            router,
            operations_router: operations_router(metrics),
            stop,
            cluster,
            gateway,
            health,
            limiter,
            edge,
            store,
            clock: of_database,
            drain: config.server.drain.0,
            drain_notice: config.server.drain_notice.0,
        })
    }

    pub fn domain(&self) -> &Domain {
        &self.gateway.domain
    }

    /// Serves until SIGTERM or SIGINT, then drains.
    pub async fn run(self) -> anyhow::Result<()> {
        let (stop, end) = (self.stop, CancellationToken::new());
        let tasks = &self.gateway.tasks;
        let listeners = [
            (Some(self.listener), self.entrance.clone(), self.router),
            (self.operations, Arc::default(), self.operations_router),
        ];
        for (listener, entrance, router) in listeners {
            if let Some(listener) = listener {
                let serve = accept::serve(listener, entrance, router, tasks.clone(), stop.clone());
                tasks.spawn(serve);
            }
        }
        let certificates = self.entrance.certificates.clone();
        self.gateway.connections.write_outlets();
        let gateway = self.gateway.clone();
        // It outlives the drain, which is told to the others.
        let apart = CancellationToken::new();
        let part = tokio::spawn(cluster::take_part(self.gateway.clone(), apart.clone()));
        let mut jobs =
            tokio::spawn(jobs::run(gateway, self.limiter, self.edge, certificates, end.clone()));

        let (clock, store) = (self.clock, self.store.clone());
        let stop_clock = end.clone();
        let clock = tokio::spawn(async move {
            stop_clock.run_until_cancelled(clock::follow(clock, &store)).await;
        });
        let followed = self.cluster.clone().map(|cluster| {
            let end = end.clone();
            tokio::spawn(async move { cluster.nodes.follow(end).await })
        });
        let failed = tokio::select! {
            signal = shutdown::signal() => { signal?; None }
            ended = &mut jobs => Some(ended),
        };
        self.health.drain();
        // Balancers stop sending before the listener closes.
        tokio::time::sleep(self.drain_notice).await;
        let at_most = self.drain.saturating_sub(self.drain_notice);
        shutdown::drain(&self.gateway, self.cluster.as_deref(), &stop, at_most).await;
        end.cancel();
        let ended = match failed {
            Some(ended) => ended.context("a job has failed").and_then(|()| bail!("the jobs ended")),
            None => jobs.await.context("a job has failed"),
        };
        clock.await.context("following the database's clock has failed")?;
        apart.cancel();
        part.await.context("this node's part in the cluster has failed")?;
        if let Some(followed) = followed {
            // It tells of what went wrong.
            let _ = followed.await;
        }
        if timeout(CLOSE_TIMEOUT, self.store.close()).await.is_err() {
            tracing::warn!("the database does not let go");
        }
        ended
    }
}

/// What commands can reach.
async fn domain(
    config: &Config,
    node: &NodeId,
    store: &Arc<SqlStore>,
    clock: Arc<dyn Clock>,
    limiter: &Arc<Limiter>,
    authenticator: &Arc<Authenticator>,
) -> anyhow::Result<Arc<Domain>> {
    let since = clock.now();
    Ok(Arc::new(Domain {
        store: store.clone(),
        clock,
        ids: Arc::new(UuidsV7),
        admission: limiter.clone(),
        credentials: authenticator.clone(),
        presence: Presence::default(),
        typists: chat::typing_indicator::Typists::default(),
        chat: chat::Settings { open_rooms: config.chat.open_rooms },
        returning: Returning::new(node.to_string()),
        refusals: Refusals::default(),
        exams: exam::State::new(exam_settings(config, store).await?, since),
        leaderboard: config.leaderboard_settings()?,
        recovery: recovery::Settings {
            window: config.recovery.enabled.then_some(config.recovery.window.0),
        },
    }))
}

/// How clients come in.
async fn entrance(config: &Config) -> anyhow::Result<Entrance> {
    let server = &config.server;
    let seconds = server.hsts.0.as_secs();
    let hsts = HeaderValue::from_str(&format!("max-age={seconds}"))?;
    Ok(Entrance {
        trusted: server.trusted_proxies.clone(),
        proxy_protocol: server.proxy_protocol,
        certificates: Certificates::open(&server.tls).await?,
        hsts: (seconds > 0).then_some(hsts),
        // A browser that pauses a film closes its window; a WebSocket gets its own limit.
        user_timeout: match config.proxy.upstream {
            Some(_) => config.proxy.idle.0.max(accept::USER_TIMEOUT),
            None => accept::USER_TIMEOUT,
        },
        nodes: None,
    })
}

/// What operators ask.
fn operations_router(metrics: Arc<Metrics>) -> Router {
    Router::new().route(
        "/metrics",
        axum::routing::get(move || {
            let text = metrics.render().map_err(|_| http::StatusCode::INTERNAL_SERVER_ERROR);
            std::future::ready(text)
        }),
    )
}

/// The cluster, where this node is told how others reach it. It is known to them before it serves.
async fn join_cluster(
    config: &Config,
    listener: &TcpListener,
    gateway: &Gateway,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Arc<Forwarder>>> {
    let port = listener.local_addr()?.port();
    let Some(address) = config.cluster.advertised(&config.server, port)? else { return Ok(None) };
    let nodes = Nodes::join(gateway.domain.store.clone(), &address).await?;
    let silent = config.server.ping_interval.0 + config.server.ping_timeout.0;
    let (metrics, tasks) = (gateway.metrics.clone(), gateway.tasks.clone());
    Ok(Some(Arc::new(Forwarder::new(nodes, silent, metrics, tasks, stop.clone())?)))
}

/// What seals the journals: the configured key, else one kept in the database.
async fn exam_settings(config: &Config, store: &SqlStore) -> anyhow::Result<exam::Settings> {
    let journal_key = match &config.exam.journal_key {
        Some(key) => JournalKey::new(key.expose()),
        None => stored_journal_key(store).await.context("the key of the exam journals")?,
    };
    Ok(exam::Settings { grace: config.exam.grace.0, journal_key })
}

/// The key kept in the database; made at the first start.
pub async fn stored_journal_key(store: &SqlStore) -> anyhow::Result<JournalKey> {
    let fresh = uuid::Uuid::new_v4().to_string() + &uuid::Uuid::new_v4().to_string();
    // Any tenant's writer will do: the key is the server's.
    let mut tx = store.begin(&TenantId::new("default")?, Scope::Rows).await?;
    let key = tx.server_key("exam-journal", &fresh).await?;
    tx.commit().await?;
    Ok(JournalKey::new(&key))
}

/// The database, brought up to date.
pub async fn open_store(config: &Config) -> anyhow::Result<SqlStore> {
    let url = config.database.url.expose();
    config::ensure_directory(url)?;
    let store = SqlStore::open(url, Opener::Server).await.context("database.url")?;
    if config.database.migrate {
        store.migrate().await.context("cannot migrate the database")?;
    }
    Ok(store)
}

async fn bind(address: SocketAddr, key: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("{key}: cannot listen on {address}"))
}

/// A second node on this machine finds the default port taken; that is no reason not to serve.
async fn bind_operations(address: SocketAddr) -> anyhow::Result<Option<TcpListener>> {
    match bind(address, "operations.listen").await {
        Ok(listener) => {
            tracing::info!(operations = %listener.local_addr()?, "metrics");
            Ok(Some(listener))
        }
        Err(error) if address == config::Operations::default().listen => {
            tracing::warn!("no metrics: {error:#}; set operations.listen");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn limits(config: &Config) -> Limits {
    Limits {
        unsent_bytes: config.limits.unsent_bytes as u64,
        stalled: config.limits.stalled.0,
        paused: config.server.ping_timeout.0 / 2,
        silent: config.server.ping_interval.0 + config.server.ping_timeout.0 + SILENCE,
        unauthenticated: config.limits.unauthenticated,
        failed_handshakes: config.limits.failed_handshakes.0,
    }
}

fn greeting(config: &Config) -> Greeting {
    Greeting {
        ping_interval: config.server.ping_interval.0,
        ping_timeout: config.server.ping_timeout.0,
        max_payload: config.server.max_payload,
        connect_timeout: CONNECT_TIMEOUT,
    }
}

fn engine(
    config: &Config,
    hub: Arc<NodeHub>,
) -> (
    socketioxide::service::SocketIoService<engineioxide::service::NotFoundService, Adapter>,
    SocketIo<Adapter>,
) {
    let server = &config.server;
    let parser = ParserConfig::common()
        .max_incoming_binaries(MAX_ATTACHMENTS)
        .max_incoming_binary_buf_size(server.max_payload);
    SocketIo::builder()
        .ping_interval(server.ping_interval.0)
        .ping_timeout(server.ping_timeout.0)
        .max_payload(server.max_payload as u64)
        .ws_max_message_size(server.max_payload)
        .ws_max_frame_size(server.max_payload)
        .ws_read_buffer_size(READ_BUFFER)
        .max_buffer_size(OUTBOUND_SLOTS)
        .connect_timeout(CONNECT_TIMEOUT)
        .with_parser(parser)
        .with_adapter::<Adapter>(hub)
        .build_svc()
}
