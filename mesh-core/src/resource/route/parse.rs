//! Reads `RouteConfiguration`: tables, virtual hosts, routes; and selects a route.
//!
//! In: the message. Out: a [`RouteTable`] with its domains indexed and header changes flattened.

use std::collections::HashMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::google::protobuf::Any;
use prost::Message;

use crate::resource::Rejection;
use crate::resource::fault::{At, Fault};
use crate::resource::route::{
    Action, Domains, HeaderOps, RequestHead, Route, RouteMatch, RouteOutcome, RouteTable, VirtualHost,
};
use crate::resource::wire::{decode, metadata, name, refuse, text, type_name};

const FILTER_CONFIG: &str = "envoy.config.route.v3.FilterConfig";

/// What the levels above a route add to it.
struct Above<'a> {
    virtual_host: Arc<str>,
    include_attempt_count: bool,
    request: [&'a HeaderOps; 2],
    response: [&'a HeaderOps; 2],
    outermost_first: bool,
    retry: Option<&'a pb::RetryPolicy>,
}

impl RouteTable {
    /// Parses a resource called `name`.
    pub fn parse(name: &str, body: &[u8]) -> Result<Self, Rejection> {
        let read = || {
            let message: pb::RouteConfiguration = decode(body)?;
            if message.name != name {
                return Err(Fault::field("name", format!("is {:?}, the resource is called {name:?}", message.name)));
            }
            Self::from_message(&message)
        };
        read().map_err(|fault: Fault| fault.reject(name))
    }

    /// The route of a request: its virtual host by domain, then the first route that matches.
    pub fn select(&self, request: &RequestHead<'_>) -> RouteOutcome<'_> {
        let host = self.domains.find(request.authority);
        let Some(host) = host.and_then(|index| self.virtual_hosts.get(index)) else {
            return RouteOutcome::NoVirtualHost;
        };
        match host.routes.iter().find(|route| route.matches.matches(request)) {
            Some(route) => RouteOutcome::Route(route),
            None => RouteOutcome::NoRoute,
        }
    }

    pub(crate) fn from_message(message: &pb::RouteConfiguration) -> Result<Self, Fault> {
        refuse!(message;
            vhds, internal_only_headers, cluster_specifier_plugins, request_mirror_policies,
            vhost_header, ignore_path_parameters_in_path_matching, route_specifiers,
        );
        check_filter_config(&message.typed_per_filter_config)?;
        let request = request_ops(&message.request_headers_to_add, &message.request_headers_to_remove)?;
        let response = response_ops(&message.response_headers_to_add, &message.response_headers_to_remove)?;
        let mut domains = Domains::new(message.ignore_port_in_host_matching);
        let mut virtual_hosts = Vec::with_capacity(message.virtual_hosts.len());
        for (i, host) in message.virtual_hosts.iter().enumerate() {
            let outermost_first = message.most_specific_header_mutations_wins;
            let parsed = virtual_host(host, &request, &response, outermost_first)
                .and_then(|parsed| {
                    if host.domains.is_empty() {
                        return Err(Fault::field("domains", "a virtual host needs a domain"));
                    }
                    for (j, domain) in host.domains.iter().enumerate() {
                        domains.add(domain, i).at_index("domains", j)?;
                    }
                    Ok(parsed)
                })
                .at_index("virtual_hosts", i)?;
            virtual_hosts.push(parsed);
        }
        Ok(RouteTable { name: Arc::from(message.name.as_str()), virtual_hosts, domains })
    }
}

fn virtual_host(
    message: &pb::VirtualHost,
    table_request: &HeaderOps,
    table_response: &HeaderOps,
    outermost_first: bool,
) -> Result<VirtualHost, Fault> {
    refuse!(message;
        matcher, require_tls, rate_limits, cors, include_attempt_count_in_response,
        retry_policy_typed_config, hedge_policy, include_is_timeout_retry_header,
        request_mirror_policies, route_specifiers,
    );
    check_filter_config(&message.typed_per_filter_config)?;
    let request = request_ops(&message.request_headers_to_add, &message.request_headers_to_remove)?;
    let response = response_ops(&message.response_headers_to_add, &message.response_headers_to_remove)?;
    let above = Above {
        virtual_host: Arc::from(message.name.as_str()),
        include_attempt_count: message.include_request_attempt_count,
        request: [&request, table_request],
        response: [&response, table_response],
        outermost_first,
        retry: message.retry_policy.as_ref(),
    };
    let routes = message
        .routes
        .iter()
        .enumerate()
        .map(|(i, message)| route(message, &above).at_index("routes", i))
        .collect::<Result<_, _>>()?;
    Ok(VirtualHost { name: above.virtual_host, routes, include_attempt_count: message.include_request_attempt_count })
}

fn route(message: &pb::Route, above: &Above<'_>) -> Result<Route, Fault> {
    refuse!(message; route_specifiers);
    check_filter_config(&message.typed_per_filter_config)?;
    let request = request_ops(&message.request_headers_to_add, &message.request_headers_to_remove)?;
    let response = response_ops(&message.response_headers_to_add, &message.response_headers_to_remove)?;
    let matches = message
        .r#match
        .as_ref()
        .ok_or_else(|| Fault::field("match", "missing"))
        .and_then(|matches| RouteMatch::parse(matches).at("match"))?;
    let action = Action::parse(message.action.as_ref(), above.retry)?;
    if above.outermost_first && action.has_cluster_header_ops() {
        return Err(Fault::new(
            "most_specific_header_mutations_wins together with headers of weighted clusters is not supported",
        ));
    }
    let order = |own: &HeaderOps, [host, table]: [&HeaderOps; 2]| {
        if above.outermost_first {
            HeaderOps::concat([table, host, own])
        } else {
            HeaderOps::concat([own, host, table])
        }
    };
    let config = metadata(message.metadata.as_ref(), "istio", "config");
    Ok(Route {
        name: Arc::from(message.name.as_str()),
        virtual_host: above.virtual_host.clone(),
        include_attempt_count: above.include_attempt_count,
        matches,
        action,
        request_headers: order(&request, above.request),
        response_headers: order(&response, above.response),
        origin: text(config).and_then(name),
        operation: message.decorator.as_ref().and_then(|decorator| name(&decorator.operation)),
    })
}

pub(super) fn request_ops(add: &[core::HeaderValueOption], remove: &[String]) -> Result<HeaderOps, Fault> {
    HeaderOps::parse("request_headers", add, remove)
}

pub(super) fn response_ops(add: &[core::HeaderValueOption], remove: &[String]) -> Result<HeaderOps, Fault> {
    HeaderOps::parse("response_headers", add, remove)
}

/// Per-route filter settings: none is supported yet, so only those marked optional pass.
pub(super) fn check_filter_config(settings: &HashMap<String, Any>) -> Result<(), Fault> {
    // In order of names, so that the same resource always yields the same refusal.
    let mut names: Vec<_> = settings.iter().collect();
    names.sort_by_key(|(name, _)| name.as_str());
    for (filter, any) in names {
        let optional = type_name(any) == FILTER_CONFIG
            && pb::FilterConfig::decode(any.value.as_slice()).is_ok_and(|config| config.is_optional || config.disabled);
        if !optional {
            return Err(Fault::field(
                &format!("typed_per_filter_config[{filter:?}]"),
                "settings of this filter are not supported",
            ));
        }
    }
    Ok(())
}
