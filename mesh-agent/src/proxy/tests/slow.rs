//! A slow reader on either side holds the other: whoever writes is stopped after what sockets and windows hold, and all of it arrives
//! once it is read. For each protocol and each mix of them, in one hop and through a tunnel.

use std::time::Duration;

use ::h2::{RecvStream, SendStream};
use ::http::Request;
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::config::Config;
use super::h2::{client, get, ok, server};
use super::pair::{APP, B, Pair};
use super::world::*;

/// What is written at most before the writer is held: two TCP connections on loopback with the largest buffers that the kernel gives, a
/// window of each HTTP/2 connection between, and what the agent reads at once.
const MOST: usize = 40 << 20;
/// A writer is held when nobody takes anything for so long.
const HELD: Duration = Duration::from_millis(300);

/// The byte at a place of the stream.
fn byte(at: usize) -> u8 {
    (at % 251) as u8
}

fn piece(at: usize) -> Vec<u8> {
    (at..at + (64 << 10)).map(byte).collect()
}

/// Writes until nobody takes more, and gives the number of bytes.
async fn fill(to: &mut (impl AsyncWrite + Unpin)) -> usize {
    let mut written = 0;
    while let Ok(sent) = timeout(HELD, to.write(&piece(written))).await {
        written += sent.unwrap();
        assert!(written < MOST, "nobody holds the writer");
    }
    assert!(written > 0);
    written
}

/// Reads all of it.
async fn take(from: &mut (impl AsyncRead + Unpin), bytes: usize) {
    let mut got = vec![0; 64 << 10];
    let mut at = 0;
    while at < bytes {
        let most = got.len().min(bytes - at);
        let read = from.read(&mut got[..most]).await.unwrap();
        assert!(read > 0, "it ends at {at} of {bytes}");
        assert!(got[..read].iter().zip(at..).all(|(one, at)| *one == byte(at)), "other bytes behind {at}");
        at += read;
    }
}

/// As [`fill`], on a stream of HTTP/2.
async fn fill_stream(to: &mut SendStream<Bytes>) -> usize {
    let mut written = 0;
    loop {
        to.reserve_capacity(64 << 10);
        let room = std::future::poll_fn(|cx| match to.capacity() {
            0 => to.poll_capacity(cx).map(drop),
            _ => std::task::Poll::Ready(()),
        });
        if timeout(HELD, room).await.is_err() {
            assert!(written > 0);
            return written;
        }
        let mut data = piece(written);
        data.truncate(to.capacity());
        written += data.len();
        to.send_data(data.into(), false).unwrap();
        assert!(written < MOST, "nobody holds the writer");
    }
}

/// As [`take`], of a stream of HTTP/2.
async fn take_stream(from: &mut RecvStream, bytes: usize) {
    let mut at = 0;
    while at < bytes {
        let data = from.data().await.unwrap().unwrap();
        from.flow_control().release_capacity(data.len()).unwrap();
        assert!(data.iter().zip(at..).all(|(one, at)| *one == byte(at)), "other bytes behind {at}");
        at += data.len();
    }
}

const LENGTH: &str = "Content-Length: 10000000000";

#[tokio::test]
async fn opaque_bytes_both_ways() {
    run(async {
        let world = World::configured(Config::new().build());
        let server = world.server("10.0.0.1:80").await;
        let mut client = world.client().await;
        // Nothing that could be HTTP.
        client.write_all(b"\0").await.unwrap();
        let (mut upstream, _) = server.accept().await.unwrap();
        upstream.read_u8().await.unwrap();
        let (forth, back) = (fill(&mut client).await, fill(&mut upstream).await);
        take(&mut upstream, forth).await;
        take(&mut client, back).await;
    })
    .await;
}

#[tokio::test]
async fn http1_both_ways_at_once() {
    run(async {
        let world = World::configured(Config::new().build());
        let server = world.server("10.0.0.1:80").await;
        let mut client = world.client().await;
        client.write_all(format!("PUT / HTTP/1.1\r\nHost: web\r\n{LENGTH}\r\n\r\n").as_bytes()).await.unwrap();
        let (mut upstream, _) = server.accept().await.unwrap();
        read_head(&mut upstream).await;
        upstream.write_all(format!("HTTP/1.1 200 OK\r\n{LENGTH}\r\n\r\n").as_bytes()).await.unwrap();
        read_head(&mut client).await;
        let (forth, back) = (fill(&mut client).await, fill(&mut upstream).await);
        take(&mut upstream, forth).await;
        take(&mut client, back).await;
    })
    .await;
}

#[tokio::test]
async fn http2_in_front_of_http1_both_ways() {
    run(async {
        let world = World::configured(Config::new().build());
        let server = world.server("10.0.0.1:80").await;
        let mut send = client(world.client().await).await;
        let request = Request::put("http://web/").header("content-length", "10000000000").body(()).unwrap();
        let (answer, mut up) = send.send_request(request, false).unwrap();
        let (mut upstream, _) = server.accept().await.unwrap();
        read_head(&mut upstream).await;
        upstream.write_all(format!("HTTP/1.1 200 OK\r\n{LENGTH}\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = answer.await.unwrap();
        let (forth, back) = (fill_stream(&mut up).await, fill(&mut upstream).await);
        take(&mut upstream, forth).await;
        take_stream(answer.body_mut(), back).await;
    })
    .await;
}

#[tokio::test]
async fn http1_in_front_of_http2_both_ways() {
    run(async {
        let world = World::configured(Config::new().speaks_http2().build());
        let mut requests = server(world.server("10.0.0.1:80").await);
        let mut client = world.client().await;
        client.write_all(format!("PUT / HTTP/1.1\r\nHost: web\r\n{LENGTH}\r\n\r\n").as_bytes()).await.unwrap();
        let (mut request, mut respond) = requests.recv().await.unwrap();
        let response = ::http::Response::builder().header("content-length", "10000000000").body(()).unwrap();
        let mut down = respond.send_response(response, false).unwrap();
        read_head(&mut client).await;
        let (forth, back) = (fill(&mut client).await, fill_stream(&mut down).await);
        take_stream(request.body_mut(), forth).await;
        take(&mut client, back).await;
    })
    .await;
}

#[tokio::test]
async fn through_a_tunnel_bytes_and_http1_both_ways() {
    run(async {
        for http in [false, true] {
            let pair = Pair::new().await;
            let app = pair.app().await;
            let mut client = pair.connect(APP, B).await.unwrap();
            let (mut upstream, _) = app.accept().await.unwrap();
            if http {
                client.write_all(format!("PUT / HTTP/1.1\r\nHost: web\r\n{LENGTH}\r\n\r\n").as_bytes()).await.unwrap();
                read_head(&mut upstream).await;
                upstream.write_all(format!("HTTP/1.1 200 OK\r\n{LENGTH}\r\n\r\n").as_bytes()).await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(client.read_u8().await.unwrap());
                }
            } else {
                client.write_all(b"\0").await.unwrap();
                upstream.read_u8().await.unwrap();
            }
            let (forth, back) = (fill(&mut client).await, fill(&mut upstream).await);
            take(&mut upstream, forth).await;
            take(&mut client, back).await;
        }
    })
    .await;
}

#[tokio::test]
async fn through_a_tunnel_http2_both_ways_and_nobody_else_is_held() {
    run(async {
        let pair = Pair::new().await;
        let mut requests = server(pair.app().await);
        let (mut send, connection) = ::h2::client::handshake(pair.connect(APP, B).await.unwrap()).await.unwrap();
        tokio::task::spawn_local(connection);
        let (answer, mut up) = send.send_request(Request::put("http://web/").body(()).unwrap(), false).unwrap();
        let (mut request, mut respond) = requests.recv().await.unwrap();
        let mut down = respond.send_response(ok(), false).unwrap();
        let mut answer = answer.await.unwrap();
        let (forth, back) = (fill_stream(&mut up).await, fill_stream(&mut down).await);
        let (other, _) = send.send_request(get("/other"), true).unwrap();
        requests.recv().await.unwrap().1.send_response(ok(), true).unwrap();
        assert_eq!(other.await.unwrap().status(), 200);
        take_stream(request.body_mut(), forth).await;
        take_stream(answer.body_mut(), back).await;
    })
    .await;
}
