//! Limits of the settings: each holds where it is set, says so to the client, and is counted under its name.

use ::http::{Request, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use super::config::{Config, direct};
use super::h2::*;
use super::pair::{APP, B, Pair};
use super::world::*;
use crate::net::share::Share;
use crate::proxy::pod::tests::TestPod;
use crate::proxy::{tcp, tunnel};
use crate::settings::limits::{Limits, MIN_WINDOW};
use crate::telemetry::Limit;
use crate::tls::tests::Authority;

/// A world with these limits.
fn limited(limits: Limits, config: Config) -> World {
    let world = World::of(TestPod::limited(Some("10.0.0.1:80".parse().unwrap()), None, Vec::new(), limits));
    world.configure(config.build());
    world
}

/// One that answers every request itself.
fn answering(limits: Limits) -> World {
    limited(limits, Config::new().route(|route, _| route.action = Some(direct(StatusCode::OK, ""))))
}

async fn counted(world: &World, limit: &str, times: u64) {
    world.reported("mesh_agent_limit_reached_total{", &[&format!("\"{limit}\"}} {times}")]).await;
}

#[tokio::test]
async fn heads_of_both_versions_have_as_many_bytes_and_lines_as_is_set() {
    run(async {
        let limits = Limits { head_bytes: 8 << 10, head_lines: 20, ..Limits::default() };
        for (lines, value, status, limit) in
            [(1, 9 << 10, 431, "headBytes"), (21, 1, 431, "headLines"), (10, 700, 200, "")]
        {
            let world = answering(limits);
            let mut head = "GET / HTTP/1.1\r\nHost: web\r\n".to_owned();
            let mut request = Request::get("http://web/");
            for line in 0..lines {
                let value = "a".repeat(value);
                head += &format!("x-{line}: {value}\r\n");
                request = request.header(format!("x-{line}"), value);
            }
            let (answer, _) = exchange(&mut world.client().await, &(head + "\r\n")).await;
            assert!(answer.starts_with(&format!("http/1.1 {status}")), "{lines} lines of {value}: {answer}");
            let mut send = client(world.client().await).await;
            let (answer, _) = send.send_request(request.body(()).unwrap(), true).unwrap();
            assert_eq!(answer.await.unwrap().status(), status, "{lines} lines of {value}");
            if status == 431 {
                counted(&world, limit, 2).await;
            } else {
                assert_eq!(
                    world.metric("mesh_agent_limit_reached_total{").iter().filter(|l| !l.ends_with(" 0")).count(),
                    0
                );
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_servers_head_is_bounded_too() {
    run(async {
        let world = limited(Limits { head_lines: 5, ..Limits::default() }, Config::new());
        let server = world.server("10.0.0.1:80").await;
        let mut client = world.client().await;
        let answer = async {
            let (mut stream, _) = server.accept().await.unwrap();
            read_head(&mut stream).await;
            let lines = "x: 1\r\n".repeat(6);
            stream.write_all(format!("HTTP/1.1 200 OK\r\n{lines}\r\n").as_bytes()).await.unwrap();
            stream
        };
        let ask = exchange(&mut client, "GET / HTTP/1.1\r\nHost: web\r\n\r\n");
        let ((head, _), _stream) = tokio::join!(ask, answer);
        assert!(head.starts_with("http/1.1 502"), "{head}");
        counted(&world, "headLines", 1).await;
    })
    .await;
}

#[tokio::test]
async fn streams_resets_and_faults_of_a_client_are_counted_where_they_are_set() {
    run(async {
        let limits = Limits { http2_streams: 3, http2_pending_resets: 5, http2_faults: 6, ..Limits::default() };
        let world = limited(limits, Config::new().speaks_http2());
        let _requests = server(world.server("10.0.0.1:80").await);
        let mut raw = Raw::new(world.client().await).await;
        for stream in [1, 3, 5, 7] {
            raw.ask(stream, &GOOD).await;
        }
        let reset = raw.next(RST_STREAM).await.unwrap();
        assert_eq!((reset.stream, &reset.payload[..]), (7, &[0, 0, 0, 7][..]), "REFUSED_STREAM");
        counted(&world, "http2Streams", 1).await;

        let world = answering(Limits { http2_streams: 1024, ..limits });
        let flood = |streams: u32| {
            let one = |stream| {
                let head = written(HEADERS, END_HEADERS | END_STREAM, stream, &block(&GOOD));
                [head, written(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
            };
            (1..2 * streams).step_by(2).flat_map(one).collect::<Vec<u8>>()
        };
        let mut raw = Raw::new(world.client().await).await;
        raw.put(&[flood(5), written(HEADERS, END_HEADERS | END_STREAM, 101, &block(&GOOD))].concat()).await;
        assert_eq!(raw.next(HEADERS).await.unwrap().stream, 101, "so many may be reset");
        let mut raw = Raw::new(world.client().await).await;
        raw.put(&flood(6)).await;
        assert!(raw.next(GOAWAY).await.is_some());
        counted(&world, "http2PendingResets", 1).await;

        let fault = block(&[&GOOD[..], &[("connection", "close")]].concat());
        let frame = |stream| written(HEADERS, END_HEADERS | END_STREAM, stream, &fault);
        let mut raw = Raw::new(world.client().await).await;
        raw.put(&(1..20).step_by(2).flat_map(frame).collect::<Vec<_>>()).await;
        assert!(raw.next(GOAWAY).await.is_some());
        counted(&world, "http2Faults", 1).await;
    })
    .await;
}

#[tokio::test]
async fn requests_of_a_workload_on_all_its_connections_are_bounded() {
    run(async {
        let limits = Limits { requests_per_workload: 2, ..Limits::default() };
        let world = limited(limits, Config::new().speaks_http2());
        let mut requests = server(world.server("10.0.0.1:80").await);
        let (mut one, mut other) = (client(world.client().await).await, client(world.client().await).await);
        let (first, _) = one.send_request(get("/"), true).unwrap();
        let (second, _) = other.send_request(get("/"), true).unwrap();
        let (_, mut respond) = requests.recv().await.unwrap();
        let _under_way = requests.recv().await.unwrap();
        let (refused, _) = other.send_request(get("/"), true).unwrap();
        assert_eq!(refused.await.unwrap().status(), 503);
        counted(&world, "requestsPerWorkload", 1).await;
        world.reported("istio_requests_total{", &["response_code=\"503\"", "response_flags=\"OM\"", "} 1"]).await;
        // Whichever of the two is answered makes room.
        respond.send_response(ok(), true).unwrap();
        let answered = futures_util::future::select(first, second).await.factor_first().0;
        assert_eq!(answered.unwrap().status(), 200);
        let (third, _) = one.send_request(get("/"), true).unwrap();
        requests.recv().await.unwrap().1.send_response(ok(), true).unwrap();
        assert_eq!(third.await.unwrap().status(), 200);
    })
    .await;
}

#[tokio::test]
async fn peers_of_a_workload_without_budget_get_the_least_window() {
    run(async {
        for (budget, stream, connection, times) in
            [(1 << 30, 4 << 20, 16 << 20, 0), (1 << 20, MIN_WINDOW, MIN_WINDOW, 1)]
        {
            let world = answering(Limits { buffer_bytes_per_workload: budget, ..Limits::default() });
            let mut raw = Raw::new(world.client().await).await;
            let settings = raw.next(SETTINGS).await.unwrap().payload;
            let said = settings.chunks(6).find(|one| one[..2] == [0, 4]).map_or(MIN_WINDOW, |one| word(&one[2..]));
            assert_eq!(said, stream, "SETTINGS_INITIAL_WINDOW_SIZE");
            raw.ask(1, &GOOD).await;
            let mut more = 0;
            loop {
                match raw.frame().await.unwrap() {
                    frame if frame.kind == WINDOW_UPDATE && frame.stream == 0 => more += word(&frame.payload),
                    frame if frame.kind == HEADERS => break,
                    _ => {}
                }
            }
            assert_eq!(MIN_WINDOW + more, connection);
            counted(&world, "bufferBytesPerWorkload", times).await;
            world.reported("mesh_agent_http2_window_bytes", &[&format!(" {connection}")]).await;
            drop(raw);
            world.reported("mesh_agent_http2_window_bytes", &[" 0"]).await;
        }
    })
    .await;
}

const WINDOW_UPDATE: u8 = 8;

fn word(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().unwrap())
}

#[tokio::test]
async fn places_are_given_back_and_who_has_none_is_reported() {
    run(async {
        let world = limited(Limits { connections_per_workload: 2, ..Limits::default() }, Config::new());
        let pod = world.pod();
        let (first, _second) = (pod.admit().unwrap(), pod.admit().unwrap());
        assert!(pod.admit().is_none());
        counted(&world, "connectionsPerWorkload", 1).await;
        let (_client, accepted) = pair().await;
        let flow = crate::proxy::outbound::flow(&pod, &accepted).unwrap();
        tcp::report_refusal(&pod, &flow, &tcp::Failure::full(), None);
        world.reported("istio_tcp_connections_closed_total{", &["response_flags=\"OM\"", "} 1"]).await;
        drop(first);
        assert!(pod.admit().is_some());
    })
    .await;
}

/// A client of the pod's tunnels that has said hello and then waits.
async fn half_a_handshake(door: std::net::SocketAddr) -> TcpStream {
    let mut config = rustls::ClientConnection::new(
        Authority::new("other").credential(B).client_config(&[B.parse().unwrap()].into()).unwrap(),
        rustls::pki_types::ServerName::try_from("b").unwrap(),
    )
    .unwrap();
    let mut hello = Vec::new();
    config.write_tls(&mut hello).unwrap();
    let mut tcp = TcpStream::connect(door).await.unwrap();
    tcp.write_all(&hello).await.unwrap();
    // The server's words: it waits for ours now.
    tcp.read_u8().await.unwrap();
    tcp
}

#[tokio::test]
async fn handshakes_wait_for_their_turn_and_who_is_silent_has_none() {
    run(async {
        let limits = Limits { handshakes_per_workload: 1, ..Limits::default() };
        let (ca, config) = (Authority::new("root"), Config::new());
        let test = TestPod::limited(None, Some(ca.credential(B)), Vec::new(), limits);
        let world = World::of(test);
        world.configure(config.build());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let door = listener.local_addr().unwrap();
        let pod = world.pod();
        tokio::task::spawn_local(async move {
            while let Ok((accepted, _)) = listener.accept().await {
                tokio::task::spawn_local(tunnel::serve(pod.clone(), accepted));
            }
        });
        let connector = TlsConnector::from(ca.credential(B).client_config(&[B.parse().unwrap()].into()).unwrap());
        let meet = || async {
            let tcp = TcpStream::connect(door).await.unwrap();
            connector.connect(rustls::pki_types::ServerName::try_from("b").unwrap(), tcp).await
        };
        let _silent = TcpStream::connect(door).await.unwrap();
        meet().await.unwrap();
        counted(&world, "handshakesPerWorkload", 0).await;
        let half = half_a_handshake(door).await;
        world.reported("mesh_agent_handshakes_in_progress", &[" 1"]).await;
        let mut waiting = Box::pin(meet());
        let early = tokio::time::timeout(std::time::Duration::from_millis(100), waiting.as_mut()).await;
        assert!(early.is_err(), "nobody else has a turn");
        counted(&world, "handshakesPerWorkload", 1).await;
        drop(half);
        waiting.await.unwrap();
        counted(&world, "handshakesPerSecond", 0).await;
    })
    .await;
}

#[tokio::test]
async fn a_tunnel_has_as_many_streams_as_either_end_says() {
    run(async {
        let own = Limits { tunnels_per_destination: 2, ..Limits::default() };
        for (client, server) in [(2, 1024), (1024, 2)] {
            let limits = Limits { tunnel_streams: server, ..own };
            let world = |credential| World::of(TestPod::limited(None, Some(credential), Vec::new(), limits));
            let pair = Pair::limited(Config::new(), world, &Limits { tunnel_streams: client, ..own }).await;
            let app = pair.app().await;
            let mut held = Vec::new();
            for _ in 0..4 {
                held.push((pair.connect(APP, B).await.unwrap(), app.accept().await.unwrap()));
            }
            assert_eq!(pair.dialled(), 2);
            let refused = pair.connect(APP, B).await.unwrap_err();
            assert!(refused.to_string().contains("too many tunnels to one destination"), "{refused}");
            assert_eq!(pair.counts.of(Limit::TunnelsPerDestination), 1);
            held.pop();
            pair.connect(APP, B).await.unwrap();
        }
    })
    .await;
}

#[test]
fn a_share_says_what_heads_may_be() {
    let limits = Limits { head_bytes: 8 << 10, head_lines: 7, ..Limits::default() };
    let heads = Share::new(&limits, Default::default()).heads();
    assert_eq!((heads.bytes, heads.lines), (8 << 10, 7));
}
