//! The accept loop.

use std::time::Duration;

use axum::{Router, body::Body, http::Request};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

/// Bytes that stay unacknowledged for this long mean the peer is gone: the kernel ends the
/// connection, and with it what a suspended tablet would otherwise hold for ever.
const USER_TIMEOUT: Duration = Duration::from_secs(20);
/// A request's headers, and the time an idle connection is kept for the next request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes buffered to parse a request; headers larger than this are refused.
const HEADER_BYTES: usize = 16 * 1024;
/// After a failed accept (mostly: out of file descriptors).
const PAUSE: Duration = Duration::from_millis(50);

/// Serves connections until `stop`; those that are open then go on.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                tune(&stream);
                let connection = connection(stream, router.clone(), stop.clone());
                tasks.spawn(connection);
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Without these, three small answers in a row take 40 ms, and a dead peer is noticed in hours.
fn tune(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(30));
    let results = [
        stream.set_nodelay(true),
        socket.set_tcp_keepalive(&keepalive),
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(USER_TIMEOUT)),
    ];
    if let Some(error) = results.into_iter().find_map(Result::err) {
        tracing::debug!(%error, "cannot tune a socket");
    }
}

async fn connection(stream: TcpStream, router: Router, stop: CancellationToken) {
    let service =
        router.map_request(move |request: Request<hyper::body::Incoming>| request.map(Body::new));
    let mut served = std::pin::pin!(
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(HEADER_BYTES)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
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
