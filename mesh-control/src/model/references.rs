//! Finds references that lead nowhere.
//!
//! In: the mesh and its objects. Out: problems with file, line and path. The objects stay in force: what they name may come
//! with the next file.

use super::Mesh;
use super::rules::VirtualRule;
use super::service::{Service, selects};
use super::workload::Workload;
use crate::config::authorization_policy::AuthorizationPolicy;
use crate::config::destination_rule::DestinationRule;
use crate::config::peer_authentication::PeerAuthentication;
use crate::config::virtual_service::Destination;
use crate::config::{Body, Key, Kind, Object};
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
    for (object, rule) in mesh.authentication.with_selectors() {
        check_authentication(mesh, objects, object, rule, problems);
    }
    for (object, policy) in mesh.authorizations.all() {
        check_authorization(mesh, object, policy, problems);
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

fn check_authentication(
    mesh: &Mesh,
    objects: &Objects,
    object: &Object,
    rule: &PeerAuthentication,
    problems: &mut Vec<Problem>,
) {
    let namespace = &object.key.namespace;
    let Some(labels) = rule.labels() else { return };
    let selected: Vec<_> = mesh.workloads.selected(namespace, labels).collect();
    let mut tell = |path: &FieldPath, why: String| problems.push(object.problem(Severity::Warning, path, why));
    let path = FieldPath::of("spec.selector.matchLabels");
    let Some(first) = selected.first() else {
        return tell(&path, "selects no workload of this namespace; it has no effect".to_owned());
    };
    let counts = |workload: &Workload| {
        mesh.authentication.selecting(namespace, &workload.labels).is_some_and(|other| other.key == object.key)
    };
    if !selected.iter().any(|workload| counts(workload)) {
        let older = mesh.authentication.selecting(namespace, &first.labels);
        let older = older.map(|older| older.key.to_string()).unwrap_or_default();
        return tell(&path, format!("has no effect: {older} is older and selects the same workloads"));
    }
    for (port, _) in rule.ports() {
        if !selected.iter().any(|workload| declares(mesh, objects, workload, port)) {
            let why = format!(
                "no service and no container of `{}` declares port {port}; it is the workload's port, not a service's",
                first.name
            );
            tell(&FieldPath::of("spec.portLevelMtls").key(&port.to_string()), why);
        }
    }
}

/// A policy of the root namespace may select workloads of any namespace.
fn check_authorization(mesh: &Mesh, object: &Object, policy: &AuthorizationPolicy, problems: &mut Vec<Problem>) {
    let Some(labels) = policy.labels() else { return };
    let namespace = &object.key.namespace;
    let anywhere = **namespace == *mesh.options.root_namespace;
    let selected = if anywhere {
        mesh.workloads.all().iter().any(|one| one.alive && selects(labels, &one.labels))
    } else {
        mesh.workloads.selected(namespace, labels).next().is_some()
    };
    if !selected {
        let path = FieldPath::of("spec.selector.matchLabels");
        problems.push(object.problem(Severity::Warning, &path, "selects no workload; it has no effect"));
    }
}

/// Whether a service or the pod itself says that the workload has this port.
fn declares(mesh: &Mesh, objects: &Objects, workload: &Workload, port: u16) -> bool {
    let key = Key { kind: Kind::Pod, namespace: workload.namespace.clone(), name: workload.name.clone() };
    let contained = match objects.get(&key).map(|object| &object.body) {
        Some(Body::Pod(pod)) => {
            pod.spec.containers.iter().flat_map(|one| &one.ports).any(|one| one.container_port.0 == port)
        }
        _ => false,
    };
    contained || mesh.memberships(workload).into_iter().flat_map(|all| all.iter()).any(|one| one.target_port == port)
}
