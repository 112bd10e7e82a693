//! Certificates and roots for TLS at ports of applications: the workload's own, or files.
//!
//! In: where they come from. Out: rustls' forms of them, the same ones as long as nothing has changed. Files are looked for in the
//! directory that the workload's settings name, and nowhere else: whoever writes configuration reads no other file of the node.
//! They are looked at again after five seconds. Never: blocks the worker, or shows a key in a message.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_core::resource::{CertificateSource, RootsSource};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Credential;
use super::ports::provider;

/// How long a file is believed to be as it was.
const FRESH: Duration = Duration::from_secs(5);
/// Largest file, in bytes.
const MAX_FILE: u64 = 4 << 20;
/// Sets of files that one workload keeps on one worker; one beyond it replaces an arbitrary other one.
const MAX_FILES: usize = 256;
/// Where systems keep the roots that they trust, the first that exists: Debian, Fedora and RHEL, openSUSE, OpenELEC, CentOS, Alpine.
const SYSTEM_ROOTS: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Why there is no certificate, or there are no roots.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The workload has no certificate yet.
    #[error("the workload has no certificate yet: see whether the agent reaches its control plane")]
    NoCredential,
    /// Files are not looked for.
    #[error(
        "{name}: the agent reads no files for this workload: set workloads[].tlsFiles to the directory where they are"
    )]
    NoDirectory {
        /// As configured.
        name: Arc<str>,
    },
    /// The name leads out of the directory.
    #[error("{name}: a file is named by a path without `..`")]
    Outside {
        /// As configured.
        name: Arc<str>,
    },
    /// A file does not hold what it should, or cannot be read.
    #[error("{path}: {why}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The operating system has no roots where they are looked for.
    #[error("the node has no file of trusted roots (looked for {} and others): install ca-certificates, or name a CA", SYSTEM_ROOTS[0])]
    NoSystemRoots,
}

/// What a handshake needs of one's own. Two that are the same hold the same pointers.
#[derive(Debug, Clone, Default)]
pub struct Materials {
    /// The certificate to show.
    pub certified: Option<Arc<CertifiedKey>>,
    /// Who may have signed the peer's; `None`: anybody.
    pub roots: Option<Arc<RootCertStore>>,
}

impl Materials {
    /// Whether both are the same things.
    pub(super) fn same(&self, other: &Self) -> bool {
        let key = |one: &Self| (one.certified.as_ref().map(Arc::as_ptr), one.roots.as_ref().map(Arc::as_ptr));
        key(self) == key(other)
    }
}

/// Where one workload's certificates and roots are, as one worker knows it.
#[derive(Debug)]
pub struct Secrets {
    credential: watch::Receiver<Option<Arc<Credential>>>,
    directory: Option<PathBuf>,
    files: RefCell<HashMap<Vec<PathBuf>, Kept>>,
}

/// What files held when they were last read.
#[derive(Debug, Clone)]
struct Kept {
    looked: Instant,
    stamps: Vec<Stamp>,
    materials: Materials,
}

/// Makes something of the texts of files; an error says which of them is wrong, and why.
type Parse = fn(&[Vec<u8>]) -> Result<Materials, (usize, String)>;

/// By what a change of a file shows: time of the last change, length, inode.
type Stamp = (Option<SystemTime>, u64, u64);

impl Secrets {
    /// `directory`: where the names of files begin.
    pub fn new(credential: watch::Receiver<Option<Arc<Credential>>>, directory: Option<PathBuf>) -> Self {
        Self { credential, directory, files: RefCell::default() }
    }

    /// Fetches both. Waits for the workload's first certificate for as long as the caller lets it.
    pub async fn materials(
        &self,
        certificate: Option<&CertificateSource>,
        roots: Option<&RootsSource>,
    ) -> Result<Materials, SecretError> {
        let certified = match certificate {
            None => None,
            Some(CertificateSource::Workload) => Some(self.credential().await?.certified.clone()),
            Some(CertificateSource::Files { chain, key }) => {
                let paths = vec![self.path(chain)?, self.path(key)?];
                self.read(paths, |texts| Ok(Materials { certified: Some(certified(texts)?), roots: None }))
                    .await?
                    .certified
            }
        };
        let roots = match roots {
            None => None,
            Some(RootsSource::Workload) => Some(self.credential().await?.roots.clone()),
            Some(RootsSource::File(name)) => self.roots(self.path(name)?).await?,
            Some(RootsSource::System) => self.roots(system_roots().ok_or(SecretError::NoSystemRoots)?).await?,
        };
        Ok(Materials { certified, roots })
    }

    async fn credential(&self) -> Result<Arc<Credential>, SecretError> {
        let mut credential = self.credential.clone();
        let first = credential.wait_for(Option::is_some).await.map_err(|_| SecretError::NoCredential)?;
        first.clone().ok_or(SecretError::NoCredential)
    }

    fn path(&self, name: &Arc<str>) -> Result<PathBuf, SecretError> {
        let directory = self.directory.as_ref().ok_or_else(|| SecretError::NoDirectory { name: name.clone() })?;
        let mut path = directory.clone();
        for part in Path::new(&**name).components() {
            match part {
                Component::Normal(part) => path.push(part),
                Component::RootDir | Component::CurDir => {}
                Component::ParentDir | Component::Prefix(_) => {
                    return Err(SecretError::Outside { name: name.clone() });
                }
            }
        }
        Ok(path)
    }

    async fn roots(&self, path: PathBuf) -> Result<Option<Arc<RootCertStore>>, SecretError> {
        let read = |texts: &[Vec<u8>]| Ok(Materials { certified: None, roots: Some(roots(&texts[0])?) });
        Ok(self.read(vec![path], read).await?.roots)
    }

    /// What files hold, read again only when they have changed.
    async fn read(&self, paths: Vec<PathBuf>, parse: Parse) -> Result<Materials, SecretError> {
        let kept = self.files.borrow().get(&paths).cloned();
        if let Some(kept) = &kept
            && kept.looked.elapsed() < FRESH
        {
            return Ok(kept.materials.clone());
        }
        // One looks for all who come meanwhile.
        if let Some(kept) = self.files.borrow_mut().get_mut(&paths) {
            kept.looked = Instant::now();
        }
        let (seen, asked) = (kept.as_ref().map(|kept| kept.stamps.clone()), paths.clone());
        let changed = tokio::task::spawn_blocking(move || changed(&asked, seen.as_deref(), parse)).await;
        let changed = changed.map_err(|error| SecretError::File { path: paths[0].clone(), why: error.to_string() })?;
        let (stamps, materials) = match (changed, kept) {
            (Ok(Some(changed)), _) => changed,
            (Ok(None), Some(kept)) => (kept.stamps, kept.materials),
            (Ok(None), None) => return Ok(Materials::default()),
            // What was good stays in force.
            (Err(error), Some(kept)) => {
                tracing::warn!(%error, "a file of TLS settings is no longer good: what it held before stays in force");
                (kept.stamps, kept.materials)
            }
            (Err(error), None) => return Err(error),
        };
        let mut files = self.files.borrow_mut();
        if files.len() >= MAX_FILES
            && !files.contains_key(&paths)
            && let Some(other) = files.keys().next().cloned()
        {
            files.remove(&other);
        }
        files.insert(paths, Kept { looked: Instant::now(), stamps, materials: materials.clone() });
        Ok(materials)
    }
}

/// Reads files unless they are as they were. Blocks.
fn changed(
    paths: &[PathBuf],
    seen: Option<&[Stamp]>,
    parse: Parse,
) -> Result<Option<(Vec<Stamp>, Materials)>, SecretError> {
    let failed = |path: &PathBuf, why: String| SecretError::File { path: path.clone(), why };
    let stamps: Result<Vec<Stamp>, _> =
        paths.iter().map(|path| stamp(path).map_err(|error| failed(path, error.to_string()))).collect();
    let stamps = stamps?;
    if seen == Some(&stamps) {
        return Ok(None);
    }
    let mut texts = Vec::with_capacity(paths.len());
    for path in paths {
        let mut text = Vec::new();
        let file = std::fs::File::open(path).map_err(|error| failed(path, error.to_string()))?;
        file.take(MAX_FILE + 1).read_to_end(&mut text).map_err(|error| failed(path, error.to_string()))?;
        if text.len() as u64 > MAX_FILE {
            return Err(failed(path, format!("larger than {MAX_FILE} bytes")));
        }
        texts.push(text);
    }
    let materials = parse(&texts).map_err(|(which, why)| failed(&paths[which.min(paths.len() - 1)], why))?;
    Ok(Some((stamps, materials)))
}

fn stamp(path: &Path) -> std::io::Result<Stamp> {
    let about = std::fs::metadata(path)?;
    if !about.is_file() {
        return Err(std::io::Error::other("is no file"));
    }
    Ok((about.modified().ok(), about.len(), std::os::unix::fs::MetadataExt::ino(&about)))
}

/// A chain and its key; an error says which of the two texts is wrong.
fn certified(texts: &[Vec<u8>]) -> Result<Arc<CertifiedKey>, (usize, String)> {
    let [chain, key] = texts else { return Err((0, "a chain and a key are needed".to_owned())) };
    let chain = certificates(chain).map_err(|why| (0, why))?;
    let key =
        PrivateKeyDer::from_pem_slice(key).map_err(|error| (1, format!("no private key in PEM form: {error}")))?;
    let certified = CertifiedKey::from_der(chain, key, &provider());
    certified.map(Arc::new).map_err(|error| (1, format!("the key does not fit the certificate: {error}")))
}

fn roots(text: &[u8]) -> Result<Arc<RootCertStore>, (usize, String)> {
    let list = certificates(text).map_err(|why| (0, why))?;
    let mut roots = RootCertStore::empty();
    // A system's file may hold some that cannot be used.
    let (added, _) = roots.add_parsable_certificates(list);
    if added == 0 { Err((0, "no certificate of an authority".to_owned())) } else { Ok(Arc::new(roots)) }
}

fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let list: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    let list = list.map_err(|error| format!("no certificates in PEM form: {error}"))?;
    if list.is_empty() { Err("no certificate in PEM form".to_owned()) } else { Ok(list) }
}

fn system_roots() -> Option<PathBuf> {
    SYSTEM_ROOTS.iter().map(PathBuf::from).find(|path| path.is_file())
}

#[cfg(test)]
mod tests;
