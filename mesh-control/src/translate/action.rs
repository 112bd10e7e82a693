//! What becomes of a request: the routes of a VirtualService.
//!
//! In: an HTTP route and who asks. Out: Envoy routes, one per match block.

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::config::route::v3::redirect_action::{
    PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
};
use envoy_types::pb::envoy::config::route::v3::route_action::hash_policy::{
    ConnectionProperties, Cookie, Header, PolicySpecifier, QueryParameter,
};
use envoy_types::pb::envoy::config::route::v3::route_action::{ClusterSpecifier, HashPolicy, HostRewriteSpecifier};
use envoy_types::pb::envoy::config::route::v3::weighted_cluster::{self, ClusterWeight};
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;

use super::matches::{self, catches_all, everything, http_applies, route_match};
use super::pb::{duration, metadata, structure, text};
use super::{Client, retry};
use crate::config::Key;
use crate::config::destination_rule::ConsistentHash;
use crate::config::virtual_service::{
    DerivePort, Destination, HeaderChanges, Headers, HttpRoute, Redirect, ResponseBody, VirtualService, decode_base64,
};

/// Finds clusters for destinations; what a VirtualService alone cannot know.
pub(crate) trait Targets {
    /// Name of the cluster of a destination.
    fn cluster(&self, destination: &Destination) -> String;
    /// How requests to it are hashed, if they are.
    fn hash(&self, destination: &Destination) -> Option<ConsistentHash>;
}

/// Where routes are made for.
pub(crate) struct Place<'p> {
    pub client: &'p Client<'p>,
    pub listener_port: u16,
    /// Host of the service, for operation names.
    pub host: &'p str,
    pub origin: &'p Key,
}

/// The routes of a VirtualService; those after one that catches everything are left out.
pub(crate) fn routes(spec: &VirtualService, place: &Place<'_>, targets: &impl Targets) -> Vec<pb::Route> {
    let mut list = Vec::new();
    for http in &spec.http {
        if http.matches.is_empty() {
            list.push(route(http, &http.name, everything(), place, targets));
            return list;
        }
        for one in http.matches.iter().filter(|one| http_applies(place.client, place.listener_port, one)) {
            let name = match (http.name.as_str(), one.name.as_str()) {
                (name, "") => name.to_owned(),
                (name, one) => format!("{name}.{one}"),
            };
            list.push(route(http, &name, route_match(one), place, targets));
            if catches_all(one) {
                return list;
            }
        }
    }
    list
}

/// The route of a service without VirtualService.
pub(crate) fn default_route(cluster: String, operation: String, hash: Option<&ConsistentHash>) -> pb::Route {
    let action = pb::RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster)),
        retry_policy: retry::policy(None, hash.is_some()),
        hash_policy: hash.map(hash_policy).into_iter().collect(),
        ..without_timeouts()
    };
    pb::Route {
        name: "default".to_owned(),
        r#match: Some(everything()),
        decorator: Some(pb::Decorator { operation, ..Default::default() }),
        action: Some(pb::route::Action::Route(action)),
        ..Default::default()
    }
}

/// A route action that waits as long as it takes.
#[expect(deprecated, reason = "Istio sends max_grpc_timeout")]
pub(crate) fn without_timeouts() -> pb::RouteAction {
    let zero = duration(std::time::Duration::ZERO);
    pb::RouteAction { timeout: zero, max_grpc_timeout: zero, ..Default::default() }
}

fn route(
    http: &HttpRoute,
    name: &str,
    matches: pb::RouteMatch,
    place: &Place<'_>,
    targets: &impl Targets,
) -> pb::Route {
    let Key { namespace, name: rule, .. } = place.origin;
    let config = format!("/apis/networking.istio.io/v1/namespaces/{namespace}/virtual-service/{rule}");
    let mut message = pb::Route {
        name: name.to_owned(),
        r#match: Some(matches),
        metadata: Some(metadata([("istio", structure([("config", text(&config))]))])),
        decorator: Some(pb::Decorator {
            operation: format!("{}:{}/*", place.host, place.listener_port),
            ..Default::default()
        }),
        ..Default::default()
    };
    if let Some(headers) = &http.headers {
        message.request_headers_to_add = to_add(&headers.request);
        message.request_headers_to_remove.clone_from(&headers.request.remove);
        message.response_headers_to_add = to_add(&headers.response);
        message.response_headers_to_remove.clone_from(&headers.response.remove);
    }
    message.action = Some(if let Some(redirect) = &http.redirect {
        pb::route::Action::Redirect(self::redirect(redirect, place.listener_port))
    } else if let Some(response) = &http.direct_response {
        pb::route::Action::DirectResponse(pb::DirectResponseAction {
            status: response.status,
            body: response.body.as_ref().and_then(body),
            ..Default::default()
        })
    } else {
        pb::route::Action::Route(forward(http, &mut message, targets))
    });
    message
}

#[expect(deprecated, reason = "Istio sends max_grpc_timeout")]
fn forward(http: &HttpRoute, route: &mut pb::Route, targets: &impl Targets) -> pb::RouteAction {
    let hash = http.route.iter().find_map(|target| targets.hash(&target.destination));
    let mut action = pb::RouteAction {
        retry_policy: retry::policy(http.retries.as_ref(), hash.is_some()),
        hash_policy: hash.as_ref().map(hash_policy).into_iter().collect(),
        ..without_timeouts()
    };
    if let Some(timeout) = http.timeout {
        action.timeout = duration(timeout.0);
        action.max_grpc_timeout = duration(timeout.0);
    }
    if let Some(rewrite) = &http.rewrite {
        action.prefix_rewrite.clone_from(&rewrite.uri);
        action.regex_rewrite = rewrite.uri_regex_rewrite.as_ref().map(|regex| matcher::RegexMatchAndSubstitute {
            pattern: Some(matches::regex(&regex.pattern)),
            substitution: regex.rewrite.clone(),
        });
        if !rewrite.authority.is_empty() {
            action.host_rewrite_specifier = Some(HostRewriteSpecifier::HostRewriteLiteral(rewrite.authority.clone()));
        }
    }
    if let Some(host) = http.headers.as_ref().and_then(authority) {
        action.host_rewrite_specifier = Some(HostRewriteSpecifier::HostRewriteLiteral(host));
    }
    action.cluster_specifier = Some(match http.route.as_slice() {
        [only] => {
            if let Some(headers) = &only.headers {
                route.request_headers_to_add.extend(to_add(&headers.request));
                route.request_headers_to_remove.extend(headers.request.remove.iter().cloned());
                route.response_headers_to_add.extend(to_add(&headers.response));
                route.response_headers_to_remove.extend(headers.response.remove.iter().cloned());
                if let Some(host) = authority(headers) {
                    action.host_rewrite_specifier = Some(HostRewriteSpecifier::HostRewriteLiteral(host));
                }
            }
            ClusterSpecifier::Cluster(targets.cluster(&only.destination))
        }
        several => {
            let clusters = several.iter().filter(|target| target.weight > 0).map(|target| {
                let headers = target.headers.clone().unwrap_or_default();
                ClusterWeight {
                    name: targets.cluster(&target.destination),
                    weight: super::pb::uint32(target.weight),
                    request_headers_to_add: to_add(&headers.request),
                    request_headers_to_remove: headers.request.remove.clone(),
                    response_headers_to_add: to_add(&headers.response),
                    response_headers_to_remove: headers.response.remove.clone(),
                    host_rewrite_specifier: authority(&headers)
                        .map(weighted_cluster::cluster_weight::HostRewriteSpecifier::HostRewriteLiteral),
                    ..Default::default()
                }
            });
            ClusterSpecifier::WeightedClusters(pb::WeightedCluster {
                clusters: clusters.collect(),
                ..Default::default()
            })
        }
    });
    action
}

fn is_authority(name: &str) -> bool {
    name.eq_ignore_ascii_case("host") || name == ":authority"
}

/// The host that `headers.request.set` asks for.
fn authority(headers: &Headers) -> Option<String> {
    headers.request.set.iter().find(|(name, _)| is_authority(name)).map(|(_, value)| value.clone())
}

fn to_add(changes: &HeaderChanges) -> Vec<core::HeaderValueOption> {
    use core::header_value_option::HeaderAppendAction;
    let one = |name: &str, value: &str, action: HeaderAppendAction| core::HeaderValueOption {
        header: Some(core::HeaderValue {
            key: name.to_ascii_lowercase(),
            value: value.to_owned(),
            ..Default::default()
        }),
        append_action: action.into(),
        ..Default::default()
    };
    let set = changes.set.iter().filter(|(name, _)| !is_authority(name));
    let set = set.map(|(name, value)| one(name, value, HeaderAppendAction::OverwriteIfExistsOrAdd));
    let add = changes.add.iter().map(|(name, value)| one(name, value, HeaderAppendAction::AppendIfExistsOrAdd));
    set.chain(add).collect()
}

fn redirect(redirect: &Redirect, listener_port: u16) -> pb::RedirectAction {
    let code = match redirect.redirect_code {
        Some(302) => RedirectResponseCode::Found,
        Some(303) => RedirectResponseCode::SeeOther,
        Some(307) => RedirectResponseCode::TemporaryRedirect,
        Some(308) => RedirectResponseCode::PermanentRedirect,
        _ => RedirectResponseCode::MovedPermanently,
    };
    let port = match (redirect.port, redirect.derive_port) {
        (Some(port), _) => port.0,
        (None, Some(DerivePort::FromRequestPort)) => listener_port,
        (None, Some(DerivePort::FromProtocolDefault) | None) => 0,
    };
    let path = (!redirect.uri.is_empty()).then(|| PathRewriteSpecifier::PathRedirect(redirect.uri.clone()));
    let scheme = (!redirect.scheme.is_empty()).then(|| SchemeRewriteSpecifier::SchemeRedirect(redirect.scheme.clone()));
    pb::RedirectAction {
        host_redirect: redirect.authority.clone(),
        port_redirect: port.into(),
        response_code: code.into(),
        path_rewrite_specifier: path,
        scheme_rewrite_specifier: scheme,
        ..Default::default()
    }
}

fn body(body: &ResponseBody) -> Option<core::DataSource> {
    use core::data_source::Specifier;
    let specifier = match (&body.string, &body.bytes) {
        (Some(text), _) => Specifier::InlineString(text.clone()),
        (None, Some(bytes)) => Specifier::InlineBytes(decode_base64(bytes)?),
        (None, None) => return None,
    };
    Some(core::DataSource { specifier: Some(specifier), ..Default::default() })
}

/// How a request is hashed.
pub(crate) fn hash_policy(hash: &ConsistentHash) -> HashPolicy {
    let specifier = if let Some(name) = &hash.http_header_name {
        PolicySpecifier::Header(Header { header_name: name.to_ascii_lowercase(), ..Default::default() })
    } else if let Some(cookie) = &hash.http_cookie {
        PolicySpecifier::Cookie(Cookie {
            name: cookie.name.clone(),
            path: cookie.path.clone(),
            ttl: cookie.ttl.and_then(|ttl| duration(ttl.0)),
            ..Default::default()
        })
    } else if let Some(name) = &hash.http_query_parameter_name {
        PolicySpecifier::QueryParameter(QueryParameter { name: name.clone() })
    } else {
        PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true })
    };
    HashPolicy { policy_specifier: Some(specifier), ..Default::default() }
}
