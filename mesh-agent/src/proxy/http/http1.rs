//! One HTTP/1 connection of a client, from its first request to its end.
//!
//! In: the stream. Out: its requests answered in their order, one at a time; what the client sends ahead waits in a bounded buffer.
//! The connection ends when the client says so, when it is idle for too long, when the agent drains, or when nobody can tell any more
//! where a message ends. Never: holds a buffer for a client that is silent.

mod client;
mod exchange;
mod forward;
mod link;
mod pool;
mod relay;
mod work;

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use mesh_http::{Outcome, Refusal};
use tokio::time::Instant;

use super::Conn;
use super::exchange::After;
use super::record::Record;
use super::reply::Reply;
use super::timer::Timer;
use crate::errors::Flags;
use crate::net::copy::Duplex;
use crate::net::peek::Peeked;
use crate::telemetry::Limit;
use crate::upstream::stream::Stream;
pub(super) use exchange::is_idempotent;
pub(super) use forward::forward;
pub(super) use link::Link;
pub(super) use pool::{Pool, Upstream};
use work::Work;

/// Longest that a client whose connection ends gets to read the last answer, while what it still sends is thrown away.
const LINGER: Duration = Duration::from_secs(1);
/// Bytes that are thrown away for that.
const MAX_THROWN_AWAY: usize = 256 << 10;

/// What one client's exchanges share.
struct Session {
    client: Link,
    timer: Timer,
}

/// Serves a client to its end.
pub(super) fn serve(conn: Rc<Conn>, downstream: Peeked<Stream>) -> impl Future<Output = ()> {
    let (stream, seen) = downstream.into_parts();
    let client = Link::new(stream, seen).within(conn.pod.share());
    let mut session = Session { client, timer: Timer::default() };
    // What is rare has a box, so that a silent client does not pay for it.
    async move {
        let mut shutdown = conn.pod.shutdown.clone();
        let mut closing = pin!(shutdown.closing());
        let linger = loop {
            let mut due = None;
            let spoken = poll_fn(|cx| session.poll_spoken(cx, &conn, closing.as_mut(), &mut due)).await;
            if !spoken {
                break false;
            }
            let mut work = Work::take();
            let parsed = match session.parse(&conn, &mut work) {
                Some(parsed) => parsed,
                None => Box::pin(session.rest_of_head(&conn, &mut work)).await,
            };
            let after = match parsed {
                Ok(true) => Box::pin(exchange::serve(&conn, &mut session, &mut work)).await,
                Ok(false) => After::Close,
                Err(refusal) => Box::pin(session.refuse(&conn, refusal)).await,
            };
            work.give_back();
            match after {
                After::Next => {}
                After::Linger => break true,
                After::Close => break false,
            }
        };
        Box::pin(session.end(&conn, linger)).await;
    }
}

impl Session {
    /// Waits for the first byte of a request; `false` if none is to come.
    fn poll_spoken(
        &mut self,
        cx: &mut Context<'_>,
        conn: &Conn,
        closing: Pin<&mut impl Future<Output = ()>>,
        due: &mut Option<Instant>,
    ) -> Poll<bool> {
        if !self.client.seen.is_empty() {
            return Poll::Ready(true);
        }
        if self.client.finished {
            return Poll::Ready(false);
        }
        match self.client.poll_fill(cx) {
            Poll::Ready(Ok(())) => return Poll::Ready(!self.client.finished),
            Poll::Ready(Err(_)) => return Poll::Ready(false),
            Poll::Pending => {}
        }
        conn.look(cx);
        if closing.poll(cx).is_ready() {
            return Poll::Ready(false);
        }
        if due.is_none() {
            *due = conn.idle_timeout().map(|limit| Instant::now() + limit);
        }
        self.timer.poll(cx, *due).map(|()| false)
    }

    /// Parses a head as far as it is there. `None`: there is more of it to come.
    fn parse(&self, conn: &Conn, work: &mut Work) -> Option<Result<bool, Refusal>> {
        match work.request.parse(&self.client.seen, &conn.pod.share().heads()) {
            Outcome::Head => Some(Ok(true)),
            Outcome::Refused(refusal) => Some(Err(refusal)),
            Outcome::More if self.client.finished => Some(Ok(false)),
            Outcome::More => None,
        }
    }

    /// Reads the rest of a head. `false`: the client has left, or is too slow.
    async fn rest_of_head(&mut self, conn: &Conn, work: &mut Work) -> Result<bool, Refusal> {
        let mut due = None;
        loop {
            let limit = conn.manager().and_then(|manager| manager.request_headers_timeout);
            let limit = limit.filter(|limit| !limit.is_zero()).or(conn.idle_timeout());
            due = due.or_else(|| limit.map(|limit| Instant::now() + limit));
            let filled = poll_fn(|cx| match self.client.poll_fill(cx) {
                Poll::Ready(filled) => Poll::Ready(filled.is_ok()),
                Poll::Pending => self.timer.poll(cx, due).map(|()| false),
            });
            if !filled.await {
                return Ok(false);
            }
            if let Some(parsed) = self.parse(conn, work) {
                return parsed;
            }
        }
    }

    /// Tells a client that what it sends is no request.
    async fn refuse(&mut self, conn: &Conn, refusal: Refusal) -> After {
        tracing::debug!(workload = conn.pod.name, client = %conn.flow.client, %refusal, "not a request");
        conn.tell_limit(refusal);
        Record::unreadable(conn, refusal.status(), Flags::DPE, refusal.name());
        Reply::refused(refusal).write(conn.server_name(), true, false, self.client.out());
        match poll_fn(|cx| self.client.poll_flush(cx)).await {
            Ok(()) => After::Linger,
            Err(_) => After::Close,
        }
    }

    /// Ends the connections as TCP does. `linger`: the client may still be sending, and closing while something is unread would
    /// take the last answer back.
    async fn end(&mut self, conn: &Conn, linger: bool) {
        let finished = poll_fn(|cx| {
            conn.finish(cx);
            self.client.poll_finish(cx)
        });
        if finished.await.is_err() || !linger {
            return;
        }
        let mut left = MAX_THROWN_AWAY;
        let due = Some(Instant::now() + LINGER);
        poll_fn(|cx| {
            while !self.client.finished {
                match self.client.poll_fill(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => return self.timer.poll(cx, due),
                }
                let Some(rest) = left.checked_sub(self.client.seen.len()) else { return Poll::Ready(()) };
                left = rest;
                self.client.seen.clear();
            }
            Poll::Ready(())
        })
        .await;
    }
}

impl Conn {
    /// `server` header of the agent's own answers.
    pub(super) fn server_name(&self) -> &[u8] {
        self.server.as_ref().map_or(b"envoy", |server| server.as_bytes())
    }

    /// Counts a head that was beyond a limit.
    pub(super) fn tell_limit(&self, refusal: Refusal) {
        match refusal {
            Refusal::HeadTooLarge => self.pod.budget.reached(Limit::HeadBytes),
            Refusal::TooManyLines => self.pod.budget.reached(Limit::HeadLines),
            _ => {}
        }
    }
}
