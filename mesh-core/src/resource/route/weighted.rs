//! A choice among clusters by weight.
//!
//! In: names with weights whose sum is above zero; a random number. Out: one of them.

use std::sync::Arc;

use http::HeaderValue;

use crate::resource::fault::Fault;
use crate::resource::route::HeaderOps;

/// Clusters with weights: at least one, the sum of weights between 1 and `u32::MAX`.
#[derive(Debug, Clone, PartialEq)]
pub struct Weighted {
    first: WeightedCluster,
    rest: Vec<WeightedCluster>,
    total: u64,
}

/// One of several clusters.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightedCluster {
    /// Cluster.
    pub name: Arc<str>,
    /// Its share of the sum; 0 = never taken.
    pub weight: u32,
    /// Changes to request headers, before those of the route.
    pub request_headers: HeaderOps,
    /// Changes to response headers, likewise.
    pub response_headers: HeaderOps,
    /// Change of the authority, instead of the route's.
    pub host_rewrite: Option<HeaderValue>,
}

impl WeightedCluster {
    /// A cluster with a weight and no changes to headers.
    pub(crate) fn plain(name: &str, weight: u32) -> Result<Self, Fault> {
        if name.is_empty() {
            return Err(Fault::field("name", "a cluster needs a name"));
        }
        Ok(WeightedCluster {
            name: Arc::from(name),
            weight,
            request_headers: HeaderOps::default(),
            response_headers: HeaderOps::default(),
            host_rewrite: None,
        })
    }
}

impl Weighted {
    pub(crate) fn single(name: &str) -> Result<Self, Fault> {
        Self::new(vec![WeightedCluster::plain(name, 1)?])
    }

    pub(crate) fn new(entries: Vec<WeightedCluster>) -> Result<Self, Fault> {
        let total: u64 = entries.iter().map(|entry| u64::from(entry.weight)).sum();
        if total == 0 || total > u64::from(u32::MAX) {
            return Err(Fault::new(format!("the sum of weights is {total}, it must be between 1 and {}", u32::MAX)));
        }
        let mut rest = entries;
        // Not empty: the sum is above zero.
        let first = rest.remove(0);
        Ok(Weighted { first, rest, total })
    }

    /// The cluster for a random number; over all numbers below a multiple of the sum of weights
    /// each cluster gets exactly its share.
    pub fn pick(&self, random: u64) -> &WeightedCluster {
        let mut point = random % self.total.max(1);
        for entry in self.entries() {
            let weight = u64::from(entry.weight);
            if point < weight {
                return entry;
            }
            point -= weight;
        }
        &self.first
    }

    /// All clusters, in the order received.
    pub fn entries(&self) -> impl Iterator<Item = &WeightedCluster> {
        std::iter::once(&self.first).chain(&self.rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_cluster_gets_exactly_its_share(weights in proptest::collection::vec(0u32..50, 1..6)) {
            let entries = weights
                .iter()
                .enumerate()
                .map(|(i, w)| WeightedCluster::plain(&i.to_string(), *w).unwrap())
                .collect();
            let total: u32 = weights.iter().sum();
            let Ok(weighted) = Weighted::new(entries) else {
                prop_assert_eq!(total, 0);
                return Ok(());
            };
            let mut counts = vec![0u32; weights.len()];
            for random in 0..u64::from(total) {
                let name: usize = weighted.pick(random).name.parse().unwrap();
                counts[name] += 1;
            }
            prop_assert_eq!(counts, weights);
        }
    }

    #[test]
    fn refuses_no_weight_and_too_much() {
        assert!(Weighted::new(vec![]).is_err());
        let half = || WeightedCluster::plain("a", u32::MAX).unwrap();
        assert!(Weighted::new(vec![half(), half()]).is_err());
        assert!(WeightedCluster::plain("", 1).is_err());
    }
}
