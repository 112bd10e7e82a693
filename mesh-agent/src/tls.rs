//! Mutual TLS between agents: SPIFFE identities only, TLS 1.3 only. TLS at ports of applications stands in [`ports`].
//!
//! In: a [`Credential`] (key, chain, roots) and, for a client, the identities that the server may have.
//! Out: rustls configurations, and the verified [`SpiffeId`] of the peer of a finished handshake.
//! Never: trusts a DNS name, an address, or a certificate with no or with more than one URI name.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use mesh_core::identity::SpiffeId;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

pub mod ports;
pub mod secrets;
pub mod turns;
mod verify;

#[cfg(test)]
pub(crate) mod tests;

use verify::{ExpectServer, RequireClient};
pub use verify::{PeerCertificate, peer_certificate};

/// ALPN of HBONE: HTTP/2.
pub const ALPN_H2: &[u8] = b"h2";

/// The name that a client of a tunnel says first of all (SNI): the port that it wants to reach. Where several workloads have
/// one address, the server shows the certificate of the one that has the port. It is no secret, and proves nothing.
pub fn port_name(port: u16) -> Option<ServerName<'static>> {
    ServerName::try_from(format!("{PORT_NAME}{port}{NAMES}")).ok()
}

/// The port that such a name says.
pub fn named_port(name: &str) -> Option<u16> {
    let port = name.strip_prefix(PORT_NAME)?.strip_suffix(NAMES)?;
    port.bytes().all(|c| c.is_ascii_digit()).then(|| port.parse().ok())?
}

const PORT_NAME: &str = "port-";
const NAMES: &str = ".hbone";

/// How many client configurations (one per set of expected identities) one credential keeps.
/// A configuration beyond it replaces an arbitrary older one, whose sessions can then not be resumed.
const MAX_CLIENT_CONFIGS: usize = 4096;

/// Why a credential cannot be used, or a peer is not who it must be.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Key, chain or roots do not make a usable credential.
    #[error("credential of {identity}: {source}")]
    Credential {
        /// Whose credential.
        identity: SpiffeId,
        /// What rustls says.
        source: rustls::Error,
    },
    /// The client verifier could not be built, as a rule because there is no root certificate.
    #[error("credential of {identity}: roots: {why}")]
    Roots {
        /// Whose credential.
        identity: SpiffeId,
        /// What is wrong with the roots.
        why: String,
    },
    /// Nobody is expected: a tunnel without a known server identity is never opened.
    #[error("no server identity is expected, so none can be verified")]
    NobodyExpected,
    /// A server has no certificate to show.
    #[error("there is no certificate to show")]
    NoCertificate,
    /// Settings of TLS at a port of an application's do not fit together.
    #[error("TLS settings: {0}")]
    Settings(rustls::Error),
    /// Clients cannot be verified, as a rule because there is no root certificate.
    #[error("roots for clients: {0}")]
    Verifier(String),
    /// The peer's certificate is missing or names no acceptable identity.
    #[error("peer certificate: {0}")]
    Peer(String),
}

/// A workload's key and certificate chain, and the roots it trusts. Cheap to share, never changed: rotation makes a new one.
pub struct Credential {
    /// The identity that the chain's leaf certifies.
    pub identity: SpiffeId,
    /// Leaf first, then intermediates.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's private key. Kept in memory only.
    pub key: PrivateKeyDer<'static>,
    /// Who may sign peers.
    pub roots: Arc<RootCertStore>,
    /// End of the leaf's validity.
    pub not_after: SystemTime,
    certified: Arc<CertifiedKey>,
    server: OnceLock<Arc<ServerConfig>>,
    clients: Mutex<HashMap<Arc<[SpiffeId]>, Arc<ClientConfig>>>,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("identity", &self.identity).field("not_after", &self.not_after).finish()
    }
}

impl Credential {
    /// Puts a credential together. Fails when the key is of no known kind or does not belong to the leaf.
    pub fn new(
        identity: SpiffeId,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        roots: Arc<RootCertStore>,
        not_after: SystemTime,
    ) -> Result<Self, TlsError> {
        let certified = CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider())
            .map_err(|source| TlsError::Credential { identity: identity.clone(), source })?;
        Ok(Self {
            identity,
            chain,
            key,
            roots,
            not_after,
            certified: Arc::new(certified),
            server: OnceLock::new(),
            clients: Mutex::new(HashMap::new()),
        })
    }

    /// The configuration of this workload's tunnel server: a client must show a certificate of this trust domain.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, TlsError> {
        if let Some(config) = self.server.get() {
            return Ok(config.clone());
        }
        let verifier = RequireClient::new(self.roots.clone(), &provider(), self.identity.trust_domain())
            .map_err(|why| TlsError::Roots { identity: self.identity.clone(), why })?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|source| self.refused(source))?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(self.certified.clone())));
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        config.send_half_rtt_data = false;
        Ok(self.server.get_or_init(|| Arc::new(config)).clone())
    }

    /// The configuration for dialling a server that has one of the `expected` identities.
    /// One per set, so that a session is only ever resumed towards the identity it was made with.
    pub fn client_config(&self, expected: &Arc<[SpiffeId]>) -> Result<Arc<ClientConfig>, TlsError> {
        if expected.is_empty() {
            return Err(TlsError::NobodyExpected);
        }
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = clients.get(expected) {
            return Ok(config.clone());
        }
        let verifier = ExpectServer::new(self.roots.clone(), &provider(), expected.clone());
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|source| self.refused(source))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(self.certified.clone())));
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        config.resumption = rustls::client::Resumption::in_memory_sessions(SESSIONS_PER_CLIENT);
        let config = Arc::new(config);
        if clients.len() >= MAX_CLIENT_CONFIGS
            && let Some(old) = clients.keys().next().cloned()
        {
            clients.remove(&old);
        }
        clients.insert(expected.clone(), config.clone());
        Ok(config)
    }

    /// How long the leaf is still valid at `now`; zero when it is over.
    pub fn remaining(&self, now: SystemTime) -> Duration {
        self.not_after.duration_since(now).unwrap_or_default()
    }

    fn refused(&self, source: rustls::Error) -> TlsError {
        TlsError::Credential { identity: self.identity.clone(), source }
    }
}

/// Servers whose session tickets one client configuration remembers.
const SESSIONS_PER_CLIENT: usize = 16;

/// The one crypto provider: aws-lc-rs, TLS 1.3 suites with AES-128-GCM first (fastest where AES is in hardware),
/// X25519MLKEM768 preferred, then X25519 and P-256.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER
        .get_or_init(|| {
            use aws_lc_rs::{cipher_suite, kx_group};
            Arc::new(CryptoProvider {
                cipher_suites: vec![
                    cipher_suite::TLS13_AES_128_GCM_SHA256,
                    cipher_suite::TLS13_AES_256_GCM_SHA384,
                    cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
                ],
                kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1],
                ..aws_lc_rs::default_provider()
            })
        })
        .clone()
}
