//! A DestinationRule's traffic policy on a cluster.
//!
//! In: the merged policy. Out: load balancing, limits, outlier detection and HTTP options of the cluster.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster as detail;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::upstreams::http::v3 as http;
use envoy_types::pb::envoy::r#type::v3::Percent;
use http::http_protocol_options as options;

use super::pb::{any, duration, uint32};
use crate::config::destination_rule::{ConsistentHash, H2Upgrade, OutlierDetection, SimpleLb, TrafficPolicy};
use crate::model::protocol::Protocol;

/// Istio's default time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Istio's smallest ring.
const RING_SIZE: u64 = 1024;
/// Key of the HTTP options of a cluster.
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// Istio's default interval and ejection time of outlier detection.
const OUTLIER_INTERVAL: Duration = Duration::from_secs(10);
const OUTLIER_EJECTION: Duration = Duration::from_secs(30);

/// Puts a policy on a cluster whose endpoints can be chosen.
pub(crate) fn apply(policy: &TrafficPolicy, protocol: Protocol, message: &mut cluster::Cluster) {
    let original = message.cluster_discovery_type
        == Some(detail::ClusterDiscoveryType::Type(detail::DiscoveryType::OriginalDst.into()));
    if original {
        message.lb_policy = detail::LbPolicy::ClusterProvided.into();
    } else {
        balance(policy, message);
    }
    let pool = policy.connection_pool.clone().unwrap_or_default();
    message.connect_timeout = duration(pool.tcp.connect_timeout.map_or(CONNECT_TIMEOUT, |span| span.0));
    let limit = |value: Option<u32>| uint32(value.filter(|value| *value > 0).unwrap_or(u32::MAX));
    message.circuit_breakers = Some(cluster::CircuitBreakers {
        thresholds: vec![cluster::circuit_breakers::Thresholds {
            max_connections: limit(pool.tcp.max_connections),
            max_pending_requests: limit(pool.http.http1_max_pending_requests),
            max_requests: limit(pool.http.http2_max_requests),
            max_retries: limit(pool.http.max_retries),
            track_remaining: true,
            ..Default::default()
        }],
        ..Default::default()
    });
    if let Some(outlier) = &policy.outlier_detection {
        message.outlier_detection = Some(outlier_detection(outlier));
        if let Some(percent) = outlier.min_health_percent {
            let common = message.common_lb_config.get_or_insert_default();
            common.healthy_panic_threshold = Some(Percent { value: percent.into() });
        }
    }
    if let Some(options) = http_options(policy, protocol) {
        message.typed_extension_protocol_options.insert(HTTP_OPTIONS.to_owned(), any(&options));
    }
}

/// Whether the policy leaves the choice to the connection's own destination.
pub(crate) fn passthrough(policy: &TrafficPolicy) -> bool {
    policy.load_balancer.as_ref().and_then(|balancer| balancer.simple) == Some(SimpleLb::Passthrough)
}

fn balance(policy: &TrafficPolicy, message: &mut cluster::Cluster) {
    let balancer = policy.load_balancer.clone().unwrap_or_default();
    if let Some(hash) = &balancer.consistent_hash {
        return consistent(hash, message);
    }
    let policy = match balancer.simple {
        Some(SimpleLb::Random) => detail::LbPolicy::Random,
        Some(SimpleLb::RoundRobin) => detail::LbPolicy::RoundRobin,
        Some(SimpleLb::Passthrough) => detail::LbPolicy::ClusterProvided,
        Some(SimpleLb::Unspecified | SimpleLb::LeastConn | SimpleLb::LeastRequest) | None => {
            detail::LbPolicy::LeastRequest
        }
    };
    message.lb_policy = policy.into();
}

fn consistent(hash: &ConsistentHash, message: &mut cluster::Cluster) {
    use envoy_types::pb::google::protobuf::UInt64Value;
    if let Some(maglev) = &hash.maglev {
        message.lb_policy = detail::LbPolicy::Maglev.into();
        let table_size = maglev.table_size.map(|value| UInt64Value { value });
        message.lb_config = Some(detail::LbConfig::MaglevLbConfig(detail::MaglevLbConfig { table_size }));
        return;
    }
    let ring = hash.ring_hash.as_ref().and_then(|ring| ring.minimum_ring_size).or(hash.minimum_ring_size);
    message.lb_policy = detail::LbPolicy::RingHash.into();
    message.lb_config = Some(detail::LbConfig::RingHashLbConfig(detail::RingHashLbConfig {
        minimum_ring_size: Some(UInt64Value { value: ring.unwrap_or(RING_SIZE) }),
        ..Default::default()
    }));
}

fn outlier_detection(outlier: &OutlierDetection) -> cluster::OutlierDetection {
    let on = |value: u32| uint32(if value > 0 { 100 } else { 0 });
    let mut message = cluster::OutlierDetection {
        enforcing_success_rate: uint32(0),
        interval: duration(outlier.interval.map_or(OUTLIER_INTERVAL, |span| span.0)),
        base_ejection_time: duration(outlier.base_ejection_time.map_or(OUTLIER_EJECTION, |span| span.0)),
        max_ejection_percent: outlier.max_ejection_percent.and_then(uint32),
        split_external_local_origin_errors: outlier.split_external_local_origin_errors,
        ..Default::default()
    };
    if let Some(count) = outlier.consecutive_5xx_errors {
        // Envoy wants at least 1 even where nothing is enforced.
        message.consecutive_5xx = uint32(count.max(1));
        message.enforcing_consecutive_5xx = on(count);
    }
    if let Some(count) = outlier.consecutive_gateway_errors {
        message.consecutive_gateway_failure = uint32(count.max(1));
        message.enforcing_consecutive_gateway_failure = on(count);
    }
    if let Some(count) =
        outlier.consecutive_local_origin_failures.filter(|_| outlier.split_external_local_origin_errors)
    {
        message.consecutive_local_origin_failure = uint32(count.max(1));
        message.enforcing_consecutive_local_origin_failure = on(count);
    }
    message
}

/// Options of HTTP towards the service; none where HTTP/1.1 without limits is meant.
fn http_options(policy: &TrafficPolicy, protocol: Protocol) -> Option<http::HttpProtocolOptions> {
    use options::explicit_http_config::ProtocolConfig;
    let pool = policy.connection_pool.clone().unwrap_or_default().http;
    let common = core::HttpProtocolOptions {
        idle_timeout: pool.idle_timeout.and_then(|span| duration(span.0)),
        max_requests_per_connection: pool.max_requests_per_connection.filter(|count| *count > 0).and_then(uint32),
        ..Default::default()
    };
    let http2 = || core::Http2ProtocolOptions {
        max_concurrent_streams: pool.max_concurrent_streams.filter(|count| *count > 0).and_then(uint32),
        ..Default::default()
    };
    let upgrade = protocol == Protocol::Http && pool.h2_upgrade_policy == Some(H2Upgrade::Upgrade);
    let upstream = if protocol == Protocol::Auto || (protocol.is_http() && pool.use_client_protocol) {
        options::UpstreamProtocolOptions::UseDownstreamProtocolConfig(options::UseDownstreamHttpConfig {
            http_protocol_options: Some(core::Http1ProtocolOptions::default()),
            http2_protocol_options: Some(http2()),
            ..Default::default()
        })
    } else if protocol.is_http2() || upgrade {
        options::UpstreamProtocolOptions::ExplicitHttpConfig(options::ExplicitHttpConfig {
            protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(http2())),
        })
    } else if protocol.is_http() && common != core::HttpProtocolOptions::default() {
        options::UpstreamProtocolOptions::ExplicitHttpConfig(options::ExplicitHttpConfig {
            protocol_config: Some(ProtocolConfig::HttpProtocolOptions(core::Http1ProtocolOptions::default())),
        })
    } else {
        return None;
    };
    Some(http::HttpProtocolOptions {
        common_http_protocol_options: (common != core::HttpProtocolOptions::default()).then_some(common),
        upstream_protocol_options: Some(upstream),
        ..Default::default()
    })
}
