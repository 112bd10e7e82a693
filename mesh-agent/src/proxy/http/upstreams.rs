//! The HTTP/2 connections of one client to servers.
//!
//! In: a target. Out: a connection that can take a request now: one used before, or a new one. Bounded; the oldest goes.
//! They end with their downstream connection.

use std::cell::RefCell;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use ::http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use socket2::SockRef;

use super::body::RequestBody;
use super::record::Seen;
use super::{CONNECTION_WINDOW, Conn, OnWorker, REQUEST_WINDOW};
use crate::proxy::cluster::Target;
use crate::upstream::{Connected, UpstreamError};

/// Servers that one client is connected to.
const MAX_SERVERS: usize = 8;

/// One upstream connection.
pub(super) struct Upstream {
    cluster: Arc<str>,
    address: SocketAddr,
    pub(super) seen: Rc<Seen>,
    sender: http2::SendRequest<RequestBody>,
    /// It was open before this request: the server may be about to close it.
    pub(super) reused: bool,
}

/// How sending failed.
pub(super) struct SendError {
    pub(super) error: hyper::Error,
    /// The request, if not a byte of it was sent.
    pub(super) unsent: Option<Request<RequestBody>>,
}

pub(super) struct Upstreams {
    open: RefCell<Vec<Upstream>>,
    /// Opened before the first request was seen.
    first: RefCell<Option<Connected>>,
    /// Requests that come at once on one HTTP/2 connection share one upstream connection.
    dialling: tokio::sync::Mutex<()>,
}

impl Upstreams {
    pub(super) fn new(first: Option<Connected>) -> Self {
        Self { open: RefCell::default(), first: RefCell::new(first), dialling: tokio::sync::Mutex::default() }
    }

    /// A connection for one request.
    pub(super) async fn get(&self, conn: &Conn, target: &Target) -> Result<Upstream, UpstreamError> {
        if let Some(upstream) = self.take(target) {
            return Ok(upstream);
        }
        let _turn = self.dialling.lock().await;
        match self.take(target) {
            Some(upstream) => Ok(upstream),
            None => self.dial(conn, target).await,
        }
    }

    /// The connection that was opened before the first request, if its server still waits for one.
    pub(super) fn take_first(&self, http2: bool) -> Option<Connected> {
        self.first.borrow_mut().take().filter(|first| still_waits(first, http2))
    }

    fn take(&self, target: &Target) -> Option<Upstream> {
        let mut open = self.open.borrow_mut();
        open.retain(|upstream| !upstream.sender.is_closed());
        let serves = |one: &&Upstream| one.address == target.address && one.cluster == target.cluster.name;
        let upstream = open.iter().find(serves)?;
        upstream.sender.is_ready().then(|| upstream.share())
    }

    async fn dial(&self, conn: &Conn, target: &Target) -> Result<Upstream, UpstreamError> {
        let first = self.take_first(true);
        let reused = first.is_some();
        let connected = match first {
            Some(connected) => connected,
            None => conn.pod.connect(&conn.flow, target).await?,
        };
        let Connected { stream, local, identity, peer, .. } = connected;
        let failed = |error: hyper::Error| UpstreamError::Tunnel { to: target.address, why: error.to_string().into() };
        let (sender, connection) = http2::Builder::new(OnWorker)
            .initial_stream_window_size(REQUEST_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(failed)?;
        let ended = conn.pod.ended.clone();
        tokio::task::spawn_local(async move {
            tokio::select! {
                _ = connection => {}
                () = ended.cancelled() => {}
            }
        });
        let seen = Rc::new(Seen { local, identity, peer });
        let (cluster, address) = (target.cluster.name.clone(), target.address);
        let upstream = Upstream { cluster, address, seen, sender, reused };
        let mut open = self.open.borrow_mut();
        if open.len() >= MAX_SERVERS {
            open.remove(0);
        }
        open.push(upstream.share());
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
    fn share(&self) -> Upstream {
        Upstream {
            cluster: self.cluster.clone(),
            address: self.address,
            seen: self.seen.clone(),
            sender: self.sender.clone(),
            reused: true,
        }
    }

    pub(super) async fn send(&mut self, request: Request<RequestBody>) -> Result<Response<Incoming>, SendError> {
        self.sender.try_send_request(request).await.map_err(|mut failure| {
            let unsent = failure.take_message();
            SendError { error: failure.into_error(), unsent }
        })
    }
}
