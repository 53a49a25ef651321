//! Going away without anybody losing anything: clients see their transport close and come back
//! elsewhere, and what was received is answered first.

use std::time::Duration;

use carillon_domain::{chat::returning, session};
use tokio::{
    signal::unix::{SignalKind, signal as listen},
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{connection::Closing, edge::forward::Forwarder, gateway::Gateway};

/// Between two waves of closing; a balancer and a database see a slope, not a wall.
const WAVE: Duration = Duration::from_millis(100);
/// What is noted at the end takes a moment.
const LAST: Duration = Duration::from_millis(500);
/// Closed in one wave, 50 a second, unless that took more than three quarters of what a drain may
/// take. Each client is away for a second or two however long the drain takes, and the slower they
/// come, the less do the others wait.
const AT_ONCE: usize = 5;

/// Waits for SIGTERM or SIGINT.
pub async fn signal() -> std::io::Result<()> {
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Closes the listener, then every connection in waves, also those that only pass here, and waits
/// for what they had asked.
pub async fn drain(
    gateway: &Gateway,
    forwarder: Option<&Forwarder>,
    stop: &CancellationToken,
    at_most: Duration,
) {
    let deadline = Instant::now() + at_most.saturating_sub(LAST);
    tracing::info!("draining");
    let closing = gateway.connections.all().len() + forwarder.map_or(0, Forwarder::tunnels);
    let waves = u32::try_from(closing.div_ceil(AT_ONCE)).unwrap_or(u32::MAX);
    let time = WAVE.saturating_mul(waves).min(at_most * 3 / 4);
    if let Some(forwarder) = forwarder {
        forwarder.end_over(time);
    }
    stop.cancel();
    if session::note_seen(&gateway.domain, Duration::ZERO).await.is_err() {
        tracing::warn!("who is here could not be noted; expired tokens will not be taken back");
    }
    let mut connections = gateway.connections.all();
    // What polls needs a listener that is there; a WebSocket can wait.
    connections.sort_by_key(|connection| !connection.is_polling());
    let waves = usize::try_from(time.as_millis() / WAVE.as_millis()).unwrap_or(1).max(1);
    let wave = connections.len().div_ceil(waves).max(1);
    for (index, some) in connections.chunks(wave).enumerate() {
        if index > 0 {
            sleep(WAVE).await;
        }
        for connection in some {
            gateway.connections.kill(connection, Closing::Draining);
        }
    }
    // Nobody waits for those who have said nothing yet.
    gateway.connections.turn_away();
    gateway.tasks.close();
    if timeout_at(deadline, gateway.tasks.wait()).await.is_err() {
        tracing::warn!(tasks = gateway.tasks.len(), "the drain took too long");
    }
    if returning::write(&gateway.domain).await.is_err() {
        tracing::warn!("the rooms of those who were here could not be noted");
    }
    tracing::info!("drained");
}
