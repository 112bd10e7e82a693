//! TLS at ports of applications, in and out: as Istio's sidecars speak it, and servers outside of the mesh.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::{
    CombinedCertificateValidationContext, ValidationContextType,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, SubjectAltNameMatcher,
};
use envoy_types::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use mesh_proto::security::Action;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::config::{Config, SERVICE};
use super::messages::tcp_listener;
use super::policies::{CLIENT, mesh, policy, principal};
use super::world::*;
use crate::net::copy::Duplex;
use crate::telemetry::Peer;
use crate::tls::Credential;
use crate::tls::tests::Authority;
use crate::upstream::peer_exchange::{exchange, frame};

/// A client of the mesh.
const A: &str = "spiffe://cluster.local/ns/default/sa/a";
/// The pod under test.
const POD: &str = "spiffe://cluster.local/ns/default/sa/client";
const OURS: &str = "spiffe://cluster.local/";
const REFUSED: &str = "mesh_agent_tls_refused_total{";

fn ends(
    of: &Credential,
) -> (Vec<rustls::pki_types::CertificateDer<'static>>, rustls::pki_types::PrivateKeyDer<'static>) {
    (of.chain.clone(), of.key.clone_key())
}

/// What a sidecar speaks: both versions of TLS, and these protocols.
fn sidecar_client(own: Option<&Credential>, roots: Arc<rustls::RootCertStore>, alpn: &[&str]) -> TlsConnector {
    let verifier =
        rustls::client::WebPkiServerVerifier::builder_with_provider(roots, crate::tls::provider()).build().unwrap();
    let builder = ClientConfig::builder_with_provider(crate::tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap();
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyName(verifier)));
    let mut config = match own.map(ends) {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|one| one.as_bytes().to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

fn sidecar_server(own: &Credential, alpn: &[&str]) -> TlsAcceptor {
    let clients =
        rustls::server::WebPkiClientVerifier::builder_with_provider(own.roots.clone(), crate::tls::provider());
    let (chain, key) = ends(own);
    let builder = ServerConfig::builder_with_provider(crate::tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap();
    let mut config = builder.with_client_cert_verifier(clients.build().unwrap()).with_single_cert(chain, key).unwrap();
    config.alpn_protocols = alpn.iter().map(|one| one.as_bytes().to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

/// Sidecars do not look at the DNS name.
#[derive(Debug)]
struct AnyName(Arc<rustls::client::WebPkiServerVerifier>);

impl rustls::client::danger::ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &rustls::pki_types::CertificateDer<'_>,
        intermediates: &[rustls::pki_types::CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        use rustls::CertificateError::{NotValidForName, NotValidForNameContext};
        match self.0.verify_server_cert(end_entity, intermediates, name, ocsp, now) {
            Err(rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. })) => {
                Ok(rustls::client::danger::ServerCertVerified::assertion())
            }
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &rustls::pki_types::CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &rustls::pki_types::CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

const HTTP1: &[&str] = &["istio-http/1.1", "istio", "http/1.1"];
const TCP: &[&str] = &["istio-peer-exchange", "istio"];

/// Connects to the pod as a sidecar does.
async fn meet(connector: &TlsConnector, tcp: TcpStream) -> std::io::Result<client::TlsStream<TcpStream>> {
    connector.connect(ServerName::try_from("outbound_.80_._.client.default.svc.cluster.local").unwrap(), tcp).await
}

fn reviews() -> Peer {
    Peer { workload: "reviews-v1".into(), namespace: "elsewhere".into(), app: "reviews".into(), ..Peer::default() }
}

#[tokio::test]
async fn a_sidecar_s_request_comes_with_its_identity() {
    run(async {
        let ca = Authority::new("root");
        for config in [Config::new().strict(OURS), Config::new().permissive(OURS)] {
            let world = World::with_credential(ca.credential(POD));
            world.configure(config.build());
            let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let tcp = world.inbound_client(Some(&app)).await;
            let mut tls = meet(&sidecar_client(Some(&ca.credential(A)), ca.roots(), HTTP1), tcp).await.unwrap();
            assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
            // Twice on one connection.
            let mut upstream = None;
            for _ in 0..2 {
                tls.write_all(b"GET /x HTTP/1.1\r\nHost: client\r\nX-Forwarded-Client-Cert: By=me\r\n\r\n")
                    .await
                    .unwrap();
                let head = match &mut upstream {
                    None => {
                        let (stream, head) = answer_once(&app).await;
                        upstream = Some(stream);
                        head
                    }
                    Some(stream) => answer_on(stream).await,
                };
                let said = format!("x-forwarded-client-cert: By=me,By={POD};URI={A}\r\n").to_lowercase();
                assert!(head.to_lowercase().contains(&said), "{head}");
                let mut answer = vec![0; 1024];
                let n = tls.read(&mut answer).await.unwrap();
                assert!(answer[..n].starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", String::from_utf8_lossy(&answer[..n]));
            }
            let principal = format!("source_principal=\"{A}\"");
            let labels = [
                &principal,
                "connection_security_policy=\"mutual_tls\"",
                "source_workload_namespace=\"default\"",
                "} 2",
            ];
            world.reported("istio_requests_total{", &labels).await;
            world.reported("mesh_agent_bytes_total{", &["path=\"tls\"", "direction=\"sent\""]).await;
        }
    })
    .await;
}

/// A root that an operator trusts for TLS may sign whatever name it likes; it is none of the mesh's.
#[tokio::test]
async fn only_the_mesh_s_own_roots_vouch_for_identities() {
    run(async {
        let (ca, other) = (Authority::new("root"), Authority::new("other"));
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("roots.pem"), other.pem()).unwrap();
        let world = World::with_files(ca.credential(POD), dir.path());
        world.configure(Config::new().strict_by("file-root:roots.pem", OURS).build());
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = world.inbound_client(Some(&app)).await;
        let mut tls = meet(&sidecar_client(Some(&other.credential(A)), ca.roots(), HTTP1), tcp).await.unwrap();
        tls.write_all(b"GET /x HTTP/1.1\r\nHost: client\r\n\r\n").await.unwrap();
        let (mut upstream, head) = answer_once(&app).await;
        assert!(!head.contains("spiffe://"), "{head}");
        world.reported("istio_requests_total{", &["source_principal=\"unknown\"", "} 1"]).await;
        // It stays as long as the settings by which it was let in, and no longer.
        world.reconfigure(Config::new().strict_by("file-root:roots.pem", OURS).build());
        assert!(read_head(&mut tls).await.starts_with("HTTP/1.1 200 "));
        tls.read_exact(&mut [0; 5]).await.unwrap();
        tls.write_all(b"GET /x HTTP/1.1\r\nHost: client\r\n\r\n").await.unwrap();
        answer_on(&mut upstream).await;
        assert!(read_head(&mut tls).await.starts_with("HTTP/1.1 200 "));
        tls.read_exact(&mut [0; 5]).await.unwrap();
        world.reconfigure(Config::new().strict_by("file-root:roots.pem", "spiffe://elsewhere/").build());
        assert!(is_over(&mut tls).await);
        world.reported(REFUSED, &["reason=\"changed\"", "} 1"]).await;
    })
    .await;
}

#[tokio::test]
async fn bytes_come_with_the_names_of_both_ends() {
    run(async {
        let ca = Authority::new("root");
        let world = World::with_credential(ca.credential(POD));
        world.configure(Config::new().permissive(OURS).build());
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = world.inbound_client(Some(&app)).await;
        let mut tls = meet(&sidecar_client(Some(&ca.credential(A)), ca.roots(), TCP), tcp).await.unwrap();
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"istio-peer-exchange"[..]));
        let told = exchange(&mut tls, &frame(&reviews(), "reviews-v1-x", "10.0.0.9")).await.unwrap();
        assert_eq!((&*told.workload, &*told.namespace), ("client-v1", "default"));
        tls.write_all(b"\0question").await.unwrap();
        let (mut upstream, _) = app.accept().await.unwrap();
        assert_eq!(read_text(&mut upstream, 9).await, "\0question");
        // Half of it may end.
        tls.shutdown().await.unwrap();
        assert_eq!(upstream.read(&mut [0]).await.unwrap(), 0);
        upstream.write_all(b"answer").await.unwrap();
        drop(upstream);
        let mut rest = Vec::new();
        tls.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"answer");
        let principal = format!("source_principal=\"{A}\"");
        // What a client says of itself is believed but for what its certificate says.
        let labels = [
            "source_workload=\"reviews-v1\"",
            "source_app=\"reviews\"",
            "source_workload_namespace=\"default\"",
            &principal,
            "} 1",
        ];
        world.reported("istio_tcp_connections_closed_total{", &labels).await;
    })
    .await;
}

#[tokio::test]
async fn who_is_refused_is_told_and_never_seen_by_the_application() {
    run(async {
        let (ca, other) = (Authority::new("root"), Authority::new("other"));
        let foreign = "spiffe://elsewhere/ns/default/sa/a";
        let world = World::with_credential(ca.credential(POD));
        world.configure(Config::new().strict(OURS).build());
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for own in [None, Some(other.credential(A)), Some(ca.credential(foreign))] {
            let tcp = world.inbound_client(Some(&app)).await;
            let connected = meet(&sidecar_client(own.as_deref(), ca.roots(), HTTP1), tcp).await;
            // In TLS 1.3 a client hears of it when it reads.
            if let Ok(mut tls) = connected {
                tls.read(&mut [0]).await.unwrap_err();
            }
        }
        world.reported(REFUSED, &["reason=\"handshake\"", "} 3"]).await;
        // Another one's server.
        let tcp = world.inbound_client(Some(&app)).await;
        assert!(meet(&sidecar_client(Some(&ca.credential(A)), other.roots(), HTTP1), tcp).await.is_err());
        world.reported(REFUSED, &["reason=\"handshake\"", "} 4"]).await;
        // One that does not say who it is as it has settled to.
        let tcp = world.inbound_client(Some(&app)).await;
        let mut tls = meet(&sidecar_client(Some(&ca.credential(A)), ca.roots(), TCP), tcp).await.unwrap();
        tls.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        world.reported(REFUSED, &["reason=\"peer_exchange\"", "} 1"]).await;
        let mut plain = world.inbound_client(Some(&app)).await;
        plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        assert!(is_reset(&mut plain).await);
        world.reported("mesh_agent_plaintext_refused_total{", &["reason=\"strict\"", "} 1"]).await;
        assert_eq!(world.dials(), 0);
        world.reported("istio_tcp_connections_closed_total{", &["response_flags=\"DPE\"", "} 5"]).await;
    })
    .await;
}

#[tokio::test]
async fn where_anybody_may_come_in_each_has_its_own_chain() {
    run(async {
        let ca = Authority::new("root");
        let world = World::with_credential(ca.credential(POD));
        world.configure(Config::new().permissive(OURS).build());
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        // In the open.
        let mut plain = world.inbound_client(Some(&app)).await;
        let asked = exchange_once(&mut plain, &app).await;
        assert!(!asked.to_lowercase().contains("x-forwarded-client-cert"), "{asked}");
        // The application's own TLS goes through as it is.
        let tcp = world.inbound_client(Some(&app)).await;
        let own = sidecar_server(&ca.credential("spiffe://cluster.local/ns/default/sa/app"), &["http/1.1"]);
        let connector = sidecar_client(Some(&ca.credential(A)), ca.roots(), &["http/1.1"]);
        let (client, served) =
            tokio::join!(meet(&connector, tcp), async { own.accept(app.accept().await.unwrap().0).await });
        let (mut client, mut served) = (client.unwrap(), served.unwrap());
        served.write_all(b"own").await.unwrap();
        let mut got = [0; 3];
        client.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"own");
        assert_eq!(world.metric(REFUSED).iter().filter(|line| !line.ends_with(" 0")).count(), 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_application_may_speak_first_to_either_kind_of_client() {
    run_paused(async {
        let ca = Authority::new("root");
        let world = World::with_credential(ca.credential(POD));
        world.configure(Config::new().permissive(OURS).build());
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut plain = world.inbound_client(Some(&app)).await;
        let (mut upstream, _) = app.accept().await.unwrap();
        upstream.write_all(b"SSH-2.0-x").await.unwrap();
        assert_eq!(read_text(&mut plain, 9).await, "SSH-2.0-x");
        let tcp = world.inbound_client(Some(&app)).await;
        let (mut upstream, _) = app.accept().await.unwrap();
        upstream.write_all(b"SSH-2.0-x").await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
        let mut tls = meet(&sidecar_client(Some(&ca.credential(A)), ca.roots(), &["istio"]), tcp).await.unwrap();
        let mut got = [0; 9];
        tls.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"SSH-2.0-x");
    })
    .await;
}

async fn exchange_once(client: &mut TcpStream, app: &TcpListener) -> String {
    client.write_all(b"GET /x HTTP/1.1\r\nHost: client\r\n\r\n").await.unwrap();
    answer_once(app).await.1
}

#[tokio::test]
async fn policies_judge_by_what_the_certificate_proves() {
    run(async {
        let ca = Authority::new("root");
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for config in [|| Config::new().strict(OURS), || Config::new().permissive(OURS)] {
            let world = World::judged(Some(ca.credential(POD)));
            world.configure(config().build());
            world.tell_mesh(mesh(&[policy("p", Action::Allow, Some(principal(CLIENT)))], &[]));
            let c = "spiffe://cluster.local/ns/default/sa/c";
            for (identity, served) in [(A, true), (c, false)] {
                let tcp = world.inbound_client(Some(&app)).await;
                let mut tls =
                    meet(&sidecar_client(Some(&ca.credential(identity)), ca.roots(), &["istio"]), tcp).await.unwrap();
                if served {
                    let (mut upstream, _) = app.accept().await.unwrap();
                    upstream.write_all(b"!").await.unwrap();
                    tls.read_exact(&mut [0]).await.unwrap();
                    // It ends when the policy goes that allowed it.
                    world.tell_mesh(mesh(&[policy("p", Action::Allow, None)], &[]));
                    assert!(is_over(&mut tls).await);
                    world.tell_mesh(mesh(&[policy("p", Action::Allow, Some(principal(CLIENT)))], &[]));
                } else {
                    assert!(is_over(&mut tls).await);
                    world.reported("mesh_agent_policy_refused_total{", &["reason=\"denied\"", "} 1"]).await;
                }
            }
        }
    })
    .await;
}

/// Who wants TLS of servers, and how.
fn client_of(ca: &Authority, original: &str, config: Config) -> World {
    let world = World::client_with(ca.credential(POD), original);
    world.configure(config.build());
    world
}

async fn accept(listener: &TcpListener, acceptor: &TlsAcceptor) -> std::io::Result<server::TlsStream<TcpStream>> {
    acceptor.accept(listener.accept().await.unwrap().0).await
}

#[tokio::test]
async fn requests_go_to_a_sidecar_as_its_clients_send_them() {
    run(async {
        let ca = Authority::new("root");
        let world = client_of(&ca, "10.0.0.1:80", Config::new().by_tls(|_| {}));
        let server = world.server("10.0.0.1:80").await;
        let acceptor = sidecar_server(&ca.credential(A), &["h2", "http/1.1"]);
        let mut client = world.client().await;
        client.write_all(b"GET /x HTTP/1.1\r\nHost: web\r\n\r\n").await.unwrap();
        let mut tls = accept(&server, &acceptor).await.unwrap();
        let state = tls.get_ref().1;
        assert_eq!(state.server_name(), Some("outbound_.80_._.web.default.svc.cluster.local"));
        assert_eq!(state.alpn_protocol(), Some(&b"http/1.1"[..]));
        assert_eq!(state.peer_certificates().unwrap()[0], ca_leaf(&world));
        let mut head = vec![0; 2048];
        let n = tls.read(&mut head).await.unwrap();
        assert!(head[..n].starts_with(b"GET /x HTTP/1.1\r\n"));
        // More than a socket takes at once.
        let body = vec![b'x'; 4 << 20];
        let answer = [format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(), &body].concat();
        let (sent, got) = tokio::join!(tls.write_all(&answer), async {
            let head = read_head(&mut client).await;
            (head, read_text(&mut client, body.len()).await)
        });
        sent.unwrap();
        assert!(got.0.starts_with("HTTP/1.1 200 OK") && got.1.as_bytes() == body);
        let labels = [&format!("destination_principal=\"{A}\"")[..], "response_code=\"200\"", "} 1"];
        drop((client, tls));
        world.reported("istio_requests_total{", &labels).await;
    })
    .await;
}

/// More than the socket and the TLS session take at once: the last of it must leave without anybody writing more.
#[tokio::test]
async fn the_whole_of_a_long_request_reaches_a_sidecar_that_reads_slowly() {
    run(async {
        let ca = Authority::new("root");
        let world = client_of(&ca, "10.0.0.1:80", Config::new().by_tls(|_| {}));
        // Sockets that take little, and lengths in steps that are shorter than what the session of TLS keeps: the end of some of
        // these requests is in the session alone while nobody reads.
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(64 << 10).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let server = socket.listen(1).unwrap();
        world.route("10.0.0.1:80".parse().unwrap(), server.local_addr().unwrap());
        let acceptor = sidecar_server(&ca.credential(A), &["http/1.1"]);
        let mut client = world.client().await;
        let mut tls = None;
        for length in (0..96).map(|step| step * (48 << 10)) {
            let request = format!("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: {length}\r\n\r\n");
            client.write_all(&[request.as_bytes(), &vec![b'x'; length]].concat()).await.unwrap();
            let tls = match &mut tls {
                None => tls.insert(accept(&server, &acceptor).await.unwrap()),
                Some(tls) => tls,
            };
            // All that can be on its way is.
            tokio::time::sleep(Duration::from_millis(4)).await;
            let head = read_head(tls).await;
            assert!(head.starts_with("POST / HTTP/1.1\r\n"), "{head}");
            let mut body = vec![0; length];
            tls.read_exact(&mut body).await.unwrap();
            assert!(body.iter().all(|byte| *byte == b'x'));
            tls.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            let answer = read_head(&mut client).await;
            assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
        }
    })
    .await;
}

/// Nor does a kept connection to a server whose expected names are others now.
#[tokio::test]
async fn a_kept_connection_in_the_open_is_not_used_once_tls_is_wanted() {
    run(async {
        let ca = Authority::new("root");
        let world = client_of(&ca, "10.0.0.1:80", Config::new());
        let server = world.server("10.0.0.1:80").await;
        let mut client = world.client().await;
        let ask = b"GET /x HTTP/1.1\r\nHost: web\r\n\r\n";
        client.write_all(ask).await.unwrap();
        let (mut kept, _) = answer_once(&server).await;
        read_head(&mut client).await;
        client.write_all(ask).await.unwrap();
        answer_on(&mut kept).await;
        read_head(&mut client).await;
        assert_eq!(world.dials(), 1);
        world.configure(Config::new().by_tls(|_| {}).build());
        client.write_all(ask).await.unwrap();
        let mut tls = accept(&server, &sidecar_server(&ca.credential(A), &["http/1.1"])).await.unwrap();
        let mut head = vec![0; 2048];
        let n = tls.read(&mut head).await.unwrap();
        assert!(head[..n].starts_with(b"GET /x HTTP/1.1\r\n"));
        assert_eq!(kept.read(&mut head).await.unwrap_or(0), 0, "it is closed");
    })
    .await;
}

#[tokio::test]
async fn an_open_connection_ends_once_its_client_would_not_be_let_in() {
    run(async {
        let ca = Authority::new("root");
        let world = World::with_credential(ca.credential(POD));
        for (first, then, stays) in [
            (Config::new().strict(OURS), Config::new().strict("spiffe://cluster.local/ns/other/"), false),
            (Config::new().permissive(OURS), Config::new().strict("spiffe://cluster.local/ns/other/"), false),
            (Config::new().permissive(OURS), Config::new().strict(OURS), true),
            (Config::new().strict(OURS), Config::new().permissive(OURS), true),
        ] {
            world.reconfigure(first.build());
            let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let tcp = world.inbound_client(Some(&app)).await;
            let mut tls = meet(&sidecar_client(Some(&ca.credential(A)), ca.roots(), &["istio"]), tcp).await.unwrap();
            let (mut upstream, _) = app.accept().await.unwrap();
            upstream.write_all(b"!").await.unwrap();
            tls.read_exact(&mut [0]).await.unwrap();
            world.reconfigure(then.build());
            if stays {
                upstream.write_all(b"?").await.unwrap();
                tls.read_exact(&mut [0]).await.unwrap();
            } else {
                assert!(is_over(&mut tls).await);
            }
        }
        world.reported(REFUSED, &["reason=\"changed\"", "} 2"]).await;
    })
    .await;
}

fn ca_leaf(world: &World) -> rustls::pki_types::CertificateDer<'static> {
    world.pod().credential.borrow().as_ref().unwrap().chain[0].clone()
}

#[tokio::test]
async fn bytes_go_to_a_sidecar_which_says_who_it_is() {
    run(async {
        let ca = Authority::new("root");
        let tcp = || Config::new().by_tls(|_| {}).listener(tcp_listener("0.0.0.0_3306", "0.0.0.0", 3306, SERVICE));
        let world = client_of(&ca, "10.96.0.1:3306", tcp());
        let server = world.server("10.0.0.1:80").await;
        let acceptor = sidecar_server(&ca.credential(A), &["istio-peer-exchange", "h2"]);
        let mut client = world.client().await;
        let mut tls = accept(&server, &acceptor).await.unwrap();
        let told = exchange(&mut tls, &frame(&reviews(), "reviews-v1-x", "10.0.0.1")).await.unwrap();
        assert_eq!(&*told.workload, "client-v1");
        // The server speaks first, then the client, then the server breaks off.
        tls.write_all(b"greeting").await.unwrap();
        assert_eq!(read_text(&mut client, 8).await, "greeting");
        client.write_all(b"answer").await.unwrap();
        let mut got = [0; 6];
        tls.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"answer");
        let (mut tcp_end, _) = tls.into_inner();
        tcp_end.reset();
        drop(tcp_end);
        assert!(is_reset(&mut client).await);
        let labels = ["destination_workload=\"reviews-v1\"", &format!("destination_principal=\"{A}\""), "} 1"];
        world.reported("istio_tcp_connections_opened_total{", &labels).await;
        // One that does not know us: no word of its own is malformed.
        let theirs = ca.with(A, &[A], &[], Duration::from_secs(3600), Authority::new("other").roots());
        let stranger = sidecar_server(&theirs, &["istio-peer-exchange"]);
        let mut client = world.client().await;
        assert!(accept(&server, &stranger).await.is_err());
        assert!(is_reset(&mut client).await);
        // Something else than a frame.
        let mut client = world.client().await;
        let mut tls = accept(&server, &acceptor).await.unwrap();
        tls.write_all(b"greeting").await.unwrap();
        assert!(is_reset(&mut client).await);
        let page = world.metric("mesh_agent_peer_exchange_malformed_total");
        assert_eq!(page, ["mesh_agent_peer_exchange_malformed_total 1"]);
        world.reported("istio_tcp_connections_closed_total{", &["response_flags=\"UF\"", "} 2"]).await;
        // The end of a connection that nobody has announced is no end of the bytes.
        let mut client = world.client().await;
        let mut tls = accept(&server, &acceptor).await.unwrap();
        exchange(&mut tls, &frame(&reviews(), "reviews-v1-x", "10.0.0.1")).await.unwrap();
        drop(tls);
        assert!(is_reset(&mut client).await);
    })
    .await;
}

fn wants(
    names: &[&str],
) -> impl FnOnce(&mut envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext) {
    let exact =
        |name: &&str| StringMatcher { match_pattern: Some(MatchPattern::Exact((*name).into())), ignore_case: false };
    let typed = |name: &&str| SubjectAltNameMatcher {
        san_type: SanType::Uri.into(),
        matcher: Some(exact(name)),
        ..Default::default()
    };
    let names: Vec<_> = names.iter().map(typed).collect();
    move |context| {
        let common = context.common_tls_context.as_mut().unwrap();
        common.validation_context_type =
            Some(ValidationContextType::CombinedValidationContext(CombinedCertificateValidationContext {
                default_validation_context: Some(CertificateValidationContext {
                    match_typed_subject_alt_names: names,
                    ..Default::default()
                }),
                validation_context_sds_secret_config: Some(
                    envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::SdsSecretConfig {
                        name: "ROOTCA".into(),
                        ..Default::default()
                    },
                ),
                ..Default::default()
            }));
    }
}

#[tokio::test]
async fn nothing_is_asked_of_a_server_that_is_not_the_right_one() {
    run(async {
        let (ca, other) = (Authority::new("root"), Authority::new("other"));
        let world =
            client_of(&ca, "10.0.0.1:80", Config::new().by_tls(wants(&[A, "spiffe://cluster.local/ns/x/sa/y"])));
        let server = world.server("10.0.0.1:80").await;
        let stranger = other.with(A, &[A], &[], Duration::from_secs(3600), ca.roots());
        for (identity, answered) in [
            (ca.credential(A), true),
            (ca.credential("spiffe://cluster.local/ns/default/sa/c"), false),
            (stranger, false),
        ] {
            let mut client = world.client().await;
            let acceptor = sidecar_server(&identity, &["http/1.1"]);
            let asked = exchange(&mut client, "GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n");
            let serve = async {
                let mut tls = accept(&server, &acceptor).await?;
                let n = tls.read(&mut [0; 1024]).await?;
                tls.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await?;
                tls.shutdown().await?;
                Ok::<_, std::io::Error>(n)
            };
            let ((head, body), served) = tokio::join!(asked, serve);
            if answered {
                assert!(head.starts_with("http/1.1 200") && body == "ok" && served.unwrap() > 0, "{head}");
            } else {
                assert!(head.starts_with("http/1.1 503") && served.is_err(), "{head}");
                assert!(body.contains("TLS") || body.contains("upstream"), "{body}");
            }
        }
        // A server in the open gets no word of the request.
        let mut client = world.client().await;
        let plain = async {
            let (mut stream, _) = server.accept().await.unwrap();
            let mut hello = [0; 1];
            stream.read_exact(&mut hello).await.unwrap();
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
            hello[0]
        };
        let ((head, _), first) = tokio::join!(exchange(&mut client, "GET / HTTP/1.1\r\nHost: web\r\n\r\n"), plain);
        assert!(head.starts_with("http/1.1 503") && first == 22, "{head}");
        world.reported("istio_requests_total{", &["response_code=\"503\"", "response_flags=\"UF\"", "} 3"]).await;

        async fn exchange(stream: &mut TcpStream, request: &str) -> (String, String) {
            super::world::exchange(stream, request).await
        }
    })
    .await;
}

#[tokio::test]
async fn a_server_outside_is_asked_under_the_name_that_the_request_says() {
    run(async {
        let ca = Authority::new("public");
        let world = client_of(&ca, "10.0.0.1:80", {
            Config::new()
                .by_tls(|context| {
                    context.sni.clear();
                    let common = context.common_tls_context.as_mut().unwrap();
                    common.alpn_protocols.clear();
                    common.tls_certificate_sds_secret_configs.clear();
                })
                .named_by_requests()
        });
        let server = world.server("10.0.0.1:80").await;
        let names = ["a.example.com", "b.example.com"];
        let shown = ca.with(A, &[], &names, Duration::from_secs(3600), ca.roots());
        let (chain, key) = ends(&shown);
        let config = ServerConfig::builder_with_provider(crate::tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let mut client = world.client().await;
        let mut open = Vec::new();
        // Each name has a connection of its own, which serves that name again.
        for (host, new) in [("a.example.com:80", true), ("b.example.com", true), ("a.example.com:80", false)] {
            client.write_all(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await.unwrap();
            if new {
                open.push(accept(&server, &acceptor).await.unwrap());
            }
            let name = host.split(':').next().unwrap();
            let tls = open.iter_mut().find(|tls| tls.get_ref().1.server_name() == Some(name)).expect(host);
            let n = tls.read(&mut [0; 1024]).await.unwrap();
            assert!(n > 0);
            tls.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            let head = read_head(&mut client).await;
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
            assert_eq!(read_text(&mut client, 2).await, "ok");
        }
        // A name that the certificate does not have.
        client.write_all(b"GET / HTTP/1.1\r\nHost: c.example.com\r\n\r\n").await.unwrap();
        assert!(accept(&server, &acceptor).await.is_err());
        assert!(read_head(&mut client).await.starts_with("HTTP/1.1 503"));
    })
    .await;
}
