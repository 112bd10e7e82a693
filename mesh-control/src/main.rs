//! The control plane's program: `mesh-control --config FILE`. SIGHUP reads the configuration again, SIGTERM and SIGINT stop.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use mesh_control::app::App;
use mesh_control::settings::Settings;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Control plane of the mesh: configuration over xDS, and certificates.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Settings file (YAML).
    #[arg(long)]
    config: PathBuf,
    /// Write the log as JSON.
    #[arg(long)]
    log_json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    if arguments.log_json {
        log.json().init();
    } else {
        log.init();
    }
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh-control: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let settings = Settings::load(&arguments.config)?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve(settings))
}

async fn serve(settings: Settings) -> anyhow::Result<()> {
    // Before anything else, so that no signal is lost.
    let mut hangup = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let app = App::start(settings).await?;
    loop {
        tokio::select! {
            _ = hangup.recv() => app.reload(),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    tracing::info!("shutting down");
    app.stop().await;
    Ok(())
}
