//! Recognises an HTTP/1 request line and the HTTP/2 preface.
//!
//! In: first bytes, at least one. Out: the verdict. The whole request line is wanted, so that a
//! line such as Redis' `GET key` is not taken for HTTP; a line longer than the limit is HTTP if all
//! seen of it could be.

use super::{Detect, MAX_BYTES};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Methods of RFC 9110, PATCH (RFC 5789), and those of WebDAV and its kin in IANA's registry.
const METHODS: &[&[u8]] = &[
    b"GET",
    b"HEAD",
    b"POST",
    b"PUT",
    b"DELETE",
    b"CONNECT",
    b"OPTIONS",
    b"TRACE",
    b"PATCH",
    b"ACL",
    b"BASELINE-CONTROL",
    b"BIND",
    b"CHECKIN",
    b"CHECKOUT",
    b"COPY",
    b"LABEL",
    b"LINK",
    b"LOCK",
    b"MERGE",
    b"MKACTIVITY",
    b"MKCALENDAR",
    b"MKCOL",
    b"MKREDIRECTREF",
    b"MKWORKSPACE",
    b"MOVE",
    b"ORDERPATCH",
    b"PROPFIND",
    b"PROPPATCH",
    b"QUERY",
    b"REBIND",
    b"REPORT",
    b"SEARCH",
    b"UNBIND",
    b"UNCHECKOUT",
    b"UNLINK",
    b"UNLOCK",
    b"UPDATE",
    b"UPDATEREDIRECTREF",
    b"VERSION-CONTROL",
];
const VERSIONS: [&[u8]; 2] = [b"HTTP/1.1", b"HTTP/1.0"];

pub(super) fn detect(bytes: &[u8]) -> Detect {
    if bytes.starts_with(PREFACE) {
        return Detect::Http2;
    }
    if PREFACE.starts_with(bytes) {
        return Detect::More;
    }
    match request_line(bytes) {
        Line::Http => Detect::Http1,
        Line::Other => Detect::Opaque,
        // A target that fills the buffer: nothing but HTTP looks like that.
        Line::Partial if bytes.len() >= MAX_BYTES => Detect::Http1,
        Line::Partial => Detect::More,
    }
}

enum Line {
    Http,
    Other,
    Partial,
}

/// `method SP target SP HTTP/1.x` and a line end, bare LF allowed (RFC 9112 2.2).
fn request_line(bytes: &[u8]) -> Line {
    let Some(space) = bytes.iter().position(|b| *b == b' ') else {
        let possible = METHODS.iter().any(|method| method.starts_with(bytes));
        return if possible { Line::Partial } else { Line::Other };
    };
    let (method, rest) = bytes.split_at(space);
    if !METHODS.contains(&method) {
        return Line::Other;
    }
    let target = rest.get(1..).unwrap_or_default();
    // Control characters and spaces end a target; bytes beyond ASCII do occur in the wild.
    let Some(end) = target.iter().position(|b| *b <= b' ' || *b == 0x7f) else {
        return Line::Partial;
    };
    let version = target.get(end..).unwrap_or_default();
    let [b' ', version @ ..] = version else {
        return Line::Other;
    };
    if end == 0 {
        return Line::Other;
    }
    for known in VERSIONS {
        if let Some(line_end) = version.strip_prefix(known) {
            return match line_end {
                [b'\n', ..] | [b'\r', b'\n', ..] => Line::Http,
                [] | [b'\r'] => Line::Partial,
                _ => Line::Other,
            };
        }
        if known.starts_with(version) {
            return Line::Partial;
        }
    }
    Line::Other
}
