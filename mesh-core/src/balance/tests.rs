//! Choices over many draws: shares, health, panic, priorities, localities, hashing.

use super::*;
use crate::resource::endpoint::{Health, Locality, LocalityEndpoints};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// A level of endpoints: port, weight, health.
type Spec<'a> = &'a [(u16, u32, Health)];

use Health::{Degraded, Healthy, Unhealthy};

fn locality(zone: &str, priority: u32, weight: Option<u32>, endpoints: Spec<'_>) -> LocalityEndpoints {
    LocalityEndpoints {
        locality: Locality { zone: zone.into(), ..Locality::default() },
        priority,
        weight,
        endpoints: endpoints
            .iter()
            .map(|(port, weight, health)| {
                Arc::new(Endpoint {
                    address: SocketAddr::from(([10, 0, 0, 1], *port)),
                    weight: *weight,
                    health: *health,
                    tunnel: false,
                    istio_mtls: false,
                    identity: None,
                    host: false,
                    workload: None,
                    runtime: Arc::default(),
                })
            })
            .collect(),
    }
}

fn assignment(localities: Vec<LocalityEndpoints>) -> LoadAssignment {
    LoadAssignment::new("c".into(), localities, 140, Arc::default())
}

fn lb(policy: LbPolicy) -> LbConfig {
    LbConfig { policy, ..LbConfig::default() }
}

/// A random number generator for tests: SplitMix64 in sequence.
fn random(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_add(1);
        mix(state)
    }
}

/// How often each port is chosen in `draws` draws.
fn draw(assignment: &LoadAssignment, lb: &LbConfig, draws: u32) -> BTreeMap<u16, u32> {
    let mut rng = random(7);
    let mut counts = BTreeMap::new();
    for _ in 0..draws {
        if let Some(endpoint) = pick(assignment, lb, &PickContext::default(), &mut rng) {
            *counts.entry(endpoint.address.port()).or_default() += 1;
        }
    }
    counts
}

fn near(counts: &BTreeMap<u16, u32>, want: &[(u16, u32)]) {
    let ports: Vec<u16> = counts.keys().copied().collect();
    assert_eq!(ports, want.iter().map(|(p, _)| *p).collect::<Vec<_>>(), "{counts:?}");
    for (port, want) in want {
        let got = counts[port];
        assert!(got.abs_diff(*want) <= 60, "{port}: {got}, want about {want}; {counts:?}");
    }
}

#[test]
fn policies_share_by_weight_when_idle() {
    let a = assignment(vec![locality("a", 0, None, &[(1, 1, Healthy), (2, 3, Healthy)])]);
    assert_eq!(draw(&a, &lb(LbPolicy::RoundRobin), 400), [(1, 100), (2, 300)].into());
    near(&draw(&a, &lb(LbPolicy::Random), 2000), &[(1, 500), (2, 1500)]);
    near(&draw(&a, &lb(LbPolicy::LeastRequest { choices: 2 }), 2000), &[(1, 500), (2, 1500)]);
}

#[test]
fn round_robin_takes_turns() {
    let a = assignment(vec![locality("a", 0, None, &[(1, 5, Healthy), (2, 5, Healthy), (3, 5, Healthy)])]);
    let mut rng = random(1);
    let ports: Vec<u16> = (0..6)
        .map(|_| pick(&a, &lb(LbPolicy::RoundRobin), &PickContext::default(), &mut rng).unwrap().address.port())
        .collect();
    assert_eq!(ports, [1, 2, 3, 1, 2, 3]);
}

#[test]
fn least_request_prefers_the_idle() {
    let a = assignment(vec![locality("a", 0, None, &[(1, 1, Healthy), (2, 1, Healthy)])]);
    a.endpoints().next().unwrap().runtime.active.store(5, Ordering::Relaxed);
    // The busy one is taken only when it is drawn twice.
    near(&draw(&a, &lb(LbPolicy::LeastRequest { choices: 2 }), 2000), &[(1, 500), (2, 1500)]);
}

#[test]
fn unhealthy_ones_rest_until_panic() {
    let policy = lb(LbPolicy::Random);
    let mostly = assignment(vec![locality("a", 0, None, &[(1, 1, Healthy), (2, 1, Healthy), (3, 1, Unhealthy)])]);
    near(&draw(&mostly, &policy, 2000), &[(1, 1000), (2, 1000)]);
    // One of three healthy: below 50 %, so all are used.
    let few = assignment(vec![locality("a", 0, None, &[(1, 1, Healthy), (2, 1, Unhealthy), (3, 1, Unhealthy)])]);
    near(&draw(&few, &policy, 1800), &[(1, 600), (2, 600), (3, 600)]);
    let none = assignment(vec![locality("a", 0, None, &[(2, 1, Unhealthy), (3, 1, Unhealthy)])]);
    near(&draw(&none, &policy, 2000), &[(2, 1000), (3, 1000)]);

    let no_panic = LbConfig { panic_threshold: 0.0, ..policy };
    near(&draw(&few, &no_panic, 100), &[(1, 100)]);
    assert!(draw(&none, &no_panic, 100).is_empty());
    assert!(draw(&assignment(vec![]), &lb(LbPolicy::Random), 10).is_empty());
    assert!(draw(&assignment(vec![locality("a", 0, None, &[])]), &lb(LbPolicy::Random), 10).is_empty());
}

#[test]
fn load_spills_to_the_next_priority() {
    let policy = lb(LbPolicy::Random);
    let level = |healthy: u16| -> Vec<(u16, u32, Health)> {
        (0..10).map(|i| (1, 1, if i < healthy { Healthy } else { Unhealthy })).collect()
    };
    // Envoy's table for priorities 0 and 1 with the second one healthy: share of the first.
    for (healthy, share) in [(10u16, 100u32), (8, 100), (5, 70), (2, 28), (0, 0)] {
        let a = assignment(vec![locality("b", 1, None, &[(2, 1, Healthy)]), locality("a", 0, None, &level(healthy))]);
        let counts = draw(&a, &policy, 2000);
        let got = counts.get(&1).copied().unwrap_or(0);
        assert!(got.abs_diff(share * 20) <= 60, "{healthy}: {counts:?}");
        assert_eq!(got + counts.get(&2).copied().unwrap_or(0), 2000);
    }
}

#[test]
fn there_is_no_panic_while_other_priorities_can_carry() {
    let mut first = vec![(1, 1, Unhealthy); 7];
    first.extend([(3, 1, Healthy); 3]);
    let a = assignment(vec![locality("a", 0, None, &first), locality("b", 1, None, &[(2, 1, Healthy)])]);
    // 30 % healthy carry 42 %, the unhealthy seven nothing.
    near(&draw(&a, &lb(LbPolicy::Random), 2000), &[(2, 1160), (3, 840)]);
}

#[test]
fn degraded_ones_take_what_healthy_ones_cannot() {
    let a = assignment(vec![locality("a", 0, None, &[(1, 1, Healthy), (2, 1, Degraded)])]);
    near(&draw(&a, &lb(LbPolicy::Random), 2000), &[(1, 1400), (2, 600)]);
}

#[test]
fn localities_share_by_weight() {
    let weighted = LbConfig { locality_weighted: true, ..lb(LbPolicy::Random) };
    let a = assignment(vec![
        locality("a", 0, Some(80), &[(1, 1, Healthy)]),
        locality("b", 0, Some(20), &[(2, 1, Healthy), (3, 1, Healthy)]),
        locality("c", 0, None, &[(4, 1, Healthy)]),
    ]);
    near(&draw(&a, &weighted, 2000), &[(1, 1600), (2, 200), (3, 200)]);
    near(&draw(&a, &lb(LbPolicy::Random), 2000), &[(1, 500), (2, 500), (3, 500), (4, 500)]);
    let none =
        assignment(vec![locality("a", 0, Some(0), &[(1, 1, Healthy)]), locality("b", 0, None, &[(2, 1, Healthy)])]);
    near(&draw(&none, &weighted, 1000), &[(1, 500), (2, 500)]);
}

#[test]
fn tried_hosts_are_avoided_if_possible() {
    let a = assignment(vec![locality("a", 0, None, &[(1, 1, Healthy), (2, 1, Healthy)])]);
    let tried = [SocketAddr::from(([10, 0, 0, 1], 1))];
    let both = [tried[0], SocketAddr::from(([10, 0, 0, 1], 2))];
    for policy in [LbPolicy::RoundRobin, LbPolicy::Random, LbPolicy::ConsistentHash] {
        let mut rng = random(3);
        for hash in 0..50 {
            let hash = Some(hash);
            let context = PickContext { hash, avoid: &tried };
            let endpoint = pick(&a, &lb(policy), &context, &mut rng).unwrap();
            assert_eq!(endpoint.address.port(), 2);
            let context = PickContext { hash, avoid: &both };
            assert!(pick(&a, &lb(policy), &context, &mut rng).is_some());
        }
    }
}

#[test]
fn hashes_keep_their_endpoint() {
    let all: Vec<_> = (1..=10).map(|port| (port, 1, Healthy)).collect();
    let before = assignment(vec![locality("a", 0, None, &all)]);
    let after = assignment(vec![locality("a", 0, None, &all[..9])]);
    let choose = |a: &LoadAssignment, hash| {
        let context = PickContext { hash: Some(hash), avoid: &[] };
        let endpoint = pick(a, &lb(LbPolicy::ConsistentHash), &context, &mut || panic!("no random"));
        endpoint.unwrap().address.port()
    };
    let mut counts = BTreeMap::new();
    for hash in 0..2000 {
        let port = choose(&before, hash);
        *counts.entry(port).or_default() += 1;
        if port != 10 {
            assert_eq!(choose(&after, hash), port);
        }
    }
    near(&counts, &(1..=10).map(|port| (port, 200)).collect::<Vec<_>>());
}

fn healths() -> impl Strategy<Value = Health> {
    prop_oneof![Just(Healthy), Just(Degraded), Just(Unhealthy)]
}

proptest! {
    /// Whatever the endpoints: with panic on, someone is chosen whenever there is anyone.
    #[test]
    fn someone_is_chosen(
        specs in proptest::collection::vec((0u32..3, proptest::option::of(0u32..5), proptest::collection::vec((1u16..50, 1u32..9, healths()), 0..5)), 0..5),
        seed in any::<u64>(),
        policy in prop_oneof![Just(LbPolicy::RoundRobin), Just(LbPolicy::Random), Just(LbPolicy::ConsistentHash), Just(LbPolicy::LeastRequest { choices: 2 })],
        locality_weighted in any::<bool>(),
        hash in proptest::option::of(any::<u64>()),
    ) {
        let a = assignment(specs.iter().map(|(p, w, e)| locality("z", *p, *w, e)).collect());
        let lb = LbConfig { locality_weighted, ..lb(policy) };
        let mut rng = random(seed);
        for _ in 0..20 {
            let chosen = pick(&a, &lb, &PickContext { hash, avoid: &[] }, &mut rng);
            prop_assert_eq!(chosen.is_some(), a.endpoints().next().is_some());
        }
    }

    /// Over a full cycle round robin gives each endpoint exactly its weight.
    #[test]
    fn round_robin_is_exact(weights in proptest::collection::vec(1u32..20, 1..8)) {
        let specs: Vec<_> = weights.iter().enumerate().map(|(i, w)| (i as u16 + 1, *w, Healthy)).collect();
        let a = assignment(vec![locality("a", 0, None, &specs)]);
        let counts = draw(&a, &lb(LbPolicy::RoundRobin), weights.iter().sum());
        let got: Vec<u32> = counts.values().copied().collect();
        if weights.iter().all(|w| *w == weights[0]) {
            prop_assert!(got.iter().all(|n| *n == weights[0]));
        } else {
            prop_assert_eq!(got, weights);
        }
    }
}
