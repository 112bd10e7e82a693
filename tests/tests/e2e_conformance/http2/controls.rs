//! Cases for frames of connections and streams as a whole: RFC 9113, 6.3 to 6.8, and 7.

use super::case::{Case, bad, good};
use super::frames::*;
use super::peer::{Outcome, Peer, Seen};

fn ends(peer: &mut Peer, bytes: &[u8], code: u32) -> Outcome {
    peer.send(bytes);
    peer.connection_error(&[code])
}

fn set(peer: &mut Peer, of: &[(u16, u32)]) -> Outcome {
    peer.send(&settings(of));
    peer.acknowledgement(2)?;
    peer.send(&get(1));
    peer.answered(1)
}

pub const CASES: &[Case] = &[
    bad("6.3", "PRIORITY on stream 0: PROTOCOL_ERROR", |peer| {
        ends(peer, &frame(PRIORITY, 0, 0, &[0, 0, 0, 0, 15]), PROTOCOL_ERROR)
    }),
    bad("6.3", "PRIORITY of four octets: FRAME_SIZE_ERROR", |peer| {
        peer.send(&headers(1, END_HEADERS, &request("POST")));
        peer.send(&frame(PRIORITY, 0, 1, &[0, 0, 0, 0]));
        peer.stream_error(1, &[FRAME_SIZE_ERROR])
    }),
    bad("6.4", "RST_STREAM on stream 0: PROTOCOL_ERROR", |peer| ends(peer, &reset(0, CANCEL), PROTOCOL_ERROR)),
    bad("6.4", "RST_STREAM of three octets: FRAME_SIZE_ERROR", |peer| {
        peer.send(&headers(1, END_HEADERS, &request("POST")));
        ends(peer, &frame(RST_STREAM, 0, 1, &[0; 3]), FRAME_SIZE_ERROR)
    }),
    bad("6.4", "RST_STREAM of five octets: FRAME_SIZE_ERROR", |peer| {
        peer.send(&headers(1, END_HEADERS, &request("POST")));
        ends(peer, &frame(RST_STREAM, 0, 1, &[0; 5]), FRAME_SIZE_ERROR)
    }),
    good("6.4", "a stream may be reset", |peer| {
        peer.send(&headers(1, END_HEADERS, &request("POST")));
        peer.send(&reset(1, CANCEL));
        peer.goes_on().map(|()| Seen::Silence)
    }),
    good("6.5", "SETTINGS are acknowledged, also empty ones", |peer| {
        peer.send(&settings(&[]));
        peer.acknowledgement(2)?;
        peer.alive()
    }),
    bad("6.5", "an acknowledgement of SETTINGS that has a payload: FRAME_SIZE_ERROR", |peer| {
        ends(peer, &frame(SETTINGS, ACK, 0, &[0; 6]), FRAME_SIZE_ERROR)
    }),
    bad("6.5", "SETTINGS on a stream: PROTOCOL_ERROR", |peer| {
        ends(peer, &frame(SETTINGS, 0, 1, &[0, 3, 0, 0, 0, 9]), PROTOCOL_ERROR)
    }),
    bad("6.5", "SETTINGS whose length is no multiple of six: FRAME_SIZE_ERROR", |peer| {
        ends(peer, &frame(SETTINGS, 0, 0, &[0, 3, 0]), FRAME_SIZE_ERROR)
    }),
    bad("6.5.2", "SETTINGS_ENABLE_PUSH of 2: PROTOCOL_ERROR", |peer| {
        ends(peer, &settings(&[(ENABLE_PUSH, 2)]), PROTOCOL_ERROR)
    }),
    bad("6.5.2", "SETTINGS_INITIAL_WINDOW_SIZE of 2^31: FLOW_CONTROL_ERROR", |peer| {
        ends(peer, &settings(&[(INITIAL_WINDOW_SIZE, 1 << 31)]), FLOW_CONTROL_ERROR)
    }),
    bad("6.5.2", "SETTINGS_MAX_FRAME_SIZE below 2^14: PROTOCOL_ERROR", |peer| {
        ends(peer, &settings(&[(MAX_FRAME_SIZE, 16_383)]), PROTOCOL_ERROR)
    }),
    bad("6.5.2", "SETTINGS_MAX_FRAME_SIZE above 2^24-1: PROTOCOL_ERROR", |peer| {
        ends(peer, &settings(&[(MAX_FRAME_SIZE, 1 << 24)]), PROTOCOL_ERROR)
    }),
    good("6.5.2", "a setting that nobody knows is ignored", |peer| set(peer, &[(0xff, 1), (0x7fff, u32::MAX)])),
    good("6.5.2", "SETTINGS_ENABLE_PUSH of 0", |peer| set(peer, &[(ENABLE_PUSH, 0)])),
    good("6.5.2", "the largest of all settings", |peer| {
        set(peer, &[(INITIAL_WINDOW_SIZE, (1 << 31) - 1), (MAX_FRAME_SIZE, (1 << 24) - 1)])
    }),
    good("6.5.2", "SETTINGS_MAX_CONCURRENT_STREAMS of 0 is the server's business only", |peer| {
        set(peer, &[(MAX_CONCURRENT_STREAMS, 0)])
    }),
    good("6.5.3", "of a setting that comes twice, the last counts", |peer| {
        peer.send(&settings(&[(INITIAL_WINDOW_SIZE, 100), (INITIAL_WINDOW_SIZE, 1)]));
        peer.acknowledgement(2)?;
        peer.send(&get(1));
        first_data(peer, 1)
    }),
    bad("6.6", "PUSH_PROMISE by a client: PROTOCOL_ERROR", |peer| {
        let promise = [&[0, 0, 0, 2], &block(&request("GET"))[..]].concat();
        peer.send(&headers(1, END_HEADERS, &request("POST")));
        ends(peer, &frame(PUSH_PROMISE, END_HEADERS, 1, &promise), PROTOCOL_ERROR)
    }),
    good("6.7", "PING is answered with what it says", |peer| {
        peer.send(&frame(PING, 0, 0, &[1, 2, 3, 4, 5, 6, 7, 8]));
        match peer.see() {
            seen @ Seen::Pong([1, 2, 3, 4, 5, 6, 7, 8]) => Ok(seen),
            seen => Err(format!("instead of an answer to PING: {seen}")),
        }
    }),
    good("6.7", "an answer to a PING that nobody has sent is ignored", |peer| {
        peer.send(&frame(PING, ACK, 0, b"unasked!"));
        peer.send(&frame(PING, 0, 0, b"asked..."));
        match peer.see() {
            seen @ Seen::Pong([b'a', b's', b'k', ..]) => Ok(seen),
            seen => Err(format!("instead of an answer to the other PING: {seen}")),
        }
    }),
    bad("6.7", "PING on a stream: PROTOCOL_ERROR", |peer| ends(peer, &frame(PING, 0, 1, &[0; 8]), PROTOCOL_ERROR)),
    bad("6.7", "PING of six octets: FRAME_SIZE_ERROR", |peer| {
        ends(peer, &frame(PING, 0, 0, &[0; 6]), FRAME_SIZE_ERROR)
    }),
    bad("6.7", "PING of ten octets: FRAME_SIZE_ERROR", |peer| {
        ends(peer, &frame(PING, 0, 0, &[0; 10]), FRAME_SIZE_ERROR)
    }),
    bad("6.8", "GOAWAY on a stream: PROTOCOL_ERROR", |peer| ends(peer, &frame(GOAWAY, 0, 1, &[0; 8]), PROTOCOL_ERROR)),
    bad("6.8", "GOAWAY of seven octets: FRAME_SIZE_ERROR", |peer| {
        ends(peer, &frame(GOAWAY, 0, 0, &[0; 7]), FRAME_SIZE_ERROR)
    }),
    good("6.8", "what has been asked before a GOAWAY is answered", |peer| {
        peer.send(&headers(1, END_HEADERS, &request("POST")));
        peer.send(&frame(GOAWAY, 0, 0, &[0; 8]));
        peer.send(&data(1, END_STREAM, b"x"));
        peer.answered(1)
    }),
    good("7", "RST_STREAM with a code that nobody knows", |peer| {
        peer.send(&headers(1, END_HEADERS, &request("POST")));
        peer.send(&reset(1, 0xff));
        peer.goes_on().map(|()| Seen::Silence)
    }),
    good("7", "GOAWAY with a code that nobody knows, and words", |peer| {
        peer.send(&headers(1, END_HEADERS, &request("POST")));
        peer.send(&frame(GOAWAY, 0, 0, b"\0\0\0\0\0\0\0\xffgoodbye"));
        peer.send(&data(1, END_STREAM, b"x"));
        match peer.see() {
            seen @ (Seen::Answer(1, 200) | Seen::Closed) => Ok(seen),
            seen => Err(format!("instead of an answer: {seen}")),
        }
    }),
];

/// Waits for the first DATA of stream 1, which must be of this length.
pub fn first_data(peer: &mut Peer, length: usize) -> Outcome {
    loop {
        match peer.next_frame() {
            Ok(frame) if frame.kind == DATA && frame.stream == 1 => {
                return if frame.payload.len() == length {
                    Ok(Seen::Data(length))
                } else {
                    Err(format!("DATA of {} octets, {length} had room", frame.payload.len()))
                };
            }
            Ok(_) => {}
            Err(seen) => return Err(format!("instead of DATA: {seen}")),
        }
    }
}
