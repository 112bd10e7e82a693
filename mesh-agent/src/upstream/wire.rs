//! A connection on the wire, whose bytes are counted by their path.
//!
//! In: a byte stream, and which path it is. Out: the same bytes, and the numbers of them. A stream of a tunnel counts what is
//! in it, a connection in the open all that is sent.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use mesh_common::abi::Path;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::net::copy::{Buffer, Duplex};
use crate::telemetry::PathBytes;

/// The stream.
#[derive(Debug)]
pub struct Wire<S> {
    inner: S,
    path: Path,
    bytes: Arc<PathBytes>,
}

impl<S> Wire<S> {
    /// Counts what goes through `inner` as of this path.
    pub fn new(inner: S, path: Path, bytes: Arc<PathBytes>) -> Self {
        Self { inner, path, bytes }
    }

    /// The stream itself.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The stream itself, whose bytes are counted no more.
    pub fn into_inner(self) -> S {
        self.inner
    }

    fn sent(&self, sent: usize) -> usize {
        self.bytes.sent(self.path, sent as u64);
        sent
    }
}

impl<S: Duplex> Duplex for Wire<S> {
    fn poll_recv(&mut self, cx: &mut Context<'_>, buffer: &mut Buffer) -> Poll<io::Result<Bytes>> {
        let received = ready!(self.inner.poll_recv(cx, buffer))?;
        self.bytes.received(self.path, received.len() as u64);
        Poll::Ready(Ok(received))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<io::Result<usize>> {
        self.inner.poll_send(cx, data).map_ok(|sent| self.sent(sent))
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

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        self.bytes.received(self.path, (buf.filled().len() - before) as u64);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf).map_ok(|sent| self.sent(sent))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs).map_ok(|sent| self.sent(sent))
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
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn bytes_are_counted_in_both_directions_whoever_moves_them() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let bytes = Arc::new(PathBytes::default());
        let mut wire = Wire::new(client, Path::Plain, bytes.clone());
        let count = || (bytes.of(Path::Plain), bytes.of(Path::Tunnel));

        wire.write_all(b"four").await.unwrap();
        server.write_all(b"eleven char").await.unwrap();
        wire.read_exact(&mut [0; 11]).await.unwrap();
        assert_eq!(count(), ((4, 11), (0, 0)));

        let mut data = Bytes::from_static(b"six by");
        while !data.is_empty() {
            poll_fn(|cx| wire.poll_send(cx, &mut data)).await.unwrap();
        }
        server.write_all(b"two").await.unwrap();
        let mut buffer = Buffer::default();
        assert_eq!(poll_fn(|cx| wire.poll_recv(cx, &mut buffer)).await.unwrap(), "two");
        assert_eq!(count(), ((10, 14), (0, 0)));
    }
}
