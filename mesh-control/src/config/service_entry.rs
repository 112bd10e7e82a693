//! Istio's ServiceEntry and WorkloadEntry, as far as they are implemented.
//!
//! In: their `spec`. Out: [`ServiceEntry`], [`WorkloadEntry`]. Checked here: what needs no other object.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use mesh_core::identity::SpiffeId;
use serde::Deserialize;

use super::fields::PortNumber;
use super::virtual_service::check_host;
use super::{Findings, Labels};
use crate::yaml::FieldPath;

/// `spec` of a ServiceEntry.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceEntry {
    /// DNS names.
    pub hosts: Vec<String>,
    /// Addresses or CIDR ranges it is caught at; empty = any address (HTTP and TLS tell by name).
    pub addresses: Vec<String>,
    /// Ports.
    pub ports: Vec<EntryPort>,
    /// Inside or outside of the mesh.
    pub location: Location,
    /// Where its endpoints come from.
    pub resolution: Resolution,
    /// Endpoints.
    pub endpoints: Vec<WorkloadEntry>,
    /// Selects pods and workload entries of the namespace as endpoints.
    pub workload_selector: Option<WorkloadSelector>,
    /// Namespaces that see it: `.`, `*` or names; empty = all.
    pub export_to: Vec<String>,
    /// SPIFFE ids its endpoints may have.
    pub subject_alt_names: Vec<String>,
}

/// A port of a ServiceEntry.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EntryPort {
    /// Number.
    pub number: PortNumber,
    /// HTTP, HTTPS, HTTP2, GRPC, MONGO, TCP, TLS …; absent = detected.
    #[serde(default)]
    pub protocol: String,
    /// Name.
    pub name: String,
    /// The endpoints' port; default: the same.
    pub target_port: Option<PortNumber>,
}

/// Inside or outside of the mesh.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Location {
    /// Outside: never tunnelled.
    #[default]
    MeshExternal,
    /// Inside.
    MeshInternal,
}

/// Where endpoints come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Resolution {
    /// The connection's own destination.
    #[default]
    None,
    /// The given addresses.
    Static,
    /// DNS, every address.
    Dns,
    /// DNS, one address at a time.
    DnsRoundRobin,
    /// DNS by the request's host.
    DynamicDns,
}

/// Selects workloads by label.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadSelector {
    /// Labels they must have.
    pub labels: Labels,
}

/// `spec` of a WorkloadEntry, also an endpoint of a ServiceEntry.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadEntry {
    /// IP address or DNS name.
    pub address: String,
    /// Port numbers by the service's port names.
    pub ports: BTreeMap<String, PortNumber>,
    /// Labels.
    pub labels: Labels,
    /// Share of the traffic; 0 or absent = 1.
    pub weight: u32,
    /// Service account of its identity; `default` when absent.
    pub service_account: String,
    /// Network that the address is on; empty = the one of everybody else.
    pub network: String,
    /// `region/zone/subzone`, or the first one or two of them.
    pub locality: String,
}

/// One address of a ServiceEntry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EntryAddress {
    /// A single one.
    Single(IpAddr),
    /// A range.
    Range(IpNet),
}

/// Parses an address or CIDR range; a range of one address is that address.
pub fn parse_address(text: &str) -> Option<EntryAddress> {
    if let Ok(address) = text.parse() {
        return Some(EntryAddress::Single(address));
    }
    let net: IpNet = text.parse().ok()?;
    if net.prefix_len() == net.max_prefix_len() {
        return Some(EntryAddress::Single(net.addr()));
    }
    Some(EntryAddress::Range(net.trunc()))
}

impl ServiceEntry {
    pub(super) fn check(&self, findings: &mut Findings) {
        let spec = FieldPath::of("spec");
        if self.hosts.is_empty() {
            findings.error(spec.key("hosts"), "at least one host is needed");
        }
        let by_dns = matches!(self.resolution, Resolution::Dns | Resolution::DnsRoundRobin);
        for (index, host) in self.hosts.iter().enumerate() {
            let path = spec.key("hosts").index(index);
            if host == "*" {
                findings.error(path, "`*` is too wide for a service");
                continue;
            }
            check_host(host, &path, findings);
            if host.starts_with('*') && by_dns && self.endpoints.is_empty() {
                findings.error(
                    path,
                    "a wildcard host cannot be resolved by DNS; use resolution NONE, STATIC or DYNAMIC_DNS",
                );
            }
        }
        for (index, text) in self.addresses.iter().enumerate().filter(|(_, text)| parse_address(text).is_none()) {
            findings.error(spec.key("addresses").index(index), format!("`{text}` is no IP address or CIDR range"));
        }
        if self.ports.is_empty() {
            findings.error(spec.key("ports"), "at least one port is needed");
        }
        for (index, port) in self.ports.iter().enumerate() {
            if self.ports.iter().take(index).any(|other| other.number == port.number) {
                let path = spec.key("ports").index(index).key("number");
                findings.error(path, format!("port {} stands twice", port.number.0));
            }
        }
        if self.workload_selector.is_some() && !self.endpoints.is_empty() {
            findings.error(spec.key("workloadSelector"), "only one of endpoints and workloadSelector may be given");
        }
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let path = spec.key("endpoints").index(index).key("address");
            endpoint.check_place(&spec.key("endpoints").index(index), findings);
            if endpoint.address.is_empty() {
                findings.error(path, "an endpoint needs an address");
            } else if self.resolution == Resolution::Static && endpoint.address.parse::<IpAddr>().is_err() {
                findings.error(path, format!("`{}` is no IP address, as resolution STATIC wants", endpoint.address));
            }
        }
        if self.resolution == Resolution::DynamicDns {
            findings.warning(
                spec.key("resolution"),
                "DYNAMIC_DNS is not supported yet; connections pass to their own destination",
            );
        }
        for (index, name) in self.subject_alt_names.iter().enumerate() {
            if name.parse::<SpiffeId>().is_err() {
                let path = spec.key("subjectAltNames").index(index);
                findings.warning(path, format!("`{name}` is no SPIFFE id; others are not supported yet, ignored"));
            }
        }
    }
}

impl WorkloadEntry {
    fn check_place(&self, path: &FieldPath, findings: &mut Findings) {
        if !self.network.is_empty() {
            let why =
                "nodes are told; gateways between networks are not supported yet, so clients go there as to any other";
            findings.warning(path.key("network"), why);
        }
        if self.locality.split('/').count() > 3 {
            findings.warning(path.key("locality"), "has more parts than region/zone/subzone; the rest is left out");
        }
    }

    pub(super) fn check(&self, findings: &mut Findings) {
        self.check_place(&FieldPath::of("spec"), findings);
        let path = FieldPath::of("spec").key("address");
        if self.address.is_empty() {
            findings.error(path, "a workload needs an address");
        } else if self.address.parse::<IpAddr>().is_err() {
            findings.warning(path, "a workload by DNS name or UNIX socket is not supported yet, ignored");
        }
    }
}
