//! Answers that the agent gives itself, with Envoy's statuses, flags and words.

use ::http::StatusCode;
use ::http::header::HeaderValue;
use bytes::Bytes;
use mesh_http::Refusal;

use super::date;
use super::exchange::Failed;
use super::record::Record;
use crate::errors::Flags;
use crate::upstream::UpstreamError;

/// An answer of the agent's own.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) flags: Flags,
    /// For the access log.
    pub(super) details: &'static str,
    pub(super) body: Bytes,
    pub(super) location: Option<String>,
}

impl Reply {
    fn new(status: StatusCode, flags: Flags, details: &'static str, body: &'static str) -> Self {
        Self { status, flags, details, body: Bytes::from_static(body.as_bytes()), location: None }
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

    /// Writes the response as HTTP/1 does. `close`: it is the last one of its connection; `head`: the body is only told of.
    pub(super) fn write(&self, server: &[u8], close: bool, head: bool, out: &mut Vec<u8>) {
        let reason = self.status.canonical_reason().unwrap_or_default();
        let mut line = |parts: &[&[u8]]| parts.iter().for_each(|part| out.extend_from_slice(part));
        line(&[b"HTTP/1.1 ", self.status.as_str().as_bytes(), b" ", reason.as_bytes(), b"\r\n"]);
        let bodiless = self.status.is_informational() || self.status == StatusCode::NO_CONTENT;
        if !bodiless {
            line(&[b"content-length: ", self.body.len().to_string().as_bytes(), b"\r\n"]);
        }
        if !self.body.is_empty() {
            line(&[b"content-type: text/plain\r\n"]);
        }
        if let Some(location) = self.location.as_ref().filter(|location| HeaderValue::from_str(location).is_ok()) {
            line(&[b"location: ", location.as_bytes(), b"\r\n"]);
        }
        line(&[b"date: ", &date::now(), b"\r\nserver: ", server, b"\r\n"]);
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
        record.response(self.status.as_u16(), size, None);
    }
}
