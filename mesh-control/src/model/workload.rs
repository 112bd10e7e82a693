//! Workloads: pods and workload entries, with identity and the names telemetry uses.
//!
//! In: objects. Out: [`Workloads`] with lookups by name, address and label.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_core::identity::SpiffeId;
use mesh_core::resource::endpoint::Locality;

use super::MeshOptions;
use super::authentication::{Authentication, Mtls};
use super::service::selects;
use crate::config::kubernetes::Pod;
use crate::config::service_entry::WorkloadEntry;
use crate::config::{Body, Labels, Metadata, Object};
use crate::problem::{Problem, Severity};
use crate::source::Objects;
use crate::yaml::FieldPath;

/// Annotation of a pod that is in the mesh, as Istio's ambient mode sets it.
pub const REDIRECTION: &str = "ambient.istio.io/redirection";
/// Label of a workload that ends tunnels itself, as Istio's sidecars do; a list of their kinds.
const TUNNEL: &str = "networking.istio.io/tunnel";
/// Annotation of a WorkloadEntry with the node that runs it.
pub const NODE: &str = "mesh.io/node";

/// Labels of a node that say where it stands.
const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";
const SUBZONE: &str = "topology.istio.io/subzone";

/// A workload.
#[derive(Debug, PartialEq, Eq)]
pub struct Workload {
    /// Name of the pod or entry.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name of what made it: the deployment, or its own.
    pub workload_name: Arc<str>,
    /// What made it.
    pub owner: Owner,
    /// It uses its node's addresses.
    pub host_network: bool,
    /// Canonical service.
    pub canonical_name: Arc<str>,
    /// Canonical revision.
    pub canonical_revision: Arc<str>,
    /// Label `app`.
    pub app: Arc<str>,
    /// Label `version`.
    pub version: Arc<str>,
    /// Its identity.
    pub identity: Option<SpiffeId>,
    /// The node it runs on.
    pub node: Option<Arc<str>>,
    /// It is in the mesh: reached through a tunnel.
    pub meshed: bool,
    /// Its node's agent may act for it.
    pub enrolled: bool,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The network that they are on; empty = the one of everybody else.
    pub network: Arc<str>,
    /// Where it runs: what its node's labels say, or its own object.
    pub locality: Locality,
    /// Labels.
    pub labels: Arc<Labels>,
    /// It takes traffic.
    pub ready: bool,
    /// It has not ended.
    pub alive: bool,
    /// Where its ports by name come from.
    pub ports: Ports,
    /// Share of the traffic.
    pub weight: u32,
    /// Who may come in to its ports.
    pub mtls: Mtls,
}

/// What made a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// A Deployment, or anything else that keeps it running.
    Deployment,
    /// A CronJob.
    CronJob,
    /// A Job.
    Job,
    /// Nothing.
    Itself,
}

/// Ports by name.
#[derive(Debug, PartialEq, Eq)]
pub enum Ports {
    /// A pod: its containers'.
    Pod(HashMap<String, u16>),
    /// A workload entry: by the service's port names.
    Entry(HashMap<String, u16>),
}

impl Ports {
    /// Whether the workload may share its address with others, as those of a VM do: then a port tells them apart.
    pub fn are_of_a_host(&self) -> bool {
        matches!(self, Ports::Entry(_))
    }
}

/// Workloads by label and value.
type ByLabel = HashMap<(String, String), Vec<Arc<Workload>>>;

/// All workloads.
#[derive(Debug, Default)]
pub struct Workloads {
    list: Vec<Arc<Workload>>,
    by_name: HashMap<(Arc<str>, Arc<str>), Arc<Workload>>,
    by_address: HashMap<IpAddr, Vec<Arc<Workload>>>,
    /// By namespace.
    by_label: HashMap<Arc<str>, ByLabel>,
}

impl Workloads {
    /// Those that are as they were in `before` stay the same in memory.
    pub(super) fn build(
        options: &MeshOptions,
        objects: &Objects,
        authentication: &Authentication,
        before: &Workloads,
        problems: &mut Vec<Problem>,
    ) -> Workloads {
        let mut workloads = Workloads::default();
        let nodes: HashMap<&str, Locality> = objects.values().filter_map(|object| of_node(object)).collect();
        for object in objects.values() {
            let workload = match &object.body {
                Body::Pod(pod) => {
                    let locality = pod.spec.node_name.as_deref().and_then(|node| nodes.get(node)).cloned();
                    of_pod(options, object, pod, locality.unwrap_or_default(), authentication, problems)
                }
                Body::WorkloadEntry(entry) => of_entry(options, object, entry, authentication, problems),
                _ => continue,
            };
            let former = before.get(&workload.namespace, &workload.name).filter(|there| ***there == workload);
            workloads.add(former.cloned().unwrap_or_else(|| Arc::new(workload)), object, problems);
        }
        workloads
    }

    /// Whether both are the same workloads in memory.
    pub(super) fn same(&self, other: &Workloads) -> bool {
        self.list.len() == other.list.len() && self.list.iter().zip(&other.list).all(|(one, two)| Arc::ptr_eq(one, two))
    }

    fn add(&mut self, workload: Arc<Workload>, object: &Object, problems: &mut Vec<Problem>) {
        let key = (workload.namespace.clone(), workload.name.clone());
        if self.by_name.contains_key(&key) {
            let why = "a pod of this name exists already; the entry is left out";
            problems.push(object.problem(Severity::Warning, &FieldPath::of("metadata.name"), why));
            return;
        }
        self.by_name.insert(key, workload.clone());
        for address in &workload.addresses {
            self.by_address.entry(*address).or_default().push(workload.clone());
        }
        let labels = self.by_label.entry(workload.namespace.clone()).or_default();
        for (key, value) in workload.labels.iter() {
            labels.entry((key.clone(), value.clone())).or_default().push(workload.clone());
        }
        self.list.push(workload);
    }

    /// Every workload.
    pub fn all(&self) -> &[Arc<Workload>] {
        &self.list
    }

    /// By namespace and name.
    pub fn get(&self, namespace: &str, name: &str) -> Option<&Arc<Workload>> {
        self.by_name.get(&(namespace.into(), name.into()))
    }

    /// By address, when only one workload has it: the private ranges of two nodes may overlap.
    pub fn at(&self, address: IpAddr, node: Option<&str>) -> Option<&Arc<Workload>> {
        let candidates = self.by_address.get(&address)?;
        match (candidates.as_slice(), node) {
            ([one], _) => Some(one),
            (several, Some(node)) => {
                let mut there = several.iter().filter(|workload| workload.node.as_deref() == Some(node));
                there.next().filter(|_| there.next().is_none())
            }
            _ => None,
        }
    }

    /// Living workloads of a namespace that a selector selects; none for an empty one.
    pub fn selected<'w>(&'w self, namespace: &str, selector: &'w Labels) -> impl Iterator<Item = &'w Arc<Workload>> {
        let labels = self.by_label.get(namespace);
        let fewest = selector
            .iter()
            .map(|(key, value)| {
                labels.and_then(|labels| labels.get(&(key.clone(), value.clone()))).map_or(&[][..], Vec::as_slice)
            })
            .min_by_key(|list| list.len())
            .unwrap_or_default();
        fewest.iter().filter(move |workload| workload.alive && selects(selector, &workload.labels))
    }
}

impl Workload {
    /// The addresses of one family, or all of none is wished for.
    pub fn address_of(&self, families: &[bool]) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| families.is_empty() || families.contains(&address.is_ipv4()))
    }
}

/// A node's name and where it stands, by the well-known labels.
fn of_node(object: &Object) -> Option<(&str, Locality)> {
    let label = |name: &str| object.metadata.labels.get(name).map_or("", String::as_str).into();
    matches!(object.body, Body::Node).then(|| {
        let locality = Locality { region: label(REGION), zone: label(ZONE), sub_zone: label(SUBZONE) };
        (&*object.key.name, locality)
    })
}

/// `region/zone/subzone`, as entries say it; what is left out is empty.
pub(super) fn locality(text: &str) -> Locality {
    let mut parts = text.split('/');
    let mut next = || parts.next().unwrap_or_default().into();
    Locality { region: next(), zone: next(), sub_zone: next() }
}

fn of_pod(
    options: &MeshOptions,
    object: &Object,
    pod: &Pod,
    locality: Locality,
    authentication: &Authentication,
    problems: &mut Vec<Problem>,
) -> Workload {
    let metadata = &object.metadata;
    let account = pod.spec.service_account_name.as_deref().filter(|name| !name.is_empty()).unwrap_or("default");
    let ports = pod.spec.containers.iter().flat_map(|container| &container.ports);
    let named = ports.filter(|port| !port.name.is_empty()).map(|port| (port.name.clone(), port.container_port.0));
    // On the node's own network the address is not the pod's alone: it has an identity, and others no tunnel to it.
    let enrolled = redirected(metadata);
    let meshed = !pod.spec.host_network && (enrolled || ends_tunnels(&metadata.labels));
    let alive = pod.alive() && metadata.deletion_timestamp.is_none();
    build(Parts {
        options,
        object,
        workload_name: owner(metadata),
        owner: owner_kind(metadata),
        host_network: pod.spec.host_network,
        labels: metadata.labels.clone(),
        account,
        account_path: FieldPath::of("spec.serviceAccountName"),
        node: pod.spec.node_name.as_deref(),
        meshed,
        enrolled,
        addresses: pod.addresses(),
        network: "".into(),
        locality,
        ready: pod.ready(),
        alive,
        ports: Ports::Pod(named.collect()),
        weight: 1,
        authentication,
        problems,
    })
}

fn of_entry(
    options: &MeshOptions,
    object: &Object,
    entry: &WorkloadEntry,
    authentication: &Authentication,
    problems: &mut Vec<Problem>,
) -> Workload {
    let metadata = &object.metadata;
    let mut labels = metadata.labels.clone();
    labels.extend(entry.labels.clone());
    let account = if entry.service_account.is_empty() { "default" } else { &entry.service_account };
    let meshed = redirected(metadata) || ends_tunnels(&labels);
    build(Parts {
        options,
        object,
        workload_name: metadata.name.clone(),
        owner: Owner::Itself,
        host_network: false,
        labels,
        account,
        account_path: FieldPath::of("spec.serviceAccount"),
        node: metadata.annotations.get(NODE).map(String::as_str),
        meshed,
        enrolled: metadata.annotations.contains_key(NODE),
        addresses: entry.address.parse().ok().into_iter().collect(),
        network: entry.network.as_str().into(),
        locality: locality(&entry.locality),
        ready: true,
        alive: metadata.deletion_timestamp.is_none(),
        ports: Ports::Entry(entry.ports.iter().map(|(name, port)| (name.clone(), port.0)).collect()),
        weight: entry.weight.max(1),
        authentication,
        problems,
    })
}

pub(super) fn redirected(metadata: &Metadata) -> bool {
    metadata.annotations.get(REDIRECTION).is_some_and(|value| value == "enabled")
}

/// Whether a workload with these labels ends HBONE itself, without its node's agent.
pub fn ends_tunnels(labels: &Labels) -> bool {
    labels.get(TUNNEL).is_some_and(|kinds| kinds.split(',').any(|kind| kind == "http"))
}

struct Parts<'p> {
    options: &'p MeshOptions,
    object: &'p Object,
    workload_name: String,
    owner: Owner,
    host_network: bool,
    labels: Labels,
    account: &'p str,
    account_path: FieldPath,
    node: Option<&'p str>,
    meshed: bool,
    enrolled: bool,
    addresses: Vec<IpAddr>,
    network: Arc<str>,
    locality: Locality,
    ready: bool,
    alive: bool,
    ports: Ports,
    weight: u32,
    authentication: &'p Authentication,
    problems: &'p mut Vec<Problem>,
}

fn build(parts: Parts<'_>) -> Workload {
    let Parts { options, object, labels, problems, .. } = parts;
    let namespace = object.key.namespace.clone();
    let identity = SpiffeId::new(&options.trust_domain, &namespace, parts.account)
        .map_err(|error| {
            problems.push(object.problem(Severity::Warning, &parts.account_path, format!("no identity: {error}")));
        })
        .ok();
    let label = |names: &[&str]| label(&labels, names);
    let (canonical_name, canonical_revision) = canonical(&labels, &parts.workload_name);
    Workload {
        canonical_name,
        canonical_revision,
        app: label(&["app"]).map_or("", String::as_str).into(),
        version: label(&["version"]).map_or("", String::as_str).into(),
        name: object.key.name.clone(),
        workload_name: parts.workload_name.as_str().into(),
        owner: parts.owner,
        host_network: parts.host_network,
        mtls: parts.authentication.of(&namespace, &labels),
        namespace,
        meshed: parts.meshed && identity.is_some(),
        enrolled: parts.enrolled,
        identity,
        node: parts.node.filter(|node| !node.is_empty()).map(Into::into),
        addresses: parts.addresses,
        network: parts.network,
        locality: parts.locality,
        labels: Arc::new(labels),
        ready: parts.ready,
        alive: parts.alive,
        ports: parts.ports,
        weight: parts.weight,
    }
}

/// The first of these labels that is there, if it is not empty.
fn label<'l>(labels: &'l Labels, names: &[&str]) -> Option<&'l String> {
    names.iter().find_map(|name| labels.get(*name)).filter(|value| !value.is_empty())
}

/// Canonical service and revision, by labels; without any the service is called as the workload.
pub(super) fn canonical(labels: &Labels, workload_name: &str) -> (Arc<str>, Arc<str>) {
    let name = label(labels, &["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]);
    let revision = label(labels, &["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]);
    (name.map_or(workload_name, String::as_str).into(), revision.map_or("latest", String::as_str).into())
}

fn owner_kind(metadata: &Metadata) -> Owner {
    match metadata.owner_references.iter().find(|owner| owner.controller).map(|owner| owner.kind.as_str()) {
        None => Owner::Itself,
        Some("CronJob") => Owner::CronJob,
        Some("Job") => Owner::Job,
        Some(_) => Owner::Deployment,
    }
}

/// The deployment (or other owner) of a pod, as Istio names workloads.
fn owner(metadata: &Metadata) -> String {
    let Some(owner) = metadata.owner_references.iter().find(|owner| owner.controller) else {
        return metadata.name.clone();
    };
    let hash = metadata.labels.get("pod-template-hash");
    let stem = hash.and_then(|hash| owner.name.strip_suffix(hash.as_str())).and_then(|stem| stem.strip_suffix('-'));
    match owner.kind.as_str() {
        "ReplicaSet" => stem.unwrap_or(&owner.name).to_owned(),
        _ => owner.name.clone(),
    }
}
