//! The listener for connections to a workload, and what its clients are told, in each mode.
#![allow(clippy::unwrap_used, clippy::panic)]

use envoy_types::pb::envoy::config::core::v3::transport_socket::ConfigType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::DownstreamTlsContext;
use mesh_core::detect::Detect;
use mesh_core::resource::listener::{self as core, InboundMode};

use super::listeners::{addresses, chains};
use super::*;

const PORTS: &str = "[{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 6379}, {name: any, port: 5000}]";

/// Everything, `web-a` with one PeerAuthentication.
fn told(spec: &str) -> Told {
    let rule = "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p}\nspec:\n";
    let text = [
        service("web", "10.96.0.1", PORTS),
        service("also", "10.96.0.2", "[{name: tcp, port: 81, targetPort: 8080}]").replace("app: also", "app: web"),
        pod("web-a", "web", "", "10.1.0.1"),
        pod("other", "other", "", "10.1.0.2"),
        format!("{rule}{spec}\n"),
    ];
    Told::new(&text.concat())
}

fn inbound(told: &Told) -> Listener {
    Listener::decode(told.of("web-a", Kind::Listener)["virtualInbound"].body.value.as_slice()).unwrap()
}

/// As the agent sees it.
fn parsed(told: &Told) -> core::Listener {
    core::Listener::parse("virtualInbound", &told.of("web-a", Kind::Listener)["virtualInbound"].body.value).unwrap()
}

fn filters(listener: &Listener) -> Vec<&str> {
    listener.listener_filters.iter().filter_map(|filter| filter.name.rsplit('.').next()).collect()
}

const HOLE: &str = "port 15006, tcp BlackHoleCluster";
const ISTIO: &str = "tls, istio-peer-exchange, istio, istio-http/1.0, istio-http/1.1, istio-h2, mtls";
const ISTIO_HTTP: &str = "tls, istio-http/1.0, istio-http/1.1, istio-h2, mtls";

#[test]
fn permissive_takes_both() {
    let told = told("  {}");
    let inbound = inbound(&told);
    assert_eq!(addresses(&inbound), ["0.0.0.0 15006", ":: 15006"]);
    assert_eq!(
        chains(&inbound),
        [
            HOLE.to_owned(),
            format!("port 5000, {ISTIO_HTTP}, http inbound|5000||"),
            "port 5000, raw_buffer, http/1.1, h2c, http inbound|5000||".to_owned(),
            "port 5000, tls, istio-peer-exchange, istio, mtls, tcp inbound|5000||".to_owned(),
            "port 5000, raw_buffer, tcp inbound|5000||".to_owned(),
            "port 5000, tls, tcp inbound|5000||".to_owned(),
            format!("port 6379, {ISTIO}, tcp inbound|6379||"),
            "port 6379, tls, tcp inbound|6379||".to_owned(),
            "port 6379, raw_buffer, tcp inbound|6379||".to_owned(),
            // Of two services that say different things of a port the oldest is believed.
            format!("port 8080, {ISTIO}, tcp inbound|8080||"),
            "port 8080, tls, tcp inbound|8080||".to_owned(),
            "port 8080, raw_buffer, tcp inbound|8080||".to_owned(),
            format!("{ISTIO_HTTP}, http InboundPassthroughCluster"),
            "raw_buffer, http/1.1, h2c, http InboundPassthroughCluster".to_owned(),
            "tls, istio-peer-exchange, istio, mtls, tcp InboundPassthroughCluster".to_owned(),
            "raw_buffer, tcp InboundPassthroughCluster".to_owned(),
            "tls, tcp InboundPassthroughCluster".to_owned(),
        ]
    );
    assert_eq!(filters(&inbound), ["original_dst", "tls_inspector", "http_inspector"]);
    let modes = parsed(&told).inbound_modes();
    assert_eq!((modes.default, modes.exceptions), (InboundMode::Plaintext, vec![15006]));
    let clusters: Vec<_> = told
        .of("web-a", Kind::Cluster)
        .keys()
        .filter(|name| name.starts_with("inbound"))
        .map(ToString::to_string)
        .collect();
    assert_eq!(clusters, ["inbound|5000||", "inbound|6379||", "inbound|8080||"]);
    assert!(!told.names(Kind::Cluster).iter().any(|name| name.starts_with("inbound|")), "the client serves nothing");
}

#[test]
fn bytes_are_opaque_only_where_nothing_is_declared() {
    const PORTS: &str = "[{name: http, port: 80}, {name: http2, port: 81}, {name: grpc, port: 82}, {name: any, port: 83}, {name: odd, port: 84, appProtocol: http}]";
    for (mode, proved) in [("PERMISSIVE", false), ("PERMISSIVE", true), ("STRICT", true), ("DISABLE", false)] {
        let rule =
            istio("PeerAuthentication", "p", &format!("  mtls: {{mode: {mode}}}")).replace("networking", "security");
        let text = [service("web", "10.96.0.1", PORTS), pod("web-a", "web", "", "10.1.0.1"), rule].concat();
        let listener = parsed(&Told::new(&text));
        let http = |port: u16, detected: Option<&Detect>| {
            let address = |port| std::net::SocketAddr::from(([10, 1, 0, 1], port));
            let facts =
                core::ConnFacts { destination: address(port), source: address(1), detected, mutual_tls: proved };
            let chain = listener.chain(&facts).unwrap_or_else(|| panic!("{mode}: no chain for {port}"));
            matches!(chain.terminal, core::Terminal::Http(_))
        };
        for detected in [None, Some(&Detect::Opaque), Some(&Detect::Http1), Some(&Detect::Http2)] {
            for port in [80, 81, 82, 84] {
                assert!(http(port, detected), "{mode}: {detected:?} to {port}");
            }
        }
        assert!(http(83, Some(&Detect::Http1)) && !http(83, Some(&Detect::Opaque)), "{mode}");
    }
}

#[test]
fn strict_takes_certificates_only() {
    let told = told("  mtls: {mode: STRICT}");
    let inbound = inbound(&told);
    assert_eq!(
        chains(&inbound),
        [
            HOLE.to_owned(),
            format!("port 5000, {ISTIO_HTTP}, http inbound|5000||"),
            "port 5000, tls, mtls, tcp inbound|5000||".to_owned(),
            "port 6379, tls, mtls, tcp inbound|6379||".to_owned(),
            "port 8080, tls, mtls, tcp inbound|8080||".to_owned(),
            format!("{ISTIO_HTTP}, http InboundPassthroughCluster"),
            "tls, mtls, tcp InboundPassthroughCluster".to_owned(),
        ]
    );
    for chain in inbound.filter_chains.iter().skip(1) {
        let Some(ConfigType::TypedConfig(any)) = &chain.transport_socket.as_ref().unwrap().config_type else {
            panic!()
        };
        let context = DownstreamTlsContext::decode(any.value.as_slice()).unwrap();
        assert!(context.require_client_certificate.unwrap().value);
    }
    let modes = parsed(&told).inbound_modes();
    assert_eq!((modes.default, modes.exceptions.len()), (InboundMode::Strict, 0));
    let parsed = parsed(&told);
    let tls = parsed.chains[1].tls.as_ref().unwrap();
    assert!(tls.admits(&"spiffe://cluster.local/ns/a/sa/b".parse().unwrap()));
    assert!(!tls.admits(&"spiffe://other.org/ns/a/sa/b".parse().unwrap()));
    // The same object is not for everybody else's clusters.
    assert!(
        told.endpoints("outbound|80||web.default.svc.cluster.local").endpoints[0].lb_endpoints[0].metadata.is_some()
    );
}

#[test]
fn disable_takes_plaintext_only_and_tells_clients() {
    let tunnelled = |told: &Told, port: u16| {
        let assignment = told.endpoints(&format!("outbound|{port}||web.default.svc.cluster.local"));
        let metadata = assignment.endpoints[0].lb_endpoints[0].metadata.clone().unwrap();
        metadata.filter_metadata.contains_key("envoy.transport_socket_match")
    };
    let whole = told("  mtls: {mode: DISABLE}");
    assert_eq!(
        chains(&inbound(&whole)),
        [
            HOLE,
            "port 5000, raw_buffer, http/1.1, h2c, http inbound|5000||",
            "port 5000, raw_buffer, tcp inbound|5000||",
            "port 5000, tls, tcp inbound|5000||",
            "port 6379, tcp inbound|6379||",
            "port 8080, tcp inbound|8080||",
            "raw_buffer, http/1.1, h2c, http InboundPassthroughCluster",
            "raw_buffer, tcp InboundPassthroughCluster",
            "tls, tcp InboundPassthroughCluster",
        ]
    );
    assert_eq!([80, 6379, 5000].map(|port| tunnelled(&whole, port)), [false; 3]);
    let one =
        told("  selector: {matchLabels: {app: web}}\n  mtls: {mode: STRICT}\n  portLevelMtls: {6379: {mode: DISABLE}}");
    assert_eq!([80, 6379, 5000].map(|port| tunnelled(&one, port)), [true, false, true]);
    let modes = parsed(&one).inbound_modes();
    assert_eq!((modes.default, modes.exceptions), (InboundMode::Strict, vec![6379]));
}

#[test]
fn ports_have_modes_of_their_own_whether_declared_or_not() {
    let told = told(
        "  selector: {matchLabels: {app: web}}\n  portLevelMtls:\n    8080: {mode: STRICT}\n    9999: {mode: STRICT}\n    15006: \
         {mode: STRICT}",
    );
    let all = chains(&inbound(&told));
    let of = |port: u16| -> Vec<&str> {
        all.iter().filter_map(|chain| chain.strip_prefix(&format!("port {port}, "))).collect()
    };
    assert_eq!(of(8080), ["tls, mtls, tcp inbound|8080||"]);
    assert_eq!(
        of(9999),
        [&format!("{ISTIO_HTTP}, http InboundPassthroughCluster"), "tls, mtls, tcp InboundPassthroughCluster"]
    );
    assert_eq!(of(15006), ["tcp BlackHoleCluster"]);
    let modes = parsed(&told).inbound_modes();
    assert_eq!((modes.default, modes.exceptions), (InboundMode::Plaintext, vec![8080, 9999, 15006]));
    // Another workload of the namespace is not selected.
    let other = told.of("other", Kind::Listener);
    let other = core::Listener::parse("virtualInbound", &other["virtualInbound"].body.value).unwrap();
    assert_eq!(other.inbound_modes().exceptions, [15006]);
}
