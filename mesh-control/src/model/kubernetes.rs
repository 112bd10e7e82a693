//! Services of Kubernetes with their endpoints: those of EndpointSlices if there are any, else computed from the selector.
//!
//! In: objects. Out: [`Service`]s.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::MeshOptions;
use super::authentication::MtlsMode;
use super::protocol::Protocol;
use super::service::{Endpoint, Port, Resolution, Service, normalise};
use super::visibility::Visibility;
use super::workload::{Ports, Workload, Workloads};
use crate::config::fields::PortRef;
use crate::config::kubernetes::{AddressType, ServicePort, ServiceSpec, ServiceType, Transport};
use crate::config::service_entry::EntryAddress;
use crate::config::{Body, Key, Kind, Labels, Object};
use crate::problem::{Problem, Severity};
use crate::source::Objects;
use crate::yaml::FieldPath;

/// Label of a slice with the name of its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Annotation with Istio's `exportTo` for a service.
const EXPORT_TO: &str = "networking.istio.io/exportTo";

/// EndpointSlices by namespace and name of their service.
pub(super) type Slices<'o> = HashMap<(&'o str, &'o str), Vec<&'o Arc<Object>>>;

/// The slices of every service.
pub(super) fn slices_by_service<'o>(objects: &'o Objects, problems: &mut Vec<Problem>) -> Slices<'o> {
    let mut slices: Slices<'o> = HashMap::new();
    for object in objects.values() {
        if !matches!(object.body, Body::EndpointSlice(_)) {
            continue;
        }
        let Some(name) = object.metadata.labels.get(SERVICE_NAME) else {
            let why = format!("label `{SERVICE_NAME}` is missing, so it is no service's");
            problems.push(object.problem(Severity::Warning, &FieldPath::of("metadata.labels"), why));
            continue;
        };
        let key = Key { kind: Kind::Service, namespace: object.key.namespace.clone(), name: name.as_str().into() };
        if !objects.contains_key(&key) {
            let why = format!("there is no service `{name}` in this namespace");
            let path = FieldPath::of("metadata.labels").key(SERVICE_NAME);
            problems.push(object.problem(Severity::Warning, &path, why));
        }
        slices.entry((&object.key.namespace, name)).or_default().push(object);
    }
    slices
}

/// A service with its slices; none for kinds that are only a DNS alias without ports.
pub(super) fn service(
    options: &MeshOptions,
    object: &Object,
    spec: &ServiceSpec,
    slices: &[&Arc<Object>],
    workloads: &Workloads,
    problems: &mut Vec<Problem>,
) -> Option<Service> {
    let namespace = object.key.namespace.clone();
    let addresses = spec.addresses();
    let external_name = spec.external_name.as_deref().filter(|_| spec.kind == ServiceType::ExternalName);
    let headless = addresses.is_empty() && external_name.is_none();
    let mut families: Vec<bool> = addresses.iter().map(IpAddr::is_ipv4).collect();
    families.dedup();
    let selected: Vec<&Arc<Workload>> = workloads.selected(&namespace, &spec.selector).collect();
    if slices.is_empty() && !spec.selector.is_empty() && selected.is_empty() {
        problems.push(object.problem(Severity::Warning, &FieldPath::of("spec.selector"), "selects no workload"));
    }
    let mut ports = Vec::new();
    for (index, port) in spec.ports.iter().enumerate().filter(|(_, port)| port.protocol == Transport::Tcp) {
        let mut endpoints = match external_name {
            Some(name) => vec![external_endpoint(name, port.port.0)],
            None if !slices.is_empty() => from_slices(slices, port, &namespace, workloads),
            None => {
                let mut missing = None;
                let found = from_workloads(&selected, spec, port, &families, &mut missing);
                if let Some(workload) = missing.filter(|_| found.is_empty()) {
                    let path = FieldPath::of("spec.ports").index(index).key("targetPort");
                    let why = format!("no container port has this name (looked at `{workload}` and others)");
                    problems.push(object.problem(Severity::Warning, &path, why));
                }
                found
            }
        };
        normalise(&mut endpoints);
        ports.push(Port {
            number: port.port.0,
            name: port.name.as_str().into(),
            protocol: Protocol::of_port(port.app_protocol.as_deref(), &port.name, port.port.0),
            target: match &port.target_port {
                None => Some(port.port.0),
                Some(PortRef::Number(number)) => Some(*number),
                Some(PortRef::Name(_)) => None,
            },
            endpoints,
        });
    }
    if ports.is_empty() {
        return None;
    }
    let export_to = object.metadata.annotations.get(EXPORT_TO).map(String::as_str).unwrap_or_default();
    let export_to = export_to.split(',').map(str::trim).filter(|name| !name.is_empty());
    let resolution = match (external_name, headless) {
        (Some(_), _) => Resolution::Dns,
        (None, true) => Resolution::Passthrough,
        (None, false) => Resolution::Static,
    };
    Some(Service {
        host: options.full_host(&object.key.name, &namespace).into(),
        name: object.key.name.clone(),
        visibility: Visibility::parse(export_to, &namespace),
        namespace,
        addresses: addresses.into_iter().map(EntryAddress::Single).collect(),
        ports,
        resolution,
        headless,
        kubernetes: true,
        external: external_name.is_some(),
        sans: Vec::new(),
        alt_names: Vec::new(),
        passthrough: false,
        origin: object.key.clone(),
    })
}

fn external_endpoint(name: &str, port: u16) -> Endpoint {
    Endpoint { address: name.into(), port, weight: 1, labels: Arc::default(), workload: None, tunnel: false }
}

fn from_slices(slices: &[&Arc<Object>], port: &ServicePort, namespace: &str, workloads: &Workloads) -> Vec<Endpoint> {
    let mut endpoints = Vec::new();
    let slices = slices.iter().filter_map(|object| match &object.body {
        Body::EndpointSlice(slice) => Some(slice),
        _ => None,
    });
    for slice in slices.filter(|slice| slice.address_type != AddressType::Fqdn) {
        let same_name = |name: &Option<String>| name.as_deref().unwrap_or_default() == port.name;
        let number = slice.ports.iter().find(|one| same_name(&one.name) && one.protocol == Transport::Tcp);
        let Some(number) = number.and_then(|one| one.port) else { continue };
        for endpoint in slice.endpoints.iter().filter(|endpoint| endpoint.conditions.ready != Some(false)) {
            let Some(address) = endpoint.addresses.first().and_then(|text| text.parse::<IpAddr>().ok()) else {
                continue;
            };
            let target = endpoint.target_ref.as_ref().filter(|target| target.kind == "Pod");
            let workload = match target {
                Some(pod) => workloads.get(pod.namespace.as_deref().unwrap_or(namespace), &pod.name),
                None => workloads.at(address, endpoint.node_name.as_deref()),
            };
            endpoints.push(at(address, number.0, workload));
        }
    }
    endpoints
}

fn from_workloads(
    selected: &[&Arc<Workload>],
    spec: &ServiceSpec,
    port: &ServicePort,
    families: &[bool],
    missing: &mut Option<Arc<str>>,
) -> Vec<Endpoint> {
    let usable = selected.iter().filter(|workload| workload.ready || spec.publish_not_ready_addresses);
    usable
        .filter_map(|workload| {
            let address = workload.address_of(families)?;
            let number = match (&workload.ports, &port.target_port) {
                (Ports::Entry(ports), target) => match (ports.get(&port.name), target) {
                    (Some(number), _) | (None, Some(PortRef::Number(number))) => Some(*number),
                    _ => Some(port.port.0),
                },
                (Ports::Pod(_), None) => Some(port.port.0),
                (Ports::Pod(_), Some(PortRef::Number(number))) => Some(*number),
                (Ports::Pod(ports), Some(PortRef::Name(name))) => ports.get(name).copied(),
            };
            if number.is_none() {
                missing.get_or_insert_with(|| workload.name.clone());
            }
            Some(Endpoint { weight: workload.weight, ..at(address, number?, Some(workload)) })
        })
        .collect()
}

/// An endpoint at an address, with what is known of the workload there.
pub(super) fn at(address: IpAddr, port: u16, workload: Option<&Arc<Workload>>) -> Endpoint {
    Endpoint {
        address: address.to_string().into(),
        port,
        weight: 1,
        labels: workload.map_or_else(Arc::<Labels>::default, |workload| workload.labels.clone()),
        tunnel: workload.is_some_and(|workload| {
            workload.meshed && workload.addresses.contains(&address) && workload.mtls.of_port(port) != MtlsMode::Disable
        }),
        workload: workload.cloned(),
    }
}
