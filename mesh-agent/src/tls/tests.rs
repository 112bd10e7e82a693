//! Handshakes over an in-memory pipe, with certificates of a test authority.

use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

/// A root that signs whatever a test asks for.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    pub(crate) fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        Arc::new(roots)
    }

    /// A good credential.
    pub(crate) fn credential(&self, id: &str) -> Arc<Credential> {
        self.with(id, &[id], &[], Duration::from_secs(3600), self.roots())
    }

    /// Its certificate, as a file.
    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Any credential: its URI and DNS names, its end relative to now (an hour after its start), and the roots it trusts.
    pub(crate) fn with(
        &self,
        id: &str,
        uris: &[&str],
        dns: &[&str],
        life: Duration,
        roots: Arc<RootCertStore>,
    ) -> Arc<Credential> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = uris
            .iter()
            .map(|uri| SanType::URI((*uri).try_into().unwrap()))
            .chain(dns.iter().map(|name| SanType::DnsName((*name).try_into().unwrap())))
            .collect();
        let now = SystemTime::now();
        let not_after = now + life - Duration::from_secs(60);
        params.not_before = (now - Duration::from_secs(3600)).into();
        params.not_after = not_after.into();
        params.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Arc::new(Credential::new(id.parse().unwrap(), vec![leaf.der().clone()], key, roots, not_after).unwrap())
    }
}

const A: &str = "spiffe://cluster.local/ns/default/sa/a";
const B: &str = "spiffe://cluster.local/ns/default/sa/b";
const C: &str = "spiffe://cluster.local/ns/default/sa/c";

fn expect(ids: &[&str]) -> Arc<[SpiffeId]> {
    ids.iter().map(|id| id.parse().unwrap()).collect()
}

/// Both sides' verdicts on their peer. A client learns that it was refused only when it reads.
async fn handshake(
    client: &Credential,
    expected: &[&str],
    server: &Credential,
) -> (Result<PeerCertificate, String>, Result<PeerCertificate, String>) {
    let connector = TlsConnector::from(client.client_config(&expect(expected)).unwrap());
    meet(connector, TlsAcceptor::from(server.server_config().unwrap())).await
}

async fn meet(
    connector: TlsConnector,
    acceptor: TlsAcceptor,
) -> (Result<PeerCertificate, String>, Result<PeerCertificate, String>) {
    let (near, far) = tokio::io::duplex(64 << 10);
    let name = ServerName::IpAddress(std::net::IpAddr::from([10, 0, 0, 1]).into());
    let client = async {
        let mut tls = connector.connect(name, near).await.map_err(|error| error.to_string())?;
        let mut byte = [0];
        tls.read_exact(&mut byte).await.map_err(|error| error.to_string())?;
        let state = tls.get_ref().1;
        assert_eq!(state.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        assert_eq!(state.alpn_protocol(), Some(ALPN_H2));
        assert_eq!(state.negotiated_cipher_suite().unwrap().suite(), rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
        if let Some(group) = state.negotiated_key_exchange_group() {
            assert_eq!(group.name(), rustls::NamedGroup::X25519MLKEM768);
        }
        peer_certificate(state, SystemTime::now()).map_err(|error| error.to_string())
    };
    let server = async {
        let mut tls = acceptor.accept(far).await.map_err(|error| error.to_string())?;
        let peer = peer_certificate(tls.get_ref().1, SystemTime::now()).map_err(|error| error.to_string())?;
        tls.write_all(b"!").await.map_err(|error| error.to_string())?;
        tls.shutdown().await.map_err(|error| error.to_string())?;
        Ok(peer)
    };
    tokio::join!(client, server)
}

#[tokio::test]
async fn both_sides_learn_the_other_identity() {
    let ca = Authority::new("root");
    let (a, b) = (ca.credential(A), ca.credential(B));
    let (server_seen, client_seen) = handshake(&a, &[C, B], &b).await;
    assert_eq!(server_seen.unwrap().identity.to_string(), B);
    assert_eq!(client_seen.unwrap().identity.to_string(), A);
}

#[tokio::test]
async fn a_resumed_session_still_knows_its_peer() {
    let ca = Authority::new("root");
    let (a, b) = (ca.credential(A), ca.credential(B));
    handshake(&a, &[B], &b).await.0.unwrap();
    let config = a.client_config(&expect(&[B])).unwrap();
    assert!(Arc::ptr_eq(&config, &a.client_config(&expect(&[B])).unwrap()), "one configuration per expectation");
    let (server_seen, client_seen) = handshake(&a, &[B], &b).await;
    assert_eq!(server_seen.unwrap().identity.to_string(), B);
    assert_eq!(client_seen.unwrap().identity.to_string(), A);
    // The ticket made towards B is of no use towards C, at the same address.
    let (server_seen, _) = handshake(&a, &[C], &b).await;
    assert!(server_seen.unwrap_err().contains("expected"));
}

#[tokio::test]
async fn an_unexpected_server_is_refused() {
    let ca = Authority::new("root");
    let (server_seen, client_seen) = handshake(&ca.credential(A), &[C], &ca.credential(B)).await;
    let error = server_seen.unwrap_err();
    assert!(error.contains(B) && error.contains(C), "{error}");
    client_seen.unwrap_err();
}

#[tokio::test]
async fn a_dns_name_or_address_is_no_identity() {
    let ca = Authority::new("root");
    let server = ca.with(B, &[], &["b.default.svc.cluster.local"], Duration::from_secs(3600), ca.roots());
    let (server_seen, _) = handshake(&ca.credential(A), &[B], &server).await;
    assert!(server_seen.unwrap_err().contains("no URI name"));
}

#[tokio::test]
async fn another_authority_is_refused_in_both_directions() {
    let (ours, theirs) = (Authority::new("root"), Authority::new("root"));
    let (server_seen, _) = handshake(&ours.credential(A), &[B], &theirs.credential(B)).await;
    assert!(server_seen.is_err());
    // The client would accept this server, but the server does not know the client's root.
    let client = theirs.with(A, &[A], &[], Duration::from_secs(3600), ours.roots());
    let (server_seen, client_seen) = handshake(&client, &[B], &ours.credential(B)).await;
    assert!(client_seen.is_err());
    assert!(server_seen.is_err(), "the client reads the server's alert");
}

#[tokio::test]
async fn another_trust_domain_is_refused_in_both_directions() {
    let ca = Authority::new("root");
    let foreign = "spiffe://elsewhere.example/ns/default/sa/a";
    let (_, client_seen) = handshake(&ca.credential(foreign), &[B], &ca.credential(B)).await;
    assert!(client_seen.unwrap_err().contains("trust domain"));
    let (server_seen, _) =
        handshake(&ca.credential(A), &[B], &ca.credential("spiffe://elsewhere.example/ns/default/sa/b")).await;
    assert!(server_seen.is_err());
}

#[tokio::test]
async fn expired_is_refused_in_both_directions() {
    let ca = Authority::new("root");
    let (server_seen, _) = handshake(&ca.credential(A), &[B], &ca.with(B, &[B], &[], Duration::ZERO, ca.roots())).await;
    assert!(server_seen.unwrap_err().to_lowercase().contains("expired"));
    let (_, client_seen) = handshake(&ca.with(A, &[A], &[], Duration::ZERO, ca.roots()), &[B], &ca.credential(B)).await;
    assert!(client_seen.unwrap_err().to_lowercase().contains("expired"));
}

#[tokio::test]
async fn a_certificate_with_two_uri_names_is_refused_in_both_directions() {
    let ca = Authority::new("root");
    let two = |id: &str, other: &str| ca.with(id, &[id, other], &[], Duration::from_secs(3600), ca.roots());
    let (server_seen, _) = handshake(&ca.credential(A), &[B], &two(B, C)).await;
    assert!(server_seen.unwrap_err().contains("more than one"));
    let (_, client_seen) = handshake(&two(A, C), &[B], &ca.credential(B)).await;
    assert!(client_seen.unwrap_err().contains("more than one"));
}

#[tokio::test]
async fn a_client_without_certificate_is_refused() {
    let ca = Authority::new("root");
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ExpectServer::new(ca.roots(), &provider(), expect(&[B]))))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    let acceptor = TlsAcceptor::from(ca.credential(B).server_config().unwrap());
    let (_, client_seen) = meet(TlsConnector::from(Arc::new(config)), acceptor).await;
    assert!(client_seen.unwrap_err().to_lowercase().contains("certificate"));
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let ca = Authority::new("root");
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ExpectServer::new(ca.roots(), &provider(), expect(&[B]))))
        .with_no_client_auth();
    let acceptor = TlsAcceptor::from(ca.credential(B).server_config().unwrap());
    assert!(meet(TlsConnector::from(Arc::new(config)), acceptor).await.1.is_err());
}

#[test]
fn nobody_expected_means_no_configuration() {
    let ca = Authority::new("root");
    assert!(matches!(ca.credential(A).client_config(&expect(&[])), Err(TlsError::NobodyExpected)));
}

#[test]
fn a_port_s_name_says_the_port_and_nothing_else_does() {
    for port in [1, 80, 15008, u16::MAX] {
        let ServerName::DnsName(name) = port_name(port).unwrap() else { panic!("an address") };
        assert_eq!(named_port(name.as_ref()), Some(port));
    }
    for name in
        ["", "port-", "port-.hbone", "port-65536.hbone", "port-+80.hbone", "port-80", "80.hbone", "port-80.hbone."]
    {
        assert_eq!(named_port(name), None, "{name}");
    }
}
