//! What one workload may hold of a worker's memory and turns, shared out among its connections.
//!
//! In: how many connections it has, and which windows its peers were given. Out: how much a connection reads at once, how often in one
//! turn, how long a head may be; the window of a new HTTP/2 connection. Nothing is counted while bytes move: the parts are worked
//! out when a connection comes or goes. Never: refuses anybody; who has many connections gets less for each.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use crate::settings::limits::{Limits, MIN_WINDOW};
use crate::telemetry::{Limit, LimitCounts};

/// Bytes that a connection reads at once, by step. The largest still fits one segment that the kernel or the card cuts up (64 KiB with its
/// headers, in whole segments of Ethernet's size), with the heads of frame and TLS records before it.
pub const STEPS: [usize; 3] = [4 << 10, 16 << 10, (64 << 10) - 512];
/// Pieces that one direction of a connection moves before others have their turn.
const PIECES: usize = 16;
/// So many connections of a workload may each move [`PIECES`] in a turn; of more, each moves fewer.
const CONNECTIONS_AT_ONCE: usize = 64;
/// Bytes that a client of HTTP/1 may send ahead of its turn.
const AHEAD: usize = 64 << 10;
/// Least that is left of a head and of what is sent ahead, in bytes.
const LEAST_HEAD: usize = 8 << 10;
/// What a connection may hold at once of what it was given: a piece in either direction, and a head or what was sent ahead.
const PLACES: usize = 3;
/// A new HTTP/2 connection gets at most this part of what is left for windows.
const WINDOW_PART: usize = 16;

/// A connection's part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    /// Largest of [`STEPS`].
    step: usize,
    pieces: usize,
    head: usize,
    ahead: usize,
}

impl Part {
    /// Of so many bytes for so many connections; a head has at most `head` bytes.
    fn of(bytes: usize, connections: usize, head: usize) -> Self {
        let connections = connections.max(1);
        let each = bytes / connections / PLACES;
        let step = STEPS.iter().rposition(|step| *step <= each).unwrap_or_default();
        let pieces = (PIECES * CONNECTIONS_AT_ONCE / connections).clamp(1, PIECES);
        let least = LEAST_HEAD.min(head);
        Self { step, pieces, head: each.clamp(least, head), ahead: each.clamp(LEAST_HEAD, AHEAD) }
    }
}

/// One workload's share of one worker.
#[derive(Debug)]
pub struct Share {
    limits: Limits,
    counts: Arc<LimitCounts>,
    connections: Cell<usize>,
    /// Bytes of all windows that were given.
    windows: Cell<usize>,
    part: Cell<Part>,
}

impl Share {
    /// Nobody has anything of it yet. `counts`: the worker's.
    pub fn new(limits: &Limits, counts: Arc<LimitCounts>) -> Rc<Self> {
        let part = Part::of(limits.buffer_bytes_per_workload, 0, limits.head_bytes as usize);
        let (connections, windows) = (Cell::new(0), Cell::new(0));
        Rc::new(Self { limits: *limits, counts, connections, windows, part: Cell::new(part) })
    }

    /// One connection more has its part.
    pub fn join(&self) {
        self.connections.set(self.connections.get() + 1);
        self.work_out();
    }

    /// One connection less.
    pub fn leave(&self) {
        self.connections.set(self.connections.get().saturating_sub(1));
        self.work_out();
    }

    /// Which of [`STEPS`] is the largest.
    pub fn step(&self) -> usize {
        self.part.get().step
    }

    /// Pieces that one direction of a connection moves in one turn.
    pub fn pieces(&self) -> usize {
        self.part.get().pieces
    }

    /// Bounds of a head of HTTP/1.
    pub fn heads(&self) -> mesh_http::Limits {
        mesh_http::Limits { bytes: self.part.get().head, lines: self.limits.head_lines }
    }

    /// Bytes that a client of HTTP/1 may send ahead of its turn.
    pub fn ahead(&self) -> usize {
        self.part.get().ahead
    }

    /// A window for a new HTTP/2 connection or tunnel, as long as it lives. Half of the budget is for windows, and none takes more than
    /// a part of what is left of it, but for the one that every connection has.
    pub fn window(self: &Rc<Self>) -> Window {
        let Limits { stream_window_bytes, connection_window_bytes: wanted, .. } = self.limits;
        let left = (self.limits.buffer_bytes_per_workload / 2).saturating_sub(self.windows.get());
        let part = u32::try_from(left / WINDOW_PART).unwrap_or(u32::MAX);
        let connection = wanted.min(part.max(MIN_WINDOW));
        if connection < wanted {
            self.counts.reached(Limit::BufferBytesPerWorkload);
        }
        self.windows.set(self.windows.get() + connection as usize);
        self.counts.windows(i64::from(connection));
        self.work_out();
        Window { share: self.clone(), connection, stream: stream_window_bytes.min(connection) }
    }

    fn work_out(&self) {
        let before = self.part.get();
        let left = self.limits.buffer_bytes_per_workload.saturating_sub(self.windows.get());
        let part = Part::of(left, self.connections.get(), self.limits.head_bytes as usize);
        if part.step < before.step || part.head < before.head && before.head == self.limits.head_bytes as usize {
            self.counts.reached(Limit::BufferBytesPerWorkload);
        }
        self.part.set(part);
    }
}

/// A flow-control window, given back when dropped.
#[derive(Debug)]
pub struct Window {
    share: Rc<Share>,
    /// Of the connection, in bytes.
    pub connection: u32,
    /// Of each stream, in bytes.
    pub stream: u32,
}

impl Drop for Window {
    fn drop(&mut self) {
        let share = &self.share;
        share.windows.set(share.windows.get().saturating_sub(self.connection as usize));
        share.counts.windows(-i64::from(self.connection));
        share.work_out();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(budget: usize) -> (Rc<Share>, Arc<LimitCounts>) {
        let counts = Arc::new(LimitCounts::default());
        let limits = Limits { buffer_bytes_per_workload: budget, ..Limits::default() };
        (Share::new(&limits, counts.clone()), counts)
    }

    #[test]
    fn a_few_connections_have_everything_and_many_less() {
        let head = 60 << 10;
        let full = Part { step: 2, pieces: 16, head, ahead: AHEAD };
        assert_eq!(Part::of(1 << 30, 0, head), full);
        assert_eq!(Part::of(1 << 30, 64, head), full);
        assert_eq!(Part::of(1 << 30, 128, head), Part { pieces: 8, ..full });
        assert_eq!(Part::of(1 << 30, 5461, head), Part { pieces: 1, ..full });
        let third = (1 << 30) / 16_384 / 3;
        assert_eq!(Part::of(1 << 30, 16_384, head), Part { step: 1, pieces: 1, head: third, ahead: third });
        assert_eq!(Part::of(1 << 20, 65_536, head), Part { step: 0, pieces: 1, head: 8 << 10, ahead: 8 << 10 });
    }

    #[test]
    fn what_connections_may_hold_stays_within_the_budget() {
        for connections in [1, 10, 100, 1000, 10_000] {
            let part = Part::of(1 << 30, connections, 60 << 10);
            assert!(connections * (2 * STEPS[part.step] + part.head.max(part.ahead)) <= 1 << 30, "{connections}");
        }
    }

    #[test]
    fn windows_stay_within_half_of_the_budget_but_for_the_least() {
        let (share, counts) = share(64 << 20);
        let windows: Vec<Window> = (0..300).map(|_| share.window()).collect();
        assert_eq!((windows[0].connection, windows[0].stream), (2 << 20, 2 << 20));
        assert!(windows.windows(2).all(|two| two[0].connection >= two[1].connection));
        assert_eq!(windows[299].connection, MIN_WINDOW);
        let least = windows.iter().filter(|one| one.connection == MIN_WINDOW).count();
        let given: usize = windows.iter().map(|one| one.connection as usize).sum();
        assert!(given <= (32 << 20) + least * MIN_WINDOW as usize, "{given}");
        assert_eq!((share.windows.get(), counts.of(Limit::BufferBytesPerWorkload) >= 300), (given, true));
        drop(windows);
        assert_eq!((share.windows.get(), share.window().connection), (0, 2 << 20));
    }

    #[test]
    fn reaching_the_budget_is_counted_and_undone() {
        let (share, counts) = share(1 << 20);
        (0..5).for_each(|_| share.join());
        assert_eq!((share.step(), share.heads().bytes, counts.of(Limit::BufferBytesPerWorkload)), (2, 60 << 10, 0));
        share.join();
        assert_eq!((share.step(), counts.of(Limit::BufferBytesPerWorkload)), (1, 1));
        share.leave();
        assert_eq!((share.step(), share.pieces(), share.ahead()), (2, 16, 64 << 10));
    }
}
