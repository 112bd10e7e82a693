//! Who is in the mesh (`istio.workload.Address`, WDS): workloads and services.
//!
//! In: the message. Out: an [`Address`] with typed addresses and identity, or a refusal.

mod parse;

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::identity::SpiffeId;
use crate::resource::endpoint::Locality;

pub use parse::{MAX_ADDRESSES, MAX_NAME_BYTES, MAX_POLICIES, MAX_PORTS, MAX_SERVICES};

/// One resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A workload.
    Workload(Box<Workload>),
    /// A service.
    Service(Box<Service>),
}

/// A pod, or another process with a place in the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Its name in xDS, e.g. `cluster//Pod/namespace/name`.
    pub uid: Arc<str>,
    /// Name of the pod or entry.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Its addresses; IPv4 as such.
    pub addresses: Box<[IpAddr]>,
    /// A DNS name instead of addresses; empty = none.
    pub hostname: Arc<str>,
    /// Network that the addresses are on; empty = the default one.
    pub network: Arc<str>,
    /// How it is reached.
    pub tunnel: Tunnel,
    /// Of what its identity is made.
    pub identity: Identity,
    /// Its node; empty = unknown.
    pub node: Arc<str>,
    /// Canonical service.
    pub canonical_name: Arc<str>,
    /// Canonical revision.
    pub canonical_revision: Arc<str>,
    /// What made it.
    pub kind: WorkloadKind,
    /// Name of what made it.
    pub workload_name: Arc<str>,
    /// It speaks the tunnel protocol by itself.
    pub native_tunnel: bool,
    /// All traffic to it has to pass a waypoint.
    pub waypoint: bool,
    /// Services it is an endpoint of, by `namespace/hostname`.
    pub services: Box<[Membership]>,
    /// Keys (`namespace/name`) of the policies that select it.
    pub policies: Box<[Arc<str>]>,
    /// Whether it takes traffic.
    pub healthy: bool,
    /// Cluster id.
    pub cluster: Arc<str>,
    /// Where it runs.
    pub locality: Locality,
    /// Its addresses are its node's and name no workload.
    pub host_network: bool,
    /// Share of the traffic; 0 = none.
    pub capacity: u32,
}

/// The parts of a workload's identity, of which the control plane may leave out the mesh's defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Trust domain; empty = the mesh's own.
    pub trust_domain: Arc<str>,
    /// Service account.
    pub service_account: Arc<str>,
}

/// How a workload is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tunnel {
    /// As it is.
    None,
    /// Through HBONE.
    Hbone,
    /// By the mutual TLS of Istio's sidecars.
    LegacyMtls,
}

/// What made a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WorkloadKind {
    /// A Deployment or the like.
    Deployment,
    /// A CronJob.
    CronJob,
    /// Nothing else.
    Pod,
    /// A Job.
    Job,
}

/// A service by `namespace/hostname`, with the ports that the workload serves of it.
pub type Membership = (Arc<str>, Box<[Port]>);

/// A port of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Port {
    /// The service's.
    pub service: u16,
    /// The workload's; `None` = each workload says its own.
    pub target: Option<u16>,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// `namespace/hostname`: its name in xDS.
    pub key: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Fully qualified name.
    pub hostname: Arc<str>,
    /// Addresses and ranges of addresses with their networks; none for a headless service.
    pub addresses: Box<[(Arc<str>, IpNet)]>,
    /// Ports.
    pub ports: Box<[Port]>,
    /// Identities its endpoints may have beside their own.
    pub subject_alt_names: Box<[Arc<str>]>,
    /// All traffic to it has to pass a waypoint.
    pub waypoint: bool,
}

impl Address {
    /// Its name in xDS.
    pub fn key(&self) -> &Arc<str> {
        match self {
            Address::Workload(workload) => &workload.uid,
            Address::Service(service) => &service.key,
        }
    }
}

impl Workload {
    /// Whether it is a pod of Kubernetes, by its uid: its addresses are its own, while entries may share theirs.
    pub fn is_pod(&self) -> bool {
        let mut parts = self.uid.split('/').skip(1);
        parts.next() == Some("") && parts.next() == Some("Pod")
    }

    /// Its identity; `own` is the mesh's trust domain. `None` where its names make none.
    pub fn identity(&self, own: &str) -> Option<SpiffeId> {
        let said = &self.identity.trust_domain;
        let trust_domain = if said.is_empty() { own } else { said };
        SpiffeId::new(trust_domain, &self.namespace, &self.identity.service_account).ok()
    }
}

#[cfg(test)]
mod tests;
