//! Chooses an endpoint.
//!
//! In: a cluster's endpoints, its policy, random numbers, the request's hash and the hosts it
//! already tried. Out: one endpoint, or none. It changes nothing but the round-robin position; who
//! uses the endpoint counts it in [`crate::resource::endpoint::EndpointRuntime`].
//!
//! Priorities, health, panic and locality weights follow Envoy's documentation ("Priority levels",
//! "Panic threshold", "Locality weighted load balancing"). Consistent hashing is weighted rendezvous
//! hashing rather than Envoy's ring or table: the same hash keeps its endpoint while that lives, and
//! an endpoint's coming or going moves only its own share.

mod priority;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::resource::cluster::{LbConfig, LbPolicy};
use crate::resource::endpoint::{ClusterRuntime, Endpoint, LoadAssignment, Pool};

/// What a choice may depend on besides the endpoints.
#[derive(Debug, Clone, Copy, Default)]
pub struct PickContext<'a> {
    /// Hash of the request, for consistent hashing; without it the choice is random.
    pub hash: Option<u64>,
    /// Addresses to avoid if any other will do (previous attempts).
    pub avoid: &'a [SocketAddr],
}

/// Chooses an endpoint; `None` when there is none that may be used.
pub fn pick(
    assignment: &LoadAssignment,
    lb: &LbConfig,
    context: &PickContext<'_>,
    random: &mut impl FnMut() -> u64,
) -> Option<Arc<Endpoint>> {
    // With a hash the priority and locality must not change from request to request either.
    let pool = match (lb.policy, context.hash) {
        (LbPolicy::ConsistentHash, Some(hash)) => {
            let mut step = hash;
            priority::pool(assignment, lb, &mut || {
                step = mix(step);
                step
            })?
        }
        _ => priority::pool(assignment, lb, random)?,
    };
    let chosen = match (lb.policy, context.hash) {
        (LbPolicy::ConsistentHash, Some(hash)) => return rendezvous(pool, hash, context.avoid),
        (LbPolicy::RoundRobin, _) => pool.turn(next_turn(&assignment.runtime)),
        (LbPolicy::LeastRequest { choices }, _) => least_loaded(pool, choices, random),
        (LbPolicy::Random | LbPolicy::ConsistentHash | LbPolicy::ClusterProvided, _) => pool.at(random()),
    };
    avoiding(pool, chosen, context.avoid)
}

/// The endpoints of which every choice is one, drawn by weight alone; `None` where priorities, health or localities have a
/// say.
pub(crate) fn only_pool<'a>(assignment: &'a LoadAssignment, lb: &LbConfig) -> Option<&'a [Arc<Endpoint>]> {
    match assignment.levels() {
        [only]
            if only.any.healthy.len() == only.any.all.len()
                && (!lb.locality_weighted || only.localities.is_empty()) =>
        {
            Some(only.any.healthy.endpoints())
        }
        _ => None,
    }
}

fn next_turn(runtime: &ClusterRuntime) -> u64 {
    runtime.turn.fetch_add(1, Ordering::Relaxed)
}

/// Of `choices` endpoints drawn by weight, the one with the least load for its weight. While
/// nothing is under way each gets its weight's share.
fn least_loaded(pool: &Pool, choices: u32, random: &mut impl FnMut() -> u64) -> usize {
    let load = |index: usize| {
        let endpoint = pool.endpoints().get(index);
        endpoint.map_or((0, 1), |e| (e.runtime.active.load(Ordering::Relaxed), e.weight.max(1)))
    };
    let mut best = pool.at(random());
    for _ in 1..choices {
        let other = pool.at(random());
        let ((a, a_weight), (b, b_weight)) = (load(other), load(best));
        // a / a_weight < b / b_weight, without division.
        if u64::from(a) * u64::from(b_weight) < u64::from(b) * u64::from(a_weight) {
            best = other;
        }
    }
    best
}

/// The chosen endpoint, or the next one in the list that is not to be avoided.
fn avoiding(pool: &Pool, chosen: usize, avoid: &[SocketAddr]) -> Option<Arc<Endpoint>> {
    let (before, from) = pool.endpoints().split_at_checked(chosen)?;
    from.iter().chain(before).find(|endpoint| !avoid.contains(&endpoint.address)).or(from.first()).cloned()
}

/// The endpoint with the highest score for this hash (weighted rendezvous hashing: with `u` even
/// in (0, 1), the lowest of `-ln(u) / weight` falls on each endpoint in proportion to its weight).
fn rendezvous(pool: &Pool, hash: u64, avoid: &[SocketAddr]) -> Option<Arc<Endpoint>> {
    let score = |endpoint: &Endpoint| {
        let mixed = mix(hash ^ address_hash(endpoint.address));
        // 53 bits, shifted off zero, so that the logarithm is finite.
        let unit = ((mixed >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        -unit.ln() / f64::from(endpoint.weight.max(1))
    };
    pool.endpoints()
        .iter()
        .map(|endpoint| (avoid.contains(&endpoint.address), score(endpoint), endpoint))
        .min_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)))
        .map(|(_, _, endpoint)| endpoint.clone())
}

fn address_hash(address: SocketAddr) -> u64 {
    let ip = match address.ip() {
        std::net::IpAddr::V4(ip) => u128::from(ip.to_bits()),
        std::net::IpAddr::V6(ip) => ip.to_bits(),
    };
    let [high, low] = [(ip >> 64) as u64, ip as u64];
    mix(mix(high) ^ low ^ (u64::from(address.port()) << 48))
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every input bit moves every output bit.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
