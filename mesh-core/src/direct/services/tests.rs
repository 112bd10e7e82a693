//! What of a service the kernel may choose by itself, and in which proportions.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::cluster::v3 as cluster;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as endpoint;
use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::direct::outbound_cluster;
use crate::resource::{CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE};
use crate::store::{Store, Upsert};
use crate::testing::*;

const TO: &str = "10.96.0.10:6379";

fn of(snapshot: &Snapshot) -> Services {
    let mut all = Services::default();
    all.follow(snapshot);
    all
}

struct Config {
    clusters: Vec<(cluster::Cluster, Vec<endpoint::LbEndpoint>)>,
    listener: pb::Listener,
}

fn lb(address: &str, weight: u32) -> endpoint::LbEndpoint {
    let (host, port) = address.rsplit_once(':').unwrap();
    let tunnel = metadata(&[("envoy.transport_socket_match", fields(&[("tunnel", text("http"))]))]);
    let identity =
        metadata(&[("io.mesh.workload", fields(&[("identity", text("spiffe://cluster.local/ns/shop/sa/redis"))]))]);
    let mut all = tunnel.unwrap();
    all.filter_metadata.extend(identity.unwrap().filter_metadata);
    endpoint::LbEndpoint {
        load_balancing_weight: number(weight),
        metadata: Some(all),
        ..lb_endpoint(host, port.parse().unwrap())
    }
}

fn unlimited(name: &str) -> cluster::Cluster {
    let thresholds = cluster::circuit_breakers::Thresholds { max_connections: number(u32::MAX), ..Default::default() };
    cluster::Cluster {
        circuit_breakers: Some(cluster::CircuitBreakers { thresholds: vec![thresholds], ..Default::default() }),
        ..eds_cluster(name)
    }
}

impl Config {
    fn new(endpoints: &[(&str, u32)]) -> Config {
        Config {
            clusters: vec![(unlimited("a"), endpoints.iter().map(|(at, weight)| lb(at, *weight)).collect())],
            listener: tcp_listener("10.96.0.10_6379", "10.96.0.10", 6379, "a"),
        }
    }

    fn cluster(mut self, change: impl FnOnce(&mut cluster::Cluster)) -> Config {
        change(&mut self.clusters[0].0);
        self
    }

    fn proxy(mut self, proxy: tcp::TcpProxy) -> Config {
        self.listener.filter_chains[0].filters = vec![filter("envoy.filters.network.tcp_proxy", packed(&proxy))];
        self
    }

    fn snapshot(self) -> Arc<Snapshot> {
        let mut store = Store::new();
        let upsert = |name: &str, body: Vec<u8>| Upsert { name: name.into(), version: "1".into(), body: body.into() };
        let clusters = self.clusters.iter().map(|(one, _)| upsert(&one.name, one.encode_to_vec())).collect();
        assert_eq!(store.apply(CLUSTER_TYPE, clusters, &[]), []);
        for (cluster, endpoints) in &self.clusters {
            let all = assignment(&cluster.name, endpoints.clone());
            let refused = store.apply(ENDPOINT_TYPE, vec![upsert(&cluster.name, all.encode_to_vec())], &[]);
            assert_eq!(refused, []);
        }
        let listener = upsert("l", pb::Listener { name: "l".into(), ..self.listener }.encode_to_vec());
        assert_eq!(store.apply(LISTENER_TYPE, vec![listener], &[]), []);
        store.snapshot().unwrap()
    }

    /// The places of the one service, counted by endpoint; `None` if the agent is to choose.
    fn slots(self) -> Option<Vec<(String, usize)>> {
        let snapshot = self.snapshot();
        let all = of(&snapshot);
        let to = all.addresses().find(|to| all.get(*to).is_some())?;
        assert_eq!(all.addresses().count(), 1);
        let service = all.get(to)?;
        assert_eq!(service.to.to_string(), TO);
        let mut slots: Vec<String> = service.slots().iter().map(ToString::to_string).collect();
        slots.sort();
        Some(slots.chunk_by(|a, b| a == b).map(|same| (same[0].clone(), same.len())).collect())
    }
}

fn counts(some: &[(&str, usize)]) -> Option<Vec<(String, usize)>> {
    Some(some.iter().map(|(at, count)| (at.to_string(), *count)).collect())
}

#[test]
fn places_follow_weights() {
    for (endpoints, slots) in [
        (vec![("10.0.0.1:6379", 1), ("10.0.0.2:6379", 1)], vec![("10.0.0.1:6379", 1), ("10.0.0.2:6379", 1)]),
        (vec![("10.0.0.1:6379", 90), ("10.0.0.2:6379", 10)], vec![("10.0.0.1:6379", 9), ("10.0.0.2:6379", 1)]),
        (vec![("10.0.0.1:6379", 7)], vec![("10.0.0.1:6379", 1)]),
    ] {
        assert_eq!(Config::new(&endpoints).slots(), counts(&slots));
    }
    let uneven = [("10.0.0.1:6379", 100_003), ("10.0.0.2:6379", 1)];
    assert_eq!(Config::new(&uneven).slots(), None, "more places than there are");
    assert_eq!(Config::new(&[]).slots(), None, "nothing to choose from");
}

/// Three of four connections go to cluster `a`, the others to `b`.
fn of_two_clusters() -> Config {
    let mut config = Config::new(&[("10.0.0.1:6379", 1), ("10.0.0.2:6379", 2)]);
    config.clusters.push((unlimited("b"), vec![lb("10.0.0.3:6379", 5)]));
    let one = |name: &str, weight| tcp::tcp_proxy::weighted_cluster::ClusterWeight {
        name: name.into(),
        weight,
        ..Default::default()
    };
    config.proxy(tcp::TcpProxy {
        stat_prefix: "x".into(),
        cluster_specifier: Some(tcp::tcp_proxy::ClusterSpecifier::WeightedClusters(tcp::tcp_proxy::WeightedCluster {
            clusters: vec![one("a", 75), one("b", 25)],
        })),
        ..Default::default()
    })
}

#[test]
fn clusters_share_by_their_own_weights() {
    let config = of_two_clusters();
    // 3/4 × 1/3, 3/4 × 2/3, 1/4.
    assert_eq!(config.slots(), counts(&[("10.0.0.1:6379", 1), ("10.0.0.2:6379", 2), ("10.0.0.3:6379", 1)]));
}

#[test]
fn what_was_chosen_is_told_by_its_cluster() {
    let snapshot = of_two_clusters().snapshot();
    let name = |to: &str, endpoint: &str| {
        let cluster = outbound_cluster(&snapshot, to.parse().unwrap(), endpoint.parse().unwrap());
        cluster.map(|cluster| cluster.name.to_string())
    };
    assert_eq!(name(TO, "10.0.0.2:6379").as_deref(), Some("a"));
    assert_eq!(name(TO, "10.0.0.3:6379").as_deref(), Some("b"));
    assert_eq!(name(TO, "10.0.0.3:6380"), None, "no endpoint any more");
    assert_eq!(name(TO, TO), None, "not the service itself");
    assert_eq!(name("10.96.0.11:6379", "10.0.0.2:6379"), None, "no such service");
}

#[test]
fn what_asks_for_the_agent() {
    let two = || Config::new(&[("10.0.0.1:6379", 1), ("10.0.0.2:6379", 1)]);
    assert!(two().slots().is_some());
    let outliers = cluster::OutlierDetection { enforcing_success_rate: number(0), ..Default::default() };
    let limit = |limit| cluster::CircuitBreakers {
        thresholds: vec![cluster::circuit_breakers::Thresholds { max_connections: limit, ..Default::default() }],
        ..Default::default()
    };
    for (why, config) in [
        ("a limit", two().cluster(|c| c.circuit_breakers = Some(limit(number(10))))),
        ("Envoy's own limit", two().cluster(|c| c.circuit_breakers = None)),
        ("outliers", two().cluster(|c| c.outlier_detection = Some(outliers.clone()))),
        ("hashing", two().cluster(|c| c.lb_policy = cluster::cluster::LbPolicy::RingHash as i32)),
        ("a short idle time", {
            let cluster = Some(tcp::tcp_proxy::ClusterSpecifier::Cluster("a".into()));
            let idle = seconds(60);
            two().proxy(tcp::TcpProxy {
                stat_prefix: "x".into(),
                cluster_specifier: cluster,
                idle_timeout: idle,
                ..Default::default()
            })
        }),
        ("a longest life", {
            let cluster = Some(tcp::tcp_proxy::ClusterSpecifier::Cluster("a".into()));
            two().proxy(tcp::TcpProxy {
                stat_prefix: "x".into(),
                cluster_specifier: cluster,
                max_downstream_connection_duration: seconds(60),
                ..Default::default()
            })
        }),
        ("somebody ill", {
            let mut config = two();
            config.clusters[0].1[0].health_status = core::HealthStatus::Unhealthy as i32;
            config
        }),
        ("the other family", Config::new(&[("fd00::1:6379", 1), ("10.0.0.2:6379", 1)])),
        ("an address for everybody", { Config { listener: tcp_listener("x", "0.0.0.0", 6379, "a"), ..two() } }),
    ] {
        assert_eq!(config.slots(), None, "{why}");
    }
}

#[test]
fn who_is_meant() {
    let means = |config: Config, account: &str| {
        let snapshot = config.snapshot();
        let all = of(&snapshot);
        let service = all.get(TO.parse().unwrap()).unwrap();
        service.choices[0].means(&SpiffeId::new("cluster.local", "shop", account).unwrap())
    };
    let one = || Config::new(&[("10.0.0.1:6379", 1)]);
    assert!(means(one(), "redis"));
    assert!(!means(one(), "web"));
    let mut plain = one();
    plain.clusters[0].1[0].metadata = None;
    assert!(!means(plain, "redis"), "in the open, or of nobody known");
}

/// Slots by address.
fn told(services: &Services) -> BTreeMap<SocketAddr, Vec<SocketAddr>> {
    services.addresses().filter_map(|to| Some((to, services.get(to)?.slots()))).collect()
}

/// What a random step does to a configuration of three clusters and listeners.
fn step(store: &mut Store, (what, which, how): (u8, u8, u8)) {
    let name = ["a", "b", "c"][usize::from(which % 3)];
    let upsert =
        |name: &str, body: Vec<u8>| vec![Upsert { name: name.into(), version: format!("{how}"), body: body.into() }];
    let refused = match what % 6 {
        0 => {
            let cluster = if how % 2 == 0 { unlimited(name) } else { eds_cluster(name) };
            store.apply(CLUSTER_TYPE, upsert(name, cluster.encode_to_vec()), &[])
        }
        1 => store.apply(CLUSTER_TYPE, vec![], &[name.to_owned()]),
        2 | 3 => {
            let endpoints =
                (0..how % 4).map(|index| lb(&format!("10.0.{which}.{index}:6379"), u32::from(how / 4 + index + 1)));
            let body = assignment(name, endpoints.collect()).encode_to_vec();
            store.apply(ENDPOINT_TYPE, upsert(name, body), &[])
        }
        // Several may stand for one address.
        4 => {
            let address = ["10.96.0.1", "10.96.0.2", "0.0.0.0"][usize::from(how % 3)];
            let cluster = ["a", "b", "c"][usize::from(how / 3 % 3)];
            let listener = pb::Listener { name: name.into(), ..tcp_listener(name, address, 6379, cluster) };
            store.apply(LISTENER_TYPE, upsert(name, listener.encode_to_vec()), &[])
        }
        _ => store.apply(LISTENER_TYPE, vec![], &[name.to_owned()]),
    };
    assert_eq!(refused, []);
}

proptest! {
    /// What is followed step by step is what is found at once, and every change is told.
    #[test]
    fn following_leads_to_the_same(steps in proptest::collection::vec((any::<u8>(), any::<u8>(), any::<u8>()), 1..60)) {
        let (mut store, mut followed) = (Store::new(), Services::default());
        for at in steps {
            step(&mut store, at);
            let Some(snapshot) = store.snapshot() else { continue };
            let before = told(&followed);
            let changed = followed.follow(&snapshot);
            let now = told(&followed);
            prop_assert_eq!(&now, &told(&of(&snapshot)));
            let endpoints: BTreeSet<SocketAddr> = now.values().flatten().copied().collect();
            for endpoint in endpoints {
                let with = followed.with_any(&[endpoint].into());
                let of = |(_, slots): &(&SocketAddr, &Vec<SocketAddr>)| slots.contains(&endpoint);
                prop_assert!(now.iter().filter(of).all(|(to, _)| with.contains(to)), "{} of {:?}", endpoint, with);
            }
            for to in before.keys().chain(now.keys()).filter(|to| before.get(to) != now.get(to)) {
                prop_assert!(changed.contains(to), "{} of {:?}", to, changed);
            }
            let forgotten = followed.users.values().all(|users| !users.is_empty()) && followed.uses.len() <= 2;
            prop_assert!(forgotten, "what is gone is kept");
        }
    }
}
