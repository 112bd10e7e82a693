//! What is to be seen of a head block without the dynamic table (RFC 7541, 6).
//!
//! In: a block as it came. Out: whether it cannot be read, or whether a line of it is none that HTTP/2 has; whether it begins with a
//! pseudo header. Runs for trailers, and once for a connection that has ended. Never: says that a block is right.

use std::borrow::Cow;

use super::huffman;

/// What a block looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// Nobody can tell its lines apart.
    Unreadable,
    /// A line in it is malformed, or might be: `h2` calls it as it calls what it cannot read.
    Malformed,
    /// Neither. What is wrong with it, if anything, is an index or a size of the dynamic table.
    Lines,
}

/// Looks at a block. `more`: the rest of it has not come.
pub(super) fn look(block: &[u8], more: bool) -> Look {
    let mut left = block;
    let mut malformed = false;
    while !left.is_empty() {
        match line(&mut left) {
            Ok(lawful) => malformed |= !lawful,
            Err(Bad::CutOff) if more => break,
            Err(_) => return Look::Unreadable,
        }
    }
    if malformed { Look::Malformed } else { Look::Lines }
}

/// Whether its first line is a pseudo header: no other line of it can be one (RFC 9113, 8.3). A name that stands in the dynamic table is
/// not seen.
pub(super) fn begins_with_pseudo(block: &[u8]) -> bool {
    let mut left = block;
    while left.first().is_some_and(|first| first & 0xe0 == 0x20) {
        if integer(&mut left, 5).is_err() {
            return false;
        }
    }
    let Some(&first) = left.first() else { return false };
    match integer(&mut left, prefix(first)) {
        Ok(0) if first & 0x80 == 0 => string(&mut left).is_ok_and(|name| name.starts_with(b":")),
        Ok(index) => (1..=14).contains(&index),
        Err(_) => false,
    }
}

/// Why a line cannot be read.
enum Bad {
    CutOff,
    Wrong,
}

/// Takes a line. `false`: it is malformed, or might be.
fn line(left: &mut &[u8]) -> Result<bool, Bad> {
    let first = *left.first().ok_or(Bad::CutOff)?;
    let index = integer(left, prefix(first))?;
    if first & 0x80 != 0 || first & 0xe0 == 0x20 {
        // A line of a table, or a table's size.
        return Ok(true);
    }
    if index == 0 {
        let name = string(left)?;
        return string(left).map(|value| is_line(&name, &value));
    }
    let value = string(left)?;
    Ok(match index {
        1 | 4..=7 => std::str::from_utf8(&value).is_ok(),
        2 | 3 => is_token(&value),
        8..=14 => is_status(&value),
        15..=61 => is_value(&value),
        // Nobody here knows the name. Every name may have a word, but for `:status`: a client that has put that into the table has been
        // reset for it, after which nobody asks.
        _ => is_token(&value),
    })
}

/// Bits of the number that a line begins with.
fn prefix(first: u8) -> u32 {
    match first {
        0x80.. => 7,
        0x40.. => 6,
        0x20.. => 5,
        _ => 4,
    }
}

/// Takes a number (5.1). No longer ones than `h2` reads, which has none above 2^28.
fn integer(left: &mut &[u8], bits: u32) -> Result<usize, Bad> {
    const MOST: usize = 4;
    let (first, rest) = left.split_first().ok_or(Bad::CutOff)?;
    *left = rest;
    let most = (1 << bits) - 1;
    let mut number = usize::from(*first) & most;
    if number < most {
        return Ok(number);
    }
    for at in 0..MOST {
        let (byte, rest) = left.split_first().ok_or(Bad::CutOff)?;
        *left = rest;
        number += usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(Bad::Wrong)
}

/// Takes a string (5.2).
fn string<'b>(left: &mut &'b [u8]) -> Result<Cow<'b, [u8]>, Bad> {
    let coded = left.first().ok_or(Bad::CutOff)? & 0x80 != 0;
    let length = integer(left, 7)?;
    let (string, rest) = left.split_at_checked(length).ok_or(Bad::CutOff)?;
    *left = rest;
    if coded { huffman::decode(string).map(Cow::Owned).ok_or(Bad::Wrong) } else { Ok(Cow::Borrowed(string)) }
}

fn is_line(name: &[u8], value: &[u8]) -> bool {
    match name {
        b":method" => is_token(value),
        b":status" => is_status(value),
        b":authority" | b":path" | b":protocol" | b":scheme" => std::str::from_utf8(value).is_ok(),
        _ => is_token(name) && !name.iter().any(u8::is_ascii_uppercase) && is_value(value),
    }
}

fn is_token(word: &[u8]) -> bool {
    let mark = |byte: &u8| b"!#$%&'*+-.^_`|~".contains(byte);
    !word.is_empty() && word.iter().all(|byte| byte.is_ascii_alphanumeric() || mark(byte))
}

fn is_status(value: &[u8]) -> bool {
    matches!(value, [b'1'..=b'9', b'0'..=b'9', b'0'..=b'9'])
}

fn is_value(value: &[u8]) -> bool {
    value.iter().all(|&byte| byte == b'\t' || byte >= b' ' && byte != 0x7f)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Entries of the static table, a literal of each kind, names from both tables, a table's size.
    const GOOD: &[u8] =
        b"\x3f\xe1\x1f\x82\x86\x04\x03/h2\x41\x06server\x40\x01a\x01b\x00\x01c\x00\x10\x01d\x02e \x0f\x01\x03xyz\x7e\x01v\xbf";

    #[test]
    fn lines_are_told_apart() {
        assert_eq!(look(GOOD, false), Look::Lines);
        assert_eq!(look(b"", false), Look::Lines);
        // In Huffman's code.
        assert_eq!(look(b"\x04\x83\x62\x71\x7f", false), Look::Lines);
        for cut in 0..GOOD.len() {
            assert_eq!(look(&GOOD[..cut], true), Look::Lines, "{cut}");
            assert_ne!(look(&GOOD[..cut], false), Look::Malformed, "{cut}");
        }
        assert_eq!(look(&GOOD[..GOOD.len() - 2], false), Look::Unreadable);
    }

    #[test]
    fn what_cannot_be_read_is_so_in_every_place() {
        for bad in [
            &b"\x40"[..],
            b"\xff\x80",
            b"\xff\xff\xff\xff\xff\x7f",
            b"\x00\x06x-",
            b"\x04\x84\x62\x71\x7f\xff",
            b"\x04\x83\x62\x71\x00",
            b"\x04\x84\xff\xff\xff\xff",
        ] {
            assert_eq!(look(bad, false), Look::Unreadable, "{bad:x?}");
            assert_eq!(look(&[GOOD, bad].concat(), false), Look::Unreadable, "{bad:x?}");
            // Also behind a line that is malformed.
            assert_eq!(look(&[b"\x00\x01A\x01b", bad].concat(), false), Look::Unreadable, "{bad:x?}");
        }
    }

    #[test]
    fn malformed_lines_are_no_fault_of_the_compression() {
        for bad in [
            &b"\x00\x01A\x01b"[..],
            b"\x00\x00\x01b",
            b"\x00\x03a b\x01b",
            b"\x00\x01a\x01\n",
            b"\x00\x04:odd\x01b",
            b"\x00\x07:status\x012",
            b"\x02\x03G T",
            b"\x08\x03abc",
            b"\x04\x01\xff",
            b"\x0f\x01\x01\x00",
            // Of a name that nobody knows here.
            b"\x7e\x02a\n",
            // X in Huffman's code.
            b"\x00\x81\xfc\x01b",
        ] {
            assert_eq!(look(bad, false), Look::Malformed, "{bad:x?}");
            assert_eq!(look(&[GOOD, bad, GOOD].concat(), false), Look::Malformed, "{bad:x?}");
        }
    }

    #[test]
    fn a_first_line_is_a_pseudo_header_by_any_name() {
        for bad in [
            &b"\x81"[..],
            b"\x8e",
            b"\x04\x03/h2",
            b"\x42\x03GET",
            b"\x1e\x03200",
            b"\x00\x07:method\x03GET",
            b"\x10\x04:odd\x01b",
            // The same in Huffman's code: `:method`, and a colon alone.
            b"\x40\x85\xb9\x49\x53\x39\xe4\x03GET",
            b"\x00\x81\xb9\x00",
            b"\x3f\xe1\x1f\x20\x82",
        ] {
            assert!(begins_with_pseudo(bad), "{bad:x?}");
        }
        for good in [
            &b""[..],
            b"\x80",
            b"\x8f",
            b"\x0f\x00\x01v",
            b"\x00\x01a\x01:",
            b"\x40",
            b"\xbe",
            b"\x00\x00\x00",
            b"\x20",
        ] {
            assert!(!begins_with_pseudo(good), "{good:x?}");
        }
    }
}
