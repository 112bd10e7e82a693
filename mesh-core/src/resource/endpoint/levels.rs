//! Endpoints sorted for choosing: by priority, health and locality, with running sums of weights.
//!
//! In: localities with their endpoints. Out: [`Level`]s, computed once per update so that a choice
//! costs a binary search. It never chooses.

use std::sync::Arc;

use crate::resource::endpoint::{Endpoint, Health, LocalityEndpoints};

/// Endpoints of one priority.
#[derive(Debug, Clone)]
pub(crate) struct Level {
    /// Whatever the locality.
    pub(crate) any: Pools,
    /// By locality with its weight; empty unless localities with weights differ.
    pub(crate) localities: Vec<(u32, Pools)>,
}

/// Endpoints by health.
#[derive(Debug, Clone)]
pub(crate) struct Pools {
    pub(crate) healthy: Arc<Pool>,
    pub(crate) degraded: Arc<Pool>,
    pub(crate) all: Arc<Pool>,
}

/// Endpoints that are chosen among.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    endpoints: Vec<Arc<Endpoint>>,
    /// Sum of the weights up to and with each endpoint.
    sums: Vec<u64>,
    equal_weights: bool,
}

/// Sorts endpoints by priority, lowest first.
pub(crate) fn levels(localities: &[LocalityEndpoints]) -> Vec<Level> {
    localities
        .chunk_by(|a, b| a.priority == b.priority)
        .map(|group| Level {
            any: Pools::new(group.iter().flat_map(|locality| &locality.endpoints)),
            localities: by_locality(group),
        })
        .collect()
}

fn by_locality(group: &[LocalityEndpoints]) -> Vec<(u32, Pools)> {
    if group.len() < 2 || group.iter().all(|locality| locality.weight.is_none()) {
        return Vec::new();
    }
    group
        .iter()
        .map(|locality| {
            let weight = locality.weight.unwrap_or(0);
            (weight, Pools::new(&locality.endpoints))
        })
        .collect()
}

impl Pools {
    fn new<'a>(endpoints: impl IntoIterator<Item = &'a Arc<Endpoint>>) -> Self {
        let all: Vec<_> = endpoints.into_iter().cloned().collect();
        let with = |health| {
            let some = all.iter().filter(|e| e.health == health).cloned().collect();
            Arc::new(Pool::new(some))
        };
        let degraded = with(Health::Degraded);
        let healthy = all.iter().filter(|e| e.health == Health::Healthy).count();
        if healthy == all.len() {
            let all = Arc::new(Pool::new(all));
            let healthy = all.clone();
            return Pools { healthy, degraded, all };
        }
        Pools { healthy: with(Health::Healthy), degraded, all: Arc::new(Pool::new(all)) }
    }
}

impl Pool {
    fn new(endpoints: Vec<Arc<Endpoint>>) -> Self {
        let first = endpoints.first().map(|e| e.weight);
        let equal_weights = endpoints.iter().all(|e| Some(e.weight) == first);
        let mut sum = 0;
        let sums = endpoints
            .iter()
            .map(|e| {
                sum += u64::from(e.weight);
                sum
            })
            .collect();
        Pool { endpoints, sums, equal_weights }
    }

    pub(crate) fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    pub(crate) fn len(&self) -> usize {
        self.endpoints.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// Sum of all weights.
    pub(crate) fn total(&self) -> u64 {
        self.sums.last().copied().unwrap_or(0)
    }

    /// Index of the endpoint for a number; over `0..total` each gets exactly its weight.
    pub(crate) fn at(&self, number: u64) -> usize {
        if self.equal_weights {
            let count = u64::try_from(self.len()).unwrap_or(u64::MAX).max(1);
            return usize::try_from(number % count).unwrap_or(0);
        }
        let point = number % self.total().max(1);
        self.sums.partition_point(|sum| *sum <= point)
    }

    /// Index for the `turn`-th turn. Over as many turns as the sum of weights each endpoint gets
    /// exactly its weight, and its turns are spread, not in a row.
    pub(crate) fn turn(&self, turn: u64) -> usize {
        if self.equal_weights {
            return self.at(turn);
        }
        let total = self.total().max(1);
        // Multiples of a number without common divisor visit every point once a cycle.
        let point = u128::from(turn % total) * u128::from(stride(total)) % u128::from(total);
        self.at(u64::try_from(point).unwrap_or(0))
    }
}

/// A number without a common divisor with `total`, near the golden section of it, so that
/// neighbouring turns land far apart.
fn stride(total: u64) -> u64 {
    let gcd = |mut a: u64, mut b: u64| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let golden = u64::try_from(u128::from(total) * 618 / 1000).unwrap_or(1).max(1);
    (golden..=total).find(|n| gcd(*n, total) == 1).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::stride;

    #[test]
    fn strides_visit_every_point() {
        for total in 1u64..200 {
            let mut seen: Vec<u64> = (0..total).map(|i| i * stride(total) % total).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..total).collect::<Vec<_>>(), "{total}");
        }
    }
}
