//! Conditions of VirtualServices: those on the client are decided here, those on requests become Envoy's.
//!
//! In: a match block. Out: whether it can ever hold for a client, and a `RouteMatch`.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use matcher::string_matcher::MatchPattern;

use super::Client;
use super::pb::boolean;
use crate::config::Labels;
use crate::config::fields::{PortNumber, StringMatch};
use crate::config::virtual_service::{HttpMatch, for_mesh};
use crate::model::service::selects;

/// Whether a block's conditions on client, port and gateway hold.
pub(crate) fn applies(
    client: &Client<'_>,
    listener_port: u16,
    (port, labels, namespace, gateways): (Option<PortNumber>, &Labels, &str, &[String]),
) -> bool {
    port.is_none_or(|port| port.0 == listener_port)
        && selects(labels, client.labels)
        && (namespace.is_empty() || namespace == client.namespace)
        && for_mesh(gateways)
}

/// Whether an HTTP block can hold for a client.
pub(crate) fn http_applies(client: &Client<'_>, listener_port: u16, one: &HttpMatch) -> bool {
    applies(client, listener_port, (one.port, &one.source_labels, &one.source_namespace, &one.gateways))
}

/// Whether every request meets it, so that routes after it are never reached.
pub(crate) fn catches_all(one: &HttpMatch) -> bool {
    let uri = match &one.uri {
        None => true,
        Some(StringMatch::Prefix(prefix)) => prefix == "/",
        Some(StringMatch::Regex(regex)) => regex == "*" || regex == ".*",
        Some(StringMatch::Exact(_) | StringMatch::Any) => false,
    };
    uri && one.headers.is_empty()
        && one.without_headers.is_empty()
        && one.query_params.is_empty()
        && one.method.is_none()
        && one.authority.is_none()
        && one.scheme.is_none()
}

/// The match of every request.
pub(crate) fn everything() -> pb::RouteMatch {
    pb::RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".to_owned())), ..Default::default() }
}

/// The request conditions of a block.
pub(crate) fn route_match(one: &HttpMatch) -> pb::RouteMatch {
    let mut message = everything();
    if let Some(uri) = &one.uri {
        message.case_sensitive = boolean(!one.ignore_uri_case);
        message.path_specifier = Some(match uri {
            StringMatch::Exact(text) => PathSpecifier::Path(text.clone()),
            StringMatch::Prefix(text) => PathSpecifier::Prefix(text.clone()),
            StringMatch::Regex(regex) => PathSpecifier::SafeRegex(self::regex(regex)),
            StringMatch::Any => PathSpecifier::Prefix("/".to_owned()),
        });
    }
    let pseudo = [(":method", &one.method), (":authority", &one.authority), (":scheme", &one.scheme)];
    let given = pseudo.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
    message.headers.extend(given.map(|(name, value)| header(name, value, false)));
    message.headers.extend(one.headers.iter().map(|(name, value)| header(name, value, false)));
    message.headers.extend(one.without_headers.iter().map(|(name, value)| header(name, value, true)));
    message.query_parameters = query(&one.query_params);
    message
}

fn header(name: &str, value: &StringMatch, invert: bool) -> pb::HeaderMatcher {
    let specifier = match string(value) {
        Some(value) => HeaderMatchSpecifier::StringMatch(value),
        None => HeaderMatchSpecifier::PresentMatch(true),
    };
    pb::HeaderMatcher {
        name: name.to_ascii_lowercase(),
        invert_match: invert,
        // An absent header does not have the value either.
        treat_missing_header_as_empty: invert && matches!(specifier, HeaderMatchSpecifier::StringMatch(_)),
        header_match_specifier: Some(specifier),
    }
}

fn query(params: &BTreeMap<String, StringMatch>) -> Vec<pb::QueryParameterMatcher> {
    let one = |(name, value): (&String, &StringMatch)| pb::QueryParameterMatcher {
        name: name.clone(),
        query_parameter_match_specifier: Some(match string(value) {
            Some(value) => QueryParameterMatchSpecifier::StringMatch(value),
            None => QueryParameterMatchSpecifier::PresentMatch(true),
        }),
    };
    params.iter().map(one).collect()
}

/// None for what only asks for presence.
fn string(value: &StringMatch) -> Option<matcher::StringMatcher> {
    let pattern = match value {
        StringMatch::Any => return None,
        StringMatch::Regex(regex) if regex == "*" => return None,
        // Envoy refuses an empty prefix; it means presence.
        StringMatch::Prefix(prefix) if prefix.is_empty() => return None,
        StringMatch::Exact(text) => MatchPattern::Exact(text.clone()),
        StringMatch::Prefix(text) => MatchPattern::Prefix(text.clone()),
        StringMatch::Regex(text) => MatchPattern::SafeRegex(regex(text)),
    };
    Some(matcher::StringMatcher { match_pattern: Some(pattern), ignore_case: false })
}

pub(crate) fn regex(text: &str) -> matcher::RegexMatcher {
    matcher::RegexMatcher { regex: text.to_owned(), ..Default::default() }
}
