//! Certificates for peers that are not of the mesh: a sidecar, another proxy, or one that nobody should trust.
//!
//! In: who signs, and an identity. Out: PEM files as Envoy, HAProxy and nginx read them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType};

/// Files of a certificate and its key, apart and in one.
pub struct Files {
    /// The certificate.
    pub chain: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Certificate and key.
    pub both: PathBuf,
}

/// Signs certificates.
pub struct Issuer {
    root: String,
    signer: rcgen::Issuer<'static, KeyPair>,
}

impl Issuer {
    /// A new root of this name. The name keeps it from being taken for a leaf that is signed by itself.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate()?;
        let root = params.self_signed(&key)?.pem();
        Ok(Self { root, signer: rcgen::Issuer::new(params, key) })
    }

    /// The CA whose `root-cert.pem` and `root-key.pem` stand in a directory.
    pub fn of(dir: &Path) -> Result<Self> {
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).with_context(|| format!("the CA's {name}"));
        let (root, key) = (read("root-cert.pem")?, KeyPair::from_pem(&read("root-key.pem")?)?);
        Ok(Self { signer: rcgen::Issuer::from_ca_cert_pem(&root, key)?, root })
    }

    /// Writes the root's certificate.
    pub fn write_root(&self, into: &Path, name: &str) -> Result<PathBuf> {
        write(into, name, &self.root)
    }

    /// Signs a certificate of client and server for a SPIFFE identity, and writes it.
    pub fn sign(&self, into: &Path, name: &str, identity: &str) -> Result<Files> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(identity.try_into()?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let (leaf, key) = (params.signed_by(&key, &self.signer)?.pem(), key.serialize_pem());
        Ok(Files {
            chain: write(into, &format!("{name}.pem"), &leaf)?,
            key: write(into, &format!("{name}-key.pem"), &key)?,
            both: write(into, &format!("{name}-both.pem"), &format!("{leaf}{key}"))?,
        })
    }
}

fn write(into: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = into.join(name);
    std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}
