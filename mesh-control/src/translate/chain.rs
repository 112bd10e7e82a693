//! Filter chains: what becomes of a connection's bytes.
//!
//! In: names of routes or clusters. Out: chains that end in `http_connection_manager` or `tcp_proxy`, with Istio's settings.

use std::time::Duration;

use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::Cors;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use envoy_types::pb::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as http;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use http::http_connection_manager::RouteSpecifier;
use prost::{Message, Name};

use super::pb::{address, ads, any, boolean, duration};

/// Name of the chain and cluster of connections that no rule is for.
pub(crate) const PASSTHROUGH_CHAIN: &str = "PassthroughFilterChain";
/// Cluster of outbound connections that no rule is for.
pub(crate) const PASSTHROUGH: &str = "PassthroughCluster";
/// Cluster that leads nowhere.
pub(crate) const BLACK_HOLE: &str = "BlackHoleCluster";

/// Where a TCP connection goes: clusters with weights, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub clusters: Vec<(String, u32)>,
    pub hash_source_ip: bool,
}

impl Target {
    pub(crate) fn one(cluster: impl Into<String>) -> Target {
        Target { clusters: vec![(cluster.into(), 1)], hash_source_ip: false }
    }
}

/// A chain that copies bytes.
pub(crate) fn tcp_chain(name: &str, matches: Option<pb::FilterChainMatch>, target: &Target) -> pb::FilterChain {
    use envoy_types::pb::envoy::r#type::v3::{HashPolicy, hash_policy};
    use tcp::tcp_proxy::{ClusterSpecifier, WeightedCluster, weighted_cluster::ClusterWeight};
    let (specifier, stat_prefix) = match target.clusters.as_slice() {
        [(only, _)] => (ClusterSpecifier::Cluster(only.clone()), only.clone()),
        several => {
            let clusters = several
                .iter()
                .map(|(name, weight)| ClusterWeight { name: name.clone(), weight: *weight, metadata_match: None })
                .collect();
            (ClusterSpecifier::WeightedClusters(WeightedCluster { clusters }), name.to_owned())
        }
    };
    let source_ip = HashPolicy { policy_specifier: Some(hash_policy::PolicySpecifier::SourceIp(Default::default())) };
    let proxy = tcp::TcpProxy {
        stat_prefix,
        cluster_specifier: Some(specifier),
        hash_policy: if target.hash_source_ip { vec![source_ip] } else { Vec::new() },
        ..Default::default()
    };
    chain(name, matches, filter("envoy.filters.network.tcp_proxy", &proxy))
}

/// A chain that routes requests.
pub(crate) fn http_chain(
    name: &str,
    matches: Option<pb::FilterChainMatch>,
    stat_prefix: String,
    routes: Routes,
) -> pb::FilterChain {
    let manager = manager(stat_prefix, routes);
    chain(name, matches, filter("envoy.filters.network.http_connection_manager", &manager))
}

/// Where an HTTP chain's routes come from.
pub(crate) enum Routes {
    /// RDS, for clients.
    Named(String),
    /// In the listener, for servers.
    Inline(Box<RouteConfiguration>),
}

fn manager(stat_prefix: String, routes: Routes) -> http::HttpConnectionManager {
    use http::http_connection_manager::{
        CodecType, ForwardClientCertDetails, SetCurrentClientCertDetails, UpgradeConfig,
    };
    let mut message = http::HttpConnectionManager {
        codec_type: CodecType::Auto.into(),
        stat_prefix,
        normalize_path: boolean(true),
        use_remote_address: boolean(false),
        proxy_100_continue: true,
        stream_idle_timeout: duration(Duration::ZERO),
        upgrade_configs: vec![UpgradeConfig { upgrade_type: "websocket".to_owned(), ..Default::default() }],
        http_filters: vec![
            http_filter("envoy.filters.http.fault", &HttpFault::default()),
            http_filter("envoy.filters.http.cors", &Cors::default()),
            http_filter("envoy.filters.http.router", &Router::default()),
        ],
        ..Default::default()
    };
    message.route_specifier = Some(match routes {
        Routes::Named(name) => RouteSpecifier::Rds(http::Rds { config_source: Some(ads()), route_config_name: name }),
        Routes::Inline(table) => {
            message.server_name = "istio-envoy".to_owned();
            message.forward_client_cert_details = ForwardClientCertDetails::AppendForward.into();
            message.set_current_client_cert_details = Some(SetCurrentClientCertDetails {
                subject: boolean(true),
                uri: true,
                dns: true,
                ..Default::default()
            });
            RouteSpecifier::RouteConfig(*table)
        }
    });
    message
}

fn chain(name: &str, matches: Option<pb::FilterChainMatch>, filter: pb::Filter) -> pb::FilterChain {
    pb::FilterChain { name: name.to_owned(), filter_chain_match: matches, filters: vec![filter], ..Default::default() }
}

fn filter<T: Message + Name>(name: &str, config: &T) -> pb::Filter {
    pb::Filter { name: name.to_owned(), config_type: Some(pb::filter::ConfigType::TypedConfig(any(config))) }
}

fn http_filter<T: Message + Name>(name: &str, config: &T) -> http::HttpFilter {
    http::HttpFilter {
        name: name.to_owned(),
        config_type: Some(http::http_filter::ConfigType::TypedConfig(any(config))),
        ..Default::default()
    }
}

fn listener_filter<T: Message + Name>(name: &str, config: &T) -> pb::ListenerFilter {
    pb::ListenerFilter {
        name: name.to_owned(),
        config_type: Some(pb::listener_filter::ConfigType::TypedConfig(any(config))),
        filter_disabled: None,
    }
}

/// Plain HTTP, found out by its first bytes.
pub(crate) fn plain_http() -> pb::FilterChainMatch {
    pb::FilterChainMatch {
        transport_protocol: "raw_buffer".to_owned(),
        application_protocols: vec!["http/1.1".to_owned(), "h2c".to_owned()],
        ..Default::default()
    }
}

/// Any other plain bytes, beside [`plain_http`]: where one chain asks for a transport, a chain that asks for none is not
/// looked at (Envoy's order of matching).
pub(crate) fn plain() -> pb::FilterChainMatch {
    pb::FilterChainMatch { transport_protocol: "raw_buffer".to_owned(), ..Default::default() }
}

/// Tells HTTP from other bytes.
pub(crate) fn http_inspector() -> pb::ListenerFilter {
    listener_filter("envoy.filters.listener.http_inspector", &HttpInspector::default())
}

/// Reads server names of TLS.
pub(crate) fn tls_inspector() -> pb::ListenerFilter {
    listener_filter("envoy.filters.listener.tls_inspector", &TlsInspector::default())
}

/// Finds where a caught connection was going.
pub(crate) fn original_dst() -> pb::ListenerFilter {
    listener_filter("envoy.filters.listener.original_dst", &OriginalDst::default())
}

/// A listener without chains at `hosts` (at least one) on one port.
pub(crate) fn listener(name: String, hosts: &[&str], port: u16, inbound: bool) -> pb::Listener {
    use envoy_types::pb::envoy::config::core::v3::TrafficDirection;
    let mut addresses = hosts.iter().map(|host| address(host, port));
    let direction = if inbound { TrafficDirection::Inbound } else { TrafficDirection::Outbound };
    pb::Listener {
        name,
        address: addresses.next(),
        additional_addresses: addresses
            .map(|address| pb::AdditionalAddress { address: Some(address), ..Default::default() })
            .collect(),
        traffic_direction: direction.into(),
        ..Default::default()
    }
}

/// Every address of both families.
pub(crate) const ANY: [&str; 2] = ["0.0.0.0", "::"];
