//! A node of a lab and its agent: start, stop, look at what it says.
//!
//! In: the lab's state. Out: the agent's settings file, its process, its metrics and logs. Only the agent of this node
//! is ever signalled: by its cgroup.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::capture::Capture;
use crate::config::quote;
use crate::metrics::Metrics;
use crate::network;
use crate::place::Place;
use crate::state::{self, State};
use crate::sys;

/// Port of the agent's admin pages, on the node's loopback.
pub const ADMIN_PORT: u16 = 15000;
/// Port of the agent's metrics.
pub const METRICS_PORT: u16 = 15020;
/// Port of the agent's readiness.
pub const READY_PORT: u16 = 15021;
/// Longest that an agent takes to be ready.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// Longest that an agent takes to leave.
const LEAVE_LIMIT: Duration = Duration::from_secs(15);

/// A node.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    state: &'a State,
    name: &'a str,
}

impl<'a> Node<'a> {
    pub(crate) fn new(state: &'a State, name: &'a str) -> Self {
        Self { state, name }
    }

    /// Its address on the wire.
    pub fn address(&self) -> IpAddr {
        let index = self.state.topology.nodes.iter().position(|n| n == self.name).unwrap_or_default();
        network::node_addresses(index).0.into()
    }

    /// Its namespace.
    pub fn place(&self) -> Place {
        self.state.node_place(self.name)
    }

    /// Its agent.
    pub fn agent(&self) -> Agent<'a> {
        Agent { state: self.state, node: self.name }
    }

    /// Starts a capture on this node's interface on the wire.
    ///
    /// # Errors
    /// tcpdump is missing or refuses the filter.
    pub fn capture(&self, filter: &str) -> Result<Capture> {
        Capture::start(self.place(), network::UPLINK, filter, &self.state.dir())
    }
}

/// The agent of a node.
#[derive(Debug, Clone, Copy)]
pub struct Agent<'a> {
    state: &'a State,
    node: &'a str,
}

impl Agent<'_> {
    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// It does not become ready; the error has the end of its log.
    pub fn start(&self) -> Result<()> {
        self.spawn()?;
        self.wait_ready()
    }

    /// Asks it to leave and waits until it has.
    ///
    /// # Errors
    /// It stays.
    pub fn stop(&self) -> Result<()> {
        state::signal(&self.cgroup(), Signal::SIGTERM);
        sys::wait_for(LEAVE_LIMIT, &format!("agent {} to leave", self.node), || {
            Ok((!state::populated(&self.cgroup())).then_some(()))
        })
        .with_context(|| self.tail())
    }

    /// Stops and starts it.
    ///
    /// # Errors
    /// As [`Agent::stop`] and [`Agent::start`].
    pub fn restart(&self) -> Result<()> {
        self.stop()?;
        self.start()
    }

    /// Ends it without warning.
    ///
    /// # Errors
    /// The kernel does not end it.
    pub fn kill(&self) -> Result<()> {
        state::kill_cgroup(&self.cgroup())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        state::signal(&self.cgroup(), signal);
    }

    /// Whether its process lives.
    pub fn running(&self) -> bool {
        state::populated(&self.cgroup())
    }

    /// A page of the admin port.
    ///
    /// # Errors
    /// No answer, or a status other than 200.
    pub fn admin(&self, path: &str) -> Result<String> {
        self.page(ADMIN_PORT, path)
    }

    /// What it exports now.
    ///
    /// # Errors
    /// No answer.
    pub fn metrics(&self) -> Result<Metrics> {
        Ok(Metrics::parse(&self.page(METRICS_PORT, "/metrics")?))
    }

    /// All it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.state.log(&format!("agent-{}", self.node))).unwrap_or_default()
    }

    /// Its access log.
    pub fn access_log(&self) -> String {
        std::fs::read_to_string(self.access_log_file()).unwrap_or_default()
    }

    /// Its settings file, written by [`Agent::spawn`].
    pub fn settings_file(&self) -> PathBuf {
        self.state.node_dir(self.node).join("agent.yaml")
    }

    /// Writes its settings and starts it without waiting.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(&self) -> Result<()> {
        self.spawn_with(&self.settings())
    }

    /// Starts it with other settings, without waiting; [`Agent::settings`] is what to begin with.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn_with(&self, settings: &str) -> Result<()> {
        sys::write_whole(&self.settings_file(), settings)?;
        let program = sys::binary("mesh-agent")?.display().to_string();
        let settings = self.settings_file().display().to_string();
        let log = self.state.log(&format!("agent-{}", self.node));
        self.state.agent_place(self.node).spawn(&[program.as_str(), "--config", &settings], &log)?.leave();
        Ok(())
    }

    /// Starts another agent beside the running one, to take over from it with other settings, and waits until it has.
    /// The old one may drain for a while yet.
    ///
    /// # Errors
    /// It cannot be started, or does not take over.
    pub fn upgrade_with(&self, settings: &str) -> Result<()> {
        let took = |log: &str| log.matches("took over from the agent").count();
        let before = took(&self.log());
        sys::write_whole(&self.settings_file(), settings)?;
        let program = sys::binary("mesh-agent")?.display().to_string();
        let settings = self.settings_file().display().to_string();
        let log = self.state.log(&format!("agent-{}", self.node));
        let argv = [program.as_str(), "--config", &settings, "--take-over"];
        let mut successor = self.state.agent_place(self.node).spawn(&argv, &log)?;
        successor.wait_log(READY_LIMIT, "the new agent to take over", |log| (took(log) > before).then_some(()))?;
        successor.leave();
        Ok(())
    }

    /// Where it runs.
    pub fn place(&self) -> Place {
        self.state.agent_place(self.node)
    }

    /// Its processes: two while one takes over from the other.
    pub fn processes(&self) -> Vec<i32> {
        state::processes(&self.cgroup())
    }

    /// Waits until it says that it is ready.
    ///
    /// # Errors
    /// It ends or does not in time; the error has the end of its log.
    pub fn wait_ready(&self) -> Result<()> {
        let place = self.state.node_place(self.node);
        let mut said = String::new();
        sys::wait_for(READY_LIMIT, &format!("agent {} to be ready", self.node), || {
            if !self.running() {
                bail!("it ended");
            }
            match place.http_get(Ipv4Addr::LOCALHOST.into(), READY_PORT, "/healthz/ready") {
                Ok((200, _)) => return Ok(Some(())),
                Ok((status, body)) => said = format!("{status} {}", body.trim()),
                Err(e) => said = format!("{e:#}"),
            }
            Ok(None)
        })
        .with_context(|| format!("last answer: {said}\n{}", self.tail()))
    }

    fn page(&self, port: u16, path: &str) -> Result<String> {
        let place = self.state.node_place(self.node);
        let (status, body) = place.http_get(Ipv4Addr::LOCALHOST.into(), port, path)?;
        if status != 200 {
            bail!("agent {}: {path} on port {port}: {status} {}", self.node, body.trim());
        }
        Ok(body)
    }

    fn cgroup(&self) -> PathBuf {
        self.state.node_cgroup(self.node).join("agent")
    }

    fn access_log_file(&self) -> PathBuf {
        self.state.log(&format!("access-{}", self.node))
    }

    fn tail(&self) -> String {
        format!("agent {}'s log:\n{}", self.node, sys::tail(&self.state.log(&format!("agent-{}", self.node)), 30))
    }

    /// The settings that the topology gives it.
    pub fn settings(&self) -> String {
        let path = |p: PathBuf| quote(&p.display().to_string());
        let dir = self.state.node_dir(self.node);
        let mut yaml = format!(
            "node: {}\ncontrolPlane:\n  address: https://istiod.istio-system.svc:15012\n  rootCert: {}\n  tokenFile: {}\n\
             nodeSocket: {}\nkernel:\n  pinPath: {}\n  cgroup: {}\n",
            quote(self.node),
            path(self.state.control_dir().join("ca/root-cert.pem")),
            path(dir.join("token")),
            path(dir.join("agent.sock")),
            path(self.state.pins(self.node)),
            path(self.state.node_cgroup(self.node)),
        );
        if self.state.access_log {
            // Writing to a String cannot fail, here and below.
            let _ = writeln!(yaml, "accessLog: {}", path(self.access_log_file()));
        }
        if let Some(workers) = self.state.workers {
            let _ = writeln!(yaml, "workers: {workers}");
        }
        yaml += "workloads:\n";
        let pods = self.state.topology.pods.iter().filter(|p| p.node == self.node && p.enrolled);
        let mut any = false;
        for pod in pods {
            any = true;
            let _ = write!(
                yaml,
                "- name: {}\n  namespace: {}\n  serviceAccount: {}\n  netns: {}\n  labels:\n",
                quote(&pod.name),
                quote(&pod.namespace),
                quote(&pod.service_account),
                path(network::file(&network::pod(&self.state.name, &pod.name))),
            );
            for (key, value) in &pod.labels {
                let _ = writeln!(yaml, "    {key}: {}", quote(value));
            }
            if let Some(word) = &pod.same_node {
                let _ = writeln!(yaml, "  sameNode: {}", quote(word));
            }
            if let Some(word) = &pod.shortcuts {
                let _ = writeln!(yaml, "  shortcuts: {}", quote(word));
            }
        }
        if any { yaml } else { yaml.replace("workloads:\n", "workloads: []\n") }
    }
}
