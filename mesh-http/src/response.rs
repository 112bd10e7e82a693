//! Heads of responses.
//!
//! In: the bytes so far, and what was asked for. Out: where the parts are, and how the body ends. Never: takes a response for
//! one of another length than its next reader would.

use std::mem::MaybeUninit;

use crate::fields::tokens;
use crate::request::{check_lines, version_fault};
use crate::{Fields, Framing, Known, Limits, MOST_LINES, Outcome, Refusal, Span, Version, framing};

/// A parsed head. One is used for all responses of a connection, so that its memory is.
#[derive(Debug, Default)]
pub struct ResponseHead {
    /// The header lines.
    pub fields: Fields,
    /// Version that the server speaks.
    pub version: Version,
    /// How the body ends.
    pub framing: Framing,
    /// Bytes of the head.
    pub len: usize,
    /// 100 to 999.
    pub status: u16,
    /// Whether the server takes another request afterwards.
    pub keep_alive: bool,
    reason: Span,
}

impl ResponseHead {
    /// Parses what is there, the answer to a request with this method. Only after [`Outcome::Head`] does the head hold anything.
    pub fn parse(&mut self, buf: &[u8], method: &str, limits: &Limits) -> Outcome {
        match self.try_parse(buf, method, limits) {
            Ok(true) => Outcome::Head,
            Ok(false) => Outcome::More,
            Err(refusal) => Outcome::Refused(refusal),
        }
    }

    fn try_parse(&mut self, buf: &[u8], method: &str, limits: &Limits) -> Result<bool, Refusal> {
        let seen = &buf[..buf.len().min(limits.bytes)];
        // A server has no reason to send empty lines first.
        if seen.first().is_some_and(|byte| *byte != b'H') {
            return Err(Refusal::StartLine);
        }
        let mut headers = [const { MaybeUninit::uninit() }; MOST_LINES];
        let headers = &mut headers[..limits.lines.min(MOST_LINES)];
        let mut response = httparse::Response::new(&mut []);
        let config = httparse::ParserConfig::default();
        let len = match config.parse_response_with_uninit_headers(&mut response, seen, headers) {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) if buf.len() >= limits.bytes => return Err(Refusal::HeadTooLarge),
            Ok(httparse::Status::Partial) => return Ok(false),
            Err(httparse::Error::Version) => return version_fault(seen, buf.len() >= limits.bytes),
            Err(error) => return Err(error.into()),
        };
        check_lines(&seen[..len])?;
        self.len = len;
        self.version = if response.version == Some(0) { Version::Http10 } else { Version::Http11 };
        self.status = response.code.filter(|code| *code >= 100).ok_or(Refusal::Status)?;
        self.reason = Span::of(buf, response.reason.unwrap_or_default().as_bytes());
        self.fields.take(buf, response.headers, len - 2);
        self.connection(buf);
        self.framing = self.frame(buf, method)?;
        Ok(true)
    }

    fn connection(&mut self, buf: &[u8]) {
        let (mut close, mut keep_alive) = (false, false);
        for token in self.fields.all_known(buf, Known::Connection).flat_map(tokens) {
            close |= token.eq_ignore_ascii_case(b"close");
            keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
        }
        self.keep_alive = !close && (self.version == Version::Http11 || keep_alive);
    }

    /// RFC 9112, 6.3.
    fn frame(&self, buf: &[u8], method: &str) -> Result<Framing, Refusal> {
        let declared = framing::declared(&self.fields, buf, self.version)?;
        Ok(match (self.status, method) {
            (101, _) | (200..=299, "CONNECT") => Framing::Tunnel,
            (100..=199 | 204 | 304, _) | (_, "HEAD") => Framing::None,
            _ => declared.unwrap_or(Framing::UntilClose),
        })
    }

    /// Whether another response to the same request follows.
    pub fn is_interim(&self) -> bool {
        matches!(self.status, 100..=199) && self.status != 101
    }

    /// Takes out what is for the next hop only, and the framing that a response of this status does not have.
    pub fn strip_hop_by_hop(&mut self, buf: &[u8], chunked: bool) {
        self.fields.strip_hop_by_hop(buf, chunked);
        if matches!(self.status, 100..=199 | 204) {
            self.fields.remove_known(Known::ContentLength);
            self.fields.remove_known(Known::TransferEncoding);
        }
    }

    /// Writes the head as of HTTP/1.1, with all changes made to the lines.
    pub fn write(&self, buf: &[u8], out: &mut Vec<u8>) {
        out.reserve(self.len + 256);
        let digits = [self.status / 100, self.status / 10 % 10, self.status % 10];
        out.extend_from_slice(b"HTTP/1.1 ");
        out.extend(digits.map(|digit| b"0123456789"[usize::from(digit % 10)]));
        out.push(b' ');
        out.extend_from_slice(self.reason.of_bytes(buf));
        out.extend_from_slice(b"\r\n");
        self.fields.write(buf, out);
        out.extend_from_slice(b"\r\n");
    }
}
