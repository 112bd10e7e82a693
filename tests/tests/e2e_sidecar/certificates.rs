//! Certificates as Istio's agent would give them to a sidecar: from the lab's CA, or from one that nobody trusts.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use mesh_tests::Lab;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};

/// Files of a certificate and its key.
pub struct Files {
    pub chain: PathBuf,
    pub key: PathBuf,
}

/// Writes a certificate for an identity into a directory. `known`: the lab's CA has signed it.
pub fn write(lab: &Lab, into: &Path, name: &str, identity: &str, known: bool) -> Result<Files> {
    let issuer = if known { of_lab(&lab.control().ca_dir())? } else { foreign()? };
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(identity.try_into()?)];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate()?;
    let leaf = params.signed_by(&key, &issuer)?;
    let files = Files { chain: into.join(format!("{name}.pem")), key: into.join(format!("{name}-key.pem")) };
    std::fs::write(&files.chain, leaf.pem())?;
    std::fs::write(&files.key, key.serialize_pem())?;
    Ok(files)
}

/// The lab's root.
pub fn root(lab: &Lab) -> PathBuf {
    lab.control().ca_dir().join("root-cert.pem")
}

fn of_lab(dir: &Path) -> Result<Issuer<'static, KeyPair>> {
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).with_context(|| format!("the CA's {name}"));
    let key = KeyPair::from_pem(&read("root-key.pem")?)?;
    Ok(Issuer::from_ca_cert_pem(&read("root-cert.pem")?, key)?)
}

fn foreign() -> Result<Issuer<'static, KeyPair>> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Ok(Issuer::new(params, KeyPair::generate()?))
}
