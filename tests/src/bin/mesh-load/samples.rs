//! Latency samples of one run and what is reported of them.

use std::time::{Duration, Instant};

/// Samples kept at most; a run that makes more goes on counting without keeping them.
const MOST: usize = 8_000_000;

/// Latencies in nanoseconds, in the order they were taken.
#[derive(Default)]
pub struct Samples {
    kept: Vec<u32>,
    count: u64,
    before: u64,
    errors: u64,
}

impl Samples {
    /// Adds one latency; longer than four seconds counts as four.
    pub fn add(&mut self, latency: Duration) {
        self.count += 1;
        if self.kept.len() < MOST {
            self.kept.push(u32::try_from(latency.as_nanos()).unwrap_or(u32::MAX));
        }
    }

    /// Counts an operation that began at `start` and is done; `from`: when the warm-up was over.
    pub fn take(&mut self, start: Instant, from: Instant) {
        if start < from { self.warm_up() } else { self.add(start.elapsed()) }
    }

    /// Counts an operation of the warm-up.
    pub fn warm_up(&mut self) {
        self.before += 1;
    }

    /// Counts an operation that failed.
    pub fn fail(&mut self) {
        self.errors += 1;
    }

    /// Adds all of another's.
    pub fn merge(&mut self, other: Self) {
        self.count += other.count;
        self.before += other.before;
        self.errors += other.errors;
        let room = MOST.saturating_sub(self.kept.len());
        self.kept.extend(other.kept.into_iter().take(room));
    }

    /// The report: operations, errors, operations a second, and latencies in microseconds. `with_warm_up` counts also the
    /// operations before the measurement, for what can only be counted over a whole run.
    pub fn report(mut self, took: Duration) -> serde_json::Value {
        self.kept.sort_unstable();
        let at = |quantile: f64| -> f64 {
            let last = self.kept.len().saturating_sub(1);
            let index = (last as f64 * quantile).round() as usize;
            self.kept.get(index).map_or(0.0, |nanos| f64::from(*nanos) / 1000.0)
        };
        serde_json::json!({
            "operations": self.count,
            "with_warm_up": self.count + self.before,
            "errors": self.errors,
            "per_second": self.count as f64 / took.as_secs_f64(),
            "p50_us": at(0.5),
            "p90_us": at(0.9),
            "p99_us": at(0.99),
            "max_us": at(1.0),
        })
    }
}
