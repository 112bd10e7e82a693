//! `cargo xtask bench`: builds in release mode, then hands over to `mesh-bench`, which measures.
//!
//! In: the benchmark's options. Out: tables, and `target/bench/bench.json`.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cargo;
use crate::packages::{self, Use};

/// Runs the benchmark.
pub fn run(arguments: &[String]) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("namespaces, cgroups and eBPF need root: run this with sudo");
    }
    packages::ensure(Use::Bench)?;
    println!("building (release; the first time takes some minutes)");
    cargo::build_programs(true, true)?;
    let target = cargo::target()?;
    let program = target.join("release/mesh-bench");
    let json = target.join("bench/bench.json");
    // Replaces this process; comes back only when that fails.
    let error = Command::new(&program).arg("--json").arg(json).args(arguments).exec();
    Err(error).with_context(|| format!("starting {}", program.display()))
}
