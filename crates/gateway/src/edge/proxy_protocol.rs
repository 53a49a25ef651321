//! The PROXY protocol: what a balancer says of a connection before its first byte.
//!
//! Exactly the header is read, so that what follows it, be it TLS or HTTP, begins where it should.

use std::{io, net::IpAddr};

use ppp::{v1, v2};
use tokio::{io::AsyncReadExt as _, net::TcpStream};

use super::address::Peer;

/// Both versions have as many bytes at least, which is enough to tell them apart.
const PREFIX: usize = 15;
/// What every header of version 2 has before its addresses.
const MINIMUM: usize = 16;
/// The longest line of version 1.
const LINE: usize = 107;
/// Extensions of version 2 take some hundred bytes; the certificates of clients are not among them.
const EXTENSIONS: usize = 4_096;
/// What the balancer says of its client's TLS, and the bit for "has any".
const SSL: u8 = 0x20;
const CLIENT_SSL: u8 = 0x01;

/// Reads the header. `None` when the proxy speaks for itself, as its health checks do.
pub async fn read(stream: &mut TcpStream) -> io::Result<Option<Peer>> {
    let mut header = vec![0; PREFIX];
    stream.read_exact(&mut header).await?;
    if v2::PROTOCOL_PREFIX.starts_with(&header[..v2::PROTOCOL_PREFIX.len()]) {
        header.push(stream.read_u8().await?);
        let length = usize::from(u16::from_be_bytes([header[14], header[15]]));
        if length > EXTENSIONS {
            return Err(invalid("longer than it may be"));
        }
        header.resize(MINIMUM + length, 0);
        stream.read_exact(&mut header[MINIMUM..]).await?;
        return second(&header);
    }
    if !header.starts_with(b"PROXY ") {
        return Err(invalid("not there"));
    }
    while !header.ends_with(b"\n") {
        // Up to the end of the line, and not a byte beyond it.
        let mut ahead = [0; LINE];
        let seen = stream.peek(&mut ahead).await?;
        let part = memchr::memchr(b'\n', &ahead[..seen]).map_or(seen, |end| end + 1);
        if part == 0 || header.len() + part > LINE {
            return Err(invalid("without an end"));
        }
        let from = header.len();
        header.resize(from + part, 0);
        stream.read_exact(&mut header[from..]).await?;
    }
    first(&header)
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn first(line: &[u8]) -> io::Result<Option<Peer>> {
    let header = v1::Header::try_from(line).map_err(|_| invalid("version 1, malformed"))?;
    let ip: IpAddr = match header.addresses {
        v1::Addresses::Unknown => return Ok(None),
        v1::Addresses::Tcp4(addresses) => addresses.source_address.into(),
        v1::Addresses::Tcp6(addresses) => addresses.source_address.into(),
    };
    Ok(Some(Peer { ip: ip.to_canonical(), is_secure: false }))
}

fn second(bytes: &[u8]) -> io::Result<Option<Peer>> {
    let header = v2::Header::try_from(bytes).map_err(|_| invalid("version 2, malformed"))?;
    if header.command == v2::Command::Local {
        return Ok(None);
    }
    let ip: IpAddr = match header.addresses {
        v2::Addresses::Unspecified | v2::Addresses::Unix(_) => return Ok(None),
        v2::Addresses::IPv4(addresses) => addresses.source_address.into(),
        v2::Addresses::IPv6(addresses) => addresses.source_address.into(),
    };
    let is_secure = header.tlvs().flatten().any(|extension| {
        extension.kind == SSL && extension.value.first().is_some_and(|bits| bits & CLIENT_SSL != 0)
    });
    Ok(Some(Peer { ip: ip.to_canonical(), is_secure }))
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt as _, net::TcpListener};

    use super::*;

    /// What is made of these bytes, which arrive in two pieces, and what is left of them.
    async fn read_of(bytes: &[u8], cut: usize) -> (io::Result<Option<Peer>>, Vec<u8>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let mut balancer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        balancer.set_nodelay(true).unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        let (one, other) = bytes.split_at(cut.min(bytes.len()));
        balancer.write_all(one).await.unwrap();
        let reading = tokio::spawn(async move { (read(&mut stream).await, stream) });
        tokio::task::yield_now().await;
        balancer.write_all(other).await.unwrap();
        balancer.shutdown().await.unwrap();
        let (peer, mut stream) = reading.await.unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        (peer, rest)
    }

    fn v2_header(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        [v2::PROTOCOL_PREFIX, &[0x20 | command, family], &length, payload].concat()
    }

    const V4: [u8; 12] = [192, 0, 2, 1, 10, 0, 0, 1, 0x12, 0x34, 0, 80];

    #[tokio::test]
    async fn both_versions_name_the_client_and_leave_what_follows() {
        let v6 =
            [&[0x20, 1, 0xd, 0xb8], [0; 11].as_slice(), &[7], &[0; 16], &[1, 2, 0, 80]].concat();
        let tls = [V4.as_slice(), &[SSL, 0, 5, CLIENT_SSL, 0, 0, 0, 0]].concat();
        for (header, expected) in [
            (b"PROXY TCP4 192.0.2.1 10.0.0.1 56324 443\r\n".to_vec(), Some(("192.0.2.1", false))),
            (b"PROXY TCP6 2001:db8::7 ::1 56324 443\r\n".to_vec(), Some(("2001:db8::7", false))),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n".to_vec(), None),
            (v2_header(1, 0x11, &V4), Some(("192.0.2.1", false))),
            (v2_header(1, 0x11, &tls), Some(("192.0.2.1", true))),
            (v2_header(1, 0x21, &v6), Some(("2001:db8::7", false))),
            (v2_header(0, 0x00, &[]), None),
            (v2_header(1, 0x00, &[1, 2, 3]), None),
        ] {
            let request = [header.as_slice(), b"GET / HTTP/1.1\r\n\r\n"].concat();
            for cut in [0, 1, 14, 16, 20, header.len(), request.len()] {
                let (peer, rest) = read_of(&request, cut).await;
                let peer = peer.unwrap().map(|peer| (peer.ip.to_string(), peer.is_secure));
                let expected = expected.map(|(ip, is_secure)| (ip.to_owned(), is_secure));
                assert_eq!(peer, expected, "{} cut at {cut}", header.escape_ascii());
                assert_eq!(rest, b"GET / HTTP/1.1\r\n\r\n");
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_an_error() {
        let long = format!("PROXY TCP4 {}\r\n", "1".repeat(LINE));
        let too_much = v2_header(1, 0x11, &[0; EXTENSIONS + 1]);
        for bytes in [
            b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".as_slice(),
            b"PROXY TCP4 192.0.2.1\r\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 1 2",
            b"PROXY TCP4 192.0.2.999 10.0.0.1 1 2\r\n",
            b"\r\n\r\n\0\r\nQUIT\n\x21",
            &v2_header(1, 0x11, &V4[..11]),
            &v2_header(7, 0x11, &V4),
            long.as_bytes(),
            &too_much,
            b"",
        ] {
            assert!(read_of(bytes, 8).await.0.is_err(), "{}", bytes.escape_ascii());
        }
    }
}
