//! What a workload is told about connections to itself.
//!
//! In: the mesh and a workload. Out: the listener `virtualInbound` and clusters `inbound|<port>||`. PERMISSIVE: what comes
//! in plain is served as what comes through a tunnel.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::cluster::v3 as cds;
use envoy_types::pb::envoy::config::cluster::v3::cluster as detail;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use prost::Message;

use super::action::without_timeouts;
use super::chain::{
    ANY, BLACK_HOLE, Routes, Target, http_chain, http_inspector, listener as empty_listener, original_dst, plain,
    plain_http, tcp_chain,
};
use super::checked::{Named, encode, encode_as, hash};
use super::listener::DETECTION_TIMEOUT;
use super::pb::{boolean, duration, list, metadata, nested, socket_address, structure, text, uint32};
use super::route::{table, virtual_host};
use super::{matches, policy};
use crate::config::destination_rule::TrafficPolicy;
use crate::model::protocol::Protocol;
use crate::model::workload::Workload;
use crate::model::{Membership, Mesh};
use crate::resource::Kind;

/// Port of the listener that takes connections to the workload.
const INBOUND_PORT: u16 = 15006;
/// Cluster of connections to ports that no service has.
const PASSTHROUGH: &str = "InboundPassthroughCluster";

/// Services by the workload's port; the oldest first.
fn ports<'m>(mesh: &'m Mesh, workload: &Workload) -> BTreeMap<u16, Vec<&'m Membership>> {
    let mut ports: BTreeMap<u16, Vec<&Membership>> = BTreeMap::new();
    for one in mesh.memberships(workload) {
        ports.entry(one.target_port).or_default().push(one);
    }
    ports
}

pub(crate) fn listener(mesh: &Mesh, workload: &Workload) -> Named {
    let name = "virtualInbound";
    let mut message = empty_listener(name.to_owned(), &ANY, INBOUND_PORT, true);
    // The agent's own port is not a destination: it would dial itself.
    message.filter_chains =
        vec![tcp_chain("virtualInbound-blackhole", Some(at(INBOUND_PORT)), &Target::one(BLACK_HOLE))];
    for (port, services) in ports(mesh, workload) {
        // Of services that say different things of one port the oldest is believed.
        if let Some(first) = services.first() {
            message.filter_chains.extend(port_chains(port, first));
        }
    }
    let catch_all = inline(PASSTHROUGH, PASSTHROUGH, "*", "");
    let stat_prefix = format!("inbound_0.0.0.0_{INBOUND_PORT};");
    message.filter_chains.extend([
        http_chain("virtualInbound-catchall-http", Some(plain_http()), stat_prefix, catch_all),
        tcp_chain("virtualInbound", Some(plain()), &Target::one(PASSTHROUGH)),
    ]);
    message.listener_filters = vec![original_dst(), http_inspector()];
    message.listener_filters_timeout = duration(DETECTION_TIMEOUT);
    message.continue_on_listener_filters_timeout = true;
    encode(Kind::Listener, name, &message)
}

fn at(port: u16) -> pb::FilterChainMatch {
    pb::FilterChainMatch { destination_port: uint32(port.into()), ..Default::default() }
}

/// A declared protocol needs no look at the bytes; only an undeclared one is detected.
fn port_chains(port: u16, one: &Membership) -> Vec<pb::FilterChain> {
    let Some(service_port) = one.service.ports.get(one.port) else { return Vec::new() };
    let cluster = cluster_name(port);
    let name = format!("0.0.0.0_{port}");
    let http = |matches| {
        let operation = format!("{}:{}/*", one.service.host, service_port.number);
        let vhost = format!("inbound|http|{}", service_port.number);
        let routes = inline(&cluster, &cluster, &vhost, &operation);
        http_chain(&name, Some(matches), format!("inbound_{name};"), routes)
    };
    let tcp = |matches| tcp_chain(&name, Some(matches), &Target::one(cluster.clone()));
    let here = |matches| pb::FilterChainMatch { destination_port: uint32(port.into()), ..matches };
    match service_port.protocol {
        protocol if protocol.is_http() => vec![http(at(port))],
        Protocol::Auto => {
            vec![http(here(plain_http())), tcp(here(plain()))]
        }
        _ => vec![tcp(at(port))],
    }
}

fn inline(table_name: &str, cluster: &str, vhost: &str, operation: &str) -> Routes {
    let action = route::RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        ..without_timeouts()
    };
    let route = route::Route {
        name: "default".to_owned(),
        r#match: Some(matches::everything()),
        decorator: (!operation.is_empty())
            .then(|| route::Decorator { operation: operation.to_owned(), ..Default::default() }),
        action: Some(route::route::Action::Route(action)),
        ..Default::default()
    };
    let vhost = virtual_host(vhost.to_owned(), vec!["*".to_owned()], vec![route]);
    Routes::Inline(Box::new(table(table_name.to_owned(), vec![vhost])))
}

fn cluster_name(port: u16) -> String {
    format!("inbound|{port}||")
}

pub(crate) fn clusters(mesh: &Mesh, workload: &Workload) -> Vec<Named> {
    let mut all: Vec<Named> = ports(mesh, workload)
        .into_iter()
        .map(|(port, services)| {
            let protocol = services.first().and_then(|one| one.service.ports.get(one.port)).map(|port| port.protocol);
            let mut message = local(&cluster_name(port), protocol.unwrap_or(Protocol::Auto));
            let names: Vec<_> =
                services.iter().map(|one| (&one.service.host, &one.service.name, &one.service.namespace)).collect();
            // Metadata is a map, whose bytes come in random order: the version is made of the rest and of what is in it.
            let content = (message.encode_to_vec(), &names);
            let content = hash(&content);
            let services = names.iter().map(|(host, name, namespace)| {
                nested(structure([("host", text(host)), ("name", text(name)), ("namespace", text(namespace))]))
            });
            message.metadata = Some(metadata([("istio", structure([("services", list(services.collect()))]))]));
            encode_as(Kind::Cluster, &message.name.clone(), &message, &content)
        })
        .collect();
    all.push(encode(Kind::Cluster, PASSTHROUGH, &local(PASSTHROUGH, Protocol::Auto)));
    all
}

/// A cluster to where the client was going, dialled from a loopback address as Istio does.
fn local(name: &str, protocol: Protocol) -> cds::Cluster {
    let mut message = cds::Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(detail::ClusterDiscoveryType::Type(detail::DiscoveryType::OriginalDst.into())),
        upstream_bind_config: Some(core::BindConfig {
            source_address: Some(socket_address("127.0.0.6", 0)),
            extra_source_addresses: vec![core::ExtraSourceAddress {
                address: Some(socket_address("::6", 0)),
                ..Default::default()
            }],
            freebind: boolean(false),
            ..Default::default()
        }),
        ..Default::default()
    };
    policy::apply(&TrafficPolicy::default(), protocol, &mut message);
    message
}
