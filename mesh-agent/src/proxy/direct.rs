//! The labels of connections that go without the agent: those that it would have given them at both ends. In: who connects to
//! whom, and both configurations. Out: Istio's labels. Nobody has encrypted anything, so `connection_security_policy` is
//! what it is in plaintext; both identities are known all the same, by their namespaces.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_core::Snapshot;
use mesh_core::direct::{inbound_cluster, outbound_cluster};

use super::chosen::Side;
use super::report::service;
use crate::telemetry::{ConnLabels, Peer, Protocol, Reporter, Security};
use crate::workload::Workload;

/// One end of a direct connection.
#[derive(Debug, Clone)]
pub struct DirectEnd {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Its configuration, once there is one.
    pub snapshot: Option<Arc<Snapshot>>,
}

/// What the client's side reports, and what the server's does. `to`: where the client wanted to go; `endpoint`: where it got
/// to. `None`: a workload of which nothing is known any more.
pub fn direct_labels(
    client: Option<&DirectEnd>,
    server: Option<&DirectEnd>,
    to: SocketAddr,
    endpoint: SocketAddr,
) -> [ConnLabels; 2] {
    let peer = |end: Option<&DirectEnd>| end.map_or_else(|| Arc::new(Peer::unknown()), |end| end.workload.peer.clone());
    let (source, destination) = (peer(client), peer(server));
    let outbound = || outbound_cluster(client?.snapshot.as_deref()?, to, endpoint);
    let inbound = || {
        let mut own = client?.workload.addresses.iter();
        let source = own.find(|ip| ip.is_ipv4() == endpoint.is_ipv4())?;
        inbound_cluster(server?.snapshot.as_deref()?, endpoint, *source)
    };
    [
        (Reporter::Source, Security::Unknown, service(&source, Side::Outbound, outbound().map(|cluster| &**cluster))),
        (
            Reporter::Destination,
            Security::None,
            service(&destination, Side::Inbound, inbound().map(|cluster| &**cluster)),
        ),
    ]
    .map(|(reporter, security, (service_host, service_name, service_namespace))| ConnLabels {
        reporter,
        source: source.clone(),
        destination: destination.clone(),
        service_host,
        service_name,
        service_namespace,
        protocol: Protocol::Tcp,
        security,
    })
}
