//! STRICT, PERMISSIVE and DISABLE in Istio's shapes, and the promise that a closed port stays closed whatever is sent.

use super::*;
use crate::detect::{ClientHello, Detect};
use crate::resource::listener::{ConnFacts, Detection, SourceType, TcpProxy, TransportProtocol};
use crate::resource::route::Weighted;
use crate::resource::{CertificateSource, RootsSource, SanMatch, StringMatch};
use crate::testing::{inspector, tcp_listener};
use envoy_types::pb::envoy::config::listener::v3 as pb;
use proptest::prelude::*;
use std::sync::Arc;

const ISTIO: &[&str] = &["istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2"];
const ISTIO_HTTP: &[&str] = &["istio-http/1.0", "istio-http/1.1", "istio-h2"];
const ISTIO_TCP: &[&str] = &["istio-peer-exchange", "istio"];
const PLAIN_HTTP: &[&str] = &["http/1.1", "h2c"];

fn tls() -> Arc<crate::resource::listener::DownstreamTls> {
    let prefix = envoy_types::pb::envoy::r#type::matcher::v3::StringMatcher {
        match_pattern: Some(envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern::Prefix(
            "spiffe://cluster.local/".into(),
        )),
        ignore_case: false,
    };
    Arc::new(crate::resource::listener::DownstreamTls {
        require_client_certificate: true,
        alpn: Vec::new(),
        certificate: Some(CertificateSource::Workload),
        roots: Some(RootsSource::Workload),
        sans: vec![SanMatch { kind: None, text: StringMatch::parse(&prefix).unwrap() }],
        only_tls13: false,
    })
}

fn chain(
    name: &str,
    port: Option<u16>,
    transport: Option<TransportProtocol>,
    alpn: &[&str],
    mutual: bool,
) -> FilterChain {
    FilterChain {
        name: name.into(),
        matches: FilterChainMatch {
            destination_port: port,
            transport,
            application_protocols: alpn.iter().map(|one| Arc::from(*one)).collect(),
            ..Default::default()
        },
        tls: mutual.then(tls),
        terminal: Terminal::Tcp(TcpProxy {
            clusters: Weighted::single(if name == "hole" { BLACK_HOLE } else { "c" }).unwrap(),
            idle_timeout: None,
            max_duration: None,
            hash_source_ip: false,
            stat_prefix: "".into(),
        }),
    }
}

fn listener(chains: Vec<FilterChain>) -> Listener {
    let message = pb::Listener {
        listener_filters: vec![inspector("tls_inspector"), inspector("http_inspector")],
        ..tcp_listener("virtualInbound", "0.0.0.0", 15006, "c")
    };
    Listener { chains, ..Listener::from_message(&message).unwrap() }
}

/// 1 is PERMISSIVE and detected, 2 PERMISSIVE HTTP, 3 PERMISSIVE TCP, 4 STRICT and detected, 5 STRICT, 6 DISABLE and
/// detected; the rest is STRICT.
fn istios() -> Listener {
    use TransportProtocol::{Raw, Tls};
    let one = |name, port, transport, alpn, mutual| chain(name, Some(port), transport, alpn, mutual);
    listener(vec![
        one("hole", 15006, None, &[], false),
        one("1 mtls http", 1, Some(Tls), ISTIO_HTTP, true),
        one("1 http", 1, Some(Raw), PLAIN_HTTP, false),
        one("1 mtls", 1, Some(Tls), ISTIO_TCP, true),
        one("1 raw", 1, Some(Raw), &[], false),
        one("1 tls", 1, Some(Tls), &[], false),
        one("2 mtls", 2, Some(Tls), ISTIO, true),
        one("2 raw", 2, Some(Raw), &[], false),
        one("3 mtls", 3, Some(Tls), ISTIO, true),
        one("3 tls", 3, Some(Tls), &[], false),
        one("3 raw", 3, Some(Raw), &[], false),
        one("4 mtls http", 4, Some(Tls), ISTIO_HTTP, true),
        one("4 mtls", 4, Some(Tls), &[], true),
        one("5 mtls", 5, Some(Tls), &[], true),
        one("6 http", 6, Some(Raw), PLAIN_HTTP, false),
        one("6 raw", 6, Some(Raw), &[], false),
        one("6 tls", 6, Some(Tls), &[], false),
        chain("mtls http", None, Some(Tls), ISTIO_HTTP, true),
        chain("mtls", None, Some(Tls), &[], true),
    ])
}

fn to(port: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], port))
}

fn from() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 9], 40_000))
}

fn chosen<'l>(listener: &'l Listener, port: u16, detected: Option<&Detect>, mutual_tls: bool) -> &'l str {
    let facts = ConnFacts { destination: to(port), source: from(), detected, mutual_tls };
    listener.chain(&facts).map_or("none", |chain| &chain.name)
}

#[test]
fn what_comes_through_a_tunnel_takes_the_chains_of_mutual_tls_if_there_are_any() {
    let listener = istios();
    for (port, detected, want) in [
        (1, Some(Detect::Http1), "1 mtls http"),
        (1, Some(Detect::Http2), "1 mtls http"),
        (1, Some(Detect::Opaque), "1 mtls"),
        (1, Some(Detect::Tls(None)), "1 mtls"),
        (1, None, "1 mtls"),
        (2, None, "2 mtls"),
        (2, Some(Detect::Http1), "2 mtls"),
        (3, None, "3 mtls"),
        (4, Some(Detect::Http2), "4 mtls http"),
        (4, None, "4 mtls"),
        (5, None, "5 mtls"),
        // DISABLE knows no mutual TLS; whoever comes through a tunnel all the same is served as if in the open.
        (6, Some(Detect::Http1), "6 http"),
        (6, Some(Detect::Opaque), "6 raw"),
        (7, Some(Detect::Http1), "mtls http"),
        (7, None, "mtls"),
        (15006, None, "hole"),
    ] {
        assert_eq!(chosen(&listener, port, detected.as_ref(), true), want, "{port} {detected:?}");
    }
    for (port, needed) in [(1, true), (2, false), (3, false), (4, true), (5, false), (6, true), (7, true)] {
        assert_eq!(listener.detection(to(port), true) == Detection::Needed, needed, "{port}");
    }
}

#[test]
fn only_plain_chains_serve_what_comes_in_the_open() {
    let listener = istios();
    for (port, detected, want) in [
        (1, Detect::Http1, "1 http"),
        (1, Detect::Opaque, "1 raw"),
        (1, Detect::Tls(None), "1 tls"),
        (2, Detect::Http1, "2 raw"),
        (3, Detect::Opaque, "3 raw"),
        (6, Detect::Http1, "6 http"),
        (4, Detect::Http1, "none"),
        (5, Detect::Opaque, "none"),
        (7, Detect::Http2, "none"),
        // This one wants a certificate, which whoever terminates TLS must ask for.
        (5, Detect::Tls(Some(ClientHello::default())), "5 mtls"),
    ] {
        assert_eq!(chosen(&listener, port, Some(&detected), false), want, "{port} {detected:?}");
    }
    for (port, admitted) in
        [(1, true), (2, true), (3, true), (4, false), (5, false), (6, true), (7, false), (15006, false)]
    {
        assert_eq!(listener.admits_plaintext(from(), to(port)), admitted, "{port}");
    }
}

#[test]
fn modes_by_port_are_short() {
    let strict = istios().inbound_modes();
    assert_eq!(strict, InboundModes { default: InboundMode::Strict, exceptions: vec![1, 2, 3, 6] });
    let mut permissive = istios();
    permissive.default_chain = None;
    permissive.chains.push(chain("any", None, Some(TransportProtocol::Raw), &[], false));
    let modes = permissive.inbound_modes();
    assert_eq!(modes, InboundModes { default: InboundMode::Plaintext, exceptions: vec![4, 5, 15006] });
    assert_eq!((modes.of_port(4), modes.of_port(9)), (InboundMode::Strict, InboundMode::Plaintext));
    // A default chain serves whatever nothing else serves.
    permissive.default_chain = Some(chain("default", None, None, &[], false));
    assert_eq!(permissive.inbound_modes().exceptions, [0; 0]);
    assert!(permissive.admits_plaintext(from(), to(5)));
}

#[test]
fn too_many_ports_are_closed_rather_than_opened() {
    let raw = Some(TransportProtocol::Raw);
    let ports = 1..=MAX_EXCEPTIONS as u16 + 1;
    let mut chains: Vec<_> = ports.map(|port| chain("strict", Some(port), None, &[], true)).collect();
    chains.push(chain("open", Some(60_000), raw, &[], false));
    chains.push(chain("rest", None, raw, &[], false));
    let modes = listener(chains).inbound_modes();
    assert_eq!(modes, InboundModes { default: InboundMode::Strict, exceptions: vec![60_000] });
    let open = (1..=MAX_EXCEPTIONS as u16 + 1).map(|port| chain("open", Some(port), raw, &[], false)).collect();
    let modes = listener(open).inbound_modes();
    assert_eq!((modes.default, modes.exceptions.len()), (InboundMode::Strict, MAX_EXCEPTIONS));
}

#[test]
fn a_chain_for_some_sources_opens_nothing_to_who_sees_ports_only() {
    let mut some = chain("some", None, None, &[], false);
    some.matches.source_prefix_ranges = vec!["10.0.0.9/32".parse().unwrap()];
    let listener = listener(vec![some]);
    assert_eq!(listener.inbound_modes(), InboundModes { default: InboundMode::Strict, exceptions: Vec::new() });
    assert!(listener.admits_plaintext(from(), to(1)));
    assert!(!listener.admits_plaintext(SocketAddr::from(([10, 0, 0, 8], 1)), to(1)));
}

#[test]
fn a_proven_identity_must_fit() {
    let fits = |id: &str| tls().admits(&id.parse().unwrap());
    assert!(fits("spiffe://cluster.local/ns/a/sa/b"));
    assert!(!fits("spiffe://cluster.localhost/ns/a/sa/b"));
}

fn some_chain() -> impl Strategy<Value = FilterChain> {
    use TransportProtocol::{Raw, Tls};
    (
        proptest::option::of(prop_oneof![Just(80u16), Just(81)]),
        proptest::option::of(prop_oneof![Just(Raw), Just(Tls)]),
        prop_oneof![Just(&[][..]), Just(PLAIN_HTTP), Just(ISTIO_HTTP), Just(ISTIO_TCP), Just(ISTIO)],
        any::<bool>(),
        prop_oneof![Just("hole"), Just("a"), Just("b")],
        prop_oneof![4 => Just(SourceType::Any), 1 => Just(SourceType::Local), 1 => Just(SourceType::External)],
        proptest::option::weighted(0.2, prop_oneof![Just("10.0.0.0/8"), Just("10.0.0.1/32")]),
    )
        .prop_map(|(port, transport, alpn, mutual, name, source_type, net)| {
            let mut chain = chain(name, port, transport, alpn, mutual);
            chain.matches.source_type = source_type;
            chain.matches.prefix_ranges = net.into_iter().map(|net| net.parse().unwrap()).collect();
            chain
        })
}

proptest! {
    #[test]
    fn a_closed_port_serves_nobody_in_the_open(
        chains in proptest::collection::vec(some_chain(), 0..8),
        default in proptest::option::weighted(0.2, some_chain()),
        ip in prop_oneof![Just([10, 0, 0, 1]), Just([10, 0, 0, 2]), Just([11, 0, 0, 1])],
        port in prop_oneof![Just(80u16), Just(81), Just(82)],
    ) {
        let listener = Listener { default_chain: default, ..listener(chains) };
        let (destination, source) = (SocketAddr::from((ip, port)), from());
        let admitted = listener.admits_plaintext(source, destination);
        let alpn = |names: &[&str]| {
            let alpn = names.iter().map(|name| name.as_bytes().to_vec()).collect();
            Detect::Tls(Some(ClientHello { sni: None, alpn }))
        };
        for detected in [Detect::Http1, Detect::Http2, Detect::Opaque, Detect::Tls(None), alpn(ISTIO), alpn(&["h2"])] {
            let facts = ConnFacts { destination, source, detected: Some(&detected), mutual_tls: false };
            let served = listener.chain(&facts).is_some_and(FilterChain::serves_plaintext);
            prop_assert!(admitted || !served, "{:?}", detected);
            // Where the bytes inside a tunnel are said not to matter, they do not.
            let inside = ConnFacts { mutual_tls: true, ..facts };
            if listener.detection(destination, true) == Detection::NotNeeded {
                let blind = listener.chain(&ConnFacts { detected: None, ..inside });
                prop_assert_eq!(blind.map(std::ptr::from_ref), listener.chain(&inside).map(std::ptr::from_ref));
            }
        }
        // What the kernel lets in, the agent would let in.
        prop_assert!(admitted || listener.inbound_modes().of_port(port) == InboundMode::Strict);
    }
}
