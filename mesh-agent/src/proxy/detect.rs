//! Looks at a connection's first bytes, for no longer than the listener says.
//!
//! In: a stream, and a limit. Out: what it speaks. A server that speaks first is never kept waiting for long: after the
//! limit the connection is served as opaque if the listener allows that, while the client may still say something else.

use std::io;
use std::time::Duration;

use mesh_core::detect::{Detect, MAX_BYTES, detect};
use mesh_core::resource::listener::{Codec, Listener};
use tokio::time::timeout;

use crate::net::copy::Duplex;
use crate::net::peek::{Peek, Peeked};

/// How long first bytes are waited for where the listener names no time: about ten round trips within a region.
/// Istio's default is to wait for ever, which leaves a server that speaks first mute.
const DEFAULT_WAIT: Duration = Duration::from_millis(200);

/// How long a client may pause within its first bytes before they count as opaque.
const WORD_WAIT: Duration = Duration::from_secs(1);

/// What waiting for first bytes came to.
#[derive(Debug)]
pub(super) enum FirstBytes {
    /// The client has spoken.
    Spoke(Detect),
    /// It has not spoken in time.
    Silent,
}

/// Waits for first bytes as long as the listener allows.
pub(super) async fn first_bytes<S: Duplex>(stream: &mut Peeked<S>, listener: &Listener) -> io::Result<FirstBytes> {
    let wait = listener.detection_timeout.filter(|wait| !wait.is_zero()).unwrap_or(DEFAULT_WAIT);
    match timeout(wait, spoken(stream)).await {
        Ok(spoke) => spoke.map(FirstBytes::Spoke),
        // A client in the middle of a word is not one that waits for the server.
        Err(_) if !stream.seen().is_empty() => Ok(FirstBytes::Spoke(Detect::Opaque)),
        Err(_) => Ok(FirstBytes::Silent),
    }
}

/// Waits until the bytes say what is spoken: for ever for the first one, not for long for the rest of a word. Cancelling
/// loses nothing.
pub(super) async fn spoken<S: Duplex>(stream: &mut Peeked<S>) -> io::Result<Detect> {
    if stream.seen().is_empty() && stream.more(MAX_BYTES).await? != Peek::More {
        return Ok(Detect::Opaque);
    }
    timeout(WORD_WAIT, understood(stream)).await.unwrap_or(Ok(Detect::Opaque))
}

async fn understood<S: Duplex>(stream: &mut Peeked<S>) -> io::Result<Detect> {
    loop {
        match detect(stream.seen()) {
            Detect::More => {}
            decided => return Ok(decided),
        }
        match stream.more(MAX_BYTES).await? {
            Peek::More => {}
            Peek::End | Peek::Full => return Ok(Detect::Opaque),
        }
    }
}

/// Whether an HTTP connection whose bytes nobody has looked at speaks HTTP/2 (by prior knowledge).
pub(super) async fn is_http2<S: Duplex>(stream: &mut Peeked<S>, codec: Codec) -> io::Result<bool> {
    match codec {
        Codec::Http1 => Ok(false),
        Codec::Http2 => Ok(true),
        Codec::Auto => Ok(spoken(stream).await? == Detect::Http2),
    }
}
