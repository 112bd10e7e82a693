//! A byte stream between two workloads of this node, inside the agent: what TCP, TLS and a tunnel are between nodes.
//!
//! In: bytes at one end. Out: the same bytes, not copied, at the other. It ends as TCP does: FIN, or a reset, after what was
//! sent before. Never: holds more than [`QUEUE`] bytes or [`CHUNKS`] pieces in a direction; who sends faster waits.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::net::copy::{Buffer, Duplex};

/// Bytes that wait in one direction.
pub const QUEUE: usize = 256 << 10;
/// Pieces that wait in one direction: a small one may hold a large buffer.
pub const CHUNKS: usize = 32;

/// One end. Dropping it before it has finished is a reset; and nobody reads any more.
#[derive(Debug)]
pub struct Pipe {
    receive: Arc<Direction>,
    send: Arc<Direction>,
    /// Received, not yet handed to the reader.
    rest: Bytes,
}

/// Both ends are used by tasks of one worker; the lock is there because streams may move between threads, and is free.
#[derive(Debug, Default)]
struct Direction(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    chunks: VecDeque<Bytes>,
    bytes: usize,
    end: Option<End>,
    /// The reader has gone.
    unread: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Finished,
    Reset,
}

impl Pipe {
    /// Two ends.
    pub fn new() -> (Pipe, Pipe) {
        let (there, back) = (Arc::<Direction>::default(), Arc::<Direction>::default());
        let near = Pipe { receive: back.clone(), send: there.clone(), rest: Bytes::new() };
        (near, Pipe { receive: there, send: back, rest: Bytes::new() })
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        if !self.rest.is_empty() {
            return Poll::Ready(Ok(std::mem::take(&mut self.rest)));
        }
        let mut queue = self.receive.lock();
        if let Some(chunk) = queue.chunks.pop_front() {
            queue.bytes -= chunk.len();
            wake(&mut queue.writer);
            return Poll::Ready(Ok(chunk));
        }
        match queue.end {
            Some(End::Finished) => Poll::Ready(Ok(Bytes::new())),
            Some(End::Reset) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            None => {
                remember(&mut queue.reader, cx);
                Poll::Pending
            }
        }
    }

    /// Puts what `data` gives for so many bytes into the queue, once there is room for any.
    fn poll_put(
        &mut self,
        cx: &mut Context<'_>,
        want: usize,
        data: impl FnOnce(usize) -> Bytes,
    ) -> Poll<io::Result<usize>> {
        let mut queue = self.send.lock();
        if queue.end == Some(End::Reset) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if queue.unread || queue.end.is_some() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = QUEUE.saturating_sub(queue.bytes).min(want);
        if room == 0 || queue.chunks.len() >= CHUNKS {
            remember(&mut queue.writer, cx);
            return Poll::Pending;
        }
        queue.bytes += room;
        queue.chunks.push_back(data(room));
        wake(&mut queue.reader);
        Poll::Ready(Ok(room))
    }
}

impl Direction {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Between any two of these calls the queue is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing more will come this way. What ended it first holds.
    fn end(&self, end: End) {
        let mut queue = self.lock();
        if queue.end.is_none() || end == End::Reset {
            queue.end = Some(end);
        }
        wake(&mut queue.reader);
        wake(&mut queue.writer);
    }
}

fn remember(place: &mut Option<Waker>, cx: &Context<'_>) {
    match place {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *place = Some(cx.waker().clone()),
    }
}

fn wake(place: &mut Option<Waker>) {
    if let Some(waker) = place.take() {
        waker.wake();
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let unfinished = self.send.lock().end.is_none();
        if unfinished {
            self.send.end(End::Reset);
        }
        let mut queue = self.receive.lock();
        queue.unread = true;
        queue.chunks.clear();
        queue.bytes = 0;
        wake(&mut queue.writer);
    }
}

impl Duplex for Pipe {
    fn poll_recv(&mut self, cx: &mut Context<'_>, _buffer: &mut Buffer) -> Poll<io::Result<Bytes>> {
        self.poll_chunk(cx)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<io::Result<usize>> {
        self.poll_put(cx, data.len(), |n| data.split_to(n))
    }

    fn poll_finish(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.send.end(End::Finished);
        Poll::Ready(Ok(()))
    }

    fn reset(&mut self) {
        self.send.end(End::Reset);
        // What the other end still sends is for nobody.
        self.receive.end(End::Reset);
    }
}

impl AsyncRead for Pipe {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut chunk = ready!(self.poll_chunk(cx))?;
        let n = chunk.len().min(buf.remaining());
        buf.put_slice(&chunk.split_to(n));
        self.rest = chunk;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.poll_put(cx, buf.len(), |n| Bytes::copy_from_slice(&buf[..n]))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_finish(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn send(pipe: &mut Pipe, data: &'static [u8]) -> io::Result<()> {
        let mut data = Bytes::from_static(data);
        while !data.is_empty() {
            poll_fn(|cx| pipe.poll_send(cx, &mut data)).await?;
        }
        Ok(())
    }

    async fn receive(pipe: &mut Pipe) -> io::Result<Bytes> {
        let mut buffer = Buffer::default();
        poll_fn(|cx| pipe.poll_recv(cx, &mut buffer)).await
    }

    #[tokio::test]
    async fn bytes_come_as_they_were_sent_and_then_the_end() {
        let (mut near, mut far) = Pipe::new();
        send(&mut near, b"one").await.unwrap();
        far.write_all(b"answer").await.unwrap();
        send(&mut near, b"two").await.unwrap();
        poll_fn(|cx| near.poll_finish(cx)).await.unwrap();
        assert_eq!(send(&mut near, b"late").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        let mut all = String::new();
        far.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "onetwo");
        // One direction has ended, the other goes on.
        far.write_all(b"!").await.unwrap();
        far.shutdown().await.unwrap();
        drop(far);
        let mut all = String::new();
        near.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "answer!");
    }

    #[tokio::test]
    async fn who_reads_in_small_pieces_loses_nothing() {
        let (mut near, mut far) = Pipe::new();
        send(&mut near, b"abcdef").await.unwrap();
        let mut two = [0; 2];
        far.read_exact(&mut two).await.unwrap();
        assert_eq!(receive(&mut far).await.unwrap(), "cdef");
        near.shutdown().await.unwrap();
        drop(near);
        assert_eq!(receive(&mut far).await.unwrap(), "");
    }

    #[tokio::test]
    async fn a_reset_comes_after_what_was_sent_and_ends_both_ways() {
        let (mut near, mut far) = Pipe::new();
        send(&mut near, b"last").await.unwrap();
        near.reset();
        drop(near);
        assert_eq!(receive(&mut far).await.unwrap(), "last");
        assert_eq!(receive(&mut far).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(send(&mut far, b"x").await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn who_goes_in_the_middle_is_a_failure() {
        let (mut near, mut far) = Pipe::new();
        send(&mut near, b"unread").await.unwrap();
        send(&mut far, b"half of it").await.unwrap();
        drop(far);
        assert_eq!(send(&mut near, b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(receive(&mut near).await.unwrap(), "half of it");
        assert_eq!(receive(&mut near).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn who_sends_faster_waits() {
        static MUCH: [u8; QUEUE + 1] = [7; QUEUE + 1];
        let (mut near, mut far) = Pipe::new();
        let mut data = Bytes::from_static(&MUCH);
        let sent = poll_fn(|cx| near.poll_send(cx, &mut data)).await.unwrap();
        assert_eq!((sent, data.len()), (QUEUE, 1));
        let mut sending = Box::pin(poll_fn(|cx| near.poll_send(cx, &mut data)));
        assert!(sending.as_mut().now_or_never().is_none());
        assert_eq!(receive(&mut far).await.unwrap().len(), QUEUE);
        assert_eq!(sending.await.unwrap(), 1);
        assert_eq!(receive(&mut far).await.unwrap().len(), 1);
        // However small the pieces.
        for _ in 0..CHUNKS {
            send(&mut near, b"a").await.unwrap();
        }
        assert!(send(&mut near, b"a").now_or_never().is_none());
        // Who waits hears of the reader's end.
        let (waiting, _) = tokio::join!(send(&mut near, b"b"), async { drop(far) });
        assert_eq!(waiting.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn who_waits_is_woken() {
        let (mut near, mut far) = Pipe::new();
        let (got, ()) = tokio::join!(receive(&mut far), async { send(&mut near, b"now").await.unwrap() });
        assert_eq!(got.unwrap(), "now");
        let (got, ()) = tokio::join!(receive(&mut far), async { near.reset() });
        assert_eq!(got.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
}
