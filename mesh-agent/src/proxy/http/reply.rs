//! Answers that the agent gives itself, with Envoy's statuses, flags and words.

use ::http::StatusCode;
use ::http::header::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;
use mesh_http::Refusal;

use super::date;
use super::exchange::Failed;
use super::record::Record;
use crate::errors::Flags;
use crate::upstream::UpstreamError;

const CONTENT_TYPE: HeaderName = HeaderName::from_static("content-type");
const DATE: HeaderName = HeaderName::from_static("date");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const LOCATION: HeaderName = HeaderName::from_static("location");
const SERVER: HeaderName = HeaderName::from_static("server");

/// Outcomes of gRPC.
const UNKNOWN: u8 = 2;
const PERMISSION_DENIED: u8 = 7;
const UNIMPLEMENTED: u8 = 12;
const INTERNAL: u8 = 13;
const UNAVAILABLE: u8 = 14;
const UNAUTHENTICATED: u8 = 16;

/// An answer of the agent's own.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) flags: Flags,
    /// For the access log.
    pub(super) details: &'static str,
    pub(super) body: Bytes,
    pub(super) location: Option<String>,
    grpc: Option<Box<InGrpc>>,
    /// Its lines, where it was another side's answer first.
    lines: Option<Box<HeaderMap>>,
}

/// What a gRPC client is told instead of status and body.
#[derive(Debug)]
struct InGrpc {
    content_type: &'static [u8],
    status: u8,
    message: String,
}

impl Reply {
    fn new(status: StatusCode, flags: Flags, details: &'static str, body: &'static str) -> Self {
        let body = Bytes::from_static(body.as_bytes());
        Self { status, flags, details, body, location: None, grpc: None, lines: None }
    }

    pub(super) fn no_route() -> Self {
        Self::new(StatusCode::NOT_FOUND, Flags::NR, "route_not_found", "")
    }

    pub(super) fn no_cluster(status: StatusCode) -> Self {
        Self::new(status, Flags::NC, "cluster_not_found", "")
    }

    pub(super) fn no_endpoint() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Flags::UH, "no_healthy_upstream", "no healthy upstream")
    }

    fn overflow() -> Self {
        let details = "upstream_reset_before_response_started{overflow}";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Flags::UO, details, "upstream connect error: overflow")
    }

    /// The workload has as many requests under way as it may have: as Envoy's overload manager says it.
    pub(super) fn overloaded() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Flags::OM, "overload", "envoy overloaded")
    }

    fn no_connection() -> Self {
        let details = "upstream_reset_before_response_started{connection_failure}";
        let body = "upstream connect error or disconnect/reset before headers. reset reason: connection failure";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Flags::UF, details, body)
    }

    /// No connection could be had.
    pub(super) fn unconnected(error: &UpstreamError) -> Self {
        if error.flags() == Flags::UO { Self::overflow() } else { Self::no_connection() }
    }

    pub(super) fn connection_lost() -> Self {
        let details = "upstream_reset_before_response_started{connection_termination}";
        let body = "upstream connect error or disconnect/reset before headers. reset reason: connection termination";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Flags::UC, details, body)
    }

    /// The server has reset its stream.
    pub(super) fn upstream_reset() -> Self {
        let details = "upstream_reset_before_response_started{remote_reset}";
        let body = "upstream connect error or disconnect/reset before headers. reset reason: remote reset";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Flags::UR, details, body)
    }

    /// Nobody has taken the request.
    pub(super) fn failed(failed: &Failed) -> Self {
        match failed {
            Failed::Unconnected(error) => Self::unconnected(error),
            Failed::Refused => {
                let details = "upstream_reset_before_response_started{remote_refused_stream_reset}";
                let body = "upstream connect error or disconnect/reset before headers. reset reason: remote refused stream reset";
                Self::new(StatusCode::SERVICE_UNAVAILABLE, Flags::UR, details, body)
            }
        }
    }

    pub(super) fn upstream_garbage() -> Self {
        let details = "upstream_reset_before_response_started{protocol_error}";
        let body = "upstream connect error or disconnect/reset before headers. reset reason: protocol error";
        Self::new(StatusCode::BAD_GATEWAY, Flags::UPE, details, body)
    }

    pub(super) fn timeout() -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, Flags::UT, "response_timeout", "upstream request timeout")
    }

    pub(super) fn bad_request() -> Self {
        Self::new(StatusCode::BAD_REQUEST, Flags::DPE, "http1.codec_error", "Bad Request")
    }

    pub(super) fn direct(status: StatusCode, body: Bytes) -> Self {
        Self { body, ..Self::new(status, Flags::NONE, "direct_response", "") }
    }

    pub(super) fn redirect(status: StatusCode, location: String) -> Self {
        Self { location: Some(location), ..Self::new(status, Flags::NONE, "direct_response", "") }
    }

    /// The client is to ask for the path as it is clean.
    pub(super) fn clean_path(location: String) -> Self {
        let details = "path_normalization_failed";
        Self { location: Some(location), ..Self::new(StatusCode::TEMPORARY_REDIRECT, Flags::NONE, details, "") }
    }

    /// A path that the listener does not let pass.
    pub(super) fn unclean_path() -> Self {
        Self::new(StatusCode::BAD_REQUEST, Flags::NONE, "path_normalization_failed", "")
    }

    /// A request whose CONNECT or upgrade its route does not allow.
    pub(super) fn no_upgrade() -> Self {
        Self::new(StatusCode::FORBIDDEN, Flags::NONE, "upgrade_failed", "")
    }

    /// Nothing has moved for too long.
    pub(super) fn idle() -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, Flags::SI, "stream_idle_timeout", "stream timeout")
    }

    /// The request breaks the protocol.
    pub(super) fn refused(refusal: Refusal) -> Self {
        let status = StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::BAD_REQUEST);
        Self::new(status, Flags::DPE, refusal.name(), status.canonical_reason().unwrap_or_default())
    }

    /// The answer as a gRPC client understands it: 200 and the outcome in the head (gRPC's PROTOCOL-HTTP2, "Trailers-Only"; the
    /// numbers are Envoy's).
    pub(super) fn in_grpc(self, content_type: &'static [u8]) -> Self {
        let status = match self.status.as_u16() {
            400 => INTERNAL,
            401 => UNAUTHENTICATED,
            403 => PERMISSION_DENIED,
            404 => UNIMPLEMENTED,
            429 | 502..=504 => UNAVAILABLE,
            _ => UNKNOWN,
        };
        let grpc = Some(Box::new(InGrpc { content_type, status, message: percent_encoded(&self.body) }));
        Self { status: StatusCode::OK, body: Bytes::new(), grpc, ..self }
    }

    /// The answer of the other side of a connection within the agent, with its lines: to this side it is the server's.
    pub(super) fn passed_on(self, lines: HeaderMap) -> Self {
        Self { flags: Flags::NONE, details: "via_upstream", lines: Some(Box::new(lines)), ..self }
    }

    pub(super) fn is_passed_on(&self) -> bool {
        self.lines.is_some()
    }

    /// Calls `visit` with name and value of every line but those that frame the body.
    pub(super) fn each_line(&self, server: &[u8], visit: &mut dyn FnMut(&HeaderName, &[u8])) {
        if let Some(lines) = &self.lines {
            return lines.iter().for_each(|(name, value)| visit(name, value.as_bytes()));
        }
        if !self.body.is_empty() {
            visit(&CONTENT_TYPE, b"text/plain");
        }
        if let Some(grpc) = &self.grpc {
            visit(&CONTENT_TYPE, grpc.content_type);
            visit(&GRPC_STATUS, grpc.status.to_string().as_bytes());
            if !grpc.message.is_empty() {
                visit(&GRPC_MESSAGE, grpc.message.as_bytes());
            }
        }
        if let Some(location) = self.location.as_ref().filter(|location| HeaderValue::from_str(location).is_ok()) {
            visit(&LOCATION, location.as_bytes());
        }
        visit(&DATE, &date::now());
        visit(&SERVER, server);
    }

    /// Writes the response as HTTP/1 does. `close`: it is the last one of its connection; `head`: the body is only told of.
    pub(super) fn write(&self, server: &[u8], close: bool, head: bool, out: &mut Vec<u8>) {
        let reason = self.status.canonical_reason().unwrap_or_default();
        let mut line = |parts: &[&[u8]]| parts.iter().for_each(|part| out.extend_from_slice(part));
        line(&[b"HTTP/1.1 ", self.status.as_str().as_bytes(), b" ", reason.as_bytes(), b"\r\n"]);
        let bodiless = self.status.is_informational() || self.status == StatusCode::NO_CONTENT;
        if !bodiless {
            line(&[b"content-length: ", self.body.len().to_string().as_bytes(), b"\r\n"]);
        }
        self.each_line(server, &mut |name, value| line(&[name.as_str().as_bytes(), b": ", value, b"\r\n"]));
        if close {
            line(&[b"connection: close\r\n"]);
        }
        line(&[b"\r\n"]);
        if !head && !bodiless && self.status != StatusCode::NOT_MODIFIED {
            line(&[&self.body]);
        }
    }

    /// Notes it in the request's report; `size`: bytes of its header lines.
    pub(super) fn tell(&self, record: &mut Record, size: u64) {
        record.flags |= self.flags;
        record.details = self.details;
        record.response(self.status.as_u16(), size, self.grpc.as_ref().map(|grpc| grpc.status));
    }
}

/// Text as `grpc-message` has it.
fn percent_encoded(text: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text {
        match byte {
            b'%' | ..b' ' | b'\x7f'.. => out.push_str(&format!("%{byte:02X}")),
            _ => out.push(char::from(*byte)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_clients_are_told_in_envoy_s_numbers() {
        for (status, number) in
            [(400, 13), (401, 16), (403, 7), (404, 12), (429, 14), (502, 14), (503, 14), (504, 14), (500, 2), (418, 2)]
        {
            let reply =
                Reply::direct(StatusCode::from_u16(status).unwrap(), Bytes::from_static("50% of \u{e9}\n".as_bytes()));
            let mut out = Vec::new();
            reply.in_grpc(b"application/grpc").write(b"me", false, false, &mut out);
            let out = String::from_utf8(out).unwrap();
            assert!(
                out.starts_with("HTTP/1.1 200 OK\r\ncontent-length: 0\r\ncontent-type: application/grpc\r\n"),
                "{out}"
            );
            assert!(out.contains(&format!("grpc-status: {number}\r\n")), "{status}: {out}");
            assert!(out.contains("grpc-message: 50%25 of %C3%A9%0A\r\n"), "{out}");
        }
    }
}
