//! Cases for requests: their frames and bodies (RFC 9113, 8.1), pseudo headers (8.3), CONNECT (8.5; RFC 8441).

use super::case::{Case, bad, good};
use super::frames::*;
use super::peer::{Outcome, Peer, Seen};

/// A head that must be refused.
pub fn refused(peer: &mut Peer, lines: &[(&str, &str)]) -> Outcome {
    peer.send(&headers(1, WHOLE, lines));
    peer.refused(1)
}

/// A head that must be answered.
fn answered(peer: &mut Peer, lines: &[(&str, &str)]) -> Outcome {
    peer.send(&headers(1, WHOLE, lines));
    peer.answered(1)
}

/// The head without a line.
fn without<'a>(name: &str) -> Vec<(&'a str, &'a str)> {
    request("GET").into_iter().filter(|line| line.0 != name).collect()
}

/// The head with another value for a line.
fn with<'a>(name: &str, value: &'a str) -> Vec<(&'a str, &'a str)> {
    request("GET").into_iter().map(|line| if line.0 == name { (line.0, value) } else { line }).collect()
}

/// A body in these pieces, announced as `length`.
fn body(peer: &mut Peer, length: &str, pieces: &[&[u8]]) {
    peer.send(&headers(1, END_HEADERS, &request_and("POST", &[("content-length", length)])));
    let last = pieces.len() - 1;
    for (at, piece) in pieces.iter().enumerate() {
        peer.send(&data(1, if at == last { END_STREAM } else { 0 }, piece));
    }
}

pub const CASES: &[Case] = &[
    good("8.1", "a body in several frames arrives whole", |peer| {
        body(peer, "9", &[b"abc", b"", b"def", b"ghi"]);
        let seen = peer.answered(1)?;
        peer.body_has(1, "\"bytes\":9").map(|()| seen)
    }),
    good("8.1", "a body of 200,000 octets arrives whole, as windows allow", |peer| {
        peer.send(&headers(1, END_HEADERS, &request_and("POST", &[("content-length", "200000")])));
        for at in 0..20 {
            // Within the window that every server has at first, then as far as it has opened it.
            peer.send(&data(1, if at == 19 { END_STREAM } else { 0 }, &[b'x'; 10_000]));
            if at % 6 == 5 {
                peer.alive()?;
            }
        }
        let seen = peer.answered(1)?;
        peer.body_has(1, "\"bytes\":200000").map(|()| seen)
    }),
    good("8.1", "an answer to HEAD has no body", |peer| {
        peer.send(&headers(1, WHOLE, &request("HEAD")));
        let seen = peer.answered(1)?;
        if peer.bodies.get(&1).is_some_and(|body| !body.is_empty()) { Err("a body".to_owned()) } else { Ok(seen) }
    }),
    good("8.1", "trailers behind a body", |peer| {
        peer.send(&headers(1, END_HEADERS, &request("POST")));
        peer.send(&data(1, 0, b"x"));
        peer.send(&headers(1, WHOLE, &[("x-trailer", "1")]));
        peer.answered(1)
    }),
    good("8.1", "trailers without a body", |peer| {
        peer.send(&headers(1, END_HEADERS, &request("POST")));
        peer.send(&headers(1, WHOLE, &[("x-trailer", "1")]));
        peer.answered(1)
    }),
    bad("8.1", "a second head that does not end the stream: PROTOCOL_ERROR", |peer| {
        peer.send(&headers(1, END_HEADERS, &request("POST")));
        peer.send(&data(1, 0, b"x"));
        peer.send(&headers(1, END_HEADERS, &[("x-trailer", "1")]));
        peer.send(&data(1, END_STREAM, b"x"));
        peer.refused(1)
    }),
    bad("8.1", "trailers with a pseudo header: PROTOCOL_ERROR", |peer| {
        peer.send(&headers(1, END_HEADERS, &request("POST")));
        peer.send(&data(1, 0, b"x"));
        peer.send(&headers(1, WHOLE, &[(":method", "GET")]));
        peer.refused(1)
    }),
    bad("8.1", "trailers with a name in upper case: PROTOCOL_ERROR", |peer| {
        peer.send(&headers(1, END_HEADERS, &request("POST")));
        peer.send(&data(1, 0, b"x"));
        peer.send(&headers(1, WHOLE, &[("X-Trailer", "1")]));
        peer.refused(1)
    }),
    good("8.1.1", "content-length that the body has", |peer| {
        body(peer, "4", &[b"te", b"st"]);
        peer.answered(1)
    }),
    good("8.1.1", "content-length of 0 without a body", |peer| {
        answered(peer, &request_and("POST", &[("content-length", "0")]))
    }),
    bad("8.1.1", "content-length without a body: PROTOCOL_ERROR", |peer| {
        refused(peer, &request_and("POST", &[("content-length", "1")]))
    }),
    bad("8.1.1", "content-length above the body's: PROTOCOL_ERROR", |peer| {
        body(peer, "5", &[b"test"]);
        peer.refused(1)
    }),
    bad("8.1.1", "content-length below the body's: PROTOCOL_ERROR", |peer| {
        body(peer, "3", &[b"test"]);
        peer.refused(1)
    }),
    bad("8.1.1", "content-length below that of several frames: PROTOCOL_ERROR", |peer| {
        body(peer, "7", &[b"test", b"test"]);
        peer.refused(1)
    }),
    bad("8.1.1", "content-length above that of several frames: PROTOCOL_ERROR", |peer| {
        body(peer, "9", &[b"test", b"test"]);
        peer.refused(1)
    }),
    bad("8.1.1", "content-length above a body that trailers end: PROTOCOL_ERROR", |peer| {
        peer.send(&headers(1, END_HEADERS, &request_and("POST", &[("content-length", "9")])));
        peer.send(&data(1, 0, b"test"));
        peer.send(&headers(1, WHOLE, &[("x-trailer", "1")]));
        peer.refused(1)
    }),
    bad("8.1.1", "two lengths that differ: PROTOCOL_ERROR", |peer| {
        peer.send(&headers(1, END_HEADERS, &request_and("POST", &[("content-length", "4"), ("content-length", "5")])));
        peer.send(&data(1, END_STREAM, b"test"));
        peer.refused(1)
    }),
    bad("8.1.1", "content-length with a sign: PROTOCOL_ERROR", |peer| {
        body(peer, "+4", &[b"test"]);
        peer.refused(1)
    }),
    bad("8.1.1", "content-length that is no number: PROTOCOL_ERROR", |peer| {
        body(peer, "four", &[b"test"]);
        peer.refused(1)
    }),
    bad("8.1.1", "content-length above 2^64: PROTOCOL_ERROR", |peer| {
        body(peer, "18446744073709551620", &[b"test"]);
        peer.refused(1)
    }),
    bad("8.3", "a pseudo header that nobody knows", |peer| refused(peer, &request_and("GET", &[(":unknown", "1")]))),
    bad("8.3", "a response's pseudo header", |peer| refused(peer, &request_and("GET", &[(":status", "200")]))),
    bad("8.3", "a pseudo header behind others", |peer| {
        let lines = [(":method", "GET"), (":scheme", "http"), (":path", "/h2"), ("x-a", "1"), (":authority", "server")];
        refused(peer, &lines)
    }),
    bad("8.3", "a pseudo header with an empty name", |peer| refused(peer, &request_and("GET", &[(":", "1")]))),
    bad("8.3", ":method in upper case", |peer| {
        let lines = [(":METHOD", "GET"), (":scheme", "http"), (":path", "/h2"), (":authority", "server")];
        refused(peer, &lines)
    }),
    bad("8.3.1", "no :method", |peer| refused(peer, &without(":method"))),
    bad("8.3.1", "no :scheme", |peer| refused(peer, &without(":scheme"))),
    bad("8.3.1", "no :path", |peer| refused(peer, &without(":path"))),
    bad("8.3.1", "two of :method", |peer| refused(peer, &[&[(":method", "GET")][..], &request("GET")].concat())),
    bad("8.3.1", "two of :scheme", |peer| refused(peer, &[&[(":scheme", "http")][..], &request("GET")].concat())),
    bad("8.3.1", "two of :path", |peer| refused(peer, &[&[(":path", "/h2")][..], &request("GET")].concat())),
    bad("8.3.1", "two of :authority", |peer| {
        refused(peer, &[&[(":authority", "server")][..], &request("GET")].concat())
    }),
    bad("8.3.1", "two of :path that differ", |peer| refused(peer, &[&[(":path", "/x")][..], &request("GET")].concat())),
    bad("8.3.1", "an empty :path", |peer| refused(peer, &with(":path", ""))),
    bad("8.3.1", "a :path without its slash", |peer| refused(peer, &with(":path", "h2"))),
    bad("8.3.1", "a :path of * for GET", |peer| refused(peer, &with(":path", "*"))),
    bad("8.3.1", "a :path with a space", |peer| refused(peer, &with(":path", "/h2 HTTP/1.1"))),
    bad("8.3.1", "a :path with a line's end", |peer| refused(peer, &with(":path", "/h2\r\nx: y"))),
    bad("8.3.1", "a :path with a null", |peer| refused(peer, &with(":path", "/h2\0"))),
    bad("8.3.1", "a :method with a space", |peer| refused(peer, &with(":method", "GET /x"))),
    bad("8.3.1", "a :method with a line's end", |peer| refused(peer, &with(":method", "GET\r\n"))),
    bad("8.3.1", "an empty :method", |peer| refused(peer, &with(":method", ""))),
    bad("8.3.1", "a :scheme with a space", |peer| refused(peer, &with(":scheme", "http x"))),
    bad("8.3.1", "an :authority with a space", |peer| refused(peer, &with(":authority", "server x"))),
    bad("8.3.1", "an :authority with a line's end", |peer| refused(peer, &with(":authority", "server\r\nx: y"))),
    bad("8.3.1", "an :authority with a path", |peer| refused(peer, &with(":authority", "server/x"))),
    bad("8.3.1", "an :authority with a user", |peer| refused(peer, &with(":authority", "user@server"))),
    good("8.3.1", "a method that nobody knows", |peer| answered(peer, &with(":method", "X-ODD"))),
    good("8.3.1", "a path with a query", |peer| {
        let seen = answered(peer, &with(":path", "/h2?a=b&c=%20"))?;
        peer.body_has(1, "/h2?a=b&c=%20").map(|()| seen)
    }),
    good("8.3.1", "a host in place of :authority", |peer| {
        answered(peer, &[&without(":authority")[..], &[("host", "server")]].concat())
    }),
    good("8.3.1", "a host that is the same as :authority", |peer| {
        answered(peer, &request_and("GET", &[("host", "server")]))
    }),
    good("8.4", "an answer is no promise: nothing is pushed", |peer| {
        peer.send(&get(1));
        loop {
            match peer.next_frame() {
                Ok(frame) if frame.kind == PUSH_PROMISE => return Err("PUSH_PROMISE".to_owned()),
                Ok(frame) if frame.stream == 1 && frame.flags & END_STREAM != 0 && frame.kind != PING => {
                    return peer.answered(1);
                }
                Ok(_) => {}
                Err(seen) => return Err(format!("instead of an answer: {seen}")),
            }
        }
    }),
    bad("8.5", "CONNECT without :authority", |peer| refused(peer, &[(":method", "CONNECT")])),
    bad("8.5", "CONNECT with :scheme and :path", |peer| refused(peer, &request("CONNECT"))),
    bad("8441", ":protocol for another method than CONNECT", |peer| {
        refused(peer, &[&request("GET")[..], &[(":protocol", "websocket")]].concat())
    }),
    good("8.7", "a client may end its request early: the stream is reset, the connection stays", |peer| {
        peer.send(&headers(1, END_HEADERS, &request_and("POST", &[("content-length", "100")])));
        peer.send(&[data(1, 0, b"x"), reset(1, CANCEL)].concat());
        peer.goes_on().map(|()| Seen::Silence)
    }),
];
