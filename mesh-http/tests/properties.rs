//! What holds for every input: splits change nothing, what is written is what was read, chunks are what a plain reader finds.

use mesh_http::{Body, Framing, Limits, Outcome, Refusal, RequestHead, ResponseHead};
use proptest::prelude::*;

/// Pieces of messages, so that random sequences of them come near to real ones.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let known = [
        "GET ",
        "POST ",
        "/",
        "/a?b",
        " HTTP/1.1",
        " HTTP/1.0",
        "HTTP/1.1 200 OK",
        "\r\n",
        "\r\n\r\n",
        "\n",
        "\r",
        "Host: a",
        "Host",
        ": ",
        "Content-Length: 5",
        "Content-Length: 0",
        "Transfer-Encoding: chunked",
        "X: y",
        " ",
        "\t",
        "5",
        "0",
        ";e",
        "hello",
        "a",
    ];
    prop_oneof![
        20 => prop::sample::select(known.to_vec()).prop_map(|text| text.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..4),
    ]
}

fn soup() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(piece(), 0..30).prop_map(|pieces| pieces.concat())
}

/// Well-formed lines.
fn lines() -> impl Strategy<Value = Vec<(String, String)>> {
    prop::collection::vec(("x-[a-z]{1,6}", "[!-~]([ -~]{0,12}[!-~])?"), 0..12)
}

/// A chunked body, its data, and what comes behind it.
fn chunks() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let chunk = (prop::collection::vec(any::<u8>(), 1..40), prop::bool::ANY, prop::option::of("[a-z]{1,5}"));
    let trailers = prop::collection::vec(("x-[a-z]{1,4}", "[a-z]{0,5}"), 0..3);
    (prop::collection::vec(chunk, 0..6), trailers).prop_map(|(chunks, trailers)| {
        let (mut text, mut data) = (Vec::new(), Vec::new());
        for (bytes, upper, extension) in chunks {
            let size = if upper { format!("{:X}", bytes.len()) } else { format!("{:03x}", bytes.len()) };
            let extension = extension.map(|extension| format!(";{extension}")).unwrap_or_default();
            text.extend_from_slice(format!("{size}{extension}\r\n").as_bytes());
            text.extend_from_slice(&bytes);
            text.extend_from_slice(b"\r\n");
            data.extend_from_slice(&bytes);
        }
        text.extend_from_slice(b"0\r\n");
        for (name, value) in trailers {
            text.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        text.extend_from_slice(b"\r\n");
        (text, data)
    })
}

/// Feeds a body in pieces, as a connection does: what was not taken stays. Gives the raw bytes taken, the data, and the end.
fn feed(input: &[u8], cuts: &[usize], framing: Framing) -> (Vec<u8>, Vec<u8>, Result<bool, Refusal>) {
    let mut body = Body::new(framing);
    let (mut held, mut raw, mut data, mut at) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for cut in cuts.iter().copied().chain([usize::MAX]) {
        let next = input.len().min(at.max(cut));
        held.extend_from_slice(&input[at..next]);
        at = next;
        loop {
            match body.step(&held) {
                Ok(step) => {
                    assert!(step.data == 0 || step.data == step.taken);
                    data.extend_from_slice(&held[..step.data]);
                    raw.extend(held.drain(..step.taken));
                    if step.done {
                        return (raw, data, Ok(true));
                    }
                    if step.taken == 0 {
                        break;
                    }
                }
                Err(refusal) => return (raw, data, Err(refusal)),
            }
        }
    }
    (raw, data, Ok(false))
}

/// Reads chunks the plain way: a whole line, a whole chunk, whole trailers.
fn naive(input: &[u8]) -> Option<(Vec<u8>, usize)> {
    let mut data = Vec::new();
    let mut at = 0;
    let line_end = |from: usize| Some(from + input.get(from..)?.windows(2).position(|pair| pair == b"\r\n")?);
    loop {
        let end = line_end(at)?;
        let size = std::str::from_utf8(&input[at..end]).ok()?.split(';').next()?;
        let size = usize::from_str_radix(size, 16).ok()?;
        at = end + 2;
        if size == 0 {
            break;
        }
        data.extend_from_slice(input.get(at..at + size)?);
        at += size + 2;
    }
    loop {
        let end = line_end(at)?;
        let empty = end == at;
        at = end + 2;
        if empty {
            return Some((data, at));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_head_is_the_same_however_it_comes(bytes in soup(), limit in prop_oneof![Just(61440_usize), 20..200_usize]) {
        let limits = Limits { bytes: limit, lines: 8 };
        let mut whole = RequestHead::default();
        let outcome = whole.parse(&bytes, &limits);
        let mut split = RequestHead::default();
        let first = (0..=bytes.len()).map(|end| split.parse(&bytes[..end], &limits)).find(|now| *now != Outcome::More);
        prop_assert_eq!(first.unwrap_or(Outcome::More), outcome);
        if outcome == Outcome::Head {
            prop_assert_eq!((split.len, split.framing, split.method(&bytes)), (whole.len, whole.framing, whole.method(&bytes)));
            prop_assert!(whole.len <= limit);
        }
        let mut whole = ResponseHead::default();
        let outcome = whole.parse(&bytes, "GET", &limits);
        let mut split = ResponseHead::default();
        let first = (0..=bytes.len()).map(|end| split.parse(&bytes[..end], "GET", &limits)).find(|now| *now != Outcome::More);
        prop_assert_eq!(first.unwrap_or(Outcome::More), outcome);
    }

    #[test]
    fn what_is_written_is_what_was_read(lines in lines(), gone in "x-[a-z]{1,2}", added in lines(), path in "/[a-z]{0,9}") {
        let text: String = lines.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let text = format!("GET {path} HTTP/1.1\r\nHost: a\r\n{text}\r\nrest");
        let mut head = RequestHead::default();
        prop_assert_eq!(head.parse(text.as_bytes(), &Limits::default()), Outcome::Head);
        head.fields.remove(text.as_bytes(), &gone);
        for (name, value) in &added {
            head.fields.set(text.as_bytes(), name, value.as_bytes());
        }
        let mut out = Vec::new();
        head.write(text.as_bytes(), &path, &mut out);
        let mut again = RequestHead::default();
        prop_assert_eq!(again.parse(&out, &Limits::default()), Outcome::Head);
        prop_assert_eq!(again.len, out.len());
        let now: Vec<_> = head.fields.iter(text.as_bytes()).collect();
        let then: Vec<_> = again.fields.iter(&out).collect();
        prop_assert_eq!(&now, &then);
        prop_assert_eq!(again.path(&out), path);
        // The same as a list that is changed line by line.
        let mut model: Vec<_> = [("Host".to_owned(), "a".to_owned())].into_iter().chain(lines).collect();
        model.retain(|(name, _)| *name != gone);
        for (name, value) in added {
            model.retain(|(other, _)| *other != name);
            model.push((name, value));
        }
        let now: Vec<_> = now.iter().map(|(name, value, _)| (String::from_utf8_lossy(name).into(), String::from_utf8_lossy(value).into())).collect();
        prop_assert_eq!(now, model);
    }

    #[test]
    fn chunks_are_what_a_plain_reader_finds((text, data) in chunks(), rest in soup(), cuts in prop::collection::vec(0..300_usize, 0..6)) {
        let mut cuts = cuts;
        cuts.sort_unstable();
        let all = [text.clone(), rest].concat();
        let (raw, found, end) = feed(&all, &cuts, Framing::Chunked);
        prop_assert_eq!(end, Ok(true));
        prop_assert_eq!(&found, &data);
        prop_assert_eq!(&raw, &text);
        prop_assert_eq!(naive(&all), Some((data, text.len())));
    }

    #[test]
    fn a_body_is_the_same_however_it_comes(bytes in soup(), cuts in prop::collection::vec(0..120_usize, 0..8), length in 0..60_u64) {
        let mut cuts = cuts;
        cuts.sort_unstable();
        for framing in [Framing::Chunked, Framing::Length(length), Framing::UntilClose, Framing::None] {
            prop_assert_eq!(feed(&bytes, &cuts, framing), feed(&bytes, &[], framing));
        }
        // What passes the machine means the same to a plain reader.
        if let (raw, data, Ok(true)) = feed(&bytes, &[], Framing::Chunked) {
            prop_assert_eq!(naive(&bytes), Some((data, raw.len())));
        }
    }
}
