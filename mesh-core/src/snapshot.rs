//! The configuration in force for one workload: immutable, shared by reference count.
//!
//! In: a [`crate::store::Store`]'s warmed resources. Out: lookups by hash. Readers take one
//! snapshot per connection or request and pass it down; nothing in it ever changes but the live
//! counters of endpoints.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, LazyLock};

use crate::resource::cluster::{Cluster, ClusterKind};
use crate::resource::endpoint::LoadAssignment;
use crate::resource::listener::{Direction, Listener};
use crate::resource::route::RouteTable;
use crate::shards::Shards;

/// Name of Istio's catch-all outbound listener.
pub const VIRTUAL_OUTBOUND: &str = "virtualOutbound";
/// Name of Istio's inbound listener.
pub const VIRTUAL_INBOUND: &str = "virtualInbound";
/// Name of Istio's cluster that leads nowhere.
pub const BLACK_HOLE: &str = "BlackHoleCluster";

/// One workload's configuration. Cloning shares everything.
#[derive(Debug, Default, Clone)]
pub struct Snapshot {
    pub(crate) listeners: Shards<Listener>,
    pub(crate) clusters: Shards<Cluster>,
    pub(crate) endpoints: Shards<LoadAssignment>,
    pub(crate) routes: Shards<RouteTable>,
    outbound: Arc<HashMap<SocketAddr, Arc<Listener>>>,
}

static NO_ENDPOINTS: LazyLock<LoadAssignment> = LazyLock::new(|| LoadAssignment::empty(""));

impl Snapshot {
    /// The outbound listener for an original destination: that of the address and port, else that
    /// of every address of the family and the port, else `virtualOutbound`.
    pub fn outbound(&self, destination: SocketAddr) -> Option<&Arc<Listener>> {
        let ip = destination.ip().to_canonical();
        let any = match ip {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let port = destination.port();
        self.outbound
            .get(&SocketAddr::new(ip, port))
            .or_else(|| self.outbound.get(&SocketAddr::new(any, port)))
            .or_else(|| self.listeners.get(VIRTUAL_OUTBOUND))
    }

    /// The inbound listener.
    pub fn inbound(&self) -> Option<&Arc<Listener>> {
        self.listeners.get(VIRTUAL_INBOUND)
    }

    /// A cluster by name.
    pub fn cluster(&self, name: &str) -> Option<&Arc<Cluster>> {
        self.clusters.get(name)
    }

    /// The endpoints of a cluster: inline, from EDS, or none.
    pub fn endpoints<'a>(&'a self, cluster: &'a Cluster) -> &'a LoadAssignment {
        match &cluster.kind {
            ClusterKind::Static(assignment) => assignment,
            _ => self.assignment(cluster).map_or(&NO_ENDPOINTS, AsRef::as_ref),
        }
    }

    /// The endpoints of a cluster that has them from EDS.
    pub fn assignment(&self, cluster: &Cluster) -> Option<&Arc<LoadAssignment>> {
        match &cluster.kind {
            ClusterKind::Eds { service_name } => self.endpoints.get(service_name),
            _ => None,
        }
    }

    /// A route table by its RDS name.
    pub fn routes(&self, name: &str) -> Option<&Arc<RouteTable>> {
        self.routes.get(name)
    }

    /// Every listener, in no order (admin).
    pub fn listeners(&self) -> impl Iterator<Item = &Arc<Listener>> {
        self.listeners.values()
    }

    /// Every cluster, in no order (admin).
    pub fn clusters(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        self.clusters.values()
    }

    /// Every route table from RDS, in no order (admin).
    pub fn route_tables(&self) -> impl Iterator<Item = &Arc<RouteTable>> {
        self.routes.values()
    }

    /// Sorts listeners by address anew, after one of them changed. Of two with the same address the
    /// one with the lower name serves, so that the order of updates does not matter.
    pub(crate) fn index_listeners(&mut self) {
        let mut outbound: HashMap<SocketAddr, Arc<Listener>> = HashMap::new();
        for listener in self.listeners.values() {
            if listener.bind_to_port || listener.direction == Direction::Inbound {
                continue;
            }
            for address in &listener.addresses {
                let slot = outbound.entry(*address).or_insert_with(|| listener.clone());
                if listener.name < slot.name {
                    *slot = listener.clone();
                }
            }
        }
        self.outbound = Arc::new(outbound);
    }
}
