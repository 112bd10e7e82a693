//! What a VirtualService's values must be, as far as it needs no other object.
//!
//! In: a parsed `spec`. Out: findings with field paths. A value that passes here is one that mesh-core takes.

use std::collections::BTreeMap;

use super::{HeaderChanges, HttpMatch, HttpRoute, VirtualService, decode_base64};
use crate::config::Findings;
use crate::config::fields::StringMatch;
use crate::yaml::FieldPath;

/// Longest regular expression in bytes, as the Istio API says.
const MAX_REGEX: usize = 1024;

impl VirtualService {
    pub(in crate::config) fn check(&self, findings: &mut Findings) {
        let spec = FieldPath::of("spec");
        if self.hosts.is_empty() {
            findings.error(spec.key("hosts"), "at least one host is needed");
        }
        for (index, host) in self.hosts.iter().enumerate() {
            check_host(host, &spec.key("hosts").index(index), findings);
        }
        if self.http.is_empty() && self.tcp.is_empty() && self.tls.is_empty() {
            findings.error(spec.clone(), "at least one of http, tcp and tls is needed");
        }
        for (index, gateway) in self.gateways.iter().enumerate().filter(|(_, gateway)| *gateway != "mesh") {
            let path = spec.key("gateways").index(index);
            findings.warning(path, format!("gateway `{gateway}` is not supported yet, ignored"));
        }
        for (index, route) in self.http.iter().enumerate() {
            route.check(&spec.key("http").index(index), findings);
        }
        for (index, route) in self.tcp.iter().enumerate() {
            let path = spec.key("tcp").index(index);
            check_l4_route(&path, route.route.iter().map(|target| target.weight), findings);
        }
        for (index, route) in self.tls.iter().enumerate() {
            let path = spec.key("tls").index(index);
            check_l4_route(&path, route.route.iter().map(|target| target.weight), findings);
            if route.matches.is_empty() {
                findings.error(path.key("match"), "a TLS route needs a match with sniHosts");
            }
            for (index, one) in route.matches.iter().enumerate() {
                let path = path.key("match").index(index).key("sniHosts");
                if one.sni_hosts.is_empty() {
                    findings.error(path.clone(), "at least one server name is needed");
                }
                for (index, host) in one.sni_hosts.iter().enumerate() {
                    check_host(host, &path.index(index), findings);
                }
            }
        }
    }
}

impl HttpRoute {
    fn check(&self, path: &FieldPath, findings: &mut Findings) {
        let actions = [!self.route.is_empty(), self.redirect.is_some(), self.direct_response.is_some()];
        match actions.iter().filter(|given| **given).count() {
            1 => {}
            0 => findings.error(path.clone(), "one of route, redirect and directResponse is needed"),
            _ => findings.error(path.clone(), "only one of route, redirect and directResponse may be given"),
        }
        check_weights(path, self.route.iter().map(|target| target.weight), findings);
        for (index, one) in self.matches.iter().enumerate() {
            one.check(&path.key("match").index(index), findings);
        }
        self.check_answers(path, findings);
        if let Some(rewrite) = &self.rewrite {
            let path = path.key("rewrite");
            if !rewrite.uri.is_empty() && rewrite.uri_regex_rewrite.is_some() {
                findings.error(path.clone(), "only one of uri and uriRegexRewrite may be given");
            }
            if let Some(regex) = &rewrite.uri_regex_rewrite {
                check_regex(&regex.pattern, &path.key("uriRegexRewrite").key("match"), findings);
            }
            check_header_value(&rewrite.authority, &path.key("authority"), findings);
        }
        let own = self.headers.iter().map(|headers| (headers, path.key("headers")));
        let of_targets = self.route.iter().enumerate().filter_map(|(index, target)| {
            Some((target.headers.as_ref()?, path.key("route").index(index).key("headers")))
        });
        for (headers, path) in own.chain(of_targets) {
            headers.request.check(&path.key("request"), findings);
            headers.response.check(&path.key("response"), findings);
        }
    }

    fn check_answers(&self, path: &FieldPath, findings: &mut Findings) {
        if let Some(redirect) = &self.redirect {
            let path = path.key("redirect");
            if redirect.redirect_code.is_some_and(|code| ![301, 302, 303, 307, 308].contains(&code)) {
                findings.error(path.key("redirectCode"), "must be 301, 302, 303, 307 or 308");
            }
            if redirect.port.is_some() && redirect.derive_port.is_some() {
                findings.error(path.clone(), "only one of port and derivePort may be given");
            }
            if !matches!(redirect.scheme.as_str(), "" | "http" | "https") {
                findings.error(path.key("scheme"), "must be http or https");
            }
            check_header_value(&redirect.uri, &path.key("uri"), findings);
            check_header_value(&redirect.authority, &path.key("authority"), findings);
        }
        if let Some(response) = &self.direct_response {
            let path = path.key("directResponse");
            if !(200..600).contains(&response.status) {
                findings.error(path.key("status"), "must be 200 to 599");
            }
            if let Some(body) = &response.body {
                match (&body.string, &body.bytes) {
                    (Some(_), Some(_)) => findings.error(path.key("body"), "only one of string and bytes may be given"),
                    (None, Some(bytes)) if decode_base64(bytes).is_none() => {
                        findings.error(path.key("body").key("bytes"), "is no base64");
                    }
                    _ => {}
                }
            }
        }
    }
}

impl HeaderChanges {
    fn check(&self, path: &FieldPath, findings: &mut Findings) {
        for (field, values) in [("set", &self.set), ("add", &self.add)] {
            for (name, value) in values {
                let path = path.key(field).key(name);
                check_header_name(name, &path, findings);
                check_header_value(value, &path, findings);
            }
        }
        for (index, name) in self.remove.iter().enumerate() {
            check_header_name(name, &path.key("remove").index(index), findings);
        }
    }
}

impl HttpMatch {
    fn check(&self, path: &FieldPath, findings: &mut Findings) {
        let single =
            [("uri", &self.uri), ("scheme", &self.scheme), ("method", &self.method), ("authority", &self.authority)];
        for (field, value) in single {
            match value {
                Some(StringMatch::Any) => findings.error(path.key(field), "one of exact, prefix and regex is needed"),
                Some(StringMatch::Regex(regex)) => check_regex(regex, &path.key(field).key("regex"), findings),
                _ => {}
            }
        }
        for (field, map) in [("headers", &self.headers), ("withoutHeaders", &self.without_headers)] {
            for name in map.keys() {
                let path = path.key(field).key(name);
                if name.starts_with("@request.auth.claims") {
                    findings.error(path, "conditions on JWT claims are not supported yet");
                } else {
                    check_header_name(name, &path, findings);
                }
            }
            check_map(map, &path.key(field), findings);
        }
        check_map(&self.query_params, &path.key("queryParams"), findings);
    }
}

fn check_map(map: &BTreeMap<String, StringMatch>, path: &FieldPath, findings: &mut Findings) {
    for (name, value) in map {
        match value {
            // A lone `*` is no regular expression, yet Istio takes it for "present".
            StringMatch::Regex(regex) if regex != "*" => check_regex(regex, &path.key(name).key("regex"), findings),
            _ => {}
        }
    }
}

fn check_header_name(name: &str, path: &FieldPath, findings: &mut Findings) {
    let pseudo = matches!(name, ":authority" | ":method" | ":path" | ":scheme");
    if !pseudo && http::HeaderName::from_bytes(name.as_bytes()).is_err() {
        findings.error(path.clone(), format!("`{name}` is no header name"));
    }
}

fn check_header_value(value: &str, path: &FieldPath, findings: &mut Findings) {
    if http::HeaderValue::from_str(value).is_err() {
        findings.error(path.clone(), "holds characters that a header may not have");
    }
}

fn check_l4_route(path: &FieldPath, weights: impl Iterator<Item = u32> + Clone, findings: &mut Findings) {
    if weights.clone().next().is_none() {
        findings.error(path.key("route"), "at least one destination is needed");
    }
    check_weights(path, weights, findings);
}

fn check_weights(path: &FieldPath, weights: impl Iterator<Item = u32> + Clone, findings: &mut Findings) {
    if weights.clone().nth(1).is_none() {
        return;
    }
    let total: u64 = weights.map(u64::from).sum();
    if total == 0 {
        findings.error(path.key("route"), "the weights of several destinations must not all be 0");
    } else if total > u64::from(u32::MAX) {
        findings.error(path.key("route"), format!("the weights' sum {total} is larger than {}", u32::MAX));
    }
}

fn check_regex(regex: &str, path: &FieldPath, findings: &mut Findings) {
    if regex.len() > MAX_REGEX {
        findings.error(path.clone(), format!("a regular expression may have at most {MAX_REGEX} bytes"));
    } else if let Err(error) = regex::Regex::new(regex) {
        let text = error.to_string();
        let last = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
        findings.error(path.clone(), format!("`{regex}` is no regular expression: {last}"));
    }
}

/// A host of a service, possibly with a leading `*`.
pub(in crate::config) fn check_host(host: &str, path: &FieldPath, findings: &mut Findings) {
    let name = host.strip_prefix("*.").unwrap_or(host);
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
    };
    let fits = name.len() <= 253 && name.strip_suffix('.').unwrap_or(name).split('.').all(label);
    if host != "*" && !fits && host.parse::<std::net::IpAddr>().is_err() {
        findings.error(path.clone(), format!("`{host}` is no host name"));
    }
}
