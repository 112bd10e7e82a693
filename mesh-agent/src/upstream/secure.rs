//! A TLS connection at a port of an application's, as a byte stream.
//!
//! In: a finished handshake, of either side. Out: [`Duplex`] for relaying, [`AsyncRead`] and [`AsyncWrite`] for a codec on top.
//! FIN is close_notify and FIN (RFC 8446, 6.1). Never: takes a connection that was cut for one that has ended, or owns a buffer
//! while nothing is there.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use crate::net::copy::{Buffer, Duplex};
use crate::net::peek::Peeked;

/// The connection. What was read from the socket before the handshake stands in front of it.
#[derive(Debug)]
pub struct Secure(TlsStream<Peeked<TcpStream>>);

impl Secure {
    /// After the handshake.
    pub fn new(tls: impl Into<TlsStream<Peeked<TcpStream>>>) -> Self {
        Self(tls.into())
    }

    /// Whether nothing can be read before the socket has something.
    fn waits_for_socket(&self, cx: &mut Context<'_>) -> bool {
        let (peeked, session) = self.0.get_ref();
        session.wants_read() && peeked.seen().is_empty() && peeked.get_ref().poll_read_ready(cx).is_pending()
    }
}

impl Duplex for Secure {
    fn poll_recv(&mut self, cx: &mut Context<'_>, buffer: &mut Buffer) -> Poll<io::Result<Bytes>> {
        if self.waits_for_socket(cx) {
            buffer.give_back();
            return Poll::Pending;
        }
        buffer.poll_fill(&mut self.0, cx)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<io::Result<usize>> {
        let sent = ready!(Pin::new(&mut self.0).poll_write(cx, data))?;
        if sent == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        bytes::Buf::advance(data, sent);
        Poll::Ready(Ok(sent))
    }

    fn poll_push(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match ready!(Pin::new(&mut self.0).poll_shutdown(cx)) {
            // The peer has already gone: nothing left to tell it.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            done => Poll::Ready(done),
        }
    }

    fn reset(&mut self) {
        let (peeked, _) = self.0.get_mut();
        peeked.reset();
    }
}

impl AsyncRead for Secure {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Secure {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;

    use rustls::pki_types::ServerName;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;
    use crate::tls::tests::Authority;

    const B: &str = "spiffe://cluster.local/ns/default/sa/b";

    /// Our end, which is a server, and a client's. `first`: bytes that were read from the socket before.
    async fn pair(peeked: usize) -> (Secure, tokio_rustls::client::TlsStream<TcpStream>) {
        let ca = Authority::new("root");
        let own = ca.credential(B);
        let connector = TlsConnector::from(own.client_config(&Arc::from([B.parse().unwrap()])).unwrap());
        let acceptor = TlsAcceptor::from(own.server_config().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut accepted, _) = listener.accept().await.unwrap();
        let server = async {
            let mut seen = vec![0; peeked];
            accepted.read_exact(&mut seen).await.unwrap();
            acceptor.accept(Peeked::with_prefix(accepted, seen.into())).await.unwrap()
        };
        let (client, server) = tokio::join!(connector.connect(ServerName::try_from("b").unwrap(), tcp), server);
        (Secure::new(server), client.unwrap())
    }

    async fn recv(secure: &mut Secure, buffer: &mut Buffer) -> io::Result<Bytes> {
        poll_fn(|cx| secure.poll_recv(cx, buffer)).await
    }

    #[tokio::test]
    async fn each_half_ends_by_itself_and_only_when_that_is_said() {
        let (mut ours, mut theirs) = pair(10).await;
        let mut buffer = Buffer::default();
        theirs.write_all(b"question").await.unwrap();
        theirs.shutdown().await.unwrap();
        assert_eq!(recv(&mut ours, &mut buffer).await.unwrap(), "question");
        assert!(recv(&mut ours, &mut buffer).await.unwrap().is_empty());
        poll_fn(|cx| ours.poll_send(cx, &mut Bytes::from_static(b"answer"))).await.unwrap();
        poll_fn(|cx| ours.poll_finish(cx)).await.unwrap();
        let mut got = String::new();
        theirs.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "answer");

        // FIN alone may have been made by anybody.
        let (mut ours, theirs) = pair(0).await;
        let (mut tcp, _) = theirs.into_inner();
        tcp.shutdown().await.unwrap();
        assert_eq!(recv(&mut ours, &mut buffer).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);

        let (mut ours, mut theirs) = pair(0).await;
        ours.reset();
        drop(ours);
        assert_eq!(theirs.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn what_was_sent_is_on_its_way_once_it_is_pushed() {
        let (mut ours, mut theirs) = pair(0).await;
        let mut taken = 0;
        // Until the socket is full, and what TLS keeps too.
        poll_fn(|cx| {
            loop {
                match ours.poll_send(cx, &mut Bytes::from_static(&[b'x'; 16 << 10])) {
                    Poll::Ready(sent) => taken += sent.unwrap(),
                    Poll::Pending => return Poll::Ready(()),
                }
            }
        })
        .await;
        let mut got = vec![0; taken];
        let reading = tokio::time::timeout(std::time::Duration::from_secs(10), theirs.read_exact(&mut got));
        let (pushed, read) = tokio::join!(poll_fn(|cx| ours.poll_push(cx)), reading);
        pushed.unwrap();
        read.expect("all that was taken").unwrap();
        // It stays open.
        theirs.write_all(b"!").await.unwrap();
        assert_eq!(recv(&mut ours, &mut Buffer::default()).await.unwrap(), "!");
    }
}
