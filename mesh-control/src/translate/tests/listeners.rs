//! Listeners and their chains.
#![allow(clippy::unwrap_used, clippy::panic)]

use envoy_types::pb::envoy::config::core::v3::address::Address;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;

use super::*;

pub(super) fn addresses(listener: &Listener) -> Vec<String> {
    let more = listener.additional_addresses.iter().map(|one| one.address.as_ref());
    std::iter::once(listener.address.as_ref())
        .chain(more)
        .map(|address| match address.and_then(|one| one.address.as_ref()) {
            Some(Address::SocketAddress(socket)) => match socket.port_specifier {
                Some(PortSpecifier::PortValue(port)) => format!("{} {port}", socket.address),
                _ => panic!("{socket:?}"),
            },
            other => panic!("{other:?}"),
        })
        .collect()
}

/// Each chain: what it is for and what it does.
pub(super) fn chains(listener: &Listener) -> Vec<String> {
    let of = |chain: &FilterChain| {
        let matches = chain.filter_chain_match.clone().unwrap_or_default();
        let mut parts = Vec::new();
        parts.extend(matches.destination_port.map(|port| format!("port {}", port.value)));
        parts.extend(
            matches
                .prefix_ranges
                .iter()
                .map(|range| format!("{}/{}", range.address_prefix, range.prefix_len.unwrap().value)),
        );
        parts.extend(matches.server_names.iter().map(|name| format!("sni {name}")));
        if !matches.transport_protocol.is_empty() {
            parts.push(matches.transport_protocol.clone());
        }
        parts.extend(matches.application_protocols.clone());
        parts.extend(chain.transport_socket.is_some().then(|| "mtls".to_owned()));
        parts.push(does(chain));
        parts.join(", ")
    };
    let default = listener.default_filter_chain.iter().map(|chain| format!("else {}", does(chain)));
    listener.filter_chains.iter().map(of).chain(default).collect()
}

const PORTS: &str =
    "[{name: http, port: 80}, {name: tcp-a, port: 6379}, {name: any, port: 5000}, {name: https, port: 443}]";
const WEB: &str = "web.default.svc.cluster.local";

#[test]
fn one_listener_per_http_port_and_one_per_address_else() {
    let text = [
        service("web", "10.96.0.1", PORTS),
        service("two", "10.96.0.2", "[{name: http, port: 80}]"),
        service("six", "fd00::7", "[{name: tcp, port: 80}]"),
    ]
    .concat();
    let told = Told::new(&text);
    assert_eq!(
        told.names(Kind::Listener),
        [
            "0.0.0.0_80",
            "10.96.0.1_443",
            "10.96.0.1_5000",
            "10.96.0.1_6379",
            "fd00::7_80",
            "virtualInbound",
            "virtualOutbound"
        ]
    );
    let http = told.listener("0.0.0.0_80");
    assert_eq!(addresses(&http), ["0.0.0.0 80", ":: 80"]);
    assert_eq!(chains(&http), ["raw_buffer, http/1.1, h2c, rds 80", "else tcp PassthroughCluster"]);
    assert!(!http.bind_to_port.unwrap().value);
    assert_eq!(chains(&told.listener("10.96.0.1_6379")), [format!("tcp outbound|6379||{WEB}")]);
    assert_eq!(chains(&told.listener("10.96.0.1_443")), [format!("tcp outbound|443||{WEB}")]);
    assert_eq!(
        chains(&told.listener("10.96.0.1_5000")),
        [format!("raw_buffer, http/1.1, h2c, rds {WEB}:5000"), format!("else tcp outbound|5000||{WEB}")]
    );
    let rest = told.listener("virtualOutbound");
    assert_eq!(addresses(&rest), ["0.0.0.0 15001", ":: 15001"]);
    assert_eq!(chains(&rest), ["port 15001, tcp BlackHoleCluster", "tcp PassthroughCluster"]);
    assert!(rest.use_original_dst.unwrap().value);
}

#[test]
fn both_families_of_a_service_share_a_listener() {
    let text = "
apiVersion: v1
kind: Service
metadata: {name: db}
spec:
  clusterIP: 10.96.0.3
  clusterIPs: [10.96.0.3, 'fd00::3']
  ports: [{name: tcp, port: 5432}]
";
    let listener = Told::new(text).listener("10.96.0.3_5432");
    assert_eq!(addresses(&listener), ["10.96.0.3 5432", "fd00::3 5432"]);
}

#[test]
fn a_headless_service_has_a_listener_per_pod() {
    let headless = service("db", "None", "[{name: tcp, port: 5432}, {name: http, port: 80}]");
    let text = [headless, pod("db-0", "db", "", "10.1.0.1"), pod("db-1", "db", "", "10.1.0.2")].concat();
    let told = Told::new(&text);
    for address in ["10.1.0.1", "10.1.0.2"] {
        let listener = told.listener(&format!("{address}_5432"));
        assert_eq!(chains(&listener), ["tcp outbound|5432||db.default.svc.cluster.local"]);
    }
    assert_eq!(chains(&told.listener("0.0.0.0_80")).len(), 2);
}

#[test]
fn what_has_no_address_shares_the_wildcard() {
    let entry = |name: &str, spec: &str| istio("ServiceEntry", name, spec);
    let text = [
        entry("api", "  hosts: [api.example.com, '*.example.org']\n  resolution: NONE\n  ports: [{number: 443, name: tls, protocol: TLS}]"),
        entry("range", "  hosts: [db.example.com]\n  addresses: [192.0.2.0/24, 198.51.100.7]\n  ports: [{number: 443, name: tcp, protocol: TCP}]"),
        entry("queue", "  hosts: [queue.example.com]\n  resolution: DNS\n  ports: [{number: 5672, name: tcp, protocol: TCP}]"),
    ]
    .concat();
    let told = Told::new(&text);
    assert_eq!(
        chains(&told.listener("0.0.0.0_443")),
        [
            "sni api.example.com, tls, tcp outbound|443||api.example.com",
            "sni *.example.org, tls, tcp outbound|443||*.example.org",
            "192.0.2.0/24, tcp outbound|443||db.example.com",
            "else tcp PassthroughCluster"
        ]
    );
    assert_eq!(chains(&told.listener("198.51.100.7_443")), ["tcp outbound|443||db.example.com"]);
    assert_eq!(chains(&told.listener("0.0.0.0_5672")), ["else tcp outbound|5672||queue.example.com"]);
}

#[test]
fn tcp_and_tls_routes_of_a_virtual_service() {
    let spec = "  hosts: [web]
  tcp:
  - match: [{port: 6379, sourceNamespace: other}]
    route: [{destination: {host: web, subset: v9}}]
  - match: [{port: 6379}]
    route:
    - {destination: {host: web, subset: v1}, weight: 80}
    - {destination: {host: web, subset: v2}, weight: 20}
    - {destination: {host: web, subset: v3}, weight: 0}
  tls:
  - match: [{sniHosts: [a.example.com]}]
    route: [{destination: {host: web, subset: v1, port: {number: 443}}}]";
    let text = [service("web", "10.96.0.1", PORTS), istio("VirtualService", "web", spec)].concat();
    let told = Told::new(&text);
    assert_eq!(
        chains(&told.listener("10.96.0.1_6379")),
        [format!("tcp outbound|6379|v1|{WEB}=80 outbound|6379|v2|{WEB}=20")]
    );
    assert_eq!(
        chains(&told.listener("10.96.0.1_443")),
        [format!("sni a.example.com, tls, tcp outbound|443|v1|{WEB}"), format!("else tcp outbound|443||{WEB}")]
    );
}
