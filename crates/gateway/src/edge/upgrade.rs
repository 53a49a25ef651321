//! From polling to a WebSocket.
//!
//! The published engine gives up a session whose upgrade fails, and answers every poll at once
//! while one goes on. So the probe is answered here, and the engine hears of the WebSocket only
//! once the client has said that it stays there: behind a proxy that swallows a
//! `WebSocket` the client goes on polling as if nothing had happened.

use std::{
    pin::pin,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::FutureExt;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::Notify,
    time::timeout,
};

use super::{
    eio3::{Dialect, Session},
    polling::{Asked, Connects, NOOP, SEPARATOR, renamed},
    stream::Opening,
};
use crate::connection::Connection;

/// A probe that takes longer is given up, as Node's; polling goes on.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// A poll that comes while a probe is under way waits this long for something to say; Node's.
const BETWEEN_POLLS: Duration = Duration::from_millis(100);
/// The longest frame of a probe: two bytes of header, four of mask, `2probe`.
const PROBE_FRAME: usize = 12;
const PROBE: &[u8] = b"2probe";
const UPGRADE: &[u8] = b"5";
/// `3probe` as the server's frame.
pub const PROBE_ANSWER: &[u8] = b"\x81\x063probe";

/// What a connection that began by polling has beside the others.
#[derive(Default)]
pub struct Polling {
    stage: Mutex<Stage>,
    changed: Notify,
    recalled: Notify,
    /// The engine's answer to a poll, while it is waited for. A client that is called away from
    /// its poll leaves it here: whoever asks next goes on waiting for it.
    pub asked: tokio::sync::Mutex<Option<Asked>>,
    pub connects: Connects,
    /// Set when its client speaks Engine.IO 3.
    pub eio3: Option<Session>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Polling,
    /// A WebSocket is open, and has said nothing yet.
    Opening,
    /// It has been answered: the client leaves its poll.
    Probing,
    /// It carries the connection, and nothing else does any more.
    Upgraded,
}

impl Polling {
    pub fn new(dialect: Option<Dialect>) -> Self {
        Self { eio3: dialect.map(Session::new), ..Self::default() }
    }

    fn stage(&self) -> Stage {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, stage: Stage) {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = stage;
        self.changed.notify_waiters();
    }

    /// The session is over. In the engine a poll holds it, and nothing would ever end that if nobody
    /// looked at it any more; who still waits for it sees its end.
    pub fn let_go(&self) {
        if let Ok(mut asked) = self.asked.try_lock() {
            *asked = None;
        }
    }

    /// The node that passes the client's poll on is going away.
    pub fn recall(&self) {
        self.recalled.notify_waiters();
    }

    /// Waits until a poll is to be answered with nothing: the client's next one takes another way.
    pub async fn is_recalled(&self) {
        self.recalled.notified().await;
    }

    pub fn is_upgraded(&self) -> bool {
        self.stage() == Stage::Upgraded
    }

    /// Waits until a poll is to be answered with nothing: the client moves to a WebSocket.
    pub async fn is_called_away(&self) {
        if self.stage() == Stage::Probing {
            tokio::time::sleep(BETWEEN_POLLS).await;
        }
        self.is_in(&[Stage::Probing, Stage::Upgraded]).await;
    }

    /// Waits until a WebSocket carries the connection.
    pub async fn has_upgraded(&self) {
        self.is_in(&[Stage::Upgraded]).await;
    }

    async fn is_in(&self, stages: &[Stage]) {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            if stages.contains(&self.stage()) {
                return;
            }
            changed.await;
        }
    }
}

/// An upgrade under way; dropped, the connection goes on polling.
struct Attempt<'a>(&'a Polling);

impl<'a> Attempt<'a> {
    /// `None` when the connection has a WebSocket already, or tries another one.
    fn begin(polling: &'a Polling) -> Option<Self> {
        let mut stage = polling.stage.lock().unwrap_or_else(PoisonError::into_inner);
        (*stage == Stage::Polling).then(|| {
            *stage = Stage::Opening;
            Self(polling)
        })
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.0.is_upgraded() {
            self.0.enter(Stage::Polling);
        }
    }
}

/// Answers a probe, and once the client stays leaves the stream to `carry`, with what was read of
/// it. `ask` polls the engine; `let_out` is called when polling is over, and before anything is
/// written.
pub async fn upgrade<T>(
    mut stream: T,
    head: Bytes,
    connection: &Connection,
    ask: impl Fn() -> Option<Asked>,
    let_out: impl FnOnce(),
    carry: impl FnOnce(T, Bytes, Opening),
) where
    T: AsyncRead + AsyncWrite + Unpin,
{
    // Anybody else's WebSocket is closed by being dropped.
    let Some(polling) = connection.polling() else { return };
    let Some(attempt) = Attempt::begin(polling) else { return };
    let Ok(Some(read)) = timeout(PROBE_TIMEOUT, probe(&mut stream, head, polling)).await else {
        return;
    };
    if connection.is_killed() {
        return;
    }
    polling.enter(Stage::Upgraded);
    drop(attempt);
    // A poll that still waits sees that and leaves.
    let asked = polling.asked.lock().await.take();
    let frames = drain(asked, ask, connection);
    let_out();
    carry(stream, read, Opening::Upgrade(frames.into()));
}

/// What the engine has for polls, as frames. It keeps back what has no place in an answer, for the
/// next poll and for nothing else: so it is polled until it would have to wait, which is when it
/// has nothing in hand, or has said as much as a task may in one go. That poll is dropped, and what
/// is queued comes by the WebSocket.
fn drain(
    mut asked: Option<Asked>,
    ask: impl Fn() -> Option<Asked>,
    connection: &Connection,
) -> Bytes {
    let mut frames = BytesMut::new();
    while let Some(Ok(body)) = asked.take().or_else(&ask).and_then(FutureExt::now_or_never) {
        if body.is_empty() {
            // The session is being closed.
            break;
        }
        put_frames(&mut frames, &renamed(connection, body));
    }
    frames.freeze()
}

/// Waits for `2probe`, answers, and waits for `5`; returns all that was read. `None` when the
/// client says anything else, or leaves.
async fn probe<T>(stream: &mut T, head: Bytes, polling: &Polling) -> Option<Bytes>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut read = BytesMut::from(&head[..]);
    let probe = frame(stream, &mut read, 0, PROBE).await?;
    stream.write_all(PROBE_ANSWER).await.ok()?;
    stream.flush().await.ok()?;
    polling.enter(Stage::Probing);
    frame(stream, &mut read, probe, UPGRADE).await?;
    Some(read.freeze())
}

/// Reads until there is a frame of exactly this text from `at` on; returns where it ends. Another
/// frame is seen by its first two bytes: it may be shorter.
async fn frame<T>(stream: &mut T, read: &mut BytesMut, at: usize, text: &[u8]) -> Option<usize>
where
    T: AsyncRead + Unpin,
{
    let header = [0x81, 0x80 | u8::try_from(text.len()).ok()?];
    fill(stream, read, at + header.len()).await?;
    if read[at..at + header.len()] != header {
        return None;
    }
    let end = at + 6 + text.len();
    fill(stream, read, end).await?;
    let (mask, masked) = read[at + 2..end].split_at(4);
    let said = masked.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
    said.eq(text.iter().copied()).then_some(end)
}

/// Reads on until there are so many bytes, and no more: what follows is the engine's to read.
async fn fill<T>(stream: &mut T, read: &mut BytesMut, end: usize) -> Option<()>
where
    T: AsyncRead + Unpin,
{
    while read.len() < end {
        let mut some = [0; PROBE_FRAME];
        let wanted = (end - read.len()).min(PROBE_FRAME);
        let count = stream.read(&mut some[..wanted]).await.ok()?;
        if count == 0 {
            return None;
        }
        read.extend_from_slice(&some[..count]);
    }
    Some(())
}

/// The packets of a polling body as the server's frames.
fn put_frames(frames: &mut BytesMut, body: &[u8]) {
    for packet in body.split(|byte| *byte == SEPARATOR) {
        match packet {
            [] | NOOP => {}
            [b'b', encoded @ ..] => {
                // The engine encoded it.
                let binary = BASE64.decode(encoded).unwrap_or_default();
                put_frame(frames, 0x82, &binary);
            }
            text => put_frame(frames, 0x81, text),
        }
    }
}

fn put_frame(frames: &mut BytesMut, opcode: u8, payload: &[u8]) {
    frames.put_u8(opcode);
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(short @ 0..126), _) => frames.put_u8(short),
        (_, Ok(length)) => {
            frames.put_u8(126);
            frames.put_u16(length);
        }
        _ => {
            frames.put_u8(127);
            frames.put_u64(payload.len() as u64);
        }
    }
    frames.put_slice(payload);
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    fn masked(text: &[u8]) -> Vec<u8> {
        let mask = [7, 11, 13, 17];
        let length = 0x80 | u8::try_from(text.len()).unwrap();
        let said = text.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
        [0x81, length].into_iter().chain(mask).chain(said).collect()
    }

    #[tokio::test]
    async fn a_probe_is_answered_however_the_network_cuts_it() {
        let said = [masked(PROBE), masked(UPGRADE), masked(b"4hello")].concat();
        for cut in 0..=said.len() {
            let (mut ours, mut theirs) = duplex(64);
            let polling = Polling::default();
            let head = Bytes::copy_from_slice(&said[..cut]);
            theirs.write_all(&said[cut..]).await.unwrap();
            let read = probe(&mut ours, head, &polling).await.unwrap();
            let mut rest = vec![0; said.len() - read.len()];
            ours.read_exact(&mut rest).await.unwrap();
            assert_eq!([&read[..], &rest].concat(), said, "cut at {cut}");
            let mut answer = [0; 8];
            theirs.read_exact(&mut answer).await.unwrap();
            assert_eq!(answer, PROBE_ANSWER);
        }
    }

    #[tokio::test]
    async fn whoever_says_anything_else_is_turned_away() {
        let unmasked = [&[0x81, 6], PROBE, &[0; 4]].concat();
        let twice = [masked(PROBE), masked(PROBE)].concat();
        let close = vec![0x88, 0x80, 0, 0, 0, 0];
        let closed = [masked(PROBE), close.clone()].concat();
        for said in [masked(b"2prove"), masked(UPGRADE), unmasked, twice, closed, Vec::new()] {
            let (mut ours, mut theirs) = duplex(64);
            theirs.write_all(&said).await.unwrap();
            theirs.shutdown().await.unwrap();
            assert_eq!(probe(&mut ours, Bytes::new(), &Polling::default()).await, None);
        }
        // Nor is anything waited for that a shorter frame does not have.
        for said in [close, masked(b"abc"), masked(UPGRADE)] {
            let (mut ours, mut theirs) = duplex(64);
            theirs.write_all(&said).await.unwrap();
            assert_eq!(probe(&mut ours, Bytes::new(), &Polling::default()).await, None);
        }
    }

    /// Every frame that differs in one byte.
    #[tokio::test]
    async fn no_other_frame_is_a_probe() {
        let sound = masked(PROBE);
        for at in 0..sound.len() {
            for byte in (0..=255).filter(|byte| *byte != sound[at]) {
                let mut said = sound.clone();
                said[at] = byte;
                let (mut ours, mut theirs) = duplex(64);
                theirs.write_all(&said[at..]).await.unwrap();
                theirs.shutdown().await.unwrap();
                let head = Bytes::copy_from_slice(&said[..at]);
                assert_eq!(probe(&mut ours, head, &Polling::default()).await, None, "{said:?}");
            }
        }
    }

    #[test]
    fn what_polling_had_taken_goes_on_as_frames() {
        let long = "4".repeat(126);
        let body = format!("4a\u{1e}6\u{1e}bAQID\u{1e}{long}");
        let expected =
            [b"\x81\x024a\x82\x03\x01\x02\x03\x81\x7e\x00\x7e", long.as_bytes()].concat();
        let mut frames = BytesMut::new();
        put_frames(&mut frames, b"");
        put_frames(&mut frames, body.as_bytes());
        assert_eq!(frames, expected);
    }
}
