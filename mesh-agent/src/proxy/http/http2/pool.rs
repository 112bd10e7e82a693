//! The HTTP/2 connections of one client to servers.
//!
//! In: a target. Out: a connection that takes a request now: one that is open, or a new one. Bounded; the oldest goes, and ends with its
//! last request. They end with their downstream connection. Never: serves two clients with one connection.

use std::cell::{Cell, OnceCell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use ::http::Request;
use bytes::Bytes;
use h2::client::{Connection, ResponseFuture, SendRequest};
use h2::{Ping, PingPong, SendStream};
use mesh_core::resource::cluster::Carries;
use socket2::SockRef;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::super::Conn;
use super::super::record::Seen;
use super::GOAWAY_TIMEOUT;
use crate::net::gather::{Gather, Outlet, gather};
use crate::proxy::cluster::{End, Fit, Target};
use crate::upstream::stream::Stream;
use crate::upstream::tunnel::{DATA_FRAME_BUDGET, MAX_FRAME};
use crate::upstream::{Connected, UpstreamError};

/// Time for a server's settings.
const SETTINGS_TIMEOUT: Duration = Duration::from_secs(5);
/// Servers that one client is connected to.
const MAX_SERVERS: usize = 8;

/// One upstream connection.
#[derive(Clone)]
pub(in super::super) struct Upstream {
    end: End,
    pub(super) seen: Rc<Seen>,
    sender: SendRequest<Bytes>,
    /// To ask whether the server's settings have come; gone once they have.
    ping: Rc<RefCell<Option<PingPong>>>,
    /// It takes no new requests: it has ended, or is about to.
    retired: Rc<Cell<bool>>,
    /// It was open before this request: the server may be about to close it.
    pub(super) reused: bool,
}

/// The connections.
pub(in super::super) struct Upstreams {
    open: RefCell<Vec<Upstream>>,
    /// Opened before the first request was seen.
    first: RefCell<Option<Box<Connected>>>,
    /// Requests that come at once share one upstream connection.
    dialling: tokio::sync::Mutex<()>,
    /// Ends the connections, once there is one.
    over: OnceCell<CancellationToken>,
}

impl Upstreams {
    /// `first`: a connection that is open already.
    pub(in super::super) fn new(first: Option<Box<Connected>>) -> Self {
        Self {
            open: RefCell::default(),
            first: RefCell::new(first),
            dialling: tokio::sync::Mutex::default(),
            over: OnceCell::new(),
        }
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

    /// Whether a connection leads to the target.
    pub(in super::super) fn leads_to(&self, target: &Target) -> bool {
        self.open.borrow().iter().any(|one| target.fit(&one.end) == Fit::Same)
    }

    /// The connection that was opened before the first request, if its server still waits for one.
    pub(in super::super) fn take_first(&self, http2: bool) -> Option<Connected> {
        self.first.borrow_mut().take().map(|first| *first).filter(|first| still_waits(first, http2))
    }

    fn take(&self, target: &Target) -> Option<Upstream> {
        let mut open = self.open.borrow_mut();
        // Streams that are open go on.
        open.retain(|upstream| !upstream.retired.get() && target.fit(&upstream.end) != Fit::Outdated);
        let serves = |one: &&Upstream| target.fit(&one.end) == Fit::Same;
        open.iter().find(serves).map(|upstream| Upstream { reused: true, ..upstream.clone() })
    }

    async fn dial(&self, conn: &Conn, target: &Target) -> Result<Upstream, UpstreamError> {
        let first = self.take_first(true);
        let reused = first.is_some();
        let connected = match first {
            Some(connected) => connected,
            None => conn.pod.connect(&conn.flow, target, Carries::Http2).await?,
        };
        let Connected { stream, local, identity, peer, .. } = connected;
        let failed = |error: h2::Error| UpstreamError::Tunnel { to: target.address, why: error.to_string().into() };
        let (window, limits) = (conn.pod.share().window(), conn.pod.budget.limits());
        let (stream, outlet) = gather(stream);
        let (sender, mut connection) = h2::client::Builder::new()
            .initial_window_size(window.stream)
            .initial_connection_window_size(window.connection)
            .max_frame_size(MAX_FRAME)
            .max_header_list_size(limits.head_bytes)
            .max_send_buffer_size(limits.stream_buffer_bytes)
            .data_frame_budget(DATA_FRAME_BUDGET)
            .enable_push(false)
            .handshake(stream)
            .await
            .map_err(failed)?;
        let retired = Rc::new(Cell::new(false));
        let ping = Rc::new(RefCell::new(connection.ping_pong()));
        let ends = [self.over.get_or_init(CancellationToken::new).clone(), conn.pod.ended.clone()];
        let driving = drive(connection, outlet, ends, retired.clone());
        tokio::task::spawn_local(async move {
            driving.await;
            drop(window);
        });
        let seen = Rc::new(Seen { local, identity, peer });
        let upstream = Upstream { end: target.end(), seen, sender, ping, retired, reused };
        let mut open = self.open.borrow_mut();
        if open.len() >= MAX_SERVERS {
            open.remove(0);
        }
        open.push(upstream.clone());
        Ok(upstream)
    }
}

impl Drop for Upstreams {
    fn drop(&mut self) {
        if let Some(over) = self.over.get() {
            over.cancel();
        }
    }
}

/// Moves a connection's frames until it ends.
async fn drive(
    mut connection: Connection<Gather<Stream>, Bytes>,
    outlet: Outlet<Stream>,
    [over, ended]: [CancellationToken; 2],
    retired: Rc<Cell<bool>>,
) {
    let mut driven = poll_fn(|cx| outlet.after(Pin::new(&mut connection).poll(cx), cx));
    let outcome = tokio::select! {
        outcome = &mut driven => outcome,
        // It ends by itself once nobody has a stream of it, if the server lets it.
        () = over.cancelled() => timeout(GOAWAY_TIMEOUT, driven).await.unwrap_or(Ok(())),
        () = ended.cancelled() => Ok(()),
    };
    retired.set(true);
    if let Err(error) = outcome {
        tracing::debug!(%error, "upstream HTTP/2 connection ended");
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
    /// Sends a request's head. `bare`: it has no body.
    pub(super) fn send(
        &mut self,
        request: Request<()>,
        bare: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        self.sender.send_request(request, bare)
    }

    /// Whether the server lets streams become tunnels of other protocols than TCP (SETTINGS_ENABLE_CONNECT_PROTOCOL; RFC 8441, 3). Its
    /// settings are its first words: they are there when it has answered.
    pub(super) async fn switches(&self) -> bool {
        let ping = self.ping.borrow_mut().take();
        if let Some(mut ping) = ping
            && !self.sender.is_extended_connect_protocol_enabled()
        {
            // One that does not answer does not switch.
            let _ = timeout(SETTINGS_TIMEOUT, ping.ping(Ping::opaque())).await;
        }
        self.sender.is_extended_connect_protocol_enabled()
    }

    /// Gives it no more requests.
    pub(super) fn retire(&self) {
        self.retired.set(true);
    }
}
