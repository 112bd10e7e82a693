//! Certificates as an attacker or a peer would have them: from the lab's CA, or from one that nobody trusts.

use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A certificate authority of which we hold the key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
}

/// What a peer shows.
pub struct Shown {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl Authority {
    /// The lab's own: root may read its key.
    pub fn of_lab(ca_dir: &Path) -> Result<Self> {
        let read = |name: &str| std::fs::read_to_string(ca_dir.join(name)).with_context(|| format!("the CA's {name}"));
        let key = KeyPair::from_pem(&read("root-key.pem")?)?;
        let pem = read("root-cert.pem")?;
        let root = rustls::pki_types::pem::PemObject::from_pem_slice(pem.as_bytes())?;
        Ok(Self { issuer: Issuer::from_ca_cert_pem(&pem, key)?, root })
    }

    /// One of the same name that nobody trusts.
    pub fn foreign() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::OrganizationName, "cluster.local");
        let key = KeyPair::generate()?;
        let root = params.self_signed(&key)?.der().clone();
        Ok(Self { issuer: Issuer::new(params, key), root })
    }

    /// A leaf for a URI name, or for a DNS name only, valid now or only in the past.
    pub fn issue(&self, uri: Option<&str>, expired: bool) -> Result<Shown> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = match uri {
            Some(uri) => vec![SanType::URI(uri.try_into()?)],
            None => vec![SanType::DnsName("server.default.svc".try_into()?)],
        };
        params.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        if expired {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2020, 1, 2);
        }
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, &self.issuer)?.der().clone();
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        Ok(Shown { chain: vec![leaf, self.root.clone()], key })
    }
}
