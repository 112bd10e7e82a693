//! The lab's command line, behind `cargo xtask lab` and `cargo xtask demo`.
//!
//! In: a command. Out: a lab brought up, looked at, or taken down. Everything it does is the library's; this prints.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand, ValueEnum};
use mesh_tests::state::{self, State};
use mesh_tests::{Lab, LabBuilder, Topology, lab, sys};

mod demo;
mod interrupt;
mod show;

/// Name of a lab that says none.
const DEFAULT_NAME: &str = "lab";

#[derive(Parser)]
#[command(about = "A mesh of network namespaces on this machine, to try things in", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, ValueEnum)]
enum Mesh {
    On,
    Off,
}

#[derive(Subcommand)]
enum Command {
    /// Bring a lab up and leave it standing.
    Up {
        /// Nodes and pods; format in docs/lab.md. Default: the demo's, with the demo's objects.
        #[arg(long)]
        topology: Option<PathBuf>,
        /// Directory of Kubernetes and Istio objects.
        #[arg(long)]
        config: Option<PathBuf>,
        /// Without the mesh: the same network and programs, no agents and no control plane.
        #[arg(long, value_enum, default_value = "on")]
        mesh: Mesh,
        /// Name of the lab; default: the topology's, else `lab`.
        #[arg(long)]
        name: Option<String>,
        /// Life of workload certificates, in seconds.
        #[arg(long)]
        cert_ttl: Option<u64>,
    },
    /// Run a command in a pod.
    Exec {
        #[command(flatten)]
        which: Which,
        /// Pod.
        pod: String,
        /// Command line; default: a shell.
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// List nodes and pods.
    Pods {
        #[command(flatten)]
        which: Which,
    },
    /// Show what the programs wrote: `control`, `agent [NODE]`, `access [NODE]`, `pod POD`.
    Logs {
        #[command(flatten)]
        which: Which,
        /// `control`, `agent`, `access` or `pod`; everything when left out.
        what: Option<String>,
        /// Node or pod.
        of: Option<String>,
    },
    /// Replace the lab's objects by those of a directory.
    Apply {
        #[command(flatten)]
        which: Which,
        /// Directory of Kubernetes and Istio objects.
        #[arg(long)]
        config: PathBuf,
    },
    /// Take a lab down, also what a killed one left.
    Down {
        #[command(flatten)]
        which: Which,
        /// All labs of this machine.
        #[arg(long)]
        all: bool,
    },
    /// Show the mesh at work and prove it.
    Demo(demo::Options),
    /// Take a lab down when the process at the other end of stdin dies.
    #[command(hide = true)]
    Janitor { lab: String },
}

#[derive(clap::Args)]
struct Which {
    /// Name of the lab; default: the only one that stands.
    #[arg(long)]
    name: Option<String>,
}

impl Which {
    fn name(&self) -> Result<String> {
        match (&self.name, state::list().as_slice()) {
            (Some(name), _) => Ok(name.clone()),
            (None, [only]) => Ok(only.clone()),
            (None, []) => bail!("no lab stands here: `cargo xtask lab up` makes one"),
            (None, several) if several.iter().any(|n| n == DEFAULT_NAME) => Ok(DEFAULT_NAME.to_owned()),
            (None, several) => bail!("several labs stand here, say which with --name: {}", several.join(", ")),
        }
    }
}

fn main() -> Result<()> {
    match Args::parse().command {
        Command::Up { topology, config, mesh, name, cert_ttl } => {
            let config = config.or_else(|| topology.is_none().then(|| demo::files().join("config")));
            let topology = topology.unwrap_or_else(|| demo::files().join("topology.yaml"));
            up(&topology, config.as_deref(), matches!(mesh, Mesh::On), name, cert_ttl)
        }
        Command::Exec { which, pod, command } => exec(&which.name()?, &pod, command),
        Command::Pods { which } => {
            print!("{}", show::topology(&State::open(&which.name()?)?));
            Ok(())
        }
        Command::Logs { which, what, of } => show::logs(&State::open(&which.name()?)?, what.as_deref(), of.as_deref()),
        Command::Apply { which, config } => Lab::open(&which.name()?)?.apply_dir(&config),
        Command::Down { which, all } => down(&which, all),
        Command::Demo(options) => demo::run(&options),
        Command::Janitor { lab } => lab::janitor(&lab),
    }
}

fn up(file: &Path, config: Option<&Path>, mesh: bool, name: Option<String>, cert_ttl: Option<u64>) -> Result<()> {
    let topology = Topology::load(file)?;
    let name = name.or_else(|| topology.name.clone()).unwrap_or_else(|| DEFAULT_NAME.to_owned());
    interrupt::take_down(&[&name])?;
    let mut builder = LabBuilder::new(&name, topology).mesh(mesh);
    if let Some(dir) = config {
        builder = builder.config_dir(dir);
    }
    if let Some(seconds) = cert_ttl {
        builder = builder.cert_ttl(seconds);
    }
    let lab = builder.up()?;
    print!("{}", show::topology(lab.state()));
    let pod = lab.topology().pods.first().map_or("POD", |p| p.name.as_str());
    println!("\ncargo xtask lab exec --name {name} {pod} -- CMD…    cargo xtask lab logs --name {name}");
    println!("cargo xtask lab down --name {name}");
    lab.detach()
}

fn exec(name: &str, pod: &str, mut command: Vec<String>) -> Result<()> {
    sys::require_root()?;
    let lab = Lab::open(name)?;
    if command.is_empty() {
        command.push(std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".to_owned()));
    }
    // Only comes back when the command cannot be started.
    let error = lab.pod(pod)?.place().command(&command)?.exec();
    Err(error).with_context(|| format!("pod {pod}: starting `{}`", command.join(" ")))
}

fn down(which: &Which, all: bool) -> Result<()> {
    sys::require_root()?;
    let names = if all { state::list() } else { vec![which.name()?] };
    for name in names {
        state::teardown(&name)?;
        println!("lab {name} is down");
    }
    Ok(())
}
