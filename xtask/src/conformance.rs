//! `cargo xtask conformance`: every case of every suite, against our agents and Envoy in one run; what came of them stands in
//! `docs/conformance.md` afterwards.
//!
//! In: nothing. Out: the document, written anew, so that a change shows as a difference; an error if a case fails that must not. A share of
//! the same cases runs in `cargo xtask test`.

mod document;

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::packages::{self, Use};
use crate::test::programs;
use crate::{build_ebpf, cargo};

/// The test program that has the suites.
const PROGRAM: &str = "e2e_conformance";
/// Names for it a directory for the results, and asks for all cases.
const VARIABLE: &str = "MESH_CONFORMANCE";

/// Options of the command.
#[derive(Args)]
pub struct Options {
    /// Only suites whose test has this in its name (`http2`, `smuggling`, `grpc`, `websocket`); what was found of others before stays.
    #[arg(long)]
    only: Option<String>,
}

/// Runs the suites and writes the document.
pub fn run(options: &Options) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("namespaces, cgroups and eBPF need root: run this with sudo");
    }
    packages::ensure(Use::Test)?;
    build_ebpf::run(false)?;
    let built = programs::build_of(&["--workspace", "--bins", "--test", PROGRAM])?;
    let program = built.into_iter().next().with_context(|| format!("{PROGRAM} was not built"))?.into_executable();
    let results = cargo::target()?.join("conformance");
    if options.only.is_none() && results.exists() {
        std::fs::remove_dir_all(&results).with_context(|| format!("removing {}", results.display()))?;
    }
    println!("every case of every suite: this takes minutes, most of them for large WebSockets");
    let mut command = Command::new(&program);
    command.args(&options.only).args(["--test-threads", "1"]).current_dir(cargo::root().join("tests"));
    command.env(VARIABLE, &results).env("RUST_LIB_BACKTRACE", "0").stdin(Stdio::null());
    let status = command.status().with_context(|| format!("starting {}", program.display()))?;
    write(&results)?;
    ensure!(status.success(), "cases fail that must not: see above, and docs/conformance.md");
    Ok(())
}

fn write(results: &Path) -> Result<()> {
    let text = document::render(results)?;
    let file = cargo::root().join("docs/conformance.md");
    std::fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    println!("written: {}", file.display());
    Ok(())
}
