//! A new WebSocket, until its client says something.
//!
//! A session of the engine costs some twelve kilobytes, and is kept for 45 s even when its client
//! is gone. A flood of sockets that say nothing would be as many sessions. So the edge greets the
//! client itself, with the handshake, and pings it; the engine hears of the connection with the
//! first bytes that are no pong. An honest client sends them at once.

use std::{pin::pin, time::Duration};

use bytes::Bytes;
use carillon_redis_adapter::text_frame;
use socketioxide::socket::Sid;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};

use super::stream::{PING, Pong};
use crate::{connection::Connection, strangers::Overrun};

/// As much of what a client says first as is read here: a header and the beginning of a CONNECT.
const FIRST: usize = 64;

/// What the ids end in that are handed out here; those of the engine do not. No client escapes it.
const NO_POLLING: char = '*';

/// Whether it is the id of a session that began as a WebSocket: nothing else takes part in it.
pub fn is_of_websocket(sid: &str) -> bool {
    sid.ends_with(NO_POLLING)
}

/// Waits until it is the client's turn; returns what has been read of it by then. `None` when it
/// leaves before, or its turn will not come.
pub async fn wait<T>(
    stream: &mut T,
    head: Bytes,
    turn: impl Future<Output = Result<(), Overrun>>,
) -> Option<Bytes>
where
    T: AsyncRead + Unpin,
{
    let (mut turn, mut first) = (pin!(turn), [0; FIRST]);
    let head = tokio::select! {
        biased;
        turn = &mut turn => return turn.ok().map(|()| head),
        // Who speaks before the handshake is not seen to leave.
        read = stream.read(&mut first), if head.is_empty() => {
            Bytes::copy_from_slice(&first[..read.ok().filter(|read| *read > 0)?])
        }
    };
    turn.await.ok().map(|()| head)
}

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
    /// ping gets. `None` when the client does not speak in time, leaves, or is closed.
    pub async fn greet<T>(
        &self,
        stream: &mut T,
        head: Bytes,
        connection: &Connection,
    ) -> Option<(Bytes, Pong)>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        tokio::select! {
            heard = timeout(self.connect_timeout, self.hear(stream, head)) => heard.ok()?,
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
        let (mut first, mut owed) = ([0; FIRST], Pong::Edge);
        loop {
            let patience = match owed {
                Pong::Edge => self.ping_interval,
                Pong::Client => self.ping_timeout,
            };
            match (timeout(patience, stream.read(&mut first)).await, owed) {
                (Ok(read), _) => {
                    let said = &first[..read.ok().filter(|read| *read > 0)?];
                    if owed == Pong::Edge || !is_pong(said) {
                        return Some((Bytes::copy_from_slice(said), owed));
                    }
                    owed = Pong::Edge;
                }
                (Err(_), Pong::Edge) => {
                    say(stream, PING).await?;
                    owed = Pong::Client;
                }
                (Err(_), Pong::Client) => return None,
            }
        }
    }

    /// The id is of no use to anybody: a WebSocket is asked for none, and the engine's own is a
    /// secret.
    fn handshake(&self) -> String {
        format!(
            r#"0{{"sid":"{}{NO_POLLING}","upgrades":[],"pingInterval":{},"pingTimeout":{},"maxPayload":{}}}"#,
            Sid::new(),
            self.ping_interval.as_millis(),
            self.ping_timeout.as_millis(),
            self.max_payload,
        )
    }
}

/// Whether it is one frame of a client's, `3`, and nothing else.
fn is_pong(said: &[u8]) -> bool {
    matches!(*said, [0x81, 0x81, mask, _, _, _, text] if text ^ mask == b'3')
}

async fn say<T: AsyncWrite + Unpin>(stream: &mut T, frame: &[u8]) -> Option<()> {
    stream.write_all(frame).await.ok()?;
    stream.flush().await.ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::{io::DuplexStream, time::Instant};

    use super::*;
    use crate::connection::{Closing, Connections, Limits};

    const GREETING: Greeting = Greeting {
        ping_interval: Duration::from_millis(30),
        ping_timeout: Duration::from_millis(60),
        max_payload: 1_000_000,
        connect_timeout: Duration::from_millis(75),
    };

    /// What the client sees of the handshake, but for the session's id.
    async fn handshake(client: &mut DuplexStream) -> String {
        let mut header = [0; 2];
        client.read_exact(&mut header).await.unwrap();
        assert_eq!(header[0], 0x81, "one text");
        let mut text = vec![0; header[1].into()];
        client.read_exact(&mut text).await.unwrap();
        let text = String::from_utf8(text).unwrap();
        format!("{}…{}", &text[..9], &text[26..])
    }

    #[tokio::test]
    async fn a_client_is_greeted_and_handed_on_with_what_it_says_first() {
        let (mut server, mut client) = tokio::io::duplex(1_024);
        let connection = Connection::new(None, None);
        let speak = async {
            let shown = r#"0{"sid":"…","upgrades":[],"pingInterval":30,"pingTimeout":60,"maxPayload":1000000}"#;
            assert_eq!(handshake(&mut client).await, shown);
            client.write_all(b"40").await.unwrap();
        };
        let greet = GREETING.greet(&mut server, Bytes::new(), &connection);
        let (heard, ()) = tokio::join!(greet, speak);
        assert_eq!(heard, Some((Bytes::from("40"), Pong::Edge)));
        // What came with the request has been said already.
        let head = Bytes::from("41");
        let heard = GREETING.greet(&mut server, head.clone(), &connection).await;
        assert_eq!(heard, Some((head, Pong::Edge)));
    }

    #[tokio::test]
    async fn whoever_leaves_has_no_turn_and_what_is_said_before_it_is_kept() {
        let (mut server, mut client) = tokio::io::duplex(64);
        let early = Bytes::from("40");
        let come = async { Ok(()) };
        assert_eq!(wait(&mut server, early.clone(), come).await, Some(early.clone()));
        client.write_all(&early).await.unwrap();
        let come = async {
            tokio::task::yield_now().await;
            Ok(())
        };
        assert_eq!(wait(&mut server, Bytes::new(), come).await, Some(early));
        assert_eq!(wait(&mut server, Bytes::new(), async { Err(Overrun) }).await, None);
        drop(client);
        assert_eq!(wait(&mut server, Bytes::new(), std::future::pending()).await, None);
    }

    #[tokio::test]
    async fn a_silent_client_is_pinged_and_handed_on_when_it_speaks() {
        let patient = Greeting { connect_timeout: Duration::from_hours(1), ..GREETING };
        for answers in [true, false] {
            let (mut server, mut client) = tokio::io::duplex(1_024);
            let (connection, began) = (Connection::new(None, None), Instant::now());
            let speak = async {
                handshake(&mut client).await;
                let mut ping = [0; 3];
                client.read_exact(&mut ping).await.unwrap();
                assert_eq!(ping, PING);
                assert!(began.elapsed() >= GREETING.ping_interval);
                if answers {
                    client.write_all(b"\x81\x81\x01\x02\x03\x04\x32").await.unwrap();
                    // Then it is pinged again, and only then.
                    client.read_exact(&mut ping).await.unwrap();
                    assert!(began.elapsed() >= 2 * GREETING.ping_interval);
                }
                client.write_all(b"40").await.unwrap();
            };
            let greet = patient.greet(&mut server, Bytes::new(), &connection);
            let (heard, ()) = tokio::join!(greet, speak);
            assert_eq!(heard, Some((Bytes::from("40"), Pong::Client)));
        }
    }

    #[tokio::test]
    async fn whoever_does_not_speak_in_time_is_given_up() {
        let (mut server, _client) = tokio::io::duplex(1_024);
        let connection = Connection::new(None, None);
        let unanswered = Greeting { connect_timeout: Duration::from_hours(1), ..GREETING };
        for (greeting, patience) in [(GREETING, 75), (unanswered, 90)] {
            let began = Instant::now();
            assert_eq!(greeting.greet(&mut server, Bytes::new(), &connection).await, None);
            assert!(began.elapsed() >= Duration::from_millis(patience));
        }
    }

    #[tokio::test]
    async fn whoever_leaves_or_is_closed_is_not_waited_for() {
        let patient = Greeting {
            ping_interval: Duration::from_hours(1),
            connect_timeout: Duration::from_hours(1),
            ..GREETING
        };
        let (mut server, client) = tokio::io::duplex(1_024);
        let connection = Connection::new(None, None);
        let connections = Connections::new(Limits::sample(), Arc::default());
        let close = async { connections.kill(&connection, Closing::Draining) };
        let greet = patient.greet(&mut server, Bytes::new(), &connection);
        assert_eq!(tokio::join!(greet, close).0, None);

        let connection = Connection::new(None, None);
        drop(client);
        assert_eq!(patient.greet(&mut server, Bytes::new(), &connection).await, None);
    }
}
