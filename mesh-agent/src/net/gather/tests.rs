//! Pieces over a stream that notes its writes.

use std::future::poll_fn;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;

/// Notes how large each write was that its stream took.
struct Noted {
    stream: DuplexStream,
    writes: Rc<RefCell<Vec<usize>>>,
    broken: bool,
}

impl AsyncWrite for Noted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.broken {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let sent = ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
        self.writes.borrow_mut().push(sent);
        Poll::Ready(Ok(sent))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl AsyncRead for Noted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

struct World {
    codec: Gather<Noted>,
    outlet: Outlet<Noted>,
    peer: DuplexStream,
    writes: Rc<RefCell<Vec<usize>>>,
}

/// Over a stream that takes so many bytes before its peer reads.
fn world(room: usize) -> World {
    let (stream, peer) = duplex(room);
    let writes = Rc::new(RefCell::new(Vec::new()));
    let (codec, outlet) = gather(Noted { stream, writes: writes.clone(), broken: false });
    World { codec, outlet, peer, writes }
}

async fn push(outlet: &Outlet<Noted>) {
    poll_fn(|cx| {
        outlet.push(cx);
        Poll::Ready(())
    })
    .await;
}

#[tokio::test]
async fn pieces_of_one_turn_go_together_and_large_ones_by_themselves() {
    let World { mut codec, outlet, mut peer, writes } = world(1 << 20);
    for piece in [&b"one "[..], b"two ", b"three"] {
        codec.write_all(piece).await.unwrap();
        codec.flush().await.unwrap();
    }
    let parts = [IoSlice::new(b" fo"), IoSlice::new(b"ur")];
    assert_eq!(poll_fn(|cx| Pin::new(&mut codec).poll_write_vectored(cx, &parts)).await.unwrap(), 5);
    assert!(writes.borrow().is_empty());
    push(&outlet).await;
    assert_eq!(*writes.borrow(), [18]);
    let mut got = [0; 18];
    peer.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"one two three four");
    // Nothing is held any more, and nothing is sent twice.
    push(&outlet).await;
    assert_eq!((writes.borrow().len(), codec.0.borrow().waiting.capacity()), (1, 0));
    // No more than the bound waits; what exceeds it by itself passes, behind what waits.
    writes.borrow_mut().clear();
    for size in [10_000, 10_000, MOST + 1] {
        codec.write_all(&vec![b'x'; size]).await.unwrap();
    }
    assert_eq!(*writes.borrow(), [10_000, 10_000, MOST + 1]);
    codec.write_all(b"end").await.unwrap();
    codec.shutdown().await.unwrap();
    let mut rest = Vec::new();
    peer.read_to_end(&mut rest).await.unwrap();
    assert_eq!((rest.len(), &rest[rest.len() - 3..]), (20_000 + MOST + 1 + 3, &b"end"[..]));
}

#[tokio::test]
async fn who_writes_more_than_the_stream_takes_waits_and_loses_nothing() {
    let World { mut codec, outlet, mut peer, .. } = world(1000);
    let sent: Vec<u8> = (0..200_000_u32).map(|at| at as u8).collect();
    let wanted = sent.clone();
    let writing = async move {
        let mut rest = &sent[..];
        poll_fn(|cx| {
            while !rest.is_empty() {
                let size = rest.len().min(700);
                match Pin::new(&mut codec).poll_write(cx, &rest[..size]) {
                    Poll::Ready(taken) => rest = &rest[taken.unwrap()..],
                    Poll::Pending => {
                        assert!(codec.0.borrow().waiting.len() <= MOST);
                        return Poll::Pending;
                    }
                }
            }
            Poll::Ready(())
        })
        .await;
        poll_fn(|cx| {
            outlet.push(cx);
            let left = codec.0.borrow();
            if left.waiting.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    };
    let reading = async {
        let mut got = vec![0; wanted.len()];
        peer.read_exact(&mut got).await.unwrap();
        assert!(got == wanted);
    };
    tokio::join!(writing, reading);
}

#[tokio::test]
async fn a_failure_that_nobody_heard_of_is_told_at_the_next_call() {
    let World { mut codec, outlet, peer: _peer, .. } = world(1000);
    codec.write_all(b"lost").await.unwrap();
    codec.0.borrow_mut().inner.broken = true;
    push(&outlet).await;
    let error = codec.read(&mut [0; 8]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}
