//! A new WebSocket, until its client says something.
//!
//! A session of the engine costs some twelve kilobytes, and is kept for 45 s even when its client
//! is gone. A flood of sockets that say nothing would be as many sessions. So the edge greets the
//! client itself, with the handshake and, after one interval, the first ping; the engine hears of
//! the connection with the client's first bytes. An honest client sends them at once.

use std::time::Duration;

use bytes::Bytes;
use carillon_redis_adapter::text_frame;
use socketioxide::socket::Sid;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};

use super::stream::{PING, Pong};
use crate::connection::Connection;

/// As much of what a client says first as is read here: a header and the beginning of a CONNECT.
const FIRST: usize = 64;

/// What a client is told by the handshake, and how long it may be silent.
#[derive(Clone, Copy, Debug)]
pub struct Greeting {
    pub ping_interval: Duration,
    pub ping_timeout: Duration,
    /// Bytes.
    pub max_payload: usize,
    /// From the handshake to CONNECT.
    pub connect_timeout: Duration,
}

impl Greeting {
    /// Greets the client and waits for its first bytes, and says whose pong the engine's first
    /// ping gets. `None` when the client says nothing in time, leaves, or is closed.
    pub async fn greet<T>(
        &self,
        stream: &mut T,
        head: Bytes,
        connection: &Connection,
    ) -> Option<(Bytes, Pong)>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let patience = self.connect_timeout.min(self.ping_interval + self.ping_timeout);
        tokio::select! {
            heard = timeout(patience, self.hear(stream, head)) => heard.ok()?,
            () = connection.is_over() => None,
        }
    }

    async fn hear<T>(&self, stream: &mut T, head: Bytes) -> Option<(Bytes, Pong)>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        say(stream, &text_frame(&self.handshake())).await?;
        if !head.is_empty() {
            return Some((head, Pong::Edge));
        }
        let mut first = [0; FIRST];
        let heard = timeout(self.ping_interval, stream.read(&mut first)).await;
        let (read, pong) = if let Ok(read) = heard {
            (read, Pong::Edge)
        } else {
            say(stream, PING).await?;
            (stream.read(&mut first).await, Pong::Client)
        };
        let read = read.ok().filter(|read| *read > 0)?;
        Some((Bytes::copy_from_slice(&first[..read]), pong))
    }

    /// The id is of no use to anybody: on a WebSocket none is asked for, and the engine's own is a
    /// secret.
    fn handshake(&self) -> String {
        format!(
            r#"0{{"sid":"{}","upgrades":[],"pingInterval":{},"pingTimeout":{},"maxPayload":{}}}"#,
            Sid::new(),
            self.ping_interval.as_millis(),
            self.ping_timeout.as_millis(),
            self.max_payload,
        )
    }
}

async fn say<T: AsyncWrite + Unpin>(stream: &mut T, frame: &[u8]) -> Option<()> {
    stream.write_all(frame).await.ok()?;
    stream.flush().await.ok()
}
