//! Reads `istio.workload.Address`.
//!
//! In: the message. Out: an [`Address`], or what is wrong with it and where.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_proto::workload as pb;

use super::{Address, Identity, Port, Service, Tunnel, Workload, WorkloadKind};
use crate::identity::SpiffeId;
use crate::resource::Rejection;
use crate::resource::endpoint::Locality;
use crate::resource::fault::{At, Fault, each};
use crate::resource::wire::{self, decode};

/// Most addresses of a workload or service.
pub const MAX_ADDRESSES: usize = 1024;
/// Most services of a workload.
pub const MAX_SERVICES: usize = 4096;
/// Most ports of a service.
pub const MAX_PORTS: usize = 4096;
/// Most policies that select a workload.
pub const MAX_POLICIES: usize = 4096;
/// Longest name in bytes.
pub const MAX_NAME_BYTES: usize = 2048;

impl Address {
    /// Parses a resource called `name`.
    pub fn parse(name: &str, body: &[u8]) -> Result<Self, Rejection> {
        let read = || {
            let message: pb::Address = decode(body)?;
            let parsed = match &message.r#type {
                Some(pb::address::Type::Workload(message)) => {
                    Address::Workload(Box::new(workload(message).at("workload")?))
                }
                Some(pb::address::Type::Service(message)) => {
                    Address::Service(Box::new(service(message).at("service")?))
                }
                None => return Err(Fault::field("type", "is neither a workload nor a service")),
            };
            if **parsed.key() != *name {
                return Err(Fault::new(format!("calls itself {:?}, the resource is called {name:?}", parsed.key())));
            }
            Ok(parsed)
        };
        read().map_err(|fault: Fault| fault.reject(name))
    }
}

fn workload(message: &pb::Workload) -> Result<Workload, Fault> {
    let tunnel = match pb::TunnelProtocol::try_from(message.tunnel_protocol) {
        Ok(pb::TunnelProtocol::None) => Tunnel::None,
        Ok(pb::TunnelProtocol::Hbone) => Tunnel::Hbone,
        Ok(pb::TunnelProtocol::LegacyIstioMtls) => Tunnel::LegacyMtls,
        Err(_) => return Err(unknown("tunnel_protocol", message.tunnel_protocol)),
    };
    let kind = match pb::WorkloadType::try_from(message.workload_type) {
        Ok(pb::WorkloadType::Deployment) => WorkloadKind::Deployment,
        Ok(pb::WorkloadType::Cronjob) => WorkloadKind::CronJob,
        Ok(pb::WorkloadType::Pod) => WorkloadKind::Pod,
        Ok(pb::WorkloadType::Job) => WorkloadKind::Job,
        Err(_) => return Err(unknown("workload_type", message.workload_type)),
    };
    let healthy = match pb::WorkloadStatus::try_from(message.status) {
        Ok(pb::WorkloadStatus::Healthy) => true,
        Ok(pb::WorkloadStatus::Unhealthy) => false,
        Err(_) => return Err(unknown("status", message.status)),
    };
    let host_network = match pb::NetworkMode::try_from(message.network_mode) {
        Ok(pb::NetworkMode::Standard) => false,
        Ok(pb::NetworkMode::HostNetwork) => true,
        Err(_) => return Err(unknown("network_mode", message.network_mode)),
    };
    if message.uid.is_empty() {
        return Err(Fault::field("uid", "is empty"));
    }
    if !message.addresses.is_empty() && !message.hostname.is_empty() {
        return Err(Fault::field("hostname", "stands beside addresses; a workload has either"));
    }
    let identity = Identity {
        trust_domain: text("trust_domain", &message.trust_domain)?,
        service_account: match message.service_account.as_str() {
            "" => "default".into(),
            name => text("service_account", name)?,
        },
    };
    if tunnel == Tunnel::Hbone {
        // Whoever dials it has to know whom to expect.
        let domain = if identity.trust_domain.is_empty() { "any" } else { &identity.trust_domain };
        SpiffeId::new(domain, &message.namespace, &identity.service_account)
            .map_err(|error| Fault::field("tunnel_protocol", format!("is HBONE, but there is no identity: {error}")))?;
    }
    at_most(message.services.len(), MAX_SERVICES).at("services")?;
    let mut services = Vec::with_capacity(message.services.len());
    for (key, list) in &message.services {
        let key = text("services", key)?;
        let ports = ports("ports", &list.ports).at("services")?;
        services.push((key, ports));
    }
    at_most(message.authorization_policies.len(), MAX_POLICIES).at("authorization_policies")?;
    let policies: BTreeSet<Arc<str>> =
        each("authorization_policies", &message.authorization_policies, |name| named(name))?.into_iter().collect();
    let place = message.locality.as_ref();
    let part = |part: fn(&pb::Locality) -> &String| Arc::from(place.map(|one| part(one).as_str()).unwrap_or_default());
    Ok(Workload {
        uid: text("uid", &message.uid)?,
        name: text("name", &message.name)?,
        namespace: text("namespace", &message.namespace)?,
        addresses: addresses(&message.addresses)?,
        hostname: text("hostname", &message.hostname)?,
        network: text("network", &message.network)?,
        tunnel,
        identity,
        node: text("node", &message.node)?,
        canonical_name: text("canonical_name", &message.canonical_name)?,
        canonical_revision: text("canonical_revision", &message.canonical_revision)?,
        kind,
        workload_name: text("workload_name", &message.workload_name)?,
        native_tunnel: message.native_tunnel,
        waypoint: message.waypoint.is_some(),
        services: services.into(),
        policies: policies.into_iter().collect(),
        healthy,
        cluster: text("cluster_id", &message.cluster_id)?,
        locality: Locality {
            region: part(|one| &one.region),
            zone: part(|one| &one.zone),
            sub_zone: part(|one| &one.subzone),
        },
        host_network,
        capacity: message.capacity.map_or(1, |value| value),
    })
}

fn service(message: &pb::Service) -> Result<Service, Fault> {
    if message.hostname.is_empty() {
        return Err(Fault::field("hostname", "is empty"));
    }
    at_most(message.addresses.len(), MAX_ADDRESSES).at("addresses")?;
    at_most(message.subject_alt_names.len(), MAX_ADDRESSES).at("subject_alt_names")?;
    let addresses = each("addresses", &message.addresses, |one| {
        let net = match one.length {
            Some(length) => wire::range(&one.address, length)?,
            None => address(&one.address).at("address")?.into(),
        };
        Ok((named(&one.network).at("network")?, net))
    })?;
    Ok(Service {
        key: text("hostname", &format!("{}/{}", message.namespace, message.hostname))?,
        name: text("name", &message.name)?,
        namespace: text("namespace", &message.namespace)?,
        hostname: text("hostname", &message.hostname)?,
        addresses: addresses.into(),
        ports: ports("ports", &message.ports)?,
        subject_alt_names: each("subject_alt_names", &message.subject_alt_names, |name| named(name))?.into(),
        waypoint: message.waypoint.is_some(),
    })
}

fn addresses(list: &[Vec<u8>]) -> Result<Box<[IpAddr]>, Fault> {
    at_most(list.len(), MAX_ADDRESSES).at("addresses")?;
    each("addresses", list, |bytes| address(bytes)).map(Vec::into_boxed_slice)
}

fn address(bytes: &[u8]) -> Result<IpAddr, Fault> {
    wire::address(bytes).map(|ip| ip.to_canonical())
}

fn ports(field: &str, list: &[pb::Port]) -> Result<Box<[Port]>, Fault> {
    at_most(list.len(), MAX_PORTS).at(field)?;
    let port = |one: &pb::Port| {
        let service = wire::port(one.service_port).at("service_port")?;
        let target = wire::port(one.target_port).at("target_port")?;
        Ok(Port { service, target: Some(target).filter(|port| *port > 0) })
    };
    each(field, list, port).map(Vec::into_boxed_slice)
}

fn text(field: &str, value: &str) -> Result<Arc<str>, Fault> {
    named(value).at(field)
}

fn named(value: &str) -> Result<Arc<str>, Fault> {
    at_most(value.len(), MAX_NAME_BYTES).map(|()| value.into())
}

fn at_most(count: usize, limit: usize) -> Result<(), Fault> {
    if count > limit {
        return Err(Fault::new(format!("has a length of {count}, at most {limit} is allowed")));
    }
    Ok(())
}

fn unknown(field: &str, value: i32) -> Fault {
    Fault::field(field, format!("{value} is unknown"))
}
