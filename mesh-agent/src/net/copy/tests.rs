//! Relays over loopback sockets: how each kind of end travels.

use std::future::poll_fn;
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::{JoinHandle, LocalSet};

use super::*;

/// Two connected sockets; `buffer` limits what the kernel holds between them, in bytes.
async fn pair(buffer: Option<u32>) -> (TcpStream, TcpStream) {
    let (dial, bind) = (TcpSocket::new_v4().unwrap(), TcpSocket::new_v4().unwrap());
    if let Some(size) = buffer {
        dial.set_send_buffer_size(size).unwrap();
        dial.set_recv_buffer_size(size).unwrap();
        bind.set_send_buffer_size(size).unwrap();
        bind.set_recv_buffer_size(size).unwrap();
    }
    bind.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener: TcpListener = bind.listen(1).unwrap();
    let (near, far) = tokio::join!(dial.connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

struct Relayed {
    client: TcpStream,
    server: TcpStream,
    traffic: Rc<Traffic>,
    end: JoinHandle<End>,
}

/// A client and a server with a relay between them.
async fn relayed(buffer: Option<u32>, idle: Option<Duration>) -> Relayed {
    let (client, first) = pair(buffer).await;
    let (second, server) = pair(buffer).await;
    let traffic = Rc::new(Traffic::default());
    let counts = traffic.clone();
    let end = tokio::task::spawn_local(async move { copy(first, second, &counts, idle).await });
    Relayed { client, server, traffic, end }
}

#[tokio::test]
async fn half_close_lets_the_other_direction_go_on() {
    LocalSet::new()
        .run_until(async {
            let Relayed { mut client, mut server, traffic, end } = relayed(None, None).await;
            client.write_all(b"question").await.unwrap();
            client.shutdown().await.unwrap();
            let mut got = Vec::new();
            server.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, b"question");
            // The server speaks only now, long after the client's FIN.
            server.write_all(b"a longer answer").await.unwrap();
            drop(server);
            got.clear();
            client.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, b"a longer answer");
            assert!(matches!(end.await.unwrap(), End::Finished));
            assert_eq!((traffic.forward.get(), traffic.back.get()), (8, 15));
        })
        .await;
}

#[tokio::test]
async fn a_reset_arrives_as_a_reset_after_what_was_sent_before() {
    LocalSet::new()
        .run_until(async {
            for client_resets in [true, false] {
                let Relayed { client, server, end, .. } = relayed(None, None).await;
                let (mut from, mut to) = if client_resets { (client, server) } else { (server, client) };
                from.write_all(b"last words").await.unwrap();
                let mut got = [0; 10];
                to.read_exact(&mut got).await.unwrap();
                from.set_zero_linger().unwrap();
                drop(from);
                let error = to.read(&mut got).await.unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
                match end.await.unwrap() {
                    End::FirstReset(_) if client_resets => {}
                    End::SecondReset(_) if !client_resets => {}
                    other => panic!("client resets: {client_resets}, {other:?}"),
                }
            }
        })
        .await;
}

#[tokio::test]
async fn a_peer_that_vanishes_while_being_written_to_resets_the_writer() {
    LocalSet::new()
        .run_until(async {
            let Relayed { mut client, mut server, end, .. } = relayed(None, None).await;
            // The server closes with bytes unread: its kernel sends RST.
            client.write_all(&[7; 1000]).await.unwrap();
            server.read_exact(&mut [0; 1]).await.unwrap();
            drop(server);
            let error = loop {
                if let Err(error) = client.write_all(&[7; 1000]).await {
                    break error;
                }
                tokio::task::yield_now().await;
            };
            assert!(matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe), "{error}");
            assert!(matches!(end.await.unwrap(), End::SecondReset(_)));
        })
        .await;
}

#[tokio::test]
async fn a_slow_reader_holds_the_writer_back() {
    LocalSet::new()
        .run_until(async {
            let Relayed { mut client, mut server, traffic, end } = relayed(Some(8 << 10), None).await;
            const TOTAL: usize = 8 << 20;
            let sent = Rc::new(Cell::new(0));
            let count = sent.clone();
            let writer = tokio::task::spawn_local(async move {
                let piece: Vec<u8> = (0..=255).cycle().take(4 << 10).collect();
                while count.get() < TOTAL {
                    client.write_all(&piece).await.unwrap();
                    count.set(count.get() + piece.len());
                }
                client.shutdown().await.unwrap();
                client.read_to_end(&mut Vec::new()).await.unwrap();
            });
            // Nobody reads: the writer must come to a halt, with no more in between than kernel and relay buffers hold.
            let mut before = usize::MAX;
            while before != sent.get() {
                before = sent.get();
                for _ in 0..1000 {
                    tokio::task::yield_now().await;
                }
            }
            assert!(sent.get() < 1 << 20, "{} bytes on their way", sent.get());
            let mut got = Vec::new();
            server.read_to_end(&mut got).await.unwrap();
            assert_eq!(got.len(), TOTAL);
            assert!(got.iter().enumerate().all(|(i, byte)| *byte == i as u8), "every byte in its place");
            drop(server);
            writer.await.unwrap();
            assert!(matches!(end.await.unwrap(), End::Finished));
            assert_eq!(traffic.forward.get(), TOTAL as u64);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn idle_ends_only_a_silent_connection() {
    LocalSet::new()
        .run_until(async {
            let limit = Duration::from_secs(60);
            let Relayed { mut client, mut server, end, .. } = relayed(None, Some(limit)).await;
            let start = Instant::now();
            // Traffic at 40 s moves the end to 100 s.
            tokio::time::sleep(Duration::from_secs(40)).await;
            client.write_all(b"x").await.unwrap();
            server.read_exact(&mut [0]).await.unwrap();
            let last = start.elapsed();
            assert!(matches!(end.await.unwrap(), End::Idle));
            assert!(start.elapsed() >= last + limit - Duration::from_secs(1), "{:?}", start.elapsed());
        })
        .await;
}

#[tokio::test]
async fn the_buffer_grows_with_the_traffic_and_is_given_back() {
    let (mut near, mut far) = pair(None).await;
    let mut buffer = Buffer::default();
    near.write_all(&[1; 200_000]).await.unwrap();
    let mut largest = 0;
    let mut left = 200_000;
    while left > 0 {
        let chunk = poll_fn(|cx| far.poll_recv(cx, &mut buffer)).await.unwrap();
        largest = largest.max(chunk.len());
        left -= chunk.len();
    }
    assert!(largest > STEPS[1], "largest read: {largest}");
    let waiting = poll_fn(|cx| Poll::Ready(far.poll_recv(cx, &mut buffer).is_pending())).await;
    assert!(waiting);
    assert_eq!(buffer.spare.capacity(), 0, "no memory while waiting");
}

#[tokio::test]
async fn the_relay_stays_small() {
    let traffic = Traffic::default();
    let (first, second) = pair(None).await;
    let size = size_of_val(&copy(first, second, &traffic, None));
    println!("relay of two TCP connections: {size} bytes");
    assert!(size <= 512, "{size}");
}

/// What many connections of a workload get of its share: little at once, and seldom in a turn.
#[tokio::test]
async fn a_share_bounds_what_is_read_at_once_and_in_a_turn() {
    use crate::settings::limits::Limits;
    let limits = Limits { buffer_bytes_per_workload: 1 << 20, ..Limits::default() };
    let share = Share::new(&limits, std::sync::Arc::default());
    let mut buffer = Buffer::within(&share);
    let (mut near, mut far) = pair(None).await;
    for (connections, most) in [(1, STEPS[2]), (20, STEPS[1]), (1000, STEPS[0]), (1, STEPS[2])] {
        (0..connections).for_each(|_| share.join());
        near.write_all(&[1; 400_000]).await.unwrap();
        let (mut largest, mut left) = (0, 400_000);
        while left > 0 {
            let chunk = poll_fn(|cx| far.poll_recv(cx, &mut buffer)).await.unwrap();
            largest = largest.max(chunk.len());
            left -= chunk.len();
        }
        assert!(largest <= most && largest > most / 2, "{connections}: {largest}");
        assert_eq!(buffer.chunks(), if connections == 1000 { 1 } else { CHUNKS_PER_TURN });
        (0..connections).for_each(|_| share.leave());
    }
}

/// What is read of so many bytes that come at once, piece by piece.
async fn pieces(from: &mut TcpStream, to: &mut TcpStream, buffer: &mut Buffer, bytes: usize) -> Vec<usize> {
    let mut pieces = Vec::new();
    from.write_all(&vec![b'x'; bytes]).await.unwrap();
    // Nothing is left out by chance: on loopback all of it is there by now.
    while pieces.iter().sum::<usize>() < bytes {
        pieces.push(poll_fn(|cx| to.poll_recv(cx, buffer)).await.unwrap().len());
    }
    assert!(poll_fn(|cx| Poll::Ready(to.poll_recv(cx, buffer).is_pending())).await);
    pieces
}

#[tokio::test]
async fn what_has_come_once_fits_the_next_time() {
    let (mut from, mut to) = pair(None).await;
    let mut buffer = Buffer::default();
    assert_eq!(pieces(&mut from, &mut to, &mut buffer, 1200).await, [1200]);
    assert_eq!(pieces(&mut from, &mut to, &mut buffer, 5000).await, [STEPS[0], 5000 - STEPS[0]]);
    for _ in 0..3 {
        assert_eq!(pieces(&mut from, &mut to, &mut buffer, 5000).await, [5000]);
    }
    // And after little there is little room again.
    assert_eq!(pieces(&mut from, &mut to, &mut buffer, 10).await, [10]);
    assert_eq!(pieces(&mut from, &mut to, &mut buffer, 5000).await[0], STEPS[0]);
}
