//! When exchanges are given up, with one timer for all that a connection waits for.
//!
//! In: when something is due. Out: whether that has passed. Times that move on, request by request, leave the timer where it is:
//! it looks again when it fires. Never: fires early.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use super::exchange::Broken;

/// One timer; nothing is armed before it is first asked.
#[derive(Default)]
pub(super) struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Resolves once `due` has passed; never without one.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, due: Option<Instant>) -> Poll<()> {
        let Some(due) = due else { return Poll::Pending };
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if sleep.deadline() > due {
            sleep.as_mut().reset(due);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if Instant::now() >= due {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(due);
        }
        Poll::Pending
    }
}

/// When an exchange is given up.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bounds {
    /// The whole of it.
    pub(super) deadline: Option<Instant>,
    /// Without a byte: when it was looked at last, and the longest.
    pub(super) idle: Option<(Instant, Duration)>,
    /// Bytes moved when the idle time was looked at last.
    moved: u64,
}

impl Bounds {
    pub(super) fn new(started: Instant, limit: Option<Duration>, idle: Option<Duration>) -> Self {
        let some = |limit: &Duration| !limit.is_zero();
        Self {
            deadline: limit.filter(some).map(|limit| started + limit),
            idle: idle.filter(some).map(|limit| (started, limit)),
            moved: 0,
        }
    }

    /// Both bounds of an exchange that has begun under each of them.
    pub(super) fn and(self, other: &Self) -> Self {
        let deadline = match (self.deadline, other.deadline) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        let idle = match (self.idle, other.idle) {
            (Some(own), Some(other)) => Some(if other.1 <= own.1 { other } else { own }),
            (own, other) => own.or(other),
        };
        Self { deadline, idle, moved: 0 }
    }

    /// Whether both bear the same silence.
    pub(super) fn idles_as(&self, other: &Self) -> bool {
        self.idle.map(|(_, limit)| limit) == other.idle.map(|(_, limit)| limit)
    }

    /// Sees whether the time is over. `moved`: bytes in both directions so far; `passed`: resolves when an instant has passed.
    pub(super) fn expire(
        &mut self,
        moved: u64,
        mut passed: impl FnMut(Option<Instant>) -> Poll<()>,
    ) -> Result<(), Broken> {
        loop {
            let silent = self.idle.map(|(since, limit)| since + limit);
            let due = match (self.deadline, silent) {
                (Some(deadline), Some(silent)) => Some(deadline.min(silent)),
                (one, other) => one.or(other),
            };
            if passed(due).is_pending() {
                return Ok(());
            }
            if due == self.deadline {
                return Err(Broken::Timeout);
            }
            if moved == self.moved {
                return Err(Broken::Idle);
            }
            self.moved = moved;
            self.idle = self.idle.map(|(_, limit)| (Instant::now(), limit));
        }
    }
}

/// One timer for many streams of a connection, whose task asks it.
#[derive(Default)]
pub(super) struct Alarms {
    timer: RefCell<Timer>,
    set: RefCell<Set>,
    /// No alarm is due before; it may be that none is due then.
    earliest: Cell<Option<Instant>>,
}

#[derive(Default)]
struct Set {
    places: Vec<Place>,
    free: Vec<usize>,
}

#[derive(Default)]
struct Place {
    due: Option<Instant>,
    waker: Option<Waker>,
}

impl Alarms {
    /// Wakes those whose time has come; resolves once `own` has passed, the connection's own time. To be asked after the streams.
    pub(super) fn poll(&self, cx: &mut Context<'_>, own: Option<Instant>) -> Poll<()> {
        loop {
            let due = match (self.earliest.get(), own) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
            if self.timer.borrow_mut().poll(cx, due).is_pending() {
                return Poll::Pending;
            }
            let now = Instant::now();
            let mut earliest = None;
            for place in &mut self.set.borrow_mut().places {
                match place.due {
                    Some(due) if due <= now => {
                        place.due = None;
                        place.waker.take().into_iter().for_each(Waker::wake);
                    }
                    Some(due) => earliest = Some(earliest.map_or(due, |other: Instant| other.min(due))),
                    None => {}
                }
            }
            self.earliest.set(earliest);
            if own.is_some_and(|own| own <= now) {
                return Poll::Ready(());
            }
        }
    }
}

/// One stream's alarm.
pub(super) struct Alarm {
    alarms: Rc<Alarms>,
    place: usize,
    due: Option<Instant>,
}

impl Alarm {
    /// Nothing is set yet.
    pub(super) fn new(alarms: &Rc<Alarms>) -> Self {
        let mut set = alarms.set.borrow_mut();
        let place = match set.free.pop() {
            Some(place) => place,
            None => {
                set.places.push(Place::default());
                set.places.len() - 1
            }
        };
        drop(set);
        Self { alarms: alarms.clone(), place, due: None }
    }

    /// As [`Timer::poll`].
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, due: Option<Instant>) -> Poll<()> {
        let Some(due) = due else { return Poll::Pending };
        let mut set = self.alarms.set.borrow_mut();
        let Some(place) = set.places.get_mut(self.place) else { return Poll::Pending };
        if self.due != Some(due) {
            self.due = Some(due);
            place.due = Some(due);
            let earliest = self.alarms.earliest.get().map_or(due, |other| other.min(due));
            self.alarms.earliest.set(Some(earliest));
        } else if place.due.is_none() {
            self.due = None;
            return Poll::Ready(());
        }
        if !place.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            place.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        let mut set = self.alarms.set.borrow_mut();
        if let Some(place) = set.places.get_mut(self.place) {
            *place = Place::default();
        }
        set.free.push(self.place);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn every_alarm_goes_off_at_its_time_and_none_before() {
        let alarms = Rc::new(Alarms::default());
        let start = Instant::now();
        let at = |seconds| Some(start + Duration::from_secs(seconds));
        let mut early = Alarm::new(&alarms);
        let mut late = Alarm::new(&alarms);
        let gone = Alarm::new(&alarms);
        let mut over = Vec::new();
        poll_fn(|cx| {
            for (name, alarm, due) in [("late", &mut late, at(20)), ("early", &mut early, at(10))] {
                if !over.iter().any(|(other, _)| *other == name) && alarm.poll(cx, due).is_ready() {
                    over.push((name, start.elapsed().as_secs()));
                }
            }
            if over.len() == 2 { Poll::Ready(()) } else { alarms.poll(cx, at(30)) }
        })
        .await;
        assert_eq!(over, [("early", 10), ("late", 20)]);
        poll_fn(|cx| alarms.poll(cx, at(30))).await;
        assert_eq!(start.elapsed().as_secs(), 30);
        drop(gone);
        assert_eq!(Alarm::new(&alarms).place, 2, "places are used again");
    }
}
