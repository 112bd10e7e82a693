//! Who is in the mesh, as WDS: every workload, every endpoint that a ServiceEntry lists, and every service.
//!
//! In: a [`Mesh`]. Out: `istio.workload.Address`, named as Istio names them, with `network/address` as aliases.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use mesh_core::resource::endpoint::Locality;
use mesh_proto::workload as pb;
use prost::Message;

use super::checked::Named;
use super::memo::{Memo, Same};
use crate::config::service_entry::EntryAddress;
use crate::model::authentication::MtlsMode;
use crate::model::authorization::Converted;
use crate::model::inline::Inline;
use crate::model::service::{Port, Service};
use crate::model::workload::{Owner, Ports, Workload, ends_tunnels};
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
    inline: &mut Memo<Inline, BTreeSet<String>, Named>,
    services: &mut Memo<Service, (), Named>,
) -> Vec<Named> {
    let mut all = Vec::with_capacity(mesh.workloads.all().len() + mesh.inline.len() + mesh.services.len());
    for workload in mesh.workloads.all().iter().filter(|one| one.alive && !one.addresses.is_empty()) {
        let from = (mesh.memberships(workload).cloned().map(Same), policies(mesh, workload));
        all.push(workloads.made(workload, from, |from| {
            let message = self::workload(&mesh.options, workload, from);
            // The addresses of a node name none of the workloads that use them.
            let own = if workload.host_network { &[][..] } else { &workload.addresses };
            let aliases = aliases(&workload.network, own);
            named(&message.uid.clone(), pb::address::Type::Workload(message), aliases)
        }));
    }
    for one in mesh.inline.iter() {
        all.push(inline.made(one, inline_policies(mesh, one), |policies| {
            let message = self::inline(&mesh.options, one, policies);
            let aliases = aliases(&one.network, one.address.parse().ok().as_slice());
            named(&message.uid.clone(), pb::address::Type::Workload(message), aliases)
        }));
    }
    for service in mesh.services.iter().filter(|service| !service.host.starts_with('*')) {
        all.push(services.made(service, (), |()| {
            let message = self::service(service);
            let name = format!("{}/{}", message.namespace, message.hostname);
            let own: Vec<IpAddr> = service.single_addresses().collect();
            named(&name, pb::address::Type::Service(message), aliases("", &own))
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

/// Names of the policies that select an endpoint of a ServiceEntry: as Istio looks them up, those of who may connect by the
/// labels of the ServiceEntry, those of how by the endpoint's own.
fn inline_policies(mesh: &Mesh, one: &Inline) -> BTreeSet<String> {
    let (root, namespace) = (&mesh.options.root_namespace, &one.namespace);
    let mut policies = mesh.authorizations.selecting(root, namespace, &one.labels);
    let converted = Converted::of(&mesh.authentication.of(namespace, &one.own_labels));
    policies.extend(converted.policy(&mesh.authentication, root, namespace, &one.own_labels));
    policies
}

/// Further names, by address. The default network has no name.
fn aliases(network: &str, addresses: &[IpAddr]) -> Vec<String> {
    addresses.iter().map(|address| format!("{network}/{address}")).collect()
}

fn named(name: &str, message: pb::address::Type, aliases: Vec<String>) -> Named {
    let message = pb::Address { r#type: Some(message) };
    let mut resource = Resource::new(Kind::Address, message.encode_to_vec());
    resource.aliases = aliases;
    (name.into(), resource.into())
}

fn workload(options: &MeshOptions, workload: &Workload, (memberships, policies): &From) -> pb::Workload {
    let (namespace, name) = (&workload.namespace, &workload.name);
    let kind = match &workload.ports {
        Ports::Pod(_) => "/Pod",
        Ports::Entry(_) => "networking.istio.io/WorkloadEntry",
    };
    let identity = workload.identity.as_ref();
    // Where nobody comes in but in plaintext, nobody shall try anything else.
    let off = workload.mtls.ports.values().chain([&workload.mtls.default]).all(|mode| *mode == MtlsMode::Disable);
    let hbone = workload.meshed && !off;
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
        network: workload.network.to_string(),
        tunnel_protocol: tunnel(hbone).into(),
        native_tunnel: hbone && ends_tunnels(&workload.labels),
        trust_domain: trust_domain(options),
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
        locality: place(&workload.locality),
        network_mode: if workload.host_network { pb::NetworkMode::HostNetwork } else { pb::NetworkMode::Standard }
            .into(),
        capacity: (workload.weight != 1).then_some(workload.weight),
        ..Default::default()
    }
}

fn inline(options: &MeshOptions, one: &Inline, policies: &BTreeSet<String>) -> pb::Workload {
    let Inline { name, namespace, address, .. } = one;
    let ports: Vec<pb::Port> = one
        .ports
        .iter()
        .map(|(service, target)| pb::Port { service_port: (*service).into(), target_port: (*target).into() })
        .collect();
    let list = pb::PortList { ports };
    let ip = address.parse::<IpAddr>();
    pb::Workload {
        uid: format!("{}/networking.istio.io/ServiceEntry/{namespace}/{name}/{address}", options.cluster_id),
        name: name.to_string(),
        namespace: namespace.to_string(),
        addresses: ip.iter().map(bytes).collect(),
        hostname: if ip.is_ok() { String::new() } else { address.to_string() },
        network: one.network.to_string(),
        tunnel_protocol: tunnel(one.meshed).into(),
        trust_domain: trust_domain(options),
        service_account: one.service_account.to_string(),
        canonical_name: one.canonical_name.to_string(),
        canonical_revision: one.canonical_revision.to_string(),
        workload_type: pb::WorkloadType::Pod.into(),
        workload_name: name.to_string(),
        services: one.hosts.iter().map(|host| (format!("{namespace}/{host}"), list.clone())).collect(),
        authorization_policies: policies.iter().cloned().collect(),
        status: pb::WorkloadStatus::Healthy.into(),
        cluster_id: options.cluster_id.to_string(),
        locality: place(&one.locality),
        capacity: (one.weight != 1).then_some(one.weight),
        ..Default::default()
    }
}

fn tunnel(hbone: bool) -> pb::TunnelProtocol {
    if hbone { pb::TunnelProtocol::Hbone } else { pb::TunnelProtocol::None }
}

fn trust_domain(options: &MeshOptions) -> String {
    let own = &*options.trust_domain;
    if own == DEFAULT_TRUST_DOMAIN { String::new() } else { own.to_owned() }
}

fn place(locality: &Locality) -> Option<pb::Locality> {
    let Locality { region, zone, sub_zone } = locality;
    (*locality != Locality::default()).then(|| pb::Locality {
        region: region.to_string(),
        zone: zone.to_string(),
        subzone: sub_zone.to_string(),
    })
}

fn service(service: &Service) -> pb::Service {
    let port = |port: &Port| {
        // 0: each workload says its own.
        pb::Port { service_port: port.number.into(), target_port: port.target.unwrap_or_default().into() }
    };
    let address = |address: &EntryAddress| {
        let (address, length) = match address {
            EntryAddress::Single(address) => (*address, None),
            EntryAddress::Range(net) => (net.network(), Some(u32::from(net.prefix_len()))),
        };
        pb::NetworkAddress { network: String::new(), address: bytes(&address), length }
    };
    let passthrough = || pb::LoadBalancing {
        mode: pb::load_balancing::Mode::Passthrough.into(),
        health_policy: pb::load_balancing::HealthPolicy::AllowAll.into(),
        ..Default::default()
    };
    pb::Service {
        name: service.origin.name.to_string(),
        namespace: service.namespace.to_string(),
        hostname: service.host.to_string(),
        addresses: service.addresses.iter().map(address).collect(),
        ports: service.ports.iter().map(port).collect(),
        subject_alt_names: service.alt_names.clone(),
        load_balancing: service.passthrough.then(passthrough),
        ..Default::default()
    }
}

fn bytes(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}
