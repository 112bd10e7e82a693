//! Sees which streams HTTP/2 resets for a fault of their request's head: `h2` does so by itself and tells nobody.
//!
//! In: what is written to the client. Out: the same bytes; streams that were reset with PROTOCOL_ERROR (RFC 9113, 8.1.1) and that nobody
//! has been given to serve. Never: looks at more of a frame than its header and, of RST_STREAM, its code.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Streams noted at most until somebody asks; more are not told of.
const MAX_NOTED: usize = 64;
/// Length of a frame's header (RFC 9113, 4.1).
const HEADER: usize = 9;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const PROTOCOL_ERROR: u32 = 1;

/// What has been seen of one connection.
#[derive(Default)]
pub(super) struct Resets {
    /// Streams that are being served.
    served: RefCell<Vec<u32>>,
    /// Streams that were reset, and whether with an answer before.
    noted: RefCell<Vec<(u32, bool)>>,
    /// The stream whose head was written last.
    answered: Cell<u32>,
}

impl Resets {
    /// Somebody serves this stream.
    pub(super) fn accepted(&self, stream: u32) {
        self.served.borrow_mut().push(stream);
    }

    /// Nobody serves it any more.
    pub(super) fn left(&self, stream: u32) {
        self.served.borrow_mut().retain(|other| *other != stream);
    }

    /// The statuses of streams that were reset and were nobody's: 431 for a head that was too long, 0 without an answer.
    pub(super) fn unheard(&self) -> Vec<u16> {
        if self.noted.borrow().is_empty() {
            return Vec::new();
        }
        let served = self.served.borrow();
        let nobody = |(stream, _): &(u32, bool)| !served.contains(stream);
        let noted = std::mem::take(&mut *self.noted.borrow_mut());
        noted.into_iter().filter(nobody).map(|(_, answered)| if answered { 431 } else { 0 }).collect()
    }

    fn reset(&self, stream: u32) {
        let mut noted = self.noted.borrow_mut();
        if noted.len() < MAX_NOTED {
            noted.push((stream, self.answered.get() == stream));
        }
    }
}

/// Where in a frame the next byte is.
#[derive(Default)]
struct Place {
    /// Of a header, and of what follows it in RST_STREAM.
    seen: [u8; HEADER + 4],
    length: usize,
    /// Bytes of the payload that nobody looks at.
    skip: usize,
}

impl Place {
    fn pass(&mut self, mut bytes: &[u8], resets: &Resets) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let wanted = if self.length >= HEADER { HEADER + 4 } else { HEADER };
            let taken = (wanted - self.length).min(bytes.len());
            let (now, rest) = bytes.split_at(taken);
            self.seen[self.length..self.length + taken].copy_from_slice(now);
            self.length += taken;
            bytes = rest;
            if self.length == wanted {
                self.whole(resets);
            }
        }
    }

    /// A header is there, or a whole RST_STREAM.
    fn whole(&mut self, resets: &Resets) {
        let [a, b, c, kind, _, rest @ ..] = self.seen;
        let word = |at: usize| u32::from_be_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
        let stream = word(0) & 0x7fff_ffff;
        if kind == RST_STREAM {
            if self.length == HEADER {
                return;
            }
            if word(4) == PROTOCOL_ERROR {
                resets.reset(stream);
            }
        } else {
            if kind == HEADERS {
                resets.answered.set(stream);
            }
            self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
        }
        self.length = 0;
    }
}

/// A stream whose written frames are looked at.
pub(super) struct Watched<S> {
    inner: S,
    place: Place,
    resets: Rc<Resets>,
}

impl<S> Watched<S> {
    /// Nothing has been written yet.
    pub(super) fn new(inner: S, resets: Rc<Resets>) -> Self {
        Self { inner, place: Place::default(), resets }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let written = ready!(Pin::new(&mut this.inner).poll_write(cx, buf))?;
        this.place.pass(&buf[..written], &this.resets);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let written = ready!(Pin::new(&mut this.inner).poll_write_vectored(cx, bufs))?;
        let mut left = written;
        for buf in bufs {
            let now = left.min(buf.len());
            this.place.pass(&buf[..now], &this.resets);
            left -= now;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, 0], &stream.to_be_bytes(), payload].concat()
    }

    #[test]
    fn resets_are_seen_however_the_bytes_are_split() {
        let all = [
            frame(4, 0, &[3; 18]),
            frame(RST_STREAM, 1, &[0, 0, 0, 1]),
            frame(HEADERS, 3, &[RST_STREAM; 13]),
            frame(RST_STREAM, 3, &[0, 0, 0, 1]),
            frame(0, 5, b""),
            frame(RST_STREAM, 7, &[0, 0, 0, 8]),
            frame(RST_STREAM, 9, &[0, 0, 0, 1]),
        ]
        .concat();
        for size in 1..=all.len() {
            let resets = Resets::default();
            resets.accepted(9);
            let mut place = Place::default();
            all.chunks(size).for_each(|chunk| place.pass(chunk, &resets));
            assert_eq!(resets.unheard(), [0, 431], "{size}");
            assert!(resets.unheard().is_empty());
            resets.left(9);
            assert!(resets.served.borrow().is_empty());
        }
    }
}
