//! What the agent does to heads: hop-by-hop headers go, Istio's and Envoy's come.
//!
//! In: heads as received. Out: heads as sent on. No I/O.

use std::borrow::Cow;

use ::http::header::{CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE};
use ::http::request::Parts;
use ::http::uri::{Authority, PathAndQuery, Scheme};
use ::http::{Uri, Version};

use mesh_core::resource::listener::ClientCertHeader;

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

/// Path and query as routing sees them.
pub(super) fn path<'a>(conn: &Conn, head: &'a Parts) -> Cow<'a, str> {
    let path = head.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let Some(manager) = conn.manager() else { return Cow::Borrowed(path) };
    normalize(path, manager.normalize_path, manager.merge_slashes)
}

/// Takes out dot segments (RFC 3986, 5.2.4; `%2e` is a dot) and doubled slashes. The query stays as it is.
fn normalize(path: &str, dots: bool, slashes: bool) -> Cow<'_, str> {
    let (only, query) = match path.split_once('?') {
        Some((only, query)) => (only, Some(query)),
        None => (path, None),
    };
    let lower = only.to_ascii_lowercase();
    let dotted = dots && (lower.contains("/.") || lower.contains("/%2e"));
    if !only.starts_with('/') || !(dotted || slashes && only.contains("//")) {
        return Cow::Borrowed(path);
    }
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = only[1..].split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        let plain = segment.to_ascii_lowercase().replace("%2e", ".");
        match plain.as_str() {
            "." | ".." if dots => {
                if plain == ".." {
                    kept.pop();
                }
                if last {
                    kept.push("");
                }
            }
            "" if slashes && !last => {}
            _ => kept.push(segment),
        }
    }
    let mut clean = format!("/{}", kept.join("/"));
    if let Some(query) = query {
        clean.push('?');
        clean.push_str(query);
    }
    Cow::Owned(clean)
}

/// Protocol that the client wants to switch to (lower case), by the rules of RFC 9110, 7.8.
pub(super) fn upgrade(head: &Parts) -> Option<String> {
    let listed = tokens(&head.headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    let wanted = head.headers.get(UPGRADE)?.to_str().ok()?.trim();
    (listed && head.version == Version::HTTP_11 && !wanted.is_empty()).then(|| wanted.to_ascii_lowercase())
}

/// Takes out what is meant for the next hop only (RFC 9110, 7.6.1). Message framing is the codec's matter.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = tokens(headers, &CONNECTION).filter_map(|token| token.parse().ok()).collect();
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
        && let Ok(id) = HeaderValue::from_str(&request_id(rand::random()))
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
    let how = conn.manager().map_or(ClientCertHeader::Sanitize, |manager| manager.client_cert);
    let own = conn.flow.identity.as_ref().map(|identity| format!("By={};URI={identity}", conn.pod.identity));
    let said = headers.remove(&X_FORWARDED_CLIENT_CERT);
    let value = match (how, own) {
        (ClientCertHeader::AlwaysForwardOnly, _) | (ClientCertHeader::ForwardOnly, Some(_)) => said,
        (ClientCertHeader::SanitizeSet, Some(own)) => HeaderValue::try_from(own).ok(),
        (ClientCertHeader::AppendForward, Some(own)) => {
            let said = said.as_ref().and_then(|said| said.to_str().ok());
            HeaderValue::try_from(said.map_or(own.clone(), |said| format!("{said},{own}"))).ok()
        }
        // What a client without a certificate says of certificates is worth nothing.
        (ClientCertHeader::Sanitize, _) | (_, None) => None,
    };
    if let Some(value) = value {
        headers.insert(X_FORWARDED_CLIENT_CERT, value);
    }
}

/// A random UUID (RFC 9562, version 4).
fn request_id(random: u128) -> String {
    let bits = random & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// Puts target and version into the form that the upstream's protocol wants. `None`: they do not fit it.
pub(super) fn address(head: &mut Parts, authority: &str, path: &str, http2: bool) -> Option<()> {
    let path = PathAndQuery::try_from(path).ok()?;
    let mut uri = ::http::uri::Parts::default();
    uri.path_and_query = Some(path);
    if http2 {
        uri.scheme = Some(Scheme::HTTP);
        uri.authority = Some(Authority::try_from(authority).ok()?);
        head.headers.remove(HOST);
        head.version = Version::HTTP_2;
    } else {
        head.headers.insert(HOST, HeaderValue::from_str(authority).ok()?);
        head.version = Version::HTTP_11;
    }
    head.uri = Uri::from_parts(uri).ok()?;
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_normalised() {
        for (path, clean) in [
            ("/", "/"),
            ("/a/b?x=/../", "/a/b?x=/../"),
            ("/a/./b/../c", "/a/c"),
            ("/a/%2E%2e/b?q", "/b?q"),
            ("/../../etc", "/etc"),
            ("/a/..", "/"),
            ("/a/.", "/a/"),
            ("/a//b", "/a//b"),
            ("/.well-known/x", "/.well-known/x"),
            ("*", "*"),
        ] {
            assert_eq!(normalize(path, true, false), clean, "{path}");
        }
        assert_eq!(normalize("//a///b//", false, true), "/a/b/");
        assert_eq!(normalize("/a/../b", false, false), "/a/../b");
    }

    #[test]
    fn hop_by_hop_headers_stay_behind() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Private"),
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
        let left: Vec<_> = headers.iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect();
        assert_eq!(left, ["x-kept=2", "te=trailers"]);
    }

    #[test]
    fn request_ids_are_uuids_of_version_4() {
        assert_eq!(request_id(0), "00000000-0000-4000-8000-000000000000");
        assert_eq!(request_id(u128::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }
}
