//! Which workloads run: makes what is enrolled equal to what the settings list. In: lists of workloads. Out: kernel
//! entries, listeners handed to workers, configuration streams, certificates asked for. One that cannot be enrolled is
//! reported and tried again; the others go on.

mod error;
mod inherit;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesh_core::resource::listener::{InboundMode, InboundModes};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::admin::{Enrolled, Pending, Roster};
use crate::apply;
use crate::identity::Identities;
use crate::kernel::{Followed, Kernel, KernelError, Left, Listeners};
use crate::live::Live;
use crate::net::netns::NetNs;
use crate::net::process::Process;
use crate::proxy::Workers;
use crate::settings::host::{HostPlace, UNSUPPORTED};
use crate::settings::{Settings, WorkloadSettings};
use crate::shutdown::Watch;
use crate::telemetry::{Kind, Metrics};
use crate::workload::Workload;
use crate::xds::{Client, StatusCell};

use error::EnrolError;
pub(super) use inherit::InheritError;

/// First pause before a workload is tried again; doubles up to [`LAST_RETRY`].
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// Longest pause before a workload is tried again.
const LAST_RETRY: Duration = Duration::from_secs(30);

/// What stands before the first workload comes.
pub(super) struct Parts {
    pub settings: Arc<Settings>,
    /// Shared only with the metrics page.
    pub kernel: Arc<Mutex<Kernel>>,
    pub identities: Identities,
    pub client: Arc<Client>,
    pub live: Arc<Live>,
    pub workers: Workers,
    pub shutdown: Watch,
}

/// The local workloads and what belongs to them.
pub(super) struct Workloads {
    parts: Parts,
    next_id: u32,
    running: BTreeMap<String, Running>,
    waiting: BTreeMap<String, Waiting>,
    /// Pods that an agent before this one has left in force.
    left: Vec<Left>,
    /// The agent's own namespace: enrolling it would catch the node's own traffic.
    own_netns: Option<u64>,
    /// The processes by whose pids workloads were enrolled, by this agent or by one before: a pid that is another process
    /// by now is not the workload any more.
    processes: HashMap<String, Process>,
    roster: watch::Sender<Arc<Roster>>,
    gauges: Arc<Gauges>,
    /// Until every workload that was listed at the start has been tried once.
    first_round: bool,
}

struct Running {
    settings: WorkloadSettings,
    workload: Arc<Workload>,
    xds: StatusCell,
    stream: JoinHandle<()>,
    /// Copies, for the agent that may take over.
    listeners: Listeners,
}

struct Waiting {
    settings: WorkloadSettings,
    /// Kept once it could be opened: a pid may belong to somebody else by the next attempt.
    netns: Option<Arc<NetNs>>,
    reason: String,
    tried: bool,
    /// Pause after the next failure.
    pause: Duration,
    /// `None`: only new settings can help.
    retry_at: Option<Instant>,
}

impl Waiting {
    fn new(settings: WorkloadSettings) -> Waiting {
        let reason = "not tried yet".to_owned();
        Waiting { settings, netns: None, reason, tried: false, pause: FIRST_RETRY, retry_at: Some(Instant::now()) }
    }

    fn failed(&mut self, key: &str, error: &EnrolError) {
        self.tried = true;
        // A pid that is gone never comes back as the same process.
        self.retry_at = (!matches!(error, EnrolError::Process { .. } | EnrolError::Reused { .. }))
            .then(|| Instant::now() + self.pause);
        let again = self.retry_at.map_or_else(|| "at the next reload".to_owned(), |_| format!("in {:?}", self.pause));
        self.pause = (self.pause * 2).min(LAST_RETRY);
        let reason = error.to_string();
        // Said once, not at every attempt.
        if reason == self.reason {
            tracing::debug!(workload = key, reason, again, "cannot enrol a workload");
        } else {
            tracing::error!(workload = key, reason, again, "cannot enrol a workload");
            self.reason = reason;
        }
    }
}

#[derive(Default)]
struct Gauges {
    enrolled: AtomicI64,
    pending: AtomicI64,
}

impl Workloads {
    pub fn new(parts: Parts) -> Workloads {
        let left = lock(&parts.kernel).left();
        let processes = left.iter().filter_map(|left| Some((left.workload.clone()?, left.process?))).collect();
        Workloads {
            left,
            processes,
            parts,
            next_id: 1,
            running: BTreeMap::new(),
            waiting: BTreeMap::new(),
            own_netns: NetNs::current().ok().map(|netns| netns.cookie()),
            roster: watch::channel(Arc::default()).0,
            gauges: Arc::default(),
            first_round: true,
        }
    }

    /// The list as it changes, for admin pages.
    pub fn watch(&self) -> watch::Receiver<Arc<Roster>> {
        self.roster.subscribe()
    }

    /// Adds the figures of workloads and kernel to the metrics page.
    pub fn register(&self, metrics: &Metrics) {
        let gauges = self.gauges.clone();
        // Weak: the page must not keep the programs attached.
        let kernel = Arc::downgrade(&self.parts.kernel);
        let connections = self.parts.workers.connections();
        metrics.add_source(move |out| {
            out.family("mesh_agent_connections", Kind::Gauge, "Open connections of local workloads, by worker.");
            for (worker, count) in connections.iter().enumerate() {
                out.name("mesh_agent_connections", "");
                out.label("worker", worker);
                out.value(count.load(Relaxed));
            }
            let (enrolled, pending) = (gauges.enrolled.load(Relaxed), gauges.pending.load(Relaxed));
            out.single("mesh_agent_workloads", Kind::Gauge, "Workloads whose traffic is caught.", enrolled);
            out.single("mesh_agent_workloads_pending", Kind::Gauge, "Workloads that could not be enrolled.", pending);
            let lack = kernel.upgrade().and_then(|kernel| lock(&kernel).shortcut_lack());
            let help = "Where socket shortcuts were first seen to differ from TCP; none: `shortcuts: auto` uses them.";
            out.family("mesh_agent_shortcut_difference", Kind::Gauge, help);
            if let Some(feature) = lack {
                out.name("mesh_agent_shortcut_difference", "");
                out.label("feature", feature);
                out.value(1_u64);
            }
            let counters = kernel.upgrade().and_then(|kernel| lock(&kernel).counters().ok());
            out.family("mesh_agent_kernel_total", Kind::Counter, "What the kernel programs did, by event.");
            for (event, count) in counters.unwrap_or_default() {
                out.name("mesh_agent_kernel_total", "");
                out.label("event", event);
                out.value(count);
            }
        });
    }

    /// Forgets connections from before an enrolment that have ended.
    pub fn sweep(&self) {
        lock(&self.parts.kernel).sweep();
    }

    /// Looks after the cgroups of the host's workloads: a unit that was started again has another one.
    pub fn follow_host(&mut self) {
        let news = lock(&self.parts.kernel).follow_host();
        for (id, told) in news {
            let Some((key, running)) = self.running.iter().find(|(_, running)| running.workload.id == id) else {
                continue;
            };
            let Some(host) = &running.workload.host else { continue };
            let cgroup = host.cgroup.display();
            match told {
                Ok(Followed::Came) => {
                    tracing::info!(workload = key, %cgroup, "its cgroup is there: its processes are caught")
                }
                Ok(Followed::Replaced) => {
                    tracing::info!(workload = key, %cgroup, "its cgroup is another one: its unit was started again, and its processes are caught")
                }
                Ok(Followed::Went) => tracing::info!(workload = key, %cgroup, "its cgroup is gone: waiting for it"),
                Err(error) => {
                    tracing::error!(workload = key, %cgroup, %error, "its processes are not caught; tried again, and not told again")
                }
            }
        }
    }

    /// Makes `wanted` the list of workloads: withdraws what is gone or changed; what is new is due at once.
    pub async fn reconcile(&mut self, wanted: &[WorkloadSettings]) {
        let wanted: HashMap<String, &WorkloadSettings> = wanted.iter().map(|one| (one.key(), one)).collect();
        let gone: Vec<String> = self
            .running
            .iter()
            .filter(|(key, running)| {
                wanted.get(*key).is_none_or(|settings| **settings != running.settings || replaced(running))
            })
            .map(|(key, _)| key.clone())
            .collect();
        for key in gone {
            self.withdraw(&key).await;
        }
        self.waiting.clear();
        self.processes.retain(|key, _| wanted.contains_key(key));
        for (key, settings) in wanted {
            if !self.running.contains_key(&key) {
                self.waiting.insert(key, Waiting::new(settings.clone()));
            }
        }
        self.tidy();
        self.publish();
    }

    /// Waits until a workload is to be tried; its key. Pending for ever when none waits.
    pub async fn due(&self) -> String {
        let due = self.waiting.iter().filter_map(|(key, one)| Some((one.retry_at?, key))).min();
        let Some((at, key)) = due else { return std::future::pending().await };
        tokio::time::sleep_until(at).await;
        key.clone()
    }

    /// Tries to enrol a waiting workload. One at a time: enrolling takes the kernel some milliseconds.
    pub async fn try_enrol(&mut self, key: String) {
        let Some(mut waiting) = self.waiting.remove(&key) else { return };
        match self.enrol(&key, &waiting.settings, &mut waiting.netns).await {
            Ok(running) => {
                self.running.insert(key, running);
            }
            Err(error) => {
                waiting.failed(&key, &error);
                self.waiting.insert(key, waiting);
            }
        }
        self.tidy();
        self.publish();
        // Many may be due at once; streams, certificates and pages go on between them.
        tokio::task::yield_now().await;
    }

    /// Resolves when a worker's thread has ended.
    pub async fn worker_ended(&self) {
        self.parts.workers.ended().await;
    }

    /// Lets the traffic of all workloads go by itself, as before the end. Connections that are open keep their
    /// configuration and certificates until they are drained.
    pub fn release(&mut self) {
        self.waiting.clear();
        lock(&self.parts.kernel).release_direct();
        for running in self.running.values_mut() {
            lock(&self.parts.kernel).withdraw(running.workload.id);
            running.listeners = Listeners::default();
        }
    }

    /// Waits for the workers' threads; call it after the drain.
    pub fn join(self) {
        self.parts.workers.join();
    }

    /// Waits for the workers' threads and takes away everything in the kernel; call it after the drain.
    pub fn end(self) -> Result<(), KernelError> {
        self.parts.workers.join();
        lock(&self.parts.kernel).detach()
    }

    /// Takes away what an earlier agent has left of pods that are no longer there or no longer listed. A listed workload
    /// that cannot be enrolled just now keeps what it has: it must not be open because its path is not there yet.
    fn tidy(&mut self) {
        if self.left.is_empty() && !self.first_round {
            return;
        }
        let mut kernel = lock(&self.parts.kernel);
        let enrolled: Vec<u64> = self.running.values().map(|running| running.workload.number()).collect();
        self.left.retain(|left| {
            let waits = match &left.workload {
                Some(key) => self.waiting.contains_key(key),
                None => !self.waiting.is_empty(),
            };
            if enrolled.contains(&left.cookie) {
                return false;
            }
            if waits && !kernel.is_gone(left) {
                return true;
            }
            match kernel.discard(left) {
                Ok(()) => {
                    tracing::info!(workload = left.workload, netns = left.cookie, "removed what an earlier agent left")
                }
                Err(error) => {
                    tracing::warn!(workload = left.workload, %error, "cannot remove what an earlier agent left")
                }
            }
            false
        });
        if self.first_round && self.waiting.values().all(|waiting| waiting.tried) {
            self.first_round = false;
            match kernel.discard_other_versions() {
                Ok(found) => found.iter().for_each(|path| {
                    tracing::warn!(path = %path.display(), "removed what an agent of another version left; what it caught was refused until now");
                }),
                Err(error) => tracing::error!(%error, "what an agent of another version left still catches"),
            }
        }
    }

    async fn enrol(
        &mut self,
        key: &str,
        settings: &WorkloadSettings,
        netns: &mut Option<Arc<NetNs>>,
    ) -> Result<Running, EnrolError> {
        let netns = match netns {
            Some(netns) => netns.clone(),
            None => netns.insert(Arc::new(self.open(key, settings)?)).clone(),
        };
        let process = netns.process();
        let workload = self.describe(settings, netns)?;
        let listeners = lock(&self.parts.kernel).enrol(&workload)?;
        let copies = listeners.try_clone().map_err(EnrolError::Listeners)?;
        let (xds, stream) = self.begin(&workload);
        self.parts.workers.enrol(workload.clone(), listeners).await;
        match process {
            Some(process) => self.processes.insert(key.to_owned(), process),
            None => self.processes.remove(key),
        };
        tracing::info!(workload = key, identity = %workload.identity, addresses = ?workload.addresses, "enrolled");
        if let Some(host) = &workload.host {
            say_of_host(key, host, lock(&self.parts.kernel).has_processes(workload.id));
        }
        Ok(Running { settings: settings.clone(), workload, xds, stream, listeners: copies })
    }

    /// Its namespace, unless that is somebody else's by now.
    fn open(&self, key: &str, settings: &WorkloadSettings) -> Result<NetNs, EnrolError> {
        let netns = open(settings)?;
        match (netns.process(), self.processes.get(key)) {
            (Some(now), Some(was)) if now.took_the_pid_of(was) => Err(EnrolError::Reused { pid: now.pid }),
            _ => Ok(netns),
        }
    }

    /// The workload as it is found in its namespace, with a number of its own.
    fn describe(&mut self, settings: &WorkloadSettings, netns: Arc<NetNs>) -> Result<Arc<Workload>, EnrolError> {
        if settings.cgroup.is_none() {
            if self.own_netns == Some(netns.cookie()) {
                return Err(EnrolError::OwnNamespace);
            }
            if let Some((other, _)) =
                self.running.iter().find(|(_, running)| running.workload.netns.cookie() == netns.cookie())
            {
                return Err(EnrolError::Shared(other.clone()));
            }
        }
        let addresses = netns.addresses().map_err(EnrolError::Addresses)?;
        if addresses.is_empty() {
            return Err(EnrolError::NoAddress);
        }
        let id = self.next_id;
        let agent = &self.parts.settings;
        let workload = Arc::new(Workload::new(id, settings, &agent.cluster_id, &agent.trust_domain, netns, addresses)?);
        self.next_id += 1;
        Ok(workload)
    }

    /// Asks for its certificate and configuration; connections wait for them in the worker.
    fn begin(&self, workload: &Arc<Workload>) -> (StatusCell, JoinHandle<()>) {
        self.parts.identities.request(&workload.identity);
        let xds = StatusCell::default();
        let stream = self.follow(workload.clone(), xds.clone());
        (xds, stream)
    }

    fn follow(&self, workload: Arc<Workload>, status: StatusCell) -> JoinHandle<()> {
        let (client, settings, live) =
            (self.parts.client.clone(), self.parts.settings.clone(), self.parts.live.clone());
        // Weak: a stream must not keep the programs attached.
        let (kernel, id) = (Arc::downgrade(&self.parts.kernel), workload.id);
        let close = move |modes: &InboundModes| {
            if let Some(kernel) = kernel.upgrade() {
                tell_kernel(&mut lock(&kernel), id, modes);
            }
        };
        self.parts
            .shutdown
            .spawn("xds", async move { apply::follow(&client, &workload, &settings, &live, &status, close).await })
    }

    /// First the kernel, so that nothing new comes; then what serves it.
    async fn withdraw(&mut self, key: &str) {
        let Some(running) = self.running.remove(key) else { return };
        let id = running.workload.id;
        lock(&self.parts.kernel).withdraw(id);
        self.parts.workers.withdraw(id).await;
        running.stream.abort();
        self.parts.identities.release(&running.workload.identity);
        tracing::info!(workload = key, "withdrawn");
    }

    fn publish(&self) {
        let enrolled: Vec<Enrolled> = self
            .running
            .values()
            .map(|running| Enrolled { workload: running.workload.clone(), xds: running.xds.clone() })
            .collect();
        let pending: Vec<Pending> =
            self.waiting.iter().map(|(key, one)| Pending { key: key.clone(), reason: one.reason.clone() }).collect();
        self.gauges.enrolled.store(enrolled.len() as i64, Relaxed);
        self.gauges.pending.store(pending.len() as i64, Relaxed);
        self.roster.send_replace(Arc::new(Roster { enrolled, pending }));
    }
}

/// What there is to know of a workload of the host from its enrolment on.
fn say_of_host(key: &str, host: &HostPlace, there: bool) {
    let (cgroup, ports) = (host.cgroup.display(), &host.ports);
    tracing::info!(workload = key, %cgroup, ?ports, "is a cgroup of the host");
    if ports.is_empty() {
        tracing::info!(workload = key, "has no ports: what comes to it goes without the mesh");
    }
    for line in UNSUPPORTED {
        tracing::info!(workload = key, "unsupported on the host: {line}");
    }
    if !there {
        tracing::warn!(workload = key, %cgroup, "its cgroup is not there: nothing of it is caught on its way out until it is; start its unit, or mend workloads[].cgroup");
    }
}

/// The kernel programs judge by themselves while no agent is there.
fn tell_kernel(kernel: &mut Kernel, id: u32, modes: &InboundModes) {
    let strict = modes.default == InboundMode::Strict;
    let exceptions: Vec<(u16, bool)> = modes.exceptions.iter().map(|port| (*port, !strict)).collect();
    if let Err(error) = kernel.set_inbound_modes(id, strict, &exceptions) {
        tracing::error!(workload_id = id, %error, "the kernel is stricter than asked: it refuses plaintext to more ports");
    }
}

fn open(settings: &WorkloadSettings) -> Result<NetNs, EnrolError> {
    if settings.cgroup.is_some() {
        return NetNs::current().map_err(|source| EnrolError::Namespace { path: "of the agent".into(), source });
    }
    match (&settings.netns, settings.pid) {
        (Some(path), _) => {
            NetNs::open(path).map_err(|source| EnrolError::Namespace { path: path.display().to_string(), source })
        }
        (None, Some(pid)) => NetNs::of_pid(pid).map_err(|source| EnrolError::Process { pid, source }),
        (None, None) => Err(EnrolError::NoAddress),
    }
}

/// Whether another namespace stands at the workload's path by now: a pod of the same name was created anew.
fn replaced(running: &Running) -> bool {
    let Some(path) = &running.settings.netns else { return false };
    NetNs::open(path).is_ok_and(|netns| netns.cookie() != running.workload.netns.cookie())
}

/// The kernel layer's own state is consistent between any two of its calls, so a panic elsewhere does not spoil it.
pub(super) fn lock(kernel: &Mutex<Kernel>) -> MutexGuard<'_, Kernel> {
    kernel.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::settings::OnAgentLoss;

    fn waiting() -> Waiting {
        Waiting::new(WorkloadSettings {
            name: "a".into(),
            namespace: "default".into(),
            service_account: "default".into(),
            labels: BTreeMap::new(),
            netns: Some("/nonexistent/netns".into()),
            pid: None,
            cgroup: None,
            ports: Vec::new(),
            workload_name: None,
            on_agent_loss: OnAgentLoss::Closed,
            existing_connections: Default::default(),
            same_node: Default::default(),
            udp: Default::default(),
            shortcuts: Default::default(),
            tls_files: None,
            probes: Vec::new(),
        })
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_tried_again_ever_more_slowly() {
        let mut waiting = waiting();
        assert_eq!(waiting.retry_at, Some(Instant::now()));
        let mut pauses = Vec::new();
        for _ in 0..8 {
            waiting.failed("default/a", &EnrolError::NoAddress);
            pauses.push((waiting.retry_at.unwrap() - Instant::now()).as_millis());
        }
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]);
        assert_eq!(waiting.reason, "its network namespace has no address yet");
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_is_gone_is_not_looked_for_again() {
        let mut waiting = waiting();
        let source = io::Error::from(io::ErrorKind::NotFound);
        waiting.failed("default/a", &EnrolError::Process { pid: 7, source });
        assert_eq!(waiting.retry_at, None);
        assert!(waiting.reason.starts_with("no process 7"), "{}", waiting.reason);
    }

    #[test]
    fn a_namespace_that_cannot_be_opened_is_named() {
        let error = open(&waiting().settings).unwrap_err().to_string();
        assert!(error.starts_with("cannot open the network namespace /nonexistent/netns: "), "{error}");
    }
}
