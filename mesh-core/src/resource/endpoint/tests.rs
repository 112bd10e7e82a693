//! Tables of endpoints as Istio and this mesh's control plane describe them, and refusals.

use super::*;
use crate::testing::*;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as pb;
use envoy_types::pb::google::protobuf as google;
use proptest::prelude::*;
use prost::Message;
use std::sync::atomic::Ordering;

fn parse(message: &pb::ClusterLoadAssignment) -> LoadAssignment {
    LoadAssignment::from_message(message, None).unwrap()
}

fn refusal(message: &pb::ClusterLoadAssignment) -> String {
    let rejection = LoadAssignment::from_message(message, None).unwrap_err().reject("a");
    assert!(!rejection.why.is_empty());
    rejection.path
}

fn meshed() -> pb::LbEndpoint {
    pb::LbEndpoint {
        load_balancing_weight: number(3),
        health_status: core::HealthStatus::Healthy as i32,
        metadata: metadata(&[
            ("envoy.transport_socket_match", fields(&[("tunnel", text("http"))])),
            ("istio", fields(&[("workload", text("reviews-v1;default;reviews;v1;Kubernetes"))])),
            (
                "io.mesh.workload",
                fields(&[
                    ("identity", text("spiffe://cluster.local/ns/default/sa/reviews")),
                    ("app", text("reviews")),
                    ("version", text("v1")),
                ]),
            ),
        ]),
        ..lb_endpoint("10.0.0.1", 9080)
    }
}

#[test]
fn a_meshed_endpoint() {
    let all = parse(&assignment("a", vec![meshed(), lb_endpoint("::ffff:10.0.0.2", 80)]));
    let endpoints: Vec<_> = all.endpoints().collect();
    let one = endpoints[0];
    assert_eq!(one.address, "10.0.0.1:9080".parse().unwrap());
    assert_eq!((one.weight, one.health, one.tunnel, one.istio_mtls), (3, Health::Healthy, true, false));
    let identity = one.identity.as_ref().unwrap();
    assert_eq!(identity.service_account(), "reviews");
    assert!(!one.host);
    let workload = one.workload.as_ref().unwrap();
    let names = [
        &workload.name,
        &workload.namespace,
        &workload.canonical_service,
        &workload.canonical_revision,
        &workload.cluster,
        &workload.app,
        &workload.version,
    ];
    let names: Vec<&str> = names.iter().map(|n| &***n).collect();
    assert_eq!(names, ["reviews-v1", "default", "reviews", "v1", "Kubernetes", "reviews", "v1"]);

    let two = endpoints[1];
    assert_eq!(two.address, "10.0.0.2:80".parse().unwrap());
    assert_eq!((two.weight, two.tunnel, &two.identity, &two.workload), (1, false, &None, &None));
}

#[test]
fn an_endpoint_of_a_host_says_so_and_is_another_one() {
    let of = |host: &str| {
        let own = [("identity", text("spiffe://cluster.local/ns/default/sa/reviews")), ("host", text(host))];
        pb::LbEndpoint { metadata: metadata(&[("io.mesh.workload", fields(&own))]), ..meshed() }
    };
    for (said, host) in [("true", true), ("false", false), ("", false)] {
        let all = parse(&assignment("a", vec![of(said)]));
        assert_eq!(all.endpoints().next().unwrap().host, host, "{said}");
    }
    let before = parse(&assignment("a", vec![of("")]));
    let after = assignment("a", vec![of("true")]);
    let after = LoadAssignment::parse("a", &after.encode_to_vec(), Some(&before)).unwrap();
    assert!(after.endpoints().next().unwrap().host, "not the endpoint of the version before");
}

#[test]
fn workload_lines_may_be_short() {
    for (line, name, revision) in
        [("a;b;c;;d", "a", "latest"), ("a", "a", "latest"), ("", "", "latest"), ("a;b;c;v2;d;e", "a", "v2")]
    {
        let endpoint = pb::LbEndpoint {
            metadata: metadata(&[("istio", fields(&[("workload", text(line))]))]),
            ..lb_endpoint("10.0.0.1", 80)
        };
        let all = parse(&assignment("a", vec![endpoint]));
        let workload = all.endpoints().next().unwrap().workload.clone().unwrap();
        assert_eq!((&*workload.name, &*workload.canonical_revision), (name, revision), "{line}");
    }
}

#[test]
fn an_internal_address_stands_for_the_one_in_its_metadata() {
    let internal = |local: &str| pb::LbEndpoint {
        host_identifier: Some(pb::lb_endpoint::HostIdentifier::Endpoint(pb::Endpoint {
            address: Some(core::Address {
                address: Some(core::address::Address::EnvoyInternalAddress(Default::default())),
            }),
            ..Default::default()
        })),
        metadata: metadata(&[("envoy.filters.listener.original_dst", fields(&[("local", text(local))]))]),
        ..Default::default()
    };
    let all = parse(&assignment("a", vec![internal("10.0.0.7:8080")]));
    assert_eq!(all.endpoints().next().unwrap().address, "10.0.0.7:8080".parse().unwrap());
    assert_eq!(
        refusal(&assignment("a", vec![internal("nowhere")])),
        "endpoints[0].lb_endpoints[0].endpoint.address.envoy_internal_address"
    );
}

#[test]
fn localities_are_sorted_by_priority() {
    let locality = |priority, zone: &str| pb::LocalityLbEndpoints {
        priority,
        locality: Some(core::Locality { zone: zone.into(), ..Default::default() }),
        lb_endpoints: vec![lb_endpoint("10.0.0.1", 80)],
        load_balancing_weight: number(priority),
        ..Default::default()
    };
    let message = pb::ClusterLoadAssignment {
        cluster_name: "a".into(),
        endpoints: vec![locality(2, "c"), locality(0, "a"), locality(2, "d")],
        ..Default::default()
    };
    let zones: Vec<String> = parse(&message).localities.iter().map(|l| l.locality.zone.to_string()).collect();
    assert_eq!(zones, ["a", "c", "d"]);
}

#[test]
fn an_update_keeps_objects_and_counters() {
    let before = parse(&assignment("a", vec![meshed(), lb_endpoint("10.0.0.2", 80)]));
    before.runtime.turn.store(9, Ordering::Relaxed);
    let kept = before.endpoints().next().unwrap().clone();
    kept.runtime.active.store(2, Ordering::Relaxed);

    let sick = pb::LbEndpoint { health_status: core::HealthStatus::Unhealthy as i32, ..lb_endpoint("10.0.0.2", 80) };
    let message = assignment("a", vec![sick, meshed(), lb_endpoint("10.0.0.3", 80)]);
    let after = LoadAssignment::from_message(&message, Some(&before)).unwrap();
    let endpoints: Vec<_> = after.endpoints().collect();
    assert!(Arc::ptr_eq(endpoints[1], &kept));
    assert_eq!(endpoints[0].health, Health::Unhealthy);
    let old = before.endpoints().nth(1).unwrap();
    assert!(Arc::ptr_eq(&endpoints[0].runtime, &old.runtime));
    assert_eq!(endpoints[2].runtime.active.load(Ordering::Relaxed), 0);
    assert_eq!(after.runtime.turn.load(Ordering::Relaxed), 9);
}

#[test]
fn replicas_share_what_they_have_in_common() {
    let other = |port| pb::LbEndpoint { host_identifier: lb_endpoint("10.0.0.9", port).host_identifier, ..meshed() };
    let all = parse(&assignment("a", vec![meshed(), other(80)]));
    let more = assignment("a", vec![meshed(), other(80), other(81)]);
    let more = LoadAssignment::from_message(&more, Some(&all)).unwrap();
    let workloads: Vec<_> = more.endpoints().map(|e| e.workload.clone().unwrap()).collect();
    let identities: Vec<_> = more.endpoints().map(|e| e.identity.clone().unwrap()).collect();
    for i in 1..3 {
        assert!(Arc::ptr_eq(&workloads[0], &workloads[i]));
        assert!(std::ptr::eq(identities[0].as_str(), identities[i].as_str()));
    }
}

/// A change to a good assignment, and the path its refusal must name.
type Bad = (fn(&mut pb::ClusterLoadAssignment), &'static str);

#[test]
fn refusals_name_the_field() {
    fn first(m: &mut pb::ClusterLoadAssignment) -> &mut pb::LbEndpoint {
        &mut m.endpoints[0].lb_endpoints[0]
    }
    let bad: Vec<Bad> = vec![
        (|m| first(m).host_identifier = None, "endpoints[0].lb_endpoints[0].endpoint"),
        (
            |m| *first(m) = lb_endpoint("reviews", 80),
            "endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address",
        ),
        (
            |m| *first(m) = lb_endpoint("10.0.0.1", 65536),
            "endpoints[0].lb_endpoints[0].endpoint.address.socket_address",
        ),
        (|m| first(m).load_balancing_weight = number(0), "endpoints[0].lb_endpoints[0].load_balancing_weight"),
        (|m| first(m).health_status = 77, "endpoints[0].lb_endpoints[0].health_status"),
        (
            |m| first(m).metadata = metadata(&[("io.mesh.workload", fields(&[("identity", text("spiffe://x"))]))]),
            "endpoints[0].lb_endpoints[0].metadata.io.mesh.workload.identity",
        ),
        (
            |m| {
                first(m).metadata = metadata(&[(
                    "io.mesh.workload",
                    fields(&[("identity", google::Value { kind: Some(google::value::Kind::BoolValue(true)) })]),
                )])
            },
            "endpoints[0].lb_endpoints[0].metadata.io.mesh.workload.identity",
        ),
        (|m| m.endpoints[0].priority = 129, "endpoints[0].priority"),
        (
            |m| {
                m.policy = Some(pb::cluster_load_assignment::Policy {
                    overprovisioning_factor: number(0),
                    ..Default::default()
                })
            },
            "policy.overprovisioning_factor",
        ),
        (
            |m| {
                m.named_endpoints.insert("x".into(), Default::default());
            },
            "named_endpoints",
        ),
    ];
    for (spoil, want) in bad {
        let mut message = assignment("a", vec![meshed()]);
        parse(&message);
        spoil(&mut message);
        assert_eq!(refusal(&message), want);
    }
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_or_refused(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = LoadAssignment::parse("x", &body, None);
    }

    #[test]
    fn spoiled_messages_are_parsed_or_refused(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut body = assignment("a", vec![meshed()]).encode_to_vec();
        let at = at.index(body.len());
        body[at] = byte;
        let _ = LoadAssignment::parse("a", &body, None);
    }
}
