//! What the agent does to HTTP/1 heads: Istio's and Envoy's headers come, the route's changes are made.
//!
//! In: heads as parsed. Out: the same heads, changed. No I/O.

use std::io::Write;

use mesh_core::resource::listener::ClientCertHeader;
use mesh_core::resource::route::{HeaderOp, HeaderOps, Headers};
use mesh_http::{Fields, Known};

use super::super::Conn;
use super::super::request::{client_cert, request_id};
use crate::proxy::chosen::Side;

/// Header lines as routing looks at them.
pub(super) struct View<'a> {
    pub(super) fields: &'a Fields,
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

/// Headers that every proxied request carries.
pub(super) fn add_standard(conn: &Conn, fields: &mut Fields, buf: &[u8]) {
    if fields.known(buf, Known::XRequestId).is_none() {
        fields.append("x-request-id", &request_id(rand::random()));
    }
    if fields.known(buf, Known::XForwardedProto).is_none() {
        fields.append("x-forwarded-proto", b"http");
    }
    if conn.flow.side == Side::Inbound {
        let said = fields.known(buf, Known::XForwardedClientCert).map(<[u8]>::to_vec);
        if said.is_none() && (conn.flow.identity.is_none() || conn.client_cert() == ClientCertHeader::Sanitize) {
            return;
        }
        let value = client_cert(conn, said.as_deref());
        fields.remove_known(Known::XForwardedClientCert);
        if let Some(value) = value {
            fields.append("x-forwarded-client-cert", &value);
        }
    }
}

/// Makes a route's changes.
pub(super) fn apply(ops: &HeaderOps, fields: &mut Fields, buf: &[u8]) {
    for op in ops.iter() {
        match op {
            HeaderOp::Append(name, value) => fields.append(name.as_str(), value.as_bytes()),
            HeaderOp::AddIfAbsent(name, value) => {
                if fields.all(buf, name.as_str()).next().is_none() {
                    fields.append(name.as_str(), value.as_bytes());
                }
            }
            HeaderOp::Set(name, value) => fields.set(buf, name.as_str(), value.as_bytes()),
            HeaderOp::SetIfPresent(name, value) => {
                if fields.remove(buf, name.as_str()) {
                    fields.append(name.as_str(), value.as_bytes());
                }
            }
            HeaderOp::Remove(name) => {
                fields.remove(buf, name.as_str());
            }
        }
    }
}

/// Adds a line with a number, in place of others of that name.
pub(super) fn set_number(fields: &mut Fields, buf: &[u8], name: &str, number: u64) {
    let mut digits = [0; 20];
    let mut rest = digits.as_mut_slice();
    // Twenty digits hold every number.
    let _ = write!(rest, "{number}");
    let left = rest.len();
    fields.set(buf, name, &digits[..20 - left]);
}

/// Whether the content is gRPC's.
pub(super) fn is_grpc(fields: &Fields, buf: &[u8]) -> bool {
    fields.known(buf, Known::ContentType).is_some_and(super::super::record::is_grpc)
}

/// What the lines say of gRPC's outcome.
pub(super) fn grpc_status(fields: &Fields, buf: &[u8]) -> Option<u8> {
    std::str::from_utf8(fields.known(buf, Known::GrpcStatus)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_decimal() {
        let mut fields = Fields::default();
        for (number, text) in [(0, "0"), (1024, "1024"), (u64::MAX, "18446744073709551615")] {
            set_number(&mut fields, b"", "x", number);
            let all: Vec<_> = fields.all(b"", "x").collect();
            assert_eq!(all, [text.as_bytes()]);
        }
    }
}
