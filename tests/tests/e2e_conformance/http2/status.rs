//! The status in the head of an answer, as a server writes it that has no dynamic table (RFC 7541, 6).
//!
//! In: HEADERS. Out: the number. Reads no more of HPACK than that takes: the first line of a head is its status (RFC 9113, 8.3).

use super::frames::{PADDED, PRIORITY_FLAG};
use super::peer::Frame;

/// The status, or `None` if the head begins with something else.
pub fn status(frame: &Frame) -> Option<u16> {
    let mut block = &frame.payload[..];
    if frame.flags & PADDED != 0 {
        block = block.get(1..)?;
    }
    if frame.flags & PRIORITY_FLAG != 0 {
        block = block.get(5..)?;
    }
    // Sizes of the dynamic table.
    while block.first()? & 0xe0 == 0x20 {
        block = block.get(1..)?;
    }
    match *block.first()? {
        0x88 => Some(200),
        0x89 => Some(204),
        0x8a => Some(206),
        0x8b => Some(304),
        0x8c => Some(400),
        0x8d => Some(404),
        0x8e => Some(500),
        // A literal whose name is that of one of these entries, in each of its three forms.
        0x08..=0x0e | 0x18..=0x1e | 0x48..=0x4e => number(block.get(1..)?),
        _ => None,
    }
}

/// A literal of digits.
fn number(literal: &[u8]) -> Option<u16> {
    let (first, rest) = literal.split_first()?;
    let text = rest.get(..usize::from(first & 0x7f))?;
    if first & 0x80 == 0 {
        return std::str::from_utf8(text).ok()?.parse().ok();
    }
    digits(text)
}

/// Digits in Huffman's code: 0 to 2 have five bits, 3 to 9 have six (RFC 7541, appendix B).
fn digits(bytes: &[u8]) -> Option<u16> {
    let bit = |at: usize| bytes.get(at / 8).map(|byte| u16::from(byte >> (7 - at % 8) & 1));
    let bits = |at: usize, count: usize| (at..at + count).try_fold(0, |sum, at| Some(sum << 1 | bit(at)?));
    let (mut at, mut number, mut count) = (0, 0, 0);
    while count < 3 {
        let five = bits(at, 5)?;
        let digit = if five <= 2 {
            at += 5;
            five
        } else {
            let six = bits(at, 6)?;
            at += 6;
            six.checked_sub(0x19 - 3).filter(|digit| (3..=9).contains(digit))?
        };
        (number, count) = (number * 10 + digit, count + 1);
    }
    Some(number)
}

#[test]
fn statuses_are_read_in_every_form() {
    let of = |payload: &[u8]| status(&Frame { kind: 1, flags: 4, stream: 1, payload: payload.to_vec() });
    assert_eq!(of(&[0x88]), Some(200));
    assert_eq!(of(&[0x20, 0x8c]), Some(400));
    assert_eq!(of(b"\x48\x03431"), Some(431));
    assert_eq!(of(b"\x08\x03503"), Some(503));
    // 431: 011010 011001 00001, and ones to fill the byte.
    assert_eq!(of(&[0x48, 0x83, 0b0110_1001, 0b1001_0000, 0b1111_1111]), Some(431));
    assert_eq!(of(b"\x00\x03abc"), None);
}
