//! The tunnel server over in-memory pipes: who gets in, and what may be asked for.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::tls::tests::Authority;

const A: &str = "spiffe://cluster.local/ns/default/sa/a";
const B: &str = "spiffe://cluster.local/ns/default/sa/b";

fn expect_b() -> Arc<[mesh_core::SpiffeId]> {
    Arc::new([B.parse().unwrap()])
}

fn connect(authority: &str) -> http::request::Parts {
    Request::builder().method(Method::CONNECT).uri(authority).body(()).unwrap().into_parts().0
}

fn own(to: SocketAddr) -> bool {
    to.ip() == SocketAddr::from(([10, 0, 0, 2], 0)).ip() && to.port() != 15008
}

const REMOTE: &str = "10.0.1.7:40000";

#[test]
fn only_connect_to_an_own_address_is_served() {
    let remote = REMOTE.parse().unwrap();
    let wanted = judge(&connect("10.0.0.2:80"), remote, own).unwrap();
    assert_eq!(wanted, Wanted { destination: "10.0.0.2:80".parse().unwrap(), client: remote });
    for (authority, status) in [
        ("10.0.0.3:80", 404),
        ("127.0.0.1:80", 404),
        ("[::1]:80", 404),
        ("10.0.0.2:15008", 404),
        ("10.0.0.2:0", 400),
        ("reviews.default:80", 400),
        ("user@10.0.0.2:80", 400),
    ] {
        assert_eq!(judge(&connect(authority), remote, own).unwrap_err().as_u16(), status, "{authority}");
    }
    let get = Request::builder().uri("http://10.0.0.2:80/").body(()).unwrap().into_parts().0;
    assert_eq!(judge(&get, remote, own).unwrap_err().as_u16(), 405);
}

#[test]
fn the_client_s_port_is_believed_and_its_address_only_if_it_is_the_tunnel_s() {
    let remote = REMOTE.parse().unwrap();
    let client_of = |header: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(FORWARDED, header.parse().unwrap());
        client(&headers, remote).to_string()
    };
    assert_eq!(client_of("for=\"10.0.1.7:5555\""), "10.0.1.7:5555");
    assert_eq!(client_of("by=x; For=\"10.0.1.7:5555\", for=\"1.1.1.1:1\""), "10.0.1.7:5555");
    assert_eq!(client_of("for=\"9.9.9.9:5555\""), "10.0.1.7:5555");
    for nonsense in ["", "for=", "for=unknown", "for=\"[::1\"", "=;=,"] {
        assert_eq!(client_of(nonsense), REMOTE, "{nonsense}");
    }
}

#[test]
fn the_certificate_outweighs_the_client_s_words() {
    let peer = PeerCertificate { identity: A.parse().unwrap(), not_after: SystemTime::now() };
    let mut headers = HeaderMap::new();
    headers.insert(&BAGGAGE, "k8s.namespace.name=kube-system,k8s.deployment.name=x".parse().unwrap());
    let source = source(baggage(&headers), &peer);
    assert_eq!((&*source.workload, &*source.namespace, &*source.principal), ("x", "default", A));
}

fn duplex() -> (tokio::io::DuplexStream, tokio::io::DuplexStream, Rc<Pod>) {
    let (near, far) = tokio::io::duplex(64 << 10);
    (near, far, pod())
}

fn pod() -> Rc<Pod> {
    crate::proxy::pod::tests::TestPod::new(None, None).pod
}

#[tokio::test]
async fn garbage_costs_only_itself() {
    let server = Authority::new("root").credential(B);
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 64], &[0x16, 3, 1, 0xff, 0xff, 1, 2, 3], b""] {
        let (mut near, far) = tokio::io::duplex(64 << 10);
        near.write_all(garbage).await.unwrap();
        near.shutdown().await.unwrap();
        let error = establish(&pod(), far, &server).await.err().unwrap();
        assert!(!error.is_empty());
    }
}

#[tokio::test]
async fn a_stranger_is_refused() {
    let (ours, theirs) = (Authority::new("root"), Authority::new("another root"));
    let server = ours.credential(B);
    let (near, far, pod) = duplex();
    let config = theirs.credential(A).client_config(&expect_b()).unwrap();
    let name = rustls::pki_types::ServerName::try_from("x").unwrap();
    let (client, server) =
        tokio::join!(tokio_rustls::TlsConnector::from(config).connect(name, near), establish(&pod, far, &server));
    assert!(client.is_err());
    let why = server.err().unwrap();
    assert!(why.starts_with("the client refuses our certificate"), "{why}");
}

/// A client with a good certificate.
async fn tunnel(
    on_request: impl Fn(Request<RecvStream>, SendResponse<Bytes>) + 'static,
) -> (h2::client::SendRequest<Bytes>, shutdown::Trigger) {
    let ca = Authority::new("root");
    let (client, server) = (ca.credential(A), ca.credential(B));
    let (near, far) = tokio::io::duplex(64 << 10);
    let (trigger, watch, _guard) = shutdown::channel();
    tokio::task::spawn_local(async move {
        let (connection, outlet, peer, _window) = establish(&pod(), far, &server).await.unwrap();
        assert_eq!(peer.identity.to_string(), A);
        run(connection, outlet, peer.not_after, watch, on_request).await;
    });
    let config = client.client_config(&expect_b()).unwrap();
    let name = rustls::pki_types::ServerName::try_from("x").unwrap();
    let tls = tokio_rustls::TlsConnector::from(config).connect(name, near).await.unwrap();
    let (send, connection) = h2::client::handshake(tls).await.unwrap();
    tokio::task::spawn_local(async move {
        let _ = connection.await;
    });
    (send, trigger)
}

#[tokio::test]
async fn headers_beyond_the_limit_end_their_stream_and_nothing_else() {
    tokio::task::LocalSet::new()
        .run_until(async {
            let (send, _trigger) = tunnel(|_, mut respond| {
                respond.send_response(Response::new(()), true).unwrap();
            })
            .await;
            let mut send = send.ready().await.unwrap();
            let mut huge = Request::builder().method(Method::CONNECT).uri("10.0.0.2:80").body(()).unwrap();
            for i in 0..20 {
                let name = http::HeaderName::try_from(format!("x-{i}")).unwrap();
                huge.headers_mut().insert(name, HeaderValue::try_from("a".repeat(1000)).unwrap());
            }
            let (answer, _) = send.send_request(huge, false).unwrap();
            assert_eq!(answer.await.unwrap().status().as_u16(), 431);
            let good = Request::builder().method(Method::CONNECT).uri("10.0.0.2:80").body(()).unwrap();
            let (answer, _) = send.ready().await.unwrap().send_request(good, false).unwrap();
            assert_eq!(answer.await.unwrap().status().as_u16(), 200);
        })
        .await;
}

#[tokio::test]
async fn a_drain_lets_open_streams_finish_and_takes_no_new_ones() {
    tokio::task::LocalSet::new()
        .run_until(async {
            let (send, trigger) = tunnel(|request, mut respond| {
                let send = respond.send_response(Response::new(()), false).unwrap();
                let mut stream = TunnelStream::new(send, request.into_body(), None);
                tokio::task::spawn_local(async move {
                    let mut got = Vec::new();
                    stream.read_to_end(&mut got).await.unwrap();
                    stream.write_all(&got).await.unwrap();
                    stream.shutdown().await.unwrap();
                });
            })
            .await;
            let mut send = send.ready().await.unwrap();
            let request = || Request::builder().method(Method::CONNECT).uri("10.0.0.2:80").body(()).unwrap();
            let (answer, body) = send.send_request(request(), false).unwrap();
            let mut stream = TunnelStream::new(body, answer.await.unwrap().into_body(), None);
            let drained = tokio::task::spawn_local(trigger.drain(Duration::from_secs(60)));
            // The GOAWAY arrives after a round trip.
            let refused = loop {
                match send.clone().ready().await {
                    Err(error) => break error,
                    Ok(_) => tokio::task::yield_now().await,
                }
            };
            assert!(refused.is_go_away(), "{refused}");
            stream.write_all(b"unhurt").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut got = Vec::new();
            stream.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, b"unhurt");
            drained.await.unwrap();
        })
        .await;
}
