//! The names that a certificate is made out to, and the end of its validity.
//!
//! In: a leaf. Out: its subject alternative names (RFC 5280, 4.2.1.6). Says nothing about who signed it. Names of kinds that
//! nobody asks for are passed over.

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use mesh_core::identity::SpiffeId;
use mesh_core::resource::AltName;
use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;

/// One name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) enum Name {
    Dns(String),
    Uri(String),
    Email(String),
    Ip(IpAddr),
}

impl Name {
    pub(super) fn get(&self) -> AltName<'_> {
        match self {
            Name::Dns(name) => AltName::Dns(name),
            Name::Uri(name) => AltName::Uri(name),
            Name::Email(name) => AltName::Email(name),
            Name::Ip(ip) => AltName::Ip(*ip),
        }
    }

    fn read(name: &GeneralName<'_>) -> Option<Self> {
        match name {
            GeneralName::DNSName(name) => Some(Name::Dns((*name).to_owned())),
            GeneralName::URI(name) => Some(Name::Uri((*name).to_owned())),
            GeneralName::RFC822Name(name) => Some(Name::Email((*name).to_owned())),
            GeneralName::IPAddress(bytes) => match bytes.len() {
                4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| Name::Ip(bytes.into())),
                16 => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| Name::Ip(bytes.into())),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Who a certificate is made out to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Subject {
    pub(super) names: Vec<Name>,
    /// End of the validity.
    pub(in super::super) not_after: SystemTime,
}

impl Subject {
    pub(in super::super) fn read(leaf: &CertificateDer<'_>) -> Result<Self, String> {
        let (_, cert) = x509_parser::parse_x509_certificate(leaf).map_err(|error| format!("unreadable: {error}"))?;
        let names = cert.subject_alternative_name().map_err(|error| format!("subject alternative names: {error}"))?;
        let names = names.map(|names| names.value.general_names.iter().filter_map(Name::read).collect());
        let seconds = u64::try_from(cert.validity().not_after.timestamp()).map_err(|_| "expired before 1970")?;
        Ok(Self { names: names.unwrap_or_default(), not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) })
    }

    /// The SPIFFE identity, if there is exactly one URI name (X.509-SVID, section 2), and it is one.
    pub(in super::super) fn identity(&self) -> Option<SpiffeId> {
        let mut uris = self.names.iter().filter_map(|name| match name {
            Name::Uri(uri) => Some(uri),
            _ => None,
        });
        match (uris.next(), uris.next()) {
            (Some(only), None) => only.parse().ok(),
            _ => None,
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.names.is_empty() {
            return f.write_str("nobody (no subject alternative name)");
        }
        for (i, name) in self.names.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            match name {
                Name::Dns(name) | Name::Uri(name) | Name::Email(name) => write!(f, "{comma}{name}")?,
                Name::Ip(ip) => write!(f, "{comma}{ip}")?,
            }
        }
        Ok(())
    }
}
