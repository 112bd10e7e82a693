//! Route tables: domains, order, matches, actions.
#![allow(clippy::unwrap_used, clippy::panic)]

use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{Route, RouteAction, RouteMatch, VirtualHost};
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;

use super::*;
use crate::translate::vet;

const HTTP: &str = "[{name: http, port: 9080}]";
const REVIEWS: &str = "reviews.default.svc.cluster.local";

fn host<'t>(table: &'t RouteConfiguration, name: &str) -> &'t VirtualHost {
    table.virtual_hosts.iter().find(|host| host.name == name).unwrap_or_else(|| panic!("no {name} in {table:#?}"))
}

fn action(route: &Route) -> &RouteAction {
    match &route.action {
        Some(Action::Route(action)) => action,
        other => panic!("{other:?}"),
    }
}

/// Where a route goes: `cluster` or `a=90 b=10`.
fn target(route: &Route) -> String {
    match &action(route).cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => name.clone(),
        Some(ClusterSpecifier::WeightedClusters(weighted)) => {
            let one = |one: &_| -> String {
                let one: &envoy_types::pb::envoy::config::route::v3::weighted_cluster::ClusterWeight = one;
                format!("{}={}", one.name, one.weight.unwrap().value)
            };
            weighted.clusters.iter().map(one).collect::<Vec<_>>().join(" ")
        }
        other => panic!("{other:?}"),
    }
}

/// The routes that a VirtualService of `reviews` makes.
fn routes_of(http: &str) -> Vec<Route> {
    let rule = istio("VirtualService", "reviews", &format!("  hosts: [reviews]\n  http:\n{http}"));
    let told = Told::new(&[service("reviews", "10.96.0.1", HTTP), rule].concat());
    host(&told.routes("9080"), &format!("{REVIEWS}:9080")).routes.clone()
}

#[test]
fn domains_depend_on_who_asks() {
    let text = [service("reviews", "10.96.0.1", HTTP), service("six", "fd00::9", HTTP)].concat();
    let own = Told::new(&text).routes("9080");
    assert_eq!(
        host(&own, &format!("{REVIEWS}:9080")).domains,
        [
            REVIEWS,
            "reviews.default.svc.cluster.local.",
            "reviews",
            "reviews.default.svc",
            "reviews.default",
            "10.96.0.1"
        ]
    );
    assert!(host(&own, "six.default.svc.cluster.local:9080").domains.contains(&"[fd00::9]".to_owned()));
    let other = Told::in_namespace("other", &text).routes("9080");
    let domains = &host(&other, &format!("{REVIEWS}:9080")).domains;
    assert!(!domains.contains(&"reviews".to_owned()) && domains.contains(&"reviews.default".to_owned()), "{domains:?}");
    let last = own.virtual_hosts.last().unwrap();
    assert_eq!((last.name.as_str(), last.domains.as_slice()), ("allow_any", &["*".to_owned()][..]));
    assert_eq!(target(&last.routes[0]), "PassthroughCluster");
    assert!(own.ignore_port_in_host_matching && !own.validate_clusters.unwrap().value);
}

#[test]
fn headless_names_include_their_pods() {
    let told = Told::new(&service("db", "None", HTTP));
    let table = told.routes("9080");
    let domains = &host(&table, "db.default.svc.cluster.local:9080").domains;
    for domain in ["*.db", "*.db.default", "*.db.default.svc", "*.db.default.svc.cluster.local"] {
        assert!(domains.contains(&domain.to_owned()), "{domain} in {domains:?}");
    }
}

#[test]
fn a_service_without_rule_has_istios_default_route() {
    let told = Told::new(&service("reviews", "10.96.0.1", HTTP));
    let table = told.routes("9080");
    let host = host(&table, &format!("{REVIEWS}:9080"));
    assert!(host.include_request_attempt_count);
    let [route] = host.routes.as_slice() else { panic!("{host:?}") };
    assert_eq!((route.name.as_str(), target(route)), ("default", format!("outbound|9080||{REVIEWS}")));
    assert_eq!(route.decorator.as_ref().unwrap().operation, format!("{REVIEWS}:9080/*"));
    let action = action(route);
    assert_eq!(action.timeout.unwrap().seconds, 0);
    let retry = action.retry_policy.as_ref().unwrap();
    assert_eq!(retry.retry_on, "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes");
    assert_eq!((retry.num_retries.unwrap().value, retry.host_selection_retry_max_attempts), (2, 5));
    assert_eq!(retry.retry_host_predicate[0].name, "envoy.retry_host_predicates.previous_hosts");
    assert!(retry.retriable_status_codes.is_empty());
}

#[test]
fn weights_names_and_the_end_after_a_catch_all() {
    let routes = routes_of(
        "  - name: jason
    match: [{name: m, headers: {end-user: {exact: jason}}}]
    route: [{destination: {host: reviews, subset: v2}}]
  - match: [{sourceLabels: {app: nobody}}]
    route: [{destination: {host: reviews, subset: v9}}]
  - match: [{sourceLabels: {app: client}, uri: {prefix: /x}}]
    route: [{destination: {host: reviews, subset: v4}}]
  - name: everybody
    route:
    - {destination: {host: reviews, subset: v1}, weight: 90}
    - {destination: {host: reviews, subset: v0}, weight: 0}
    - {destination: {host: reviews.default.svc.cluster.local, subset: v3, port: {number: 9080}}, weight: 10}
  - route: [{destination: {host: never}}]",
    );
    let told: Vec<_> = routes.iter().map(|route| (route.name.as_str(), target(route))).collect();
    assert_eq!(
        told,
        [
            ("jason.m", format!("outbound|9080|v2|{REVIEWS}")),
            ("", format!("outbound|9080|v4|{REVIEWS}")),
            ("everybody", format!("outbound|9080|v1|{REVIEWS}=90 outbound|9080|v3|{REVIEWS}=10")),
        ]
    );
    let istio = &routes[0].metadata.as_ref().unwrap().filter_metadata["istio"];
    assert!(format!("{istio:?}").contains("/apis/networking.istio.io/v1/namespaces/default/virtual-service/reviews"));
}

fn route_match(block: &str) -> RouteMatch {
    let routes = routes_of(&format!("  - match: [{block}]\n    route: [{{destination: {{host: reviews}}}}]"));
    routes[0].r#match.clone().unwrap()
}

#[test]
fn paths() {
    let path = |block: &str| {
        let matched = route_match(block);
        let how = match matched.path_specifier.unwrap() {
            PathSpecifier::Path(text) => format!("exact {text}"),
            PathSpecifier::Prefix(text) => format!("prefix {text}"),
            PathSpecifier::SafeRegex(regex) => format!("regex {}", regex.regex),
            other => panic!("{other:?}"),
        };
        (how, matched.case_sensitive.map(|value| value.value))
    };
    assert_eq!(path("{uri: {exact: /a}}"), ("exact /a".into(), Some(true)));
    assert_eq!(path("{uri: {prefix: /a}, ignoreUriCase: true}"), ("prefix /a".into(), Some(false)));
    assert_eq!(path("{uri: {regex: '/a.*'}}"), ("regex /a.*".into(), Some(true)));
    assert_eq!(path("{port: 9080}"), ("prefix /".into(), None));
}

#[test]
fn headers() {
    let all = |block: &str| -> Vec<String> {
        let one = |header: &envoy_types::pb::envoy::config::route::v3::HeaderMatcher| {
            let how = match header.header_match_specifier.clone().unwrap() {
                HeaderMatchSpecifier::PresentMatch(true) => "present".to_owned(),
                HeaderMatchSpecifier::StringMatch(text) => match text.match_pattern.unwrap() {
                    MatchPattern::Exact(text) => format!("= {text}"),
                    MatchPattern::Prefix(text) => format!("^ {text}"),
                    MatchPattern::SafeRegex(regex) => format!("~ {}", regex.regex),
                    other => panic!("{other:?}"),
                },
                other => panic!("{other:?}"),
            };
            let not = if header.invert_match { "not " } else { "" };
            let empty = if header.treat_missing_header_as_empty { " (missing is empty)" } else { "" };
            format!("{not}{} {how}{empty}", header.name)
        };
        route_match(block).headers.iter().map(one).collect()
    };
    assert_eq!(
        all("{method: {exact: GET}, authority: {prefix: a}, scheme: {exact: http}}"),
        [":method = GET", ":authority ^ a", ":scheme = http"]
    );
    assert_eq!(
        all("{headers: {A: {exact: x}, b: {prefix: y}, c: {regex: z.*}, d: {}, e: {regex: '*'}, f: {prefix: ''}}}"),
        ["a = x", "b ^ y", "c ~ z.*", "d present", "e present", "f present"]
    );
    assert_eq!(all("{withoutHeaders: {a: {exact: x}, b: {}}}"), ["not a = x (missing is empty)", "not b present"]);
    let query = route_match("{queryParams: {a: {exact: x}, b: {}}}").query_parameters;
    assert_eq!(query.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn actions() {
    let one = |rest: &str| routes_of(&format!("  - {rest}")).remove(0);
    let to = "route: [{destination: {host: reviews}}]";

    let route = one(&format!("{to}\n    timeout: 1.5s\n    rewrite: {{uri: /x, authority: y}}"));
    let timeout = action(&route).timeout.unwrap();
    assert_eq!((timeout.seconds, timeout.nanos), (1, 500_000_000));
    assert_eq!(action(&route).prefix_rewrite, "/x");
    assert!(format!("{:?}", action(&route).host_rewrite_specifier).contains("HostRewriteLiteral(\"y\")"));

    let route =
        one(&format!("{to}\n    retries: {{attempts: 3, perTryTimeout: 2s, retryOn: '5xx,503,gateway-error'}}"));
    let retry = action(&route).retry_policy.clone().unwrap();
    assert_eq!(retry.retry_on, "5xx,gateway-error,retriable-status-codes");
    assert_eq!((retry.retriable_status_codes.as_slice(), retry.num_retries.unwrap().value), (&[503][..], 3));
    assert_eq!(retry.per_try_timeout.unwrap().seconds, 2);
    assert!(action(&one(&format!("{to}\n    retries: {{attempts: 0}}"))).retry_policy.is_none());

    let route = one("redirect: {uri: /new, authority: new.example.com, port: 8443, scheme: https, redirectCode: 308}");
    let Some(Action::Redirect(redirect)) = route.action else { panic!() };
    assert_eq!(
        (redirect.host_redirect.as_str(), redirect.port_redirect, redirect.response_code),
        ("new.example.com", 8443, 4)
    );

    let route = one("directResponse: {status: 418, body: {string: tea}}");
    let Some(Action::DirectResponse(response)) = route.action else { panic!() };
    assert_eq!(response.status, 418);

    let route = one(&format!(
        "{to}\n    headers:\n      request: {{set: {{Host: h, x-a: '1'}}, add: {{x-b: '2'}}, remove: [x-c]}}\n      response: {{set: {{x-d: '4'}}}}"
    ));
    let added: Vec<_> = route
        .request_headers_to_add
        .iter()
        .map(|one| (one.header.as_ref().unwrap().key.as_str(), one.append_action))
        .collect();
    assert_eq!(added, [("x-a", 2), ("x-b", 0)]);
    assert_eq!(route.request_headers_to_remove, ["x-c"]);
    assert_eq!(route.response_headers_to_add.len(), 1);
    assert!(format!("{:?}", action(&route).host_rewrite_specifier).contains("HostRewriteLiteral(\"h\")"));
}

#[test]
fn a_detected_service_has_a_table_of_its_own() {
    let rule =
        istio("VirtualService", "any", "  hosts: [any]\n  http: [{route: [{destination: {host: any, subset: v1}}]}]");
    let told = Told::new(&[service("any", "10.96.0.1", "[{port: 80}]"), rule].concat());
    let table = told.routes("any.default.svc.cluster.local:80");
    assert_eq!(table.virtual_hosts.len(), 1);
    assert_eq!(table.virtual_hosts[0].domains, ["*"]);
    assert_eq!(target(&table.virtual_hosts[0].routes[0]), "outbound|80|v1|any.default.svc.cluster.local");
}

#[test]
fn a_host_that_is_no_service_is_routed_on_port_80() {
    let rule = istio(
        "VirtualService",
        "v",
        "  hosts: [virtual.example.com]\n  http: [{route: [{destination: {host: reviews}}]}]",
    );
    let told = Told::new(&[service("reviews", "10.96.0.1", "[{name: http, port: 80}]"), rule].concat());
    let table = told.routes("80");
    let host = host(&table, "virtual.example.com:80");
    assert_eq!(host.domains, ["virtual.example.com", "virtual.example.com."]);
    assert_eq!(target(&host.routes[0]), format!("outbound|80||{REVIEWS}"));
}

#[test]
fn of_equal_domains_the_first_counts() {
    let entry = istio(
        "ServiceEntry",
        "e",
        "  hosts: [other.example.com]\n  addresses: [10.96.0.1]\n  ports: [{number: 9080, name: http, protocol: HTTP}]",
    );
    let told = Told::new(&[service("reviews", "10.96.0.1", HTTP), entry].concat());
    let table = told.routes("9080");
    let with: Vec<_> =
        table.virtual_hosts.iter().filter(|host| host.domains.contains(&"10.96.0.1".to_owned())).collect();
    assert_eq!(with.len(), 1);
}

#[test]
fn an_object_that_mesh_core_refuses_is_named_before_it_is_used() {
    let refused = |kind: &str, spec: &str| {
        let all = objects(&istio(kind, "v", spec));
        vet(all.values().next().unwrap()).err().map(|(path, why)| format!("{path}: {why}"))
    };
    let to = "route: [{destination: {host: reviews}}]";
    let rule = |http: &str| refused("VirtualService", &format!("  hosts: [reviews]\n  http:\n  - {to}\n  - {http}"));
    assert_eq!(rule(to), None);
    // Conditions on clients do not hide a route from the trial.
    let why = rule(&format!(
        "{to}\n    match: [{{sourceLabels: {{a: b}}, port: 1}}]\n    retries: {{attempts: 1, retryOn: 5xxx}}"
    ));
    let why = why.unwrap();
    assert!(why.starts_with("spec.http[1]: the agents would refuse it: ") && why.contains("5xxx"), "{why}");
    let why = rule(&format!("{to}\n    headers: {{request: {{set: {{x-a: '%REQ(b)%'}}}}}}")).unwrap();
    assert!(why.contains("%REQ(b)%"), "{why}");

    let hash = |how: &str| {
        refused("DestinationRule", &format!("  host: r\n  trafficPolicy: {{loadBalancer: {{consistentHash: {how}}}}}"))
    };
    assert_eq!(hash("{httpCookie: {name: a, ttl: 10s}}"), None);
    let why = hash("{httpHeaderName: 'a b'}").unwrap();
    assert!(why.starts_with("spec.trafficPolicy: the agents would refuse it: "), "{why}");
}
