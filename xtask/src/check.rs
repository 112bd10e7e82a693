//! `cargo xtask check`: format, clippy, rustdoc, tidy. Warnings are errors.
//!
//! In: nothing. Out: success, or the first tool that objects. Needs no root, but the kernel programs' compiler.

use anyhow::Result;

use crate::build_ebpf;
use crate::cargo::{cargo, run};
use crate::steps::Steps;

/// Runs all checks.
pub fn all() -> Result<()> {
    let mut steps = Steps::new();
    steps.run("format", format)?;
    steps.run("clippy", clippy)?;
    steps.run("rustdoc", rustdoc)?;
    steps.run("tidy", || run(&mut cargo(&["test", "-q", "-p", "mesh-tests", "--test", "tidy"])))?;
    steps.summary();
    Ok(())
}

/// Formatting of both workspaces.
pub fn format() -> Result<()> {
    run(&mut cargo(&["fmt", "--all", "--check"]))?;
    run(&mut cargo(&["fmt", "--manifest-path", "mesh-ebpf/Cargo.toml", "--check"]))
}

/// Lints of everything that builds on the host, and of the kernel programs.
pub fn clippy() -> Result<()> {
    run(&mut cargo(&["clippy", "-q", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    build_ebpf::clippy()
}

/// Broken links and the like in documentation comments.
pub fn rustdoc() -> Result<()> {
    run(cargo(&["doc", "-q", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
}
