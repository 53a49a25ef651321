//! The server API, as far as a load test needs it: one request, one connection.

use anyhow::{Context as _, ensure};
use clap::Args;
use serde::Serialize;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::client::Target;

/// Who asks.
#[derive(Clone, Debug, Args)]
pub struct Api {
    /// A key of the tenant that the tokens are of, from `carillon apikey create`.
    #[arg(long, env = "CARILLON_API_KEY", hide_env_values = true)]
    api_key: String,
}

impl Api {
    /// Fails on any status but 2xx.
    pub async fn request(
        &self,
        target: &Target,
        method: &str,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<()> {
        let body = serde_json::to_vec(body)?;
        let (address, key, length) = (target.address(), &self.api_key, body.len());
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {key}\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        );
        let mut stream = TcpStream::connect(address).await.context("cannot connect")?;
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(&body).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        let answer = String::from_utf8_lossy(&answer);
        let status = answer.split(' ').nth(1).unwrap_or_default();
        ensure!(status.starts_with('2'), "{method} {path}: {answer}");
        Ok(())
    }
}
