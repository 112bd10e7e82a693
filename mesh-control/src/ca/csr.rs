//! Reads a certificate signing request.
//!
//! In: PEM from the network, bounded. Out: the public key whose possession the request proves, and the SPIFFE names it
//! wishes for (a wish, never an authorisation).

use mesh_core::identity::SpiffeId;
use rcgen::SubjectPublicKeyInfo;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::FromDer;

/// Largest CSR that is looked at, in bytes of PEM.
pub const MAX_CSR_BYTES: usize = 16 * 1024;

/// A request whose signature was checked.
#[derive(Debug)]
pub struct Csr {
    /// The requester's public key.
    pub public_key: SubjectPublicKeyInfo,
    /// SPIFFE URIs in its subject alternative name.
    pub spiffe: Vec<SpiffeId>,
}

impl Csr {
    /// Parses and checks a request. The error says what is wrong with it.
    pub fn parse(pem: &str) -> Result<Csr, String> {
        if pem.len() > MAX_CSR_BYTES {
            return Err(format!("the CSR has {} bytes, at most {MAX_CSR_BYTES} are taken", pem.len()));
        }
        let (_, block) = parse_x509_pem(pem.as_bytes()).map_err(|error| format!("the CSR is no PEM: {error}"))?;
        if !matches!(block.label.as_str(), "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST") {
            return Err(format!("the CSR is a PEM block of `{}`, not of a certificate request", block.label));
        }
        let (rest, request) = X509CertificationRequest::from_der(&block.contents)
            .map_err(|error| format!("the CSR is no PKCS#10 request: {error}"))?;
        if !rest.is_empty() {
            return Err("bytes follow the CSR".to_owned());
        }
        request.verify_signature().map_err(|error| format!("the CSR's signature does not fit its key: {error}"))?;
        let public_key = SubjectPublicKeyInfo::from_der(request.certification_request_info.subject_pki.raw)
            .map_err(|error| format!("the CSR's key is of no supported kind: {error}"))?;
        let mut spiffe = Vec::new();
        for extension in request.requested_extensions().into_iter().flatten() {
            let ParsedExtension::SubjectAlternativeName(names) = extension else { continue };
            for name in &names.general_names {
                if let GeneralName::URI(uri) = name {
                    spiffe.push(uri.parse().map_err(|error| format!("the CSR names `{uri}`: {error}"))?);
                }
            }
        }
        Ok(Csr { public_key, spiffe })
    }
}
