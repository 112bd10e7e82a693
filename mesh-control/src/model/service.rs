//! A service: a host with addresses, ports and endpoints, whatever kind of object it comes from.

use std::sync::Arc;

use mesh_core::identity::SpiffeId;

use super::authentication::MtlsMode;
use super::protocol::Protocol;
use super::visibility::Visibility;
use super::workload::Workload;
use crate::config::service_entry::EntryAddress;
use crate::config::{Key, Labels};

/// A service.
#[derive(Debug, PartialEq)]
pub struct Service {
    /// Full host, possibly with a leading `*.` (ServiceEntry).
    pub host: Arc<str>,
    /// Name in metrics: the Kubernetes service's, or the host.
    pub name: Arc<str>,
    /// Namespace of its object.
    pub namespace: Arc<str>,
    /// Where it is caught; empty for a headless service and for hosts told by name only.
    pub addresses: Vec<EntryAddress>,
    /// Ports in the order of the object.
    pub ports: Vec<Port>,
    /// Where endpoints come from.
    pub resolution: Resolution,
    /// A Kubernetes service without address: clients dial its pods.
    pub headless: bool,
    /// Of Kubernetes, which gives it short names.
    pub kubernetes: bool,
    /// Outside of the mesh.
    pub external: bool,
    /// Who sees it.
    pub visibility: Visibility,
    /// SPIFFE ids its endpoints may have beside those of its workloads.
    pub sans: Vec<SpiffeId>,
    /// These and all other names that were given, as they were written.
    pub alt_names: Vec<String>,
    /// A connection goes where it was going, whoever is there, because its object says so.
    pub passthrough: bool,
    /// The object it comes from.
    pub origin: Key,
}

/// Where endpoints come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resolution {
    /// They are listed.
    Static,
    /// The connection's own destination.
    Passthrough,
    /// DNS, every address.
    Dns,
    /// DNS, one address at a time.
    DnsRoundRobin,
}

/// A port of a service.
#[derive(Debug, PartialEq)]
pub struct Port {
    /// Number.
    pub number: u16,
    /// Name, possibly empty.
    pub name: Arc<str>,
    /// What it speaks.
    pub protocol: Protocol,
    /// The endpoints' port, as the object says it; `None`: each says its own.
    pub target: Option<u16>,
    /// Its endpoints, ordered by address and port.
    pub endpoints: Vec<Endpoint>,
}

/// An endpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    /// IP address, or a DNS name where the resolution allows it.
    pub address: Arc<str>,
    /// Port.
    pub port: u16,
    /// Share of the traffic, at least 1.
    pub weight: u32,
    /// Labels, which subsets select.
    pub labels: Arc<Labels>,
    /// What runs there, when it is known.
    pub workload: Option<Arc<Workload>>,
    /// Whether a tunnel may be used: the address is one of the workload's own, and the port wants no plaintext (DISABLE).
    pub tunnel: bool,
}

/// Label by which Istio's injector says that a workload's sidecar takes mutual TLS at the workload's ports.
const TLS_MODE: &str = "security.istio.io/tlsMode";

impl Endpoint {
    /// Whether a sidecar of Istio's takes its mutual TLS there, and the port does not forbid it (DISABLE).
    pub fn has_sidecar(&self) -> bool {
        let labelled = self.labels.get(TLS_MODE).is_some_and(|mode| mode == "istio");
        let open = |workload: &Arc<Workload>| workload.mtls.of_port(self.port) != MtlsMode::Disable;
        !self.tunnel && labelled && self.workload.as_ref().is_some_and(open)
    }
}

impl Service {
    /// The port of a number.
    pub fn port(&self, number: u16) -> Option<&Port> {
        self.ports.iter().find(|port| port.number == number)
    }

    /// Whether both are the same, whatever their endpoints.
    pub fn same_but_endpoints(&self, other: &Service) -> bool {
        let Service { host, name, namespace, addresses, ports, resolution, headless, kubernetes, external, .. } = self;
        let Service { visibility, sans, alt_names, passthrough, origin, .. } = self;
        let same_port = |(one, other): (&Port, &Port)| {
            let Port { number, name, protocol, target, endpoints: _ } = one;
            (number, name, protocol, target) == (&other.number, &other.name, &other.protocol, &other.target)
        };
        (host, name, namespace, addresses) == (&other.host, &other.name, &other.namespace, &other.addresses)
            && (resolution, headless, kubernetes) == (&other.resolution, &other.headless, &other.kubernetes)
            && (external, visibility, sans) == (&other.external, &other.visibility, &other.sans)
            && (alt_names, passthrough, origin) == (&other.alt_names, &other.passthrough, &other.origin)
            && ports.len() == other.ports.len()
            && ports.iter().zip(&other.ports).all(same_port)
    }

    /// Single addresses, no ranges.
    pub fn single_addresses(&self) -> impl Iterator<Item = std::net::IpAddr> {
        self.addresses.iter().filter_map(|address| match address {
            EntryAddress::Single(address) => Some(*address),
            EntryAddress::Range(_) => None,
        })
    }
}

/// Whether labels include all of a selector's.
pub fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Orders endpoints and takes out repeated addresses, so that the same endpoints always read the same.
pub(super) fn normalise(endpoints: &mut Vec<Endpoint>) {
    endpoints.sort_by(|a, b| (&a.address, a.port).cmp(&(&b.address, b.port)));
    endpoints.dedup_by(|a, b| a.address == b.address && a.port == b.port);
}
