//! What changes in the headers of a request or an answer on its way through.

use std::net::IpAddr;

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::edge::address::{ClientAddress, X_FORWARDED_FOR, X_FORWARDED_PROTO};

const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// What a client could say of itself in a proxy's name.
const X_FORWARDED: &str = "x-forwarded-";
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// Headers of one connection, not of the message.
const OF_THE_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Removes them, and those that `Connection` names. It cannot name what the message is about.
pub fn end_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .filter(|name| *name != header::HOST && *name != header::CONTENT_LENGTH)
        .collect();
    for name in named.iter().chain(&OF_THE_HOP) {
        headers.remove(name);
    }
}

/// This hop is to change its protocol.
pub fn upgrade(headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
}

/// Whether a header that is a list has this in it.
fn names(headers: &HeaderMap, name: &HeaderName, what: &str) -> bool {
    let lines = headers.get_all(name).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|part| part.trim().eq_ignore_ascii_case(what))
}

/// Whether a request asks to go on as a WebSocket.
pub fn is_websocket(headers: &HeaderMap) -> bool {
    names(headers, &header::CONNECTION, "upgrade") && names(headers, &header::UPGRADE, "websocket")
}

pub fn is_event_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    kind.is_some_and(|kind| kind.trim_start().starts_with("text/event-stream"))
}

/// Tells the backend who asks. Our own word is added to that of trusted proxies; anybody else's is
/// replaced. Many backends read `X_Forwarded_For` as `X-Forwarded-For`: no proxy writes that.
pub fn tell_client(headers: &mut HeaderMap, client: &ClientAddress) {
    let is_told = |name: &HeaderName| {
        let meant = name.as_str().replace('_', "-");
        let names_client = meant.starts_with(X_FORWARDED)
            || meant == header::FORWARDED.as_str()
            || meant == X_REAL_IP.as_str();
        names_client && !(client.is_forwarded && meant == name.as_str())
    };
    let told: Vec<HeaderName> = headers.keys().filter(|name| is_told(name)).cloned().collect();
    for name in told {
        headers.remove(name);
    }
    let proto = if client.is_secure { "https" } else { "http" };
    let host = headers.get(header::HOST).cloned();
    let standard = |ip: IpAddr| {
        let host = host.as_ref().and_then(quotable).map(|host| format!(";host=\"{host}\""));
        format!("for={};proto={proto}{}", node(ip), host.unwrap_or_default())
    };
    // What no proxy has said so far begins with the client; what one has, goes on with that proxy.
    let (for_, forwarded) = (
        if headers.contains_key(X_FORWARDED_FOR) { client.peer } else { client.ip },
        if headers.contains_key(header::FORWARDED) { client.peer } else { client.ip },
    );
    add(headers, X_FORWARDED_FOR, &for_.to_string());
    add(headers, header::FORWARDED, &standard(forwarded));
    if let Ok(proto) = HeaderValue::from_str(proto) {
        headers.entry(X_FORWARDED_PROTO).or_insert(proto);
    }
    if let Some(host) = host {
        headers.entry(X_FORWARDED_HOST).or_insert(host);
    }
}

/// One more element of a list, in one line: not everybody reads a second one.
fn add(headers: &mut HeaderMap, name: HeaderName, element: &str) {
    let lines: Vec<&[u8]> = headers.get_all(&name).iter().map(HeaderValue::as_bytes).collect();
    let list = [lines.as_slice(), &[element.as_bytes()]].concat().join(b", ".as_slice());
    if let Ok(list) = HeaderValue::from_bytes(&list) {
        headers.insert(name, list);
    }
}

/// An address as `Forwarded` has it.
fn node(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("\"[{ip}]\""),
    }
}

/// A host that says nothing else between quotes.
fn quotable(host: &HeaderValue) -> Option<&str> {
    host.to_str().ok().filter(|host| !host.contains(['"', '\\']))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, line)| (HeaderName::from_static(name), HeaderValue::from_static(line)))
            .fold(HeaderMap::new(), |mut headers, (name, line)| {
                headers.append(name, line);
                headers
            })
    }

    #[test]
    fn what_is_of_the_hop_ends_here() {
        let mut all = headers(&[
            ("connection", "keep-alive, X-Mine"),
            ("connection", "close, host, content-length"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic eA=="),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("x-mine", "1"),
            ("x-theirs", "2"),
            ("host", "campus.example"),
            ("content-length", "3"),
        ]);
        end_hop(&mut all);
        let expected =
            headers(&[("x-theirs", "2"), ("host", "campus.example"), ("content-length", "3")]);
        assert_eq!(all, expected);
    }

    fn told(
        lines: &[(&'static str, &'static str)],
        client: &ClientAddress,
    ) -> Vec<(String, String)> {
        let mut all = headers(lines);
        tell_client(&mut all, client);
        let mut told: Vec<(String, String)> = all
            .iter()
            .map(|(name, line)| (name.to_string(), line.to_str().unwrap().to_owned()))
            .filter(|(name, _)| name != "host")
            .collect();
        told.sort();
        told
    }

    fn pairs(all: &[(&str, &str)]) -> Vec<(String, String)> {
        all.iter().map(|(name, line)| ((*name).to_owned(), (*line).to_owned())).collect()
    }

    #[test]
    fn what_a_client_says_of_itself_is_replaced() {
        let ip = "2001:db8::1".parse().unwrap();
        let client = ClientAddress { ip, is_secure: true, peer: ip, is_forwarded: false };
        let lines = [
            ("host", "campus.example:3001"),
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-proto", "ftp"),
            ("x-forwarded-host", "evil.example"),
            ("x-forwarded-prefix", "/evil"),
            ("x-real-ip", "192.0.2.1"),
            ("forwarded", "for=192.0.2.1"),
            ("x_forwarded_for", "192.0.2.1"),
            ("x-forwarded_proto", "ftp"),
            ("x_real-ip", "192.0.2.1"),
        ];
        assert_eq!(
            told(&lines, &client),
            pairs(&[
                ("forwarded", "for=\"[2001:db8::1]\";proto=https;host=\"campus.example:3001\""),
                ("x-forwarded-for", "2001:db8::1"),
                ("x-forwarded-host", "campus.example:3001"),
                ("x-forwarded-proto", "https"),
            ])
        );
    }

    #[test]
    fn what_a_trusted_proxy_says_is_continued() {
        let [ip, peer] = ["192.0.2.1", "10.0.0.1"].map(|ip| ip.parse().unwrap());
        let client = ClientAddress { ip, is_secure: true, peer, is_forwarded: true };
        let lines = [
            ("host", "inner"),
            ("x-forwarded-for", "198.51.100.7"),
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "campus.example"),
            ("x-real-ip", "192.0.2.1"),
            ("x_forwarded_for", "203.0.113.1"),
        ];
        assert_eq!(
            told(&lines, &client),
            pairs(&[
                ("forwarded", "for=192.0.2.1;proto=https;host=\"inner\""),
                ("x-forwarded-for", "198.51.100.7, 192.0.2.1, 10.0.0.1"),
                ("x-forwarded-host", "campus.example"),
                ("x-forwarded-proto", "https"),
                ("x-real-ip", "192.0.2.1"),
            ])
        );
    }
}
