//! Opens upstream connections on behalf of one local workload, from inside its network namespace.
//!
//! In: an endpoint, or an address. Out: a [`Connected`] stream and what is known of its far end.
//! Never: dials one of the agent's own listeners (a loop), or opens a tunnel to somebody whose identity nobody vouches for.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::{FORWARDED, HeaderMap, HeaderName, HeaderValue};
use mesh_core::identity::SpiffeId;
use mesh_core::resource::cluster::{Cluster, Transport as ClusterTransport};
use mesh_core::resource::endpoint::Endpoint;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::errors::UpstreamError;
use super::originate::{Originator, Wish};
use super::stream::Stream;
use super::tunnel::{ConnectHead, HBONE_PORT, TLS_BUFFER, Transport, TunnelKey, Tunnels};
use crate::kernel::Sockets;
use crate::net::ahead::Ahead;
use crate::net::share::Share;
use crate::telemetry::{PathBytes, Peer};
use crate::tls::ports::explain;
use crate::tls::turns::Turns;
use crate::tls::{Credential, peer_certificate};
use crate::workload::Workload;

/// Header by which agents tell each other whom they speak for (W3C Baggage).
pub const BAGGAGE: HeaderName = HeaderName::from_static("baggage");

/// Connect timeout where no cluster gives one.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A local workload as the source of connections; one per workload and worker.
pub struct Source {
    /// Whose connections.
    pub workload: Arc<Workload>,
    /// Opens sockets in its namespace.
    pub sockets: Sockets,
    /// Its certificate, once there is one.
    pub credential: watch::Receiver<Option<Arc<Credential>>>,
    /// The worker's tunnels.
    pub tunnels: Tunnels,
    /// Ports of the agent's listeners in its namespace.
    pub own_ports: Vec<u16>,
    /// The worker's counts of bytes on the wire.
    pub bytes: Arc<PathBytes>,
    /// Speaks TLS to ports.
    pub originator: Originator,
    /// TLS that it asks others for.
    pub handshakes: Rc<Turns>,
    /// What its connections share out.
    pub share: Rc<Share>,
}

/// An open upstream connection.
#[derive(Debug)]
pub struct Connected {
    /// The bytes.
    pub stream: Stream,
    /// Own end.
    pub local: Option<SocketAddr>,
    /// Where it goes.
    pub remote: SocketAddr,
    /// Who has been verified to be at the other end; `None` in plaintext.
    pub identity: Option<SpiffeId>,
    /// What the other agent says of the destination. A name only, no proof.
    pub peer: Option<Arc<Peer>>,
}

impl Source {
    /// Connects to an endpoint of a cluster, for the application's `client` socket.
    pub async fn to_endpoint(
        &self,
        cluster: &Cluster,
        endpoint: &Endpoint,
        client: SocketAddr,
        wish: Wish<'_>,
    ) -> Result<Connected, UpstreamError> {
        let to = endpoint.address;
        // The workload is its own endpoint: there is no wire to protect, and the kernel does not catch what stays inside.
        if self.workload.has(to) {
            return self.to_app(to, client, cluster.connect_timeout).await;
        }
        if endpoint.tunnel {
            return self.through_tunnel(cluster, endpoint, client).await;
        }
        match cluster.transport(endpoint) {
            ClusterTransport::Tls(settings) => Box::pin(self.secure(to, cluster, settings, wish)).await,
            ClusterTransport::Hbone => self.through_tunnel(cluster, endpoint, client).await,
            ClusterTransport::Raw => self.plain(to, cluster.connect_timeout).await,
        }
    }

    /// Connects to an address to which a cluster leads, and of which nothing else is known.
    pub async fn to_address(
        &self,
        cluster: &Cluster,
        to: SocketAddr,
        wish: Wish<'_>,
    ) -> Result<Connected, UpstreamError> {
        match cluster.transport_of_any() {
            ClusterTransport::Tls(settings) => Box::pin(self.secure(to, cluster, settings, wish)).await,
            ClusterTransport::Hbone => Err(UpstreamError::NoIdentity { to }),
            ClusterTransport::Raw => self.plain(to, cluster.connect_timeout).await,
        }
    }

    /// Whether an endpoint is reached through a tunnel, to which `identity` may answer.
    pub fn tunnels_to(&self, cluster: &Cluster, endpoint: &Endpoint, identity: &SpiffeId) -> bool {
        let tunnel = endpoint.tunnel || matches!(cluster.transport(endpoint), ClusterTransport::Hbone);
        let expected = match &endpoint.identity {
            Some(expected) => expected == identity,
            None => cluster.sans.contains(identity),
        };
        tunnel && expected && !self.workload.has(endpoint.address)
    }

    /// Connects in the open.
    pub async fn plain(&self, to: SocketAddr, limit: Duration) -> Result<Connected, UpstreamError> {
        let stream = self.tcp(to, limit, |sockets, workload| sockets.socket(&workload.netns, to)).await?;
        let local = stream.local_addr().ok();
        Ok(Connected { stream: Stream::plain(stream, &self.bytes), local, remote: to, identity: None, peer: None })
    }

    /// Connects to the workload's own application, which will see `client` as its peer.
    pub async fn to_app(
        &self,
        to: SocketAddr,
        client: SocketAddr,
        limit: Duration,
    ) -> Result<Connected, UpstreamError> {
        let shorten = self.workload.host.is_none() && self.sockets.may_shorten(self.workload.shortcuts);
        let open = |sockets: &Sockets, workload: &Workload| match shorten {
            true => sockets.socket_to_app_by_shortcut(&workload.netns, to, client),
            false => sockets.socket_to_app(&workload.netns, to, client),
        };
        let stream = self.tcp(to, limit, open).await?;
        let failed = |source: io::Error| UpstreamError::Connect { to, source: Arc::new(source) };
        if !self.sockets.shows_client(stream.as_fd()).map_err(failed)? {
            let why = "too many connections to applications are on their way (peer_full) to show one more its client";
            return Err(failed(io::Error::other(why)));
        }
        let local = stream.local_addr().ok();
        let shortcut = if shorten { self.sockets.shortcut(stream.as_fd()).map_err(failed)? } else { None };
        let stream = Stream::with_app(stream, &self.sockets, shortcut);
        Ok(Connected { stream, local, remote: to, identity: None, peer: None })
    }

    /// Whether `to` is one of the agent's own listeners in this workload's namespace.
    pub fn is_own_listener(&self, to: SocketAddr) -> bool {
        let ip = to.ip().to_canonical();
        let here = ip.is_loopback() || ip.is_unspecified() || self.workload.addresses.contains(&ip);
        here && self.own_ports.contains(&to.port())
    }

    pub(super) async fn tcp(
        &self,
        to: SocketAddr,
        limit: Duration,
        open: impl FnOnce(&Sockets, &Workload) -> io::Result<socket2::Socket>,
    ) -> Result<TcpStream, UpstreamError> {
        let failed = |source: io::Error| UpstreamError::Connect { to, source: Arc::new(source) };
        // On the host another workload's tunnels come in there.
        let neighbour = self.workload.host.is_some() && to.port() == HBONE_PORT;
        if self.is_own_listener(to) && !neighbour {
            return Err(failed(io::Error::new(io::ErrorKind::ConnectionRefused, "that is the agent itself")));
        }
        let socket = open(&self.sockets, &self.workload).map_err(failed)?;
        socket.set_tcp_nodelay(true).map_err(failed)?;
        let connecting = TcpSocket::from_std_stream(socket.into()).connect(to);
        match timeout(limit, connecting).await {
            Ok(connected) => connected.map_err(failed),
            Err(_) => Err(UpstreamError::Timeout { to, stage: "TCP" }),
        }
    }

    async fn through_tunnel(
        &self,
        cluster: &Cluster,
        endpoint: &Endpoint,
        client: SocketAddr,
    ) -> Result<Connected, UpstreamError> {
        let to = SocketAddr::new(endpoint.address.ip(), HBONE_PORT);
        let expected: Arc<[SpiffeId]> = match &endpoint.identity {
            Some(identity) => Arc::new([identity.clone()]),
            None if cluster.sans.is_empty() => return Err(UpstreamError::NoIdentity { to }),
            None => cluster.sans.as_slice().into(),
        };
        let limit = cluster.connect_timeout;
        let credential = self.credential(to, limit).await?;
        let key = TunnelKey::new(&self.workload, endpoint, expected);
        let head = ConnectHead { authority: endpoint.address, headers: self.connect_headers(client) };
        let dial = || self.dial_tunnel(&key, limit, &credential);
        let opened = self.tunnels.open(&key, &credential, &head, limit, dial).await?;
        Ok(Connected {
            stream: Stream::tunnel(opened.stream, &self.bytes),
            local: opened.local,
            remote: endpoint.address,
            identity: Some(opened.identity),
            peer: opened.peer,
        })
    }

    /// The certificate; a connection that comes before the first one waits for it.
    async fn credential(&self, to: SocketAddr, limit: Duration) -> Result<Arc<Credential>, UpstreamError> {
        if let Some(credential) = &*self.credential.borrow() {
            return Ok(credential.clone());
        }
        let mut updates = self.credential.clone();
        let missing = || UpstreamError::NoCredential { to, identity: self.workload.identity.to_string().into() };
        let first = timeout(limit, updates.wait_for(Option::is_some)).await.map_err(|_| missing())?;
        first.ok().and_then(|credential| credential.clone()).ok_or_else(missing)
    }

    async fn dial_tunnel(
        &self,
        key: &TunnelKey,
        limit: Duration,
        credential: &Credential,
    ) -> Result<Transport<TlsStream<Ahead<TcpStream>>>, UpstreamError> {
        let to = key.to;
        let refused = |why: String| UpstreamError::Tls { to, why: why.into() };
        let deadline = Instant::now() + limit;
        let tcp = self.tcp(to, limit, |sockets, workload| sockets.socket(&workload.netns, to)).await?;
        let local = tcp.local_addr().ok();
        let config = credential.client_config(&key.expected).map_err(|error| refused(error.to_string()))?;
        let connecting = async {
            let _turn = self.handshakes.turn().await;
            TlsConnector::from(config).connect(key.server_name(), Ahead::new(tcp)).await
        };
        let mut tls = match timeout_at(deadline, connecting).await {
            Ok(connected) => connected.map_err(|error| refused(explain(&error, "server")))?,
            Err(_) => return Err(UpstreamError::Timeout { to, stage: "TLS" }),
        };
        let peer = peer_certificate(tls.get_ref().1, SystemTime::now()).map_err(|error| refused(error.to_string()))?;
        tls.get_mut().1.set_buffer_limit(Some(TLS_BUFFER));
        Ok(Transport { io: tls, local, identity: peer.identity, window: Some(self.share.window()) })
    }

    fn connect_headers(&self, client: SocketAddr) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(2);
        let client = SocketAddr::new(client.ip().to_canonical(), client.port());
        if let Ok(value) = HeaderValue::try_from(format!("for=\"{client}\"")) {
            headers.insert(FORWARDED, value);
        }
        if let Ok(value) = HeaderValue::try_from(self.workload.peer.to_baggage()) {
            headers.insert(BAGGAGE, value);
        }
        headers
    }
}
