//! The control plane's own certificate, issued by its CA and renewed at half life without a restart.
//!
//! In: the CA and names. Out: a resolver for rustls. The key lives in memory only.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rcgen::KeyPair;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::ca::{Ca, SignError};

/// Life of a server certificate.
const LIFE: Duration = Duration::from_secs(24 * 3600);

/// Why there is no server certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The CA cannot sign it.
    #[error("server certificate: {0}")]
    Sign(#[from] SignError),
    /// No key could be made.
    #[error("server certificate: {0}")]
    Key(#[from] rcgen::Error),
    /// rustls cannot use it.
    #[error("server certificate: {0}")]
    Use(#[from] rustls::Error),
}

/// The certificate in force.
pub struct ServerCertificate {
    ca: Ca,
    names: Vec<String>,
    current: Mutex<Current>,
}

struct Current {
    certified: Arc<CertifiedKey>,
    renew_at: SystemTime,
}

impl ServerCertificate {
    /// Issues the first one.
    pub fn new(ca: Ca, names: Vec<String>) -> Result<ServerCertificate, CertificateError> {
        let current = Mutex::new(issue(&ca, &names, SystemTime::now())?);
        Ok(ServerCertificate { ca, names, current })
    }

    fn get(&self, now: SystemTime) -> Arc<CertifiedKey> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if now >= current.renew_at {
            match issue(&self.ca, &self.names, now) {
                Ok(next) => *current = next,
                Err(error) => tracing::error!(%error, "the server certificate is not renewed"),
            }
        }
        current.certified.clone()
    }
}

fn issue(ca: &Ca, names: &[String], now: SystemTime) -> Result<Current, CertificateError> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let signed = ca.sign_server(&key, names, LIFE, now)?;
    let chain = vec![CertificateDer::from(signed.leaf_der), CertificateDer::from(ca.root_der().to_vec())];
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der)?;
    let half = signed.not_after.duration_since(now).unwrap_or_default() / 2;
    Ok(Current {
        certified: Arc::new(CertifiedKey::new(chain, signer)),
        renew_at: now.checked_add(half).unwrap_or(now),
    })
}

impl fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerCertificate").field("names", &self.names).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.get(SystemTime::now()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn renewed_at_half_life_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open(dir.path(), "cluster.local", SystemTime::now()).unwrap();
        let certificate = ServerCertificate::new(ca, vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let now = SystemTime::now();
        let first = certificate.get(now);
        assert!(Arc::ptr_eq(&first, &certificate.get(now + LIFE / 3)));
        let second = certificate.get(now + LIFE * 2 / 3);
        assert!(!Arc::ptr_eq(&first, &second));
        assert!(Arc::ptr_eq(&second, &certificate.get(now + LIFE)));
    }
}
