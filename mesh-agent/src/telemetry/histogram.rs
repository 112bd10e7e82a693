//! A histogram that one thread writes and any thread reads. In: values. Out: bucket counts, count and sum. Its bounds
//! are Envoy's defaults, which Istio uses for durations and sizes alike.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Upper bounds (inclusive) of Envoy's default buckets, in the metric's unit; `+Inf` follows.
pub const BUCKETS: [f64; 19] = [
    0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10000.0, 30000.0, 60000.0, 300000.0,
    600000.0, 1800000.0, 3600000.0,
];

/// One writer's part. Values are counted in thousandths of the unit, so that sums stay integers.
#[derive(Default)]
pub(super) struct Histogram {
    buckets: [AtomicU64; BUCKETS.len() + 1],
    sum_milli: AtomicU64,
}

/// A sum of parts.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
pub(super) struct Totals {
    pub buckets: [u64; BUCKETS.len() + 1],
    pub sum_milli: u64,
}

impl Histogram {
    /// Counts a value given in thousandths of the unit. Only the owning thread may call this.
    pub fn record_milli(&self, milli: u64) {
        let bucket = BUCKETS.partition_point(|bound| (*bound * 1000.0) < milli as f64);
        bump(&self.buckets[bucket], 1);
        bump(&self.sum_milli, milli);
    }

    /// Adds this part to `totals`.
    pub fn add_to(&self, totals: &mut Totals) {
        for (total, part) in totals.buckets.iter_mut().zip(&self.buckets) {
            *total += part.load(Relaxed);
        }
        totals.sum_milli = totals.sum_milli.wrapping_add(self.sum_milli.load(Relaxed));
    }
}

impl Totals {
    /// All observations.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The sum in the metric's unit.
    pub fn sum(&self) -> f64 {
        self.sum_milli as f64 / 1000.0
    }
}

/// Adds without a locked instruction: right because each cell has one writing thread, and readers only need a value
/// that was true at some moment.
pub(super) fn bump(cell: &AtomicU64, by: u64) {
    cell.store(cell.load(Relaxed).wrapping_add(by), Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_inclusive() {
        let histogram = Histogram::default();
        for milli in [0, 500, 501, 1000, 1_001, 3_600_000_000, 3_600_000_001] {
            histogram.record_milli(milli);
        }
        let mut totals = Totals::default();
        histogram.add_to(&mut totals);
        assert_eq!(totals.buckets[..3], [2, 2, 1]);
        assert_eq!(totals.buckets[18..], [1, 1]);
        assert_eq!(totals.count(), 7);
        assert_eq!(totals.sum_milli, 7_200_003_003);
    }
}
