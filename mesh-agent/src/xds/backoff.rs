//! Delay between attempts to connect: doubles from 10 ms to 15 s, with jitter. In: a random number. Out: a delay. Never
//! sleeps.

use std::time::Duration;

/// First delay.
const FIRST: Duration = Duration::from_millis(10);
/// Longest delay.
const LAST: Duration = Duration::from_secs(15);

/// The state of a series of failures.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// A success: the next failure starts from the beginning.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// The delay after one more failure. `random` in 0..=1 chooses within the upper half of the step, so that many
    /// streams that fell together do not come back together.
    pub fn next(&mut self, random: f64) -> Duration {
        let step = FIRST.saturating_mul(1 << self.failures.min(20)).min(LAST);
        self.failures = self.failures.saturating_add(1);
        step.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_last() {
        let mut backoff = Backoff::default();
        let steps: Vec<_> = (0..13).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(steps, [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10240, 15000, 15000]);
        assert_eq!(backoff.next(0.0).as_millis(), 7500);
        backoff.reset();
        assert_eq!(backoff.next(0.0).as_millis(), 5);
    }
}
