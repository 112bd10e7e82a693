//! The agent's settings. In: a YAML file. Out: [`Settings`], checked, or an error that names file, line, path and what
//! to do. Reads no other file and touches no network.

pub mod host;
pub mod limits;
pub mod probes;
mod yaml;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_common::abi::MAX_NODE_ADDRESSES;
use mesh_core::identity::SpiffeId;
use serde::Deserialize;

use limits::Limits;
use probes::ProbeSettings;
use yaml::Located;

/// Workloads that one agent accepts.
pub const MAX_WORKLOADS: usize = 10_000;

/// Everything an agent is told at start. On reload (SIGHUP) only `workloads` is taken from the new file.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Settings {
    /// Name of this node.
    pub node: String,
    /// Cluster id, as in metrics and node metadata.
    #[serde(default = "default_cluster_id", deserialize_with = "arc_str")]
    pub cluster_id: Arc<str>,
    /// SPIFFE trust domain.
    #[serde(default = "default_trust_domain", deserialize_with = "arc_str")]
    pub trust_domain: Arc<str>,
    /// Where configuration and certificates come from.
    pub control_plane: ControlPlane,
    /// Whether the agent follows the node's stream of workloads and policies (WDS and WADS). Without it, for control
    /// planes that do not serve them, no AuthorizationPolicy is enforced.
    #[serde(default = "default_node_stream")]
    pub node_stream: bool,
    /// The eBPF side.
    #[serde(default)]
    pub kernel: KernelSettings,
    /// Worker threads; 0 = one per core.
    #[serde(default)]
    pub workers: usize,
    /// Where access log lines go; absent = no access log.
    #[serde(default)]
    pub access_log: Option<AccessLogSink>,
    /// The agent's own log.
    #[serde(default)]
    pub log_format: LogFormat,
    /// Level or directives (`info,mesh_agent::xds=debug`); `RUST_LOG` goes before.
    #[serde(default = "default_log_level")]
    pub log_level: String,
    /// The agent's own ports.
    #[serde(default)]
    pub listen: Listen,
    /// Socket by which the next agent takes over from this one; default: `/run/mesh-agent/NODE.sock`.
    #[serde(default)]
    pub node_socket: Option<PathBuf>,
    /// Seconds that open connections get to finish at shutdown, and after another agent has taken over; 0 to 3600.
    #[serde(default = "default_drain_seconds")]
    pub drain_seconds: u64,
    /// Addresses from which the orchestrator probes workloads; default: those of the agent's own network namespace, found
    /// at start.
    #[serde(default)]
    pub node_addresses: Vec<IpAddr>,
    /// Label sets of Istio's metrics kept, for HTTP and TCP each, at least 1; further ones count as `overflow`.
    #[serde(default = "default_metric_series")]
    pub metric_series: usize,
    /// What connections, workloads and the node may have at most.
    #[serde(default)]
    pub limits: Limits,
    /// The local workloads.
    #[serde(default)]
    pub workloads: Vec<WorkloadSettings>,
}

/// Where configuration and certificates come from.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ControlPlane {
    /// `https://host:15012`, or `http://host:15010` for plaintext.
    pub address: String,
    /// Name expected in the server's certificate; default: the address's host.
    #[serde(default)]
    pub server_name: Option<String>,
    /// PEM file with the roots that the server's certificate must chain to. Needed for https.
    #[serde(default)]
    pub root_cert: Option<PathBuf>,
    /// File with the bearer token that authenticates this node; read again at every connection.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
}

/// The eBPF side.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KernelSettings {
    /// Object file with the programs; default: `mesh-ebpf.o` beside the executable, else in `../bpf/`.
    #[serde(default)]
    pub object: Option<PathBuf>,
    /// Directory on a bpffs for this node's maps and programs.
    #[serde(default)]
    pub pin_path: Option<PathBuf>,
    /// cgroup v2 directory whose sockets are caught; default: the root of the cgroup2 mount.
    #[serde(default)]
    pub cgroup: Option<PathBuf>,
}

/// Where access log lines go: the word `stdout`, or the path of a file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub enum AccessLogSink {
    /// The agent's standard output.
    Stdout,
    /// A file that is appended to.
    File(PathBuf),
}

impl From<String> for AccessLogSink {
    fn from(text: String) -> Self {
        match text.as_str() {
            "stdout" | "/dev/stdout" => AccessLogSink::Stdout,
            _ => AccessLogSink::File(text.into()),
        }
    }
}

/// How the agent's own log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The agent's own ports.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Listen {
    /// Admin pages; keep it on loopback.
    pub admin: SocketAddr,
    /// `/metrics`.
    pub metrics: SocketAddr,
    /// `/healthz/ready`.
    pub ready: SocketAddr,
}

impl Default for Listen {
    fn default() -> Listen {
        Listen {
            admin: (Ipv4Addr::LOCALHOST, 15000).into(),
            metrics: (Ipv4Addr::UNSPECIFIED, 15020).into(),
            ready: (Ipv4Addr::UNSPECIFIED, 15021).into(),
        }
    }
}

/// One local workload.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadSettings {
    /// Pod name.
    pub name: String,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Kubernetes service account.
    #[serde(default = "default_service_account")]
    pub service_account: String,
    /// Kubernetes labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Path of its network namespace; either this, `pid` or `cgroup`.
    #[serde(default)]
    pub netns: Option<PathBuf>,
    /// A running process in its network namespace; either this, `netns` or `cgroup`.
    #[serde(default)]
    pub pid: Option<u32>,
    /// Its cgroup, as in `/proc/PID/cgroup`, where it has the agent's own network namespace; either this, `netns` or `pid`.
    #[serde(default)]
    pub cgroup: Option<PathBuf>,
    /// Of a workload with a cgroup: the host's ports on which it takes connections.
    #[serde(default)]
    pub ports: Vec<u16>,
    /// Name of the Deployment or the like; default: the pod's name.
    #[serde(default)]
    pub workload_name: Option<String>,
    /// What happens to its new connections while no agent is there. STRICT ports are closed in any case.
    #[serde(default)]
    pub on_agent_loss: OnAgentLoss,
    /// What becomes of connections that it has when it is enrolled.
    #[serde(default)]
    pub existing_connections: ExistingConnections,
    /// How it and workloads of the same node connect to each other.
    #[serde(default)]
    pub same_node: SameNode,
    /// Which UDP may leave it.
    #[serde(default)]
    pub udp: Udp,
    /// Whether what goes between it and the agent may take a shortcut past TCP.
    #[serde(default)]
    pub shortcuts: Shortcuts,
    /// What the orchestrator asks it in the open, from the node.
    #[serde(default)]
    pub probes: Vec<ProbeSettings>,
    /// Directory in which files are looked for that TLS settings (DestinationRule, Sidecar) name; without it there are none.
    #[serde(default)]
    pub tls_files: Option<PathBuf>,
}

/// Which UDP may leave a workload. What stays on the host itself is never refused; DNS over TCP is TCP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Udp {
    /// All.
    #[default]
    Allow,
    /// Questions to DNS servers, port 53.
    DnsOnly,
    /// None.
    Deny,
}

/// Whether what goes between a workload and its agent may take a shortcut past TCP (docs/paths.md).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shortcuts {
    /// Where the running kernel's own test finds no difference that an application can see.
    #[default]
    Auto,
    /// Yes: it is known that the application does nothing that docs/paths.md lists.
    On,
    /// No.
    Off,
}

/// What happens to new connections of a workload while no agent is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnAgentLoss {
    /// They are refused.
    #[default]
    Closed,
    /// They pass without the mesh, and are counted.
    Open,
}

/// What becomes of TCP connections that are older than their workload's enrolment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExistingConnections {
    /// They go on as they are, without the mesh; but those that were opened to a STRICT port are ended.
    #[default]
    Keep,
    /// They are ended.
    Close,
}

/// How two workloads of one node connect to each other: as the one of them says that stands further below.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SameNode {
    /// By themselves where nothing needs the agent; otherwise as [`SameNode::Agent`].
    #[default]
    Direct,
    /// Through the agent, which has both halves of the connection: without TLS, and not over the wire.
    Agent,
    /// As with workloads of other nodes: through the agent and over the wire.
    Wire,
}

/// What is wrong with a settings file.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("{path}: cannot read the settings: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not YAML.
    #[error("{path}:{line}:{column}: not valid YAML: {why}", path = path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// 1-based.
        line: usize,
        /// 1-based.
        column: usize,
        /// What the parser says.
        why: String,
    },
    /// YAML, but not settings.
    #[error("{path}:{line}: {field}: {why}", path = path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// 1-based.
        line: usize,
        /// `workloads[2].netns`; `.` is the whole file.
        field: String,
        /// What is wrong and what would be right.
        why: String,
    },
}

impl Settings {
    /// Reads and checks a settings file.
    pub fn load(path: &Path) -> Result<Settings, SettingsError> {
        Settings::load_in(path, None)
    }

    /// As [`Settings::load`], for an agent that runs in the cgroup `own` (as in `/proc/self/cgroup`): it is none of the
    /// workloads itself.
    pub fn load_in(path: &Path, own: Option<&Path>) -> Result<Settings, SettingsError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| SettingsError::Read { path: path.to_owned(), source })?;
        Settings::parse_in(path, &text, own)
    }

    /// As [`Settings::load`], for text that was read from `path`.
    pub fn parse(path: &Path, text: &str) -> Result<Settings, SettingsError> {
        Settings::parse_in(path, text, None)
    }

    fn parse_in(path: &Path, text: &str, own: Option<&Path>) -> Result<Settings, SettingsError> {
        let located = Located::parse(path, text)?;
        let settings: Settings = located.deserialize()?;
        settings.check(&located)?;
        own.map_or(Ok(()), |own| settings.check_own(own, &located))?;
        Ok(settings)
    }

    /// The number of worker threads to start.
    pub fn worker_count(&self) -> usize {
        match self.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        }
    }

    /// The socket by which the next agent takes over from this one.
    pub fn node_socket(&self) -> PathBuf {
        let default = || Path::new("/run/mesh-agent").join(format!("{}.sock", self.node));
        self.node_socket.clone().unwrap_or_else(default)
    }

    /// How long open connections get to finish at shutdown.
    pub fn drain(&self) -> Duration {
        Duration::from_secs(self.drain_seconds)
    }

    fn check(&self, at: &Located<'_>) -> Result<(), SettingsError> {
        let fail = |field: &str, why: String| Err(at.error(field, why));
        if self.node.is_empty() {
            return fail("node", "must not be empty".into());
        }
        if let Err(error) = SpiffeId::new(&self.trust_domain, "any", "any") {
            return fail("trustDomain", error.to_string());
        }
        if self.workers > MAX_WORKERS {
            return fail("workers", format!("at most {MAX_WORKERS}"));
        }
        if self.drain_seconds > 3600 {
            return fail("drainSeconds", "at most 3600".into());
        }
        if self.metric_series == 0 {
            return fail("metricSeries", "at least 1".into());
        }
        if self.node_addresses.len() > MAX_NODE_ADDRESSES as usize {
            return fail("nodeAddresses", format!("at most {MAX_NODE_ADDRESSES}"));
        }
        self.limits.check(at)?;
        self.control_plane.check(at)?;
        if self.workloads.len() > MAX_WORKLOADS {
            return fail("workloads", format!("at most {MAX_WORKLOADS} workloads on one node"));
        }
        let mut seen = HashMap::new();
        for (i, workload) in self.workloads.iter().enumerate() {
            workload.check(&format!("workloads[{i}]"), at)?;
            if let Some(first) = seen.insert((&workload.namespace, &workload.name), i) {
                let (namespace, name) = (&workload.namespace, &workload.name);
                return fail(
                    &format!("workloads[{i}]"),
                    format!("{namespace}/{name} is listed twice (first as workloads[{first}])"),
                );
            }
        }
        self.check_hosts(at)
    }
}

impl ControlPlane {
    fn check(&self, at: &Located<'_>) -> Result<(), SettingsError> {
        let fail = |why: &str| Err(at.error("controlPlane.address", why.into()));
        let Ok(uri) = self.address.parse::<http::Uri>() else {
            return fail("not an address; write https://HOST:PORT");
        };
        if uri.host().is_none_or(str::is_empty) || uri.port_u16().is_none() {
            return fail("write https://HOST:PORT, with the port (Istio's is 15012)");
        }
        match uri.scheme_str() {
            Some("http") => Ok(()),
            Some("https") if self.root_cert.is_some() => Ok(()),
            Some("https") => Err(at.error(
                "controlPlane",
                "https needs rootCert: the file with the control plane's root certificate".into(),
            )),
            _ => fail("the scheme must be https, or http for plaintext"),
        }
    }
}

impl WorkloadSettings {
    fn check(&self, field: &str, at: &Located<'_>) -> Result<(), SettingsError> {
        for (name, value) in
            [("name", &self.name), ("namespace", &self.namespace), ("serviceAccount", &self.service_account)]
        {
            if !is_dns_name(value) {
                return Err(at.error(
                    &format!("{field}.{name}"),
                    format!("\"{value}\" is not a Kubernetes name (lower-case letters, digits, '-' and '.')"),
                ));
            }
        }
        match (&self.netns, self.pid, &self.cgroup) {
            (Some(_), Some(_), _) => Err(at.error(field, "has both netns and pid: leave one of them out".into())),
            (Some(_), _, Some(_)) | (_, Some(_), Some(_)) => {
                let why = "has a cgroup, so its network namespace is the agent's: leave netns and pid out, or cgroup";
                Err(at.error(field, why.into()))
            }
            (None, None, None) => Err(at.error(
                field,
                "needs netns (a path such as /run/netns/NAME), pid, or in the host's own network namespace cgroup"
                    .into(),
            )),
            (None, Some(0), None) => Err(at.error(&format!("{field}.pid"), "0 is not the pid of a process".into())),
            (Some(path), None, None) if !path.is_absolute() => {
                Err(at.error(&format!("{field}.netns"), "must be an absolute path".into()))
            }
            _ => Ok(()),
        }?;
        self.check_host(field, at)?;
        if self.probes.len() > probes::MAX_PROBES {
            return Err(at.error(&format!("{field}.probes"), format!("at most {}", probes::MAX_PROBES)));
        }
        for (i, probe) in self.probes.iter().enumerate() {
            probe.get().map_err(|(name, why)| at.error(&format!("{field}.probes[{i}]{name}"), why))?;
        }
        Ok(())
    }

    /// `namespace/name`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// Most worker threads that a settings file may ask for.
const MAX_WORKERS: usize = 256;

/// RFC 1123 subdomain, as Kubernetes demands of names: they become part of SPIFFE ids and node ids.
fn is_dns_name(name: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    !name.is_empty()
        && name.len() <= 253
        && name.bytes().all(|c| inner(c) || c == b'-' || c == b'.')
        && name.bytes().next().is_some_and(inner)
        && name.bytes().next_back().is_some_and(inner)
}

fn arc_str<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Arc<str>, D::Error> {
    String::deserialize(deserializer).map(Arc::from)
}

fn default_cluster_id() -> Arc<str> {
    "Kubernetes".into()
}

fn default_trust_domain() -> Arc<str> {
    "cluster.local".into()
}

fn default_log_level() -> String {
    "info".into()
}

fn default_node_stream() -> bool {
    true
}

fn default_drain_seconds() -> u64 {
    5
}

fn default_metric_series() -> usize {
    20_000
}

fn default_service_account() -> String {
    "default".into()
}

#[cfg(test)]
mod tests;
