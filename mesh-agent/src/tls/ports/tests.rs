//! Handshakes over an in-memory pipe: who is taken, who is refused and in which words, what is offered, what is resumed.

use std::time::Duration;

use mesh_core::resource::{CertificateSource, RootsSource, SanKind, SanMatch, StringMatch};
use rustls::pki_types::ServerName;
use rustls::{HandshakeKind, ProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::super::Credential;
use super::super::tests::Authority;
use super::*;

const A: &str = "spiffe://cluster.local/ns/default/sa/a";
const B: &str = "spiffe://cluster.local/ns/default/sa/b";
const SNI: &str = "outbound_.80_._.web.default.svc.cluster.local";

/// A rule as control planes write it.
fn uri(prefix: bool, text: &str) -> SanMatch {
    let text = mesh_core::resource::Text { value: text.into(), ignore_case: false };
    let text = if prefix { StringMatch::Prefix(text) } else { StringMatch::Exact(text) };
    SanMatch { kind: Some(SanKind::Uri), text }
}

fn upstream(sans: Vec<SanMatch>) -> UpstreamTls {
    UpstreamTls {
        sni: SNI.into(),
        alpn: vec!["istio-peer-exchange".into(), "istio".into()],
        sans,
        client_certificate: Some(CertificateSource::Workload),
        roots: Some(RootsSource::Workload),
        auto_sni: false,
        auto_sans: false,
        only_tls13: false,
    }
}

fn downstream(required: bool, sans: Vec<SanMatch>, alpn: &[&str]) -> DownstreamTls {
    DownstreamTls {
        require_client_certificate: required,
        alpn: alpn.iter().map(|one| (*one).into()).collect(),
        certificate: None,
        roots: Some(RootsSource::Workload),
        sans,
        only_tls13: false,
    }
}

fn all(of: &Credential) -> Materials {
    Materials { certified: Some(of.certified.clone()), roots: Some(of.roots.clone()) }
}

/// What one side knows after the handshake: the other's identity, ALPN, version, and whether it went on with a session.
type Known = (Option<String>, Option<Vec<u8>>, ProtocolVersion, bool);

/// The two ends, and what a test makes of them.
struct Ends {
    clients: Clients,
    servers: Servers,
    upstream: Arc<UpstreamTls>,
    downstream: Arc<DownstreamTls>,
    client: Materials,
    server: Materials,
    named: bool,
}

impl Ends {
    fn new(upstream: UpstreamTls, downstream: DownstreamTls, client: Materials, server: Materials) -> Self {
        let (upstream, downstream) = (Arc::new(upstream), Arc::new(downstream));
        Self {
            clients: Clients::default(),
            servers: Servers::default(),
            upstream,
            downstream,
            client,
            server,
            named: false,
        }
    }

    async fn meet(&self, carries: Carries, name: &str) -> (Result<Known, String>, Result<Known, String>) {
        let config = self.clients.config(&self.upstream, carries, self.named, &self.client).unwrap();
        let offers: Vec<_> = self.upstream.offers(carries).iter().map(|one| one.as_bytes()).collect();
        let acceptor =
            TlsAcceptor::from(self.servers.config(&self.downstream, offers.into_iter(), &self.server).unwrap());
        let (near, far) = tokio::io::duplex(64 << 10);
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let known = |state: &CommonState, verified: bool| {
            let proved = Proved::of(state, verified, SystemTime::now()).unwrap();
            let identity = proved.identity.map(|identity| identity.to_string());
            let resumed = state.handshake_kind() == Some(HandshakeKind::Resumed);
            (identity, state.alpn_protocol().map(<[u8]>::to_vec), state.protocol_version().unwrap(), resumed)
        };
        let client = async {
            let said = |error: std::io::Error| explain(&error, "server");
            let mut tls = TlsConnector::from(config).connect(name, near).await.map_err(said)?;
            // A server's refusal comes behind its handshake.
            tls.read_exact(&mut [0]).await.map_err(said)?;
            Ok(known(tls.get_ref().1, self.client.roots.is_some()))
        };
        let server = async {
            let said = |error: std::io::Error| explain(&error, "client");
            let mut tls = acceptor.accept(far).await.map_err(said)?;
            tls.write_all(b"!").await.map_err(said)?;
            tls.flush().await.map_err(said)?;
            Ok(known(tls.get_ref().1, self.server.roots.is_some()))
        };
        tokio::join!(client, server)
    }
}

#[tokio::test]
async fn workloads_know_each_other_and_what_is_inside() {
    let ca = Authority::new("root");
    let own = [uri(true, "spiffe://cluster.local/")];
    for (carries, server, alpn) in [
        (Carries::Bytes, &["istio-peer-exchange", "h2", "http/1.1"][..], Some("istio-peer-exchange")),
        (Carries::Http1, &["h2", "http/1.1"], Some("http/1.1")),
        (Carries::Http2, &["h2", "http/1.1"], Some("h2")),
        // Nothing in common: the server says nothing, and nobody minds.
        (Carries::Bytes, &["h2"], None),
    ] {
        let (a, b) = (all(&ca.credential(A)), all(&ca.credential(B)));
        let down = downstream(true, own.to_vec(), server);
        let (client, server) = Ends::new(upstream(vec![uri(false, B)]), down, a, b).meet(carries, SNI).await;
        let alpn = alpn.map(|alpn| alpn.as_bytes().to_vec());
        assert_eq!(client.unwrap(), (Some(B.into()), alpn.clone(), ProtocolVersion::TLSv1_3, false), "{carries:?}");
        assert_eq!(server.unwrap(), (Some(A.into()), alpn, ProtocolVersion::TLSv1_3, false), "{carries:?}");
    }
}

#[tokio::test]
async fn whoever_is_not_wanted_is_refused_in_words() {
    let (ca, other) = (Authority::new("root"), Authority::new("other"));
    let (a, b) = (all(&ca.credential(A)), all(&ca.credential(B)));
    let down = || downstream(true, vec![uri(true, "spiffe://cluster.local/")], &["istio"]);
    let cross =
        |own: &Materials, roots: &Authority| Materials { certified: own.certified.clone(), roots: Some(roots.roots()) };
    let of_another = all(&other.credential(B));
    for (sans, server_rules, client, server, client_says, server_says) in [
        // Another name than wanted, on either side.
        (vec![uri(false, A)], down(), a.clone(), b.clone(), "expected spiffe://cluster.local/ns/default/sa/a", ""),
        (
            vec![],
            downstream(true, vec![uri(true, "spiffe://elsewhere/")], &["istio"]),
            a.clone(),
            b.clone(),
            "refuses our certificate",
            "expected spiffe://elsewhere/*",
        ),
        // An authority that nobody has heard of.
        (vec![], down(), a.clone(), cross(&of_another, &ca), "none of the trusted roots", ""),
        (vec![], down(), cross(&of_another, &ca), b.clone(), "refuses our certificate", "none of the trusted roots"),
        // No certificate at all.
        (
            vec![],
            down(),
            Materials { certified: None, ..a.clone() },
            b.clone(),
            "refuses our certificate",
            "shows no certificate, and one is required",
        ),
    ] {
        let (client, server) = Ends::new(upstream(sans), server_rules, client, server).meet(Carries::Bytes, SNI).await;
        let (client, server) = (client.unwrap_err(), server.err().unwrap_or_default());
        assert!(client.contains(client_says), "{client}");
        assert!(server.contains(server_says), "{server}");
    }
}

#[tokio::test]
async fn a_server_outside_of_the_mesh_must_have_the_name_that_is_dialled() {
    let ca = Authority::new("public");
    let server = ca.with(B, &[], &["*.example.com"], Duration::from_secs(3600), ca.roots());
    let outside = || UpstreamTls { sni: "".into(), alpn: Vec::new(), client_certificate: None, ..upstream(vec![]) };
    let no_clients = || DownstreamTls { roots: None, ..downstream(false, vec![], &["h2", "http/1.1"]) };
    let roots = Materials { certified: None, roots: Some(ca.roots()) };
    let shown = Materials { certified: Some(server.certified.clone()), roots: None };
    let mut ends = Ends::new(outside(), no_clients(), roots.clone(), shown.clone());
    // Without a rule any name will do, as with Envoy.
    ends.meet(Carries::Http1, "other.org").await.0.unwrap();
    ends.named = true;
    let (client, seen) = ends.meet(Carries::Http2, "a.example.com").await;
    assert_eq!(client.unwrap().1.as_deref(), Some(&b"h2"[..]));
    assert_eq!(seen.unwrap().0, None);
    let error = ends.meet(Carries::Http1, "other.org").await.0.unwrap_err();
    assert!(error.contains("it is made out to *.example.com, expected other.org"), "{error}");
    // insecureSkipVerify: nothing is verified, and nobody is believed to be anybody.
    let nobody = Materials { certified: None, roots: None };
    let (client, _) = Ends::new(outside(), no_clients(), nobody, shown.clone()).meet(Carries::Http1, "x.org").await;
    assert_eq!(client.unwrap().0, None);
    // An expired one is refused with and without names.
    let old = ca.with(B, &[], &["a.example.com"], Duration::ZERO, ca.roots());
    let shown = Materials { certified: Some(old.certified.clone()), roots: None };
    let (client, _) = Ends::new(outside(), no_clients(), roots, shown).meet(Carries::Http1, "a.example.com").await;
    assert!(client.unwrap_err().to_lowercase().contains("expired"));
}

#[tokio::test]
async fn a_client_s_certificate_may_be_optional_but_not_wrong() {
    let (ca, other) = (Authority::new("root"), Authority::new("other"));
    let (a, b) = (all(&ca.credential(A)), all(&ca.credential(B)));
    let bare = Materials { certified: None, ..a.clone() };
    let stranger = Materials { certified: all(&other.credential(A)).certified, ..a.clone() };
    for (client, identity) in [(a, Some(A.to_owned())), (bare, None)] {
        let (_, server) = Ends::new(upstream(vec![]), downstream(false, vec![], &[]), client, b.clone())
            .meet(Carries::Bytes, SNI)
            .await;
        assert_eq!(server.unwrap().0, identity);
    }
    let (_, server) =
        Ends::new(upstream(vec![]), downstream(false, vec![], &[]), stranger, b).meet(Carries::Bytes, SNI).await;
    server.unwrap_err();
}

#[tokio::test]
async fn the_old_version_is_spoken_only_where_nobody_forbids_it() {
    let ca = Authority::new("root");
    let (a, b) = (all(&ca.credential(A)), all(&ca.credential(B)));
    let ends = Ends::new(upstream(vec![]), downstream(true, vec![], &[]), a.clone(), b.clone());
    let mut old = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(NamedServer::new(
            a.roots.clone(),
            provider().signature_verification_algorithms,
            ends.upstream.clone(),
            false,
        )))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(a.certified.clone().unwrap())));
    old.resumption = rustls::client::Resumption::disabled();
    let connector = TlsConnector::from(Arc::new(old));
    for (only_tls13, works) in [(false, true), (true, false)] {
        let settings = Arc::new(DownstreamTls { only_tls13, ..downstream(true, vec![], &[]) });
        let acceptor = TlsAcceptor::from(Servers::default().config(&settings, std::iter::empty(), &b).unwrap());
        let (near, far) = tokio::io::duplex(64 << 10);
        let name = ServerName::try_from(SNI).unwrap();
        let (client, server) = tokio::join!(connector.connect(name, near), acceptor.accept(far));
        assert_eq!((client.is_ok(), server.is_ok()), (works, works), "{only_tls13}");
    }
}

#[tokio::test]
async fn sessions_go_on_under_the_same_settings_and_certificate_only() {
    let ca = Authority::new("root");
    let (a, b) = (all(&ca.credential(A)), all(&ca.credential(B)));
    let mut ends = Ends::new(upstream(vec![uri(false, B)]), downstream(true, vec![], &["istio"]), a, b);
    let resumed = async |ends: &Ends| {
        let (client, server) = ends.meet(Carries::Bytes, SNI).await;
        let (client, server) = (client.unwrap(), server.unwrap());
        assert_eq!((client.0.as_deref(), server.0.as_deref()), (Some(B), Some(A)));
        assert_eq!(client.3, server.3);
        client.3
    };
    assert!(!resumed(&ends).await);
    assert!(resumed(&ends).await, "the second time");
    // The same words in another object: settings that were replaced.
    ends.upstream = Arc::new(upstream(vec![uri(false, B)]));
    assert!(!resumed(&ends).await);
    assert!(resumed(&ends).await);
    // A renewed certificate.
    ends.client = all(&ca.credential(A));
    assert!(!resumed(&ends).await);
    // What the new settings refuse is refused, session or not.
    ends.upstream = Arc::new(upstream(vec![uri(false, A)]));
    ends.meet(Carries::Bytes, SNI).await.0.unwrap_err();
}

#[test]
fn configurations_are_bounded_and_go_with_their_settings() {
    let ca = Authority::new("root");
    let (clients, own) = (Clients::default(), all(&ca.credential(A)));
    let first = Arc::new(upstream(vec![]));
    let config = |settings: &Arc<UpstreamTls>| clients.config(settings, Carries::Bytes, false, &own).unwrap();
    assert!(Arc::ptr_eq(&config(&first), &config(&first)));
    let kept = || clients.0.0.borrow().len();
    for _ in 0..10 {
        config(&Arc::new(upstream(vec![])));
    }
    // The first, and the one whose settings nobody has any more but that was asked for last.
    assert_eq!(kept(), 2);
    let many: Vec<_> = (0..MAX_CONFIGS + 10).map(|_| Arc::new(upstream(vec![]))).collect();
    many.iter().for_each(|settings| drop(config(settings)));
    assert_eq!(kept(), MAX_CONFIGS);
    drop(many);
    config(&Arc::new(upstream(vec![])));
    assert!(kept() <= 2, "{}", kept());
}
