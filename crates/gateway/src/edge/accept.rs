//! The accept loop: from a connection to requests that say who asks.

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, HeaderValue, Request, header},
};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use super::{
    address::{ClientAddress, Peer},
    nodes::Nodes,
    proxy_protocol,
    tls::Certificates,
};
use crate::config::Networks;

/// Bytes that stay unacknowledged for this long mean the peer is gone: the kernel ends the
/// connection, and with it what a suspended tablet would otherwise hold for ever.
pub const USER_TIMEOUT: Duration = Duration::from_secs(20);
/// A request's headers, and the time an idle connection is kept for the next request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// What comes before the first request: a balancer's header, a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes buffered to parse a request; headers larger than this are refused.
const HEADER_BYTES: usize = 16 * 1024;
/// After a failed accept (mostly: out of file descriptors).
const PAUSE: Duration = Duration::from_millis(50);

/// Connections that are accepted before others have a turn: where thousands come at once, who is here
/// does not wait for all of them at every step.
const ACCEPTED_AT_ONCE: usize = 8;

/// How connections come to a listener.
pub struct Entrance {
    pub trusted: Networks,
    pub proxy_protocol: bool,
    pub certificates: Option<Arc<Certificates>>,
    pub hsts: Option<HeaderValue>,
    /// How long a client may leave bytes unacknowledged, or its window closed.
    pub user_timeout: Duration,
    /// Other nodes name the clients they speak for.
    pub nodes: Option<Arc<Nodes>>,
}

impl Default for Entrance {
    /// Plain HTTP, and nobody is believed.
    fn default() -> Self {
        Self {
            trusted: Networks::default(),
            proxy_protocol: false,
            certificates: None,
            hsts: None,
            user_timeout: USER_TIMEOUT,
            nodes: None,
        }
    }
}

impl Entrance {
    fn client(&self, peer: Peer, headers: &HeaderMap) -> ClientAddress {
        let by_node = self.nodes.as_ref().and_then(|nodes| nodes.client_of(peer, headers));
        by_node.unwrap_or_else(|| ClientAddress::of(peer, headers, &self.trusted))
    }
}

/// Serves connections until `stop`; those that are open then go on.
pub async fn serve(
    listener: TcpListener,
    entrance: Arc<Entrance>,
    router: Router,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    loop {
        for _ in 0..ACCEPTED_AT_ONCE {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => return,
            };
            match accepted {
                Ok((stream, address)) => {
                    tune(&stream, entrance.user_timeout);
                    let ip = address.ip().to_canonical();
                    let (entrance, router, stop) = (entrance.clone(), router.clone(), stop.clone());
                    tasks.spawn(connection(stream, ip, entrance, router, stop));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        tokio::task::yield_now().await;
    }
}

/// Without these, three small answers in a row take 40 ms, and a dead peer is noticed in hours.
pub fn tune(stream: &TcpStream, user_timeout: Duration) {
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(30));
    let results = [
        stream.set_nodelay(true),
        socket.set_tcp_keepalive(&keepalive),
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(user_timeout)),
    ];
    if let Some(error) = results.into_iter().find_map(Result::err) {
        tracing::debug!(%error, "cannot tune a socket");
    }
}

/// What comes before the first request happens here, in the connection's own task: a client that
/// is silent keeps nobody else waiting.
async fn connection(
    mut stream: TcpStream,
    ip: IpAddr,
    entrance: Arc<Entrance>,
    router: Router,
    stop: CancellationToken,
) {
    let mut peer = Peer { ip, is_secure: false };
    if entrance.proxy_protocol && entrance.trusted.contain(ip) {
        let header = timeout(HANDSHAKE_TIMEOUT, proxy_protocol::read(&mut stream));
        match header.await {
            Ok(Ok(named)) => peer = named.unwrap_or(peer),
            Ok(Err(error)) => return tracing::debug!(%error, "no sound PROXY header"),
            Err(_) => return tracing::debug!("no PROXY header in time"),
        }
    }
    let Some(certificates) = entrance.certificates.as_ref() else {
        return requests(stream, peer, entrance, router, stop).await;
    };
    let handshake = timeout(HANDSHAKE_TIMEOUT, certificates.acceptor().accept(stream));
    match Box::pin(handshake).await {
        Ok(Ok(stream)) => {
            peer.is_secure = true;
            // Apart, so that a plain connection does not pay for what this one holds.
            Box::pin(requests(stream, peer, entrance.clone(), router, stop)).await;
        }
        Ok(Err(error)) => tracing::debug!(%error, "no TLS handshake"),
        Err(_) => tracing::debug!("no TLS handshake in time"),
    }
}

async fn requests<T>(
    stream: T,
    peer: Peer,
    entrance: Arc<Entrance>,
    router: Router,
    stop: CancellationToken,
) where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = service_fn(move |mut request: Request<Incoming>| {
        let client = entrance.client(peer, request.headers());
        request.extensions_mut().insert(client);
        let hsts = entrance.hsts.clone().filter(|_| client.is_secure);
        let answer = router.clone().oneshot(request.map(Body::new));
        async move {
            let mut response = answer.await?;
            if let Some(hsts) = hsts {
                // The school's backend may have said it its own way.
                response.headers_mut().entry(header::STRICT_TRANSPORT_SECURITY).or_insert(hsts);
            }
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let mut served = std::pin::pin!(
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(HEADER_BYTES)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
    );
    // A connection that breaks is the peer's affair.
    tokio::select! {
        _ = served.as_mut() => {}
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            let _ = served.await;
        }
    }
}
