//! Bodies on their way: counted, never collected.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use super::Conn;
use super::record::Record;
use super::upstreams::Upstream;
use crate::errors::Flags;
use crate::proxy::cluster::Target;

/// A request body on its way upstream.
pub(super) struct RequestBody {
    /// `None`: there is none.
    inner: Option<Incoming>,
    count: Rc<Cell<u64>>,
}

impl RequestBody {
    pub(super) fn new(inner: Incoming, count: Rc<Cell<u64>>) -> Self {
        Self { inner: Some(inner), count }
    }

    pub(super) fn empty() -> Self {
        Self { inner: None, count: Rc::default() }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(inner).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.count.set(self.count.get() + data.len() as u64);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Incoming::size_hint)
    }
}

/// A response body on its way downstream. When it ends, the request is reported and the upstream connection is free again.
pub(super) struct ResponseBody {
    inner: Inner,
    record: Option<Record>,
}

enum Inner {
    Fixed(Bytes),
    Upstream(Box<FromUpstream>),
}

/// What lives as long as the response does.
pub(super) struct FromUpstream {
    pub(super) body: Incoming,
    /// Keeps the endpoint counted as busy.
    pub(super) target: Target,
    /// Goes back to the connection when the body is complete.
    pub(super) upstream: Option<(Rc<Conn>, Upstream)>,
    pub(super) deadline: Option<Pin<Box<Sleep>>>,
}

impl FromUpstream {
    pub(super) fn timer(deadline: Option<Instant>) -> Option<Pin<Box<Sleep>>> {
        deadline.map(|deadline| Box::pin(sleep_until(deadline)))
    }

    fn complete(&mut self) {
        if let Some((conn, upstream)) = self.upstream.take() {
            conn.upstreams.put(upstream);
        }
    }
}

/// Why a response was cut off.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error("upstream: {0}")]
    Upstream(#[from] hyper::Error),
    #[error("the route's timeout has passed")]
    Timeout,
}

impl ResponseBody {
    /// Written by the agent.
    pub(super) fn fixed(bytes: Bytes, record: Record) -> Self {
        Self { inner: Inner::Fixed(bytes), record: Some(record) }
    }

    /// No body, and nothing to report (yet).
    pub(super) fn none() -> Self {
        Self { inner: Inner::Fixed(Bytes::new()), record: None }
    }

    pub(super) fn upstream(from: FromUpstream, record: Record) -> Self {
        Self { inner: Inner::Upstream(Box::new(from)), record: Some(record) }
    }

    fn finish(&mut self, flags: Flags) {
        if let Some(mut record) = self.record.take() {
            record.finish(flags);
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let from = match &mut this.inner {
            Inner::Fixed(bytes) => {
                let bytes = std::mem::take(bytes);
                if bytes.is_empty() {
                    this.finish(Flags::NONE);
                    return Poll::Ready(None);
                }
                if let Some(record) = &mut this.record {
                    record.response_bytes += bytes.len() as u64;
                }
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            Inner::Upstream(from) => from,
        };
        if let Some(deadline) = &mut from.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            this.finish(Flags::UT);
            return Poll::Ready(Some(Err(BodyError::Timeout)));
        }
        match ready!(Pin::new(&mut from.body).poll_frame(cx)) {
            Some(Ok(frame)) => {
                if let Some(record) = &mut this.record {
                    match (frame.data_ref(), frame.trailers_ref()) {
                        (Some(data), _) => record.response_bytes += data.len() as u64,
                        (None, Some(trailers)) => record.trailers(trailers),
                        (None, None) => {}
                    }
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                this.finish(Flags::UC);
                Poll::Ready(Some(Err(error.into())))
            }
            None => {
                from.complete();
                this.finish(Flags::NONE);
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Fixed(bytes) => bytes.is_empty(),
            Inner::Upstream(from) => from.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Fixed(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Inner::Upstream(from) => from.body.size_hint(),
        }
    }
}

impl Drop for ResponseBody {
    /// hyper need not ask for the end of a body that it knows to be over; anything else was not wanted any more.
    fn drop(&mut self) {
        let over = self.is_end_stream();
        if over && let Inner::Upstream(from) = &mut self.inner {
            from.complete();
        }
        self.finish(if over { Flags::NONE } else { Flags::DC });
    }
}
