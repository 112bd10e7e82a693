//! HTTP/1 as bytes (RFC 9112): heads, bodies and paths. And the text of gRPC-Web, which is base64.
//!
//! In: bytes as they were read, in whatever pieces. Out: where in them the parts of a head are, which of them belong to a
//! body, and a head as it goes on. What two programs might read in two ways is refused, with a status and a name for the log.
//! Never: I/O, a clock, a copy of a header that does not change, an allocation for each header.
//!
//! A head is parsed once it is whole, by `httparse`; what that lets pass and this crate does not is judged afterwards, so that
//! the answer is the same however the bytes were split.

mod base64;
mod body;
mod chunked;
mod fields;
mod framing;
mod known;
pub mod path;
mod refusal;
mod request;
mod response;

pub use base64::Groups;
pub use body::{Body, Step};
pub use chunked::{MAX_CHUNK_LINE, MAX_TRAILERS, each_trailer};
pub use fields::{Field, Fields, Span};
pub use framing::Framing;
pub use known::{Known, is_protected};
pub use refusal::Refusal;
pub use request::{RequestHead, is_host, is_target};
pub use response::ResponseHead;

/// Most header lines that any limit may allow.
pub const MOST_LINES: usize = 256;

/// Bounds of one head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes, from the first of the start line to the empty line's last.
    pub bytes: usize,
    /// Header lines, at most [`MOST_LINES`].
    pub lines: usize,
}

impl Default for Limits {
    /// Envoy's defaults: 60 KiB and 100 lines.
    fn default() -> Self {
        Self { bytes: 60 << 10, lines: 100 }
    }
}

/// What the bytes so far are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The beginning of a head.
    More,
    /// A whole head, and perhaps more behind it.
    Head,
    /// Nothing that goes on.
    Refused(Refusal),
}

/// Version of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    #[default]
    Http11,
}
