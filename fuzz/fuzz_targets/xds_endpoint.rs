//! Any bytes are an assignment or refused; of what is accepted every policy can choose.
#![no_main]

use envoy_types::pb::envoy::config::endpoint::v3 as pb;
use libfuzzer_sys::fuzz_target;
use mesh_core::balance::{PickContext, pick};
use mesh_core::resource::cluster::{LbConfig, LbPolicy};
use mesh_core::resource::endpoint::LoadAssignment;
use prost::Message;

fuzz_target!(|body: &[u8]| {
    let Ok(message) = pb::ClusterLoadAssignment::decode(body) else { return };
    let name = message.cluster_name;
    let Ok(first) = LoadAssignment::parse(&name, body, None) else { return };
    let again = LoadAssignment::parse(&name, body, Some(&first)).expect("parsed before");
    assert_eq!(first, again);
    let policies =
        [LbPolicy::RoundRobin, LbPolicy::LeastRequest { choices: 2 }, LbPolicy::Random, LbPolicy::ConsistentHash];
    for policy in policies {
        for locality_weighted in [false, true] {
            let lb = LbConfig { policy, locality_weighted, ..LbConfig::default() };
            let context = PickContext { hash: Some(u64::from(body.len() as u32)), avoid: &[] };
            let mut state = 1u64;
            let mut random = || {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                state
            };
            let chosen = pick(&again, &lb, &context, &mut random);
            assert_eq!(chosen.is_some(), again.endpoints().next().is_some());
        }
    }
});
