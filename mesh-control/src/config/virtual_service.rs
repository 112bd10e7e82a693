//! Istio's VirtualService, as far as it is implemented.
//!
//! In: its `spec`. Out: [`VirtualService`]. What its values must be is checked in `virtual_service/check.rs`.

mod check;

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Labels;
use super::fields::{PortNumber, Span, StringMatch};
use crate::yaml::FieldPath;

pub(super) use check::check_host;

/// `spec`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VirtualService {
    /// Hosts it is for: DNS names, possibly with a leading `*`; a name without dot is of the own namespace.
    pub hosts: Vec<String>,
    /// Where it applies; only `mesh` (also when empty) has an effect yet.
    pub gateways: Vec<String>,
    /// Namespaces that see it: `.`, `*` or names; empty = all.
    pub export_to: Vec<String>,
    /// HTTP routes; the first match wins.
    pub http: Vec<HttpRoute>,
    /// TCP routes.
    pub tcp: Vec<TcpRoute>,
    /// Routes of TLS connections by server name.
    pub tls: Vec<TlsRoute>,
}

/// One HTTP route.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRoute {
    /// Name, for logs.
    pub name: String,
    /// Any of these; empty = every request.
    #[serde(rename = "match")]
    pub matches: Vec<HttpMatch>,
    /// Where to.
    pub route: Vec<HttpDestination>,
    /// Answer with another location.
    pub redirect: Option<Redirect>,
    /// Answer without an upstream.
    pub direct_response: Option<DirectResponse>,
    /// Change of path or authority.
    pub rewrite: Option<Rewrite>,
    /// Time for the whole response; absent or 0 = no limit.
    pub timeout: Option<Span>,
    /// Retries; absent = the mesh's default.
    pub retries: Option<Retries>,
    /// Changes to headers.
    pub headers: Option<Headers>,
}

/// Conditions of which all must hold.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpMatch {
    /// Name, for logs.
    pub name: String,
    /// Path, without query.
    pub uri: Option<StringMatch>,
    /// Scheme.
    pub scheme: Option<StringMatch>,
    /// Method.
    pub method: Option<StringMatch>,
    /// Host header.
    pub authority: Option<StringMatch>,
    /// Headers by name.
    pub headers: BTreeMap<String, StringMatch>,
    /// Headers that must not match.
    pub without_headers: BTreeMap<String, StringMatch>,
    /// Query parameters.
    pub query_params: BTreeMap<String, StringMatch>,
    /// The path's case does not count (exact and prefix).
    pub ignore_uri_case: bool,
    /// The service's port.
    pub port: Option<PortNumber>,
    /// Labels of the client.
    pub source_labels: Labels,
    /// Namespace of the client.
    pub source_namespace: String,
    /// Gateways; only `mesh` has an effect yet.
    pub gateways: Vec<String>,
}

/// One destination of an HTTP route.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpDestination {
    /// Which service.
    pub destination: Destination,
    /// Share of the requests.
    #[serde(default)]
    pub weight: u32,
    /// Changes to headers.
    pub headers: Option<Headers>,
}

/// A service, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Destination {
    /// Host of the service.
    pub host: String,
    /// Subset of its DestinationRule.
    #[serde(default)]
    pub subset: String,
    /// Its port; may be absent when there is only one.
    pub port: Option<PortSelector>,
}

/// A port by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortSelector {
    /// Number.
    pub number: PortNumber,
}

/// An answer with another location.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Redirect {
    /// The new path.
    pub uri: String,
    /// The new host.
    pub authority: String,
    /// The new port.
    pub port: Option<PortNumber>,
    /// Where the port comes from otherwise.
    pub derive_port: Option<DerivePort>,
    /// The new scheme.
    pub scheme: String,
    /// 301 (default), 302, 303, 307 or 308.
    pub redirect_code: Option<u32>,
}

/// Where a redirect's port comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum DerivePort {
    /// 80 or 443, by scheme: none is written.
    FromProtocolDefault,
    /// The request's.
    FromRequestPort,
}

/// An answer without an upstream.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DirectResponse {
    /// Status, 200 to 599.
    pub status: u32,
    /// Body.
    pub body: Option<ResponseBody>,
}

/// Body of a direct response.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ResponseBody {
    /// As text.
    pub string: Option<String>,
    /// As base64.
    pub bytes: Option<String>,
}

/// Change of path or authority.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rewrite {
    /// In place of the matched prefix or path.
    pub uri: String,
    /// In place of the authority.
    pub authority: String,
    /// By regular expression.
    pub uri_regex_rewrite: Option<RegexRewrite>,
}

/// Change of a path by regular expression.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RegexRewrite {
    /// What is replaced.
    #[serde(rename = "match")]
    pub pattern: String,
    /// With what, `\1` style.
    pub rewrite: String,
}

/// Retries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Retries {
    /// How many; 0 = none.
    pub attempts: u32,
    /// Time for one try.
    pub per_try_timeout: Option<Span>,
    /// Conditions and status codes, comma separated; empty = the mesh's default.
    pub retry_on: String,
    /// First pause between tries.
    pub backoff: Option<Span>,
    /// Whether endpoints that failed are avoided; default yes.
    pub retry_ignore_previous_hosts: Option<bool>,
}

/// Changes to headers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Headers {
    /// Of the request.
    pub request: HeaderChanges,
    /// Of the response.
    pub response: HeaderChanges,
}

/// Changes to the headers of one direction.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HeaderChanges {
    /// In place of what is there.
    pub set: BTreeMap<String, String>,
    /// One more value.
    pub add: BTreeMap<String, String>,
    /// Gone.
    pub remove: Vec<String>,
}

/// One TCP route.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpRoute {
    /// Any of these; empty = every connection.
    #[serde(rename = "match")]
    pub matches: Vec<L4Match>,
    /// Where to.
    pub route: Vec<L4Destination>,
}

/// Conditions on a connection, of which all must hold.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct L4Match {
    /// The service's port.
    pub port: Option<PortNumber>,
    /// Labels of the client.
    pub source_labels: Labels,
    /// Namespace of the client.
    pub source_namespace: String,
    /// Gateways; only `mesh` has an effect yet.
    pub gateways: Vec<String>,
}

/// One TLS route.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsRoute {
    /// Any of these.
    #[serde(rename = "match")]
    pub matches: Vec<TlsMatch>,
    /// Where to.
    pub route: Vec<L4Destination>,
}

/// Conditions on a TLS connection, of which all must hold.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsMatch {
    /// Server names, possibly with a leading `*`.
    pub sni_hosts: Vec<String>,
    /// The service's port.
    pub port: Option<PortNumber>,
    /// Labels of the client.
    pub source_labels: Labels,
    /// Namespace of the client.
    pub source_namespace: String,
    /// Gateways; only `mesh` has an effect yet.
    pub gateways: Vec<String>,
}

/// One destination of a TCP or TLS route.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct L4Destination {
    /// Which service.
    pub destination: Destination,
    /// Share of the connections.
    #[serde(default)]
    pub weight: u32,
}

/// Whether a list of gateways includes the mesh itself.
pub fn for_mesh(gateways: &[String]) -> bool {
    gateways.is_empty() || gateways.iter().any(|gateway| gateway == "mesh")
}

impl VirtualService {
    /// Every destination with its path, for checks of references.
    pub fn destinations(&self) -> Vec<(FieldPath, &Destination)> {
        let mut list = Vec::new();
        let spec = FieldPath::of("spec");
        for (i, route) in self.http.iter().enumerate() {
            for (j, target) in route.route.iter().enumerate() {
                list.push((spec.key("http").index(i).key("route").index(j).key("destination"), &target.destination));
            }
        }
        let tcp = self.tcp.iter().map(|route| ("tcp", &route.route)).enumerate();
        let tls = self.tls.iter().map(|route| ("tls", &route.route)).enumerate();
        for (i, (field, targets)) in tcp.chain(tls) {
            for (j, target) in targets.iter().enumerate() {
                list.push((spec.key(field).index(i).key("route").index(j).key("destination"), &target.destination));
            }
        }
        list
    }

    /// Every set of client labels that a condition asks for.
    pub fn source_labels(&self) -> impl Iterator<Item = &Labels> {
        let http = self.http.iter().flat_map(|route| &route.matches).map(|one| &one.source_labels);
        let tcp = self.tcp.iter().flat_map(|route| &route.matches).map(|one| &one.source_labels);
        let tls = self.tls.iter().flat_map(|route| &route.matches).map(|one| &one.source_labels);
        http.chain(tcp).chain(tls).filter(|labels| !labels.is_empty())
    }
}

/// Standard base64.
pub fn decode_base64(text: &str) -> Option<Vec<u8>> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}
