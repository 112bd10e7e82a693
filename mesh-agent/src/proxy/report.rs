//! Tells telemetry about connections: who talked to whom, how many bytes so far, how it ended.
//!
//! In: the facts of a connection and of its upstream. Out: Istio's labels, TCP series while the connection lives (first
//! after 5 s, then every 15 s, and at its end), an access log entry. Never: waits for anything.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use mesh_core::identity::SpiffeId;
use mesh_core::resource::cluster::Cluster;
use mesh_core::resource::endpoint::WorkloadRef;
use tokio::time::{Instant, interval_at};

use super::chosen::{Flow, Side};
use super::cluster::Target;
use super::pod::Pod;
use crate::errors::Flags;
use crate::net::copy::Traffic;
use crate::telemetry::access_log::Entry;
use crate::telemetry::{ConnLabels, Peer, Protocol, Security, TcpSeries};
use crate::upstream::Connected;

/// When a connection's bytes are first reported, and how often the worker looks whose turn it is.
const FIRST_REPORT: Duration = Duration::from_secs(5);
/// How often after that (Istio's default).
const REPORT_EVERY: Duration = Duration::from_secs(15);

/// What is known of the upstream end of a connection.
#[derive(Debug, Default)]
pub(super) struct Far<'a> {
    pub(super) cluster: Option<&'a Cluster>,
    pub(super) workload: Option<&'a WorkloadRef>,
    pub(super) peer: Option<&'a Peer>,
    pub(super) identity: Option<&'a SpiffeId>,
}

impl<'a> Far<'a> {
    /// What the chosen endpoint and the open connection say.
    pub(super) fn new(target: &'a Target, connected: Option<&'a Connected>) -> Self {
        Self {
            cluster: Some(&target.cluster),
            workload: target.endpoint.as_ref().and_then(|endpoint| endpoint.workload.as_deref()),
            peer: connected.and_then(|connected| connected.peer.as_deref()),
            identity: connected.and_then(|connected| connected.identity.as_ref()),
        }
    }
}

/// The labels of a connection or route.
pub(super) fn labels(pod: &Pod, flow: &Flow, far: &Far<'_>, protocol: Protocol) -> ConnLabels {
    let own = &pod.peer;
    let (service_host, service_name, service_namespace) = service(&pod.peer, flow.side, far.cluster);
    let without_principal = |peer: &Arc<Peer>| Arc::new(Peer { principal: Arc::from(""), ..(**peer).clone() });
    match flow.side {
        Side::Outbound => {
            let destination = Arc::new(destination(far));
            // Principals are what certificates proved; in plaintext nobody has proved anything.
            let source = if far.identity.is_some() { own.clone() } else { without_principal(own) };
            let security = Security::Unknown;
            let reporter = crate::telemetry::Reporter::Source;
            ConnLabels {
                reporter,
                source,
                destination,
                service_host,
                service_name,
                service_namespace,
                protocol,
                security,
            }
        }
        Side::Inbound => {
            let source = flow.source.clone().unwrap_or_default();
            let (destination, security) = match flow.identity {
                Some(_) => (own.clone(), Security::MutualTls),
                None => (without_principal(own), Security::None),
            };
            let reporter = crate::telemetry::Reporter::Destination;
            ConnLabels {
                reporter,
                source,
                destination,
                service_host,
                service_name,
                service_namespace,
                protocol,
                security,
            }
        }
    }
}

fn destination(far: &Far<'_>) -> Peer {
    let mut peer = match (far.workload, far.peer) {
        (Some(workload), said) => Peer {
            workload: workload.name.clone(),
            namespace: workload.namespace.clone(),
            principal: Arc::from(""),
            // The control plane may not know the labels; the other agent does.
            app: or(&workload.app, said.map(|peer| &peer.app)),
            version: or(&workload.version, said.map(|peer| &peer.version)),
            canonical_service: workload.canonical_service.clone(),
            canonical_revision: workload.canonical_revision.clone(),
            cluster: workload.cluster.clone(),
        },
        (None, Some(said)) => said.clone(),
        (None, None) => Peer::unknown(),
    };
    if let Some(identity) = far.identity {
        peer.principal = identity.as_str().into();
    }
    peer
}

fn or(first: &Arc<str>, second: Option<&Arc<str>>) -> Arc<str> {
    if first.is_empty() { second.unwrap_or(first).clone() } else { first.clone() }
}

/// `destination_service`, `destination_service_name`, `destination_service_namespace`.
pub(super) fn service(own: &Peer, side: Side, cluster: Option<&Cluster>) -> (Arc<str>, Arc<str>, Arc<str>) {
    let unknown = || Arc::<str>::from("");
    if let Some(service) = cluster.and_then(|cluster| cluster.service.as_ref()) {
        return (service.host.clone(), service.name.clone(), service.namespace.clone());
    }
    match (side, cluster) {
        // `PassthroughCluster` and the like: no service, and the name says so.
        (Side::Outbound, Some(cluster)) => (unknown(), cluster.name.clone(), unknown()),
        (Side::Outbound, None) => (unknown(), unknown(), unknown()),
        (Side::Inbound, Some(cluster)) if !cluster.name.starts_with("inbound|") => {
            (unknown(), cluster.name.clone(), own.namespace.clone())
        }
        (Side::Inbound, _) => (unknown(), own.canonical_service.clone(), own.namespace.clone()),
    }
}

/// The TCP series of one connection.
pub(super) struct TcpReport {
    series: TcpSeries,
    labels: ConnLabels,
    /// Forward is from the client.
    pub(super) traffic: Traffic,
    reported: Cell<(u64, u64)>,
    due: Cell<Instant>,
}

impl TcpReport {
    /// Counts a connection as opened, and reports its bytes until [`TcpReport::close`].
    pub(super) fn open(pod: &Pod, labels: ConnLabels) -> Rc<Self> {
        let series = pod.metrics.tcp(&labels, Flags::NONE);
        series.opened();
        let report = Rc::new(Self {
            series,
            labels,
            traffic: Traffic::default(),
            reported: Cell::default(),
            due: Cell::new(Instant::now() + FIRST_REPORT),
        });
        pod.reports.add(&report);
        report
    }

    /// Counts it as closed. A clean end stands in the series in which it was opened.
    pub(super) fn close(&self, pod: &Pod, flags: Flags) {
        if flags.is_empty() {
            self.series.closed();
        } else {
            pod.metrics.tcp(&self.labels, flags).closed();
        }
    }

    fn flush(&self) {
        let now = (self.traffic.forward.get(), self.traffic.back.get());
        let before = self.reported.replace(now);
        self.series.received(now.0 - before.0);
        self.series.sent(now.1 - before.1);
    }
}

impl Drop for TcpReport {
    /// Also for a connection that is cut off.
    fn drop(&mut self) {
        self.flush();
    }
}

/// The reports of one worker's open connections.
#[derive(Clone, Default)]
pub(super) struct Reports {
    live: Rc<RefCell<Vec<Weak<TcpReport>>>>,
}

impl Reports {
    /// Reports for ever.
    pub(super) async fn run(self) {
        let mut ticks = interval_at(Instant::now() + FIRST_REPORT, FIRST_REPORT);
        loop {
            let now = ticks.tick().await;
            self.report(|report| report.due.get() <= now);
        }
    }

    /// Before the list grows, those that have ended go: it is never much longer than there are connections.
    fn add(&self, report: &Rc<TcpReport>) {
        let mut live = self.live.borrow_mut();
        if live.len() == live.capacity() {
            live.retain(|report| report.strong_count() > 0);
            let more = live.len().max(64);
            live.reserve(more);
        }
        live.push(Rc::downgrade(report));
    }

    /// Reports everything at once.
    pub(super) fn flush(&self) {
        self.report(|_| true);
    }

    fn report(&self, due: impl Fn(&TcpReport) -> bool) {
        self.live.borrow_mut().retain(|report| {
            let Some(report) = report.upgrade() else { return false };
            if due(&report) {
                report.flush();
                report.due.set(Instant::now() + REPORT_EVERY);
            }
            true
        });
    }
}

/// Writes the access log entry of an opaque connection.
pub(super) struct TcpEnd<'a> {
    pub(super) flags: Flags,
    pub(super) received: u64,
    pub(super) sent: u64,
    pub(super) server_name: Option<&'a str>,
    pub(super) cluster: Option<&'a str>,
    pub(super) upstream: Option<std::net::SocketAddr>,
    pub(super) upstream_local: Option<std::net::SocketAddr>,
    pub(super) failure: Option<&'a str>,
    pub(super) details: Option<&'a str>,
    pub(super) termination: Option<&'a str>,
}

/// Logs the end of an opaque connection.
pub(super) fn log_tcp(pod: &Pod, flow: &Flow, end: &TcpEnd<'_>) {
    if !pod.log.is_on() {
        return;
    }
    pod.log.write(&Entry {
        response_flags: end.flags,
        response_code_details: end.details,
        connection_termination_details: end.termination,
        upstream_transport_failure_reason: end.failure,
        bytes_received: end.received,
        bytes_sent: end.sent,
        duration: flow.started.elapsed(),
        upstream_host: end.upstream,
        upstream_cluster: end.cluster,
        upstream_local_address: end.upstream_local,
        downstream_local_address: Some(flow.destination),
        downstream_remote_address: Some(flow.client),
        requested_server_name: end.server_name,
        ..Entry::new(flow.start_time)
    });
}
