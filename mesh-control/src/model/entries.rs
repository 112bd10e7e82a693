//! Services of ServiceEntries: one per host.
//!
//! In: a ServiceEntry and the workloads. Out: [`Service`]s.

use std::net::IpAddr;
use std::sync::Arc;

use super::MeshOptions;
use super::kubernetes::at;
use super::protocol::{self, Protocol};
use super::service::{Endpoint, Port, Resolution, Service, normalise};
use super::visibility::Visibility;
use super::workload::{Ports, Workloads};
use crate::config::service_entry::{self, EntryPort, Location, ServiceEntry, parse_address};
use crate::config::{Labels, Object};
use crate::problem::{Problem, Severity};
use crate::yaml::FieldPath;

pub(super) fn services(
    options: &MeshOptions,
    object: &Object,
    spec: &ServiceEntry,
    workloads: &Workloads,
    problems: &mut Vec<Problem>,
) -> Vec<Service> {
    let namespace = object.key.namespace.clone();
    let resolution = match spec.resolution {
        service_entry::Resolution::None | service_entry::Resolution::DynamicDns => Resolution::Passthrough,
        service_entry::Resolution::Static => Resolution::Static,
        service_entry::Resolution::Dns => Resolution::Dns,
        service_entry::Resolution::DnsRoundRobin => Resolution::DnsRoundRobin,
    };
    if let Some(selector) = &spec.workload_selector
        && workloads.selected(&namespace, &selector.labels).next().is_none()
    {
        let path = FieldPath::of("spec.workloadSelector.labels");
        problems.push(object.problem(Severity::Warning, &path, "selects no workload"));
    }
    spec.hosts
        .iter()
        .map(|host| Service {
            host: options.full_host(host, &namespace).into(),
            name: host.as_str().into(),
            namespace: namespace.clone(),
            addresses: spec.addresses.iter().filter_map(|text| parse_address(text)).collect(),
            ports: spec.ports.iter().map(|port| self::port(object, spec, host, port, resolution, workloads)).collect(),
            resolution,
            headless: false,
            kubernetes: false,
            external: spec.location == Location::MeshExternal,
            visibility: Visibility::parse(spec.export_to.iter().map(String::as_str), &namespace),
            sans: spec.subject_alt_names.iter().filter_map(|name| name.parse().ok()).collect(),
            alt_names: spec.subject_alt_names.clone(),
            passthrough: spec.resolution == service_entry::Resolution::None,
            origin: object.key.clone(),
        })
        .collect()
}

fn port(
    object: &Object,
    spec: &ServiceEntry,
    host: &str,
    port: &EntryPort,
    resolution: Resolution,
    workloads: &Workloads,
) -> Port {
    let protocol = if port.protocol.is_empty() {
        Protocol::of_port(None, &port.name, port.number.0)
    } else {
        protocol::named(&port.protocol).unwrap_or(Protocol::Auto)
    };
    let target = port.target_port.unwrap_or(port.number).0;
    let mut endpoints: Vec<Endpoint> = Vec::new();
    if let Some(selector) = &spec.workload_selector {
        for workload in workloads.selected(&object.key.namespace, &selector.labels).filter(|workload| workload.ready) {
            let number = match &workload.ports {
                Ports::Entry(ports) => ports.get(&port.name).copied().unwrap_or(target),
                Ports::Pod(_) => target,
            };
            if let Some(address) = workload.address_of(&[]) {
                endpoints.push(Endpoint { weight: workload.weight, ..at(address, number, Some(workload)) });
            }
        }
    }
    for entry in &spec.endpoints {
        let number = entry.ports.get(&port.name).map_or(target, |port| port.0);
        let known = entry.address.parse::<IpAddr>().ok().and_then(|address| {
            // Inside of the mesh an address may be a workload that has an identity.
            let workload = workloads.at(address, None).filter(|_| spec.location == Location::MeshInternal);
            workload.map(|workload| at(address, number, Some(workload)))
        });
        let plain = || Endpoint {
            address: entry.address.as_str().into(),
            port: number,
            weight: 1,
            labels: Arc::<Labels>::default(),
            workload: None,
            tunnel: false,
        };
        let mut endpoint = known.unwrap_or_else(plain);
        endpoint.weight = entry.weight.max(1);
        if !entry.labels.is_empty() {
            endpoint.labels = Arc::new(entry.labels.clone());
        }
        endpoints.push(endpoint);
    }
    let by_dns = matches!(resolution, Resolution::Dns | Resolution::DnsRoundRobin);
    if endpoints.is_empty() && by_dns && spec.workload_selector.is_none() {
        endpoints.push(Endpoint {
            address: host.into(),
            port: target,
            weight: 1,
            labels: Arc::default(),
            workload: None,
            tunnel: false,
        });
    }
    normalise(&mut endpoints);
    Port { number: port.number.0, name: port.name.as_str().into(), protocol, target: Some(target), endpoints }
}
