//! TLS at ports of applications: with Istio's sidecars, and with servers and clients outside of the mesh.
//!
//! In: settings of a cluster or of a filter chain, and [`Materials`]. Out: rustls configurations, kept as long as settings and
//! materials are the same objects, so that a session is resumed only under the settings, and with the certificate, it was made
//! under; and what a finished handshake has proved. TLS 1.2 and 1.3.
//! Never: takes an identity from a certificate that nobody has verified.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use mesh_core::identity::SpiffeId;
use mesh_core::resource::cluster::{Carries, UpstreamTls};
use mesh_core::resource::listener::DownstreamTls;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, CommonState, ServerConfig, SupportedProtocolVersion};

use super::secrets::Materials;
use super::verify::{self, AnyClient, NamedServer, Subject};
use super::{SESSIONS_PER_CLIENT, TlsError};

#[cfg(test)]
mod tests;

/// ALPN of connections whose ends tell each other who they are (Istio), by a frame in front of all other bytes.
pub const ALPN_PEER_EXCHANGE: &[u8] = b"istio-peer-exchange";

/// Configurations of one kind that one workload keeps on one worker. One beyond it replaces an arbitrary other one, whose
/// sessions can then not be resumed.
const MAX_CONFIGS: usize = 1024;

/// Who has proved to be at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proved {
    /// The identity, if the certificate is verified and names exactly one.
    pub identity: Option<SpiffeId>,
}

impl Proved {
    /// Of a finished handshake. `verified`: its certificate, if any, had to be signed by a root of the mesh; nobody else can vouch for
    /// an identity in it. A resumed session does not verify the chain anew, so that its validity is looked at again.
    pub fn of(state: &CommonState, verified: bool, now: SystemTime) -> Result<Self, TlsError> {
        let leaf = state.peer_certificates().and_then(|chain| chain.first());
        let Some(leaf) = leaf.filter(|_| verified) else { return Ok(Self { identity: None }) };
        let subject = Subject::read(leaf).map_err(TlsError::Peer)?;
        if subject.not_after < now {
            return Err(TlsError::Peer(format!("the certificate of {subject} has expired")));
        }
        Ok(Self { identity: subject.identity() })
    }
}

/// A configuration together with what it was made of.
struct Entry<S, C> {
    settings: Arc<S>,
    materials: Materials,
    config: Arc<C>,
}

/// Configurations by the settings' place in memory, which stays taken as long as the entry is there, and a variant of them.
struct Cache<S, V, C>(RefCell<HashMap<(usize, V), Entry<S, C>>>);

impl<S, V, C> Default for Cache<S, V, C> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<S, V: Copy + Eq + std::hash::Hash, C> Cache<S, V, C> {
    fn get(
        &self,
        settings: &Arc<S>,
        variant: V,
        materials: &Materials,
        make: impl FnOnce() -> Result<C, TlsError>,
    ) -> Result<Arc<C>, TlsError> {
        let key = (Arc::as_ptr(settings) as usize, variant);
        let mut entries = self.0.borrow_mut();
        if let Some(entry) = entries.get(&key)
            && Arc::ptr_eq(&entry.settings, settings)
            && entry.materials.same(materials)
        {
            return Ok(entry.config.clone());
        }
        let config = Arc::new(make()?);
        // What is gone from the configuration goes here too: its keys, its sessions.
        let mut variants: HashMap<usize, usize> = HashMap::new();
        entries.keys().for_each(|(place, _)| *variants.entry(*place).or_default() += 1);
        // An entry holds its settings, and so does the verifier of its configuration.
        entries.retain(|(place, _), entry| {
            Arc::strong_count(&entry.settings) > 2 * variants.get(place).copied().unwrap_or_default()
        });
        if entries.len() >= MAX_CONFIGS
            && !entries.contains_key(&key)
            && let Some(other) = entries.keys().next().copied()
        {
            entries.remove(&other);
        }
        let entry = Entry { settings: settings.clone(), materials: materials.clone(), config: config.clone() };
        entries.insert(key, entry);
        Ok(config)
    }
}

/// Configurations of one workload for dialling servers.
#[derive(Default)]
pub struct Clients(Cache<UpstreamTls, (Carries, bool), ClientConfig>);

impl Clients {
    /// The one for these settings. `named`: the server must have the name that is dialled.
    pub fn config(
        &self,
        settings: &Arc<UpstreamTls>,
        carries: Carries,
        named: bool,
        materials: &Materials,
    ) -> Result<Arc<ClientConfig>, TlsError> {
        let make = || {
            let provider = provider();
            let algorithms = provider.signature_verification_algorithms;
            let verifier = NamedServer::new(materials.roots.clone(), algorithms, settings.clone(), named);
            let builder = ClientConfig::builder_with_provider(provider)
                .with_protocol_versions(versions(settings.only_tls13))?
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(verifier));
            let mut config = match &materials.certified {
                Some(own) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own.clone()))),
                None => builder.with_no_client_auth(),
            };
            config.alpn_protocols = settings.offers(carries).iter().map(|one| one.as_bytes().to_vec()).collect();
            config.resumption = rustls::client::Resumption::in_memory_sessions(SESSIONS_PER_CLIENT);
            Ok(config)
        };
        self.0.get(settings, (carries, named), materials, make)
    }
}

/// Configurations of one workload for serving clients.
#[derive(Default)]
pub struct Servers(Cache<DownstreamTls, bool, ServerConfig>);

impl Servers {
    /// The one for these settings. `offered`: what the client offers by ALPN. A client with which we share no protocol is served
    /// without one, as Envoy does, not refused.
    pub fn config<'o>(
        &self,
        settings: &Arc<DownstreamTls>,
        mut offered: impl Iterator<Item = &'o [u8]>,
        materials: &Materials,
    ) -> Result<Arc<ServerConfig>, TlsError> {
        let shared = offered.any(|offer| settings.alpn.iter().any(|own| own.as_bytes() == offer));
        let make = || {
            let own = materials.certified.clone().ok_or(TlsError::NoCertificate)?;
            let builder = ServerConfig::builder_with_provider(provider())
                .with_protocol_versions(versions(settings.only_tls13))?;
            let builder = match &materials.roots {
                Some(roots) => {
                    let verifier = AnyClient::new(roots.clone(), &provider(), settings.clone());
                    builder.with_client_cert_verifier(Arc::new(verifier.map_err(TlsError::Verifier)?))
                }
                None => builder.with_no_client_auth(),
            };
            let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(own)));
            if shared {
                config.alpn_protocols = settings.alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
            }
            config.send_half_rtt_data = false;
            Ok(config)
        };
        self.0.get(settings, shared, materials, make)
    }
}

fn versions(only_tls13: bool) -> &'static [&'static SupportedProtocolVersion] {
    static BOTH: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];
    if only_tls13 { &BOTH[..1] } else { &BOTH }
}

/// As [`super::provider`], with the suites of TLS 1.2 that have forward secrecy and authenticated encryption.
pub(super) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let make = || {
        use aws_lc_rs::{cipher_suite, kx_group};
        let mut provider = CryptoProvider::clone(&super::provider());
        provider.cipher_suites.extend([
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
            cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        ]);
        provider.kx_groups.push(kx_group::SECP384R1);
        Arc::new(provider)
    };
    PROVIDER.get_or_init(make).clone()
}

/// What a failed handshake came to, and what to do about it. `peer`: who the other end is.
pub fn explain(error: &std::io::Error, peer: &str) -> String {
    use rustls::{AlertDescription, CertificateError, Error};
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    let remedy = match inner {
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            format!(
                "none of the trusted roots has signed the {peer}'s certificate: see whether both trust one authority, or name the {peer}'s CA"
            )
        }
        Some(Error::InvalidCertificate(CertificateError::Other(other))) => {
            return format!("the {peer}'s certificate: {}", verify::reason(other));
        }
        Some(Error::NoCertificatesPresented) => format!("the {peer} shows no certificate, and one is required"),
        Some(Error::InvalidMessage(_)) => format!("the {peer} does not speak TLS: see whether it should"),
        Some(Error::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::CertificateUnknown
            | AlertDescription::AccessDenied,
        )) => format!("the {peer} refuses our certificate"),
        _ if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            format!("the {peer} ends the handshake: as a rule it does not speak TLS, or refuses us")
        }
        _ => return error.to_string(),
    };
    format!("{remedy} ({error})")
}

impl From<rustls::Error> for TlsError {
    fn from(error: rustls::Error) -> Self {
        TlsError::Settings(error)
    }
}
