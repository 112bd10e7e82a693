//! What goes directly, by one reason after the other why it must not; and for any policies the same answer as the agent's.

use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3 as cluster;
use envoy_types::pb::envoy::config::core::v3::TrafficDirection;
use envoy_types::pb::envoy::config::listener::v3 as pb;
use mesh_proto::security;
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::resource::authorization::Authorization;
use crate::resource::{CLUSTER_TYPE, LISTENER_TYPE};
use crate::store::{Store, Upsert};
use crate::testing::*;

const CLIENT: [u8; 4] = [10, 0, 0, 1];
const SERVER: [u8; 4] = [10, 0, 0, 2];
const TCP: u16 = 6379;
const HTTP: u16 = 80;

/// Ports of the inbound listener: [`TCP`] copies bytes, [`HTTP`] serves requests, any other is looked into.
fn inbound_listener() -> pb::Listener {
    let to = |port: u16| pb::FilterChainMatch { destination_port: number(port.into()), ..Default::default() };
    pb::Listener {
        traffic_direction: TrafficDirection::Inbound as i32,
        listener_filters: vec![inspector("http_inspector")],
        filter_chains: vec![
            chain("tcp", to(TCP), vec![tcp_filter("inbound|6379||")]),
            chain("http", to(HTTP), vec![http_filter("inbound|80||")]),
            chain("hole", to(15006), vec![tcp_filter(BLACK_HOLE)]),
            chain("http, if it is", plain_http(), vec![http_filter("inbound|80||")]),
            chain("the rest", Default::default(), vec![tcp_filter("inbound|6379||")]),
        ],
        ..tcp_listener("virtualInbound", "0.0.0.0", 15006, "x")
    }
}

pub(super) fn original_dst(name: &str) -> cluster::Cluster {
    cluster::Cluster {
        name: name.into(),
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(
            cluster::cluster::DiscoveryType::OriginalDst as i32,
        )),
        lb_policy: cluster::cluster::LbPolicy::ClusterProvided as i32,
        ..Default::default()
    }
}

pub(super) fn hole() -> cluster::Cluster {
    cluster::Cluster {
        name: BLACK_HOLE.into(),
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(
            cluster::cluster::DiscoveryType::Static as i32,
        )),
        ..Default::default()
    }
}

/// The configuration of a workload with these listeners, behind which everything passes.
fn configured(listeners: Vec<pb::Listener>) -> Arc<Snapshot> {
    let mut store = Store::new();
    let clusters = [original_dst("PassthroughCluster"), original_dst("inbound|6379||"), hole()];
    let upsert = |name: &str, body: Vec<u8>| Upsert { name: name.into(), version: "1".into(), body: body.into() };
    let clusters = clusters.iter().map(|one| upsert(&one.name, one.encode_to_vec())).collect();
    assert_eq!(store.apply(CLUSTER_TYPE, clusters, &[]), []);
    let listeners = listeners.iter().map(|one| upsert(&one.name, one.encode_to_vec())).collect();
    assert_eq!(store.apply(LISTENER_TYPE, listeners, &[]), []);
    store.snapshot().unwrap()
}

fn client() -> Arc<Snapshot> {
    configured(vec![tcp_listener("virtualOutbound", "0.0.0.0", 15001, "PassthroughCluster")])
}

fn server() -> Arc<Snapshot> {
    let routes = route_table("inbound|80||", "inbound|6379||");
    let mut listener = inbound_listener();
    for chain in &mut listener.filter_chains {
        // Inline, so that there is nothing to wait for.
        if chain.name.starts_with("http") {
            let mut manager = http_manager("x");
            manager.route_specifier = Some(
                envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier::RouteConfig(routes.clone()),
            );
            chain.filters = vec![filter("envoy.filters.network.http_connection_manager", packed(&manager))];
        }
    }
    configured(vec![listener])
}

pub(super) fn policy(
    action: security::Action,
    namespaces: &[&str],
    ports: &[u32],
    dry_run: bool,
) -> Arc<Authorization> {
    let named = |text: &&str| security::StringMatch {
        match_type: Some(security::string_match::MatchType::Exact((*text).into())),
    };
    let one = security::Match {
        namespaces: namespaces.iter().map(named).collect(),
        destination_ports: ports.to_vec(),
        ..Default::default()
    };
    let message = security::Authorization {
        name: "p".into(),
        namespace: "shop".into(),
        action: action.into(),
        dry_run,
        rules: vec![security::Rule { clauses: vec![security::Clause { matches: vec![one] }] }],
        ..Default::default()
    };
    Arc::new(Authorization::parse("shop/p", &message.encode_to_vec()).unwrap())
}

struct Pair {
    client: Arc<Snapshot>,
    server: Arc<Snapshot>,
    policies: Policies,
    identity: SpiffeId,
    from: Vec<IpAddr>,
}

impl Pair {
    fn new() -> Pair {
        let identity = SpiffeId::new("cluster.local", "shop", "web").unwrap();
        Pair { client: client(), server: server(), policies: Policies::default(), identity, from: vec![CLIENT.into()] }
    }

    fn is_direct(&self, port: u16) -> bool {
        let Pair { client, server, policies, identity, from } = self;
        let none = Policies::default();
        let client = Local { snapshot: client, policies: &none, identity, addresses: from };
        let own = [IpAddr::from(SERVER)];
        let server = Local { snapshot: server, policies, identity, addresses: &own };
        let to = SocketAddr::from((SERVER, port));
        leaves(client.snapshot, to) && comes_in(&client, &server, to)
    }
}

#[test]
fn declared_tcp_is_direct_and_nothing_that_an_agent_looks_into() {
    let pair = Pair::new();
    for (port, direct) in [(TCP, true), (HTTP, false), (15006, false), (9999, false)] {
        assert_eq!(pair.is_direct(port), direct, "{port}");
    }
    let none = Policies::default();
    let own = [IpAddr::from(SERVER)];
    let local = Local { snapshot: &pair.server, policies: &none, identity: &pair.identity, addresses: &own };
    assert_eq!(local.opaque_ports(own[0]), [TCP]);
    assert!(Local { snapshot: &pair.client, ..local }.opaque_ports(own[0]).is_empty(), "no inbound listener");
}

#[test]
fn both_ends_know_by_which_cluster_it_goes() {
    let at = |address: [u8; 4], port| SocketAddr::from((address, port));
    let outbound = |to, endpoint| outbound_cluster(&client(), to, endpoint).map(|cluster| cluster.name.to_string());
    assert_eq!(outbound(at(SERVER, TCP), at(SERVER, TCP)).as_deref(), Some("PassthroughCluster"));
    assert_eq!(outbound(at(SERVER, TCP), at(CLIENT, TCP)), None, "it goes where it was sent");
    let inbound =
        |endpoint| inbound_cluster(&server(), endpoint, CLIENT.into()).map(|cluster| cluster.name.to_string());
    assert_eq!(inbound(at(SERVER, TCP)).as_deref(), Some("inbound|6379||"));
    assert_eq!(inbound(at(SERVER, HTTP)), None, "not without its agent");
}

#[test]
fn what_the_client_s_agent_would_lead_elsewhere_is_not_direct() {
    for (listener, direct) in [
        (tcp_listener("virtualOutbound", "0.0.0.0", 15001, "PassthroughCluster"), true),
        (tcp_listener("virtualOutbound", "0.0.0.0", 15001, BLACK_HOLE), false),
        (tcp_listener("virtualOutbound", "0.0.0.0", 15001, "a cluster that is not there"), false),
        (tcp_listener("10.0.0.2_6379", "10.0.0.2", 6379, "PassthroughCluster"), true),
        (http_listener("0.0.0.0_6379", "0.0.0.0", 6379, "6379"), false),
    ] {
        let name = listener.name.clone();
        let outbound = match name.starts_with("virtual") {
            true => vec![listener],
            false => vec![listener, tcp_listener("virtualOutbound", "0.0.0.0", 15001, "PassthroughCluster")],
        };
        let mut pair = Pair::new();
        if name == "0.0.0.0_6379" {
            let mut manager = http_manager("x");
            manager.route_specifier = Some(
                envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier::RouteConfig(route_table("x", "PassthroughCluster")),
            );
            let mut outbound = outbound;
            outbound[0].filter_chains[0].filters =
                vec![filter("envoy.filters.network.http_connection_manager", packed(&manager))];
            pair.client = configured(outbound);
        } else {
            pair.client = configured(outbound);
        }
        assert_eq!(pair.is_direct(TCP), direct, "{name}");
    }
}

#[test]
fn policies_decide_by_the_identity_and_every_address_that_may_be_seen() {
    use security::Action::{Allow, Deny};
    for (policy, direct) in [
        (policy(Allow, &["shop"], &[], false), true),
        (policy(Allow, &["bank"], &[], false), false),
        (policy(Deny, &[], &[6379], false), false),
        (policy(Deny, &[], &[80], false), true),
        // Nobody would hear of what it would have decided.
        (policy(Deny, &[], &[6379], true), false),
        (policy(Deny, &[], &[80], true), true),
    ] {
        let pair = Pair { policies: Policies::new(1, [policy.clone()]), ..Pair::new() };
        assert_eq!(pair.is_direct(TCP), direct, "{policy:?}");
    }
    assert!(!Pair { from: vec!["fd00::1".parse().unwrap()], ..Pair::new() }.is_direct(TCP), "no address of the family");
    let from = |ip: [u8; 4]| security::Match {
        source_ips: vec![security::Address { address: ip.to_vec(), length: 32 }],
        ..Default::default()
    };
    let message = security::Authorization {
        name: "ip".into(),
        namespace: "shop".into(),
        rules: vec![security::Rule { clauses: vec![security::Clause { matches: vec![from(CLIENT)] }] }],
        ..Default::default()
    };
    let by_address = Arc::new(Authorization::parse("shop/ip", &message.encode_to_vec()).unwrap());
    let policies = Policies::new(1, [by_address]);
    assert!(Pair { policies: policies.clone(), ..Pair::new() }.is_direct(TCP));
    let from = vec![CLIENT.into(), IpAddr::from([10, 0, 0, 77])];
    assert!(!Pair { policies, from, ..Pair::new() }.is_direct(TCP), "it may be seen as the other one");
}

proptest! {
    /// The kernel lets in nothing that the agent would not: whatever the policies, what goes directly they allow, and what
    /// they allow goes directly.
    #[test]
    fn kernel_and_agent_agree(
        some in proptest::collection::vec(
            (any::<bool>(), proptest::sample::subsequence(vec!["shop", "bank"], 0..=2), proptest::sample::subsequence(vec![6379, 80], 0..=2)),
            0..4,
        ),
    ) {
        use security::Action::{Allow, Deny};
        let policies = some.iter().map(|(deny, namespaces, ports)| policy(if *deny { Deny } else { Allow }, namespaces, ports, false));
        let policies = Policies::new(1, policies);
        let identity = SpiffeId::new("cluster.local", "shop", "web").unwrap();
        let connection =
            Connection { identity: Some(&identity), source: CLIENT.into(), destination: SERVER.into(), port: TCP };
        let allowed = policies.evaluate(&connection).is_allowed();
        prop_assert_eq!(Pair { policies, ..Pair::new() }.is_direct(TCP), allowed);
    }
}
