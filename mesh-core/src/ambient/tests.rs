//! What a node knows after which messages, and which policies that puts in force for whom.

use mesh_proto::{security, workload as pb};
use prost::Message;

use super::*;
use crate::resource::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use crate::store::Upsert;

fn upsert(name: &str, version: &str, message: &impl Message) -> Upsert {
    Upsert { name: name.into(), version: version.into(), body: message.encode_to_vec().into() }
}

fn pod(name: &str, address: [u8; 4], policies: &[&str]) -> Upsert {
    pod_in(name, address, policies, pb::NetworkMode::Standard)
}

fn pod_in(name: &str, address: [u8; 4], policies: &[&str], mode: pb::NetworkMode) -> Upsert {
    let workload = pb::Workload {
        uid: format!("c//Pod/shop/{name}"),
        name: name.into(),
        namespace: "shop".into(),
        addresses: vec![address.to_vec()],
        authorization_policies: policies.iter().map(ToString::to_string).collect(),
        network_mode: mode.into(),
        ..Default::default()
    };
    let message = pb::Address { r#type: Some(pb::address::Type::Workload(workload.clone())) };
    upsert(&workload.uid, "1", &message)
}

fn policy(namespace: &str, name: &str, scope: security::Scope) -> Upsert {
    let message = security::Authorization {
        name: name.into(),
        namespace: namespace.into(),
        scope: scope.into(),
        ..Default::default()
    };
    upsert(&format!("{namespace}/{name}"), "1", &message)
}

fn in_force(ambient: &Ambient, uid: &str) -> Result<Vec<String>, Unknown> {
    let workload = ambient.workload(uid).unwrap();
    ambient.in_force(workload).map(|policies| policies.all().map(|one| one.key.to_string()).collect())
}

#[test]
fn nothing_is_known_before_both_types_were_answered() {
    let mut store = Store::new();
    assert!(store.snapshot().is_none());
    assert_eq!(store.apply(ADDRESS_TYPE, &[pod("web", [10, 0, 0, 1], &[])], &[]), []);
    assert!(store.snapshot().is_none());
    store.apply(AUTHORIZATION_TYPE, &[], &[]);
    let first = store.snapshot().unwrap();
    assert_eq!(first.counts(), Counts { workloads: 1, services: 0, policies: 0 });
    assert!(Arc::ptr_eq(&first, &store.snapshot().unwrap()));
    // The same content under another version changes nothing but the version.
    let again = Upsert { version: "2".into(), ..pod("web", [10, 0, 0, 1], &[]) };
    store.apply(ADDRESS_TYPE, &[again], &[]);
    assert!(Arc::ptr_eq(&first, &store.snapshot().unwrap()));
    assert_eq!(store.versions(ADDRESS_TYPE), [("c//Pod/shop/web".to_owned(), "2".to_owned())].into());
    store.apply(ADDRESS_TYPE, &[pod("db", [10, 0, 0, 2], &[])], &[]);
    let second = store.snapshot().unwrap();
    assert!(second.generation > first.generation);
    assert_eq!(first.counts().workloads, 1, "what was published never changes");
}

#[test]
fn policies_of_the_mesh_the_namespace_and_the_selector_add_up() {
    use security::Scope::{Global, Namespace, WorkloadSelector};
    let mut store = Store::new();
    let policies = [
        policy("root", "mesh", Global),
        policy("shop", "all", Namespace),
        policy("bank", "all", Namespace),
        policy("shop", "web", WorkloadSelector),
        policy("root", "selected", WorkloadSelector),
        policy("shop", "nobody", WorkloadSelector),
    ];
    store.apply(AUTHORIZATION_TYPE, &policies, &[]);
    let pods = [pod("web", [10, 0, 0, 1], &["shop/web", "root/selected", "shop/all"]), pod("db", [10, 0, 0, 2], &[])];
    store.apply(ADDRESS_TYPE, &pods, &[]);
    let now = store.snapshot().unwrap();
    assert_eq!(in_force(&now, "c//Pod/shop/web").unwrap(), ["root/mesh", "root/selected", "shop/all", "shop/web"]);
    assert_eq!(in_force(&now, "c//Pod/shop/db").unwrap(), ["root/mesh", "shop/all"]);

    // A policy becomes another one in place, and one is gone.
    store.apply(AUTHORIZATION_TYPE, &[policy("shop", "all", WorkloadSelector)], &["root/mesh".into()]);
    let now = store.snapshot().unwrap();
    assert_eq!(in_force(&now, "c//Pod/shop/db").unwrap(), Vec::<String>::new());
    assert_eq!(now.counts().policies, 5);

    // One that selects a workload is gone: what it forbade cannot be said, until the workload no longer names it.
    store.apply(AUTHORIZATION_TYPE, &[], &["shop/web".into()]);
    let now = store.snapshot().unwrap();
    assert_eq!(in_force(&now, "c//Pod/shop/web").unwrap_err(), Unknown::Policy("shop/web".into()));
    store.apply(ADDRESS_TYPE, &[pod("web", [10, 0, 0, 1], &[])], &[]);
    assert_eq!(in_force(&store.snapshot().unwrap(), "c//Pod/shop/web").unwrap(), Vec::<String>::new());
}

#[test]
fn a_workload_on_its_node_s_network_is_found_by_its_name_only() {
    let mut store = Store::new();
    store.apply(AUTHORIZATION_TYPE, &[], &[]);
    let on_host = |name| pod_in(name, [10, 0, 0, 1], &[], pb::NetworkMode::HostNetwork);
    store.apply(ADDRESS_TYPE, &[on_host("web"), on_host("db")], &[]);
    let own = store.snapshot().unwrap();
    assert!(own.at([10, 0, 0, 1].into()).is_none(), "a node's address names nobody");
    let found = |namespace, name| own.local(&[[10, 0, 0, 1].into()], namespace, name).map(|one| one.uid.to_string());
    assert_eq!(found("shop", "db").as_deref(), Some("c//Pod/shop/db"));
    assert_eq!(found("bank", "db"), None);
    assert_eq!(found("shop", "other"), None);
    // It goes to a network of its own, and is found there; then it is gone.
    store.apply(ADDRESS_TYPE, &[pod("web", [10, 0, 0, 7], &[])], &["c//Pod/shop/db".into()]);
    let own = store.snapshot().unwrap();
    assert_eq!(&*own.at([10, 0, 0, 7].into()).unwrap().name, "web");
    assert!(own.local(&[[10, 0, 0, 1].into()], "shop", "web").is_none());
    assert!(own.local(&[[10, 0, 0, 1].into()], "shop", "db").is_none());
}

#[test]
fn a_workload_is_found_by_its_addresses_while_it_has_them() {
    let mut store = Store::new();
    store.apply(AUTHORIZATION_TYPE, &[], &[]);
    store.apply(ADDRESS_TYPE, &[pod("web", [10, 0, 0, 1], &[]), pod("db", [10, 0, 0, 2], &[])], &[]);
    let at = |store: &mut Store, address: [u8; 4]| {
        store.snapshot().unwrap().at(address.into()).map(|one| one.name.to_string())
    };
    assert_eq!(at(&mut store, [10, 0, 0, 1]).as_deref(), Some("web"));
    // It moves; then two have one address, and it names none of them, but each knows its own.
    store.apply(ADDRESS_TYPE, &[pod("web", [10, 0, 0, 2], &[])], &[]);
    assert_eq!(at(&mut store, [10, 0, 0, 1]), None);
    assert_eq!(at(&mut store, [10, 0, 0, 2]), None);
    let own = store.snapshot().unwrap();
    assert_eq!(&*own.local(&[[10, 0, 0, 2].into()], "shop", "db").unwrap().uid, "c//Pod/shop/db");
    assert!(own.local(&[[10, 0, 0, 2].into()], "bank", "db").is_none());
    store.apply(ADDRESS_TYPE, &[], &["c//Pod/shop/web".into(), "c//Pod/shop/unheard-of".into()]);
    assert_eq!(at(&mut store, [10, 0, 0, 2]).as_deref(), Some("db"));
    assert_eq!(store.snapshot().unwrap().counts().workloads, 1);
}

#[test]
fn what_is_refused_keeps_its_last_good_version() {
    let mut store = Store::new();
    store.apply(ADDRESS_TYPE, &[pod("web", [10, 0, 0, 1], &[])], &[]);
    store.apply(AUTHORIZATION_TYPE, &[policy("shop", "all", security::Scope::Namespace)], &[]);
    let bad = security::Authorization { name: "all".into(), namespace: "shop".into(), action: 7, ..Default::default() };
    let refused = store.apply(AUTHORIZATION_TYPE, &[upsert("shop/all", "2", &bad)], &[]);
    assert_eq!((refused.len(), &*refused[0].name, &*refused[0].path), (1, "shop/all", "action"));
    assert_eq!(in_force(&store.snapshot().unwrap(), "c//Pod/shop/web").unwrap(), ["shop/all"]);
    assert_eq!(store.versions(AUTHORIZATION_TYPE)["shop/all"], "1");
    assert_eq!(store.apply("type.googleapis.com/x.Y", &[upsert("x", "1", &bad)], &[]).len(), 1);
}

#[test]
fn a_service_and_a_workload_may_take_each_others_name() {
    let mut store = Store::new();
    store.apply(AUTHORIZATION_TYPE, &[], &[]);
    let service = pb::Service { namespace: "shop".into(), hostname: "web".into(), ..Default::default() };
    let service = pb::Address { r#type: Some(pb::address::Type::Service(service)) };
    store.apply(ADDRESS_TYPE, &[upsert("shop/web", "1", &service)], &[]);
    assert_eq!(store.snapshot().unwrap().counts(), Counts { workloads: 0, services: 1, policies: 0 });
    let workload = pb::Workload { uid: "shop/web".into(), ..Default::default() };
    let workload = pb::Address { r#type: Some(pb::address::Type::Workload(workload)) };
    store.apply(ADDRESS_TYPE, &[upsert("shop/web", "2", &workload)], &[]);
    assert_eq!(store.snapshot().unwrap().counts(), Counts { workloads: 1, services: 0, policies: 0 });
}

#[test]
fn one_change_among_many_copies_little() {
    let mut store = Store::new();
    store.apply(AUTHORIZATION_TYPE, &[], &[]);
    let name = |i: u32| format!("p{i}");
    let all: Vec<Upsert> = (0..20_000u32).map(|i| pod(&name(i), (0x0a00_0000 + i).to_be_bytes(), &[])).collect();
    store.apply(ADDRESS_TYPE, &all, &[]);
    let before = store.snapshot().unwrap();
    store.apply(ADDRESS_TYPE, &[pod("p7", [10, 9, 0, 7], &[])], &[]);
    let after = store.snapshot().unwrap();
    let shared = after.workloads().filter(|one| before.workload(&one.uid).is_some_and(|old| Arc::ptr_eq(old, one)));
    assert_eq!(shared.count(), 19_999);
    assert!(after.workloads.shared_with(&before.workloads) >= 255);
    assert!(after.by_address.shared_with(&before.by_address) >= 254);
}

/// A policy that cannot be read forbids something, and nobody knows what.
#[test]
fn a_refused_policy_is_no_pass() {
    use security::Scope::{Global, Namespace, WorkloadSelector};
    let damaged = |key: &str, scope: security::Scope, dry_run| {
        let (namespace, name) = key.split_once('/').unwrap();
        let message = security::Authorization {
            name: name.into(),
            namespace: namespace.into(),
            scope: scope.into(),
            action: 99,
            dry_run,
            ..Default::default()
        };
        upsert(key, "2", &message)
    };
    let rubbish = Upsert { name: "a/rubbish".into(), version: "1".into(), body: vec![0xff; 3].into() };
    for (bad, concerns) in [
        (damaged("shop/all", Namespace, false), true),
        (damaged("bank/all", Namespace, false), false),
        (damaged("root/mesh", Global, false), true),
        (damaged("shop/named", WorkloadSelector, false), true),
        (damaged("shop/other", WorkloadSelector, false), false),
        (damaged("shop/trial", Namespace, true), false),
        (rubbish, true),
    ] {
        let mut store = Store::new();
        let web = pod("web", [10, 0, 0, 1], if bad.name == "shop/named" { &["shop/named"] } else { &[] });
        store.apply(ADDRESS_TYPE, &[web], &[]);
        let name = bad.name.clone();
        let tell = |store: &mut Store, upserts: &[Upsert], removed: &[String]| {
            let refused = store.apply(AUTHORIZATION_TYPE, upserts, removed).len();
            (refused, in_force(&store.snapshot().unwrap(), "c//Pod/shop/web").map_err(|e| e.to_string()))
        };
        // What others see changes, also once they have looked.
        assert_eq!(tell(&mut store, &[], &[]).1.is_err(), name == "shop/named");
        let (refused, policies) = tell(&mut store, std::slice::from_ref(&bad), &[]);
        assert_eq!((refused, policies.is_err()), (1, concerns), "{name}: {policies:?}");
        assert!(policies.err().is_none_or(|why| why.contains(&name)));
        if name != "shop/named" {
            assert_eq!(tell(&mut store, &[], std::slice::from_ref(&name)), (0, Ok(vec![])), "{name} is gone");
        }
        // One that was good stays what it was.
        let (namespace, own) = name.split_once('/').unwrap();
        let good = policy(namespace, own, if name == "shop/named" { WorkloadSelector } else { Global });
        let (_, with) = tell(&mut store, &[good], &[]);
        assert_eq!(with, Ok(vec![name.clone()]));
        assert_eq!(tell(&mut store, &[bad], &[]), (1, with), "{name}");
    }
}
