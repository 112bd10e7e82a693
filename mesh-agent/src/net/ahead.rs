//! A stream that is read in pieces larger than those that are asked for.
//!
//! In: a stream, above it a reader that asks for little at a time. Out: the same bytes, by fewer system calls where they come in bursts; a
//! steady flow is not copied. Never: holds a buffer while nothing of it waits.

use std::cell::RefCell;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are read at once.
const ROOM: usize = 32 << 10;
/// Who asks for as many gets them without a copy.
const LARGE: usize = 8 << 10;

thread_local! {
    /// What one worker reads into.
    static SCRATCH: RefCell<Box<[MaybeUninit<u8>]>> = RefCell::new(Box::new_uninit_slice(ROOM));
}

/// The stream.
#[derive(Debug)]
pub struct Ahead<S> {
    inner: S,
    rest: Bytes,
    /// There was more than was asked for the last time.
    steady: bool,
}

impl<S> Ahead<S> {
    /// Nothing is read yet.
    pub fn new(inner: S) -> Self {
        Self { inner, rest: Bytes::new(), steady: false }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Ahead<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.rest.is_empty() {
            if this.steady || buf.remaining() >= LARGE {
                ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
                this.steady = buf.remaining() == 0;
                return Poll::Ready(Ok(()));
            }
            return SCRATCH.with_borrow_mut(|scratch| {
                let mut read = ReadBuf::uninit(scratch);
                ready!(Pin::new(&mut this.inner).poll_read(cx, &mut read))?;
                let (now, later) = read.filled().split_at(buf.remaining().min(read.filled().len()));
                buf.put_slice(now);
                this.rest = Bytes::copy_from_slice(later);
                this.steady = read.remaining() == 0;
                Poll::Ready(Ok(()))
            });
        }
        let now = this.rest.len().min(buf.remaining());
        buf.put_slice(&this.rest[..now]);
        this.rest.advance(now);
        if this.rest.is_empty() {
            this.rest = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Ahead<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn little_is_asked_for_and_all_of_it_comes_in_order() {
        let (stream, mut peer) = duplex(1 << 20);
        let mut ahead = Ahead::new(stream);
        let sent: Vec<u8> = (0..100_000_u32).map(|at| (at % 251) as u8).collect();
        peer.write_all(&sent).await.unwrap();
        let (mut got, mut piece) = (Vec::new(), [0; 4096]);
        let first = ahead.read(&mut piece).await.unwrap();
        got.extend_from_slice(&piece[..first]);
        // The rest of what was read at once needs no further read of the stream.
        assert_eq!((first, ahead.rest.len()), (4096, ROOM - 4096));
        let mut large = [0; LARGE];
        while got.len() < ROOM {
            let read = ahead.read(&mut large).await.unwrap();
            got.extend_from_slice(&large[..read]);
        }
        assert_eq!((got.len(), ahead.rest.len()), (ROOM, 0));
        // As long as there is always more, everybody gets it from the stream.
        while got.len() < sent.len() {
            let read = ahead.read(&mut piece).await.unwrap();
            got.extend_from_slice(&piece[..read]);
            assert_eq!(ahead.rest.len(), 0);
        }
        assert!(got == sent);
        // And then as before.
        peer.write_all(&sent[..5000]).await.unwrap();
        assert_eq!((ahead.read(&mut piece).await.unwrap(), ahead.rest.len()), (4096, 5000 - 4096));
        drop(peer);
        got.clear();
        ahead.read_to_end(&mut got).await.unwrap();
        assert!(got == sent[4096..5000]);
    }
}
