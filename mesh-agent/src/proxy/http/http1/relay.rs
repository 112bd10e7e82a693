//! Moves one request and its response between two HTTP/1 connections, both at once.
//!
//! In: the links, with the request's head ready to be written. Out: the response's head when it is there, then its body, or what broke.
//! What is read is written before more is read, so a slow reader on either side holds the other.
//! Never: passes a byte on that is not part of the message, or has not been checked.

use std::task::{Context, Poll};

use ::http::HeaderMap;
use mesh_http::{Body, Framing, Outcome, ResponseHead, Step};

use super::super::exchange::{Broken, Client};
use super::client::Http1;
use super::link::Link;

/// How the response's body goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// As it comes.
    Same,
    /// Data only: the client knows no chunks.
    Plain,
    /// In chunks: the server ends the body by closing, the client's connection stays.
    Chunks,
}

/// An exchange under way.
pub(super) struct Relay<'a, 'b> {
    client: &'a mut Http1<'b>,
    up: &'a mut Link,
    /// The server takes nothing more; it may have answered all the same.
    pub(super) refuses: bool,
    /// All of the request that has been taken from the client is still in what goes out first.
    pub(super) whole: bool,
    /// Bytes in `up.seen` that were no head yet.
    looked: usize,
    pub(super) grpc_status: Option<u8>,
}

impl<'a, 'b> Relay<'a, 'b> {
    pub(super) fn new(client: &'a mut Http1<'b>, up: &'a mut Link) -> Self {
        Self { client, up, refuses: false, whole: true, looked: 0, grpc_status: None }
    }

    /// Sends what there is of the request, or sees whether the client is still there.
    fn poll_request(&mut self, cx: &mut Context<'_>) -> Result<(), Broken> {
        while !self.refuses {
            // What came with the head goes with the head.
            if self.up.has_room() && (self.up.is_flushed() || !self.client.link.seen.is_empty()) {
                match self.client.poll_pass(cx)? {
                    Poll::Ready(Some((bytes, _))) => {
                        self.whole &= self.up.put(bytes);
                    }
                    Poll::Ready(None) if self.up.is_flushed() => break,
                    Poll::Pending if self.up.is_flushed() => return Ok(()),
                    Poll::Ready(None) | Poll::Pending => {}
                }
            }
            match self.up.poll_flush(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => self.refuses = true,
                Poll::Pending if self.client.body.is_done() => break,
                Poll::Pending => return Ok(()),
            }
        }
        self.client.watch(cx)
    }

    /// Waits for a response's head.
    pub(super) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        head: &mut ResponseHead,
        method: &str,
    ) -> Poll<Result<(), Broken>> {
        // The answer first: as a rule it is what one was woken for, and then nobody has to be asked anything else.
        let came = self.poll_answer(cx, head, method)?;
        if came.is_pending() {
            if !self.client.link.is_flushed() && matches!(self.client.link.poll_flush(cx), Poll::Ready(Err(_))) {
                return Poll::Ready(Err(Broken::Client));
            }
            self.poll_request(cx)?;
            self.client.check(cx)?;
        }
        came.map(Ok)
    }

    /// Reads what there is of a response's head.
    fn poll_answer(&mut self, cx: &mut Context<'_>, head: &mut ResponseHead, method: &str) -> Result<Poll<()>, Broken> {
        loop {
            if self.up.seen.len() > self.looked {
                match head.parse(&self.up.seen, method, &self.client.conn.pod.share().heads()) {
                    Outcome::Head => {
                        self.looked = 0;
                        return Ok(Poll::Ready(()));
                    }
                    Outcome::Refused(refusal) => {
                        self.client.conn.tell_limit(refusal);
                        return Err(Broken::Response(refusal.name().into()));
                    }
                    Outcome::More => self.looked = self.up.seen.len(),
                }
            }
            if self.up.finished {
                return Err(Broken::Server(None));
            }
            match self.up.poll_fill(cx) {
                Poll::Ready(filled) => filled.map_err(|error| Broken::Server(Some(error)))?,
                Poll::Pending => return Ok(Poll::Pending),
            }
        }
    }

    /// Sends the response's body on, to its end.
    pub(super) fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
        body: &mut Body,
        form: Form,
        over: &mut bool,
    ) -> Poll<Result<(), Broken>> {
        let done = self.poll_back(cx, body, form, over)?;
        if done.is_pending() {
            self.poll_request(cx)?;
            self.client.check(cx)?;
        }
        done.map(Ok)
    }

    /// Sends on what there is of the response's body.
    fn poll_back(
        &mut self,
        cx: &mut Context<'_>,
        body: &mut Body,
        form: Form,
        over: &mut bool,
    ) -> Result<Poll<()>, Broken> {
        // Then somebody else has a turn: the request, the clock, other workloads.
        for _ in 0..self.client.conn.pod.share().pieces() {
            while !*over && self.client.link.has_room() {
                let step = self.take(body, form)?;
                *over = step.done;
                if step.taken == 0 {
                    break;
                }
            }
            if !*over && self.up.finished && self.client.link.has_room() {
                if !body.ends_with_connection() {
                    return Err(Broken::Server(None));
                }
                if form == Form::Chunks {
                    self.client.link.out().extend_from_slice(b"0\r\n\r\n");
                }
                *over = true;
            }
            match self.client.link.poll_flush(cx) {
                Poll::Ready(flushed) => flushed.map_err(|_| Broken::Client)?,
                Poll::Pending => return Ok(Poll::Pending),
            }
            if *over {
                return Ok(Poll::Ready(()));
            }
            if self.up.seen.is_empty() || !self.up.finished {
                match self.up.poll_fill(cx) {
                    Poll::Ready(filled) => filled.map_err(|error| Broken::Server(Some(error)))?,
                    Poll::Pending => return Ok(Poll::Pending),
                }
            }
        }
        cx.waker().wake_by_ref();
        Ok(Poll::Pending)
    }

    /// Takes what there is of the response's body.
    fn take(&mut self, body: &mut Body, form: Form) -> Result<Step, Broken> {
        let step = if form == Form::Plain { body.step(&self.up.seen) } else { body.pass(&self.up.seen) };
        let step = step.map_err(|refusal| Broken::Response(refusal.name().into()))?;
        self.client.sent += step.data as u64;
        self.grpc_status = step.grpc_status.or(self.grpc_status);
        let taken = self.up.seen.split_to(step.taken);
        match form {
            Form::Chunks if step.taken > 0 => put_chunk(self.client.link, &taken),
            Form::Same | Form::Plain if step.data > 0 || form == Form::Same && step.taken > 0 => {
                self.client.link.put(taken);
            }
            _ => {}
        }
        Ok(step)
    }
}

/// One chunk (RFC 9112, 7.1).
pub(super) fn put_chunk(link: &mut Link, data: &[u8]) {
    let out = link.out();
    out.reserve(data.len() + 20);
    out.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}

/// The last chunk, and trailers.
pub(super) fn put_end(link: &mut Link, trailers: Option<&HeaderMap>) {
    let out = link.out();
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers.into_iter().flatten() {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// How a response of this framing goes on to the client, and whether its connection can stay.
pub(super) fn form(framing: Framing, old_client: bool) -> (Form, bool) {
    match framing {
        Framing::UntilClose if old_client => (Form::Same, false),
        Framing::UntilClose => (Form::Chunks, true),
        Framing::Chunked if old_client => (Form::Plain, false),
        Framing::None | Framing::Length(_) | Framing::Chunked => (Form::Same, true),
        Framing::Tunnel => (Form::Same, false),
    }
}
