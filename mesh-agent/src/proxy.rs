//! The data path: connections of local workloads, out and in.
//!
//! In: enrolled workloads with their listeners, the live configuration, certificates. Out: relayed bytes, routed requests,
//! metrics and access log entries. Never: decides anything that mesh-core could decide, or reads a client's word for an identity.
//!
//! Each worker is a thread with a runtime of its own; a connection stays on its worker with its pool and tunnels.
//!
//! Outbound: `accept → original destination → listener → first bytes → chain → (route →) cluster → endpoint → upstream → copy or forward`.
//! Inbound: `accept (→ TLS → CONNECT, or plaintext admitted) → policies → application → listener → first bytes → chain → copy or forward`.
//! TLS at an application's own port (`secured`): `accept → first bytes → chain → TLS → policies → application → copy or forward`.

mod authorize;
mod budget;
mod chosen;
mod cluster;
mod detect;
mod direct;
mod http;
mod inbound;
mod known;
mod neighbour;
mod outbound;
mod plaintext;
mod pod;
mod probe;
mod report;
mod residents;
mod secured;
mod tcp;
mod tunnel;
mod worker;

#[cfg(test)]
pub(crate) mod tests;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread::JoinHandle;

use tokio::sync::mpsc;

use crate::dns;
use crate::identity::Identities;
use crate::kernel::{Listeners, Sockets};
use crate::live::Live;
use crate::settings::Settings;
use crate::shutdown;
use crate::telemetry::WorkerMetrics;
use crate::telemetry::access_log::Log;
use crate::workload::Workload;

pub use authorize::Judged;
pub use budget::Ledgers;
pub use direct::{DirectEnd, direct_labels};
#[cfg(fuzzing)]
pub use http::follow_http2;
pub use plaintext::Refused;

/// Commands that may wait for one worker.
const MAX_COMMANDS: usize = 4096;

/// What every connection needs. Built by `app`, one per worker.
#[derive(Clone)]
pub struct Context {
    /// The configuration in force.
    pub live: Arc<Live>,
    /// Sockets that the kernel programs know.
    pub sockets: Sockets,
    /// Certificates.
    pub identities: Identities,
    /// This worker's metrics.
    pub metrics: WorkerMetrics,
    /// Counts plaintext refused, shared by all workers.
    pub refused: Arc<Refused>,
    /// Counts what policies refused, shared by all workers.
    pub judged: Arc<Judged>,
    /// This worker's access log.
    pub access_log: Log,
    /// What the DNS forwarders of all workers count.
    pub dns: Arc<dns::Counters>,
    /// The node's addresses, from which the orchestrator probes workloads.
    pub node: Arc<[IpAddr]>,
    /// The settings.
    pub settings: Arc<Settings>,
    /// When to end.
    pub shutdown: shutdown::Watch,
}

/// All workers.
pub struct Workers {
    workers: Vec<WorkerHandle>,
    loads: Arc<[AtomicUsize]>,
    residents: Arc<residents::Residents>,
    ledgers: Arc<Ledgers>,
}

/// One worker thread.
struct WorkerHandle {
    commands: mpsc::Sender<Command>,
    thread: JoinHandle<()>,
}

/// What a worker is told.
enum Command {
    /// Serve a workload's listeners.
    Enrol { workload: Arc<Workload>, listeners: Listeners },
    /// Close a workload's listeners and connections.
    Withdraw { id: u32 },
    /// Serve a connection that another worker has accepted.
    Take {
        workload: Arc<Workload>,
        own_ports: Vec<u16>,
        accepted: std::net::TcpStream,
        door: Door,
        /// Until the connection has one of its own.
        _guard: shutdown::Guard,
    },
}

/// Which listener a connection came in by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    Outbound,
    Inbound,
    Tunnel,
}

impl Workers {
    /// Starts `count` (at least one) workers for at most `connections`; `context` is called once for each, with its index.
    pub fn start(count: usize, connections: usize, context: impl Fn(usize) -> Context) -> std::io::Result<Workers> {
        let count = count.max(1);
        let loads: Arc<[AtomicUsize]> = (0..count).map(|_| AtomicUsize::new(0)).collect();
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..count).map(|_| mpsc::channel(MAX_COMMANDS)).unzip();
        let residents = Arc::new(residents::Residents::default());
        let ledgers = Arc::new(Ledgers::new(count, connections));
        let siblings = worker::Siblings {
            senders: senders.clone().into(),
            loads: loads.clone(),
            residents: residents.clone(),
            ledgers: ledgers.clone(),
        };
        let mut workers = Vec::with_capacity(count);
        for (index, (commands, receiver)) in senders.into_iter().zip(receivers).enumerate() {
            let thread = worker::spawn(index, context(index), receiver, siblings.clone())?;
            workers.push(WorkerHandle { commands, thread });
        }
        Ok(Workers { workers, loads, residents, ledgers })
    }

    /// Gives a workload to a worker, which serves its listeners until [`Workers::withdraw`].
    pub async fn enrol(&self, workload: Arc<Workload>, listeners: Listeners) {
        let index = workload.id as usize % self.workers.len();
        self.ledgers.enrol(&workload);
        self.residents.add(&workload, &residents::own_ports(&listeners));
        self.tell(index, Command::Enrol { workload, listeners }).await;
    }

    /// Closes a workload's listeners and its connections on every worker.
    pub async fn withdraw(&self, id: u32) {
        self.residents.remove(id);
        self.ledgers.withdraw(id);
        for index in 0..self.workers.len() {
            self.tell(index, Command::Withdraw { id }).await;
        }
    }

    /// Connections open on each worker, to be read at any time.
    pub fn connections(&self) -> Arc<[AtomicUsize]> {
        self.loads.clone()
    }

    /// Connections of each workload, to be written to the metrics page at any time.
    pub fn ledgers(&self) -> Arc<Ledgers> {
        self.ledgers.clone()
    }

    /// Resolves when a thread has ended: before the shutdown has stopped, that is one that panicked.
    pub async fn ended(&self) {
        let threads = self.workers.iter().map(|worker| Box::pin(worker.commands.closed()));
        futures_util::future::select_all(threads).await;
    }

    /// Waits for the threads to end, which they do when the shutdown has stopped. Blocks.
    pub fn join(self) {
        for worker in self.workers {
            drop(worker.commands);
            if worker.thread.join().is_err() {
                tracing::error!("a worker thread has panicked");
            }
        }
    }

    async fn tell(&self, index: usize, command: Command) {
        if let Some(worker) = self.workers.get(index)
            && worker.commands.send(command).await.is_err()
        {
            tracing::debug!(worker = index, "the worker has ended");
        }
    }
}
