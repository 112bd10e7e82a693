//! `cargo xtask demo`: builds the programs in release mode, then hands over to `mesh-lab demo`, which shows them.
//!
//! In: the demo's options. Out: its status, which is not 0 when a proof fails.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cargo;
use crate::packages::{self, Use};

/// Runs the demo.
pub fn run(arguments: &[String]) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("namespaces, cgroups and eBPF need root: run this with sudo");
    }
    packages::ensure(Use::Demo)?;
    println!("building (release; the first time takes some minutes)");
    cargo::build_programs(true, true)?;
    let program = cargo::target()?.join("release/mesh-lab");
    // Replaces this process; comes back only when that fails.
    let error = Command::new(&program).arg("demo").args(arguments).exec();
    Err(error).with_context(|| format!("starting {}", program.display()))
}
