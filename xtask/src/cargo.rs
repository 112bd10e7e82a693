//! Runs cargo and finds what it built.
//!
//! In: arguments. Out: success, or an error that names the command. Everything runs without a terminal's input.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The workspace's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// The target directory: the one that this very program was built into.
pub fn target() -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding our own executable")?;
    Ok(own.ancestors().nth(2).context("xtask is not in a target directory")?.to_owned())
}

/// A cargo command in the workspace's root.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(arguments).stdin(Stdio::null());
    command
}

/// Runs a command that must succeed.
pub fn run(command: &mut Command) -> Result<()> {
    let line = line(command);
    let status = command.status().with_context(|| format!("starting `{line}`"))?;
    if !status.success() {
        bail!("`{line}`: {status}");
    }
    Ok(())
}

/// A command as one would type it.
pub fn line(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    std::iter::once(program).chain(command.get_args()).map(|s| s.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Builds the programs that a lab runs, and the kernel programs unless the mesh stays off.
pub fn build_programs(release: bool, kernel: bool) -> Result<()> {
    if kernel {
        crate::build_ebpf::run(false)?;
    }
    let mut command = if release {
        cargo(&["build", "--release", "--bins", "-p", "mesh-agent", "-p", "mesh-control", "-p", "mesh-tests"])
    } else {
        // The whole workspace, so that tests and lab share what was built for either.
        cargo(&["build", "--workspace", "--bins"])
    };
    run(&mut command)
}
