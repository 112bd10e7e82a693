//! Cases for frames that carry requests: DATA, HEADERS, CONTINUATION (RFC 9113, 6.1, 6.2, 6.10), and for flow control (6.9).

use super::case::{Case, bad, good};
use super::controls::first_data;
use super::frames::*;
use super::peer::{Outcome, Peer, Seen};

fn ends(peer: &mut Peer, bytes: &[u8], code: u32) -> Outcome {
    peer.send(bytes);
    peer.connection_error(&[code])
}

/// The largest window (RFC 9113, 6.9.1).
const MOST: u32 = (1 << 31) - 1;

pub const CASES: &[Case] = &[
    bad("6.1", "DATA on stream 0: PROTOCOL_ERROR", |peer| ends(peer, &data(0, END_STREAM, b"x"), PROTOCOL_ERROR)),
    bad("6.1", "DATA with more padding than payload: PROTOCOL_ERROR", |peer| {
        peer.send(&headers(1, END_HEADERS, &request("POST")));
        ends(peer, &frame(DATA, PADDED | END_STREAM, 1, &[6, b't', b'e', b's', b't']), PROTOCOL_ERROR)
    }),
    good("6.1", "padding is no part of a body", |peer| {
        peer.send(&headers(1, END_HEADERS, &request_and("POST", &[("content-length", "4")])));
        peer.send(&frame(DATA, PADDED | END_STREAM, 1, b"\x05test\0\0\0\0\0"));
        peer.answered(1)
    }),
    good("6.1", "DATA without data", |peer| {
        peer.send(&headers(1, END_HEADERS, &request("POST")));
        peer.send(&[data(1, 0, b""), data(1, 0, b"x"), data(1, END_STREAM, b"")].concat());
        peer.answered(1)
    }),
    bad("6.2", "HEADERS on stream 0: PROTOCOL_ERROR", |peer| ends(peer, &get(0), PROTOCOL_ERROR)),
    bad("6.2", "HEADERS with more padding than payload: PROTOCOL_ERROR", |peer| {
        let block = [&[200][..], &block(&request("GET"))].concat();
        ends(peer, &frame(HEADERS, PADDED | WHOLE, 1, &block), PROTOCOL_ERROR)
    }),
    bad("6.2", "HEADERS too short for the fields of their flags: an error", |peer| {
        peer.send(&frame(HEADERS, PRIORITY_FLAG | WHOLE, 1, &[0, 0, 0]));
        peer.connection_error(&[FRAME_SIZE_ERROR, PROTOCOL_ERROR])
    }),
    good("6.2", "HEADERS with padding", |peer| {
        let padded = [&[3][..], &block(&request("GET")), &[0; 3]].concat();
        peer.send(&frame(HEADERS, PADDED | WHOLE, 1, &padded));
        peer.answered(1)
    }),
    good("6.2", "HEADERS with a priority and padding", |peer| {
        let padded = [&[3, 0, 0, 0, 0, 255][..], &block(&request("GET")), &[0; 3]].concat();
        peer.send(&frame(HEADERS, PADDED | PRIORITY_FLAG | WHOLE, 1, &padded));
        peer.answered(1)
    }),
    bad("6.9", "WINDOW_UPDATE by 0 of the connection: PROTOCOL_ERROR", |peer| {
        ends(peer, &window(0, 0), PROTOCOL_ERROR)
    }),
    bad("6.9", "WINDOW_UPDATE by 0 of a stream: PROTOCOL_ERROR", |peer| {
        peer.send(&headers(1, END_HEADERS, &request("POST")));
        peer.send(&window(1, 0));
        peer.stream_error(1, &[PROTOCOL_ERROR])
    }),
    bad("6.9", "WINDOW_UPDATE of three octets: FRAME_SIZE_ERROR", |peer| {
        ends(peer, &frame(WINDOW_UPDATE, 0, 0, &[0; 3]), FRAME_SIZE_ERROR)
    }),
    bad("6.9.1", "a connection's window above 2^31-1: FLOW_CONTROL_ERROR", |peer| {
        peer.send(&window(0, MOST));
        ends(peer, &window(0, MOST), FLOW_CONTROL_ERROR)
    }),
    bad("6.9.1", "a stream's window above 2^31-1: FLOW_CONTROL_ERROR", |peer| {
        peer.send(&headers(1, END_HEADERS, &request("POST")));
        peer.send(&[window(1, MOST), window(1, MOST)].concat());
        peer.stream_error(1, &[FLOW_CONTROL_ERROR])
    }),
    good("6.9.1", "no more DATA than a window of one octet has room for", |peer| {
        peer.send(&settings(&[(INITIAL_WINDOW_SIZE, 1)]));
        peer.acknowledgement(2)?;
        peer.send(&get(1));
        first_data(peer, 1)?;
        peer.send(&window(1, 65_535));
        peer.answered(1)
    }),
    good("6.9.1", "a window of 0 lets nothing through but the head and other frames", |peer| {
        peer.send(&settings(&[(INITIAL_WINDOW_SIZE, 0)]));
        peer.acknowledgement(2)?;
        peer.send(&get(1));
        peer.alive()?;
        let early = peer.bodies.contains_key(&1);
        peer.send(&window(1, 65_535));
        let seen = peer.answered(1)?;
        if early { Err("DATA without room".to_owned()) } else { Ok(seen) }
    }),
    good("6.9.2", "a larger initial window holds for streams that are open", |peer| {
        peer.send(&settings(&[(INITIAL_WINDOW_SIZE, 0)]));
        peer.acknowledgement(2)?;
        peer.send(&get(1));
        peer.alive()?;
        peer.send(&settings(&[(INITIAL_WINDOW_SIZE, 1)]));
        first_data(peer, 1)?;
        peer.send(&settings(&[(INITIAL_WINDOW_SIZE, 65_535)]));
        peer.answered(1)
    }),
    good("6.9.2", "a window that became negative must be filled first", |peer| {
        peer.send(&settings(&[(INITIAL_WINDOW_SIZE, 3)]));
        peer.acknowledgement(2)?;
        peer.send(&get(1));
        first_data(peer, 3)?;
        // Three have gone, one is allowed: two short, and then one more.
        peer.send(&settings(&[(INITIAL_WINDOW_SIZE, 1)]));
        peer.acknowledgement(3)?;
        peer.send(&window(1, 3));
        first_data(peer, 1)?;
        peer.send(&window(1, 65_535));
        peer.answered(1)
    }),
    bad("6.9.2", "an initial window that takes one of a stream above 2^31-1: FLOW_CONTROL_ERROR", |peer| {
        peer.send(&headers(1, END_HEADERS, &request("POST")));
        peer.send(&window(1, MOST - 65_535));
        peer.alive()?;
        ends(peer, &settings(&[(INITIAL_WINDOW_SIZE, 65_536)]), FLOW_CONTROL_ERROR)
    }),
    good("6.10", "a head in several frames", |peer| {
        let block = block(&request_and("GET", &[("x-a", "1"), ("x-b", "2")]));
        let (first, rest) = block.split_at(5);
        let (second, third) = rest.split_at(20);
        peer.send(&frame(HEADERS, END_STREAM, 1, first));
        peer.send(&frame(CONTINUATION, 0, 1, second));
        peer.send(&frame(CONTINUATION, 0, 1, b""));
        peer.send(&frame(CONTINUATION, END_HEADERS, 1, third));
        peer.answered(1)
    }),
    bad("6.10", "CONTINUATION behind a whole head: PROTOCOL_ERROR", |peer| {
        peer.send(&headers(1, END_HEADERS, &request("POST")));
        ends(peer, &frame(CONTINUATION, END_HEADERS, 1, &block(&[("a", "b")])), PROTOCOL_ERROR)
    }),
    bad("6.10", "CONTINUATION on stream 0: PROTOCOL_ERROR", |peer| {
        peer.send(&headers(1, END_STREAM, &request("GET")));
        ends(peer, &frame(CONTINUATION, END_HEADERS, 0, &block(&[("a", "b")])), PROTOCOL_ERROR)
    }),
    bad("6.10", "CONTINUATION behind DATA: PROTOCOL_ERROR", |peer| {
        peer.send(&headers(1, END_HEADERS, &request("POST")));
        peer.send(&data(1, 0, b"x"));
        ends(peer, &frame(CONTINUATION, END_HEADERS, 1, &block(&[("a", "b")])), PROTOCOL_ERROR)
    }),
    bad("10.5.1", "a head of two mebibytes that does not end is not kept", |peer| {
        peer.send(&headers(1, END_STREAM, &request("GET")));
        let part = literal(b"x-long", &[b'x'; 16_000]);
        for _ in 0..131 {
            peer.send(&frame(CONTINUATION, 0, 1, &part));
        }
        over(peer)
    }),
    bad("10.5.1", "a head of ten thousand empty CONTINUATION frames is not borne", |peer| {
        peer.send(&headers(1, END_STREAM, &request("GET")));
        let many = frame(CONTINUATION, 0, 1, b"").repeat(1000);
        for _ in 0..10 {
            peer.send(&many);
        }
        over(peer)
    }),
    bad("10.5", "a thousand streams opened and reset at once are not borne for ever", |peer| {
        let both = |n: u32| [get(2 * n + 1), reset(2 * n + 1, CANCEL)].concat();
        for round in 0..20 {
            peer.send(&(round * 1000..(round + 1) * 1000).flat_map(both).collect::<Vec<_>>());
        }
        over(peer)
    }),
];

/// Too much of something: the stream is refused, or the connection ends.
fn over(peer: &mut Peer) -> Outcome {
    match peer.see() {
        seen @ Seen::Answer(_, 431) => Ok(seen),
        seen => {
            peer.put_back(seen);
            peer.connection_error(&[PROTOCOL_ERROR, ENHANCE_YOUR_CALM, COMPRESSION_ERROR, CANCEL])
        }
    }
}
