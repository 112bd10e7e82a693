//! Clients of one version of HTTP and servers of the other.

use std::time::Duration;

use ::h2::Reason;
use ::http::{HeaderMap, Request};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::config::Config;
use super::h2::*;
use super::world::*;

/// A client of HTTP/2 whose requests go to a server of HTTP/1, since its cluster says so.
async fn down(world: &World) -> (::h2::client::SendRequest<Bytes>, TcpListener) {
    let server = world.server("10.0.0.1:80").await;
    (client(world.client().await).await, server)
}

async fn head(server: &TcpListener) -> (TcpStream, String) {
    let (mut stream, _) = server.accept().await.unwrap();
    let head = read_head(&mut stream).await;
    (stream, head)
}

#[tokio::test]
async fn an_http1_server_gets_http1() {
    run(async {
        let world = World::configured(Config::new().build());
        let (mut send, server) = down(&world).await;
        let request = Request::get("http://web/p?q").header("cookie", "a=1").header("cookie", "b=2");
        let (mut answer, _) = send.send_request(request.header("x-mine", "1").body(()).unwrap(), true).unwrap();
        let (mut stream, head) = head(&server).await;
        assert!(head.starts_with("GET /p?q HTTP/1.1\r\nhost: web\r\n"), "{head}");
        for line in ["cookie: a=1; b=2\r\n", "x-mine: 1\r\n", "x-forwarded-proto: http\r\n"] {
            assert!(head.contains(line), "{line}: {head}");
        }
        assert!(!head.contains("chunked") && !head.contains("content-length"), "{head}");
        let hints = "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n";
        stream.write_all(hints.as_bytes()).await.unwrap();
        let interim = std::future::poll_fn(|cx| answer.poll_informational(cx)).await.unwrap().unwrap();
        assert!(interim.status() == 103 && interim.headers()["link"] == "</x>");
        let answered =
            "HTTP/1.1 200 OK\r\nConnection: X-Hop\r\nX-Hop: 1\r\nContent-Length: 5\r\nServer: tested\r\n\r\nhello";
        stream.write_all(answered.as_bytes()).await.unwrap();
        let mut answer = answer.await.unwrap();
        let headers = answer.headers();
        assert!(headers["server"] == "tested" && headers["content-length"] == "5" && !headers.contains_key("x-hop"));
        assert_eq!(read(answer.body_mut()).await.unwrap(), b"hello");
        world.reported("istio_requests_total{", &["response_code=\"200\"", "response_flags=\"-\"", "} 1"]).await;
        // The connection serves the next request, and at the same time another does.
        let (first, _) = send.send_request(get("/1"), true).unwrap();
        assert!(read_head(&mut stream).await.starts_with("GET /1 "));
        let (second, _) = send.send_request(get("/2"), true).unwrap();
        let (mut other, _) = answer_once(&server).await;
        assert_eq!(second.await.unwrap().status(), 200);
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
        assert_eq!(first.await.unwrap().status(), 204);
        assert_eq!(world.dials(), 2);
        // They end with their client.
        drop((send, answer));
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(other.read(&mut [0]).await.unwrap(), 0);
    })
    .await;
}

#[tokio::test]
async fn bodies_and_trailers_change_their_form() {
    run(async {
        let world = World::configured(Config::new().build());
        let (mut send, server) = down(&world).await;
        let post = || Request::post("http://web/").header("content-length", "5");
        let (answer, mut up) =
            send.send_request(post().header("content-length", "5").body(()).unwrap(), false).unwrap();
        up.send_data("hello".into(), true).unwrap();
        let (mut stream, seen) = head(&server).await;
        assert_eq!(seen.matches("content-length: 5\r\n").count(), 1, "{seen}");
        assert_eq!(read_text(&mut stream, 5).await, "hello");
        let chunks =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x\r\nde\r\n0\r\nX-Sum: 5\r\n\r\n";
        for byte in chunks.as_bytes().chunks(7) {
            stream.write_all(byte).await.unwrap();
            tokio::task::yield_now().await;
        }
        let mut answer = answer.await.unwrap();
        assert!(!answer.headers().contains_key("transfer-encoding"));
        assert_eq!(read(answer.body_mut()).await.unwrap(), b"abcde");
        assert_eq!(answer.body_mut().trailers().await.unwrap().unwrap()["x-sum"], "5");

        let (answer, mut up) = send.send_request(Request::put("http://web/").body(()).unwrap(), false).unwrap();
        assert!(read_head(&mut stream).await.contains("transfer-encoding: chunked\r\n"));
        up.send_data("hello".into(), false).unwrap();
        assert_eq!(read_text(&mut stream, 10).await, "5\r\nhello\r\n");
        let mut trailers = HeaderMap::new();
        trailers.insert("x-end", "yes".parse().unwrap());
        up.send_trailers(trailers).unwrap();
        assert_eq!(read_head(&mut stream).await, "0\r\nx-end: yes\r\n\r\n");
        // A body that ends with its connection.
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nuntil the end").await.unwrap();
        drop(stream);
        assert_eq!(read(answer.await.unwrap().body_mut()).await.unwrap(), b"until the end");

        // No body: HEAD, and a length of nothing.
        let (answer, _) = send.send_request(Request::head("http://web/").body(()).unwrap(), true).unwrap();
        let (mut stream, _) = head(&server).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n").await.unwrap();
        let answer = answer.await.unwrap();
        assert!(answer.headers()["content-length"] == "1000" && answer.body().is_end_stream());
        let (answer, _) = send.send_request(Request::post("http://web/").body(()).unwrap(), true).unwrap();
        assert!(read_head(&mut stream).await.contains("content-length: 0\r\n"));
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        assert!(answer.await.unwrap().body().is_end_stream());
    })
    .await;
}

#[tokio::test]
async fn ends_of_one_version_are_ends_of_the_other() {
    run(async {
        let world = World::configured(Config::new().build());
        let (mut send, server) = down(&world).await;
        // A client's reset closes its server's connection.
        let (answer, mut up) = send.send_request(Request::put("http://web/").body(()).unwrap(), false).unwrap();
        let (mut stream, _) = head(&server).await;
        up.send_reset(Reason::CANCEL);
        assert!(is_over(&mut stream).await);
        drop(answer);
        world.reported("istio_requests_total{", &["response_code=\"0\"", "response_flags=\"DR\"", "} 1"]).await;
        // A server that leaves: before its answer and within.
        let (answer, _) = send.send_request(get("/"), true).unwrap();
        drop(head(&server).await);
        assert_eq!(answer.await.unwrap().status(), 503);
        let (answer, _) = send.send_request(get("/"), true).unwrap();
        let (mut stream, _) = head(&server).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel").await.unwrap();
        drop(stream);
        let error = read(answer.await.unwrap().body_mut()).await.unwrap_err();
        assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR));
        for code in ["503", "200"] {
            let code = format!("response_code=\"{code}\"");
            world.reported("istio_requests_total{", &[&code, "response_flags=\"UC\"", "} 1"]).await;
        }
        // Garbage.
        let (answer, _) = send.send_request(get("/"), true).unwrap();
        head(&server).await.0.write_all(b"SSH-2.0-x\r\n\r\n").await.unwrap();
        assert_eq!(answer.await.unwrap().status(), 502);
    })
    .await;
}

#[tokio::test]
async fn who_reads_slowly_holds_the_other_end() {
    run(async {
        let world = World::configured(Config::new().build());
        let (mut send, server) = down(&world).await;
        let (answer, _) = send.send_request(get("/"), true).unwrap();
        let (mut stream, _) = head(&server).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n").await.unwrap();
        let mut answer = answer.await.unwrap();
        let piece = vec![b'x'; 64 << 10];
        let mut written = 0;
        while let Ok(sent) = timeout(Duration::from_millis(200), stream.write(&piece)).await {
            written += sent.unwrap();
            assert!(written < 32 << 20, "nobody holds the server back");
        }
        while written > 0 {
            let data = answer.body_mut().data().await.unwrap().unwrap();
            answer.body_mut().flow_control().release_capacity(data.len()).unwrap();
            written -= data.len();
        }
    })
    .await;
}

#[tokio::test]
async fn a_client_of_http1_has_no_stream_to_reset() {
    run(async {
        let world = World::configured(Config::new().speaks_http2().build());
        let mut requests = server(world.server("10.0.0.1:80").await);
        let mut stream = world.client().await;
        let post =
            "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-End: yes\r\n\r\n";
        stream.write_all(post.as_bytes()).await.unwrap();
        let (mut request, mut respond) = requests.recv().await.unwrap();
        assert_eq!(read(request.body_mut()).await.unwrap(), b"hello");
        assert_eq!(request.body_mut().trailers().await.unwrap().unwrap()["x-end"], "yes");
        let hints = ::http::Response::builder().status(103).header("link", "</x>").body(()).unwrap();
        respond.send_informational(hints).unwrap();
        assert_eq!(read_head(&mut stream).await, "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n");
        let mut out = respond.send_response(ok(), false).unwrap();
        out.send_data("so far".into(), false).unwrap();
        let seen = read_head(&mut stream).await;
        assert!(seen.contains("transfer-encoding: chunked\r\n"), "{seen}");
        assert_eq!(read_text(&mut stream, 11).await, "6\r\nso far\r\n");
        out.send_reset(Reason::INTERNAL_ERROR);
        // It sees an end that is none.
        assert!(is_over(&mut stream).await);
        world.reported("istio_requests_total{", &["response_code=\"200\"", "response_flags=\"UR\"", "} 1"]).await;
        // One that leaves cancels its stream.
        let mut stream = world.client().await;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n").await.unwrap();
        let (_request, mut respond) = requests.recv().await.unwrap();
        drop(stream);
        let reset = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
        assert_eq!(reset.unwrap(), Reason::CANCEL);
    })
    .await;
}
