//! Which frame was at fault, however the bytes come.

use super::*;
use crate::proxy::http::http2::watch::tests::frame;

/// A head that opens a stream, and one that nobody can read.
const GOOD: &[u8] = b"\x82\x86\x84\x01\x06server";
const BAD: &[u8] = b"\x82\x86\x84\xbe";

fn preface() -> Vec<u8> {
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &frame(SETTINGS, 0, 0, b"\0\x03\0\0\0\x01")[..]].concat()
}

/// What stands in the GOAWAY if all of this comes in reads of `size` bytes, and `h2` ends the connection behind the last.
fn code_in(frames: &[Vec<u8>], size: usize, accepted: u32) -> Option<u8> {
    let (mut incoming, resets) = (Incoming::default(), Resets::default());
    for read in [preface(), frames.concat()].concat().chunks(size) {
        incoming.asked();
        incoming.pass(read, &resets);
    }
    incoming.code(accepted, &resets)
}

/// The same in reads of any size.
fn code(frames: &[Vec<u8>], accepted: u32) -> Option<u8> {
    let length = preface().len() + frames.concat().len();
    let found = code_in(frames, length, accepted);
    for size in 1..length {
        assert_eq!(code_in(frames, size, accepted), found, "{frames:x?} in reads of {size}");
    }
    found
}

#[test]
fn lengths_that_rules_forbid_are_seen() {
    let post = || frame(HEADERS, END_HEADERS, 1, GOOD);
    for (kind, flags, stream, length) in [
        (DATA, PADDED, 1, 0),
        (HEADERS, PADDED | END_HEADERS, 3, 0),
        (HEADERS, WITH_PRIORITY | END_HEADERS, 3, 4),
        (HEADERS, WITH_PRIORITY | PADDED | END_HEADERS, 3, 5),
        (PRIORITY, 0, 1, 4),
        (PRIORITY, 0, 1, 6),
        (RST_STREAM, 0, 1, 3),
        (RST_STREAM, 0, 1, 5),
        (SETTINGS, ACK, 0, 6),
        (SETTINGS, 0, 0, 3),
        (SETTINGS, 0, 0, 13),
        (PING, 0, 0, 6),
        (PING, ACK, 0, 10),
        (GOAWAY, 0, 0, 7),
        (WINDOW_UPDATE, 0, 0, 3),
        (WINDOW_UPDATE, 0, 1, 5),
    ] {
        let short = frame(kind, flags, stream, &vec![0; length]);
        assert_eq!(code(&[post(), short.clone()], 1), Some(FRAME_SIZE_ERROR), "{short:x?}");
        // What stands behind it nobody reads.
        assert_eq!(code(&[post(), short.clone(), frame(PING, 0, 1, b"")], 1), Some(FRAME_SIZE_ERROR), "{short:x?}");
        // A head before it in the same read that was not accepted is the fault.
        assert_eq!(code_in(&[post(), short.clone()], 1000, 0), None);
        // So is whatever else has another.
        assert_eq!(code_in(&[frame(WINDOW_UPDATE, 0, 9, &[0, 0, 0, 1]), short], 1000, 0), None);
    }
}

#[test]
fn values_of_settings_are_judged_in_their_order() {
    let set =
        |of: &[&[u8; 6]]| code(&[frame(SETTINGS, 0, 0, &of.iter().flat_map(|one| **one).collect::<Vec<u8>>())], 0);
    const WINDOW: &[u8; 6] = b"\0\x04\x80\0\0\0";
    assert_eq!(set(&[WINDOW]), Some(FLOW_CONTROL_ERROR));
    assert_eq!(set(&[b"\0\x03\0\0\0\x09", WINDOW, b"\0\x02\0\0\0\x02"]), Some(FLOW_CONTROL_ERROR));
    for other in [b"\0\x02\0\0\0\x02", b"\0\x08\0\0\0\x02", b"\0\x05\0\0\x3f\xff", b"\0\x05\x01\0\0\0"] {
        assert_eq!(set(&[other, WINDOW]), None);
    }
    for good in [b"\0\x04\x7f\xff\xff\xff", b"\0\x05\0\0\x40\0", b"\0\x05\0\xff\xff\xff", b"\x77\x77\xff\xff\xff\xff"] {
        assert_eq!(set(&[good]), None);
        assert_eq!(set(&[good, WINDOW]), Some(FLOW_CONTROL_ERROR));
    }
}

#[test]
fn what_is_no_fault_of_a_length_keeps_its_code() {
    for (kind, flags, stream, payload) in [
        (DATA, 0, 0, &[][..]),
        (DATA, PADDED, 1, &[6, 0]),
        (HEADERS, END_HEADERS, 0, BAD),
        (HEADERS, END_HEADERS, 2, BAD),
        (HEADERS, END_HEADERS | PADDED, 1, &[200, 0x80]),
        (PRIORITY, 0, 0, &[0; 4]),
        (RST_STREAM, 0, 0, &[0; 3]),
        (SETTINGS, 0, 1, &[0; 3]),
        (PUSH_PROMISE, END_HEADERS, 1, BAD),
        (PING, 0, 1, &[0; 6]),
        (GOAWAY, 0, 1, &[0; 7]),
        (CONTINUATION, END_HEADERS, 1, BAD),
    ] {
        assert_eq!(code(&[frame(kind, flags, stream, payload)], 0), None, "{kind} {stream}");
    }
}

#[test]
fn heads_that_cannot_be_read_are_told_from_malformed_ones() {
    let whole = END_HEADERS | END_STREAM;
    let head = |block: &[u8]| frame(HEADERS, whole, 1, block);
    let unreadable = |frames: &[Vec<u8>]| assert_eq!(code(frames, 0), Some(COMPRESSION_ERROR), "{frames:x?}");
    unreadable(&[head(BAD)]);
    unreadable(&[head(b"\x80")]);
    unreadable(&[head(&[GOOD, b"\x00\x81"].concat())]);
    // In several frames, at the first that shows it or at the last.
    unreadable(&[frame(HEADERS, END_STREAM, 1, BAD)]);
    let several =
        |last| [frame(HEADERS, 0, 1, GOOD), frame(CONTINUATION, 0, 1, b""), frame(CONTINUATION, END_HEADERS, 1, last)];
    unreadable(&several(b"\x40"));
    // Where only an index could be wrong, it need not be: `h2` lets go of a malformed beginning, and then knows no block to go on with.
    assert_eq!(code(&several(b"\xbe"), 0), None);
    // Nor where a block of a stream that nobody may open must go on first.
    assert_eq!(code(&[frame(HEADERS, 0, 2, GOOD), head(BAD)], 0), None);
    // With padding and a priority before it, which are no part of it, whatever they look like.
    let padded = [b"\x03\0\x01A\x01b", BAD, b"\0\0\0"].concat();
    unreadable(&[frame(HEADERS, whole | PADDED | WITH_PRIORITY, 1, &padded)]);
    let late = [b"\0\x01A\x01b", BAD, BAD, BAD].concat();
    unreadable(&[frame(HEADERS, whole | WITH_PRIORITY, 1, &late)]);
    // Behind frames that can be no fault, and before the body that belongs to it.
    unreadable(&[frame(SETTINGS, ACK, 0, b""), frame(PING, 0, 0, &[0; 8]), frame(0x16, 0, 0, b"odd"), head(BAD)]);
    let body = [frame(HEADERS, END_HEADERS, 1, BAD), frame(DATA, 0, 1, b"x"), frame(DATA, END_STREAM, 1, b"x")];
    assert_eq!(code_in(&body, 1000, 0), Some(COMPRESSION_ERROR));

    assert_eq!(code(&[head(&[GOOD, b"\x00\x01A\x01b"].concat())], 0), None);
    // Accepted: something else was at fault.
    assert_eq!(code(&[head(GOOD)], 1), None);
    // Beside what can be at fault too.
    assert_eq!(code_in(&[frame(RST_STREAM, 0, 9, &[0; 4]), head(BAD)], 1000, 0), None);
    assert_eq!(code_in(&[head(BAD), frame(DATA, 0, 1, b"x")], 1000, 0), None);
    assert_eq!(code_in(&[frame(SETTINGS, ACK, 0, b""), frame(SETTINGS, ACK, 0, b""), head(BAD)], 1000, 0), None);
    // Of two heads in one read, only the second can be told, if the first was accepted.
    let two = [head(GOOD), frame(HEADERS, whole, 3, BAD)];
    assert_eq!(code_in(&two, 1000, 1), Some(COMPRESSION_ERROR));
    assert_eq!(code_in(&two, 1000, 0), None);
    assert_eq!(code_in(&[head(BAD), frame(HEADERS, whole, 3, BAD)], 1000, 0), None);
    // Also where the second has only begun.
    let begun = [head(BAD), frame(HEADERS, whole, 3, BAD)[..12].to_vec()];
    assert_eq!(code_in(&begun, 1000, 0), None);
}

#[test]
fn of_trailers_only_what_cannot_be_read_is_told() {
    let post = || frame(HEADERS, END_HEADERS, 1, GOOD);
    let trailers = |block: &[u8]| frame(HEADERS, END_HEADERS | END_STREAM, 1, block);
    let beside = [post(), frame(DATA, 0, 1, b"x"), trailers(b"\x40")];
    assert_eq!(code(&beside, 1), Some(COMPRESSION_ERROR));
    // The head in the same read may have been at fault.
    assert_eq!(code_in(&beside, 1000, 0), None);
    let apart = |block: &[u8]| {
        let (mut incoming, resets) = (Incoming::default(), Resets::default());
        for read in [preface(), post(), trailers(block)] {
            incoming.asked();
            incoming.pass(&read, &resets);
        }
        incoming.code(1, &resets)
    };
    assert_eq!(apart(b"\x40"), Some(COMPRESSION_ERROR));
    // The stream may have been closed, which is another fault.
    assert_eq!(apart(b"\xbe"), None);
    // What has come of the frame behind is no part of it.
    let begun = [post(), trailers(b"\x82"), frame(CONTINUATION, END_HEADERS, 1, b"\x40\x40")[..10].to_vec()];
    assert_eq!(code(&begun, 1), None);
}

#[test]
fn after_a_malformed_message_indices_are_not_told_of() {
    let (mut incoming, resets) = (Incoming::default(), Resets::default());
    incoming.pass(&[preface(), frame(HEADERS, END_HEADERS, 1, BAD)].concat(), &resets);
    assert_eq!(incoming.code(0, &resets), Some(COMPRESSION_ERROR));
    resets.faulty.set(true);
    assert_eq!(incoming.code(0, &resets), None);
}

#[test]
fn a_long_head_is_kept_in_part() {
    let long = [&b"\x00\x01a\x7f\xa1\x1f"[..], &[b'x'; 4128], b"\x82"].concat();
    let (mut incoming, resets) = (Incoming::default(), Resets::default());
    incoming.pass(&[preface(), frame(HEADERS, END_HEADERS, 1, &long)].concat(), &resets);
    assert_eq!(incoming.code(0, &resets), None);
    assert_eq!(incoming.head.kept.len(), MAX_KEPT);
    incoming.asked();
    incoming.pass(&frame(HEADERS, END_HEADERS, 3, BAD), &resets);
    assert_eq!(incoming.code(0, &resets), Some(COMPRESSION_ERROR));
}

#[test]
fn pseudo_headers_of_trailers_are_seen() {
    let whole = END_HEADERS | END_STREAM;
    let forbidden = |block: &[u8], split: usize| {
        let (first, rest) = block.split_at(split);
        let trailers = [frame(HEADERS, END_STREAM, 1, first), frame(CONTINUATION, END_HEADERS, 1, rest)];
        let bytes = [preface(), frame(HEADERS, END_HEADERS, 1, GOOD), trailers.concat()].concat();
        for size in 1..=bytes.len() {
            let (mut incoming, resets) = (Incoming::default(), Resets::default());
            for read in bytes.chunks(size) {
                incoming.asked();
                incoming.pass(read, &resets);
            }
            let forbids = resets.forbids(1);
            assert!(!resets.forbids(1));
            if size == bytes.len() || forbids {
                return forbids;
            }
        }
        unreachable!()
    };
    for split in 0..5 {
        assert!(forbidden(b"\x02\x03GET", split));
        assert!(!forbidden(b"\x0f\x00\x01v", split.min(4)));
    }
    // A request's head has them by right; more than there is room for push out the oldest.
    let (mut incoming, resets) = (Incoming::default(), Resets::default());
    incoming.pass(&[preface(), frame(HEADERS, whole, 1, GOOD)].concat(), &resets);
    assert!(!resets.forbids(1));
    for stream in 0..=64 {
        resets.forbid(stream);
    }
    assert!(!resets.forbids(0) && resets.forbids(1) && resets.forbids(64));
}
