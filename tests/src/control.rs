//! The lab's control plane: start, kill, look at what it says.
//!
//! In: the lab's state. Out: its settings file, its process, its logs. Each node's token is made here.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::config::quote;
use crate::place::Place;
use crate::state::{self, State};
use crate::sys;

/// Port of xDS and CA over TLS.
pub const XDS_PORT: u16 = 15012;
/// Port of metrics, debug and health.
pub const HTTP_PORT: u16 = 15014;
/// Longest that the control plane takes to be ready.
const READY_LIMIT: Duration = Duration::from_secs(20);

/// The control plane.
#[derive(Debug, Clone, Copy)]
pub struct Control<'a> {
    state: &'a State,
}

impl<'a> Control<'a> {
    pub(crate) fn new(state: &'a State) -> Self {
        Self { state }
    }

    /// Its namespace.
    pub fn place(&self) -> Place {
        Place { cgroup: None, ..self.state.control_place() }
    }

    /// Directory of its CA.
    pub fn ca_dir(&self) -> PathBuf {
        self.state.control_dir().join("ca")
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// It does not become ready; the error has the end of its log.
    pub fn start(&self) -> Result<()> {
        let program = sys::binary("mesh-control")?.display().to_string();
        let settings = self.settings_file().display().to_string();
        let log = self.state.log("control");
        self.state.control_place().spawn(&[program.as_str(), "--config", &settings], &log)?.leave();
        let mut said = String::new();
        sys::wait_for(READY_LIMIT, "the control plane to be ready", || {
            if !self.running() {
                bail!("it ended");
            }
            match self.page("/healthz/ready") {
                Ok(_) => return Ok(Some(())),
                Err(e) => said = format!("{e:#}"),
            }
            Ok(None)
        })
        .with_context(|| format!("last answer: {said}\nits log:\n{}", sys::tail(&log, 30)))
    }

    /// Ends it without warning.
    ///
    /// # Errors
    /// The kernel does not end it.
    pub fn kill(&self) -> Result<()> {
        state::kill_cgroup(&self.cgroup())
    }

    /// Whether its process lives.
    pub fn running(&self) -> bool {
        state::populated(&self.cgroup())
    }

    /// Its processes.
    pub fn processes(&self) -> Vec<i32> {
        state::processes(&self.cgroup())
    }

    /// A page of its HTTP port.
    ///
    /// # Errors
    /// No answer, or a status other than 200.
    pub fn page(&self, path: &str) -> Result<String> {
        let (status, body) = self.place().http_get(Ipv4Addr::LOCALHOST.into(), HTTP_PORT, path)?;
        if status != 200 {
            bail!("control plane: {path}: {status} {}", body.trim());
        }
        Ok(body)
    }

    /// All it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.state.log("control")).unwrap_or_default()
    }

    /// Writes its settings and every node's token.
    pub(crate) fn prepare(&self) -> Result<()> {
        let dir = self.state.control_dir();
        sys::create_dir(&dir)?;
        let mut yaml = format!(
            "configDir: {}\ncaDir: {}\n",
            quote(&self.state.effective_dir().display().to_string()),
            quote(&self.ca_dir().display().to_string()),
        );
        if let Some(seconds) = self.state.cert_ttl {
            writeln!(yaml, "certTtl: {seconds}")?;
        }
        yaml += "nodes:\n";
        for node in &self.state.topology.nodes {
            let token = self.state.node_dir(node).join("token");
            secret(&token)?;
            writeln!(yaml, "- name: {}\n  tokenFile: {}", quote(node), quote(&token.display().to_string()))?;
        }
        sys::write_whole(&self.settings_file(), &yaml)
    }

    fn settings_file(&self) -> PathBuf {
        self.state.control_dir().join("control.yaml")
    }

    fn cgroup(&self) -> PathBuf {
        self.state.cgroup.join("control")
    }
}

/// Writes 32 random bytes in hexadecimal to a file that only root reads.
fn secret(path: &std::path::Path) -> Result<()> {
    let mut bytes = [0u8; 32];
    let mut random = std::fs::File::open("/dev/urandom").context("opening /dev/urandom")?;
    std::io::Read::read_exact(&mut random, &mut bytes)?;
    let text: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(path)?;
    std::io::Write::write_all(&mut file, text.as_bytes()).with_context(|| format!("writing {}", path.display()))
}
