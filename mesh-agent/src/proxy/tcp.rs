//! Opaque connections: one downstream, one upstream, bytes copied until both directions have ended.
//!
//! In: a downstream stream and its TCP chain. Out: the relayed connection and its report. What keeps the connection from
//! being served resets the client, as the network itself would.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use mesh_core::Snapshot;
use mesh_core::balance::PickContext;
use mesh_core::resource::cluster::Carries;
use mesh_core::resource::listener::TcpProxy;
use tokio::time::timeout;

use super::authorize::Denial;
use super::chosen::{Flow, Relay};
use super::cluster::{self, NoTarget, Target};
use super::pod::Pod;
use super::report::{self, Far, TcpEnd, TcpReport};
use crate::errors::Flags;
use crate::net::copy::{Duplex, End, copy};
use crate::net::peek::Peeked;
use crate::random::random;
use crate::telemetry::Protocol;
use crate::upstream::Connected;
use crate::upstream::stream::Stream;

/// Envoy's response code detail for a connection that no filter chain is for.
const NO_CHAIN: &str = "filter_chain_not_found";

/// Response code detail for a client with whom there is no TLS.
const DOWNSTREAM_TLS: &str = "downstream_tls_failed";

/// Response code detail for a connection beyond a limit.
const FULL: &str = "too_many_connections";

/// An upstream connection that is ready to be relayed to.
pub(super) struct Upstream {
    pub(super) target: Target,
    pub(super) connected: Connected,
}

/// Why an opaque connection has no upstream.
pub(super) struct Failure {
    pub(super) flags: Flags,
    cluster: Option<Arc<str>>,
    target: Option<Target>,
    why: Option<String>,
    /// Envoy's word for it.
    details: Option<&'static str>,
    /// Envoy's word for a connection that was cut off on purpose.
    termination: Option<String>,
}

impl Failure {
    /// The cluster does not exist or has no endpoint.
    pub(super) fn no_target(none: NoTarget, cluster: &Arc<str>) -> Self {
        Self { flags: none.flags(), cluster: Some(cluster.clone()), ..Self::of(Flags::NONE) }
    }

    /// A policy refuses the connection.
    pub(super) fn denied(denial: &Denial) -> Self {
        Self { termination: Some(denial.details()), ..Self::of(Flags::DENY) }
    }

    /// The workload has as many connections as it may have, or the node.
    pub(super) fn full() -> Self {
        Self { details: Some(FULL), ..Self::of(Flags::OM) }
    }

    /// TLS with the client has come to nothing.
    pub(super) fn downstream_tls(why: String) -> Self {
        Self { details: Some(DOWNSTREAM_TLS), termination: Some(why), ..Self::of(Flags::DPE) }
    }

    fn of(flags: Flags) -> Self {
        Self { flags, cluster: None, target: None, why: None, details: None, termination: None }
    }
}

/// Picks the cluster and the endpoint, and connects.
pub(super) async fn connect(
    pod: &Pod,
    flow: &Flow,
    proxy: &TcpProxy,
    snapshot: &Snapshot,
) -> Result<Upstream, Failure> {
    let target = match cluster::chosen(snapshot, proxy, flow) {
        Some(target) => target,
        None => {
            let name = &proxy.clusters.pick(random()).name;
            let hash = proxy.hash_source_ip.then(|| hash_of(flow));
            cluster::choose(snapshot, name, flow, &PickContext { hash, avoid: &[] }, |to| pod.known(to))
                .map_err(|none| Failure::no_target(none, name))?
        }
    };
    match pod.connect(flow, &target, Carries::Bytes).await {
        Ok(connected) => Ok(Upstream { target, connected }),
        Err(error) => {
            tracing::debug!(workload = pod.name, %error, "no upstream connection");
            let (flags, cluster) = (error.flags(), Some(target.cluster.name.clone()));
            let why = Some(error.to_string());
            Err(Failure { cluster, target: Some(target), why, ..Failure::of(flags) })
        }
    }
}

/// The same for all connections of a client, on every worker and node.
fn hash_of(flow: &Flow) -> u64 {
    let mut hasher = DefaultHasher::new();
    flow.client.ip().hash(&mut hasher);
    hasher.finish()
}

/// Resets a client whose connection cannot be served, and reports it.
pub(super) fn refuse<S: Duplex>(
    pod: &Pod,
    flow: &Flow,
    mut downstream: S,
    failure: &Failure,
    server_name: Option<&str>,
) {
    downstream.reset();
    report_refusal(pod, flow, failure, server_name);
}

/// Reports a client whose connection cannot be served.
pub(super) fn report_refusal(pod: &Pod, flow: &Flow, failure: &Failure, server_name: Option<&str>) {
    let far = failure.target.as_ref().map_or_else(Far::default, |target| Far::new(target, None));
    let series = pod.metrics.tcp(&report::labels(pod, flow, &far, Protocol::Tcp), failure.flags);
    series.opened();
    series.closed();
    let end = TcpEnd {
        flags: failure.flags,
        received: 0,
        sent: 0,
        server_name,
        cluster: failure.cluster.as_deref(),
        upstream: failure.target.as_ref().map(|target| target.address),
        upstream_local: None,
        failure: failure.why.as_deref(),
        details: failure.details,
        termination: failure.termination.as_deref(),
    };
    report::log_tcp(pod, flow, &end);
}

/// Resets a client for whom there is no filter chain.
pub(super) fn refuse_without_chain<S: Duplex>(pod: &Pod, flow: &Flow, downstream: S, server_name: Option<&str>) {
    let failure = Failure { details: Some(NO_CHAIN), ..Failure::of(Flags::NR) };
    refuse(pod, flow, downstream, &failure, server_name);
}

/// Relays until both directions have ended.
pub(super) fn relay(pod: Rc<Pod>, relay: Box<Relay>) -> Pin<Box<dyn Future<Output = ()>>> {
    Box::pin(async move {
        let (idle, limit) = (relay.idle_timeout, relay.max_duration);
        let (done, downstream, upstream) = Done::new(pod, relay);
        let copying = copy(downstream, upstream, &done.open.traffic, idle).within(done.pod.share());
        let end = match limit {
            None => Some(copying.await),
            Some(limit) => Box::pin(timeout(limit, copying)).await.ok(),
        };
        done.finish(match end {
            Some(End::Finished | End::FirstReset(_) | End::SecondReset(_)) => Flags::NONE,
            Some(End::Idle) => Flags::SI,
            None => Flags::DT,
        });
    })
}

/// Reports the end of a connection, however it comes.
struct Done {
    pod: Rc<Pod>,
    flow: Flow,
    open: Rc<TcpReport>,
    target: Target,
    local: Option<SocketAddr>,
    server_name: Option<Box<str>>,
    flags: Flags,
}

impl Done {
    /// Begins the report; what the relay itself does not need goes no further, and its box neither.
    fn new(pod: Rc<Pod>, relay: Box<Relay>) -> (Self, Peeked<Stream>, Peeked<Stream>) {
        let Relay { flow, downstream, upstream: Upstream { target, connected }, server_name, said, .. } = *relay;
        let labels = report::labels(&pod, &flow, &Far::new(&target, Some(&connected)), Protocol::Tcp);
        let open = TcpReport::open(&pod, labels);
        // Cut off unless `finish` says otherwise.
        let done = Self { pod, flow, open, target, local: connected.local, server_name, flags: Flags::LR };
        (done, downstream, Peeked::with_prefix(connected.stream, said))
    }

    fn finish(mut self, flags: Flags) {
        self.flags = flags;
    }
}

impl Drop for Done {
    /// Also when the connection's task is dropped because the workload or the agent goes away.
    fn drop(&mut self) {
        self.open.close(&self.pod, self.flags);
        let end = TcpEnd {
            flags: self.flags,
            received: self.open.traffic.forward.get(),
            sent: self.open.traffic.back.get(),
            server_name: self.server_name.as_deref(),
            cluster: Some(&self.target.cluster.name),
            upstream: Some(self.target.address),
            upstream_local: self.local,
            failure: None,
            details: None,
            termination: None,
        };
        report::log_tcp(&self.pod, &self.flow, &end);
    }
}
