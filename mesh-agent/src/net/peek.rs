//! A stream whose first bytes were looked at, and are still to be read by whoever takes it.
//!
//! In: any [`Duplex`] stream. Out: the same stream, with the bytes seen in front.
//! Never: loses or reorders a byte, or keeps more than the caller's limit.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::copy::{Buffer, Duplex};

/// What came of waiting for more bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peek {
    /// There are more bytes than before.
    More,
    /// The peer has finished: there will be no more.
    End,
    /// The limit is reached.
    Full,
}

/// A stream with a prefix that was read from it.
#[derive(Debug)]
pub struct Peeked<S> {
    inner: S,
    prefix: Bytes,
}

impl<S> Peeked<S> {
    /// Nothing seen yet.
    pub fn new(inner: S) -> Self {
        Self { inner, prefix: Bytes::new() }
    }

    /// A stream from which `prefix` has been read elsewhere.
    pub fn with_prefix(inner: S, prefix: Bytes) -> Self {
        Self { inner, prefix }
    }

    /// The bytes seen so far and not yet read.
    pub fn seen(&self) -> &[u8] {
        &self.prefix
    }

    /// The stream behind, and the bytes seen.
    pub fn into_parts(self) -> (S, Bytes) {
        (self.inner, self.prefix)
    }

    /// The stream behind.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The stream behind. Reading from it loses the order of bytes.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }
}

impl<S: Duplex> Peeked<S> {
    /// Waits for more bytes than [`Peeked::seen`] has, up to about `limit` in all. Cancelling loses nothing.
    pub async fn more(&mut self, limit: usize) -> io::Result<Peek> {
        if self.prefix.len() >= limit {
            return Ok(Peek::Full);
        }
        let mut buffer = Buffer::default();
        let chunk = poll_fn(|cx| self.inner.poll_recv(cx, &mut buffer)).await?;
        if chunk.is_empty() {
            return Ok(Peek::End);
        }
        if self.prefix.is_empty() {
            self.prefix = chunk;
        } else {
            let mut joined = BytesMut::with_capacity(self.prefix.len() + chunk.len());
            joined.extend_from_slice(&self.prefix);
            joined.extend_from_slice(&chunk);
            self.prefix = joined.freeze();
        }
        Ok(Peek::More)
    }
}

impl<S: Duplex> Duplex for Peeked<S> {
    fn poll_recv(&mut self, cx: &mut Context<'_>, buffer: &mut Buffer) -> Poll<io::Result<Bytes>> {
        if self.prefix.is_empty() {
            return self.inner.poll_recv(cx, buffer);
        }
        Poll::Ready(Ok(std::mem::take(&mut self.prefix)))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<io::Result<usize>> {
        self.inner.poll_send(cx, data)
    }

    fn poll_push(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.poll_push(cx)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.poll_finish(cx)
    }

    fn reset(&mut self) {
        self.inner.reset();
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Peeked<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        }
        let n = self.prefix.len().min(buf.remaining());
        buf.put_slice(&self.prefix.split_to(n));
        if self.prefix.is_empty() {
            self.prefix = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Peeked<S> {
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
