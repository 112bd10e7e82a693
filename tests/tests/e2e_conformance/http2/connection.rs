//! Cases for the beginning of a connection and for frames in general: RFC 9113, 3.4 to 4.3 and 5.5.

use super::case::{Case, bad, good};
use super::frames::*;
use super::peer::PREFACE;

/// A type that no document defines.
const UNKNOWN: u8 = 0x16;

pub const CASES: &[Case] = &[
    good("3.4", "preface and SETTINGS are answered by SETTINGS, and a request by an answer", |peer| {
        peer.send(&get(1));
        peer.answered(1)
    }),
    good("3.4", "a request right behind the preface need not wait for the server", |peer| {
        peer.send(&[PREFACE, &settings(&[(HEADER_TABLE_SIZE, 0)]), &get(1)].concat());
        peer.answered(1)
    })
    .ungreeted(),
    bad("3.4", "a preface that is none ends the connection", |peer| {
        peer.send(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n");
        peer.send(&settings(&[]));
        peer.connection_error(&[PROTOCOL_ERROR])
    })
    .ungreeted()
    .unlogged(),
    bad("3.4", "PING where the client's SETTINGS must be: PROTOCOL_ERROR", |peer| {
        peer.send(&[PREFACE, &frame(PING, 0, 0, &[0; 8])].concat());
        peer.connection_error(&[PROTOCOL_ERROR])
    })
    .ungreeted(),
    bad("3.4", "HEADERS where the client's SETTINGS must be: PROTOCOL_ERROR", |peer| {
        peer.send(&[PREFACE, &get(1)].concat());
        peer.connection_error(&[PROTOCOL_ERROR])
    })
    .ungreeted(),
    good("4.1", "a frame of an unknown type is ignored", |peer| {
        peer.send(&frame(UNKNOWN, 0xff, 0, &[1; 30]));
        peer.send(&frame(UNKNOWN, 0, 1, b""));
        peer.send(&get(1));
        peer.answered(1)
    }),
    good("4.1", "flags without a meaning are ignored", |peer| {
        peer.send(&frame(PING, 0xfe, 0, b"flagged!"));
        peer.alive()
    }),
    good("4.1", "the reserved bit of a stream's number is ignored", |peer| {
        let mut bytes = get(1);
        bytes[5] |= 0x80;
        peer.send(&bytes);
        peer.answered(1)
    }),
    good("4.2", "DATA of 16,384 octets is taken", |peer| {
        peer.send(&headers(1, END_HEADERS, &request("POST")));
        peer.send(&data(1, END_STREAM, &[b'x'; 16_384]));
        peer.answered(1)
    }),
    bad("4.2", "DATA longer than SETTINGS_MAX_FRAME_SIZE: FRAME_SIZE_ERROR", |peer| {
        let most = peer.settings.get(&MAX_FRAME_SIZE).map_or(16_384, |most| *most as usize);
        peer.send(&headers(1, END_HEADERS, &request("POST")));
        peer.send(&data(1, END_STREAM, &vec![b'x'; most + 1]));
        peer.stream_error(1, &[FRAME_SIZE_ERROR])
    }),
    bad("4.2", "HEADERS longer than SETTINGS_MAX_FRAME_SIZE: FRAME_SIZE_ERROR", |peer| {
        let most = peer.settings.get(&MAX_FRAME_SIZE).map_or(16_384, |most| *most as usize);
        let value = "x".repeat(most);
        peer.send(&headers(1, WHOLE, &request_and("GET", &[("x-long", &value)])));
        peer.connection_error(&[FRAME_SIZE_ERROR])
    }),
    bad("4.2", "SETTINGS longer than SETTINGS_MAX_FRAME_SIZE: FRAME_SIZE_ERROR", |peer| {
        let most = peer.settings.get(&MAX_FRAME_SIZE).map_or(16_384, |most| *most as usize);
        peer.send(&frame(SETTINGS, 0, 0, &vec![0; (most / 6 + 1) * 6]));
        peer.connection_error(&[FRAME_SIZE_ERROR])
    }),
    bad("4.3", "a head block that cannot be read: COMPRESSION_ERROR", |peer| {
        peer.send(&frame(HEADERS, WHOLE, 1, &[0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]));
        peer.connection_error(&[COMPRESSION_ERROR])
    }),
    bad("4.3", "PRIORITY within a head block: PROTOCOL_ERROR", |peer| {
        peer.send(&headers(1, END_STREAM, &request("GET")));
        peer.send(&frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 255]));
        peer.send(&frame(CONTINUATION, END_HEADERS, 1, &block(&[("a", "b")])));
        peer.connection_error(&[PROTOCOL_ERROR])
    }),
    bad("4.3", "DATA within a head block: PROTOCOL_ERROR", |peer| {
        peer.send(&headers(1, 0, &request("POST")));
        peer.send(&data(1, END_STREAM, b"x"));
        peer.connection_error(&[PROTOCOL_ERROR])
    }),
    bad("4.3", "PING within a head block: PROTOCOL_ERROR", |peer| {
        peer.send(&headers(1, END_STREAM, &request("GET")));
        peer.send(&frame(PING, 0, 0, &[0; 8]));
        peer.connection_error(&[PROTOCOL_ERROR])
    }),
    bad("4.3", "SETTINGS within a head block: PROTOCOL_ERROR", |peer| {
        peer.send(&headers(1, END_STREAM, &request("GET")));
        peer.send(&settings(&[]));
        peer.connection_error(&[PROTOCOL_ERROR])
    }),
    bad("4.3", "HEADERS of another stream within a head block: PROTOCOL_ERROR", |peer| {
        peer.send(&headers(1, END_STREAM, &request("GET")));
        peer.send(&get(3));
        peer.connection_error(&[PROTOCOL_ERROR])
    }),
    bad("4.3", "CONTINUATION of another stream within a head block: PROTOCOL_ERROR", |peer| {
        peer.send(&headers(1, END_STREAM, &request("GET")));
        peer.send(&frame(CONTINUATION, END_HEADERS, 3, &block(&[("a", "b")])));
        peer.connection_error(&[PROTOCOL_ERROR])
    }),
    bad("5.5", "a frame of an unknown type within a head block: PROTOCOL_ERROR", |peer| {
        peer.send(&headers(1, END_STREAM, &request("GET")));
        peer.send(&frame(UNKNOWN, 0, 1, b"x"));
        peer.send(&frame(CONTINUATION, END_HEADERS, 1, &block(&[("a", "b")])));
        peer.connection_error(&[PROTOCOL_ERROR])
    }),
];
