//! What the agent knows of one enrolled local workload. Built by `app`, shared as `Arc<Workload>`, never changed: a
//! workload that changes is withdrawn and enrolled anew.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_core::identity::SpiffeId;

use crate::net::netns::NetNs;
use crate::telemetry::Peer;

/// A local workload: a pod, or a process group with a network namespace of its own.
#[derive(Debug)]
pub struct Workload {
    /// Unique in this process, never reused: the key of live configuration, kernel entries and commands.
    pub id: u32,
    /// Pod name.
    pub name: Arc<str>,
    /// Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Kubernetes service account.
    pub service_account: Arc<str>,
    /// The identity by which it speaks and is spoken to.
    pub identity: SpiffeId,
    /// Kubernetes labels.
    pub labels: BTreeMap<String, String>,
    /// Its network namespace, opened once and kept: a reused pid or path cannot change it.
    pub netns: Arc<NetNs>,
    /// Its addresses on interfaces other than loopback, found at enrolment; the first is its main address.
    pub addresses: Vec<IpAddr>,
    /// It as metrics and baggage show it.
    pub peer: Arc<Peer>,
}

impl Workload {
    /// `namespace/name`, as logs and admin pages name it.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}
