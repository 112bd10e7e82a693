//! Cases for lines of a request's head: RFC 9113, 8.2 to 8.2.3.

use super::case::{Case, bad, good};
use super::frames::*;
use super::peer::{Outcome, Peer};
use super::requests::refused;

/// A request with one further line, which must be refused.
fn line(peer: &mut Peer, name: &str, value: &str) -> Outcome {
    refused(peer, &request_and("GET", &[(name, value)]))
}

/// A request with one further line as bytes, which must be refused.
fn raw(peer: &mut Peer, name: &[u8], value: &[u8]) -> Outcome {
    peer.send(&frame(HEADERS, WHOLE, 1, &[block(&request("GET")), literal(name, value)].concat()));
    peer.refused(1)
}

/// One that must be answered, with a line that the server must have seen so.
fn seen(peer: &mut Peer, more: &[(&str, &str)], told: &str) -> Outcome {
    peer.send(&headers(1, WHOLE, &request_and("GET", more)));
    let seen = peer.answered(1)?;
    peer.body_has(1, told).map(|()| seen)
}

pub const CASES: &[Case] = &[
    bad("8.2", "a name in upper case", |peer| line(peer, "X-Upper", "1")),
    bad("8.2.1", "a name with a space", |peer| line(peer, "x y", "1")),
    bad("8.2.1", "a name with a colon", |peer| line(peer, "x:y", "1")),
    bad("8.2.1", "a name with a line's end", |peer| line(peer, "x\r\ny", "1")),
    bad("8.2.1", "a name with a null", |peer| line(peer, "x\0y", "1")),
    bad("8.2.1", "a name with DEL", |peer| line(peer, "x\x7fy", "1")),
    bad("8.2.1", "a name beyond ASCII", |peer| raw(peer, b"x\xe9y", b"1")),
    bad("8.2.1", "a name that is no token", |peer| line(peer, "x(y)", "1")),
    bad("8.2.1", "an empty name", |peer| line(peer, "", "1")),
    bad("8.2.1", "a value with a null", |peer| line(peer, "x-value", "a\0b")),
    bad("8.2.1", "a value with a line feed", |peer| line(peer, "x-value", "a\nx-more: b")),
    bad("8.2.1", "a value with a carriage return", |peer| line(peer, "x-value", "a\rb")),
    bad("8.2.1", "a value with a line's end and a whole request", |peer| {
        line(peer, "x-value", "a\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: server\r\n\r\n")
    }),
    bad("8.2.1", "a value that begins with a space", |peer| line(peer, "x-value", " a")),
    bad("8.2.1", "a value that ends with a space", |peer| line(peer, "x-value", "a ")),
    bad("8.2.1", "a value that ends with a tab", |peer| line(peer, "x-value", "a\t")),
    good("8.2.1", "a value with a tab and bytes beyond ASCII", |peer| {
        let value = literal(b"x-value", b"a\tb \xc3\xa9");
        peer.send(&frame(HEADERS, WHOLE, 1, &[block(&request("GET")), value].concat()));
        peer.answered(1)
    }),
    good("8.2.1", "an empty value", |peer| seen(peer, &[("x-value", "")], "\"x-value\":\"\"")),
    bad("8.2.2", "connection", |peer| line(peer, "connection", "close")),
    bad("8.2.2", "keep-alive", |peer| line(peer, "keep-alive", "timeout=5")),
    bad("8.2.2", "proxy-connection", |peer| line(peer, "proxy-connection", "keep-alive")),
    bad("8.2.2", "transfer-encoding", |peer| {
        peer.send(&headers(1, END_HEADERS, &request_and("POST", &[("transfer-encoding", "chunked")])));
        peer.send(&data(1, END_STREAM, b"0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n"));
        peer.refused(1)
    }),
    bad("8.2.2", "upgrade", |peer| line(peer, "upgrade", "websocket")),
    bad("8.2.2", "te with another value than trailers", |peer| line(peer, "te", "gzip, trailers")),
    good("8.2.2", "te of trailers", |peer| seen(peer, &[("te", "trailers")], "\"x-forwarded-proto\"")),
    good("8.2.3", "cookies in several lines are one to a server of HTTP/1", |peer| {
        seen(peer, &[("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3")], "\"cookie\":\"a=1; b=2; c=3\"")
    }),
    good("10.3", "lines of the same name stay in order", |peer| {
        peer.send(&headers(1, WHOLE, &request_and("GET", &[("x-many", "1"), ("x-many", "2")])));
        peer.answered(1)
    }),
    bad("10.5.1", "a head above SETTINGS_MAX_HEADER_LIST_SIZE", |peer| {
        let most = peer.settings.get(&MAX_HEADER_LIST_SIZE).map_or(60 << 10, |most| *most as usize);
        let value = "x".repeat(15_000);
        let block = block(&request_and("GET", &vec![("x-long", &value[..]); most / 15_000 + 1]));
        let parts: Vec<&[u8]> = block.chunks(16_000).collect();
        for (at, part) in parts.iter().enumerate() {
            let flags = if at == parts.len() - 1 { END_HEADERS } else { 0 };
            let (kind, end) = if at == 0 { (HEADERS, END_STREAM) } else { (CONTINUATION, 0) };
            peer.send(&frame(kind, flags | end, 1, part));
        }
        peer.refused(1)
    }),
];
