//! Bodies on their way: counted, never collected.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use super::http1::Fed;
use super::record::{Record, grpc_status};
use crate::errors::Flags;
use crate::proxy::cluster::Target;

/// A request body on its way to an HTTP/2 server.
pub(super) enum RequestBody {
    /// There is none.
    Empty,
    /// Of a client that speaks HTTP/2, and the number of its bytes.
    Http2(Incoming, Rc<Cell<u64>>),
    /// Of a client that speaks HTTP/1.
    Http1(Fed),
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Http2(inner, count) => {
                let frame = ready!(Pin::new(inner).poll_frame(cx));
                if let Some(Ok(frame)) = &frame
                    && let Some(data) = frame.data_ref()
                {
                    count.set(count.get() + data.len() as u64);
                }
                Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Upstream)))
            }
            Self::Http1(fed) => fed.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Http2(inner, _) => inner.is_end_stream(),
            Self::Http1(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Http2(inner, _) => inner.size_hint(),
            Self::Http1(fed) => fed.size_hint(),
        }
    }
}

/// A response body on its way to an HTTP/2 client. When it ends, the request is reported.
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
    pub(super) _target: Target,
    pub(super) deadline: Option<Pin<Box<Sleep>>>,
}

impl FromUpstream {
    pub(super) fn timer(deadline: Option<Instant>) -> Option<Pin<Box<Sleep>>> {
        deadline.map(|deadline| Box::pin(sleep_until(deadline)))
    }
}

/// Why a body was cut off.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error("the client has left")]
    Client,
    #[error("{0}")]
    Upstream(#[from] hyper::Error),
    #[error("the route's timeout has passed")]
    Timeout,
}

impl ResponseBody {
    /// Written by the agent.
    pub(super) fn fixed(bytes: Bytes, record: Record) -> Self {
        Self { inner: Inner::Fixed(bytes), record: Some(record) }
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
                        (None, Some(trailers)) => record.grpc(grpc_status(trailers)),
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
        self.finish(if over { Flags::NONE } else { Flags::DC });
    }
}
