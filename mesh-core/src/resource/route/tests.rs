//! Tables of routing decisions on real messages, refusals with their paths, and properties.

use super::*;
use crate::resource::fault::Fault;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use envoy_types::pb::google::protobuf as google;
use proptest::prelude::*;

type HeaderList<'a> = Vec<(&'a str, &'a [u8])>;

fn parse(message: &pb::RouteConfiguration) -> Result<RouteTable, Fault> {
    RouteTable::from_message(message)
}

fn refusal(message: &pb::RouteConfiguration) -> String {
    let rejection = parse(message).unwrap_err().reject("r");
    assert!(!rejection.why.is_empty());
    rejection.path
}

fn prefix(text: &str) -> pb::route_match::PathSpecifier {
    pb::route_match::PathSpecifier::Prefix(text.into())
}

fn regex(text: &str) -> matcher::RegexMatcher {
    matcher::RegexMatcher { regex: text.into(), ..Default::default() }
}

fn to(cluster: &str) -> pb::route::Action {
    pb::route::Action::Route(pb::RouteAction {
        cluster_specifier: Some(pb::route_action::ClusterSpecifier::Cluster(cluster.into())),
        ..Default::default()
    })
}

fn route(name: &str, matches: pb::RouteMatch) -> pb::Route {
    pb::Route { name: name.into(), r#match: Some(matches), action: Some(to("c")), ..Default::default() }
}

fn path(specifier: pb::route_match::PathSpecifier) -> pb::RouteMatch {
    pb::RouteMatch { path_specifier: Some(specifier), ..Default::default() }
}

fn table(routes: Vec<pb::Route>) -> pb::RouteConfiguration {
    pb::RouteConfiguration {
        name: "9080".into(),
        ignore_port_in_host_matching: true,
        virtual_hosts: vec![pb::VirtualHost {
            name: "reviews:9080".into(),
            domains: vec!["reviews".into()],
            routes,
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn select<'a>(table: &'a RouteTable, method: &str, path: &str, headers: &HeaderList<'_>) -> &'a str {
    let outcome = table.select(&RequestHead { authority: "reviews:9080", path, method, scheme: "http", headers });
    match outcome {
        RouteOutcome::Route(route) => &route.name,
        RouteOutcome::NoVirtualHost => "no virtual host",
        RouteOutcome::NoRoute => "no route",
    }
}

#[test]
fn paths() {
    use pb::route_match::PathSpecifier::*;
    for (specifier, yes, no) in [
        (prefix("/a"), vec!["/a", "/ab", "/a?x", "/a/b"], vec!["/", "/A", "", "*"]),
        (Path("/a".into()), vec!["/a", "/a?x=/b", "/a#f"], vec!["/a/", "/ab"]),
        (PathSeparatedPrefix("/a".into()), vec!["/a", "/a/", "/a?x"], vec!["/ab", "/"]),
        (SafeRegex(regex("/a.c")), vec!["/abc", "/abc?q"], vec!["/abcd", "x/abc"]),
        (prefix("/"), vec!["/", "/x"], vec!["*", ""]),
    ] {
        let parsed = parse(&table(vec![route("r", path(specifier.clone()))])).unwrap();
        for p in yes {
            assert_eq!(select(&parsed, "GET", p, &vec![]), "r", "{specifier:?} {p}");
        }
        for p in no {
            assert_eq!(select(&parsed, "GET", p, &vec![]), "no route", "{specifier:?} {p}");
        }
    }
    let parsed = parse(&table(vec![route(
        "r",
        pb::RouteMatch { case_sensitive: Some(google::BoolValue { value: false }), ..path(prefix("/Ab")) },
    )]))
    .unwrap();
    assert_eq!(select(&parsed, "GET", "/aBc", &vec![]), "r");
}

#[test]
fn connect_takes_only_its_own_route() {
    let connect = pb::route_match::PathSpecifier::ConnectMatcher(Default::default());
    let parsed = parse(&table(vec![route("all", path(prefix("/"))), route("connect", path(connect))])).unwrap();
    assert_eq!(select(&parsed, "CONNECT", "", &vec![]), "connect");
    assert_eq!(select(&parsed, "GET", "/", &vec![]), "all");
}

/// Envoy's table: value present or not, inverted or not, missing as empty or not.
#[test]
fn header_conditions() {
    use pb::header_matcher::HeaderMatchSpecifier::*;
    let text = |pattern| StringMatch(matcher::StringMatcher { ignore_case: true, match_pattern: Some(pattern) });
    let range = RangeMatch(envoy_types::pb::envoy::r#type::v3::Int64Range { start: -10, end: 0 });
    let cases: Vec<(Option<_>, bool, bool, Option<&str>, bool)> = vec![
        (None, false, false, Some("x"), true),
        (None, false, false, None, false),
        (None, true, false, None, true),
        (Some(PresentMatch(true)), false, false, Some(""), true),
        (Some(PresentMatch(false)), false, false, None, true),
        (Some(PresentMatch(false)), false, false, Some("x"), false),
        (Some(PresentMatch(true)), false, true, None, true),
        (Some(ExactMatch("jason".into())), false, false, Some("jason"), true),
        (Some(ExactMatch("jason".into())), false, false, Some("Jason"), false),
        (Some(ExactMatch("jason".into())), true, false, Some("mary"), true),
        // Inverted, absent: no match, unless absent counts as empty.
        (Some(ExactMatch("jason".into())), true, false, None, false),
        (Some(ExactMatch("jason".into())), true, true, None, true),
        (Some(ExactMatch("".into())), false, true, None, true),
        (Some(PrefixMatch("ja".into())), false, false, Some("jason"), true),
        (Some(SuffixMatch("on".into())), false, false, Some("jason"), true),
        (Some(ContainsMatch("aso".into())), false, false, Some("jason"), true),
        (Some(SafeRegexMatch(regex("j.*"))), false, false, Some("jason"), true),
        (Some(SafeRegexMatch(regex("j"))), false, false, Some("jason"), false),
        (Some(text(matcher::string_matcher::MatchPattern::Exact("JASON".into()))), false, false, Some("jason"), true),
        (Some(range.clone()), false, false, Some("-1"), true),
        (Some(range.clone()), false, false, Some("0"), false),
        (Some(range.clone()), true, false, Some("-1"), false),
        (Some(range.clone()), false, false, Some("x"), false),
        (Some(range), true, true, None, true),
    ];
    for (specifier, invert, as_empty, value, want) in cases {
        let what = format!("{specifier:?} invert {invert} as_empty {as_empty} value {value:?}");
        let header = pb::HeaderMatcher {
            name: "End-User".into(),
            invert_match: invert,
            treat_missing_header_as_empty: as_empty,
            header_match_specifier: specifier,
        };
        let matches = pb::RouteMatch { headers: vec![header], ..path(prefix("/")) };
        let parsed = parse(&table(vec![route("r", matches)])).unwrap();
        let headers: HeaderList<'_> = value.iter().map(|v| ("end-user", v.as_bytes())).collect();
        assert_eq!(select(&parsed, "GET", "/", &headers) == "r", want, "{what}");
    }
}

#[test]
fn several_values_are_joined_and_pseudo_headers_work() {
    let header = |name: &str, value: &str| pb::HeaderMatcher {
        name: name.into(),
        header_match_specifier: Some(pb::header_matcher::HeaderMatchSpecifier::ExactMatch(value.into())),
        ..Default::default()
    };
    let parsed = parse(&table(vec![
        route("joined", pb::RouteMatch { headers: vec![header("x", "1,2")], ..path(prefix("/")) }),
        route("post", pb::RouteMatch { headers: vec![header(":method", "POST")], ..path(prefix("/")) }),
        route("authority", pb::RouteMatch { headers: vec![header(":authority", "reviews:9080")], ..path(prefix("/")) }),
    ]))
    .unwrap();
    let both: HeaderList<'_> = vec![("X", b"1"), ("x", b"2")];
    assert_eq!(select(&parsed, "GET", "/", &both), "joined");
    assert_eq!(select(&parsed, "POST", "/", &vec![]), "post");
    assert_eq!(select(&parsed, "GET", "/", &vec![]), "authority");
}

#[test]
fn query_and_grpc_conditions() {
    let query = pb::QueryParameterMatcher {
        name: "v".into(),
        query_parameter_match_specifier: Some(pb::query_parameter_matcher::QueryParameterMatchSpecifier::StringMatch(
            matcher::StringMatcher {
                match_pattern: Some(matcher::string_matcher::MatchPattern::Exact("2".into())),
                ..Default::default()
            },
        )),
    };
    let parsed = parse(&table(vec![
        route("q", pb::RouteMatch { query_parameters: vec![query], ..path(prefix("/")) }),
        route("g", pb::RouteMatch { grpc: Some(Default::default()), ..path(prefix("/")) }),
    ]))
    .unwrap();
    assert_eq!(select(&parsed, "GET", "/?a=1&v=2", &vec![]), "q");
    assert_eq!(select(&parsed, "GET", "/?v=2#x", &vec![]), "q");
    for (path, content_type, want) in [
        ("/?v=3&v=2", "", "no route"),
        ("/", "application/grpc", "g"),
        ("/", "application/grpc+proto", "g"),
        ("/", "application/grpc-web", "no route"),
    ] {
        let headers: HeaderList<'_> = vec![("content-type", content_type.as_bytes())];
        assert_eq!(select(&parsed, "GET", path, &headers), want, "{path} {content_type}");
    }
}

#[test]
fn rewrites_and_redirects() {
    use pb::route_match::PathSpecifier::*;
    let rewrite = |prefix: &str, regex_rewrite| {
        pb::route::Action::Route(pb::RouteAction {
            prefix_rewrite: prefix.into(),
            regex_rewrite,
            cluster_specifier: Some(pb::route_action::ClusterSpecifier::Cluster("c".into())),
            ..Default::default()
        })
    };
    let substitute = |pattern: &str, substitution: &str| {
        Some(matcher::RegexMatchAndSubstitute { pattern: Some(regex(pattern)), substitution: substitution.into() })
    };
    for (specifier, action, path_in, want) in [
        (prefix("/a"), rewrite("/b", None), "/ac?q", Some("/bc?q")),
        (prefix("/a/"), rewrite("/", None), "/a/c", Some("/c")),
        (Path("/a".into()), rewrite("/b", None), "/a?q", Some("/b?q")),
        (PathSeparatedPrefix("/a".into()), rewrite("/", None), "/a/c", Some("/c")),
        (PathSeparatedPrefix("/a".into()), rewrite("/", None), "/a", Some("/")),
        (prefix("/"), rewrite("", substitute("^/(x)/(y)", r"/\2$/\1")), "/x/y?/x/y", Some("/y$/x?/x/y")),
        (prefix("/"), rewrite("", None), "/x", None),
    ] {
        let message = table(vec![pb::Route { action: Some(action.clone()), ..route("r", path(specifier)) }]);
        let parsed = parse(&message).unwrap();
        let got = parsed.virtual_hosts[0].routes[0].rewrite_path(path_in);
        assert_eq!(got.as_deref(), want, "{action:?} {path_in}");
    }

    use pb::redirect_action::{PathRewriteSpecifier as To, SchemeRewriteSpecifier as Scheme};
    let redirect = |host: &str, port, scheme, to, strip_query| pb::RedirectAction {
        host_redirect: host.into(),
        port_redirect: port,
        scheme_rewrite_specifier: scheme,
        path_rewrite_specifier: to,
        strip_query,
        ..Default::default()
    };
    for (action, want) in [
        (redirect("h", 0, None, None, false), "http://h/p/x?q"),
        (redirect("", 0, None, None, true), "http://reviews:80/p/x"),
        (redirect("", 0, Some(Scheme::HttpsRedirect(true)), None, false), "https://reviews/p/x?q"),
        (redirect("h", 8443, Some(Scheme::SchemeRedirect("https".into())), None, false), "https://h:8443/p/x?q"),
        (redirect("", 0, None, Some(To::PathRedirect("/new".into())), false), "http://reviews:80/new?q"),
        (redirect("", 0, None, Some(To::PathRedirect("/new?z".into())), false), "http://reviews:80/new?z"),
        (redirect("", 0, None, Some(To::PrefixRewrite("/n".into())), false), "http://reviews:80/n/x?q"),
    ] {
        let message = table(vec![pb::Route {
            action: Some(pb::route::Action::Redirect(action.clone())),
            ..route("r", path(prefix("/p")))
        }]);
        let parsed = parse(&message).unwrap();
        let headers: HeaderList<'_> = vec![];
        let request =
            RequestHead { authority: "reviews:80", path: "/p/x?q", method: "GET", scheme: "http", headers: &headers };
        let got = parsed.virtual_hosts[0].routes[0].location(&request);
        assert_eq!(got.as_deref(), Some(want), "{action:?}");
    }
}

fn add(name: &str, value: &str, action: core::header_value_option::HeaderAppendAction) -> core::HeaderValueOption {
    core::HeaderValueOption {
        header: Some(core::HeaderValue { key: name.into(), value: value.into(), ..Default::default() }),
        append_action: action as i32,
        ..Default::default()
    }
}

#[test]
fn header_changes_go_from_route_to_table() {
    use core::header_value_option::HeaderAppendAction::*;
    let mut message = table(vec![pb::Route {
        request_headers_to_add: vec![
            add("x", "route", AppendIfExistsOrAdd),
            add("y", "50%%", OverwriteIfExistsOrAdd),
            add("z", "no", OverwriteIfExists),
            add("empty", "", AppendIfExistsOrAdd),
        ],
        request_headers_to_remove: vec!["X-Gone".into()],
        ..route("r", path(prefix("/")))
    }]);
    message.virtual_hosts[0].request_headers_to_add = vec![add("x", "host", AppendIfExistsOrAdd)];
    message.request_headers_to_add = vec![add("x", "table", AppendIfExistsOrAdd), add("y", "late", AddIfAbsent)];
    let changes = |message: &pb::RouteConfiguration| {
        let text = |value: &HeaderValue| value.to_str().unwrap().to_owned();
        let table = parse(message).unwrap();
        let each = table.virtual_hosts[0].routes[0].request_headers.iter().map(|op| match op {
            HeaderOp::Append(name, value) => format!("{name}+{}", text(value)),
            HeaderOp::AddIfAbsent(name, value) => format!("{name}?{}", text(value)),
            HeaderOp::Set(name, value) => format!("{name}={}", text(value)),
            HeaderOp::SetIfPresent(name, value) => format!("{name}~{}", text(value)),
            HeaderOp::Remove(name) => format!("{name}-"),
        });
        each.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(changes(&message), "x-gone- x+route y=50% z~no x+host x+table y?late");
    message.most_specific_header_mutations_wins = true;
    assert_eq!(changes(&message), "x+table y?late x+host x-gone- x+route y=50% z~no");
}

#[test]
fn defaults_are_envoys() {
    let parsed = parse(&table(vec![route("r", path(prefix("/")))])).unwrap();
    let Action::Forward(forward) = &parsed.virtual_hosts[0].routes[0].action else {
        panic!("not a forward");
    };
    assert_eq!(forward.timeout, Some(Duration::from_secs(15)));
    assert_eq!(forward.retry, None);
    assert_eq!(forward.cluster_not_found, StatusCode::SERVICE_UNAVAILABLE);

    let mut message = table(vec![route("r", path(prefix("/")))]);
    message.virtual_hosts[0].retry_policy = Some(pb::RetryPolicy {
        retry_on: "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes".into(),
        num_retries: Some(google::UInt32Value { value: 2 }),
        host_selection_retry_max_attempts: 5,
        retry_host_predicate: vec![pb::retry_policy::RetryHostPredicate {
            name: "envoy.retry_host_predicates.previous_hosts".into(),
            config_type: None,
        }],
        ..Default::default()
    });
    let parsed = parse(&message).unwrap();
    let Action::Forward(forward) = &parsed.virtual_hosts[0].routes[0].action else {
        panic!("not a forward");
    };
    let retry = forward.retry.as_ref().unwrap();
    assert!(retry.on.connect_failure && retry.on.grpc_unavailable && !retry.on.server_error);
    assert_eq!((retry.num_retries, retry.avoid_previous_hosts), (2, true));
    assert_eq!(retry.max_interval, Duration::from_millis(250));
}

/// A change to a good table, and the path its refusal must name.
type BadTable = (fn(&mut pb::RouteConfiguration), &'static str);

#[test]
fn refusals_name_the_field() {
    let bad: Vec<BadTable> = vec![
        (|m| m.vhds = Some(Default::default()), "vhds"),
        (|m| m.virtual_hosts[0].domains.clear(), "virtual_hosts[0].domains"),
        (|m| m.virtual_hosts[0].domains.push("REVIEWS".into()), "virtual_hosts[0].domains[1]"),
        (|m| m.virtual_hosts[0].require_tls = 2, "virtual_hosts[0].require_tls"),
        (|m| m.virtual_hosts[0].routes[1].r#match = None, "virtual_hosts[0].routes[1].match"),
        (
            |m| {
                m.virtual_hosts[0].routes[1].r#match = Some(path(pb::route_match::PathSpecifier::SafeRegex(regex("("))))
            },
            "virtual_hosts[0].routes[1].match.safe_regex.regex",
        ),
        (
            |m| {
                m.virtual_hosts[0].routes[0].r#match.as_mut().unwrap().headers.push(pb::HeaderMatcher {
                    name: "x".into(),
                    header_match_specifier: Some(pb::header_matcher::HeaderMatchSpecifier::SafeRegexMatch(regex("["))),
                    ..Default::default()
                })
            },
            "virtual_hosts[0].routes[0].match.headers[0].safe_regex_match.regex",
        ),
        (|m| m.virtual_hosts[0].routes[0].action = None, "virtual_hosts[0].routes[0].action"),
        (
            |m| {
                m.virtual_hosts[0].routes[0]
                    .typed_per_filter_config
                    .insert("envoy.filters.http.fault".into(), Default::default());
            },
            "virtual_hosts[0].routes[0].typed_per_filter_config[\"envoy.filters.http.fault\"]",
        ),
        (
            |m| {
                m.virtual_hosts[0].routes[0].action = Some(pb::route::Action::Route(pb::RouteAction {
                    cluster_specifier: Some(pb::route_action::ClusterSpecifier::WeightedClusters(
                        pb::WeightedCluster {
                            clusters: vec![pb::weighted_cluster::ClusterWeight {
                                name: "a".into(),
                                weight: Some(google::UInt32Value { value: 0 }),
                                ..Default::default()
                            }],
                            ..Default::default()
                        },
                    )),
                    ..Default::default()
                }))
            },
            "virtual_hosts[0].routes[0].route.weighted_clusters.clusters",
        ),
        (
            |m| {
                m.virtual_hosts[0].routes[0].request_headers_to_add.push(add(
                    "x",
                    "%REQ(y)%",
                    core::header_value_option::HeaderAppendAction::AppendIfExistsOrAdd,
                ))
            },
            "virtual_hosts[0].routes[0].request_headers_to_add[0].header.value",
        ),
        (
            |m| m.virtual_hosts[0].routes[0].request_headers_to_remove.push(":method".into()),
            "virtual_hosts[0].routes[0].request_headers_to_remove[0]",
        ),
        (
            |m| {
                m.virtual_hosts[0].routes[0].action =
                    Some(pb::route::Action::DirectResponse(pb::DirectResponseAction {
                        status: 99,
                        ..Default::default()
                    }))
            },
            "virtual_hosts[0].routes[0].direct_response.status",
        ),
    ];
    for (spoil, want) in bad {
        let mut message = table(vec![route("a", path(prefix("/a"))), route("b", path(prefix("/b")))]);
        parse(&message).unwrap();
        spoil(&mut message);
        assert_eq!(refusal(&message), want);
    }
}

#[test]
fn the_name_must_be_the_resources() {
    use prost::Message;
    let body = table(vec![]).encode_to_vec();
    assert!(RouteTable::parse("9080", &body).is_ok());
    assert_eq!(RouteTable::parse("80", &body).unwrap_err().path, "name");
    assert!(RouteTable::parse("9080", &body[..body.len() - 1]).is_err());
}

#[test]
fn a_hash_is_stable_and_stops_at_terminal() {
    let mut message = table(vec![route("r", path(prefix("/")))]);
    use pb::route_action::hash_policy as hp;
    let header = |name: &str, terminal| pb::route_action::HashPolicy {
        terminal,
        policy_specifier: Some(hp::PolicySpecifier::Header(hp::Header {
            header_name: name.into(),
            ..Default::default()
        })),
    };
    if let Some(pb::route::Action::Route(action)) = &mut message.virtual_hosts[0].routes[0].action {
        action.hash_policy = vec![header("a", true), header("b", false)];
    }
    let parsed = parse(&message).unwrap();
    let hash = |headers: HeaderList<'_>| {
        let Action::Forward(forward) = &parsed.virtual_hosts[0].routes[0].action else {
            panic!("not a forward");
        };
        let head = RequestHead { authority: "reviews", path: "/", method: "GET", scheme: "http", headers: &headers };
        forward.hash(&head, "10.0.0.1".parse().unwrap())
    };
    assert_eq!(hash(vec![]), None);
    assert_eq!(hash(vec![("a", b"1"), ("b", b"2")]), hash(vec![("a", b"1"), ("b", b"3")]));
    assert_ne!(hash(vec![("b", b"2")]), hash(vec![("b", b"3")]));
}

proptest! {
    /// The selected route is the first of those that match on their own.
    #[test]
    fn first_match_wins(prefixes in proptest::collection::vec("/[ab]{0,3}", 1..8), wanted in "/[ab]{0,4}") {
        let routes = prefixes.iter().enumerate().map(|(i, p)| route(&i.to_string(), path(prefix(p)))).collect();
        let parsed = parse(&table(routes)).unwrap();
        let want = prefixes.iter().position(|p| wanted.starts_with(p.as_str()));
        let got = select(&parsed, "GET", &wanted, &vec![]);
        prop_assert_eq!(got, want.map_or("no route".to_owned(), |i| i.to_string()));
    }

    #[test]
    fn any_bytes_are_parsed_or_refused(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = RouteTable::parse("x", &body);
    }

    /// Real messages with one byte changed reach deeper than random bytes do.
    #[test]
    fn spoiled_messages_are_parsed_or_refused(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        use prost::Message;
        let matches = pb::RouteMatch { headers: vec![pb::HeaderMatcher { name: "x".into(), ..Default::default() }], ..path(prefix("/a")) };
        let mut body = table(vec![route("a", matches)]).encode_to_vec();
        let at = at.index(body.len());
        body[at] = byte;
        if let Ok(table) = RouteTable::parse("9080", &body) {
            let _ = select(&table, "GET", "/a", &vec![]);
        }
    }

    #[test]
    fn rewriting_never_panics(matched in ".{0,6}", path_in in ".{0,12}", to in ".{0,6}") {
        let route = Route {
            name: "".into(), virtual_host: "".into(), include_attempt_count: false, request_headers: Default::default(), response_headers: Default::default(),
            origin: None, operation: None,
            matches: RouteMatch { path: PathMatch::Prefix(matched.into()), case_sensitive: true, headers: vec![], query: vec![], grpc: false },
            action: Action::Redirect(Box::new(Redirect {
                scheme: None, host: None, port: None, status: StatusCode::FOUND, strip_query: false,
                path: Some(RedirectPath::Rewrite(PathRewrite::Prefix(to.into()))),
            })),
        };
        let headers: HeaderList<'_> = vec![];
        let request = RequestHead { authority: "é:1", path: &path_in, method: "GET", scheme: "http", headers: &headers };
        prop_assert!(route.location(&request).is_some());
    }
}
