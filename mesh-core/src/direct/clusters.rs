//! The clusters by which the agents of both ends would know a direct connection: metrics take the service's name from them.
//!
//! In: the configuration of one end, and where the connection went. Out: the cluster, if the configuration still has it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{inbound, opaque};
use crate::resource::cluster::{Cluster, ClusterKind};
use crate::resource::listener::Terminal;
use crate::snapshot::Snapshot;

/// The client's: what it means by `to` when it gets to `endpoint`.
pub fn outbound_cluster(snapshot: &Snapshot, to: SocketAddr, endpoint: SocketAddr) -> Option<&Arc<Cluster>> {
    let unspecified = if to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    let Terminal::Tcp(proxy) = &opaque(snapshot.outbound(to)?, to, unspecified, false)?.terminal else { return None };
    let leads = |cluster: &&Arc<Cluster>| match cluster.kind {
        ClusterKind::OriginalDst { .. } => to == endpoint,
        _ => snapshot.endpoints(cluster).endpoints().any(|one| one.address == endpoint),
    };
    proxy.clusters.entries().filter_map(|entry| snapshot.cluster(&entry.name)).find(leads)
}

/// The server's, for what comes from `source` to `endpoint`.
pub fn inbound_cluster(snapshot: &Snapshot, endpoint: SocketAddr, source: IpAddr) -> Option<&Arc<Cluster>> {
    let Terminal::Tcp(proxy) = &inbound(snapshot.inbound()?, endpoint, source)?.terminal else { return None };
    proxy.clusters.entries().find_map(|entry| snapshot.cluster(&entry.name))
}
