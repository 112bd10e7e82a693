//! `cargo xtask test`: everything that CI runs.
//!
//! In: a choice of tests. Out: every test by name, the time of each phase, one summary line; or what failed. It needs
//! root for all but the unit tests, and says so rather than leave tests out.

mod leftovers;
pub mod programs;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::packages::{self, Use};
use crate::steps::Steps;
use crate::{build_ebpf, check};

use programs::{Program, Tally};

/// A part of the tests.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Everything that needs no root.
    Unit,
    /// Kernel programs, alone, on this kernel.
    Kernel,
    /// The whole, with real programs.
    E2e,
}

/// Options of the command.
#[derive(Args)]
pub struct Options {
    /// Only these tests, and no checks of format and lints.
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// Only tests whose name contains this; no checks of format and lints.
    #[arg(long)]
    filter: Option<String>,
}

/// Builds the kernel tests and what a machine needs beside them, and tells where the tests are.
pub fn kernel_tests() -> Result<PathBuf> {
    // With the features of the whole workspace, as everything else is built: nothing is compiled twice.
    let built = programs::build_of(&["--workspace", "--bins", "--test", "bpf"])?;
    let tests = built.into_iter().next().context("the kernel tests were not built")?;
    Ok(tests.into_executable())
}

/// Runs the tests.
pub fn run(options: &Options) -> Result<()> {
    let wants = |part| options.only.is_none_or(|only| only == part);
    let privileged = wants(Part::Kernel) || wants(Part::E2e);
    if privileged && !nix::unistd::geteuid().is_root() {
        bail!("kernel and end-to-end tests need root: run this with sudo, or `cargo xtask test --only unit`");
    }
    let checks = options.only.is_none() && options.filter.is_none();
    let mut steps = Steps::new();
    if checks {
        steps.run("format", check::format)?;
    }
    if privileged {
        steps.run("packages", || packages::ensure(Use::Test))?;
        steps.run("kernel programs", || build_ebpf::run(true).and_then(|_| build_ebpf::run(false)))?;
    }
    let all = steps.run("build", programs::build)?;
    let of = |part| all.iter().filter(|p| p.part() == part).cloned().collect::<Vec<Program>>();
    let filter = options.filter.as_deref();
    let mut tally = Tally::default();
    if wants(Part::Unit) {
        // Clippy and rustdoc compile on one core while the unit tests, which are short, run on the other.
        let lints = || if checks { check::clippy().and_then(|()| check::rustdoc()) } else { Ok(()) };
        let name = if checks { "clippy, rustdoc, unit tests" } else { "unit tests" };
        let unit = of(Part::Unit);
        tally += steps.run(name, || {
            std::thread::scope(|scope| {
                let lints = scope.spawn(lints);
                let tests = programs::run_all(&unit, 1, filter);
                lints.join().unwrap_or_else(|e| std::panic::resume_unwind(e))?;
                tests
            })
        })?;
    }
    if wants(Part::Kernel) {
        let kernel = of(Part::Kernel);
        tally += steps.run("kernel tests", || programs::run_all(&kernel, 1, filter))?;
    }
    if wants(Part::E2e) {
        let e2e = of(Part::E2e);
        tally += steps.run("end-to-end tests", || programs::run_all(&e2e, 2, filter))?;
    }
    if privileged {
        steps.run("nothing left behind", leftovers::check)?;
    }
    steps.summary();
    println!("==> {tally}");
    if tally.passed == 0 {
        bail!("no test has run; is the filter right?");
    }
    Ok(())
}
