//! A connection to or from an application that has a shortcut past TCP.
//!
//! In: the socket, and which shortcut it is an end of. Out: the same bytes as of any TCP stream. Tells the kernel programs how
//! much it has read, so that they know what they may send. Never takes a short read for an empty socket: behind what came by
//! shortcut there may be something that came by TCP, of which no new event tells.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use mesh_common::shortcut::TOLD_EVERY;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

use crate::kernel::Sockets;
use crate::net::copy::{Buffer, Duplex};

/// The stream.
pub struct Shortcut {
    tcp: TcpStream,
    id: u64,
    sockets: Sockets,
    /// Bytes read in all.
    read: u64,
    /// Of these, bytes that the kernel programs know of.
    told: u64,
    /// The kernel programs want to know.
    asked: bool,
}

impl std::fmt::Debug for Shortcut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shortcut").field("tcp", &self.tcp).field("id", &self.id).finish_non_exhaustive()
    }
}

impl Shortcut {
    /// The stream of an end of this shortcut, from which nothing has been read yet.
    pub fn new(tcp: TcpStream, id: u64, sockets: Sockets) -> Self {
        Self { tcp, id, sockets, read: 0, told: 0, asked: true }
    }

    /// The socket.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// The socket, to write to: what is read from it goes uncounted.
    pub fn tcp_mut(&mut self) -> &mut TcpStream {
        &mut self.tcp
    }

    fn count(&mut self, read: usize) {
        self.read += read as u64;
        if self.asked && self.read - self.told >= TOLD_EVERY {
            match self.sockets.tell_read(self.id, self.read) {
                Ok(asked) => self.asked = asked,
                // Without it the direction goes over to TCP.
                Err(error) => tracing::debug!(%error, "a shortcut is not told what was read"),
            }
            self.told = self.read;
        }
    }
}

impl AsyncRead for Shortcut {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            ready!(this.tcp.poll_read_ready(cx))?;
            // Unlike `poll_read`, it asks again until the kernel says that there is nothing.
            match this.tcp.try_read_buf(buf) {
                Ok(read) => {
                    this.count(read);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Duplex for Shortcut {
    fn poll_recv(&mut self, cx: &mut Context<'_>, buffer: &mut Buffer) -> Poll<io::Result<Bytes>> {
        if self.tcp.poll_read_ready(cx)?.is_pending() {
            buffer.give_back();
            return Poll::Pending;
        }
        buffer.poll_fill(self, cx)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<io::Result<usize>> {
        self.tcp.poll_send(cx, data)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp.poll_finish(cx)
    }

    fn reset(&mut self) {
        self.tcp.reset();
    }
}
