//! The CA client against a CA on loopback.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mesh_proto::ca::istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer};
use mesh_proto::ca::{IstioCertificateRequest, IstioCertificateResponse};
use prost_types::value::Kind;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Response, Status};

use super::*;

const TOKEN: &str = "the-token-of-this-node";

/// A CA that signs what it is asked for, unless told otherwise.
#[derive(Clone)]
struct TestCa(Arc<TestCaInner>);

struct TestCaInner {
    issuer: Issuer<'static, KeyPair>,
    root: String,
    life: Duration,
    /// The identity that every certificate names, when it is not the wished one.
    other_name: Option<&'static str>,
    refuse: AtomicBool,
    asked: AtomicU64,
}

impl TestCa {
    fn new(life: Duration, other_name: Option<&'static str>) -> TestCa {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "test root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = params.self_signed(&key).unwrap().pem();
        TestCa(Arc::new(TestCaInner {
            issuer: Issuer::new(params, key),
            root,
            life,
            other_name,
            refuse: AtomicBool::new(false),
            asked: AtomicU64::new(0),
        }))
    }
}

#[tonic::async_trait]
impl IstioCertificateService for TestCa {
    async fn create_certificate(
        &self,
        request: tonic::Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        self.0.asked.fetch_add(1, Ordering::SeqCst);
        assert_eq!(request.metadata().get("authorization").unwrap(), &format!("Bearer {TOKEN}"));
        if self.0.refuse.load(Ordering::SeqCst) {
            return Err(Status::permission_denied("not yours"));
        }
        let request = request.into_inner();
        let Some(Kind::StringValue(name)) = request.metadata.unwrap().fields["ImpersonatedIdentity"].kind.clone()
        else {
            panic!("no identity")
        };
        let name = self.0.other_name.unwrap_or(&name);
        let mut csr = CertificateSigningRequestParams::from_pem(&request.csr).unwrap();
        csr.params.subject_alt_names = vec![SanType::URI(name.try_into().unwrap())];
        csr.params.not_before = (SystemTime::now() - Duration::from_secs(10)).into();
        csr.params.not_after = (SystemTime::now() + self.0.life).into();
        let leaf = csr.signed_by(&self.0.issuer).unwrap().pem();
        Ok(Response::new(IstioCertificateResponse { cert_chain: vec![leaf, self.0.root.clone()] }))
    }
}

async fn serve(ca: &TestCa) -> (Identities, tempfile::TempDir) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let service = IstioCertificateServiceServer::new(ca.clone());
    tokio::spawn(
        tonic::transport::Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)),
    );
    let dir = tempfile::tempdir().unwrap();
    let token_file = dir.path().join("token");
    std::fs::write(&token_file, format!("{TOKEN}\n")).unwrap();
    let control_plane = ControlPlane { address, server_name: None, root_cert: None, token_file: Some(token_file) };
    (Identities::new(&control_plane, Handle::current()), dir)
}

fn id(name: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://cluster.local/ns/default/sa/{name}")).unwrap()
}

fn serial(identities: &Identities) -> String {
    identities.snapshot()[0].serial.clone()
}

#[tokio::test]
async fn one_certificate_per_identity_while_somebody_uses_it() {
    let ca = TestCa::new(Duration::from_secs(3600), None);
    let (identities, _dir) = serve(&ca).await;
    let mut first = identities.request(&id("a"));
    let mut second = identities.request(&id("a"));
    let mut other = identities.request(&id("b"));
    let credential = first.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    let same = second.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert!(Arc::ptr_eq(&credential, &same));
    let foreign = other.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert_ne!(credential.key.secret_der(), foreign.key.secret_der());
    assert_eq!((credential.identity.clone(), foreign.identity.clone()), (id("a"), id("b")));
    assert_eq!(credential.roots.len(), 1);
    assert_eq!(ca.0.asked.load(Ordering::SeqCst), 2);
    assert_eq!(identities.snapshot().iter().map(|one| (one.users, one.issued)).collect::<Vec<_>>(), [(2, 1), (1, 1)]);

    identities.release(&id("a"));
    assert!(identities.current(&id("a")).is_some());
    identities.release(&id("a"));
    assert!(first.wait_for(Option::is_none).await.is_ok());
    assert!(identities.watch(&id("a")).changed().await.is_err());
    assert_eq!(identities.snapshot().len(), 1);
}

#[tokio::test]
async fn certificates_of_seconds_are_renewed_with_new_keys() {
    let ca = TestCa::new(Duration::from_secs(3), None);
    let (identities, _dir) = serve(&ca).await;
    let mut watch = identities.request(&id("a"));
    let first = watch.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    let first_serial = serial(&identities);
    watch.changed().await.unwrap();
    let second = watch.borrow().clone().unwrap();
    assert!(!first.remaining(SystemTime::now()).is_zero(), "renewed before the end");
    assert_ne!(first.key.secret_der(), second.key.secret_der());
    assert_ne!(first_serial, serial(&identities));
    assert!(second.not_after >= first.not_after);
}

#[tokio::test]
async fn a_failed_renewal_keeps_the_credential_until_its_end() {
    let ca = TestCa::new(Duration::from_secs(2), None);
    let (identities, _dir) = serve(&ca).await;
    let mut watch = identities.request(&id("a"));
    let first = watch.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    ca.0.refuse.store(true, Ordering::SeqCst);
    watch.changed().await.unwrap();
    assert!(watch.borrow().is_none(), "nothing new can have come");
    assert!(first.remaining(SystemTime::now()).is_zero(), "it was taken away before its end");
    let status = identities.snapshot().remove(0);
    assert!(status.last_error.unwrap().contains("not yours"));
    assert!(status.failures > 0);
    ca.0.refuse.store(false, Ordering::SeqCst);
    watch.wait_for(Option::is_some).await.unwrap();
    assert_eq!(identities.snapshot()[0].failures, 0);
}

#[tokio::test]
async fn a_certificate_of_somebody_else_is_not_taken() {
    let ca = TestCa::new(Duration::from_secs(3600), Some("spiffe://cluster.local/ns/default/sa/evil"));
    let (identities, _dir) = serve(&ca).await;
    let watch = identities.request(&id("a"));
    let mut failed = identities.slots()[&id("a")].state.subscribe();
    let state = failed.wait_for(|state| state.failures > 2).await.unwrap().clone();
    assert!(state.last_error.unwrap().contains("evil"));
    assert!(watch.borrow().is_none());
}

#[tokio::test]
async fn settings_that_cannot_work_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    let plain = |address: &str| ControlPlane {
        address: address.to_owned(),
        server_name: None,
        root_cert: None,
        token_file: None,
    };
    let cases = [
        (plain("https://localhost:1"), "rootCert"),
        (plain("localhost:1"), "must begin with"),
        (ControlPlane { root_cert: Some(missing.clone()), ..plain("https://localhost:1") }, "missing"),
        (plain("http://127.0.0.1:1"), "cannot connect"),
    ];
    for (settings, reason) in cases {
        let error = CaClient::new(&settings).certificate(&id("a")).await.err().unwrap().to_string();
        assert!(error.contains(reason), "{error} should say {reason}");
    }
}

/// A server that takes connections and says nothing: whoever waited for the attempt fails with it.
#[tokio::test]
async fn all_that_wait_for_a_connection_fail_together() {
    let ca = TestCa::new(Duration::from_secs(3600), None);
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root.pem");
    std::fs::write(&root, &ca.0.root).unwrap();
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("https://{}", silent.local_addr().unwrap());
    let settings = ControlPlane { address, server_name: None, root_cert: Some(root), token_file: None };
    let client = CaClient::new(&settings);
    let names: Vec<SpiffeId> = (0..8).map(|i| id(&format!("a{i}"))).collect();
    let waiting = futures_util::future::join_all(names.iter().map(|name| client.certificate(name)));
    let accepting = async {
        let mut held = Vec::new();
        loop {
            held.push(silent.accept().await.unwrap());
            assert_eq!(held.len(), 1, "each identity tried by itself");
        }
    };
    let failed = tokio::select! {
        failed = waiting => failed,
        () = accepting => unreachable!(),
    };
    for result in failed {
        assert!(matches!(result, Err(IdentityError::Connect(_))));
    }
}

#[test]
fn renewal_is_at_half_life_with_some_spread() {
    let life = Duration::from_secs(1000);
    assert_eq!(renew_after(life, 0.0), Duration::from_secs(450));
    assert_eq!(renew_after(life, 1.0), Duration::from_secs(550));
    assert_eq!(renew_after(Duration::ZERO, 0.5), MIN_RENEWAL);
}
