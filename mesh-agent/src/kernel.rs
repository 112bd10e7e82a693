//! The kernel side as the agent sees it: loads and attaches the programs, enrols workloads, and gives sockets that are
//! marked as the agent's. In: settings, namespaces. Out: listeners inside the namespaces, sockets, original
//! destinations, counters. The only writer of the maps. Decides nothing about traffic.
//!
//! Maps and links are pinned, mode 0700, below a directory that one agent at a time owns: what is in force stays so when
//! the process goes, however it goes. Dropping a [`Kernel`] changes nothing; [`Kernel::detach`] takes everything away. The
//! next agent takes over what it finds: maps with their entries, and each link in one step, so that a workload is at no
//! time without programs.

mod agents;
mod attach;
pub mod bpf;
mod btf;
pub mod capabilities;
mod carried;
mod cgroups;
pub mod debug_log;
mod direct;
mod enrol;
pub mod hooks;
mod host;
mod kept;
mod link;
mod load;
mod modes;
mod pins;
mod places;
pub mod probe;
mod probed;
mod services;
mod sockets;
mod workloads;

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::maps::{HashMap as BpfHashMap, Map, MapData, MapError, PerCpuArray, RingBuf, SockHash};
use aya::{Ebpf, Pod};
use mesh_common::abi;
use mesh_common::abi::Counter;
use mesh_common::addr::{Addr, Endpoint};
use mesh_common::host::is_host;
use tracing::{info, warn};

use crate::net::netns::NetNs;
use crate::settings::host::HostPlace;
use crate::settings::probes::Probe;
use crate::settings::{KernelSettings, OnAgentLoss, Udp};
use crate::workload::Workload;

pub use carried::{DirectStats, News, TcpStats};
pub use direct::{DirectPlan, DirectWay};
pub use enrol::Prepared;
pub use host::Followed;
pub use pins::{Left, check_free};
pub use services::Choices;
pub use sockets::{Redirected, Sockets};

use cgroups::Cgroups;
use pins::Pins;

/// The loaded programs and the enrolled workloads.
pub struct Kernel {
    pods: HashMap<u32, enrol::Pod>,
    workloads: workloads::Workloads,
    shares: BpfHashMap<MapData, u64, abi::Share>,
    outbound: SockHash<MapData, abi::OutboundKey>,
    port_modes: BpfHashMap<MapData, abi::PortKey, u32>,
    probed: probed::Ports,
    node: BpfHashMap<MapData, Addr, u32>,
    kept: kept::Kept,
    places: places::Places,
    ways: direct::Ways,
    agents: agents::Agents,
    hosts: host::Hosts,
    metrics: PerCpuArray<MapData, u64>,
    events: Option<Map>,
    debug_log: Option<debug_log::DebugLog>,
    tcp_stats: Option<TcpStats>,
    sockets: Sockets,
    shortcut_lack: Option<&'static str>,
    /// Makes every workload an instance of the programs for one pod.
    loader: load::Loader,
    /// The programs of the cgroup hooks until they are in force.
    base: Option<Ebpf>,
    cgroups: Cgroups,
    pins: Pins,
}

/// The agent's listeners inside one workload's namespace: nonblocking, one per family.
#[derive(Debug, Default)]
pub struct Listeners {
    /// What the workload sends elsewhere.
    pub outbound: Vec<TcpListener>,
    /// What comes from the wire for the workload, on any port but HBONE's. The accepted socket's local address is the
    /// one that the client dialled.
    pub inbound: Vec<TcpListener>,
    /// HBONE.
    pub tunnel: Vec<TcpListener>,
    /// Questions to DNS servers, IPv4 first; [`Sockets::dns_server`] tells which server.
    pub dns: Vec<UdpSocket>,
}

impl Listeners {
    /// The same listening sockets once more: they listen until the last copy is closed.
    pub fn try_clone(&self) -> io::Result<Listeners> {
        let copy = |group: &[TcpListener]| group.iter().map(TcpListener::try_clone).collect::<io::Result<Vec<_>>>();
        Ok(Listeners {
            outbound: copy(&self.outbound)?,
            inbound: copy(&self.inbound)?,
            tunnel: copy(&self.tunnel)?,
            dns: self.dns.iter().map(UdpSocket::try_clone).collect::<io::Result<Vec<_>>>()?,
        })
    }
}

/// Connections that the programs found worth telling.
pub struct Events(RingBuf<MapData>);

/// Why the kernel side cannot do something.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The machine lacks something.
    #[error("{missing}: {remedy}")]
    Environment {
        /// What is missing.
        missing: String,
        /// What to do.
        remedy: String,
    },
    /// The kernel lacks something: one line for each.
    #[error("{}", lacks.join("\n"))]
    Unfit {
        /// Hook, feature, the kernel's words, running and needed version, what to do.
        lacks: Vec<String>,
    },
    /// The object with the programs is missing or not usable.
    #[error("kernel programs {}: {why}; build them with `cargo xtask build-ebpf`, or set kernel.object", path.display())]
    Object {
        /// The object file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The directory with the pins is not usable.
    #[error("pin path {}: {why}", path.display())]
    Pins {
        /// The directory.
        path: PathBuf,
        /// What is wrong and what to do.
        why: String,
    },
    /// The kernel does not take a program.
    #[error("the kernel (Linux {running}) refused program {program} (needs Linux {needed}): {why}")]
    Refused {
        /// The program.
        program: &'static str,
        /// The running kernel.
        running: String,
        /// The oldest kernel on which it works, with the helpers that ask for it.
        needed: String,
        /// The last line of the verifier, or the error of the system call.
        why: String,
    },
    /// A program cannot be attached.
    #[error("cannot attach {program} to {place}: {why}")]
    Attach {
        /// The program.
        program: &'static str,
        /// The cgroup or interface.
        place: String,
        /// What the kernel says.
        why: String,
    },
    /// A map cannot be read or written.
    #[error("map {map}: {why}")]
    Map {
        /// Its name.
        map: &'static str,
        /// What the kernel says.
        why: String,
    },
    /// Nothing can be done inside a workload's namespace.
    #[error("network namespace of workload {workload}: cannot {action}: {source}")]
    Namespace {
        /// The workload's id.
        workload: u32,
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
}

impl Kernel {
    /// Checks the machine, loads the programs and puts those of the cgroup in force. What an agent that is gone has left
    /// stays in force: see [`Kernel::left`]. Nobody else is caught before [`enrol`]. Needs root.
    ///
    /// [`enrol`]: Kernel::enrol
    pub fn load(settings: &KernelSettings, node: &str) -> Result<Kernel, KernelError> {
        let path = pin_path(settings, node)?;
        let mut kernel = load::load(settings, || Pins::open(path))?;
        match kernel.attach().and_then(|()| kernel.claim()) {
            Err(e) => {
                if kernel.pins.fresh {
                    // The first error is the one to tell.
                    let _ = kernel.pins.remove();
                }
                Err(e)
            }
            Ok(()) => Ok(kernel),
        }
    }

    /// As [`Kernel::load`], with the lock that the running agent has handed over. Nothing is in force yet that was not
    /// before: call [`Kernel::attach`], and [`Kernel::claim`] when the other agent is gone.
    pub fn take_over(settings: &KernelSettings, node: &str, lock: OwnedFd) -> Result<Kernel, KernelError> {
        let path = pin_path(settings, node)?;
        load::load(settings, || Pins::take_over(path, lock))
    }

    /// The directory of the pins.
    pub fn pins(&self) -> &Path {
        self.pins.root()
    }

    /// Writes the entries of all workloads again, after an agent that wanted to take over has given up halfway. (Its
    /// programs, where it has put them in force, do what ours do.)
    pub fn reassert(&mut self) {
        for pod in self.pods.values() {
            if let Err(e) = self.workloads.insert(pod.number, &pod.entry) {
                warn!(workload = pod.key, error = chain(&e), "the workload's entry cannot be written");
            }
        }
    }

    /// Another agent has taken over: whatever this one is told from now on changes no map.
    pub fn leave(&mut self) {
        self.pods.clear();
    }

    /// Removes whatever is pinned by an agent that is gone, of whatever version, so that its workloads are as if they
    /// never were. Returns the directory, if there was anything.
    pub fn detach_left(settings: &KernelSettings, node: &str) -> Result<Option<PathBuf>, KernelError> {
        let path = pin_path(settings, node)?;
        if !path.exists() {
            return Ok(None);
        }
        let wrong = |e: io::Error| KernelError::Pins { path: path.clone(), why: e.to_string() };
        Pins::open(path.clone())?.remove().map_err(wrong)?;
        Ok(Some(path))
    }

    /// The lock on the pins, to be handed to the agent that takes over. It is held until its last copy is closed.
    pub fn lock(&self) -> io::Result<OwnedFd> {
        self.pins.lock()
    }

    /// Puts the programs of the cgroup in force.
    pub fn attach(&mut self) -> Result<(), KernelError> {
        if let Some(id) = self.cgroups.agent() {
            self.agents.add(id)?;
        }
        if let Some(mut base) = self.base.take() {
            attach::attach_sockets(&mut base)?;
            attach::attach_cgroup(&mut base, &self.cgroups.attach, &self.pins)?;
        }
        info!(cgroup = %self.cgroups.attach.display(), pins = %self.pins.root().display(), "kernel programs are in force");
        Ok(())
    }

    /// Makes this agent's cgroup the only one whose processes are left alone. To be called when no other agent is there.
    pub fn claim(&mut self) -> Result<(), KernelError> {
        self.agents.only(self.cgroups.agent())
    }

    /// Pods that another agent has left in force and this one has not enrolled.
    pub fn left(&self) -> Vec<Left> {
        let own = |left: &Left| self.pods.values().any(|pod| pod.number == left.cookie);
        self.pins.pods().into_iter().filter(|left| !own(left)).collect()
    }

    /// Whether the namespace of a pod that was left is gone. That of the host is not.
    pub fn is_gone(&self, left: &Left) -> bool {
        if is_host(left.cookie) {
            return false;
        }
        let links = self.pins.links_of(left.cookie);
        links.iter().all(|path| matches!(link::place(path), Ok(link::Place::Gone)))
    }

    /// Takes away what another agent has left of a pod: its connections go by themselves.
    pub fn discard(&mut self, left: &Left) -> Result<(), KernelError> {
        enrol::discard(self, left.cookie)
    }

    /// Takes away what agents of other versions have left, whose maps and programs this one does not understand: to be
    /// called once the workloads are enrolled. Until then both catch, and what the older one catches is refused since
    /// its agent is gone. Returns the directories that were removed.
    pub fn discard_other_versions(&mut self) -> Result<Vec<PathBuf>, KernelError> {
        let found = self.pins.other_versions();
        for path in &found {
            Pins::remove_version(path)
                .map_err(|e| KernelError::Pins { path: path.clone(), why: format!("cannot be removed: {e}") })?;
        }
        Ok(found)
    }

    /// Detaches everything and removes the pins: all workloads are as if they never were enrolled. Nothing else is to be
    /// called after it.
    pub fn detach(&mut self) -> Result<(), KernelError> {
        self.release_direct();
        let ids: Vec<u32> = self.pods.keys().copied().collect();
        ids.into_iter().for_each(|id| self.withdraw(id));
        let wrong = |e| KernelError::Pins { path: self.pins.root().to_owned(), why: format!("cannot be removed: {e}") };
        self.pins.remove().map_err(wrong)
    }

    /// Opens listeners inside the workload's namespace and from then on catches what goes in and out. It is STRICT until
    /// [`Kernel::set_inbound_modes`]. Connections that it has opened before stay as they are; those that were opened to
    /// it are held up until it is known that they may go on. A workload enrolled a second time is withdrawn first; one
    /// that another agent has left in force is taken over with its modes.
    pub fn enrol(&mut self, workload: &Workload) -> Result<Listeners, KernelError> {
        self.withdraw(workload.id);
        let prepared = self.prepare(workload, None)?;
        self.commit(prepared)
    }

    /// As [`Kernel::enrol`]. `addresses` are the namespace's own; the first of each family is the one it shows to
    /// others. `flags` are of [`abi`].
    pub fn enrol_namespace(
        &mut self,
        id: u32,
        netns: &Arc<NetNs>,
        addresses: &[IpAddr],
        flags: u32,
    ) -> Result<Listeners, KernelError> {
        self.withdraw(id);
        let key = format!("workload/{id}");
        let subject = enrol::Subject { id, key: &key, netns, addresses, flags, host: None };
        let prepared = enrol::prepare(self, &subject, None)?;
        self.commit(prepared)
    }

    /// As [`Kernel::enrol_namespace`], for a cgroup in the agent's own namespace.
    pub fn enrol_cgroup(
        &mut self,
        id: u32,
        place: &HostPlace,
        addresses: &[IpAddr],
        flags: u32,
    ) -> Result<Listeners, KernelError> {
        self.withdraw(id);
        let key = format!("workload/{id}");
        let (netns, host) = (self.hosts.netns.clone(), self.host_of(Some(place))?);
        let subject = enrol::Subject { id, key: &key, netns: &netns, addresses, flags, host };
        let prepared = enrol::prepare(self, &subject, None)?;
        self.commit(prepared)
    }

    /// Says on which ports a workload takes nothing in the open: all if `strict`, and for each port in `exceptions`
    /// whether it does. Connections from before the enrolment that this forbids are ended. Unknown ids are no error. On
    /// an error the workload is stricter than asked, never less strict.
    pub fn set_inbound_modes(&mut self, id: u32, strict: bool, exceptions: &[(u16, bool)]) -> Result<(), KernelError> {
        let Some(pod) = self.pods.get_mut(&id) else { return Ok(()) };
        let mut modes = modes::Modes { workloads: &mut self.workloads, ports: &mut self.port_modes };
        let done = modes.set(pod, strict, exceptions);
        let of = |port: u16| exceptions.iter().find(|(one, _)| *one == port).map_or(strict, |(_, own)| *own);
        kept::end_inbound(&mut self.kept, pod, id, of);
        done
    }

    /// Says to which ports of a workload the orchestrator sends TCP probes: those of the node's connections to them
    /// succeed only where the application listens. Unknown ids are no error.
    pub fn set_probed(&mut self, id: u32, ports: &[u16]) -> Result<(), KernelError> {
        let Some(pod) = self.pods.get_mut(&id) else { return Ok(()) };
        probed::set(&mut self.workloads, &mut self.probed, pod, ports)
    }

    /// Says from which addresses probes come.
    pub fn set_node_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), KernelError> {
        probed::set_node(&mut self.node, addresses)
    }

    /// Says which workloads connect to which ports of others without the agent, and of which services the kernel chooses the
    /// endpoint: these and no others. What is not allowed any more ends. Of the workloads in `undecided` it is not known: what they have open goes on, and nothing
    /// new begins. On an error less is allowed than was asked for, never more.
    pub fn set_direct(&mut self, plan: &DirectPlan, undecided: &HashSet<u32>) -> Result<(), KernelError> {
        let left: HashSet<u64> = self.left().iter().map(|left| left.cookie).collect();
        self.ways.set(&mut self.workloads, &mut self.pods, plan, undecided, &left)
    }

    /// Ends a direct connection of which the programs let nothing pass: it would only wait.
    pub fn end_direct(&self, connection: &abi::Tuple) {
        self.ways.end_one(&self.pods, connection);
    }

    /// Nothing new goes without the agent, and what does goes on by itself: before the end of the mesh on this node.
    pub fn release_direct(&mut self) {
        self.ways.release();
    }

    /// Forgets connections from before the enrolment that have ended. To be called now and then.
    pub fn sweep(&mut self) {
        for pod in self.pods.values_mut() {
            kept::sweep(&mut self.kept, pod);
        }
    }

    /// The first half of [`Kernel::enrol`]: everything that can fail for a reason of its own. `listeners` are those that
    /// the running agent has handed over. Dropping the result changes nothing.
    pub fn prepare(&mut self, workload: &Workload, listeners: Option<Listeners>) -> Result<Prepared, KernelError> {
        let key = workload.key();
        let loss = match workload.on_agent_loss {
            OnAgentLoss::Closed => 0,
            OnAgentLoss::Open => abi::LOSS_OPEN,
        };
        let udp = match workload.udp {
            Udp::Allow => 0,
            Udp::DnsOnly => abi::UDP_DNS_ONLY,
            Udp::Deny => abi::UDP_DENY,
        };
        let shortcuts = match workload.host.is_none() && self.sockets.may_shorten(workload.shortcuts) {
            true => abi::SHORTCUTS,
            false => 0,
        };
        let subject = enrol::Subject {
            id: workload.id,
            key: &key,
            netns: &workload.netns,
            addresses: &workload.addresses,
            flags: loss | udp | shortcuts,
            host: self.host_of(workload.host.as_ref())?,
        };
        let mut prepared = enrol::prepare(self, &subject, listeners)?;
        prepared.pod.existing = workload.existing_connections;
        prepared.probed = workload.probes.iter().filter_map(Probe::tcp_port).collect();
        Ok(prepared)
    }

    /// The second half: puts it in force.
    pub fn commit(&mut self, prepared: Prepared) -> Result<Listeners, KernelError> {
        enrol::commit(self, prepared)
    }

    /// Looks where the cgroups of the host's workloads are now, and lets the programs know: a system call for each. To be
    /// called as often as a workload that was started again may go without the mesh.
    pub fn follow_host(&mut self) -> Vec<(u32, Result<Followed, KernelError>)> {
        let mut news = Vec::new();
        for (id, pod) in &mut self.pods {
            if let Some(host) = &mut pod.host
                && let Some(told) = self.hosts.follow(pod.number, host).transpose()
                && host.is_news(told.is_err())
            {
                news.push((*id, told));
            }
        }
        news
    }

    /// Whether a workload's processes are caught: those of a namespace are, those of the host once their cgroup is there.
    pub fn has_processes(&self, id: u32) -> bool {
        self.pods.get(&id).is_some_and(|pod| pod.host.as_ref().is_none_or(host::Host::is_there))
    }

    fn host_of(&self, place: Option<&HostPlace>) -> Result<Option<host::Host>, KernelError> {
        place.map(|place| host::Host::find(&self.cgroups, &place.cgroup, &place.ports)).transpose()
    }

    /// Stops catching. Connections that the agent holds are the agent's to close. Unknown ids are no error.
    pub fn withdraw(&mut self, id: u32) {
        if let Some(mut pod) = self.pods.remove(&id)
            && let Err(e) = enrol::remove(self, &mut pod)
        {
            warn!(workload = id, error = %e, "the kernel side of a workload could not be removed completely");
        }
    }

    /// Where shortcuts were first seen to differ from TCP on this kernel; nothing where `shortcuts: auto` uses them.
    pub fn shortcut_lack(&self) -> Option<&'static str> {
        self.shortcut_lack
    }

    /// What opens sockets that the programs leave alone; cheap to clone and to send.
    pub fn sockets(&self) -> Sockets {
        self.sockets.clone()
    }

    /// Every counter since the maps were made, summed over the CPUs.
    pub fn counters(&self) -> Result<Vec<(&'static str, u64)>, KernelError> {
        Counter::ALL.iter().map(|(counter, name)| Ok((*name, self.counter(*counter)?))).collect()
    }

    /// One counter since the maps were made, summed over the CPUs.
    pub fn counter(&self, counter: Counter) -> Result<u64, KernelError> {
        let values = self.metrics.get(&(counter as u32), 0);
        let values = values.map_err(|e| KernelError::Map { map: abi::maps::METRICS, why: chain(&e) })?;
        Ok(values.iter().sum())
    }

    /// The events, once: the first caller gets them. Of the agents that live at the same time only one may read them.
    pub fn take_events(&mut self) -> Option<Events> {
        let events = RingBuf::try_from(self.events.take()?);
        events.inspect_err(|e| warn!(error = chain(e), "the kernel's events cannot be read")).ok().map(Events)
    }

    /// What a debugging build of the programs tells, once; nothing of any other build.
    pub fn take_debug_log(&mut self) -> Option<debug_log::DebugLog> {
        self.debug_log.take()
    }

    /// What tells what direct connections carry. One agent at a time may ask it.
    pub fn direct_stats(&self) -> Result<DirectStats, KernelError> {
        DirectStats::open(self.pins.maps())
    }

    /// Figures of TCP sockets by path, once: the first caller gets them.
    pub fn take_tcp_stats(&mut self) -> Option<TcpStats> {
        self.tcp_stats.take()
    }

    /// Connections in the hand-over maps: redirected but not yet accepted by the agent, and dialled by the agent but not
    /// yet accepted by an application. For tests and debugging; reads both maps in full.
    pub fn in_flight(&self) -> Result<(usize, usize), KernelError> {
        fn count<V: Pod>(pins: &Pins, name: &'static str) -> Result<usize, KernelError> {
            let wrong = |why: String| KernelError::Map { map: name, why };
            let data = MapData::from_pin(pins.maps().join(name)).map_err(|e| wrong(chain(&e)))?;
            let map = aya::maps::Map::from_map_data(data).map_err(|e| wrong(chain(&e)))?;
            let map = BpfHashMap::<_, abi::Tuple, V>::try_from(map).map_err(|e| wrong(chain(&e)))?;
            Ok(map.keys().filter(Result::is_ok).count())
        }
        Ok((count::<abi::Far>(&self.pins, abi::maps::FLOW)?, count::<Endpoint>(&self.pins, abi::maps::PEER)?))
    }
}

/// Yields what is there and never waits; `None` is not the end. The descriptor becomes readable when there is more.
impl Iterator for Events {
    type Item = abi::Event;

    fn next(&mut self) -> Option<abi::Event> {
        loop {
            let item = self.0.next()?;
            if item.len() == size_of::<abi::Event>() {
                // SAFETY: the length is the event's, any bytes are an event (integers only), and the read does not
                // ask for alignment.
                return Some(unsafe { item.as_ptr().cast::<abi::Event>().read_unaligned() });
            }
        }
    }
}

impl std::os::fd::AsRawFd for Events {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

/// Checks the machine, and tells where the pins go.
pub fn pin_path(settings: &KernelSettings, node: &str) -> Result<PathBuf, KernelError> {
    probe::privileges()?;
    let path = pins::path(settings.pin_path.as_deref(), node);
    probe::bpffs(&path)?;
    Ok(path)
}

/// A map that does not take an entry. A full one is said to be full: the kernel's word for it is "argument list too long".
fn refused(map: &'static str, error: &MapError) -> KernelError {
    let full = matches!(error, MapError::SyscallError(e) if e.io_error.raw_os_error() == Some(libc::E2BIG));
    let why = if full {
        "it is full: enrol fewer workloads, or fewer of their ports, on this node".into()
    } else {
        chain(error)
    };
    KernelError::Map { map, why }
}

/// Takes an entry out of a map. One that is not there needs no removal.
fn take_out<K: Pod, V: Pod>(
    map: &mut BpfHashMap<MapData, K, V>,
    name: &'static str,
    key: &K,
) -> Result<(), KernelError> {
    match map.remove(key) {
        Err(MapError::SyscallError(e)) if e.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done.map_err(|e| KernelError::Map { map: name, why: chain(&e) }),
    }
}

/// An error with everything that caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}
