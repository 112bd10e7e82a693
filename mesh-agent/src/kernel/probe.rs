//! Checks the machine before anything is loaded, so that what is missing is one clear line and not an errno. In:
//! settings. Out: the cgroup to attach to, or [`KernelError::Environment`]. Changes nothing.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::KernelError;

/// The cgroup that the agent attaches to, and its own.
pub struct Cgroups {
    /// Where the programs go.
    pub attach: PathBuf,
    /// The agent's own.
    own: PathBuf,
}

impl Cgroups {
    /// The id of the agent's own cgroup, if no other process is in it now: then none of its processes is ever caught.
    pub fn agent(&self) -> Option<u64> {
        id_if_alone(&self.own)
    }
}

/// The running kernel's release.
pub fn kernel_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// Fails unless this process may load programs.
pub fn privileges() -> Result<(), KernelError> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(KernelError::Environment {
        missing: "no right to load kernel programs".into(),
        remedy: "run the agent as root (in Kubernetes: a privileged container)".into(),
    })
}

/// Fails unless the directory's place is on a bpffs.
pub fn bpffs(pin_path: &Path) -> Result<(), KernelError> {
    let existing = pin_path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    match statfs(existing) {
        Ok(fs) if fs.filesystem_type() == BPF_FS_MAGIC => Ok(()),
        _ => Err(KernelError::Environment {
            missing: format!("no bpffs at {}", pin_path.display()),
            remedy: "mount it (mount -t bpf bpf /sys/fs/bpf), or set kernel.pinPath to a directory on one".into(),
        }),
    }
}

/// The cgroup to attach to: the one that was asked for, or the root of the cgroup v2 hierarchy wherever it is mounted.
pub fn cgroups(asked: Option<&Path>) -> Result<Cgroups, KernelError> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let Some((root, mount)) = cgroup2_mount(&mountinfo) else {
        return Err(KernelError::Environment {
            missing: "no cgroup v2 hierarchy".into(),
            remedy: "mount it: mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified".into(),
        });
    };
    let attach = asked.map_or_else(|| mount.clone(), Path::to_path_buf);
    let attach = attach.canonicalize().map_err(|e| KernelError::Environment {
        missing: format!("cgroup {}: {e}", attach.display()),
        remedy: "create it, or set kernel.cgroup to a directory of the cgroup v2 hierarchy".into(),
    })?;
    if !attach.starts_with(&mount) {
        return Err(KernelError::Environment {
            missing: format!("{} is not a cgroup v2 directory", attach.display()),
            remedy: format!("set kernel.cgroup to a directory below {}", mount.display()),
        });
    }
    let own = own_cgroup(&fs::read_to_string("/proc/self/cgroup").unwrap_or_default(), &root, &mount);
    // Without this the agent's accepted sockets would not come by sock_ops.
    let Some(own) = own.filter(|own| own.starts_with(&attach)) else {
        return Err(KernelError::Environment {
            missing: format!("the agent does not run inside the cgroup {} that it is to catch", attach.display()),
            remedy: format!("start it in a cgroup below {}, or leave kernel.cgroup out", attach.display()),
        });
    };
    Ok(Cgroups { attach, own })
}

/// Root and mount point of the first cgroup v2 mount. Format: proc_pid_mountinfo(5).
fn cgroup2_mount(mountinfo: &str) -> Option<(PathBuf, PathBuf)> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (root, mount) = (fields.next()?, fields.next()?);
        (after.split(' ').next()? == "cgroup2").then(|| (unescape(root), unescape(mount)))
    })
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &str) -> PathBuf {
    field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\").into()
}

/// The directory of the cgroup v2 line (`0::/path`) of /proc/self/cgroup.
fn own_cgroup(cgroup: &str, root: &Path, mount: &Path) -> Option<PathBuf> {
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
    let inside = Path::new(path).strip_prefix(root).ok()?;
    Some(mount.join(inside))
}

/// The cgroup's id, if this process is the only one in it. A process that shares the agent's cgroup, say because both
/// were started from one shell, must not escape the mesh by that.
fn id_if_alone(cgroup: &Path) -> Option<u64> {
    let procs = fs::read_to_string(cgroup.join("cgroup.procs")).ok()?;
    let alone = procs.lines().all(|pid| pid.parse() == Ok(std::process::id()));
    if alone { fs::metadata(cgroup).ok().map(|m| m.ino()) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_mount_wherever_it_is() {
        let text = "24 1 0:5 / /sys rw shared:2 - sysfs sysfs rw\n\
                    30 24 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                    31 24 0:27 /pods/x /sys/fs/cgroup/my\\040unified rw,nosuid shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup2_mount(text), Some(("/pods/x".into(), "/sys/fs/cgroup/my unified".into())));
        assert_eq!(cgroup2_mount("31 24 0:27 / /x rw - cgroup cgroup rw\nrubbish\n"), None);
    }

    #[test]
    fn own_cgroup_is_seen_from_the_mount() {
        let text = "3:cpu:/a\n0::/pods/x/agent\n";
        assert_eq!(own_cgroup(text, "/".as_ref(), "/m".as_ref()), Some("/m/pods/x/agent".into()));
        assert_eq!(own_cgroup(text, "/pods/x".as_ref(), "/m".as_ref()), Some("/m/agent".into()));
        assert_eq!(own_cgroup(text, "/other".as_ref(), "/m".as_ref()), None);
        assert_eq!(own_cgroup("3:cpu:/a\n", "/".as_ref(), "/m".as_ref()), None);
    }

    #[test]
    fn a_directory_that_is_no_bpffs_is_named_with_the_command() {
        let error = bpffs(Path::new("/proc/none/here")).unwrap_err().to_string();
        assert!(error.contains("/proc/none/here") && error.contains("mount -t bpf"), "{error}");
    }
}
