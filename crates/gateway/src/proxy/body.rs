//! A body on its way through: handed on as it comes, never collected, and given up when nothing
//! comes for too long.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{BoxError, body::Bytes};
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// How far the body of a request has come: while it moves, or while it is the client we wait for,
/// the backend is not late.
#[derive(Debug, Default)]
pub struct Progress {
    frames: AtomicU64,
    is_awaited: AtomicBool,
    has_stalled: AtomicBool,
}

impl Progress {
    pub fn has_stalled(&self) -> bool {
        self.has_stalled.load(Ordering::Relaxed)
    }

    /// Resolves when the backend has taken nothing of what there was for so long.
    pub async fn silent_for(&self, patience: Duration) {
        loop {
            let before = self.frames.load(Ordering::Relaxed);
            sleep(patience).await;
            let has_moved = self.frames.load(Ordering::Relaxed) != before;
            if !has_moved && !self.is_awaited.load(Ordering::Relaxed) {
                return;
            }
        }
    }
}

pub struct Passing<B> {
    inner: B,
    idle: Duration,
    /// Since when nothing has come; only set while somebody waits.
    silence: Option<Pin<Box<Sleep>>>,
    progress: Option<Arc<Progress>>,
    stop: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl<B> Passing<B> {
    pub fn new(inner: B, idle: Duration) -> Self {
        Self { inner, idle, silence: None, progress: None, stop: None }
    }

    pub fn watched(self, progress: Arc<Progress>) -> Self {
        Self { progress: Some(progress), ..self }
    }

    /// Ends, as if all had come, when that is cancelled.
    pub fn until(self, stop: Option<CancellationToken>) -> Self {
        Self { stop: stop.map(|stop| Box::pin(stop.cancelled_owned())), ..self }
    }

    fn moved(&mut self) {
        self.silence = None;
        if let Some(progress) = &self.progress {
            progress.frames.fetch_add(1, Ordering::Relaxed);
            progress.is_awaited.store(false, Ordering::Relaxed);
        }
    }
}

impl<B> Body for Passing<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) {
            self.moved();
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        if self.stop.as_mut().is_some_and(|stop| stop.as_mut().poll(cx).is_ready()) {
            self.stop = None;
            return Poll::Ready(None);
        }
        if let Some(progress) = &self.progress {
            progress.is_awaited.store(true, Ordering::Relaxed);
        }
        let idle = self.idle;
        let silence = self.silence.get_or_insert_with(|| Box::pin(sleep(idle)));
        if silence.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        silence.as_mut().reset(Instant::now() + idle);
        if let Some(progress) = &self.progress {
            progress.has_stalled.store(true, Ordering::Relaxed);
        }
        Poll::Ready(Some(Err("nothing has come for too long".into())))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    /// Known from `Content-Length`, or not at all: the answer to a HEAD is no body of length zero.
    fn size_hint(&self) -> SizeHint {
        if self.progress.is_some() { self.inner.size_hint() } else { SizeHint::default() }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt as _, stream};
    use http_body_util::{BodyExt as _, StreamBody};

    use super::*;

    /// How long they are patient for. Waits are well below or well above it.
    const IDLE: Duration = Duration::from_secs(1);

    /// One frame after each of these waits.
    fn frames(waits: Vec<Duration>) -> impl Body<Data = Bytes, Error = BoxError> + Unpin {
        let frames = stream::iter(waits).then(async |wait| {
            sleep(wait).await;
            Ok(Frame::data(Bytes::from_static(b"x")))
        });
        StreamBody::new(Box::pin(frames))
    }

    #[tokio::test]
    async fn a_body_may_take_for_ever_as_long_as_something_comes() {
        let patient = Passing::new(frames(vec![IDLE * 2 / 5; 5]), IDLE);
        assert_eq!(patient.collect().await.unwrap().to_bytes().len(), 5);
        let silent = Passing::new(frames(vec![IDLE / 5, IDLE * 5]), IDLE);
        silent.collect().await.unwrap_err();
    }

    #[tokio::test]
    async fn what_nobody_asks_for_is_not_late() {
        let mut body = Passing::new(frames(vec![IDLE / 10; 2]), IDLE);
        for _ in 0..2 {
            body.frame().await.unwrap().unwrap();
            sleep(IDLE * 3 / 2).await;
        }
    }

    #[tokio::test]
    async fn an_endless_body_ends_with_the_server() {
        let stop = CancellationToken::new();
        let mut body = Passing::new(frames(vec![Duration::ZERO, IDLE * 99]), IDLE * 99)
            .until(Some(stop.clone()));
        body.frame().await.unwrap().unwrap();
        let ended = tokio::spawn(async move { body.frame().await.is_none() });
        tokio::task::yield_now().await;
        stop.cancel();
        assert!(ended.await.unwrap());
    }

    #[tokio::test]
    async fn the_backend_is_not_late_while_the_request_is_still_coming() {
        let progress = Arc::new(Progress::default());
        let coming = vec![IDLE * 3 / 2, IDLE / 5, IDLE * 3 / 2];
        let body = Passing::new(frames(coming), IDLE * 9).watched(progress.clone());
        let since = Instant::now();
        let backend = async {
            body.collect().await.unwrap();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = backend => {}
            () = progress.silent_for(IDLE) => {}
        }
        assert!(since.elapsed() >= IDLE * 4, "{:?}", since.elapsed());
    }
}
