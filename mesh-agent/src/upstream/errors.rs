//! Why an upstream connection could not be had. Shared by everybody who waited for the same dial, so it is cheap to clone.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::errors::Flags;

/// Why an upstream connection could not be had. In every case nothing was sent to the destination's application.
#[derive(Debug, Clone, thiserror::Error)]
pub enum UpstreamError {
    /// The destination (or the agent in front of it) does not take the connection.
    #[error("connect to {to}: {source}")]
    Connect {
        /// Where to.
        to: SocketAddr,
        /// What the kernel says.
        source: Arc<io::Error>,
    },
    /// No answer within the cluster's connect timeout.
    #[error("connect to {to}: no answer in time ({stage})")]
    Timeout {
        /// Where to.
        to: SocketAddr,
        /// What was waited for.
        stage: &'static str,
    },
    /// The TLS handshake failed: as a rule the server is not who it must be.
    #[error("TLS with {to}: {why}")]
    Tls {
        /// Where to.
        to: SocketAddr,
        /// Why.
        why: Arc<str>,
    },
    /// The server has settled to say who it is, and has not.
    #[error("TLS with {to}: {why}")]
    PeerExchange {
        /// Where to.
        to: SocketAddr,
        /// Why.
        why: Arc<str>,
    },
    /// The tunnel broke before the stream was open.
    #[error("tunnel to {to}: {why}")]
    Tunnel {
        /// Where to.
        to: SocketAddr,
        /// Why.
        why: Arc<str>,
    },
    /// The other agent answered CONNECT with an error.
    #[error("tunnel to {to}: refused with status {status}")]
    Refused {
        /// Where to.
        to: SocketAddr,
        /// Its HTTP status.
        status: u16,
    },
    /// There is no certificate (yet) to open a tunnel with.
    #[error("tunnel to {to}: no certificate for {identity} yet")]
    NoCredential {
        /// Where to.
        to: SocketAddr,
        /// Whose certificate is missing.
        identity: Arc<str>,
    },
    /// The destination wants a tunnel, and nobody says who must be at its end.
    #[error("tunnel to {to}: the endpoint has no identity to verify")]
    NoIdentity {
        /// Where to.
        to: SocketAddr,
    },
    /// A bound of this agent is reached.
    #[error("connect to {to}: too many {what}")]
    Overflow {
        /// Where to.
        to: SocketAddr,
        /// Which bound.
        what: &'static str,
    },
}

impl UpstreamError {
    /// The response flag.
    pub fn flags(&self) -> Flags {
        match self {
            UpstreamError::Overflow { .. } => Flags::UO,
            _ => Flags::UF,
        }
    }
}
