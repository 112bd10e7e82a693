//! Reads the CA's answer.
//!
//! In: PEM strings, leaf first, root bundle last. Out: certificates, roots and the leaf's parameters, after checks that keep
//! a useless answer from replacing a good credential.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_core::identity::SpiffeId;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Most certificates in an answer.
const MAX_CERTIFICATES: usize = 64;

/// A checked answer.
#[derive(Debug)]
pub(super) struct Chain {
    /// Leaf and intermediates.
    pub certificates: Vec<CertificateDer<'static>>,
    /// Who signs peers.
    pub roots: Arc<RootCertStore>,
    /// The leaf's serial number, hexadecimal.
    pub serial: String,
    /// Start of the leaf's validity.
    pub not_before: SystemTime,
    /// End of the leaf's validity.
    pub not_after: SystemTime,
}

/// Takes an answer apart. `fallback_roots` is the PEM of the configured roots, for a CA that sends none.
pub(super) fn read(
    answer: &[String],
    identity: &SpiffeId,
    fallback_roots: Option<&[u8]>,
    now: SystemTime,
) -> Result<Chain, String> {
    let (chain, bundle) = match answer {
        [] => return Err("the answer holds no certificate".to_owned()),
        [leaf] => {
            let roots = fallback_roots.ok_or("the answer holds no root certificate, and none is configured")?;
            (std::slice::from_ref(leaf), certificates(roots)?)
        }
        [chain @ .., bundle] => (chain, certificates(bundle.as_bytes())?),
    };
    let mut list = Vec::new();
    for pem in chain {
        list.extend(certificates(pem.as_bytes())?);
        if list.len() > MAX_CERTIFICATES {
            return Err(format!("the answer holds more than {MAX_CERTIFICATES} certificates"));
        }
    }
    let leaf_der = list.first().ok_or("the answer holds no certificate")?;
    let leaf = parse(leaf_der)?;
    check_name(&leaf, identity)?;
    check_signatures(&list, &bundle)?;
    let not_after = time(leaf.validity().not_after.timestamp());
    if not_after <= now {
        return Err(format!(
            "the certificate ended at {} already; is this node's clock right?",
            leaf.validity().not_after
        ));
    }
    let serial = leaf.tbs_certificate.raw_serial_as_string();
    let not_before = time(leaf.validity().not_before.timestamp());
    let mut roots = RootCertStore::empty();
    for root in bundle {
        roots.add(root).map_err(|error| format!("a root certificate of the answer cannot be used: {error}"))?;
    }
    Ok(Chain { roots: Arc::new(roots), serial, not_before, not_after, certificates: list })
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let list: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .take(MAX_CERTIFICATES + 1)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("the answer is no PEM: {error}"))?;
    match list.len() {
        0 => Err("the answer has a part without a certificate".to_owned()),
        1..=MAX_CERTIFICATES => Ok(list),
        _ => Err(format!("the answer holds more than {MAX_CERTIFICATES} certificates")),
    }
}

fn parse<'c>(der: &'c CertificateDer<'_>) -> Result<X509Certificate<'c>, String> {
    X509Certificate::from_der(der)
        .map(|(_, cert)| cert)
        .map_err(|error| format!("the answer holds no X.509 certificate: {error}"))
}

fn check_name(leaf: &X509Certificate<'_>, identity: &SpiffeId) -> Result<(), String> {
    let names = leaf.subject_alternative_name().ok().flatten();
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
        .collect();
    match uris.as_slice() {
        [uri] if *uri == identity.as_str() => Ok(()),
        _ => Err(format!("the certificate is for {uris:?}")),
    }
}

fn check_signatures(chain: &[CertificateDer<'_>], bundle: &[CertificateDer<'_>]) -> Result<(), String> {
    for pair in chain.windows(2) {
        if let [subject, issuer] = pair {
            let issuer = parse(issuer)?;
            parse(subject)?
                .verify_signature(Some(issuer.public_key()))
                .map_err(|_| "the answer's certificates do not sign one another".to_owned())?;
        }
    }
    let last = parse(chain.last().ok_or("the answer holds no certificate")?)?;
    let signed = bundle.iter().any(|root| {
        parse(root)
            .is_ok_and(|root| root.subject() == last.issuer() && last.verify_signature(Some(root.public_key())).is_ok())
    });
    if signed { Ok(()) } else { Err("no root certificate of the answer signed the chain".to_owned()) }
}

fn time(seconds: i64) -> SystemTime {
    u64::try_from(seconds)
        .ok()
        .and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}
