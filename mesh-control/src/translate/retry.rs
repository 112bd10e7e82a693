//! Retry policies: Istio's default and a VirtualService's own.
//!
//! In: `retries` of a route. Out: Envoy's policy, or none when retries are switched off.

use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::config::route::v3::retry_policy::{RetryBackOff, RetryHostPredicate, retry_host_predicate};
use envoy_types::pb::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;

use super::pb::{any, duration, uint32};
use crate::config::virtual_service::Retries;

/// Conditions of Istio's default policy.
const DEFAULT_CONDITIONS: &str = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes";
/// Tries of Istio's default policy after the first.
const DEFAULT_ATTEMPTS: u32 = 2;
/// How often a host that was tried already is passed over.
const HOST_ATTEMPTS: i64 = 5;

/// The policy of a route; `hashed` when a request always belongs to the same host.
pub(crate) fn policy(retries: Option<&Retries>, hashed: bool) -> Option<pb::RetryPolicy> {
    let Some(retries) = retries else {
        return Some(with_hosts(DEFAULT_CONDITIONS.to_owned(), DEFAULT_ATTEMPTS, !hashed));
    };
    if retries.attempts == 0 {
        return None;
    }
    let avoid = retries.retry_ignore_previous_hosts.unwrap_or(!hashed);
    let (conditions, codes) = conditions(&retries.retry_on);
    let mut policy = with_hosts(conditions, retries.attempts, avoid);
    policy.retriable_status_codes = codes;
    policy.per_try_timeout = retries.per_try_timeout.filter(|span| !span.0.is_zero()).and_then(|span| duration(span.0));
    policy.retry_back_off = retries
        .backoff
        .filter(|span| span.0.as_millis() > 0)
        .map(|span| RetryBackOff { base_interval: duration(span.0), max_interval: None });
    Some(policy)
}

/// Numbers among the conditions are status codes.
fn conditions(retry_on: &str) -> (String, Vec<u32>) {
    if retry_on.trim().is_empty() {
        return (DEFAULT_CONDITIONS.to_owned(), Vec::new());
    }
    let mut words = Vec::new();
    let mut codes = Vec::new();
    for word in retry_on.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        match word.parse::<u32>() {
            Ok(code) if (100..600).contains(&code) => codes.push(code),
            _ => words.push(word),
        }
    }
    if !codes.is_empty() && !words.contains(&"retriable-status-codes") {
        words.push("retriable-status-codes");
    }
    (words.join(","), codes)
}

fn with_hosts(retry_on: String, attempts: u32, avoid_previous: bool) -> pb::RetryPolicy {
    let predicate = RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        config_type: Some(retry_host_predicate::ConfigType::TypedConfig(any(&PreviousHostsPredicate {}))),
    };
    pb::RetryPolicy {
        retry_on,
        num_retries: uint32(attempts),
        retry_host_predicate: if avoid_previous { vec![predicate] } else { Vec::new() },
        host_selection_retry_max_attempts: if avoid_previous { HOST_ATTEMPTS } else { 0 },
        ..Default::default()
    }
}
