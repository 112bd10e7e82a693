//! Endpoints that a ServiceEntry lists itself: workloads of which nodes are told, and that have no object of their own.
//!
//! In: a ServiceEntry. Out: [`Inline`]s, one for each address, as Istio makes workloads of them.

use std::collections::HashSet;
use std::sync::Arc;

use mesh_core::identity::SpiffeId;
use mesh_core::resource::endpoint::Locality;

use super::MeshOptions;
use super::workload::{canonical, locality, redirected};
use crate::config::service_entry::{Resolution, ServiceEntry, WorkloadEntry};
use crate::config::{Labels, Object};

/// An endpoint that a ServiceEntry lists.
#[derive(Debug, PartialEq)]
pub struct Inline {
    /// Name of the ServiceEntry.
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// IP address, or DNS name.
    pub address: Arc<str>,
    /// The network that the address is on; empty = the one of everybody else.
    pub network: Arc<str>,
    /// Where it is.
    pub locality: Locality,
    /// Service account of its identity; empty = `default`.
    pub service_account: Arc<str>,
    /// It is reached through a tunnel.
    pub meshed: bool,
    /// Canonical service.
    pub canonical_name: Arc<str>,
    /// Canonical revision.
    pub canonical_revision: Arc<str>,
    /// Labels of the ServiceEntry, by which AuthorizationPolicies select it.
    pub labels: Arc<Labels>,
    /// Labels of the endpoint, by which PeerAuthentications do.
    pub own_labels: Arc<Labels>,
    /// Share of the traffic.
    pub weight: u32,
    /// Hosts that it serves.
    pub hosts: Vec<Arc<str>>,
    /// Ports of the service, and its own.
    pub ports: Vec<(u16, u16)>,
}

/// The endpoints of a ServiceEntry. Without any, each of its hosts that DNS resolves is one. Of several at one address the
/// first counts; sockets of UNIX are nobody's.
pub(super) fn endpoints(options: &MeshOptions, object: &Object, spec: &ServiceEntry) -> Vec<Inline> {
    let host = |host: &String| -> Arc<str> { options.full_host(host, &object.key.namespace).into() };
    let by_dns = matches!(spec.resolution, Resolution::Dns | Resolution::DnsRoundRobin);
    let hosts: Vec<Arc<str>> = spec.hosts.iter().filter(|host| !host.starts_with('*')).map(host).collect();
    let mut seen = HashSet::new();
    if spec.endpoints.is_empty() && spec.workload_selector.is_none() && by_dns {
        let implicit = hosts.iter().filter(|host| seen.insert((*host).clone())).map(|host| {
            let entry = WorkloadEntry { address: host.to_string(), ..WorkloadEntry::default() };
            one(options, object, spec, &entry, vec![host.clone()])
        });
        return implicit.collect();
    }
    let listed =
        spec.endpoints.iter().filter(|entry| !entry.address.contains('/') && seen.insert((*entry.address).into()));
    listed.map(|entry| one(options, object, spec, entry, hosts.clone())).collect()
}

fn one(
    options: &MeshOptions,
    object: &Object,
    spec: &ServiceEntry,
    entry: &WorkloadEntry,
    hosts: Vec<Arc<str>>,
) -> Inline {
    let (name, namespace) = (object.key.name.clone(), object.key.namespace.clone());
    let account = if entry.service_account.is_empty() { "default" } else { &entry.service_account };
    let identity = SpiffeId::new(&options.trust_domain, &namespace, account);
    let (canonical_name, canonical_revision) = canonical(&object.metadata.labels, &name);
    let ports = spec.ports.iter().map(|port| {
        let target = entry.ports.get(&port.name).copied().or(port.target_port).unwrap_or(port.number);
        (port.number.0, target.0)
    });
    Inline {
        address: entry.address.as_str().into(),
        network: entry.network.as_str().into(),
        locality: locality(&entry.locality),
        service_account: entry.service_account.as_str().into(),
        meshed: redirected(&object.metadata) && identity.is_ok(),
        canonical_name,
        canonical_revision,
        labels: Arc::new(object.metadata.labels.clone()),
        own_labels: Arc::new(entry.labels.clone()),
        weight: entry.weight.max(1),
        hosts,
        ports: ports.collect(),
        name,
        namespace,
    }
}
