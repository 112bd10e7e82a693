//! Sees what `h2` keeps to itself: which streams it resets for a fault of their request's head, a client that does not begin with
//! SETTINGS, pseudo headers in trailers, which it lets pass both, and the rule that ends a connection, of which it often says less.
//!
//! In: what is written to the client and read of it. Out: the same bytes, but for the code of a last GOAWAY ([`incoming`]); streams that
//! were reset with PROTOCOL_ERROR (RFC 9113, 8.1.1) and that nobody has been given to serve; how many were refused for want of room; the
//! limit that has ended the connection; whether it has begun as it must (3.4). Never: looks at more of a written frame than its header,
//! the code of RST_STREAM, and code and first words of GOAWAY.

mod block;
mod huffman;
mod incoming;

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::telemetry::Limit;
use incoming::Incoming;

/// Streams noted at most until somebody asks; more are not told of.
const MAX_NOTED: usize = 64;
/// Length of a frame's header (RFC 9113, 4.1).
const HEADER: usize = 9;
/// Of a GOAWAY's words, looked at; behind the last stream and the code (RFC 9113, 6.8).
const WORDS: usize = 10;
/// What a client sends before any frame (3.4).
const PREFACE: usize = 24;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const ACK: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const PROTOCOL_ERROR: u32 = 1;
const REFUSED_STREAM: u32 = 7;

/// What has been seen of one connection. Streams are accepted in their order, so one behind the last of them is nobody's yet.
#[derive(Default)]
pub(super) struct Resets {
    last: Cell<u32>,
    /// Streams that were reset before anybody had them, and the status that they were answered with; 0 for none.
    noted: RefCell<Vec<(u32, u16)>>,
    /// The one that was noted last.
    noted_last: Cell<u32>,
    /// Streams that there was no room for; `h2` alone resets with that.
    refused: Cell<u32>,
    /// By which limit `h2` has ended the connection: only these words tell.
    ended_by: Cell<Option<Limit>>,
    /// The first frame was not SETTINGS.
    unsettled: Cell<bool>,
    /// A stream has been reset with PROTOCOL_ERROR.
    faulty: Cell<bool>,
    /// Streams whose trailers have a pseudo header, and that nobody has asked for.
    forbidden: RefCell<Vec<u32>>,
}

impl Resets {
    /// Somebody serves this stream, and tells of it.
    pub(super) fn accepted(&self, stream: u32) {
        self.last.set(stream);
        self.noted.borrow_mut().retain(|(other, _)| *other != stream);
    }

    /// Whether the client has begun with another frame than SETTINGS, once. Nothing of that frame is read any more.
    pub(super) fn take_unsettled(&self) -> bool {
        self.unsettled.take()
    }

    /// The statuses of streams that are nobody's: 431 for a head that was too long, 0 without an answer.
    pub(super) fn unheard(&self) -> impl Iterator<Item = u16> {
        std::mem::take(&mut *self.noted.borrow_mut()).into_iter().map(|(_, status)| status)
    }

    /// How many streams there was no room for since this was asked last.
    pub(super) fn refused(&self) -> u32 {
        self.refused.take()
    }

    /// By which limit the connection has ended, if by one.
    pub(super) fn ended_by(&self) -> Option<Limit> {
        self.ended_by.get()
    }

    /// Whether the stream's trailers have a pseudo header, once.
    pub(super) fn forbids(&self, stream: u32) -> bool {
        let mut forbidden = self.forbidden.borrow_mut();
        let at = forbidden.iter().position(|other| *other == stream);
        at.map(|at| forbidden.remove(at)).is_some()
    }

    /// The oldest give way: their streams have ended without anybody asking.
    fn forbid(&self, stream: u32) {
        let mut forbidden = self.forbidden.borrow_mut();
        if forbidden.len() == MAX_NOTED {
            forbidden.remove(0);
        }
        forbidden.push(stream);
    }

    fn faulty(&self) -> bool {
        self.faulty.get()
    }

    fn note(&self, stream: u32, status: u16) {
        let mut noted = self.noted.borrow_mut();
        if stream > self.last.get() && self.noted_last.replace(stream) != stream && noted.len() < MAX_NOTED {
            noted.push((stream, status));
        }
    }
}

/// Where in a frame the next byte is.
#[derive(Default, Clone)]
struct Place {
    /// Of a header, and of what follows it in RST_STREAM and GOAWAY.
    seen: [u8; HEADER + 8 + WORDS],
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
            let wanted = if self.length >= HEADER { HEADER + self.behind() } else { HEADER };
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

    /// Bytes that are looked at behind the header that is there.
    fn behind(&self) -> usize {
        let [a, b, c, kind, ..] = self.seen;
        match kind {
            RST_STREAM => 4,
            GOAWAY => (u32::from_be_bytes([0, a, b, c]) as usize).min(8 + WORDS),
            _ => 0,
        }
    }

    /// A header is there, or what is looked at behind it.
    fn whole(&mut self, resets: &Resets) {
        let [a, b, c, kind, _, rest @ ..] = self.seen;
        let word = |at: usize| u32::from_be_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
        let stream = word(0) & 0x7fff_ffff;
        let behind = self.behind();
        if behind > 0 && self.length == HEADER {
            return;
        }
        if kind == GOAWAY {
            let words = &rest[12..];
            match words {
                b"too_many_r" if behind == 8 + WORDS => resets.ended_by.set(Some(Limit::Http2PendingResets)),
                b"too_many_i" if behind == 8 + WORDS => resets.ended_by.set(Some(Limit::Http2Faults)),
                _ => {}
            }
            self.skip = u32::from_be_bytes([0, a, b, c]) as usize - behind;
        } else if kind == RST_STREAM {
            match word(4) {
                PROTOCOL_ERROR => {
                    resets.faulty.set(true);
                    resets.note(stream, 0);
                }
                REFUSED_STREAM => resets.refused.set(resets.refused.get().saturating_add(1)),
                _ => {}
            }
        } else {
            if kind == HEADERS {
                // Nobody else can have answered.
                resets.note(stream, 431);
            }
            self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
        }
        self.length = 0;
    }

    /// The last stream of a GOAWAY for PROTOCOL_ERROR that ends here, and says no more.
    fn behind_protocol_error(&self) -> Option<u32> {
        let [0, 0, 8, GOAWAY, _, _, _, _, _, a, b, c, d, 0, 0, 0, 1, ..] = self.seen else { return None };
        (self.length == 0 && self.skip == 0).then_some(u32::from_be_bytes([a, b, c, d]))
    }
}

/// Whether this byte may stand here in the header of a connection's first frame: SETTINGS that acknowledge nothing.
fn begins(at: usize, byte: u8) -> bool {
    match at {
        3 => byte == SETTINGS,
        4 => byte & ACK == 0,
        // The first bit of a stream's number means nothing.
        5 => byte & 0x7f == 0,
        6..=8 => byte == 0,
        _ => true,
    }
}

/// A stream whose frames are looked at.
pub(super) struct Watched<S> {
    inner: S,
    place: Place,
    incoming: Incoming,
    /// Bytes read, as far as anybody looks at them.
    read: usize,
    resets: Rc<Resets>,
}

impl<S> Watched<S> {
    /// Nothing has been written yet.
    pub(super) fn new(inner: S, resets: Rc<Resets>) -> Self {
        Self { inner, place: Place::default(), incoming: Incoming::default(), read: 0, resets }
    }

    /// The code that belongs into the last byte of these, where a GOAWAY ends that names the wrong one. `h2` writes nothing behind it, so
    /// it is the end of all that there is to be written, whatever has gone before.
    fn better_code(&self, bufs: &[IoSlice<'_>]) -> Option<u8> {
        let last = bufs.iter().rev().find_map(|buf| buf.last());
        if last.copied().map(u32::from) != Some(PROTOCOL_ERROR) {
            return None;
        }
        // Only now and then: not every such byte is a code's. What is noted on the way is noted again once it is written.
        let (mut ahead, unheard) = (self.place.clone(), Resets::default());
        bufs.iter().for_each(|buf| ahead.pass(buf, &unheard));
        self.incoming.code(ahead.behind_protocol_error()?, &self.resets)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        const SEEN: usize = PREFACE + HEADER;
        let this = &mut *self;
        this.incoming.asked();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        let new = &buf.filled()[before..];
        if this.read < SEEN {
            let faulty = (this.read..SEEN).zip(new).any(|(at, byte)| at >= PREFACE && !begins(at - PREFACE, *byte));
            this.read += new.len();
            if faulty {
                // Whoever polls the connection ends it; this stream is not read again.
                this.resets.unsettled.set(true);
                buf.set_filled(before);
                return Poll::Pending;
            }
        }
        this.incoming.pass(new, &this.resets);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let code = this.better_code(&[IoSlice::new(buf)]);
        let written = match (code, buf) {
            (None, _) => ready!(Pin::new(&mut this.inner).poll_write(cx, buf))?,
            (Some(code), [_]) => ready!(Pin::new(&mut this.inner).poll_write(cx, &[code]))?,
            // It comes alone.
            (Some(_), _) => ready!(Pin::new(&mut this.inner).poll_write(cx, &buf[..buf.len() - 1]))?,
        };
        this.place.pass(&buf[..written], &this.resets);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.better_code(bufs).is_some() {
            // One after the other, the last one changed.
            let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| buf);
            return self.poll_write(cx, first);
        }
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

/// Follows what a client sends as [`Watched`] does, for the fuzz target: `pieces` are reads, and [`Incoming::code`] is asked behind each.
#[cfg(fuzzing)]
pub fn follow<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) {
    let (mut incoming, resets) = (Incoming::default(), Resets::default());
    for (at, piece) in pieces.into_iter().enumerate() {
        incoming.pass(piece, &resets);
        for accepted in [0, 1, u32::MAX] {
            let code = incoming.code(accepted, &resets);
            assert!(matches!(code, None | Some(3 | 6 | 9)), "{code:?}");
        }
        if at % 2 == 0 {
            incoming.asked();
        }
    }
}

#[cfg(test)]
mod tests;
