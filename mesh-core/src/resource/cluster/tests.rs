//! Tables of clusters in Istio's shapes, refusals with their paths.

use super::*;
use crate::resource::fault::Fault;
use crate::testing::*;
use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use envoy_types::pb::envoy::extensions::upstreams::http::v3 as upstream;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::google::protobuf as google;
use proptest::prelude::*;
use prost::Message;

const NAME: &str = "outbound|9080|v1|reviews.default.svc.cluster.local";

fn parse(message: &pb::Cluster) -> Result<Cluster, Fault> {
    Cluster::from_message(message, None)
}

fn refusal(message: &pb::Cluster) -> String {
    let rejection = parse(message).unwrap_err().reject("c");
    assert!(!rejection.why.is_empty());
    rejection.path
}

fn socket_of(config: google::Any) -> Option<core::TransportSocket> {
    Some(core::TransportSocket {
        name: "s".into(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(config)),
    })
}

fn istio_tls(sans: &[&str]) -> tls::UpstreamTlsContext {
    let sds = |name: &str| tls::SdsSecretConfig { name: name.into(), ..Default::default() };
    let exact = |san: &&str| matcher::StringMatcher {
        match_pattern: Some(matcher::string_matcher::MatchPattern::Exact(san.to_string())),
        ..Default::default()
    };
    tls::UpstreamTlsContext {
        sni: "outbound_.9080_.v1_.reviews.default.svc.cluster.local".into(),
        common_tls_context: Some(tls::CommonTlsContext {
            alpn_protocols: vec!["istio-peer-exchange".into(), "istio".into()],
            tls_certificate_sds_secret_configs: vec![sds("default")],
            validation_context_type: Some(tls::common_tls_context::ValidationContextType::CombinedValidationContext(
                tls::common_tls_context::CombinedCertificateValidationContext {
                    default_validation_context: Some(tls::CertificateValidationContext {
                        match_subject_alt_names: sans.iter().map(exact).collect(),
                        ..Default::default()
                    }),
                    validation_context_sds_secret_config: Some(sds("ROOTCA")),
                    ..Default::default()
                },
            )),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// As istiod sends it with HBONE: tunnel, then mTLS, then plain.
fn istio_cluster() -> pb::Cluster {
    let entry = |name: &str, criteria, config| pb::cluster::TransportSocketMatch {
        name: name.into(),
        r#match: Some(criteria),
        transport_socket: socket_of(config),
    };
    let sans = ["spiffe://cluster.local/ns/default/sa/reviews", "spiffe://other/foo"];
    pb::Cluster {
        transport_socket_matches: vec![
            entry(
                "hbone",
                fields(&[("tunnel", text("http"))]),
                packed_empty("envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport"),
            ),
            entry("tlsMode-istio", fields(&[("tlsMode", text("istio"))]), packed(&istio_tls(&sans))),
            entry(
                "tlsMode-disabled",
                fields(&[]),
                packed_empty("envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"),
            ),
        ],
        metadata: metadata(&[(
            "istio",
            fields(&[
                (
                    "services",
                    google::Value {
                        kind: Some(google::value::Kind::ListValue(google::ListValue {
                            values: vec![google::Value {
                                kind: Some(google::value::Kind::StructValue(fields(&[
                                    ("host", text("reviews.default.svc.cluster.local")),
                                    ("name", text("reviews")),
                                    ("namespace", text("default")),
                                ]))),
                            }],
                        })),
                    },
                ),
                ("default_original_port", google::Value { kind: Some(google::value::Kind::NumberValue(9080.0)) }),
            ]),
        )]),
        filters: vec![pb::Filter { name: "istio.metadata_exchange".into(), ..Default::default() }],
        ..eds_cluster(NAME)
    }
}

#[test]
fn istios_outbound_cluster() {
    let cluster = parse(&istio_cluster()).unwrap();
    assert!(matches!(&cluster.kind, ClusterKind::Eds { service_name } if &**service_name == NAME));
    assert_eq!(cluster.subset.as_deref(), Some("v1"));
    assert_eq!(cluster.default_port, Some(9080));
    assert_eq!(cluster.lb.policy, LbPolicy::LeastRequest { choices: 2 });
    assert_eq!(cluster.connect_timeout, Duration::from_secs(10));
    let service = cluster.service.as_ref().unwrap();
    assert_eq!((&*service.name, &*service.namespace), ("reviews", "default"));
    // Only identities of this mesh's form can be asked of a peer.
    assert_eq!(cluster.sans, ["spiffe://cluster.local/ns/default/sa/reviews".parse().unwrap()]);
}

#[test]
fn the_transport_follows_the_endpoint() {
    let cluster = parse(&istio_cluster()).unwrap();
    let plain = LoadAssignment::from_message(&assignment("a", vec![lb_endpoint("10.0.0.1", 80)]), None).unwrap();
    let mut endpoint = Endpoint::clone(plain.endpoints().next().unwrap());
    assert_eq!(cluster.transport(&endpoint), &Transport::Raw);
    endpoint.istio_mtls = true;
    let Transport::Tls(tls) = cluster.transport(&endpoint) else {
        panic!("not TLS");
    };
    assert_eq!(&*tls.sni, "outbound_.9080_.v1_.reviews.default.svc.cluster.local");
    assert_eq!(tls.roots, Some(RootsSource::Workload));
    endpoint.tunnel = true;
    assert_eq!(cluster.transport(&endpoint), &Transport::Hbone);
}

#[test]
fn what_is_inside_of_tls_is_said_as_istio_does() {
    let context = |alpn: &[&str]| {
        let mut context = istio_tls(&[]);
        let common = context.common_tls_context.as_mut().unwrap();
        common.alpn_protocols = alpn.iter().map(ToString::to_string).collect();
        let mut message = eds_cluster("c");
        message.transport_socket = socket_of(packed(&context));
        let Transport::Tls(tls) = parse(&message).unwrap().transport_of_any().clone() else { panic!("not TLS") };
        tls
    };
    let istio = &["istio-peer-exchange", "istio", "h2"][..];
    for (alpn, carries, offers) in [
        (istio, Carries::Bytes, istio),
        (istio, Carries::Http1, &["istio-http/1.1", "istio", "http/1.1"]),
        (istio, Carries::Http2, &["istio-h2", "istio", "h2"]),
        (&["h2"], Carries::Http1, &["http/1.1"]),
        (&[], Carries::Http2, &["h2"]),
        (&[], Carries::Bytes, &[]),
        (&["mqtt"], Carries::Bytes, &["mqtt"]),
    ] {
        assert_eq!(context(alpn).offers(carries), offers, "{alpn:?} {carries:?}");
    }
}

#[test]
fn the_name_of_a_server_may_follow_its_requests() {
    let tls = |sni, sans| {
        let names =
            core::UpstreamHttpProtocolOptions { auto_sni: sni, auto_san_validation: sans, ..Default::default() };
        let options =
            upstream::HttpProtocolOptions { upstream_http_protocol_options: Some(names), ..Default::default() };
        let mut message = eds_cluster("c");
        message.transport_socket = socket_of(packed(&istio_tls(&[])));
        message
            .typed_extension_protocol_options
            .insert("envoy.extensions.upstreams.http.v3.HttpProtocolOptions".into(), packed(&options));
        let Transport::Tls(tls) = parse(&message).unwrap().transport_of_any().clone() else { panic!("not TLS") };
        (tls.auto_sni, tls.auto_sans)
    };
    for both in [(true, true), (true, false), (false, false)] {
        assert_eq!(tls(both.0, both.1), both);
    }
}

#[test]
fn one_host_that_wants_tls_speaks_for_all_of_a_name() {
    let cluster = |wants: &[bool]| {
        let mut message = istio_cluster();
        message.cluster_discovery_type =
            Some(pb::cluster::ClusterDiscoveryType::Type(pb::cluster::DiscoveryType::StrictDns as i32));
        message.eds_cluster_config = None;
        let hosts = wants.iter().map(|wants| {
            let mut host = lb_endpoint("example.com", 443);
            if *wants {
                host.metadata = metadata(&[("envoy.transport_socket_match", fields(&[("tlsMode", text("istio"))]))]);
            }
            host
        });
        message.load_assignment = Some(assignment("c", hosts.collect()));
        parse(&message).unwrap()
    };
    assert_eq!(cluster(&[false, false]).transport_of_any(), &Transport::Raw);
    assert!(matches!(cluster(&[false, true]).transport_of_any(), Transport::Tls(_)));
}

#[test]
fn special_clusters() {
    use pb::cluster::{ClusterDiscoveryType, DiscoveryType};
    let of = |kind: DiscoveryType| pb::Cluster {
        name: "c".into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(kind as i32)),
        ..Default::default()
    };
    let black_hole = parse(&of(DiscoveryType::Static)).unwrap();
    assert!(matches!(&black_hole.kind, ClusterKind::Static(all) if all.endpoints().next().is_none()));
    assert_eq!(black_hole.connect_timeout, Duration::from_secs(5));

    let mut passthrough = of(DiscoveryType::OriginalDst);
    passthrough.lb_policy = pb::cluster::LbPolicy::ClusterProvided as i32;
    passthrough.upstream_bind_config = Some(core::BindConfig {
        source_address: Some(socket("127.0.0.6", 0)),
        extra_source_addresses: vec![core::ExtraSourceAddress {
            address: Some(socket("::6", 0)),
            ..Default::default()
        }],
        ..Default::default()
    });
    let passthrough = parse(&passthrough).unwrap();
    assert_eq!(passthrough.kind, ClusterKind::OriginalDst { port_override: None });
    assert_eq!(passthrough.bind_sources.len(), 2);

    let mut dns = of(DiscoveryType::StrictDns);
    dns.load_assignment = Some(assignment("c", vec![lb_endpoint("example.com", 443)]));
    let dns = parse(&dns).unwrap();
    assert!(
        matches!(&dns.kind, ClusterKind::StrictDns(hosts) if &*hosts[0].host == "example.com" && hosts[0].port == 443)
    );

    let mut internal = of(DiscoveryType::Static);
    let mut endpoint = lb_endpoint("10.0.0.1", 80);
    endpoint.host_identifier =
        Some(envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier::Endpoint(
            envoy_types::pb::envoy::config::endpoint::v3::Endpoint {
                address: Some(core::Address {
                    address: Some(core::address::Address::EnvoyInternalAddress(Default::default())),
                }),
                ..Default::default()
            },
        ));
    internal.load_assignment = Some(assignment("c", vec![endpoint]));
    assert_eq!(parse(&internal).unwrap().kind, ClusterKind::Internal);
}

#[test]
fn limits_and_outliers_have_envoys_defaults() {
    let plain = parse(&eds_cluster("c")).unwrap();
    assert_eq!((plain.limits.max_connections, plain.limits.max_retries), (1024, 3));
    assert_eq!(plain.outlier, None);

    let mut message = eds_cluster("c");
    message.circuit_breakers = Some(pb::CircuitBreakers {
        thresholds: vec![
            pb::circuit_breakers::Thresholds { priority: 1, max_connections: number(1), ..Default::default() },
            pb::circuit_breakers::Thresholds {
                max_connections: number(u32::MAX),
                max_pending_requests: number(u32::MAX),
                max_requests: number(u32::MAX),
                max_retries: number(u32::MAX),
                ..Default::default()
            },
        ],
        ..Default::default()
    });
    let unlimited = parse(&message).unwrap();
    assert!(!unlimited.is_limited());

    message.outlier_detection = Some(pb::OutlierDetection {
        enforcing_success_rate: number(0),
        consecutive_5xx: number(7),
        consecutive_gateway_failure: number(3),
        max_ejection_percent: number(400),
        ..Default::default()
    });
    let outlier = parse(&message).unwrap().outlier.unwrap();
    // Gateway failures count only where that is enforced.
    assert_eq!((outlier.consecutive_5xx, outlier.consecutive_gateway_failure), (7, 0));
    assert_eq!((outlier.interval, outlier.base_ejection_time), (Duration::from_secs(10), Duration::from_secs(30)));
    assert_eq!(outlier.max_ejection_percent, 100);
}

#[test]
fn protocols() {
    use upstream::http_protocol_options::{
        ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
    };
    let with = |options| {
        let options = upstream::HttpProtocolOptions {
            upstream_protocol_options: Some(options),
            common_http_protocol_options: Some(core::HttpProtocolOptions {
                idle_timeout: seconds(0),
                ..Default::default()
            }),
            ..Default::default()
        };
        let mut message = eds_cluster("c");
        message
            .typed_extension_protocol_options
            .insert("envoy.extensions.upstreams.http.v3.HttpProtocolOptions".into(), packed(&options));
        parse(&message).unwrap()
    };
    let explicit = |protocol_config| {
        UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config: Some(protocol_config) })
    };
    assert_eq!(parse(&eds_cluster("c")).unwrap().http, HttpProtocol::Http1);
    let http2 = with(explicit(ProtocolConfig::Http2ProtocolOptions(Default::default())));
    assert_eq!((http2.http, http2.limits.idle_timeout), (HttpProtocol::Http2, None));
    let same = with(UpstreamProtocolOptions::UseDownstreamProtocolConfig(Default::default()));
    assert_eq!(same.http, HttpProtocol::Downstream);
}

#[test]
fn names_hold_subsets() {
    for (name, want) in [
        ("outbound|80||a.b", None),
        ("outbound|80|v1|a.b", Some("v1")),
        ("inbound|80||", None),
        ("inbound|80|v1|", None),
        ("PassthroughCluster", None),
        ("a|b|c|d", None),
    ] {
        assert_eq!(parse(&eds_cluster(name)).unwrap().subset.as_deref(), want, "{name}");
    }
}

#[test]
fn inline_endpoints_keep_their_counters() {
    let message = pb::Cluster {
        name: "c".into(),
        load_assignment: Some(assignment("c", vec![lb_endpoint("10.0.0.1", 80)])),
        ..Default::default()
    };
    let endpoint = |cluster: &Cluster| match &cluster.kind {
        ClusterKind::Static(all) => all.endpoints().next().unwrap().clone(),
        _ => panic!("not static"),
    };
    let before = parse(&message).unwrap();
    let after = Cluster::from_message(&message, Some(&before)).unwrap();
    assert!(Arc::ptr_eq(&endpoint(&before), &endpoint(&after)));
}

/// A change to a good cluster, and the path its refusal must name.
type Bad = (fn(&mut pb::Cluster), &'static str);

#[test]
fn refusals_name_the_field() {
    let bad: Vec<Bad> = vec![
        (|m| m.cluster_discovery_type = Some(pb::cluster::ClusterDiscoveryType::Type(9)), "type"),
        (|m| m.eds_cluster_config = None, "eds_cluster_config"),
        (|m| m.lb_policy = 4, "lb_policy"),
        (|m| m.connect_timeout = seconds(0), "connect_timeout"),
        (|m| m.lb_subset_config = Some(Default::default()), "lb_subset_config"),
        (|m| m.filters[0].name = "wasm".into(), "filters[0]"),
        (
            |m| m.transport_socket_matches[1].r#match = Some(fields(&[("tlsMode", text("x"))])),
            "transport_socket_matches[1].match",
        ),
        (
            |m| m.transport_socket_matches[1].transport_socket = socket_of(packed_empty("x.Y")),
            "transport_socket_matches[1].transport_socket.typed_config",
        ),
        (
            |m| {
                let mut context = istio_tls(&[]);
                context.common_tls_context.as_mut().unwrap().tls_certificates.push(Default::default());
                m.transport_socket = socket_of(packed(&context));
            },
            "transport_socket.typed_config.common_tls_context.tls_certificates",
        ),
        (
            |m| {
                m.common_lb_config = Some(pb::cluster::CommonLbConfig {
                    healthy_panic_threshold: Some(Percent { value: f64::NAN }),
                    ..Default::default()
                })
            },
            "common_lb_config.healthy_panic_threshold",
        ),
        (|m| m.outlier_detection = Some(Default::default()), "outlier_detection.enforcing_success_rate"),
        (
            |m| {
                m.upstream_bind_config =
                    Some(core::BindConfig { source_address: Some(socket("x", 0)), ..Default::default() })
            },
            "upstream_bind_config",
        ),
    ];
    for (spoil, want) in bad {
        let mut message = istio_cluster();
        parse(&message).unwrap();
        spoil(&mut message);
        assert_eq!(refusal(&message), want);
    }
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_or_refused(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Cluster::parse("x", &body, None);
    }

    #[test]
    fn spoiled_messages_are_parsed_or_refused(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut body = istio_cluster().encode_to_vec();
        let at = at.index(body.len());
        body[at] = byte;
        let _ = Cluster::parse(NAME, &body, None);
    }
}
