//! A request of a client that speaks another version to a server that speaks HTTP/1.
//!
//! In: the request and its target. Out: the response's head and body handed to the client, in its own form.
//! What is read is handed on before more is read, so a slow reader on either side holds the other. Never: buffers a body.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use ::http::StatusCode;
use ::http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;
use mesh_http::{Body, Framing, Known, Limits, Outcome, ResponseHead};

use super::super::exchange::{After, Broken, Client, Ended, Failed, MAX_INTERIM, MAX_STALE, Part, Wanted};
use super::super::heads;
use super::super::reply::Reply;
use super::super::route::Way;
use super::super::websocket;
use super::client::{shared, trailers};
use super::link::Link;
use super::pool::Upstream;
use super::{is_idempotent, relay};
use crate::net::copy::Duplex;
use crate::proxy::cluster::Target;

const WEBSOCKET_ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");
const WEBSOCKET_KEY: HeaderName = HeaderName::from_static("sec-websocket-key");

/// What goes to the server.
struct Sending<'a> {
    link: &'a mut Link,
    how: How,
}

/// How far the request is on its way.
#[derive(Debug, Clone, Copy)]
struct How {
    chunked: bool,
    /// All of it has been put.
    over: bool,
    /// The server takes nothing more; it may have answered all the same.
    refuses: bool,
    /// Bytes that the client may send more of once these are out.
    owed: usize,
}

/// Sends the request to the target and passes the answer on.
pub(in super::super) async fn forward<C: Client>(
    wanted: &mut Wanted<'_, C>,
    target: &Target,
    way: &Way<'_>,
) -> Result<Result<After, Failed>, Ended> {
    let method = wanted.method;
    // What comes behind a switch is no body.
    let bare = wanted.client.is_asked() || wanted.switches();
    let safe = bare && is_idempotent(method) && !wanted.switches();
    let mut head = Vec::with_capacity(512);
    let mut headers = wanted.client.to_http2().ok_or_else(Reply::bad_request)?;
    if wanted.upgrade.as_deref() == Some("websocket")
        && !headers.contains_key(WEBSOCKET_KEY)
        && let Ok(key) = HeaderValue::from_str(&websocket::key(rand::random()))
    {
        headers.insert(WEBSOCKET_KEY, key);
    }
    let chunked = write(wanted, &headers, bare, &mut head);
    drop(headers);
    let mut stale = 0;
    loop {
        let mut upstream = match wanted.connection(target).await? {
            Ok(upstream) => upstream,
            Err(error) => return Ok(Err(Failed::Unconnected(error))),
        };
        wanted.record.target(target, Some(&upstream.seen));
        upstream.link.refill(std::mem::take(&mut head));
        wanted.say_continue();
        let may_be_stale = upstream.reused && stale < MAX_STALE;
        let mut response = ResponseHead::default();
        let link = &mut upstream.link;
        let how = How { chunked, over: bare, refuses: false, owed: 0 };
        let mut sending = Sending { link, how };
        let heads = wanted.conn.pod.share().heads();
        let seen = poll_fn(|cx| sending.poll_head(cx, wanted.client, &mut response, method, &heads)).await;
        let how = sending.how;
        let Err(broken) = seen else {
            return respond(wanted, upstream, response, how, way).await.map(Ok);
        };
        let unheard = upstream.link.seen.is_empty() && wanted.client.is_whole();
        if matches!(broken, Broken::Server(_)) && unheard && may_be_stale && (safe || upstream.link.is_unsent()) {
            stale += 1;
            head = upstream.link.take_back();
            continue;
        }
        return Err(wanted.broken(broken));
    }
}

/// Writes the head; whether the body goes in chunks.
fn write<C: Client>(wanted: &Wanted<'_, C>, headers: &HeaderMap, bare: bool, out: &mut Vec<u8>) -> bool {
    let mut put = |parts: &[&[u8]]| parts.iter().for_each(|part| out.extend_from_slice(part));
    let path = if wanted.method == "CONNECT" { &wanted.authority } else { &wanted.path };
    put(&[
        wanted.method.as_bytes(),
        b" ",
        path.as_bytes(),
        b" HTTP/1.1\r\nhost: ",
        wanted.authority.as_bytes(),
        b"\r\n",
    ]);
    let mut length = None;
    let mut cookies = Vec::new();
    for (name, value) in headers {
        match name.as_str() {
            // Several of the same number are one (RFC 9112, 6.3).
            "content-length" => length = Some(value),
            // Split for HTTP/2; HTTP/1 has one line (RFC 9113, 8.2.3).
            "cookie" => {
                if !cookies.is_empty() {
                    cookies.extend_from_slice(b"; ");
                }
                cookies.extend_from_slice(value.as_bytes());
            }
            name => put(&[name.as_bytes(), b": ", value.as_bytes(), b"\r\n"]),
        }
    }
    if !cookies.is_empty() {
        put(&[b"cookie: ", &cookies, b"\r\n"]);
    }
    let chunked = !bare && length.is_none();
    match length {
        Some(length) => put(&[b"content-length: ", length.as_bytes(), b"\r\n"]),
        None if chunked => put(&[b"transfer-encoding: chunked\r\n"]),
        None if matches!(wanted.method, "POST" | "PUT" | "PATCH") => put(&[b"content-length: 0\r\n"]),
        None => {}
    }
    put(&[b"\r\n"]);
    chunked
}

impl Sending<'_> {
    /// Sends what there is of the request, and sees whether the client is still there.
    fn poll<C: Client>(&mut self, cx: &mut Context<'_>, client: &mut C) -> Result<(), Broken> {
        client.check(cx)?;
        while !self.how.refuses {
            let mut waits = false;
            while !self.how.over && !waits && self.link.has_room() {
                match client.poll_body(cx)? {
                    Poll::Ready(Part::Data(data)) => self.put(data),
                    Poll::Ready(Part::Trailers(trailers)) => self.end(Some(&trailers)),
                    Poll::Ready(Part::End) => self.end(None),
                    Poll::Pending => waits = true,
                }
            }
            match self.link.poll_flush(cx) {
                Poll::Ready(Err(_)) => self.how.refuses = true,
                Poll::Ready(Ok(())) => {
                    client.took(std::mem::take(&mut self.how.owed));
                    match (self.how.over, waits) {
                        (true, _) => break,
                        (false, true) => return Ok(()),
                        (false, false) => {}
                    }
                }
                Poll::Pending => return Ok(()),
            }
        }
        client.watch(cx)
    }

    fn put(&mut self, data: Bytes) {
        self.how.owed += data.len();
        if self.how.chunked {
            relay::put_chunk(self.link, &data);
        } else {
            self.link.put(data);
        }
    }

    fn end(&mut self, trailers: Option<&HeaderMap>) {
        self.how.over = true;
        if self.how.chunked {
            relay::put_end(self.link, trailers);
        }
    }

    /// Waits for a response's head.
    fn poll_head<C: Client>(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut C,
        head: &mut ResponseHead,
        method: &str,
        heads: &Limits,
    ) -> Poll<Result<(), Broken>> {
        if matches!(client.poll_flush(cx), Poll::Ready(Err(_))) {
            return Poll::Ready(Err(Broken::Client));
        }
        self.poll(cx, client)?;
        loop {
            if !self.link.seen.is_empty() {
                match head.parse(&self.link.seen, method, heads) {
                    Outcome::Head => return Poll::Ready(Ok(())),
                    Outcome::Refused(refusal) => return Poll::Ready(Err(Broken::Response(refusal.name().into()))),
                    Outcome::More => {}
                }
            }
            if self.link.finished {
                return Poll::Ready(Err(Broken::Server(None)));
            }
            ready!(self.link.poll_fill(cx)).map_err(|error| Broken::Server(Some(error)))?;
        }
    }

    /// Hands the response's body on, to its end.
    fn poll_response<C: Client>(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut C,
        body: &mut Body,
        grpc_status: &mut Option<u8>,
        over: &mut bool,
    ) -> Poll<Result<(), Broken>> {
        self.poll(cx, client)?;
        loop {
            // What is there holds nothing more that is whole.
            let mut starved = false;
            while !*over && !starved && client.has_room() {
                let step = body.step(&self.link.seen).map_err(|refusal| Broken::Response(refusal.name().into()))?;
                let taken = self.link.seen.split_to(step.taken);
                *grpc_status = step.grpc_status.or(*grpc_status);
                *over = step.done;
                if step.data > 0 {
                    client.put(taken, step.done);
                } else if step.done {
                    client.end(trailers(&taken));
                } else {
                    starved = step.taken == 0;
                }
            }
            if !*over && starved && self.link.finished && body.ends_with_connection() {
                client.end(None);
                *over = true;
            }
            ready!(client.poll_flush(cx))?;
            match (*over, starved, self.link.finished) {
                (true, ..) => return Poll::Ready(Ok(())),
                (false, false, _) => continue,
                (false, true, true) => return Poll::Ready(Err(Broken::Server(None))),
                (false, true, false) => {}
            }
            ready!(self.link.poll_fill(cx)).map_err(|error| Broken::Server(Some(error)))?;
        }
    }
}

/// Passes the response on whose head has come.
async fn respond<C: Client>(
    wanted: &mut Wanted<'_, C>,
    mut upstream: Box<Upstream>,
    mut response: ResponseHead,
    how: How,
    way: &Way<'_>,
) -> Result<After, Ended> {
    let method = wanted.method;
    let mut interim = 0;
    let mut sending = Sending { link: &mut upstream.link, how };
    while response.is_interim() {
        interim += 1;
        if interim > MAX_INTERIM {
            return Err(Reply::upstream_garbage().into());
        }
        let (status, headers) = take_head(sending.link, &mut response).ok_or_else(Reply::upstream_garbage)?;
        if status != StatusCode::CONTINUE {
            wanted.client.interim(status, headers);
        }
        let heads = wanted.conn.pod.share().heads();
        let seen = poll_fn(|cx| sending.poll_head(cx, wanted.client, &mut response, method, &heads)).await;
        if let Err(broken) = seen {
            return Err(wanted.broken(broken));
        }
    }
    let framing = response.framing;
    let switched = framing == Framing::Tunnel;
    // One who has asked for a switch would take another success for one (RFC 8441, 5).
    let refused = wanted.upgrade.is_some() && !switched && matches!(response.status, 200..=299);
    if refused || switched && !wanted.switches() {
        return Err(Reply::upstream_garbage().into());
    }
    let (status, mut headers) = take_head(sending.link, &mut response).ok_or_else(Reply::upstream_garbage)?;
    if switched {
        headers.remove(WEBSOCKET_ACCEPT);
        let status = wanted.switched_status();
        let lines = &mut heads::Map(&mut headers);
        heads::finish(wanted.conn, &mut wanted.record, wanted.near.as_mut(), lines, status, way);
        if let Err(broken) = wanted.client.switched(headers, wanted.upgrade.as_deref()) {
            return Err(wanted.cut_off(broken));
        }
        return wanted.tunnel(&mut upstream.link).await;
    }
    let lines = &mut heads::Map(&mut headers);
    heads::finish(wanted.conn, &mut wanted.record, wanted.near.as_mut(), lines, status.as_u16(), way);
    let mut over = matches!(framing, Framing::None | Framing::Length(0));
    if let Err(broken) = wanted.client.respond(status, headers, over) {
        return Err(wanted.cut_off(broken));
    }
    let mut body = Body::new(framing);
    let mut grpc_status = None;
    let client = &mut *wanted.client;
    let done = poll_fn(|cx| sending.poll_response(cx, client, &mut body, &mut grpc_status, &mut over)).await;
    let How { over, refuses, .. } = sending.how;
    wanted.grpc(grpc_status);
    if let Err(broken) = done {
        return Err(wanted.cut_off(broken));
    }
    let link = &mut upstream.link;
    let quiet = link.is_flushed() && link.seen.is_empty() && !link.finished && !refuses;
    drop(link.take_back());
    if response.keep_alive && framing != Framing::UntilClose && over && quiet {
        wanted.conn.pool.borrow_mut().put(upstream);
    } else if over {
        let _ = poll_fn(|cx| Poll::Ready(upstream.link.poll_finish(cx))).await;
    }
    Ok(wanted.client.after())
}

/// Takes a response's head off the link, without what is for this hop only. `None`: it does not fit into HTTP/2.
fn take_head(link: &mut Link, response: &mut ResponseHead) -> Option<(StatusCode, HeaderMap)> {
    let head = link.seen.split_to(response.len);
    response.strip_hop_by_hop(&head, false);
    let mut headers = HeaderMap::with_capacity(16);
    for (name, value, known) in response.fields.iter(&head) {
        if known != Known::Te {
            headers.append(HeaderName::from_bytes(name).ok()?, shared(&head, value)?);
        }
    }
    if response.framing == Framing::Chunked {
        headers.remove(CONTENT_LENGTH);
    }
    Some((StatusCode::from_u16(response.status).ok()?, headers))
}
