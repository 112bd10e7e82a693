//! The parts of TLS settings that both sides share (`CommonTlsContext`).
//!
//! In: the message. Out: where certificate and roots come from, ALPN, names a peer must have. Keys and certificates written
//! into the configuration, pinned hashes, foreign validators and secrets that nobody here can fetch are refused.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;

use crate::resource::fault::{At, Fault, each};
use crate::resource::wire::refuse;

mod names;

pub use names::{AltName, SanKind, SanMatch};

/// SDS name of the workload's own certificate (Istio).
const OWN_CERTIFICATE: &str = "default";
/// SDS name of the roots that vouch for workloads (Istio).
const OWN_ROOTS: &str = "ROOTCA";
/// SDS name of a certificate and key in files: `file-cert:CHAIN~KEY` (Istio).
const FILE_CERTIFICATE: &str = "file-cert:";
/// SDS name of roots in a file: `file-root:FILE`, or `file-root:system` (Istio).
const FILE_ROOTS: &str = "file-root:";
const SYSTEM: &str = "system";

/// Where one's own certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateSource {
    /// The workload's identity.
    Workload,
    /// Files in PEM form, as the workload names them.
    Files {
        /// Leaf first, then intermediates.
        chain: Arc<str>,
        /// The leaf's private key.
        key: Arc<str>,
    },
}

/// Who may sign a peer's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootsSource {
    /// Those that sign workloads.
    Workload,
    /// Those that the operating system trusts.
    System,
    /// Those in a file in PEM form, as the workload names it.
    File(Arc<str>),
}

/// What both sides of TLS share.
#[derive(Default)]
pub(crate) struct CommonTls {
    pub(crate) certificate: Option<CertificateSource>,
    pub(crate) roots: Option<RootsSource>,
    pub(crate) sans: Vec<SanMatch>,
    pub(crate) alpn: Vec<Arc<str>>,
    pub(crate) only_tls13: bool,
}

impl CommonTls {
    /// Ciphers, and versions other than TLS 1.3 as the least one, are accepted without effect: ours are TLS 1.2 and 1.3 with
    /// today's suites.
    pub(crate) fn parse(message: Option<&pb::CommonTlsContext>) -> Result<Self, Fault> {
        let Some(message) = message else { return Ok(CommonTls::default()) };
        refuse!(message;
            tls_certificate_provider_instance, custom_tls_certificate_selector,
            tls_certificate_certificate_provider, tls_certificate_certificate_provider_instance,
            custom_handshaker, key_log,
        );
        let (roots, sans) = validation(message.validation_context_type.as_ref())?;
        let least = message.tls_params.as_ref().map(|params| params.tls_minimum_protocol_version);
        Ok(CommonTls {
            certificate: certificate(message)?,
            roots,
            sans,
            alpn: message.alpn_protocols.iter().map(|p| Arc::from(p.as_str())).collect(),
            only_tls13: least == Some(pb::tls_parameters::TlsProtocol::TlSv13.into()),
        })
    }
}

fn certificate(message: &pb::CommonTlsContext) -> Result<Option<CertificateSource>, Fault> {
    match (message.tls_certificates.as_slice(), message.tls_certificate_sds_secret_configs.as_slice()) {
        ([], []) => Ok(None),
        ([], [only]) => secret_certificate(&only.name).map(Some).at("tls_certificate_sds_secret_configs[0].name"),
        ([only], []) => certificate_files(only).map(Some).at("tls_certificates[0]"),
        ([], _) => Err(Fault::field("tls_certificate_sds_secret_configs", "at most one certificate is supported")),
        _ => Err(Fault::field("tls_certificates", "at most one certificate is supported")),
    }
}

fn secret_certificate(name: &str) -> Result<CertificateSource, Fault> {
    if name == OWN_CERTIFICATE {
        return Ok(CertificateSource::Workload);
    }
    let files = name.strip_prefix(FILE_CERTIFICATE).and_then(|files| files.split_once('~'));
    match files {
        Some((chain, key)) if !chain.is_empty() && !key.is_empty() => {
            Ok(CertificateSource::Files { chain: chain.into(), key: key.into() })
        }
        _ => Err(Fault::new(format!(
            "secret {name:?} is not supported: supported are \"default\" and file-cert:CHAIN~KEY"
        ))),
    }
}

fn certificate_files(message: &pb::TlsCertificate) -> Result<CertificateSource, Fault> {
    refuse!(message; private_key_provider, password, pkcs12, ocsp_staple, signed_certificate_timestamp);
    let chain = file(message.certificate_chain.as_ref()).at("certificate_chain")?;
    let key = file(message.private_key.as_ref()).at("private_key")?;
    Ok(CertificateSource::Files { chain, key })
}

fn file(message: Option<&DataSource>) -> Result<Arc<str>, Fault> {
    match message.and_then(|source| source.specifier.as_ref()) {
        Some(data_source::Specifier::Filename(name)) if !name.is_empty() => Ok(name.as_str().into()),
        Some(_) => Err(Fault::new("only a filename is supported")),
        None => Err(Fault::new("missing")),
    }
}

type Validation = (Option<RootsSource>, Vec<SanMatch>);

fn validation(message: Option<&pb::common_tls_context::ValidationContextType>) -> Result<Validation, Fault> {
    use pb::common_tls_context::ValidationContextType as By;
    match message {
        None => Ok((None, Vec::new())),
        Some(By::ValidationContextSdsSecretConfig(sds)) => {
            let roots = secret_roots(&sds.name).at("validation_context_sds_secret_config.name")?;
            Ok((Some(roots), Vec::new()))
        }
        Some(By::ValidationContext(context)) => own_validation(context).at("validation_context"),
        Some(By::CombinedValidationContext(combined)) => {
            combined_validation(combined).at("combined_validation_context")
        }
        Some(_) => Err(Fault::field("validation_context_type", "certificate providers are not supported")),
    }
}

fn own_validation(message: &pb::CertificateValidationContext) -> Result<Validation, Fault> {
    let sans = subject_names(message)?;
    let roots = match (&message.trusted_ca, &message.system_root_certs) {
        (None, None) => None,
        (Some(source), None) => Some(RootsSource::File(file(Some(source)).at("trusted_ca")?)),
        (None, Some(_)) => Some(RootsSource::System),
        (Some(_), Some(_)) => return Err(Fault::field("system_root_certs", "roots are named twice")),
    };
    if roots.is_none() && !sans.is_empty() {
        // Names checked against no root would prove nothing.
        return Err(Fault::new("subject names need roots: trusted_ca, system_root_certs or SDS"));
    }
    Ok((roots, sans))
}

fn combined_validation(
    message: &pb::common_tls_context::CombinedCertificateValidationContext,
) -> Result<Validation, Fault> {
    refuse!(message; validation_context_certificate_provider, validation_context_certificate_provider_instance);
    let sans = match &message.default_validation_context {
        Some(context) => {
            refuse!(context; trusted_ca, system_root_certs);
            subject_names(context).at("default_validation_context")?
        }
        None => Vec::new(),
    };
    let secret = message.validation_context_sds_secret_config.as_ref();
    let secret = secret.ok_or_else(|| Fault::field("validation_context_sds_secret_config", "missing"))?;
    let roots = secret_roots(&secret.name).at("validation_context_sds_secret_config.name")?;
    Ok((Some(roots), sans))
}

fn secret_roots(name: &str) -> Result<RootsSource, Fault> {
    match (name, name.strip_prefix(FILE_ROOTS)) {
        (OWN_ROOTS, _) => Ok(RootsSource::Workload),
        (_, Some(SYSTEM)) => Ok(RootsSource::System),
        (_, Some(file)) if !file.is_empty() => Ok(RootsSource::File(file.into())),
        _ => Err(Fault::new(format!("secret {name:?} is not supported: supported are \"ROOTCA\" and file-root:FILE"))),
    }
}

fn subject_names(message: &pb::CertificateValidationContext) -> Result<Vec<SanMatch>, Fault> {
    refuse!(message;
        ca_certificate_provider_instance, verify_certificate_spki, verify_certificate_hash,
        require_signed_certificate_timestamp, crl, allow_expired_certificate, trust_chain_verification,
        custom_validator_config, max_verify_depth,
    );
    let mut sans = each("match_subject_alt_names", &message.match_subject_alt_names, SanMatch::untyped)?;
    sans.extend(each("match_typed_subject_alt_names", &message.match_typed_subject_alt_names, SanMatch::typed)?);
    Ok(sans)
}

/// What nobody may ask for: a client's certificate that nobody verifies would prove nothing.
pub(crate) fn check_required(required: bool, roots: Option<&RootsSource>) -> Result<(), Fault> {
    if required && roots.is_none() {
        return Err(Fault::field("require_client_certificate", "needs roots by which the certificate is verified"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
