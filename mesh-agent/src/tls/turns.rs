//! Whose handshake is next. A handshake costs a worker as much as dozens of requests, and whoever dials can ask for one.
//!
//! In: a workload that has a handshake to do. Out: its turn, once fewer are under way than may be and the last one is long enough ago.
//! Each workload has turns of its own on each worker, so one that is flooded waits for itself only. Never: refuses; the caller
//! has a time limit of its own.

use std::sync::Arc;

use mesh_core::rate::Rate;
use tokio::sync::{Mutex, Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep_until};

use crate::settings::limits::Limits;
use crate::telemetry::{Limit, LimitCounts};

/// The handshakes of one workload on one worker, in one of both roles.
#[derive(Debug)]
pub struct Turns {
    places: Semaphore,
    rate: Mutex<Rate>,
    counts: Arc<LimitCounts>,
}

impl Turns {
    /// `counts`: the worker's.
    pub fn new(limits: &Limits, counts: Arc<LimitCounts>) -> Self {
        let rate = Mutex::new(Rate::new(limits.handshakes_per_second));
        Self { places: Semaphore::new(limits.handshakes_per_workload), rate, counts }
    }

    /// Waits for a turn, first come first served. Whoever gives up before has taken nothing from others.
    pub async fn turn(&self) -> Turn<'_> {
        let place = match self.places.try_acquire() {
            Ok(place) => Some(place),
            Err(_) => {
                self.counts.reached(Limit::HandshakesPerWorkload);
                // Nobody closes it.
                self.places.acquire().await.ok()
            }
        };
        self.counts.handshakes(1);
        let turn = Turn { counts: &self.counts, _place: place };
        let mut rate = self.rate.lock().await;
        let now = Instant::now();
        if let Some(due) = rate.due(now.into_std()) {
            self.counts.reached(Limit::HandshakesPerSecond);
            sleep_until(due.into()).await;
        }
        rate.begin(Instant::now().into_std());
        drop(rate);
        turn
    }
}

/// A handshake under way; over when dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    counts: &'a LimitCounts,
    _place: Option<SemaphorePermit<'a>>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.counts.handshakes(-1);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;

    use super::*;

    fn turns(at_once: usize, per_second: u32) -> (Turns, Arc<LimitCounts>) {
        let counts = Arc::new(LimitCounts::default());
        let limits =
            Limits { handshakes_per_workload: at_once, handshakes_per_second: per_second, ..Limits::default() };
        (Turns::new(&limits, counts.clone()), counts)
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_at_once_than_may_be() {
        let (turns, counts) = turns(2, 1000);
        let (first, _second) = (turns.turn().await, turns.turn().await);
        let mut third = Box::pin(turns.turn());
        assert!(third.as_mut().now_or_never().is_none());
        assert_eq!(counts.of(Limit::HandshakesPerWorkload), 1);
        drop(first);
        third.await;
        assert_eq!(counts.of(Limit::HandshakesPerSecond), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn no_faster_than_may_be_and_whoever_gives_up_takes_nothing() {
        let (turns, counts) = turns(100, 2);
        let start = Instant::now();
        for _ in 0..2 {
            turns.turn().await;
        }
        assert_eq!((start.elapsed(), counts.of(Limit::HandshakesPerSecond)), (Duration::ZERO, 0));
        for _ in 0..50 {
            assert!(tokio::time::timeout(Duration::from_millis(1), turns.turn()).await.is_err());
        }
        turns.turn().await;
        let half = Duration::from_millis(500);
        assert!(start.elapsed() >= half && start.elapsed() < half + half / 10, "{:?}", start.elapsed());
        assert_eq!(counts.of(Limit::HandshakesPerSecond), 51);
    }
}
