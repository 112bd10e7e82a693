//! Cases for streams and their states: RFC 9113, 5.1 and 5.1.1 to 5.4.

use super::case::{Case, bad, good};
use super::frames::*;
use super::peer::{Outcome, Peer, Seen};

/// Frames that open nothing, on a stream that nobody has opened.
fn idle(peer: &mut Peer, bytes: &[u8]) -> Outcome {
    peer.send(bytes);
    peer.connection_error(&[PROTOCOL_ERROR])
}

/// What a client has said all of may not go on.
fn behind_the_end(peer: &mut Peer, bytes: &[u8]) -> Outcome {
    peer.send(&[get(1), bytes.to_vec()].concat());
    after_the_end(peer)
}

/// The same when both have said all.
fn behind_both_ends(peer: &mut Peer, bytes: &[u8]) -> Outcome {
    peer.send(&get(1));
    peer.answered(1)?;
    peer.send(bytes);
    after_the_end(peer)
}

/// The same when the client itself has reset the stream.
fn behind_a_reset(peer: &mut Peer, bytes: &[u8]) -> Outcome {
    peer.send(&headers(1, END_HEADERS, &request("POST")));
    peer.send(&[reset(1, CANCEL), bytes.to_vec()].concat());
    after_the_end(peer)
}

fn after_the_end(peer: &mut Peer) -> Outcome {
    // The answer may have been on its way.
    match peer.see() {
        Seen::Answer(1, 200) => {}
        seen => peer.put_back(seen),
    }
    peer.stream_error(1, &[STREAM_CLOSED, PROTOCOL_ERROR])
}

/// A frame that a stream bears in any state but idle: the connection goes on.
fn borne(peer: &mut Peer, bytes: &[u8]) -> Outcome {
    peer.send(&get(1));
    peer.answered(1)?;
    peer.send(bytes);
    peer.alive()
}

pub const CASES: &[Case] = &[
    bad("5.1", "DATA on an idle stream: PROTOCOL_ERROR", |peer| idle(peer, &data(1, END_STREAM, b"x"))),
    bad("5.1", "RST_STREAM on an idle stream: PROTOCOL_ERROR", |peer| idle(peer, &reset(1, CANCEL))),
    bad("5.1", "WINDOW_UPDATE on an idle stream: PROTOCOL_ERROR", |peer| idle(peer, &window(1, 100))),
    bad("5.1", "CONTINUATION on an idle stream: PROTOCOL_ERROR", |peer| {
        idle(peer, &frame(CONTINUATION, END_HEADERS, 1, &block(&request("GET"))))
    }),
    good("5.1", "PRIORITY on an idle stream is borne", |peer| {
        peer.send(&frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 15]));
        peer.send(&get(1));
        peer.answered(1)
    }),
    bad("5.1", "half-closed: DATA behind the end of a request: STREAM_CLOSED", |peer| {
        behind_the_end(peer, &data(1, END_STREAM, b"x"))
    }),
    bad("5.1", "half-closed: HEADERS behind the end of a request: STREAM_CLOSED", |peer| {
        behind_the_end(peer, &headers(1, WHOLE, &[("x-late", "1")]))
    }),
    bad("5.1", "half-closed: CONTINUATION behind the end of a request: an error", |peer| {
        behind_the_end(peer, &frame(CONTINUATION, END_HEADERS, 1, &block(&[("x-late", "1")])))
    }),
    good("5.1", "half-closed: WINDOW_UPDATE and PRIORITY behind the end of a request are borne", |peer| {
        peer.send(&[get(1), window(1, 100), frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 15])].concat());
        peer.answered(1)
    }),
    good("5.1", "half-closed: RST_STREAM behind the end of a request is borne", |peer| {
        peer.send(&[get(1), reset(1, CANCEL)].concat());
        peer.goes_on().map(|()| Seen::Silence)
    }),
    bad("5.1", "closed by a reset: DATA: STREAM_CLOSED", |peer| behind_a_reset(peer, &data(1, END_STREAM, b"x")))
        .unlogged(),
    bad("5.1", "closed by a reset: HEADERS: STREAM_CLOSED", |peer| {
        behind_a_reset(peer, &headers(1, WHOLE, &[("x-late", "1")]))
    }),
    bad("5.1", "closed by a reset: CONTINUATION: an error", |peer| {
        behind_a_reset(peer, &frame(CONTINUATION, END_HEADERS, 1, &block(&[("x-late", "1")])))
    }),
    bad("5.1", "closed by both ends: DATA: STREAM_CLOSED", |peer| behind_both_ends(peer, &data(1, END_STREAM, b"x")))
        .unlogged(),
    bad("5.1", "closed by both ends: HEADERS: STREAM_CLOSED", |peer| behind_both_ends(peer, &get(1))),
    bad("5.1", "closed by both ends: CONTINUATION: an error", |peer| {
        behind_both_ends(peer, &frame(CONTINUATION, END_HEADERS, 1, &block(&[("x-late", "1")])))
    }),
    good("5.1", "closed by both ends: WINDOW_UPDATE is borne", |peer| borne(peer, &window(1, 100))),
    good("5.1", "closed by both ends: PRIORITY is borne", |peer| {
        borne(peer, &frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 15]))
    }),
    good("5.1", "closed by both ends: RST_STREAM is borne", |peer| borne(peer, &reset(1, CANCEL))),
    bad("5.1.1", "a stream with an even number: PROTOCOL_ERROR", |peer| idle(peer, &get(2))),
    bad("5.1.1", "a stream with a smaller number than the one before: an error", |peer| {
        peer.send(&get(5));
        peer.answered(5)?;
        peer.send(&get(3));
        peer.connection_error(&[PROTOCOL_ERROR, STREAM_CLOSED])
    }),
    bad("5.1.1", "a stream that was skipped is closed: DATA there: an error", |peer| {
        peer.send(&get(5));
        peer.answered(5)?;
        peer.send(&data(3, END_STREAM, b"x"));
        peer.stream_error(3, &[PROTOCOL_ERROR, STREAM_CLOSED])
    })
    .unlogged(),
    good("5.1.1", "numbers may be skipped", |peer| {
        peer.send(&[get(1), get(101), get(0x00ff_ffff)].concat());
        for _ in 0..3 {
            match peer.see() {
                Seen::Answer(_, 200) => {}
                seen => return Err(format!("instead of three answers: {seen}")),
            }
        }
        peer.alive()
    }),
    bad("5.1.2", "more streams than SETTINGS_MAX_CONCURRENT_STREAMS: an error of the one too many", |peer| {
        let most = peer.settings.get(&MAX_CONCURRENT_STREAMS).copied().ok_or("no SETTINGS_MAX_CONCURRENT_STREAMS")?;
        for number in 0..=most {
            peer.send(&headers(2 * number + 1, END_HEADERS, &request("POST")));
        }
        let mut seen = peer.see();
        // So many at once may be more than the server behind takes, which is not the question: they are answered, and nobody wants their rest.
        while matches!(seen, Seen::Answer(of, _) | Seen::Reset(of, NO_ERROR) if of <= 2 * most) {
            seen = peer.see();
        }
        match seen {
            seen @ Seen::Reset(of, PROTOCOL_ERROR | REFUSED_STREAM) if of == 2 * most + 1 => Ok(seen),
            seen => {
                peer.put_back(seen);
                peer.connection_error(&[PROTOCOL_ERROR, ENHANCE_YOUR_CALM])
            }
        }
    })
    .unlogged(),
    good("5.2", "what one stream does not take holds up no other", |peer| {
        peer.send(&settings(&[(INITIAL_WINDOW_SIZE, 0)]));
        peer.acknowledgement(2)?;
        peer.send(&[get(1), get(3), window(3, 65_535)].concat());
        peer.answered(3)?;
        peer.send(&window(1, 65_535));
        peer.answered(1)
    }),
    good("5.4.2", "a reset stream leaves others alone", |peer| {
        peer.send(&headers(1, END_HEADERS, &request("POST")));
        peer.send(&headers(3, END_HEADERS, &request("POST")));
        peer.send(&[reset(1, CANCEL), data(3, END_STREAM, b"x")].concat());
        peer.answered(3)
    }),
];
