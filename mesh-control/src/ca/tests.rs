//! The root on disk, what gets signed, and what is refused.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::UNIX_EPOCH;

use base64::Engine as _;
use mesh_proto::ca::IstioCertificateRequest;
use mesh_proto::ca::istio_certificate_service_server::IstioCertificateService;
use prost_types::{Struct, Value, value::Kind};
use tokio::sync::watch;
use tonic::{Code, Request};
use x509_parser::prelude::*;

use super::*;
use crate::auth::NodeAuth;
use crate::directory::{Directory, Resident};
use crate::metrics::Metrics;
use crate::settings::NodeSettings;

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

const A: &str = "spiffe://cluster.local/ns/default/sa/a";
const B: &str = "spiffe://cluster.local/ns/default/sa/b";

fn csr(names: &[&str]) -> String {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = names.iter().map(|name| SanType::URI((*name).try_into().unwrap())).collect();
    params.serialize_request(&key).unwrap().pem().unwrap()
}

fn open(dir: &Path) -> Result<Ca, RootError> {
    Ca::open(dir, "cluster.local", SystemTime::now())
}

fn der(pem: &str) -> Vec<u8> {
    x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap().1.contents
}

#[test]
fn the_root_is_created_once_and_guarded() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("ca");
    let first = open(&home).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&home), 0o700);
    assert_eq!(mode(&home.join(KEY_FILE)), 0o600);
    assert_eq!(open(&home).unwrap().root_pem(), first.root_pem());

    std::fs::set_permissions(home.join(KEY_FILE), Permissions::from_mode(0o640)).unwrap();
    let message = open(&home).err().unwrap().to_string();
    assert!(message.contains("0640") && message.contains("chmod 600"), "{message}");
    std::fs::set_permissions(home.join(KEY_FILE), Permissions::from_mode(0o600)).unwrap();

    let other = dir.path().join("other");
    open(&other).unwrap();
    std::fs::copy(other.join(CERT_FILE), home.join(CERT_FILE)).unwrap();
    let message = open(&home).err().unwrap().to_string();
    assert!(message.contains("its key is not the one in"), "{message}");

    std::fs::write(home.join(CERT_FILE), "garbage").unwrap();
    assert!(matches!(open(&home), Err(RootError::Unusable { .. })));
    std::fs::remove_file(home.join(CERT_FILE)).unwrap();
    assert!(matches!(open(&home), Err(RootError::Half { .. })));

    let late = SystemTime::now() + Duration::from_secs(11 * 365 * 24 * 3600);
    let message = Ca::open(&other, "cluster.local", late).err().unwrap().to_string();
    assert!(message.contains("expired"), "{message}");
}

#[test]
fn a_leaf_names_the_authorised_identity_and_nothing_of_the_csr() {
    let dir = tempfile::tempdir().unwrap();
    let ca = open(dir.path()).unwrap();
    let request = Csr::parse(&csr(&[B])).unwrap();
    assert_eq!(request.spiffe, [id(B)]);
    let now = UNIX_EPOCH + Duration::from_secs(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs());
    let signed = ca.sign_workload(&request, &id(A), Duration::from_secs(5), now).unwrap();
    assert_eq!(signed.chain.len(), 2);
    assert_eq!(signed.chain[1], ca.root_pem());
    let leaf = der(&signed.chain[0]);
    let (_, leaf) = X509Certificate::from_der(&leaf).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical);
    assert_eq!(names.value.general_names, [GeneralName::URI(A)]);
    assert_eq!(leaf.subject().iter().count(), 0);
    assert!(!leaf.is_ca());
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && usage.client_auth);
    let seconds = |time: SystemTime| i64::try_from(time.duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap();
    assert_eq!(leaf.validity().not_after.timestamp(), seconds(now) + 5);
    assert_eq!(leaf.validity().not_before.timestamp(), seconds(now) - 60);
    let (_, root) = X509Certificate::from_der(ca.root_der()).unwrap();
    leaf.verify_signature(Some(root.public_key())).unwrap();
    assert!(root.is_ca());

    let again = ca.sign_workload(&request, &id(A), Duration::from_secs(5), now).unwrap();
    let again = der(&again.chain[0]);
    assert_ne!(leaf.raw_serial(), X509Certificate::from_der(&again).unwrap().1.raw_serial());
}

#[test]
fn a_leaf_never_outlives_the_root() {
    let dir = tempfile::tempdir().unwrap();
    let ca = open(dir.path()).unwrap();
    let request = Csr::parse(&csr(&[])).unwrap();
    let late = ca.not_after() - Duration::from_secs(10);
    let signed = ca.sign_workload(&request, &id(A), Duration::from_secs(3600), late).unwrap();
    assert_eq!(signed.not_after, ca.not_after());
    assert!(matches!(
        ca.sign_workload(&request, &id(A), Duration::from_secs(1), ca.not_after()),
        Err(SignError::RootExpired)
    ));
}

#[test]
fn bad_requests_are_refused_with_a_reason() {
    let good = csr(&[]);
    let mut bytes = der(&good);
    let last = bytes.len() - 3;
    bytes[last] ^= 1;
    use base64::Engine as _;
    let forged = format!(
        "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
        base64::engine::general_purpose::STANDARD.encode(&bytes)
    );
    let dir = tempfile::tempdir().unwrap();
    let cases = [
        (String::new(), "no PEM"),
        ("x".repeat(MAX_CSR_BYTES + 1), "at most"),
        (open(dir.path()).unwrap().root_pem().to_owned(), "not of a certificate request"),
        ("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n".to_owned(), "PKCS#10"),
        (forged, "signature"),
        (csr(&["spiffe://Not Valid"]).clone(), "names"),
    ];
    for (pem, reason) in cases {
        let why = Csr::parse(&pem).unwrap_err();
        assert!(why.contains(reason), "{why} should say {reason}");
    }
}

proptest::proptest! {
    /// A CSR proves its key by a signature over itself, so what was changed on the way is refused, or says the same.
    #[test]
    fn a_damaged_csr_says_nothing_else(place: proptest::sample::Index, change in 1..=255_u8) {
        static GOOD: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| der(&csr(&[A])));
        let mut bytes = GOOD.clone();
        let at = place.index(bytes.len());
        bytes[at] ^= change;
        let text = base64::engine::general_purpose::STANDARD.encode(&bytes);
        let damaged = format!("-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n");
        if let Ok(csr) = Csr::parse(&damaged) {
            proptest::prop_assert_eq!(csr.spiffe, [id(A)]);
        }
    }
}

struct Fixture {
    service: CaService,
    metrics: Metrics,
    _dir: tempfile::TempDir,
}

/// Node `n1` runs A, node `n2` runs B; certificates live at most 60 s.
fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("t1"), "token-token-token-1").unwrap();
    std::fs::write(dir.path().join("t2"), "token-token-token-2").unwrap();
    let nodes = [("n1", "t1"), ("n2", "t2")]
        .map(|(name, file)| NodeSettings { name: name.to_owned(), token_file: dir.path().join(file) });
    let mut directory = Directory::default();
    directory.add("default".into(), "a".into(), Resident { node: "n1".into(), identity: id(A) });
    directory.add("default".into(), "b".into(), Resident { node: "n2".into(), identity: id(B) });
    let (_, receiver) = watch::channel(Arc::new(directory));
    let metrics = Metrics::default();
    let ca = open(&dir.path().join("ca")).unwrap();
    let service = CaService::new(ca, NodeAuth::new(&nodes), receiver, Duration::from_secs(60), metrics.clone());
    Fixture { service, metrics, _dir: dir }
}

fn request(token: &str, csr: String, identity: Option<Kind>, seconds: i64) -> Request<IstioCertificateRequest> {
    let metadata = identity
        .map(|kind| Struct { fields: [("ImpersonatedIdentity".to_owned(), Value { kind: Some(kind) })].into() });
    let mut request = Request::new(IstioCertificateRequest { csr, validity_duration: seconds, metadata });
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

fn text(value: &str) -> Option<Kind> {
    Some(Kind::StringValue(value.to_owned()))
}

#[tokio::test]
async fn a_node_gets_certificates_of_its_own_workloads_only() {
    let Fixture { service, metrics, _dir } = fixture();
    let (t1, t2) = ("token-token-token-1", "token-token-token-2");
    let code = async |request| service.create_certificate(request).await.map(|_| ()).map_err(|status| status.code());
    assert_eq!(code(request(t1, csr(&[]), text(A), 5)).await, Ok(()));
    assert_eq!(code(request(t1, csr(&[A]), None, 5)).await, Ok(()));
    assert_eq!(code(request(t2, csr(&[A]), text(B), 5)).await, Ok(()));
    assert_eq!(metrics.certificates(), (3, 0));
    assert_eq!(code(request(t1, csr(&[]), text(B), 5)).await, Err(Code::PermissionDenied));
    assert_eq!(code(request(t1, csr(&[B]), None, 5)).await, Err(Code::PermissionDenied));
    assert_eq!(code(request(t1, csr(&[A]), text(B), 5)).await, Err(Code::PermissionDenied));
    assert_eq!(code(request("token-token-token-3", csr(&[]), text(A), 5)).await, Err(Code::Unauthenticated));
    assert_eq!(code(Request::new(IstioCertificateRequest::default())).await, Err(Code::Unauthenticated));
    assert_eq!(code(request(t1, csr(&[]), None, 5)).await, Err(Code::InvalidArgument));
    assert_eq!(code(request(t1, csr(&[A, B]), None, 5)).await, Err(Code::InvalidArgument));
    assert_eq!(code(request(t1, "x".to_owned(), text(A), 5)).await, Err(Code::InvalidArgument));
    assert_eq!(code(request(t1, csr(&[]), text("default/a"), 5)).await, Err(Code::InvalidArgument));
    assert_eq!(code(request(t1, csr(&[]), Some(Kind::BoolValue(true)), 5)).await, Err(Code::InvalidArgument));
    assert_eq!(metrics.certificates(), (3, 10));
}

#[tokio::test]
async fn the_wished_life_is_capped() {
    let Fixture { service, metrics: _, _dir } = fixture();
    for (wished, given) in [(5, 5), (60, 60), (3600, 60), (0, 60), (-1, 60), (i64::MAX, 60)] {
        let before = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap();
        let response =
            service.create_certificate(request("token-token-token-1", csr(&[]), text(A), wished)).await.unwrap();
        let after = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap();
        let leaf = der(&response.get_ref().cert_chain[0]);
        let end = X509Certificate::from_der(&leaf).unwrap().1.validity().not_after.timestamp();
        assert!((before + given..=after + given).contains(&end), "wished {wished}, got {}", end - before);
    }
}
