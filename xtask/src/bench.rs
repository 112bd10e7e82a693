//! `cargo xtask bench`: builds in release mode, then hands over to `mesh-bench`, which measures.
//!
//! In: the benchmark's options. Out: tables, and `target/bench/bench.json`.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

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
    let mut command = Command::new(&program);
    command.arg("--json").arg(target.join("bench/bench.json")).args(arguments);
    if arguments.iter().any(|argument| argument.ends_with("callgrind")) {
        command.arg("--engine").arg(engine()?);
    }
    // Replaces this process; comes back only when that fails.
    let error = command.exec();
    Err(error).with_context(|| format!("starting {}", program.display()))
}

/// Builds the agent's unit tests as the agent is built; where they are.
fn engine() -> Result<PathBuf> {
    let mut command = cargo::cargo(&["test", "--release", "--no-run", "--lib", "--message-format=json"]);
    // With the features that the programs have been built with.
    command.args(["-p", "mesh-agent", "-p", "mesh-control", "-p", "mesh-tests"]).stderr(Stdio::inherit());
    let output = command.output().context("starting cargo")?;
    ensure!(output.status.success(), "`{}`: {}", cargo::line(&command), output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let built = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let program = built
        .filter(|message| message["target"]["name"] == "mesh_agent" && message["profile"]["test"] == true)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from));
    program.context("cargo does not say where the agent's unit tests are")
}
