//! Relays bytes between two streams until both directions have ended.
//!
//! In: two [`Duplex`] streams. Out: an [`End`], and byte counts readable at any time in [`Traffic`].
//! The end of one direction is passed on as it came: FIN as FIN, reset as reset, and what was read before it is delivered first.
//! Never holds a buffer while it waits for bytes to read, never reads more than it could write on.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

use super::share::{STEPS, Share};

#[cfg(test)]
mod tests;

/// Chunks that one direction moves before it lets other tasks of the worker run, where nobody says less.
const CHUNKS_PER_TURN: usize = 16;

/// Turns of the worker that data already written gets to leave before a reset is sent after it.
const TURNS_BEFORE_RESET: usize = 2;

/// A byte stream with the two ways in which TCP can end: FIN and RST.
pub trait Duplex: Unpin {
    /// The next bytes from the peer; empty once the peer has finished. A reset is an error.
    /// What the call before returned counts as consumed, so flow control may let the peer send more.
    fn poll_recv(&mut self, cx: &mut Context<'_>, buffer: &mut Buffer) -> Poll<io::Result<Bytes>>;

    /// Sends bytes from the front of `data` (not empty) and removes them from it; the number sent is never 0.
    fn poll_send(&mut self, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<io::Result<usize>>;

    /// Pushes on what was sent and still waits in a buffer of the stream's own, if it has one.
    fn poll_push(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Tells the peer that nothing more will come.
    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Ends both directions at once, visibly as a failure, when the stream is dropped or before.
    fn reset(&mut self);
}

impl Duplex for TcpStream {
    fn poll_recv(&mut self, cx: &mut Context<'_>, buffer: &mut Buffer) -> Poll<io::Result<Bytes>> {
        // Ask for readiness first: a connection that waits owns no buffer.
        if self.poll_read_ready(cx)?.is_pending() {
            buffer.give_back();
            return Poll::Pending;
        }
        buffer.poll_fill(self, cx)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<io::Result<usize>> {
        let sent = ready!(Pin::new(self).poll_write(cx, data))?;
        if sent == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        bytes::Buf::advance(data, sent);
        Poll::Ready(Ok(sent))
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match ready!(Pin::new(self).poll_shutdown(cx)) {
            // The peer has already gone: nothing left to tell it.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            done => Poll::Ready(done),
        }
    }

    fn reset(&mut self) {
        if let Err(error) = socket2::SockRef::from(&*self).set_linger(Some(Duration::ZERO)) {
            tracing::debug!(%error, "reset: linger not set, the peer will see a normal close");
        }
    }
}

impl<S: Duplex> Duplex for &mut S {
    fn poll_recv(&mut self, cx: &mut Context<'_>, buffer: &mut Buffer) -> Poll<io::Result<Bytes>> {
        S::poll_recv(self, cx, buffer)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<io::Result<usize>> {
        S::poll_send(self, cx, data)
    }

    fn poll_push(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        S::poll_push(self, cx)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        S::poll_finish(self, cx)
    }

    fn reset(&mut self) {
        S::reset(self);
    }
}

/// A read buffer that grows with the traffic and costs nothing between reads. Its size steps up when a read fills it and down when all
/// that there was to read would have left most of a smaller one empty.
#[derive(Debug, Default)]
pub struct Buffer {
    spare: BytesMut,
    step: u8,
    /// Bytes read since there was nothing to read.
    burst: u32,
    share: Option<Rc<Share>>,
}

impl Buffer {
    /// One that grows no further than its workload's share lets it.
    pub fn within(share: &Rc<Share>) -> Self {
        Self { share: Some(share.clone()), ..Self::default() }
    }

    /// Chunks that are moved in one turn.
    fn chunks(&self) -> usize {
        self.share.as_ref().map_or(CHUNKS_PER_TURN, |share| share.pieces())
    }

    /// Frees the memory, for there is nothing to read; the size learnt so far is kept.
    pub(crate) fn give_back(&mut self) {
        self.spare = BytesMut::new();
        let burst = std::mem::take(&mut self.burst) as usize;
        if burst > 0 && self.step > 0 && burst <= STEPS[usize::from(self.step) - 1] / 2 {
            self.step -= 1;
        }
    }

    /// Reads once, as much as has proved to fit.
    pub(crate) fn poll_fill<R: AsyncRead + Unpin>(
        &mut self,
        from: &mut R,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Bytes>> {
        let most = self.share.as_ref().map_or(STEPS.len() - 1, |share| share.step());
        let step = usize::from(self.step).min(most);
        let size = STEPS[step];
        // One allocation serves several small reads; it is reclaimed when nobody holds what was split off.
        self.spare.reserve(size);
        let outcome = pin!(from.read_buf(&mut (&mut self.spare).limit(size))).poll(cx);
        let Poll::Ready(Ok(read)) = outcome else {
            self.give_back();
            return outcome.map_ok(|_| Bytes::new());
        };
        self.burst = self.burst.saturating_add(u32::try_from(read).unwrap_or(u32::MAX));
        self.step = step as u8 + u8::from(read == size && step < most);
        Poll::Ready(Ok(self.spare.split().freeze()))
    }
}

/// Bytes moved so far, readable while the relay runs.
#[derive(Debug, Default)]
pub struct Traffic {
    /// From the first stream to the second.
    pub forward: Cell<u64>,
    /// From the second stream to the first.
    pub back: Cell<u64>,
}

/// How a relay ended.
#[derive(Debug)]
pub enum End {
    /// Both sides finished.
    Finished,
    /// The first stream broke; the second was reset.
    FirstReset(io::Error),
    /// The second stream broke; the first was reset.
    SecondReset(io::Error),
    /// No byte moved for the idle time; both were closed.
    Idle,
}

/// Relays between `first` and `second` until both directions have ended. `idle` is the longest time without a byte; `None`
/// is forever. A future of its own, because an async function would hold both streams twice.
pub fn copy<A: Duplex, B: Duplex>(first: A, second: B, traffic: &Traffic, idle: Option<Duration>) -> Copy<'_, A, B> {
    let relay = Relay { first, second, forward: Direction::default(), back: Direction::default() };
    Copy { relay, traffic, watch: idle.map(IdleWatch::new).map(Box::new), ending: None }
}

impl<A, B> Copy<'_, A, B> {
    /// Reads no more at once, and no more often in a turn, than the workload's share lets it.
    pub fn within(mut self, share: &Rc<Share>) -> Self {
        self.relay.forward.buffer = Buffer::within(share);
        self.relay.back.buffer = Buffer::within(share);
        self
    }
}

/// A relay under way; see [`copy`].
#[must_use = "futures do nothing unless polled"]
pub struct Copy<'a, A, B> {
    relay: Relay<A, B>,
    traffic: &'a Traffic,
    watch: Option<Box<IdleWatch>>,
    /// The end, and how many turns what was written before still gets.
    ending: Option<(End, usize)>,
}

impl<A: Duplex, B: Duplex> Future for Copy<'_, A, B> {
    type Output = End;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<End> {
        let this = &mut *self;
        if this.ending.is_none() {
            let end = match this.relay.poll(cx, this.traffic) {
                Poll::Ready(end) => end,
                Poll::Pending => match &mut this.watch {
                    Some(watch) => {
                        ready!(watch.poll(cx, this.traffic.forward.get() + this.traffic.back.get()));
                        End::Idle
                    }
                    None => return Poll::Pending,
                },
            };
            this.ending = Some((end, TURNS_BEFORE_RESET));
        }
        let Some((end, turns)) = this.ending.take() else { return Poll::Pending };
        match &end {
            End::FirstReset(_) | End::SecondReset(_) if turns > 0 => {
                this.ending = Some((end, turns - 1));
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            End::FirstReset(_) => this.relay.second.reset(),
            End::SecondReset(_) => this.relay.first.reset(),
            End::Finished | End::Idle => {}
        }
        Poll::Ready(end)
    }
}

struct Relay<A, B> {
    first: A,
    second: B,
    forward: Direction,
    back: Direction,
}

impl<A: Duplex, B: Duplex> Relay<A, B> {
    fn poll(&mut self, cx: &mut Context<'_>, traffic: &Traffic) -> Poll<End> {
        self.forward.poll(cx, &mut self.first, &mut self.second, &traffic.forward);
        self.back.poll(cx, &mut self.second, &mut self.first, &traffic.back);
        // A stream that cannot be read is gone. One that cannot be written is gone too, but may still hold bytes
        // that its peer sent before: they are delivered first.
        if let State::SourceBroken(error) = &mut self.forward.state {
            return Poll::Ready(End::FirstReset(take(error)));
        }
        if let State::SourceBroken(error) = &mut self.back.state {
            return Poll::Ready(End::SecondReset(take(error)));
        }
        match (&mut self.forward.state, &mut self.back.state) {
            (State::SinkBroken(error), back) if back.is_over() => Poll::Ready(End::SecondReset(take(error))),
            (forward, State::SinkBroken(error)) if forward.is_over() => Poll::Ready(End::FirstReset(take(error))),
            (State::Done, State::Done) => Poll::Ready(End::Finished),
            _ => Poll::Pending,
        }
    }
}

fn take(error: &mut io::Error) -> io::Error {
    std::mem::replace(error, io::ErrorKind::ConnectionReset.into())
}

#[derive(Default)]
struct Direction {
    pending: Bytes,
    buffer: Buffer,
    /// Something was sent that the sink may still hold.
    pushing: bool,
    state: State,
}

#[derive(Default)]
enum State {
    #[default]
    Open,
    /// The source has finished; its end is being passed on.
    Finishing,
    Done,
    SourceBroken(io::Error),
    SinkBroken(io::Error),
}

impl State {
    fn is_over(&self) -> bool {
        matches!(self, State::Done | State::SourceBroken(_) | State::SinkBroken(_))
    }
}

impl Direction {
    /// Moves what can be moved now. The outcome stands in `state`.
    fn poll<S: Duplex, D: Duplex>(&mut self, cx: &mut Context<'_>, source: &mut S, sink: &mut D, count: &Cell<u64>) {
        for _ in 0..self.buffer.chunks() {
            match self.poll_step(cx, source, sink, count) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(broken)) => {
                    self.pending = Bytes::new();
                    self.buffer.give_back();
                    self.state = broken;
                    return;
                }
                Poll::Pending => return,
            }
            if self.state.is_over() {
                return;
            }
        }
        cx.waker().wake_by_ref();
    }

    fn poll_step<S: Duplex, D: Duplex>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut S,
        sink: &mut D,
        count: &Cell<u64>,
    ) -> Poll<Result<(), State>> {
        match self.state {
            State::Open if self.pending.is_empty() => {
                if self.pushing {
                    ready!(sink.poll_push(cx)).map_err(State::SinkBroken)?;
                    self.pushing = false;
                }
                let chunk = ready!(source.poll_recv(cx, &mut self.buffer)).map_err(State::SourceBroken)?;
                if chunk.is_empty() {
                    self.buffer.give_back();
                    self.state = State::Finishing;
                } else {
                    self.pending = chunk;
                }
                Poll::Ready(Ok(()))
            }
            State::Open => {
                let sent = ready!(sink.poll_send(cx, &mut self.pending)).map_err(State::SinkBroken)?;
                count.set(count.get() + sent as u64);
                self.pushing = true;
                if self.pending.is_empty() {
                    // Let go of the chunk, so that its allocation can serve the next read.
                    self.pending = Bytes::new();
                }
                Poll::Ready(Ok(()))
            }
            State::Finishing => {
                ready!(sink.poll_finish(cx)).map_err(State::SinkBroken)?;
                self.state = State::Done;
                Poll::Ready(Ok(()))
            }
            State::Done | State::SourceBroken(_) | State::SinkBroken(_) => Poll::Pending,
        }
    }
}

/// Notices that a count has stood still for a time.
struct IdleWatch {
    limit: Duration,
    seen: u64,
    since: Instant,
    timer: Pin<Box<Sleep>>,
}

impl IdleWatch {
    fn new(limit: Duration) -> Self {
        let since = Instant::now();
        Self { limit, seen: 0, since, timer: Box::pin(sleep_until(since + limit)) }
    }

    fn poll(&mut self, cx: &mut Context<'_>, count: u64) -> Poll<()> {
        if count != self.seen {
            self.seen = count;
            self.since = Instant::now();
        }
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let due = self.since + self.limit;
            if due <= Instant::now() {
                return Poll::Ready(());
            }
            // Bytes have moved since the timer was set: it only has to run on, not to be moved with every byte.
            self.timer.as_mut().reset(due);
        }
    }
}
