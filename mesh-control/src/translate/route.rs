//! Route tables of clients.
//!
//! In: the mesh and a client. Out: RDS resources: `<port>` for the HTTP services of a port, `<host>:<port>` for a service
//! whose protocol is detected.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;

use super::action::{self, Place, Targets, default_route};
use super::chain::PASSTHROUGH;
use super::checked::{Named, encode};
use super::pb::{boolean, uint32};
use super::{Client, cluster, matches};
use crate::config::destination_rule::ConsistentHash;
use crate::config::virtual_service::Destination;
use crate::model::Mesh;
use crate::model::protocol::Protocol;
use crate::model::rules::VirtualRule;
use crate::model::service::{Port, Service};
use crate::resource::Kind;

/// Largest direct response body, as Istio sets it.
const MAX_DIRECT_RESPONSE: u32 = 1 << 20;

/// Whether no client's tables can differ between two meshes: they have the same rules, and services that differ in their
/// endpoints at most.
pub(super) fn same(one: &Mesh, other: &Mesh) -> bool {
    let both = || one.services.iter().zip(other.services.iter());
    Arc::ptr_eq(&one.rules, &other.rules)
        && one.options == other.options
        && one.services.len() == other.services.len()
        && both().all(|(one, other)| Arc::ptr_eq(one, other) || one.same_but_endpoints(other))
}

pub(crate) fn outbound(mesh: &Mesh, client: &Client<'_>) -> Vec<Named> {
    let mut by_port: BTreeMap<u16, Vec<(&Arc<Service>, &Port)>> = BTreeMap::new();
    let mut list = Vec::new();
    for service in mesh.visible(client.namespace) {
        for port in &service.ports {
            if port.protocol.is_http() || port.protocol == Protocol::Auto {
                by_port.entry(port.number).or_default().push((service, port));
            }
            if port.protocol == Protocol::Auto {
                list.push(own_table(mesh, client, service, port));
            }
        }
    }
    list.extend(by_port.into_iter().map(|(port, services)| shared_table(mesh, client, port, &services)));
    list
}

/// A route table of a detected service: whatever the host says, it is this service.
fn own_table(mesh: &Mesh, client: &Client<'_>, service: &Service, port: &Port) -> Named {
    let name = format!("{}:{}", service.host, port.number);
    let host = virtual_host(name.clone(), vec!["*".to_owned()], service_routes(mesh, client, service, port));
    encode(Kind::Route, &name, &table(name.clone(), vec![host]))
}

fn shared_table(mesh: &Mesh, client: &Client<'_>, port: u16, services: &[(&Arc<Service>, &Port)]) -> Named {
    let mut taken = HashSet::new();
    let mut hosts = Vec::new();
    for (service, port) in services {
        let domains = distinct(domains(client, service), &mut taken);
        if !domains.is_empty() {
            let name = format!("{}:{}", service.host, port.number);
            hosts.push(virtual_host(name, domains, service_routes(mesh, client, service, port)));
        }
    }
    if port == 80 {
        hosts.extend(virtual_hostnames(mesh, client, &mut taken));
    }
    hosts.push(allow_any());
    let name = port.to_string();
    encode(Kind::Route, &name, &table(name.clone(), hosts))
}

/// Hosts of VirtualServices that are no service: they are routed on port 80.
fn virtual_hostnames(mesh: &Mesh, client: &Client<'_>, taken: &mut HashSet<String>) -> Vec<pb::VirtualHost> {
    let mut list = Vec::new();
    for rule in mesh.rules.virtual_rules().iter().filter(|rule| rule.visibility.includes(client.namespace)) {
        for host in rule.hosts.iter().filter(|host| mesh.service(host, client.namespace).is_none() && &***host != "*") {
            let routes = rule_routes(mesh, client, rule, host, 80);
            let dotted = (!host.starts_with('*')).then(|| format!("{host}."));
            let domains = distinct(std::iter::once(host.to_string()).chain(dotted), taken);
            if !domains.is_empty() && !routes.is_empty() {
                list.push(virtual_host(format!("{host}:80"), domains, routes));
            }
        }
    }
    list
}

fn service_routes(mesh: &Mesh, client: &Client<'_>, service: &Service, port: &Port) -> Vec<pb::Route> {
    if let Some(rule) = mesh.rules.virtual_rule(&service.host, client.namespace) {
        let has_http = rule.spec().is_some_and(|spec| !spec.http.is_empty());
        if has_http {
            return rule_routes(mesh, client, rule, &service.host, port.number);
        }
    }
    let hash = hash_of(mesh, client, service, port.number, "");
    let operation = format!("{}:{}/*", service.host, port.number);
    vec![default_route(cluster::name(port.number, "", &service.host), operation, hash.as_ref())]
}

fn rule_routes(mesh: &Mesh, client: &Client<'_>, rule: &VirtualRule, host: &str, port: u16) -> Vec<pb::Route> {
    let Some(spec) = rule.spec() else { return Vec::new() };
    let place = Place { client, listener_port: port, host, origin: &rule.object.key };
    let targets = MeshTargets { mesh, client, namespace: &rule.object.key.namespace, listener_port: port };
    action::routes(spec, &place, &targets)
}

/// Destinations of a VirtualService as the mesh knows them.
pub(crate) struct MeshTargets<'m> {
    pub mesh: &'m Mesh,
    pub client: &'m Client<'m>,
    /// Namespace of the VirtualService, where short names are of.
    pub namespace: &'m str,
    pub listener_port: u16,
}

impl MeshTargets<'_> {
    fn port(&self, destination: &Destination, service: Option<&Arc<Service>>) -> u16 {
        match (destination.port, service.map(|service| service.ports.as_slice())) {
            (Some(port), _) => port.number.0,
            (None, Some([only])) => only.number,
            _ => self.listener_port,
        }
    }

    fn service(&self, host: &str) -> Option<&Arc<Service>> {
        self.mesh.service(host, self.client.namespace).or_else(|| self.mesh.service(host, self.namespace))
    }
}

impl Targets for MeshTargets<'_> {
    fn cluster(&self, destination: &Destination) -> String {
        let host = self.mesh.options.full_host(&destination.host, self.namespace);
        cluster::name(self.port(destination, self.service(&host)), &destination.subset, &host)
    }

    fn hash(&self, destination: &Destination) -> Option<ConsistentHash> {
        let host = self.mesh.options.full_host(&destination.host, self.namespace);
        let service = self.service(&host);
        hash_of(self.mesh, self.client, service?, self.port(destination, service), &destination.subset)
    }
}

/// How requests to a service port are hashed, if they are.
pub(crate) fn hash_of(
    mesh: &Mesh,
    client: &Client<'_>,
    service: &Service,
    port: u16,
    subset: &str,
) -> Option<ConsistentHash> {
    let root = &mesh.options.root_namespace;
    let rule = mesh.rules.policy(&service.host, client.namespace, &service.namespace, root)?;
    let subset = rule.subsets.iter().find(|one| one.name == subset);
    let policy = subset.map_or_else(|| rule.policy.clone(), |subset| subset.traffic_policy.over(&rule.policy));
    policy.of_port(port).load_balancer?.consistent_hash
}

/// The names a client may call a service by.
fn domains(client: &Client<'_>, service: &Service) -> Vec<String> {
    let host = &service.host;
    let mut names = vec![host.to_string()];
    if !host.starts_with('*') {
        names.push(format!("{host}."));
    }
    if service.kubernetes {
        let (name, namespace) = (&service.name, &service.namespace);
        if **namespace == *client.namespace {
            names.push(name.to_string());
        }
        names.push(format!("{name}.{namespace}.svc"));
        names.push(format!("{name}.{namespace}"));
        if service.headless {
            let with_pods: Vec<String> = names.iter().map(|name| format!("*.{name}")).collect();
            names.extend(with_pods);
        }
    }
    names.extend(service.single_addresses().map(|address| match address {
        std::net::IpAddr::V4(address) => address.to_string(),
        std::net::IpAddr::V6(address) => format!("[{address}]"),
    }));
    names
}

/// A domain belongs to the first virtual host that has it.
fn distinct(domains: impl IntoIterator<Item = String>, taken: &mut HashSet<String>) -> Vec<String> {
    domains.into_iter().filter(|domain| taken.insert(domain.to_ascii_lowercase())).collect()
}

pub(crate) fn virtual_host(name: String, domains: Vec<String>, routes: Vec<pb::Route>) -> pb::VirtualHost {
    pb::VirtualHost { name, domains, routes, include_request_attempt_count: true, ..Default::default() }
}

pub(crate) fn table(name: String, virtual_hosts: Vec<pb::VirtualHost>) -> pb::RouteConfiguration {
    pb::RouteConfiguration {
        name,
        virtual_hosts,
        validate_clusters: boolean(false),
        max_direct_response_body_size_bytes: uint32(MAX_DIRECT_RESPONSE),
        ignore_port_in_host_matching: true,
        ..Default::default()
    }
}

fn allow_any() -> pb::VirtualHost {
    let action = pb::RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(PASSTHROUGH.to_owned())),
        ..action::without_timeouts()
    };
    let route = pb::Route {
        name: "allow_any".to_owned(),
        r#match: Some(matches::everything()),
        action: Some(pb::route::Action::Route(action)),
        ..Default::default()
    };
    virtual_host("allow_any".to_owned(), vec!["*".to_owned()], vec![route])
}
