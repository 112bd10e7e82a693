//! One end of an HTTP/1 exchange: a stream, what was read from it and not yet used, what is still to be written to it.
//!
//! In: bytes of the stream. Out: the same bytes in one piece as far as somebody waits for more of them; what was put, in as few
//! writes as it needs. Never: reads more unasked, holds a buffer while nothing is there.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWrite;

use crate::net::copy::{Buffer, Duplex};
use crate::net::share::Share;
use crate::upstream::stream::Stream;

/// Up to so many bytes are written together with a head, by a copy; more go in a write of their own, without.
const TOGETHER: usize = 16 << 10;

/// The end.
pub(in super::super) struct Link {
    stream: Stream,
    /// Read, and not yet used.
    pub(super) seen: Bytes,
    buffer: Buffer,
    /// The peer has finished: nothing more will be read.
    pub(super) finished: bool,
    out: Vec<u8>,
    /// Of `out`, written.
    sent: usize,
    /// Goes after `out`.
    pass: Bytes,
    /// What was written may not have left the stream's own buffers.
    pushing: bool,
    /// It is to end as a failure, so nothing says that it has ended well.
    cut: bool,
}

impl Link {
    /// A stream from which `seen` has been read.
    pub(in super::super) fn new(stream: Stream, seen: Bytes) -> Self {
        let buffer = Buffer::default();
        Self {
            stream,
            seen,
            buffer,
            finished: false,
            out: Vec::new(),
            sent: 0,
            pass: Bytes::new(),
            pushing: false,
            cut: false,
        }
    }

    /// Reads no more at once than the workload's share lets it.
    pub(in super::super) fn within(mut self, share: &Rc<Share>) -> Self {
        self.buffer = Buffer::within(share);
        self
    }

    /// Reads once. Afterwards there is more in `seen`, or the peer has finished.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let chunk = ready!(self.stream.poll_recv(cx, &mut self.buffer))?;
        if chunk.is_empty() {
            self.finished = true;
        } else if self.seen.is_empty() {
            self.seen = chunk;
        } else {
            // One buffer that grows by doubling, so that many small pieces cost no more than few.
            let mut joined = match std::mem::take(&mut self.seen).try_into_mut() {
                Ok(joined) => joined,
                Err(shared) => {
                    let mut joined = BytesMut::with_capacity(2 * (shared.len() + chunk.len()));
                    joined.extend_from_slice(&shared);
                    joined
                }
            };
            joined.extend_from_slice(&chunk);
            self.seen = joined.freeze();
        }
        Poll::Ready(Ok(()))
    }

    /// Whether the peer has neither said anything unasked nor left, as far as is known without asking the kernel.
    pub(super) fn is_quiet(&mut self, cx: &mut Context<'_>) -> bool {
        self.seen.is_empty() && !self.finished && self.poll_fill(cx).is_pending()
    }

    /// What goes out next, to be added to. Only while there is nothing of [`Link::put`] that waits.
    pub(super) fn out(&mut self) -> &mut Vec<u8> {
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
        }
        &mut self.out
    }

    /// Puts bytes in front of all else that goes out; nothing waits there yet.
    pub(super) fn refill(&mut self, out: Vec<u8>) {
        (self.out, self.sent) = (out, 0);
    }

    /// Gives the memory back, with what was written from it last.
    pub(super) fn take_back(&mut self) -> Vec<u8> {
        self.sent = 0;
        std::mem::take(&mut self.out)
    }

    /// Sends `bytes` after what is in [`Link::out`], and says whether they went there too. Only while there is [`Link::has_room`].
    pub(super) fn put(&mut self, bytes: Bytes) -> bool {
        let together = self.sent < self.out.len() && self.out.len() + bytes.len() <= TOGETHER;
        if together {
            self.out.extend_from_slice(&bytes);
        } else {
            self.pass = bytes;
        }
        together
    }

    /// Whether more can be put.
    pub(super) fn has_room(&self) -> bool {
        self.pass.is_empty() && self.out.len() - self.sent < TOGETHER
    }

    /// Whether everything has left.
    pub(super) fn is_flushed(&self) -> bool {
        self.sent == self.out.len() && self.pass.is_empty() && !self.pushing
    }

    /// Whether not a byte of what was put since [`Link::refill`] has been written.
    pub(super) fn is_unsent(&self) -> bool {
        self.sent == 0
    }

    /// Writes what waits.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_flushed() {
            return Poll::Ready(Ok(()));
        }
        self.pushing = true;
        while self.sent < self.out.len() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.out[self.sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.sent += sent,
            }
        }
        while !self.pass.is_empty() {
            ready!(self.stream.poll_send(cx, &mut self.pass))?;
        }
        self.pass = Bytes::new();
        ready!(self.stream.poll_push(cx))?;
        self.pushing = false;
        Poll::Ready(Ok(()))
    }
}

impl Duplex for Link {
    fn poll_recv(&mut self, cx: &mut Context<'_>, buffer: &mut Buffer) -> Poll<io::Result<Bytes>> {
        if self.seen.is_empty() {
            return self.stream.poll_recv(cx, buffer);
        }
        Poll::Ready(Ok(std::mem::take(&mut self.seen)))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<io::Result<usize>> {
        self.stream.poll_send(cx, data)
    }

    fn poll_push(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_push(cx)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // After a FIN the peer would take what it has for all of it, whatever comes behind.
        if self.cut {
            return Poll::Ready(Ok(()));
        }
        self.stream.poll_finish(cx)
    }

    fn reset(&mut self) {
        self.cut = true;
        self.stream.reset();
    }
}
