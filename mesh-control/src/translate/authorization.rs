//! Policies of who may connect, as WADS: what of an AuthorizationPolicy a connection can tell, and PeerAuthentication
//! as Istio converts it.
//!
//! In: policies. Out: `istio.security.Authorization`. An ALLOW rule that asks for attributes of requests is left out, so
//! that it allows nothing; of a DENY rule the rest stays, so that it denies more. Source: istio.io, ambient L4 policy.

use std::net::IpAddr;

use ipnet::IpNet;
use mesh_proto::security as pb;
use pb::string_match::MatchType;

use super::checked::{Named, encode};
use super::memo::Memo;
use crate::config::Object;
use crate::config::authorization_policy::{
    Action, AuthorizationPolicy, Condition, Operation, Rule, Source, Values, port, range,
};
use crate::model::Mesh;
use crate::model::authorization::{CONVERTED, Converted, STATIC_STRICT};
use crate::resource::Kind;

/// Annotation of a policy that is only tried.
const DRY_RUN: &str = "istio.io/dry-run";

/// Every policy of the mesh.
pub(super) fn all(mesh: &Mesh, memo: &mut Memo<Object, (), Named>) -> Vec<Named> {
    let root = &mesh.options.root_namespace;
    let named = |message: pb::Authorization| encode(Kind::Authorization, &key(&message), &message);
    let own =
        mesh.authorizations.all().map(|(object, spec)| memo.made(object, (), |()| named(policy(object, spec, root))));
    own.chain(converted(mesh).into_iter().map(named)).collect()
}

/// Name of a policy in xDS.
pub(crate) fn key(message: &pb::Authorization) -> String {
    format!("{}/{}", message.namespace, message.name)
}

/// An AuthorizationPolicy as agents are told of it.
pub(crate) fn policy(object: &Object, spec: &AuthorizationPolicy, root: &str) -> pb::Authorization {
    let namespace = &*object.key.namespace;
    let scope = match spec.labels() {
        Some(_) => pb::Scope::WorkloadSelector,
        None if namespace == root => pb::Scope::Global,
        None => pb::Scope::Namespace,
    };
    let action = if spec.action == Action::Deny { pb::Action::Deny } else { pb::Action::Allow };
    let dry_run = object.metadata.annotations.get(DRY_RUN).is_some_and(|value| value == "true");
    let of_requests = |rule: &&Rule| action == pb::Action::Allow && rule.asks_for_requests();
    pb::Authorization {
        name: object.key.name.to_string(),
        namespace: namespace.to_owned(),
        scope: scope.into(),
        action: action.into(),
        rules: spec.rules.iter().filter(|rule| !of_requests(rule)).map(|one| rule(one, namespace)).collect(),
        dry_run,
    }
}

fn rule(rule: &Rule, namespace: &str) -> pb::Rule {
    let operations =
        rule.to.iter().map(|all| all.iter().filter_map(|to| to.operation.as_ref()).map(operation).collect());
    let sources = rule.from.iter().map(|all| {
        all.iter().filter_map(|from| from.source.as_ref()).map(|one| source(one, namespace)).collect::<Vec<_>>()
    });
    let conditions = rule.when.iter().flatten().map(|one| vec![condition(one, namespace)]);
    let clauses = operations.chain(sources).chain(conditions);
    // What only a request could tell holds for every connection; an empty match would never hold.
    let certain = |matches: &Vec<pb::Match>| matches.contains(&pb::Match::default());
    pb::Rule { clauses: clauses.filter(|matches| !certain(matches)).map(|matches| pb::Clause { matches }).collect() }
}

fn operation(one: &Operation) -> pb::Match {
    pb::Match {
        destination_ports: ports(&one.ports),
        not_destination_ports: ports(&one.not_ports),
        ..Default::default()
    }
}

fn source(one: &Source, namespace: &str) -> pb::Match {
    pb::Match {
        principals: texts(&one.principals),
        not_principals: texts(&one.not_principals),
        namespaces: texts(&one.namespaces),
        not_namespaces: texts(&one.not_namespaces),
        service_accounts: accounts(&one.service_accounts, namespace),
        not_service_accounts: accounts(&one.not_service_accounts, namespace),
        source_ips: ranges(&one.ip_blocks),
        not_source_ips: ranges(&one.not_ip_blocks),
        ..Default::default()
    }
}

fn condition(one: &Condition, namespace: &str) -> pb::Match {
    let (yes, no) = (&one.values, &one.not_values);
    let all = pb::Match::default();
    match one.key.as_str() {
        "source.ip" => pb::Match { source_ips: ranges(yes), not_source_ips: ranges(no), ..all },
        "destination.ip" => pb::Match { destination_ips: ranges(yes), not_destination_ips: ranges(no), ..all },
        "destination.port" => pb::Match { destination_ports: ports(yes), not_destination_ports: ports(no), ..all },
        "source.namespace" => pb::Match { namespaces: texts(yes), not_namespaces: texts(no), ..all },
        "source.principal" => pb::Match { principals: texts(yes), not_principals: texts(no), ..all },
        "source.serviceAccount" => pb::Match {
            service_accounts: accounts(yes, namespace),
            not_service_accounts: accounts(no, namespace),
            ..all
        },
        _ => all,
    }
}

fn each<T>(values: &Values, read: impl Fn(&str) -> Option<T>) -> Vec<T> {
    values.iter().flatten().filter_map(|value| read(value)).collect()
}

fn texts(values: &Values) -> Vec<pb::StringMatch> {
    each(values, |value| {
        let kind = match (value, value.strip_prefix('*'), value.strip_suffix('*')) {
            ("*", ..) => MatchType::Presence(()),
            (_, Some(end), _) => MatchType::Suffix(end.to_owned()),
            (_, _, Some(start)) => MatchType::Prefix(start.to_owned()),
            _ => MatchType::Exact(value.to_owned()),
        };
        Some(pb::StringMatch { match_type: Some(kind) })
    })
}

fn accounts(values: &Values, own: &str) -> Vec<pb::ServiceAccountMatch> {
    each(values, |value| {
        let (namespace, account) = value.split_once('/').unwrap_or((own, value));
        Some(pb::ServiceAccountMatch { namespace: namespace.to_owned(), service_account: account.to_owned() })
    })
}

fn ranges(values: &Values) -> Vec<pb::Address> {
    each(values, |value| range(value).map(|range| address(&range)))
}

fn address(range: &IpNet) -> pb::Address {
    let address = match range.addr() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    pb::Address { address, length: range.prefix_len().into() }
}

fn ports(values: &Values) -> Vec<u32> {
    each(values, |value| port(value).map(u32::from))
}

/// PeerAuthentications: one policy for STRICT as a whole, and one for each object with ports of another mode.
fn converted(mesh: &Mesh) -> Vec<pb::Authorization> {
    let root = &mesh.options.root_namespace;
    let refuse = |namespace: &str, name: String, one: pb::Match| pb::Authorization {
        name,
        namespace: namespace.to_owned(),
        scope: pb::Scope::WorkloadSelector.into(),
        action: pb::Action::Deny.into(),
        rules: vec![pb::Rule { clauses: vec![pb::Clause { matches: vec![one] }] }],
        dry_run: false,
    };
    let nobody = || pb::Match {
        not_principals: vec![pb::StringMatch { match_type: Some(MatchType::Presence(())) }],
        ..Default::default()
    };
    let mut all = Vec::new();
    if mesh.authentication.is_used() {
        all.push(refuse(root, STATIC_STRICT.to_owned(), nobody()));
    }
    for (object, spec) in mesh.authentication.with_selectors() {
        let namespace = &object.key.namespace;
        let one = match Converted::of(&mesh.authentication.with(namespace, Some(spec))) {
            Converted::StrictBut(ports) => {
                pb::Match { not_destination_ports: ports.into_iter().map(u32::from).collect(), ..nobody() }
            }
            Converted::OpenBut(ports) => {
                pb::Match { destination_ports: ports.into_iter().map(u32::from).collect(), ..nobody() }
            }
            Converted::Open | Converted::Strict => continue,
        };
        all.push(refuse(namespace, format!("{CONVERTED}{}", object.key.name), one));
    }
    all
}
