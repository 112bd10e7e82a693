//! Of which services a client's kernel chooses endpoints: it follows who may go where, and who is there.

use envoy_types::pb::envoy::config::cluster::v3::{CircuitBreakers, Cluster, circuit_breakers::Thresholds};
use envoy_types::pb::envoy::config::endpoint::v3::LbEndpoint;
use mesh_core::resource::{CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE};
use mesh_core::store::{Store, Upsert};
use prost::Message;

use super::*;
use crate::proxy::tests::messages::*;

const TO: &str = "10.96.0.10:6379";
const HERE: &str = "10.0.0.1:6379";

/// A service with an endpoint on this node and one elsewhere.
fn snapshot() -> Arc<Snapshot> {
    let thresholds = Thresholds { max_connections: number(u32::MAX), ..Default::default() };
    let breakers = CircuitBreakers { thresholds: vec![thresholds], ..Default::default() };
    let cluster = Cluster { circuit_breakers: Some(breakers), ..eds_cluster("a") };
    let who = fields(&[("identity", text("spiffe://cluster.local/ns/shop/sa/redis"))]);
    let how = fields(&[("tunnel", text("http"))]);
    let metadata = metadata(&[("envoy.transport_socket_match", how), ("io.mesh.workload", who)]);
    let endpoint = |host: &str| LbEndpoint { metadata: metadata.clone(), ..lb_endpoint(host, 6379) };
    let endpoints = assignment("a", vec![endpoint("10.0.0.1"), endpoint("10.0.0.2")]);
    let listener = tcp_listener("l", "10.96.0.10", 6379, "a");
    let mut store = Store::new();
    let mut apply = |kind: &str, name: &str, body: Vec<u8>| {
        let upsert = Upsert { name: name.into(), version: "1".into(), body: body.into() };
        assert_eq!(store.apply(kind, vec![upsert], &[]), []);
    };
    apply(CLUSTER_TYPE, "a", cluster.encode_to_vec());
    apply(ENDPOINT_TYPE, "a", endpoints.encode_to_vec());
    apply(LISTENER_TYPE, "l", listener.encode_to_vec());
    store.snapshot().unwrap()
}

#[test]
fn what_is_chosen_follows_who_may_go_where_and_who_is_there() {
    let snapshot = snapshot();
    let (to, here): (SocketAddr, SocketAddr) = (TO.parse().unwrap(), HERE.parse().unwrap());
    let people = |account| HashMap::from([(here.ip(), SpiffeId::new("cluster.local", "shop", account).unwrap())]);
    let (redis, other) = (people("redis"), people("other"));
    let (mut one, mut two, mut lists) = (Client::default(), Client::default(), Lists::default());
    let mut chosen = |client: &mut Client, may: bool, people: &HashMap<IpAddr, SpiffeId>, others: bool| {
        let ways = may.then_some(here).into_iter().collect();
        client.follow(&snapshot, ways, people, others, &mut lists);
        client.chosen.get(&to).cloned()
    };
    assert_eq!(chosen(&mut one, false, &redis, true), None);
    let list = chosen(&mut one, true, &redis, false).unwrap();
    assert_eq!(*list, [here, "10.0.0.2:6379".parse().unwrap()]);
    assert!(Arc::ptr_eq(&list, &chosen(&mut one, true, &redis, false).unwrap()));
    assert_eq!(chosen(&mut one, false, &redis, false), None);
    let list = chosen(&mut one, true, &redis, false).unwrap();
    assert!(Arc::ptr_eq(&list, &chosen(&mut two, true, &redis, true).unwrap()), "held once for all");
    assert_eq!(chosen(&mut one, true, &other, true), None, "somebody else is there");
}
