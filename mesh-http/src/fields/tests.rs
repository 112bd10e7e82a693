//! Lines that stay, go and come.

use crate::{Fields, Known, Limits, Outcome, RequestHead, is_protected};

fn parsed(text: &str) -> RequestHead {
    let mut head = RequestHead::default();
    assert_eq!(head.parse(text.as_bytes(), &Limits::default()), Outcome::Head, "{text}");
    head
}

fn written(fields: &Fields, buf: &str) -> String {
    let mut out = Vec::new();
    fields.write(buf.as_bytes(), &mut out);
    String::from_utf8(out).unwrap()
}

fn stripped(lines: &str) -> String {
    let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
    let mut head = parsed(&text);
    head.fields.strip_hop_by_hop(text.as_bytes(), false);
    let left = written(&head.fields, &text);
    left.strip_prefix("Host: a\r\n").unwrap().to_owned()
}

#[test]
fn lines_that_stay_are_as_they_were_received() {
    let text = "GET / HTTP/1.1\r\nHost:a \t\r\nX-One:  1\r\nx-two: 2\r\nX-One: 3\r\nEmpty:\r\n\r\nbody";
    let mut head = parsed(text);
    assert_eq!(written(&head.fields, text), "Host:a \t\r\nX-One:  1\r\nx-two: 2\r\nX-One: 3\r\nEmpty:\r\n");
    assert!(head.fields.remove(text.as_bytes(), "x-one"));
    assert!(!head.fields.remove(text.as_bytes(), "x-one"));
    assert_eq!(written(&head.fields, text), "Host:a \t\r\nx-two: 2\r\nEmpty:\r\n");
    head.fields.set(text.as_bytes(), "X-Two", b"new");
    head.fields.append("x-two", b"more");
    head.fields.append("x-gone", b"");
    head.fields.remove(text.as_bytes(), "X-Gone");
    let all: Vec<_> = head.fields.all(text.as_bytes(), "x-two").collect();
    assert_eq!(all, [b"new".as_slice(), b"more"]);
    assert_eq!(written(&head.fields, text), "Host:a \t\r\nEmpty:\r\nX-Two: new\r\nx-two: more\r\n");
    assert_eq!(head.fields.size(), "Host: a\r\nEmpty: \r\nX-Two: new\r\nx-two: more\r\n".len() as u64);
    assert_eq!(head.fields.known(text.as_bytes(), Known::Host), Some(b"a".as_slice()));
}

#[test]
fn what_is_for_the_next_hop_stays_behind() {
    let lines = "Connection: close, X-Private,,\r\nX-Private: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: x\r\n\
                 HTTP2-Settings: AA\r\nTE: deflate, trailers\r\nUpgrade: h2c\r\nTrailer: x\r\nX-Kept: 2\r\n";
    assert_eq!(stripped(lines), "Trailer: x\r\nX-Kept: 2\r\nte: trailers\r\n");
    assert_eq!(stripped("TE: gzip\r\nConnection: te\r\n"), "");
    assert_eq!(stripped("Connection: te\r\nTE: trailers\r\n"), "te: trailers\r\n");
}

#[test]
fn nobody_takes_away_what_the_mesh_relies_on() {
    for name in [
        "x-forwarded-client-cert",
        "X-Forwarded-For",
        "x-forwarded-host",
        "x-request-id",
        "x-envoy-attempt-count",
        "Authorization",
        "traceparent",
    ] {
        assert!(is_protected(name.as_bytes()), "{name}");
        let line = format!("{name}: 1\r\n");
        assert_eq!(stripped(&format!("Connection: {name}\r\n{line}")), line);
    }
    assert_eq!(stripped("Connection: host, content-length\r\nContent-Length: 0\r\n"), "Content-Length: 0\r\n");
    assert!(!is_protected(b"x-mine") && !is_protected(b"x"));
}

#[test]
fn an_encoding_goes_on_with_the_body_that_it_is_of() {
    let text = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: transfer-encoding\r\n\r\n";
    let mut head = parsed(text);
    head.fields.strip_hop_by_hop(text.as_bytes(), true);
    assert_eq!(written(&head.fields, text), "Host: a\r\nTransfer-Encoding: chunked\r\n");
    head.fields.strip_hop_by_hop(text.as_bytes(), false);
    assert_eq!(written(&head.fields, text), "Host: a\r\n");
}
