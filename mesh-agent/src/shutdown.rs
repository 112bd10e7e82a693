//! Orderly end: one signal in two steps (drain, then stop), guards that hold the end back, and the one place where
//! tasks are spawned, each with a name. In: the app's decision to end. Out: every task's notice. Never kills a process.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::Instrument;

/// How far the shutdown has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Running,
    /// Another agent takes what is new: what is open may stay open.
    HandedOver,
    Draining,
    Stopped,
}

/// The side that decides. Dropping it means stop.
pub struct Trigger {
    phase: watch::Sender<Phase>,
    begun: Arc<AtomicBool>,
    /// Never carries a message: it ends when the last guard is dropped.
    guards: mpsc::Receiver<Infallible>,
}

/// The side that every task holds; cheap to clone, usable from any thread and runtime.
#[derive(Clone)]
pub struct Watch {
    phase: watch::Receiver<Phase>,
    /// Whether it is past [`Phase::Running`], for those who ask for each request.
    begun: Arc<AtomicBool>,
    guard: mpsc::WeakSender<Infallible>,
}

/// Holds the end of a drain back while it lives. One per connection or task that deserves to finish.
pub struct Guard {
    _held: Option<mpsc::Sender<Infallible>>,
}

/// A new pair; `Trigger` stays with the app.
pub fn channel() -> (Trigger, Watch, Guard) {
    let (phase, phase_rx) = watch::channel(Phase::Running);
    let (sender, guards) = mpsc::channel(1);
    let begun = Arc::new(AtomicBool::new(false));
    let watch = Watch { phase: phase_rx, begun: begun.clone(), guard: sender.downgrade() };
    // The first guard is the app's own: without it a drain begun before the first connection would have no sender.
    (Trigger { phase, begun, guards }, watch, Guard { _held: Some(sender) })
}

impl Trigger {
    /// Asks everybody to finish, waits for the guards up to `deadline`, then tells the rest to stop.
    /// Returns whether everybody finished in time.
    pub async fn drain(self, deadline: Duration) -> bool {
        self.end(Phase::Draining, deadline).await
    }

    /// As [`Trigger::drain`], after another agent has taken over: what is idle is left to its client until the deadline.
    pub async fn hand_over(self, deadline: Duration) -> bool {
        self.end(Phase::HandedOver, deadline).await
    }

    async fn end(mut self, phase: Phase, deadline: Duration) -> bool {
        self.begun.store(true, Ordering::Release);
        self.phase.send_replace(phase);
        let drained = tokio::time::timeout(deadline, self.guards.recv()).await.is_ok();
        self.phase.send_replace(Phase::Stopped);
        drained
    }
}

impl Watch {
    /// Whether a drain or hand-over has begun: take no new work.
    pub fn is_draining(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    /// Resolves when a drain or hand-over begins (at once if it has).
    pub async fn draining(&mut self) {
        let _ = self.phase.wait_for(|phase| *phase > Phase::Running).await;
    }

    /// Resolves when idle connections are to be closed: in a drain at its beginning, in a hand-over at its end.
    pub async fn closing(&mut self) {
        let _ = self.phase.wait_for(|phase| *phase >= Phase::Draining).await;
    }

    /// Resolves when the drain's deadline has passed, or when everybody has finished: drop what is left.
    pub async fn stopped(&mut self) {
        let _ = self.phase.wait_for(|phase| *phase >= Phase::Stopped).await;
    }

    /// A guard that holds the end back. After the end it holds nothing.
    pub fn guard(&self) -> Guard {
        Guard { _held: self.guard.upgrade() }
    }

    /// Spawns a named task on the current runtime; it ends by itself, or is dropped when the shutdown stops.
    pub fn spawn<F>(&self, name: &'static str, future: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        tokio::spawn(self.clone().until_stopped(future).instrument(tracing::info_span!("task", name)))
    }

    /// As [`Watch::spawn`], on the current thread's `LocalSet`.
    pub fn spawn_local<F>(&self, name: &'static str, future: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + 'static,
    {
        tokio::task::spawn_local(self.clone().until_stopped(future).instrument(tracing::info_span!("task", name)))
    }

    async fn until_stopped(mut self, future: impl Future<Output = ()>) {
        tokio::select! {
            () = future => {}
            () = self.stopped() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn drain_waits_for_guards() {
        let (trigger, mut watch, own) = channel();
        let guard = watch.guard();
        let worker = tokio::spawn(async move {
            watch.draining().await;
            tokio::time::sleep(Duration::from_secs(3)).await;
            drop(guard);
        });
        drop(own);
        assert!(trigger.drain(Duration::from_secs(5)).await);
        worker.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_hand_over_takes_no_new_work_but_closes_nothing_before_its_end() {
        let (trigger, mut watch, own) = channel();
        let guard = watch.guard();
        let mut idle = watch.clone();
        let idle = tokio::spawn(async move {
            idle.closing().await;
            drop(guard);
            Instant::now()
        });
        drop(own);
        let start = Instant::now();
        assert!(!trigger.hand_over(Duration::from_secs(5)).await);
        watch.draining().await;
        assert!(watch.is_draining());
        assert_eq!(idle.await.unwrap() - start, Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn drain_gives_up_at_the_deadline_and_stops_tasks() {
        let (trigger, watch, own) = channel();
        let held = watch.guard();
        let task = watch.spawn("stuck", std::future::pending());
        drop(own);
        assert!(!trigger.drain(Duration::from_secs(5)).await);
        task.await.unwrap();
        drop(held);
    }
}
