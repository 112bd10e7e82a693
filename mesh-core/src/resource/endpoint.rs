//! Endpoints of a cluster: `envoy.config.endpoint.v3.ClusterLoadAssignment`.
//!
//! In: the message, and the assignment it replaces (whose counters live on). Out: a
//! [`LoadAssignment`] ready for [`crate::balance::pick`]. It never resolves names.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

use crate::identity::SpiffeId;

mod levels;
mod parse;

pub(crate) use levels::{Level, Pool, Pools};
pub use parse::MAX_ENDPOINTS;

/// Whether the control plane says an endpoint may take traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// HEALTHY or UNKNOWN.
    Healthy,
    /// DEGRADED: used only when there is not enough of healthy ones.
    Degraded,
    /// UNHEALTHY, DRAINING or TIMEOUT: used only in panic.
    Unhealthy,
}

/// Counters of one endpoint of one cluster; the same object over all updates of its assignment.
#[derive(Debug, Default)]
pub struct EndpointRuntime {
    /// Requests or connections under way. Raised and lowered by whoever uses the endpoint.
    pub active: AtomicU32,
}

/// Counters of one cluster; the same object over all updates of its assignment.
#[derive(Debug, Default)]
pub struct ClusterRuntime {
    /// Position of round robin.
    pub turn: AtomicU64,
}

/// What an endpoint's metadata says of the workload behind it, for telemetry.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct WorkloadRef {
    /// Workload (deployment) name.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Canonical service.
    pub canonical_service: Arc<str>,
    /// Canonical revision; "latest" when the control plane sends none.
    pub canonical_revision: Arc<str>,
    /// Cluster id.
    pub cluster: Arc<str>,
    /// Label `app`, empty when unknown.
    pub app: Arc<str>,
    /// Label `version`, empty when unknown.
    pub version: Arc<str>,
}

/// One address that serves a cluster.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Where to connect.
    pub address: SocketAddr,
    /// Load-balancing weight within its locality, at least 1.
    pub weight: u32,
    /// Health as the control plane sees it.
    pub health: Health,
    /// Metadata `envoy.transport_socket_match` has `tunnel: http`: reached through HBONE.
    pub tunnel: bool,
    /// Metadata `envoy.transport_socket_match` has `tlsMode: istio`: accepts Istio mTLS on its port.
    pub istio_mtls: bool,
    /// Identity the endpoint must prove (metadata `io.mesh.workload`, `identity`).
    pub identity: Option<SpiffeId>,
    /// Its address is a host's, which several workloads may have, each its own ports (metadata `io.mesh.workload`,
    /// `host: "true"`).
    pub host: bool,
    /// Workload behind the endpoint (metadata `istio`, `workload`).
    pub workload: Option<Arc<WorkloadRef>>,
    /// Live counters, kept over updates.
    pub runtime: Arc<EndpointRuntime>,
}

impl PartialEq for Endpoint {
    /// Equal configuration; live counters do not count.
    fn eq(&self, other: &Self) -> bool {
        self.address == other.address
            && self.weight == other.weight
            && self.health == other.health
            && self.tunnel == other.tunnel
            && self.istio_mtls == other.istio_mtls
            && self.identity == other.identity
            && self.host == other.host
            && self.workload == other.workload
    }
}

/// Region, zone and sub-zone, each possibly empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Locality {
    /// Region.
    pub region: Arc<str>,
    /// Zone.
    pub zone: Arc<str>,
    /// Sub-zone.
    pub sub_zone: Arc<str>,
}

/// Endpoints of one locality at one priority.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalityEndpoints {
    /// Where they are.
    pub locality: Locality,
    /// Priority; 0 is used first.
    pub priority: u32,
    /// Weight of the locality among those of its priority, if given (0 = no traffic).
    pub weight: Option<u32>,
    /// The endpoints.
    pub endpoints: Vec<Arc<Endpoint>>,
}

/// All endpoints of one cluster.
#[derive(Debug, Clone)]
pub struct LoadAssignment {
    /// Name of the assignment: the cluster's EDS service name.
    pub name: Arc<str>,
    /// By priority, lowest number first; within a priority in the order received.
    pub localities: Vec<LocalityEndpoints>,
    /// Overprovisioning factor in percent (Envoy's default 140).
    pub overprovisioning: u32,
    /// Live counters, kept over updates.
    pub runtime: Arc<ClusterRuntime>,
    levels: Vec<Level>,
}

impl PartialEq for LoadAssignment {
    /// Equal configuration; live counters do not count.
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
            && self.localities == other.localities
            && self.overprovisioning == other.overprovisioning
    }
}

impl LoadAssignment {
    /// An assignment without endpoints.
    pub fn empty(name: &str) -> Self {
        Self::new(Arc::from(name), Vec::new(), DEFAULT_OVERPROVISIONING, Arc::default())
    }

    /// Sorts endpoints for choosing. `overprovisioning` is in percent.
    pub fn new(
        name: Arc<str>,
        mut localities: Vec<LocalityEndpoints>,
        overprovisioning: u32,
        runtime: Arc<ClusterRuntime>,
    ) -> Self {
        localities.sort_by_key(|locality| locality.priority);
        LoadAssignment { levels: levels::levels(&localities), name, localities, overprovisioning, runtime }
    }

    /// By priority, lowest number first.
    pub(crate) fn levels(&self) -> &[Level] {
        &self.levels
    }

    /// Every endpoint, whatever its health.
    pub fn endpoints(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.localities.iter().flat_map(|l| l.endpoints.iter())
    }
}

/// Envoy's default `overprovisioning_factor`, percent.
pub const DEFAULT_OVERPROVISIONING: u32 = 140;

#[cfg(test)]
mod tests;
