//! Checks the machine before anything is loaded, so that what is missing is one clear line and not an errno. In:
//! settings. Out: the cgroup to attach to, what this kernel can do, or an error that says what to do. What it tries it
//! tries in a scratch cgroup and namespace, which are gone afterwards; it changes nothing else.

mod asm;
mod checks;
pub mod foreign;
mod live;
mod report;
mod scratch;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::{KernelError, bpf, load};
use crate::net::netns::NetNs;
use crate::settings::KernelSettings;
use checks::{Bench, Check};
use scratch::Scratch;

pub use checks::Need;
pub use report::{Finding, Report};

/// Where a bpffs belongs.
pub const BPFFS: &str = "/sys/fs/bpf";

/// The cgroup that the agent attaches to, and its own.
pub struct Cgroups {
    /// Where the programs go.
    pub attach: PathBuf,
    /// The agent's own.
    pub own: PathBuf,
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

/// Fails with one line for each thing that the mesh needs and this kernel has not. `own` is the agent's cgroup, `pins` a
/// directory on a bpffs. Takes some tens of milliseconds.
pub fn require(own: &Path, pins: &Path) -> Result<(), KernelError> {
    let needed = checks::all().into_iter().filter(|check| check.need == Need::Must).collect();
    let lacks: Vec<_> = run(needed, own, Some(pins))?.iter().filter_map(Finding::lack).collect();
    if lacks.is_empty() { Ok(()) } else { Err(KernelError::Unfit { lacks }) }
}

/// Tries everything, also what the mesh can do without, offers the object's programs to the kernel, and looks for what
/// others have attached to the cgroup and to the interfaces of `workloads`, named.
pub fn survey(settings: &KernelSettings, workloads: &[(String, NetNs)]) -> Result<Report, KernelError> {
    privileges()?;
    let (root, mount) = mounted()?;
    let own = own_cgroup(&fs::read_to_string("/proc/self/cgroup").unwrap_or_default(), &root, &mount);
    let pins = settings.pin_path.as_deref().unwrap_or(Path::new(BPFFS));
    let findings = run(checks::all(), own.as_deref().unwrap_or(&mount), bpffs_of(pins))?;
    let programs = bpffs_of(pins).map(|bpffs| load::offer(settings, bpffs)).unwrap_or_default();
    let programs = programs.into_iter().map(|(name, done)| (name, done.err().map(|e| e.to_string()))).collect();
    let cgroup = settings.cgroup.as_deref().unwrap_or(&mount);
    let mut others: Vec<String> = foreign::on_cgroup(cgroup).iter().map(ToString::to_string).collect();
    for (name, netns) in workloads {
        others.extend(foreign::in_namespace(netns).iter().map(|found| format!("workload {name}: {found}")));
        let unfit = foreign::unfit_interface(netns);
        others
            .extend(unfit.map(|i| format!("workload {name}: interface {i} is a netkit device: it cannot be enrolled")));
    }
    Ok(Report { release: kernel_release(), findings, programs, others })
}

fn run(checks: Vec<Check>, own: &Path, pins: Option<&Path>) -> Result<Vec<Finding>, KernelError> {
    let scratch = Scratch::new(own).map_err(|e| KernelError::Environment {
        missing: format!("no scratch place to try the kernel in: {e}"),
        remedy: "give the agent a cgroup v2 directory that it may write, and CAP_SYS_ADMIN (docs/security.md)".into(),
    })?;
    let storage = bpf::btf().and_then(|btf| bpf::storage(std::os::fd::AsFd::as_fd(&btf)));
    let bench = Bench { scratch: &scratch, pins, storage };
    Ok(checks.into_iter().map(|check| Finding::of(check, &bench)).collect())
}

/// The bpffs under a path that may not be there yet.
pub fn bpffs_of(pin_path: &Path) -> Option<&Path> {
    let existing = pin_path.ancestors().find(|p| p.exists())?;
    statfs(existing).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC).then_some(existing)
}

/// Fails unless the directory's place is on a bpffs.
pub fn bpffs(pin_path: &Path) -> Result<&Path, KernelError> {
    bpffs_of(pin_path).ok_or_else(|| KernelError::Environment {
        missing: format!("no bpffs at {}", pin_path.display()),
        remedy: "mount it (mount -t bpf bpf /sys/fs/bpf), or set kernel.pinPath to a directory on one".into(),
    })
}

/// The cgroup to attach to: the one that was asked for, or the root of the cgroup v2 hierarchy wherever it is mounted.
pub fn cgroups(asked: Option<&Path>) -> Result<Cgroups, KernelError> {
    let (root, mount) = mounted()?;
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

/// Root and mount point of the cgroup v2 hierarchy.
fn mounted() -> Result<(PathBuf, PathBuf), KernelError> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    cgroup2_mount(&mountinfo).ok_or_else(|| KernelError::Environment {
        missing: "no cgroup v2 hierarchy".into(),
        remedy: "mount it: mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified".into(),
    })
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

    /// What a kernel says that does not know a helper or a hook.
    #[test]
    fn each_missing_thing_is_one_line_with_all_that_helps() {
        let load = |attach, words: &[u64]| bpf::load(bpf::Kind::SockAddr, attach, "mesh_probe", words).map(|_| ());
        let unknown_helper = [9999 << 32 | 0x85, 1 << 32 | 0xb7, 0x95];
        let none = vec![
            checks::must("cgroup/connect4", "bpf_nothing", "99.1", "-", move |_| load(10, &unknown_helper)),
            checks::must("cgroup/nothing4", "attach", "99.2", "-", move |_| load(250, &[1 << 32 | 0xb7, 0x95])),
            checks::must("bpf", "load a program", "6.1", "-", |_| Ok(())),
        ];
        let (root, mount) = mounted().unwrap();
        let own = own_cgroup(&fs::read_to_string("/proc/self/cgroup").unwrap(), &root, &mount).unwrap();
        let lacks: Vec<_> = run(none, &own, None).unwrap().iter().filter_map(Finding::lack).collect();
        let text = KernelError::Unfit { lacks }.to_string();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        for part in ["bpf_nothing in cgroup/connect4", &kernel_release(), "Linux 99.1", "9999", "boot such a kernel"] {
            assert!(lines[0].contains(part), "{part}: {text}");
        }
        assert!(lines[1].contains("attach in cgroup/nothing4") && lines[1].contains("Invalid argument"), "{text}");
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
