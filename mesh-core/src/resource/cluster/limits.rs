//! Limits on a cluster, outlier detection, and the HTTP protocol upstream.
//!
//! In: the messages. Out: typed values with Envoy's defaults filled in. It applies none of them.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::extensions::upstreams::http::v3 as upstream;
use envoy_types::pb::google::protobuf as google;

use crate::resource::cluster::transport::AutoNames;
use crate::resource::cluster::{Cluster, HttpProtocol, Limits, OutlierDetection, RetryBudget};
use crate::resource::fault::{At, Fault};
use crate::resource::wire::{decode, duration, refuse, timeout, type_name};

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// Envoy's default of every circuit-breaker limit but retries.
const DEFAULT_LIMIT: u32 = 1024;
/// Envoy's default limit of retries.
const DEFAULT_RETRIES: u32 = 3;
/// Envoy's default idle time of upstream connections.
const DEFAULT_IDLE: Duration = Duration::from_secs(3600);

/// What `HttpProtocolOptions` says.
pub(super) struct Protocol {
    pub(super) http: HttpProtocol,
    /// Of TLS.
    pub(super) names: AutoNames,
    idle_timeout: Option<Duration>,
    max_requests_per_connection: u32,
}

pub(super) fn protocol(message: &pb::Cluster) -> Result<Protocol, Fault> {
    let mut protocol = Protocol {
        http: HttpProtocol::Http1,
        names: AutoNames::default(),
        idle_timeout: Some(DEFAULT_IDLE),
        max_requests_per_connection: value(&message.max_requests_per_connection, 0),
    };
    if message.http2_protocol_options.is_some() {
        protocol.http = HttpProtocol::Http2;
    }
    if message.protocol_selection == pb::cluster::ClusterProtocolSelection::UseDownstreamProtocol as i32 {
        protocol.http = HttpProtocol::Downstream;
    }
    for any in message.typed_extension_protocol_options.values() {
        // Options of other protocols (Istio's ALPN override among them) concern no HTTP here.
        if type_name(any) == HTTP_OPTIONS {
            let options: upstream::HttpProtocolOptions = decode(&any.value)?;
            options_of(&options, &mut protocol).at("typed_extension_protocol_options")?;
        }
    }
    Ok(protocol)
}

fn options_of(message: &upstream::HttpProtocolOptions, protocol: &mut Protocol) -> Result<(), Fault> {
    use upstream::http_protocol_options::UpstreamProtocolOptions as By;
    use upstream::http_protocol_options::explicit_http_config::ProtocolConfig;
    refuse!(message;
        http_filters, outlier_detection, request_mirror_policies, hash_policy, retry_policy,
    );
    if let Some(tls) = &message.upstream_http_protocol_options {
        refuse!(tls; override_auto_sni_header);
        protocol.names = AutoNames { sni: tls.auto_sni, sans: tls.auto_san_validation };
    }
    if let Some(common) = &message.common_http_protocol_options {
        protocol.idle_timeout =
            timeout("common_http_protocol_options.idle_timeout", common.idle_timeout.as_ref(), Some(DEFAULT_IDLE))?;
        protocol.max_requests_per_connection =
            value(&common.max_requests_per_connection, protocol.max_requests_per_connection);
    }
    protocol.http = match &message.upstream_protocol_options {
        Some(By::UseDownstreamProtocolConfig(_)) => HttpProtocol::Downstream,
        Some(By::ExplicitHttpConfig(explicit)) => match &explicit.protocol_config {
            Some(ProtocolConfig::Http2ProtocolOptions(_)) => HttpProtocol::Http2,
            Some(ProtocolConfig::HttpProtocolOptions(_)) | None => HttpProtocol::Http1,
            Some(_) => return Err(Fault::field("explicit_http_config", "HTTP/3 is not supported")),
        },
        Some(By::AutoConfig(_)) => return Err(Fault::field("auto_config", "not supported")),
        None => protocol.http,
    };
    Ok(())
}

pub(super) fn limits(message: &pb::Cluster, protocol: &Protocol) -> Result<Limits, Fault> {
    let mut limits = Limits {
        max_connections: DEFAULT_LIMIT,
        max_pending_requests: DEFAULT_LIMIT,
        max_requests: DEFAULT_LIMIT,
        max_retries: DEFAULT_RETRIES,
        retry_budget: None,
        max_requests_per_connection: protocol.max_requests_per_connection,
        idle_timeout: protocol.idle_timeout,
    };
    let Some(breakers) = &message.circuit_breakers else {
        return Ok(limits);
    };
    refuse!(breakers; per_host_thresholds);
    let default_priority = breakers.thresholds.iter().find(|t| t.priority == 0);
    if let Some(thresholds) = default_priority {
        limits.max_connections = value(&thresholds.max_connections, DEFAULT_LIMIT);
        limits.max_pending_requests = value(&thresholds.max_pending_requests, DEFAULT_LIMIT);
        limits.max_requests = value(&thresholds.max_requests, DEFAULT_LIMIT);
        limits.max_retries = value(&thresholds.max_retries, DEFAULT_RETRIES);
        limits.retry_budget = thresholds.retry_budget.as_ref().map(|budget| RetryBudget {
            percent: budget.budget_percent.as_ref().map_or(20.0, |p| p.value.clamp(0.0, 100.0)),
            min_retries: value(&budget.min_retry_concurrency, DEFAULT_RETRIES),
        });
    }
    Ok(limits)
}

pub(super) fn outlier(message: &pb::OutlierDetection) -> Result<OutlierDetection, Fault> {
    refuse!(message; monitors);
    // Envoy ejects by success rate unless told not to; Istio always tells.
    if value(&message.enforcing_success_rate, 100) != 0 {
        return Err(Fault::field("enforcing_success_rate", "must be 0: not supported"));
    }
    refuse_enforced("enforcing_failure_percentage", &message.enforcing_failure_percentage)?;
    refuse_enforced("enforcing_failure_percentage_local_origin", &message.enforcing_failure_percentage_local_origin)?;
    let time = |field, message: &Option<google::Duration>, default| match message {
        Some(message) => duration(message).at(field),
        None => Ok(default),
    };
    let when_enforced = |count: u32, enforcing: &Option<google::UInt32Value>, default: u32| {
        if value(enforcing, default) == 0 { 0 } else { count }
    };
    let base = time("base_ejection_time", &message.base_ejection_time, Duration::from_secs(30))?;
    let max = time("max_ejection_time", &message.max_ejection_time, Duration::from_secs(300))?;
    Ok(OutlierDetection {
        consecutive_5xx: when_enforced(value(&message.consecutive_5xx, 5), &message.enforcing_consecutive_5xx, 100),
        consecutive_gateway_failure: when_enforced(
            value(&message.consecutive_gateway_failure, 5),
            &message.enforcing_consecutive_gateway_failure,
            0,
        ),
        consecutive_local_origin_failure: when_enforced(
            value(&message.consecutive_local_origin_failure, 5),
            &message.enforcing_consecutive_local_origin_failure,
            100,
        ),
        split_local_origin: message.split_external_local_origin_errors,
        interval: time("interval", &message.interval, Duration::from_secs(10))?,
        base_ejection_time: base,
        max_ejection_time: max.max(base),
        max_ejection_percent: value(&message.max_ejection_percent, 10).min(100),
    })
}

fn refuse_enforced(field: &str, enforcing: &Option<google::UInt32Value>) -> Result<(), Fault> {
    match value(enforcing, 0) {
        0 => Ok(()),
        _ => Err(Fault::field(field, "must be 0: not supported")),
    }
}

fn value(message: &Option<google::UInt32Value>, default: u32) -> u32 {
    message.as_ref().map_or(default, |message| message.value)
}

impl Cluster {
    /// Whether retries, outliers or limits of this cluster need bookkeeping at all.
    pub fn is_limited(&self) -> bool {
        let limits = &self.limits;
        self.outlier.is_some()
            || [limits.max_connections, limits.max_pending_requests, limits.max_requests]
                .iter()
                .any(|limit| *limit != u32::MAX)
    }
}
