//! A stream's life: first set, refusals, warming, removal, sharing, counters.

use super::*;
use crate::testing::*;
use envoy_types::pb::envoy::config::endpoint::v3 as endpoint;
use envoy_types::pb::envoy::config::route::v3 as route;
use prost::Message;
use std::sync::atomic::Ordering;

fn upsert(name: &str, version: &str, message: &impl Message) -> Upsert {
    Upsert { name: name.into(), version: version.into(), body: message.encode_to_vec().into() }
}

fn bad(name: &str) -> Upsert {
    Upsert { name: name.into(), version: "bad".into(), body: Bytes::from_static(b"\xff\xff") }
}

fn clusters(store: &mut Store, names: &[&str]) {
    let upserts = names.iter().map(|name| upsert(name, "1", &eds_cluster(name))).collect();
    assert_eq!(store.apply(CLUSTER_TYPE, upserts, &[]), []);
}

fn endpoints(store: &mut Store, name: &str, ports: &[u32]) {
    let list = ports.iter().map(|port| lb_endpoint("10.0.0.1", *port)).collect();
    let upserts = vec![upsert(name, "1", &assignment(name, list))];
    assert_eq!(store.apply(ENDPOINT_TYPE, upserts, &[]), []);
}

fn listener(store: &mut Store, rds: &str) {
    let message = http_listener("0.0.0.0_9080", "0.0.0.0", 9080, rds);
    let upserts = vec![upsert("0.0.0.0_9080", rds, &message)];
    assert_eq!(store.apply(LISTENER_TYPE, upserts, &[]), []);
}

fn routes(store: &mut Store, name: &str) {
    let upserts = vec![upsert(name, "1", &route_table(name, "a"))];
    assert_eq!(store.apply(ROUTE_TYPE, upserts, &[]), []);
}

/// One cluster with one endpoint, one listener with one table.
fn complete() -> Store {
    let mut store = Store::new();
    clusters(&mut store, &["a"]);
    endpoints(&mut store, "a", &[80]);
    listener(&mut store, "9080");
    routes(&mut store, "9080");
    store
}

fn ports(snapshot: &Snapshot, cluster: &str) -> Vec<u16> {
    let cluster = snapshot.cluster(cluster).unwrap();
    snapshot.endpoints(cluster).endpoints().map(|e| e.address.port()).collect()
}

fn dst(text: &str) -> std::net::SocketAddr {
    text.parse().unwrap()
}

#[test]
fn the_first_snapshot_is_complete() {
    let mut store = Store::new();
    assert!(store.snapshot().is_none());
    clusters(&mut store, &["a", "b"]);
    let names: Vec<_> = store.subscriptions().endpoints.iter().cloned().collect();
    assert_eq!(names, ["a".into(), "b".into()]);
    endpoints(&mut store, "a", &[80]);
    listener(&mut store, "9080");
    assert!(store.subscriptions().routes.contains("9080"));
    routes(&mut store, "9080");
    assert!(store.snapshot().is_none(), "b has no endpoints yet");
    assert_eq!(store.warming(), ["b".into()]);
    endpoints(&mut store, "b", &[]);
    let snapshot = store.snapshot().unwrap();
    assert_eq!(ports(&snapshot, "a"), [80]);
    assert!(ports(&snapshot, "b").is_empty());
    assert_eq!(&*snapshot.outbound(dst("10.9.9.9:9080")).unwrap().name, "0.0.0.0_9080");
    assert!(snapshot.routes("9080").is_some());
}

#[test]
fn an_empty_mesh_is_complete_too() {
    let mut store = Store::new();
    store.apply(CLUSTER_TYPE, vec![], &[]);
    assert!(store.snapshot().is_none());
    store.apply(LISTENER_TYPE, vec![], &[]);
    let snapshot = store.snapshot().unwrap();
    assert!(snapshot.outbound(dst("10.0.0.1:80")).is_none());
    assert!(snapshot.inbound().is_none());
}

#[test]
fn a_bad_resource_is_refused_and_the_rest_applies() {
    let mut store = complete();
    let before = store.snapshot().unwrap();
    let mut wrong = eds_cluster("a");
    wrong.lb_policy = 99;
    let rejections =
        store.apply(CLUSTER_TYPE, vec![upsert("a", "2", &wrong), upsert("c", "2", &eds_cluster("c")), bad("d")], &[]);
    let named: Vec<_> = rejections.iter().map(|r| (r.name.as_str(), r.path.as_str())).collect();
    assert_eq!(named, [("a", "lb_policy"), ("d", "")]);
    endpoints(&mut store, "c", &[90]);
    let after = store.snapshot().unwrap();
    assert!(Arc::ptr_eq(before.cluster("a").unwrap(), after.cluster("a").unwrap()));
    assert_eq!(ports(&after, "c"), [90]);
    assert!(after.cluster("d").is_none());
    // The refused version is not claimed on reconnect.
    assert_eq!(store.versions(CLUSTER_TYPE)["a"], "1");
    assert!(!store.versions(CLUSTER_TYPE).contains_key("d"));
}

#[test]
fn refused_endpoints_and_routes_do_not_hold_up_the_rest() {
    let mut store = Store::new();
    clusters(&mut store, &["a", "b"]);
    endpoints(&mut store, "b", &[80]);
    assert_eq!(store.apply(ENDPOINT_TYPE, vec![bad("a")], &[]).len(), 1);
    listener(&mut store, "9080");
    assert_eq!(store.apply(ROUTE_TYPE, vec![bad("9080")], &[]).len(), 1);
    let snapshot = store.snapshot().unwrap();
    assert!(ports(&snapshot, "a").is_empty());
    assert_eq!(ports(&snapshot, "b"), [80]);
    assert!(snapshot.routes("9080").is_none());
    // Later a good one comes, then a bad one again: the good one stays.
    endpoints(&mut store, "a", &[81]);
    assert_eq!(store.apply(ENDPOINT_TYPE, vec![bad("a")], &[]).len(), 1);
    assert_eq!(ports(&store.snapshot().unwrap(), "a"), [81]);
    assert_eq!(store.versions(ENDPOINT_TYPE)["a"], "1", "the good version is still claimed");
}

#[test]
fn the_old_version_serves_until_the_new_one_is_warm() {
    let mut store = complete();
    store.snapshot().unwrap();
    listener(&mut store, "new");
    let names = store.subscriptions().routes;
    assert!(names.contains("9080") && names.contains("new"));
    let snapshot = store.snapshot().unwrap();
    let needed = |snapshot: &Snapshot| -> Vec<Arc<str>> {
        let listener = snapshot.outbound(dst("1.1.1.1:9080")).unwrap();
        listener.route_names().cloned().collect()
    };
    assert_eq!(needed(&snapshot), ["9080".into()]);
    routes(&mut store, "new");
    let snapshot = store.snapshot().unwrap();
    assert_eq!(needed(&snapshot), ["new".into()]);
    // The old table is let go with the next update of listeners.
    store.apply(LISTENER_TYPE, vec![], &[]);
    assert!(store.snapshot().unwrap().routes("9080").is_none());
    assert!(!store.subscriptions().routes.contains("9080"));
}

#[test]
fn removal_drops_what_only_it_needed() {
    let mut store = complete();
    store.snapshot().unwrap();
    store.apply(CLUSTER_TYPE, vec![], &["a".into(), "nobody".into()]);
    store.apply(LISTENER_TYPE, vec![], &["0.0.0.0_9080".into()]);
    let snapshot = store.snapshot().unwrap();
    assert!(snapshot.cluster("a").is_none());
    assert!(snapshot.outbound(dst("1.1.1.1:9080")).is_none());
    assert!(snapshot.endpoints.get("a").is_none() && snapshot.routes.get("9080").is_none());
    assert_eq!(store.subscriptions(), Subscriptions::default());
    for type_url in [CLUSTER_TYPE, LISTENER_TYPE, ENDPOINT_TYPE, ROUTE_TYPE] {
        assert!(store.versions(type_url).is_empty(), "{type_url}");
    }
}

#[test]
fn removed_endpoints_are_an_answer_and_keep_what_was_held() {
    let mut store = Store::new();
    clusters(&mut store, &["a", "b"]);
    store.apply(LISTENER_TYPE, vec![], &[]);
    endpoints(&mut store, "b", &[80]);
    store.apply(ENDPOINT_TYPE, vec![], &["a".into(), "b".into(), "stranger".into()]);
    let snapshot = store.snapshot().unwrap();
    assert!(ports(&snapshot, "a").is_empty());
    assert_eq!(ports(&snapshot, "b"), [80]);
    assert!(store.versions(ENDPOINT_TYPE).is_empty());
}

#[test]
fn what_nobody_needs_is_not_kept() {
    let mut store = complete();
    endpoints(&mut store, "stranger", &[80]);
    routes(&mut store, "stranger");
    assert!(!store.versions(ENDPOINT_TYPE).contains_key("stranger"));
    assert!(store.snapshot().unwrap().routes("stranger").is_none());
}

#[test]
fn nothing_new_is_the_same_snapshot() {
    let mut store = complete();
    let first = store.snapshot().unwrap();
    assert!(Arc::ptr_eq(&first, &store.snapshot().unwrap()));
    // The control plane sends everything again under another version.
    store.apply(CLUSTER_TYPE, vec![upsert("a", "2", &eds_cluster("a"))], &[]);
    let again = vec![upsert("a", "2", &assignment("a", vec![lb_endpoint("10.0.0.1", 80)]))];
    store.apply(ENDPOINT_TYPE, again, &[]);
    routes(&mut store, "9080");
    listener(&mut store, "9080");
    assert!(Arc::ptr_eq(&first, &store.snapshot().unwrap()));
    assert_eq!(store.versions(CLUSTER_TYPE)["a"], "2");
}

#[test]
fn unchanged_parts_are_shared_and_counters_live_on() {
    let mut store = complete();
    clusters(&mut store, &["b"]);
    endpoints(&mut store, "b", &[80]);
    let before = store.snapshot().unwrap();
    let first = |snapshot: &Snapshot| {
        let cluster = snapshot.cluster("a").unwrap();
        snapshot.endpoints(cluster).endpoints().next().unwrap().clone()
    };
    first(&before).runtime.active.store(3, Ordering::Relaxed);
    endpoints(&mut store, "a", &[80, 81]);
    let after = store.snapshot().unwrap();
    assert!(Arc::ptr_eq(&first(&before), &first(&after)), "an unchanged endpoint is the same object");
    assert!(Arc::ptr_eq(before.cluster("a").unwrap(), after.cluster("a").unwrap()));
    let (b, also_b) = (before.endpoints.get("b").unwrap(), after.endpoints.get("b").unwrap());
    assert!(Arc::ptr_eq(b, also_b));

    let heavier = endpoint::LbEndpoint { load_balancing_weight: number(7), ..lb_endpoint("10.0.0.1", 80) };
    store.apply(ENDPOINT_TYPE, vec![upsert("a", "3", &assignment("a", vec![heavier]))], &[]);
    let changed = first(&store.snapshot().unwrap());
    assert_eq!((changed.weight, changed.runtime.active.load(Ordering::Relaxed)), (7, 3));
}

#[test]
fn listeners_are_found_by_address() {
    let mut store = Store::new();
    store.apply(CLUSTER_TYPE, vec![], &[]);
    let mut virtual_outbound = tcp_listener("virtualOutbound", "0.0.0.0", 15001, "PassthroughCluster");
    virtual_outbound.bind_to_port = None;
    let mut virtual_inbound = tcp_listener("virtualInbound", "0.0.0.0", 15006, "InboundPassthroughCluster");
    virtual_inbound.traffic_direction = 1;
    let all = [
        tcp_listener("10.96.0.1_6379", "10.96.0.1", 6379, "redis"),
        tcp_listener("0.0.0.0_6379", "0.0.0.0", 6379, "any"),
        tcp_listener("::_6379", "::", 6379, "any6"),
        virtual_outbound,
        virtual_inbound,
    ];
    let upserts = all.iter().map(|l| upsert(&l.name, "1", l)).collect();
    assert_eq!(store.apply(LISTENER_TYPE, upserts, &[]), []);
    let snapshot = store.snapshot().unwrap();
    for (destination, want) in [
        ("10.96.0.1:6379", "10.96.0.1_6379"),
        ("[::ffff:10.96.0.1]:6379", "10.96.0.1_6379"),
        ("10.96.0.2:6379", "0.0.0.0_6379"),
        ("[fd00::1]:6379", "::_6379"),
        ("10.96.0.1:80", "virtualOutbound"),
        ("10.96.0.1:15006", "virtualOutbound"),
    ] {
        assert_eq!(&*snapshot.outbound(dst(destination)).unwrap().name, want, "{destination}");
    }
    assert_eq!(&*snapshot.inbound().unwrap().name, "virtualInbound");
}

#[test]
fn one_name_in_the_place_of_another_is_asked_for() {
    let mut store = complete();
    store.apply(CLUSTER_TYPE, vec![upsert("b", "1", &eds_cluster("b"))], &["a".into()]);
    assert_eq!(*store.subscriptions().endpoints, ["b".into()].into());
}

#[test]
fn an_unknown_type_is_refused() {
    let mut store = complete();
    let rejections = store.apply("type.googleapis.com/x.Y", vec![bad("a")], &[]);
    assert_eq!(rejections.len(), 1);
    assert!(rejections[0].to_string().contains("x.Y"), "{}", rejections[0]);
}

#[test]
fn a_full_store_refuses_more() {
    let mut store = Store::new();
    store.clusters = Dependent::new(1);
    let upserts = vec![upsert("a", "1", &eds_cluster("a")), upsert("b", "1", &eds_cluster("b"))];
    let rejections = store.apply(CLUSTER_TYPE, upserts, &[]);
    assert_eq!(rejections.len(), 1);
    assert_eq!(rejections[0].name, "b");
    // What is there may still change.
    let mut changed = eds_cluster("a");
    changed.connect_timeout = seconds(1);
    assert_eq!(store.apply(CLUSTER_TYPE, vec![upsert("a", "2", &changed)], &[]), []);
}

#[test]
fn a_route_table_with_a_bad_route_keeps_the_old_one() {
    let mut store = complete();
    let before = store.snapshot().unwrap();
    let mut wrong = route_table("9080", "a");
    wrong.virtual_hosts.push(route::VirtualHost::default());
    let rejections = store.apply(ROUTE_TYPE, vec![upsert("9080", "2", &wrong)], &[]);
    assert_eq!(rejections[0].path, "virtual_hosts[1].domains");
    assert!(Arc::ptr_eq(&before, &store.snapshot().unwrap()));
}

#[test]
fn stores_of_a_node_hold_equal_resources_once() {
    let shared = Shared::new();
    let fill = |store: &mut Store, port| {
        clusters(store, &["a"]);
        endpoints(store, "a", &[port]);
        listener(store, "9080");
        routes(store, "9080");
        store.snapshot().unwrap()
    };
    let (mut one, mut two) = (Store::sharing(shared.clone()), Store::sharing(shared.clone()));
    let (first, second) = (fill(&mut one, 80), fill(&mut two, 80));
    let endpoints_of = |snapshot: &Snapshot| snapshot.endpoints.get("a").unwrap().clone();
    assert!(Arc::ptr_eq(first.cluster("a").unwrap(), second.cluster("a").unwrap()));
    assert!(Arc::ptr_eq(first.routes("9080").unwrap(), second.routes("9080").unwrap()));
    assert!(Arc::ptr_eq(&endpoints_of(&first), &endpoints_of(&second)));
    // One workload may see other endpoints than another.
    let third = fill(&mut Store::sharing(shared.clone()), 81);
    assert_eq!(ports(&third, "a"), [81]);
    assert_eq!(ports(&second, "a"), [80]);
    assert!(!Arc::ptr_eq(fill(&mut Store::new(), 80).cluster("a").unwrap(), first.cluster("a").unwrap()));
}

#[test]
fn what_no_store_holds_is_let_go() {
    let shared = Shared::new();
    let mut store = Store::sharing(shared.clone());
    for round in 0..3000i64 {
        let mut message = eds_cluster("a");
        message.connect_timeout = seconds(1 + round);
        store.apply(CLUSTER_TYPE, vec![upsert("a", "1", &message)], &[]);
    }
    assert!(shared.pools().clusters.len() < 2000, "{}", shared.pools().clusters.len());
}
