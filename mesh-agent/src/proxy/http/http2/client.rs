//! A client that speaks HTTP/2, with one request of its.
//!
//! In: `h2`'s halves of a stream. Out: the request's body, and the response sent on the stream. The client may send more of a body once
//! the server has taken what there was; it is sent no more than it has room for.

use std::task::{Context, Poll, ready};

use ::http::header::HeaderMap;
use ::http::{Response, StatusCode};
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use std::rc::Rc;

use super::super::exchange::{After, Broken, Client, Ended, Failed, Part, Wanted};
use super::super::heads::Map;
use super::super::http1;
use super::super::route::Way;
use super::super::timer::{Alarm, Alarms, Bounds};
use super::watch::Resets;
use crate::net::copy::Traffic;
use crate::proxy::cluster::Target;
use crate::upstream::stream::{TunnelStream, poll_room};

/// The client's side of an exchange.
pub(super) struct Http2 {
    headers: HeaderMap,
    /// Until the stream is a tunnel.
    body: Option<RecvStream>,
    /// Part of the body has been taken.
    taken: bool,
    respond: SendResponse<Bytes>,
    /// Once the head has been sent, and is not all.
    send: Option<SendStream<Bytes>>,
    pending: Bytes,
    end: End,
    received: u64,
    sent: u64,
    bounds: Bounds,
    alarm: Alarm,
    resets: Rc<Resets>,
}

/// How the response ends.
enum End {
    /// Not yet.
    Open,
    /// Behind what is pending.
    Put(Option<HeaderMap>),
    Sent,
}

impl Http2 {
    pub(super) fn new(
        headers: HeaderMap,
        body: RecvStream,
        respond: SendResponse<Bytes>,
        alarms: &Rc<Alarms>,
        resets: Rc<Resets>,
    ) -> Self {
        Self {
            headers,
            body: Some(body),
            taken: false,
            respond,
            send: None,
            pending: Bytes::new(),
            end: End::Open,
            received: 0,
            sent: 0,
            bounds: Bounds::default(),
            alarm: Alarm::new(alarms),
            resets,
        }
    }

    /// Sees whether the client has reset the stream.
    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Result<(), Broken> {
        let reset = match &mut self.send {
            Some(send) => send.poll_reset(cx),
            None if matches!(self.end, End::Sent) => return Ok(()),
            None => self.respond.poll_reset(cx),
        };
        match reset {
            Poll::Pending => Ok(()),
            Poll::Ready(Ok(_)) => Err(self.why(cx)),
            Poll::Ready(Err(error)) => Err(broken(&error)),
        }
    }
}

impl Http2 {
    /// Why the stream was reset: by the client, or by `h2` for what the client has sent on it, which only its body tells.
    fn why(&mut self, cx: &mut Context<'_>) -> Broken {
        let Some(body) = &mut self.body else { return Broken::Cancelled };
        while let Poll::Ready(Some(data)) = body.poll_data(cx) {
            if let Err(error) = data {
                return broken(&error);
            }
        }
        Broken::Cancelled
    }
}

impl Client for Http2 {
    type Lines<'l>
        = Map<'l>
    where
        Self: 'l;

    type Tunnel<'l>
        = TunnelStream
    where
        Self: 'l;

    fn lines(&mut self) -> Map<'_> {
        Map(&mut self.headers)
    }

    fn bound(&mut self, bounds: Bounds) {
        self.bounds = bounds;
    }

    fn name_host(&mut self, _authority: &str, _changed: bool) {}

    fn to_http2(&mut self) -> Option<HeaderMap> {
        // Another attempt may need them too; the values are shared, not copied.
        Some(self.headers.clone())
    }

    fn is_asked(&self) -> bool {
        self.body.as_ref().is_none_or(RecvStream::is_end_stream)
    }

    fn is_whole(&self) -> bool {
        !self.taken
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Part, Broken>> {
        let Some(body) = &mut self.body else { return Poll::Ready(Ok(Part::End)) };
        while let Some(data) = ready!(body.poll_data(cx)) {
            let data = data.map_err(|error| broken(&error))?;
            self.taken = true;
            if !data.is_empty() {
                self.received += data.len() as u64;
                return Poll::Ready(Ok(Part::Data(data)));
            }
        }
        let trailers = ready!(body.poll_trailers(cx)).map_err(|error| broken(&error))?;
        if trailers.is_some() && self.resets.forbids(self.respond.stream_id().as_u32()) {
            self.abort(Reason::PROTOCOL_ERROR);
            return Poll::Ready(Err(Broken::Malformed));
        }
        self.taken |= trailers.is_some();
        Poll::Ready(Ok(trailers.map_or(Part::End, Part::Trailers)))
    }

    fn took(&mut self, bytes: usize) {
        if let Some(body) = &mut self.body {
            // Fails only where the stream has ended meanwhile.
            let _ = body.flow_control().release_capacity(bytes);
        }
    }

    fn watch(&mut self, cx: &mut Context<'_>) -> Result<(), Broken> {
        self.poll_reset(cx)
    }

    fn check(&mut self, cx: &mut Context<'_>) -> Result<(), Broken> {
        self.poll_reset(cx)?;
        let alarm = &mut self.alarm;
        self.bounds.expire(self.received + self.sent, |due| alarm.poll(cx, due))
    }

    fn say_continue(&mut self) {
        self.interim(StatusCode::CONTINUE, HeaderMap::new());
    }

    fn interim(&mut self, status: StatusCode, headers: HeaderMap) {
        let mut response = Response::new(());
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        // A stream that is over shows so elsewhere.
        let _ = self.respond.send_informational(response);
    }

    fn respond(&mut self, status: StatusCode, headers: HeaderMap, over: bool) -> Result<(), Broken> {
        let mut response = Response::new(());
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        let send = self.respond.send_response(response, over).map_err(|error| broken(&error))?;
        if over {
            self.end = End::Sent;
        } else {
            self.send = Some(send);
        }
        Ok(())
    }

    fn switched(&mut self, headers: HeaderMap, _protocol: Option<&str>) -> Result<(), Broken> {
        self.respond(StatusCode::OK, headers, false)
    }

    fn tunnel(&mut self) -> Option<TunnelStream> {
        Some(TunnelStream::new(self.send.take()?, self.body.take()?, None))
    }

    fn carried(&mut self, traffic: &Traffic) {
        self.received += traffic.forward.get();
        self.sent += traffic.back.get();
    }

    fn has_room(&self) -> bool {
        self.pending.is_empty() && matches!(self.end, End::Open)
    }

    fn put(&mut self, data: Bytes, last: bool) {
        self.sent += data.len() as u64;
        self.pending = data;
        if last {
            self.end = End::Put(None);
        }
    }

    fn end(&mut self, trailers: Option<HeaderMap>) {
        if !matches!(self.end, End::Sent) {
            self.end = End::Put(trailers);
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let Some(send) = &mut self.send else { return Poll::Ready(Ok(())) };
        while !self.pending.is_empty() {
            let room = ready!(poll_room(send, cx, self.pending.len())).map_err(|error| broken(&error))?;
            let piece = self.pending.split_to(room);
            let last = self.pending.is_empty() && matches!(self.end, End::Put(None));
            send.send_data(piece, last).map_err(|error| broken(&error))?;
            if last {
                self.end = End::Sent;
            }
        }
        if let End::Put(trailers) = &mut self.end {
            let sent = match trailers.take() {
                Some(trailers) => send.send_trailers(trailers),
                None => send.send_data(Bytes::new(), true),
            };
            self.end = End::Sent;
            sent.map_err(|error| broken(&error))?;
        }
        Poll::Ready(Ok(()))
    }

    fn abort(&mut self, reason: Reason) {
        match &mut self.send {
            Some(send) => send.send_reset(reason),
            None => self.respond.send_reset(reason),
        }
    }

    fn after(&self) -> After {
        After::Next
    }

    fn traffic(&self) -> (u64, u64) {
        (self.received, self.sent)
    }

    async fn over_http1(
        wanted: &mut Wanted<'_, Self>,
        target: &Target,
        way: &Way<'_>,
    ) -> Result<Result<After, Failed>, Ended> {
        Box::pin(http1::forward(wanted, target, way)).await
    }
}

/// What a failure of the client's stream is.
fn broken(error: &h2::Error) -> Broken {
    match error.reason() {
        Some(_) if error.is_reset() && error.is_remote() => Broken::Cancelled,
        Some(reason) if error.is_library() && reason != Reason::NO_ERROR => Broken::Malformed,
        _ => Broken::Client,
    }
}
