//! A pod of a lab: run programs in it, look at its address.
//!
//! In: command lines. Out: their output, or processes. Everything runs in the pod's namespace, cgroup and names.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::dial::Dialer;
use crate::place::{Output, Place, Process};
use crate::state::State;
use crate::sys;
use crate::topology::PodSpec;

/// Numbers the logs of spawned processes.
static SPAWNED: AtomicU32 = AtomicU32::new(0);

/// Counts dialers, each of which has ports of its own.
static DIALERS: AtomicU32 = AtomicU32::new(0);
/// Connections of one dialer.
const PORTS: u16 = 2400;

/// A pod.
#[derive(Debug, Clone, Copy)]
pub struct Pod<'a> {
    state: &'a State,
    spec: &'a PodSpec,
}

impl<'a> Pod<'a> {
    pub(crate) fn new(state: &'a State, spec: &'a PodSpec) -> Self {
        Self { state, spec }
    }

    /// What the topology says of it.
    pub fn spec(&self) -> &'a PodSpec {
        self.spec
    }

    /// Its main IPv4 address, or the IPv6 one if it has no other.
    ///
    /// # Panics
    /// Never: a topology gives every pod an address.
    pub fn address(&self) -> IpAddr {
        self.spec.address(false).unwrap_or_else(|| self.spec.addresses[0])
    }

    /// Its main IPv6 address.
    ///
    /// # Errors
    /// It has none.
    pub fn address_v6(&self) -> Result<IpAddr> {
        self.spec.address(true).with_context(|| format!("pod {} has no IPv6 address", self.spec.name))
    }

    /// Where its processes run.
    pub fn place(&self) -> Place {
        self.state.pod_place(self.spec)
    }

    /// Runs a command that must succeed.
    ///
    /// # Errors
    /// It cannot start, takes too long, or fails.
    pub fn run(&self, argv: &[impl AsRef<str>]) -> Result<Output> {
        self.place().run(argv)
    }

    /// Runs a command, whatever its status.
    ///
    /// # Errors
    /// It cannot start or takes too long.
    pub fn try_run(&self, argv: &[impl AsRef<str>]) -> Result<Output> {
        self.place().try_run(argv)
    }

    /// Starts a command in the background.
    ///
    /// # Errors
    /// It cannot start.
    pub fn spawn(&self, argv: &[impl AsRef<str>]) -> Result<Process> {
        let number = SPAWNED.fetch_add(1, Ordering::Relaxed);
        let log = self.state.log(&format!("run-{}-{}-{number}", self.spec.name, std::process::id()));
        self.place().spawn(argv, &log)
    }

    /// Starts a server in the background and waits until it listens.
    ///
    /// # Errors
    /// It cannot start, or does not listen in time; the error has the end of its log.
    pub fn serve(&self, argv: &[impl AsRef<str>], port: u16) -> Result<Process> {
        let mut process = self.spawn(argv)?;
        let place = self.place();
        sys::wait_for(Duration::from_secs(20), &format!("{} to listen on port {port}", place.name), || {
            if !process.running() {
                anyhow::bail!("it ended");
            }
            Ok(place.listens(port)?.then_some(()))
        })
        .with_context(|| process.log())?;
        Ok(process)
    }

    /// Starts what opens connections in this pod for the caller.
    ///
    /// # Errors
    /// It cannot start.
    pub fn dialer(&self) -> Result<Dialer> {
        let number = DIALERS.fetch_add(1, Ordering::Relaxed);
        let socket = self.scratch()?.join(format!("dial-{number}"));
        // Below the ports that the kernel gives by itself.
        let first_port = 8192 + u32::from(PORTS) * (number % 10);
        let (path, first_port) = (socket.display().to_string(), first_port.to_string());
        let mut process = self.spawn(&["mesh-lab-app", "dial", "--socket", &path, "--first-port", &first_port])?;
        let listening = |log: &str| log.contains("listening").then_some(());
        process.wait_log(Duration::from_secs(10), "the dialer to listen", listening)?;
        Ok(Dialer::new(process, socket))
    }

    /// A directory for files of programs in this pod; it goes with the lab.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn scratch(&self) -> Result<PathBuf> {
        let dir = self.state.pod_dir(&self.spec.name).join("scratch");
        sys::create_dir(&dir)?;
        Ok(dir)
    }

    /// All that its command wrote.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.state.log(&format!("pod-{}", self.spec.name))).unwrap_or_default()
    }

    /// Runs a closure inside its network namespace, unseen by the mesh's hooks on the pod's cgroup.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn within<R: Send>(&self, f: impl FnOnce() -> R + Send) -> Result<R> {
        self.place().within(f)
    }

    pub(crate) fn start_command(&self) -> Result<()> {
        let log = self.state.log(&format!("pod-{}", self.spec.name));
        self.place().spawn(&self.spec.command, &log)?.leave();
        Ok(())
    }

    pub(crate) fn wait_ports(&self, ports: &[u16], limit: Duration) -> Result<()> {
        let place = self.place();
        for port in ports {
            sys::wait_for(limit, &format!("{} to listen on port {port}", place.name), || {
                Ok(place.listens(*port)?.then_some(()))
            })
            .with_context(|| {
                format!("its log:\n{}", sys::tail(&self.state.log(&format!("pod-{}", self.spec.name)), 20))
            })?;
        }
        Ok(())
    }
}
