//! Rules for the header lines of messages, whatever version they came by: Istio's and Envoy's headers come, the route's changes are made.
//!
//! In: lines as received. Out: the same lines, changed. No I/O.

use ::http::header::{HeaderMap, HeaderName, HeaderValue};
use mesh_core::resource::listener::ClientCertHeader;
use mesh_core::resource::route::{HeaderOp, HeaderOps, Headers};
use mesh_http::{Fields, Known};

use super::across::Near;
use super::record::Record;
use super::route::Way;
use super::{Conn, date};
use crate::proxy::chosen::Side;
use crate::random::random;

const DATE: HeaderName = HeaderName::from_static("date");
const SERVER: HeaderName = HeaderName::from_static("server");
const X_ENVOY_SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");
const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Header lines that rules read and change.
pub(super) trait Lines: Headers {
    /// The first value of a header with a meaning of its own.
    fn known(&self, which: Known) -> Option<&[u8]>;

    /// Takes out every line of such a header.
    fn remove_known(&mut self, which: Known);

    /// Whether there is a line of this name.
    fn has(&self, name: &HeaderName) -> bool;

    /// Adds a line. The caller vouches for the value.
    fn append(&mut self, name: &HeaderName, value: &[u8]);

    /// Adds a line.
    fn append_value(&mut self, name: &HeaderName, value: &HeaderValue) {
        self.append(name, value.as_bytes());
    }

    /// Takes out every line of this name; whether there was one.
    fn remove(&mut self, name: &HeaderName) -> bool;

    /// Bytes of the lines as HTTP/1 writes them at least.
    fn size(&self) -> u64;

    /// Puts one line in place of every line of that name. The caller vouches for the value.
    fn set(&mut self, name: &HeaderName, value: &[u8]) {
        self.remove(name);
        self.append(name, value);
    }
}

/// Lines of HTTP/1, and the bytes that they were parsed from.
pub(super) struct View<'a> {
    pub(super) fields: &'a mut Fields,
    pub(super) buf: &'a [u8],
}

impl Headers for View<'_> {
    fn each<'a>(&'a self, name: &str, visit: &mut dyn FnMut(&'a [u8])) {
        for (other, value, _) in self.fields.iter(self.buf) {
            if other.eq_ignore_ascii_case(name.as_bytes()) {
                visit(value);
            }
        }
    }
}

impl Lines for View<'_> {
    fn known(&self, which: Known) -> Option<&[u8]> {
        self.fields.known(self.buf, which)
    }

    fn remove_known(&mut self, which: Known) {
        self.fields.remove_known(which);
    }

    fn has(&self, name: &HeaderName) -> bool {
        self.fields.iter(self.buf).any(|(other, ..)| other.eq_ignore_ascii_case(name.as_str().as_bytes()))
    }

    fn append(&mut self, name: &HeaderName, value: &[u8]) {
        self.fields.append(name.as_str(), value);
    }

    fn remove(&mut self, name: &HeaderName) -> bool {
        self.fields.remove(self.buf, name.as_str())
    }

    fn size(&self) -> u64 {
        self.fields.size()
    }
}

/// Lines of HTTP/2.
pub(super) struct Map<'a>(pub(super) &'a mut HeaderMap);

impl Headers for Map<'_> {
    fn each<'a>(&'a self, name: &str, visit: &mut dyn FnMut(&'a [u8])) {
        Headers::each(&*self.0, name, visit);
    }
}

impl Lines for Map<'_> {
    fn known(&self, which: Known) -> Option<&[u8]> {
        self.0.get(which.name()).map(HeaderValue::as_bytes)
    }

    fn remove_known(&mut self, which: Known) {
        self.0.remove(which.name());
    }

    fn has(&self, name: &HeaderName) -> bool {
        self.0.contains_key(name)
    }

    fn append(&mut self, name: &HeaderName, value: &[u8]) {
        // What is no value cannot be sent in either version.
        if let Ok(value) = HeaderValue::from_bytes(value) {
            self.0.append(name, value);
        }
    }

    fn append_value(&mut self, name: &HeaderName, value: &HeaderValue) {
        self.0.append(name, value.clone());
    }

    fn remove(&mut self, name: &HeaderName) -> bool {
        self.0.remove(name).is_some()
    }

    fn size(&self) -> u64 {
        head_size(self.0)
    }
}

/// Headers that every proxied request carries.
pub(super) fn add_standard(conn: &Conn, lines: &mut impl Lines) {
    if lines.known(Known::XRequestId).is_none() {
        lines.append(&X_REQUEST_ID, &request_id(random()));
    }
    if lines.known(Known::XForwardedProto).is_none() {
        lines.append(&X_FORWARDED_PROTO, b"http");
    }
    if conn.flow.side == Side::Inbound {
        let said = lines.known(Known::XForwardedClientCert).map(<[u8]>::to_vec);
        if said.is_none() && (conn.flow.identity.is_none() || conn.client_cert() == ClientCertHeader::Sanitize) {
            return;
        }
        let value = client_cert(conn, said.as_deref());
        lines.remove_known(Known::XForwardedClientCert);
        if let Some(value) = value {
            lines.append(&X_FORWARDED_CLIENT_CERT, &value);
        }
    }
}

/// The value of `x-forwarded-client-cert`, of what the client has said and what it has proved.
fn client_cert(conn: &Conn, said: Option<&[u8]>) -> Option<Vec<u8>> {
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
fn request_id(random: u128) -> [u8; 36] {
    let bits = random & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let mut text = [b'-'; 36];
    let mut place = 0;
    for (at, byte) in bits.to_be_bytes().into_iter().enumerate() {
        place += usize::from(matches!(at, 4 | 6 | 8 | 10));
        for nibble in [byte >> 4, byte & 0xf] {
            text[place] = b"0123456789abcdef"[usize::from(nibble)];
            place += 1;
        }
    }
    text
}

/// Makes a route's changes.
pub(super) fn apply(ops: &HeaderOps, lines: &mut impl Lines) {
    for op in ops.iter() {
        match op {
            HeaderOp::Append(name, value) => lines.append_value(name, value),
            HeaderOp::AddIfAbsent(name, value) => {
                if !lines.has(name) {
                    lines.append_value(name, value);
                }
            }
            HeaderOp::Set(name, value) => {
                lines.remove(name);
                lines.append_value(name, value);
            }
            HeaderOp::SetIfPresent(name, value) => {
                if lines.remove(name) {
                    lines.append_value(name, value);
                }
            }
            HeaderOp::Remove(name) => {
                lines.remove(name);
            }
        }
    }
}

/// The lines that every response carries, and the route's changes to them; then those of its client's side, where that is here too.
pub(super) fn finish(
    conn: &Conn,
    record: &mut Record,
    near: Option<&mut Near<'_>>,
    lines: &mut impl Lines,
    status: u16,
    way: &Way<'_>,
) {
    add_to_response(conn, record, lines, status, way);
    if let Some(near) = near {
        add_to_response(near.conn, near.record, lines, status, near.way);
    }
}

/// What one side adds to a response.
pub(super) fn add_to_response(conn: &Conn, record: &mut Record, lines: &mut impl Lines, status: u16, way: &Way<'_>) {
    let service_time = record.started.elapsed();
    record.service_time = Some(service_time);
    record.details = "via_upstream";
    let millis = u64::try_from(service_time.as_millis()).unwrap_or(u64::MAX);
    set_number(lines, &X_ENVOY_SERVICE_TIME, millis);
    apply(&way.entry.response_headers, lines);
    apply(&way.route.response_headers, lines);
    if let Some(server) = &conn.server {
        lines.remove_known(Known::Server);
        lines.append_value(&SERVER, server);
    }
    if lines.known(Known::Date).is_none() {
        lines.append(&DATE, &date::now());
    }
    let grpc_status = grpc_status(lines);
    record.response(status, lines.size(), grpc_status);
}

/// Puts a line with a number in place of others of that name.
pub(super) fn set_number(lines: &mut impl Lines, name: &HeaderName, number: u64) {
    // Twenty digits hold every number.
    let mut digits = [b'0'; 20];
    let (mut begin, mut rest) = (digits.len(), number);
    for (at, digit) in digits.iter_mut().enumerate().rev() {
        *digit += u8::try_from(rest % 10).unwrap_or(0);
        (begin, rest) = (at, rest / 10);
        if rest == 0 {
            break;
        }
    }
    lines.set(name, &digits[begin..]);
}

/// Whether the content is gRPC's.
pub(super) fn says_grpc(lines: &impl Lines) -> bool {
    lines.known(Known::ContentType).is_some_and(is_grpc)
}

/// `application/grpc`, also with a suffix, but not `application/grpc-web`.
fn is_grpc(content_type: &[u8]) -> bool {
    match content_type.strip_prefix(b"application/grpc") {
        Some(rest) => matches!(rest.first(), None | Some(b'+' | b';')),
        None => false,
    }
}

/// What headers or trailers say of gRPC's outcome.
pub(super) fn grpc_status(lines: &impl Lines) -> Option<u8> {
    std::str::from_utf8(lines.known(Known::GrpcStatus)?).ok()?.parse().ok()
}

/// Size as HTTP/1 writes it.
fn head_size(headers: &HeaderMap) -> u64 {
    headers.iter().map(|(name, value)| (name.as_str().len() + value.len() + 4) as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_decimal() {
        let mut fields = Fields::default();
        let mut map = HeaderMap::new();
        let name = HeaderName::from_static("x");
        for (number, text) in [(0, "0"), (1024, "1024"), (u64::MAX, "18446744073709551615")] {
            set_number(&mut View { fields: &mut fields, buf: b"" }, &name, number);
            let all: Vec<_> = fields.all(b"", "x").collect();
            assert_eq!(all, [text.as_bytes()]);
            set_number(&mut Map(&mut map), &name, number);
            assert_eq!(map.get_all("x").iter().collect::<Vec<_>>(), [text]);
        }
    }

    #[test]
    fn changes_of_headers_in_their_order() {
        let name = HeaderName::from_static;
        let value = HeaderValue::from_static;
        let ops: HeaderOps = [
            HeaderOp::Remove(name("gone")),
            HeaderOp::Append(name("x"), value("1")),
            HeaderOp::Append(name("x"), value("2")),
            HeaderOp::Set(name("y"), value("new")),
            HeaderOp::SetIfPresent(name("z"), value("no")),
            HeaderOp::AddIfAbsent(name("y"), value("late")),
            HeaderOp::AddIfAbsent(name("w"), value("first")),
            HeaderOp::SetIfPresent(name("w"), value("second")),
        ]
        .into_iter()
        .collect();
        let mut map = HeaderMap::new();
        let mut fields = Fields::default();
        for (name, value) in [("gone", "1"), ("y", "old"), ("y", "older")] {
            map.append(name, HeaderValue::from_static(value));
            View { fields: &mut fields, buf: b"" }.append(&HeaderName::from_static(name), value.as_bytes());
        }
        apply(&ops, &mut Map(&mut map));
        apply(&ops, &mut View { fields: &mut fields, buf: b"" });
        for (name, wanted) in [("gone", &[][..]), ("x", &["1", "2"]), ("y", &["new"]), ("z", &[]), ("w", &["second"])] {
            assert_eq!(map.get_all(name).iter().collect::<Vec<_>>(), wanted, "{name}");
            let all: Vec<_> = fields.all(b"", name).collect();
            assert_eq!(all, wanted.iter().map(|one| one.as_bytes()).collect::<Vec<_>>(), "{name}");
        }
    }

    #[test]
    fn request_ids_are_uuids_of_version_4() {
        let id = |random| String::from_utf8(request_id(random).to_vec()).unwrap();
        assert_eq!(id(0), "00000000-0000-4000-8000-000000000000");
        assert_eq!(id(u128::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(id(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef), "01234567-89ab-4def-8123-456789abcdef");
    }

    #[test]
    fn grpc_is_told_by_its_content_type() {
        for (kind, grpc) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;x", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            assert_eq!(is_grpc(kind.as_bytes()), grpc, "{kind}");
        }
    }
}
