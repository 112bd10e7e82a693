//! A lab: brought up from a topology, used, and taken down whatever happens to its owner.
//!
//! In: [`LabBuilder`]. Out: [`Lab`], through which pods, nodes and the control plane are reached. A helper process (the
//! janitor) waits on a pipe whose other end only we hold: when we die without having taken the lab down, it does.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::config;
use crate::control::Control;
use crate::names::{self, Named};
use crate::network;
use crate::node::Node;
use crate::pod::Pod;
use crate::state::{self, State};
use crate::sys;
use crate::topology::{Topology, check_name};

/// Longest that a pod's command takes until it listens.
const PORTS_LIMIT: Duration = Duration::from_secs(20);
/// Prefix for the names of labs that tests make, so that their runner can see what they leave.
pub const PREFIX_VARIABLE: &str = "MESH_LAB_PREFIX";

/// What a lab shall be like.
#[derive(Debug, Clone)]
pub struct LabBuilder {
    name: String,
    topology: Topology,
    config: Vec<(String, String)>,
    config_dir: Option<PathBuf>,
    mesh: bool,
    access_log: bool,
    cert_ttl: Option<u64>,
    workers: Option<usize>,
}

impl LabBuilder {
    /// A lab under exactly this name, with the mesh on.
    pub fn new(name: &str, topology: Topology) -> Self {
        let name = name.to_owned();
        let (config, config_dir, cert_ttl, workers) = (Vec::new(), None, None, None);
        Self { name, topology, config, config_dir, mesh: true, access_log: true, cert_ttl, workers }
    }

    /// A lab for a test: its name is made unique, so that tests and whole runs stand side by side.
    pub fn for_test(name: &str, topology: Topology) -> Self {
        let prefix = std::env::var(PREFIX_VARIABLE).unwrap_or_else(|_| "t".to_owned());
        Self::new(&format!("{prefix}-{name}-{}", std::process::id()), topology)
    }

    /// Adds a file of objects.
    #[must_use]
    pub fn config(mut self, file: &str, yaml: &str) -> Self {
        self.config.push((file.to_owned(), yaml.to_owned()));
        self
    }

    /// Takes the objects from a directory.
    #[must_use]
    pub fn config_dir(mut self, dir: &Path) -> Self {
        self.config_dir = Some(dir.to_owned());
        self
    }

    /// Whether agents and the control plane run.
    #[must_use]
    pub fn mesh(mut self, on: bool) -> Self {
        self.mesh = on;
        self
    }

    /// Life of workload certificates, in seconds.
    #[must_use]
    pub fn cert_ttl(mut self, seconds: u64) -> Self {
        self.cert_ttl = Some(seconds);
        self
    }

    /// Workers of each agent: with one, all connections of a node are neighbours.
    #[must_use]
    pub fn workers(mut self, count: usize) -> Self {
        self.workers = Some(count);
        self
    }

    /// Whether agents write access logs; they do unless told otherwise.
    #[must_use]
    pub fn access_log(mut self, on: bool) -> Self {
        self.access_log = on;
        self
    }

    /// Brings the lab up and waits until everything in it is ready.
    ///
    /// # Errors
    /// No root, a name in use, anything that does not come up; then nothing of it is left.
    pub fn up(self) -> Result<Lab> {
        sys::require_root()?;
        check_name(&self.name)?;
        let topology = self.topology.complete()?;
        sys::binaries()?;
        if self.mesh {
            sys::ensure_bpffs()?;
        }
        let state = State {
            cgroup: state::cgroup(&self.name)?,
            name: self.name,
            mesh: self.mesh,
            topology,
            access_log: self.access_log,
            cert_ttl: self.cert_ttl,
            workers: self.workers,
        };
        sys::create_dir(Path::new(state::ROOT))?;
        if let Err(e) = std::fs::create_dir(state.dir()) {
            if e.kind() == std::io::ErrorKind::AlreadyExists {
                bail!("a lab `{}` stands already (or its remains): `cargo xtask lab down --name {0}`", state.name);
            }
            return Err(e).with_context(|| format!("creating {}", state.dir().display()));
        }
        let janitor = Janitor::start(&state.name);
        // From here on dropping the value takes everything down.
        let lab = Lab { janitor: Some(janitor?), allocated: Mutex::default(), state };
        lab.bring_up(&self.config, self.config_dir.as_deref()).with_context(|| format!("lab {}", lab.state.name))?;
        Ok(lab)
    }
}

/// A lab that stands.
#[derive(Debug)]
pub struct Lab {
    state: State,
    /// Present while this value owns the lab.
    janitor: Option<Janitor>,
    allocated: Mutex<BTreeMap<String, u16>>,
}

impl Lab {
    /// A lab that another process has brought up; it is left standing when the value is dropped.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn open(name: &str) -> Result<Self> {
        sys::require_root()?;
        let state = State::open(name)?;
        let allocated = std::fs::read_to_string(allocated_file(&state)).ok();
        let allocated = allocated.and_then(|t| serde_json::from_str(&t).ok()).unwrap_or_default();
        Ok(Self { state, janitor: None, allocated: Mutex::new(allocated) })
    }

    /// How it was made, and its paths.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Nodes and pods.
    pub fn topology(&self) -> &Topology {
        &self.state.topology
    }

    /// A pod.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn pod(&self, name: &str) -> Result<Pod<'_>> {
        Ok(Pod::new(&self.state, self.state.topology.find(name)?))
    }

    /// A node.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn node(&self, name: &str) -> Result<Node<'_>> {
        let known = &self.state.topology.nodes;
        let name = known.iter().find(|n| *n == name);
        let name = name.with_context(|| format!("no such node; nodes are {}", known.join(", ")))?;
        Ok(Node::new(&self.state, name))
    }

    /// The control plane.
    pub fn control(&self) -> Control<'_> {
        Control::new(&self.state)
    }

    /// Writes one file of objects and lets everybody know.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn write_config(&self, file: &str, yaml: &str) -> Result<()> {
        sys::write_whole(&self.state.config_dir().join(file), yaml)?;
        self.apply()
    }

    /// Removes one file of objects and lets everybody know.
    ///
    /// # Errors
    /// It is not there.
    pub fn remove_config(&self, file: &str) -> Result<()> {
        let path = self.state.config_dir().join(file);
        std::fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        self.apply()
    }

    /// Replaces all objects by those of a directory.
    ///
    /// # Errors
    /// The directory cannot be read, or the file system refuses.
    pub fn apply_dir(&self, dir: &Path) -> Result<()> {
        let config = self.state.config_dir();
        for old in config::files(&config)? {
            std::fs::remove_file(&old).with_context(|| format!("removing {}", old.display()))?;
        }
        copy_config(dir, &config)?;
        self.apply()
    }

    /// Leaves the lab standing when this process ends.
    ///
    /// # Errors
    /// The janitor is gone.
    pub fn detach(mut self) -> Result<()> {
        self.janitor.take().map_or(Ok(()), Janitor::dismiss)
    }

    /// Takes the lab down and reports what could not be removed, which dropping does not.
    ///
    /// # Errors
    /// As [`state::teardown`].
    pub fn down(mut self) -> Result<()> {
        self.take_down()
    }

    fn take_down(&mut self) -> Result<()> {
        let Some(janitor) = self.janitor.take() else { return Ok(()) };
        state::teardown(&self.state.name)?;
        janitor.dismiss()
    }

    fn bring_up(&self, files: &[(String, String)], dir: Option<&Path>) -> Result<()> {
        let state = &self.state;
        sys::create_dir(&state.dir().join("logs"))?;
        sys::create_dir(&state.config_dir())?;
        state.save()?;
        for node in &state.topology.nodes {
            sys::create_dir(&state.node_cgroup(node).join("agent"))?;
            sys::create_dir(&state.node_cgroup(node).join("pods"))?;
            sys::create_dir(&state.node_dir(node))?;
        }
        for pod in &state.topology.pods {
            sys::create_dir(&state.node_cgroup(&pod.node).join("pods").join(&pod.name))?;
            sys::create_dir(&state.pod_dir(&pod.name))?;
        }
        sys::create_dir(&state.cgroup.join("control"))?;
        network::build(&state.name, &state.topology)?;
        if let Some(dir) = dir {
            copy_config(dir, &state.config_dir())?;
        }
        for (name, yaml) in files {
            sys::write_whole(&state.config_dir().join(name), yaml)?;
        }
        self.apply()?;
        if state.mesh {
            self.control().prepare()?;
            self.control().start()?;
            for node in &state.topology.nodes {
                self.node(node)?.agent().spawn()?;
            }
            for node in &state.topology.nodes {
                self.node(node)?.agent().wait_ready()?;
            }
        }
        for pod in state.topology.pods.iter().filter(|p| !p.command.is_empty()) {
            self.pod(&pod.name)?.start_command()?;
        }
        for pod in state.topology.pods.iter().filter(|p| !p.command.is_empty()) {
            self.pod(&pod.name)?.wait_ports(&pod.ports, PORTS_LIMIT)?;
        }
        Ok(())
    }

    /// Renders the effective configuration and everybody's names from the lab's copy of the objects.
    fn apply(&self) -> Result<()> {
        let state = &self.state;
        let mut allocated = self.allocated.lock().unwrap_or_else(PoisonError::into_inner);
        let named = config::render(&state.config_dir(), &state.effective_dir(), &state.topology, &mut allocated)?;
        sys::write_whole(&allocated_file(state), &serde_json::to_string(&*allocated)?)?;
        self.write_names(&named)
    }

    /// Rewritten in place, not replaced: running processes have these very files mounted, and read them at any time.
    fn write_names(&self, named: &[Named]) -> Result<()> {
        let write =
            |path: PathBuf, text: String| rewrite(&path, &text).with_context(|| format!("writing {}", path.display()));
        let state = &self.state;
        for pod in &state.topology.pods {
            let direct = !state.mesh || !pod.enrolled;
            let dir = state.pod_dir(&pod.name);
            write(dir.join("hosts"), names::hosts(&state.topology, named, pod, direct))?;
            // Nobody answers there, so that an unknown name fails at once.
            let resolv = format!("nameserver 127.0.0.1\nsearch {}.svc.cluster.local\n", pod.namespace);
            write(dir.join("resolv.conf"), resolv + "options timeout:1 attempts:1\n")?;
        }
        let (v4, _) = network::CONTROL;
        let own = "istiod istiod.istio-system istiod.istio-system.svc istiod.istio-system.svc.cluster.local";
        write(state.dir().join("hosts"), format!("127.0.0.1 localhost\n::1 localhost\n{v4} {own}\n"))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(e) = self.take_down() {
            eprintln!("lab {}: {e:#}", self.state.name);
        }
    }
}

/// Gives a file other content, if it is not that already, and leaves it at no time without.
fn rewrite(path: &Path, text: &str) -> std::io::Result<()> {
    if std::fs::read_to_string(path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    file.write_all(text.as_bytes())?;
    file.set_len(text.len() as u64)
}

fn allocated_file(state: &State) -> PathBuf {
    state.dir().join("addresses.json")
}

fn copy_config(from: &Path, to: &Path) -> Result<()> {
    for path in config::files(from)? {
        let target = to.join(path.file_name().unwrap_or_default());
        std::fs::copy(&path, &target).with_context(|| format!("copying {}", path.display()))?;
    }
    Ok(())
}

/// Takes a lab down when its owner dies. Started as `mesh-lab janitor NAME`.
#[derive(Debug)]
struct Janitor(Child);

impl Janitor {
    fn start(lab: &str) -> Result<Self> {
        let start = || {
            let mut command = Command::new(sys::binary("mesh-lab")?);
            command.args(["janitor", lab]).stdin(Stdio::piped()).stdout(Stdio::null());
            command.spawn().context("starting mesh-lab janitor")
        };
        start().map(Self).inspect_err(|_| {
            // Nothing else is there yet.
            let _ = std::fs::remove_dir_all(Path::new(state::ROOT).join(lab));
        })
    }

    /// Sends it away with nothing to do.
    fn dismiss(mut self) -> Result<()> {
        let mut pipe = self.0.stdin.take().context("the janitor has no pipe")?;
        pipe.write_all(b"done").context("the janitor is gone")?;
        drop(pipe);
        self.0.wait().context("waiting for the janitor")?;
        Ok(())
    }
}

/// Body of the janitor: waits for the owner's word; without one, takes the lab down.
///
/// # Errors
/// As [`state::teardown`].
pub fn janitor(lab: &str) -> Result<()> {
    // Ctrl-C in the owner's terminal is for the owner. Fails only if we lead a group already, which is as good.
    let _ = nix::unistd::setsid();
    let mut word = Vec::new();
    std::io::Read::read_to_end(&mut std::io::stdin(), &mut word).context("waiting for the owner")?;
    if word == b"done" { Ok(()) } else { state::teardown(lab) }
}
