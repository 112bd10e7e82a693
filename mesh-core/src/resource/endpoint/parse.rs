//! Reads `envoy.config.endpoint.v3.ClusterLoadAssignment`.
//!
//! In: the message and the assignment it replaces. Out: a [`LoadAssignment`] in which an endpoint
//! that did not change is the same object as before, and one that did keeps its counters.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::net::SocketAddr;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as pb;
use envoy_types::pb::google::protobuf as google;

use crate::identity::SpiffeId;
use crate::resource::Rejection;
use crate::resource::endpoint::{
    DEFAULT_OVERPROVISIONING, Endpoint, Health, LoadAssignment, Locality, LocalityEndpoints, WorkloadRef,
};
use crate::resource::fault::{At, Fault};
use crate::resource::wire::{MATCH_METADATA, decode, member, metadata, refuse, socket_address, text};

/// Most endpoints in one assignment; more are refused.
pub const MAX_ENDPOINTS: usize = 100_000;
/// Highest priority number (Envoy's limit).
const MAX_PRIORITY: u32 = 128;

const TUNNEL_METADATA: &str = "envoy.filters.listener.original_dst";
const OWN_METADATA: &str = "io.mesh.workload";

impl LoadAssignment {
    /// Parses a resource called `name`; `previous` is the version it replaces.
    pub fn parse(name: &str, body: &[u8], previous: Option<&LoadAssignment>) -> Result<Self, Rejection> {
        let read = || {
            let message: pb::ClusterLoadAssignment = decode(body)?;
            if message.cluster_name != name {
                return Err(Fault::field(
                    "cluster_name",
                    format!("is {:?}, the resource is called {name:?}", message.cluster_name),
                ));
            }
            Self::from_message(&message, previous)
        };
        read().map_err(|fault: Fault| fault.reject(name))
    }

    pub(crate) fn from_message(
        message: &pb::ClusterLoadAssignment,
        previous: Option<&LoadAssignment>,
    ) -> Result<Self, Fault> {
        refuse!(message; named_endpoints);
        let count: usize = message.endpoints.iter().map(|l| l.lb_endpoints.len()).sum();
        if count > MAX_ENDPOINTS {
            return Err(Fault::field("endpoints", format!("{count} endpoints, at most {MAX_ENDPOINTS} are allowed")));
        }
        let mut seen = Seen::of(previous);
        let localities = message
            .endpoints
            .iter()
            .enumerate()
            .map(|(i, message)| locality(message, &mut seen).at_index("endpoints", i))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(LoadAssignment::new(
            Arc::from(message.cluster_name.as_str()),
            localities,
            overprovisioning(message.policy.as_ref()).at("policy")?,
            previous.map(|p| p.runtime.clone()).unwrap_or_default(),
        ))
    }
}

/// What endpoints of an assignment have in common, held once: replicas have the same workload and
/// identity, and most endpoints are those of the version before.
struct Seen<'a> {
    before: HashMap<SocketAddr, &'a Arc<Endpoint>>,
    workloads: HashSet<Arc<WorkloadRef>>,
    identities: HashSet<SpiffeId>,
}

impl<'a> Seen<'a> {
    fn of(previous: Option<&'a LoadAssignment>) -> Self {
        let before = || previous.iter().flat_map(|assignment| assignment.endpoints());
        Seen {
            before: before().map(|endpoint| (endpoint.address, endpoint)).collect(),
            workloads: before().filter_map(|endpoint| endpoint.workload.clone()).collect(),
            identities: before().filter_map(|endpoint| endpoint.identity.clone()).collect(),
        }
    }

    /// The endpoint of the version before if nothing changed, else a new one with its counters.
    fn share(&mut self, mut endpoint: Endpoint) -> Arc<Endpoint> {
        match self.before.get(&endpoint.address) {
            Some(old) if ***old == endpoint => return (*old).clone(),
            Some(old) => endpoint.runtime = old.runtime.clone(),
            None => {}
        }
        endpoint.workload = endpoint.workload.map(|workload| hold(&mut self.workloads, workload));
        endpoint.identity = endpoint.identity.map(|identity| hold(&mut self.identities, identity));
        Arc::new(endpoint)
    }
}

/// The equal value already held, or the one given, which is held from now on.
fn hold<T: Clone + Eq + Hash>(held: &mut HashSet<T>, value: T) -> T {
    if let Some(equal) = held.get(&value) {
        return equal.clone();
    }
    held.insert(value.clone());
    value
}

fn overprovisioning(message: Option<&pb::cluster_load_assignment::Policy>) -> Result<u32, Fault> {
    let Some(message) = message else {
        return Ok(DEFAULT_OVERPROVISIONING);
    };
    refuse!(message; drop_overloads, weighted_priority_health);
    match message.overprovisioning_factor.as_ref().map(|f| f.value) {
        None => Ok(DEFAULT_OVERPROVISIONING),
        Some(0) => Err(Fault::field("overprovisioning_factor", "must be above zero")),
        Some(factor) => Ok(factor),
    }
}

fn locality(message: &pb::LocalityLbEndpoints, seen: &mut Seen<'_>) -> Result<LocalityEndpoints, Fault> {
    refuse!(message; lb_config);
    if message.priority > MAX_PRIORITY {
        return Err(Fault::field("priority", format!("is above {MAX_PRIORITY}")));
    }
    let place = message.locality.as_ref();
    let part =
        |part: fn(&core::Locality) -> &String| Arc::from(place.map(|place| part(place).as_str()).unwrap_or_default());
    let mut endpoints = Vec::with_capacity(message.lb_endpoints.len());
    for (i, message) in message.lb_endpoints.iter().enumerate() {
        let endpoint = endpoint(message).at_index("lb_endpoints", i)?;
        endpoints.push(seen.share(endpoint));
    }
    Ok(LocalityEndpoints {
        locality: Locality {
            region: part(|place| &place.region),
            zone: part(|place| &place.zone),
            sub_zone: part(|place| &place.sub_zone),
        },
        priority: message.priority,
        weight: message.load_balancing_weight.as_ref().map(|w| w.value),
        endpoints,
    })
}

fn endpoint(message: &pb::LbEndpoint) -> Result<Endpoint, Fault> {
    use pb::lb_endpoint::HostIdentifier;
    let Some(HostIdentifier::Endpoint(host)) = &message.host_identifier else {
        return Err(Fault::field("endpoint", "missing"));
    };
    let about = message.metadata.as_ref();
    let socket_match = |key| text(metadata(about, MATCH_METADATA, key));
    let weight = match message.load_balancing_weight.as_ref().map(|w| w.value) {
        None => 1,
        Some(0) => return Err(Fault::field("load_balancing_weight", "must be above zero")),
        Some(weight) => weight,
    };
    Ok(Endpoint {
        address: address(host, about).at("endpoint.address")?,
        weight,
        health: health(message.health_status).at("health_status")?,
        tunnel: socket_match("tunnel") == Some("http"),
        istio_mtls: socket_match("tlsMode") == Some("istio"),
        identity: identity(about).at("metadata")?,
        host: text(metadata(about, OWN_METADATA, "host")) == Some("true"),
        workload: workload(about).map(Arc::new),
        runtime: Arc::default(),
    })
}

/// A literal address; that of Istio's internal listeners stands for the one in their metadata.
fn address(host: &pb::Endpoint, about: Option<&core::Metadata>) -> Result<SocketAddr, Fault> {
    use core::address::Address;
    match host.address.as_ref().and_then(|address| address.address.as_ref()) {
        Some(Address::SocketAddress(socket)) => socket_address(socket).at("socket_address"),
        Some(Address::EnvoyInternalAddress(_)) => {
            let local = text(metadata(about, TUNNEL_METADATA, "local"));
            local
                .and_then(|local| local.parse::<SocketAddr>().ok())
                .map(|addr| SocketAddr::new(addr.ip().to_canonical(), addr.port()))
                .ok_or_else(|| {
                    Fault::field(
                        "envoy_internal_address",
                        format!("needs metadata {TUNNEL_METADATA}.local with address and port"),
                    )
                })
        }
        Some(Address::Pipe(_)) => Err(Fault::field("pipe", "not supported")),
        None => Err(Fault::new("missing")),
    }
}

fn health(status: i32) -> Result<Health, Fault> {
    match core::HealthStatus::try_from(status) {
        Ok(core::HealthStatus::Unknown | core::HealthStatus::Healthy) => Ok(Health::Healthy),
        Ok(core::HealthStatus::Degraded) => Ok(Health::Degraded),
        Ok(core::HealthStatus::Unhealthy | core::HealthStatus::Draining | core::HealthStatus::Timeout) => {
            Ok(Health::Unhealthy)
        }
        Err(_) => Err(Fault::new(format!("{status} is unknown"))),
    }
}

/// An identity that is there but cannot be read is refused: without it the peer would go unproven.
fn identity(about: Option<&core::Metadata>) -> Result<Option<SpiffeId>, Fault> {
    match metadata(about, OWN_METADATA, "identity") {
        None => Ok(None),
        Some(google::value::Kind::StringValue(id)) => {
            SpiffeId::parse(id).map(Some).map_err(|error| Fault::field("io.mesh.workload.identity", error.to_string()))
        }
        Some(_) => Err(Fault::field("io.mesh.workload.identity", "is not a text")),
    }
}

/// `istio.workload` is "name;namespace;canonical service;canonical revision;cluster".
fn workload(about: Option<&core::Metadata>) -> Option<WorkloadRef> {
    let line = text(metadata(about, "istio", "workload"))?;
    let own = about.and_then(|about| about.filter_metadata.get(OWN_METADATA));
    let label = |key| Arc::from(own.and_then(|own| text(member(own, key))).unwrap_or_default());
    let mut parts = line.split(';');
    let mut next = || parts.next().unwrap_or_default();
    let (name, namespace, service, revision, cluster) = (next(), next(), next(), next(), next());
    Some(WorkloadRef {
        name: Arc::from(name),
        namespace: Arc::from(namespace),
        canonical_service: Arc::from(service),
        canonical_revision: Arc::from(if revision.is_empty() { "latest" } else { revision }),
        cluster: Arc::from(cluster),
        app: label("app"),
        version: label("version"),
    })
}
