//! Reads what becomes of a request: forward, answer, redirect; retries and hash policies.
//!
//! In: a route's action. Out: an [`Action`]. Mirroring, hedging, internal redirects and rate
//! limits are refused, since passing them over would change what traffic does.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3 as pb;
use http::{HeaderName, HeaderValue, StatusCode};

use crate::resource::fault::{At, Fault, each};
use crate::resource::route::parse::{check_filter_config, request_ops, response_ops};
use crate::resource::route::{
    Action, Forward, HashPolicy, HashSource, PathRewrite, Redirect, RedirectPath, RetryOn, RetryPolicy, Weighted,
    WeightedCluster,
};
use crate::resource::text::part_regex;
use crate::resource::wire::{duration, is_set, port, refuse, timeout};

/// Envoy's default route timeout.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);
/// Envoy's default first back-off interval.
const DEFAULT_BACK_OFF: Duration = Duration::from_millis(25);
/// Envoy's default longest back-off interval, in first intervals.
const BACK_OFF_SPAN: u32 = 10;
/// Longest body of a direct response, in bytes (Istio sets 1 MiB).
pub const MAX_DIRECT_RESPONSE_BYTES: usize = 1 << 20;

impl Action {
    pub(super) fn parse(
        message: Option<&pb::route::Action>,
        host_retry: Option<&pb::RetryPolicy>,
    ) -> Result<Self, Fault> {
        use pb::route::Action as Pb;
        match message {
            Some(Pb::Route(route)) => {
                forward(route, host_retry).map(|forward| Action::Forward(Box::new(forward))).at("route")
            }
            Some(Pb::Redirect(message)) => {
                redirect(message).map(|redirect| Action::Redirect(Box::new(redirect))).at("redirect")
            }
            Some(Pb::DirectResponse(message)) => direct_response(message).at("direct_response"),
            Some(Pb::FilterAction(_)) => Err(Fault::field("filter_action", "not supported")),
            Some(Pb::NonForwardingAction(_)) => Err(Fault::field("non_forwarding_action", "not supported")),
            None => Err(Fault::field("action", "missing")),
        }
    }

    pub(super) fn has_cluster_header_ops(&self) -> bool {
        match self {
            Action::Forward(forward) => forward
                .clusters
                .entries()
                .any(|cluster| !cluster.request_headers.is_empty() || !cluster.response_headers.is_empty()),
            _ => false,
        }
    }
}

fn forward(message: &pb::RouteAction, host_retry: Option<&pb::RetryPolicy>) -> Result<Forward, Fault> {
    refuse!(message;
        metadata_match, path_rewrite_policy, path_rewrite, retry_policy_typed_config,
        request_mirror_policies, priority, rate_limits, cors, internal_redirect_policy,
        internal_redirect_action, hedge_policy,
    );
    let stream = message.max_stream_duration.as_ref();
    let max_stream_duration =
        timeout("max_stream_duration", stream.and_then(|stream| stream.max_stream_duration.as_ref()), None)?;
    let idle_timeout = match &message.idle_timeout {
        Some(value) => Some(duration(value).at("idle_timeout")?),
        None => None,
    };
    let retry = match message.retry_policy.as_ref().or(host_retry) {
        Some(policy) => Some(retry(policy).at("retry_policy")?),
        None => None,
    };
    Ok(Forward {
        clusters: clusters(message.cluster_specifier.as_ref())?,
        path_rewrite: path_rewrite(message)?,
        host_rewrite: host_rewrite(message.host_rewrite_specifier.as_ref())?,
        append_x_forwarded_host: message.append_x_forwarded_host,
        timeout: timeout("timeout", message.timeout.as_ref(), Some(DEFAULT_TIMEOUT))?,
        idle_timeout,
        max_stream_duration,
        retry,
        hash_policies: each("hash_policy", &message.hash_policy, hash_policy)?,
        cluster_not_found: not_found_status(message.cluster_not_found_response_code)?,
        upgrades: message
            .upgrade_configs
            .iter()
            .map(|upgrade| {
                let enabled = upgrade.enabled.as_ref().is_none_or(|v| v.value);
                (Arc::from(upgrade.upgrade_type.to_ascii_lowercase()), enabled)
            })
            .collect(),
    })
}

fn clusters(message: Option<&pb::route_action::ClusterSpecifier>) -> Result<Weighted, Fault> {
    use pb::route_action::ClusterSpecifier as By;
    match message {
        Some(By::Cluster(name)) => Weighted::single(name).at("cluster"),
        Some(By::WeightedClusters(message)) => weighted(message).at("weighted_clusters"),
        Some(By::ClusterHeader(_)) => Err(Fault::field("cluster_header", "not supported")),
        Some(_) => Err(Fault::field("cluster_specifier_plugin", "not supported; name a cluster or weighted_clusters")),
        None => Err(Fault::field("cluster", "missing")),
    }
}

fn weighted(message: &pb::WeightedCluster) -> Result<Weighted, Fault> {
    refuse!(message; random_value_specifier);
    let entries = each("clusters", &message.clusters, weighted_cluster)?;
    let weighted = Weighted::new(entries).at("clusters")?;
    let sum: u64 = weighted.entries().map(|e| u64::from(e.weight)).sum();
    match &message.total_weight {
        Some(total) if u64::from(total.value) != sum => {
            Err(Fault::field("total_weight", format!("is {}, the weights add up to {sum}", total.value)))
        }
        _ => Ok(weighted),
    }
}

fn weighted_cluster(message: &pb::weighted_cluster::ClusterWeight) -> Result<WeightedCluster, Fault> {
    use pb::weighted_cluster::cluster_weight::HostRewriteSpecifier as Host;
    refuse!(message; cluster_header, metadata_match);
    check_filter_config(&message.typed_per_filter_config)?;
    let weight = message.weight.as_ref().ok_or_else(|| Fault::field("weight", "missing"))?;
    let host_rewrite = match &message.host_rewrite_specifier {
        Some(Host::HostRewriteLiteral(host)) => Some(authority(host).at("host_rewrite_literal")?),
        None => None,
    };
    Ok(WeightedCluster {
        request_headers: request_ops(&message.request_headers_to_add, &message.request_headers_to_remove)?,
        response_headers: response_ops(&message.response_headers_to_add, &message.response_headers_to_remove)?,
        host_rewrite,
        ..WeightedCluster::plain(&message.name, weight.value)?
    })
}

fn path_rewrite(message: &pb::RouteAction) -> Result<Option<PathRewrite>, Fault> {
    let regex = message.regex_rewrite.as_ref();
    match (message.prefix_rewrite.as_str(), regex) {
        ("", None) => Ok(None),
        ("", Some(regex)) => regex_rewrite(regex).map(Some).at("regex_rewrite"),
        (prefix, None) => Ok(Some(PathRewrite::Prefix(prefix.into()))),
        _ => Err(Fault::field("regex_rewrite", "cannot be together with prefix_rewrite")),
    }
}

fn regex_rewrite(
    message: &envoy_types::pb::envoy::r#type::matcher::v3::RegexMatchAndSubstitute,
) -> Result<PathRewrite, Fault> {
    let pattern = message.pattern.as_ref().ok_or_else(|| Fault::field("pattern", "missing"))?;
    Ok(PathRewrite::Regex {
        pattern: part_regex(pattern).at("pattern")?,
        substitution: substitution(&message.substitution).at("substitution")?,
    })
}

/// RE2 writes groups as `\1`, our engine as `${1}` and gives `$` a meaning of its own.
fn substitution(text: &str) -> Result<Box<str>, Fault> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '$' => out.push_str("$$"),
            '\\' => match chars.next() {
                Some('\\') => out.push('\\'),
                Some(digit) if digit.is_ascii_digit() => {
                    out.push_str("${");
                    out.push(digit);
                    out.push('}');
                }
                _ => return Err(Fault::new("a backslash needs a digit or a backslash")),
            },
            c => out.push(c),
        }
    }
    Ok(out.into())
}

fn host_rewrite(message: Option<&pb::route_action::HostRewriteSpecifier>) -> Result<Option<HeaderValue>, Fault> {
    use pb::route_action::HostRewriteSpecifier as By;
    match message {
        None => Ok(None),
        Some(By::HostRewriteLiteral(host)) => authority(host).map(Some).at("host_rewrite_literal"),
        // False is what there is without it.
        Some(By::AutoHostRewrite(auto)) if !auto.value => Ok(None),
        Some(_) => Err(Fault::new("of host rewrites only host_rewrite_literal is supported")),
    }
}

fn authority(host: &str) -> Result<HeaderValue, Fault> {
    HeaderValue::from_str(host).map_err(|_| Fault::new(format!("{host:?} is not a host")))
}

fn not_found_status(code: i32) -> Result<StatusCode, Fault> {
    use pb::route_action::ClusterNotFoundResponseCode as Code;
    match Code::try_from(code) {
        Ok(Code::ServiceUnavailable) => Ok(StatusCode::SERVICE_UNAVAILABLE),
        Ok(Code::NotFound) => Ok(StatusCode::NOT_FOUND),
        Ok(Code::InternalServerError) => Ok(StatusCode::INTERNAL_SERVER_ERROR),
        Err(_) => Err(Fault::field("cluster_not_found_response_code", "unknown value")),
    }
}

fn hash_policy(message: &pb::route_action::HashPolicy) -> Result<HashPolicy, Fault> {
    use pb::route_action::hash_policy::PolicySpecifier as By;
    let source = match &message.policy_specifier {
        Some(By::Header(header)) => {
            refuse!(header; regex_rewrite);
            let name = HeaderName::from_bytes(header.header_name.as_bytes())
                .map_err(|_| Fault::field("header.header_name", "not a header name"))?;
            HashSource::Header(name)
        }
        Some(By::Cookie(cookie)) => {
            let ttl = match &cookie.ttl {
                Some(ttl) => Some(duration(ttl).at("cookie.ttl")?),
                None => None,
            };
            HashSource::Cookie { name: cookie.name.as_str().into(), ttl, path: cookie.path.as_str().into() }
        }
        Some(By::ConnectionProperties(properties)) if properties.source_ip => HashSource::SourceIp,
        Some(By::QueryParameter(query)) => HashSource::Query(query.name.as_str().into()),
        _ => {
            return Err(Fault::new(
                "supported are header, cookie, connection_properties.source_ip and query_parameter",
            ));
        }
    };
    Ok(HashPolicy { source, terminal: message.terminal })
}

fn retry(message: &pb::RetryPolicy) -> Result<RetryPolicy, Fault> {
    refuse!(message;
        per_try_idle_timeout, retry_options_predicates, retriable_headers,
        retriable_request_headers, rate_limited_retry_back_off, refresh_cluster_on_retry,
    );
    // retry_priority only changes which locality is tried next; without it the usual one is.
    let mut avoid_previous_hosts = false;
    for (i, predicate) in message.retry_host_predicate.iter().enumerate() {
        if predicate.name != "envoy.retry_host_predicates.previous_hosts" {
            return Err(Fault::new(format!("{:?} is not supported", predicate.name)))
                .at_index("retry_host_predicate", i);
        }
        avoid_previous_hosts = true;
    }
    let status_codes = each("retriable_status_codes", &message.retriable_status_codes, |c| status(*c))?;
    let (mut base, mut max) = (DEFAULT_BACK_OFF, None);
    if let Some(back_off) = &message.retry_back_off {
        let interval = timeout("retry_back_off.base_interval", back_off.base_interval.as_ref(), None)?;
        base = interval.ok_or_else(|| Fault::field("retry_back_off.base_interval", "must be above zero"))?;
        max = timeout("retry_back_off.max_interval", back_off.max_interval.as_ref(), None)?;
    }
    let max = max.unwrap_or_else(|| base.saturating_mul(BACK_OFF_SPAN));
    if max < base {
        return Err(Fault::field("retry_back_off.max_interval", "is below base_interval"));
    }
    Ok(RetryPolicy {
        on: RetryOn::parse(&message.retry_on).at("retry_on")?,
        num_retries: message.num_retries.as_ref().map_or(1, |n| n.value),
        per_try_timeout: timeout("per_try_timeout", message.per_try_timeout.as_ref(), None)?,
        status_codes,
        base_interval: base,
        max_interval: max,
        avoid_previous_hosts,
        host_selection_attempts: u32::try_from(message.host_selection_retry_max_attempts.max(1)).unwrap_or(u32::MAX),
    })
}

impl RetryOn {
    fn parse(text: &str) -> Result<Self, Fault> {
        let mut on = RetryOn::default();
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            let flag = match word {
                "5xx" => &mut on.server_error,
                "gateway-error" => &mut on.gateway_error,
                "reset" => &mut on.reset,
                "reset-before-request" => &mut on.reset_before_request,
                "connect-failure" => &mut on.connect_failure,
                "envoy-ratelimited" => &mut on.envoy_ratelimited,
                "retriable-4xx" => &mut on.retriable_4xx,
                "refused-stream" => &mut on.refused_stream,
                "retriable-status-codes" => &mut on.retriable_status_codes,
                "cancelled" => &mut on.grpc_cancelled,
                "deadline-exceeded" => &mut on.grpc_deadline_exceeded,
                "internal" => &mut on.grpc_internal,
                "resource-exhausted" => &mut on.grpc_resource_exhausted,
                "unavailable" => &mut on.grpc_unavailable,
                // Conditions on HTTP/3 and on headers cannot occur here.
                "http3-post-connect-failure" | "retriable-headers" => continue,
                _ => return Err(Fault::new(format!("{word:?} is not a known condition"))),
            };
            *flag = true;
        }
        Ok(on)
    }
}

fn redirect(message: &pb::RedirectAction) -> Result<Redirect, Fault> {
    use pb::redirect_action::{
        PathRewriteSpecifier as Path, RedirectResponseCode as Code, SchemeRewriteSpecifier as Scheme,
    };
    let text = |text: &str| (!text.is_empty()).then(|| Box::from(text));
    let scheme = match &message.scheme_rewrite_specifier {
        Some(Scheme::HttpsRedirect(true)) => Some("https".into()),
        Some(Scheme::SchemeRedirect(scheme)) => text(scheme),
        Some(Scheme::HttpsRedirect(false)) | None => None,
    };
    let path = match &message.path_rewrite_specifier {
        Some(Path::PathRedirect(path)) => text(path).map(RedirectPath::Full),
        Some(Path::PrefixRewrite(prefix)) => Some(RedirectPath::Rewrite(PathRewrite::Prefix(prefix.as_str().into()))),
        Some(Path::RegexRewrite(regex)) => Some(RedirectPath::Rewrite(regex_rewrite(regex).at("regex_rewrite")?)),
        Some(_) => return Err(Fault::field("path_rewrite", "not supported")),
        None => None,
    };
    let status = match Code::try_from(message.response_code) {
        Ok(Code::MovedPermanently) => StatusCode::MOVED_PERMANENTLY,
        Ok(Code::Found) => StatusCode::FOUND,
        Ok(Code::SeeOther) => StatusCode::SEE_OTHER,
        Ok(Code::TemporaryRedirect) => StatusCode::TEMPORARY_REDIRECT,
        Ok(Code::PermanentRedirect) => StatusCode::PERMANENT_REDIRECT,
        Err(_) => return Err(Fault::field("response_code", "unknown value")),
    };
    let port = match message.port_redirect {
        0 => None,
        value => Some(port(value).at("port_redirect")?),
    };
    Ok(Redirect { scheme, host: text(&message.host_redirect), port, path, status, strip_query: message.strip_query })
}

fn direct_response(message: &pb::DirectResponseAction) -> Result<Action, Fault> {
    if is_set(&message.body_format) {
        return Err(Fault::field("body_format", "not supported"));
    }
    let body = match &message.body {
        Some(source) => inline(source).at("body")?,
        None => Bytes::new(),
    };
    if body.len() > MAX_DIRECT_RESPONSE_BYTES {
        return Err(Fault::field("body", format!("is longer than {MAX_DIRECT_RESPONSE_BYTES} bytes")));
    }
    Ok(Action::DirectResponse { status: status(message.status).at("status")?, body })
}

fn inline(source: &core::DataSource) -> Result<Bytes, Fault> {
    use core::data_source::Specifier;
    match &source.specifier {
        Some(Specifier::InlineBytes(bytes)) => Ok(Bytes::copy_from_slice(bytes)),
        Some(Specifier::InlineString(text)) => Ok(Bytes::copy_from_slice(text.as_bytes())),
        // The control plane does not get to read files of the node.
        Some(Specifier::Filename(_) | Specifier::EnvironmentVariable(_)) => {
            Err(Fault::new("only inline bytes and strings are supported"))
        }
        None => Ok(Bytes::new()),
    }
}

/// An HTTP status from 200 to 599.
fn status(code: u32) -> Result<StatusCode, Fault> {
    u16::try_from(code)
        .ok()
        .filter(|code| (200..600).contains(code))
        .and_then(|code| StatusCode::from_u16(code).ok())
        .ok_or_else(|| Fault::new(format!("{code} is not a status from 200 to 599")))
}
