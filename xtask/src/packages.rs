//! The programs of the distribution that tests, lab, demo and bench use. This is the one place that lists them.
//!
//! In: what they are wanted for. Out: they are installed, or an error with the command that installs them.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::cargo;

/// What a package is wanted for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// The network of any lab.
    Lab,
    /// The demo.
    Demo,
    /// The end-to-end tests.
    Test,
    /// The benchmarks.
    Bench,
    /// Machines with other kernels.
    Vm,
    /// Fuzzing.
    Fuzz,
}

/// Program or file that shows that the package is there, the package, and what needs it.
const PACKAGES: [(&str, &str, &[Use]); 23] = [
    ("ip", "iproute2", &[Use::Lab, Use::Demo, Use::Test, Use::Bench, Use::Vm]),
    ("setpriv", "util-linux", &[Use::Test]),
    ("systemd-analyze", "systemd", &[Use::Test]),
    ("curl", "curl", &[Use::Demo, Use::Test]),
    ("tcpdump", "tcpdump", &[Use::Demo, Use::Test]),
    ("tshark", "tshark", &[Use::Demo, Use::Test]),
    ("openssl", "openssl", &[Use::Test]),
    ("dig", "bind9-dnsutils", &[Use::Test]),
    ("dnsmasq", "dnsmasq-base", &[Use::Test]),
    ("nginx", "nginx-light", &[Use::Test, Use::Bench]),
    ("haproxy", "haproxy", &[Use::Test, Use::Bench]),
    ("perf", "linux-perf", &[Use::Bench]),
    ("valgrind", "valgrind", &[Use::Bench]),
    ("iptables", "iptables", &[Use::Test, Use::Bench, Use::Vm]),
    ("redis-server", "redis-server", &[Use::Test]),
    ("redis-cli", "redis-tools", &[Use::Test]),
    ("psql", "postgresql-client", &[Use::Test]),
    ("/usr/lib/postgresql", "postgresql", &[Use::Test]),
    ("qemu-system-x86_64", "qemu-system-x86", &[Use::Vm]),
    ("g++", "g++", &[Use::Fuzz]),
    ("pip3", "python3-pip", &[Use::Test, Use::Bench]),
    ("xz", "xz-utils", &[Use::Vm]),
    ("strip", "binutils", &[Use::Vm]),
];

/// Installs what is missing for a use, on Debian and Ubuntu as root; elsewhere says what to run.
pub fn ensure(wanted: Use) -> Result<()> {
    let missing: Vec<_> =
        PACKAGES.iter().filter(|(probe, _, uses)| uses.contains(&wanted) && !present(probe)).map(|p| p.1).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !nix::unistd::geteuid().is_root() || !present("apt-get") {
        bail!("these packages are missing, under their Debian names; install them: apt-get install -y {list}");
    }
    println!("installing {list}");
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(arguments).stdin(std::process::Stdio::null());
        // The second keeps packages from starting their servers.
        command.env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1");
        command
    };
    let mut install = vec!["install", "-y", "-q", "--no-install-recommends"];
    install.extend(missing);
    if cargo::run(&mut apt(&install)).is_ok() {
        return Ok(());
    }
    // The lists of a fresh machine are empty or old.
    cargo::run(&mut apt(&["update", "-q"]))?;
    cargo::run(&mut apt(&install))
}

fn present(probe: &str) -> bool {
    if probe.starts_with('/') {
        return Path::new(probe).exists();
    }
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').chain(["/usr/sbin", "/sbin"]).any(|dir| Path::new(dir).join(probe).is_file())
}
