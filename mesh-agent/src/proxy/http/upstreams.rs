//! The upstream connections of one downstream connection.
//!
//! In: a target. Out: a connection that can take a request now: one used before, or a new one. Bounded; the oldest goes.
//! They end with their downstream connection.

use std::cell::{Cell, RefCell};
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ::http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::time::timeout;

use super::body::RequestBody;
use super::record::Seen;
use super::{CONNECTION_WINDOW, Conn, MAX_BUFFER, MAX_HEADERS, OnWorker, REQUEST_WINDOW};
use crate::proxy::cluster::Target;
use crate::upstream::{Connected, UpstreamError};

/// Upstream connections of one downstream connection that wait for the next request.
const MAX_IDLE: usize = 8;
/// HTTP/1 upstream connections in use at one time by one (HTTP/2) downstream connection.
const MAX_BUSY: usize = 256;
/// How long a connection gets to become ready again after a response has been read from it.
const READY_WAIT: Duration = Duration::from_millis(100);

/// One upstream connection.
pub(super) struct Upstream {
    cluster: Arc<str>,
    address: SocketAddr,
    pub(super) seen: Rc<Seen>,
    sender: Sender,
    /// It was open before this request: the server may be about to close it.
    pub(super) reused: bool,
    _busy: Option<Busy>,
}

enum Sender {
    Http1(http1::SendRequest<RequestBody>),
    Http2(http2::SendRequest<RequestBody>),
}

/// How sending failed.
pub(super) struct SendError {
    pub(super) error: hyper::Error,
    /// The request, if not a byte of it was sent.
    pub(super) unsent: Option<Request<RequestBody>>,
}

pub(super) struct Upstreams {
    idle: RefCell<Vec<Upstream>>,
    /// Opened before the first request was seen.
    first: RefCell<Option<Connected>>,
    busy: Rc<Cell<usize>>,
    /// Requests that come at once on one HTTP/2 connection share one upstream connection.
    dialling: tokio::sync::Mutex<()>,
}

impl Upstreams {
    pub(super) fn new(first: Option<Connected>) -> Self {
        Self {
            idle: RefCell::default(),
            first: RefCell::new(first),
            busy: Rc::default(),
            dialling: tokio::sync::Mutex::default(),
        }
    }

    /// A connection for one request.
    pub(super) async fn get(&self, conn: &Conn, target: &Target, http2: bool) -> Result<Upstream, UpstreamError> {
        if !http2 {
            return match self.take(target, false).await {
                Some(upstream) => Ok(upstream),
                None => self.dial(conn, target, false).await,
            };
        }
        if let Some(upstream) = self.take(target, true).await {
            return Ok(upstream);
        }
        let _turn = self.dialling.lock().await;
        match self.take(target, true).await {
            Some(upstream) => Ok(upstream),
            None => self.dial(conn, target, true).await,
        }
    }

    /// Gives back a connection whose response has been read.
    pub(super) fn put(&self, mut upstream: Upstream) {
        if upstream.is_closed() || matches!(upstream.sender, Sender::Http2(_)) {
            return;
        }
        upstream.reused = true;
        upstream._busy = None;
        self.keep(upstream);
    }

    fn keep(&self, upstream: Upstream) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() >= MAX_IDLE {
            idle.remove(0);
        }
        idle.push(upstream);
    }

    async fn take(&self, target: &Target, http2: bool) -> Option<Upstream> {
        loop {
            let mut upstream = {
                let mut idle = self.idle.borrow_mut();
                idle.retain(|upstream| !upstream.is_closed());
                let at = idle.iter().position(|upstream| upstream.serves(target, http2))?;
                match &idle[at].sender {
                    // One HTTP/2 connection serves everybody and stays where it is.
                    Sender::Http2(sender) => return Some(idle[at].share(sender.clone())),
                    Sender::Http1(_) => idle.remove(at),
                }
            };
            if upstream.ready().await {
                upstream._busy = Some(Busy::new(&self.busy));
                return Some(upstream);
            }
        }
    }

    async fn dial(&self, conn: &Conn, target: &Target, http2: bool) -> Result<Upstream, UpstreamError> {
        if !http2 && self.busy.get() >= MAX_BUSY {
            return Err(UpstreamError::Overflow { to: target.address, what: "requests of one connection" });
        }
        let busy = Busy::new(&self.busy);
        // The server may be tired of waiting on one that was opened before the request was seen.
        let first = self.first.borrow_mut().take().filter(|first| still_waits(first, http2));
        let waited = first.is_some();
        let connected = match first {
            Some(connected) => connected,
            None => conn.pod.connect(&conn.flow, target).await?,
        };
        let Connected { stream, local, identity, peer, .. } = connected;
        let io = TokioIo::new(stream);
        let failed = |error: hyper::Error| UpstreamError::Tunnel { to: target.address, why: error.to_string().into() };
        let ended = conn.pod.ended.clone();
        let sender = if http2 {
            let (sender, connection) = http2::Builder::new(OnWorker)
                .initial_stream_window_size(REQUEST_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .handshake(io)
                .await
                .map_err(failed)?;
            tokio::task::spawn_local(async move {
                tokio::select! {
                    _ = connection => {}
                    () = ended.cancelled() => {}
                }
            });
            Sender::Http2(sender)
        } else {
            let (sender, connection) = http1::Builder::new()
                .preserve_header_case(true)
                .max_headers(MAX_HEADERS)
                .max_buf_size(MAX_BUFFER)
                .handshake(io)
                .await
                .map_err(failed)?;
            tokio::task::spawn_local(async move {
                tokio::select! {
                    // Its failure is the failure of the request that it carries, which is told there.
                    _ = connection.with_upgrades() => {}
                    () = ended.cancelled() => {}
                }
            });
            Sender::Http1(sender)
        };
        let seen = Rc::new(Seen { local, identity, peer });
        let (cluster, address) = (target.cluster.name.clone(), target.address);
        let upstream = Upstream { cluster, address, seen, sender, reused: waited, _busy: Some(busy) };
        if let Sender::Http2(sender) = &upstream.sender {
            self.keep(upstream.share(sender.clone()));
        }
        Ok(upstream)
    }
}

/// Whether a server that was connected to before the request was seen still wants one: it has not closed, and an HTTP/1
/// server has not said anything unasked (408, as a rule). Asks the kernel itself, as the runtime may not have heard of it yet.
fn still_waits(connected: &Connected, http2: bool) -> bool {
    let Some(stream) = connected.stream.tcp() else { return true };
    match SockRef::from(stream).peek(&mut [MaybeUninit::uninit()]) {
        Ok(0) => false,
        // Settings, as a rule.
        Ok(_) => http2,
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    }
}

impl Upstream {
    fn serves(&self, target: &Target, http2: bool) -> bool {
        self.address == target.address
            && self.cluster == target.cluster.name
            && matches!(self.sender, Sender::Http2(_)) == http2
    }

    fn share(&self, sender: http2::SendRequest<RequestBody>) -> Upstream {
        Upstream {
            cluster: self.cluster.clone(),
            address: self.address,
            seen: self.seen.clone(),
            sender: Sender::Http2(sender),
            reused: true,
            _busy: None,
        }
    }

    fn is_closed(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender) => sender.is_closed(),
            Sender::Http2(sender) => sender.is_closed(),
        }
    }

    /// Whether it can take a request. A connection is ready a moment after the end of its last response.
    async fn ready(&mut self) -> bool {
        match &mut self.sender {
            Sender::Http1(sender) => {
                sender.is_ready() || matches!(timeout(READY_WAIT, sender.ready()).await, Ok(Ok(())))
            }
            Sender::Http2(sender) => sender.is_ready(),
        }
    }

    /// Whether requests go as HTTP/2.
    pub(super) fn is_http2(&self) -> bool {
        matches!(self.sender, Sender::Http2(_))
    }

    pub(super) async fn send(&mut self, request: Request<RequestBody>) -> Result<Response<Incoming>, SendError> {
        let outcome = match &mut self.sender {
            Sender::Http1(sender) => sender.try_send_request(request).await,
            Sender::Http2(sender) => sender.try_send_request(request).await,
        };
        outcome.map_err(|mut failure| {
            let unsent = failure.take_message();
            SendError { error: failure.into_error(), unsent }
        })
    }
}

/// A connection in use.
struct Busy(Rc<Cell<usize>>);

impl Busy {
    fn new(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(count.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
