//! `cargo xtask vm VERSION…`: boots Debian's packaged kernels of these versions under qemu, by software emulation, and
//! tries the mesh's programs on each.
//!
//! In: versions such as 6.1. Out: every test by name, a table of what held where, the same in `target/vm/`, and with
//! `--record` in `docs/kernels.md`; fails if a kernel did. Needs root (the tests do not run here, but the object's
//! build and the packages may have to be installed). Bounded: a machine that is not done in time is ended.

mod initramfs;
mod kernel;
mod machine;
mod table;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::packages::{self, Use};
use crate::steps::Steps;
use crate::{build_ebpf, cargo, test};

/// Options of the command.
#[derive(Args)]
pub struct Options {
    /// Kernel versions, as in the names of Debian's packages.
    #[arg(default_values = ["6.1", "6.12"])]
    versions: Vec<String>,
    /// Only kernel tests whose name contains this.
    #[arg(long)]
    filter: Option<String>,
    /// All kernel tests but those about load, and not just the basic ones: some 35 minutes for two kernels on two cores.
    #[arg(long, conflicts_with = "filter")]
    all: bool,
    /// Writes the table into docs/kernels.md.
    #[arg(long)]
    record: bool,
}

/// The basic ones: capture out of a pod and into it, STRICT, ways around both, a lost agent.
const BASIC: [&str; 13] = [
    "bypass::",
    "connect::",
    "debug_log::",
    "egress::",
    "egress_frames::",
    "getname::",
    "ingress::",
    "lifecycle::",
    "lookup::",
    "loss::",
    "mptcp::",
    "sock_ops::",
    "test_run::",
];

/// Kernel tests that are about load: emulation makes them last for minutes and says nothing about load.
const LEFT_OUT: [&str; 3] = [
    "a_hundred_thousand_short_connections",
    "a_million_messages_are_byte_exact",
    "more_dials_of_an_application_than_there_are_ports",
];

/// Runs the tests on every kernel; all run, also when one fails.
pub fn run(options: &Options) -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("only x86-64 kernels are booted, and this machine is {}", std::env::consts::ARCH);
    }
    let mut steps = Steps::new();
    steps.run("packages", || packages::ensure(Use::Vm))?;
    let debug_object = steps.run("kernel programs with a log", || build_ebpf::run(true))?;
    let object = steps.run("kernel programs", || build_ebpf::run(false))?;
    let tests = steps.run("build", test::kernel_tests)?;
    let place = cargo::target()?.join("vm");
    std::fs::create_dir_all(&place).with_context(|| format!("creating {}", place.display()))?;
    let programs = initramfs::Programs {
        init: cargo::target()?.join("debug/mesh-vm-init"),
        agent: cargo::target()?.join("debug/mesh-agent"),
        tests,
        object,
        debug_object,
    };
    let mut machines = Vec::new();
    for version in &options.versions {
        let kernel = steps.run(&format!("kernel {version}"), || kernel::fetch(version, &place))?;
        let image = place.join(format!("{}.cpio", kernel.release));
        initramfs::write(&image, &kernel, &programs, &plan(options))?;
        machines.push((kernel, image));
    }
    let results = steps.run("machines", || beside_each_other(&machines, &place))?;
    let table = table::markdown(&results);
    println!("\n{table}");
    std::fs::write(place.join("results.md"), &table).context("writing results.md")?;
    if options.record {
        table::record(&table)?;
    }
    steps.summary();
    let failed: Vec<_> = results.iter().filter(|r| !r.good()).map(|r| r.package.clone()).collect();
    if !failed.is_empty() {
        bail!("not everything held on {}; the whole output is in {}", failed.join(", "), place.display());
    }
    Ok(())
}

/// Runs all machines at once: each is busy with one test at a time.
fn beside_each_other(machines: &[(kernel::Kernel, PathBuf)], place: &Path) -> Result<Vec<machine::Outcome>> {
    std::thread::scope(|scope| {
        let run = |(kernel, image)| scope.spawn(move || machine::run(kernel, image, place));
        let running: Vec<_> = machines.iter().map(|(kernel, image)| run((kernel, image))).collect();
        running.into_iter().map(|one| one.join().unwrap_or_else(|_| bail!("a machine's thread has panicked"))).collect()
    })
}

/// What the machine does, in the form that `mesh-vm-init` reads.
fn plan(options: &Options) -> Vec<String> {
    let skips: String = LEFT_OUT.iter().map(|name| format!(" --skip {name}")).collect();
    let filter = match (&options.filter, options.all) {
        (Some(filter), _) => format!(" {filter}"),
        (None, true) => String::new(),
        (None, false) => BASIC.map(|module| format!(" {module}")).concat(),
    };
    vec![
        "run loopback /usr/sbin/ip link set lo up".to_owned(),
        "run probe /mesh-agent probe".to_owned(),
        format!("run tests /tests --test-threads=1{skips}{filter}"),
    ]
}
