//! The wrapped stream under a WebSocket: the kill switch, pausing, metering, and the public
//! socket id in place of the engine's secret one.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use carillon_domain::contract::ALL_PATHS;
use carillon_redis_adapter::event_frame;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    outlet::{Flushed, MARK, Outlet},
    upgrade::PROBE_ANSWER,
};
use crate::connection::{Connection, Connections, Rename};

/// A stream handed to the engine.
pub struct Stream<T> {
    inner: T,
    /// What the HTTP parser had read past the handshake.
    head: Bytes,
    opening: Opening,
    /// A frame of ours in place of one of the engine's, until it is written.
    replacement: Bytes,
    connection: Arc<Connection>,
    connections: Arc<Connections>,
}

/// How far a stream has been opened. Until it is, nothing of the client reaches the engine, and
/// one frame of the engine's does not reach the client.
pub enum Opening {
    /// The edge has greeted the client: the engine's handshake is not to reach it, and then as
    /// below.
    Greeted(Pong),
    /// The published engine pings at once, where the protocol has the first ping after one
    /// interval.
    Fresh(Pong),
    /// The probe has been answered by the edge, and the engine's answer to it is still to come;
    /// these frames, which were polled from the engine, come first. Boxed, because every stream has
    /// the room for it.
    Upgrade(Box<Bytes>),
    Open,
}

/// Who answers the engine's first ping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pong {
    Edge,
    /// It was pinged by the edge.
    Client,
}

impl Opening {
    /// The next frame that does not reach the client: how many bytes come before it, and its own.
    fn swallowed(&self, bytes: &[u8]) -> Option<(usize, usize)> {
        let frame = match self {
            Self::Greeted(_) => return Some((0, frame_length(bytes))),
            Self::Fresh(_) => PING,
            Self::Upgrade(_) => PROBE_ANSWER,
            Self::Open => return None,
        };
        Some((memchr::memmem::find(bytes, frame)?, frame.len()))
    }
}

/// Frames: `2` of the server, `3` of a client with a mask of zeros.
pub const PING: &[u8] = b"\x81\x012";
const PONG: &[u8] = b"\x81\x81\0\0\0\x003";

impl<T> Stream<T> {
    pub fn new(
        inner: T,
        head: Bytes,
        mut opening: Opening,
        connection: Arc<Connection>,
        connections: Arc<Connections>,
    ) -> Self {
        connection.stream_opened();
        let replacement = match &mut opening {
            Opening::Upgrade(frames) => std::mem::take(&mut **frames),
            Opening::Greeted(_) | Opening::Fresh(_) | Opening::Open => Bytes::new(),
        };
        Self { inner, head, opening, replacement, connection, connections }
    }
}

impl<T> Drop for Stream<T> {
    fn drop(&mut self) {
        self.connection.end_outlet();
        if self.connection.stream_closed() {
            self.connection.ended();
            self.connections.stream_gone(&self.connection);
        }
    }
}

fn killed() -> io::Error {
    io::ErrorKind::ConnectionAborted.into()
}

impl<T: AsyncRead + Unpin> AsyncRead for Stream<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.connection.reader.register(cx.waker());
        if self.connection.is_killed() {
            return Poll::Ready(Err(killed()));
        }
        if self.connection.is_paused() || self.connection.is_stalled() {
            return Poll::Pending;
        }
        match self.opening {
            // The writer wakes us.
            Opening::Greeted(_) | Opening::Fresh(_) => return Poll::Pending,
            Opening::Upgrade(_) | Opening::Open => {}
        }
        if !self.head.is_empty() {
            let length = self.head.len().min(buffer.remaining());
            buffer.put_slice(&self.head.split_to(length));
            if self.head.is_empty() {
                // What is left of it would keep all of it.
                self.head = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl<T> Stream<T> {
    /// The engine has said what the client is not to hear.
    fn opened(&mut self) {
        self.opening = match self.opening {
            Opening::Greeted(pong) => Opening::Fresh(pong),
            Opening::Fresh(pong) => {
                if pong == Pong::Edge {
                    self.head = [PONG, &self.head].concat().into();
                }
                self.connection.reader.wake();
                Opening::Open
            }
            Opening::Upgrade(_) | Opening::Open => Opening::Open,
        };
    }
}

impl<T: AsyncWrite + Unpin> Stream<T> {
    fn poll_write_through(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = match self.connection.outlet() {
            None => Pin::new(&mut self.inner).poll_write(cx, bytes),
            // What waits in the outlet goes before the engine's, unless the engine is inside a frame.
            Some(outlet) => loop {
                let (flushed, result) = outlet.by_engine(|| {
                    let result = Pin::new(&mut self.inner).poll_write(cx, bytes);
                    let is_inside = match &result {
                        Poll::Ready(Ok(written)) => Some(*written < bytes.len()),
                        // As before.
                        Poll::Ready(Err(_)) | Poll::Pending => None,
                    };
                    (result, is_inside)
                })?;
                if flushed != Flushed::All(0) {
                    // Where there was nothing, whether the client takes anything is for the engine's
                    // own bytes to say.
                    self.connection.has_flushed(flushed);
                }
                match result {
                    Some(result) => break result,
                    None => ready!(outlet.poll_writable(cx))?,
                }
            },
        };
        match result {
            Poll::Ready(Ok(written)) => {
                self.connection.count_written(written);
                if self.connection.outlet().is_some_and(Outlet::waits) {
                    // Whoever came while the engine was inside a frame left it to us.
                    self.connection.flush();
                }
                Poll::Ready(Ok(written))
            }
            Poll::Pending => {
                self.connection.has_stalled();
                Poll::Pending
            }
            failed @ Poll::Ready(Err(_)) => failed,
        }
    }

    fn poll_replacement(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.replacement.is_empty() {
            let frame = self.replacement.clone();
            match ready!(self.poll_write_through(cx, &frame))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.replacement.advance(written),
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Server frames are not masked, and a CONNECT reply is shorter than 126 bytes: two bytes of
/// header, then the text.
fn frame(text: &[u8]) -> Vec<u8> {
    let length = u8::try_from(text.len()).unwrap_or(125).min(125);
    [&[0x81, length], text].concat()
}

/// How long the frame is that some bytes begin with: of a server, and shorter than 64 KiB.
fn frame_length(bytes: &[u8]) -> usize {
    let length = match *bytes {
        [_, 126, high, low, ..] => 4 + usize::from(u16::from_be_bytes([high, low])),
        [_, short, ..] => 2 + usize::from(short),
        _ => bytes.len(),
    };
    length.min(bytes.len())
}

/// The first mark in some bytes: where it begins, and how long it is.
fn find_mark(bytes: &[u8]) -> Option<(usize, usize)> {
    memchr::memmem::find(bytes, MARK.as_bytes())?;
    let found = ALL_PATHS.iter().filter_map(|path| {
        let frame = event_frame(path, MARK);
        Some((memchr::memmem::find(bytes, &frame)?, frame.len()))
    });
    found.min()
}

fn position_of(rename: &Rename, bytes: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, &frame(&rename.from))
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Stream<T> {
    /// The engine's out buffer always holds whole frames from where the last write ended, so a
    /// frame to be replaced is seen whole, and writing up to it makes it come first next time.
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.connection.writer.register(cx.waker());
        if self.connection.is_killed() {
            return Poll::Ready(Err(killed()));
        }
        ready!(self.poll_replacement(cx))?;
        match self.opening.swallowed(bytes) {
            Some((0, length)) => {
                self.opened();
                return Poll::Ready(Ok(length));
            }
            // It comes first next time.
            Some((before, _)) => return self.poll_write_through(cx, &bytes[..before]),
            None => {}
        }
        let marks = self.connection.outlet().filter(|outlet| outlet.awaits_mark());
        let mark = marks.and_then(|_| find_mark(bytes));
        if let (Some(outlet), Some((0, length))) = (marks, mark) {
            outlet.passed();
            self.connection.flush();
            return Poll::Ready(Ok(length));
        }
        // The mark, too, comes first next time.
        let bytes = mark.map_or(bytes, |(before, _)| &bytes[..before]);
        if self.connection.has_renames() {
            let at_start = |rename: &Rename| (position_of(rename, bytes) == Some(0)).then_some(());
            if let Some((rename, ())) = self.connection.take_rename(at_start) {
                self.replacement = frame(&rename.to).into();
                // What cannot be written now goes before the next write or flush.
                if let Poll::Ready(Err(error)) = self.poll_replacement(cx) {
                    return Poll::Ready(Err(error));
                }
                return Poll::Ready(Ok(frame(&rename.from).len()));
            }
            let before = self.connection.next_rename(|rename| position_of(rename, bytes));
            if let Some(before) = before {
                return self.poll_write_through(cx, &bytes[..before]);
            }
        }
        self.poll_write_through(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.connection.is_killed() {
            return Poll::Ready(Err(killed()));
        }
        ready!(self.poll_replacement(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.connection.is_killed() {
            ready!(self.poll_replacement(cx))?;
        }
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::connection::{Closing, Limits};

    fn stream(
        pipe: usize,
        opening: Opening,
    ) -> (Stream<tokio::io::DuplexStream>, tokio::io::DuplexStream, Arc<Connection>) {
        let (ours, theirs) = tokio::io::duplex(pipe);
        let connections = Connections::new(Limits::sample(), Arc::default());
        let connection = Arc::new(Connection::new(None, None));
        let ours = Stream::new(ours, Bytes::new(), opening, connection.clone(), connections);
        (ours, theirs, connection)
    }

    /// However its writes are cut, and whoever has pinged.
    #[tokio::test]
    async fn of_an_engine_whose_client_was_greeted_nothing_is_heard_before_its_own_words() {
        let handshake = frame(br#"0{"sid":"x","upgrades":[],"pingInterval":25000}"#);
        for (pong, heard) in [(Pong::Edge, [PONG, b"40"].concat()), (Pong::Client, b"40".to_vec())]
        {
            for together in [true, false] {
                let (mut ours, mut theirs, _connection) = stream(64, Opening::Greeted(pong));
                theirs.write_all(b"40").await.unwrap();
                let said = [&handshake[..], PING].concat();
                for part in if together { vec![&said[..]] } else { vec![&handshake, PING] } {
                    ours.write_all(part).await.unwrap();
                }
                let mut buffer = vec![0; heard.len()];
                ours.read_exact(&mut buffer).await.unwrap();
                assert_eq!(buffer, heard);
                ours.write_all(b"42").await.unwrap();
                ours.shutdown().await.unwrap();
                let mut received = Vec::new();
                theirs.read_to_end(&mut received).await.unwrap();
                assert_eq!(received, b"42");
            }
        }
    }

    /// However the kernel cuts the writes, the reply carries the public id and nothing else moves.
    #[tokio::test]
    async fn the_engines_session_id_never_reaches_the_wire() {
        for pipe in [1, 3, 7, 64, 4_096] {
            let (mut ours, mut theirs, connection) = stream(pipe, Opening::Open);
            let sid = socketioxide::socket::Sid::new();
            connection.rename("/", sid, "abcdefghijklmnopqrst", None);
            connection.rename("/chat", sid, "abcdefghijklmnopqrst", None);
            let mut sent = frame(b"0{\"upgrades\":[]}");
            sent.extend(frame(format!("40/chat,{{\"sid\":\"{sid}\"}}").as_bytes()));
            sent.extend(frame(b"42[\"x\",{}]"));
            sent.extend(frame(format!("40{{\"sid\":\"{sid}\"}}").as_bytes()));
            let write = tokio::spawn(async move {
                ours.write_all(&sent).await.unwrap();
                ours.flush().await.unwrap();
                ours.shutdown().await.unwrap();
            });
            let mut received = Vec::new();
            theirs.read_to_end(&mut received).await.unwrap();
            write.await.unwrap();
            let mut expected = frame(b"0{\"upgrades\":[]}");
            expected.extend(frame(b"40/chat,{\"sid\":\"abcdefghijklmnopqrst\"}"));
            expected.extend(frame(b"42[\"x\",{}]"));
            expected.extend(frame(b"40{\"sid\":\"abcdefghijklmnopqrst\"}"));
            assert_eq!(received, expected, "pipe of {pipe}");
            assert!(!connection.has_renames());
        }
    }

    #[tokio::test]
    async fn a_killed_stream_fails_at_once_even_when_the_peer_does_not_read() {
        let (mut ours, _theirs, connection) = stream(8, Opening::Open);
        let write = tokio::spawn(async move { ours.write_all(&[0; 64]).await });
        tokio::task::yield_now().await;
        assert!(!write.is_finished(), "the pipe is full");
        let connections = Connections::new(Limits::sample(), Arc::default());
        connections.kill(&connection, Closing::SlowConsumer);
        let error = write.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    }
}
