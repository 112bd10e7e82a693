//! Endpoints of a cluster as a ClusterLoadAssignment.
//!
//! In: endpoints of a service port. Out: the message, with Istio's signals for a tunnel or for a sidecar's mutual TLS, and what telemetry and TLS want to
//! know of the workload behind each.

use std::hash::{Hash, Hasher};

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as pb;

use super::checked::{Named, encode_as};
use super::pb::{address, metadata, structure, text, uint32};
use crate::model::MeshOptions;
use crate::model::service::Endpoint;
use crate::resource::Kind;

/// The assignment as a resource of EDS.
pub(crate) fn resource(options: &MeshOptions, cluster: &str, endpoints: &[&Endpoint]) -> Named {
    encode_as(
        Kind::Endpoint,
        cluster,
        &assignment(options, cluster, endpoints),
        &(Content(endpoints), &options.cluster_id),
    )
}

/// The message; also inline in clusters that are resolved by DNS.
pub(crate) fn assignment(options: &MeshOptions, cluster: &str, endpoints: &[&Endpoint]) -> pb::ClusterLoadAssignment {
    let locality = pb::LocalityLbEndpoints {
        locality: Some(core::Locality::default()),
        load_balancing_weight: uint32(endpoints.iter().fold(0u32, |sum, one| sum.saturating_add(one.weight)).max(1)),
        lb_endpoints: endpoints.iter().map(|endpoint| lb_endpoint(options, endpoint)).collect(),
        ..Default::default()
    };
    pb::ClusterLoadAssignment {
        cluster_name: cluster.to_owned(),
        endpoints: if endpoints.is_empty() { Vec::new() } else { vec![locality] },
        ..Default::default()
    }
}

fn lb_endpoint(options: &MeshOptions, endpoint: &Endpoint) -> pb::LbEndpoint {
    pb::LbEndpoint {
        health_status: core::HealthStatus::Healthy.into(),
        load_balancing_weight: uint32(endpoint.weight),
        metadata: about(options, endpoint),
        host_identifier: Some(pb::lb_endpoint::HostIdentifier::Endpoint(pb::Endpoint {
            address: Some(address(&endpoint.address, endpoint.port)),
            ..Default::default()
        })),
    }
}

fn about(options: &MeshOptions, endpoint: &Endpoint) -> Option<core::Metadata> {
    let workload = endpoint.workload.as_ref()?;
    let revision = if &*workload.canonical_revision == "latest" { "" } else { &workload.canonical_revision };
    let istio = format!(
        "{};{};{};{revision};{}",
        workload.workload_name, workload.namespace, workload.canonical_name, options.cluster_id
    );
    let mut message = metadata([("istio", structure([("workload", text(&istio))]))]);
    let identity = workload.identity.as_ref().map(ToString::to_string).unwrap_or_default();
    if endpoint.tunnel {
        let mut own = structure([
            ("identity", text(&identity)),
            ("app", text(&workload.app)),
            ("version", text(&workload.version)),
        ]);
        if workload.ports.are_of_a_host() {
            own.fields.insert("host".to_owned(), text("true"));
        }
        message.filter_metadata.insert("io.mesh.workload".to_owned(), own);
        let tunnel = structure([("tunnel", text("http"))]);
        message.filter_metadata.insert("envoy.transport_socket_match".to_owned(), tunnel);
    }
    if endpoint.has_sidecar() {
        let mode = structure([("tlsMode", text("istio"))]);
        message.filter_metadata.insert("envoy.transport_socket_match".to_owned(), mode);
    }
    Some(message)
}

/// What the message is made of, in a fixed order.
struct Content<'e>(&'e [&'e Endpoint]);

impl Hash for Content<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.len().hash(state);
        for endpoint in self.0 {
            (&endpoint.address, endpoint.port, endpoint.weight, endpoint.tunnel, endpoint.has_sidecar()).hash(state);
            endpoint.workload.is_some().hash(state);
            if let Some(workload) = &endpoint.workload {
                (&workload.workload_name, &workload.namespace, &workload.canonical_name).hash(state);
                (&workload.canonical_revision, &workload.app, &workload.version, &workload.identity).hash(state);
                workload.ports.are_of_a_host().hash(state);
            }
        }
    }
}
