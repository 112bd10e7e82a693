//! One HTTP/2 connection of a client, from its preface to its end (RFC 9113).
//!
//! In: the stream. Out: its requests answered, many at once, all by the one task of the connection. The connection ends when its client
//! says so, when it is idle for too long, when the agent drains (GOAWAY, in two steps), or when the client breaks a rule of HTTP/2
//! itself; a request that breaks one ends alone, and is told of. Never: a task or a timer for each request, an unbounded queue.
//! A stream may become a tunnel: by CONNECT, or as WebSocket does (RFC 8441).
//!
//! What `h2` bounds by itself: CONTINUATION frames for the bounds of a head, frames that want an answer (SETTINGS, PING) by reading
//! nothing more before the answer is written, tiny DATA frames. A name in upper case ends the connection there, not its stream alone.

mod client;
mod forward;
mod pool;
mod serve;
mod watch;

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use h2::Reason;
use tokio::time::{Instant, timeout};

use super::Conn;
use super::record::Record;
use super::timer::Alarms;
use crate::errors::Flags;
use crate::net::gather::gather;
use crate::net::peek::Peeked;
use crate::telemetry::Limit;
use crate::upstream::stream::Stream;
use crate::upstream::tunnel::{DATA_FRAME_BUDGET, MAX_FRAME};
pub(super) use forward::forward;
pub(super) use pool::Upstreams;
#[cfg(fuzzing)]
pub use watch::follow as follow_http2;
use watch::{Resets, Watched};

/// Time for the preface. Whoever needs longer speaks something else.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time that an idle client gets to see a GOAWAY before its connection is closed.
const GOAWAY_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves a client to its end.
pub(super) async fn serve(conn: Rc<Conn>, downstream: Peeked<Stream>) {
    let resets = Rc::new(Resets::default());
    let limits = *conn.pod.budget.limits();
    let window = conn.pod.share().window();
    let (downstream, outlet) = gather(downstream);
    let handshake = h2::server::Builder::new()
        .initial_window_size(window.stream)
        .initial_connection_window_size(window.connection)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(limits.head_bytes)
        .max_concurrent_streams(limits.http2_streams)
        .max_pending_accept_reset_streams(limits.http2_pending_resets)
        .max_local_error_reset_streams(Some(limits.http2_faults))
        .max_send_buffer_size(limits.stream_buffer_bytes)
        .data_frame_budget(DATA_FRAME_BUDGET)
        .enable_connect_protocol()
        .handshake(Watched::new(downstream, resets.clone()));
    let mut connection = match timeout(PREFACE_TIMEOUT, handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            tracing::debug!(workload = conn.pod.name, client = %conn.flow.client, %error, "not HTTP/2");
            return Record::unreadable(&conn, 0, Flags::DPE, "http2.protocol_error");
        }
        Err(_) => return,
    };
    let alarms = Rc::new(Alarms::default());
    let mut streams = FuturesUnordered::new();
    let mut shutdown = conn.pod.shutdown.clone();
    let mut draining = pin!(shutdown.draining());
    let mut leaving = false;
    let mut due = None;
    let ended = poll_fn(|cx| {
        if !leaving && draining.as_mut().poll(cx).is_ready() {
            (leaving, due) = (true, None);
            connection.graceful_shutdown();
        }
        loop {
            match connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    resets.accepted(respond.stream_id().as_u32());
                    streams.push(serve::serve(conn.clone(), request, respond, alarms.clone(), resets.clone()));
                    continue;
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(error)),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => outlet.push(cx),
            }
            if resets.take_unsettled() {
                Record::unreadable(&conn, 0, Flags::DPE, "http2.protocol_error");
                connection.abrupt_shutdown(Reason::PROTOCOL_ERROR);
                continue;
            }
            for status in resets.unheard() {
                if status == 431 {
                    conn.pod.budget.reached(Limit::HeadBytes);
                }
                Record::unreadable(&conn, status, Flags::DPE, "http2.violation.of.messaging.rule");
            }
            for _ in 0..resets.refused() {
                conn.pod.budget.reached(Limit::Http2Streams);
            }
            // What a stream has written goes out when the connection is asked again, which it wakes its task for.
            while let Poll::Ready(Some(())) = streams.poll_next_unpin(cx) {}
            if !streams.is_empty() {
                due = None;
            } else if due.is_none() {
                conn.look(cx);
                let limit = if leaving { Some(GOAWAY_TIMEOUT) } else { conn.idle_timeout() };
                due = limit.map(|limit| Instant::now() + limit);
            }
            if alarms.poll(cx, due).is_pending() {
                return Poll::Pending;
            }
            if leaving {
                return Poll::Ready(None);
            }
            leaving = true;
            connection.graceful_shutdown();
            due = Some(Instant::now() + GOAWAY_TIMEOUT);
        }
    });
    let ended = ended.await;
    if let Some(error) = &ended {
        if let Some(limit) = resets.ended_by() {
            conn.pod.budget.reached(limit);
        }
        tracing::debug!(workload = conn.pod.name, client = %conn.flow.client, %error, "HTTP/2 connection ended");
        if error.is_library() && error.reason() != Some(Reason::NO_ERROR) {
            // Also of those that do not look at their client now, as they still connect.
            conn.cut_off.set(Flags::DPE);
            if streams.is_empty() {
                Record::unreadable(&conn, 0, Flags::DPE, "http2.protocol_error");
            }
        }
    }
    // Those under way see how it has ended, and tell so.
    poll_fn(|cx| {
        while let Poll::Ready(Some(())) = streams.poll_next_unpin(cx) {}
        conn.finish(cx);
        Poll::Ready(())
    })
    .await;
}
