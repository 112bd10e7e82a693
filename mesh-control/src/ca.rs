//! The certificate authority: a root on disk, short-lived SPIFFE certificates for the workloads of authenticated nodes,
//! and the control plane's own server certificate.
//!
//! In: a checked request and the authorised identity. Out: a chain, leaf first, root last.
//! Never: takes a name from a CSR; the CSR gives the public key and nothing else.

mod csr;
mod root;
mod service;

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_core::identity::SpiffeId;
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType, SerialNumber,
};
use time::OffsetDateTime;

pub use csr::{Csr, MAX_CSR_BYTES};
pub use root::{CERT_FILE, KEY_FILE, RootError};
pub use service::{CaService, MAX_REQUEST_BYTES};

/// How far before the present a certificate's validity begins, for clocks that run behind.
pub const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// A certificate cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// A name does not fit into a certificate.
    #[error("`{0}` does not fit into a certificate as a name")]
    Name(String),
    /// The root has run out, or the wished end lies outside of what a certificate can say.
    #[error("the root certificate in the CA directory has expired; replace it")]
    RootExpired,
    /// The crypto library refused.
    #[error("signing failed: {0}")]
    Sign(#[from] rcgen::Error),
}

/// The authority, ready to sign. Cheap to clone.
#[derive(Clone)]
pub struct Ca(Arc<Inner>);

struct Inner {
    issuer: Issuer<'static, KeyPair>,
    root_pem: String,
    root_der: Vec<u8>,
    not_after: SystemTime,
}

/// A signed certificate and when it runs out.
#[derive(Debug, Clone)]
pub struct Signed {
    /// PEM, leaf first, root last.
    pub chain: Vec<String>,
    /// DER of the leaf.
    pub leaf_der: Vec<u8>,
    /// End of the leaf's validity.
    pub not_after: SystemTime,
}

impl Ca {
    /// Loads the root from its directory, or creates it there when the directory holds neither file.
    pub fn open(dir: &std::path::Path, trust_domain: &str, now: SystemTime) -> Result<Ca, RootError> {
        let root = root::open(dir, trust_domain, now)?;
        Ok(Ca(Arc::new(Inner {
            issuer: root.issuer,
            root_pem: root.pem,
            root_der: root.der,
            not_after: root.not_after,
        })))
    }

    /// The root certificate in PEM.
    pub fn root_pem(&self) -> &str {
        &self.0.root_pem
    }

    /// The root certificate in DER.
    pub fn root_der(&self) -> &[u8] {
        &self.0.root_der
    }

    /// End of the root's validity.
    pub fn not_after(&self) -> SystemTime {
        self.0.not_after
    }

    /// Signs a workload's key for an authorised identity, for `ttl` from `now` (not beyond the root's end).
    pub fn sign_workload(
        &self,
        csr: &Csr,
        identity: &SpiffeId,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Signed, SignError> {
        let uri = identity.to_string();
        let san = SanType::URI(uri.as_str().try_into().map_err(|_| SignError::Name(uri.clone()))?);
        self.sign(&csr.public_key, vec![san], ttl, now)
    }

    /// Signs a server certificate for DNS names and addresses.
    pub fn sign_server(
        &self,
        key: &KeyPair,
        names: &[String],
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Signed, SignError> {
        let names = names
            .iter()
            .map(|name| match name.parse::<IpAddr>() {
                Ok(address) => Ok(SanType::IpAddress(address)),
                Err(_) => Ok(SanType::DnsName(name.as_str().try_into().map_err(|_| SignError::Name(name.clone()))?)),
            })
            .collect::<Result<Vec<_>, SignError>>()?;
        self.sign(key, names, ttl, now)
    }

    fn sign(
        &self,
        key: &impl PublicKeyData,
        names: Vec<SanType>,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Signed, SignError> {
        if self.0.not_after <= now {
            return Err(SignError::RootExpired);
        }
        let not_after = now.checked_add(ttl).map_or(self.0.not_after, |end| end.min(self.0.not_after));
        let mut params = CertificateParams::default();
        // An empty subject: the identity is the subject alternative name, which is critical then (RFC 5280, 4.2.1.6).
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(random_serial());
        params.not_before = OffsetDateTime::from(now.checked_sub(CLOCK_SKEW).unwrap_or(now));
        params.not_after = OffsetDateTime::from(not_after);
        let leaf = params.signed_by(key, &self.0.issuer)?;
        Ok(Signed { chain: vec![leaf.pem(), self.0.root_pem.clone()], leaf_der: leaf.der().to_vec(), not_after })
    }
}

/// 127 random bits: positive, and within the 20 octets of RFC 5280, 4.1.2.2.
pub(crate) fn random_serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    SerialNumber::from_slice(&bytes)
}
