//! The way out: the one HTTP client of the gateway, for what it asks of others.
//!
//! Plain http and https alike, certificates checked against the roots of the system (or of
//! `SSL_CERT_FILE`). Connections are kept and used again. Redirects are answers, as any other.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::body::Body;
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use tokio::net::TcpStream;
use tower::{BoxError, timeout::Timeout, util::BoxCloneSyncService};

/// Shorter than the 5 s after which a Node server closes an idle connection: a request that is
/// sent just then is lost, and whether it was carried out nobody knows.
const IDLE: Duration = Duration::from_secs(4);
/// A keepalive probe; a firewall forgets what is silent.
const KEEPALIVE: Duration = Duration::from_secs(30);

type Connector = BoxCloneSyncService<Uri, MaybeHttpsStream<TokioIo<TcpStream>>, BoxError>;

/// Sends requests; cheap to clone, and clones share their connections.
#[derive(Clone, Debug)]
pub struct Client(legacy::Client<Connector, Body>);

impl Client {
    /// `connect` is how long a connection may take, name and TLS handshake included.
    pub fn new(connect: Duration) -> anyhow::Result<Self> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(KEEPALIVE));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(trusting_the_system()?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .build(BoxCloneSyncService::new(Timeout::new(connector, connect)));
        Ok(Self(client))
    }

    /// Sends a request with an absolute URI; resolves when the head of the answer is there. The
    /// body of the answer comes as it is read. `Host` is the URI's unless the request has one.
    pub async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, legacy::Error> {
        self.0.request(request).await
    }
}

/// A system without roots can still ask over plain http; over https it trusts nobody.
fn trusting_the_system() -> anyhow::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        tracing::warn!("the system has no root certificates: nobody can be asked over https");
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .context("TLS")?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use axum::{Router, body::to_bytes, extract::Request as Asked, routing::any};
    use tokio::{io::AsyncReadExt as _, net::TcpListener};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    async fn listening() -> (TcpListener, String) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address.to_string())
    }

    #[tokio::test]
    async fn a_request_arrives_as_it_was_sent_and_its_answer_comes_back() {
        let (listener, address) = listening().await;
        let echo = any(|asked: Asked| async move {
            let host = asked.headers()["host"].to_str().unwrap().to_owned();
            let path = asked.uri().to_string();
            let body = to_bytes(asked.into_body(), 100).await.unwrap();
            format!("{host} {path} {}", String::from_utf8_lossy(&body))
        });
        let router = Router::new().fallback(echo);
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        let client = Client::new(PATIENCE).unwrap();
        for (host, expected) in
            [(None, address.as_str()), (Some("school.example"), "school.example")]
        {
            let mut request = Request::post(format!("http://{address}//a%2Fb?c=%20&d"));
            if let Some(host) = host {
                request = request.header("host", host);
            }
            let answer = client.send(request.body("hello".into()).unwrap()).await.unwrap();
            let body = to_bytes(Body::new(answer.into_body()), 100).await.unwrap();
            assert_eq!(body, format!("{expected} //a%2Fb?c=%20&d hello"));
        }
        server.abort();
    }

    #[tokio::test]
    async fn a_handshake_that_does_not_end_is_given_up() {
        let (listener, address) = listening().await;
        let silent = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut hello = Vec::new();
            stream.read_to_end(&mut hello).await.unwrap();
        });
        let client = Client::new(Duration::from_millis(200)).unwrap();
        let request = Request::get(format!("https://{address}/")).body(Body::empty()).unwrap();
        let since = Instant::now();
        let error = client.send(request).await.unwrap_err();
        assert!(error.is_connect() && since.elapsed() < PATIENCE, "{error:?}");
        silent.await.unwrap();
    }
}
