//! What the access log says of requests that the agent refuses or gives up, whatever version they came by.

use std::time::Duration;

use ::http::Request;
use envoy_types::pb::google::protobuf;
use tokio::io::AsyncWriteExt;

use super::config::Config;
use super::h2::*;
use super::world::*;
use crate::telemetry::access_log::AccessLog;

/// The lines of the access log that a test leaves behind, without their times.
async fn logged<F: Future<Output = World>>(config: Config, test: impl FnOnce(World) -> F) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let log = AccessLog::start(Some(&path), 1 << 20).unwrap();
    let mut world = World::configured(config.build());
    std::rc::Rc::get_mut(&mut world.test.pod).unwrap().log = log.handle();
    let world = test(world).await;
    drop(log);
    drop(world);
    let text = std::fs::read_to_string(&path).unwrap();
    text.lines().map(|line| line.split_once("] ").unwrap().1.to_owned()).collect()
}

#[tokio::test]
async fn refusals_of_http1_have_a_line_each() {
    run(async {
        let lines = logged(Config::new().endpoints(&[]), |world| async {
            for request in [
                "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
                "POST /x HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: gzip\r\n\r\n",
                "GET /none HTTP/1.1\r\nHost: web\r\n\r\n",
                "CONNECT web:80 HTTP/1.1\r\nHost: web:80\r\n\r\n",
            ] {
                let mut stream = world.client().await;
                exchange(&mut stream, request).await;
            }
            world
        })
        .await;
        let starts = [
            "\"- - -\" 400 DPE http1.duplicate_host",
            "\"- - -\" 501 DPE http1.invalid_transfer_encoding",
            "\"GET /none HTTP/1.1\" 503 UH no_healthy_upstream",
            "\"CONNECT - HTTP/1.1\" 404 NR route_not_found",
        ];
        assert_eq!(lines.len(), starts.len(), "{lines:#?}");
        for (line, start) in lines.iter().zip(starts) {
            assert!(line.starts_with(start), "{start}: {line}");
        }
    })
    .await;
}

#[tokio::test]
async fn refusals_of_http2_have_a_line_each() {
    run(async {
        let lines = logged(Config::new().endpoints(&[]), |world| async {
            let mut raw = Raw::new(world.client().await).await;
            raw.ask(1, &[&GOOD[..], &[("connection", "close")]].concat()).await;
            raw.next(RST_STREAM).await.unwrap();
            raw.ask(3, &[GOOD[0], GOOD[1], GOOD[3]]).await;
            raw.next(HEADERS).await.unwrap();
            let mut send = client(world.client().await).await;
            let (answer, _) = send.send_request(get("/none"), true).unwrap();
            answer.await.unwrap();
            let (answer, _) = send.send_request(grpc("/shop.Cart/Add"), true).unwrap();
            answer.await.unwrap();
            world
        })
        .await;
        let starts = [
            "\"- - -\" 0 DPE http2.violation.of.messaging.rule",
            "\"GET / HTTP/2\" 400 DPE missing_host_header",
            "\"GET /none HTTP/2\" 503 UH no_healthy_upstream",
            "\"POST /shop.Cart/Add HTTP/2\" 200 UH no_healthy_upstream",
        ];
        assert_eq!(lines.len(), starts.len(), "{lines:#?}");
        for (line, start) in lines.iter().zip(starts) {
            assert!(line.starts_with(start), "{start}: {line}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_stream_of_either_version_that_is_silent_for_too_long_is_ended_and_told_of() {
    run(async {
        let short = Some(protobuf::Duration { seconds: 0, nanos: 50_000_000 });
        let config = Config::new().route(|_, action| action.idle_timeout = short);
        let lines = logged(config, |world| async {
            let server = world.server("10.0.0.1:80").await;
            let mut stream = world.client().await;
            let (head, body) = exchange(&mut stream, "GET /1 HTTP/1.1\r\nHost: web\r\n\r\n").await;
            assert!(head.starts_with("http/1.1 504 ") && body == "stream timeout", "{head}");
            // Within a body it is too late for an answer.
            let mut stream = world.client().await;
            stream.write_all(b"GET /2 HTTP/1.1\r\nHost: web\r\n\r\n").await.unwrap();
            drop(server.accept().await.unwrap());
            let (mut upstream, _) = server.accept().await.unwrap();
            read_head(&mut upstream).await;
            upstream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nsome").await.unwrap();
            read_head(&mut stream).await;
            assert_eq!(read_text(&mut stream, 4).await, "some");
            assert!(is_over(&mut stream).await);
            let mut send = client(world.client().await).await;
            let (answer, _) = send.send_request(Request::get("http://web/3").body(()).unwrap(), true).unwrap();
            assert_eq!(answer.await.unwrap().status(), 504);
            tokio::time::sleep(Duration::from_millis(5)).await;
            world
        })
        .await;
        let starts = [
            "\"GET /1 HTTP/1.1\" 504 SI stream_idle_timeout",
            "\"GET /2 HTTP/1.1\" 200 SI via_upstream",
            "\"GET /3 HTTP/2\" 504 SI stream_idle_timeout",
        ];
        assert_eq!(lines.len(), starts.len(), "{lines:#?}");
        for (line, start) in lines.iter().zip(starts) {
            assert!(line.starts_with(start), "{start}: {line}");
        }
    })
    .await;
}
