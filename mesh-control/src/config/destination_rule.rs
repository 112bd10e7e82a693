//! Istio's DestinationRule, as far as it is implemented.
//!
//! In: its `spec`. Out: [`DestinationRule`]. Checked here: what needs no other object.

use serde::Deserialize;

use super::fields::{PortNumber, Span};
use super::virtual_service::{PortSelector, check_host};
use super::{Findings, Labels};
use crate::yaml::FieldPath;

/// `spec`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DestinationRule {
    /// Host it is for, possibly with a leading `*`; a name without dot is of the own namespace.
    pub host: String,
    /// Policy of every subset.
    pub traffic_policy: TrafficPolicy,
    /// Named parts of the service.
    pub subsets: Vec<Subset>,
    /// Namespaces that see it: `.`, `*` or names; empty = all.
    pub export_to: Vec<String>,
}

/// A named part of a service.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Subset {
    /// Name.
    pub name: String,
    /// Labels of its endpoints.
    pub labels: Labels,
    /// Policy, field by field before the rule's.
    pub traffic_policy: TrafficPolicy,
}

/// How traffic to a service is treated.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TrafficPolicy {
    /// Choice of an endpoint.
    pub load_balancer: Option<LoadBalancer>,
    /// Limits.
    pub connection_pool: Option<ConnectionPool>,
    /// Ejection of endpoints that fail.
    pub outlier_detection: Option<OutlierDetection>,
    /// Policies of single ports, in place of the whole.
    pub port_level_settings: Vec<PortPolicy>,
}

/// Policy of a single port.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortPolicy {
    /// Which.
    pub port: PortSelector,
    /// Choice of an endpoint.
    pub load_balancer: Option<LoadBalancer>,
    /// Limits.
    pub connection_pool: Option<ConnectionPool>,
    /// Ejection of endpoints that fail.
    pub outlier_detection: Option<OutlierDetection>,
}

/// Choice of an endpoint.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancer {
    /// By a simple rule.
    pub simple: Option<SimpleLb>,
    /// By a hash of the request.
    pub consistent_hash: Option<ConsistentHash>,
}

/// Simple rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SimpleLb {
    /// The default: LEAST_REQUEST.
    Unspecified,
    /// Old name of LEAST_REQUEST.
    LeastConn,
    /// At random.
    Random,
    /// To the connection's original destination.
    Passthrough,
    /// In turn.
    RoundRobin,
    /// The less loaded of two.
    LeastRequest,
}

/// Choice by a hash.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConsistentHash {
    /// Of a header.
    pub http_header_name: Option<String>,
    /// Of a cookie.
    pub http_cookie: Option<HttpCookie>,
    /// Of the client's address.
    pub use_source_ip: bool,
    /// Of a query parameter.
    pub http_query_parameter_name: Option<String>,
    /// Ring hash.
    pub ring_hash: Option<RingHash>,
    /// Maglev.
    pub maglev: Option<Maglev>,
    /// Old form of `ringHash.minimumRingSize`.
    pub minimum_ring_size: Option<u64>,
}

/// A cookie to hash.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpCookie {
    /// Name.
    pub name: String,
    /// Path of a cookie made here.
    #[serde(default)]
    pub path: String,
    /// Life of a cookie made here; absent = none is made.
    pub ttl: Option<Span>,
}

/// Ring hash.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RingHash {
    /// Smallest ring; default 1024.
    pub minimum_ring_size: Option<u64>,
}

/// Maglev.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Maglev {
    /// Size of its table, a prime; default 65537.
    pub table_size: Option<u64>,
}

/// Limits.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConnectionPool {
    /// Of connections.
    pub tcp: TcpPool,
    /// Of requests.
    pub http: HttpPool,
}

/// Limits of connections.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpPool {
    /// Connections to the service.
    pub max_connections: Option<u32>,
    /// Time to connect.
    pub connect_timeout: Option<Span>,
}

/// Limits of requests.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpPool {
    /// Requests that wait for a connection.
    pub http1_max_pending_requests: Option<u32>,
    /// Requests under way.
    pub http2_max_requests: Option<u32>,
    /// Requests of one connection; 0 = no limit.
    pub max_requests_per_connection: Option<u32>,
    /// Retries under way.
    pub max_retries: Option<u32>,
    /// Time without requests after which a connection ends.
    pub idle_timeout: Option<Span>,
    /// Streams of one HTTP/2 connection.
    pub max_concurrent_streams: Option<u32>,
    /// HTTP/2 towards the service.
    pub h2_upgrade_policy: Option<H2Upgrade>,
    /// The protocol that the client speaks.
    pub use_client_protocol: bool,
}

/// Whether HTTP/1.1 becomes HTTP/2 on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum H2Upgrade {
    /// As the mesh says: no.
    Default,
    /// No.
    DoNotUpgrade,
    /// Yes.
    Upgrade,
}

/// Ejection of endpoints that fail.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OutlierDetection {
    /// 5xx in a row; default 5, 0 = off.
    #[serde(rename = "consecutive5xxErrors")]
    pub consecutive_5xx_errors: Option<u32>,
    /// 502, 503, 504 in a row; 0 = off.
    pub consecutive_gateway_errors: Option<u32>,
    /// Local and remote errors are counted apart.
    pub split_external_local_origin_errors: bool,
    /// Local errors in a row.
    pub consecutive_local_origin_failures: Option<u32>,
    /// Time between two looks; default 10 s.
    pub interval: Option<Span>,
    /// Shortest ejection; default 30 s.
    pub base_ejection_time: Option<Span>,
    /// Share of endpoints that may be ejected, percent; default 10.
    pub max_ejection_percent: Option<u32>,
    /// Share of healthy endpoints below which health is ignored, percent; default 0.
    pub min_health_percent: Option<u32>,
}

impl TrafficPolicy {
    /// The policy of one port: that port's own if there is one, else the whole.
    pub fn of_port(&self, port: u16) -> TrafficPolicy {
        match self.port_level_settings.iter().find(|one| one.port.number == PortNumber(port)) {
            Some(one) => TrafficPolicy {
                load_balancer: one.load_balancer.clone(),
                connection_pool: one.connection_pool.clone(),
                outlier_detection: one.outlier_detection.clone(),
                port_level_settings: Vec::new(),
            },
            None => TrafficPolicy { port_level_settings: Vec::new(), ..self.clone() },
        }
    }

    /// This policy where it says something, else the one beneath.
    pub fn over(&self, beneath: &TrafficPolicy) -> TrafficPolicy {
        let ports =
            if self.port_level_settings.is_empty() { &beneath.port_level_settings } else { &self.port_level_settings };
        TrafficPolicy {
            load_balancer: self.load_balancer.clone().or_else(|| beneath.load_balancer.clone()),
            connection_pool: self.connection_pool.clone().or_else(|| beneath.connection_pool.clone()),
            outlier_detection: self.outlier_detection.clone().or_else(|| beneath.outlier_detection.clone()),
            port_level_settings: ports.clone(),
        }
    }
}

impl DestinationRule {
    pub(super) fn check(&self, findings: &mut Findings) {
        let spec = FieldPath::of("spec");
        check_host(&self.host, &spec.key("host"), findings);
        check_policy(&self.traffic_policy, &spec.key("trafficPolicy"), findings);
        for (index, subset) in self.subsets.iter().enumerate() {
            let path = spec.key("subsets").index(index);
            if subset.name.is_empty() || subset.name.contains('|') {
                findings.error(path.key("name"), format!("`{}` is no subset name", subset.name));
            }
            if self.subsets.iter().take(index).any(|other| other.name == subset.name) {
                findings.error(path.key("name"), format!("subset `{}` stands twice", subset.name));
            }
            check_policy(&subset.traffic_policy, &path.key("trafficPolicy"), findings);
        }
    }
}

fn check_policy(policy: &TrafficPolicy, path: &FieldPath, findings: &mut Findings) {
    let single = (&policy.load_balancer, &policy.outlier_detection, path.clone());
    let ports = policy.port_level_settings.iter().enumerate().map(|(index, port)| {
        (&port.load_balancer, &port.outlier_detection, path.key("portLevelSettings").index(index))
    });
    for (balancer, outlier, path) in std::iter::once(single).chain(ports) {
        if let Some(balancer) = balancer {
            check_balancer(balancer, &path.key("loadBalancer"), findings);
        }
        if let Some(outlier) = outlier {
            let path = path.key("outlierDetection");
            let percents = [
                ("maxEjectionPercent", outlier.max_ejection_percent),
                ("minHealthPercent", outlier.min_health_percent),
            ];
            for (field, _) in percents.iter().filter(|(_, value)| value.is_some_and(|percent| percent > 100)) {
                findings.error(path.key(field), "must be 0 to 100");
            }
            let times = [("interval", outlier.interval), ("baseEjectionTime", outlier.base_ejection_time)];
            for (field, _) in times.iter().filter(|(_, value)| value.is_some_and(|span| span.0.as_millis() == 0)) {
                findings.error(path.key(field), "must be at least 1ms");
            }
        }
    }
}

fn check_balancer(balancer: &LoadBalancer, path: &FieldPath, findings: &mut Findings) {
    if balancer.simple.is_some() && balancer.consistent_hash.is_some() {
        findings.error(path.clone(), "only one of simple and consistentHash may be given");
    }
    let Some(hash) = &balancer.consistent_hash else { return };
    let path = path.key("consistentHash");
    let given = [
        hash.http_header_name.is_some(),
        hash.http_cookie.is_some(),
        hash.use_source_ip,
        hash.http_query_parameter_name.is_some(),
    ];
    if given.iter().filter(|given| **given).count() != 1 {
        let why = "exactly one of httpHeaderName, httpCookie, useSourceIp and httpQueryParameterName is needed";
        findings.error(path.clone(), why);
    }
    if hash.ring_hash.is_some() && hash.maglev.is_some() {
        findings.error(path, "only one of ringHash and maglev may be given");
    }
}
