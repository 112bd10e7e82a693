//! How often something may begin: so many in a second, and as many at once after a pause (the generic cell rate algorithm, ITU-T I.371).
//!
//! In: the time. Out: when the next one may begin. Never: reads a clock, or counts what has not begun.

use std::time::{Duration, Instant};

/// The state.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    every: Duration,
    /// When the next one would begin if they came evenly; `None`: there has been none.
    even: Option<Instant>,
}

impl Rate {
    /// So many in a second, at least one.
    pub fn new(per_second: u32) -> Self {
        Self { every: Duration::from_secs(1) / per_second.max(1), even: None }
    }

    /// When one may begin; `None`: now.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        let due = self.even? + self.every;
        // A second's worth may come at once.
        let due = due.checked_sub(Duration::from_secs(1))?;
        (due > now).then_some(due)
    }

    /// One begins.
    pub fn begin(&mut self, now: Instant) {
        self.even = Some(self.even.map_or(now, |even| even.max(now)) + self.every);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seconds_worth_at_once_and_then_evenly() {
        let start = Instant::now();
        let mut rate = Rate::new(10);
        for _ in 0..10 {
            assert_eq!(rate.due(start), None);
            rate.begin(start);
        }
        let tenth = Duration::from_millis(100);
        assert_eq!(rate.due(start), Some(start + tenth));
        assert_eq!(rate.due(start + tenth), None);
        rate.begin(start + tenth);
        assert_eq!(rate.due(start + tenth), Some(start + 2 * tenth));
        // A long pause gives no more than a short one.
        let later = start + Duration::from_secs(100);
        let begun = (0..100).take_while(|_| rate.due(later).is_none().then(|| rate.begin(later)).is_some()).count();
        assert_eq!(begun, 10);
    }

    #[test]
    fn one_a_second() {
        let start = Instant::now();
        let mut rate = Rate::new(1);
        rate.begin(start);
        assert_eq!(rate.due(start), Some(start + Duration::from_secs(1)));
        assert_eq!(rate.due(start + Duration::from_secs(1)), None);
    }
}
