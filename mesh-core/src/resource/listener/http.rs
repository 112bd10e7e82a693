//! Reads `http_connection_manager`.
//!
//! In: the message. Out: an [`HttpManager`]. Tracing, request ids, access logs and header-size
//! limits are accepted without effect. Filters that check or change requests are refused.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;

use crate::resource::fault::{At, Fault};
use crate::resource::filters;
use crate::resource::listener::{ClientCertHeader, Codec, EscapedSlashes, HttpManager, Routes};
use crate::resource::route::RouteTable;
use crate::resource::wire::{is_set, refuse, timeout, type_name};

const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";
/// Envoy's default time a stream may be silent.
const DEFAULT_STREAM_IDLE: Duration = Duration::from_secs(300);
/// Envoy's default time a connection may be without requests.
const DEFAULT_IDLE: Duration = Duration::from_secs(3600);

pub(super) fn parse(message: &pb::HttpConnectionManager) -> Result<HttpManager, Fault> {
    refuse!(message;
        add_user_agent, xff_num_trusted_hops, original_ip_detection_extensions,
        early_header_mutation_extensions, skip_xff_append, via, local_reply_config,
        strip_matching_host_port, strip_port_mode, strip_trailing_host_dot,
        path_normalization_options, typed_header_validation_config, append_x_forwarded_port,
        scheme_header_transformation, forward_client_cert_matcher,
        add_proxy_protocol_connection_state, forward_proto_config, proxy_status_config,
    );
    if message.use_remote_address.as_ref().is_some_and(|v| v.value) {
        return Err(Fault::field("use_remote_address", "is for gateways, not supported"));
    }
    let grpc_web = check_filters(&message.http_filters)?;
    let common = message.common_http_protocol_options.as_ref();
    if let Some(common) = common {
        refuse!(common; headers_with_underscores_action);
    }
    let http1 = message.http_protocol_options.as_ref();
    Ok(HttpManager {
        routes: routes(message)?,
        codec: codec(message.codec_type)?,
        stat_prefix: Arc::from(message.stat_prefix.as_str()),
        upgrades: upgrades(message)?,
        normalize_path: message.normalize_path.as_ref().is_some_and(|v| v.value),
        merge_slashes: message.merge_slashes,
        escaped_slashes: escaped_slashes(message.path_with_escaped_slashes_action)?,
        stream_idle_timeout: timeout(
            "stream_idle_timeout",
            message.stream_idle_timeout.as_ref(),
            Some(DEFAULT_STREAM_IDLE),
        )?,
        request_timeout: timeout("request_timeout", message.request_timeout.as_ref(), None)?,
        request_headers_timeout: timeout("request_headers_timeout", message.request_headers_timeout.as_ref(), None)?,
        idle_timeout: timeout(
            "common_http_protocol_options.idle_timeout",
            common.and_then(|common| common.idle_timeout.as_ref()),
            Some(DEFAULT_IDLE),
        )?,
        server_name: Arc::from(match message.server_name.as_str() {
            "" => "envoy",
            name => name,
        }),
        accept_http_10: http1.is_some_and(|http1| http1.accept_http_10),
        client_cert: client_cert(message.forward_client_cert_details)?,
        grpc_web,
    })
}

fn routes(message: &pb::HttpConnectionManager) -> Result<Routes, Fault> {
    use pb::http_connection_manager::RouteSpecifier as By;
    match &message.route_specifier {
        Some(By::Rds(rds)) if rds.route_config_name.is_empty() => Err(Fault::field("rds.route_config_name", "missing")),
        Some(By::Rds(rds)) => Ok(Routes::Rds(Arc::from(rds.route_config_name.as_str()))),
        Some(By::RouteConfig(table)) => {
            RouteTable::from_message(table).map(|table| Routes::Inline(Arc::new(table))).at("route_config")
        }
        Some(By::ScopedRoutes(_)) => Err(Fault::field("scoped_routes", "not supported")),
        None => Err(Fault::field("rds", "missing")),
    }
}

/// Whether gRPC-Web is among the filters, all of which are known.
fn check_filters(filters: &[pb::HttpFilter]) -> Result<bool, Fault> {
    use pb::http_filter::ConfigType;
    let Some((last, before)) = filters.split_last() else {
        return Err(Fault::field("http_filters", "the last filter must be the router"));
    };
    let mut grpc_web = false;
    for (i, filter) in before.iter().enumerate() {
        let config = match &filter.config_type {
            Some(ConfigType::TypedConfig(any)) => Some(any),
            Some(ConfigType::ConfigDiscovery(_)) => {
                return Err(Fault::field("config_discovery", "not supported")).at_index("http_filters", i);
            }
            None => None,
        };
        if !(filter.is_optional || filter.disabled) {
            filters::check_http(&filter.name, config).at_index("http_filters", i)?;
        }
        grpc_web |= !filter.disabled && filters::is_grpc_web(&filter.name, config);
    }
    let is_router = match &last.config_type {
        Some(ConfigType::TypedConfig(any)) => type_name(any) == ROUTER,
        Some(ConfigType::ConfigDiscovery(_)) => false,
        None => last.name == "envoy.filters.http.router",
    };
    if is_router {
        Ok(grpc_web)
    } else {
        Err(Fault::new("the last filter must be the router")).at_index("http_filters", before.len())
    }
}

fn upgrades(message: &pb::HttpConnectionManager) -> Result<Vec<Arc<str>>, Fault> {
    let mut upgrades = Vec::new();
    for (i, upgrade) in message.upgrade_configs.iter().enumerate() {
        if is_set(&upgrade.filters) {
            return Err(Fault::field("filters", "not supported")).at_index("upgrade_configs", i);
        }
        if upgrade.enabled.as_ref().is_none_or(|enabled| enabled.value) {
            upgrades.push(Arc::from(upgrade.upgrade_type.to_ascii_lowercase()));
        }
    }
    Ok(upgrades)
}

fn codec(value: i32) -> Result<Codec, Fault> {
    use pb::http_connection_manager::CodecType;
    match CodecType::try_from(value) {
        Ok(CodecType::Auto) => Ok(Codec::Auto),
        Ok(CodecType::Http1) => Ok(Codec::Http1),
        Ok(CodecType::Http2) => Ok(Codec::Http2),
        _ => Err(Fault::field("codec_type", "only AUTO, HTTP1 and HTTP2 are supported")),
    }
}

fn escaped_slashes(value: i32) -> Result<EscapedSlashes, Fault> {
    use pb::http_connection_manager::PathWithEscapedSlashesAction as Pb;
    match Pb::try_from(value) {
        Ok(Pb::ImplementationSpecificDefault | Pb::KeepUnchanged) => Ok(EscapedSlashes::Keep),
        Ok(Pb::RejectRequest) => Ok(EscapedSlashes::Reject),
        Ok(Pb::UnescapeAndRedirect) => Ok(EscapedSlashes::Redirect),
        Ok(Pb::UnescapeAndForward) => Ok(EscapedSlashes::Unescape),
        Err(_) => Err(Fault::field("path_with_escaped_slashes_action", "unknown value")),
    }
}

fn client_cert(value: i32) -> Result<ClientCertHeader, Fault> {
    use pb::http_connection_manager::ForwardClientCertDetails as Pb;
    match Pb::try_from(value) {
        Ok(Pb::Sanitize) => Ok(ClientCertHeader::Sanitize),
        Ok(Pb::ForwardOnly) => Ok(ClientCertHeader::ForwardOnly),
        Ok(Pb::AppendForward) => Ok(ClientCertHeader::AppendForward),
        Ok(Pb::SanitizeSet) => Ok(ClientCertHeader::SanitizeSet),
        Ok(Pb::AlwaysForwardOnly) => Ok(ClientCertHeader::AlwaysForwardOnly),
        Err(_) => Err(Fault::field("forward_client_cert_details", "unknown value")),
    }
}
