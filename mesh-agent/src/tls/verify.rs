//! Certificate checks: chain and validity by webpki, then the SPIFFE identity.
//!
//! In: the certificates a peer sent. Out: its identity, or a refusal in words.
//! A leaf carries exactly one URI name, a SPIFFE id (SPIFFE X.509-SVID, section 2); anything else is refused.

use std::sync::Arc;
use std::time::SystemTime;

use mesh_core::identity::SpiffeId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, CommonState, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};

use super::TlsError;
use names::Name;
pub(super) use names::Subject;
pub(super) use ports::{AnyClient, NamedServer, reason};

/// The rest of a verifier that has `algorithms`: signatures are checked as webpki does.
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls12_signature(message, cert, dss, &self.algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, cert, dss, &self.algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.algorithms.supported_schemes()
        }
    };
}

mod names;
mod ports;

/// What a verified peer certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    /// Who the peer is.
    pub identity: SpiffeId,
    /// End of the leaf's validity.
    pub not_after: SystemTime,
}

/// The peer of a finished handshake. Validity is looked at again, because a resumed session does not verify the chain anew.
pub fn peer_certificate(state: &CommonState, now: SystemTime) -> Result<PeerCertificate, TlsError> {
    let leaf = state
        .peer_certificates()
        .and_then(|chain| chain.first())
        .ok_or_else(|| TlsError::Peer("none was shown".to_owned()))?;
    let peer = read(leaf).map_err(TlsError::Peer)?;
    if peer.not_after < now {
        return Err(TlsError::Peer(format!("the certificate of {} has expired", peer.identity)));
    }
    Ok(peer)
}

/// Server side: requires a client certificate that chains to the roots, of the own trust domain.
#[derive(Debug)]
pub(super) struct RequireClient {
    chain: Arc<dyn ClientCertVerifier>,
    algorithms: WebPkiSupportedAlgorithms,
    trust_domain: String,
}

impl RequireClient {
    pub(super) fn new(
        roots: Arc<RootCertStore>,
        provider: &Arc<CryptoProvider>,
        trust_domain: &str,
    ) -> Result<Self, String> {
        let chain = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self {
            chain,
            algorithms: provider.signature_verification_algorithms,
            trust_domain: trust_domain.to_owned(),
        })
    }
}

impl ClientCertVerifier for RequireClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        let peer = read(end_entity).map_err(refuse)?;
        if peer.identity.trust_domain() != self.trust_domain {
            return Err(refuse(format!("{} is not of trust domain {}", peer.identity, self.trust_domain)));
        }
        Ok(verified)
    }

    signatures!();
}

/// Client side: the server must have one of the expected identities. The server name of the dial plays no part.
#[derive(Debug)]
pub(super) struct ExpectServer {
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
    expected: Arc<[SpiffeId]>,
}

impl ExpectServer {
    pub(super) fn new(roots: Arc<RootCertStore>, provider: &CryptoProvider, expected: Arc<[SpiffeId]>) -> Self {
        Self { roots, algorithms: provider.signature_verification_algorithms, expected }
    }
}

impl ServerCertVerifier for ExpectServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let cert = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&cert, &self.roots, intermediates, now, self.algorithms.all)?;
        let peer = read(end_entity).map_err(refuse)?;
        if !self.expected.contains(&peer.identity) {
            return Err(refuse(format!("the server is {}, expected {}", peer.identity, list(&self.expected))));
        }
        Ok(ServerCertVerified::assertion())
    }

    signatures!();
}

/// Reads identity and end of validity from a leaf. Says nothing about who signed it.
fn read(leaf: &CertificateDer<'_>) -> Result<PeerCertificate, String> {
    let Subject { names, not_after } = Subject::read(leaf)?;
    let mut uris = names.iter().filter_map(|name| match name {
        Name::Uri(uri) => Some(uri),
        _ => None,
    });
    let uri = uris.next().ok_or(if names.is_empty() { "no subject alternative name" } else { "no URI name" })?;
    if uris.next().is_some() {
        return Err("more than one URI name".to_owned());
    }
    let identity = uri.parse::<SpiffeId>().map_err(|error| format!("URI name {uri:?}: {error}"))?;
    Ok(PeerCertificate { identity, not_after })
}

fn refuse(why: String) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(TlsError::Peer(why)))))
}

fn list(ids: &[SpiffeId]) -> String {
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
}
