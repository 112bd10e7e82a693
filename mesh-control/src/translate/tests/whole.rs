//! Clusters and endpoints, stability of versions, and a whole mesh as the agent sees it.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::net::SocketAddr;

use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy};
use mesh_core::store::{Store, Upsert};

use super::*;

const REVIEWS: &str = "reviews.default.svc.cluster.local";

fn bookinfo() -> String {
    [
        service("reviews", "10.96.0.1", "[{name: http, port: 9080}]"),
        service("redis", "10.96.0.2", "[{name: tcp, port: 6379}]"),
        pod("v1", "reviews", "", "10.1.0.1"),
        pod("v2", "reviews", "", "10.1.0.2"),
        pod("redis-0", "redis", "", "10.1.0.3"),
        istio(
            "DestinationRule",
            "reviews",
            "  host: reviews\n  subsets:\n  - {name: v1, labels: {version: v1}}\n  - {name: v2, labels: {version: v2}, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}",
        ),
        istio(
            "VirtualService",
            "reviews",
            "  hosts: [reviews]\n  http:\n  - match: [{headers: {end-user: {exact: jason}}}]\n    route: [{destination: {host: reviews, subset: v2}}]\n  - route:\n    - {destination: {host: reviews, subset: v1}, weight: 90}\n    - {destination: {host: reviews, subset: v2}, weight: 10}",
        ),
    ]
    .concat()
}

fn discovery(cluster: &Cluster) -> DiscoveryType {
    match cluster.cluster_discovery_type {
        Some(ClusterDiscoveryType::Type(kind)) => DiscoveryType::try_from(kind).unwrap(),
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn clusters_are_named_as_istio_names_them() {
    let told = Told::new(&bookinfo());
    assert_eq!(
        told.names(Kind::Cluster),
        [
            "BlackHoleCluster",
            "InboundPassthroughCluster",
            "PassthroughCluster",
            "outbound|6379||redis.default.svc.cluster.local",
            "outbound|9080|v1|reviews.default.svc.cluster.local",
            "outbound|9080|v2|reviews.default.svc.cluster.local",
            "outbound|9080||reviews.default.svc.cluster.local",
        ]
    );
    assert_eq!(told.names(Kind::Endpoint).len(), 4);
    let whole = told.cluster(&format!("outbound|9080||{REVIEWS}"));
    assert_eq!(discovery(&whole), DiscoveryType::Eds);
    assert_eq!(whole.lb_policy, i32::from(LbPolicy::LeastRequest));
    assert_eq!(whole.connect_timeout.unwrap().seconds, 10);
    let sockets: Vec<_> = whole.transport_socket_matches.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(sockets, ["hbone", "tlsMode-istio", "tlsMode-disabled"]);
    let limits = &whole.circuit_breakers.as_ref().unwrap().thresholds[0];
    assert_eq!(limits.max_connections.unwrap().value, u32::MAX);
    assert_eq!(told.cluster(&format!("outbound|9080|v2|{REVIEWS}")).lb_policy, i32::from(LbPolicy::RoundRobin));
    assert_eq!(discovery(&told.cluster("BlackHoleCluster")), DiscoveryType::Static);
    assert_eq!(discovery(&told.cluster("PassthroughCluster")), DiscoveryType::OriginalDst);
    let parsed = mesh_core::resource::cluster::Cluster::parse(
        &whole.name,
        &told.resources(Kind::Cluster)[whole.name.as_str()].body.value,
        None,
    )
    .unwrap();
    assert_eq!(
        parsed.sans.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["spiffe://cluster.local/ns/default/sa/reviews"]
    );
    assert_eq!(&*parsed.service.unwrap().name, "reviews");
}

#[test]
fn subsets_select_by_label_and_endpoints_say_who_they_are() {
    let told = Told::new(&bookinfo());
    let name = format!("outbound|9080|v2|{REVIEWS}");
    assert_eq!(told.endpoints(&name).endpoints[0].lb_endpoints.len(), 1);
    let body = &told.resources(Kind::Endpoint)[name.as_str()].body.value;
    let parsed = mesh_core::resource::endpoint::LoadAssignment::parse(&name, body, None).unwrap();
    let endpoint = parsed.endpoints().next().unwrap().clone();
    assert_eq!(endpoint.address, "10.1.0.2:9080".parse::<SocketAddr>().unwrap());
    assert!(endpoint.tunnel);
    assert_eq!(endpoint.identity.as_ref().unwrap().to_string(), "spiffe://cluster.local/ns/default/sa/reviews");
    let workload = endpoint.workload.clone().unwrap();
    let told = [&workload.name, &workload.namespace, &workload.canonical_service, &workload.canonical_revision]
        .map(|one| one.to_string());
    assert_eq!(told, ["v2", "default", "reviews", "v2"]);
    assert_eq!([&*workload.cluster, &*workload.app, &*workload.version], ["Kubernetes", "reviews", "v2"]);
}

#[test]
fn unenrolled_and_external_endpoints_have_no_tunnel() {
    let plain = pod("v1", "reviews", "", "10.1.0.1").replace("redirection: enabled", "redirection: disabled");
    let entry = istio(
        "ServiceEntry",
        "e",
        "  hosts: [x.example.com]\n  resolution: STATIC\n  ports: [{number: 80, name: http}]\n  endpoints: [{address: 192.0.2.1}]",
    );
    let text = [service("reviews", "10.96.0.1", "[{name: http, port: 9080}]"), plain, entry].concat();
    let told = Told::new(&text);
    for name in [format!("outbound|9080||{REVIEWS}"), "outbound|80||x.example.com".to_owned()] {
        let body = &told.resources(Kind::Endpoint)[name.as_str()].body.value;
        let parsed = mesh_core::resource::endpoint::LoadAssignment::parse(&name, body, None).unwrap();
        assert!(parsed.endpoints().all(|one| !one.tunnel && one.identity.is_none()), "{parsed:?}");
    }
    assert!(told.cluster("outbound|80||x.example.com").transport_socket_matches.is_empty());
}

#[test]
fn a_pod_with_a_sidecar_of_istios_is_reached_by_mutual_tls_at_its_ports() {
    let (enabled, label) = ("redirection: enabled", "labels: {security.istio.io/tlsMode: istio, ");
    let hbone = "networking.istio.io/tunnel: 'x,http', ";
    let pod = |more: &str| pod("v1", "reviews", "", "10.1.0.1").replace("labels: {", more);
    let service = service("reviews", "10.96.0.1", "[{name: http, port: 9080}]");
    let off = istio("PeerAuthentication", "off", "  mtls: {mode: DISABLE}").replace("networking.", "security.");
    for (objects, by_tunnel, by_tls) in [
        (vec![pod(label).replace(enabled, "redirection: disabled")], false, true),
        // A tunnel goes before it, the sidecar's own too.
        (vec![pod(label)], true, false),
        (vec![pod(&format!("{label}{hbone}")).replace(enabled, "redirection: disabled")], true, false),
        (vec![pod("labels: {").replace(enabled, "redirection: disabled")], false, false),
        (vec![pod(label).replace(enabled, "redirection: disabled"), off], false, false),
    ] {
        let told = Told::new(&[service.clone(), objects.concat()].concat());
        let name = format!("outbound|9080||{REVIEWS}");
        let body = |kind| told.resources(kind)[name.as_str()].body.value.clone();
        let parsed = mesh_core::resource::endpoint::LoadAssignment::parse(&name, &body(Kind::Endpoint), None).unwrap();
        let one = parsed.endpoints().next().unwrap();
        assert_eq!((one.tunnel, one.istio_mtls), (by_tunnel, by_tls), "{objects:?}");
        let cluster = mesh_core::resource::cluster::Cluster::parse(&name, &body(Kind::Cluster), None).unwrap();
        let sans: Vec<_> = cluster.sans.iter().map(ToString::to_string).collect();
        let expected = ["spiffe://cluster.local/ns/default/sa/reviews"];
        assert_eq!(sans, expected[..usize::from(by_tunnel || by_tls)], "{objects:?}");
    }
}

#[test]
fn other_resolutions() {
    let entry = |name: &str, resolution: &str| {
        istio(
            "ServiceEntry",
            name,
            &format!(
                "  hosts: [{name}.example.com]\n  resolution: {resolution}\n  ports: [{{number: 80, name: http}}]"
            ),
        )
    };
    let headless = service("db", "None", "[{name: tcp, port: 5432}]");
    let text = [entry("a", "DNS"), entry("b", "DNS_ROUND_ROBIN"), entry("c", "NONE"), headless].concat();
    let told = Told::new(&text);
    let kind = |name: &str| discovery(&told.cluster(name));
    assert_eq!(kind("outbound|80||a.example.com"), DiscoveryType::StrictDns);
    assert_eq!(kind("outbound|80||b.example.com"), DiscoveryType::LogicalDns);
    assert_eq!(kind("outbound|80||c.example.com"), DiscoveryType::OriginalDst);
    assert_eq!(kind("outbound|5432||db.default.svc.cluster.local"), DiscoveryType::OriginalDst);
    assert_eq!(told.names(Kind::Endpoint), [""; 0]);
}

#[test]
fn a_traffic_policy_reaches_the_cluster() {
    let rule = istio(
        "DestinationRule",
        "reviews",
        "  host: reviews
  trafficPolicy:
    loadBalancer: {consistentHash: {httpHeaderName: X-User}}
    connectionPool:
      tcp: {maxConnections: 7, connectTimeout: 2s}
      http: {http1MaxPendingRequests: 3, http2MaxRequests: 4, maxRetries: 5, maxRequestsPerConnection: 6, h2UpgradePolicy: UPGRADE}
    outlierDetection: {consecutive5xxErrors: 3, interval: 1s, baseEjectionTime: 2s, maxEjectionPercent: 50, minHealthPercent: 10}
    portLevelSettings:
    - port: {number: 81}
      loadBalancer: {simple: RANDOM}
  subsets:
  - name: v1
    trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}",
    );
    let ports = "[{name: http, port: 9080}, {name: http-b, port: 81}]";
    let told = Told::new(&[service("reviews", "10.96.0.1", ports), rule].concat());
    let whole = told.cluster(&format!("outbound|9080||{REVIEWS}"));
    assert_eq!(whole.lb_policy, i32::from(LbPolicy::RingHash));
    assert_eq!(whole.connect_timeout.unwrap().seconds, 2);
    let limits = &whole.circuit_breakers.as_ref().unwrap().thresholds[0];
    let values = [limits.max_connections, limits.max_pending_requests, limits.max_requests, limits.max_retries];
    assert_eq!(values.map(|value| value.unwrap().value), [7, 3, 4, 5]);
    let outlier = whole.outlier_detection.as_ref().unwrap();
    assert_eq!(outlier.consecutive_5xx.unwrap().value, 3);
    assert_eq!(outlier.max_ejection_percent.unwrap().value, 50);
    assert!(
        whole.typed_extension_protocol_options.contains_key("envoy.extensions.upstreams.http.v3.HttpProtocolOptions")
    );
    let subset = told.cluster(&format!("outbound|9080|v1|{REVIEWS}"));
    assert_eq!(subset.lb_policy, i32::from(LbPolicy::RoundRobin));
    assert_eq!(subset.connect_timeout.unwrap().seconds, 2, "what the subset does not say comes from the rule");
    let port = told.cluster(&format!("outbound|81||{REVIEWS}"));
    assert_eq!(port.lb_policy, i32::from(LbPolicy::Random));
    assert_eq!(port.connect_timeout.unwrap().seconds, 10, "a port's policy replaces the whole");
    let table = told.routes("9080");
    let text = format!("{:?}", table.virtual_hosts[0].routes[0]);
    assert!(text.contains("x-user") && !text.contains("previous_hosts"), "{text}");
}

#[test]
fn equal_meshes_have_equal_versions() {
    let first = versions(&Told::new(&bookinfo()));
    for _ in 0..20 {
        assert_eq!(versions(&Told::new(&bookinfo())), first);
    }
}

#[test]
fn a_change_touches_only_what_it_changes() {
    let changed = |text: &str| -> Vec<String> {
        let (before, after) = (versions(&Told::new(&bookinfo())), versions(&Told::new(text)));
        let names = before.keys().chain(after.keys()).collect::<std::collections::BTreeSet<_>>();
        let differ = names.into_iter().filter(|name| before.get(*name) != after.get(*name));
        differ.map(|(kind, name)| format!("{kind:?} {name}")).collect()
    };
    assert_eq!(changed(&bookinfo()), [""; 0]);
    // One more pod: only endpoints.
    assert_eq!(
        changed(&format!(
            "{}{}",
            bookinfo(),
            pod("v1-b", "reviews", "", "10.1.0.7").replace("version: v1-b", "version: v1")
        )),
        [format!("Endpoint outbound|9080|v1|{REVIEWS}"), format!("Endpoint outbound|9080||{REVIEWS}")]
    );
    // Other weights: only the route table.
    assert_eq!(changed(&bookinfo().replace("weight: 90", "weight: 80")), ["Route 9080"]);
    // Another load balancer: only that cluster.
    assert_eq!(changed(&bookinfo().replace("ROUND_ROBIN", "RANDOM")), [format!("Cluster outbound|9080|v2|{REVIEWS}")]);
}

/// The agent's own store takes all of it, and a connection finds its way.
#[test]
fn the_agent_makes_sense_of_it() {
    let told = Told::new(&bookinfo());
    let mut store = Store::new();
    for kind in Kind::ALL {
        let upserts = told
            .resources(kind)
            .iter()
            .map(|(name, one)| Upsert {
                name: name.to_string(),
                version: one.version.to_string(),
                body: one.body.value.clone().into(),
            })
            .collect();
        let refused = store.apply(kind.type_url(), upserts, &[]);
        assert!(refused.is_empty(), "{refused:?}");
    }
    let snapshot = store.snapshot().expect("nothing is waited for");
    let find = |address: &str| snapshot.outbound(address.parse().unwrap()).unwrap().name.to_string();
    assert_eq!(find("10.96.0.1:9080"), "0.0.0.0_9080");
    assert_eq!(find("10.96.0.2:6379"), "10.96.0.2_6379");
    assert_eq!(find("192.0.2.1:443"), "virtualOutbound");
    let redis = snapshot.outbound("10.96.0.2:6379".parse().unwrap()).unwrap();
    use mesh_core::resource::listener::Detection;
    assert_eq!(redis.detection("10.96.0.2:6379".parse().unwrap(), false), Detection::NotNeeded);
    let cluster = snapshot.cluster(&format!("outbound|9080||{REVIEWS}")).unwrap();
    assert_eq!(snapshot.endpoints(cluster).endpoints().count(), 2);
    assert!(snapshot.routes("9080").is_some());
    assert!(snapshot.inbound().is_some());
}

/// What a change does not touch is the same in memory, so that nobody compares it for every client.
#[test]
fn what_has_not_changed_is_shared_with_the_version_before() {
    let checked = Checked::default();
    let translate = |text: &str| {
        let (mesh, _) = Mesh::build(options(), &objects(text));
        Translation::new(Arc::new(mesh), checked.clone())
    };
    let client = pod("client", "client", "", "10.1.9.9");
    let before = translate(&[bookinfo(), client.clone()].concat());
    let of = |translation: &Translation, kind| {
        let workload = translation.mesh().workloads.get("default", "client").unwrap().clone();
        translation.resources(&workload, kind)
    };
    let kinds = [Kind::Cluster, Kind::Endpoint, Kind::Listener, Kind::Route];
    let old = kinds.map(|kind| of(&before, kind));
    drop(before);
    let after = translate(&[bookinfo(), client, pod("late", "reviews", "", "10.1.7.7")].concat());
    for (old, kind) in old.iter().zip(kinds).filter(|(_, kind)| matches!(kind, Kind::Listener | Kind::Route)) {
        assert!(old.is_same(&of(&after, kind)), "{kind:?}");
    }
    let endpoints = of(&after, Kind::Endpoint);
    assert!(!endpoints.is_same(&old[1]));
    let touched = |name: &str| !Arc::ptr_eq(&endpoints.shared[name], &old[1].shared[name]);
    let changed: Vec<&str> = endpoints.shared.keys().map(|name| &**name).filter(|name| touched(name)).collect();
    assert!(!changed.is_empty() && changed.iter().all(|name| name.contains("reviews")), "{changed:?}");
}

#[test]
fn namespaces_that_no_rule_tells_apart_share_and_others_do_not() {
    let client = |namespace: &str| {
        pod("client", "client", "", "10.1.8.8")
            .replace("  name: client\n", &format!("  name: client\n  namespace: {namespace}\n"))
    };
    let shared = |more: &str| -> bool {
        let text = [bookinfo(), client("a"), client("b"), more.to_owned()].concat();
        let (mesh, _) = Mesh::build(options(), &objects(&text));
        let translation = Translation::new(Arc::new(mesh), Checked::default());
        let endpoints = ["a", "b"].map(|namespace| {
            let workload = translation.mesh().workloads.get(namespace, "client").unwrap().clone();
            translation.resources(&workload, Kind::Endpoint)
        });
        endpoints[0].is_same(&endpoints[1])
    };
    let rule = |namespace: &str, host: &str, more: &str| {
        istio("DestinationRule", "x", &format!("  host: '{host}'{more}"))
            .replace("{name: x}", &format!("{{name: x, namespace: {namespace}}}"))
    };
    assert!(shared(""));
    assert!(shared(&rule("default", "redis", "")));
    assert!(!shared(&rule("a", "redis.default.svc.cluster.local", "")));
    assert!(!shared(&rule("a", "*.svc.cluster.local", "")));
    assert!(!shared(&rule("default", "redis", "\n  exportTo: ['.']")));
}
