//! HBONE tunnels: HTTP/2 over mutual TLS, one CONNECT stream per connection of the application.
//!
//! In: a [`TunnelKey`], and how to dial where no tunnel is open. Out: an open [`TunnelStream`] and the answer's headers.
//! A tunnel belongs to one worker and one key, so two source pods, destinations or identities never share one.
//! Never: more than one dial at a time per key, more waiters or tunnels than the bounds below.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use h2::{Ping, PingPong};
use http::{HeaderMap, Method, Request, StatusCode, Uri, Version};
use mesh_core::identity::SpiffeId;
use mesh_core::resource::endpoint::Endpoint;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep, timeout};

use super::connect::BAGGAGE;
use super::errors::UpstreamError;
use super::stream::{StreamGuard, TunnelStream};
use crate::net::gather::{Gather, Outlet, gather};
use crate::net::share::Window;
use crate::settings::limits::{Limits, MIN_WINDOW};
use crate::telemetry::{LastSaid, Limit, LimitCounts, Peer};
use crate::tls::{Credential, port_name};
use crate::workload::Workload;

#[cfg(test)]
mod tests;

/// Port of the tunnel listener of every meshed pod (Istio's HBONE port).
pub const HBONE_PORT: u16 = 15008;
/// Largest frame, in bytes.
pub const MAX_FRAME: u32 = 1 << 20;
/// Largest header list of a CONNECT request or answer, in bytes.
pub const MAX_HEADER_LIST: u32 = 16 << 10;
/// Memory overhead of unread small frames that a tunnel bears before it ends, in bytes: enough for every stream of a
/// tunnel to have a few hundred tiny frames unread.
pub const DATA_FRAME_BUDGET: usize = 32 << 20;
/// Encrypted bytes that may wait for the socket: a piece of the largest read with its frame's head, so that neither goes by itself.
pub const TLS_BUFFER: usize = 128 << 10;

/// Streams on one tunnel before the next is opened, so that one TCP connection does not carry everything.
const STREAMS_PER_TUNNEL: usize = 256;
/// Connections that wait for the dial of one key.
const MAX_WAITERS: usize = 4096;
/// Keys on one worker.
const MAX_KEYS: usize = 65_536;
/// How often a tunnel is probed.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// How long a probe may take before the tunnel counts as dead.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// A tunnel without streams is closed after this long.
const IDLE: Duration = Duration::from_secs(90);

/// What may share a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TunnelKey {
    /// `Workload::id` of the source.
    pub workload: u32,
    /// The other agent's tunnel listener: the destination pod's address, port 15008.
    pub to: SocketAddr,
    /// Who we are.
    pub source: SpiffeId,
    /// Who must be at the other end.
    pub expected: Arc<[SpiffeId]>,
    /// The port, where it decides which of several workloads with one address is meant; `None`: one tunnel has all ports.
    pub port: Option<u16>,
}

impl TunnelKey {
    /// Of the tunnel from a workload to an endpoint, which must have one of the `expected` identities.
    pub fn new(workload: &Workload, endpoint: &Endpoint, expected: Arc<[SpiffeId]>) -> Self {
        Self {
            workload: workload.id,
            to: SocketAddr::new(endpoint.address.ip(), HBONE_PORT),
            source: workload.identity.clone(),
            expected,
            port: endpoint.host.then_some(endpoint.address.port()),
        }
    }

    /// What the handshake calls the server: its address, which is not sent but under which sessions are remembered, or the
    /// port that is wanted. It plays no part in verification: who the server must be stands in `expected`.
    pub fn server_name(&self) -> ServerName<'static> {
        self.port.and_then(port_name).unwrap_or_else(|| ServerName::IpAddress(self.to.ip().into()))
    }
}

/// A CONNECT request.
#[derive(Debug, Clone)]
pub struct ConnectHead {
    /// The destination as the application at the other end listens on it.
    pub authority: SocketAddr,
    /// `forwarded`, `baggage` and the like.
    pub headers: HeaderMap,
}

/// A transport on which a tunnel can be built: TLS is established and the peer verified.
pub struct Transport<T> {
    /// The encrypted stream.
    pub io: T,
    /// Own end of the connection.
    pub local: Option<SocketAddr>,
    /// Who the peer has proved to be.
    pub identity: SpiffeId,
    /// What its peer may send before it is taken; `None`: as HTTP/2 begins.
    pub window: Option<Window>,
}

/// An open stream.
#[derive(Debug)]
pub struct Opened {
    /// The bytes.
    pub stream: TunnelStream,
    /// What the other agent says of the destination. A name only, no proof.
    pub peer: Option<Arc<Peer>>,
    /// Own end of the tunnel.
    pub local: Option<SocketAddr>,
    /// Who the peer of the tunnel has proved to be.
    pub identity: SpiffeId,
}

/// The tunnels of one worker. Clones share them.
#[derive(Clone)]
pub struct Tunnels {
    slots: Rc<RefCell<HashMap<TunnelKey, Rc<Slot>>>>,
    /// Tunnels of one key.
    per_key: usize,
    /// Streams on one tunnel once there are no more tunnels to be had.
    streams: usize,
    /// Bytes that one stream may have queued.
    buffer: usize,
    counts: Arc<LimitCounts>,
}

/// Everything about one key.
#[derive(Default)]
struct Slot {
    open: RefCell<Vec<Rc<Tunnel>>>,
    waiters: Cell<usize>,
    /// Dials finished so far, and how the last of them failed if it did.
    dials: Cell<u64>,
    failed: RefCell<Option<UpstreamError>>,
    dialling: tokio::sync::Mutex<()>,
}

/// One HTTP/2 connection.
struct Tunnel {
    send: SendRequest<Bytes>,
    streams: Arc<AtomicUsize>,
    credential: Arc<Credential>,
    local: Option<SocketAddr>,
    identity: SpiffeId,
    /// Set when it must take no new streams: the peer says GOAWAY, or it broke.
    retired: Cell<bool>,
    last_used: Cell<Instant>,
    said: LastSaid,
}

/// How opening a stream on an existing tunnel failed.
enum OpenError {
    /// The tunnel takes no more streams and has not seen this one: another tunnel may.
    Retired,
    Failed(UpstreamError),
}

impl Tunnels {
    /// `counts`: the worker's.
    pub fn new(limits: &Limits, counts: Arc<LimitCounts>) -> Self {
        let (per_key, streams) = (limits.tunnels_per_destination, limits.tunnel_streams as usize);
        Self { slots: Rc::default(), per_key, streams, buffer: limits.stream_buffer_bytes, counts }
    }

    /// Opens a stream, on an open tunnel if one has room, else on a new one from `dial`.
    /// Waits at most `limit` for the answer to CONNECT; the time of `dial` is `dial`'s own matter.
    pub async fn open<T, F>(
        &self,
        key: &TunnelKey,
        credential: &Arc<Credential>,
        head: &ConnectHead,
        limit: Duration,
        dial: impl Fn() -> F,
    ) -> Result<Opened, UpstreamError>
    where
        T: AsyncRead + AsyncWrite + Unpin + 'static,
        F: Future<Output = Result<Transport<T>, UpstreamError>>,
    {
        // A tunnel may say GOAWAY between being chosen and being used: then the next one, but not for ever.
        for _ in 0..=self.per_key {
            let tunnel = self.tunnel(key, credential, &dial).await?;
            match timeout(limit, tunnel.open(key.to, head)).await {
                Ok(Ok(opened)) => return Ok(opened),
                Ok(Err(OpenError::Retired)) => self.retire(key, &tunnel),
                Ok(Err(OpenError::Failed(error))) => return Err(error),
                Err(_) => return Err(UpstreamError::Timeout { to: key.to, stage: "answer to CONNECT" }),
            }
        }
        Err(UpstreamError::Tunnel { to: key.to, why: "every new tunnel was closed at once".into() })
    }

    /// Forgets the tunnels of a workload; streams that are open go on.
    pub fn forget(&self, workload: u32) {
        self.slots.borrow_mut().retain(|key, _| key.workload != workload);
    }

    /// Tunnels open now.
    pub fn len(&self) -> usize {
        self.slots.borrow().values().map(|slot| slot.open.borrow().len()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A tunnel with room: an open one, or a new one. One caller dials, the others wait for what comes of it.
    async fn tunnel<T, F>(
        &self,
        key: &TunnelKey,
        credential: &Arc<Credential>,
        dial: &impl Fn() -> F,
    ) -> Result<Rc<Tunnel>, UpstreamError>
    where
        T: AsyncRead + AsyncWrite + Unpin + 'static,
        F: Future<Output = Result<Transport<T>, UpstreamError>>,
    {
        let slot = self.slot(key)?;
        if let Some(tunnel) = slot.with_room(credential, self) {
            return Ok(tunnel);
        }
        let dials = slot.dials.get();
        let _waiting = Waiting::new(self, key, slot.clone())?;
        let _turn = slot.dialling.lock().await;
        if let Some(tunnel) = slot.with_room(credential, self) {
            return Ok(tunnel);
        }
        // A dial that began after we did has failed: its failure is ours.
        if slot.dials.get() != dials
            && let Some(error) = &*slot.failed.borrow()
        {
            return Err(error.clone());
        }
        if slot.open.borrow().len() >= self.per_key {
            self.counts.reached(Limit::TunnelsPerDestination);
            return Err(UpstreamError::Overflow { to: key.to, what: "tunnels to one destination" });
        }
        let outcome = self.establish(key, &slot, credential, dial).await;
        slot.dials.set(slot.dials.get() + 1);
        *slot.failed.borrow_mut() = outcome.as_ref().err().cloned();
        outcome
    }

    async fn establish<T, F>(
        &self,
        key: &TunnelKey,
        slot: &Rc<Slot>,
        credential: &Arc<Credential>,
        dial: &impl Fn() -> F,
    ) -> Result<Rc<Tunnel>, UpstreamError>
    where
        T: AsyncRead + AsyncWrite + Unpin + 'static,
        F: Future<Output = Result<Transport<T>, UpstreamError>>,
    {
        let Transport { io, local, identity, window } = dial().await?;
        let (io, outlet) = gather(io);
        let sizes = window.as_ref().map_or([MIN_WINDOW; 2], |window| [window.stream, window.connection]);
        let (send, connection) = h2::client::Builder::new()
            .initial_window_size(sizes[0])
            .initial_connection_window_size(sizes[1])
            .max_frame_size(MAX_FRAME)
            .max_header_list_size(MAX_HEADER_LIST)
            .max_send_buffer_size(self.buffer)
            .data_frame_budget(DATA_FRAME_BUDGET)
            .initial_max_send_streams(STREAMS_PER_TUNNEL.min(self.streams))
            .enable_push(false)
            .handshake::<Gather<T>, Bytes>(io)
            .await
            .map_err(|error| UpstreamError::Tunnel { to: key.to, why: error.to_string().into() })?;
        let tunnel = Rc::new(Tunnel {
            send,
            streams: Arc::new(AtomicUsize::new(0)),
            credential: credential.clone(),
            local,
            identity,
            retired: Cell::new(false),
            last_used: Cell::new(Instant::now()),
            said: LastSaid::default(),
        });
        slot.open.borrow_mut().push(tunnel.clone());
        let home = Home { slots: Rc::downgrade(&self.slots), key: key.clone(), tunnel: Rc::downgrade(&tunnel) };
        tokio::task::spawn_local(async move {
            drive(connection, outlet, home).await;
            drop(window);
        });
        Ok(tunnel)
    }

    fn slot(&self, key: &TunnelKey) -> Result<Rc<Slot>, UpstreamError> {
        let mut slots = self.slots.borrow_mut();
        if let Some(slot) = slots.get(key) {
            return Ok(slot.clone());
        }
        if slots.len() >= MAX_KEYS {
            return Err(UpstreamError::Overflow { to: key.to, what: "tunnel destinations" });
        }
        Ok(slots.entry(key.clone()).or_default().clone())
    }

    fn retire(&self, key: &TunnelKey, tunnel: &Rc<Tunnel>) {
        retire(&self.slots, key, tunnel);
    }
}

/// Takes a tunnel out of the pool. Its streams live on; when the last ends, h2 closes the connection.
fn retire(slots: &RefCell<HashMap<TunnelKey, Rc<Slot>>>, key: &TunnelKey, tunnel: &Rc<Tunnel>) {
    tunnel.retired.set(true);
    let Some(slot) = slots.borrow().get(key).cloned() else { return };
    slot.open.borrow_mut().retain(|other| !Rc::ptr_eq(other, tunnel));
    remove_unused(slots, key, &slot);
}

fn remove_unused(slots: &RefCell<HashMap<TunnelKey, Rc<Slot>>>, key: &TunnelKey, slot: &Rc<Slot>) {
    let mut slots = slots.borrow_mut();
    let current = slots.get(key).is_some_and(|current| Rc::ptr_eq(current, slot));
    if current && slot.open.borrow().is_empty() && slot.waiters.get() == 0 {
        slots.remove(key);
    }
}

impl Slot {
    /// An open tunnel with room. Those made with an older certificate are let go: new streams use the new one.
    fn with_room(&self, credential: &Arc<Credential>, of: &Tunnels) -> Option<Rc<Tunnel>> {
        let mut open = self.open.borrow_mut();
        open.retain(|tunnel| !tunnel.retired.get() && Arc::ptr_eq(&tunnel.credential, credential));
        let room = open.iter().find(|tunnel| tunnel.has_room(STREAMS_PER_TUNNEL.min(of.streams)));
        let full = || {
            let emptiest = open.iter().min_by_key(|tunnel| tunnel.streams.load(Ordering::Relaxed))?;
            (open.len() >= of.per_key && emptiest.has_room(of.streams)).then_some(emptiest)
        };
        room.or_else(full).cloned()
    }
}

/// One of the bounded number that wait for a dial. The last to leave an empty slot takes it away, so that nothing is kept
/// for a destination that cannot be reached.
struct Waiting<'a> {
    tunnels: &'a Tunnels,
    key: &'a TunnelKey,
    slot: Rc<Slot>,
}

impl<'a> Waiting<'a> {
    fn new(tunnels: &'a Tunnels, key: &'a TunnelKey, slot: Rc<Slot>) -> Result<Self, UpstreamError> {
        if slot.waiters.get() >= MAX_WAITERS {
            return Err(UpstreamError::Overflow { to: key.to, what: "connections waiting for a tunnel" });
        }
        slot.waiters.set(slot.waiters.get() + 1);
        Ok(Self { tunnels, key, slot })
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.slot.waiters.set(self.slot.waiters.get() - 1);
        remove_unused(&self.tunnels.slots, self.key, &self.slot);
    }
}

impl Tunnel {
    /// Whether it may have one more of at most so many streams.
    fn has_room(&self, most: usize) -> bool {
        self.streams.load(Ordering::Relaxed) < most.min(self.send.current_max_send_streams())
    }

    async fn open(&self, to: SocketAddr, head: &ConnectHead) -> Result<Opened, OpenError> {
        let failed = |why: String| OpenError::Failed(UpstreamError::Tunnel { to, why: why.into() });
        let request = head.request().map_err(|error| failed(error.to_string()))?;
        let guard = StreamGuard::new(self.streams.clone());
        self.last_used.set(Instant::now());
        let mut send = self.send.clone();
        if poll_fn(|cx| send.poll_ready(cx)).await.is_err() {
            return Err(OpenError::Retired);
        }
        let Ok((answer, body)) = send.send_request(request, false) else { return Err(OpenError::Retired) };
        let response = match answer.await {
            Ok(response) => response,
            Err(error) if never_seen(&error) => return Err(OpenError::Retired),
            Err(error) => return Err(failed(error.to_string())),
        };
        let (parts, recv) = response.into_parts();
        if parts.status != StatusCode::OK {
            return Err(OpenError::Failed(UpstreamError::Refused { to, status: parts.status.as_u16() }));
        }
        let stream = TunnelStream::new(body, recv, Some(guard));
        let said = parts.headers.get(&BAGGAGE).and_then(|value| value.to_str().ok());
        let peer = said.map(|said| self.said.peer(said, Peer::from_baggage));
        Ok(Opened { stream, peer, local: self.local, identity: self.identity.clone() })
    }
}

impl ConnectHead {
    fn request(&self) -> Result<Request<()>, http::Error> {
        let uri = Uri::try_from(self.authority.to_string())?;
        let mut request = Request::builder().method(Method::CONNECT).version(Version::HTTP_2).uri(uri).body(())?;
        *request.headers_mut() = self.headers.clone();
        Ok(request)
    }
}

/// Whether the peer has surely not acted on the stream (RFC 9113, sections 6.8 and 8.7).
fn never_seen(error: &h2::Error) -> bool {
    error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM)
}

/// Where a tunnel's task finds the pool again, without keeping either alive.
struct Home {
    slots: Weak<RefCell<HashMap<TunnelKey, Rc<Slot>>>>,
    key: TunnelKey,
    tunnel: Weak<Tunnel>,
}

impl Home {
    fn leave(&self) {
        if let (Some(slots), Some(tunnel)) = (self.slots.upgrade(), self.tunnel.upgrade()) {
            retire(&slots, &self.key, &tunnel);
        }
    }

    /// Leaves the pool when no stream has been open for a while.
    fn leave_if_idle(&self) {
        if let Some(tunnel) = self.tunnel.upgrade() {
            if tunnel.streams.load(Ordering::Relaxed) > 0 {
                tunnel.last_used.set(Instant::now());
            } else if tunnel.last_used.get().elapsed() >= IDLE {
                self.leave();
            }
        }
    }
}

/// Moves a tunnel's frames until it ends.
async fn drive<T>(mut connection: Connection<Gather<T>, Bytes>, outlet: Outlet<T>, home: Home)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let ping = connection.ping_pong();
    let moved = poll_fn(|cx| outlet.after(Pin::new(&mut connection).poll(cx), cx));
    let outcome = tokio::select! {
        ended = moved => ended.map_err(|error| error.to_string()),
        () = watch(ping, &home) => Err("keepalive probe was not answered".to_owned()),
    };
    home.leave();
    if let Err(error) = outcome {
        tracing::debug!(to = %home.key.to, %error, "tunnel ended");
    }
}

/// Returns when the peer is dead.
async fn watch(mut ping: Option<PingPong>, home: &Home) {
    loop {
        sleep(KEEPALIVE).await;
        home.leave_if_idle();
        if let Some(ping) = &mut ping {
            match timeout(KEEPALIVE_TIMEOUT, ping.ping(Ping::opaque())).await {
                Ok(Ok(_)) => {}
                // The connection has failed and says so itself.
                Ok(Err(_)) => std::future::pending().await,
                Err(_) => return,
            }
        }
    }
}
