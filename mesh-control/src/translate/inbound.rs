//! What a workload is told about connections to itself.
//!
//! In: a workload and what it serves. Out: the listener `virtualInbound` and clusters `inbound|<port>||`. Which chains a port has
//! depends on its protocol and on who may come in (PeerAuthentication).

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
    ANY, BLACK_HOLE, Routes, Target, http_chain, http_inspector, listener as empty_listener, original_dst, tcp_chain,
    tls_inspector,
};
use super::checked::{Named, encode, encode_as, hash};
use super::door::{Door, doors};
use super::listener::DETECTION_TIMEOUT;
use super::pb::{boolean, duration, list, metadata, nested, socket_address, structure, text, uint32};
use super::route::{table, virtual_host};
use super::{matches, policy, tls};
use crate::config::destination_rule::TrafficPolicy;
use crate::model::authentication::MtlsMode;
use crate::model::protocol::Protocol;
use crate::model::workload::Workload;
use crate::model::{Membership, MeshOptions};
use crate::resource::Kind;

/// Port of the listener that takes connections to the workload.
const INBOUND_PORT: u16 = 15006;
/// Cluster of connections to ports that no service has.
const PASSTHROUGH: &str = "InboundPassthroughCluster";

/// Services by the workload's port; the oldest first.
fn ports(memberships: &[Membership]) -> BTreeMap<u16, Vec<&Membership>> {
    let mut ports: BTreeMap<u16, Vec<&Membership>> = BTreeMap::new();
    for one in memberships {
        ports.entry(one.target_port).or_default().push(one);
    }
    ports
}

pub(crate) fn listener(options: &MeshOptions, memberships: &[Membership], workload: &Workload) -> Named {
    let name = "virtualInbound";
    let mut message = empty_listener(name.to_owned(), &ANY, INBOUND_PORT, true);
    // The agent's own port is not a destination: it would dial itself.
    message.filter_chains =
        vec![tcp_chain("virtualInbound-blackhole", Some(at(INBOUND_PORT)), &Target::one(BLACK_HOLE))];
    let ports = ports(memberships);
    for (port, services) in ports.iter().filter(|(port, _)| **port != INBOUND_PORT) {
        // Of services that say different things of one port the oldest is believed.
        if let Some(first) = services.first() {
            message.filter_chains.extend(port_chains(options, workload, *port, first));
        }
    }
    let undeclared = workload.mtls.ports.keys().filter(|port| !ports.contains_key(port) && **port != INBOUND_PORT);
    for port in undeclared.map(|port| Some(*port)).chain([None]) {
        message.filter_chains.extend(passthrough_chains(options, workload, port));
    }
    let tells_tls = |chain: &pb::FilterChain| {
        chain.filter_chain_match.as_ref().is_some_and(|matches| matches.transport_protocol == "tls")
    };
    message.listener_filters = vec![original_dst()];
    message.listener_filters.extend(message.filter_chains.iter().any(tells_tls).then(tls_inspector));
    message.listener_filters.push(http_inspector());
    message.listener_filters_timeout = duration(DETECTION_TIMEOUT);
    message.continue_on_listener_filters_timeout = true;
    encode(Kind::Listener, name, &message)
}

fn at(port: u16) -> pb::FilterChainMatch {
    pb::FilterChainMatch { destination_port: uint32(port.into()), ..Default::default() }
}

/// A declared protocol needs no look at the bytes; only an undeclared one is detected.
fn port_chains(options: &MeshOptions, workload: &Workload, port: u16, one: &Membership) -> Vec<pb::FilterChain> {
    let Some(service_port) = one.service.ports.get(one.port) else { return Vec::new() };
    let cluster = cluster_name(port);
    let name = format!("0.0.0.0_{port}");
    let served = Served {
        port: Some(port),
        tcp: &name,
        http: &name,
        stat_prefix: format!("inbound_{name};"),
        vhost: format!("inbound|http|{}", service_port.number),
        operation: format!("{}:{}/*", one.service.host, service_port.number),
        cluster: &cluster,
    };
    served.chains(options, workload.mtls.of_port(port), service_port.protocol)
}

/// What no service declares passes through to where it was going, with the port's own mode or that of the workload.
fn passthrough_chains(options: &MeshOptions, workload: &Workload, port: Option<u16>) -> Vec<pb::FilterChain> {
    let served = Served {
        port,
        tcp: "virtualInbound",
        http: "virtualInbound-catchall-http",
        stat_prefix: format!("inbound_0.0.0.0_{INBOUND_PORT};"),
        vhost: "*".to_owned(),
        operation: String::new(),
        cluster: PASSTHROUGH,
    };
    let mode = port.map_or(workload.mtls.default, |port| workload.mtls.of_port(port));
    served.chains(options, mode, Protocol::Auto)
}

/// Where connections to a port go, and what the chains that serve them are called.
struct Served<'s> {
    port: Option<u16>,
    tcp: &'s str,
    http: &'s str,
    stat_prefix: String,
    vhost: String,
    operation: String,
    cluster: &'s str,
}

impl Served<'_> {
    fn chains(&self, options: &MeshOptions, mode: MtlsMode, protocol: Protocol) -> Vec<pb::FilterChain> {
        let chain = |door: Door| {
            let destination_port = self.port.and_then(|port| uint32(port.into()));
            let matches = pb::FilterChainMatch { destination_port, ..door.matches };
            let mut chain = if door.http {
                let routes = inline(self.cluster, self.cluster, &self.vhost, &self.operation);
                http_chain(self.http, Some(matches), self.stat_prefix.clone(), routes)
            } else {
                tcp_chain(self.tcp, Some(matches), &Target::one(self.cluster))
            };
            chain.transport_socket = door.mutual.then(|| tls::downstream(options, door.http));
            chain
        };
        doors(mode, protocol).into_iter().map(chain).collect()
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

pub(crate) fn clusters(memberships: &[Membership]) -> Vec<Named> {
    let mut all: Vec<Named> = ports(memberships)
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
