//! Finds references that lead nowhere.
//!
//! In: the mesh and its objects. Out: problems with file, line and path. The objects stay in force: what they name may come
//! with the next file.

use super::Mesh;
use super::rules::VirtualRule;
use super::service::{Service, selects};
use crate::config::destination_rule::DestinationRule;
use crate::config::virtual_service::Destination;
use crate::config::{Body, Object};
use crate::problem::{Problem, Severity};
use crate::source::Objects;
use crate::yaml::FieldPath;

pub(super) fn check(mesh: &Mesh, objects: &Objects, problems: &mut Vec<Problem>) {
    for rule in mesh.rules.virtual_rules() {
        check_virtual(mesh, rule, problems);
    }
    for object in objects.values() {
        if let Body::DestinationRule(rule) = &object.body {
            check_destination_rule(mesh, object, rule, problems);
        }
    }
}

fn check_virtual(mesh: &Mesh, rule: &VirtualRule, problems: &mut Vec<Problem>) {
    let object = &rule.object;
    let namespace = &object.key.namespace;
    let Some(spec) = rule.spec() else { return };
    for (index, host) in rule.hosts.iter().enumerate().filter(|(_, host)| !host.starts_with('*')) {
        if mesh.service(host, namespace).is_none() {
            let why = format!("there is no service `{host}`; only requests with this host to port 80 are routed");
            problems.push(object.problem(Severity::Warning, &FieldPath::of("spec.hosts").index(index), why));
        }
    }
    for (path, destination) in spec.destinations() {
        check_destination(mesh, object, &path, destination, problems);
    }
}

fn check_destination(
    mesh: &Mesh,
    object: &Object,
    path: &FieldPath,
    destination: &Destination,
    problems: &mut Vec<Problem>,
) {
    let namespace = &object.key.namespace;
    let host = mesh.options.full_host(&destination.host, namespace);
    let mut tell = |path: &FieldPath, why: String| problems.push(object.problem(Severity::Warning, path, why));
    let Some(service) = mesh.service(&host, namespace) else {
        let mut why = format!("there is no service `{host}`; what is sent there is answered with 503");
        if host.matches('.').count() == 1 && !host.ends_with(&*mesh.options.dns_domain) {
            let guess = format!("{host}.svc.{}", mesh.options.dns_domain);
            if mesh.service(&guess, namespace).is_some() {
                why.push_str(&format!(" (did you mean `{guess}`?)"));
            }
        }
        return tell(&path.key("host"), why);
    };
    match destination.port {
        Some(port) if service.port(port.number.0).is_none() => {
            let why = format!("service `{host}` has no TCP port {}", port.number.0);
            tell(&path.key("port").key("number"), why);
        }
        _ => {}
    }
    if !destination.subset.is_empty() {
        let policy = mesh.rules.policy(&host, namespace, &service.namespace, &mesh.options.root_namespace);
        let known = policy.is_some_and(|policy| policy.subsets.iter().any(|subset| subset.name == destination.subset));
        if !known {
            let why = format!(
                "no DestinationRule for `{host}` defines subset `{}`; what is sent there is answered with 503",
                destination.subset
            );
            tell(&path.key("subset"), why);
        }
    }
}

fn check_destination_rule(mesh: &Mesh, object: &Object, rule: &DestinationRule, problems: &mut Vec<Problem>) {
    let namespace = &object.key.namespace;
    let host = mesh.options.full_host(&rule.host, namespace);
    if host.starts_with('*') {
        return;
    }
    let path = FieldPath::of("spec");
    let Some(service) = mesh.service(&host, namespace) else {
        let why = format!("there is no service `{host}`; the rule has no effect");
        problems.push(object.problem(Severity::Warning, &path.key("host"), why));
        return;
    };
    for (index, subset) in rule.subsets.iter().enumerate() {
        if !subset.labels.is_empty() && !any_endpoint(service, &subset.labels) {
            let why = format!("subset `{}` selects no endpoint of `{host}`", subset.name);
            problems.push(object.problem(Severity::Warning, &path.key("subsets").index(index).key("labels"), why));
        }
    }
}

fn any_endpoint(service: &Service, labels: &crate::config::Labels) -> bool {
    let listed =
        service.ports.iter().flat_map(|port| &port.endpoints).any(|endpoint| selects(labels, &endpoint.labels));
    // Without listed endpoints nothing can be said.
    listed || service.ports.iter().all(|port| port.endpoints.is_empty())
}
