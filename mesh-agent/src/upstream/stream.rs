//! One CONNECT stream of an HTTP/2 tunnel as a byte stream.
//!
//! In: h2's two halves. Out: [`Duplex`] for relaying without a copy, [`AsyncRead`] and [`AsyncWrite`] for a codec on top.
//! FIN is END_STREAM, a reset is RST_STREAM with CONNECT_ERROR (RFC 9113, section 8.5), in both directions.
//! Never: lets the peer send more before what it sent was consumed, or queues more than the peer's window takes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use mesh_common::abi::Path;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::pipe::Pipe;
use super::secure::Secure;
use super::shortcut::Shortcut;
use super::wire::Wire;
use crate::kernel::Sockets;
use crate::net::copy::{Buffer, Duplex};
use crate::telemetry::PathBytes;

/// Largest piece that [`AsyncWrite`] copies into the tunnel at once, in bytes.
const WRITE_PIECE: usize = 64 << 10;

/// Counts the streams that are open on one tunnel; gives its place back when dropped.
#[derive(Debug)]
pub struct StreamGuard(Arc<AtomicUsize>);

impl StreamGuard {
    /// Takes a place.
    pub fn new(open: Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        Self(open)
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One stream of a tunnel.
#[derive(Debug)]
pub struct TunnelStream {
    send: SendStream<Bytes>,
    recv: RecvStream,
    /// Received, not yet handed to the reader.
    rest: Bytes,
    /// Handed to the reader, not yet reported to flow control: it counts as consumed at the next read.
    unreleased: usize,
    finished: bool,
    _guard: Option<StreamGuard>,
}

impl TunnelStream {
    /// Joins the two halves. `guard` is given back with the stream.
    pub fn new(send: SendStream<Bytes>, recv: RecvStream, guard: Option<StreamGuard>) -> Self {
        Self { send, recv, rest: Bytes::new(), unreleased: 0, finished: false, _guard: guard }
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        if self.unreleased > 0 {
            let consumed = std::mem::take(&mut self.unreleased);
            // Fails only when the stream has ended meanwhile; the read below says so.
            let _ = self.recv.flow_control().release_capacity(consumed);
        }
        if !self.rest.is_empty() {
            self.unreleased = self.rest.len();
            return Poll::Ready(Ok(std::mem::take(&mut self.rest)));
        }
        loop {
            match ready!(self.recv.poll_data(cx)) {
                None => return Poll::Ready(Ok(Bytes::new())),
                Some(Ok(chunk)) if chunk.is_empty() => {}
                Some(Ok(chunk)) => {
                    self.unreleased = chunk.len();
                    return Poll::Ready(Ok(chunk));
                }
                Some(Err(error)) => return Poll::Ready(Err(as_io(error))),
            }
        }
    }

    fn poll_end(&mut self) -> Poll<io::Result<()>> {
        if self.finished {
            return Poll::Ready(Ok(()));
        }
        self.finished = true;
        Poll::Ready(self.send.send_data(Bytes::new(), true).map_err(as_io))
    }
}

impl Duplex for TunnelStream {
    fn poll_recv(&mut self, cx: &mut Context<'_>, _buffer: &mut Buffer) -> Poll<io::Result<Bytes>> {
        self.poll_chunk(cx)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<io::Result<usize>> {
        let room = ready!(poll_room(&mut self.send, cx, data.len())).map_err(as_io)?;
        self.send.send_data(data.split_to(room), false).map_err(as_io)?;
        Poll::Ready(Ok(room))
    }

    fn poll_finish(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_end()
    }

    fn reset(&mut self) {
        self.send.send_reset(Reason::CONNECT_ERROR);
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut chunk = ready!(self.poll_chunk(cx))?;
        let n = chunk.len().min(buf.remaining());
        buf.put_slice(&chunk.split_to(n));
        self.unreleased = n;
        self.rest = chunk;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let room = ready!(poll_room(&mut self.send, cx, buf.len().min(WRITE_PIECE))).map_err(as_io)?;
        self.send.send_data(Bytes::copy_from_slice(&buf[..room]), false).map_err(as_io)?;
        Poll::Ready(Ok(room))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The tunnel's own task writes to the socket.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_end()
    }
}

/// A connection to or from a pod, in the open or in a tunnel.
#[derive(Debug)]
pub enum Stream {
    /// A TCP connection with an application.
    Tcp(TcpStream),
    /// As [`Stream::Tcp`], with a shortcut past TCP.
    Shortcut(Box<Shortcut>),
    /// A TCP connection in the open.
    Plain(Wire<TcpStream>),
    /// A stream of an HBONE tunnel.
    Tunnel(Box<Wire<TunnelStream>>),
    /// To another workload of this node.
    Neighbour(Wire<Pipe>),
    /// TLS at a port of the application's.
    Tls(Box<Wire<Secure>>),
}

impl Stream {
    /// A connection in the open.
    pub fn plain(tcp: TcpStream, bytes: &Arc<PathBytes>) -> Stream {
        Stream::Plain(Wire::new(tcp, Path::Plain, bytes.clone()))
    }

    /// A stream of a tunnel.
    pub fn tunnel(stream: TunnelStream, bytes: &Arc<PathBytes>) -> Stream {
        Stream::Tunnel(Box::new(Wire::new(stream, Path::Tunnel, bytes.clone())))
    }

    /// One end of a connection between two workloads of this node.
    pub fn neighbour(pipe: Pipe, bytes: &Arc<PathBytes>) -> Stream {
        Stream::Neighbour(Wire::new(pipe, Path::Neighbour, bytes.clone()))
    }

    /// TLS at a port of the application's; what is inside counts.
    pub fn tls(secure: Secure, bytes: &Arc<PathBytes>) -> Stream {
        Stream::Tls(Box::new(Wire::new(secure, Path::Tls, bytes.clone())))
    }

    /// A connection with an application, just accepted or made, and the shortcut that it has. The kernel is to be asked for
    /// that, not the settings: they may have changed since the connection began.
    pub fn with_app(tcp: TcpStream, sockets: &Sockets, shortcut: Option<u64>) -> Stream {
        match shortcut {
            Some(id) => Stream::Shortcut(Box::new(Shortcut::new(tcp, id, sockets.clone()))),
            None => Stream::Tcp(tcp),
        }
    }

    /// The socket, if it has one of its own with the same bytes.
    pub fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Stream::Tcp(tcp) => Some(tcp),
            Stream::Shortcut(shortcut) => Some(shortcut.tcp()),
            Stream::Plain(wire) => Some(wire.get_ref()),
            Stream::Tunnel(_) | Stream::Neighbour(_) | Stream::Tls(_) => None,
        }
    }
}

impl Duplex for Stream {
    fn poll_recv(&mut self, cx: &mut Context<'_>, buffer: &mut Buffer) -> Poll<io::Result<Bytes>> {
        match self {
            Stream::Tcp(stream) => stream.poll_recv(cx, buffer),
            Stream::Shortcut(stream) => stream.poll_recv(cx, buffer),
            Stream::Plain(stream) => stream.poll_recv(cx, buffer),
            Stream::Tunnel(stream) => stream.poll_recv(cx, buffer),
            Stream::Neighbour(stream) => stream.poll_recv(cx, buffer),
            Stream::Tls(stream) => stream.poll_recv(cx, buffer),
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<io::Result<usize>> {
        match self {
            Stream::Tcp(stream) => stream.poll_send(cx, data),
            Stream::Shortcut(stream) => stream.poll_send(cx, data),
            Stream::Plain(stream) => stream.poll_send(cx, data),
            Stream::Tunnel(stream) => stream.poll_send(cx, data),
            Stream::Neighbour(stream) => stream.poll_send(cx, data),
            Stream::Tls(stream) => stream.poll_send(cx, data),
        }
    }

    fn poll_push(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Tls(stream) => stream.poll_push(cx),
            _ => Poll::Ready(Ok(())),
        }
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Tcp(stream) => stream.poll_finish(cx),
            Stream::Shortcut(stream) => stream.poll_finish(cx),
            Stream::Plain(stream) => stream.poll_finish(cx),
            Stream::Tunnel(stream) => stream.poll_finish(cx),
            Stream::Neighbour(stream) => stream.poll_finish(cx),
            Stream::Tls(stream) => stream.poll_finish(cx),
        }
    }

    fn reset(&mut self) {
        match self {
            Stream::Tcp(stream) => stream.reset(),
            Stream::Shortcut(stream) => stream.reset(),
            Stream::Plain(stream) => stream.reset(),
            Stream::Tunnel(stream) => stream.reset(),
            Stream::Neighbour(stream) => stream.reset(),
            Stream::Tls(stream) => stream.reset(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Shortcut(stream) => Pin::new(&mut **stream).poll_read(cx, buf),
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tunnel(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Neighbour(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Shortcut(stream) => Pin::new(stream.tcp_mut()).poll_write(cx, buf),
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tunnel(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Neighbour(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Shortcut(stream) => Pin::new(stream.tcp_mut()).poll_write_vectored(cx, bufs),
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Tunnel(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Neighbour(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Stream::Tcp(stream) => stream.is_write_vectored(),
            Stream::Shortcut(stream) => stream.tcp().is_write_vectored(),
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tunnel(stream) => stream.is_write_vectored(),
            Stream::Neighbour(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Shortcut(stream) => Pin::new(stream.tcp_mut()).poll_flush(cx),
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tunnel(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Neighbour(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Shortcut(stream) => Pin::new(stream.tcp_mut()).poll_shutdown(cx),
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tunnel(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Neighbour(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_shutdown(cx),
        }
    }
}

/// Waits until a stream may send at least one byte of `want`; how many it may.
///
/// # Errors
/// The stream has ended, or its connection.
pub fn poll_room(send: &mut SendStream<Bytes>, cx: &mut Context<'_>, want: usize) -> Poll<Result<usize, h2::Error>> {
    send.reserve_capacity(want);
    loop {
        // Room assigned earlier is not announced again, so look before waiting.
        let room = send.capacity();
        if room > 0 {
            return Poll::Ready(Ok(room.min(want)));
        }
        match ready!(send.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Poll::Ready(Err(error)),
            None => return Poll::Ready(Err(Reason::STREAM_CLOSED.into())),
        }
    }
}

/// A reset or a lost tunnel is to the relay what a TCP reset is.
fn as_io(error: h2::Error) -> io::Error {
    if error.is_io() {
        return error.into_io().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into());
    }
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}
