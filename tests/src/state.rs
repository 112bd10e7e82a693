//! What is known of a lab from outside the process that made it: everything under `/run/mesh-lab/<name>`.
//!
//! In: a lab's name. Out: its [`State`] with all paths and places, and [`teardown`], which needs the name alone and so
//! works on whatever a killed process left. It never touches anything whose name does not carry the lab's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::confine::Confinement;
use crate::network;
use crate::place::Place;
use crate::sys;
use crate::topology::{PodSpec, Topology, check_name};

/// Where labs keep what they know.
pub const ROOT: &str = "/run/mesh-lab";
/// How long agents get to leave by themselves.
const AGENT_GRACE: Duration = Duration::from_secs(5);
/// How long the kernel gets to end killed processes.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// How a lab was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// Its name.
    pub name: String,
    /// Whether agents and control plane run.
    pub mesh: bool,
    /// Nodes and pods.
    pub topology: Topology,
    /// Whether agents write access logs.
    pub access_log: bool,
    /// Life of workload certificates in seconds; absent = the control plane's default.
    pub cert_ttl: Option<u64>,
    /// Workers of each agent; absent = the agent's default.
    pub workers: Option<usize>,
    /// Root of its cgroup subtree.
    pub cgroup: PathBuf,
}

impl State {
    /// Reads the state of a lab that stands.
    ///
    /// # Errors
    /// There is none of that name, or its state file is damaged.
    pub fn open(name: &str) -> Result<Self> {
        let path = Path::new(ROOT).join(name).join("state.json");
        let Ok(text) = std::fs::read_to_string(&path) else {
            let known = list().join(", ");
            bail!("no lab `{name}` stands here ({})", if known.is_empty() { "none does" } else { &known });
        };
        serde_json::from_str(&text).with_context(|| format!("{}: damaged; `lab down` removes the lab", path.display()))
    }

    /// Writes the state file.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn save(&self) -> Result<()> {
        sys::write_whole(&self.dir().join("state.json"), &serde_json::to_string_pretty(self)?)
    }

    /// The lab's directory.
    pub fn dir(&self) -> PathBuf {
        Path::new(ROOT).join(&self.name)
    }

    /// The lab's own copy of the objects.
    pub fn config_dir(&self) -> PathBuf {
        self.dir().join("config")
    }

    /// What the control plane reads.
    pub fn effective_dir(&self) -> PathBuf {
        self.dir().join("effective")
    }

    /// A log file: `control`, `agent-<node>`, `access-<node>`, `pod-<pod>`.
    pub fn log(&self, what: &str) -> PathBuf {
        self.dir().join("logs").join(format!("{what}.log"))
    }

    /// Files of a node: settings, token, names.
    pub fn node_dir(&self, node: &str) -> PathBuf {
        self.dir().join("nodes").join(node)
    }

    /// Files of a pod: names.
    pub fn pod_dir(&self, pod: &str) -> PathBuf {
        self.dir().join("pods").join(pod)
    }

    /// Files of the control plane: settings and CA.
    pub fn control_dir(&self) -> PathBuf {
        self.dir().join("control")
    }

    /// The cgroup whose sockets a node's agent catches.
    pub fn node_cgroup(&self, node: &str) -> PathBuf {
        self.cgroup.join(node)
    }

    /// Where a node's agent pins its maps.
    pub fn pins(&self, node: &str) -> PathBuf {
        pins(&self.name).join(node)
    }

    /// Where a pod's processes run.
    pub fn pod_place(&self, spec: &PodSpec) -> Place {
        let dir = self.pod_dir(&spec.name);
        let mut env = spec.env.clone();
        for (key, value) in [("POD_NAME", &spec.name), ("POD_NAMESPACE", &spec.namespace), ("NODE_NAME", &spec.node)] {
            env.insert(key.to_owned(), value.clone());
        }
        Place {
            name: format!("pod {}", spec.name),
            netns: network::file(&network::pod(&self.name, &spec.name)),
            cgroup: Some(self.node_cgroup(&spec.node).join("pods").join(&spec.name)),
            hosts: Some(dir.join("hosts")),
            resolv: Some(dir.join("resolv.conf")),
            env,
            confinement: None,
        }
    }

    /// Where a node's agent runs.
    pub fn agent_place(&self, node: &str) -> Place {
        Place {
            name: format!("agent {node}"),
            cgroup: Some(self.node_cgroup(node).join("agent")),
            confinement: Some(Confinement::of_an_agent(self.agent_writes(node))),
            ..self.node_place(node)
        }
    }

    /// The directories that a node's agent writes: as in `deploy/`, and the logs.
    fn agent_writes(&self, node: &str) -> Vec<PathBuf> {
        vec![sys::BPFFS.into(), self.node_cgroup(node).join("agent"), self.node_dir(node), self.dir().join("logs")]
    }

    /// A node's namespace, for captures and for looking at the agent's ports.
    pub fn node_place(&self, node: &str) -> Place {
        Place {
            name: format!("node {node}"),
            netns: network::file(&network::node(&self.name, node)),
            cgroup: None,
            hosts: Some(self.dir().join("hosts")),
            resolv: None,
            env: BTreeMap::new(),
            confinement: None,
        }
    }

    /// Where the control plane runs.
    pub fn control_place(&self) -> Place {
        Place {
            name: "control plane".to_owned(),
            netns: network::file(&network::control(&self.name)),
            cgroup: Some(self.cgroup.join("control")),
            hosts: Some(self.dir().join("hosts")),
            resolv: None,
            env: BTreeMap::new(),
            confinement: None,
        }
    }
}

/// Names of the labs that stand, or whose remains lie around.
pub fn list() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(ROOT) else { return Vec::new() };
    let mut names: Vec<_> = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Root of a lab's cgroup subtree.
///
/// # Errors
/// cgroup v2 is not mounted.
pub fn cgroup(name: &str) -> Result<PathBuf> {
    Ok(sys::cgroup_mount()?.join(format!("mesh-lab.{name}")))
}

fn pins(name: &str) -> PathBuf {
    Path::new(sys::BPFFS).join("mesh-lab").join(name)
}

/// Takes a lab down, whatever of it is there: agents first, so that they can put things back, then every process,
/// namespace, pin, cgroup and file.
///
/// # Errors
/// Something cannot be removed; the rest is.
pub fn teardown(name: &str) -> Result<()> {
    check_name(name)?;
    let root = cgroup(name)?;
    let ended = end_processes(&root);
    let gone = network::remove(name);
    for path in [pins(name), Path::new(ROOT).join(name)] {
        remove_tree(&path)?;
    }
    // Only succeeds when this was the last lab; others still need them.
    let _ = std::fs::remove_dir(Path::new(sys::BPFFS).join("mesh-lab"));
    let _ = std::fs::remove_dir(ROOT);
    ended.and(gone)
}

fn end_processes(root: &Path) -> Result<()> {
    if !root.exists() {
        return Ok(());
    }
    let agents: Vec<_> = children(root).into_iter().map(|node| node.join("agent")).filter(|a| a.is_dir()).collect();
    for agent in &agents {
        signal(agent, Signal::SIGTERM);
    }
    let left = || Ok(agents.iter().all(|a| !populated(a)).then_some(()));
    // An agent that does not leave is killed with the rest.
    let _ = sys::wait_for(AGENT_GRACE, "agents to leave", left);
    kill_cgroup(root)?;
    remove_cgroup(root)
}

/// Signals every process directly in a cgroup.
pub fn signal(cgroup: &Path, signal: Signal) {
    let procs = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    for pid in procs.lines().filter_map(|l| l.parse().ok()).filter(|pid| *pid > 0) {
        // It may have ended by itself meanwhile.
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Whether a process lives in a cgroup or below.
pub fn populated(cgroup: &Path) -> bool {
    std::fs::read_to_string(cgroup.join("cgroup.events")).is_ok_and(|t| t.lines().any(|l| l == "populated 1"))
}

/// The processes in a cgroup.
pub fn processes(cgroup: &Path) -> Vec<i32> {
    let procs = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    procs.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Kills every process in a cgroup and below, and waits until they are gone.
///
/// # Errors
/// The kernel does not end them in time.
pub fn kill_cgroup(cgroup: &Path) -> Result<()> {
    let kill = cgroup.join("cgroup.kill");
    std::fs::write(&kill, "1").with_context(|| format!("killing {} (Linux 5.14 or later)", kill.display()))?;
    sys::wait_for(KILL_LIMIT, "killed processes to go", || Ok((!populated(cgroup)).then_some(())))
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| e.path()).filter(|p| p.is_dir()).collect()
}

fn remove_cgroup(dir: &Path) -> Result<()> {
    for child in children(dir) {
        remove_cgroup(&child)?;
    }
    std::fs::remove_dir(dir).with_context(|| format!("removing cgroup {}", dir.display()))
}

fn remove_tree(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}
