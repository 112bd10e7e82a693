//! One case per rule of reading a policy and of matching it.

use mesh_proto::security as pb;
use prost::Message;

use super::*;
use crate::resource::Rejection;

fn exact(value: &str) -> pb::StringMatch {
    text(pb::string_match::MatchType::Exact(value.into()))
}

fn text(kind: pb::string_match::MatchType) -> pb::StringMatch {
    pb::StringMatch { match_type: Some(kind) }
}

fn presence() -> pb::StringMatch {
    text(pb::string_match::MatchType::Presence(()))
}

fn range(address: &[u8], length: u32) -> pb::Address {
    pb::Address { address: address.to_vec(), length }
}

fn rule(matches: Vec<pb::Match>) -> pb::Rule {
    pb::Rule { clauses: vec![pb::Clause { matches }] }
}

fn message(rules: Vec<pb::Rule>) -> pb::Authorization {
    pb::Authorization { name: "p".into(), namespace: "shop".into(), rules, ..Default::default() }
}

fn parse(message: &pb::Authorization) -> Result<Authorization, Rejection> {
    Authorization::parse("shop/p", &message.encode_to_vec())
}

/// Whether a policy of one match matches `web` of `shop` at 10.0.0.1, dialling 10.0.0.9:80; and a client in the open.
fn both(one: pb::Match) -> (bool, bool) {
    let policy = parse(&message(vec![rule(vec![one])])).unwrap();
    let web = SpiffeId::new("cluster.local", "shop", "web").unwrap();
    let mut connection =
        Connection { identity: Some(&web), source: [10, 0, 0, 1].into(), destination: [10, 0, 0, 9].into(), port: 80 };
    let proved = policy.matches(&connection).is_some();
    connection.identity = None;
    (proved, policy.matches(&connection).is_some())
}

#[test]
fn every_condition_holds_where_it_should_and_nowhere_else() {
    use pb::string_match::MatchType::{Prefix, Suffix};
    let all = || pb::Match::default();
    let principal = "cluster.local/ns/shop/sa/web";
    let account = |namespace: &str, name: &str| pb::ServiceAccountMatch {
        namespace: namespace.into(),
        service_account: name.into(),
    };
    for (what, one, proved, open) in [
        ("nothing", all(), false, false),
        ("principal", pb::Match { principals: vec![exact(principal)], ..all() }, true, false),
        ("with scheme", pb::Match { principals: vec![exact(&format!("spiffe://{principal}"))], ..all() }, false, false),
        ("prefix", pb::Match { principals: vec![text(Prefix("cluster.local/ns/shop/".into()))], ..all() }, true, false),
        ("suffix", pb::Match { principals: vec![text(Suffix("/sa/web".into()))], ..all() }, true, false),
        ("any start", pb::Match { principals: vec![text(Prefix(String::new()))], ..all() }, true, false),
        ("anybody", pb::Match { principals: vec![presence()], ..all() }, true, false),
        ("nobody", pb::Match { not_principals: vec![presence()], ..all() }, false, true),
        ("not me", pb::Match { not_principals: vec![exact(principal)], ..all() }, false, true),
        ("one of two", pb::Match { principals: vec![exact("x"), exact(principal)], ..all() }, true, false),
        ("namespace", pb::Match { namespaces: vec![exact("shop")], ..all() }, true, false),
        ("part of a namespace", pb::Match { namespaces: vec![exact("sho")], ..all() }, false, false),
        ("not a namespace", pb::Match { not_namespaces: vec![exact("shop")], ..all() }, false, true),
        ("account", pb::Match { service_accounts: vec![account("shop", "web")], ..all() }, true, false),
        ("other account", pb::Match { service_accounts: vec![account("shop", "db")], ..all() }, false, false),
        ("other's account", pb::Match { service_accounts: vec![account("bank", "web")], ..all() }, false, false),
        ("not an account", pb::Match { not_service_accounts: vec![account("shop", "web")], ..all() }, false, true),
        ("range", pb::Match { source_ips: vec![range(&[10, 0, 0, 77], 24)], ..all() }, true, true),
        ("one address", pb::Match { source_ips: vec![range(&[10, 0, 0, 2], 32)], ..all() }, false, false),
        ("not a range", pb::Match { not_source_ips: vec![range(&[10, 0, 0, 0], 8)], ..all() }, false, false),
        ("all of IPv6", pb::Match { source_ips: vec![range(&[0; 16], 0)], ..all() }, false, false),
        ("destination", pb::Match { destination_ips: vec![range(&[10, 0, 0, 9], 32)], ..all() }, true, true),
        ("not there", pb::Match { not_destination_ips: vec![range(&[10, 0, 0, 9], 32)], ..all() }, false, false),
        ("port", pb::Match { destination_ports: vec![79, 80], ..all() }, true, true),
        ("other port", pb::Match { destination_ports: vec![81], ..all() }, false, false),
        ("not a port", pb::Match { not_destination_ports: vec![80], ..all() }, false, false),
        (
            "kinds add up",
            pb::Match { namespaces: vec![exact("shop")], destination_ports: vec![81], ..all() },
            false,
            false,
        ),
        (
            "strict with an exception",
            pb::Match { not_principals: vec![presence()], not_destination_ports: vec![80], ..all() },
            false,
            false,
        ),
    ] {
        assert_eq!(both(one), (proved, open), "{what}");
    }
}

#[test]
fn a_range_in_the_form_of_ipv6_is_the_ipv4_range() {
    let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 0];
    let of = |length| pb::Match { source_ips: vec![range(&mapped, length)], ..Default::default() };
    assert_eq!(both(of(104)), (true, true));
    assert_eq!(both(of(128)), (false, false));
}

#[test]
fn rules_are_alternatives_and_clauses_are_not() {
    let port = |port| pb::Match { destination_ports: vec![port], ..Default::default() };
    let clause = |matches| pb::Clause { matches };
    let matches = |rules: Vec<pb::Rule>| {
        let policy = parse(&message(rules)).unwrap();
        let connection =
            Connection { identity: None, source: [1, 1, 1, 1].into(), destination: [2, 2, 2, 2].into(), port: 80 };
        policy.matches(&connection)
    };
    assert_eq!(matches(vec![]), None, "no rule");
    assert_eq!(matches(vec![pb::Rule::default()]), Some(0), "a rule without clauses");
    assert_eq!(matches(vec![pb::Rule { clauses: vec![clause(vec![])] }]), Some(0), "a clause without matches");
    assert_eq!(matches(vec![rule(vec![pb::Match::default()])]), None, "an empty match");
    assert_eq!(matches(vec![rule(vec![pb::Match::default(), port(80)])]), Some(0), "an empty match beside another");
    assert_eq!(matches(vec![rule(vec![port(81)]), rule(vec![port(80)])]), Some(1), "the second rule");
    let and = |a, b| vec![pb::Rule { clauses: vec![clause(vec![port(a)]), clause(vec![port(b)])] }];
    assert_eq!(matches(and(80, 80)), Some(0));
    assert_eq!(matches(and(80, 81)), None, "all clauses");
    let empty_beside = vec![pb::Rule { clauses: vec![clause(vec![port(80)]), clause(vec![pb::Match::default()])] }];
    assert_eq!(matches(empty_beside), None, "a clause that never matches");
}

#[test]
fn a_bad_policy_is_refused_where_it_is_bad() {
    let with = |one: pb::Match| message(vec![pb::Rule::default(), rule(vec![pb::Match::default(), one])]);
    let all = || pb::Match::default();
    let at = |field: &str| format!("rules[1].clauses[0].matches[1].{field}");
    let long = "x".repeat(MAX_NAME_BYTES + 1);
    for (bad, path, why) in [
        (pb::Authorization { name: String::new(), ..message(vec![]) }, "name".to_owned(), "is empty"),
        (pb::Authorization { name: "q".into(), ..message(vec![]) }, "name".into(), "the resource is called"),
        (pb::Authorization { namespace: "x".into(), ..message(vec![]) }, "name".into(), "in namespace \"x\""),
        (pb::Authorization { scope: 3, ..message(vec![]) }, "scope".into(), "3 is unknown"),
        (pb::Authorization { action: -1, ..message(vec![]) }, "action".into(), "-1 is unknown"),
        (message(vec![pb::Rule::default(); MAX_RULES + 1]), "rules".into(), "at most 1024"),
        (
            message(vec![pb::Rule { clauses: vec![pb::Clause::default(); MAX_MATCHES + 1] }]),
            "rules[0].clauses".into(),
            "at most 1024",
        ),
        (message(vec![rule(vec![all(); MAX_MATCHES + 1])]), "rules[0].clauses[0].matches".into(), "at most 1024"),
        (
            with(pb::Match { namespaces: vec![exact("a"), pb::StringMatch::default()], ..all() }),
            at("namespaces[1]"),
            "needs exact",
        ),
        (with(pb::Match { not_principals: vec![exact(&long)], ..all() }), at("not_principals[0]"), "2049 bytes"),
        (with(pb::Match { source_ips: vec![range(&[10, 0, 0], 24)], ..all() }), at("source_ips[0].address"), "3 bytes"),
        (
            with(pb::Match { not_source_ips: vec![range(&[10, 0, 0, 0], 33)], ..all() }),
            at("not_source_ips[0].length"),
            "33 is too long",
        ),
        (
            with(pb::Match { destination_ips: vec![range(&[0; 16], 400)], ..all() }),
            at("destination_ips[0].length"),
            "400 is too long",
        ),
        (with(pb::Match { destination_ports: vec![0], ..all() }), at("destination_ports[0]"), "0 is not a port"),
        (
            with(pb::Match { not_destination_ports: vec![65536], ..all() }),
            at("not_destination_ports[0]"),
            "65536 is not",
        ),
        (
            with(pb::Match { destination_ports: vec![1; MAX_VALUES + 1], ..all() }),
            at("destination_ports"),
            "at most 4096",
        ),
        (
            with(pb::Match { service_accounts: vec![pb::ServiceAccountMatch::default()], ..all() }),
            at("service_accounts[0].namespace"),
            "is empty",
        ),
    ] {
        let refused = parse(&bad).unwrap_err();
        assert_eq!((refused.name.as_str(), refused.path), ("shop/p", path.clone()));
        assert!(refused.why.contains(why), "{path}: {}", refused.why);
    }
    let nameless = pb::Authorization { namespace: String::new(), scope: 1, ..message(vec![]) };
    let refused = Authorization::parse("/p", &nameless.encode_to_vec()).unwrap_err();
    assert_eq!(refused.path, "namespace");
    assert!(Authorization::parse("shop/p", &[0xff]).unwrap_err().why.contains("not a valid message"));
}

#[test]
fn fields_of_a_later_version_are_passed_over() {
    let mut body = message(vec![]).encode_to_vec();
    // Field 999, a text.
    body.extend([0xba, 0x3e, 1, b'x']);
    assert_eq!(Authorization::parse("shop/p", &body), parse(&message(vec![])));
}
