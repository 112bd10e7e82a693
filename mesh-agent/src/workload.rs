//! What the agent knows of one enrolled local workload. Built by `app`, shared as `Arc<Workload>`, never changed: a
//! workload that changes is withdrawn and enrolled anew.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use mesh_common::host;
use mesh_core::identity::{IdentityError, SpiffeId};

use crate::net::netns::NetNs;
use crate::settings::host::HostPlace;
use crate::settings::probes::Probe;
use crate::settings::{ExistingConnections, OnAgentLoss, SameNode, Shortcuts, Udp, WorkloadSettings};
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
    /// Which part of it is the workload's, where the namespace is the host's.
    pub host: Option<HostPlace>,
    /// Its addresses on interfaces other than loopback, found at enrolment; the first is its main address.
    pub addresses: Vec<IpAddr>,
    /// It as metrics and baggage show it.
    pub peer: Arc<Peer>,
    /// What happens to its new connections while no agent is there.
    pub on_agent_loss: OnAgentLoss,
    /// What becomes of connections that it has when it is enrolled.
    pub existing_connections: ExistingConnections,
    /// How it and workloads of the same node connect to each other.
    pub same_node: SameNode,
    /// Which UDP may leave it.
    pub udp: Udp,
    /// Whether what goes between it and the agent may take a shortcut past TCP.
    pub shortcuts: Shortcuts,
    /// What the orchestrator asks it in the open, from the node.
    pub probes: Vec<Probe>,
    /// Where the files are that its TLS settings name.
    pub tls_files: Option<PathBuf>,
}

impl Workload {
    /// Describes a workload found in its network namespace. Fails if its names make no SPIFFE id.
    pub fn new(
        id: u32,
        settings: &WorkloadSettings,
        cluster_id: &Arc<str>,
        trust_domain: &str,
        netns: Arc<NetNs>,
        addresses: Vec<IpAddr>,
    ) -> Result<Workload, IdentityError> {
        let identity = SpiffeId::new(trust_domain, &settings.namespace, &settings.service_account)?;
        let peer = Arc::new(peer(settings, cluster_id, &identity));
        Ok(Workload {
            id,
            name: settings.name.as_str().into(),
            namespace: settings.namespace.as_str().into(),
            service_account: settings.service_account.as_str().into(),
            identity,
            labels: settings.labels.clone(),
            netns,
            host: settings.host(),
            addresses,
            peer,
            on_agent_loss: settings.on_agent_loss,
            existing_connections: settings.existing_connections,
            same_node: settings.same_node,
            udp: settings.udp,
            shortcuts: settings.shortcuts,
            // All of them: the settings were checked.
            probes: settings.probes.iter().filter_map(|probe| probe.get().ok()).collect(),
            tls_files: settings.tls_files.clone(),
        })
    }

    /// By which the kernel's maps have it: its namespace's cookie, or a number of its own.
    pub fn number(&self) -> u64 {
        if self.host.is_some() { host::key(&self.key()) } else { self.netns.cookie() }
    }

    /// Whether this is an address of the workload's own. On the host others have the same addresses, and other ports.
    pub fn has(&self, at: SocketAddr) -> bool {
        self.addresses.contains(&at.ip().to_canonical())
            && self.host.as_ref().is_none_or(|host| host.ports.contains(&at.port()))
    }

    /// `namespace/name`, as logs and admin pages name it.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// Istio's rules for the canonical service and revision: explicit labels first, then Kubernetes' recommended ones.
fn peer(settings: &WorkloadSettings, cluster_id: &Arc<str>, identity: &SpiffeId) -> Peer {
    let label = |names: &[&str]| names.iter().find_map(|name| settings.labels.get(*name)).map(String::as_str);
    let workload = settings.workload_name.as_deref().unwrap_or(&settings.name);
    let canonical_service = label(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]);
    let canonical_revision = label(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]);
    Peer {
        workload: workload.into(),
        namespace: settings.namespace.as_str().into(),
        principal: identity.as_str().into(),
        app: label(&["app"]).unwrap_or_default().into(),
        version: label(&["version"]).unwrap_or_default().into(),
        canonical_service: canonical_service.unwrap_or(workload).into(),
        canonical_revision: canonical_revision.unwrap_or("latest").into(),
        cluster: cluster_id.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer_of(labels: &[(&str, &str)], workload_name: Option<&str>) -> Peer {
        let settings = WorkloadSettings {
            name: "reviews-v1-abc".into(),
            namespace: "shop".into(),
            service_account: "reviews".into(),
            labels: labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
            netns: None,
            pid: None,
            cgroup: None,
            ports: Vec::new(),
            workload_name: workload_name.map(Into::into),
            on_agent_loss: OnAgentLoss::Closed,
            probes: Vec::new(),
            existing_connections: ExistingConnections::Keep,
            same_node: SameNode::Direct,
            udp: Udp::Allow,
            shortcuts: Shortcuts::Auto,
            tls_files: None,
        };
        peer(&settings, &"c1".into(), &SpiffeId::new("cluster.local", "shop", "reviews").unwrap())
    }

    #[test]
    fn metrics_name_the_workload_as_istio_does() {
        let peer = peer_of(&[("app", "reviews"), ("version", "v1")], Some("reviews-v1"));
        assert_eq!(
            peer,
            Peer {
                workload: "reviews-v1".into(),
                namespace: "shop".into(),
                principal: "spiffe://cluster.local/ns/shop/sa/reviews".into(),
                app: "reviews".into(),
                version: "v1".into(),
                canonical_service: "reviews".into(),
                canonical_revision: "v1".into(),
                cluster: "c1".into(),
            }
        );
        let bare = peer_of(&[], None);
        assert_eq!((&*bare.workload, &*bare.canonical_service), ("reviews-v1-abc", "reviews-v1-abc"));
        assert_eq!((&*bare.app, &*bare.canonical_revision), ("", "latest"));
        let explicit = peer_of(
            &[
                ("app", "x"),
                ("app.kubernetes.io/name", "y"),
                ("service.istio.io/canonical-name", "z"),
                ("version", "2"),
            ],
            None,
        );
        assert_eq!((&*explicit.canonical_service, &*explicit.canonical_revision), ("z", "2"));
    }
}
