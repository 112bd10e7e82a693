//! Cases for the compression of heads: RFC 7541.

use super::case::{Case, bad, good};
use super::frames::*;
use super::peer::{Outcome, Peer};

/// A request whose head block ends with these bytes cannot be read.
fn unreadable(peer: &mut Peer, bytes: &[u8]) -> Outcome {
    peer.send(&frame(HEADERS, WHOLE, 1, &[&block(&request("GET")), bytes].concat()));
    peer.connection_error(&[COMPRESSION_ERROR])
}

/// A request whose head block begins with these bytes cannot be read.
fn unreadable_at_first(peer: &mut Peer, bytes: &[u8]) -> Outcome {
    peer.send(&frame(HEADERS, WHOLE, 1, &[bytes, &block(&request("GET"))].concat()));
    peer.connection_error(&[COMPRESSION_ERROR])
}

/// A request with a head block of the case's own.
fn asked(peer: &mut Peer, stream: u32, block: &[u8], told: &str) -> Outcome {
    peer.send(&frame(HEADERS, WHOLE, stream, block));
    let seen = peer.answered(stream)?;
    peer.body_has(stream, told).map(|()| seen)
}

/// `:method: GET` and `:scheme: http` as entries of the static table, `:path: /h2` and `:authority: server` as literals.
const HEAD: &[u8] = b"\x82\x86\x04\x03/h2\x01\x06server";
/// `/h2` in Huffman's code, and seven ones to fill the last octet.
const HUFFMAN: [u8; 3] = [0x62, 0x71, 0x7f];
/// One line that goes into the dynamic table.
const INDEXED: &[u8] = b"\x40\x06x-kept\x05value";
/// The newest entry of the dynamic table.
const NEWEST: u8 = 0x80 | 62;

pub const CASES: &[Case] = &[
    good("7541/2.3.1", "entries of the static table", |peer| asked(peer, 1, HEAD, "\"path\":\"/h2\"")),
    good("7541/2.3.2", "a line of an earlier head, from the dynamic table", |peer| {
        asked(peer, 1, &[HEAD, INDEXED].concat(), "\"x-kept\":\"value\"")?;
        asked(peer, 3, &[HEAD, &[NEWEST]].concat(), "\"x-kept\":\"value\"")
    }),
    good("7541/2.3.2", "the name alone from the dynamic table", |peer| {
        asked(peer, 1, &[HEAD, INDEXED].concat(), "\"x-kept\":\"value\"")?;
        // Index 62 of four bits: 15 and 47.
        asked(peer, 3, &[HEAD, b"\x0f\x2f\x05other"].concat(), "\"x-kept\":\"other\"")
    }),
    bad("7541/2.3.3", "an index beyond both tables: COMPRESSION_ERROR", |peer| unreadable(peer, &[NEWEST])),
    bad("7541/2.3.3", "a name's index beyond both tables: COMPRESSION_ERROR", |peer| {
        unreadable(peer, b"\x7f\x07\x05value")
    }),
    bad("7541/6.1", "index 0: COMPRESSION_ERROR", |peer| unreadable(peer, &[0x80])),
    bad("7541/4.2", "a size of the dynamic table behind a line: COMPRESSION_ERROR", |peer| unreadable(peer, &[0x20])),
    bad("7541/6.3", "a dynamic table above its limit: COMPRESSION_ERROR", |peer| {
        let most = peer.settings.get(&HEADER_TABLE_SIZE).map_or(4096, |most| *most as usize);
        unreadable_at_first(peer, &integer(most + 1, 5, 0x20))
    }),
    good("7541/4.2", "a dynamic table that is made smaller, and larger again", |peer| {
        let sizes = [integer(0, 5, 0x20), integer(1000, 5, 0x20)].concat();
        asked(peer, 1, &[&sizes[..], HEAD, INDEXED].concat(), "\"x-kept\":\"value\"")?;
        asked(peer, 3, &[HEAD, &[NEWEST]].concat(), "\"x-kept\":\"value\"")
    }),
    bad("7541/4.3", "what a smaller dynamic table has lost is no entry: COMPRESSION_ERROR", |peer| {
        asked(peer, 1, &[HEAD, INDEXED].concat(), "\"x-kept\":\"value\"")?;
        let sizes = [integer(0, 5, 0x20), integer(1000, 5, 0x20)].concat();
        peer.send(&frame(HEADERS, WHOLE, 3, &[&sizes[..], HEAD, &[NEWEST]].concat()));
        peer.connection_error(&[COMPRESSION_ERROR])
    }),
    good("7541/4.4", "an entry larger than the dynamic table empties it", |peer| {
        let large = "x".repeat(5000);
        let entry = [&[0x40][..], &text(b"x-large"), &text(large.as_bytes())].concat();
        asked(peer, 1, &[HEAD, INDEXED, &entry].concat(), &large)?;
        asked(peer, 3, &[HEAD, INDEXED, &[NEWEST]].concat(), "\"x-kept\":\"value, value\"")
    }),
    bad("7541/5.1", "an integer that never ends: COMPRESSION_ERROR", |peer| {
        unreadable(peer, &[&[0xff; 12][..], &[0x7f]].concat())
    }),
    bad("7541/5.1", "an integer that is cut off: COMPRESSION_ERROR", |peer| unreadable(peer, &[0xff, 0x80])),
    bad("7541/5.2", "a string longer than its block: COMPRESSION_ERROR", |peer| unreadable(peer, b"\x00\x06x-")),
    good("7541/5.2", "a string in Huffman's code", |peer| {
        let path = [&[0x04, 0x83][..], &HUFFMAN].concat();
        asked(peer, 1, &[b"\x82\x86\x01\x06server", &path[..]].concat(), "\"path\":\"/h2\"")
    }),
    bad("7541/5.2", "Huffman's code with more than seven bits to fill: COMPRESSION_ERROR", |peer| {
        unreadable(peer, &[&[0x04, 0x84][..], &HUFFMAN, &[0xff]].concat())
    }),
    bad("7541/5.2", "Huffman's code that zeros fill: COMPRESSION_ERROR", |peer| {
        unreadable(peer, &[0x04, 0x83, 0x62, 0x71, 0x00])
    }),
    bad("7541/5.2", "Huffman's code of the end of a string: COMPRESSION_ERROR", |peer| {
        unreadable(peer, &[0x04, 0x84, 0xff, 0xff, 0xff, 0xff])
    }),
    good("7541/6.2.2", "a literal that is not kept", |peer| {
        asked(peer, 1, &[HEAD, b"\x00\x06x-once\x05value"].concat(), "\"x-once\":\"value\"")
    }),
    good("7541/6.2.3", "a literal that nobody may keep", |peer| {
        asked(peer, 1, &[HEAD, b"\x10\x08x-secret\x05value"].concat(), "\"x-secret\":\"value\"")
    }),
    bad("7541/6.2.2", "a literal that nobody has kept is no entry: COMPRESSION_ERROR", |peer| {
        asked(peer, 1, &[HEAD, b"\x00\x06x-once\x05value"].concat(), "\"x-once\":\"value\"")?;
        peer.send(&frame(HEADERS, WHOLE, 3, &[HEAD, &[NEWEST]].concat()));
        peer.connection_error(&[COMPRESSION_ERROR])
    }),
    bad("7541/7.1.3", "a head that ends within a line: COMPRESSION_ERROR", |peer| {
        peer.send(&frame(HEADERS, WHOLE, 1, &[HEAD, b"\x40"].concat()));
        peer.connection_error(&[COMPRESSION_ERROR])
    }),
];
