//! Listeners: `envoy.config.listener.v3.Listener`, and the choice of a filter chain.
//!
//! In: the message; then facts of an accepted connection. Out: a [`Listener`]; then the one
//! [`FilterChain`] that serves the connection. It opens no socket: the agent catches connections
//! in the kernel and asks here what to do with them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::identity::SpiffeId;
use crate::resource::route::{RouteTable, Weighted};
use crate::resource::{AltName, CertificateSource, RootsSource, SanMatch};

mod http;
mod inspect;
mod modes;
mod parse;
mod sieve;

pub(crate) use inspect::Inspectors;
pub use modes::{InboundMode, InboundModes, MAX_EXCEPTIONS};
pub use sieve::{ConnFacts, Detection};

/// One listener.
#[derive(Debug)]
pub struct Listener {
    /// Name, e.g. `0.0.0.0_9080`, `10.96.0.10_6379`, `virtualOutbound`.
    pub name: Arc<str>,
    /// Addresses it stands for; an unspecified address means every address of its family. Empty for
    /// Envoy's internal listeners.
    pub addresses: Vec<SocketAddr>,
    /// Whose side the traffic is on.
    pub direction: Direction,
    /// False for the listeners that are only looked up by original destination.
    pub bind_to_port: bool,
    /// Chains in the order received.
    pub chains: Vec<FilterChain>,
    /// The chain when none matches.
    pub default_chain: Option<FilterChain>,
    /// How long to wait for first bytes; `None` = without end.
    pub detection_timeout: Option<Duration>,
    /// After that time: true = go on as opaque, false = close.
    pub continue_on_timeout: bool,
    /// Which ports need no first bytes.
    pub(crate) inspectors: Inspectors,
}

/// Side of the traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From local workloads.
    Outbound,
    /// To local workloads.
    Inbound,
    /// Not said.
    Unspecified,
}

/// What a chain is for; every empty or absent field matches anything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct FilterChainMatch {
    /// Original destination port.
    pub destination_port: Option<u16>,
    /// Original destination address.
    pub prefix_ranges: Vec<IpNet>,
    /// Server names: exact or `*.suffix`, lower case.
    pub server_names: Vec<Arc<str>>,
    /// Transport.
    pub transport: Option<TransportProtocol>,
    /// ALPN, or the detected protocol for plain connections.
    pub application_protocols: Vec<Arc<str>>,
    /// Address of the direct peer.
    pub direct_source_prefix_ranges: Vec<IpNet>,
    /// Kind of source.
    pub source_type: SourceType,
    /// Source address.
    pub source_prefix_ranges: Vec<IpNet>,
    /// Source port.
    pub source_ports: Vec<u16>,
}

/// `transport_protocol` of a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TransportProtocol {
    /// `raw_buffer`.
    Raw,
    /// `tls`.
    Tls,
}

/// `source_type` of a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SourceType {
    /// Any.
    #[default]
    Any,
    /// Loopback, or the same address as the destination.
    Local,
    /// Any other.
    External,
}

/// One filter chain.
#[derive(Debug)]
pub struct FilterChain {
    /// Name; may be empty.
    pub name: Arc<str>,
    /// What it is for.
    pub matches: FilterChainMatch,
    /// TLS towards the client, `None` = plain bytes.
    pub tls: Option<Arc<DownstreamTls>>,
    /// What becomes of the bytes.
    pub terminal: Terminal,
}

/// TLS towards a client.
#[derive(Debug, Clone, PartialEq)]
pub struct DownstreamTls {
    /// A client without certificate is refused.
    pub require_client_certificate: bool,
    /// ALPN protocols, most wanted first.
    pub alpn: Vec<Arc<str>>,
    /// The own certificate; `None` = the workload's.
    pub certificate: Option<CertificateSource>,
    /// Who may have signed the client's certificate; `None` = it is not asked for.
    pub roots: Option<RootsSource>,
    /// Names the client must have, any of them; empty = any under a trusted root.
    pub sans: Vec<SanMatch>,
    /// TLS 1.2 is not enough.
    pub only_tls13: bool,
}

impl DownstreamTls {
    /// Whether a client that has proved this identity fits.
    pub fn admits(&self, identity: &SpiffeId) -> bool {
        self.sans.is_empty() || self.sans.iter().any(|san| san.matches(&AltName::Uri(identity.as_str())))
    }
}

/// Last filter of a chain.
#[derive(Debug)]
pub enum Terminal {
    /// Bytes are copied to a cluster.
    Tcp(TcpProxy),
    /// Requests are routed.
    Http(HttpManager),
}

/// `tcp_proxy`.
#[derive(Debug, PartialEq)]
pub struct TcpProxy {
    /// Where to.
    pub clusters: Weighted,
    /// Both directions silent for so long ends the connection; `None` = never.
    pub idle_timeout: Option<Duration>,
    /// Longest life of a connection; `None` = no limit.
    pub max_duration: Option<Duration>,
    /// Consistent hashing goes by the client's address (`hash_policy`).
    pub hash_source_ip: bool,
    /// Name in statistics.
    pub stat_prefix: Arc<str>,
}

/// `http_connection_manager`.
#[derive(Debug)]
pub struct HttpManager {
    /// Where routes come from.
    pub routes: Routes,
    /// Bytes the client speaks.
    pub codec: Codec,
    /// Name in statistics.
    pub stat_prefix: Arc<str>,
    /// Protocols a client may upgrade to, lower case, e.g. `websocket`.
    pub upgrades: Vec<Arc<str>>,
    /// Paths are normalised (RFC 3986 dot segments) before routing.
    pub normalize_path: bool,
    /// Adjacent slashes are merged before routing.
    pub merge_slashes: bool,
    /// What becomes of `%2F` and `%5C` in paths, before anything else is done to them.
    pub escaped_slashes: EscapedSlashes,
    /// Stream silent for so long is ended; `None` = never.
    pub stream_idle_timeout: Option<Duration>,
    /// Time for a whole request to arrive; `None` = no limit.
    pub request_timeout: Option<Duration>,
    /// Time for a request's headers to arrive; `None` = no limit.
    pub request_headers_timeout: Option<Duration>,
    /// Connection without requests for so long is closed; `None` = never.
    pub idle_timeout: Option<Duration>,
    /// `server` response header.
    pub server_name: Arc<str>,
    /// HTTP/1.0 requests are accepted.
    pub accept_http_10: bool,
    /// What becomes of `x-forwarded-client-cert`.
    pub client_cert: ClientCertHeader,
    /// Calls of gRPC-Web become calls of gRPC.
    pub grpc_web: bool,
}

/// `path_with_escaped_slashes_action`: what becomes of `%2F` and `%5C` in a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EscapedSlashes {
    /// They stay.
    Keep,
    /// A request that has any is refused (400).
    Reject,
    /// They become slashes, and the client is told to ask for that path (307).
    Redirect,
    /// They become slashes.
    Unescape,
}

/// `forward_client_cert_details`: what becomes of the header `x-forwarded-client-cert`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertHeader {
    /// Removed.
    Sanitize,
    /// Kept when the client proved an identity, else removed.
    ForwardOnly,
    /// The client's identity is added to what it sent.
    AppendForward,
    /// The client's identity replaces what it sent.
    SanitizeSet,
    /// Kept whatever the client is.
    AlwaysForwardOnly,
}

/// Where routes come from.
#[derive(Debug, Clone)]
pub enum Routes {
    /// By RDS under this name.
    Rds(Arc<str>),
    /// Written in the listener.
    Inline(Arc<RouteTable>),
}

/// Downstream HTTP codec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// By the first bytes or ALPN.
    Auto,
    /// HTTP/1.
    Http1,
    /// HTTP/2.
    Http2,
}

#[cfg(test)]
mod tests;
