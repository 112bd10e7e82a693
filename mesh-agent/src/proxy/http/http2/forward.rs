//! A request of any client to a server that speaks HTTP/2.
//!
//! In: the request and its target. Out: the response's head, body and trailers handed to the client, in its own form.
//! Neither side may send more before the other has taken what there was. What `h2` does not pass on: nothing; 1xx and trailers go both ways.
//! Never: buffers a body, sends a request again of which the server may have seen something, unless that is safe.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ::http::header::{CONNECTION, HeaderName, UPGRADE};
use ::http::{Method, Request, Response, StatusCode};
use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::ext::Protocol;
use h2::{Reason, RecvStream, SendStream};

use super::super::exchange::{After, Broken, Client, Ended, Failed, MAX_INTERIM, MAX_STALE, Part, Wanted};
use super::super::heads::{self, Map, grpc_status};
use super::super::http1::is_idempotent;
use super::super::reply::Reply;
use super::super::route::Way;
use super::super::web::Web;
use crate::proxy::cluster::Target;
use crate::upstream::stream::{TunnelStream, poll_room};

const WEBSOCKET_KEY: HeaderName = HeaderName::from_static("sec-websocket-key");

/// What goes to the server.
struct Sending {
    send: SendStream<Bytes>,
    pending: Bytes,
    over: bool,
    /// The server takes nothing more; it may have answered all the same.
    refuses: bool,
    /// The client speaks gRPC-Web.
    web: Option<Web>,
    /// Bytes that the client may send more of once what came of them is out.
    owed: usize,
}

/// Sends the request to the target and passes the answer on.
pub(in super::super) async fn forward<C: Client>(
    wanted: &mut Wanted<'_, C>,
    target: &Target,
    way: &Way<'_>,
) -> Result<Result<After, Failed>, Ended> {
    let conn = wanted.conn;
    let mut stale = 0;
    loop {
        let mut upstream = match wanted.while_waiting(Box::pin(conn.upstreams.get(conn, target))).await? {
            Ok(upstream) => upstream,
            Err(error) => return Ok(Err(Failed::Unconnected(error))),
        };
        if wanted.upgrade.is_some() && !wanted.while_waiting(Box::pin(upstream.switches())).await? {
            // It switches as HTTP/1 does, if at all.
            return C::over_http1(wanted, target, way).await;
        }
        wanted.record.target(target, Some(&upstream.seen));
        wanted.say_continue();
        let switches = wanted.switches();
        let bare = wanted.client.is_asked() && !switches;
        let request = request(wanted).ok_or_else(Reply::bad_request)?;
        let (error, sent) = match upstream.send(request, bare) {
            Ok((answer, send)) => {
                let mut sending = Sending::new(send, bare || switches, wanted.web.clone());
                match head(wanted, &mut sending, answer).await? {
                    Ok(response) if switches && response.status().is_success() => {
                        return switch(wanted, sending.send, response, way).await.map(Ok);
                    }
                    Ok(response) => return respond(wanted, sending, response, way).await.map(Ok),
                    Err(error) => (error, true),
                }
            }
            Err(error) => (error, false),
        };
        wanted.record.failure = Some(error.to_string());
        if wanted.client.is_whole() && is_refused(&error) {
            return Ok(Err(Failed::Refused));
        }
        // A server may close a connection that was kept alive at any time; that is no failure of this request.
        let unseen = wanted.client.is_whole() && (error.is_go_away() && error.is_remote() || !sent);
        let safe = bare && is_idempotent(wanted.method) && upstream.reused && !error.is_reset() && !error.is_library();
        if stale < MAX_STALE && (unseen || safe) {
            stale += 1;
            upstream.retire();
            continue;
        }
        return Err(wanted.broken(broken(error)));
    }
}

/// Whether the server says that it has not acted on the stream (RFC 9113, 8.7).
fn is_refused(error: &h2::Error) -> bool {
    error.is_reset() && error.is_remote() && error.reason() == Some(Reason::REFUSED_STREAM)
}

/// What a failure of the server's stream is.
fn broken(error: h2::Error) -> Broken {
    match error.reason() {
        Some(reason) if error.is_reset() && error.is_remote() => Broken::Reset(reason),
        Some(_) if error.is_library() => Broken::Response(error.to_string().into()),
        _ => Broken::Server(Some(io::Error::other(error))),
    }
}

/// `None`: it does not fit into HTTP/2.
fn request<C: Client>(wanted: &mut Wanted<'_, C>) -> Option<Request<()>> {
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(wanted.method.as_bytes()).ok()?;
    *request.uri_mut() = wanted.uri()?;
    let mut headers = wanted.client.to_http2()?;
    if let Some(protocol) = &wanted.upgrade {
        *request.method_mut() = Method::CONNECT;
        request.extensions_mut().insert(Protocol::from(protocol.as_str()));
        for name in [CONNECTION, UPGRADE, WEBSOCKET_KEY] {
            headers.remove(name);
        }
    }
    *request.headers_mut() = headers;
    Some(request)
}

/// Both ends have switched.
async fn switch<C: Client>(
    wanted: &mut Wanted<'_, C>,
    send: SendStream<Bytes>,
    response: Response<RecvStream>,
    way: &Way<'_>,
) -> Result<After, Ended> {
    let (mut head, body) = response.into_parts();
    let status = wanted.switched_status();
    let lines = &mut Map(&mut head.headers);
    heads::finish(wanted.conn, &mut wanted.record, wanted.near.as_mut(), lines, status, way);
    if let Err(broken) = wanted.client.switched(head.headers, wanted.upgrade.as_deref()) {
        return Err(wanted.cut_off(broken));
    }
    wanted.tunnel(TunnelStream::new(send, body, None)).await
}

/// Waits for the response's head; gives the failure if there is none.
async fn head<C: Client>(
    wanted: &mut Wanted<'_, C>,
    sending: &mut Sending,
    mut answer: ResponseFuture,
) -> Result<Result<Response<RecvStream>, h2::Error>, Ended> {
    let client = &mut *wanted.client;
    let mut interim = 0;
    let response = poll_fn(|cx| {
        sending.poll(cx, client)?;
        loop {
            // What is said before the answer.
            if let Poll::Ready(Err(broken)) = client.poll_flush(cx) {
                return Poll::Ready(Err(broken));
            }
            match answer.poll_informational(cx) {
                Poll::Ready(Some(Ok(response))) => {
                    interim += 1;
                    if interim > MAX_INTERIM {
                        return Poll::Ready(Err(Broken::Response("too many interim responses".into())));
                    }
                    // The client has got its `100 Continue` already.
                    if response.status() != StatusCode::CONTINUE {
                        let (head, ()) = response.into_parts();
                        client.interim(head.status, head.headers);
                    }
                }
                Poll::Ready(Some(Err(_)) | None) => return Pin::new(&mut answer).poll(cx).map(Ok),
                Poll::Pending => return Poll::Pending,
            }
        }
    });
    let response: Result<Result<Response<RecvStream>, h2::Error>, Broken> = response.await;
    response.map_err(|broken| wanted.broken(broken))
}

impl Sending {
    fn new(send: SendStream<Bytes>, over: bool, web: Option<Web>) -> Self {
        Self { send, pending: Bytes::new(), over, refuses: false, web, owed: 0 }
    }

    /// Sends what there is of the request, and sees whether the client is still there.
    fn poll<C: Client>(&mut self, cx: &mut Context<'_>, client: &mut C) -> Result<(), Broken> {
        client.check(cx)?;
        while !self.over && !self.refuses {
            if !self.pending.is_empty() {
                match poll_room(&mut self.send, cx, self.pending.len()) {
                    Poll::Ready(Ok(room)) => {
                        let piece = self.pending.split_to(room);
                        // What ends as text ends with a look at the rest of it.
                        self.over = self.pending.is_empty() && client.is_asked() && self.web.is_none();
                        self.refuses = self.send.send_data(piece, self.over).is_err();
                        let gone = if self.pending.is_empty() { self.owed } else { room.min(self.owed) };
                        self.owed -= gone;
                        client.took(gone);
                    }
                    // Why, the answer tells.
                    Poll::Ready(Err(_)) => self.refuses = true,
                    Poll::Pending => return Ok(()),
                }
                continue;
            }
            let sent = match client.poll_body(cx)? {
                Poll::Ready(Part::Data(data)) => {
                    self.owed += data.len();
                    self.pending = match &mut self.web {
                        Some(web) => web.request(data).map_err(Broken::Request)?,
                        None => data,
                    };
                    continue;
                }
                Poll::Ready(Part::Trailers(trailers)) => self.send.send_trailers(trailers),
                Poll::Ready(Part::End) => {
                    self.web.as_ref().map_or(Ok(()), Web::end).map_err(Broken::Request)?;
                    self.send.send_data(Bytes::new(), true)
                }
                Poll::Pending => return Ok(()),
            };
            self.over = true;
            self.refuses = sent.is_err();
        }
        client.watch(cx)
    }
}

/// Passes the answer on.
async fn respond<C: Client>(
    wanted: &mut Wanted<'_, C>,
    mut sending: Sending,
    response: Response<RecvStream>,
    way: &Way<'_>,
) -> Result<After, Ended> {
    let (mut head, mut body) = response.into_parts();
    let (status, lines) = (head.status.as_u16(), &mut Map(&mut head.headers));
    heads::finish(wanted.conn, &mut wanted.record, wanted.near.as_mut(), lines, status, way);
    let mut over = body.is_end_stream();
    let web = sending.web.clone();
    if let Some(web) = &web {
        web.answer(&mut Map(&mut head.headers));
    }
    if let Err(broken) = wanted.client.respond(head.status, head.headers, over) {
        return Err(wanted.cut_off(broken));
    }
    let Wanted { client, record, near, .. } = &mut *wanted;
    let client = &mut **client;
    let mut owed = 0;
    let done = poll_fn(|cx| {
        sending.poll(cx, client)?;
        loop {
            let mut waits = false;
            while !over && !waits && client.has_room() {
                match body.poll_data(cx) {
                    Poll::Ready(Some(Ok(data))) => {
                        owed += data.len();
                        over = body.is_end_stream();
                        let data = if let Some(web) = &web { web.response(data) } else { data };
                        client.put(data, over);
                    }
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(broken(error))),
                    Poll::Ready(None) => match body.poll_trailers(cx) {
                        Poll::Ready(Ok(mut trailers)) => {
                            let status = trailers.as_mut().and_then(|trailers| grpc_status(&Map(trailers)));
                            record.grpc(status);
                            near.iter_mut().for_each(|near| near.record.grpc(status));
                            match (&web, trailers) {
                                (Some(web), Some(trailers)) => client.put(web.trailers(&trailers), true),
                                (_, trailers) => client.end(trailers),
                            }
                            over = true;
                        }
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(broken(error))),
                        Poll::Pending => waits = true,
                    },
                    Poll::Pending => waits = true,
                }
            }
            ready!(client.poll_flush(cx))?;
            // Fails only where the stream has ended meanwhile.
            let _ = body.flow_control().release_capacity(std::mem::take(&mut owed));
            match (over, waits) {
                (true, _) => return Poll::Ready(Ok(())),
                (false, true) => return Poll::Pending,
                (false, false) => {}
            }
        }
    });
    let done: Result<(), Broken> = done.await;
    match done {
        Ok(()) => Ok(wanted.client.after()),
        Err(broken) => Err(wanted.cut_off(broken)),
    }
}
