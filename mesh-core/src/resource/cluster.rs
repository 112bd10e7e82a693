//! Clusters: `envoy.config.cluster.v3.Cluster`.
//!
//! In: the message. Out: a [`Cluster`]: where its endpoints come from, how one of them is chosen,
//! how it is reached, and the limits on it. It holds no endpoints of its own except inline ones.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::identity::SpiffeId;
use crate::resource::endpoint::{Endpoint, LoadAssignment};
use crate::resource::{CertificateSource, RootsSource, SanMatch};

mod limits;
mod parse;
mod transport;

/// One upstream cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    /// Name, e.g. `outbound|9080|v1|reviews.default.svc.cluster.local`.
    pub name: Arc<str>,
    /// Where endpoints come from.
    pub kind: ClusterKind,
    /// How an endpoint is chosen.
    pub lb: LbConfig,
    /// Longest time to connect.
    pub connect_timeout: Duration,
    /// Service behind it (metadata `istio`, `services[0]`).
    pub service: Option<Arc<ServiceRef>>,
    /// DestinationRule subset, from metadata or the name; `None` when it is the whole service.
    pub subset: Option<Arc<str>>,
    /// Metadata `istio`, `default_original_port`: the port when none else is known.
    pub default_port: Option<u16>,
    /// Metadata `istio`, `external`: outside of the mesh.
    pub external: bool,
    /// SPIFFE ids the endpoints may prove, from the SAN matchers of the TLS sockets that carry mesh traffic.
    pub sans: Vec<SpiffeId>,
    /// How endpoints are reached, first match wins; the last one is for any.
    pub transports: Vec<TransportMatch>,
    /// Upstream HTTP protocol.
    pub http: HttpProtocol,
    /// Limits at default priority.
    pub limits: Limits,
    /// Outlier detection, when configured.
    pub outlier: Option<OutlierDetection>,
    /// Source addresses to bind to, at most one per family (InboundPassthroughCluster).
    pub bind_sources: Vec<IpAddr>,
}

impl Cluster {
    /// How an endpoint of this cluster is reached: the first transport that is for it.
    pub fn transport(&self, endpoint: &Endpoint) -> &Transport {
        self.transports
            .iter()
            .find(|entry| match entry.when {
                TransportWhen::Tunnel => endpoint.tunnel,
                TransportWhen::IstioMtls => endpoint.istio_mtls,
                TransportWhen::Always => true,
            })
            .map_or(&Transport::Raw, |entry| &entry.transport)
    }

    /// How an address is reached of which nothing is known but that this cluster leads there.
    pub fn transport_of_any(&self) -> &Transport {
        // Which of several hosts an address is of nobody knows here: one that wants TLS speaks for all.
        let istio_mtls = match &self.kind {
            ClusterKind::StrictDns(hosts) | ClusterKind::LogicalDns(hosts) => hosts.iter().any(|host| host.istio_mtls),
            _ => false,
        };
        let mut any = self.transports.iter().filter(|entry| match entry.when {
            TransportWhen::Always => true,
            TransportWhen::IstioMtls => istio_mtls,
            TransportWhen::Tunnel => false,
        });
        any.next().map_or(&Transport::Raw, |entry| &entry.transport)
    }
}

/// Where a cluster's endpoints come from.
#[derive(Debug, Clone, PartialEq)]
pub enum ClusterKind {
    /// From EDS under this name.
    Eds {
        /// Name to subscribe; the cluster's own unless it gives another.
        service_name: Arc<str>,
    },
    /// Inline addresses; none for BlackHoleCluster.
    Static(Arc<LoadAssignment>),
    /// Every address of every name.
    StrictDns(Vec<DnsHost>),
    /// One address of the name at a time.
    LogicalDns(Vec<DnsHost>),
    /// The connection's original destination.
    OriginalDst {
        /// Port to use in place of the original one.
        port_override: Option<u16>,
    },
    /// One of Envoy's internal listeners (HBONE plumbing), which the agent does natively.
    Internal,
}

/// A name to resolve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsHost {
    /// DNS name or literal address.
    pub host: Arc<str>,
    /// Port.
    pub port: u16,
    /// Load-balancing weight, at least 1.
    pub weight: u32,
    /// Priority; 0 is used first.
    pub priority: u32,
    /// It takes Istio's mutual TLS (label `tlsMode: istio`).
    pub istio_mtls: bool,
}

/// A service, as metrics name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRef {
    /// Fully qualified host.
    pub host: Arc<str>,
    /// Short name.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
}

/// How endpoints are chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct LbConfig {
    /// The policy.
    pub policy: LbPolicy,
    /// Below this share of healthy endpoints (percent, 0 to 100) health is ignored. Envoy: 50.
    pub panic_threshold: f64,
    /// Spread over localities by their weights.
    pub locality_weighted: bool,
    /// New endpoints get their share little by little.
    pub slow_start: Option<SlowStart>,
}

/// How new endpoints are warmed up, as configured.
#[derive(Debug, Clone, PartialEq)]
pub struct SlowStart {
    /// Time until the full share.
    pub window: Duration,
    /// First share, percent of the full one.
    pub min_weight_percent: f64,
    /// Shape of growth; 1 = linear.
    pub aggression: f64,
}

impl Default for LbConfig {
    fn default() -> Self {
        LbConfig {
            policy: LbPolicy::RoundRobin,
            panic_threshold: DEFAULT_PANIC_THRESHOLD,
            locality_weighted: false,
            slow_start: None,
        }
    }
}

/// Envoy's default `healthy_panic_threshold`, percent.
pub const DEFAULT_PANIC_THRESHOLD: f64 = 50.0;

/// Load-balancing policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LbPolicy {
    /// In turn, by weight.
    RoundRobin,
    /// The least loaded of `choices` random ones.
    LeastRequest {
        /// How many are compared, at least 2.
        choices: u32,
    },
    /// At random, by weight.
    Random,
    /// Consistent by hash (RING_HASH and MAGLEV): the same hash takes the same endpoint while it lives.
    ConsistentHash,
    /// The cluster kind decides (ORIGINAL_DST).
    ClusterProvided,
}

/// One entry of `transport_socket_matches`.
#[derive(Debug, Clone, PartialEq)]
pub struct TransportMatch {
    /// Name, e.g. `tlsMode-istio`.
    pub name: Arc<str>,
    /// What an endpoint must have to be reached this way.
    pub when: TransportWhen,
    /// How it is reached.
    pub transport: Transport,
}

/// Which endpoints a transport is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransportWhen {
    /// `tunnel: http`.
    Tunnel,
    /// `tlsMode: istio`.
    IstioMtls,
    /// Any endpoint.
    Always,
}

/// How an endpoint is reached.
#[derive(Debug, Clone, PartialEq)]
pub enum Transport {
    /// Through an HBONE tunnel.
    Hbone,
    /// TLS on the endpoint's own port.
    Tls(Arc<UpstreamTls>),
    /// Plain bytes.
    Raw,
}

/// TLS towards an upstream.
#[derive(Debug, Clone, PartialEq)]
pub struct UpstreamTls {
    /// Server name to send, empty for none.
    pub sni: Arc<str>,
    /// ALPN protocols to offer for bytes that are not HTTP, most wanted first.
    pub alpn: Vec<Arc<str>>,
    /// Names the peer must have, any of them; empty = any name under a trusted root.
    pub sans: Vec<SanMatch>,
    /// The client certificate; `None` = no client certificate.
    pub client_certificate: Option<CertificateSource>,
    /// Who may have signed the server's certificate; `None` = nothing is verified.
    pub roots: Option<RootsSource>,
    /// The server name is the host that a request names (`auto_sni`), where there is one.
    pub auto_sni: bool,
    /// The peer must have the server name that was sent (`auto_san_validation`).
    pub auto_sans: bool,
    /// TLS 1.2 is not enough.
    pub only_tls13: bool,
}

/// What a connection carries inside of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Carries {
    /// Anything.
    Bytes,
    /// HTTP/1.
    Http1,
    /// HTTP/2.
    Http2,
}

impl UpstreamTls {
    /// The protocols to offer by ALPN. Between workloads of a mesh they tell the server's sidecar what is inside, as the filter
    /// `istio.alpn` of Istio's sidecars does; elsewhere HTTP is called what it is.
    pub fn offers(&self, carries: Carries) -> Vec<&str> {
        let istio = self.alpn.iter().any(|protocol| &**protocol == "istio");
        match (carries, istio) {
            (Carries::Bytes, _) => self.alpn.iter().map(AsRef::as_ref).collect(),
            (Carries::Http1, true) => vec!["istio-http/1.1", "istio", "http/1.1"],
            (Carries::Http2, true) => vec!["istio-h2", "istio", "h2"],
            (Carries::Http1, false) => vec!["http/1.1"],
            (Carries::Http2, false) => vec!["h2"],
        }
    }
}

/// Upstream HTTP protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HttpProtocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2.
    Http2,
    /// What the downstream speaks.
    Downstream,
}

/// Share of requests that may be retries.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryBudget {
    /// Percent of the requests under way.
    pub percent: f64,
    /// Retries always allowed.
    pub min_retries: u32,
}

/// Circuit-breaker limits; `u32::MAX` = none (Istio's default).
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Connections to the whole cluster.
    pub max_connections: u32,
    /// Requests waiting for a connection.
    pub max_pending_requests: u32,
    /// Requests under way.
    pub max_requests: u32,
    /// Retries under way.
    pub max_retries: u32,
    /// In place of `max_retries`, when given.
    pub retry_budget: Option<RetryBudget>,
    /// Requests a connection may carry before it is closed; 0 = no limit.
    pub max_requests_per_connection: u32,
    /// Idle time after which a connection is closed; `None` = never.
    pub idle_timeout: Option<Duration>,
}

/// Outlier detection, as configured (applied by the agent's cluster runtime).
#[derive(Debug, Clone, PartialEq)]
pub struct OutlierDetection {
    /// 5xx in a row that eject; 0 = off.
    pub consecutive_5xx: u32,
    /// 502, 503, 504 in a row that eject; 0 = off.
    pub consecutive_gateway_failure: u32,
    /// Local failures (connect, reset) in a row that eject; only with `split_local_origin`.
    pub consecutive_local_origin_failure: u32,
    /// Local failures are counted on their own.
    pub split_local_origin: bool,
    /// Time between sweeps.
    pub interval: Duration,
    /// Shortest ejection; multiplied by the number of ejections so far.
    pub base_ejection_time: Duration,
    /// Longest ejection.
    pub max_ejection_time: Duration,
    /// Most of the cluster that may be ejected, percent.
    pub max_ejection_percent: u32,
}

#[cfg(test)]
mod tests;
