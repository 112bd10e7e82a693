//! The kernel side as the agent sees it: loads and attaches the programs, enrols workloads, and gives sockets that are
//! marked as the agent's. In: settings, namespaces. Out: listeners inside the namespaces, sockets, original
//! destinations, counters. The only writer of the maps. Decides nothing about traffic.
//!
//! Maps are pinned, mode 0700, so that each workload's instance of the ingress program can share them; programs live as
//! long as the [`Kernel`] that loaded them. Dropping it detaches everything and removes the pins.

mod attach;
mod enrol;
pub mod hooks;
mod kept;
mod load;
mod modes;
mod probe;
mod sockets;

use std::collections::HashMap;
use std::net::{IpAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;

use aya::Ebpf;
use aya::maps::{HashMap as BpfHashMap, MapData, PerCpuArray, RingBuf};
use mesh_common::abi;
use mesh_common::abi::Counter;
use mesh_common::addr::Endpoint;
use tracing::warn;

use crate::net::netns::NetNs;
use crate::settings::KernelSettings;
use crate::workload::Workload;

pub use sockets::Sockets;

/// The loaded programs and the enrolled workloads.
pub struct Kernel {
    /// Before `base`, because an instance of the ingress program must be gone before the maps lose their names.
    pods: HashMap<u32, enrol::Pod>,
    workloads: BpfHashMap<MapData, u64, abi::Workload>,
    port_modes: BpfHashMap<MapData, abi::PortKey, u32>,
    kept: kept::Kept,
    metrics: PerCpuArray<MapData, u64>,
    events: Option<Events>,
    sockets: Sockets,
    /// The bytes of the object; every workload gets an instance of its ingress program.
    object: Vec<u8>,
    /// Holds the programs of the cgroup hooks and their links.
    _base: Ebpf,
    pins: load::Pins,
}

/// The agent's listeners inside one workload's namespace: nonblocking, one per family.
#[derive(Debug)]
pub struct Listeners {
    /// What the workload sends elsewhere.
    pub outbound: Vec<TcpListener>,
    /// What comes from the wire for the workload, on any port but HBONE's. The accepted socket's local address is the
    /// one that the client dialled.
    pub inbound: Vec<TcpListener>,
    /// HBONE.
    pub tunnel: Vec<TcpListener>,
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
        source: std::io::Error,
    },
}

impl Kernel {
    /// Checks the machine, loads the programs and attaches those of the cgroup. Nobody is caught before [`enrol`].
    /// Needs root.
    ///
    /// [`enrol`]: Kernel::enrol
    pub fn load(settings: &KernelSettings, node: &str) -> Result<Kernel, KernelError> {
        load::load(settings, node)
    }

    /// Opens listeners inside the workload's namespace and from then on catches what goes in and out. It is STRICT until
    /// [`Kernel::set_inbound_modes`]. Connections that it has opened before stay as they are; those that were opened to
    /// it are held up until it is known that they may go on. A workload enrolled a second time is withdrawn first.
    pub fn enrol(&mut self, workload: &Workload) -> Result<Listeners, KernelError> {
        self.enrol_namespace(workload.id, &workload.netns, &workload.addresses, 0)
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
        enrol::enrol(self, id, netns, addresses, flags)
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

    /// Forgets connections from before the enrolment that have ended. To be called now and then.
    pub fn sweep(&mut self) {
        for pod in self.pods.values_mut() {
            kept::sweep(&mut self.kept, pod);
        }
    }

    /// Stops catching. Connections that the agent holds are the agent's to close. Unknown ids are no error.
    pub fn withdraw(&mut self, id: u32) {
        if let Some(pod) = self.pods.remove(&id) {
            self.remove(id, pod);
        }
    }

    fn remove(&mut self, id: u32, mut pod: enrol::Pod) {
        kept::clear(&mut self.kept, &mut pod);
        modes::Modes { workloads: &mut self.workloads, ports: &mut self.port_modes }.clear(&mut pod);
        if let Err(e) = pod.remove(&mut self.workloads) {
            warn!(workload = id, error = %e, "the kernel side of a workload could not be removed completely");
        }
    }

    /// What opens sockets that the programs leave alone; cheap to clone and to send.
    pub fn sockets(&self) -> Sockets {
        self.sockets.clone()
    }

    /// Every counter since the load, summed over the CPUs.
    pub fn counters(&self) -> Result<Vec<(&'static str, u64)>, KernelError> {
        Counter::ALL.iter().map(|(counter, name)| Ok((*name, self.counter(*counter)?))).collect()
    }

    /// One counter since the load, summed over the CPUs.
    pub fn counter(&self, counter: Counter) -> Result<u64, KernelError> {
        let values = self.metrics.get(&(counter as u32), 0);
        let values = values.map_err(|e| KernelError::Map { map: abi::maps::METRICS, why: chain(&e) })?;
        Ok(values.iter().sum())
    }

    /// The events, once: the first caller gets them.
    pub fn take_events(&mut self) -> Option<Events> {
        self.events.take()
    }

    /// Connections in the hand-over maps: redirected but not yet accepted by the agent, and dialled by the agent but not
    /// yet accepted by an application. For tests and debugging; reads both maps in full.
    pub fn in_flight(&self) -> Result<(usize, usize), KernelError> {
        let count = |name: &'static str| {
            let wrong = |why: String| KernelError::Map { map: name, why };
            let data = MapData::from_pin(self.pins.path().join(name)).map_err(|e| wrong(chain(&e)))?;
            let map = aya::maps::Map::from_map_data(data).map_err(|e| wrong(chain(&e)))?;
            let map = BpfHashMap::<_, abi::Tuple, Endpoint>::try_from(map).map_err(|e| wrong(chain(&e)))?;
            Ok(map.keys().filter(Result::is_ok).count())
        };
        Ok((count(abi::maps::FLOW)?, count(abi::maps::PEER)?))
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        let ids: Vec<u32> = self.pods.keys().copied().collect();
        for id in ids {
            self.withdraw(id);
        }
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
