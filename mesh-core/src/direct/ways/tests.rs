//! Whatever changes, and in whatever order: the ways are those that asking for everything gives, and little is asked.

use envoy_types::pb::envoy::config::cluster::v3 as cluster;
use envoy_types::pb::envoy::config::core::v3::TrafficDirection;
use envoy_types::pb::envoy::config::listener::v3 as pb;
use mesh_proto::security::Action;
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::direct::tests::{hole, original_dst, policy};
use crate::resource::{CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE};
use crate::snapshot::{BLACK_HOLE, VIRTUAL_INBOUND};
use crate::store::{Store, Upsert};
use crate::testing::*;

const WORKLOADS: u8 = 4;
const PORTS: [u32; 2] = [6379, 7000];
const PASSTHROUGH: &str = "PassthroughCluster";
const HEADLESS: &str = "outbound|6379||db";

/// One workload, with the stream that configures it.
struct One {
    here: bool,
    store: Store,
    policies: Policies,
    namespace: &'static str,
    last: u8,
}

fn upsert(name: &str, message: &impl Message) -> Upsert {
    Upsert { name: name.into(), version: "1".into(), body: message.encode_to_vec().into() }
}

fn inbound(ports: &[u32], http: bool) -> pb::Listener {
    let to = |port: u32| pb::FilterChainMatch { destination_port: number(port), ..Default::default() };
    let tcp = ports.iter().map(|port| chain("tcp", to(*port), vec![tcp_filter("inbound")]));
    let rest = chain("rest", Default::default(), vec![tcp_filter("inbound")]);
    let detected = http.then(|| chain("http", plain_http(), vec![tcp_filter("inbound")]));
    pb::Listener {
        traffic_direction: TrafficDirection::Inbound as i32,
        listener_filters: vec![inspector("http_inspector")],
        filter_chains: tcp.chain(detected).chain([rest]).collect(),
        ..tcp_listener(VIRTUAL_INBOUND, "0.0.0.0", 15006, "x")
    }
}

impl One {
    fn new(index: u8) -> One {
        let store = Store::new();
        let mut one = One { here: true, store, policies: Policies::default(), namespace: "shop", last: index + 1 };
        one.cluster(PASSTHROUGH, Some(&original_dst(PASSTHROUGH)));
        one.cluster(BLACK_HOLE, Some(&hole()));
        one.listener(VIRTUAL_OUTBOUND, Some(tcp_listener(VIRTUAL_OUTBOUND, "0.0.0.0", 15001, PASSTHROUGH)));
        one.listener(VIRTUAL_INBOUND, Some(inbound(&PORTS, true)));
        one
    }

    fn apply(&mut self, kind: &str, name: &str, message: Option<&impl Message>) {
        let upserts = message.map(|message| upsert(name, message)).into_iter().collect();
        let removed = if message.is_none() { vec![name.to_owned()] } else { Vec::new() };
        assert_eq!(self.store.apply(kind, upserts, &removed), []);
    }

    fn cluster(&mut self, name: &str, message: Option<&cluster::Cluster>) {
        self.apply(CLUSTER_TYPE, name, message);
    }

    fn listener(&mut self, name: &str, message: Option<pb::Listener>) {
        self.apply(LISTENER_TYPE, name, message.as_ref());
    }

    fn party(&mut self, index: u8) -> Option<Party> {
        let snapshot = self.store.snapshot().filter(|_| self.here)?;
        Some(Party {
            id: index.into(),
            snapshot,
            policies: self.policies.clone(),
            identity: SpiffeId::new("cluster.local", self.namespace, "web").unwrap(),
            addresses: [IpAddr::from([10, 0, index, self.last])].into(),
        })
    }

    /// One of the things that may happen to a workload.
    fn change(&mut self, what: usize, variant: usize) {
        let pick = |list: &[&'static str]| list[variant % list.len()];
        match what {
            0 => self.here = !variant.is_multiple_of(3),
            1 => self.last = u8::try_from(variant % 2).unwrap() + 1,
            2 => self.namespace = pick(&["shop", "bank"]),
            3 => {
                let policies = [
                    policy(Action::Deny, &[], &[6379], false),
                    policy(Action::Allow, &["bank"], &[], false),
                    policy(Action::Deny, &[], &[7000], true),
                ];
                self.policies = Policies::new(7, policies.get(variant % 4).cloned());
            }
            4 => {
                let listener = match variant % 4 {
                    0 => None,
                    1 => Some(inbound(&PORTS, true)),
                    2 => Some(inbound(&PORTS[..1], true)),
                    _ => Some(inbound(&[], false)),
                };
                self.listener(VIRTUAL_INBOUND, listener);
            }
            5 => {
                let to = pick(&[PASSTHROUGH, BLACK_HOLE, HEADLESS]);
                self.listener(VIRTUAL_OUTBOUND, Some(tcp_listener(VIRTUAL_OUTBOUND, "0.0.0.0", 15001, to)));
            }
            6 => {
                let (name, address) = pick2(variant, &[("pod", "10.0.1.1"), ("pod", "10.0.2.1"), ("any", "0.0.0.0")]);
                let to = pick(&[HEADLESS, PASSTHROUGH, BLACK_HOLE, HEADLESS, HEADLESS]);
                let listener = (!variant.is_multiple_of(4)).then(|| tcp_listener(name, address, 6379, to));
                self.listener(name, listener);
            }
            _ => {
                let message = match variant % 3 {
                    0 => None,
                    1 => Some(original_dst(HEADLESS)),
                    _ => Some(cluster::Cluster { name: HEADLESS.into(), ..hole() }),
                };
                self.cluster(HEADLESS, message.as_ref());
            }
        }
    }
}

fn pick2(variant: usize, list: &[(&'static str, &'static str)]) -> (&'static str, &'static str) {
    list[variant / 4 % list.len()]
}

fn parties(all: &mut [One]) -> Vec<Party> {
    (0..).zip(all).filter_map(|(index, one)| one.party(index)).collect()
}

/// Asks for everything.
fn whole(all: &[Party]) -> BTreeSet<Way> {
    let mut ways = BTreeSet::new();
    for (server, client) in all.iter().flat_map(|server| all.iter().map(move |client| (server, client))) {
        for to in ports(server) {
            if server.id != client.id && comes_in(&client.local(), &server.local(), to) {
                let by_service = !leaves(&client.snapshot, to);
                ways.insert(Way { client: client.id, to, server: server.id, by_service });
            }
        }
    }
    ways
}

proptest! {
    #[test]
    fn the_ways_are_those_that_asking_for_everything_gives(
        steps in proptest::collection::vec((0..usize::from(WORKLOADS), 0_usize..8, 0_usize..12), 1..40),
    ) {
        let mut all: Vec<One> = (0..WORKLOADS).map(One::new).collect();
        let mut ways = Ways::default();
        ways.follow(parties(&mut all));
        for (who, what, variant) in steps {
            all[who].change(what, variant);
            let now = parties(&mut all);
            ways.follow(now.clone());
            let told: Vec<Way> = ways.all().collect();
            prop_assert_eq!(told.len(), told.iter().collect::<BTreeSet<_>>().len(), "told twice");
            prop_assert_eq!(told.into_iter().collect::<BTreeSet<_>>(), whole(&now), "after {} of {}: {}", what, who, variant);
        }
    }
}

#[test]
fn only_what_a_change_touches_is_asked_again() {
    let mut all: Vec<One> = (0..WORKLOADS).map(One::new).collect();
    let mut ways = Ways::default();
    let others = usize::from(WORKLOADS) - 1;
    let pairs = usize::from(WORKLOADS) * others * PORTS.len();
    assert_eq!(ways.follow(parties(&mut all)), 2 * pairs, "all, and how each leaves");
    assert_eq!(ways.all().count(), pairs);
    let mut after = |what: &str, all: &mut Vec<One>, asked: usize| {
        assert_eq!(ways.follow(parties(all)), asked, "{what}");
    };
    after("nothing", &mut all, 0);
    for one in &mut all {
        one.cluster("c", Some(&eds_cluster("c")));
        one.apply(ENDPOINT_TYPE, "c", Some(&assignment("c", vec![lb_endpoint("10.0.0.9", 1)])));
        one.listener("http", Some(tcp_listener("http", "10.9.9.9", 80, "c")));
    }
    after("a service of others, and its endpoints, for everybody", &mut all, 0);
    all[1].policies = Policies::new(7, [policy(Action::Allow, &["shop"], &[], false)]);
    after("a policy of one that decides as none did", &mut all, others * PORTS.len());
    all[2].change(5, 1);
    after("where one's connections go", &mut all, others * PORTS.len());
    all[2].listener("pod", Some(tcp_listener("pod", "10.0.1.2", 6379, PASSTHROUGH)));
    after("where those to one place go", &mut all, 1);
    all[0].change(0, 0);
    after("one that leaves", &mut all, 0);
    all[0].change(0, 1);
    after("one that comes", &mut all, 2 * 2 * others * PORTS.len());
}
