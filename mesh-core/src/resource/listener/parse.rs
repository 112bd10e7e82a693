//! Reads `envoy.config.listener.v3.Listener`.
//!
//! In: the message. Out: a [`Listener`]. Socket options, statistics and access logs are accepted
//! without effect: the agent has its own.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;

use crate::resource::fault::{At, Fault, each};
use crate::resource::listener::{
    Direction, DownstreamTls, FilterChain, FilterChainMatch, Inspectors, Listener, SourceType, TcpProxy, Terminal,
    TransportProtocol, http,
};
use crate::resource::route::{Weighted, WeightedCluster};
use crate::resource::tls::{CommonTls, check_required};
use crate::resource::wire::{cidr, decode, duration, is_set, port, refuse, socket_address, timeout, type_name};
use crate::resource::{Rejection, filters};

const TCP_PROXY: &str = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const HTTP_MANAGER: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const RAW: &str = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";
const TLS: &str = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
/// Envoy's default time for listener filters.
const DEFAULT_DETECTION: Duration = Duration::from_secs(15);
/// Envoy's default idle time of TCP connections.
const DEFAULT_TCP_IDLE: Duration = Duration::from_secs(3600);

impl Listener {
    /// Parses a resource called `name`.
    pub fn parse(name: &str, body: &[u8]) -> Result<Self, Rejection> {
        let read = || {
            let message: pb::Listener = decode(body)?;
            if message.name != name {
                return Err(Fault::field("name", format!("is {:?}, the resource is called {name:?}", message.name)));
            }
            Self::from_message(&message)
        };
        read().map_err(|fault: Fault| fault.reject(name))
    }

    /// Names of the route tables it needs.
    pub fn route_names(&self) -> impl Iterator<Item = &Arc<str>> {
        use crate::resource::listener::Routes;
        self.chains.iter().chain(&self.default_chain).filter_map(|chain| match &chain.terminal {
            Terminal::Http(manager) => match &manager.routes {
                Routes::Rds(name) => Some(name),
                Routes::Inline(_) => None,
            },
            Terminal::Tcp(_) => None,
        })
    }

    pub(crate) fn from_message(message: &pb::Listener) -> Result<Self, Fault> {
        refuse!(message; fcds_config, filter_chain_matcher, api_listener, udp_listener_config);
        let addresses = addresses(message)?;
        let internal = addresses.is_empty();
        let mut chains = Vec::new();
        let mut default_chain = None;
        // Internal listeners are HBONE's plumbing in Envoy; the agent does that work by itself.
        if !internal {
            chains = message
                .filter_chains
                .iter()
                .enumerate()
                .map(|(i, message)| chain(message).at_index("filter_chains", i))
                .collect::<Result<Vec<_>, _>>()?;
            check_distinct(&chains)?;
            if let Some(message) = &message.default_filter_chain {
                default_chain = Some(chain(message).at("default_filter_chain")?);
            }
            if chains.is_empty() && default_chain.is_none() {
                return Err(Fault::field("filter_chains", "a listener needs a chain"));
            }
        }
        Ok(Listener {
            name: Arc::from(message.name.as_str()),
            addresses,
            direction: match core::TrafficDirection::try_from(message.traffic_direction) {
                Ok(core::TrafficDirection::Inbound) => Direction::Inbound,
                Ok(core::TrafficDirection::Outbound) => Direction::Outbound,
                _ => Direction::Unspecified,
            },
            bind_to_port: message.bind_to_port.as_ref().is_none_or(|bind| bind.value),
            chains,
            default_chain,
            detection_timeout: timeout(
                "listener_filters_timeout",
                message.listener_filters_timeout.as_ref(),
                Some(DEFAULT_DETECTION),
            )?,
            continue_on_timeout: message.continue_on_listener_filters_timeout,
            inspectors: Inspectors::parse(&message.listener_filters)?,
        })
    }
}

/// All addresses; none for an internal listener.
fn addresses(message: &pb::Listener) -> Result<Vec<SocketAddr>, Fault> {
    use core::address::Address;
    if is_set(&message.listener_specifier) {
        return Ok(Vec::new());
    }
    let one = |address: Option<&core::Address>| match address.and_then(|a| a.address.as_ref()) {
        Some(Address::SocketAddress(socket)) => socket_address(socket).at("socket_address"),
        Some(Address::Pipe(_)) => Err(Fault::field("pipe", "not supported")),
        Some(Address::EnvoyInternalAddress(_)) => Err(Fault::field("envoy_internal_address", "not supported here")),
        None => Err(Fault::new("missing")),
    };
    let mut all = vec![one(message.address.as_ref()).at("address")?];
    for (i, additional) in message.additional_addresses.iter().enumerate() {
        let address = one(additional.address.as_ref()).at("address");
        all.push(address.at_index("additional_addresses", i)?);
    }
    Ok(all)
}

/// Two chains for the same connections would leave one without any.
fn check_distinct(chains: &[FilterChain]) -> Result<(), Fault> {
    let mut seen = HashMap::new();
    for (i, chain) in chains.iter().enumerate() {
        if let Some(earlier) = seen.insert(&chain.matches, i) {
            return Err(Fault::new(format!("matches the same as filter_chains[{earlier}]")))
                .at("filter_chain_match")
                .at_index("filter_chains", i);
        }
    }
    Ok(())
}

fn chain(message: &pb::FilterChain) -> Result<FilterChain, Fault> {
    refuse!(message; use_proxy_proto);
    let matches = match &message.filter_chain_match {
        Some(matches) => chain_match(matches).at("filter_chain_match")?,
        None => FilterChainMatch::default(),
    };
    Ok(FilterChain {
        name: Arc::from(message.name.as_str()),
        matches,
        tls: downstream_tls(message.transport_socket.as_ref()).at("transport_socket")?,
        terminal: terminal(&message.filters)?,
    })
}

fn chain_match(message: &pb::FilterChainMatch) -> Result<FilterChainMatch, Fault> {
    use pb::filter_chain_match::ConnectionSourceType as Source;
    refuse!(message; address_suffix, suffix_len);
    let names = |names: &[String]| names.iter().map(|n| Arc::from(n.as_str())).collect();
    Ok(FilterChainMatch {
        destination_port: match &message.destination_port {
            Some(value) => Some(port(value.value).at("destination_port")?),
            None => None,
        },
        prefix_ranges: each("prefix_ranges", &message.prefix_ranges, cidr)?,
        server_names: each("server_names", &message.server_names, server_name)?,
        transport: match message.transport_protocol.as_str() {
            "" => None,
            "raw_buffer" => Some(TransportProtocol::Raw),
            "tls" => Some(TransportProtocol::Tls),
            other => {
                return Err(Fault::field("transport_protocol", format!("{other:?} is not supported")));
            }
        },
        application_protocols: names(&message.application_protocols),
        direct_source_prefix_ranges: each("direct_source_prefix_ranges", &message.direct_source_prefix_ranges, cidr)?,
        source_type: match Source::try_from(message.source_type) {
            Ok(Source::Any) => SourceType::Any,
            Ok(Source::SameIpOrLoopback) => SourceType::Local,
            Ok(Source::External) => SourceType::External,
            Err(_) => return Err(Fault::field("source_type", "unknown value")),
        },
        source_prefix_ranges: each("source_prefix_ranges", &message.source_prefix_ranges, cidr)?,
        source_ports: each("source_ports", &message.source_ports, |value| port(*value))?,
    })
}

/// `name` or `*.suffix`; `*` alone stands for no condition in Envoy and is not sent by Istio.
fn server_name(name: &String) -> Result<Arc<str>, Fault> {
    let rest = name.strip_prefix("*.").unwrap_or(name);
    if rest.is_empty() || rest.contains('*') {
        return Err(Fault::new(format!("{name:?} is not a name or \"*.suffix\"")));
    }
    Ok(Arc::from(name.to_ascii_lowercase()))
}

fn downstream_tls(message: Option<&core::TransportSocket>) -> Result<Option<Arc<DownstreamTls>>, Fault> {
    use core::transport_socket::ConfigType;
    let Some(message) = message else {
        return Ok(None);
    };
    let Some(ConfigType::TypedConfig(any)) = &message.config_type else {
        return Err(Fault::field("typed_config", "missing"));
    };
    match type_name(any).as_str() {
        RAW => Ok(None),
        TLS => {
            let read = || {
                let message: tls::DownstreamTlsContext = decode(&any.value)?;
                refuse!(message; require_sni);
                let require = message.require_client_certificate.as_ref();
                let common = CommonTls::parse(message.common_tls_context.as_ref()).at("common_tls_context")?;
                let required = require.is_some_and(|v| v.value);
                check_required(required, common.roots.as_ref())?;
                Ok(Some(Arc::new(DownstreamTls {
                    require_client_certificate: required,
                    alpn: common.alpn,
                    certificate: common.certificate,
                    roots: common.roots,
                    sans: common.sans,
                    only_tls13: common.only_tls13,
                })))
            };
            read().at("typed_config")
        }
        other => Err(Fault::field("typed_config", format!("transport socket {other:?} is not supported"))),
    }
}

/// The last filter says what becomes of the bytes; those before it must be known to be harmless.
fn terminal(filters: &[pb::Filter]) -> Result<Terminal, Fault> {
    use pb::filter::ConfigType;
    let Some((last, before)) = filters.split_last() else {
        return Err(Fault::field("filters", "a chain needs tcp_proxy or http_connection_manager"));
    };
    let config = |filter: &'_ pb::Filter| match &filter.config_type {
        Some(ConfigType::TypedConfig(any)) => Ok(Some(any.clone())),
        Some(ConfigType::ConfigDiscovery(_)) => Err(Fault::field("config_discovery", "not supported")),
        None => Ok(None),
    };
    for (i, filter) in before.iter().enumerate() {
        config(filter).and_then(|any| filters::check_network(&filter.name, any.as_ref())).at_index("filters", i)?;
    }
    let read = || {
        let any = config(last)?.ok_or_else(|| Fault::field("typed_config", "missing"))?;
        match type_name(&any).as_str() {
            TCP_PROXY => {
                let message = decode(&any.value).at("typed_config")?;
                tcp_proxy(&message).map(Terminal::Tcp).at("typed_config")
            }
            HTTP_MANAGER => {
                let message = decode(&any.value).at("typed_config")?;
                http::parse(&message).map(Terminal::Http).at("typed_config")
            }
            other => Err(Fault::new(format!(
                "the last filter is {:?} ({other}), it must be tcp_proxy or http_connection_manager",
                last.name
            ))),
        }
    };
    read().at_index("filters", before.len())
}

fn tcp_proxy(message: &tcp::TcpProxy) -> Result<TcpProxy, Fault> {
    use tcp::tcp_proxy::ClusterSpecifier as By;
    refuse!(message; on_demand, metadata_match, tunneling_config, proxy_protocol_tlvs, upstream_connect_mode);
    let clusters = match &message.cluster_specifier {
        Some(By::Cluster(name)) => Weighted::single(name).at("cluster")?,
        Some(By::WeightedClusters(weighted)) => each("clusters", &weighted.clusters, |entry| {
            refuse!(entry; metadata_match);
            WeightedCluster::plain(&entry.name, entry.weight)
        })
        .and_then(Weighted::new)
        .at("weighted_clusters")?,
        None => return Err(Fault::field("cluster", "missing")),
    };
    Ok(TcpProxy {
        clusters,
        idle_timeout: timeout("idle_timeout", message.idle_timeout.as_ref(), Some(DEFAULT_TCP_IDLE))?,
        max_duration: match &message.max_downstream_connection_duration {
            Some(value) => Some(duration(value).at("max_downstream_connection_duration")?),
            None => None,
        },
        hash_source_ip: hash_source_ip(message).at("hash_policy")?,
        stat_prefix: Arc::from(message.stat_prefix.as_str()),
    })
}

fn hash_source_ip(message: &tcp::TcpProxy) -> Result<bool, Fault> {
    use envoy_types::pb::envoy::r#type::v3::hash_policy::PolicySpecifier;
    match message.hash_policy.as_slice() {
        [] => Ok(false),
        [only] if matches!(only.policy_specifier, Some(PolicySpecifier::SourceIp(_))) => Ok(true),
        _ => Err(Fault::new("only source_ip is supported")),
    }
}
