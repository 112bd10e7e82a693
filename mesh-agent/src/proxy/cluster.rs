//! From a cluster to an address: picks the endpoint.
//!
//! In: a cluster's name and the snapshot. Out: a [`Target`], or why there is none. An endpoint is counted as busy while
//! its [`Target`] lives. No I/O.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mesh_core::Snapshot;
use mesh_core::balance::{PickContext, pick};
use mesh_core::resource::cluster::{Cluster, ClusterKind, DnsHost, Transport};
use mesh_core::resource::endpoint::{Endpoint, Health, LoadAssignment};
use mesh_core::resource::listener::TcpProxy;

use super::chosen::{Flow, Side};
use crate::errors::Flags;
use crate::live::same_name;
use crate::random::random;

/// A place to connect to.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) cluster: Arc<Cluster>,
    /// `None`: the connection's own destination.
    pub(super) endpoint: Option<Busy>,
    pub(super) address: SocketAddr,
    /// The host that the request names, where the server shall hear of it by TLS.
    pub(super) host: Option<Arc<str>>,
}

impl Target {
    fn new(cluster: &Arc<Cluster>, endpoint: Option<Busy>, address: SocketAddr) -> Self {
        Self { cluster: cluster.clone(), endpoint, address, host: None }
    }

    /// How it is reached.
    fn transport(&self) -> &Transport {
        match &self.endpoint {
            Some(endpoint) => self.cluster.transport(endpoint),
            None => self.cluster.transport_of_any(),
        }
    }

    /// The target of a request that names this authority: its TLS may depend on it.
    pub(super) fn named(self, authority: &str) -> Self {
        let wanted = matches!(self.transport(), Transport::Tls(settings) if settings.auto_sni);
        let host = wanted.then(|| host(authority).into());
        Self { host, ..self }
    }

    /// What a connection to it leads to.
    pub(super) fn end(&self) -> End {
        let (cluster, address, host) = (self.cluster.clone(), self.address, self.host.clone());
        let endpoint = self.endpoint.as_ref().map(|busy| busy.0.clone());
        End { cluster, endpoint, address, host }
    }

    /// What a connection is to this target that leads to `end`.
    pub(super) fn fit(&self, end: &End) -> Fit {
        let same_place =
            self.address == end.address && same_name(&self.cluster.name, &end.cluster.name) && self.host == end.host;
        if !same_place {
            return Fit::Other;
        }
        let same_objects = Arc::ptr_eq(&self.cluster, &end.cluster)
            && self.endpoint.as_ref().map(|one| Arc::as_ptr(&one.0)) == end.endpoint.as_ref().map(Arc::as_ptr);
        if same_objects || self.is_reached_as(end) { Fit::Same } else { Fit::Outdated }
    }

    /// Whether what was verified, and how, is what would be now.
    fn is_reached_as(&self, end: &End) -> bool {
        let then = match &end.endpoint {
            Some(endpoint) => end.cluster.transport(endpoint),
            None => end.cluster.transport_of_any(),
        };
        let tunnel = |endpoint: &Endpoint| (endpoint.tunnel, endpoint.identity.clone());
        self.transport() == then
            && self.cluster.sans == end.cluster.sans
            && self.endpoint.as_deref().map(tunnel) == end.endpoint.as_deref().map(tunnel)
    }
}

/// What a connection leads to that is kept for further requests.
#[derive(Debug, Clone)]
pub(super) struct End {
    cluster: Arc<Cluster>,
    endpoint: Option<Arc<Endpoint>>,
    address: SocketAddr,
    /// The name that the server has heard.
    host: Option<Arc<str>>,
}

/// What a connection is to a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    /// It leads there, as one made now would.
    Same,
    /// It leads there as the configuration said before: in the open, or with another identity.
    Outdated,
    /// It leads elsewhere.
    Other,
}

/// An authority without its port, and without the brackets of an IPv6 address.
fn host(authority: &str) -> &str {
    match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    }
}

/// Why there is no target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoTarget {
    /// There is no such cluster.
    NoCluster,
    /// It has no endpoint that may be used.
    NoEndpoint,
}

impl NoTarget {
    pub(super) fn flags(self) -> Flags {
        match self {
            NoTarget::NoCluster => Flags::NC,
            NoTarget::NoEndpoint => Flags::UH,
        }
    }
}

/// An endpoint, counted as in use.
#[derive(Debug)]
pub(super) struct Busy(Arc<Endpoint>);

impl Busy {
    fn new(endpoint: Arc<Endpoint>) -> Self {
        endpoint.runtime.active.fetch_add(1, Ordering::Relaxed);
        Self(endpoint)
    }
}

impl std::ops::Deref for Busy {
    type Target = Endpoint;

    fn deref(&self) -> &Endpoint {
        &self.0
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.runtime.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The endpoint that the kernel has chosen for a connection, if it is still one that may be used.
pub(super) fn chosen(snapshot: &Snapshot, proxy: &TcpProxy, flow: &Flow) -> Option<Target> {
    let address = flow.chosen?;
    proxy.clusters.entries().find_map(|entry| {
        let cluster = snapshot.cluster(&entry.name)?;
        let mut endpoints = snapshot.endpoints(cluster).endpoints();
        let endpoint = endpoints.find(|one| one.address == address && one.health == Health::Healthy)?;
        Some(Target::new(cluster, Some(Busy::new(endpoint.clone())), address))
    })
}

/// Picks where a connection or request for `cluster` goes. `known` tells of the workload of the mesh at an address.
pub(super) fn choose(
    snapshot: &Snapshot,
    cluster: &str,
    flow: &Flow,
    context: &PickContext<'_>,
    known: impl FnOnce(SocketAddr) -> Option<Arc<Endpoint>>,
) -> Result<Target, NoTarget> {
    let cluster = snapshot.cluster(cluster).ok_or(NoTarget::NoCluster)?;
    choose_of(snapshot, cluster, snapshot.endpoints(cluster), flow, context, known)
}

/// As [`choose`], of a cluster and its endpoints.
pub(super) fn choose_of(
    snapshot: &Snapshot,
    cluster: &Arc<Cluster>,
    endpoints: &LoadAssignment,
    flow: &Flow,
    context: &PickContext<'_>,
    known: impl FnOnce(SocketAddr) -> Option<Arc<Endpoint>>,
) -> Result<Target, NoTarget> {
    // Inbound there is one application, at the address that the client dialled; only a black hole has none.
    if flow.side == Side::Inbound && !is_black_hole(snapshot, cluster) {
        return Ok(Target::new(cluster, None, flow.destination));
    }
    match &cluster.kind {
        ClusterKind::Eds { .. } | ClusterKind::Static(_) => {
            let endpoint = pick(endpoints, &cluster.lb, context, &mut random::<u64>).ok_or(NoTarget::NoEndpoint)?;
            let address = endpoint.address;
            Ok(Target::new(cluster, Some(Busy::new(endpoint)), address))
        }
        ClusterKind::OriginalDst { port_override } => {
            let port = port_override.unwrap_or(flow.destination.port());
            let address = SocketAddr::new(flow.destination.ip(), port);
            let endpoint = if cluster.external { None } else { known(address).map(Busy::new) };
            Ok(Target::new(cluster, endpoint, address))
        }
        // The application has resolved the name itself, and its answer is as good as ours would be.
        ClusterKind::StrictDns(hosts) | ClusterKind::LogicalDns(hosts) => {
            Ok(Target::new(cluster, None, literal(hosts).unwrap_or_else(|| resolved(hosts, flow))))
        }
        ClusterKind::Internal => Err(NoTarget::NoEndpoint),
    }
}

fn is_black_hole(snapshot: &Snapshot, cluster: &Cluster) -> bool {
    matches!(cluster.kind, ClusterKind::Static(_)) && snapshot.endpoints(cluster).endpoints().next().is_none()
}

/// Where the application has found the name, at the port that the cluster says: behind port 80 there may be TLS at 443.
fn resolved(hosts: &[DnsHost], flow: &Flow) -> SocketAddr {
    let port = hosts.first().map_or(flow.destination.port(), |host| host.port);
    SocketAddr::new(flow.destination.ip(), port)
}

/// A host that is an address already. One of several is taken at random, by weight.
fn literal(hosts: &[DnsHost]) -> Option<SocketAddr> {
    let known = || hosts.iter().filter_map(|host| Some((host.host.parse::<IpAddr>().ok()?, host)));
    let total: u64 = known().map(|(_, host)| u64::from(host.weight)).sum();
    let mut left = random::<u64>() % total.max(1);
    for (ip, host) in known() {
        match left.checked_sub(u64::from(host.weight)) {
            Some(rest) => left = rest,
            None => return Some(SocketAddr::new(ip, host.port)),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_an_authority_without_its_port() {
        for (authority, name) in [
            ("a.b", "a.b"),
            ("a.b:80", "a.b"),
            ("10.0.0.1:80", "10.0.0.1"),
            ("[::1]:80", "::1"),
            ("[::1]", "::1"),
            ("", ""),
        ] {
            assert_eq!(host(authority), name);
        }
    }

    #[test]
    fn a_name_that_the_application_has_resolved_leads_to_the_cluster_s_port() {
        let flow = Flow::new(Side::Outbound, "10.0.0.1:4711".parse().unwrap(), "192.0.2.1:80".parse().unwrap());
        let host = DnsHost { host: "example.com".into(), port: 443, weight: 1, priority: 0, istio_mtls: false };
        assert_eq!(resolved(&[host], &flow), "192.0.2.1:443".parse().unwrap());
        assert_eq!(resolved(&[], &flow), flow.destination);
    }
}
