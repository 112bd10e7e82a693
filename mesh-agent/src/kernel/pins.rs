//! The directory of pins: what keeps the capture in force when the agent is gone. In: its path. Out: the places of maps
//! and links in it, under a lock that one agent at a time holds and that dies with its last holder.
//!
//! ```text
//! PIN PATH/            the lock; mode 0700
//!   v5/                by ABI version: what another version left is never read, only removed
//!     WORKLOADS ...    the maps
//!     links/           the cgroup's programs
//!     pods/COOKIE/     one pod's programs, by its namespace's cookie (a workload of the host by its number, and it has none
//!                        of its own); symbolic links: `workload`, to its
//!                        name, and `process`, to the process by whose pid it was given
//! ```

use std::fs::{self, DirBuilder, File, Permissions, TryLockError};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use mesh_common::abi::{ABI_VERSION, maps};

use super::{KernelError, bpf, link};
use crate::net::process::Process;

/// Where pins go when the settings do not say.
const PINS: &str = "/sys/fs/bpf/mesh";
const LINKS: &str = "links";
const PODS: &str = "pods";
/// Name, in a pod's directory, of the symbolic link that tells which workload it is.
const NAME: &str = "workload";
/// As [`NAME`], for the process by whose pid it was given.
const PROCESS: &str = "process";
/// How often the directory may be removed under our hands by an agent that is just leaving.
const TRIES: usize = 10;

const BUSY: &str = "another agent of this node is running: stop it, or start this one with --take-over to have it replace \
                    the other, or give it another node name or kernel.pinPath";

/// Fails if an agent holds the lock of this directory. To say so before something else gets in the way of a second one.
pub fn check_free(root: &Path) -> Result<(), KernelError> {
    match File::open(root).map(|lock| lock.try_lock()) {
        Ok(Err(TryLockError::WouldBlock)) => Err(KernelError::Pins { path: root.to_owned(), why: BUSY.into() }),
        _ => Ok(()),
    }
}

/// A locked directory of pins. Dropping it leaves everything in force.
pub(super) struct Pins {
    root: PathBuf,
    version: PathBuf,
    lock: File,
    /// Whether nothing was there.
    pub(super) fresh: bool,
}

/// A pod of which there are pins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Its namespace's cookie; of a workload of the host its number.
    pub cookie: u64,
    /// `namespace/name` of the workload, if it could be read.
    pub workload: Option<String>,
    /// The process by whose pid it was given, if it was.
    pub process: Option<Process>,
}

/// Where the settings put the pins of this node.
pub fn path(asked: Option<&Path>, node: &str) -> PathBuf {
    // A bpffs takes no dots in names.
    asked.map_or_else(|| Path::new(PINS).join(node.replace('.', "_")), Path::to_path_buf)
}

impl Pins {
    /// Makes the directory, or takes it over from an owner that is gone.
    pub(super) fn open(root: PathBuf) -> Result<Pins, KernelError> {
        let wrong = |why: String| KernelError::Pins { path: root.clone(), why };
        for _ in 0..TRIES {
            directory(&root).map_err(|e| wrong(e.to_string()))?;
            let lock = File::open(&root).map_err(|e| wrong(e.to_string()))?;
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(wrong(BUSY.into())),
                Err(TryLockError::Error(e)) => return Err(wrong(e.to_string())),
            }
            if is(&root, &lock) {
                return Pins::with(root, lock);
            }
        }
        Err(wrong("it is removed again and again by somebody else".into()))
    }

    /// As [`Pins::open`], with the lock that the running agent has handed over.
    pub(super) fn take_over(root: PathBuf, lock: OwnedFd) -> Result<Pins, KernelError> {
        let lock = File::from(lock);
        if !is(&root, &lock) {
            let why = "the running agent has its pins elsewhere; both need the same kernel.pinPath".into();
            return Err(KernelError::Pins { path: root, why });
        }
        Pins::with(root, lock)
    }

    fn with(root: PathBuf, lock: File) -> Result<Pins, KernelError> {
        let version = root.join(version_name(ABI_VERSION));
        let fresh = !version.exists();
        let made = [&version, &version.join(LINKS), &version.join(PODS)].into_iter().try_for_each(|d| directory(d));
        made.map_err(|e| KernelError::Pins { path: root.clone(), why: e.to_string() })?;
        Ok(Pins { root, version, lock, fresh })
    }

    /// The lock, to be handed over. It is held until its last copy is closed.
    pub(super) fn lock(&self) -> io::Result<OwnedFd> {
        Ok(self.lock.try_clone()?.into())
    }

    /// The whole directory.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of the maps.
    pub(super) fn maps(&self) -> &Path {
        &self.version
    }

    /// The pin of one of the cgroup's links.
    pub(super) fn link(&self, program: &str) -> PathBuf {
        self.version.join(LINKS).join(program)
    }

    /// Makes the directory for a pod's links.
    pub(super) fn make_pod(&self, number: u64, process: Option<Process>, workload: &str) -> io::Result<PathBuf> {
        let path = self.pod(number);
        directory(&path)?;
        let process = process.map(|process| process.to_string());
        for (name, wanted) in [(NAME, Some(workload)), (PROCESS, process.as_deref())] {
            let name = path.join(name);
            if fs::read_link(&name).ok().as_deref() != wanted.map(Path::new) {
                let _ = fs::remove_file(&name);
                wanted.map_or(Ok(()), |wanted| symlink(wanted, name))?;
            }
        }
        Ok(path)
    }

    /// Whether a pod has links here.
    pub(super) fn has_pod(&self, cookie: u64) -> bool {
        self.pod(cookie).exists()
    }

    /// Detaches a pod's programs. That there are none is no error.
    pub(super) fn remove_pod(&self, cookie: u64) -> io::Result<()> {
        remove_links(&self.pod(cookie))
    }

    /// The pods that have a directory here.
    pub(super) fn pods(&self) -> Vec<Left> {
        let named = names(&self.version.join(PODS)).into_iter().filter_map(|name| name.parse().ok());
        named
            .map(|cookie| Left {
                cookie,
                workload: self.told(cookie, NAME),
                process: self.told(cookie, PROCESS).and_then(|text| text.parse().ok()),
            })
            .collect()
    }

    /// Every link of a pod.
    pub(super) fn links_of(&self, cookie: u64) -> Vec<PathBuf> {
        let path = self.pod(cookie);
        names(&path).into_iter().filter(is_link).map(|name| path.join(name)).collect()
    }

    /// Directories of other ABI versions, whose owners are gone since we have the lock.
    pub(super) fn other_versions(&self) -> Vec<PathBuf> {
        let own = version_name(ABI_VERSION);
        let other = |name: &String| *name != own && version_of(name).is_some();
        names(&self.root).into_iter().filter(other).map(|name| self.root.join(name)).collect()
    }

    /// Detaches everything that one version has here and removes its maps: pods first.
    pub(super) fn remove_version(directory: &Path) -> io::Result<()> {
        // Without tcx a pod's programs are no links, and may be out of our reach: what does not know the pod lets all pass.
        match bpf::pinned(&directory.join(maps::WORKLOADS)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            map => bpf::clear(map?.as_fd())?,
        }
        let pods = directory.join(PODS);
        names(&pods).into_iter().try_for_each(|pod| remove_links(&pods.join(pod)))?;
        remove_links(&directory.join(LINKS))?;
        gone(fs::remove_dir_all(directory))
    }

    /// Detaches and removes everything, of every version.
    pub(super) fn remove(&self) -> io::Result<()> {
        Pins::remove_version(&self.version)?;
        self.other_versions().iter().try_for_each(|version| Pins::remove_version(version))?;
        for directory in self.root.ancestors().take_while(|p| p.starts_with(PINS) || *p == self.root) {
            // Others may have their own below, or have put something here.
            if fs::remove_dir(directory).is_err() {
                break;
            }
        }
        Ok(())
    }

    fn pod(&self, cookie: u64) -> PathBuf {
        self.version.join(PODS).join(cookie.to_string())
    }

    fn told(&self, cookie: u64, name: &str) -> Option<String> {
        Some(fs::read_link(self.pod(cookie).join(name)).ok()?.to_string_lossy().into_owned())
    }
}

fn version_name(version: u32) -> String {
    format!("v{version}")
}

fn version_of(name: &str) -> Option<u32> {
    name.strip_prefix('v')?.parse().ok()
}

fn directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o700))
}

fn is(path: &Path, file: &File) -> bool {
    let (Ok(a), Ok(b)) = (fs::metadata(path), file.metadata()) else { return false };
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Whether this is the pin of a link, and no symbolic link of ours.
fn is_link(name: &String) -> bool {
    name != NAME && name != PROCESS
}

/// Removes a directory of links, and detaches them.
fn remove_links(directory: &Path) -> io::Result<()> {
    names(directory).into_iter().filter(is_link).try_for_each(|name| link::remove(&directory.join(name)))?;
    gone(fs::remove_dir_all(directory))
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
