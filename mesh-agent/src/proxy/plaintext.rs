//! What comes from the wire in the open: let in where the configuration in force lets it, put out when it no longer does.
//!
//! In: a connection's ends. Out: the configuration under which it may come in, or why not. Without a configuration nobody
//! comes in. Refusals are told three times: in the agent's log (bounded), in the access log, in a counter.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use mesh_core::Snapshot;
use mesh_core::resource::listener::Listener;
use tokio::sync::watch;
use tokio::time::Instant;

use super::chosen::Flow;
use super::pod::Pod;
use super::secured::TlsRefusal;
use super::tcp;
use crate::net::copy::Duplex;
use crate::telemetry::{Budget, Kind, Text};

/// Why plaintext does not flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The port takes mutual TLS only.
    Strict,
    /// It has become so while the connection was open.
    BecameStrict,
    /// No configuration says that it may.
    NoConfiguration,
    /// It came from the node, but is none of the probes that are declared.
    NoProbe,
}

impl Refusal {
    const ALL: [(Refusal, &'static str); 4] = [
        (Refusal::Strict, "strict"),
        (Refusal::BecameStrict, "became_strict"),
        (Refusal::NoConfiguration, "no_configuration"),
        (Refusal::NoProbe, "no_probe"),
    ];

    /// What happened, and what to do about it.
    fn words(self) -> (&'static str, &'static str) {
        let strict = "enrol the client, or allow plaintext to this port by a PeerAuthentication of mode PERMISSIVE";
        match self {
            Refusal::Strict => ("the port takes mutual TLS only (STRICT)", strict),
            Refusal::BecameStrict => ("the port takes mutual TLS only from now on (STRICT)", strict),
            Refusal::NoProbe => {
                let declare = "declare the probe (settings: workloads[].probes), or allow plaintext to this port";
                ("the port takes of the node only the probes that are declared", declare)
            }
            Refusal::NoConfiguration => {
                ("the workload has no configuration yet", "see on the admin port whether the control plane is reached")
            }
        }
    }
}

/// Connections in the open, or by TLS at ports, that were refused, on all workers, by reason.
#[derive(Debug, Default)]
pub struct Refused {
    plaintext: [AtomicU64; Refusal::ALL.len()],
    tls: [AtomicU64; TlsRefusal::ALL.len()],
    /// Servers that have settled to say who they are, and have not.
    peer_exchange: AtomicU64,
}

impl Refused {
    /// Writes them to the metrics page.
    pub fn write(&self, out: &mut Text) {
        let name = "mesh_agent_plaintext_refused_total";
        out.family(name, Kind::Counter, "Plaintext connections to local workloads refused or closed, by reason.");
        for ((_, reason), count) in Refusal::ALL.iter().zip(&self.plaintext) {
            out.name(name, "");
            out.label("reason", reason);
            out.value(count.load(Relaxed));
        }
        let name = "mesh_agent_tls_refused_total";
        out.family(name, Kind::Counter, "TLS connections to ports of local workloads that were refused, by reason.");
        for ((_, reason), count) in TlsRefusal::ALL.iter().zip(&self.tls) {
            out.name(name, "");
            out.label("reason", reason);
            out.value(count.load(Relaxed));
        }
        let help =
            "TLS connections of local workloads that were closed because the server's peer exchange was malformed.";
        out.single("mesh_agent_peer_exchange_malformed_total", Kind::Counter, help, self.peer_exchange.load(Relaxed));
    }

    fn count(&self, refusal: Refusal) {
        let counters = Refusal::ALL.iter().zip(&self.plaintext);
        for (_, counter) in counters.filter(|((reason, _), _)| *reason == refusal) {
            counter.fetch_add(1, Relaxed);
        }
    }

    fn count_tls(&self, refusal: TlsRefusal) {
        let counters = TlsRefusal::ALL.iter().zip(&self.tls);
        for (_, counter) in counters.filter(|((reason, _), _)| *reason == refusal) {
            counter.fetch_add(1, Relaxed);
        }
    }
}

/// Where one worker tells of refusals.
#[derive(Clone)]
pub(super) struct Teller {
    refused: Arc<Refused>,
    budget: Rc<RefCell<Budget>>,
}

impl Teller {
    pub(super) fn new(refused: Arc<Refused>) -> Self {
        Self { refused, budget: Rc::default() }
    }

    pub(super) fn tell(&self, pod: &Pod, client: SocketAddr, destination: SocketAddr, refusal: Refusal) {
        self.refused.count(refusal);
        if let Some(skipped) = self.budget.borrow_mut().take(Instant::now()) {
            let (reason, remedy) = refusal.words();
            let workload = &pod.name;
            tracing::warn!(workload, %client, %destination, reason, remedy, skipped, "plaintext connection refused");
        }
    }

    /// As [`Teller::tell`], of TLS at a port.
    pub(super) fn tell_tls(
        &self,
        pod: &Pod,
        client: SocketAddr,
        destination: SocketAddr,
        refusal: TlsRefusal,
        reason: &str,
    ) {
        self.refused.count_tls(refusal);
        if let Some(skipped) = self.budget.borrow_mut().take(Instant::now()) {
            let workload = &pod.name;
            tracing::warn!(workload, %client, %destination, reason, skipped, "TLS connection refused");
        }
    }

    /// Tells of a connection that was refused because its workload, or the node, has as many as it may have.
    pub(super) fn tell_full(&self, workload: &str) {
        if let Some(skipped) = self.budget.borrow_mut().take(Instant::now()) {
            let remedy = "see mesh_agent_workload_connections for who has them; settings: limits.connections, limits.connectionsPerWorkload";
            tracing::warn!(workload, remedy, skipped, "too many connections: one was refused");
        }
    }

    /// Counts a server whose peer exchange is malformed; who wanted the connection hears why.
    pub(super) fn count_peer_exchange(&self) {
        self.refused.peer_exchange.fetch_add(1, Relaxed);
    }
}

/// Tells a workload's plaintext connections of one worker that the inbound listener has changed.
pub(super) struct Changes {
    sender: watch::Sender<()>,
    seen: RefCell<Option<Arc<Listener>>>,
}

impl Default for Changes {
    fn default() -> Self {
        Self { sender: watch::channel(()).0, seen: RefCell::default() }
    }
}

impl Changes {
    /// Notices of changes from now on.
    pub(super) fn subscribe(&self) -> watch::Receiver<()> {
        self.sender.subscribe()
    }

    /// Looks whether the listener is another one than last time.
    pub(super) fn look(&self, snapshot: Option<&Snapshot>) {
        let listener = snapshot.and_then(Snapshot::inbound);
        let mut seen = self.seen.borrow_mut();
        let same = match (listener, &*seen) {
            (Some(new), Some(old)) => Arc::ptr_eq(new, old),
            (None, None) => true,
            _ => false,
        };
        if !same {
            *seen = listener.cloned();
            self.sender.send_replace(());
        }
    }
}

/// The configuration under which a connection may come in; it waits for the first one, but not for ever.
pub(super) async fn admit(pod: &Pod, flow: &Flow) -> Result<Arc<Snapshot>, Refusal> {
    let snapshot = pod.config().await.filter(|one| one.inbound().is_some()).ok_or(Refusal::NoConfiguration)?;
    if admits(&snapshot, flow.client, flow.destination) { Ok(snapshot) } else { Err(Refusal::Strict) }
}

/// Resolves, having told of it, when a connection may no longer be there.
pub(super) async fn forbidden(pod: &Pod, client: SocketAddr, destination: SocketAddr) {
    // Before the first look, so that no change is missed.
    let mut changes = pod.inbound_changes.subscribe();
    // Without a configuration the workload is on its way out, and its connections with it.
    while pod.snapshot().is_none_or(|snapshot| admits(&snapshot, client, destination)) {
        // The pod holds the sender.
        let _ = changes.changed().await;
    }
    pod.teller.tell(pod, client, destination, Refusal::BecameStrict);
}

/// Whether a connection may come in now, whoever it is from.
pub(super) fn is_open(pod: &Pod, client: SocketAddr, destination: SocketAddr) -> bool {
    pod.snapshot().is_some_and(|snapshot| admits(&snapshot, client, destination))
}

fn admits(snapshot: &Snapshot, client: SocketAddr, destination: SocketAddr) -> bool {
    snapshot.inbound().is_some_and(|listener| listener.admits_plaintext(client, destination))
}

/// Resets a client that may not come in.
pub(super) fn refuse(pod: &Pod, flow: &Flow, accepted: impl Duplex, refusal: Refusal) {
    pod.teller.tell(pod, flow.client, flow.destination, refusal);
    tcp::refuse_without_chain(pod, flow, accepted, None);
}
