//! Where a message ends (RFC 9112, 6.3). In: its header lines. Out: how long its body is, or why nobody can tell. No I/O.

use crate::fields::{Fields, tokens};
use crate::known::Known;
use crate::{Refusal, Version};

/// How the end of a body is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Framing {
    /// There is no body.
    #[default]
    None,
    /// So many bytes; 0 is a length too.
    Length(u64),
    /// Chunks, and perhaps trailers.
    Chunked,
    /// Everything until the connection ends; only in responses.
    UntilClose,
    /// The connection is no longer HTTP (101, or a CONNECT that succeeded).
    Tunnel,
}

/// What the headers of either kind of message say. `None`: nothing.
pub(crate) fn declared(fields: &Fields, buf: &[u8], version: Version) -> Result<Option<Framing>, Refusal> {
    let length = length(fields, buf)?;
    let mut encodings = fields.all_known(buf, Known::TransferEncoding).peekable();
    if encodings.peek().is_none() {
        return Ok(length.map(Framing::Length));
    }
    if length.is_some() {
        return Err(Refusal::LengthAndEncoding);
    }
    let (mut chunked, mut other, mut last) = (0, false, false);
    for coding in encodings.flat_map(tokens) {
        last = coding.eq_ignore_ascii_case(b"chunked");
        chunked += usize::from(last);
        other |= !last;
    }
    match (chunked, last, other) {
        _ if version == Version::Http10 => Err(Refusal::Encoding),
        (1, true, false) => Ok(Some(Framing::Chunked)),
        (1, true, true) | (0, false, true) => Err(Refusal::UnknownEncoding),
        _ => Err(Refusal::Encoding),
    }
}

fn length(fields: &Fields, buf: &[u8]) -> Result<Option<u64>, Refusal> {
    let mut lengths = fields.all_known(buf, Known::ContentLength);
    let Some(value) = lengths.next() else { return Ok(None) };
    if lengths.next().is_some() {
        return Err(Refusal::ManyLengths);
    }
    number(value).map(Some).ok_or(if value.contains(&b',') { Refusal::ManyLengths } else { Refusal::Length })
}

/// Digits only, below 2^63.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    let mut number: u64 = 0;
    for digit in digits {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        number = number.checked_mul(10)?.checked_add(digit)?;
    }
    (number <= i64::MAX.unsigned_abs()).then_some(number)
}
