//! Engine.IO 4 and Socket.IO 5 over one WebSocket, as far as a load test speaks them. Frames are
//! told apart by their first bytes and never decoded: a generator that parses JSON measures
//! itself.

use std::{
    future::poll_fn,
    net::IpAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

use anyhow::{Context as _, bail, ensure};
use carillon_domain::contract::Command;
use futures_util::{Sink as _, Stream as _};
use tokio::{
    net::{TcpSocket, TcpStream, lookup_host},
    time::sleep_until,
};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{Message, Utf8Bytes, protocol::WebSocketConfig},
};
use url::Url;

/// What a connection holds; the library's 128 KiB each would be 1.2 GB for 5,000 members.
#[derive(Clone, Copy, Debug)]
pub struct Buffers {
    read: usize,
    /// Frames go to the kernel when they fill this, or when nothing is left to be read.
    write: usize,
}

impl Buffers {
    /// Some forty messages a read, and every frame sent at once.
    pub const HEARING: Self = Self { read: 16 * 1024, write: 0 };
    /// Answers to what is read together are sent together.
    pub const ANSWERING: Self = Self { read: 16 * 1024, write: 16 * 1024 };
    /// A heartbeat now and then.
    pub const IDLE: Self = Self { read: 1024, write: 0 };
}

/// A text frame, told apart by its first bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// The engine's handshake.
    Open,
    Ping,
    /// The namespace took us in.
    Connected,
    /// The namespace did not; its reason as JSON.
    Denied(&'a str),
    /// The server has ended the Socket.IO session.
    Disconnected,
    /// `receive-message`, the only event that is counted one by one.
    Delivery(&'a str),
    /// The answer to the command of that number; its arguments as JSON.
    Reply(u64, &'a str),
    /// The event `error`: a refusal of a command that asked for no answer.
    Refusal(&'a str),
    Other,
}

impl<'a> Frame<'a> {
    pub fn parse(text: &'a str) -> Self {
        if text.starts_with("42[\"receive-message\"") {
            return Self::Delivery(text);
        }
        let rest = |prefix| text.strip_prefix(prefix);
        if let Some(rest) = rest("43") {
            let end = rest.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
            let (id, arguments) = rest.split_at(end);
            return id.parse().map_or(Self::Other, |id| Self::Reply(id, arguments));
        }
        match text {
            "2" => Self::Ping,
            _ if text.starts_with("42[\"error\"") => Self::Refusal(text),
            _ if text.starts_with("40") => Self::Connected,
            _ if text.starts_with("41") => Self::Disconnected,
            _ if text.starts_with('0') => Self::Open,
            _ => rest("44").map_or(Self::Other, Self::Denied),
        }
    }
}

/// Whether the arguments of a reply are `[{"ok":true,…}]`.
pub fn is_ok(arguments: &str) -> bool {
    arguments.starts_with("[{\"ok\":true")
}

/// `http://host:port` as the address to connect to and the URL of the WebSocket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    address: String,
    websocket: String,
    /// The address that connections come from, if it matters.
    from: Option<IpAddr>,
}

impl Target {
    pub fn new(url: &Url) -> anyhow::Result<Self> {
        ensure!(
            matches!(url.scheme(), "http" | "ws"),
            "only http and ws URLs: TLS would be measured with the server"
        );
        let host = url.host_str().context("the URL has no host")?;
        let address = format!("{host}:{}", url.port_or_known_default().unwrap_or(80));
        let websocket = format!("ws://{address}/socket.io/?EIO=4&transport=websocket");
        Ok(Self { address, websocket, from: None })
    }

    /// The same server, seen from that address of this machine.
    #[must_use]
    pub fn from(&self, from: Option<IpAddr>) -> Self {
        Self { from, ..self.clone() }
    }

    async fn connect(&self) -> anyhow::Result<TcpStream> {
        let Some(from) = self.from else { return Ok(TcpStream::connect(&self.address).await?) };
        let mut addresses = lookup_host(&self.address).await?;
        let to = addresses.find(|to| to.is_ipv4() == from.is_ipv4()).context("no such address")?;
        let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.bind((from, 0).into())?;
        Ok(socket.connect(to).await?)
    }

    pub fn address(&self) -> &str {
        &self.address
    }
}

/// A connected socket in the namespace `/`.
pub struct Client {
    socket: WebSocketStream<TcpStream>,
    last_id: u64,
    has_unsent: bool,
}

impl Client {
    pub async fn connect(target: &Target, token: &str, buffers: Buffers) -> anyhow::Result<Self> {
        let mut client = Self::open(target, buffers).await?;
        client.enter(&serde_json::json!({ "token": token })).await?;
        Ok(client)
    }

    /// Asks to be let in by what it shows; the reply as it came.
    pub async fn enter(&mut self, shown: &serde_json::Value) -> anyhow::Result<Utf8Bytes> {
        self.send(format!("40{shown}"))?;
        loop {
            let frame = self.next().await?;
            match Frame::parse(&frame) {
                Frame::Connected => return Ok(frame),
                Frame::Denied(reason) => bail!("the server refused to connect: {reason}"),
                _ => {}
            }
        }
    }

    /// As far as the engine's handshake: in no namespace, and nobody in particular.
    pub async fn open(target: &Target, buffers: Buffers) -> anyhow::Result<Self> {
        let stream = target.connect().await.context("cannot connect")?;
        stream.set_nodelay(true)?;
        let config = WebSocketConfig::default()
            .read_buffer_size(buffers.read)
            .write_buffer_size(buffers.write);
        let (socket, _) = client_async_with_config(&target.websocket, stream, Some(config)).await?;
        let mut client = Self { socket, last_id: 0, has_unsent: false };

        let open = client.next().await?;
        ensure!(Frame::parse(&open) == Frame::Open, "not an Engine.IO handshake: {open}");
        Ok(client)
    }

    /// Sends a command that is to be acknowledged; its number comes back with the reply.
    pub fn ask<C: Command>(&mut self, command: &C) -> anyhow::Result<u64> {
        self.last_id += 1;
        let payload = serde_json::to_string(command)?;
        self.send(format!("42{}[\"{}\",{payload}]", self.last_id, C::NAME))?;
        Ok(self.last_id)
    }

    /// Queues a frame; whatever the kernel does not take at once goes out while `next` waits, so
    /// a server that does not read cannot keep us from reading.
    pub fn send(&mut self, text: String) -> anyhow::Result<()> {
        self.has_unsent = true;
        Ok(Pin::new(&mut self.socket).start_send(Message::text(text))?)
    }

    /// Waits until the kernel has taken all; what comes meanwhile is let go.
    pub async fn flush(&mut self) -> anyhow::Result<()> {
        while self.has_unsent {
            let polled = poll_fn(|cx| match self.poll(cx) {
                Poll::Ready(message) => Poll::Ready(Some(message)),
                Poll::Pending if self.has_unsent => Poll::Pending,
                Poll::Pending => Poll::Ready(None),
            });
            match polled.await.transpose()? {
                Some(Message::Text(text)) if Frame::parse(&text) == Frame::Ping => {
                    self.send("3".into())?;
                }
                Some(Message::Close(_)) => bail!("the server closed the connection"),
                _ => {}
            }
        }
        Ok(())
    }

    /// The next text frame that is no ping. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> anyhow::Result<Utf8Bytes> {
        loop {
            match poll_fn(|cx| self.poll(cx)).await? {
                Message::Text(text) if Frame::parse(&text) == Frame::Ping => {
                    self.send("3".into())?;
                }
                Message::Text(text) => return Ok(text),
                Message::Close(frame) => {
                    let reason = frame.map(|frame| frame.to_string()).unwrap_or_default();
                    bail!("the server closed the connection {reason}");
                }
                Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }

    /// Hears what comes until then, and stays alive.
    pub async fn hear_until(&mut self, instant: Instant) -> anyhow::Result<()> {
        if instant <= Instant::now() {
            return Ok(());
        }
        let until = sleep_until(instant.into());
        tokio::pin!(until);
        loop {
            tokio::select! {
                frame = self.next() => {
                    ensure!(Frame::parse(&frame?) != Frame::Disconnected, "disconnected");
                }
                () = &mut until => return Ok(()),
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<anyhow::Result<Message>> {
        // Flushed when all that has come is read: what it made us send goes out together.
        let polled = Pin::new(&mut self.socket).poll_next(cx);
        if self.has_unsent
            && polled.is_pending()
            && let Poll::Ready(sent) = Pin::new(&mut self.socket).poll_flush(cx)
        {
            sent?;
            self.has_unsent = false;
        }
        polled.map(|message| match message {
            Some(message) => Ok(message?),
            None => bail!("the connection ended"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_told_apart_by_their_first_bytes() {
        let message = r#"42["receive-message",{"id":"m1"}]"#;
        for (text, frame) in [
            (r#"0{"sid":"x","upgrades":[]}"#, Frame::Open),
            ("2", Frame::Ping),
            (r#"40{"sid":"y"}"#, Frame::Connected),
            (r#"44{"message":"no"}"#, Frame::Denied(r#"{"message":"no"}"#)),
            ("41", Frame::Disconnected),
            (message, Frame::Delivery(message)),
            (r#"4317[{"ok":true}]"#, Frame::Reply(17, r#"[{"ok":true}]"#)),
            (r#"42["error",{}]"#, Frame::Refusal(r#"42["error",{}]"#)),
            (r#"42["room-joined",{}]"#, Frame::Other),
            ("43[]", Frame::Other),
            ("", Frame::Other),
        ] {
            assert_eq!(Frame::parse(text), frame, "{text}");
        }
    }

    #[test]
    fn only_an_ok_reply_is_ok() {
        assert!(is_ok(r#"[{"ok":true,"id":"m1"}]"#));
        assert!(!is_ok(r#"[{"ok":false,"code":"INVALID"}]"#));
        assert!(!is_ok("[]"));
    }

    #[test]
    fn the_url_of_the_frontend_is_enough() {
        let target = |url: &str| Target::new(&Url::parse(url).unwrap());
        let found = target("http://127.0.0.1:3001").unwrap();
        assert_eq!(found.address, "127.0.0.1:3001");
        assert_eq!(found.websocket, "ws://127.0.0.1:3001/socket.io/?EIO=4&transport=websocket");
        assert_eq!(target("ws://campus.example/api").unwrap().address, "campus.example:80");
        assert!(target("https://campus.example").is_err());
    }
}
