//! Outbound clusters: one per service port and subset, and the two that every client has.
//!
//! In: the mesh and a client. Out: clusters with their assignments, named `outbound|<port>|<subset>|<host>`.

use std::collections::BTreeSet;
use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::cluster::v3::cluster as detail;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::transport_sockets::internal_upstream::v3::InternalUpstreamTransport;
use envoy_types::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use envoy_types::pb::google::protobuf as google;
use prost::Message;

use super::checked::{Named, encode, encode_as, hash};
use super::memo::{Memo, Same};
use super::pb::{ads, any, list, metadata, nested, structure, text};
use super::{Client, endpoint, policy, tls};
use crate::config::Labels;
use crate::config::destination_rule::TrafficPolicy;
use crate::model::rules::DestinationPolicy;
use crate::model::service::{Endpoint, Port, Resolution, Service, selects};
use crate::model::{Mesh, MeshOptions};
use crate::resource::Kind;

/// Name of an outbound cluster.
pub(crate) fn name(port: u16, subset: &str, host: &str) -> String {
    format!("outbound|{port}|{subset}|{host}")
}

/// A service's clusters, with the assignments of those whose endpoints come by EDS.
pub(super) type OfService = Arc<[(Named, Option<Named>)]>;
/// What they are made of, besides the service.
pub(super) type From = Option<Same<DestinationPolicy>>;

/// Clusters, and the assignments of those whose endpoints come by EDS.
pub(super) fn outbound(
    mesh: &Mesh,
    client: &Client<'_>,
    memo: &mut Memo<Service, From, OfService>,
) -> (Vec<Named>, Vec<Named>) {
    let (mut clusters, mut assignments) = (vec![black_hole(), passthrough()], Vec::new());
    for service in mesh.visible(client.namespace) {
        let rule = mesh.rules.policy(&service.host, client.namespace, &service.namespace, &mesh.options.root_namespace);
        let of = memo.made(service, rule.cloned().map(Same), |rule| {
            of_service(&mesh.options, service, rule.as_ref().map(|rule| &*rule.0))
        });
        for (cluster, assignment) in of.iter() {
            clusters.push(cluster.clone());
            assignments.extend(assignment.clone());
        }
    }
    (clusters, assignments)
}

fn of_service(options: &MeshOptions, service: &Service, rule: Option<&DestinationPolicy>) -> OfService {
    let mut all = Vec::new();
    for port in &service.ports {
        let whole = rule.map(|rule| rule.policy.of_port(port.number)).unwrap_or_default();
        all.push(one(options, service, port, None, &whole));
        for subset in rule.iter().flat_map(|rule| &rule.subsets) {
            let merged = subset.traffic_policy.over(&rule.map(|rule| rule.policy.clone()).unwrap_or_default());
            let policy = merged.of_port(port.number);
            all.push(one(options, service, port, Some((&subset.name, &subset.labels)), &policy));
        }
    }
    all.into()
}

#[expect(deprecated, reason = "Istio sends respect_dns_ttl")]
fn one(
    options: &MeshOptions,
    service: &Service,
    port: &Port,
    subset: Option<(&str, &Labels)>,
    rule: &TrafficPolicy,
) -> (Named, Option<Named>) {
    let (subset_name, labels) = subset.map_or(("", None), |(name, labels)| (name, Some(labels)));
    let name = name(port.number, subset_name, &service.host);
    let endpoints: Vec<&Endpoint> = port
        .endpoints
        .iter()
        .filter(|endpoint| labels.is_none_or(|labels| selects(labels, &endpoint.labels)))
        .collect();
    let resolution = if policy::passthrough(rule) { Resolution::Passthrough } else { service.resolution };
    let mut message = pb::Cluster { name: name.clone(), ..Default::default() };
    let discovery = match resolution {
        Resolution::Static => detail::DiscoveryType::Eds,
        Resolution::Passthrough => detail::DiscoveryType::OriginalDst,
        Resolution::Dns => detail::DiscoveryType::StrictDns,
        Resolution::DnsRoundRobin => detail::DiscoveryType::LogicalDns,
    };
    message.cluster_discovery_type = Some(detail::ClusterDiscoveryType::Type(discovery.into()));
    let mut assignment = None;
    match resolution {
        Resolution::Static => {
            message.eds_cluster_config =
                Some(detail::EdsClusterConfig { eds_config: Some(ads()), service_name: name.clone() });
            assignment = Some(endpoint::resource(options, &name, &endpoints));
            if !service.external {
                let sans = identities(service, port);
                message.transport_socket_matches = sockets(port.number, subset_name, &service.host, &sans);
            }
        }
        Resolution::Dns | Resolution::DnsRoundRobin => {
            message.respect_dns_ttl = true;
            message.load_assignment = Some(endpoint::assignment(options, &name, &endpoints));
        }
        Resolution::Passthrough => {}
    }
    policy::apply(rule, port.protocol, &mut message);
    // Metadata is a map, whose bytes come in random order: the version is made of the rest and of what is in it.
    let content =
        (message.encode_to_vec(), &service.host, &service.name, &service.namespace, subset_name, service.external);
    let content = hash(&content);
    message.metadata = Some(about(service, subset_name));
    (encode_as(Kind::Cluster, &name, &message, &content), assignment)
}

/// Identities that any endpoint of the port may have, in order.
fn identities(service: &Service, port: &Port) -> BTreeSet<String> {
    let workloads =
        port.endpoints.iter().filter(|one| one.tunnel || one.has_sidecar()).filter_map(|one| one.workload.as_ref());
    let own = workloads.filter_map(|workload| workload.identity.as_ref());
    own.chain(&service.sans).map(ToString::to_string).collect()
}

fn about(service: &Service, subset: &str) -> core::Metadata {
    let one = structure([
        ("host", text(&service.host)),
        ("name", text(&service.name)),
        ("namespace", text(&service.namespace)),
    ]);
    let mut istio = structure([("services", list(vec![nested(one)]))]);
    if !subset.is_empty() {
        istio.fields.insert("subset".to_owned(), text(subset));
    }
    if service.external {
        let yes = google::Value { kind: Some(google::value::Kind::BoolValue(true)) };
        istio.fields.insert("external".to_owned(), yes);
    }
    metadata([("istio", istio)])
}

/// Through a tunnel where the endpoint has one, with Istio's TLS where it asks for that, else plain.
fn sockets(port: u16, subset: &str, host: &str, sans: &BTreeSet<String>) -> Vec<detail::TransportSocketMatch> {
    let socket = |name: &str, config| core::TransportSocket {
        name: name.to_owned(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(config)),
    };
    let one = |name: &str, criteria, transport_socket| detail::TransportSocketMatch {
        name: name.to_owned(),
        r#match: Some(criteria),
        transport_socket: Some(transport_socket),
    };
    let raw = || socket("envoy.transport_sockets.raw_buffer", any(&RawBuffer {}));
    let internal = InternalUpstreamTransport { transport_socket: Some(raw()), ..Default::default() };
    let sni = format!("outbound_.{port}_.{subset}_.{host}");
    vec![
        one(
            "hbone",
            structure([("tunnel", text("http"))]),
            socket("envoy.transport_sockets.internal_upstream", any(&internal)),
        ),
        one(
            "tlsMode-istio",
            structure([("tlsMode", text("istio"))]),
            socket("envoy.transport_sockets.tls", any(&tls::upstream(sni, sans.iter().cloned()))),
        ),
        one("tlsMode-disabled", google::Struct::default(), raw()),
    ]
}

fn black_hole() -> Named {
    let message = pb::Cluster {
        name: "BlackHoleCluster".to_owned(),
        cluster_discovery_type: Some(detail::ClusterDiscoveryType::Type(detail::DiscoveryType::Static.into())),
        ..Default::default()
    };
    encode(Kind::Cluster, "BlackHoleCluster", &message)
}

fn passthrough() -> Named {
    let mut message = pb::Cluster {
        name: "PassthroughCluster".to_owned(),
        cluster_discovery_type: Some(detail::ClusterDiscoveryType::Type(detail::DiscoveryType::OriginalDst.into())),
        ..Default::default()
    };
    policy::apply(&TrafficPolicy::default(), crate::model::protocol::Protocol::Auto, &mut message);
    encode(Kind::Cluster, "PassthroughCluster", &message)
}
