//! Says from a connection's first bytes what it speaks.
//!
//! In: the bytes peeked so far, from the first one. Out: [`Detect`]. More bytes never change an
//! answer other than [`Detect::More`], so it does not matter how they were split. It never
//! consumes, allocates only for a ClientHello, and never panics.

mod http;
mod tls;

/// Bytes after which there is always an answer: a peek buffer of this size is enough.
pub const MAX_BYTES: usize = 16 * 1024;

/// What a connection speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detect {
    /// Not enough bytes yet.
    More,
    /// An HTTP/1.0 or HTTP/1.1 request line.
    Http1,
    /// The HTTP/2 connection preface (RFC 9113 3.4).
    Http2,
    /// A TLS ClientHello; `None` when its contents could not be read.
    Tls(Option<ClientHello>),
    /// Anything else.
    Opaque,
}

/// What a TLS client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientHello {
    /// Server name, lower case.
    pub sni: Option<String>,
    /// ALPN protocols in the client's order.
    pub alpn: Vec<Vec<u8>>,
}

/// Looks at the bytes received so far; those beyond [`MAX_BYTES`] do not count.
pub fn detect(bytes: &[u8]) -> Detect {
    let bytes = bytes.get(..MAX_BYTES).unwrap_or(bytes);
    match bytes.first() {
        None => Detect::More,
        Some(&tls::HANDSHAKE) => tls::detect(bytes),
        Some(_) => http::detect(bytes),
    }
}

#[cfg(test)]
mod tests;
