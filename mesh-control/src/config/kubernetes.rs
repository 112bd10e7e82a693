//! Kubernetes objects, as far as a mesh looks at them.
//!
//! In: trees. Out: specs. Values that are not IP addresses where one is wanted are errors.

use std::net::IpAddr;

use serde::Deserialize;

use super::fields::{PortNumber, PortRef};
use super::{Findings, Labels};
use crate::yaml::FieldPath;

/// A Node: what counts of it stands in its metadata.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Node {}

/// `spec` of a Service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// How it is reached.
    #[serde(rename = "type")]
    pub kind: ServiceType,
    /// The address, or `None` for a headless service.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Option<String>,
    /// All addresses, the first equal to `clusterIP`.
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Vec<String>,
    /// Labels of its pods; empty = its endpoints are made otherwise.
    pub selector: Labels,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// DNS name behind an `ExternalName` service.
    pub external_name: Option<String>,
    /// Pods count whether ready or not.
    pub publish_not_ready_addresses: bool,
}

/// `spec.type` of a Service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum ServiceType {
    /// By its address.
    #[default]
    ClusterIP,
    /// Also by a port of every node.
    NodePort,
    /// Also by a load balancer.
    LoadBalancer,
    /// A DNS alias.
    ExternalName,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    /// Name; its prefix tells the protocol.
    #[serde(default)]
    pub name: String,
    /// The service's port.
    pub port: PortNumber,
    /// Transport.
    #[serde(default)]
    pub protocol: Transport,
    /// The pods' port; default: the same number.
    pub target_port: Option<PortRef>,
    /// Protocol, before what the name says.
    pub app_protocol: Option<String>,
}

/// Transport of a port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Transport {
    /// TCP.
    #[default]
    Tcp,
    /// UDP: not of this mesh.
    Udp,
    /// SCTP: not of this mesh.
    Sctp,
}

impl ServiceSpec {
    /// Addresses, none for a headless service.
    pub fn addresses(&self) -> Vec<IpAddr> {
        distinct(self.cluster_ip.iter().chain(&self.cluster_ips))
    }

    pub(super) fn check(&self, findings: &mut Findings) {
        let spec = FieldPath::of("spec");
        let fits = |text: &str| text.is_empty() || text == "None" || text.parse::<IpAddr>().is_ok();
        if let Some(text) = self.cluster_ip.as_deref().filter(|text| !fits(text)) {
            findings.error(spec.key("clusterIP"), format!("`{text}` is no IP address and not `None`"));
        }
        for (index, text) in self.cluster_ips.iter().enumerate().filter(|(_, text)| !fits(text)) {
            findings.error(spec.key("clusterIPs").index(index), format!("`{text}` is no IP address and not `None`"));
        }
        if self.kind == ServiceType::ExternalName && self.external_name.as_deref().is_none_or(str::is_empty) {
            findings.error(spec.key("externalName"), "an ExternalName service needs it");
        }
        if self.kind != ServiceType::ExternalName && self.ports.is_empty() {
            findings.error(spec.key("ports"), "a service needs at least one port");
        }
        for (index, port) in self.ports.iter().enumerate() {
            let path = spec.key("ports").index(index);
            if self.ports.len() > 1 && port.name.is_empty() {
                findings.error(path.key("name"), "every port needs a name when there are several");
            }
            let mut before = self.ports.iter().take(index);
            if before.clone().any(|other| other.port == port.port && other.protocol == port.protocol) {
                findings.error(path.key("port"), format!("port {} stands twice", port.port.0));
            } else if !port.name.is_empty() && before.any(|other| other.name == port.name) {
                findings.error(path.key("name"), format!("name `{}` stands twice", port.name));
            }
        }
    }
}

/// A Pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Pod {
    /// What is wished.
    pub spec: PodSpec,
    /// What is.
    pub status: PodStatus,
}

/// `spec` of a Pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// The node it runs on.
    pub node_name: Option<String>,
    /// Its service account; `default` when absent.
    pub service_account_name: Option<String>,
    /// It uses the node's network.
    pub host_network: bool,
    /// Containers.
    pub containers: Vec<Container>,
}

/// A container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    /// Ports, for services that name theirs.
    pub ports: Vec<ContainerPort>,
}

/// A container's port.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerPort {
    /// Name.
    #[serde(default)]
    pub name: String,
    /// Number.
    pub container_port: PortNumber,
}

/// `status` of a Pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
    pub phase: Option<String>,
    /// First address.
    #[serde(rename = "podIP")]
    pub pod_ip: Option<String>,
    /// All addresses.
    #[serde(rename = "podIPs")]
    pub pod_ips: Vec<PodIp>,
    /// Conditions; only `Ready` counts.
    pub conditions: Vec<Condition>,
}

/// One address of a Pod.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PodIp {
    /// The address.
    pub ip: String,
}

/// A condition.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Condition {
    /// Which.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
}

impl Pod {
    /// Addresses, the first as the pod's own first.
    pub fn addresses(&self) -> Vec<IpAddr> {
        distinct(self.status.pod_ip.iter().chain(self.status.pod_ips.iter().map(|address| &address.ip)))
    }

    /// Whether it has not ended.
    pub fn alive(&self) -> bool {
        !matches!(self.status.phase.as_deref(), Some("Succeeded" | "Failed"))
    }

    /// Whether it is ready; a pod without that condition is.
    pub fn ready(&self) -> bool {
        let mut conditions = self.status.conditions.iter();
        conditions.find(|condition| condition.kind == "Ready").is_none_or(|ready| ready.status == "True")
    }

    /// The number of a named container port.
    pub fn named_port(&self, name: &str) -> Option<u16> {
        let mut ports = self.spec.containers.iter().flat_map(|container| &container.ports);
        ports.find(|port| port.name == name).map(|port| port.container_port.0)
    }

    pub(super) fn check(&self, findings: &mut Findings) {
        let status = FieldPath::of("status");
        if let Some(text) = self.status.pod_ip.as_deref().filter(|text| !text.is_empty() && !is_address(text)) {
            findings.error(status.key("podIP"), format!("`{text}` is no IP address"));
        }
        for (index, address) in self.status.pod_ips.iter().enumerate().filter(|(_, address)| !is_address(&address.ip)) {
            let path = status.key("podIPs").index(index).key("ip");
            findings.error(path, format!("`{}` is no IP address", address.ip));
        }
    }
}

/// An EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSlice {
    /// Kind of its addresses.
    pub address_type: AddressType,
    /// Endpoints.
    #[serde(default)]
    pub endpoints: Vec<SliceEndpoint>,
    /// Ports of every endpoint.
    #[serde(default)]
    pub ports: Vec<SlicePort>,
}

/// Kind of a slice's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum AddressType {
    /// IPv4.
    IPv4,
    /// IPv6.
    IPv6,
    /// DNS names.
    #[serde(rename = "FQDN")]
    Fqdn,
}

/// One endpoint of a slice.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SliceEndpoint {
    /// Addresses of one endpoint; Kubernetes means the first.
    pub addresses: Vec<String>,
    /// Its state.
    #[serde(default)]
    pub conditions: SliceConditions,
    /// The pod behind it.
    pub target_ref: Option<TargetRef>,
    /// The node it runs on.
    pub node_name: Option<String>,
}

/// State of a slice's endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SliceConditions {
    /// Takes traffic; absent = yes.
    pub ready: Option<bool>,
}

/// What an endpoint belongs to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TargetRef {
    /// `Pod`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its namespace; default: the slice's.
    pub namespace: Option<String>,
}

/// A port of a slice.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SlicePort {
    /// Name of the service's port.
    #[serde(default)]
    pub name: Option<String>,
    /// Number; absent = every port.
    pub port: Option<PortNumber>,
    /// Transport.
    #[serde(default)]
    pub protocol: Transport,
}

impl EndpointSlice {
    pub(super) fn check(&self, findings: &mut Findings) {
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let path = FieldPath::of("endpoints").index(index).key("addresses");
            if endpoint.addresses.is_empty() {
                findings.error(path.clone(), "an endpoint needs an address");
            }
            for (index, text) in endpoint.addresses.iter().enumerate() {
                let fits = match self.address_type {
                    AddressType::IPv4 => text.parse::<std::net::Ipv4Addr>().is_ok(),
                    AddressType::IPv6 => text.parse::<std::net::Ipv6Addr>().is_ok(),
                    AddressType::Fqdn => true,
                };
                if !fits {
                    findings.error(path.index(index), format!("`{text}` is no {:?} address", self.address_type));
                }
            }
        }
        if self.address_type == AddressType::Fqdn {
            findings.warning(FieldPath::of("addressType"), "endpoints by DNS name are not supported yet, ignored");
        }
    }
}

fn is_address(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok()
}

fn distinct<'t>(texts: impl Iterator<Item = &'t String>) -> Vec<IpAddr> {
    let mut list = Vec::new();
    for address in texts.filter_map(|text| text.parse().ok()) {
        if !list.contains(&address) {
            list.push(address);
        }
    }
    list
}
