//! The agent's executable: arguments, settings, log, and one thread for everything that is not traffic. The rest is in
//! the library.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use mesh_agent::app::Ended;
use mesh_agent::kernel::{Kernel, probe};
use mesh_agent::net::netns::NetNs;
use mesh_agent::settings::Settings;
use mesh_agent::{app, telemetry};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};

/// Fewer instructions a request than with glibc's, by some 6 %; it is built without transparent huge pages.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How often unused memory is given back.
const GIVE_BACK: Duration = Duration::from_secs(15);

/// Descriptors with which a node's workloads hardly ever run out.
const WANTED_DESCRIPTORS: u64 = 16_384;

/// The node agent of the mesh.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Settings file (YAML).
    #[arg(long, value_name = "FILE", required = true)]
    config: Option<PathBuf>,
    /// Only check the settings file, then end.
    #[arg(long)]
    check: bool,
    /// Take over from the agent of this node that runs, without a gap; start as usual if none does.
    #[arg(long)]
    take_over: bool,
    /// Once another agent has taken over, wait for SIGTERM instead of ending: for an orchestrator that would start an
    /// agent that ends anew, which would take over again.
    #[arg(long)]
    stay: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Removes from the kernel what an agent left that is gone: its workloads go on without the mesh.
    Detach {
        /// Settings file (YAML) of that agent.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Tries what this kernel can do and prints what the mesh will use; leaves nothing behind.
    Probe {
        /// Settings file (YAML), for the cgroup, the pin path and the workloads' namespaces.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Waits for SIGTERM or SIGINT: what `--stay` becomes in the end.
    #[command(hide = true)]
    Wait,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line for each thing that is wrong, also for a person who has no log yet.
            for line in format!("{error:#}").lines() {
                eprintln!("mesh-agent: {line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if let Some(Command::Detach { config }) = &arguments.command {
        return detach(config);
    }
    if let Some(Command::Probe { config }) = &arguments.command {
        return print_probe(config.as_deref());
    }
    if let Some(Command::Wait) = &arguments.command {
        return wait();
    }
    // clap lets nobody through without it.
    let config = arguments.config.as_deref().context("--config is missing")?;
    // Whoever checks is not where the agent will be.
    let own = if arguments.check { None } else { app::own_cgroup() };
    let settings = Settings::load_in(config, own.as_deref())?;
    if arguments.check {
        println!("{}: good, {} workloads", config.display(), settings.workloads.len());
        return Ok(());
    }
    // Whoever started us may have left signals blocked; then nothing could end us but SIGKILL.
    SigSet::all().thread_unblock().context("cannot unblock signals")?;
    telemetry::logs::start(settings.log_format, &settings.log_level).map_err(anyhow::Error::msg)?;
    raise_descriptors();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    runtime.spawn(give_back());
    let ended = runtime.block_on(app::run(config, settings, arguments.take_over))?;
    if ended == Ended::HandedOver && arguments.stay { stay() } else { Ok(()) }
}

/// Gives memory that nobody uses back to the system, now and then. Otherwise mimalloc does so only where it frees more, and on a quiet
/// node an agent would keep what loading its programs took.
async fn give_back() {
    loop {
        tokio::time::sleep(GIVE_BACK).await;
        // SAFETY: may be called at any time and from any thread.
        unsafe { libmimalloc_sys::mi_collect(true) };
    }
}

/// Takes as many descriptors as may be had: a shell's usual 1,024 are for programs that use select(2), and a connection
/// of a workload takes two or three.
fn raise_descriptors() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most).map(|()| most));
    match raised {
        Ok(most) if most < WANTED_DESCRIPTORS => tracing::warn!(
            most,
            "few descriptors (RLIMIT_NOFILE): connections beyond half of that are refused (settings: limits.connections); raise the hard limit (LimitNOFILE)"
        ),
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cannot raise the limit of descriptors (RLIMIT_NOFILE)"),
    }
}

/// Goes on under the same pid with nothing of what the agent had: the other one sees that it is gone.
fn stay() -> anyhow::Result<()> {
    // One that comes from here on is kept for the new program.
    ends().thread_block().context("cannot block signals")?;
    // The file may be another one by now.
    let error = std::process::Command::new("/proc/self/exe").arg("wait").exec();
    Err(error).context("cannot wait for the end")
}

fn wait() -> anyhow::Result<()> {
    ends().thread_block().context("cannot block signals")?;
    ends().wait().context("cannot wait for the end")?;
    Ok(())
}

fn ends() -> SigSet {
    SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT])
}

fn detach(config: &Path) -> anyhow::Result<()> {
    let settings = Settings::load(config)?;
    match Kernel::detach_left(&settings.kernel, &settings.node)? {
        Some(path) => println!("{}: removed; the workloads of this node go on without the mesh", path.display()),
        None => println!("nothing is pinned for node {}", settings.node),
    }
    Ok(())
}

fn print_probe(config: Option<&Path>) -> anyhow::Result<()> {
    let (kernel, workloads) = match config {
        Some(path) => Settings::load(path).map(|s| (s.kernel, s.workloads))?,
        None => Default::default(),
    };
    let mut namespaces = Vec::new();
    for workload in &workloads {
        // There is nothing to be in the way on an interface.
        if workload.cgroup.is_some() {
            continue;
        }
        let netns = match (&workload.netns, workload.pid) {
            (Some(path), _) => NetNs::open(path),
            (None, pid) => NetNs::of_pid(pid.unwrap_or_default()),
        };
        match netns {
            Ok(netns) => namespaces.push((workload.key(), netns)),
            Err(e) => println!("workload {}: its namespace cannot be opened: {e}", workload.key()),
        }
    }
    let report = probe::survey(&kernel, &namespaces)?;
    print!("{report}");
    anyhow::ensure!(report.fit(), "this kernel is not fit for the mesh; the table says what it lacks");
    Ok(())
}
