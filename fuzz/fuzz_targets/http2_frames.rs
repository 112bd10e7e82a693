//! Frames of HTTP/2 as a client sends them, cut into reads: what the agent finds out about them beside `h2`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_agent::proxy::follow_http2;

fuzz_target!(|input: (&[u8], Vec<u8>)| {
    let (mut left, cuts) = input;
    let mut pieces = vec![&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..]];
    for cut in cuts {
        let (piece, rest) = left.split_at(usize::from(cut).min(left.len()));
        pieces.push(piece);
        left = rest;
    }
    pieces.push(left);
    follow_http2(pieces);
});
