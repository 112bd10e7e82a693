//! What is known of one connection, and the filter chain that serves it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use mesh_core::detect::Detect;
use mesh_core::identity::SpiffeId;
use mesh_core::resource::listener::{ConnFacts, FilterChain, Listener, Terminal};
use tokio::time::Instant;

use crate::telemetry::Peer;

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
            source: None,
            identity: None,
            started: Instant::now(),
            start_time: SystemTime::now(),
        }
    }

    pub(super) fn facts<'a>(&self, detected: Option<&'a Detect>) -> ConnFacts<'a> {
        ConnFacts { destination: self.destination, source: self.client, detected }
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
    /// The chain for a connection; `None` when no chain is for it.
    pub(super) fn new(listener: &Arc<Listener>, flow: &Flow, detected: Option<&Detect>) -> Option<Self> {
        let chain = listener.chain(&flow.facts(detected))?;
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

    /// What becomes of the bytes. `None` for a chain that wants TLS towards the client, which is not supported yet.
    pub(super) fn terminal(&self) -> Option<&Terminal> {
        self.chain().filter(|chain| chain.tls.is_none()).map(|chain| &chain.terminal)
    }
}

/// The server name that a client asked for in the clear.
pub(super) fn server_name(detected: Option<&Detect>) -> Option<&str> {
    match detected {
        Some(Detect::Tls(Some(hello))) => hello.sni.as_deref(),
        _ => None,
    }
}
