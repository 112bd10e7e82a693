//! A request of an HTTP/1 client to a server that speaks HTTP/2: the seam between `mesh-http` and hyper.
//!
//! In: a request, its target. Out: the same as over HTTP/1. One piece of data at a time waits between both.
//! Never: holds more of a body than that.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, SERVER};
use http::{Method, Request, Response, StatusCode};
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use mesh_http::{Fields, Framing, Known, Version};

use super::super::body::{BodyError, RequestBody};
use super::super::record::grpc_status;
use super::super::reply::Reply;
use super::super::request::{address, strip_hop_by_hop};
use super::super::route::Way;
use super::super::upstreams::SendError;
use super::After;
use super::exchange::{Ended, Wanted, finish_fields};
use super::relay::{Broken, Client, put_chunk};
use crate::net::copy::Duplex;
use crate::proxy::cluster::Target;
use crate::upstream::UpstreamError;

/// One piece of a request's body on its way into hyper.
#[derive(Default)]
struct Slot {
    data: Option<Bytes>,
    /// Nothing comes after it.
    over: bool,
    /// The rest will not come.
    broken: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// A request's body as hyper reads it.
pub(in super::super) struct Fed {
    slot: Rc<RefCell<Slot>>,
    length: Option<u64>,
}

impl Fed {
    /// The next piece.
    pub(in super::super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut slot = self.slot.borrow_mut();
        if let Some(data) = slot.data.take() {
            slot.writer.take().into_iter().for_each(Waker::wake);
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if slot.broken {
            return Poll::Ready(Some(Err(BodyError::Client)));
        }
        if slot.over {
            return Poll::Ready(None);
        }
        slot.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    /// The whole length, if the client said it.
    pub(in super::super) fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// The other side of [`Fed`]. Dropped before the end, it breaks the request off.
struct Feeder(Rc<RefCell<Slot>>);

impl Feeder {
    /// Moves what there is of the request's body, or sees whether the client is still there.
    fn feed(&self, cx: &mut Context<'_>, client: &mut Client<'_>) -> Result<(), Broken> {
        let mut slot = self.0.borrow_mut();
        while !slot.over {
            if slot.data.is_some() {
                slot.writer = Some(cx.waker().clone());
                return Ok(());
            }
            match client.poll_data(cx)? {
                Poll::Ready(Some(data)) => slot.data = Some(data),
                Poll::Ready(None) => slot.over = true,
                Poll::Pending => return Ok(()),
            }
            slot.reader.take().into_iter().for_each(Waker::wake);
        }
        client.watch(cx)
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        let mut slot = self.0.borrow_mut();
        slot.broken = !slot.over;
        slot.reader.take().into_iter().for_each(Waker::wake);
    }
}

/// A server's answer, before its body.
pub(super) struct Answered {
    response: Response<Incoming>,
    feeder: Feeder,
}

/// Sends the request; gives the answer's head, or why there is no connection.
pub(super) async fn send(wanted: &mut Wanted<'_>, target: &Target) -> Result<Result<Answered, UpstreamError>, Ended> {
    let conn = wanted.conn;
    let mut upstream = match wanted.while_waiting(Box::pin(conn.upstreams.get(conn, target))).await? {
        Ok(upstream) => upstream,
        Err(error) => return Ok(Err(error)),
    };
    wanted.record.target(target, Some(&upstream.seen));
    let (mut request, feeder) = request(wanted).ok_or_else(Reply::bad_request)?;
    wanted.say_continue();
    loop {
        let client = &mut wanted.client;
        let failed = {
            let mut sending = pin!(upstream.send(request));
            let sent = poll_fn(|cx| {
                if !client.link.is_flushed() && matches!(client.link.poll_flush(cx), Poll::Ready(Err(_))) {
                    return Poll::Ready(Err(Broken::Client));
                }
                feeder.feed(cx, client)?;
                client.expire(cx)?;
                sending.as_mut().poll(cx).map(Ok)
            });
            match sent.await {
                Ok(Ok(response)) => return Ok(Ok(Answered { response, feeder })),
                Ok(Err(failed)) => failed,
                Err(broken) => return Err(wanted.broken(broken)),
            }
        };
        let SendError { error, unsent } = failed;
        wanted.record.failure = Some(error.to_string());
        // A server may close a connection that was kept alive at any time; that is no failure of this request.
        request = match unsent {
            Some(unsent) if upstream.reused => unsent,
            _ if error.is_parse() => return Err(Reply::upstream_garbage().into()),
            _ => return Err(Reply::connection_lost().into()),
        };
        upstream = match wanted.while_waiting(Box::pin(conn.upstreams.get(conn, target))).await? {
            Ok(upstream) => upstream,
            Err(error) => return Ok(Err(error)),
        };
    }
}

/// The request as hyper takes it. `None`: it does not fit into HTTP/2.
fn request(wanted: &Wanted<'_>) -> Option<(Request<RequestBody>, Feeder)> {
    let (head, buf) = (&wanted.work.request, &wanted.head[..]);
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = Method::from_bytes(head.method(buf).as_bytes()).ok()?;
    for (name, value, known) in head.fields.iter(buf) {
        if !matches!(known, Known::Host | Known::TransferEncoding) {
            parts.headers.append(HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(value).ok()?);
        }
    }
    address(&mut parts, &wanted.authority, &wanted.path)?;
    let slot = Rc::new(RefCell::new(Slot { over: wanted.client.body.is_done(), ..Slot::default() }));
    let length = match head.framing {
        Framing::Length(length) => Some(length),
        _ => None,
    };
    let body = match wanted.client.body.is_done() {
        true => RequestBody::Empty,
        false => RequestBody::Http1(Fed { slot: slot.clone(), length }),
    };
    Some((Request::from_parts(parts, body), Feeder(slot)))
}

/// Passes the answer on.
pub(super) async fn respond(
    wanted: &mut Wanted<'_>,
    Answered { response, feeder }: Answered,
    way: &Way<'_>,
) -> Result<After, Ended> {
    let (mut head, mut body) = response.into_parts();
    strip_hop_by_hop(&mut head.headers);
    let old = wanted.work.request.version == Version::Http10;
    let asked = wanted.work.request.method(wanted.head);
    let bodiless = asked == "HEAD" || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let chunked = !bodiless && !old && !head.headers.contains_key(CONTENT_LENGTH);
    let known_end = bodiless || chunked || head.headers.contains_key(CONTENT_LENGTH);
    let stays = known_end && wanted.stays();
    if wanted.conn.server.is_some() {
        head.headers.remove(SERVER);
    }
    let mut fields = Fields::default();
    for (name, value) in &head.headers {
        fields.append(name.as_str(), value.as_bytes());
    }
    finish_fields(wanted.conn, &mut wanted.record, &mut fields, b"", head.status.as_u16(), way);
    if chunked {
        fields.append("transfer-encoding", b"chunked");
    }
    match (stays, old) {
        (false, _) => fields.append("connection", b"close"),
        (true, true) => fields.append("connection", b"keep-alive"),
        (true, false) => {}
    }
    let out = wanted.client.link.out();
    let reason = head.status.canonical_reason().unwrap_or_default();
    out.extend_from_slice(format!("HTTP/1.1 {} {reason}\r\n", head.status.as_str()).as_bytes());
    fields.write(b"", out);
    out.extend_from_slice(b"\r\n");
    let client = &mut wanted.client;
    let mut trailers = None;
    let mut over = bodiless;
    let done = poll_fn(|cx| {
        feeder.feed(cx, client)?;
        client.expire(cx)?;
        loop {
            while !over && client.link.has_room() {
                match Pin::new(&mut body).poll_frame(cx) {
                    Poll::Pending => break,
                    Poll::Ready(frame) => over = pass(client, frame.transpose(), chunked, &mut trailers)?,
                }
            }
            match client.link.poll_flush(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::Client)),
                Poll::Ready(Ok(())) if over => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) => {}
            }
            // Everything is written; the body has said that there is nothing, or is asked again.
            match Pin::new(&mut body).poll_frame(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(frame) => over = pass(client, frame.transpose(), chunked, &mut trailers)?,
            }
        }
    });
    let done: Result<(), Broken> = done.await;
    if let Some(trailers) = &trailers {
        wanted.record.grpc(grpc_status(trailers));
    }
    if let Err(broken) = done {
        if !known_end {
            wanted.client.link.reset();
        }
        return Err(Ended::Cut(wanted.cut(broken)));
    }
    let asked = wanted.client.body.is_done();
    Ok(match (stays && asked, asked) {
        (true, _) => After::Next,
        (false, true) => After::Close,
        (false, false) => After::Linger,
    })
}

/// Passes one frame on; whether it was the end.
fn pass(
    client: &mut Client<'_>,
    frame: Result<Option<Frame<Bytes>>, hyper::Error>,
    chunked: bool,
    trailers: &mut Option<HeaderMap>,
) -> Result<bool, Broken> {
    let frame = frame.map_err(|error| Broken::Server(Some(std::io::Error::other(error))))?;
    let Some(frame) = frame else {
        if chunked {
            end(client, trailers.as_ref());
        }
        return Ok(true);
    };
    match frame.into_data() {
        Ok(data) if data.is_empty() => {}
        Ok(data) => {
            client.sent += data.len() as u64;
            if chunked {
                put_chunk(client.link, &data);
            } else {
                client.link.put(data);
            }
        }
        Err(frame) => *trailers = frame.into_trailers().ok(),
    }
    Ok(false)
}

/// The last chunk, and the trailers.
fn end(client: &mut Client<'_>, trailers: Option<&HeaderMap>) {
    let out = client.link.out();
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers.into_iter().flatten() {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
    out.extend_from_slice(b"\r\n");
}
