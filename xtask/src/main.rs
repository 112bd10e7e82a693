//! `cargo xtask`: the developer's commands. In: a subcommand. Out: its exit status. One file per command.

mod bench;
mod build_ebpf;
mod cargo;
mod check;
mod conformance;
mod demo;
mod fuzz;
mod lab;
mod packages;
mod steps;
mod test;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Builds, tests and shows the mesh.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Builds the kernel programs into target/bpf/mesh-ebpf.o; finds or installs what that takes.
    BuildEbpf {
        /// With a log of every decision, for debugging, into target/bpf/mesh-ebpf-log.o.
        #[arg(long)]
        debug_log: bool,
    },
    /// Checks format, lints, documentation and tidiness.
    Check,
    /// Runs all tests: format, clippy, unit, kernel, end to end.
    Test(test::Options),
    /// Shows the mesh at work on two nodes, with proofs.
    #[command(disable_help_flag = true)]
    Demo {
        /// Options of `mesh-lab demo`; try `--help`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Measures direct connections, the mesh, nginx, HAProxy and iptables in one run; prints ratios, writes JSON.
    #[command(disable_help_flag = true)]
    Bench {
        /// Options of `mesh-bench`; try `--help`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Throws made-up bytes at every parser of what comes from outside.
    Fuzz(fuzz::Options),
    /// Runs every case of the suites of HTTP against us and Envoy, and writes docs/conformance.md.
    Conformance(conformance::Options),
    /// Tries the kernel programs on Debian's packaged kernels, in emulated machines.
    Vm(vm::Options),
    /// A mesh of network namespaces to try things in: up, exec, pods, logs, apply, down.
    #[command(disable_help_flag = true)]
    Lab {
        /// Command and options of `mesh-lab`; try `--help`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    // Tests and labs hold thousands of sockets, and a shell gives 1,024 descriptors unless asked; more than the hard limit
    // is not to be had, and whoever runs out of them says so.
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
    let result = match Cli::parse().command {
        Command::BuildEbpf { debug_log } => build_ebpf::run(debug_log).map(|object| println!("{}", object.display())),
        Command::Check => check::all(),
        Command::Test(options) => test::run(&options),
        Command::Demo { arguments } => demo::run(&arguments),
        Command::Bench { arguments } => bench::run(&arguments),
        Command::Fuzz(options) => fuzz::run(&options),
        Command::Conformance(options) => conformance::run(&options),
        Command::Vm(options) => vm::run(&options),
        Command::Lab { arguments } => lab::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}
