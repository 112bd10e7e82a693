//! What the agent does to heads of HTTP/2: hop-by-hop headers go, Istio's and Envoy's come.
//!
//! In: heads as received. Out: heads as sent on. No I/O.

use std::borrow::Cow;

use ::http::header::{CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE};
use ::http::request::Parts;
use ::http::uri::{Authority, PathAndQuery, Scheme};
use ::http::{Uri, Version};

use mesh_core::resource::listener::ClientCertHeader;
use mesh_http::is_protected;

use super::Conn;
use crate::proxy::chosen::Side;

pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Host and port as the client named them. A client too old to name any meant the address that it connected to.
pub(super) fn authority<'a>(conn: &Conn, head: &'a Parts) -> Cow<'a, str> {
    if let Some(authority) = head.uri.authority() {
        return Cow::Borrowed(authority.as_str());
    }
    match head.headers.get(HOST).and_then(|host| host.to_str().ok()).filter(|host| !host.is_empty()) {
        Some(host) => Cow::Borrowed(host),
        None => Cow::Owned(conn.flow.destination.to_string()),
    }
}

/// Takes out what is meant for the next hop only (RFC 9110, 7.6.1). Message framing is the codec's matter.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = tokens(headers, &CONNECTION)
            .filter(|token| !is_protected(token.as_bytes()))
            .filter_map(|token| token.parse().ok())
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    let trailers = tokens(headers, &TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    for name in [KEEP_ALIVE, PROXY_CONNECTION, TRANSFER_ENCODING, UPGRADE, HTTP2_SETTINGS, TE] {
        headers.remove(name);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

/// Headers that every proxied request carries.
pub(super) fn add_standard_headers(conn: &Conn, headers: &mut HeaderMap) {
    if !headers.contains_key(&X_REQUEST_ID)
        && let Ok(id) = HeaderValue::from_bytes(&request_id(rand::random()))
    {
        headers.insert(X_REQUEST_ID, id);
    }
    if !headers.contains_key(&X_FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    if conn.flow.side == Side::Inbound {
        forward_client_cert(conn, headers);
    }
}

/// Tells the application who its client has proved to be, as the listener says.
fn forward_client_cert(conn: &Conn, headers: &mut HeaderMap) {
    let said = headers.remove(&X_FORWARDED_CLIENT_CERT);
    let value = client_cert(conn, said.as_ref().map(HeaderValue::as_bytes));
    if let Some(value) = value.and_then(|value| HeaderValue::from_bytes(&value).ok()) {
        headers.insert(X_FORWARDED_CLIENT_CERT, value);
    }
}

/// The value of `x-forwarded-client-cert`, of what the client has said and what it has proved.
pub(super) fn client_cert(conn: &Conn, said: Option<&[u8]>) -> Option<Vec<u8>> {
    let own = || conn.flow.identity.as_ref().map(|identity| format!("By={};URI={identity}", conn.pod.identity));
    match (conn.client_cert(), own()) {
        (ClientCertHeader::AlwaysForwardOnly, _) | (ClientCertHeader::ForwardOnly, Some(_)) => said.map(<[u8]>::to_vec),
        (ClientCertHeader::SanitizeSet, Some(own)) => Some(own.into_bytes()),
        (ClientCertHeader::AppendForward, Some(own)) => {
            Some(said.map_or(own.clone().into_bytes(), |said| [said, b",", own.as_bytes()].concat()))
        }
        // What a client without a certificate says of certificates is worth nothing.
        (ClientCertHeader::Sanitize, _) | (_, None) => None,
    }
}

/// A random UUID (RFC 9562, version 4).
pub(super) fn request_id(random: u128) -> [u8; 36] {
    let bits = random & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let mut text = [b'-'; 36];
    let places = (0..36_usize).filter(|at| !matches!(at, 8 | 13 | 18 | 23));
    for (place, byte) in places.zip((0..32).map(|nibble| (bits >> (124 - 4 * nibble)) as usize & 0xf)) {
        text[place] = b"0123456789abcdef"[byte];
    }
    text
}

/// Puts target and version into the form of HTTP/2. `None`: they do not fit it.
pub(super) fn address(head: &mut Parts, authority: &str, path: &str) -> Option<()> {
    let mut uri = ::http::uri::Parts::default();
    uri.path_and_query = Some(PathAndQuery::try_from(path).ok()?);
    uri.scheme = Some(Scheme::HTTP);
    uri.authority = Some(Authority::try_from(authority).ok()?);
    head.headers.remove(HOST);
    head.version = Version::HTTP_2;
    head.uri = Uri::from_parts(uri).ok()?;
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hop_by_hop_headers_stay_behind() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Private, x-request-id"),
            ("x-request-id", "3"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("te", "trailers, deflate"),
            ("upgrade", "h2c"),
            ("x-kept", "2"),
        ] {
            headers.append(name, value.parse().unwrap());
        }
        strip_hop_by_hop(&mut headers);
        let mut left: Vec<_> =
            headers.iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect();
        left.sort_unstable();
        assert_eq!(left, ["te=trailers", "x-kept=2", "x-request-id=3"]);
    }

    #[test]
    fn request_ids_are_uuids_of_version_4() {
        let id = |random| String::from_utf8(request_id(random).to_vec()).unwrap();
        assert_eq!(id(0), "00000000-0000-4000-8000-000000000000");
        assert_eq!(id(u128::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(id(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef), "01234567-89ab-4def-8123-456789abcdef");
    }
}
