//! Whole frames written past the engine, straight to the socket.
//!
//! The engine gives every message of every client a place in a channel, a wake-up, and a copy in a
//! write buffer. An event for a room is the same bytes for everybody: it is encoded as one frame,
//! queued here for each member, and written by a few tasks, all that waits for a client in one
//! system call.
//!
//! Only for a `WebSocket` on plain TCP. What the engine itself has to say (pings,
//! CONNECT replies, disconnect packets) goes its own way, and the two never mix inside a frame.
//! Order is kept where the ways part: frames are taken here only once a *mark*, sent through the
//! engine behind a socket's CONNECT reply, has come out at the other end; until then they wait.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// The event that is a mark, and its name. No client sees it: it ends where the engine writes it.
pub const MARK: &str = "[\"carillon:mark\"]";
pub const MARK_NAME: &str = "carillon:mark";
/// Frames written by one system call.
const AT_ONCE: usize = 32;

/// What is written under a `WebSocket`, by the engine and by the outlet.
pub type Tcp = Arc<OwnedWriteHalf>;

/// The stream under a `WebSocket`: the engine reads it alone, and shares the other half.
pub struct SharedTcp {
    read: OwnedReadHalf,
    pub write: Tcp,
}

impl SharedTcp {
    pub fn new(stream: TcpStream) -> Self {
        let (read, write) = stream.into_split();
        Self { read, write: Arc::new(write) }
    }
}

impl AsyncRead for SharedTcp {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.read).poll_read(cx, buffer)
    }
}

impl AsyncWrite for SharedTcp {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.write.as_ref().as_ref().poll_write_ready(cx))?;
            match self.write.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(self.write.as_ref().as_ref()).shutdown(std::net::Shutdown::Write))
    }
}

/// What waits for a client beside the engine.
pub struct Outlet {
    /// Which of the tasks that write flushes it.
    pub writer: usize,
    /// Whether somebody waits until the client takes more.
    is_waited_for: AtomicBool,
    /// Whether somebody has promised to flush.
    is_promised: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Let go of when the connection is over: the client is to see it close.
    tcp: Option<Tcp>,
    way: Way,
    has_been_used: bool,
    /// The first may be written in part.
    frames: VecDeque<Bytes>,
    has_begun_frame: bool,
    /// Marks that the engine has not written yet: how many frames come before what each holds back.
    marks: VecDeque<usize>,
    engine: Engine,
}

/// How far the engine has come with what it has to write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Engine {
    /// To its end.
    #[default]
    Done,
    /// Nowhere: the client takes nothing.
    Waits,
    /// A part of it is written.
    Inside,
}

/// Which way events go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Way {
    /// Through the engine.
    #[default]
    Engine,
    /// Through the outlet.
    Outlet,
    /// Nowhere: the connection is over.
    Nowhere,
}

impl State {
    /// How many frames may be written now.
    fn ready(&self) -> usize {
        match self.marks.front() {
            // What has begun is written to its end.
            Some(before) => (*before).max(usize::from(self.has_begun_frame)),
            None => self.frames.len(),
        }
    }

    fn advance(&mut self, mut written: usize) {
        while written > 0 {
            let Some(first) = self.frames.front_mut() else { return };
            if written < first.len() {
                first.advance(written);
                self.has_begun_frame = true;
                return;
            }
            written -= first.len();
            self.frames.pop_front();
            self.has_begun_frame = false;
            for before in &mut self.marks {
                *before = before.saturating_sub(1);
            }
        }
    }
}

/// How far a flush came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// Nothing waits any more; so many bytes were written.
    All(usize),
    /// What waits is the engine's, or not to be written before that has come to the end of its frame,
    /// or to a mark; so many bytes were.
    Held(usize),
    /// The client takes no more; so many bytes were written.
    Blocked(usize),
}

impl Outlet {
    pub fn new(tcp: Tcp, writer: usize) -> Self {
        let (is_promised, is_waited_for) = Default::default();
        let state = State { tcp: Some(tcp), ..State::default() };
        Self { writer, is_promised, is_waited_for, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a frame, or has it sent through the engine; true when it was taken.
    pub fn push(&self, frame: &Bytes, by_engine: &mut dyn FnMut()) -> bool {
        let mut state = self.lock();
        match state.way {
            Way::Outlet => state.frames.push_back(frame.clone()),
            // Under the lock: a mark comes before it or after it, and not in between.
            Way::Engine => by_engine(),
            Way::Nowhere => {}
        }
        state.way == Way::Outlet
    }

    /// From here on events go through the engine: a CONNECT reply will, and comes before them.
    pub fn close(&self) {
        let mut state = self.lock();
        if state.way == Way::Outlet {
            state.way = Way::Engine;
        }
    }

    /// A mark is sent by `send` through the engine: events are taken from here on, and wait for it.
    /// Where it cannot be sent nobody would ever come to it, and all goes on as it was.
    pub fn mark(&self, send: impl FnOnce() -> bool) {
        let mut state = self.lock();
        // Under the lock: nobody puts an event in between, on either way, nor comes to the mark.
        if state.way == Way::Nowhere || !send() {
            return;
        }
        let before = state.frames.len();
        state.marks.push_back(before);
        state.way = Way::Outlet;
        state.has_been_used = true;
    }

    /// Whether nothing has gone this way yet.
    pub fn is_unused(&self) -> bool {
        let state = self.lock();
        state.way == Way::Engine && !state.has_been_used
    }

    /// Whether a mark is on its way through the engine.
    pub fn awaits_mark(&self) -> bool {
        !self.lock().marks.is_empty()
    }

    /// The engine has come to the mark.
    pub fn passed(&self) {
        self.lock().marks.pop_front();
    }

    /// True for whoever has to see to it that [`Self::flush`] is called.
    pub fn promise(&self) -> bool {
        !self.is_promised.swap(true, Ordering::AcqRel)
    }

    /// Gives up what waits: the connection is over.
    pub fn end(&self) {
        *self.lock() = State { way: Way::Nowhere, ..State::default() };
    }

    pub fn is_over(&self) -> bool {
        self.lock().way == Way::Nowhere
    }

    /// True for whoever has to wait until the client takes more, and calls [`Self::waited`] then.
    pub fn wait(&self) -> bool {
        !self.is_waited_for.swap(true, Ordering::AcqRel)
    }

    pub fn waited(&self) {
        // What whoever came meanwhile has said of the connection is seen from here on.
        self.is_waited_for.swap(false, Ordering::AcqRel);
    }

    /// Writes what may be written, as far as the client takes it. While the engine is inside a
    /// frame, it is the one who flushes, afterwards.
    pub fn flush(&self) -> io::Result<Flushed> {
        // First, so that a frame pushed from here on is flushed by somebody.
        self.is_promised.store(false, Ordering::Release);
        let mut state = self.lock();
        Self::write(&mut state)
    }

    fn write(state: &mut State) -> io::Result<Flushed> {
        if state.engine == Engine::Inside {
            return Ok(Flushed::Held(0));
        }
        let Some(tcp) = state.tcp.clone() else { return Ok(Flushed::All(0)) };
        let mut total = 0;
        loop {
            let ready = state.ready().min(AT_ONCE);
            if ready == 0 {
                if state.frames.is_empty() {
                    // A client that hears nothing needs no place for it.
                    state.frames = VecDeque::new();
                }
                let is_all = state.frames.is_empty() && state.engine == Engine::Done;
                return Ok(if is_all { Flushed::All(total) } else { Flushed::Held(total) });
            }
            let written = match state.frames.front() {
                // `send` costs less than `writev`.
                Some(only) if ready == 1 => tcp.try_write(only),
                _ => {
                    let mut slices = [IoSlice::new(&[]); AT_ONCE];
                    for (slice, frame) in slices.iter_mut().zip(state.frames.iter().take(ready)) {
                        *slice = IoSlice::new(frame);
                    }
                    tcp.try_write_vectored(&slices[..ready])
                }
            };
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    state.advance(written);
                    total += written;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Flushed::Blocked(total));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The engine writes. What waits here goes first, unless the engine is inside a frame; it does
    /// not get to `write` when that is blocked. What the engine has is written as far as `write`
    /// says: to its end, in part, or not at all.
    pub fn by_engine<T>(
        &self,
        write: impl FnOnce() -> (T, Option<bool>),
    ) -> io::Result<(Flushed, Option<T>)> {
        // All under one lock: whoever flushed in between could leave a frame half written.
        let mut state = self.lock();
        let flushed = Self::write(&mut state)?;
        if matches!(flushed, Flushed::Blocked(_)) {
            return Ok((flushed, None));
        }
        let (result, is_inside) = write();
        state.engine = match (is_inside, state.engine) {
            (Some(true), _) | (None, Engine::Inside) => Engine::Inside,
            (Some(false), _) => Engine::Done,
            (None, _) => Engine::Waits,
        };
        Ok((flushed, Some(result)))
    }

    /// Whether the client may take more; wakes the engine when it does.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let tcp = self.lock().tcp.clone();
        tcp.map_or(Poll::Ready(Ok(())), |tcp| tcp.as_ref().as_ref().poll_write_ready(cx))
    }

    /// Whether frames are left that may be written.
    pub fn waits(&self) -> bool {
        let state = self.lock();
        state.ready() > 0
    }

    /// Waits until the client may take more.
    pub async fn writable(&self) -> io::Result<()> {
        let tcp = self.lock().tcp.clone();
        match tcp {
            Some(tcp) => tcp.writable().await,
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncReadExt as _, net::TcpListener};

    use super::*;

    async fn pair() -> (Outlet, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (theirs, ours) = tokio::join!(TcpStream::connect(address), listener.accept());
        (Outlet::new(SharedTcp::new(ours.unwrap().0).write, 0), theirs.unwrap())
    }

    fn push(outlet: &Outlet, frame: &'static str) -> bool {
        let mut by_engine = false;
        let taken = outlet.push(&Bytes::from(frame), &mut || by_engine = true);
        assert_ne!(taken, by_engine);
        taken
    }

    async fn received(peer: &mut TcpStream, bytes: usize) -> String {
        let mut buffer = vec![0; bytes];
        peer.read_exact(&mut buffer).await.unwrap();
        String::from_utf8(buffer).unwrap()
    }

    #[tokio::test]
    async fn frames_wait_for_the_mark_and_are_written_together_after_it() {
        let (outlet, mut peer) = pair().await;
        outlet.writable().await.unwrap();
        assert!(!push(&outlet, "a"), "through the engine");
        outlet.mark(|| true);
        assert!(push(&outlet, "bc") && push(&outlet, "de"));
        assert_eq!(outlet.flush().unwrap(), Flushed::Held(0));
        outlet.passed();
        assert_eq!(outlet.flush().unwrap(), Flushed::All(4));
        assert_eq!(received(&mut peer, 4).await, "bcde");
    }

    #[tokio::test]
    async fn a_second_mark_holds_back_only_what_came_after_it() {
        let (outlet, mut peer) = pair().await;
        outlet.writable().await.unwrap();
        outlet.mark(|| true);
        push(&outlet, "one");
        outlet.close();
        assert!(!push(&outlet, "-"), "a CONNECT reply is on its way");
        outlet.mark(|| true);
        push(&outlet, "two");
        outlet.passed();
        assert_eq!(outlet.flush().unwrap(), Flushed::Held(3));
        outlet.passed();
        assert_eq!(outlet.flush().unwrap(), Flushed::All(3));
        assert_eq!(received(&mut peer, 6).await, "onetwo");
    }

    #[tokio::test]
    async fn a_mark_that_cannot_be_sent_holds_nothing_back() {
        let (outlet, mut peer) = pair().await;
        outlet.writable().await.unwrap();
        outlet.mark(|| false);
        assert!(outlet.is_unused() && !push(&outlet, "-"));
        outlet.mark(|| true);
        push(&outlet, "one");
        outlet.close();
        outlet.mark(|| false);
        assert!(!push(&outlet, "-"), "as before");
        outlet.passed();
        assert_eq!(outlet.flush().unwrap(), Flushed::All(3));
        assert!(!outlet.awaits_mark());
        assert_eq!(received(&mut peer, 3).await, "one");
    }

    #[test]
    fn a_mark_is_an_event_of_that_name() {
        assert_eq!(serde_json::to_string(&[MARK_NAME]).unwrap(), MARK);
    }

    #[tokio::test]
    async fn nothing_is_written_inside_a_frame_of_the_engines() {
        let (outlet, mut peer) = pair().await;
        outlet.writable().await.unwrap();
        outlet.mark(|| true);
        outlet.passed();
        let by_engine = |is_inside| outlet.by_engine(|| ((), Some(is_inside))).unwrap();
        assert_eq!(by_engine(true), (Flushed::All(0), Some(())));
        push(&outlet, "ours");
        assert_eq!(outlet.flush().unwrap(), Flushed::Held(0));
        assert!(outlet.waits());
        assert_eq!(outlet.by_engine(|| ((), None)).unwrap().0, Flushed::Held(0));
        assert_eq!(by_engine(false), (Flushed::Held(0), Some(())));
        assert_eq!(outlet.flush().unwrap(), Flushed::All(4));
        outlet.by_engine(|| ((), None)).unwrap();
        assert_eq!(outlet.flush().unwrap(), Flushed::Held(0), "the engine waits for the client");
        assert_eq!(by_engine(false), (Flushed::Held(0), Some(())));
        assert_eq!(outlet.flush().unwrap(), Flushed::All(0));
        assert_eq!(received(&mut peer, 4).await, "ours");
    }

    #[tokio::test]
    async fn the_engine_writes_nothing_inside_a_frame_of_ours() {
        let (outlet, mut peer) = pair().await;
        outlet.writable().await.unwrap();
        outlet.mark(|| true);
        outlet.passed();
        let frame = Bytes::from(vec![7; 32 << 20]);
        outlet.push(&frame, &mut || {});
        let Flushed::Blocked(mut written) = outlet.flush().unwrap() else { panic!("it has room") };
        assert!(written > 0);
        let mut buffer = vec![0; 1 << 20];
        let mut read = 0;
        loop {
            // The client takes more all the time: it is not the kernel that keeps the engine out.
            while read < written {
                read += peer.read(&mut buffer).await.unwrap();
            }
            outlet.writable().await.unwrap();
            let has_written = match outlet.by_engine(|| ((), Some(false))).unwrap() {
                (Flushed::Blocked(more), None) => {
                    written += more;
                    false
                }
                (Flushed::All(more), Some(())) => {
                    written += more;
                    true
                }
                other => panic!("{other:?} after {written} bytes"),
            };
            assert_eq!(has_written, written == frame.len());
            if has_written {
                return;
            }
        }
    }

    /// However the kernel cuts it, the bytes come whole and in order.
    #[tokio::test]
    async fn a_slow_client_gets_every_frame_in_order() {
        let (outlet, mut peer) = pair().await;
        outlet.mark(|| true);
        outlet.passed();
        let frames: Vec<Bytes> =
            (0..30_000_u32).map(|n| Bytes::from(format!("{n:08}").repeat(100))).collect();
        let expected: Vec<u8> = frames.concat();
        for frame in &frames {
            assert!(outlet.push(frame, &mut || {}));
        }
        let write = async {
            let mut has_blocked = false;
            loop {
                match outlet.flush().unwrap() {
                    Flushed::All(_) | Flushed::Held(_) => return has_blocked,
                    Flushed::Blocked(_) => has_blocked = true,
                }
                outlet.writable().await.unwrap();
            }
        };
        let read = async {
            let mut buffer = vec![0; expected.len()];
            peer.read_exact(&mut buffer).await.unwrap();
            buffer
        };
        let (has_blocked, read) = tokio::join!(write, read);
        assert!(has_blocked && read == expected);
    }
}
