//! What the edge hands connections to.

use axum::http::{Request, StatusCode};
use bytes::Bytes;
use engineioxide::{
    handler::EngineIoHandler,
    service::{EngineIoService, NotFoundService},
};
use http_body_util::{BodyExt as _, Full};
use socketioxide::service::SocketIoService;
use tokio::io::{AsyncRead, AsyncWrite};
use tower::Service as _;

use super::stream::Stream;
use crate::socketio::Adapter;

/// An engine that speaks long polling and WebSocket.
pub trait Engine: Clone + Send + Sync + 'static {
    /// Where it answers.
    const PATH: &'static str;
    /// Whether it speaks Socket.IO.
    const IS_SOCKETIO: bool;

    /// Asks it by HTTP; `None` when its answer breaks off.
    fn ask(
        &self,
        request: Request<Full<Bytes>>,
    ) -> impl Future<Output = Option<(StatusCode, Bytes)>> + Send + 'static;

    /// Leaves a WebSocket to it. The query of the request was checked by the edge.
    fn carry<T>(&self, stream: Stream<T>, request: Request<()>)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static;
}

macro_rules! engine {
    ($path:literal, $is_socketio:literal) => {
        const PATH: &'static str = $path;
        const IS_SOCKETIO: bool = $is_socketio;

        fn ask(
            &self,
            request: Request<Full<Bytes>>,
        ) -> impl Future<Output = Option<(StatusCode, Bytes)>> + Send + 'static {
            let asked = self.clone().call(request);
            async move {
                let Ok(response) = asked.await;
                let (head, body) = response.into_parts();
                Some((head.status, body.collect().await.ok()?.to_bytes()))
            }
        }

        fn carry<T>(&self, stream: Stream<T>, request: Request<()>)
        where
            T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        {
            // It runs the connection in tasks of its own, and is ready at once.
            drop(self.clone().call((stream, request)));
        }
    };
}

impl Engine for SocketIoService<NotFoundService, Adapter> {
    engine!("/socket.io/", true);
}

/// Engine.IO by itself.
impl<H: EngineIoHandler> Engine for EngineIoService<H, NotFoundService> {
    engine!("/engine.io/", false);
}
