//! What clients of HTTP/2 do wrong: a stream pays for its own faults, a connection for those that are aimed at it.

use std::time::Duration;

use ::http::{Request, StatusCode};
use envoy_types::pb::google::protobuf;
use tokio::time::Instant;

use super::config::{Config, direct};
use super::h2::*;
use super::world::*;

/// A world that answers every request itself.
fn answering() -> World {
    World::configured(Config::new().route(|route, _| route.action = Some(direct(StatusCode::OK, ""))).build())
}

fn with(lines: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    [&GOOD[..], lines].concat()
}

#[tokio::test]
async fn a_malformed_head_ends_its_stream_alone_and_is_told_once() {
    run(async {
        for (name, lines) in [
            ("no path", vec![GOOD[0], GOOD[1], GOOD[2]]),
            ("no method", vec![GOOD[1], GOOD[2], GOOD[3]]),
            ("no scheme", vec![GOOD[0], GOOD[2], GOOD[3]]),
            ("an empty path", vec![GOOD[0], GOOD[1], GOOD[2], (":path", "")]),
            ("twice a path", with(&[(":path", "/")])),
            ("a pseudo header behind others", vec![GOOD[0], GOOD[1], GOOD[2], ("x", "1"), GOOD[3]]),
            ("a status", with(&[(":status", "200")])),
            ("connection", with(&[("connection", "close")])),
            ("keep-alive", with(&[("keep-alive", "timeout=1")])),
            ("transfer-encoding", with(&[("transfer-encoding", "chunked")])),
            ("upgrade", with(&[("upgrade", "websocket")])),
            ("te", with(&[("te", "gzip")])),
            ("a length without a body", with(&[("content-length", "5")])),
            ("two lengths", with(&[("content-length", "0"), ("content-length", "1")])),
        ] {
            let world = answering();
            let mut raw = Raw::new(world.client().await).await;
            raw.ask(1, &lines).await;
            let reset = raw.next(RST_STREAM).await.unwrap_or_else(|| panic!("{name}: the connection has ended"));
            assert_eq!((reset.stream, &reset.payload[..]), (1, &[0, 0, 0, 1][..]), "{name}: PROTOCOL_ERROR");
            // Others go on.
            raw.ask(3, &GOOD).await;
            let answer = raw.next(HEADERS).await.unwrap();
            assert_eq!((answer.stream, answer.payload[0]), (3, 0x88), "{name}: 200");
            let told = ["response_code=\"0\"", "response_flags=\"DPE\"", "} 1"];
            world.reported("istio_requests_total{", &told).await;
            world.reported("istio_requests_total{", &["response_code=\"200\"", "} 1"]).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_head_that_other_versions_have_no_place_for_is_answered_so() {
    run(async {
        for (name, lines) in [
            ("nobody is asked", vec![GOOD[0], GOOD[1], GOOD[3]]),
            ("a user", vec![GOOD[0], GOOD[1], (":authority", "me@web"), GOOD[3]]),
            ("no path at all", vec![GOOD[0], GOOD[1], GOOD[2], (":path", "*")]),
            ("a quote", vec![GOOD[0], GOOD[1], GOOD[2], (":path", "/\"")]),
        ] {
            let world = answering();
            let mut raw = Raw::new(world.client().await).await;
            raw.ask(1, &lines).await;
            let answer = raw.next(HEADERS).await.unwrap();
            assert_eq!((answer.stream, answer.payload[0]), (1, 0x8c), "{name}: 400");
            world.reported("istio_requests_total{", &["response_code=\"400\"", "response_flags=\"DPE\"", "} 1"]).await;
        }
    })
    .await;
}

/// `h2` takes a name in upper case for a fault of the compression, which all streams share.
#[tokio::test]
async fn a_name_in_upper_case_ends_the_connection() {
    run(async {
        let world = answering();
        let mut raw = Raw::new(world.client().await).await;
        raw.ask(1, &with(&[("X-Upper", "1")])).await;
        let goaway = raw.next(GOAWAY).await.unwrap();
        assert_eq!(goaway.payload[4..8], [0, 0, 0, 1], "no fault of the compression to others: PROTOCOL_ERROR");
        world.reported("istio_requests_total{", &["response_code=\"0\"", "response_flags=\"DPE\"", "} 1"]).await;
        // What is one is called so.
        let mut raw = Raw::new(world.client().await).await;
        raw.send(HEADERS, END_HEADERS | END_STREAM, 1, &[&block(&GOOD)[..], b"\x80"].concat()).await;
        assert_eq!(raw.next(GOAWAY).await.unwrap().payload[4..8], [0, 0, 0, 9], "COMPRESSION_ERROR");
        world.reported("istio_requests_total{", &["response_code=\"0\"", "response_flags=\"DPE\"", "} 2"]).await;
    })
    .await;
}

#[tokio::test]
async fn trailers_with_a_pseudo_header_are_malformed() {
    run(async {
        let world = World::configured(Config::new().speaks_http2().build());
        let mut requests = server(world.server("10.0.0.1:80").await);
        let trailers = written(HEADERS, END_HEADERS | END_STREAM, 1, &block(&[(":method", "GET")]));
        // However they come, before an answer and behind its head.
        for (at, answers) in [(0, false), (5, false), (9, true), (12, false), (15, true)] {
            let mut raw = Raw::new(world.client().await).await;
            raw.send(HEADERS, END_HEADERS, 1, &block(&GOOD)).await;
            raw.send(DATA, 0, 1, b"x").await;
            let (mut request, mut respond) = requests.recv().await.unwrap();
            let _answer = answers.then(|| respond.send_response(ok(), false).unwrap());
            if answers {
                assert!(raw.next(HEADERS).await.is_some());
            }
            raw.put(&trailers[..at]).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
            raw.put(&trailers[at..]).await;
            let reset = raw.next(RST_STREAM).await.unwrap();
            assert_eq!((reset.stream, &reset.payload[..]), (1, &[0, 0, 0, 1][..]), "{at}: PROTOCOL_ERROR");
            assert!(read(request.body_mut()).await.is_err(), "{at}: the server gets it for a whole one");
            // Others go on, with trailers of their own.
            raw.send(HEADERS, END_HEADERS, 3, &block(&GOOD)).await;
            raw.send(HEADERS, END_HEADERS | END_STREAM, 3, &block(&[("x-trailer", "1")])).await;
            let (mut request, mut respond) = requests.recv().await.unwrap();
            assert_eq!(read(request.body_mut()).await.unwrap(), b"");
            assert_eq!(request.body_mut().trailers().await.unwrap().unwrap()["x-trailer"], "1");
            respond.send_response(ok(), true).unwrap();
            assert_eq!(raw.next(HEADERS).await.unwrap().stream, 3);
        }
        world.reported("istio_requests_total{", &["response_code=\"0\"", "response_flags=\"DPE\"", "} 3"]).await;
        world.reported("istio_requests_total{", &["response_code=\"200\"", "response_flags=\"DPE\"", "} 2"]).await;
    })
    .await;
}

#[tokio::test]
async fn a_body_of_another_length_than_its_head_says_is_malformed() {
    run(async {
        let world = World::configured(Config::new().speaks_http2().build());
        let mut requests = server(world.server("10.0.0.1:80").await);
        for (body, end) in [("longer", 0), ("lon", END_STREAM)] {
            let mut raw = Raw::new(world.client().await).await;
            raw.send(HEADERS, END_HEADERS, 1, &block(&with(&[("content-length", "5")]))).await;
            let (mut request, _respond) = requests.recv().await.unwrap();
            raw.send(DATA, end, 1, body.as_bytes()).await;
            let reset = raw.next(RST_STREAM).await.unwrap();
            assert_eq!((reset.stream, &reset.payload[..]), (1, &[0, 0, 0, 1][..]));
            // The server does not get it for a whole one.
            assert!(read(request.body_mut()).await.is_err());
        }
        world.reported("istio_requests_total{", &["response_code=\"0\"", "response_flags=\"DPE\"", "} 2"]).await;
    })
    .await;
}

#[tokio::test]
async fn a_head_that_is_too_long_is_answered_so() {
    run(async {
        let world = answering();
        let mut send = client(world.client().await).await;
        let long = Request::get("http://web/").header("x", "a".repeat(61 << 10)).body(()).unwrap();
        let (answer, _) = send.send_request(long, true).unwrap();
        assert_eq!(answer.await.unwrap().status(), 431);
        let (answer, _) = send.ready().await.unwrap().send_request(get("/"), true).unwrap();
        assert_eq!(answer.await.unwrap().status(), 200);
        world.reported("istio_requests_total{", &["response_code=\"431\"", "response_flags=\"DPE\"", "} 1"]).await;
    })
    .await;
}

#[tokio::test]
async fn floods_end_their_connection() {
    run(async {
        // Streams opened and reset at once (CVE-2023-44487).
        let world = answering();
        let mut raw = Raw::new(world.client().await).await;
        let mut flood = Vec::new();
        for stream in (1..400).step_by(2) {
            flood.extend(written(HEADERS, END_HEADERS | END_STREAM, stream, &block(&GOOD)));
            flood.extend(written(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
        }
        raw.put(&flood).await;
        let goaway = raw.next(GOAWAY).await.unwrap();
        assert_eq!(goaway.payload[4..8], [0, 0, 0, 11], "ENHANCE_YOUR_CALM");
        // A head without an end.
        let mut raw = Raw::new(world.client().await).await;
        raw.put(&[written(HEADERS, 0, 1, &block(&GOOD)), written(CONTINUATION, 0, 1, b"").repeat(100)].concat()).await;
        assert!(raw.next(GOAWAY).await.is_some());
        // Faults on stream after stream, each reset by the agent (CVE-2025-8671).
        let mut raw = Raw::new(world.client().await).await;
        let fault = block(&with(&[("connection", "close")]));
        let frame = |stream| written(HEADERS, END_HEADERS | END_STREAM, stream, &fault);
        raw.put(&(1..1200).step_by(2).flat_map(frame).collect::<Vec<_>>()).await;
        assert!(raw.next(GOAWAY).await.is_some());
    })
    .await;
}

#[tokio::test]
async fn a_client_that_does_not_begin_with_settings_is_ended_and_told_once() {
    run(async {
        for (name, first) in [
            ("a request", written(HEADERS, END_HEADERS | END_STREAM, 1, &block(&GOOD))),
            ("an acknowledgement", written(SETTINGS, 1, 0, b"")),
            ("settings of a stream", written(SETTINGS, 0, 1, b"")),
        ] {
            let world = answering();
            let mut raw = Raw(world.client().await);
            let rest = written(HEADERS, END_HEADERS | END_STREAM, 3, &block(&GOOD));
            // However the bytes come.
            for part in [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &first[..3], &first[3..], &rest] {
                raw.put(part).await;
                tokio::task::yield_now().await;
            }
            let goaway = raw.next(GOAWAY).await.unwrap_or_else(|| panic!("{name}: no reason"));
            assert_eq!(goaway.payload[4..8], [0, 0, 0, 1], "{name}: PROTOCOL_ERROR");
            assert!(raw.next(HEADERS).await.is_none(), "{name}");
            world.reported("istio_requests_total{", &["response_code=\"0\"", "response_flags=\"DPE\"", "} 1"]).await;
        }
        // A client may wait with them, and the reserved bit means nothing.
        let world = answering();
        let mut raw = Raw(world.client().await);
        raw.put(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        assert!(raw.next(SETTINGS).await.is_some());
        raw.send(SETTINGS, 0, 0x8000_0000, b"").await;
        raw.ask(1, &GOOD).await;
        assert_eq!(raw.next(HEADERS).await.unwrap().payload[0], 0x88);
    })
    .await;
}

#[tokio::test]
async fn more_streams_than_may_be_are_refused() {
    run(async {
        let world = World::configured(Config::new().speaks_http2().build());
        let _requests = server(world.server("10.0.0.1:80").await);
        let mut raw = Raw::new(world.client().await).await;
        for stream in (1..=2049).step_by(2) {
            raw.ask(stream, &GOOD).await;
        }
        let reset = raw.next(RST_STREAM).await.unwrap();
        assert_eq!((reset.stream, &reset.payload[..]), (2049, &[0, 0, 0, 7][..]), "REFUSED_STREAM");
    })
    .await;
}

fn limited(change: impl FnOnce(&mut envoy_types::pb::envoy::config::route::v3::RouteAction)) -> World {
    World::configured(Config::new().speaks_http2().route(|_, action| change(action)).build())
}

const SECOND: Option<protobuf::Duration> = Some(protobuf::Duration { seconds: 1, nanos: 0 });

#[tokio::test(start_paused = true)]
async fn the_route_s_time_ends_a_request_before_its_answer_and_behind() {
    run_paused(async {
        let world = limited(|action| action.timeout = SECOND);
        let mut requests = server(world.server("10.0.0.1:80").await);
        let mut send = client(world.client().await).await;
        let start = Instant::now();
        let (silent, _) = send.send_request(get("/silent"), true).unwrap();
        let (begun, _) = send.send_request(get("/begun"), true).unwrap();
        let (_request, _respond) = requests.recv().await.unwrap();
        let (_request, mut respond) = requests.recv().await.unwrap();
        let _body = respond.send_response(ok(), false).unwrap();
        assert_eq!(silent.await.unwrap().status(), 504);
        let mut body = begun.await.unwrap().into_body();
        assert_eq!(read(&mut body).await.unwrap_err().reason(), Some(::h2::Reason::INTERNAL_ERROR));
        assert_eq!(start.elapsed().as_secs(), 1);
        world.reported("istio_requests_total{", &["response_code=\"504\"", "response_flags=\"UT\"", "} 1"]).await;
        world.reported("istio_requests_total{", &["response_code=\"200\"", "response_flags=\"UT\"", "} 1"]).await;
    })
    .await;
}

#[tokio::test]
async fn a_stream_that_is_silent_for_too_long_is_ended_and_one_that_moves_is_not() {
    run(async {
        let world = limited(|action| (action.timeout, action.idle_timeout) = (None, SECOND));
        let mut requests = server(world.server("10.0.0.1:80").await);
        let mut send = client(world.client().await).await;
        let (silent, _) = send.send_request(get("/silent"), true).unwrap();
        let (moving, _) = send.send_request(get("/moving"), true).unwrap();
        let (_request, _respond) = requests.recv().await.unwrap();
        let (_request, mut respond) = requests.recv().await.unwrap();
        let mut out = respond.send_response(ok(), false).unwrap();
        tokio::task::spawn_local(async move {
            for at in 0..6 {
                tokio::time::sleep(Duration::from_millis(300)).await;
                out.send_data("x".into(), at == 5).unwrap();
            }
        });
        assert_eq!(silent.await.unwrap().status(), 504);
        assert_eq!(read(moving.await.unwrap().body_mut()).await.unwrap(), b"xxxxxx");
        world.reported("istio_requests_total{", &["response_code=\"504\"", "response_flags=\"SI\"", "} 1"]).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_idle_for_too_long_is_let_go() {
    run_paused(async {
        let world = answering();
        let mut raw = Raw::new(world.client().await).await;
        raw.ask(1, &GOOD).await;
        assert!(raw.next(HEADERS).await.is_some());
        let start = Instant::now();
        // It says so first, and closes even if the client does not care.
        assert!(raw.next(GOAWAY).await.is_some());
        assert!(start.elapsed() >= Duration::from_secs(3590), "{:?}", start.elapsed());
        while raw.frame().await.is_some() {}
        assert!(start.elapsed() < Duration::from_secs(3700), "{:?}", start.elapsed());
    })
    .await;
}
