//! The corpus: each line of `corpus.txt` gives what it says, whole and byte by byte.
#![allow(clippy::panic, clippy::unwrap_used)]

use mesh_http::{Body, Framing, Limits, Outcome, RequestHead, ResponseHead, Version};

/// Lets the escapes of the corpus stand for their bytes.
fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        if c != '\\' {
            bytes.push(u8::try_from(c).unwrap());
            continue;
        }
        match rest.next().unwrap() {
            'r' => bytes.push(b'\r'),
            'n' => bytes.push(b'\n'),
            't' => bytes.push(b'\t'),
            '0' => bytes.push(0),
            '\\' => bytes.push(b'\\'),
            'x' => {
                let digits: String = rest.by_ref().take(2).collect();
                bytes.push(u8::from_str_radix(&digits, 16).unwrap());
            }
            other => panic!("\\{other} in {text}"),
        }
    }
    bytes
}

fn version(version: Version) -> &'static str {
    match version {
        Version::Http10 => "1.0",
        Version::Http11 => "1.1",
    }
}

fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

fn outcome(outcome: Outcome, head: impl FnOnce() -> String) -> String {
    match outcome {
        Outcome::More => "more".into(),
        Outcome::Refused(refusal) => format!("{refusal:?}"),
        Outcome::Head => head(),
    }
}

fn request(bytes: &[u8]) -> String {
    let mut head = RequestHead::default();
    outcome(head.parse(bytes, &Limits::default()), || {
        let (method, authority, path) = (head.method(bytes), head.authority(bytes), head.path(bytes));
        let (version, framing) = (version(head.version), head.framing);
        format!("{version} {method} {} {} {framing:?}", or_dash(authority), or_dash(&path))
    })
}

fn response(bytes: &[u8], method: &str) -> String {
    let mut head = ResponseHead::default();
    outcome(head.parse(bytes, method, &Limits::default()), || {
        format!("{} {} {:?}", version(head.version), head.status, head.framing)
    })
}

fn chunked(bytes: &[u8]) -> String {
    match Body::new(Framing::Chunked).pass(bytes) {
        Ok(step) if step.done => format!("done {}", or_dash(&String::from_utf8_lossy(&bytes[step.taken..]))),
        Ok(_) => "more".into(),
        Err(refusal) => format!("{refusal:?}"),
    }
}

fn answer(kind: &str, bytes: &[u8]) -> String {
    match kind.split_once(' ') {
        Some(("response", method)) => response(bytes, method),
        None if kind == "request" => request(bytes),
        None if kind == "chunked" => chunked(bytes),
        _ => panic!("{kind}"),
    }
}

#[test]
fn every_case_gives_what_it_says() {
    let mut cases = 0;
    let mut wrong = Vec::new();
    for line in include_str!("corpus.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let mut parts = line.splitn(3, " |");
        let mut next = || parts.next().unwrap_or_default().strip_prefix(' ').unwrap_or_default().to_owned();
        let kind = line.split(" |").next().unwrap();
        let _ = next();
        let (expected, text) = (next(), next());
        let bytes = unescaped(&text);
        let got = answer(kind, &bytes);
        if got != expected {
            wrong.push(format!("{line}\n    got {got}"));
        }
        // However the bytes come, the first answer that is not `more` is the same.
        let first = (0..=bytes.len()).map(|end| answer(kind, &bytes[..end])).find(|answer| *answer != "more");
        let first = first.unwrap_or_else(|| "more".into());
        let left = |answer: &str| answer.split(" NEXT").next().unwrap().split(" GET").next().unwrap().to_owned();
        let same = if kind == "chunked" {
            left(&first).starts_with("done") == left(&got).starts_with("done")
        } else {
            first == got
        };
        if !same {
            wrong.push(format!("{line}\n    byte by byte {first}"));
        }
        cases += 1;
    }
    assert!(wrong.is_empty(), "{} of {cases}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(cases > 130, "only {cases} cases");
}

#[test]
fn heads_have_bounds() {
    let limits = Limits { bytes: 100, lines: 3 };
    let ask = |lines: &str| {
        let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
        let mut head = RequestHead::default();
        (head.parse(text.as_bytes(), &limits), head.parse(&text.as_bytes()[..text.len() - 1], &limits))
    };
    use mesh_http::Refusal::{HeadTooLarge, TooManyLines};
    assert_eq!(ask("A: 1\r\nB: 2\r\n"), (Outcome::Head, Outcome::More));
    let refused = Outcome::Refused(TooManyLines);
    assert_eq!(ask("A: 1\r\nB: 2\r\nC: 3\r\n"), (refused, refused));
    // "GET / HTTP/1.1", "Host: a", "A: ", three line ends and the empty line: 32 bytes.
    assert_eq!(ask(&format!("A: {}\r\n", "x".repeat(68))), (Outcome::Head, Outcome::More));
    assert_eq!(ask(&format!("A: {}\r\n", "x".repeat(69))).0, Outcome::Refused(HeadTooLarge));
    use mesh_http::Refusal::{BareLf, OtherVersion, UnknownEncoding};
    let all = [HeadTooLarge, TooManyLines, BareLf, UnknownEncoding, OtherVersion];
    assert_eq!(all.map(|refusal| refusal.status()), [431, 431, 400, 501, 505]);
}

#[test]
fn trailers_and_chunk_lines_have_bounds() {
    use mesh_http::{MAX_CHUNK_LINE, MAX_TRAILERS};
    let pass = |text: String| Body::new(Framing::Chunked).pass(text.as_bytes()).map(|step| step.done);
    let ext = |length: usize| format!("0;{}\r\n\r\n", "x".repeat(length - 4));
    assert_eq!(pass(ext(MAX_CHUNK_LINE)), Ok(true));
    assert_eq!(pass(ext(MAX_CHUNK_LINE + 1)), Err(mesh_http::Refusal::Chunk));
    let line = |length: usize| format!("0\r\nA: {}\r\n\r\n", "x".repeat(length - 7));
    assert_eq!(pass(line(MAX_TRAILERS.bytes)), Ok(true));
    assert_eq!(pass(line(MAX_TRAILERS.bytes + 1)), Err(mesh_http::Refusal::TrailersTooLarge));
    let lines = |count: usize| format!("0\r\n{}\r\n", "A: 1\r\n".repeat(count));
    assert_eq!(pass(lines(MAX_TRAILERS.lines)), Ok(true));
    assert_eq!(pass(lines(MAX_TRAILERS.lines + 1)), Err(mesh_http::Refusal::TrailersTooLarge));
}

#[test]
fn connections_stay_as_both_ends_say() {
    let limits = Limits::default();
    for (start, lines, stays) in [
        ("HTTP/1.1", "", true),
        ("HTTP/1.1", "Connection: Close\r\n", false),
        ("HTTP/1.1", "Connection: x, close\r\n", false),
        ("HTTP/1.1", "Connection: keep-alive\r\nConnection: close\r\n", false),
        ("HTTP/1.0", "", false),
        ("HTTP/1.0", "Connection: Keep-Alive\r\n", true),
        ("HTTP/1.0", "Connection: keep-alive, close\r\n", false),
    ] {
        let text = format!("GET / {start}\r\nHost: a\r\n{lines}\r\n");
        let mut head = RequestHead::default();
        assert_eq!(head.parse(text.as_bytes(), &limits), Outcome::Head);
        assert_eq!(head.keep_alive, stays, "{text}");
        let text = format!("{start} 200 OK\r\nContent-Length: 0\r\n{lines}\r\n");
        let mut head = ResponseHead::default();
        assert_eq!(head.parse(text.as_bytes(), "GET", &limits), Outcome::Head);
        assert_eq!(head.keep_alive, stays, "{text}");
    }
}

#[test]
fn upgrades_are_wishes_of_new_clients_that_say_so_twice() {
    for (start, lines, wanted) in [
        ("HTTP/1.1", "Connection: Upgrade\r\nUpgrade: websocket\r\n", Some("websocket")),
        ("HTTP/1.1", "Upgrade: websocket\r\n", None),
        ("HTTP/1.1", "Connection: upgrade\r\n", None),
        ("HTTP/1.1", "Connection: upgrade\r\nUpgrade:\r\n", None),
        ("HTTP/1.0", "Connection: upgrade\r\nUpgrade: websocket\r\n", None),
    ] {
        let text = format!("GET / {start}\r\nHost: a\r\n{lines}\r\n");
        let mut head = RequestHead::default();
        assert_eq!(head.parse(text.as_bytes(), &Limits::default()), Outcome::Head);
        assert_eq!(head.upgrade(text.as_bytes()), wanted.map(str::as_bytes), "{text}");
    }
    for (start, lines, expects) in [
        ("HTTP/1.1", "Expect: 100-Continue\r\n", true),
        ("HTTP/1.1", "Expect: other\r\n", false),
        ("HTTP/1.0", "Expect: 100-continue\r\n", false),
    ] {
        let text = format!("PUT / {start}\r\nHost: a\r\nContent-Length: 1\r\n{lines}\r\n");
        let mut head = RequestHead::default();
        assert_eq!(head.parse(text.as_bytes(), &Limits::default()), Outcome::Head);
        assert_eq!(head.expects_continue, expects, "{text}");
    }
}
