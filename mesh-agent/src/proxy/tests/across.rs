//! Requests between two applications of one node, whose sides are both here.

use std::future::poll_fn;
use std::time::Duration;

use ::h2::Reason;
use ::h2::ext::Protocol;
use ::http::Request;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3::RouteAction;
use envoy_types::pb::envoy::config::route::v3::route_action::UpgradeConfig;
use envoy_types::pb::google::protobuf;
use mesh_proto::security::Action;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::config::Config;
use super::h2::*;
use super::policies::{mesh, policy, principal};
use super::world::*;

const GET: &str = "GET / HTTP/1.1\r\nHost: web\r\n\r\n";
const REQUESTS: &str = "istio_requests_total{";
const SERVER: &str = "10.0.0.1:80";
/// Both pods have this account.
const ACCOUNT: &str = "cluster.local/ns/default/sa/client";

/// Two pods of one node; the client's has this configuration.
fn beside(config: Config) -> World {
    let world = World::new().beside(World::configured(Config::new().build()));
    world.configure(config.build());
    world
}

/// So many requests have this code, with the flags that each side has seen.
async fn told(world: &World, code: u16, flags: [&str; 2], count: u32) {
    for (world, flags, reporter) in [(world, flags[0], "source"), (world.far(), flags[1], "destination")] {
        let (flags, reporter) = (format!("response_flags=\"{flags}\""), format!("reporter=\"{reporter}\""));
        let (code, count) = (format!("response_code=\"{code}\""), format!("}} {count}"));
        world.reported(REQUESTS, &[&code, &flags, &reporter, &count]).await;
    }
}

/// A client whose request has reached the application, and that application's end.
async fn under_way(world: &World, server: &TcpListener) -> (TcpStream, TcpStream) {
    let mut client = world.client().await;
    client.write_all(GET.as_bytes()).await.unwrap();
    let (mut app, _) = server.accept().await.unwrap();
    read_head(&mut app).await;
    (client, app)
}

fn short(action: &mut RouteAction) {
    action.timeout = Some(protobuf::Duration { seconds: 0, nanos: 50_000_000 });
}

#[tokio::test]
async fn both_sides_do_what_is_theirs() {
    run(async {
        let world = beside(Config::new().route(|route, action| {
            let header = |key: &str, value: &str| core::HeaderValueOption {
                header: Some(core::HeaderValue { key: key.into(), value: value.into(), ..Default::default() }),
                ..Default::default()
            };
            route.request_headers_to_add = vec![header("x-asked", "1")];
            route.response_headers_to_add = vec![header("x-answered", "2")];
            action.prefix_rewrite = "/new/".into();
        }));
        let server = world.server(SERVER).await;
        let mut client = world.client().await;
        let ((head, body), (mut app, seen)) = tokio::join!(exchange(&mut client, GET), answer_once(&server));
        assert!(head.contains("x-answered: 2\r\n") && head.contains("server: istio-envoy\r\n"), "{head}");
        assert_eq!((body.as_str(), head.matches("x-envoy-upstream-service-time").count()), ("hello", 1));
        let seen = seen.to_ascii_lowercase();
        let by = format!("uri=spiffe://{ACCOUNT}");
        for part in ["get /new/ http/1.1\r\n", "x-asked: 1\r\n", "x-forwarded-client-cert: by=", &by] {
            assert!(seen.contains(part), "{part}: {seen}");
        }
        for name in ["host", "x-request-id", "x-forwarded-proto"] {
            assert_eq!(seen.matches(&format!("\r\n{name}: ")).count(), 1, "{name}: {seen}");
        }
        // The connection to the application is kept, and a body of any kind goes both ways.
        let post = "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        let answers = async {
            read_head(&mut app).await;
            assert_eq!(read_text(&mut app, 13).await, "3\r\nabc\r\n0\r\n\r\n");
            app.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n").await.unwrap();
        };
        client.write_all(post.as_bytes()).await.unwrap();
        answers.await;
        read_head(&mut client).await;
        assert_eq!(read_text(&mut client, 12).await, "2\r\nok\r\n0\r\n\r\n");
        told(&world, 200, ["-", "-"], 2).await;
        let principal = format!("destination_principal=\"spiffe://{ACCOUNT}\"");
        world.reported(REQUESTS, &["reporter=\"source\"", &principal]).await;
        world.far().reported(REQUESTS, &["connection_security_policy=\"mutual_tls\"", "} 2"]).await;
        let bytes = "mesh_agent_bytes_total{path=\"neighbour\"";
        assert!(world.metric(bytes).iter().all(|line| !line.ends_with(" 0")), "{:?}", world.metric(bytes));
        assert_eq!((world.dials(), world.far().dials()), (0, 1));
        drop(client);
        assert_eq!(app.read(&mut [0]).await.unwrap(), 0);
    })
    .await;
}

#[tokio::test]
async fn what_the_server_s_side_answers_is_to_the_client_s_side_the_server_s_word() {
    run(async {
        let world = beside(Config::new());
        let server = world.server(SERVER).await;
        let mut client = world.client().await;
        let garbage = async {
            let (mut app, _) = server.accept().await.unwrap();
            read_head(&mut app).await;
            app.write_all(b"SSH-2.0-x\r\n\r\n").await.unwrap();
        };
        let ((head, body), ()) = tokio::join!(exchange(&mut client, GET), garbage);
        assert!(head.starts_with("http/1.1 502 ") && body.contains("protocol error"), "{head}{body}");
        assert!(head.contains("server: istio-envoy\r\n") && head.contains("x-envoy-upstream-service-time: "), "{head}");
        told(&world, 502, ["-", "UPE"], 1).await;
        // The client's connection goes on.
        let ((_, body), _) = tokio::join!(exchange(&mut client, GET), answer_once(&server));
        assert_eq!(body, "hello");
        // A part of a body only is a broken connection to either.
        let (mut cut, mut app) = under_way(&world, &server).await;
        app.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nsome").await.unwrap();
        read_head(&mut cut).await;
        assert_eq!(read_text(&mut cut, 4).await, "some");
        drop(app);
        assert!(is_over(&mut cut).await);
        told(&world, 200, ["UC", "UC"], 1).await;
        // Of what is wrong with a body the client's side hears an end only.
        let (mut cut, mut app) = under_way(&world, &server).await;
        app.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
        read_head(&mut cut).await;
        app.write_all(b"none\r\n").await.unwrap();
        assert!(is_over(&mut cut).await);
        world.reported(REQUESTS, &["response_flags=\"UC\"", "} 2"]).await;
        world.far().reported(REQUESTS, &["response_code=\"200\"", "response_flags=\"UPE\"", "} 1"]).await;
        // An application that is not there cannot be connected to.
        world.far().test.routes.borrow_mut().clear();
        let mut client = world.client().await;
        let (head, _) = exchange(&mut client, GET).await;
        assert!(head.starts_with("http/1.1 503 "), "{head}");
        world.reported(REQUESTS, &["response_code=\"503\"", "response_flags=\"UF\"", "} 1"]).await;
    })
    .await;
}

#[tokio::test]
async fn a_client_that_leaves_and_a_time_that_ends_are_the_client_s_side_s() {
    run(async {
        let world = beside(Config::new().route(|_, action| short(action)));
        let server = world.server(SERVER).await;
        let mut client = world.client().await;
        // The server's side would wait for fifteen seconds.
        let asked = tokio::time::timeout(Duration::from_secs(8), exchange(&mut client, GET));
        let (head, _) = asked.await.expect("the route's time holds");
        assert!(head.starts_with("http/1.1 504 ") && head.contains("server: envoy\r\n"), "{head}");
        world.reported(REQUESTS, &["response_code=\"504\"", "response_flags=\"UT\"", "} 1"]).await;
        world.far().reported(REQUESTS, &["response_code=\"0\"", "response_flags=\"DC\"", "} 1"]).await;
        world.configure(Config::new().build());
        drop(server.accept().await.unwrap());
        let (client, mut app) = under_way(&world, &server).await;
        drop(client);
        world.reported(REQUESTS, &["response_code=\"0\"", "response_flags=\"DC\"", "} 1"]).await;
        world.far().reported(REQUESTS, &["response_code=\"0\"", "response_flags=\"DC\"", "} 2"]).await;
        assert!(is_over(&mut app).await);
        // Where its side speaks HTTP/2, its stream is reset.
        let world = beside(Config::new().speaks_http2());
        let mut asked = super::h2::server(world.server(SERVER).await);
        let mut send = super::h2::client(world.client().await).await;
        let (answer, _) = send.send_request(get("/"), true).unwrap();
        let (_, mut respond) = asked.recv().await.unwrap();
        drop(answer);
        assert_eq!(poll_fn(|cx| respond.poll_reset(cx)).await.unwrap(), Reason::CANCEL);
        told(&world, 0, ["DR", "DR"], 1).await;
    })
    .await;
}

#[tokio::test]
async fn a_client_that_may_not_be_there_any_more_is_cut_off_and_refused() {
    run(async {
        let world = World::new().beside(World::judged(None));
        world.configure(Config::new().build());
        world.far().configure(Config::new().build());
        let forbid = policy("p", Action::Deny, Some(principal(ACCOUNT)));
        world.far().tell_mesh(mesh(&[], &[]));
        let server = world.server(SERVER).await;
        let mut idle = world.client().await;
        let (_, (mut kept, _)) = tokio::join!(exchange(&mut idle, GET), answer_once(&server));
        let (mut busy, mut app) = under_way(&world, &server).await;
        world.far().tell_mesh(mesh(std::slice::from_ref(&forbid), &[]));
        assert!(read_head(&mut busy).await.starts_with("HTTP/1.1 503 "));
        assert!(is_over(&mut app).await);
        world.reported(REQUESTS, &["response_code=\"503\"", "response_flags=\"UC\"", "} 1"]).await;
        world.far().reported(REQUESTS, &["response_code=\"0\"", "response_flags=\"DC\"", "} 1"]).await;
        let dials = world.far().dials();
        let (head, _) = exchange(&mut idle, GET).await;
        assert!(head.starts_with("http/1.1 503 "), "{head}");
        assert_eq!((world.far().dials(), kept.read(&mut [0]).await.unwrap()), (dials, 0));
        world.far().reported("mesh_agent_policy_refused_total{", &["reason=\"denied\"", "} 1"]).await;
    })
    .await;
}

#[tokio::test]
async fn any_mix_of_versions_goes_across() {
    run(async {
        let world = beside(Config::new());
        let server_1 = world.server(SERVER).await;
        let mut send = client(world.client().await).await;
        let (answer, _) = send.send_request(get("/x"), true).unwrap();
        let (_app, seen) = answer_once(&server_1).await;
        assert!(seen.starts_with("GET /x HTTP/1.1\r\n"), "{seen}");
        let mut answer = answer.await.unwrap();
        assert_eq!(answer.headers()["server"], "istio-envoy");
        assert_eq!(read(answer.body_mut()).await.unwrap(), b"hello");
        told(&world, 200, ["-", "-"], 1).await;
        // gRPC by HTTP/1 has its outcome in trailers too.
        let mut old = world.client().await;
        let call =
            "POST /shop.Cart/Add HTTP/1.1\r\nHost: web\r\nContent-Type: application/grpc\r\nContent-Length: 0\r\n\r\n";
        old.write_all(call.as_bytes()).await.unwrap();
        let (mut app, _) = server_1.accept().await.unwrap();
        read_head(&mut app).await;
        let trailed = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\ngrpc-status: 7\r\n\r\n";
        app.write_all(trailed.as_bytes()).await.unwrap();
        read_head(&mut old).await;
        for world in [&world, world.far()] {
            world.reported(REQUESTS, &["grpc_response_status=\"7\"", "} 1"]).await;
        }
        // Several at once share one visit, and one connection to a server of HTTP/2.
        let world = beside(Config::new().speaks_http2());
        let mut asked = server(world.server(SERVER).await);
        let mut send = client(world.client().await).await;
        let answers: Vec<_> = (0..5).map(|_| send.send_request(grpc("/shop.Cart/Add"), true).unwrap().0).collect();
        for _ in 0..5 {
            let (_, mut respond) = asked.recv().await.unwrap();
            let mut body = respond.send_response(ok(), false).unwrap();
            let trailers = [("grpc-status".parse().unwrap(), "7".parse().unwrap())];
            body.send_trailers(trailers.into_iter().collect()).unwrap();
        }
        for answer in answers {
            let mut body = answer.await.unwrap().into_body();
            assert!(read(&mut body).await.unwrap().is_empty());
            assert_eq!(body.trailers().await.unwrap().unwrap()["grpc-status"], "7");
        }
        assert_eq!(world.far().dials(), 1);
        for world in [&world, world.far()] {
            world.reported(REQUESTS, &["grpc_response_status=\"7\"", "} 5"]).await;
        }
        // A client of HTTP/1, whose side speaks HTTP/2.
        let mut old = world.client().await;
        old.write_all(GET.as_bytes()).await.unwrap();
        let (_, mut respond) = asked.recv().await.unwrap();
        respond.send_response(ok(), true).unwrap();
        assert!(read_head(&mut old).await.starts_with("HTTP/1.1 200 "));
    })
    .await;
}

#[tokio::test]
async fn a_switch_goes_across() {
    run(async {
        let world = beside(Config::new());
        let server = world.server(SERVER).await;
        let switched = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n";
        let mut old = world.client().await;
        let upgrade = "GET /chat HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        old.write_all(upgrade.as_bytes()).await.unwrap();
        let (mut app, _) = server.accept().await.unwrap();
        let seen = read_head(&mut app).await.to_ascii_lowercase();
        for line in ["\r\nconnection: upgrade\r\n", "\r\nupgrade: websocket\r\n"] {
            assert_eq!(seen.matches(line).count(), 1, "{line}: {seen}");
        }
        app.write_all(switched).await.unwrap();
        assert!(read_head(&mut old).await.starts_with("HTTP/1.1 101 "));
        old.write_all(b"ping").await.unwrap();
        assert_eq!(read_text(&mut app, 4).await, "ping");
        drop(app);
        assert!(is_over(&mut old).await);
        drop(old);
        told(&world, 101, ["-", "-"], 1).await;
        // A stream of HTTP/2; one who is not switched does not take another success for it.
        let mut send = client(world.client().await).await;
        let (answer, _) = send.send_request(get("/"), true).unwrap();
        let (app, _) = answer_once(&server).await;
        answer.await.unwrap();
        drop(app);
        for (said, status) in [(&switched[..], 200), (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 502)] {
            let mut request = Request::connect("http://web/chat").body(()).unwrap();
            request.extensions_mut().insert(Protocol::from_static("websocket"));
            let (answer, _up) = send.send_request(request, false).unwrap();
            let (mut app, _) = server.accept().await.unwrap();
            read_head(&mut app).await;
            app.write_all(said).await.unwrap();
            assert_eq!(answer.await.unwrap().status(), status);
        }
    })
    .await;
}

#[tokio::test]
async fn a_switch_that_the_server_s_side_does_not_allow_is_none() {
    run(async {
        let never = UpgradeConfig {
            upgrade_type: "websocket".into(),
            enabled: Some(protobuf::BoolValue { value: false }),
            ..Default::default()
        };
        let far = Config::new().route(|_, action| action.upgrade_configs = vec![never]);
        let world = World::new().beside(World::configured(far.build()));
        world.configure(Config::new().build());
        let server = world.server(SERVER).await;
        let mut send = client(world.client().await).await;
        let (answer, _) = send.send_request(get("/"), true).unwrap();
        let (_app, _) = answer_once(&server).await;
        answer.await.unwrap();
        let mut request = Request::connect("http://web/chat").body(()).unwrap();
        request.extensions_mut().insert(Protocol::from_static("websocket"));
        let (answer, _up) = send.send_request(request, false).unwrap();
        assert_eq!(answer.await.unwrap().status(), 403);
    })
    .await;
}

#[tokio::test]
async fn a_withdrawn_server_s_requests_end() {
    run(async {
        let world = beside(Config::new());
        let server = world.server(SERVER).await;
        let (mut client, mut app) = under_way(&world, &server).await;
        let some = "x".repeat(5000);
        app.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n{some}").as_bytes()).await.unwrap();
        read_head(&mut client).await;
        assert_eq!(read_text(&mut client, some.len()).await, some);
        world.far().pod().end();
        let over = tokio::time::timeout(Duration::from_secs(10), is_over(&mut client)).await;
        assert!(over.unwrap());
        assert!(is_over(&mut app).await);
        world.reported(REQUESTS, &["response_code=\"200\"", "response_flags=\"UC\"", "} 1"]).await;
        // What had gone across until then counts.
        let bytes = world.metric("mesh_agent_bytes_total{path=\"neighbour\"");
        let count = |line: &String| line.rsplit(' ').next()?.parse().ok().filter(|count: &usize| *count >= some.len());
        assert!(bytes.iter().any(|line| count(line).is_some()), "{bytes:?}");
    })
    .await;
}
