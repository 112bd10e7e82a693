//! The rights of an agent in the lab: the capabilities that the agent says it needs and no others, no way to new ones, a
//! cgroup namespace of its own as a container has, and a file system that is read-only but for some directories.
//!
//! In: what may be written. Out: a process confined before its first instruction. `deploy/` asks a container runtime
//! and systemd for the same (tested). It never changes the caller.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use anyhow::Result;
use mesh_agent::kernel::capabilities::CAPABILITIES;
use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use serde::{Deserialize, Serialize};

/// What a confined process may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// Directories that it may write; everything else it can only read.
    pub writable: Vec<PathBuf>,
    /// By number (linux/capability.h).
    pub capabilities: Vec<u32>,
}

impl Confinement {
    /// What an agent needs, and these directories.
    pub fn of_an_agent(writable: Vec<PathBuf>) -> Self {
        Self { writable, capabilities: CAPABILITIES.iter().map(|c| c.number).collect() }
    }

    /// All that is needed between fork and exec, prepared.
    ///
    /// # Errors
    /// A path with a zero byte.
    pub fn prepare(&self) -> Result<Prepared> {
        let writable = self.writable.iter().map(|path| CString::new(path.as_os_str().as_bytes()));
        Ok(Prepared {
            writable: writable.collect::<Result<_, _>>()?,
            held: self.capabilities.iter().fold(0, |set, number| set | 1 << number),
        })
    }
}

/// See [`Confinement::prepare`].
#[derive(Debug)]
pub struct Prepared {
    writable: Vec<CString>,
    /// A bit for each capability.
    held: u64,
}

/// `_LINUX_CAPABILITY_VERSION_3` of linux/capability.h.
const CAPABILITY_VERSION: u32 = 0x2008_0522;
/// More capabilities than any kernel has.
const MAX_CAPABILITIES: u32 = 64;

impl Prepared {
    /// Confines the calling process, which must be in its cgroup and in a mount namespace of its own already. Only system
    /// calls: no allocation, no lock.
    pub fn enter(&self) -> io::Result<()> {
        nix::sched::unshare(CloneFlags::CLONE_NEWCGROUP)?;
        set_read_only(c"/", true, libc::AT_RECURSIVE)?;
        let none = None::<&std::ffi::CStr>;
        for path in &self.writable {
            nix::mount::mount(Some(path.as_c_str()), path.as_c_str(), none, MsFlags::MS_BIND, none)?;
            set_read_only(path, false, 0)?;
        }
        for number in (0..MAX_CAPABILITIES).filter(|number| self.held & 1 << number == 0) {
            // SAFETY: numbers only.
            if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) } != 0 {
                match io::Error::last_os_error() {
                    e if e.raw_os_error() == Some(libc::EINVAL) => break,
                    e => return Err(e),
                }
            }
        }
        self.hold()?;
        // SAFETY: numbers only.
        if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Sets effective and permitted capabilities; none are inheritable.
    fn hold(&self) -> io::Result<()> {
        let header = [CAPABILITY_VERSION, 0];
        let (low, high) = (self.held as u32, (self.held >> 32) as u32);
        let data = [[low, low, 0], [high, high, 0]];
        // SAFETY: a header that asks for this version, and the two sets that belong to it, all live.
        let done = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// Sets or clears the read-only flag of the mount at a path, with [`libc::AT_RECURSIVE`] of all below it too.
fn set_read_only(path: &std::ffi::CStr, read_only: bool, flags: libc::c_int) -> io::Result<()> {
    let (set, clear) = if read_only { (libc::MOUNT_ATTR_RDONLY, 0) } else { (0, libc::MOUNT_ATTR_RDONLY) };
    let attr = libc::mount_attr { attr_set: set, attr_clr: clear, propagation: 0, userns_fd: 0 };
    let size = size_of::<libc::mount_attr>();
    // SAFETY: a live path that ends in 0, and a live attribute of the size that is told.
    let done =
        unsafe { libc::syscall(libc::SYS_mount_setattr, libc::AT_FDCWD, path.as_ptr(), flags, &raw const attr, size) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
