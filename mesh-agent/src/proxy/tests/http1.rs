//! HTTP/1 byte by byte: framing, order, backpressure, and ends at every point.

use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3 as core;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::config::Config;
use super::world::*;

const GET: &str = "GET / HTTP/1.1\r\nHost: web\r\n\r\n";

async fn text(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut all = Vec::new();
    // A reset ends it too.
    let _ = stream.read_to_end(&mut all).await;
    String::from_utf8(all).unwrap()
}

/// One request by a client of its own, answered by these bytes of a server, which then closes.
async fn answered(world: &World, server: &TcpListener, request: &str, response: &[u8]) -> String {
    let mut client = world.client().await;
    let serve = async {
        let (mut stream, _) = server.accept().await.unwrap();
        read_head(&mut stream).await;
        stream.write_all(response).await.unwrap();
    };
    let ask = async {
        client.write_all(request.as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        text(&mut client).await
    };
    tokio::join!(ask, serve).0
}

#[tokio::test]
async fn what_could_be_read_in_two_ways_is_refused_and_told_once() {
    run(async {
        for (request, status) in [
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\nX: 1\r\n\r\n", 400),
            ("GET / HTTP/1.1\nHost: a\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nX : 1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n", 400),
        ] {
            let world = World::configured(Config::new().build());
            let _server = world.server("10.0.0.1:80").await;
            let mut client = world.client().await;
            client.write_all(request.as_bytes()).await.unwrap();
            let all = text(&mut client).await;
            assert!(all.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {all}");
            assert!(all.contains("connection: close\r\n"), "{all}");
            assert_eq!(world.dials(), 0, "{request}");
            let code = format!("response_code=\"{status}\"");
            world.reported("istio_requests_total{", &[&code, "response_flags=\"DPE\"", "} 1"]).await;
            assert_eq!(world.metric("istio_requests_total{").len(), 1);
        }
    })
    .await;
}

/// Who is asked is what routing went by, whatever `Host` says (RFC 9112, 3.2.2).
#[tokio::test]
async fn a_server_is_told_the_host_that_the_target_names() {
    run(async {
        let world = World::configured(Config::new().build());
        let server = world.server("10.0.0.1:80").await;
        let mut client = world.client().await;
        client.write_all(b"GET http://web/p?q HTTP/1.1\r\nHost: other\r\n\r\n").await.unwrap();
        let (mut stream, _) = server.accept().await.unwrap();
        let head = read_head(&mut stream).await.to_ascii_lowercase();
        assert!(head.starts_with("get /p?q http/1.1\r\n") && head.contains("\r\nhost: web\r\n"), "{head}");
        assert!(!head.contains("other"), "{head}");
    })
    .await;
}

#[tokio::test]
async fn a_malformed_body_ends_both_connections() {
    run(async {
        let world = World::configured(Config::new().build());
        let server = world.server("10.0.0.1:80").await;
        let mut client = world.client().await;
        let serve = async {
            let (mut stream, _) = server.accept().await.unwrap();
            text(&mut stream).await
        };
        let ask = async {
            let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
            client.write_all(head.as_bytes()).await.unwrap();
            client.write_all(b"5\nhello\r\n0\r\n\r\n").await.unwrap();
            text(&mut client).await
        };
        let (response, seen) = tokio::join!(ask, serve);
        assert!(response.starts_with("HTTP/1.1 400 "), "{response}");
        assert!(!seen.contains("5\nhello"), "{seen}");
        world.reported("istio_requests_total{", &["response_code=\"400\"", "response_flags=\"DPE\"", "} 1"]).await;
    })
    .await;
}

#[tokio::test]
async fn requests_sent_ahead_are_answered_in_order_one_at_a_time() {
    run(async {
        let world = World::configured(Config::new().build());
        let server = world.server("10.0.0.1:80").await;
        let mut client = world.client().await;
        let serve = async {
            let (mut stream, _) = server.accept().await.unwrap();
            for at in 0..3 {
                let head = read_head(&mut stream).await;
                assert!(head.starts_with(&format!("POST /{at} ")), "{head}");
                assert_eq!(read_text(&mut stream, 4).await, "body");
                // The next one comes only after the answer.
                assert!(timeout(Duration::from_millis(20), stream.read(&mut [0])).await.is_err());
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{at}");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        };
        let ask = async {
            let one = |at| format!("POST /{at} HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\n\r\nbody");
            client.write_all([one(0), one(1), one(2)].concat().as_bytes()).await.unwrap();
            for at in 0..3 {
                let head = read_head(&mut client).await;
                assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
                assert_eq!(read_text(&mut client, 1).await, at.to_string());
            }
        };
        tokio::join!(ask, serve);
        assert_eq!(world.dials(), 1);
    })
    .await;
}

#[tokio::test]
async fn head_and_body_arrive_together() {
    run(async {
        let world = World::configured(Config::new().build());
        let server = world.server("10.0.0.1:80").await;
        let mut client = world.client().await;
        client.write_all(b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\n\r\nbody").await.unwrap();
        let (mut upstream, _) = server.accept().await.unwrap();
        let mut buffer = [0; 4096];
        let read = upstream.read(&mut buffer).await.unwrap();
        assert!(buffer[..read].ends_with(b"\r\n\r\nbody"), "{}", String::from_utf8_lossy(&buffer[..read]));
        upstream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").await.unwrap();
        let read = client.read(&mut buffer).await.unwrap();
        assert!(buffer[..read].ends_with(b"\r\n\r\nhello"), "{}", String::from_utf8_lossy(&buffer[..read]));
    })
    .await;
}

#[tokio::test]
async fn bodies_of_every_framing_arrive_whole() {
    run(async {
        let world = World::configured(Config::new().build());
        let server = world.server("10.0.0.1:80").await;
        let chunked = "3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nX-Sum: 7\r\n\r\n";
        let closing = "GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";
        // Chunks and trailers go on as they are.
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n";
        let all = answered(&world, &server, closing, format!("{head}{chunked}").as_bytes()).await;
        assert!(all.ends_with(&format!("\r\n\r\n{chunked}")), "{all}");
        assert!(all.to_lowercase().contains("transfer-encoding: chunked\r\n"), "{all}");
        // A client that knows no chunks gets the data.
        let old = "GET / HTTP/1.0\r\nHost: web\r\n\r\n";
        let all = answered(&world, &server, old, format!("{head}{chunked}").as_bytes()).await;
        assert!(all.ends_with("\r\n\r\nabcdefg"), "{all}");
        assert!(!all.to_lowercase().contains("transfer-encoding"), "{all}");
        // What ends with its connection becomes chunks where the client's connection stays.
        let all = answered(&world, &server, closing, b"HTTP/1.1 200 OK\r\n\r\nuntil the end").await;
        assert!(all.ends_with("\r\n\r\nd\r\nuntil the end\r\n0\r\n\r\n"), "{all}");
        let all = answered(&world, &server, old, b"HTTP/1.0 200 OK\r\n\r\nuntil the end").await;
        assert!(all.ends_with("\r\n\r\nuntil the end"), "{all}");
        // No body, whatever the head says.
        let all = answered(&world, &server, closing, b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n").await;
        assert!(all.starts_with("HTTP/1.1 204") && !all.to_lowercase().contains("content-length"), "{all}");
        let all = answered(&world, &server, closing, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n").await;
        assert!(all.starts_with("HTTP/1.1 304") && all.ends_with("\r\n\r\n"), "{all}");
    })
    .await;
}

#[tokio::test]
async fn interim_responses_go_on_and_a_body_is_asked_for_once() {
    run(async {
        let world = World::configured(Config::new().build());
        let server = world.server("10.0.0.1:80").await;
        let hints = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        let closing = "GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";
        let all = answered(&world, &server, closing, hints).await;
        assert!(all.starts_with("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\n"), "{all}");
        let old = "GET / HTTP/1.0\r\nHost: web\r\n\r\n";
        let all = answered(&world, &server, old, hints).await;
        assert!(all.starts_with("HTTP/1.1 200 OK\r\n"), "{all}");
        // A switch that nobody has asked for.
        let all = answered(&world, &server, closing, b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n").await;
        assert!(all.starts_with("HTTP/1.1 502 "), "{all}");
        world.reported("istio_requests_total{", &["response_code=\"502\"", "response_flags=\"UPE\"", "} 1"]).await;
    })
    .await;
}

#[tokio::test]
async fn a_server_s_end_at_any_point_is_a_failure_that_is_told() {
    run(async {
        let world = World::configured(Config::new().build());
        let server = world.server("10.0.0.1:80").await;
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
        let closing = "GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";
        let head = whole.len() - 5;
        for end in [0, 1, 10, head - 1, head, head + 1, whole.len()] {
            let all = answered(&world, &server, closing, &whole[..end]).await;
            if end < head {
                assert!(all.starts_with("HTTP/1.1 503 "), "{end}: {all}");
            } else {
                let body = std::str::from_utf8(&whole[head..end]).unwrap();
                assert!(all.starts_with("HTTP/1.1 200 ") && all.ends_with(&format!("\r\n\r\n{body}")), "{end}: {all}");
            }
        }
        world.reported("istio_requests_total{", &["response_code=\"503\"", "response_flags=\"UC\"", "} 4"]).await;
        world.reported("istio_requests_total{", &["response_code=\"200\"", "response_flags=\"UC\"", "} 2"]).await;
        world.reported("istio_requests_total{", &["response_code=\"200\"", "response_flags=\"-\"", "} 1"]).await;
        // So is an answer that is none.
        for garbage in ["HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "SSH-2.0-x\r\n\r\n"] {
            let all = answered(&world, &server, closing, garbage.as_bytes()).await;
            assert!(all.starts_with("HTTP/1.1 502 "), "{all}");
        }
    })
    .await;
}

#[tokio::test]
async fn an_answer_before_the_request_s_end_arrives_and_ends_the_connection() {
    run(async {
        let world = World::configured(Config::new().build());
        let server = world.server("10.0.0.1:80").await;
        let mut client = world.client().await;
        let serve = async {
            let (mut stream, _) = server.accept().await.unwrap();
            read_head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno").await.unwrap();
            stream
        };
        client.write_all(b"PUT / HTTP/1.1\r\nHost: web\r\nContent-Length: 1000000\r\n\r\nsome").await.unwrap();
        let ask = async {
            let head = read_head(&mut client).await;
            assert!(head.starts_with("HTTP/1.1 413"), "{head}");
            assert_eq!(read_text(&mut client, 2).await, "no");
            assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        };
        tokio::join!(ask, serve);
        world.reported("istio_requests_total{", &["response_code=\"413\"", "response_flags=\"-\"", "} 1"]).await;
    })
    .await;
}

/// Writes until nobody takes more, and gives the number of bytes.
async fn fill(stream: &mut TcpStream) -> usize {
    let piece = vec![b'x'; 64 << 10];
    let mut written = 0;
    while let Ok(sent) = timeout(Duration::from_millis(200), stream.write(&piece)).await {
        written += sent.unwrap();
        assert!(written < 64 << 20, "nobody holds the writer back");
    }
    written
}

async fn take(stream: &mut TcpStream, mut bytes: usize) {
    let mut buffer = vec![0; 64 << 10];
    while bytes > 0 {
        let most = bytes.min(buffer.len());
        bytes -= stream.read(&mut buffer[..most]).await.unwrap();
    }
}

#[tokio::test]
async fn who_reads_slowly_holds_the_other_end() {
    run(async {
        let world = World::configured(Config::new().build());
        let server = world.server("10.0.0.1:80").await;
        let mut client = world.client().await;
        client.write_all(GET.as_bytes()).await.unwrap();
        let (mut upstream, _) = server.accept().await.unwrap();
        read_head(&mut upstream).await;
        upstream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n").await.unwrap();
        let written = fill(&mut upstream).await;
        read_head(&mut client).await;
        take(&mut client, written).await;

        let mut client = world.client().await;
        client.write_all(b"PUT / HTTP/1.1\r\nHost: web\r\nContent-Length: 100000000\r\n\r\n").await.unwrap();
        let (mut upstream, _) = server.accept().await.unwrap();
        read_head(&mut upstream).await;
        let written = fill(&mut client).await;
        take(&mut upstream, written).await;
    })
    .await;
}

#[tokio::test]
async fn a_client_cannot_take_away_what_the_mesh_says_of_it() {
    run(async {
        let world = World::configured(Config::new().build());
        let server = world.server("10.0.0.1:80").await;
        let mut client = world.client().await;
        let request = "POST / HTTP/1.1\r\nHost: web\r\nX-Forwarded-For: 1.2.3.4\r\nX-Mine: 1\r\nContent-Length: 4\r\n\
             Connection: x-request-id, X-Forwarded-Proto, x-forwarded-for, Host, Content-Length, x-mine\r\n\r\nbody";
        client.write_all(request.as_bytes()).await.unwrap();
        let (mut upstream, _) = server.accept().await.unwrap();
        let head = read_head(&mut upstream).await.to_lowercase();
        for line in
            ["host: web\r\n", "x-forwarded-for: 1.2.3.4\r\n", "x-forwarded-proto: http\r\n", "content-length: 4\r\n"]
        {
            assert!(head.contains(line), "{line}: {head}");
        }
        assert!(head.contains("x-request-id: ") && !head.contains("x-mine"), "{head}");
        assert_eq!(read_text(&mut upstream, 4).await, "body");
    })
    .await;
}

#[tokio::test]
async fn a_hand_over_lets_the_answer_say_that_it_is_the_last() {
    run(async {
        let world = World::configured(Config::new().build());
        let server = world.server("10.0.0.1:80").await;
        let mut client = world.client().await;
        let _first = tokio::join!(exchange(&mut client, GET), answer_once(&server)).1;
        let pod = world.pod();
        let World { test, .. } = world;
        tokio::task::spawn_local(test.trigger.hand_over(Duration::from_secs(60)));
        // An idle connection stays until its next request.
        assert!(timeout(Duration::from_millis(20), client.read(&mut [0])).await.is_err());
        let mut upstream = _first.0;
        let ((head, _), _) = tokio::join!(exchange(&mut client, GET), answer_on(&mut upstream));
        assert!(head.contains("connection: close\r\n"), "{head}");
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        drop(pod);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_idle_for_too_long_is_let_go() {
    run_paused(async {
        let world = World::configured(Config::new().build());
        let server = world.server("10.0.0.1:80").await;
        let mut client = world.client().await;
        let _upstream = tokio::join!(exchange(&mut client, GET), answer_once(&server)).1;
        let start = tokio::time::Instant::now();
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        let waited = start.elapsed();
        assert!(waited >= Duration::from_secs(3590), "{waited:?}");
        // One that stops within a head, too.
        let mut client = world.client().await;
        client.write_all(b"GET / HTTP/1.1\r\nHo").await.unwrap();
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    })
    .await;
}

#[tokio::test]
async fn connect_is_not_for_everybody() {
    run(async {
        let world = World::configured(Config::new().build());
        let _server = world.server("10.0.0.1:80").await;
        let mut client = world.client().await;
        client.write_all(b"CONNECT web:80 HTTP/1.1\r\nHost: web:80\r\n\r\n").await.unwrap();
        let head = read_head(&mut client).await;
        assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
        assert_eq!(world.dials(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_server_that_speaks_http2_gets_it() {
    run(async {
        let world = World::configured(Config::new().speaks_http2().build());
        let server = world.server("10.0.0.1:80").await;
        tokio::task::spawn_local(async move {
            let (stream, _) = server.accept().await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(request) = connection.accept().await {
                let (request, mut respond) = request.unwrap();
                tokio::task::spawn_local(async move {
                    let (parts, mut body) = request.into_parts();
                    let mut all = Vec::new();
                    while let Some(data) = body.data().await {
                        let data = data.unwrap();
                        body.flow_control().release_capacity(data.len()).unwrap();
                        all.extend_from_slice(&data);
                    }
                    assert!(!parts.headers.contains_key("connection"));
                    let response = ::http::Response::builder().header("x-uri", parts.uri.to_string());
                    let mut send = respond.send_response(response.body(()).unwrap(), false).unwrap();
                    send.send_data(Bytes::from(all), false).unwrap();
                    let mut trailers = ::http::HeaderMap::new();
                    trailers.insert("x-end", "yes".parse().unwrap());
                    send.send_trailers(trailers).unwrap();
                });
            }
        });
        let mut client = world.client().await;
        for body in
            ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"]
        {
            let request = format!("POST /p?q HTTP/1.1\r\nHost: web\r\n{body}");
            client.write_all(request.as_bytes()).await.unwrap();
            let head = read_head(&mut client).await.to_lowercase();
            assert!(head.starts_with("http/1.1 200 ok\r\n") && head.contains("x-uri: http://web/p?q\r\n"), "{head}");
            assert!(head.contains("transfer-encoding: chunked\r\n"), "{head}");
            let mut all = String::new();
            while !all.ends_with("x-end: yes\r\n\r\n") {
                all.push_str(&read_head(&mut client).await);
            }
            assert_eq!(all, "5\r\nhello\r\n0\r\nx-end: yes\r\n\r\n");
        }
        assert_eq!(world.dials(), 1);
        world.reported("istio_requests_total{", &["response_code=\"200\"", "response_flags=\"-\"", "} 2"]).await;
    })
    .await;
}

#[tokio::test]
async fn header_rules_see_and_change_every_line() {
    run(async {
        let config = Config::new().route(|route, _| {
            let header = |key: &str, value: &str, append_action| core::HeaderValueOption {
                header: Some(core::HeaderValue { key: key.into(), value: value.into(), ..Default::default() }),
                append_action,
                ..Default::default()
            };
            // Append, only if absent, in place, only if present.
            route.request_headers_to_add = vec![
                header("x-list", "two", 0),
                header("x-there", "no", 1),
                header("x-new", "yes", 1),
                header("x-set", "2", 2),
                header("x-none", "no", 3),
            ];
            route.request_headers_to_remove = vec!["x-gone".into()];
        });
        let world = World::configured(config.build());
        let server = world.server("10.0.0.1:80").await;
        let mut client = world.client().await;
        let lines = "X-List: one\r\nX-There: yes\r\nX-Set: 1\r\nx-set: 1\r\nX-GONE: 1\r\n";
        let request = format!("GET / HTTP/1.1\r\nHost: web\r\n{lines}\r\n");
        let (_, (_upstream, head)) = tokio::join!(exchange(&mut client, &request), answer_once(&server));
        let mut ours: Vec<_> = head
            .lines()
            .filter(|line| {
                ["x-list", "x-there", "x-new", "x-set", "x-none", "x-gone"]
                    .iter()
                    .any(|name| line.to_lowercase().starts_with(name))
            })
            .collect();
        ours.sort_unstable();
        assert_eq!(ours, ["X-List: one", "X-There: yes", "x-list: two", "x-new: yes", "x-set: 2"]);
    })
    .await;
}

/// Its end is the only sign that the answer is whole, so a cut must not look like one (RFC 9112, 8).
#[tokio::test]
async fn an_answer_until_the_end_that_is_cut_is_cut_for_the_client_too() {
    run(async {
        let world = World::configured(Config::new().build());
        let server = world.server("10.0.0.1:80").await;
        let mut client = world.client().await;
        client.write_all(b"GET / HTTP/1.0\r\nHost: web\r\n\r\n").await.unwrap();
        let (mut stream, _) = server.accept().await.unwrap();
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nnot all").await.unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"not all") {
            client.read_buf(&mut seen).await.unwrap();
        }
        crate::net::copy::Duplex::reset(&mut stream);
        drop(stream);
        client.read_buf(&mut seen).await.unwrap_err();
    })
    .await;
}

#[tokio::test]
async fn a_request_goes_on_while_its_answer_comes() {
    run(async {
        let world = World::configured(Config::new().build());
        let server = world.server("10.0.0.1:80").await;
        let mut client = world.client().await;
        client.write_all(b"PUT / HTTP/1.1\r\nHost: web\r\nContent-Length: 10\r\n\r\nfirst").await.unwrap();
        let (mut stream, _) = server.accept().await.unwrap();
        read_head(&mut stream).await;
        assert_eq!(read_text(&mut stream, 5).await, "first");
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhe").await.unwrap();
        read_head(&mut client).await;
        assert_eq!(read_text(&mut client, 2).await, "he");
        client.write_all(b"later").await.unwrap();
        assert_eq!(read_text(&mut stream, 5).await, "later");
        stream.write_all(b"re").await.unwrap();
        assert_eq!(read_text(&mut client, 2).await, "re");
    })
    .await;
}
