//! What of a workload and a service is taken, and what is refused.

use mesh_proto::workload as pb;
use prost::Message;

use super::*;
use crate::resource::Rejection;

fn pod() -> pb::Workload {
    pb::Workload {
        uid: "c1//Pod/shop/web".into(),
        name: "web".into(),
        namespace: "shop".into(),
        addresses: vec![vec![10, 0, 0, 1]],
        tunnel_protocol: pb::TunnelProtocol::Hbone.into(),
        service_account: "web".into(),
        ..Default::default()
    }
}

fn parse_workload(workload: pb::Workload) -> Result<Address, Rejection> {
    let name = workload.uid.clone();
    let message = pb::Address { r#type: Some(pb::address::Type::Workload(workload)) };
    Address::parse(&name, &message.encode_to_vec())
}

fn parse_service(name: &str, service: pb::Service) -> Result<Address, Rejection> {
    let message = pb::Address { r#type: Some(pb::address::Type::Service(service)) };
    Address::parse(name, &message.encode_to_vec())
}

#[test]
fn a_workload_is_read_with_its_defaults() {
    let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 2].to_vec();
    let ports = pb::PortList {
        ports: vec![pb::Port { service_port: 80, target_port: 8080 }, pb::Port { service_port: 81, target_port: 0 }],
    };
    let message = pb::Workload {
        addresses: vec![vec![10, 0, 0, 1], mapped, vec![0; 16]],
        authorization_policies: vec!["shop/b".into(), "shop/a".into(), "shop/b".into()],
        services: [("shop/web.shop.svc".to_owned(), ports)].into(),
        status: pb::WorkloadStatus::Unhealthy.into(),
        locality: Some(pb::Locality { region: "r".into(), zone: "z".into(), subzone: "s".into() }),
        network_mode: pb::NetworkMode::HostNetwork.into(),
        ..pod()
    };
    let Ok(Address::Workload(workload)) = parse_workload(message) else { panic!("a workload") };
    assert_eq!(workload.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.1", "10.0.0.2", "::"]);
    assert_eq!(workload.policies.iter().map(|name| &**name).collect::<Vec<_>>(), ["shop/a", "shop/b"]);
    let ports = [Port { service: 80, target: Some(8080) }, Port { service: 81, target: None }];
    assert_eq!((&*workload.services[0].0, &*workload.services[0].1), ("shop/web.shop.svc", &ports[..]));
    assert_eq!((workload.healthy, workload.host_network, workload.capacity), (false, true, 1));
    assert_eq!((workload.tunnel, workload.kind), (Tunnel::Hbone, WorkloadKind::Deployment));
    assert_eq!(&*workload.locality.sub_zone, "s");
    assert_eq!(workload.identity("own.example").unwrap().as_str(), "spiffe://own.example/ns/shop/sa/web");
    let of = |message| match parse_workload(message) {
        Ok(Address::Workload(workload)) => workload,
        other => panic!("{other:?}"),
    };
    let other = of(pb::Workload { trust_domain: "other".into(), service_account: String::new(), ..pod() });
    assert_eq!(other.identity("own").unwrap().as_str(), "spiffe://other/ns/shop/sa/default");
    assert_eq!(of(pb::Workload { capacity: Some(0), ..pod() }).capacity, 0);
}

#[test]
fn a_bad_workload_is_refused_where_it_is_bad() {
    let long = "x".repeat(MAX_NAME_BYTES + 1);
    for (bad, path, why) in [
        (pb::Workload { uid: String::new(), ..pod() }, "workload.uid", "is empty"),
        (pb::Workload { addresses: vec![vec![1; 4], vec![1; 5]], ..pod() }, "workload.addresses[1]", "5 bytes"),
        (pb::Workload { addresses: vec![vec![1; 4]; MAX_ADDRESSES + 1], ..pod() }, "workload.addresses", "at most"),
        (pb::Workload { hostname: "db.example".into(), ..pod() }, "workload.hostname", "either"),
        (pb::Workload { tunnel_protocol: 9, ..pod() }, "workload.tunnel_protocol", "9 is unknown"),
        (pb::Workload { workload_type: 4, ..pod() }, "workload.workload_type", "4 is unknown"),
        (pb::Workload { status: 2, ..pod() }, "workload.status", "2 is unknown"),
        (pb::Workload { network_mode: 2, ..pod() }, "workload.network_mode", "2 is unknown"),
        (pb::Workload { namespace: "a/b".into(), ..pod() }, "workload.tunnel_protocol", "no identity"),
        (pb::Workload { trust_domain: "A B".into(), ..pod() }, "workload.tunnel_protocol", "no identity"),
        (pb::Workload { node: long.clone(), ..pod() }, "workload.node", "at most 2048"),
        (
            pb::Workload { authorization_policies: vec!["p".into(); MAX_POLICIES + 1], ..pod() },
            "workload.authorization_policies",
            "at most",
        ),
        (
            pb::Workload {
                services: [(
                    "s".into(),
                    pb::PortList { ports: vec![pb::Port { service_port: 65536, target_port: 1 }] },
                )]
                .into(),
                ..pod()
            },
            "workload.services.ports[0].service_port",
            "not a port",
        ),
    ] {
        let refused = parse_workload(bad).unwrap_err();
        assert_eq!(refused.path, path, "{refused}");
        assert!(refused.why.contains(why), "{refused}");
    }
    let message = pb::Address { r#type: Some(pb::address::Type::Workload(pod())) };
    assert!(Address::parse("other", &message.encode_to_vec()).unwrap_err().why.contains("is called \"other\""));
    assert_eq!(Address::parse("x", &[]).unwrap_err().path, "type");
    // Without a tunnel nobody has to be expected.
    assert!(parse_workload(pb::Workload { tunnel_protocol: 0, trust_domain: "A B".into(), ..pod() }).is_ok());
}

#[test]
fn a_service_is_named_by_namespace_and_host() {
    let address =
        |bytes: &[u8]| pb::NetworkAddress { network: "n".into(), address: bytes.to_vec(), ..Default::default() };
    let service = pb::Service {
        name: "web".into(),
        namespace: "shop".into(),
        hostname: "web.shop.svc.cluster.local".into(),
        addresses: vec![address(&[10, 96, 0, 1])],
        ports: vec![pb::Port { service_port: 80, target_port: 8080 }],
        ..Default::default()
    };
    let Ok(Address::Service(read)) = parse_service("shop/web.shop.svc.cluster.local", service.clone()) else {
        panic!("a service")
    };
    assert_eq!((&*read.addresses[0].0, read.addresses[0].1.to_string()), ("n", "10.96.0.1/32".into()));
    let range = |bytes: &[u8], length| pb::NetworkAddress { length: Some(length), ..address(bytes) };
    let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 2, 3];
    for (one, want) in [
        (range(&[10, 1, 2, 3], 24), Some("10.1.2.0/24")),
        (range(&[10, 1, 2, 3], 0), Some("0.0.0.0/0")),
        (range(&mapped, 112), Some("10.1.0.0/16")),
        (range(&[0xfd; 16], 8), Some("fd00::/8")),
        (range(&[10, 1, 2, 3], 33), None),
        (range(&[10, 1, 2, 3], u32::MAX), None),
    ] {
        let said =
            parse_service("shop/web.shop.svc.cluster.local", pb::Service { addresses: vec![one], ..service.clone() });
        match (said, want) {
            (Ok(Address::Service(read)), Some(want)) => assert_eq!(read.addresses[0].1.to_string(), want),
            (Err(refused), None) => assert_eq!(refused.path, "service.addresses[0].length"),
            (said, want) => panic!("{said:?} instead of {want:?}"),
        }
    }
    assert!(parse_service("shop/other", service.clone()).unwrap_err().why.contains("is called"));
    let nameless = pb::Service { hostname: String::new(), ..service.clone() };
    assert_eq!(parse_service("shop/", nameless).unwrap_err().path, "service.hostname");
    let bad = pb::Service { addresses: vec![address(&[1])], ..service.clone() };
    assert_eq!(parse_service("shop/web", bad).unwrap_err().path, "service.addresses[0].address");
    let mut body = pb::Address { r#type: Some(pb::address::Type::Service(service)) }.encode_to_vec();
    // A field of a later version.
    body.extend([0xba, 0x3e, 1, b'x']);
    assert!(Address::parse("shop/web.shop.svc.cluster.local", &body).is_ok());
}
