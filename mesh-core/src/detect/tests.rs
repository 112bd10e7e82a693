//! Tables of first bytes, and the property that splits do not matter.

use super::*;
use proptest::prelude::*;

fn vector(body: &[u8]) -> Vec<u8> {
    let mut out = u16::try_from(body.len()).unwrap().to_be_bytes().to_vec();
    out.extend(body);
    out
}

/// A ClientHello in handshake records of at most `fragment` bytes.
fn hello(sni: Option<&str>, alpn: &[&str], padding: usize, fragment: usize) -> Vec<u8> {
    let mut extensions = Vec::new();
    let mut extension = |kind: u16, data: Vec<u8>| {
        extensions.extend(kind.to_be_bytes());
        extensions.extend(vector(&data));
    };
    extension(21, vec![0; padding]);
    if let Some(name) = sni {
        let mut entry = vec![0];
        entry.extend(vector(name.as_bytes()));
        extension(0, vector(&entry));
    }
    if !alpn.is_empty() {
        let list: Vec<u8> = alpn.iter().flat_map(|p| [&[p.len() as u8], p.as_bytes()].concat()).collect();
        extension(16, vector(&list));
    }
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0]);
    body.extend(vector(&[0x13, 0x01]));
    body.extend([1, 0]);
    body.extend(vector(&extensions));
    let mut message = vec![1];
    message.extend(&u32::try_from(body.len()).unwrap().to_be_bytes()[1..]);
    message.extend(body);
    message.chunks(fragment).flat_map(|part| [&[22, 3, 1][..], &vector(part)].concat()).collect()
}

#[test]
fn tells_protocols_apart() {
    use Detect::*;
    for (bytes, want) in [
        (&b""[..], More),
        (b"G", More),
        (b"GET", More),
        (b"GET ", More),
        (b"GET /", More),
        (b"GET / HTTP/1", More),
        (b"GET / HTTP/1.1", More),
        (b"GET / HTTP/1.1\r", More),
        (b"GET / HTTP/1.1\r\n", Http1),
        (b"GET / HTTP/1.0\n", Http1),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", Http1),
        (b"CONNECT a:443 HTTP/1.1\r\n", Http1),
        (b"PROPFIND /x HTTP/1.1\r\n", Http1),
        (b"GET /\xc3\xa4 HTTP/1.1\r\n", Http1),
        // Not HTTP, though it starts like it: Redis inline, memcached, a wrong version.
        (b"GET key\r\n", Opaque),
        (b"GET  / HTTP/1.1\r\n", Opaque),
        // As Envoy's http_inspector: HTTP is 1.0, 1.1 and the preface of HTTP/2, and nothing else.
        (b"GET / HTTP/2.0\r\n", Opaque),
        (b"GET / HTTP/3.0\r\n", Opaque),
        (b"GET / HTTP/1.2\r\n", Opaque),
        (b"GET / HTTP/0.9\r\n", Opaque),
        (b"GET / HTTP/1.1x", Opaque),
        (b"GET\r\n", Opaque),
        (b"get / HTTP/1.1\r\n", Opaque),
        (b"GETS a\r\n", Opaque),
        (b"*1\r\n$4\r\nPING\r\n", Opaque),
        (b"\0\0\0\x08\x04\xd2\x16\x2f", Opaque),
        (b"SSH-2.0-x\r\n", Opaque),
        (b"PRI", More),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", More),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Http2),
        (b"PRI * HTTP/2.0\r\n\r\nXX", Opaque),
        (b"\x16", More),
        (b"\x16\x03", More),
        (b"\x16\x05", Opaque),
        (b"\x16\x03\x01\x00\x00", Opaque),
        (b"\x16\x03\x01\x00\x05\x02", Opaque),
        (b"\x16\x03\x01\x00\x05\x01", More),
        (b"\x16\x03\x01\x00\x04\x01\xff\xff\xff", Tls(None)),
        (b"\x16\x03\x01\x00\x04\x01\x00\x00\x01\x15", Tls(None)),
    ] {
        assert_eq!(detect(bytes), want, "{}", bytes.escape_ascii());
    }
}

#[test]
fn reads_names_over_records() {
    for fragment in [1, 2, 5, 100, 16000] {
        let bytes = hello(Some("A.Example"), &["istio", "h2"], 10, fragment);
        let want = ClientHello { sni: Some("a.example".into()), alpn: vec![b"istio".to_vec(), b"h2".to_vec()] };
        assert_eq!(detect(&bytes), Detect::Tls(Some(want)), "{fragment}");
    }
    let bare = detect(&hello(None, &[], 0, 100));
    assert_eq!(bare, Detect::Tls(Some(ClientHello::default())));
}

#[test]
fn there_is_an_answer_at_the_limit() {
    let mut line = b"GET /".to_vec();
    line.resize(MAX_BYTES - 1, b'a');
    assert_eq!(detect(&line), Detect::More);
    line.push(b'a');
    assert_eq!(detect(&line), Detect::Http1);
    line.extend(b" FOO");
    assert_eq!(detect(&line), Detect::Http1);

    // So many records that the hello does not end within the limit.
    let huge = hello(Some("a"), &[], 4000, 1);
    assert!(huge.len() > MAX_BYTES);
    assert_eq!(detect(&huge[..MAX_BYTES - 1]), Detect::More);
    assert_eq!(detect(&huge), Detect::Tls(None));
}

#[test]
fn a_broken_hello_is_tls_without_names() {
    let mut bytes = hello(Some("a.example"), &[], 0, 16000);
    let at = bytes.len() - 9;
    bytes[at..].fill(0xff);
    assert_eq!(detect(&bytes), Detect::Tls(None));
}

/// Bytes that reach every branch: real starts, cut, spoiled and extended.
fn first_bytes() -> impl Strategy<Value = Vec<u8>> {
    let seeds = prop_oneof![
        Just(b"GET / HTTP/1.1\r\nHost: a\r\n".to_vec()),
        Just(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0".to_vec()),
        Just(b"POST /a HTTP/1.0\n".to_vec()),
        (1usize..60, 0usize..50).prop_map(|(f, p)| hello(Some("a.b"), &["h2"], p, f)),
        proptest::collection::vec(any::<u8>(), 0..100),
    ];
    (seeds, proptest::option::of((any::<prop::sample::Index>(), any::<u8>()))).prop_map(|(mut bytes, spoil)| {
        if let (Some((at, byte)), false) = (spoil, bytes.is_empty()) {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes
    })
}

proptest! {
    /// However the bytes are split, the first answer that is not More is the answer for all.
    #[test]
    fn any_split_gives_the_same_answer(bytes in first_bytes()) {
        let whole = detect(&bytes);
        let mut first = Detect::More;
        for end in 0..=bytes.len() {
            let answer = detect(&bytes[..end]);
            if first != Detect::More {
                prop_assert_eq!(&answer, &first, "changed its mind at {}", end);
            }
            first = answer;
        }
        prop_assert_eq!(first, whole);
    }

    #[test]
    fn client_hellos_round_trip(name in "[a-z]{1,20}(\\.[a-z]{1,10}){0,3}", alpn in proptest::collection::vec("[a-z0-9/.-]{1,12}", 0..4), padding in 0usize..2000, fragment in 1usize..3000) {
        let protocols: Vec<&str> = alpn.iter().map(String::as_str).collect();
        let bytes = hello(Some(&name), &protocols, padding, fragment);
        prop_assume!(bytes.len() <= MAX_BYTES);
        let want = ClientHello { sni: Some(name), alpn: alpn.iter().map(|p| p.clone().into_bytes()).collect() };
        prop_assert_eq!(detect(&bytes), Detect::Tls(Some(want)));
    }
}
