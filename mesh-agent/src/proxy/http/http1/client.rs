//! A client that speaks HTTP/1, with the request that it is being answered.
//!
//! In: its link, behind the request's head. Out: the request's body, and the response written to the link.
//! Never: keeps more than a bounded number of bytes that a client sends ahead of its turn.

use std::task::{Context, Poll, ready};

use ::http::StatusCode;
use ::http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;
use h2::Reason;
use mesh_http::{Body, Fields, Known, Step, Version, each_trailer};

use super::super::Conn;
use super::super::exchange::{After, Broken, Client, Ended, Failed, Part, Wanted};
use super::super::heads::{Lines, View};
use super::super::route::Way;
use super::super::timer::{Bounds, Timer};
use super::super::websocket;
use super::link::Link;
use super::work::Work;
use super::{exchange, relay};
use crate::net::copy::{Duplex, Traffic};
use crate::proxy::cluster::Target;

const HOST: HeaderName = HeaderName::from_static("host");

/// The client's side of an exchange.
pub(in super::super) struct Http1<'a> {
    pub(super) conn: &'a Conn,
    pub(super) link: &'a mut Link,
    pub(super) timer: &'a mut Timer,
    pub(super) work: &'a mut Work,
    /// The request's head as it was received.
    pub(super) head: &'a Bytes,
    pub(super) body: Body,
    /// Bytes of the request's data.
    pub(super) received: u64,
    /// Bytes of the response's data.
    pub(super) sent: u64,
    pub(super) bounds: Bounds,
    /// How the response goes on.
    form: Written,
}

/// How a response without a form of HTTP/1 is written.
#[derive(Debug, Clone, Copy, Default)]
struct Written {
    chunked: bool,
    /// The client sees where it ends.
    bounded: bool,
}

impl<'a> Http1<'a> {
    pub(super) fn new(
        conn: &'a Conn,
        link: &'a mut Link,
        timer: &'a mut Timer,
        work: &'a mut Work,
        head: &'a Bytes,
    ) -> Self {
        let (body, form) = (Body::new(work.request.framing), Written::default());
        Self { conn, link, timer, work, head, body, received: 0, sent: 0, bounds: Bounds::default(), form }
    }

    /// The next part of the request's body as it came, or `None` at its end.
    pub(super) fn poll_pass(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<(Bytes, Step)>, Broken>> {
        loop {
            if self.body.is_done() {
                return Poll::Ready(Ok(None));
            }
            let step = self.body.pass(&self.link.seen).map_err(Broken::Request)?;
            if step.taken > 0 {
                self.received += step.data as u64;
                return Poll::Ready(Ok(Some((self.link.seen.split_to(step.taken), step))));
            }
            if step.done {
                return Poll::Ready(Ok(None));
            }
            if self.link.finished {
                return Poll::Ready(Err(Broken::Client));
            }
            ready!(self.link.poll_fill(cx)).map_err(|_| Broken::Client)?;
        }
    }

    /// Whether the client's connection can stay.
    pub(super) fn stays(&self) -> bool {
        // The next request of a client is to come by another connection: to the agent that has taken over.
        self.work.request.keep_alive && !self.conn.pod.shutdown.is_draining()
    }

    /// A client that has said that this is its last request may finish, and still wants the answer.
    fn may_finish(&self) -> bool {
        !self.work.request.keep_alive
    }
}

impl Client for Http1<'_> {
    type Lines<'l>
        = View<'l>
    where
        Self: 'l;

    type Tunnel<'l>
        = &'l mut Link
    where
        Self: 'l;

    fn lines(&mut self) -> View<'_> {
        View { fields: &mut self.work.request.fields, buf: self.head }
    }

    fn bound(&mut self, bounds: Bounds) {
        self.bounds = bounds;
    }

    fn name_host(&mut self, authority: &str, changed: bool) {
        if changed || !self.work.request.names_host(self.head) {
            self.lines().set(&HOST, authority.as_bytes());
        }
    }

    fn to_http2(&mut self) -> Option<HeaderMap> {
        let mut headers = HeaderMap::with_capacity(16);
        let fields = &self.work.request.fields;
        let hop = |known: Known| known.is_hop_by_hop() && known != Known::Te;
        for (name, value, _) in fields.iter(self.head).filter(|(.., known)| *known != Known::Host && !hop(*known)) {
            headers.append(HeaderName::from_bytes(name).ok()?, shared(self.head, value)?);
        }
        Some(headers)
    }

    fn is_asked(&self) -> bool {
        self.body.is_done()
    }

    fn is_whole(&self) -> bool {
        self.received == 0 && (self.body.is_done() || self.body == Body::new(self.work.request.framing))
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Part, Broken>> {
        loop {
            if self.body.is_done() {
                return Poll::Ready(Ok(Part::End));
            }
            let step = self.body.step(&self.link.seen).map_err(Broken::Request)?;
            let taken = self.link.seen.split_to(step.taken);
            if step.data > 0 {
                self.received += step.data as u64;
                return Poll::Ready(Ok(Part::Data(taken)));
            }
            if step.done && !taken.is_empty() {
                let trailers = trailers(&taken);
                return Poll::Ready(Ok(trailers.map_or(Part::End, Part::Trailers)));
            }
            if step.taken > 0 || step.done {
                continue;
            }
            if self.link.finished {
                return Poll::Ready(Err(Broken::Client));
            }
            ready!(self.link.poll_fill(cx)).map_err(|_| Broken::Client)?;
        }
    }

    fn took(&mut self, _bytes: usize) {}

    /// What the client sends ahead stays in the link, within bounds.
    fn watch(&mut self, cx: &mut Context<'_>) -> Result<(), Broken> {
        // The next requests, or what follows an upgrade.
        let ahead = self.conn.pod.share().ahead();
        while !self.link.finished && self.link.seen.len() < ahead {
            match self.link.poll_fill(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Err(Broken::Client),
                Poll::Pending => break,
            }
        }
        if self.link.finished && !self.may_finish() { Err(Broken::Client) } else { Ok(()) }
    }

    fn check(&mut self, cx: &mut Context<'_>) -> Result<(), Broken> {
        let timer = &mut *self.timer;
        self.bounds.expire(self.received + self.sent, |due| timer.poll(cx, due))
    }

    fn say_continue(&mut self) {
        // A client that has not waited needs nothing.
        if self.link.seen.is_empty() {
            self.link.out().extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
    }

    fn interim(&mut self, status: StatusCode, headers: HeaderMap) {
        if self.work.request.version == Version::Http11 {
            self.write_head(status, &fields(&headers));
        }
    }

    fn respond(&mut self, status: StatusCode, headers: HeaderMap, _over: bool) -> Result<(), Broken> {
        let old = self.work.request.version == Version::Http10;
        let head = self.work.request.method(self.head) == "HEAD";
        let bodiless = head || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let measured = bodiless || headers.contains_key(CONTENT_LENGTH);
        let chunked = !measured && !old;
        self.form = Written { chunked, bounded: measured || chunked };
        let mut fields = fields(&headers);
        if chunked {
            fields.append("transfer-encoding", b"chunked");
        }
        match (self.form.bounded && self.stays(), old) {
            (false, _) => fields.append("connection", b"close"),
            (true, true) => fields.append("connection", b"keep-alive"),
            (true, false) => {}
        }
        self.write_head(status, &fields);
        Ok(())
    }

    fn switched(&mut self, headers: HeaderMap, protocol: Option<&str>) -> Result<(), Broken> {
        let mut fields = fields(&headers);
        let status = match protocol {
            Some(protocol) => {
                fields.append("connection", b"upgrade");
                fields.append("upgrade", protocol.as_bytes());
                let key = self.work.request.fields.all(self.head, "sec-websocket-key").next();
                if let (Some(key), false) = (key, headers.contains_key("sec-websocket-accept")) {
                    fields.append("sec-websocket-accept", websocket::accept(key).as_bytes());
                }
                StatusCode::SWITCHING_PROTOCOLS
            }
            None => StatusCode::OK,
        };
        self.write_head(status, &fields);
        Ok(())
    }

    fn tunnel(&mut self) -> Option<&mut Link> {
        Some(self.link)
    }

    fn carried(&mut self, traffic: &Traffic) {
        self.received += traffic.forward.get();
        self.sent += traffic.back.get();
    }

    fn has_room(&self) -> bool {
        self.link.has_room()
    }

    fn put(&mut self, data: Bytes, last: bool) {
        self.sent += data.len() as u64;
        if self.form.chunked {
            if !data.is_empty() {
                relay::put_chunk(self.link, &data);
            }
            if last {
                self.end(None);
            }
        } else if !data.is_empty() {
            self.link.put(data);
        }
    }

    fn end(&mut self, trailers: Option<HeaderMap>) {
        if self.form.chunked {
            relay::put_end(self.link, trailers.as_ref());
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        self.link.poll_flush(cx).map_err(|_| Broken::Client)
    }

    fn abort(&mut self, _reason: Reason) {
        if !self.form.bounded {
            // Otherwise what came so far would look like all of it.
            self.link.reset();
        }
    }

    fn after(&self) -> After {
        match (self.form.bounded && self.stays(), self.is_asked()) {
            (true, true) => After::Next,
            (false, true) => After::Close,
            (_, false) => After::Linger,
        }
    }

    fn traffic(&self) -> (u64, u64) {
        (self.received, self.sent)
    }

    async fn over_http1(
        wanted: &mut Wanted<'_, Self>,
        target: &Target,
        way: &Way<'_>,
    ) -> Result<Result<After, Failed>, Ended> {
        exchange::forward(wanted, target, way).await
    }
}

impl Http1<'_> {
    fn write_head(&mut self, status: StatusCode, fields: &Fields) {
        let reason = status.canonical_reason().unwrap_or_default();
        let out = self.link.out();
        for part in [b"HTTP/1.1 ", status.as_str().as_bytes(), b" ", reason.as_bytes(), b"\r\n"] {
            out.extend_from_slice(part);
        }
        fields.write(b"", out);
        out.extend_from_slice(b"\r\n");
    }
}

/// Lines of HTTP/2 as lines of HTTP/1.
fn fields(headers: &HeaderMap) -> Fields {
    let mut fields = Fields::default();
    for (name, value) in headers {
        fields.append(name.as_str(), value.as_bytes());
    }
    fields
}

/// A value as one of HTTP/2; what lies in the received head is not copied.
pub(super) fn shared(head: &Bytes, value: &[u8]) -> Option<HeaderValue> {
    let at = (value.as_ptr() as usize).wrapping_sub(head.as_ptr() as usize);
    match at.checked_add(value.len()) {
        Some(end) if end <= head.len() => HeaderValue::from_maybe_shared(head.slice(at..end)).ok(),
        _ => HeaderValue::from_bytes(value).ok(),
    }
}

/// Trailers of HTTP/1 as trailers of HTTP/2; `None` if there are none.
pub(super) fn trailers(section: &[u8]) -> Option<HeaderMap> {
    let mut trailers = HeaderMap::new();
    each_trailer(section, &mut |name, value| {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            trailers.append(name, value);
        }
    });
    (!trailers.is_empty()).then_some(trailers)
}
