//! Builders of Envoy messages, in the shapes that Istio sends.

use envoy_types::pb::envoy::config::cluster::v3 as cluster;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as endpoint;
use envoy_types::pb::envoy::config::listener::v3 as listener;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as http;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use envoy_types::pb::google::protobuf as google;
use prost::{Message, Name};

/// A message as `Any`.
pub(super) fn packed<M: Message + Name>(message: &M) -> google::Any {
    google::Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

/// An empty message of a type we have no code for.
fn packed_empty(type_name: &str) -> google::Any {
    google::Any { type_url: format!("type.googleapis.com/{type_name}"), value: Vec::new() }
}

pub(super) fn number(value: u32) -> Option<google::UInt32Value> {
    Some(google::UInt32Value { value })
}

pub(super) fn flag(value: bool) -> Option<google::BoolValue> {
    Some(google::BoolValue { value })
}

pub(super) fn seconds(seconds: i64) -> Option<google::Duration> {
    Some(google::Duration { seconds, nanos: 0 })
}

pub(super) fn text(value: &str) -> google::Value {
    google::Value { kind: Some(google::value::Kind::StringValue(value.into())) }
}

pub(super) fn fields(pairs: &[(&str, google::Value)]) -> google::Struct {
    google::Struct { fields: pairs.iter().map(|(k, v)| (k.to_string(), v.clone())).collect() }
}

pub(super) fn metadata(filters: &[(&str, google::Struct)]) -> Option<core::Metadata> {
    Some(core::Metadata {
        filter_metadata: filters.iter().map(|(k, v)| (k.to_string(), v.clone())).collect(),
        ..Default::default()
    })
}

fn socket(host: &str, port: u32) -> core::SocketAddress {
    core::SocketAddress {
        address: host.into(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port)),
        ..Default::default()
    }
}

pub(super) fn address(host: &str, port: u32) -> core::Address {
    core::Address { address: Some(core::address::Address::SocketAddress(socket(host, port))) }
}

/// A cluster that gets its endpoints under its own name.
pub(super) fn eds_cluster(name: &str) -> cluster::Cluster {
    cluster::Cluster {
        name: name.into(),
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(
            cluster::cluster::DiscoveryType::Eds as i32,
        )),
        eds_cluster_config: Some(cluster::cluster::EdsClusterConfig {
            service_name: name.into(),
            ..Default::default()
        }),
        connect_timeout: seconds(10),
        lb_policy: cluster::cluster::LbPolicy::LeastRequest as i32,
        ..Default::default()
    }
}

pub(super) fn lb_endpoint(host: &str, port: u32) -> endpoint::LbEndpoint {
    endpoint::LbEndpoint {
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint::Endpoint {
            address: Some(address(host, port)),
            ..Default::default()
        })),
        ..Default::default()
    }
}

/// An assignment of one locality.
pub(super) fn assignment(name: &str, endpoints: Vec<endpoint::LbEndpoint>) -> endpoint::ClusterLoadAssignment {
    endpoint::ClusterLoadAssignment {
        cluster_name: name.into(),
        endpoints: vec![endpoint::LocalityLbEndpoints { lb_endpoints: endpoints, ..Default::default() }],
        ..Default::default()
    }
}

/// A table that sends everything to one cluster.
pub(super) fn route_table(name: &str, cluster: &str) -> route::RouteConfiguration {
    route::RouteConfiguration {
        name: name.into(),
        virtual_hosts: vec![route::VirtualHost {
            name: "all".into(),
            domains: vec!["*".into()],
            routes: vec![route::Route {
                r#match: Some(route::RouteMatch {
                    path_specifier: Some(route::route_match::PathSpecifier::Prefix("/".into())),
                    ..Default::default()
                }),
                action: Some(route::route::Action::Route(route::RouteAction {
                    cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster(cluster.into())),
                    ..Default::default()
                })),
                ..Default::default()
            }],
            ..Default::default()
        }],
        ..Default::default()
    }
}

pub(super) fn filter(name: &str, config: google::Any) -> listener::Filter {
    listener::Filter { name: name.into(), config_type: Some(listener::filter::ConfigType::TypedConfig(config)) }
}

/// A `tcp_proxy` to one cluster.
pub(super) fn tcp_filter(cluster: &str) -> listener::Filter {
    let proxy = tcp::TcpProxy {
        stat_prefix: cluster.into(),
        cluster_specifier: Some(tcp::tcp_proxy::ClusterSpecifier::Cluster(cluster.into())),
        ..Default::default()
    };
    filter("envoy.filters.network.tcp_proxy", packed(&proxy))
}

/// An HTTP manager with routes by RDS, as Istio builds it for a sidecar.
pub(super) fn http_manager(rds: &str) -> http::HttpConnectionManager {
    let http_filter = |name: &str, type_name: &str| http::HttpFilter {
        name: name.into(),
        config_type: Some(http::http_filter::ConfigType::TypedConfig(packed_empty(type_name))),
        ..Default::default()
    };
    http::HttpConnectionManager {
        stat_prefix: "outbound_0.0.0.0_9080;".into(),
        normalize_path: flag(true),
        path_with_escaped_slashes_action: 1,
        use_remote_address: flag(false),
        stream_idle_timeout: seconds(0),
        upgrade_configs: vec![http::http_connection_manager::UpgradeConfig {
            upgrade_type: "websocket".into(),
            ..Default::default()
        }],
        http_filters: vec![
            http_filter("envoy.filters.http.grpc_stats", "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig"),
            http_filter("istio.alpn", "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig"),
            http_filter("envoy.filters.http.fault", "envoy.extensions.filters.http.fault.v3.HTTPFault"),
            http_filter("envoy.filters.http.cors", "envoy.extensions.filters.http.cors.v3.Cors"),
            http_filter("istio.stats", "stats.PluginConfig"),
            http_filter("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router"),
        ],
        route_specifier: Some(http::http_connection_manager::RouteSpecifier::Rds(http::Rds {
            route_config_name: rds.into(),
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn http_filter(rds: &str) -> listener::Filter {
    filter("envoy.filters.network.http_connection_manager", packed(&http_manager(rds)))
}

pub(super) fn chain(
    name: &str,
    matches: listener::FilterChainMatch,
    filters: Vec<listener::Filter>,
) -> listener::FilterChain {
    listener::FilterChain { name: name.into(), filter_chain_match: Some(matches), filters, ..Default::default() }
}

/// TLS towards clients, who must prove an identity that begins with `prefix`.
pub(super) fn mutual_tls(prefix: &str) -> core::TransportSocket {
    use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
    use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
    let names = matcher::StringMatcher {
        match_pattern: Some(matcher::string_matcher::MatchPattern::Prefix(prefix.into())),
        ignore_case: false,
    };
    let validation = tls::common_tls_context::CombinedCertificateValidationContext {
        default_validation_context: Some(tls::CertificateValidationContext {
            match_typed_subject_alt_names: vec![tls::SubjectAltNameMatcher {
                matcher: Some(names),
                ..Default::default()
            }],
            ..Default::default()
        }),
        validation_context_sds_secret_config: Some(tls::SdsSecretConfig {
            name: "ROOTCA".into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let context = tls::DownstreamTlsContext {
        require_client_certificate: flag(true),
        common_tls_context: Some(tls::CommonTlsContext {
            validation_context_type: Some(tls::common_tls_context::ValidationContextType::CombinedValidationContext(
                validation,
            )),
            ..Default::default()
        }),
        ..Default::default()
    };
    core::TransportSocket {
        name: "envoy.transport_sockets.tls".into(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(packed(&context))),
    }
}

pub(super) fn inspector(name: &str) -> listener::ListenerFilter {
    let type_name = match name {
        "tls_inspector" => "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
        _ => "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector",
    };
    listener::ListenerFilter {
        name: format!("envoy.filters.listener.{name}"),
        config_type: Some(listener::listener_filter::ConfigType::TypedConfig(packed_empty(type_name))),
        ..Default::default()
    }
}

/// Match of a detected plain HTTP connection.
pub(super) fn plain_http() -> listener::FilterChainMatch {
    listener::FilterChainMatch {
        transport_protocol: "raw_buffer".into(),
        application_protocols: vec!["http/1.1".into(), "h2c".into()],
        ..Default::default()
    }
}

/// Istio's shared HTTP listener of a port: HTTP by RDS, the rest passes through.
pub(super) fn http_listener(name: &str, host: &str, port: u32, rds: &str) -> listener::Listener {
    listener::Listener {
        name: name.into(),
        address: Some(address(host, port)),
        bind_to_port: flag(false),
        traffic_direction: core::TrafficDirection::Outbound as i32,
        filter_chains: vec![chain("http", plain_http(), vec![http_filter(rds)])],
        default_filter_chain: Some(chain(
            "PassthroughFilterChain",
            Default::default(),
            vec![tcp_filter("PassthroughCluster")],
        )),
        listener_filters: vec![inspector("http_inspector")],
        continue_on_listener_filters_timeout: true,
        listener_filters_timeout: seconds(0),
        ..Default::default()
    }
}
