//! Connections and streams that stop being HTTP: upgrades, WebSocket over either version (RFC 8441), CONNECT.

use std::time::Duration;

use ::h2::ext::Protocol;
use ::h2::{Reason, RecvStream, SendStream};
use ::http::{Method, Request, Response};
use bytes::Bytes;
use envoy_types::pb::envoy::config::route::v3 as route;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::config::Config;
use super::h2::*;
use super::world::*;

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A stream of HTTP/2 that wants to be a WebSocket.
fn extended() -> Request<()> {
    let mut request = Request::connect("http://web/chat?x").header("sec-websocket-version", "13").body(()).unwrap();
    request.extensions_mut().insert(Protocol::from_static("websocket"));
    request
}

fn upgrade() -> String {
    format!(
        "GET /chat?x HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
    )
}

/// A server of HTTP/2 whose streams may switch, on one connection.
async fn switching(listener: TcpListener) -> tokio::sync::mpsc::UnboundedReceiver<Asked> {
    let (requests, receiver) = tokio::sync::mpsc::unbounded_channel();
    tokio::task::spawn_local(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = ::h2::server::Builder::new().enable_connect_protocol().handshake(stream).await.unwrap();
        while let Some(Ok(request)) = connection.accept().await {
            let _ = requests.send(request);
        }
    });
    receiver
}

/// Bytes both ways between a stream and a connection, then an end of each.
async fn talk(send: &mut SendStream<Bytes>, recv: &mut RecvStream, other: &mut TcpStream) {
    send.send_data("ping".into(), false).unwrap();
    assert_eq!(read_text(other, 4).await, "ping");
    other.write_all(b"pong").await.unwrap();
    assert_eq!(recv.data().await.unwrap().unwrap(), "pong");
    send.send_data(Bytes::new(), true).unwrap();
    assert_eq!(other.read(&mut [0]).await.unwrap(), 0);
    other.write_all(b"late").await.unwrap();
    other.shutdown().await.unwrap();
    assert_eq!(recv.data().await.unwrap().unwrap(), "late");
    assert!(read(recv).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_websocket_of_http2_reaches_a_server_of_http1() {
    run(async {
        let world = World::configured(Config::new().build());
        let listener = world.server("10.0.0.1:80").await;
        let mut send = client(world.client().await).await;
        // The settings that allow it are there with the first answer.
        let (answer, _) = send.send_request(get("/"), true).unwrap();
        let (mut stream, _) = answer_once(&listener).await;
        answer.await.unwrap();
        assert!(send.is_extended_connect_protocol_enabled());
        let (answer, mut up) = send.send_request(extended(), false).unwrap();
        let head = read_head(&mut stream).await;
        assert!(head.starts_with("GET /chat?x HTTP/1.1\r\nhost: web\r\n"), "{head}");
        for line in ["connection: upgrade\r\n", "upgrade: websocket\r\n", "sec-websocket-key: ", "sec-websocket-version: 13\r\n"] {
            assert!(head.contains(line), "{line}: {head}");
        }
        assert!(!head.contains("content-length") && !head.contains("chunked"), "{head}");
        let switched = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\nSec-WebSocket-Protocol: chat\r\n\r\n";
        stream.write_all(switched.as_bytes()).await.unwrap();
        let mut answer = answer.await.unwrap();
        assert_eq!((answer.status().as_u16(), &answer.headers()["sec-websocket-protocol"]), (200, &"chat".parse().unwrap()));
        for name in ["upgrade", "connection", "sec-websocket-accept", "content-length"] {
            assert!(!answer.headers().contains_key(name), "{name}");
        }
        talk(&mut up, answer.body_mut(), &mut stream).await;
        world.reported("istio_requests_total{", &["response_code=\"200\"", "response_flags=\"-\"", "} 2"]).await;
        // A server that does not switch, whatever it says.
        for (said, status) in [("200 OK", 502), ("403 Forbidden", 403)] {
            let (answer, _up) = send.send_request(extended(), false).unwrap();
            let (mut stream, _) = listener.accept().await.unwrap();
            read_head(&mut stream).await;
            stream.write_all(format!("HTTP/1.1 {said}\r\nContent-Length: 0\r\n\r\n").as_bytes()).await.unwrap();
            assert_eq!(answer.await.unwrap().status(), status);
        }
    })
    .await;
}

#[tokio::test]
async fn a_websocket_of_http1_reaches_a_server_of_http2() {
    run(async {
        let world = World::configured(Config::new().speaks_http2().build());
        let mut requests = switching(world.server("10.0.0.1:80").await).await;
        let mut stream = world.client().await;
        stream.write_all(upgrade().as_bytes()).await.unwrap();
        let (mut request, mut respond) = requests.recv().await.unwrap();
        assert_eq!((request.method(), request.uri().to_string().as_str()), (&Method::CONNECT, "http://web/chat?x"));
        assert_eq!(request.extensions().get::<Protocol>().unwrap().as_str(), "websocket");
        assert!(!request.headers().contains_key("sec-websocket-key"));
        let mut send = respond.send_response(ok(), false).unwrap();
        let head = read_head(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
        for line in
            ["connection: upgrade\r\n", "upgrade: websocket\r\n", &format!("sec-websocket-accept: {ACCEPT}\r\n")]
        {
            assert!(head.contains(line), "{line}: {head}");
        }
        talk(&mut send, request.body_mut(), &mut stream).await;
        world.reported("istio_requests_total{", &["response_code=\"101\"", "response_flags=\"-\"", "} 1"]).await;
    })
    .await;
}

#[tokio::test]
async fn a_websocket_stays_one_between_two_ends_of_http2() {
    run(async {
        let world = World::configured(Config::new().speaks_http2().build());
        let mut requests = switching(world.server("10.0.0.1:80").await).await;
        let mut send = client(world.client().await).await;
        let (answer, _) = send.send_request(get("/"), true).unwrap();
        requests.recv().await.unwrap().1.send_response(ok(), true).unwrap();
        answer.await.unwrap();
        let (answer, mut up) = send.send_request(extended(), false).unwrap();
        let (mut request, mut respond) = requests.recv().await.unwrap();
        assert_eq!(request.extensions().get::<Protocol>().unwrap().as_str(), "websocket");
        let mut down = respond.send_response(ok(), false).unwrap();
        let mut answer = answer.await.unwrap();
        up.send_data("ping".into(), false).unwrap();
        assert_eq!(request.body_mut().data().await.unwrap().unwrap(), "ping");
        down.send_data("pong".into(), false).unwrap();
        assert_eq!(answer.body_mut().data().await.unwrap().unwrap(), "pong");
        up.send_reset(Reason::CANCEL);
        assert!(request.body_mut().data().await.unwrap().is_err());
    })
    .await;
}

#[tokio::test]
async fn a_server_of_http2_that_does_not_switch_is_asked_in_http1() {
    run(async {
        let world = World::configured(Config::new().speaks_http2().build());
        let listener = world.server("10.0.0.1:80").await;
        let mut stream = world.client().await;
        stream.write_all(upgrade().as_bytes()).await.unwrap();
        let (first, _) = listener.accept().await.unwrap();
        tokio::task::spawn_local(async move {
            let mut connection = ::h2::server::handshake(first).await.unwrap();
            while let Some(Ok(_)) = connection.accept().await {}
        });
        let (mut second, _) = listener.accept().await.unwrap();
        assert!(read_head(&mut second).await.contains("upgrade: websocket\r\n"));
    })
    .await;
}

#[tokio::test]
async fn a_route_may_forbid_it() {
    run(async {
        let config = Config::new().route(|_, action| {
            action.upgrade_configs = vec![route::route_action::UpgradeConfig {
                upgrade_type: "websocket".into(),
                enabled: super::messages::flag(false),
                ..Default::default()
            }];
        });
        let world = World::configured(config.build());
        let listener = world.server("10.0.0.1:80").await;
        let mut send = client(world.client().await).await;
        let (answer, _) = send.send_request(get("/"), true).unwrap();
        answer_once(&listener).await;
        answer.await.unwrap();
        let (answer, _up) = send.send_request(extended(), false).unwrap();
        assert_eq!(answer.await.unwrap().status(), 403);
        assert_eq!(world.dials(), 1);
    })
    .await;
}

/// A route for CONNECT that hands it on.
fn connecting(config: Config) -> Config {
    config.route(|route, action| {
        let matcher = route::route_match::PathSpecifier::ConnectMatcher(Default::default());
        route.r#match = Some(route::RouteMatch { path_specifier: Some(matcher), ..Default::default() });
        let connect = route::route_action::UpgradeConfig { upgrade_type: "CONNECT".into(), ..Default::default() };
        action.upgrade_configs = vec![connect];
    })
}

#[tokio::test]
async fn an_allowed_connect_is_a_tunnel_in_any_mix() {
    run(async {
        let world = World::configured(connecting(Config::new()).build());
        let listener = world.server("10.0.0.1:80").await;
        // HTTP/1 at both ends.
        let mut stream = world.client().await;
        stream.write_all(b"CONNECT web:443 HTTP/1.1\r\nHost: web:443\r\n\r\n").await.unwrap();
        let (mut upstream, _) = listener.accept().await.unwrap();
        assert!(read_head(&mut upstream).await.starts_with("CONNECT web:443 HTTP/1.1\r\n"));
        upstream.write_all(b"HTTP/1.1 200 OK\r\n\r\nfirst").await.unwrap();
        assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 200 OK\r\n"));
        assert_eq!(read_text(&mut stream, 5).await, "first");
        stream.write_all(b"ping").await.unwrap();
        assert_eq!(read_text(&mut upstream, 4).await, "ping");
        // HTTP/2 before it.
        let mut send = client(world.client().await).await;
        let (answer, mut up) = send.send_request(Request::connect("web:443").body(()).unwrap(), false).unwrap();
        let (mut upstream, _) = listener.accept().await.unwrap();
        assert!(read_head(&mut upstream).await.starts_with("CONNECT web:443 HTTP/1.1\r\nhost: web:443\r\n"));
        upstream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        talk(&mut up, answer.await.unwrap().body_mut(), &mut upstream).await;
        // HTTP/2 behind it.
        let world = World::configured(connecting(Config::new().speaks_http2()).build());
        let mut requests = server(world.server("10.0.0.1:80").await);
        let mut stream = world.client().await;
        stream.write_all(b"CONNECT web:443 HTTP/1.1\r\nHost: web:443\r\n\r\n").await.unwrap();
        let (mut request, mut respond) = requests.recv().await.unwrap();
        assert_eq!((request.method(), request.uri().to_string().as_str()), (&Method::CONNECT, "web:443"));
        let mut down = respond.send_response(Response::new(()), false).unwrap();
        assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 200 OK\r\n"));
        talk(&mut down, request.body_mut(), &mut stream).await;
    })
    .await;
}

#[tokio::test]
async fn a_connect_that_nothing_allows_is_refused_over_http2_too() {
    run(async {
        let world = World::configured(Config::new().build());
        let mut send = client(world.client().await).await;
        let (answer, _up) = send.send_request(Request::connect("web:443").body(()).unwrap(), false).unwrap();
        assert_eq!(answer.await.unwrap().status(), 404);
        // Nor where a route is for it, and does not hand it on.
        let config = connecting(Config::new()).route(|_, action| action.upgrade_configs.clear());
        world.configure(config.build());
        let (answer, _up) = send.send_request(Request::connect("web:443").body(()).unwrap(), false).unwrap();
        assert_eq!(answer.await.unwrap().status(), 403);
        assert_eq!(world.dials(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_drain_lets_what_has_switched_go_on() {
    run(async {
        let world = World::configured(Config::new().build());
        let listener = world.server("10.0.0.1:80").await;
        let mut stream = world.client().await;
        stream.write_all(upgrade().as_bytes()).await.unwrap();
        let (mut upstream, _) = listener.accept().await.unwrap();
        read_head(&mut upstream).await;
        let switched = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        upstream.write_all(switched.as_bytes()).await.unwrap();
        read_head(&mut stream).await;
        let _pod = world.pod();
        let World { test, .. } = world;
        tokio::task::spawn_local(test.trigger.drain(Duration::from_secs(60)));
        tokio::time::sleep(Duration::from_millis(20)).await;
        for (one, other) in [(true, "there"), (false, "back!")] {
            let (from, to) = if one { (&mut stream, &mut upstream) } else { (&mut upstream, &mut stream) };
            from.write_all(other.as_bytes()).await.unwrap();
            assert_eq!(read_text(to, 5).await, other);
        }
        drop(upstream);
        assert!(is_over(&mut stream).await);
    })
    .await;
}

#[tokio::test]
async fn what_was_switched_may_not_be_silent_for_longer_than_the_route_says() {
    run(async {
        let short = envoy_types::pb::google::protobuf::Duration { seconds: 0, nanos: 100_000_000 };
        let world = World::configured(Config::new().route(|_, action| action.idle_timeout = Some(short)).build());
        let listener = world.server("10.0.0.1:80").await;
        let mut stream = world.client().await;
        stream.write_all(upgrade().as_bytes()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        read_head(&mut server).await;
        let switched = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        server.write_all(switched.as_bytes()).await.unwrap();
        read_head(&mut stream).await;
        // As long as something moves it stays.
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(60)).await;
            stream.write_all(b"ping").await.unwrap();
            assert_eq!(read_text(&mut server, 4).await, "ping");
        }
        assert!(is_over(&mut stream).await && is_over(&mut server).await);
        world.reported("istio_requests_total{", &["response_code=\"101\"", "response_flags=\"SI\"", "} 1"]).await;
    })
    .await;
}
