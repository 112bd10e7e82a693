//! Checks the machine before anything is loaded, so that what is missing is one clear line and not an errno. In:
//! settings. Out: what this kernel can do, or an error that says what to do. What it tries it
//! tries in a scratch cgroup and namespace, which are gone afterwards; it changes nothing else.

mod asm;
mod checks;
pub mod foreign;
mod live;
mod queue;
mod report;
mod scratch;
mod shortcut;

use std::fs;
use std::path::Path;

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::capabilities;
use super::cgroups::Cgroups;
use super::{KernelError, bpf, load};
use crate::net::netns::NetNs;
use crate::settings::KernelSettings;
use checks::{Bench, Check};
use scratch::Scratch;

pub use checks::Need;
pub(super) use queue::offsets as queue;
pub use report::{Finding, Report};

/// Where a bpffs belongs.
pub const BPFFS: &str = "/sys/fs/bpf";

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
        remedy: "run the agent as root, with the capabilities that docs/security.md lists".into(),
    })
}

/// Fails with one line for each thing that the mesh needs and this kernel has not. `own` is the agent's cgroup, `pins` a
/// directory on a bpffs. Takes some tens of milliseconds.
pub fn require(own: &Path, pins: &Path) -> Result<(), KernelError> {
    let needed = checks::all().into_iter().filter(|check| check.need == Need::Must).collect();
    let lacks: Vec<_> = run(needed, own, Some(pins))?.iter().filter_map(Finding::lack).collect();
    if lacks.is_empty() { Ok(()) } else { Err(KernelError::Unfit { lacks }) }
}

/// The first thing that an application would see otherwise than over TCP if its connections with the agent had shortcuts, with
/// what was seen. No more is tried then: one is enough to use none. `own` is the agent's cgroup.
pub fn shortcut_lack(own: &Path) -> Result<Option<(&'static str, String)>, KernelError> {
    let found = run_until(shortcut::checks(), own, None, |finding| finding.missing.is_some())?;
    Ok(found.into_iter().find_map(|f| Some((f.feature, f.missing?.why))))
}

/// Tries everything, also what the mesh can do without, offers the object's programs to the kernel, and looks for what
/// others have attached to the cgroup and to the interfaces of `workloads`, named.
pub fn survey(settings: &KernelSettings, workloads: &[(String, NetNs)]) -> Result<Report, KernelError> {
    privileges()?;
    let (cgroup, own) = Cgroups::look(settings.cgroup.as_deref())?;
    let pins = settings.pin_path.as_deref().unwrap_or(Path::new(BPFFS));
    let findings = run(checks::all(), own.as_deref().unwrap_or(&cgroup), bpffs_of(pins))?;
    let programs = bpffs_of(pins).map(|bpffs| load::offer(settings, bpffs)).unwrap_or_default();
    let programs = programs.into_iter().map(|(name, done)| (name, done.err().map(|e| e.to_string()))).collect();
    let mut others: Vec<String> = foreign::on_cgroup(&cgroup).iter().map(ToString::to_string).collect();
    for (name, netns) in workloads {
        others.extend(foreign::in_namespace(netns).iter().map(|found| format!("workload {name}: {found}")));
        let unfit = foreign::unfit_interface(netns);
        others
            .extend(unfit.map(|i| format!("workload {name}: interface {i} is a netkit device: it cannot be enrolled")));
    }
    Ok(Report { release: kernel_release(), findings, programs, others })
}

fn run(checks: Vec<Check>, own: &Path, pins: Option<&Path>) -> Result<Vec<Finding>, KernelError> {
    run_until(checks, own, pins, |_| false)
}

/// Goes on with further checks until one is enough.
fn run_until(
    checks: Vec<Check>,
    own: &Path,
    pins: Option<&Path>,
    enough: impl Fn(&Finding) -> bool,
) -> Result<Vec<Finding>, KernelError> {
    let scratch = Scratch::new(own).map_err(|e| KernelError::Environment {
        missing: format!("no scratch place to try the kernel in: {e}"),
        remedy: if denied(&e) {
            capabilities::remedy()
        } else {
            "let the agent run in a cgroup v2 directory that it may write".into()
        },
    })?;
    let storage = bpf::btf().and_then(|btf| bpf::storage(std::os::fd::AsFd::as_fd(&btf)));
    let bench = Bench { scratch: &scratch, pins, storage };
    let mut findings = Vec::new();
    for check in checks {
        let finding = Finding::of(check, &bench);
        let enough = enough(&finding);
        findings.push(finding);
        if enough {
            break;
        }
    }
    Ok(findings)
}

/// Whether something was not allowed, and so may work for another.
fn denied(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::PermissionDenied
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

#[cfg(test)]
mod tests {
    use super::*;

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
        let cgroups = Cgroups::find(None).unwrap();
        let lacks: Vec<_> = run(none, &cgroups.own, None).unwrap().iter().filter_map(Finding::lack).collect();
        let text = KernelError::Unfit { lacks }.to_string();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        for part in ["bpf_nothing in cgroup/connect4", &kernel_release(), "Linux 99.1", "9999", "boot such a kernel"] {
            assert!(lines[0].contains(part), "{part}: {text}");
        }
        assert!(lines[1].contains("attach in cgroup/nothing4") && lines[1].contains("Invalid argument"), "{text}");
    }

    #[test]
    fn a_directory_that_is_no_bpffs_is_named_with_the_command() {
        let error = bpffs(Path::new("/proc/none/here")).unwrap_err().to_string();
        assert!(error.contains("/proc/none/here") && error.contains("mount -t bpf"), "{error}");
    }
}
