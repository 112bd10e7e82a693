//! Probes from the node to a port that takes mutual TLS only: what was declared passes, nothing else does.

use std::io::ErrorKind;
use std::net::SocketAddr;

use ::http::Request;
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::config::Config;
use super::world::*;
use crate::proxy::inbound;
use crate::proxy::pod::tests::TestPod;
use crate::settings::probes::Probe;

/// A strict port with probes, and its application.
struct Probed {
    world: World,
    wire: TcpListener,
    app: TcpListener,
}

impl Probed {
    async fn new(probes: impl Fn(u16) -> Vec<Probe>) -> Self {
        let (wire, app) = tokio::join!(TcpListener::bind("127.0.0.1:0"), TcpListener::bind("127.0.0.1:0"));
        let (wire, app) = (wire.unwrap(), app.unwrap());
        let world = World::of(TestPod::probed(None, None, probes(wire.local_addr().unwrap().port())));
        world.configure(Config::new().strict("spiffe://").build());
        world.route(wire.local_addr().unwrap(), app.local_addr().unwrap());
        Self { world, wire, app }
    }

    /// The node.
    async fn node(&self) -> TcpStream {
        self.from("127.0.0.1:0").await
    }

    async fn from(&self, address: &str) -> TcpStream {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(address.parse::<SocketAddr>().unwrap()).unwrap();
        let (client, accepted) = tokio::join!(socket.connect(self.wire.local_addr().unwrap()), self.wire.accept());
        tokio::task::spawn_local(inbound::serve(self.world.pod(), accepted.unwrap().0));
        client.unwrap()
    }

    async fn refused(&self, times: usize) {
        let count = format!("}} {times}");
        self.world.reported("mesh_agent_plaintext_refused_total{", &["reason=\"no_probe\"", &count]).await;
    }
}

fn healthz(port: u16) -> Vec<Probe> {
    vec![Probe::Http { port, path: "/healthz?full=1".into() }, Probe::Http { port, path: "/ready".into() }]
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: 10.0.0.2:8080\r\nUser-Agent: kube-probe/1.34\r\nConnection: close\r\n\r\n")
}

async fn is_over(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0]).await {
        Ok(n) => n == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

#[tokio::test]
async fn declared_requests_get_the_applications_own_answer() {
    run(async {
        let probed = Probed::new(healthz).await;
        for path in ["/healthz?full=1", "/ready"] {
            let mut node = probed.node().await;
            let request = get(path);
            let ((head, body), (_app, seen)) = tokio::join!(exchange(&mut node, &request), answer_once(&probed.app));
            assert!(head.starts_with("http/1.1 200") && head.contains("server: tested"), "{head}");
            assert_eq!(body, "hello");
            assert!(seen.starts_with(&format!("GET {path} HTTP/1.1\r\n")), "{seen}");
            assert!(seen.to_lowercase().contains("user-agent: kube-probe/1.34"), "{seen}");
            // Nothing comes after it.
            let _ = node.write_all(get(path).as_bytes()).await;
            assert!(is_over(&mut node).await);
        }
        assert!(probed.world.metric("mesh_agent_plaintext_refused_total{").iter().all(|line| line.ends_with(" 0")));
    })
    .await;
}

#[tokio::test]
async fn everything_else_is_refused_and_the_application_gets_no_byte() {
    run(async {
        let probed = Probed::new(healthz).await;
        let upgrade = "GET /ready HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
        let with_body = "GET /ready HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nsecret";
        let requests = [
            get("/"),
            get("/healthz"),
            get("/healthz?full=10"),
            get("/ready/../secret"),
            get("/READY"),
            get("/ready?"),
            get("http://10.0.0.2:8080/ready"),
            get("/ready").replacen("GET", "POST", 1),
            get("/ready").replacen("GET", "HEAD", 1),
            upgrade.to_owned(),
            with_body.to_owned(),
            with_body.replace("Content-Length: 6", "Transfer-Encoding: chunked"),
        ];
        for request in &requests {
            let mut node = probed.node().await;
            let (mut app, ()) = tokio::join!(async { probed.app.accept().await.unwrap().0 }, async {
                node.write_all(request.as_bytes()).await.unwrap();
                let head = read_head(&mut node).await;
                assert!(head.starts_with("HTTP/1.1 403"), "{request}: {head}");
            });
            assert!(is_over(&mut app).await, "{request}");
        }
        probed.refused(requests.len()).await;
        for opaque in
            [&b"\0\0\0\0"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03"]
        {
            let mut node = probed.node().await;
            node.write_all(opaque).await.unwrap();
            let (mut app, _) = probed.app.accept().await.unwrap();
            assert!(is_over(&mut app).await && is_over(&mut node).await, "{opaque:?}");
        }
        probed.refused(requests.len() + 3).await;
    })
    .await;
}

#[tokio::test]
async fn two_requests_at_once_are_one() {
    run(async {
        let probed = Probed::new(healthz).await;
        let mut node = probed.node().await;
        let both = get("/ready").replace("Connection: close\r\n", "") + &get("/secret");
        let ((head, _), (mut app, seen)) = tokio::join!(exchange(&mut node, &both), answer_once(&probed.app));
        assert!(head.starts_with("http/1.1 200") && seen.starts_with("GET /ready"), "{head} {seen}");
        assert!(is_over(&mut node).await && is_over(&mut app).await);
    })
    .await;
}

#[tokio::test]
async fn a_tcp_probe_says_nothing() {
    run(async {
        let probed = Probed::new(|port| vec![Probe::Tcp { port }]).await;
        let node = probed.node().await;
        let (mut app, _) = probed.app.accept().await.unwrap();
        drop(node);
        assert!(is_over(&mut app).await);
        assert!(probed.world.metric("mesh_agent_plaintext_refused_total{").iter().all(|line| line.ends_with(" 0")));
        // A request is more than that.
        let mut node = probed.node().await;
        node.write_all(get("/").as_bytes()).await.unwrap();
        let (mut app, _) = probed.app.accept().await.unwrap();
        assert!(is_over(&mut app).await && is_over(&mut node).await);
        probed.refused(1).await;
    })
    .await;
}

#[tokio::test]
async fn nobody_but_the_node_may_probe_and_no_other_port() {
    run(async {
        let probed = Probed::new(healthz).await;
        let mut other = probed.from("127.0.0.2:0").await;
        let _ = other.write_all(get("/ready").as_bytes()).await;
        assert!(is_over(&mut other).await);
        let elsewhere = Probed::new(|port| healthz(port.wrapping_add(1))).await;
        let mut node = elsewhere.node().await;
        let _ = node.write_all(get("/ready").as_bytes()).await;
        assert!(is_over(&mut node).await);
        for one in [probed, elsewhere] {
            assert_eq!(one.world.dials(), 0);
            one.world.reported("mesh_agent_plaintext_refused_total{", &["reason=\"strict\"", "} 1"]).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_probe_fails_when_the_application_does() {
    run(async {
        let probed = Probed::new(healthz).await;
        let mut node = probed.node().await;
        node.write_all(get("/ready").as_bytes()).await.unwrap();
        let (app, _) = probed.app.accept().await.unwrap();
        drop(app);
        assert!(is_over(&mut node).await);
        probed.world.test.routes.borrow_mut().clear();
        let mut node = probed.node().await;
        let _ = node.write_all(get("/ready").as_bytes()).await;
        assert!(is_over(&mut node).await);
    })
    .await;
}

#[tokio::test]
async fn grpc_health_checks_pass_and_no_other_call() {
    run(async {
        let probed = Probed::new(|port| vec![Probe::Grpc { port }]).await;
        let node = probed.node().await;
        let (app, _) = probed.app.accept().await.unwrap();
        tokio::task::spawn_local(async move {
            let mut connection = h2::server::handshake(app).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                let mut send = respond.send_response(::http::Response::new(()), false).unwrap();
                send.send_data(Bytes::from_static(b"\0\0\0\0\x02\x08\x01"), false).unwrap();
                let mut trailers = ::http::HeaderMap::new();
                trailers.insert("grpc-status", "0".parse().unwrap());
                send.send_trailers(trailers).unwrap();
            }
        });
        let (mut send, connection) = h2::client::handshake(node).await.unwrap();
        tokio::task::spawn_local(async move {
            let _ = connection.await;
        });
        for (path, length, status) in [
            ("/grpc.health.v1.Health/Check", 5, 200),
            ("/grpc.health.v1.Health/Watch", 5, 403),
            ("/shop.Cart/Add", 5, 403),
            ("/grpc.health.v1.Health/Check", 5, 200),
        ] {
            send = send.ready().await.unwrap();
            let uri = format!("http://10.0.0.2:8080{path}");
            let request = Request::post(uri).header("content-type", "application/grpc").body(()).unwrap();
            let (answer, mut body) = send.send_request(request, false).unwrap();
            body.send_data(vec![0; length].into(), true).unwrap();
            let mut answer = answer.await.unwrap();
            assert_eq!(answer.status(), status, "{path}");
            while answer.body_mut().data().await.is_some() {}
            if status == 200 {
                assert_eq!(answer.body_mut().trailers().await.unwrap().unwrap()["grpc-status"], "0");
            }
        }
        assert_eq!(send.current_max_send_streams(), 1, "one health check at a time");
        probed.refused(2).await;
    })
    .await;
}
