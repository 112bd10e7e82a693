//! The code of HPACK's strings (RFC 7541, 5.2 and appendix B).
//!
//! In: a string in the code. Out: its bytes, or none if it is not in the code. Bit by bit: nobody waits for it but a connection that
//! has ended.

/// Symbols: every byte, and the end of a string.
const SYMBOLS: usize = 257;
/// The end of a string, which no string may hold.
const END: u16 = 256;
/// The longest code has this many bits.
const LONGEST: usize = 30;

/// How many bits the code of each symbol has. The code is canonical: shorter codes come first, and those of one length in the order of
/// their symbols, each one more than the one before.
#[rustfmt::skip]
const LENGTHS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

/// Codes of one length.
#[derive(Clone, Copy)]
struct Codes {
    first: u32,
    count: u32,
    /// Where the symbol of the first stands among all.
    start: usize,
}

const TABLE: ([Codes; LONGEST + 1], [u16; SYMBOLS]) = {
    let mut codes = [Codes { first: 0, count: 0, start: 0 }; LONGEST + 1];
    let mut symbols = [0; SYMBOLS];
    let (mut length, mut next, mut at) = (1, 0, 0);
    while length <= LONGEST {
        next <<= 1;
        codes[length] = Codes { first: next, count: 0, start: at };
        let mut symbol = 0;
        while symbol < SYMBOLS {
            if LENGTHS[symbol] as usize == length {
                symbols[at] = symbol as u16;
                codes[length].count += 1;
                (next, at) = (next + 1, at + 1);
            }
            symbol += 1;
        }
        length += 1;
    }
    (codes, symbols)
};
static CODES: [Codes; LONGEST + 1] = TABLE.0;
static SYMBOL: [u16; SYMBOLS] = TABLE.1;

/// The bytes of a string; `None` if it names its end, or is filled with anything but fewer than eight ones.
pub(super) fn decode(string: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let (mut code, mut length) = (0_u32, 0);
    for bit in string.iter().flat_map(|byte| (0..8).rev().map(move |at| u32::from(byte >> at & 1))) {
        (code, length) = (code << 1 | bit, length + 1);
        let codes = CODES.get(length)?;
        let Some(at) = code.checked_sub(codes.first).filter(|at| *at < codes.count) else { continue };
        match SYMBOL[codes.start + at as usize] {
            END => return None,
            symbol => bytes.push(symbol.to_le_bytes()[0]),
        }
        (code, length) = (0, 0);
    }
    (length < 8 && code == (1 << length) - 1).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_examples_of_the_document() {
        for (string, bytes) in [
            (&b"\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff"[..], "www.example.com"),
            (b"\xa8\xeb\x10\x64\x9c\xbf", "no-cache"),
            (b"\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f", "custom-key"),
            (
                b"\xd0\x7a\xbe\x94\x10\x54\xd4\x44\xa8\x20\x05\x95\x04\x0b\x81\x66\xe0\x82\xa6\x2d\x1b\xff",
                "Mon, 21 Oct 2013 20:13:21 GMT",
            ),
            (b"\x62\x71\x7f", "/h2"),
            (b"", ""),
        ] {
            assert_eq!(decode(string).as_deref(), Some(bytes.as_bytes()));
        }
        // The longest codes, of bytes that no text has: a line's end is thirty bits, and two more fill.
        assert_eq!(decode(b"\xff\xff\xff\xf3").as_deref(), Some(&b"\n"[..]));
    }

    #[test]
    fn refuses_what_fills_wrongly_and_a_string_s_end() {
        assert_eq!(decode(b"\x62\x71\x7f\xff"), None);
        assert_eq!(decode(b"\x62\x71\x00"), None);
        assert_eq!(decode(b"\xff\xff\xff\xff"), None);
        assert_eq!(decode(b"\xff"), None);
    }
}
