//! The agent's executable: arguments, settings, log, and one thread for everything that is not traffic. The rest is in
//! the library.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use mesh_agent::settings::Settings;
use mesh_agent::{app, telemetry};
use nix::sys::signal::SigSet;

/// The node agent of the mesh.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Settings file (YAML).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Only check the settings file, then end.
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, also for a person who has no log yet.
            eprintln!("mesh-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let settings = Settings::load(&arguments.config)?;
    if arguments.check {
        println!("{}: good, {} workloads", arguments.config.display(), settings.workloads.len());
        return Ok(());
    }
    // Whoever started us may have left signals blocked; then nothing could end us but SIGKILL.
    SigSet::all().thread_unblock().context("cannot unblock signals")?;
    telemetry::logs::start(settings.log_format, &settings.log_level).map_err(anyhow::Error::msg)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    runtime.block_on(app::run(&arguments.config, settings))?;
    Ok(())
}
