//! Routes: `envoy.config.route.v3.RouteConfiguration`.
//!
//! In: the message; then heads of requests. Out: a [`RouteTable`]; then the [`Route`] a request
//! takes, and what it changes in the request. It never touches a body and never connects.
//!
//! The types are here; `parse` and `action` read the message, `domains`, `matches` and `weighted`
//! choose, `rewrite`, `headers` and `hash` say what follows from the choice.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use regex::Regex;

use crate::resource::StringMatch;

mod action;
mod domains;
mod hash;
mod headers;
mod matches;
mod parse;
mod request;
mod rewrite;
mod weighted;

pub(crate) use domains::Domains;
pub use headers::{HeaderOp, HeaderOps};
pub use request::{Headers, RequestHead};
pub use weighted::{Weighted, WeightedCluster};

/// A route configuration.
#[derive(Debug)]
pub struct RouteTable {
    /// Name: `9080`, `reviews.default.svc.cluster.local:9080`, `inbound|9080||`.
    pub name: Arc<str>,
    /// Virtual hosts in the order received.
    pub virtual_hosts: Vec<VirtualHost>,
    pub(crate) domains: Domains,
}

/// A set of domains with its routes.
#[derive(Debug)]
pub struct VirtualHost {
    /// Name, e.g. `reviews.default.svc.cluster.local:9080`.
    pub name: Arc<str>,
    /// Routes; the first match wins.
    pub routes: Vec<Route>,
    /// Requests upstream carry `x-envoy-attempt-count`.
    pub include_attempt_count: bool,
}

/// One route.
#[derive(Debug)]
pub struct Route {
    /// Name; may be empty.
    pub name: Arc<str>,
    /// Name of its virtual host.
    pub virtual_host: Arc<str>,
    /// Requests upstream carry `x-envoy-attempt-count` (the virtual host says so).
    pub include_attempt_count: bool,
    /// What it is for.
    pub matches: RouteMatch,
    /// What becomes of the request.
    pub action: Action,
    /// Changes to request headers: route's, virtual host's and table's, in the order of application.
    pub request_headers: HeaderOps,
    /// Changes to response headers, likewise.
    pub response_headers: HeaderOps,
    /// Metadata `istio`, `config`: the API object it comes from.
    pub origin: Option<Arc<str>>,
    /// Operation name for traces and `%ROUTE_NAME%`'s companion (decorator).
    pub operation: Option<Arc<str>>,
}

/// What a route is for; all must hold.
#[derive(Debug)]
pub struct RouteMatch {
    /// The path, without query.
    pub path: PathMatch,
    /// Letters of the path compare equal only in the same case (prefix and exact).
    pub case_sensitive: bool,
    /// Headers, including `:method`, `:authority`, `:scheme`, `:path`.
    pub headers: Vec<HeaderMatch>,
    /// Query parameters.
    pub query: Vec<QueryMatch>,
    /// `content-type` must be `application/grpc` or `application/grpc+…`.
    pub grpc: bool,
}

/// How a path is compared.
#[derive(Debug)]
pub enum PathMatch {
    /// Starts with.
    Prefix(Box<str>),
    /// Equal.
    Exact(Box<str>),
    /// Equal, or longer and next comes a slash.
    SeparatedPrefix(Box<str>),
    /// The whole path matches.
    Regex(Regex),
    /// Any CONNECT request.
    Connect,
}

/// One header condition.
#[derive(Debug)]
pub struct HeaderMatch {
    /// Header, lower case, or pseudo header with its colon.
    pub name: Box<str>,
    /// The condition.
    pub value: ValueMatch,
    /// The condition must not hold.
    pub invert: bool,
    /// An absent header counts as present and empty.
    pub missing_as_empty: bool,
}

/// One query-parameter condition.
#[derive(Debug)]
pub struct QueryMatch {
    /// Parameter.
    pub name: Box<str>,
    /// The condition.
    pub value: ValueMatch,
}

/// A condition on a value.
#[derive(Debug)]
pub enum ValueMatch {
    /// Present (or absent).
    Present(bool),
    /// Text comparison.
    Text(StringMatch),
    /// Decimal integer in `start..end`.
    Range {
        /// First value that matches.
        start: i64,
        /// First value that does not.
        end: i64,
    },
}

/// What becomes of a request.
#[derive(Debug)]
pub enum Action {
    /// It goes to a cluster.
    Forward(Box<Forward>),
    /// The proxy answers.
    DirectResponse {
        /// Status.
        status: StatusCode,
        /// Body; may be empty.
        body: Bytes,
    },
    /// The proxy answers with another location.
    Redirect(Box<Redirect>),
}

/// Forwarding to a cluster.
#[derive(Debug)]
pub struct Forward {
    /// Where to.
    pub clusters: Weighted,
    /// Change of the path.
    pub path_rewrite: Option<PathRewrite>,
    /// Change of the authority.
    pub host_rewrite: Option<HeaderValue>,
    /// The old authority is kept in `x-forwarded-host`.
    pub append_x_forwarded_host: bool,
    /// Time for the whole response; `None` = no limit.
    pub timeout: Option<Duration>,
    /// Stream silent for so long is ended: `None` = the listener's value, zero = never.
    pub idle_timeout: Option<Duration>,
    /// Longest life of the stream; `None` = no limit.
    pub max_stream_duration: Option<Duration>,
    /// Retries; `None` = none.
    pub retry: Option<RetryPolicy>,
    /// What the hash of [`crate::resource::cluster::LbPolicy::ConsistentHash`] is made of.
    pub hash_policies: Vec<HashPolicy>,
    /// Status when the cluster does not exist.
    pub cluster_not_found: StatusCode,
    /// Protocols allowed to upgrade (`true`) or not, over the listener's list.
    pub upgrades: Vec<(Arc<str>, bool)>,
}

/// Change of a path.
#[derive(Debug)]
pub enum PathRewrite {
    /// The matched prefix (or the whole exact path) becomes this.
    Prefix(Box<str>),
    /// Every match becomes the substitution.
    Regex {
        /// What is replaced.
        pattern: Regex,
        /// With what, `$1` style.
        substitution: Box<str>,
    },
}

/// An answer with another location.
#[derive(Debug)]
pub struct Redirect {
    /// Scheme, if changed.
    pub scheme: Option<Box<str>>,
    /// Host, if changed.
    pub host: Option<Box<str>>,
    /// Port, if changed.
    pub port: Option<u16>,
    /// Path, if changed.
    pub path: Option<RedirectPath>,
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
    /// The query is dropped.
    pub strip_query: bool,
}

/// Path of a redirect.
#[derive(Debug)]
pub enum RedirectPath {
    /// This one.
    Full(Box<str>),
    /// Rewritten.
    Rewrite(PathRewrite),
}

/// Retries, as configured.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    /// Conditions.
    pub on: RetryOn,
    /// Attempts after the first.
    pub num_retries: u32,
    /// Time for one attempt; `None` = the route's.
    pub per_try_timeout: Option<Duration>,
    /// Statuses for `retriable-status-codes`.
    pub status_codes: Vec<StatusCode>,
    /// First back-off interval. Envoy: 25 ms.
    pub base_interval: Duration,
    /// Longest back-off interval. Envoy: ten times the first.
    pub max_interval: Duration,
    /// Hosts already tried are avoided.
    pub avoid_previous_hosts: bool,
    /// How often to look for another host before giving up on avoiding.
    pub host_selection_attempts: u32,
}

/// Conditions for a retry (Envoy's `x-envoy-retry-on` and `x-envoy-retry-grpc-on`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct RetryOn {
    pub server_error: bool,
    pub gateway_error: bool,
    pub reset: bool,
    pub reset_before_request: bool,
    pub connect_failure: bool,
    pub envoy_ratelimited: bool,
    pub retriable_4xx: bool,
    pub refused_stream: bool,
    pub retriable_status_codes: bool,
    pub grpc_cancelled: bool,
    pub grpc_deadline_exceeded: bool,
    pub grpc_internal: bool,
    pub grpc_resource_exhausted: bool,
    pub grpc_unavailable: bool,
}

/// Part of a consistent hash.
#[derive(Debug, Clone, PartialEq)]
pub struct HashPolicy {
    /// What is hashed.
    pub source: HashSource,
    /// Nothing after it is hashed when it yields something.
    pub terminal: bool,
}

/// What is hashed.
#[derive(Debug, Clone, PartialEq)]
pub enum HashSource {
    /// A request header.
    Header(HeaderName),
    /// A cookie; with `ttl` the proxy sets it when absent.
    Cookie {
        /// Name.
        name: Box<str>,
        /// Life of a generated cookie; zero = session.
        ttl: Option<Duration>,
        /// Path of a generated cookie.
        path: Box<str>,
    },
    /// The client's address.
    SourceIp,
    /// A query parameter.
    Query(Box<str>),
}

/// Result of routing.
#[derive(Debug)]
pub enum RouteOutcome<'a> {
    /// This route.
    Route(&'a Route),
    /// No domain fits the authority.
    NoVirtualHost,
    /// A domain fits, no route of it does.
    NoRoute,
}

#[cfg(test)]
mod tests;
