//! What the testbed asks of the machine: root, cgroup v2, the BPF file system, `ip`, our binaries, bounded waits.
//!
//! In: paths and limits. Out: results whose errors say what to do. It never changes anything outside the paths given.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::mount::MsFlags;

/// Where the BPF file system belongs.
pub const BPFFS: &str = "/sys/fs/bpf";
/// How often a condition is looked at while waiting for it.
const POLL: Duration = Duration::from_millis(15);

/// Checks that we are root.
///
/// # Errors
/// We are not.
pub fn require_root() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("namespaces, cgroups and eBPF need root: run this with sudo");
    }
    Ok(())
}

/// The mount point of cgroup v2, wherever this machine has it.
///
/// # Errors
/// It is not mounted.
pub fn cgroup_mount() -> Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        if right.starts_with("cgroup2 ")
            && let Some(point) = left.split(' ').nth(4)
        {
            return Ok(PathBuf::from(point));
        }
    }
    bail!("cgroup v2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")
}

/// Mounts the BPF file system when it is not there. It stays mounted: others may have come to use it.
///
/// # Errors
/// The mount fails.
pub fn ensure_bpffs() -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    if mounts.lines().any(|l| l.contains(" - bpf ") && l.split(' ').nth(4) == Some(BPFFS)) {
        return Ok(());
    }
    std::fs::create_dir_all(BPFFS).with_context(|| format!("creating {BPFFS}"))?;
    nix::mount::mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("mounting the BPF file system: mount -t bpf bpf {BPFFS}"))
}

/// The directory that holds `mesh-agent`, `mesh-control` and `mesh-lab-app`: that of the running program, or its
/// parent when that is a test in `deps`.
///
/// # Errors
/// They have not been built.
pub fn binaries() -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding our own executable")?;
    let found = own.ancestors().skip(1).take(2).find(|dir| dir.join("mesh-lab-app").is_file());
    let dir = found.with_context(|| {
        format!("mesh-lab-app is not beside {}: build it with `cargo build --workspace --bins`", own.display())
    })?;
    Ok(dir.to_owned())
}

/// A program of ours, beside the running one.
///
/// # Errors
/// It has not been built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let path = binaries()?.join(name);
    if !path.is_file() {
        bail!("{} is missing: build it with `cargo build --workspace --bins`", path.display());
    }
    Ok(path)
}

/// Runs `ip -batch` with `lines`, in a named namespace or the machine's own.
///
/// # Errors
/// `ip` is missing or refuses a line; the error has its words and the line.
pub fn ip(netns: Option<&str>, lines: &str) -> Result<()> {
    let mut command = Command::new("ip");
    if let Some(netns) = netns {
        command.args(["-n", netns]);
    }
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().context("starting `ip` (package iproute2)")?;
    child.stdin.take().context("ip has no stdin")?.write_all(lines.as_bytes()).context("writing to ip")?;
    let output = child.wait_with_output().context("waiting for ip")?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        let numbered: Vec<_> = lines.lines().enumerate().map(|(i, l)| format!("{:3} {l}", i + 1)).collect();
        bail!("ip in {}: {}\n{}", netns.unwrap_or("this namespace"), words.trim(), numbered.join("\n"));
    }
    Ok(())
}

/// Waits until `look` finds what it looks for.
///
/// # Errors
/// `look` fails, or finds nothing within `limit`: then the error says what was waited for, and `look`'s last word.
pub fn wait_for<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = look().with_context(|| format!("while waiting for {what}"))? {
            return Ok(found);
        }
        if Instant::now() >= end {
            bail!("{what}: not there after {} s", limit.as_secs_f32());
        }
        std::thread::sleep(POLL);
    }
}

/// Writes a file so that no reader sees half of it: beside it first, then renamed over it.
///
/// # Errors
/// The file system refuses.
pub fn write_whole(path: &Path, text: &str) -> Result<()> {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let temporary = path.with_file_name(format!(".{name}.new"));
    std::fs::write(&temporary, text).with_context(|| format!("writing {}", temporary.display()))?;
    std::fs::rename(&temporary, path).with_context(|| format!("writing {}", path.display()))
}

/// Creates a directory and its parents.
///
/// # Errors
/// The file system refuses.
pub fn create_dir(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))
}

/// The last `lines` lines of a file, or why they cannot be had.
pub fn tail(path: &Path, lines: usize) -> String {
    match std::fs::read(path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let all: Vec<_> = text.lines().collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        }
        Err(e) => format!("({}: {e})", path.display()),
    }
}
