//! Chunked bodies (RFC 9112, 7.1).
//!
//! In: the bytes of the body not yet taken, from the first of them on. Out: how many can be taken, and which are data. What is taken
//! has been checked, and may go on as it is. Lines and trailers are taken once they are whole, so the caller keeps the bytes of one
//! until then; both are bounded. Never: takes a byte behind the body's end.

use crate::body::Step;
use crate::fields::Span;
use crate::known::{Known, is_protected};
use crate::{Limits, Refusal};

/// Longest line with a chunk's size and extensions, in bytes.
pub const MAX_CHUNK_LINE: usize = 1024;
/// Bounds of the trailers.
pub const MAX_TRAILERS: Limits = Limits { bytes: 8 << 10, lines: 32 };

/// How far a chunked body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Chunked {
    /// A line with a size comes.
    #[default]
    Size,
    /// So many bytes of data come; never 0.
    Data(u64),
    /// The line end behind data comes.
    DataEnd,
    /// Trailers come, and the empty line.
    Trailers,
    /// It is over.
    Done,
}

impl Chunked {
    pub(crate) fn step(&mut self, input: &[u8]) -> Result<Step, Refusal> {
        match *self {
            Self::Size => {
                let Some((size, taken)) = size(input)? else { return Ok(Step::default()) };
                *self = if size == 0 { Self::Trailers } else { Self::Data(size) };
                Ok(Step { taken, ..Step::default() })
            }
            Self::Data(left) => {
                let taken = usize::try_from(left).map_or(input.len(), |left| left.min(input.len()));
                let left = left - taken as u64;
                *self = if left == 0 { Self::DataEnd } else { Self::Data(left) };
                Ok(Step { taken, data: taken, ..Step::default() })
            }
            Self::DataEnd => match input {
                [] | [b'\r'] => Ok(Step::default()),
                [b'\r', b'\n', ..] => {
                    *self = Self::Size;
                    Ok(Step { taken: 2, ..Step::default() })
                }
                _ => Err(Refusal::Chunk),
            },
            Self::Trailers => {
                let Some((taken, grpc_status)) = trailers(input)? else { return Ok(Step::default()) };
                *self = Self::Done;
                Ok(Step { taken, done: true, grpc_status, ..Step::default() })
            }
            Self::Done => Ok(Step { done: true, ..Step::default() }),
        }
    }
}

/// A chunk's size and the length of its line, once that is whole.
fn size(input: &[u8]) -> Result<Option<(u64, usize)>, Refusal> {
    let seen = &input[..input.len().min(MAX_CHUNK_LINE)];
    let digits = seen.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    // Sixteen digits could overflow what follows; no chunk is that long.
    if digits > 15 || (digits == 0 && !seen.is_empty()) {
        return Err(Refusal::Chunk);
    }
    let Some(end) = seen[digits..].iter().position(|byte| matches!(byte, b'\r' | b'\n')).map(|at| digits + at) else {
        return if well_extended(&seen[digits..]) && seen.len() < MAX_CHUNK_LINE {
            Ok(None)
        } else {
            Err(Refusal::Chunk)
        };
    };
    if !well_extended(&seen[digits..end]) {
        return Err(Refusal::Chunk);
    }
    match seen[end..] {
        [b'\r'] if seen.len() < MAX_CHUNK_LINE => return Ok(None),
        [b'\r', b'\n', ..] => {}
        _ => return Err(Refusal::Chunk),
    }
    let value = |size: u64, byte: &u8| size << 4 | u64::from((*byte as char).to_digit(16).unwrap_or_default());
    Ok(Some((seen[..digits].iter().fold(0, value), end + 2)))
}

/// Extensions: a semicolon, then text without control characters.
fn well_extended(text: &[u8]) -> bool {
    let plain = |byte: &u8| matches!(byte, b'\t' | b' '..=b'~');
    text.first().is_none_or(|byte| *byte == b';') && text.iter().all(plain)
}

/// Calls `visit` with name and value of every line of trailers that [`crate::Body::step`] has taken.
pub fn each_trailer<'a>(section: &'a [u8], visit: &mut dyn FnMut(&'a [u8], &'a [u8])) {
    let mut headers = [httparse::EMPTY_HEADER; MAX_TRAILERS.lines];
    if let Ok(httparse::Status::Complete((_, headers))) = httparse::parse_headers(section, &mut headers) {
        headers.iter().for_each(|header| visit(header.name.as_bytes(), header.value));
    }
}

/// Length of the trailers with the empty line, once they are whole, and what they say of gRPC.
fn trailers(input: &[u8]) -> Result<Option<(usize, Option<u8>)>, Refusal> {
    let seen = &input[..input.len().min(MAX_TRAILERS.bytes)];
    let mut headers = [httparse::EMPTY_HEADER; MAX_TRAILERS.lines];
    let (len, headers) = match httparse::parse_headers(seen, &mut headers) {
        Ok(httparse::Status::Complete(parsed)) => parsed,
        Ok(httparse::Status::Partial) if input.len() >= MAX_TRAILERS.bytes => return Err(Refusal::TrailersTooLarge),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Refusal::TrailersTooLarge),
        Err(_) => return Err(Refusal::Trailer),
    };
    crate::request::check_lines(&seen[..len])?;
    let mut grpc_status = None;
    for header in headers {
        let name = header.name.as_bytes();
        let known = Known::of(name);
        if is_protected(name) || known.is_hop_by_hop() || known == Known::Expect {
            return Err(Refusal::Trailer);
        }
        if known == Known::GrpcStatus {
            grpc_status = Span::of(seen, header.value).of_text(seen).parse().ok();
        }
    }
    Ok(Some((len, grpc_status)))
}
