//! Who is asking, and whether over https: the peer of the connection, unless that is a proxy we
//! trust. Then it is whom the proxy names.
//!
//! Headers are read from the right, where the nearest proxy wrote: each proxy that is trusted is
//! believed about the one before it, and the first that is not trusted is the client. What cannot
//! be read ends the walk at the last address that could. `Forwarded` and `X-Forwarded-For` must
//! agree where both are there: most proxies write one of them and pass the other on as a client
//! sent it.

use std::net::{IpAddr, SocketAddr};

use axum::http::{Extensions, HeaderMap, HeaderName, header};

use crate::config::Networks;

pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// The other end of a connection: the socket's, or whom a proxy named before the first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    pub ip: IpAddr,
    pub is_secure: bool,
}

/// Where a request comes from, as far as can be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddress {
    pub ip: IpAddr,
    /// Whether the client speaks https.
    pub is_secure: bool,
    /// Who sent the request to us.
    pub peer: IpAddr,
    /// Whether that is a trusted proxy, whose headers say who asked it.
    pub is_forwarded: bool,
}

/// Who sent a request.
pub fn of(extensions: &Extensions) -> ClientAddress {
    *extensions.get::<ClientAddress>().expect("the accept loop says who asks")
}

/// The address of who sent a request.
pub fn client(extensions: &Extensions) -> IpAddr {
    of(extensions).ip
}

impl ClientAddress {
    pub fn of(peer: Peer, headers: &HeaderMap, trusted: &Networks) -> Self {
        let Peer { ip: peer, is_secure } = peer;
        if !trusted.contain(peer) {
            return Self { ip: peer, is_secure, peer, is_forwarded: false };
        }
        let for_ = texts(headers, &X_FORWARDED_FOR);
        let forwarded = texts(headers, &header::FORWARDED);
        let mut for_hops = for_.rsplit(',').filter(|_| !for_.is_empty()).map(address);
        let mut hops =
            elements(&forwarded).map(|element| parameter(element, "for").and_then(address));
        let (mut ip, mut walked) = (peer, 0);
        while trusted.contain(ip) {
            let next = match (for_.is_empty(), forwarded.is_empty()) {
                (false, true) => for_hops.next().flatten(),
                (true, false) => hops.next().flatten(),
                (false, false) => match (for_hops.next().flatten(), hops.next().flatten()) {
                    (one, other) if one == other => one,
                    _ => None,
                },
                (true, true) => None,
            };
            let Some(next) = next else { break };
            ip = next;
            walked += 1;
        }
        let is_secure = is_https(headers, &forwarded, walked).unwrap_or(is_secure);
        Self { ip, is_secure, peer, is_forwarded: true }
    }
}

/// What the proxies say of the connection of the client; the headers must agree again.
fn is_https(headers: &HeaderMap, forwarded: &str, walked: usize) -> Option<bool> {
    let hop = walked.saturating_sub(1);
    let protos = texts(headers, &X_FORWARDED_PROTO);
    // Many proxies say it once, whatever the number of hops.
    let last = protos.split(',').count() - 1;
    let by_proto = protos.rsplit(',').nth(hop.min(last)).map(str::trim).filter(|p| !p.is_empty());
    let by_forwarded = elements(forwarded).nth(hop).and_then(|element| parameter(element, "proto"));
    let is_https = |proto: &str| proto.eq_ignore_ascii_case("https");
    match (by_proto.map(is_https), by_forwarded.map(is_https)) {
        (Some(one), Some(other)) => Some(one && other),
        (one, other) => one.or(other),
    }
}

/// All lines of a header as one, as HTTP has it; a line that is no text reads as a hop that cannot
/// be read.
fn texts(headers: &HeaderMap, name: &HeaderName) -> String {
    let lines: Vec<&str> =
        headers.get_all(name).iter().map(|line| line.to_str().unwrap_or("?")).collect();
    lines.join(",")
}

/// An address, with or without a port: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`,
/// `[2001:db8::1]:80`.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse::<IpAddr>()
        .or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()))
        .ok()
        .map(|address| address.to_canonical())
}

/// The elements of `Forwarded`, the last first. A comma within quotes is no separator; a quote that
/// is not closed makes one element of the rest, which cannot be read.
fn elements(text: &str) -> impl Iterator<Item = &str> {
    let mut is_quoted = false;
    let parts: Vec<&str> = text
        .split(|character| {
            is_quoted ^= character == '"';
            character == ',' && !is_quoted
        })
        .collect();
    parts.into_iter().rev()
}

/// A parameter of such an element: `for="[2001:db8::1]:80";proto=https`.
fn parameter<'a>(element: &'a str, name: &str) -> Option<&'a str> {
    let mut values = element.split(';').filter_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        key.trim().eq_ignore_ascii_case(name).then_some(value.trim())
    });
    let value = values.next().filter(|value| value.matches('"').count() != 1)?;
    // Given twice, it says nothing.
    values.next().is_none().then_some(value.trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const PROXY: [u8; 4] = [10, 0, 0, 1];

    fn judged(peer: [u8; 4], lines: &[(&'static str, &str)]) -> ClientAddress {
        let mut headers = HeaderMap::new();
        for (name, line) in lines {
            headers.append(*name, HeaderValue::from_str(line).unwrap());
        }
        let trusted = "10.0.0.0/8, 2001:db8:aaaa::/48".parse().unwrap();
        ClientAddress::of(Peer { ip: peer.into(), is_secure: false }, &headers, &trusted)
    }

    fn client(peer: [u8; 4], lines: &[(&'static str, &str)]) -> String {
        judged(peer, lines).ip.to_string()
    }

    #[test]
    fn only_a_trusted_proxy_is_believed() {
        for header in ["x-forwarded-for", "forwarded"] {
            let line = if header == "forwarded" { "for=192.0.2.1" } else { "192.0.2.1" };
            assert_eq!(client([203, 0, 113, 9], &[(header, line)]), "203.0.113.9");
            assert_eq!(client(PROXY, &[(header, line)]), "192.0.2.1");
        }
        assert_eq!(client(PROXY, &[]), "10.0.0.1");
    }

    #[test]
    fn the_first_that_is_not_trusted_from_the_right_is_the_client() {
        for (line, expected) in [
            ("192.0.2.1", "192.0.2.1"),
            ("198.51.100.7, 192.0.2.1", "192.0.2.1"),
            ("198.51.100.7, 192.0.2.1, 10.9.9.9,10.0.0.2", "192.0.2.1"),
            ("10.1.1.1, 10.2.2.2", "10.1.1.1"),
            ("192.0.2.1:4711", "192.0.2.1"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]:4711, 2001:db8:aaaa::5", "2001:db8::1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            // What cannot be read ends the walk.
            ("192.0.2.1, nonsense", "10.0.0.1"),
            ("192.0.2.1, nonsense, 10.0.0.2", "10.0.0.2"),
            ("192.0.2.1, , 10.0.0.2", "10.0.0.2"),
            ("192.0.2.1,", "10.0.0.1"),
            ("", "10.0.0.1"),
        ] {
            assert_eq!(client(PROXY, &[("x-forwarded-for", line)]), expected, "{line}");
        }
        let lines = [("x-forwarded-for", "198.51.100.7"), ("x-forwarded-for", "192.0.2.1")];
        assert_eq!(client(PROXY, &lines), "192.0.2.1");
    }

    #[test]
    fn forwarded_is_read_as_its_standard_has_it() {
        for (line, expected) in [
            ("for=192.0.2.60;proto=http;by=203.0.113.43", "192.0.2.60"),
            ("For=\"[2001:db8:cafe::17]:4711\"", "2001:db8:cafe::17"),
            ("for=192.0.2.43, for=198.51.100.17", "198.51.100.17"),
            ("for=192.0.2.43, for=10.0.0.2;by=\"a, b\"", "192.0.2.43"),
            ("for=192.0.2.43, for=unknown", "10.0.0.1"),
            ("for=192.0.2.43, for=_hidden", "10.0.0.1"),
            ("for=192.0.2.43, by=10.0.0.1", "10.0.0.1"),
            ("for=192.0.2.43;for=192.0.2.44", "10.0.0.1"),
            ("for=\"192.0.2.43", "10.0.0.1"),
        ] {
            assert_eq!(client(PROXY, &[("forwarded", line)]), expected, "{line}");
        }
    }

    #[test]
    fn a_header_that_a_proxy_passes_on_makes_nobody_somebody_else() {
        let lines = [("x-forwarded-for", "192.0.2.1"), ("forwarded", "for=198.51.100.7")];
        assert_eq!(client(PROXY, &lines), "10.0.0.1");
        let lines = [("x-forwarded-for", "192.0.2.1"), ("forwarded", "for=192.0.2.1")];
        assert_eq!(client(PROXY, &lines), "192.0.2.1");
    }

    #[test]
    fn a_trusted_proxy_says_whether_the_client_speaks_https() {
        let forwarded = "for=192.0.2.1;proto=https, for=10.0.0.2;proto=http";
        for (peer, lines, expected) in [
            (PROXY, vec![("x-forwarded-proto", "https")], true),
            (PROXY, vec![("x-forwarded-proto", "http")], false),
            ([203, 0, 113, 9], vec![("x-forwarded-proto", "https")], false),
            (PROXY, vec![("forwarded", forwarded)], true),
            (PROXY, vec![("forwarded", "for=192.0.2.1;proto=http")], false),
            (PROXY, vec![("forwarded", forwarded), ("x-forwarded-proto", "http")], false),
            // The client's own word stands left of the proxy's.
            (
                PROXY,
                vec![("x-forwarded-for", "192.0.2.1"), ("x-forwarded-proto", "https, http")],
                false,
            ),
        ] {
            assert_eq!(judged(peer, &lines).is_secure, expected, "{lines:?}");
        }
    }

    proptest! {
        #[test]
        fn no_header_breaks_it(one in "[ -~]{0,60}", other in "[ -~]{0,60}", proto in "[ -~]{0,20}") {
            judged(PROXY, &[("x-forwarded-for", &one), ("forwarded", &other), ("x-forwarded-proto", &proto)]);
        }
    }
}
