//! Reads server name and ALPN from a TLS ClientHello (RFC 8446 4.1.2, RFC 6066 3, RFC 7301 3.1).
//!
//! In: first bytes, the first of them a handshake record's. Out: the verdict. A hello may come in
//! several records; one that is broken, or longer than the limit, is TLS without names.

use super::{ClientHello, Detect, MAX_BYTES};

/// First byte of a handshake record.
pub(super) const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
/// Longest fragment of a plaintext record (RFC 8446 5.1).
const MAX_FRAGMENT: usize = 1 << 14;
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
/// Longest DNS name, in bytes.
const MAX_NAME: usize = 255;

pub(super) fn detect(bytes: &[u8]) -> Detect {
    // Type, then 3.x, which every version of TLS sends here, SSL 3 included.
    match bytes.get(1) {
        None => return Detect::More,
        Some(3) => {}
        Some(_) => return Detect::Opaque,
    }
    match assemble(bytes) {
        Hello::Whole(body) => Detect::Tls(parse(&body)),
        Hello::Opaque => Detect::Opaque,
        Hello::Broken => Detect::Tls(None),
        Hello::Partial if bytes.len() >= MAX_BYTES => Detect::Tls(None),
        Hello::Partial => Detect::More,
    }
}

enum Hello {
    Whole(Vec<u8>),
    Partial,
    /// It began as a ClientHello and does not go on as one.
    Broken,
    /// It never was a ClientHello.
    Opaque,
}

/// Joins the fragments of as many records as the hello takes.
fn assemble(bytes: &[u8]) -> Hello {
    let mut message = Vec::new();
    let mut rest = bytes;
    loop {
        // Decides as early as the bytes allow, so that the answer does not depend on later ones.
        let wrong = |message: &[u8]| if message.is_empty() { Hello::Opaque } else { Hello::Broken };
        match (rest.first(), rest.get(1)) {
            (Some(kind), _) if *kind != HANDSHAKE => return wrong(&message),
            (_, Some(major)) if *major != 3 => return wrong(&message),
            _ => {}
        }
        let [_, _, _, high, low, after @ ..] = rest else {
            return Hello::Partial;
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if length == 0 || length > MAX_FRAGMENT {
            return wrong(&message);
        }
        let fragment = after.get(..length).unwrap_or(after);
        message.extend_from_slice(fragment);
        if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Hello::Opaque;
        }
        if let [_, a, b, c, body @ ..] = message.as_slice() {
            let wanted = usize::try_from(u32::from_be_bytes([0, *a, *b, *c])).unwrap_or(usize::MAX);
            if wanted > MAX_BYTES {
                return Hello::Broken;
            }
            if let Some(body) = body.get(..wanted) {
                return Hello::Whole(body.to_vec());
            }
        }
        if fragment.len() < length {
            return Hello::Partial;
        }
        rest = after.get(length..).unwrap_or_default();
        if rest.is_empty() {
            return Hello::Partial;
        }
    }
}

/// Version, random, session id, cipher suites, compression methods, extensions.
fn parse(body: &[u8]) -> Option<ClientHello> {
    let mut reader = Reader(body);
    reader.take(2 + 32)?;
    reader.short_vector()?;
    reader.vector()?;
    reader.short_vector()?;
    let mut hello = ClientHello::default();
    if reader.0.is_empty() {
        return Some(hello);
    }
    let mut extensions = Reader(reader.vector()?);
    while !extensions.0.is_empty() {
        let kind = extensions.number()?;
        let data = extensions.vector()?;
        match kind {
            SERVER_NAME => hello.sni = server_name(data)?,
            ALPN => hello.alpn = protocols(data)?,
            _ => {}
        }
    }
    Some(hello)
}

/// The first host name; a list without one is no name.
fn server_name(data: &[u8]) -> Option<Option<String>> {
    let mut names = Reader(Reader(data).vector()?);
    while !names.0.is_empty() {
        let kind = names.take(1)?;
        let name = names.vector()?;
        if kind == [0] {
            if name.is_empty() || name.len() > MAX_NAME || !name.is_ascii() {
                return None;
            }
            return Some(Some(String::from_utf8(name.to_ascii_lowercase()).ok()?));
        }
    }
    Some(None)
}

fn protocols(data: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut list = Reader(Reader(data).vector()?);
    let mut protocols = Vec::new();
    while !list.0.is_empty() {
        protocols.push(list.short_vector()?.to_vec());
    }
    Some(protocols)
}

/// Takes fields off the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }

    fn number(&mut self) -> Option<u16> {
        match self.take(2)? {
            [high, low] => Some(u16::from_be_bytes([*high, *low])),
            _ => None,
        }
    }

    /// Bytes after a one-byte length.
    fn short_vector(&mut self) -> Option<&'a [u8]> {
        let [count] = self.take(1)? else {
            return None;
        };
        self.take(usize::from(*count))
    }

    /// Bytes after a two-byte length.
    fn vector(&mut self) -> Option<&'a [u8]> {
        let count = self.number()?;
        self.take(usize::from(count))
    }
}
