//! Who is in the mesh, as WDS: every workload and every service.
//!
//! In: a [`Mesh`]. Out: `istio.workload.Address`, named as Istio names them, with `network/address` as aliases.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use mesh_proto::workload as pb;
use prost::Message;

use super::checked::Named;
use super::memo::{Memo, Same};
use crate::model::authorization::Converted;
use crate::model::service::Service;
use crate::model::workload::{Owner, Ports, Workload};
use crate::model::{Membership, Mesh, MeshOptions};
use crate::resource::{Kind, Resource};

/// Istio's trust domain where nobody says otherwise; it is not sent.
const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

/// What a workload's resource is made of, besides the workload: what it serves, and the names of its policies.
pub(super) type From = (Option<Same<[Membership]>>, BTreeSet<String>);

/// Every workload and service of the mesh.
pub(super) fn all(
    mesh: &Mesh,
    workloads: &mut Memo<Workload, From, Named>,
    services: &mut Memo<Service, (), Named>,
) -> Vec<Named> {
    let mut all = Vec::with_capacity(mesh.workloads.all().len() + mesh.services.len());
    for workload in mesh.workloads.all().iter().filter(|one| one.alive && !one.addresses.is_empty()) {
        let from = (mesh.memberships(workload).cloned().map(Same), policies(mesh, workload));
        all.push(workloads.made(workload, from, |from| {
            let message = self::workload(&mesh.options, workload, from);
            // The addresses of a node name none of the workloads that use them.
            let aliases = if workload.host_network { Vec::new() } else { workload.addresses.clone() };
            named(&message.uid.clone(), pb::address::Type::Workload(message), aliases)
        }));
    }
    for service in mesh.services.iter().filter(|service| !service.host.starts_with('*')) {
        all.push(services.made(service, (), |()| {
            let message = self::service(service);
            let name = format!("{}/{}", message.namespace, message.hostname);
            named(&name, pb::address::Type::Service(message), service.single_addresses().collect())
        }));
    }
    all
}

/// Names of the policies that select a workload.
fn policies(mesh: &Mesh, workload: &Workload) -> BTreeSet<String> {
    let (root, namespace) = (&mesh.options.root_namespace, &workload.namespace);
    let mut policies = mesh.authorizations.selecting(root, namespace, &workload.labels);
    let converted = Converted::of(&workload.mtls);
    policies.extend(converted.policy(&mesh.authentication, root, namespace, &workload.labels));
    policies
}

fn named(name: &str, message: pb::address::Type, aliases: Vec<IpAddr>) -> Named {
    let message = pb::Address { r#type: Some(message) };
    let mut resource = Resource::new(Kind::Address, message.encode_to_vec());
    // The default network has no name.
    resource.aliases = aliases.into_iter().map(|address| format!("/{address}")).collect();
    (name.into(), resource.into())
}

fn workload(options: &MeshOptions, workload: &Workload, (memberships, policies): &From) -> pb::Workload {
    let (namespace, name) = (&workload.namespace, &workload.name);
    let kind = match &workload.ports {
        Ports::Pod(_) => "/Pod",
        Ports::Entry(_) => "networking.istio.io/WorkloadEntry",
    };
    let identity = workload.identity.as_ref();
    let trust_domain = identity.map_or(&*options.trust_domain, |identity| identity.trust_domain());
    let mut services: BTreeMap<String, pb::PortList> = BTreeMap::new();
    for one in memberships.iter().flat_map(|all| all.0.iter()) {
        let Some(port) = one.service.ports.get(one.port) else { continue };
        let list = services.entry(format!("{}/{}", one.service.namespace, one.service.host)).or_default();
        list.ports.push(pb::Port { service_port: port.number.into(), target_port: one.target_port.into() });
    }
    pb::Workload {
        uid: format!("{}/{kind}/{namespace}/{name}", options.cluster_id),
        name: name.to_string(),
        namespace: namespace.to_string(),
        addresses: workload.addresses.iter().map(bytes).collect(),
        tunnel_protocol: if workload.meshed { pb::TunnelProtocol::Hbone } else { pb::TunnelProtocol::None }.into(),
        trust_domain: if trust_domain == DEFAULT_TRUST_DOMAIN { String::new() } else { trust_domain.to_owned() },
        service_account: identity.map(|identity| identity.service_account().to_owned()).unwrap_or_default(),
        node: workload.node.as_deref().unwrap_or_default().to_owned(),
        canonical_name: workload.canonical_name.to_string(),
        canonical_revision: workload.canonical_revision.to_string(),
        workload_type: match workload.owner {
            Owner::Deployment => pb::WorkloadType::Deployment,
            Owner::CronJob => pb::WorkloadType::Cronjob,
            Owner::Job => pb::WorkloadType::Job,
            Owner::Itself => pb::WorkloadType::Pod,
        }
        .into(),
        workload_name: workload.workload_name.to_string(),
        services,
        authorization_policies: policies.iter().cloned().collect(),
        status: if workload.ready { pb::WorkloadStatus::Healthy } else { pb::WorkloadStatus::Unhealthy }.into(),
        cluster_id: options.cluster_id.to_string(),
        network_mode: if workload.host_network { pb::NetworkMode::HostNetwork } else { pb::NetworkMode::Standard }
            .into(),
        capacity: (workload.weight != 1).then_some(workload.weight),
        ..Default::default()
    }
}

fn service(service: &Service) -> pb::Service {
    let port = |port: &crate::model::service::Port| {
        let targets: BTreeSet<u16> = port.endpoints.iter().map(|endpoint| endpoint.port).collect();
        // 0: each workload says its own.
        let target = match targets.len() {
            1 => targets.first().copied().unwrap_or_default(),
            _ => 0,
        };
        pb::Port { service_port: port.number.into(), target_port: target.into() }
    };
    let address = |address: IpAddr| pb::NetworkAddress { network: String::new(), address: bytes(&address) };
    pb::Service {
        name: service.name.to_string(),
        namespace: service.namespace.to_string(),
        hostname: service.host.to_string(),
        addresses: service.single_addresses().map(address).collect(),
        ports: service.ports.iter().map(port).collect(),
        subject_alt_names: service.sans.iter().map(ToString::to_string).collect(),
        ..Default::default()
    }
}

fn bytes(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}
