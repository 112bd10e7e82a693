//! What a codec writes in one turn of the worker, sent together.
//!
//! In: a stream, below a codec that writes each of its frames by itself and flushes after it. Out: as few writes to the stream as their
//! bytes need, once whoever drives the codec says that it can do no more for now. Never: holds more than 16 KiB, copies
//! what is that large by itself, or holds a buffer while nothing waits.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

#[cfg(test)]
mod tests;

/// Bytes that wait at most: what one TLS record takes (RFC 8446, section 5.1).
const MOST: usize = 16 << 10;

/// The codec's end: flushing does nothing, see [`Outlet::push`].
#[derive(Debug)]
pub struct Gather<T>(Rc<RefCell<Gathered<T>>>);

/// The driver's end.
#[derive(Debug)]
pub struct Outlet<T>(Rc<RefCell<Gathered<T>>>);

#[derive(Debug)]
struct Gathered<T> {
    inner: T,
    waiting: Vec<u8>,
    /// Of `waiting`, written.
    sent: usize,
    /// The stream may hold something that was written to it.
    flushing: bool,
    /// It failed when nobody could be told.
    failed: Option<io::Error>,
}

/// Both ends of what goes to `inner`.
pub fn gather<T>(inner: T) -> (Gather<T>, Outlet<T>) {
    let gathered = Gathered { inner, waiting: Vec::new(), sent: 0, flushing: false, failed: None };
    let shared = Rc::new(RefCell::new(gathered));
    (Gather(shared.clone()), Outlet(shared))
}

impl<T: AsyncWrite + Unpin> Outlet<T> {
    /// What polling the codec has come to; where it waits, what it has written is pushed.
    pub fn after<R>(&self, polled: Poll<R>, cx: &mut Context<'_>) -> Poll<R> {
        if polled.is_pending() {
            self.push(cx);
        }
        polled
    }

    /// Sends what waits, as far as the stream takes it now; the rest follows when the task of `cx` is woken and pushes again. A failure
    /// reaches the codec by its next call.
    pub fn push(&self, cx: &mut Context<'_>) {
        let this = &mut *self.0.borrow_mut();
        if let Poll::Ready(Err(error)) = this.poll_push(cx) {
            this.failed = Some(error);
            cx.waker().wake_by_ref();
        }
    }
}

impl<T: AsyncWrite + Unpin> Gathered<T> {
    /// Once nothing waits here.
    fn poll_empty(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.waiting.len() {
            match ready!(Pin::new(&mut self.inner).poll_write(cx, &self.waiting[self.sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.sent += sent,
            }
            self.flushing = true;
        }
        (self.waiting, self.sent) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }

    fn poll_push(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_empty(cx))?;
        if self.flushing {
            ready!(Pin::new(&mut self.inner).poll_flush(cx))?;
            self.flushing = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Takes `bytes`, so many in all, or says that they are to be written past what waits, of which there is nothing then.
    fn poll_take<'a>(
        &mut self,
        cx: &mut Context<'_>,
        size: usize,
        bytes: impl Iterator<Item = &'a [u8]>,
    ) -> Poll<io::Result<bool>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        if self.waiting.len() + size > MOST {
            ready!(self.poll_empty(cx))?;
        }
        if size > MOST {
            self.flushing = true;
            return Poll::Ready(Ok(false));
        }
        // What comes alone takes what it needs; where two come, more will.
        let room = if self.waiting.is_empty() { size } else { MOST - self.waiting.len() };
        self.waiting.reserve_exact(room);
        bytes.for_each(|bytes| self.waiting.extend_from_slice(bytes));
        Poll::Ready(Ok(true))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Gather<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self.0.borrow_mut();
        if ready!(this.poll_take(cx, buf.len(), std::iter::once(buf)))? {
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut this.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self.0.borrow_mut();
        let size = bufs.iter().map(|buf| buf.len()).sum();
        if ready!(this.poll_take(cx, size, bufs.iter().map(|buf| &**buf)))? {
            return Poll::Ready(Ok(size));
        }
        Pin::new(&mut this.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.borrow().inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self.0.borrow_mut();
        ready!(this.poll_push(cx))?;
        Pin::new(&mut this.inner).poll_shutdown(cx)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Gather<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self.0.borrow_mut();
        if let Some(error) = this.failed.take() {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut this.inner).poll_read(cx, buf)
    }
}
