//! Which filters may stand in a chain.
//!
//! In: a filter's name and type. Out: yes, or a fault naming it. What this mesh does by itself
//! (metrics, peer metadata, ALPN) or what has no effect on traffic is accepted; any other filter
//! that is not optional is refused, because without it traffic would pass unchanged or unchecked.

use envoy_types::pb::envoy::config::cluster::v3 as cluster;
use envoy_types::pb::google::protobuf::Any;

use crate::resource::fault::{At, Fault};
use crate::resource::wire::type_name;

/// Types accepted without effect in network chains.
const NETWORK: &[&str] = &[
    "stats.PluginConfig",
    "envoy.tcp.metadataexchange.config.MetadataExchange",
    "envoy.extensions.network_filters.peer_metadata.Config",
    "envoy.extensions.network_filters.peer_metadata.UpstreamConfig",
];
/// Types accepted without effect among HTTP filters. Faults and CORS act only by per-route
/// settings, which are refused there.
const HTTP: &[&str] = &[
    "stats.PluginConfig",
    "io.istio.http.peer_metadata.Config",
    "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig",
    "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig",
    "envoy.extensions.filters.http.cors.v3.Cors",
    GRPC_WEB,
];
const GRPC_WEB: &str = "envoy.extensions.filters.http.grpc_web.v3.GrpcWeb";
const FAULT: &str = "envoy.extensions.filters.http.fault.v3.HTTPFault";
/// Types accepted among listener filters besides the inspectors.
const LISTENER: &[&str] = &[
    "envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
    "envoy.extensions.filters.listener.original_src.v3.OriginalSrc",
];
/// Names that stand for the same when a filter comes without settings.
const BARE: &[&str] = &[
    "istio.stats",
    "istio.metadata_exchange",
    "istio.alpn",
    "envoy.filters.http.cors",
    "envoy.filters.http.grpc_stats",
    "envoy.filters.http.grpc_web",
    "envoy.filters.listener.original_dst",
    "envoy.filters.listener.original_src",
];

/// Whether a network filter may be passed over.
pub(crate) fn check_network(name: &str, config: Option<&Any>) -> Result<(), Fault> {
    check(name, config, NETWORK)
}

/// Whether a listener filter may be passed over.
pub(crate) fn check_listener(name: &str, config: Option<&Any>) -> Result<(), Fault> {
    check(name, config, LISTENER)
}

/// Whether an HTTP filter may be passed over.
pub(crate) fn check_http(name: &str, config: Option<&Any>) -> Result<(), Fault> {
    match config {
        // With settings of its own it would act on every request.
        Some(any) if type_name(any) == FAULT && any.value.is_empty() => Ok(()),
        None if name == "envoy.filters.http.fault" => Ok(()),
        config => check(name, config, HTTP),
    }
}

/// Whether an HTTP filter is the one for gRPC-Web.
pub(crate) fn is_grpc_web(name: &str, config: Option<&Any>) -> bool {
    config.map_or(name == "envoy.filters.http.grpc_web", |any| type_name(any) == GRPC_WEB)
}

/// Whether a cluster's upstream filters may be passed over.
pub(crate) fn check_upstream(filters: &[cluster::Filter]) -> Result<(), Fault> {
    for (i, filter) in filters.iter().enumerate() {
        if filter.config_discovery.is_some() {
            return Err(Fault::field("config_discovery", "not supported")).at_index("filters", i);
        }
        check_network(&filter.name, filter.typed_config.as_ref()).at_index("filters", i)?;
    }
    Ok(())
}

fn check(name: &str, config: Option<&Any>, types: &[&str]) -> Result<(), Fault> {
    let type_name = config.map(type_name).unwrap_or_default();
    let known = if type_name.is_empty() { BARE.contains(&name) } else { types.contains(&type_name.as_str()) };
    if known { Ok(()) } else { Err(Fault::new(format!("filter {name:?} ({type_name}) is not supported"))) }
}
