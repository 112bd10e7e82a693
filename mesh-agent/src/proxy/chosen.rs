//! What is known of one connection, the filter chain that serves it, and what that makes of it.

use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use mesh_core::detect::Detect;
use mesh_core::identity::SpiffeId;
use mesh_core::resource::listener::{ConnFacts, DownstreamTls, FilterChain, Listener, Terminal};
use tokio::time::Instant;

use super::pod::Pod;
use super::secured::Hello;
use super::tcp::Upstream;
use super::{http, secured, tcp};
use crate::net::peek::Peeked;
use crate::telemetry::Peer;
use crate::upstream::Connected;
use crate::upstream::stream::Stream;

/// Whose side a connection is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// A local workload is the client.
    Outbound,
    /// A local workload is the server.
    Inbound,
}

/// Facts of one connection, fixed once it is accepted.
#[derive(Debug, Clone)]
pub(super) struct Flow {
    pub(super) side: Side,
    /// The application that opened the connection.
    pub(super) client: SocketAddr,
    /// Where it wanted to go.
    pub(super) destination: SocketAddr,
    /// Outbound: the endpoint that the kernel has chosen, if the destination is a service that it knows.
    pub(super) chosen: Option<SocketAddr>,
    /// Inbound: the other agent's word on who the client is, with the principal of its certificate.
    pub(super) source: Option<Arc<Peer>>,
    /// Inbound: the client's verified identity.
    pub(super) identity: Option<SpiffeId>,
    pub(super) started: Instant,
    pub(super) start_time: SystemTime,
}

impl Flow {
    /// A connection in the open, accepted now.
    pub(super) fn new(side: Side, client: SocketAddr, destination: SocketAddr) -> Self {
        let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        Self {
            side,
            client: canonical(client),
            destination: canonical(destination),
            chosen: None,
            source: None,
            identity: None,
            started: Instant::now(),
            start_time: SystemTime::now(),
        }
    }

    pub(super) fn facts<'a>(&self, detected: Option<&'a Detect>) -> ConnFacts<'a> {
        let mutual_tls = self.proved();
        ConnFacts { destination: self.destination, source: self.client, detected, mutual_tls }
    }

    /// Whether the client has proved its identity: the connection came through a tunnel.
    pub(super) fn proved(&self) -> bool {
        self.identity.is_some()
    }
}

/// A filter chain together with the listener that owns it.
#[derive(Debug, Clone)]
pub(super) struct Chosen {
    listener: Arc<Listener>,
    /// `None`: the default chain.
    index: Option<usize>,
}

impl Chosen {
    /// The chain for a connection; `None` when no chain is for it. TLS towards the client has been the tunnel's, or has still to
    /// be ended ([`Chosen::tls`]): nobody is served before.
    pub(super) fn new(listener: &Arc<Listener>, flow: &Flow, detected: Option<&Detect>) -> Option<Self> {
        let chain = listener.chain(&flow.facts(detected))?;
        let fits = match (&chain.tls, flow.side, &flow.identity) {
            (Some(tls), Side::Inbound, Some(identity)) => tls.admits(identity),
            (Some(_), Side::Outbound, _) => false,
            (Some(_), Side::Inbound, None) | (None, ..) => true,
        };
        if !fits {
            return None;
        }
        let index = listener.chains.iter().position(|other| std::ptr::eq(other, chain));
        Some(Self { listener: listener.clone(), index })
    }

    /// The chain.
    pub(super) fn chain(&self) -> Option<&FilterChain> {
        match self.index {
            Some(index) => self.listener.chains.get(index),
            None => self.listener.default_chain.as_ref(),
        }
    }

    /// TLS that has to be ended before the chain serves the connection.
    pub(super) fn tls(&self, flow: &Flow) -> Option<Arc<DownstreamTls>> {
        self.chain().filter(|_| !flow.proved()).and_then(|chain| chain.tls.clone())
    }

    /// What becomes of the bytes.
    pub(super) fn terminal(&self) -> Option<&Terminal> {
        self.chain().map(|chain| &chain.terminal)
    }
}

/// A connection that is ready to be served, and by what.
pub(super) enum Served {
    Tcp(Box<Relay>),
    Http(Box<HttpConnection>),
    /// Once its TLS is ended.
    Tls(Box<Hello>),
}

/// An opaque connection with both its ends.
pub(super) struct Relay {
    pub(super) flow: Flow,
    pub(super) downstream: Peeked<Stream>,
    pub(super) upstream: Upstream,
    pub(super) idle_timeout: Option<Duration>,
    pub(super) max_duration: Option<Duration>,
    pub(super) server_name: Option<Box<str>>,
    /// The upstream's first bytes, if they were read.
    pub(super) said: Bytes,
}

/// A connection that speaks HTTP.
pub(super) struct HttpConnection {
    pub(super) flow: Flow,
    pub(super) downstream: Peeked<Stream>,
    pub(super) chosen: Chosen,
    /// HTTP/2 with prior knowledge.
    pub(super) http2: bool,
    /// An upstream connection that is open already.
    pub(super) first: Option<Box<Connected>>,
}

impl Served {
    /// Serves the connection to its end, in a box: a held connection costs what serves it, not what might serve some other.
    pub(super) fn run(self, pod: Rc<Pod>) -> Pin<Box<dyn Future<Output = ()>>> {
        match self {
            Self::Tcp(relay) => tcp::relay(pod, relay),
            Self::Http(connection) => http::serve(pod, connection),
            Self::Tls(hello) => secured::serve(pod, hello),
        }
    }

    pub(super) fn tcp(
        flow: Flow,
        downstream: Peeked<Stream>,
        upstream: Upstream,
        chosen: &Chosen,
        server_name: Option<&str>,
        said: Bytes,
    ) -> Self {
        let (idle_timeout, max_duration) = match chosen.terminal() {
            Some(Terminal::Tcp(proxy)) => (proxy.idle_timeout, proxy.max_duration),
            _ => (None, None),
        };
        let server_name = server_name.map(Into::into);
        Self::Tcp(Box::new(Relay { flow, downstream, upstream, idle_timeout, max_duration, server_name, said }))
    }

    pub(super) fn http(
        flow: Flow,
        downstream: Peeked<Stream>,
        chosen: Chosen,
        http2: bool,
        first: Option<Connected>,
    ) -> Self {
        Self::Http(Box::new(HttpConnection { flow, downstream, chosen, http2, first: first.map(Box::new) }))
    }
}

/// The server name that a client asked for in the clear.
pub(super) fn server_name(detected: Option<&Detect>) -> Option<&str> {
    match detected {
        Some(Detect::Tls(Some(hello))) => hello.sni.as_deref(),
        _ => None,
    }
}
