//! Bounds the lines of a log about things that others cause at will: so many in a window, the rest only counted.
//!
//! In: the time. Out: whether a line may be written, and how many were left out before it.

use std::time::Duration;

use tokio::time::Instant;

/// Lines in one [`WINDOW`]; further events of it are only counted.
pub const MAX_LINES: u32 = 10;
/// Length of the window.
pub const WINDOW: Duration = Duration::from_secs(10);

/// So many lines a window, and how many were left out before the next one.
#[derive(Default)]
pub struct Budget {
    begun: Option<Instant>,
    lines: u32,
    skipped: u32,
}

impl Budget {
    /// Whether a line may be written now; with it, how many were not.
    pub fn take(&mut self, now: Instant) -> Option<u32> {
        if self.begun.is_none_or(|begun| now.duration_since(begun) >= WINDOW) {
            (self.begun, self.lines) = (Some(now), 0);
        }
        if self.lines >= MAX_LINES {
            self.skipped = self.skipped.saturating_add(1);
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.skipped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_counted() {
        let mut budget = Budget::default();
        let start = Instant::now();
        let told = (0..100).filter(|_| budget.take(start).is_some()).count();
        assert_eq!(told, MAX_LINES as usize);
        assert_eq!(budget.take(start + WINDOW), Some(100 - MAX_LINES));
        assert_eq!(budget.take(start + WINDOW), Some(0));
    }
}
