//! The parts of TLS settings that both sides share (`CommonTlsContext`).
//!
//! In: the message. Out: names of secrets, ALPN, names a peer must have. Inline keys, pinned
//! hashes and foreign validators are refused: identities come from SDS names only.

use std::sync::Arc;

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;

use crate::resource::StringMatch;
use crate::resource::fault::{At, Fault, each};
use crate::resource::wire::refuse;

/// What both sides of TLS share.
pub(crate) struct CommonTls {
    pub(crate) certificate: Option<Arc<str>>,
    pub(crate) roots: Option<Arc<str>>,
    pub(crate) sans: Vec<StringMatch>,
    pub(crate) alpn: Vec<Arc<str>>,
}

impl CommonTls {
    /// Protocol versions and ciphers are accepted without effect: ours are TLS 1.3 with today's suites.
    pub(crate) fn parse(message: Option<&pb::CommonTlsContext>) -> Result<Self, Fault> {
        let Some(message) = message else {
            return Ok(CommonTls { certificate: None, roots: None, sans: Vec::new(), alpn: Vec::new() });
        };
        refuse!(message;
            tls_certificates, tls_certificate_provider_instance, custom_tls_certificate_selector,
            tls_certificate_certificate_provider, tls_certificate_certificate_provider_instance,
            custom_handshaker, key_log,
        );
        let certificate = match message.tls_certificate_sds_secret_configs.as_slice() {
            [] => None,
            [only] => Some(Arc::from(only.name.as_str())),
            _ => {
                return Err(Fault::field("tls_certificate_sds_secret_configs", "at most one certificate is supported"));
            }
        };
        let (roots, sans) = validation(message.validation_context_type.as_ref())?;
        Ok(CommonTls {
            certificate,
            roots,
            sans,
            alpn: message.alpn_protocols.iter().map(|p| Arc::from(p.as_str())).collect(),
        })
    }
}

type Validation = (Option<Arc<str>>, Vec<StringMatch>);

fn validation(message: Option<&pb::common_tls_context::ValidationContextType>) -> Result<Validation, Fault> {
    use pb::common_tls_context::ValidationContextType as By;
    match message {
        None => Ok((None, Vec::new())),
        Some(By::ValidationContextSdsSecretConfig(sds)) => Ok((Some(Arc::from(sds.name.as_str())), Vec::new())),
        Some(By::ValidationContext(context)) => {
            let sans = subject_names(context).at("validation_context")?;
            if sans.is_empty() {
                Ok((None, sans))
            } else {
                // Names checked against no root would prove nothing.
                Err(Fault::field("validation_context", "subject names need roots from SDS"))
            }
        }
        Some(By::CombinedValidationContext(combined)) => {
            refuse!(combined;
                validation_context_certificate_provider,
                validation_context_certificate_provider_instance,
            );
            let sans = match &combined.default_validation_context {
                Some(context) => subject_names(context).at("combined_validation_context.default_validation_context")?,
                None => Vec::new(),
            };
            let roots = combined
                .validation_context_sds_secret_config
                .as_ref()
                .map(|sds| Arc::from(sds.name.as_str()))
                .ok_or_else(|| {
                    Fault::field("combined_validation_context.validation_context_sds_secret_config", "missing")
                })?;
            Ok((Some(roots), sans))
        }
        Some(_) => Err(Fault::field("validation_context_type", "certificate providers are not supported")),
    }
}

fn subject_names(message: &pb::CertificateValidationContext) -> Result<Vec<StringMatch>, Fault> {
    refuse!(message;
        trusted_ca, ca_certificate_provider_instance, system_root_certs, verify_certificate_spki,
        verify_certificate_hash, require_signed_certificate_timestamp, crl,
        allow_expired_certificate, trust_chain_verification, custom_validator_config,
        max_verify_depth,
    );
    let mut sans = each("match_subject_alt_names", &message.match_subject_alt_names, StringMatch::parse)?;
    sans.extend(each("match_typed_subject_alt_names", &message.match_typed_subject_alt_names, |typed| {
        refuse!(typed; oid);
        match &typed.matcher {
            Some(matcher) => StringMatch::parse(matcher).at("matcher"),
            None => Err(Fault::field("matcher", "missing")),
        }
    })?);
    Ok(sans)
}
