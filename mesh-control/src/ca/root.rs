//! The root key and certificate on disk.
//!
//! In: the CA directory. Out: the root, created at first start; or one line that says what is wrong and what to do.
//! Never: starts with a key that others can read, with half a pair, or with a pair that does not fit.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData,
};
use time::OffsetDateTime;
use x509_parser::pem::parse_x509_pem;

/// File of the root's private key, PKCS#8 PEM, mode 0600.
pub const KEY_FILE: &str = "root-key.pem";
/// File of the root certificate, PEM.
pub const CERT_FILE: &str = "root-cert.pem";
/// Life of a root created here: ten years.
const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Largest file read.
const MAX_FILE: u64 = 64 * 1024;

/// Why the CA cannot start.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// A file or directory cannot be read or written.
    #[error("CA: {}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The key is open to others.
    #[error("CA: {} has mode {mode:04o}, others can read the root key; run: chmod 600 {0}", path.display())]
    Mode {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Only one file of the pair is there.
    #[error(
        "CA: {} is missing beside {}; restore it from a backup, or remove both to create a new root (every workload then needs a new certificate)",
        missing.display(), present.display()
    )]
    Half {
        /// The missing file.
        missing: PathBuf,
        /// The other one.
        present: PathBuf,
    },
    /// A file of the pair cannot be used.
    #[error("CA: {}: {why}", path.display())]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Key generation or self-signing failed.
    #[error("CA: creating the root failed: {0}")]
    Create(#[from] rcgen::Error),
}

pub(super) struct Root {
    pub issuer: Issuer<'static, KeyPair>,
    pub pem: String,
    pub der: Vec<u8>,
    pub not_after: SystemTime,
}

pub(super) fn open(dir: &Path, trust_domain: &str, now: SystemTime) -> Result<Root, RootError> {
    let key_path = dir.join(KEY_FILE);
    let cert_path = dir.join(CERT_FILE);
    match (exists(&key_path)?, exists(&cert_path)?) {
        (false, false) => create(dir, &key_path, &cert_path, trust_domain, now)?,
        (true, false) => return Err(RootError::Half { missing: cert_path, present: key_path }),
        (false, true) => return Err(RootError::Half { missing: key_path, present: cert_path }),
        (true, true) => {}
    }
    load(&key_path, &cert_path, now)
}

fn exists(path: &Path) -> Result<bool, RootError> {
    path.try_exists().map_err(|source| RootError::Io { path: path.to_owned(), source })
}

fn create(dir: &Path, key_path: &Path, cert_path: &Path, trust_domain: &str, now: SystemTime) -> Result<(), RootError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| RootError::Io { path: dir.to_owned(), source })?;
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain);
    params.distinguished_name.push(DnType::CommonName, "mesh root");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(super::random_serial());
    params.not_before = OffsetDateTime::from(now.checked_sub(super::CLOCK_SKEW).unwrap_or(now));
    params.not_after = OffsetDateTime::from(now.checked_add(ROOT_LIFE).unwrap_or(now));
    let cert = params.self_signed(&key)?;
    // The certificate first: a crash between the two leaves half a pair, which the next start names, never an unknown key.
    write_new(cert_path, cert.pem().as_bytes(), 0o644)?;
    write_new(key_path, key.serialize_pem().as_bytes(), 0o600)?;
    tracing::info!(directory = %dir.display(), %trust_domain, "created a new root certificate");
    Ok(())
}

fn write_new(path: &Path, content: &[u8], mode: u32) -> Result<(), RootError> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(content)?;
        file.sync_all()
    };
    write().map_err(|source| RootError::Io { path: path.to_owned(), source })
}

fn read(path: &Path) -> Result<String, RootError> {
    let read = || {
        if fs::metadata(path)?.len() > MAX_FILE {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "too large for a PEM file of one key or certificate",
            ));
        }
        fs::read_to_string(path)
    };
    read().map_err(|source| RootError::Io { path: path.to_owned(), source })
}

fn load(key_path: &Path, cert_path: &Path, now: SystemTime) -> Result<Root, RootError> {
    let mode =
        fs::metadata(key_path).map_err(|source| RootError::Io { path: key_path.to_owned(), source })?.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(RootError::Mode { path: key_path.to_owned(), mode });
    }
    let key_unusable = |why: String| RootError::Unusable { path: key_path.to_owned(), why };
    let cert_unusable = |why: String| RootError::Unusable { path: cert_path.to_owned(), why };

    let key = KeyPair::from_pem(&read(key_path)?)
        .map_err(|error| key_unusable(format!("no private key in PKCS#8 PEM ({error}); restore it from a backup")))?;
    let pem = read(cert_path)?;
    let (_, block) = parse_x509_pem(pem.as_bytes())
        .map_err(|error| cert_unusable(format!("no PEM certificate ({error}); restore it from a backup")))?;
    let cert = block
        .parse_x509()
        .map_err(|error| cert_unusable(format!("no X.509 certificate ({error}); restore it from a backup")))?;
    if cert.public_key().raw != key.subject_public_key_info().as_slice() {
        return Err(cert_unusable(format!(
            "its key is not the one in {}; restore the pair from a backup",
            key_path.display()
        )));
    }
    if !cert.is_ca() {
        return Err(cert_unusable("it is not a CA certificate (basic constraints)".to_owned()));
    }
    let end = cert.validity().not_after.timestamp();
    let not_after = u64::try_from(end)
        .ok()
        .and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)))
        .unwrap_or(SystemTime::UNIX_EPOCH);
    if not_after <= now {
        return Err(cert_unusable(format!("it expired at {}; put a new pair in its place", cert.validity().not_after)));
    }
    let issuer = Issuer::from_ca_cert_der(&block.contents.as_slice().into(), key)
        .map_err(|error| cert_unusable(format!("it cannot sign ({error})")))?;
    // Only the first block counts, and it alone is handed out.
    let der = block.contents.clone();
    let pem = to_pem(&der);
    Ok(Root { issuer, pem, der, not_after })
}

fn to_pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}
