//! Both halves of a tunnel with real TLS between them: the client's pool here, the server's listener there.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ::http::HeaderMap;
use ::http::header::FORWARDED;
use mesh_core::SpiffeId;
use mesh_core::resource::endpoint::{Endpoint, Health};
use rustls::HandshakeKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use super::config::Config;
use super::world::*;
use crate::net::copy::Duplex;
use crate::net::netns::NetNs;
use crate::net::share::Share;
use crate::proxy::tunnel;
use crate::settings::Settings;
use crate::settings::limits::Limits;
use crate::telemetry::LimitCounts;
use crate::tls::tests::Authority;
use crate::tls::{Credential, peer_certificate};
use crate::upstream::stream::TunnelStream;
use crate::upstream::tunnel::{ConnectHead, Transport, TunnelKey, Tunnels};
use crate::upstream::{BAGGAGE, UpstreamError};
use crate::workload::Workload;

const A: &str = "spiffe://cluster.local/ns/default/sa/a";
pub(super) const B: &str = "spiffe://cluster.local/ns/default/sa/b";
/// What the server's pod is called inside the tunnel.
pub(super) const APP: &str = "10.0.0.2:80";
const OTHER_PORT: &str = "10.0.0.2:81";

pub(super) struct Pair {
    pub(super) server: World,
    door: std::net::SocketAddr,
    client: Arc<Credential>,
    tunnels: Tunnels,
    tls_dials: Rc<Cell<usize>>,
    /// Of these, how many went on with an earlier session.
    resumed: Cell<usize>,
    source: Workload,
    /// Where the client's limits are counted.
    pub(super) counts: Arc<LimitCounts>,
}

fn endpoint(address: &str, host: bool) -> Endpoint {
    Endpoint {
        address: address.parse().unwrap(),
        weight: 1,
        health: Health::Healthy,
        tunnel: true,
        istio_mtls: false,
        identity: None,
        host,
        workload: None,
        runtime: Arc::default(),
    }
}

/// The client's workload.
fn source() -> Workload {
    let text = "{node: n, controlPlane: {address: 'http://a:1'}, workloads: [{name: a, namespace: default, serviceAccount: a, netns: /x}]}";
    let settings = Settings::parse(std::path::Path::new("x"), text).unwrap();
    let netns = Arc::new(NetNs::current().unwrap());
    Workload::new(1, &settings.workloads[0], &"c".into(), "cluster.local", netns, Vec::new()).unwrap()
}

impl Pair {
    pub(super) async fn new() -> Self {
        Self::with(Config::new()).await
    }

    async fn with(config: Config) -> Self {
        Self::serving(config, World::with_credential).await
    }

    pub(super) async fn serving(config: Config, world: impl FnOnce(Arc<Credential>) -> World) -> Self {
        Self::limited(config, world, &Limits::default()).await
    }

    /// `limits`: the client's.
    pub(super) async fn limited(config: Config, world: impl FnOnce(Arc<Credential>) -> World, limits: &Limits) -> Self {
        let ca = Authority::new("root");
        let server = world(ca.credential(B));
        server.configure(config.build());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let door = listener.local_addr().unwrap();
        let pod = server.pod();
        tokio::task::spawn_local(async move {
            loop {
                let (accepted, _) = listener.accept().await.unwrap();
                tokio::task::spawn_local(tunnel::serve(pod.clone(), accepted));
            }
        });
        let (client, source) = (ca.credential(A), source());
        let counts = Arc::<LimitCounts>::default();
        let tunnels = Tunnels::new(limits, counts.clone());
        let (tls_dials, resumed) = (Rc::default(), Cell::default());
        Self { server, door, client, tunnels, tls_dials, resumed, source, counts }
    }

    /// Handshakes so far.
    pub(super) fn dialled(&self) -> usize {
        self.tls_dials.get()
    }

    /// An application behind the server's agent.
    pub(super) async fn app(&self) -> TcpListener {
        self.server.server(APP).await
    }

    pub(super) async fn connect(&self, to: &str, expected: &str) -> Result<TunnelStream, UpstreamError> {
        self.connect_as(to, expected, false).await
    }

    /// `host`: the destination is one of several workloads of its address.
    async fn connect_as(&self, to: &str, expected: &str, host: bool) -> Result<TunnelStream, UpstreamError> {
        let expected: Arc<[SpiffeId]> = Arc::new([expected.parse().unwrap()]);
        let endpoint = endpoint(to, host);
        let key = TunnelKey { to: self.door, ..TunnelKey::new(&self.source, &endpoint, expected.clone()) };
        let mut headers = HeaderMap::new();
        headers.insert(FORWARDED, "for=\"127.0.0.1:4711\"".parse().unwrap());
        headers.insert(BAGGAGE, "k8s.deployment.name=a-v1".parse().unwrap());
        let head = ConnectHead { authority: to.parse().unwrap(), headers };
        let dial = || async {
            self.tls_dials.set(self.tls_dials.get() + 1);
            let failed = |why: String| UpstreamError::Tls { to: self.door, why: why.into() };
            let tcp = TcpStream::connect(self.door).await.unwrap();
            let config = self.client.client_config(&expected).unwrap();
            let tls =
                TlsConnector::from(config).connect(key.server_name(), tcp).await.map_err(|e| failed(e.to_string()))?;
            let state = tls.get_ref().1;
            let peer = peer_certificate(state, std::time::SystemTime::now()).unwrap();
            if state.handshake_kind() == Some(HandshakeKind::Resumed) {
                self.resumed.set(self.resumed.get() + 1);
            }
            let window = Share::new(&Limits::default(), Arc::default()).window();
            Ok(Transport { io: tls, local: None, identity: peer.identity, window: Some(window) })
        };
        let opened = self.tunnels.open(&key, &self.client, &head, Duration::from_secs(5), dial).await?;
        assert_eq!(opened.identity.to_string(), B);
        Ok(opened.stream)
    }
}

#[tokio::test]
async fn ends_travel_through_the_pair_as_they_are() {
    run(async {
        let pair = Pair::new().await;
        let app = pair.app().await;
        let mut client = pair.connect(APP, B).await.unwrap();
        let (mut server, _) = app.accept().await.unwrap();
        client.write_all(b"\0question").await.unwrap();
        AsyncWriteExt::shutdown(&mut client).await.unwrap();
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"\0question");
        server.write_all(b"answer").await.unwrap();
        drop(server);
        got.clear();
        client.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"answer");
        // Resets, from either side.
        let mut client = pair.connect(APP, B).await.unwrap();
        let (server, _) = app.accept().await.unwrap();
        client.write_all(b"\0").await.unwrap();
        server.readable().await.unwrap();
        server.set_zero_linger().unwrap();
        drop(server);
        assert_eq!(client.read(&mut [0]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        let mut client = pair.connect(APP, B).await.unwrap();
        let (mut server, _) = app.accept().await.unwrap();
        client.write_all(b"\0").await.unwrap();
        server.read_exact(&mut [0]).await.unwrap();
        client.reset();
        drop(client);
        assert_eq!(server.read(&mut [0]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(pair.tls_dials.get(), 1);
        pair.server
            .reported(
                "istio_tcp_received_bytes_total{",
                &[
                    "reporter=\"destination\"",
                    "source_workload=\"a-v1\"",
                    "source_workload_namespace=\"default\"",
                    &format!("source_principal=\"{A}\""),
                    "connection_security_policy=\"mutual_tls\"",
                ],
            )
            .await;
    })
    .await;
}

#[tokio::test]
async fn what_the_server_refuses_is_said_with_its_status() {
    run(async {
        let pair = Pair::new().await;
        let status = |outcome: Result<TunnelStream, UpstreamError>| match outcome {
            Err(UpstreamError::Refused { status, .. }) => status,
            other => panic!("{other:?}"),
        };
        assert_eq!(status(pair.connect("10.9.9.9:80", B).await), 404, "not the server's address");
        let app = pair.app().await;
        drop(app);
        assert_eq!(status(pair.connect(APP, B).await), 503, "the application does not listen");
        assert_eq!(pair.tls_dials.get(), 1, "a refusal does not cost the tunnel");
    })
    .await;
}

#[tokio::test]
async fn a_server_with_another_identity_gets_nothing() {
    run(async {
        let pair = Pair::new().await;
        let app = pair.app().await;
        let error = pair.connect(APP, "spiffe://cluster.local/ns/default/sa/other").await.unwrap_err();
        assert!(matches!(&error, UpstreamError::Tls { why, .. } if why.contains("expected")), "{error}");
        assert!(futures_util::FutureExt::now_or_never(app.accept()).is_none());
    })
    .await;
}

#[tokio::test]
async fn where_mutual_tls_is_asked_for_a_tunnel_is_enough_if_the_identity_fits() {
    run(async {
        let pair = Pair::with(Config::new().strict("spiffe://cluster.local/")).await;
        let app = pair.app().await;
        // HTTP takes the chain for it, anything else the other one.
        let mut client = pair.connect(APP, B).await.unwrap();
        let (mut server, _) = app.accept().await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n").await.unwrap();
        assert!(answer_on(&mut server).await.contains("x-forwarded-client-cert"));
        let mut client = pair.connect(APP, B).await.unwrap();
        let (mut server, _) = app.accept().await.unwrap();
        client.write_all(b"\0bytes").await.unwrap();
        assert_eq!(read_text(&mut server, 6).await, "\0bytes");
        drop((client, server));
        for metric in ["istio_requests_total{", "istio_tcp_connections_opened_total{"] {
            pair.server.reported(metric, &["connection_security_policy=\"mutual_tls\"", "} 1"]).await;
        }

        let pair = Pair::with(Config::new().strict("spiffe://other.org/")).await;
        let _app = pair.app().await;
        let mut client = pair.connect(APP, B).await.unwrap();
        client.write_all(b"\0bytes").await.unwrap();
        assert!(client.read(&mut [0]).await.is_err(), "another trust domain's");
    })
    .await;
}

#[tokio::test]
async fn a_slow_application_holds_its_client_back_and_nobody_else() {
    run(async {
        let pair = Pair::new().await;
        let app = pair.app().await;
        let mut slow = pair.connect(APP, B).await.unwrap();
        let (mut slow_server, _) = app.accept().await.unwrap();
        const TOTAL: usize = 48 << 20;
        let sent = Rc::new(Cell::new(0));
        let count = sent.clone();
        let writer = tokio::task::spawn_local(async move {
            let piece: Vec<u8> = (0..=255).cycle().take(64 << 10).collect();
            while count.get() < TOTAL {
                slow.write_all(&piece).await.unwrap();
                count.set(count.get() + piece.len());
            }
            AsyncWriteExt::shutdown(&mut slow).await.unwrap();
            slow.read_to_end(&mut Vec::new()).await.unwrap();
        });
        let mut before = usize::MAX;
        while before != sent.get() {
            before = sent.get();
            for _ in 0..2000 {
                tokio::task::yield_now().await;
            }
        }
        // The window, what one stream may queue, and what the kernel's buffers between relay and application hold.
        let most = Limits::default().stream_window_bytes as usize + (16 << 20);
        assert!(sent.get() < most, "{} bytes on their way", sent.get());
        let mut quick = pair.connect(APP, B).await.unwrap();
        let (mut quick_server, _) = app.accept().await.unwrap();
        quick.write_all(b"\0not blocked").await.unwrap();
        let mut got = [0; 12];
        quick_server.read_exact(&mut got).await.unwrap();
        let mut all = Vec::new();
        slow_server.read_to_end(&mut all).await.unwrap();
        assert_eq!(all.len(), TOTAL);
        assert!(all.iter().enumerate().all(|(i, byte)| *byte == i as u8));
        drop(slow_server);
        writer.await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn hundreds_of_connections_at_once_share_a_few_tunnels() {
    run(async {
        const CONNECTIONS: usize = 600;
        let pair = Rc::new(Pair::new().await);
        let app = pair.app().await;
        tokio::task::spawn_local(async move {
            loop {
                let (mut server, _) = app.accept().await.unwrap();
                tokio::task::spawn_local(async move {
                    let (mut read, mut write) = server.split();
                    tokio::io::copy(&mut read, &mut write).await.unwrap();
                });
            }
        });
        let clients: Vec<_> = (0..CONNECTIONS)
            .map(|i| {
                let pair = pair.clone();
                tokio::task::spawn_local(async move {
                    let mut client = pair.connect(APP, B).await.unwrap();
                    let words = format!("\0client {i}");
                    client.write_all(words.as_bytes()).await.unwrap();
                    AsyncWriteExt::shutdown(&mut client).await.unwrap();
                    let mut got = String::new();
                    client.read_to_string(&mut got).await.unwrap();
                    assert_eq!(got, words);
                })
            })
            .collect();
        for client in clients {
            client.await.unwrap();
        }
        assert!(pair.tls_dials.get() <= 4, "{} tunnels", pair.tls_dials.get());
    })
    .await;
}

/// A pod has one tunnel, whatever its ports; a host has one for each, since they may be different workloads'.
#[tokio::test]
async fn two_ports_of_a_pod_share_a_handshake_and_two_of_a_host_do_not() {
    run(async {
        for (host, handshakes) in [(false, 1), (true, 2)] {
            let pair = Pair::new().await;
            let apps = [pair.app().await, pair.server.server(OTHER_PORT).await];
            let mut open = Vec::new();
            for (to, app) in [(APP, &apps[0]), (OTHER_PORT, &apps[1]), (APP, &apps[0]), (OTHER_PORT, &apps[1])] {
                open.push((pair.connect_as(to, B, host).await.unwrap(), app.accept().await.unwrap()));
            }
            assert_eq!((pair.tls_dials.get(), pair.tunnels.len()), (handshakes, handshakes), "host: {host}");
        }
    })
    .await;
}

/// Sessions are remembered by the address of a pod, so that the next tunnel to it needs no signature, whichever port it is
/// opened for.
#[tokio::test]
async fn the_next_tunnel_to_a_pod_goes_on_with_its_session() {
    run(async {
        let pair = Pair::new().await;
        let apps = [pair.app().await, pair.server.server(OTHER_PORT).await];
        let mut first = pair.connect(APP, B).await.unwrap();
        let (mut server, _) = apps[0].accept().await.unwrap();
        // What the server says comes behind its tickets.
        server.write_all(b"x").await.unwrap();
        first.read_exact(&mut [0]).await.unwrap();
        pair.tunnels.forget(1);
        let _second = pair.connect(OTHER_PORT, B).await.unwrap();
        assert_eq!((pair.tls_dials.get(), pair.resumed.get()), (2, 1));
    })
    .await;
}
