//! Outbound listeners: one per HTTP port, one per address of a TCP or detected service, and the one for everything else.
//!
//! In: the mesh and a client. Out: LDS resources named `<address>_<port>` and `virtualOutbound`.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::listener::v3 as pb;
use ipnet::IpNet;

use super::action::Targets;
use super::chain::{
    ANY, BLACK_HOLE, PASSTHROUGH, PASSTHROUGH_CHAIN, Routes, Target, http_chain, http_inspector, listener, plain_http,
    tcp_chain, tls_inspector,
};
use super::checked::{Named, encode};
use super::memo::{Memo, Same};
use super::pb::{boolean, cidr, duration, uint32};
use super::route::{MeshTargets, hash_of};
use super::{Client, cluster, matches};
use crate::config::service_entry::EntryAddress;
use crate::config::virtual_service::L4Destination;
use crate::model::Mesh;
use crate::model::protocol::Protocol;
use crate::model::rules::DestinationPolicy;
use crate::model::service::{Port, Service};
use crate::resource::Kind;

/// Port of the listener that takes every caught connection.
const OUTBOUND_PORT: u16 = 15001;
/// How long the first bytes of a connection to a port of unknown protocol are waited for. A server that speaks first is
/// delayed by so much there, once per connection; a client that is slower than that is served as opaque bytes.
pub(crate) const DETECTION_TIMEOUT: Duration = Duration::from_secs(1);

/// What shares the wildcard address of one port.
#[derive(Default)]
struct Shared {
    http: bool,
    server_names: Vec<(Vec<String>, Target)>,
    ranges: Vec<(Vec<IpNet>, Target)>,
    rest: Option<Target>,
}

/// A service's own listeners.
pub(super) type OfService = Arc<[Named]>;
/// What they are made of, besides a service that no VirtualService routes: its policy, and where each port has listeners of
/// its own.
pub(super) type From = (Option<Same<DestinationPolicy>>, Vec<Vec<String>>);

pub(super) fn outbound(mesh: &Mesh, client: &Client<'_>, memo: &mut Memo<Service, From, OfService>) -> Vec<Named> {
    let mut list = Vec::new();
    let mut bound = HashSet::new();
    let mut shared: BTreeMap<u16, Shared> = BTreeMap::new();
    for service in mesh.visible(client.namespace) {
        let mut hosts: Vec<Vec<String>> = Vec::with_capacity(service.ports.len());
        for port in &service.ports {
            let own = (!port.protocol.is_http()).then(|| addresses(service, port)).into_iter().flatten();
            hosts.push(own.filter(|host| bound.insert((host.clone(), port.number))).collect());
            share(mesh, client, service, port, shared.entry(port.number).or_default());
        }
        let rule = mesh.rules.policy(&service.host, client.namespace, &service.namespace, &mesh.options.root_namespace);
        let make = |(_, hosts): &From| of_service(mesh, client, service, hosts);
        let from = (rule.cloned().map(Same), hosts);
        // A VirtualService may lead to other services.
        let listeners = match mesh.rules.virtual_rule(&service.host, client.namespace) {
            Some(_) => make(&from),
            None => memo.made(service, from, make),
        };
        list.extend(listeners.iter().cloned());
    }
    list.extend(shared.into_iter().filter_map(|(port, shared)| wildcard(port, shared)));
    list.push(virtual_outbound());
    list
}

fn of_service(mesh: &Mesh, client: &Client<'_>, service: &Service, hosts: &[Vec<String>]) -> OfService {
    let ports = service.ports.iter().zip(hosts).filter(|(_, hosts)| !hosts.is_empty());
    let own = ports.flat_map(|(port, hosts)| {
        let several: Vec<&[String]> = if service.headless { hosts.chunks(1).collect() } else { vec![hosts] };
        several.into_iter().map(move |hosts| own(mesh, client, service, port, hosts))
    });
    own.collect()
}

/// Where a service has a listener of its own.
fn addresses<'s>(service: &'s Service, port: &'s Port) -> Box<dyn Iterator<Item = String> + 's> {
    if service.headless {
        Box::new(port.endpoints.iter().map(|endpoint| endpoint.address.to_string()))
    } else {
        Box::new(service.single_addresses().map(|address| address.to_string()))
    }
}

/// The listener of a service at its own addresses.
fn own(mesh: &Mesh, client: &Client<'_>, service: &Service, port: &Port, hosts: &[String]) -> Named {
    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
    let name = format!("{}_{}", hosts.first().copied().unwrap_or_default(), port.number);
    let mut message = listener(name.clone(), &hosts, port.number, false);
    message.bind_to_port = boolean(false);
    let target = tcp_target(mesh, client, service, port);
    if port.protocol == Protocol::Auto {
        let routes = Routes::Named(format!("{}:{}", service.host, port.number));
        let stat_prefix = format!("outbound_{};", name);
        message.filter_chains = vec![http_chain("", Some(plain_http()), stat_prefix, routes)];
        message.default_filter_chain = Some(tcp_chain(PASSTHROUGH_CHAIN, None, &target));
        message.listener_filters = vec![tls_inspector(), http_inspector()];
        message.listener_filters_timeout = duration(DETECTION_TIMEOUT);
        message.continue_on_listener_filters_timeout = true;
        return encode(Kind::Listener, &name, &message);
    }
    let by_name = if port.protocol.is_tls() { tls_targets(mesh, client, service, port) } else { Vec::new() };
    if !by_name.is_empty() {
        message.filter_chains = by_name.into_iter().map(|(names, target)| tls_chain(names, &target)).collect();
        message.listener_filters = vec![tls_inspector()];
        message.listener_filters_timeout = duration(DETECTION_TIMEOUT);
        message.continue_on_listener_filters_timeout = true;
        message.default_filter_chain = Some(tcp_chain("", None, &target));
    } else {
        message.filter_chains = vec![tcp_chain("", None, &target)];
    }
    encode(Kind::Listener, &name, &message)
}

/// Puts on the wildcard address of a port what a service has no address of its own for.
fn share(mesh: &Mesh, client: &Client<'_>, service: &Service, port: &Port, shared: &mut Shared) {
    if port.protocol.is_http() {
        shared.http = true;
        return;
    }
    let ranges: Vec<IpNet> = service
        .addresses
        .iter()
        .filter_map(|address| match address {
            EntryAddress::Range(net) => Some(*net),
            EntryAddress::Single(_) => None,
        })
        .collect();
    if !ranges.is_empty() {
        shared.ranges.push((ranges, tcp_target(mesh, client, service, port)));
    }
    if !service.addresses.is_empty() || service.headless {
        return;
    }
    if port.protocol == Protocol::Auto {
        shared.http = true;
    } else if port.protocol.is_tls() {
        let mut by_name = tls_targets(mesh, client, service, port);
        by_name.push((vec![service.host.to_string()], tcp_target(mesh, client, service, port)));
        shared.server_names.extend(by_name);
    } else {
        shared.rest.get_or_insert_with(|| tcp_target(mesh, client, service, port));
    }
}

fn wildcard(port: u16, shared: Shared) -> Option<Named> {
    let name = format!("0.0.0.0_{port}");
    let mut message = listener(name.clone(), &ANY, port, false);
    message.bind_to_port = boolean(false);
    if shared.http {
        let stat_prefix = format!("outbound_{name};");
        message.filter_chains.push(http_chain("", Some(plain_http()), stat_prefix, Routes::Named(port.to_string())));
    }
    let mut names = HashSet::new();
    for (hosts, target) in &shared.server_names {
        let hosts: Vec<String> = hosts.iter().filter(|host| names.insert((*host).clone())).cloned().collect();
        if !hosts.is_empty() {
            message.filter_chains.push(tls_chain(hosts, target));
        }
    }
    if !names.is_empty() {
        message.listener_filters.push(tls_inspector());
    }
    if shared.http {
        message.listener_filters.push(http_inspector());
    }
    if !message.listener_filters.is_empty() {
        // Istio's default: the client of a port declared HTTP speaks first, however long it takes.
        message.listener_filters_timeout = duration(Duration::ZERO);
        message.continue_on_listener_filters_timeout = true;
    }
    let mut nets = HashSet::new();
    for (ranges, target) in &shared.ranges {
        let prefix_ranges: Vec<_> =
            ranges.iter().filter(|net| nets.insert(**net)).map(|net| cidr(net.network(), net.prefix_len())).collect();
        if !prefix_ranges.is_empty() {
            let matches = pb::FilterChainMatch { prefix_ranges, ..Default::default() };
            message.filter_chains.push(tcp_chain("", Some(matches), target));
        }
    }
    if message.filter_chains.is_empty() && shared.rest.is_none() {
        return None;
    }
    let rest = shared.rest.unwrap_or_else(|| Target::one(PASSTHROUGH));
    message.default_filter_chain = Some(tcp_chain(PASSTHROUGH_CHAIN, None, &rest));
    Some(encode(Kind::Listener, &name, &message))
}

fn tls_chain(server_names: Vec<String>, target: &Target) -> pb::FilterChain {
    let matches = pb::FilterChainMatch { server_names, transport_protocol: "tls".to_owned(), ..Default::default() };
    tcp_chain("", Some(matches), target)
}

/// Where connections to a service port go: as its VirtualService's TCP routes say, else to the service.
fn tcp_target(mesh: &Mesh, client: &Client<'_>, service: &Service, port: &Port) -> Target {
    let rule = mesh.rules.virtual_rule(&service.host, client.namespace);
    for route in rule.iter().filter_map(|rule| rule.spec()).flat_map(|spec| &spec.tcp) {
        let applies = route.matches.iter().any(|one| {
            matches::applies(client, port.number, (one.port, &one.source_labels, &one.source_namespace, &one.gateways))
        });
        if (applies || route.matches.is_empty())
            && let Some(rule) = rule
        {
            return destinations(mesh, client, &rule.object.key.namespace, port.number, &route.route);
        }
    }
    let hash = hash_of(mesh, client, service, port.number, "");
    Target {
        hash_source_ip: hash.is_some_and(|hash| hash.use_source_ip),
        ..Target::one(cluster::name(port.number, "", &service.host))
    }
}

/// Where TLS connections go by server name.
fn tls_targets(mesh: &Mesh, client: &Client<'_>, service: &Service, port: &Port) -> Vec<(Vec<String>, Target)> {
    let Some(rule) = mesh.rules.virtual_rule(&service.host, client.namespace) else { return Vec::new() };
    let mut list = Vec::new();
    for route in rule.spec().iter().flat_map(|spec| &spec.tls) {
        for one in &route.matches {
            let conditions = (one.port, &one.source_labels, one.source_namespace.as_str(), one.gateways.as_slice());
            // A lone `*` is no condition; such a route comes last and is the default already.
            let names: Vec<String> =
                one.sni_hosts.iter().filter(|name| *name != "*").map(|name| name.to_ascii_lowercase()).collect();
            if !names.is_empty() && matches::applies(client, port.number, conditions) {
                let target = destinations(mesh, client, &rule.object.key.namespace, port.number, &route.route);
                list.push((names, target));
            }
        }
    }
    let mut taken = HashSet::new();
    for (names, _) in &mut list {
        names.retain(|name| taken.insert(name.clone()));
    }
    list.retain(|(names, _)| !names.is_empty());
    list
}

fn destinations(
    mesh: &Mesh,
    client: &Client<'_>,
    namespace: &str,
    listener_port: u16,
    targets: &[L4Destination],
) -> Target {
    let resolve = MeshTargets { mesh, client, namespace, listener_port };
    let clusters = match targets {
        [only] => vec![(resolve.cluster(&only.destination), 1)],
        several => several
            .iter()
            .filter(|target| target.weight > 0)
            .map(|target| (resolve.cluster(&target.destination), target.weight))
            .collect(),
    };
    let hashes = targets.iter().filter_map(|target| resolve.hash(&target.destination));
    Target { clusters, hash_source_ip: hashes.into_iter().any(|hash| hash.use_source_ip) }
}

/// Takes every caught connection that no other listener is for, and lets it pass.
fn virtual_outbound() -> Named {
    let mut message = listener("virtualOutbound".to_owned(), &ANY, OUTBOUND_PORT, false);
    message.use_original_dst = boolean(true);
    // The agent's own port is not a destination: it would dial itself.
    let own = pb::FilterChainMatch { destination_port: uint32(OUTBOUND_PORT.into()), ..Default::default() };
    message.filter_chains = vec![
        tcp_chain("virtualOutbound-blackhole", Some(own), &Target::one(BLACK_HOLE)),
        tcp_chain("virtualOutbound-catchall-tcp", None, &Target::one(PASSTHROUGH)),
    ];
    encode(Kind::Listener, "virtualOutbound", &message)
}
