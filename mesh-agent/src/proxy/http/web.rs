//! gRPC-Web (Envoy's filter `envoy.filters.http.grpc_web`): a gRPC call of a browser, which has no trailers and may want text.
//!
//! In: the request's lines, then pieces of both bodies. Out: the same as gRPC over HTTP/2, and back; trailers become the last frame of the
//! response, and `-text` is base64 (RFC 4648, 4). Never: looks into a message, holds more than three characters.

use ::http::HeaderMap;
use ::http::header::{ACCEPT, HeaderName};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use mesh_http::{Groups, Known, Refusal};

use super::heads::Lines;

const CONTENT_TYPE: HeaderName = HeaderName::from_static("content-type");
const TE: HeaderName = HeaderName::from_static("te");
const BINARY: &[u8] = b"application/grpc-web+proto";
const TEXT: &[u8] = b"application/grpc-web-text+proto";
/// Flag of a frame that has trailers.
const TRAILERS: u8 = 0x80;

/// One call under way.
#[derive(Debug, Clone)]
pub(super) struct Web {
    /// The request's body is text.
    asks_text: bool,
    /// The response's shall be.
    wants_text: bool,
    /// The request's, so far.
    text: Groups,
}

impl Web {
    /// Makes a call of gRPC of one of gRPC-Web; `None`: it is none.
    pub(super) fn of(lines: &mut impl Lines) -> Option<Self> {
        let asks_text = is_text(lines.known(Known::ContentType)?)?;
        let mut wants_text = false;
        lines.each(ACCEPT.as_str(), &mut |value| wants_text |= is_text(value) == Some(true));
        lines.remove_known(Known::ContentLength);
        lines.set(&CONTENT_TYPE, b"application/grpc");
        lines.set(&TE, b"trailers");
        Some(Self { asks_text, wants_text, text: Groups::default() })
    }

    /// What the response's content is.
    pub(super) fn content_type(&self) -> &'static [u8] {
        if self.wants_text { TEXT } else { BINARY }
    }

    /// Makes a response's lines those of gRPC-Web.
    pub(super) fn answer(&self, lines: &mut impl Lines) {
        lines.remove_known(Known::ContentLength);
        lines.set(&CONTENT_TYPE, self.content_type());
    }

    /// A piece of the request's body as gRPC has it; it may be empty.
    pub(super) fn request(&mut self, data: Bytes) -> Result<Bytes, Refusal> {
        if !self.asks_text {
            return Ok(data);
        }
        let mut out = Vec::new();
        self.text.decode(&data, &mut out)?;
        Ok(out.into())
    }

    /// The end of the request's body.
    pub(super) fn end(&self) -> Result<(), Refusal> {
        self.text.end()
    }

    /// A piece of the response's body as its client has it.
    pub(super) fn response(&self, data: Bytes) -> Bytes {
        if self.wants_text { STANDARD.encode(&data).into() } else { data }
    }

    /// Trailers as the last frame of the response's body.
    pub(super) fn trailers(&self, trailers: &HeaderMap) -> Bytes {
        let mut lines = Vec::new();
        for (name, value) in trailers {
            for part in [name.as_str().as_bytes(), b":", value.as_bytes(), b"\r\n"] {
                lines.extend_from_slice(part);
            }
        }
        // The trailers of one response are far shorter.
        let length = u32::try_from(lines.len()).unwrap_or(u32::MAX).to_be_bytes();
        self.response([&[TRAILERS], &length[..], &lines].concat().into())
    }
}

/// Whether gRPC-Web's content is text; `None`: it is something else.
fn is_text(kind: &[u8]) -> Option<bool> {
    match kind {
        b"application/grpc-web" | b"application/grpc-web+proto" => Some(false),
        b"application/grpc-web-text" | b"application/grpc-web-text+proto" => Some(true),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::heads::Map;
    use super::*;

    fn web(kind: &str, accept: &str) -> Option<Web> {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", kind.parse().unwrap());
        headers.insert("accept", accept.parse().unwrap());
        headers.insert("content-length", "5".parse().unwrap());
        let web = Web::of(&mut Map(&mut headers));
        if web.is_some() {
            assert_eq!(
                (&headers["content-type"], &headers["te"]),
                (&"application/grpc".parse().unwrap(), &"trailers".parse().unwrap())
            );
            assert!(!headers.contains_key("content-length"));
        }
        web
    }

    #[test]
    fn only_its_own_content_is_grpc_web() {
        assert!(web("application/grpc", "*/*").is_none() && web("application/grpc-webby", "*/*").is_none());
        let binary = web("application/grpc-web", "*/*").unwrap();
        assert_eq!((binary.asks_text, binary.content_type()), (false, BINARY));
        let text = web("application/grpc-web-text", "application/grpc-web-text").unwrap();
        assert_eq!((text.asks_text, text.content_type()), (true, TEXT));
    }

    #[test]
    fn text_is_read_however_it_is_split_and_padded() {
        let text = [STANDARD.encode("one message"), STANDARD.encode("two"), STANDARD.encode("three!!")].concat();
        for size in 1..=text.len() {
            let mut web = web("application/grpc-web-text", "*/*").unwrap();
            let mut all = Vec::new();
            for piece in text.as_bytes().chunks(size) {
                all.extend_from_slice(&web.request(Bytes::copy_from_slice(piece)).unwrap());
            }
            web.end().unwrap();
            assert_eq!(all, b"one messagetwothree!!", "{size}");
        }
        let mut bad = web("application/grpc-web-text", "*/*").unwrap();
        assert!(bad.request(Bytes::from_static(b"ab!=")).is_err());
        assert!(bad.request(Bytes::from_static(b"abc")).is_ok() && bad.end().is_err());
    }

    #[test]
    fn trailers_are_a_frame() {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        let binary = web("application/grpc-web", "*/*").unwrap();
        assert_eq!(&binary.trailers(&trailers)[..], b"\x80\0\0\0\x0fgrpc-status:0\r\n");
        let text = web("application/grpc-web-text", "application/grpc-web-text").unwrap();
        assert_eq!(text.trailers(&trailers), STANDARD.encode(b"\x80\0\0\0\x0fgrpc-status:0\r\n"));
    }
}
