//! Tables of chain choices in Istio's shapes, refusals with their paths, and the sieve against a
//! second implementation that walks keys as Envoy's nested maps do.

use super::*;
use crate::detect::{ClientHello, Detect};
use crate::resource::fault::Fault;
use crate::testing::*;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use proptest::prelude::*;
use prost::Message;

fn parse(message: &pb::Listener) -> Result<Listener, Fault> {
    Listener::from_message(message)
}

fn refusal(message: &pb::Listener) -> String {
    let rejection = parse(message).unwrap_err().reject("l");
    assert!(!rejection.why.is_empty());
    rejection.path
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn hello(sni: &str, alpn: &[&str]) -> Detect {
    Detect::Tls(Some(ClientHello {
        sni: (!sni.is_empty()).then(|| sni.to_owned()),
        alpn: alpn.iter().map(|p| p.as_bytes().to_vec()).collect(),
    }))
}

fn choose<'a>(listener: &'a Listener, destination: &str, detected: Option<&Detect>) -> &'a str {
    let facts =
        ConnFacts { destination: addr(destination), source: addr("10.1.0.9:40000"), detected, mutual_tls: false };
    listener.chain(&facts).map_or("none", |chain| &chain.name)
}

#[test]
fn istios_http_port() {
    let listener = parse(&http_listener("0.0.0.0_9080", "0.0.0.0", 9080, "9080")).unwrap();
    assert_eq!(listener.detection(addr("10.0.0.1:9080"), false), Detection::Needed);
    assert_eq!(listener.detection_timeout, None);
    for (detected, want) in [
        (Some(Detect::Http1), "http"),
        (Some(Detect::Http2), "http"),
        (Some(Detect::Opaque), "PassthroughFilterChain"),
        (Some(Detect::Tls(None)), "PassthroughFilterChain"),
        (Some(hello("a", &["h2"])), "PassthroughFilterChain"),
        (None, "PassthroughFilterChain"),
    ] {
        assert_eq!(choose(&listener, "10.0.0.1:9080", detected.as_ref()), want, "{detected:?}");
    }
    let Terminal::Http(manager) = &listener.chains[0].terminal else {
        panic!("not HTTP");
    };
    assert!(matches!(&manager.routes, Routes::Rds(name) if &**name == "9080"));
    assert_eq!(manager.upgrades, ["websocket".into()]);
    assert_eq!(manager.stream_idle_timeout, None);
}

#[test]
fn a_declared_tcp_port_never_waits() {
    let mut message = tcp_listener("10.0.0.1_6379", "10.0.0.1", 6379, "redis");
    let tcp = parse(&message).unwrap();
    assert_eq!(tcp.detection(addr("10.0.0.1:6379"), false), Detection::NotNeeded);
    assert_eq!(choose(&tcp, "10.0.0.1:6379", None), "tcp");
    // Not even when an inspector stands there without need.
    message.listener_filters = vec![inspector("tls_inspector"), inspector("http_inspector")];
    assert_eq!(parse(&message).unwrap().detection(addr("10.0.0.1:6379"), false), Detection::NotNeeded);
}

/// Istio's PERMISSIVE inbound: mTLS and plain, HTTP and TCP, per port, catch-all, black hole.
fn virtual_inbound() -> pb::Listener {
    let matches = |port: u32, transport: &str, alpn: &[&str]| pb::FilterChainMatch {
        destination_port: (port != 0).then_some(()).and(number(port)),
        transport_protocol: transport.into(),
        application_protocols: alpn.iter().map(|p| p.to_string()).collect(),
        ..Default::default()
    };
    let tcp = |name: &str, m| chain(name, m, vec![tcp_filter("InboundPassthroughCluster")]);
    let istio_http = ["istio-http/1.0", "istio-http/1.1", "istio-h2"];
    pb::Listener {
        name: "virtualInbound".into(),
        address: Some(address("0.0.0.0", 15006)),
        traffic_direction: core::TrafficDirection::Inbound as i32,
        filter_chains: vec![
            tcp("blackhole", matches(15006, "", &[])),
            tcp("9080 mtls http", matches(9080, "tls", &istio_http)),
            tcp("9080 http", matches(9080, "raw_buffer", &["http/1.1", "h2c"])),
            tcp("9080 mtls tcp", matches(9080, "tls", &["istio-peer-exchange", "istio"])),
            tcp("9080 tcp", matches(9080, "raw_buffer", &[])),
            tcp("9080 tls", matches(9080, "tls", &[])),
            tcp("3306 tcp", matches(3306, "", &[])),
            tcp("any http", matches(0, "raw_buffer", &["http/1.1", "h2c"])),
            tcp("any tcp", matches(0, "raw_buffer", &[])),
        ],
        listener_filters: vec![
            pb::ListenerFilter {
                name: "envoy.filters.listener.original_dst".into(),
                config_type: Some(pb::listener_filter::ConfigType::TypedConfig(packed_empty(
                    "envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
                ))),
                ..Default::default()
            },
            inspector("tls_inspector"),
            pb::ListenerFilter { filter_disabled: Some(ports(3306, 3307)), ..inspector("http_inspector") },
        ],
        ..Default::default()
    }
}

fn ports(start: i32, end: i32) -> pb::ListenerFilterChainMatchPredicate {
    use pb::listener_filter_chain_match_predicate::Rule;
    pb::ListenerFilterChainMatchPredicate {
        rule: Some(Rule::DestinationPortRange(envoy_types::pb::envoy::r#type::v3::Int32Range { start, end })),
    }
}

#[test]
fn istios_permissive_inbound() {
    let listener = parse(&virtual_inbound()).unwrap();
    for (destination, detected, want) in [
        ("10.0.0.1:9080", hello("", &["istio-http/1.1", "istio", "http/1.1"]), "9080 mtls http"),
        ("10.0.0.1:9080", hello("", &["istio"]), "9080 mtls tcp"),
        ("10.0.0.1:9080", hello("", &["h2"]), "9080 tls"),
        ("10.0.0.1:9080", Detect::Tls(None), "9080 tls"),
        ("10.0.0.1:9080", Detect::Http1, "9080 http"),
        ("10.0.0.1:9080", Detect::Opaque, "9080 tcp"),
        ("10.0.0.1:3306", Detect::Http1, "3306 tcp"),
        ("10.0.0.1:8", Detect::Http2, "any http"),
        ("10.0.0.1:8", Detect::Opaque, "any tcp"),
        // No way back from the port to the catch-all.
        ("10.0.0.1:15006", Detect::Http1, "blackhole"),
        // TLS to a port without a chain for it: nothing serves.
        ("10.0.0.1:8", hello("", &["h2"]), "none"),
    ] {
        assert_eq!(choose(&listener, destination, Some(&detected)), want, "{destination} {detected:?}");
    }
    assert_eq!(listener.detection(addr("10.0.0.1:9080"), false), Detection::Needed);
    assert_eq!(listener.detection(addr("10.0.0.1:3306"), false), Detection::NotNeeded);
    assert_eq!(listener.detection(addr("10.0.0.1:15006"), false), Detection::NotNeeded);
    assert_eq!(listener.detection(addr("10.0.0.1:8"), false), Detection::Needed);
}

#[test]
fn server_names_and_prefixes() {
    let matches = |names: &[&str], prefix: Option<(&str, u32)>| pb::FilterChainMatch {
        server_names: names.iter().map(|n| n.to_string()).collect(),
        prefix_ranges: prefix
            .iter()
            .map(|(ip, len)| core::CidrRange { address_prefix: ip.to_string(), prefix_len: number(*len) })
            .collect(),
        ..Default::default()
    };
    let tcp = |name: &str, m| chain(name, m, vec![tcp_filter("c")]);
    let message = pb::Listener {
        filter_chains: vec![
            tcp("exact", matches(&["a.example.com"], None)),
            tcp("suffix", matches(&["*.example.com"], None)),
            tcp("short", matches(&["*.com"], None)),
            tcp("net", matches(&[], Some(("10.0.0.0", 8)))),
            tcp("host", matches(&["A.example.com"], Some(("10.0.0.7", 32)))),
        ],
        default_filter_chain: Some(tcp("default", Default::default())),
        listener_filters: vec![inspector("tls_inspector")],
        ..tcp_listener("0.0.0.0_443", "0.0.0.0", 443, "c")
    };
    let listener = parse(&message).unwrap();
    for (destination, sni, want) in [
        ("1.1.1.1:443", "a.example.com", "exact"),
        ("1.1.1.1:443", "b.a.example.com", "suffix"),
        ("1.1.1.1:443", "example.com", "short"),
        ("1.1.1.1:443", "com", "default"),
        ("1.1.1.1:443", "", "default"),
        ("10.0.0.1:443", "a.example.com", "net"),
        ("10.0.0.7:443", "a.example.com", "host"),
        // The host's prefix sieved the net's chain out.
        ("10.0.0.7:443", "x", "default"),
        ("[::ffff:10.0.0.1]:443", "x", "net"),
    ] {
        let detected = hello(sni, &[]);
        assert_eq!(choose(&listener, destination, Some(&detected)), want, "{destination} {sni}");
    }
    // Only a ClientHello decides for a host with names; the net's chain needs none.
    assert_eq!(listener.detection(addr("1.1.1.1:443"), false), Detection::Needed);
    assert_eq!(listener.detection(addr("10.0.0.1:443"), false), Detection::NotNeeded);
}

#[test]
fn without_inspectors_bytes_tell_nothing() {
    let mut message = http_listener("0.0.0.0_9080", "0.0.0.0", 9080, "9080");
    message.listener_filters.clear();
    let listener = parse(&message).unwrap();
    assert_eq!(listener.detection(addr("1.1.1.1:9080"), false), Detection::NotNeeded);
    assert_eq!(choose(&listener, "1.1.1.1:9080", Some(&Detect::Http1)), "PassthroughFilterChain");
}

#[test]
fn port_predicates_combine() {
    use pb::listener_filter_chain_match_predicate::{MatchSet, Rule};
    let predicate = |rule| pb::ListenerFilterChainMatchPredicate { rule: Some(rule) };
    let set = |rules| MatchSet { rules };
    for (rule, disabled, enabled) in [
        (Rule::AnyMatch(true), vec![1, 80, 65535], vec![]),
        (Rule::OrMatch(set(vec![ports(80, 81), ports(443, 444)])), vec![80, 443], vec![81, 1]),
        (Rule::AndMatch(set(vec![ports(80, 90), ports(85, 99)])), vec![85, 89], vec![80, 90]),
        (Rule::NotMatch(Box::new(ports(80, 81))), vec![1, 81], vec![80]),
    ] {
        let filter = pb::ListenerFilter { filter_disabled: Some(predicate(rule)), ..inspector("tls_inspector") };
        let inspectors = Inspectors::parse(&[filter]).unwrap();
        disabled.iter().for_each(|port| assert!(!inspectors.tls(*port), "{port}"));
        enabled.iter().for_each(|port| assert!(inspectors.tls(*port), "{port}"));
        assert!(!inspectors.http(80));
    }
}

#[test]
fn internal_listeners_are_accepted_and_empty() {
    let message = pb::Listener {
        name: "connect_originate".into(),
        listener_specifier: Some(pb::listener::ListenerSpecifier::InternalListener(Default::default())),
        filter_chains: vec![pb::FilterChain::default()],
        ..Default::default()
    };
    let listener = parse(&message).unwrap();
    assert!(listener.addresses.is_empty() && listener.chains.is_empty());
}

#[test]
fn downstream_tls_is_read() {
    let context = tls::DownstreamTlsContext {
        require_client_certificate: flag(true),
        common_tls_context: Some(tls::CommonTlsContext {
            alpn_protocols: vec!["h2".into(), "http/1.1".into()],
            tls_certificate_sds_secret_configs: vec![tls::SdsSecretConfig {
                name: "default".into(),
                ..Default::default()
            }],
            validation_context_type: Some(tls::common_tls_context::ValidationContextType::CombinedValidationContext(
                tls::common_tls_context::CombinedCertificateValidationContext {
                    default_validation_context: Some(Default::default()),
                    validation_context_sds_secret_config: Some(tls::SdsSecretConfig {
                        name: "ROOTCA".into(),
                        ..Default::default()
                    }),
                    ..Default::default()
                },
            )),
            ..Default::default()
        }),
        ..Default::default()
    };
    let mut message = tcp_listener("l", "0.0.0.0", 1, "c");
    message.filter_chains[0].transport_socket = Some(core::TransportSocket {
        name: "envoy.transport_sockets.tls".into(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(packed(&context))),
    });
    let listener = parse(&message).unwrap();
    let tls = listener.chains[0].tls.as_ref().unwrap();
    assert!(tls.require_client_certificate);
    assert_eq!(tls.roots, Some(crate::resource::RootsSource::Workload));
    assert_eq!(tls.certificate, Some(crate::resource::CertificateSource::Workload));
}

/// A change to a good listener, and the path its refusal must name.
type BadListener = (fn(&mut pb::Listener), &'static str);

fn manager(change: impl FnOnce(&mut hcm::HttpConnectionManager)) -> pb::Filter {
    let mut manager = http_manager("9080");
    change(&mut manager);
    filter("hcm", packed(&manager))
}

fn http_filter_of(type_name: &str) -> hcm::HttpFilter {
    hcm::HttpFilter {
        name: "x".into(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(packed_empty(type_name))),
        ..Default::default()
    }
}

#[test]
fn refusals_name_the_field() {
    const RBAC: &str = "envoy.extensions.filters.http.rbac.v3.RBAC";
    let bad: Vec<BadListener> = vec![
        (|m| m.address = None, "address"),
        (|m| m.address = Some(address("nowhere", 1)), "address.socket_address.address"),
        (
            |m| {
                m.filter_chains.clear();
                m.default_filter_chain = None;
            },
            "filter_chains",
        ),
        (|m| m.filter_chains.push(m.filter_chains[0].clone()), "filter_chains[1].filter_chain_match"),
        (
            |m| m.filter_chains[0].filter_chain_match.as_mut().unwrap().transport_protocol = "quic".into(),
            "filter_chains[0].filter_chain_match.transport_protocol",
        ),
        (
            |m| m.filter_chains[0].filter_chain_match.as_mut().unwrap().server_names = vec!["a.*".into()],
            "filter_chains[0].filter_chain_match.server_names[0]",
        ),
        (
            |m| m.filter_chains[0].filter_chain_match.as_mut().unwrap().destination_port = number(70000),
            "filter_chains[0].filter_chain_match.destination_port",
        ),
        (
            |m| {
                let range = core::CidrRange { address_prefix: "10.0.0.0".into(), prefix_len: number(33) };
                m.filter_chains[0].filter_chain_match.as_mut().unwrap().prefix_ranges = vec![range];
            },
            "filter_chains[0].filter_chain_match.prefix_ranges[0].prefix_len",
        ),
        (|m| m.filter_chains[0].filters.clear(), "filter_chains[0].filters"),
        (
            |m| {
                m.filter_chains[0]
                    .filters
                    .insert(0, filter("rbac", packed_empty("envoy.extensions.filters.network.rbac.v3.RBAC")))
            },
            "filter_chains[0].filters[0]",
        ),
        (
            |m| m.default_filter_chain.as_mut().unwrap().filters[0] = filter("x", packed_empty("a.B")),
            "default_filter_chain.filters[0]",
        ),
        (
            |m| m.filter_chains[0].filters = vec![manager(|h| h.http_filters.insert(0, http_filter_of(RBAC)))],
            "filter_chains[0].filters[0].typed_config.http_filters[0]",
        ),
        (
            |m| {
                m.filter_chains[0].filters = vec![manager(|h| {
                    h.http_filters.pop();
                })]
            },
            "filter_chains[0].filters[0].typed_config.http_filters[4]",
        ),
        (
            |m| m.filter_chains[0].filters = vec![manager(|h| h.route_specifier = None)],
            "filter_chains[0].filters[0].typed_config.rds",
        ),
        (
            |m| {
                m.filter_chains[0].transport_socket = Some(core::TransportSocket {
                    name: "x".into(),
                    config_type: Some(core::transport_socket::ConfigType::TypedConfig(packed_empty("x.Y"))),
                })
            },
            "filter_chains[0].transport_socket.typed_config",
        ),
        (
            |m| {
                m.listener_filters.push(pb::ListenerFilter {
                    name: "proxy_protocol".into(),
                    config_type: Some(pb::listener_filter::ConfigType::TypedConfig(packed_empty(
                        "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol",
                    ))),
                    ..Default::default()
                })
            },
            "listener_filters[1]",
        ),
        (|m| m.listener_filters_timeout = seconds(-1), "listener_filters_timeout"),
    ];
    for (spoil, want) in bad {
        let mut message = http_listener("0.0.0.0_9080", "0.0.0.0", 9080, "9080");
        parse(&message).unwrap();
        spoil(&mut message);
        assert_eq!(refusal(&message), want);
    }
}

#[test]
fn escaped_slashes_are_what_the_manager_says() {
    for (action, want) in [
        (0, EscapedSlashes::Keep),
        (1, EscapedSlashes::Keep),
        (2, EscapedSlashes::Reject),
        (3, EscapedSlashes::Redirect),
        (4, EscapedSlashes::Unescape),
    ] {
        let mut message = http_listener("l", "0.0.0.0", 1, "r");
        message.filter_chains[0].filters = vec![manager(|h| h.path_with_escaped_slashes_action = action)];
        let listener = parse(&message).unwrap();
        let Terminal::Http(manager) = &listener.chains[0].terminal else { panic!("not HTTP") };
        assert_eq!(manager.escaped_slashes, want, "{action}");
    }
    let mut message = http_listener("l", "0.0.0.0", 1, "r");
    message.filter_chains[0].filters = vec![manager(|h| h.path_with_escaped_slashes_action = 9)];
    assert_eq!(refusal(&message), "filter_chains[0].filters[0].typed_config.path_with_escaped_slashes_action");
}

#[test]
fn grpc_web_is_for_chains_that_list_it() {
    let typed = || http_filter_of("envoy.extensions.filters.http.grpc_web.v3.GrpcWeb");
    let bare = hcm::HttpFilter { name: "envoy.filters.http.grpc_web".into(), ..Default::default() };
    let disabled = hcm::HttpFilter { disabled: true, ..typed() };
    for (filter, want) in [(None, false), (Some(typed()), true), (Some(bare), true), (Some(disabled), false)] {
        let mut message = http_listener("l", "0.0.0.0", 1, "r");
        message.filter_chains[0].filters = vec![manager(|h| h.http_filters.splice(0..0, filter).for_each(drop))];
        let listener = parse(&message).unwrap();
        let Terminal::Http(manager) = &listener.chains[0].terminal else { panic!("not HTTP") };
        assert_eq!(manager.grpc_web, want);
    }
}

#[test]
fn optional_and_disabled_filters_are_passed_over() {
    for change in [
        |filter: &mut hcm::HttpFilter| filter.is_optional = true,
        |filter: &mut hcm::HttpFilter| filter.disabled = true,
    ] {
        let mut unknown = http_filter_of("a.B");
        change(&mut unknown);
        let mut message = http_listener("l", "0.0.0.0", 1, "r");
        message.filter_chains[0].filters = vec![manager(|h| h.http_filters.insert(0, unknown))];
        parse(&message).unwrap();
    }
}

/// A property of a chain, or what the connection offers for it, most wanted first.
#[derive(Debug, Clone, PartialEq)]
enum Key {
    Port(Option<u16>),
    Prefix(Option<ipnet::IpNet>),
    Name(Option<String>),
    Transport(Option<TransportProtocol>),
    Alpn(Option<String>),
    Kind(SourceType),
    SourcePort(Option<u16>),
}

/// Keys of a chain, one per step; the property keeps every list to one entry.
fn keys(m: &FilterChainMatch) -> [Key; 7] {
    [
        Key::Port(m.destination_port),
        Key::Prefix(m.prefix_ranges.first().copied()),
        Key::Name(m.server_names.first().map(|n| n.to_string())),
        Key::Transport(m.transport),
        Key::Alpn(m.application_protocols.first().map(|p| p.to_string())),
        Key::Kind(m.source_type),
        Key::SourcePort(m.source_ports.first().copied()),
    ]
}

/// Envoy's way: at each step the first key of the connection that any chain left has.
fn walk(chains: &[FilterChain], facts: &ConnFacts<'_>) -> Option<usize> {
    let (mut name, mut alpn, mut transport) = (vec![], vec![], TransportProtocol::Raw);
    match facts.detected {
        Some(Detect::Tls(Some(hello))) => {
            transport = TransportProtocol::Tls;
            alpn = hello.alpn.iter().map(|p| String::from_utf8(p.clone()).unwrap()).collect();
            if let Some(sni) = &hello.sni {
                name.push(sni.clone());
                let mut rest = sni.as_str();
                while let Some((_, tail)) = rest.split_once('.') {
                    name.push(format!("*.{tail}"));
                    rest = tail;
                }
            }
        }
        Some(Detect::Http1) => alpn.push("http/1.1".into()),
        _ => {}
    }
    let ip = facts.destination.ip();
    let nets = (0..=32u8).rev().map(|len| ipnet::IpNet::new(ip, len).unwrap().trunc());
    let same = facts.source.ip() == ip || facts.source.ip().is_loopback();
    let kind = if same { SourceType::Local } else { SourceType::External };
    let offers: [Vec<Key>; 7] = [
        vec![Key::Port(Some(facts.destination.port())), Key::Port(None)],
        nets.map(|net| Key::Prefix(Some(net))).chain([Key::Prefix(None)]).collect(),
        name.into_iter().map(|n| Key::Name(Some(n))).chain([Key::Name(None)]).collect(),
        vec![Key::Transport(Some(transport)), Key::Transport(None)],
        alpn.into_iter().map(|p| Key::Alpn(Some(p))).chain([Key::Alpn(None)]).collect(),
        vec![Key::Kind(kind), Key::Kind(SourceType::Any)],
        vec![Key::SourcePort(Some(facts.source.port())), Key::SourcePort(None)],
    ];
    let mut left: Vec<(usize, [Key; 7])> = chains.iter().map(|c| keys(&c.matches)).enumerate().collect();
    for (step, offered) in offers.iter().enumerate() {
        let key = offered.iter().find(|key| left.iter().any(|(_, keys)| keys[step] == **key))?;
        left.retain(|(_, keys)| keys[step] == *key);
    }
    left.first().map(|(index, _)| *index)
}

fn some_match() -> impl Strategy<Value = FilterChainMatch> {
    let pick = |all: &'static [&'static str]| {
        proptest::option::of(proptest::sample::select(all))
            .prop_map(|one| one.into_iter().map(Arc::from).collect::<Vec<Arc<str>>>())
    };
    (
        proptest::option::of(proptest::sample::select(vec![80u16, 81])),
        proptest::option::of(proptest::sample::select(vec!["10.0.0.0/8", "10.0.0.1/32", "0.0.0.0/0"])),
        pick(&["a.b.c", "*.b.c", "*.c"]),
        proptest::option::of(proptest::sample::select(vec![TransportProtocol::Raw, TransportProtocol::Tls])),
        pick(&["http/1.1", "h2", "istio"]),
        proptest::sample::select(vec![SourceType::Any, SourceType::Local, SourceType::External]),
        proptest::option::of(proptest::sample::select(vec![1000u16, 1001])),
    )
        .prop_map(|(port, net, server_names, transport, application_protocols, source_type, source)| {
            FilterChainMatch {
                destination_port: port,
                prefix_ranges: net.into_iter().map(|n| n.parse().unwrap()).collect(),
                server_names,
                transport,
                application_protocols,
                source_type,
                source_ports: source.into_iter().collect(),
                ..Default::default()
            }
        })
}

fn some_detect() -> impl Strategy<Value = Option<Detect>> {
    let tls = (
        proptest::option::of(proptest::sample::select(vec!["a.b.c", "x.b.c", "c", "x.c"])),
        proptest::collection::vec(proptest::sample::select(vec!["h2", "istio", "http/1.1", "x"]), 0..3),
    )
        .prop_map(|(sni, alpn)| Some(hello(sni.unwrap_or_default(), &alpn)));
    prop_oneof![Just(None), Just(Some(Detect::Http1)), Just(Some(Detect::Opaque)), tls]
}

fn listener_of(matches: Vec<FilterChainMatch>) -> Listener {
    let mut listener = parse(&pb::Listener {
        listener_filters: vec![inspector("tls_inspector"), inspector("http_inspector")],
        ..tcp_listener("l", "0.0.0.0", 1, "c")
    })
    .unwrap();
    listener.chains = matches
        .into_iter()
        .map(|matches| FilterChain {
            name: "".into(),
            matches,
            tls: None,
            terminal: Terminal::Tcp(TcpProxy {
                clusters: Weighted::single("c").unwrap(),
                idle_timeout: None,
                max_duration: None,
                hash_source_ip: false,
                stat_prefix: "".into(),
            }),
        })
        .collect();
    listener
}

proptest! {
    #[test]
    fn the_sieve_agrees_with_nested_maps(
        matches in proptest::collection::vec(some_match(), 0..12),
        ip in proptest::sample::select(vec!["10.0.0.1", "10.0.0.2", "11.0.0.1"]),
        port in proptest::sample::select(vec![80u16, 81, 82]),
        source in proptest::sample::select(vec!["10.0.0.1:1000", "127.0.0.1:1001", "12.0.0.1:1002"]),
        detected in some_detect(),
    ) {
        let listener = listener_of(matches);
        let facts = ConnFacts {
            destination: SocketAddr::new(ip.parse().unwrap(), port),
            source: addr(source),
            detected: detected.as_ref(),
            mutual_tls: false,
        };
        let got = listener.chain(&facts).map(|chain| {
            listener.chains.iter().position(|c| std::ptr::eq(c, chain)).unwrap()
        });
        prop_assert_eq!(got, walk(&listener.chains, &facts));
        // Where bytes are said not to be needed, they must make no difference.
        if listener.detection(facts.destination, false) == Detection::NotNeeded {
            let blind = listener.chain(&ConnFacts { detected: None, ..facts });
            prop_assert_eq!(blind.map(std::ptr::from_ref), listener.chain(&facts).map(std::ptr::from_ref));
        }
    }

    #[test]
    fn any_bytes_are_parsed_or_refused(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Listener::parse("x", &body);
    }

    #[test]
    fn spoiled_messages_are_parsed_or_refused(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut body = virtual_inbound().encode_to_vec();
        let at = at.index(body.len());
        body[at] = byte;
        if let Ok(listener) = Listener::parse("virtualInbound", &body) {
            let _ = choose(&listener, "10.0.0.1:9080", Some(&Detect::Http1));
        }
    }
}
