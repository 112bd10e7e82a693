//! `cargo xtask`: the developer's commands. In: a subcommand. Out: its exit status. One file per command.

mod build_ebpf;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

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
    BuildEbpf,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::BuildEbpf => build_ebpf::run().map(|object| println!("{}", object.display())),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}
