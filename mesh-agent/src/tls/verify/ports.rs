//! Certificate checks of TLS at ports of applications, as Envoy makes them: the chain, where there are roots, then the rules for
//! names.
//!
//! In: the certificates a peer sent. Out: whether it is one that the settings want, or a refusal in words.

use std::sync::Arc;

use mesh_core::resource::SanMatch;
use mesh_core::resource::cluster::UpstreamTls;
use mesh_core::resource::listener::DownstreamTls;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore, SignatureScheme};

use super::{Subject, refuse};

/// Client side.
#[derive(Debug)]
pub(in super::super) struct NamedServer {
    roots: Option<Arc<RootCertStore>>,
    algorithms: WebPkiSupportedAlgorithms,
    settings: Arc<UpstreamTls>,
    /// The server must have the name that was dialled.
    named: bool,
}

impl NamedServer {
    pub(in super::super) fn new(
        roots: Option<Arc<RootCertStore>>,
        algorithms: WebPkiSupportedAlgorithms,
        settings: Arc<UpstreamTls>,
        named: bool,
    ) -> Self {
        Self { roots, algorithms, settings, named }
    }
}

impl ServerCertVerifier for NamedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // Without roots nothing is verified: that is what the settings say.
        if let Some(roots) = &self.roots {
            let cert = ParsedCertificate::try_from(end_entity)?;
            verify_server_cert_signed_by_trust_anchor(&cert, roots, intermediates, now, self.algorithms.all)?;
            let subject = Subject::read(end_entity).map_err(refuse)?;
            check_names(&subject, &self.settings.sans).map_err(refuse)?;
            if self.named {
                let host = server_name.to_str();
                if !subject.names.iter().any(|name| name.get().is_of_host(&host)) {
                    return Err(refuse(format!("it is made out to {subject}, expected {host}")));
                }
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    signatures!();
}

/// Server side.
#[derive(Debug)]
pub(in super::super) struct AnyClient {
    chain: Arc<dyn ClientCertVerifier>,
    algorithms: WebPkiSupportedAlgorithms,
    settings: Arc<DownstreamTls>,
}

impl AnyClient {
    pub(in super::super) fn new(
        roots: Arc<RootCertStore>,
        provider: &Arc<CryptoProvider>,
        settings: Arc<DownstreamTls>,
    ) -> Result<Self, String> {
        let builder = WebPkiClientVerifier::builder_with_provider(roots, provider.clone());
        let builder = if settings.require_client_certificate { builder } else { builder.allow_unauthenticated() };
        let chain = builder.build().map_err(|error| error.to_string())?;
        Ok(Self { chain, algorithms: provider.signature_verification_algorithms, settings })
    }
}

impl ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        self.settings.require_client_certificate
    }

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
        let subject = Subject::read(end_entity).map_err(refuse)?;
        check_names(&subject, &self.settings.sans).map_err(refuse)?;
        Ok(verified)
    }

    signatures!();
}

fn check_names(subject: &Subject, rules: &[SanMatch]) -> Result<(), String> {
    let obeyed = || subject.names.iter().any(|name| rules.iter().any(|rule| rule.matches(&name.get())));
    if rules.is_empty() || obeyed() {
        return Ok(());
    }
    let wanted: Vec<String> = rules.iter().map(|rule| rule.text.to_string()).collect();
    Err(format!("it is made out to {subject}, expected {}", wanted.join(" or ")))
}

/// What we have refused a certificate for.
pub(in super::super) fn reason(error: &OtherError) -> String {
    match error.0.downcast_ref::<super::TlsError>() {
        Some(super::TlsError::Peer(why)) => why.clone(),
        _ => error.0.to_string(),
    }
}
