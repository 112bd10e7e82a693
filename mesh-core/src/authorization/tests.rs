//! The order of policies as a table, and every verdict against a second formulation that knows nothing of the first.

use std::net::IpAddr;

use mesh_proto::security as pb;
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::identity::SpiffeId;

fn compiled(message: &pb::Authorization) -> Arc<Authorization> {
    let key = format!("{}/{}", message.namespace, message.name);
    Arc::new(Authorization::parse(&key, &message.encode_to_vec()).unwrap())
}

fn policy(name: &str, action: pb::Action, ports: &[u32], dry_run: bool) -> Arc<Authorization> {
    let one = pb::Match { destination_ports: ports.to_vec(), ..Default::default() };
    let rules = match ports {
        [] => Vec::new(),
        _ => vec![pb::Rule { clauses: vec![pb::Clause { matches: vec![one] }] }],
    };
    compiled(&pb::Authorization {
        name: name.into(),
        namespace: "shop".into(),
        action: action.into(),
        dry_run,
        rules,
        ..Default::default()
    })
}

fn to(port: u16) -> Connection<'static> {
    Connection { identity: None, source: [10, 0, 0, 1].into(), destination: [10, 0, 0, 2].into(), port }
}

fn said(verdict: Verdict<'_>) -> (bool, &str) {
    match verdict {
        Verdict::Allow { by } => (true, by.map_or("", |by| &by.policy.key)),
        Verdict::Deny { by } => (false, by.map_or("", |by| &by.policy.key)),
    }
}

#[test]
fn deny_goes_before_allow_and_allow_shuts_everybody_else_out() {
    use pb::Action::{Allow, Deny};
    let deny = || policy("deny", Deny, &[80], false);
    let allow = || policy("allow", Allow, &[80, 81], false);
    let nothing = || policy("nothing", Allow, &[], false);
    for (all, port, want) in [
        (vec![], 80, (true, "")),
        (vec![deny()], 80, (false, "shop/deny")),
        (vec![deny()], 81, (true, "")),
        (vec![allow()], 80, (true, "shop/allow")),
        (vec![allow()], 82, (false, "")),
        (vec![allow(), deny()], 80, (false, "shop/deny")),
        (vec![allow(), deny()], 81, (true, "shop/allow")),
        (vec![nothing()], 80, (false, "")),
        (vec![nothing(), allow()], 80, (true, "shop/allow")),
        (vec![policy("never", Deny, &[], false)], 80, (true, "")),
    ] {
        let names: Vec<_> = all.iter().map(|one| one.key.clone()).collect();
        let policies = Policies::new(1, all);
        assert_eq!(said(policies.evaluate(&to(port))), want, "{names:?} {port}");
        assert_eq!(policies.rehearse(&to(port)), None);
    }
}

#[test]
fn a_policy_that_is_tried_only_tells_what_it_would_do() {
    use pb::Action::{Allow, Deny};
    let tried = Policies::new(1, [policy("try", Deny, &[80], true)]);
    assert_eq!(said(tried.evaluate(&to(80))), (true, ""));
    assert_eq!(said(tried.rehearse(&to(80)).unwrap()), (false, "shop/try"));
    assert_eq!(said(tried.rehearse(&to(81)).unwrap()), (true, ""));
    let tried = Policies::new(1, [policy("try", Allow, &[80], true)]);
    assert_eq!(said(tried.evaluate(&to(81))), (true, ""));
    assert_eq!(said(tried.rehearse(&to(81)).unwrap()), (false, ""));
}

#[test]
fn equal_policies_are_the_same_whatever_their_generation() {
    let one = |port| Policies::new(u64::from(port), [policy("p", pb::Action::Deny, &[port], false)]);
    assert!(one(80).same(&Policies { generation: 7, ..one(80) }));
    assert!(!one(80).same(&one(81)));
    assert!(!one(80).same(&Policies::default()));
}

/// The rules of Istio said once more, on the message itself.
mod naive {
    use super::*;

    pub fn allowed(all: &[pb::Authorization], connection: &Connection<'_>) -> bool {
        let enforced = || all.iter().filter(|policy| !policy.dry_run);
        let of = |action: pb::Action| enforced().filter(move |policy| policy.action == action as i32);
        if of(pb::Action::Deny).any(|policy| matches(policy, connection)) {
            return false;
        }
        of(pb::Action::Allow).count() == 0 || of(pb::Action::Allow).any(|policy| matches(policy, connection))
    }

    fn matches(policy: &pb::Authorization, connection: &Connection<'_>) -> bool {
        policy.rules.iter().any(|rule| {
            rule.clauses
                .iter()
                .all(|clause| clause.matches.is_empty() || clause.matches.iter().any(|one| holds(one, connection)))
        })
    }

    fn holds(one: &pb::Match, connection: &Connection<'_>) -> bool {
        if *one == pb::Match::default() {
            return false;
        }
        let identity = connection.identity.map(ToString::to_string).unwrap_or_default();
        let parts: Vec<&str> = identity.split('/').collect();
        let (namespace, account) = match parts.as_slice() {
            [_, _, _, _, namespace, _, account] => (*namespace, *account),
            _ => ("", ""),
        };
        let principal = |want: &pb::StringMatch| match identity.strip_prefix("spiffe://") {
            Some(principal) => equal(want, principal),
            None => false,
        };
        let inside = |range: &pb::Address, ip: IpAddr| {
            let bits: Vec<u8> = match ip {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            let bit = |bytes: &[u8], i: usize| bytes[i / 8] >> (7 - i % 8) & 1;
            bits.len() == range.address.len()
                && (0..range.length as usize).all(|i| bit(&bits, i) == bit(&range.address, i))
        };
        fn ok<T>(yes: &[T], no: &[T], holds: impl Fn(&T) -> bool) -> bool {
            (yes.is_empty() || yes.iter().any(&holds)) && no.iter().all(|one| !holds(one))
        }
        let is = |want: &pb::ServiceAccountMatch| {
            !identity.is_empty() && want.namespace == namespace && want.service_account == account
        };
        ok(&one.namespaces, &one.not_namespaces, |want| equal(want, namespace))
            && ok(&one.principals, &one.not_principals, principal)
            && ok(&one.service_accounts, &one.not_service_accounts, is)
            && ok(&one.source_ips, &one.not_source_ips, |range| inside(range, connection.source))
            && ok(&one.destination_ips, &one.not_destination_ips, |range| inside(range, connection.destination))
            && ok(&one.destination_ports, &one.not_destination_ports, |port| *port == u32::from(connection.port))
    }

    fn equal(want: &pb::StringMatch, text: &str) -> bool {
        use pb::string_match::MatchType::{Exact, Prefix, Presence, Suffix};
        match want.match_type.as_ref().unwrap() {
            Exact(want) => want == text,
            Prefix(want) => text.len() >= want.len() && text.as_bytes()[..want.len()] == *want.as_bytes(),
            Suffix(want) => text.len() >= want.len() && text.as_bytes()[text.len() - want.len()..] == *want.as_bytes(),
            Presence(()) => !text.is_empty(),
        }
    }
}

fn texts() -> impl Strategy<Value = Vec<pb::StringMatch>> {
    use pb::string_match::MatchType::{Exact, Prefix, Presence, Suffix};
    let words =
        prop::sample::select(vec!["", "shop", "bank", "td/ns/shop/sa/web", "td/ns/", "/sa/web", "td/ns/bank/sa/db"]);
    let one = (0..4u8, words).prop_map(|(kind, word)| pb::StringMatch {
        match_type: Some(match kind {
            0 => Exact(word.into()),
            1 => Prefix(word.into()),
            2 => Suffix(word.into()),
            _ => Presence(()),
        }),
    });
    few(one)
}

fn few<T: std::fmt::Debug>(one: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
    prop_oneof![3 => Just(Vec::new()).boxed().prop_map(|_: Vec<()>| Vec::new()), 2 => prop::collection::vec(one, 1..3)]
}

fn ranges() -> impl Strategy<Value = Vec<pb::Address>> {
    let v4 = (prop::sample::select(vec![[10u8, 0, 0, 1], [10, 0, 1, 2], [192, 168, 0, 1]]), 0..=32u32)
        .prop_map(|(address, length)| pb::Address { address: address.to_vec(), length });
    let v6 = (0..3u8, 0..=128u32).prop_map(|(last, length)| {
        let mut address = vec![0xfd; 16];
        address[15] = last;
        pb::Address { address, length }
    });
    few(prop_oneof![v4, v6])
}

fn accounts() -> impl Strategy<Value = Vec<pb::ServiceAccountMatch>> {
    let one = (prop::sample::select(vec!["shop", "bank"]), prop::sample::select(vec!["web", "db"]));
    few(one.prop_map(|(namespace, name)| pb::ServiceAccountMatch {
        namespace: namespace.into(),
        service_account: name.into(),
    }))
}

fn matches() -> impl Strategy<Value = pb::Match> {
    let names = (texts(), texts(), texts(), texts(), accounts(), accounts());
    let numbers = (ranges(), ranges(), ranges(), ranges(), few(79..82u32), few(79..82u32));
    let some = (names, numbers).prop_map(|(names, numbers)| pb::Match {
        namespaces: names.0,
        not_namespaces: names.1,
        principals: names.2,
        not_principals: names.3,
        service_accounts: names.4,
        not_service_accounts: names.5,
        source_ips: numbers.0,
        not_source_ips: numbers.1,
        destination_ips: numbers.2,
        not_destination_ips: numbers.3,
        destination_ports: numbers.4,
        not_destination_ports: numbers.5,
    });
    let one_kind = few(79..82u32).prop_map(|ports| pb::Match { destination_ports: ports, ..Default::default() });
    prop_oneof![some, one_kind]
}

fn authorizations() -> impl Strategy<Value = Vec<pb::Authorization>> {
    let clauses = prop::collection::vec(matches(), 0..3).prop_map(|matches| pb::Clause { matches });
    let rules = prop::collection::vec(clauses, 0..3).prop_map(|clauses| pb::Rule { clauses });
    let one = (prop::collection::vec(rules, 0..3), 0..2i32, prop::bool::weighted(0.2));
    prop::collection::vec(one, 0..4).prop_map(|all| {
        let named = |(index, (rules, action, dry_run)): (usize, (Vec<pb::Rule>, i32, bool))| pb::Authorization {
            name: format!("p{index}"),
            namespace: "shop".into(),
            action,
            dry_run,
            rules,
            ..Default::default()
        };
        all.into_iter().enumerate().map(named).collect()
    })
}

fn addresses() -> impl Strategy<Value = IpAddr> {
    let v6 = "fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fd01".parse::<IpAddr>().unwrap();
    prop::sample::select(vec![[10, 0, 0, 1].into(), [10, 0, 1, 2].into(), [192, 168, 0, 1].into(), v6])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn agrees_with_the_naive_formulation(
        all in authorizations(),
        client in prop::option::of((prop::sample::select(vec!["shop", "bank"]), prop::sample::select(vec!["web", "db"]))),
        source in addresses(),
        destination in addresses(),
        port in 79..82u16,
    ) {
        let identity = client.map(|(namespace, name)| SpiffeId::new("td", namespace, name).unwrap());
        let connection = Connection { identity: identity.as_ref(), source, destination, port };
        let policies = Policies::new(1, all.iter().map(compiled));
        prop_assert_eq!(policies.evaluate(&connection).is_allowed(), naive::allowed(&all, &connection));
        if let Some(rehearsed) = policies.rehearse(&connection) {
            let enforced: Vec<_> =
                all.iter().map(|one| pb::Authorization { dry_run: false, ..one.clone() }).collect();
            prop_assert_eq!(rehearsed.is_allowed(), naive::allowed(&enforced, &connection));
        }
    }
}
