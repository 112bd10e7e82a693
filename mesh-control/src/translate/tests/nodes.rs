//! What a node is told of the whole mesh, and what mesh-core makes of it: who may come in where.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::net::IpAddr;

use mesh_core::SpiffeId;
use mesh_core::ambient::{Ambient, Store};
use mesh_core::authorization::Verdict;
use mesh_core::resource::authorization::Connection;
use mesh_core::resource::workload::{Tunnel, WorkloadKind};
use mesh_core::store::Upsert;
use mesh_proto::workload as pb;
use prost::Message;

use super::*;

fn known(told: &Told) -> Arc<Ambient> {
    let mut store = Store::new();
    for kind in [Kind::Authorization, Kind::Address] {
        let all = told.of_nodes(kind);
        let upserts: Vec<Upsert> = all
            .iter()
            .map(|(name, one)| Upsert {
                name: name.to_string(),
                version: "1".into(),
                body: one.body.value.clone().into(),
            })
            .collect();
        assert_eq!(store.apply(kind.type_url(), &upserts, &[]), []);
    }
    assert!(told.checked.refused().is_empty());
    store.snapshot().unwrap()
}

fn policy(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: \
         {namespace}}}\nspec:\n{spec}\n"
    )
}

fn peers(name: &str, namespace: &str, spec: &str) -> String {
    policy(name, namespace, spec).replace("AuthorizationPolicy", "PeerAuthentication")
}

/// What becomes of `identity` (`namespace/account`, or nobody) that dials a port of the pod `web`.
fn verdict(known: &Ambient, identity: Option<&str>, port: u16) -> String {
    let web = known.workload("Kubernetes//Pod/default/web").unwrap();
    let policies = known.in_force(web).unwrap();
    let identity = identity.map(|text| {
        let (namespace, account) = text.split_once('/').unwrap();
        SpiffeId::new("cluster.local", namespace, account).unwrap()
    });
    let source: IpAddr = [10, 1, 0, 7].into();
    let connection = Connection { identity: identity.as_ref(), source, destination: web.addresses[0], port };
    match policies.evaluate(&connection) {
        Verdict::Allow { .. } => "allow".to_owned(),
        Verdict::Deny { by } => by.map_or("deny".to_owned(), |by| format!("deny {}[{}]", by.policy.key, by.rule)),
    }
}

fn with(policies: &str) -> Arc<Ambient> {
    known(&Told::new(&format!("{}{policies}", pod("web", "web", "", "10.1.0.1"))))
}

#[test]
fn policies_decide_as_they_are_written() {
    let from = |source: &str| format!("  rules:\n  - from: [{{source: {{{source}}}}}]");
    let (me, other, nobody) = (Some("default/client"), Some("bank/db"), None);
    for (spec, who, port, want) in [
        ("  {}".to_owned(), me, 80, "deny"),
        ("  rules: [{}]".to_owned(), nobody, 80, "allow"),
        ("  action: DENY\n  rules: [{}]".to_owned(), me, 80, "deny default/p[0]"),
        ("  action: DENY".to_owned(), me, 80, "allow"),
        (from("principals: [cluster.local/ns/default/sa/client]"), me, 80, "allow"),
        (from("principals: [cluster.local/ns/default/sa/client]"), other, 80, "deny"),
        (from("principals: [cluster.local/ns/default/sa/client]"), nobody, 80, "deny"),
        (from("principals: ['*']"), other, 80, "allow"),
        (from("principals: ['*']"), nobody, 80, "deny"),
        (from("principals: ['*/sa/client']"), me, 80, "allow"),
        (from("principals: ['cluster.local/ns/bank/*']"), other, 80, "allow"),
        (from("notPrincipals: ['*/sa/client']"), me, 80, "deny"),
        (from("namespaces: [default]"), me, 80, "allow"),
        (from("namespaces: [default]"), other, 80, "deny"),
        (from("notNamespaces: [bank]"), other, 80, "deny"),
        (from("serviceAccounts: [client]"), me, 80, "allow"),
        (from("serviceAccounts: [bank/db]"), other, 80, "allow"),
        (from("serviceAccounts: [bank/db]"), me, 80, "deny"),
        (from("ipBlocks: [10.1.0.0/16]"), nobody, 80, "allow"),
        (from("ipBlocks: [10.1.0.7]"), nobody, 80, "allow"),
        (from("ipBlocks: ['10.2.0.0/16', '::/0']"), me, 80, "deny"),
        (from("ipBlocks: [10.1.0.0/16], notIpBlocks: [10.1.0.7]"), me, 80, "deny"),
        ("  rules: [{to: [{operation: {ports: ['80', '81']}}]}]".to_owned(), nobody, 81, "allow"),
        ("  rules: [{to: [{operation: {notPorts: ['80']}}]}]".to_owned(), nobody, 80, "deny"),
        ("  rules: [{when: [{key: source.namespace, values: [bank]}]}]".to_owned(), other, 80, "allow"),
        ("  rules: [{when: [{key: source.principal, notValues: ['*/sa/db']}]}]".to_owned(), other, 80, "deny"),
        ("  rules: [{when: [{key: source.ip, values: [10.1.0.7]}]}]".to_owned(), nobody, 80, "allow"),
        ("  rules: [{when: [{key: destination.ip, values: [10.1.0.1]}]}]".to_owned(), nobody, 80, "allow"),
        ("  rules: [{when: [{key: destination.port, values: ['80']}]}]".to_owned(), nobody, 81, "deny"),
        ("  rules: [{when: [{key: source.serviceAccount, values: [client]}]}]".to_owned(), me, 80, "allow"),
        // All parts of a rule have to hold.
        (
            "  rules: [{from: [{source: {namespaces: [default]}}], to: [{operation: {ports: ['80']}}]}]".to_owned(),
            me,
            81,
            "deny",
        ),
        // Attributes of requests: an ALLOW allows nothing, a DENY denies more.
        ("  rules: [{to: [{operation: {methods: [GET]}}]}]".to_owned(), me, 80, "deny"),
        (
            "  rules: [{to: [{operation: {methods: [GET]}}]}, {to: [{operation: {ports: ['80']}}]}]".to_owned(),
            me,
            80,
            "allow",
        ),
        ("  rules: [{from: [{source: {requestPrincipals: ['*']}}]}]".to_owned(), me, 80, "deny"),
        ("  rules: [{when: [{key: 'request.headers[x]', values: [y]}]}]".to_owned(), me, 80, "deny"),
        (
            "  action: DENY\n  rules: [{from: [{source: {namespaces: [bank]}}], to: [{operation: {methods: [GET]}}]}]"
                .to_owned(),
            other,
            80,
            "deny default/p[0]",
        ),
        (
            "  action: DENY\n  rules: [{from: [{source: {namespaces: [bank]}}], to: [{operation: {paths: [/x]}}]}]"
                .to_owned(),
            me,
            80,
            "allow",
        ),
        ("  action: DENY\n  rules: [{to: [{operation: {methods: [GET], ports: ['81']}}]}]".to_owned(), me, 80, "allow"),
        // Not for agents that decide by connection.
        ("  action: AUDIT\n  rules: [{}]".to_owned(), me, 80, "allow"),
        ("  action: CUSTOM\n  provider: {name: x}\n  rules: [{}]".to_owned(), me, 80, "allow"),
        ("  targetRef: {kind: Service, name: web}\n  rules: []".to_owned(), me, 80, "allow"),
    ] {
        assert_eq!(verdict(&with(&policy("p", "default", &spec)), who, port), want, "{spec} {who:?} {port}");
    }
}

#[test]
fn a_policy_is_for_the_mesh_a_namespace_or_whom_it_selects() {
    let deny = |name: &str, namespace: &str, selector: &str| {
        policy(name, namespace, &format!("  action: DENY\n  rules: [{{}}]\n{selector}"))
    };
    let web = "  selector: {matchLabels: {app: web}}";
    for (text, want) in [
        (deny("p", "istio-system", ""), "deny istio-system/p[0]"),
        (deny("p", "default", ""), "deny default/p[0]"),
        (deny("p", "bank", ""), "allow"),
        (deny("p", "default", web), "deny default/p[0]"),
        (deny("p", "istio-system", web), "deny istio-system/p[0]"),
        (deny("p", "bank", web), "allow"),
        (deny("p", "default", "  selector: {matchLabels: {app: db}}"), "allow"),
        (
            deny("p", "default", "")
                .replace("namespace: default", "namespace: default, annotations: {istio.io/dry-run: 'true'}"),
            "allow",
        ),
    ] {
        assert_eq!(verdict(&with(&text), None, 80), want, "{text}");
    }
}

#[test]
fn peer_authentication_becomes_a_policy_with_istios_names() {
    let strict = "deny istio-system/istio_converted_static_strict[0]";
    let own = "deny default/converted_peer_authentication_web[0]";
    let mesh = |mode: &str| peers("default", "istio-system", &format!("  mtls: {{mode: {mode}}}"));
    let web = |mode: &str, ports: &str| {
        peers(
            "web",
            "default",
            &format!("  selector: {{matchLabels: {{app: web}}}}\n  mtls: {{mode: {mode}}}\n{ports}"),
        )
    };
    for (text, open) in [
        (String::new(), ["allow", "allow"]),
        (mesh("STRICT"), [strict, strict]),
        (mesh("PERMISSIVE"), ["allow", "allow"]),
        (mesh("STRICT") + &web("UNSET", ""), [strict, strict]),
        (mesh("STRICT") + &web("PERMISSIVE", ""), ["allow", "allow"]),
        (mesh("STRICT") + &web("UNSET", "  portLevelMtls: {80: {mode: DISABLE}}"), ["allow", own]),
        (web("STRICT", "  portLevelMtls: {80: {mode: PERMISSIVE}, 90: {mode: STRICT}}"), ["allow", own]),
        (web("PERMISSIVE", "  portLevelMtls: {80: {mode: STRICT}}"), [own, "allow"]),
        (web("STRICT", "  portLevelMtls: {80: {mode: STRICT}}"), [strict, strict]),
    ] {
        let known = with(&text);
        let said = [80, 81].map(|port| verdict(&known, None, port));
        assert_eq!(said, open, "{text}");
        for port in [80, 81] {
            assert_eq!(verdict(&known, Some("bank/db"), port), "allow", "{text}");
        }
    }
}

#[test]
fn workloads_and_services_carry_what_is_known_of_them() {
    let owned = pod("web", "web", "", "10.1.0.1").replace(
        "  labels: {",
        "  ownerReferences: [{kind: ReplicaSet, name: web-v1-abc, controller: true}]\n  labels: {pod-template-hash: abc, ",
    );
    let not_ready = "  conditions: [{type: Ready, status: 'False'}]\n";
    let text = [
        owned,
        service("web", "10.96.0.1", "[{name: http, port: 80, targetPort: web}, {name: raw, port: 81}]"),
        format!("{}{not_ready}", pod("late", "late", "", "10.1.0.2").replace("redirection: enabled", "redirection: disabled")),
        pod("peer", "peer", "", "10.1.0.5")
            .replace("redirection: enabled", "redirection: disabled")
            .replace("labels: {", "labels: {networking.istio.io/tunnel: http, "),
        pod("host", "host", "  hostNetwork: true\n", "10.1.0.3"),
        format!("{}  phase: Succeeded\n", pod("done", "done", "", "10.1.0.4")),
        "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: vm, namespace: default}\nspec: \
         {address: 192.0.2.7, serviceAccount: vm, weight: 5}\n"
            .to_owned(),
    ]
    .concat();
    let told = Told::new(&text);
    let known = known(&told);
    let web = known.workload("Kubernetes//Pod/default/web").unwrap();
    assert_eq!((web.tunnel, web.kind, web.healthy), (Tunnel::Hbone, WorkloadKind::Deployment, true));
    assert_eq!((&*web.workload_name, &*web.canonical_name, &*web.canonical_revision), ("web-v1", "web", "web"));
    assert_eq!((&*web.node, &*web.cluster, &*web.identity.service_account), ("n1", "Kubernetes", "web"));
    let (key, ports) = &web.services[0];
    let ports: Vec<_> = ports.iter().map(|port| (port.service, port.target)).collect();
    assert_eq!((&**key, ports), ("default/web.default.svc.cluster.local", vec![(80, Some(8080)), (81, Some(81))]));
    let service = known.service("default/web.default.svc.cluster.local").unwrap();
    assert_eq!(service.addresses[0].1.to_string(), "10.96.0.1/32");
    let targets: Vec<_> = service.ports.iter().map(|port| port.target).collect();
    assert_eq!(targets, [None, Some(81)], "a port by name is each workload's own");
    let late = known.workload("Kubernetes//Pod/default/late").unwrap();
    assert_eq!((late.tunnel, late.kind, late.healthy), (Tunnel::None, WorkloadKind::Pod, false));
    let peer = known.workload("Kubernetes//Pod/default/peer").unwrap();
    assert_eq!((peer.tunnel, peer.native_tunnel, web.native_tunnel), (Tunnel::Hbone, true, false));
    assert!(known.workload("Kubernetes//Pod/default/host").unwrap().host_network);
    assert!(known.at([10, 1, 0, 3].into()).is_none(), "a node's address names no workload");
    assert!(known.workload("Kubernetes//Pod/default/done").is_none());
    let vm = known.workload("Kubernetes/networking.istio.io/WorkloadEntry/default/vm").unwrap();
    assert_eq!((vm.capacity, vm.addresses[0].to_string()), (5, "192.0.2.7".to_owned()));
    let aliases = &told.of_nodes(Kind::Address)["Kubernetes//Pod/default/web"].aliases;
    assert_eq!(aliases, &["/10.1.0.1"]);
    // Equal content has an equal version, whoever translates it.
    let again = Told::new(&text);
    assert_eq!(told.of_nodes(Kind::Address), again.of_nodes(Kind::Address));
    // Nodes are told nothing of what workloads are, and the other way round.
    assert!(told.of_nodes(Kind::Cluster).is_empty());
    assert!(told.resources(Kind::Address).is_empty() && told.resources(Kind::Authorization).is_empty());
}

/// A resource as it is sent.
fn sent(told: &Told, name: &str) -> pb::address::Type {
    let all = told.of_nodes(Kind::Address);
    let one = all.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", all.keys().collect::<Vec<_>>()));
    pb::Address::decode(one.body.value.as_slice()).unwrap().r#type.unwrap()
}

fn workload(told: &Told, name: &str) -> pb::Workload {
    match sent(told, name) {
        pb::address::Type::Workload(workload) => workload,
        other => panic!("{other:?}"),
    }
}

fn service_of(told: &Told, name: &str) -> pb::Service {
    match sent(told, name) {
        pb::address::Type::Service(service) => service,
        other => panic!("{other:?}"),
    }
}

fn entry(metadata: &str, spec: &str) -> String {
    format!("---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{{metadata}}}\nspec:\n{spec}\n")
}

#[test]
fn endpoints_of_a_service_entry_are_workloads() {
    let spec = "  hosts: [db.example.com, also.example.com]\n  resolution: STATIC\n  location: MESH_INTERNAL\n  ports:\n  \
                - {number: 5432, name: tcp-db, targetPort: 6000}\n  - {number: 80, name: http}\n  endpoints:\n  \
                - {address: 192.0.2.7, locality: r1/z1/s1, network: n2, serviceAccount: db, weight: 3, labels: {app: db}}\n  \
                - {address: 192.0.2.8, ports: {tcp-db: 7000}, locality: r1}\n  - {address: 192.0.2.7, ports: {tcp-db: 1}}";
    let text = [
        entry("name: out, labels: {app: out, version: v2}, annotations: {ambient.istio.io/redirection: enabled}", spec),
        policy("p", "default", "  selector: {matchLabels: {app: out}}\n  action: DENY\n  rules: [{}]"),
        policy("q", "default", "  selector: {matchLabels: {app: db}}\n  action: DENY\n  rules: [{}]"),
        peers("m", "default", "  selector: {matchLabels: {app: db}}\n  mtls: {mode: STRICT}"),
    ]
    .concat();
    let told = Told::new(&text);
    let uid = "Kubernetes/networking.istio.io/ServiceEntry/default/out/192.0.2.7";
    let one = workload(&told, uid);
    let port = |service_port, target_port| pb::Port { service_port, target_port };
    let list = |ports: &[pb::Port]| pb::PortList { ports: ports.to_vec() };
    let serves = |ports: pb::PortList| {
        ["db", "also"].map(|host| (format!("default/{host}.example.com"), ports.clone())).into_iter().collect()
    };
    let want = pb::Workload {
        uid: uid.into(),
        name: "out".into(),
        namespace: "default".into(),
        addresses: vec![vec![192, 0, 2, 7]],
        network: "n2".into(),
        tunnel_protocol: pb::TunnelProtocol::Hbone.into(),
        service_account: "db".into(),
        canonical_name: "out".into(),
        canonical_revision: "v2".into(),
        workload_type: pb::WorkloadType::Pod.into(),
        workload_name: "out".into(),
        services: serves(list(&[port(5432, 6000), port(80, 80)])),
        authorization_policies: vec!["default/p".into(), "istio-system/istio_converted_static_strict".into()],
        cluster_id: "Kubernetes".into(),
        locality: Some(pb::Locality { region: "r1".into(), zone: "z1".into(), subzone: "s1".into() }),
        capacity: Some(3),
        ..Default::default()
    };
    assert_eq!(one, want);
    assert_eq!(told.of_nodes(Kind::Address)[uid].aliases, ["n2/192.0.2.7"]);
    let two = workload(&told, "Kubernetes/networking.istio.io/ServiceEntry/default/out/192.0.2.8");
    assert_eq!(two.services, serves(list(&[port(5432, 7000), port(80, 80)])));
    assert_eq!(two.locality, Some(pb::Locality { region: "r1".into(), ..Default::default() }));
    assert_eq!(two.authorization_policies, ["default/p"]);
    let known = known(&told);
    assert_eq!(known.at([192, 0, 2, 8].into()).map(|one| &*one.name), Some("out"));
    assert!(known.at([192, 0, 2, 7].into()).is_none(), "another network's");
}

#[test]
fn what_dns_resolves_is_a_workload_by_name() {
    let spec = |more: &str, endpoints: &str| {
        format!(
            "  hosts: [a.example.com, {more}b.example.com]\n  resolution: DNS\n  ports: [{{number: 80, name: \
             http}}]\n{endpoints}"
        )
    };
    let told = Told::new(&entry("name: out", &spec("", "")));
    let uid = |address: &str| format!("Kubernetes/networking.istio.io/ServiceEntry/default/out/{address}");
    for host in ["a.example.com", "b.example.com"] {
        let one = workload(&told, &uid(host));
        assert_eq!((one.hostname.as_str(), one.addresses.len(), one.tunnel_protocol), (host, 0, 0));
        assert_eq!(one.services.keys().collect::<Vec<_>>(), [&format!("default/{host}")], "each host for itself");
    }
    assert_eq!(known(&told).counts().workloads, 3, "and the client");
    let listed = "  endpoints: [{address: far.example.net}, {address: 'unix:///x'}]";
    let told = Told::new(&entry("name: out", &spec("'*.example.org', ", listed)));
    let one = workload(&told, &uid("far.example.net"));
    assert_eq!((one.hostname.as_str(), one.services.len()), ("far.example.net", 2));
    assert_eq!(known(&told).counts().workloads, 2);
}

#[test]
fn a_service_entry_says_its_name_ranges_ports_and_names_as_it_is_written() {
    let spec = "  hosts: [out.example.com]\n  addresses: [10.0.0.5/24, 192.0.2.1/32, 192.0.2.9, 'fd00::/8']\n  resolution: \
                NONE\n  ports: [{number: 443, name: tls, protocol: TLS}, {number: 80, name: http, targetPort: 8080}]\n  \
                subjectAltNames: ['spiffe://cluster.local/ns/default/sa/x', out.example.com]";
    let told = Told::new(&entry("name: out", spec));
    let one = service_of(&told, "default/out.example.com");
    assert_eq!((one.name.as_str(), one.hostname.as_str()), ("out", "out.example.com"));
    let addresses: Vec<_> = one.addresses.iter().map(|one| (one.address.as_slice(), one.length)).collect();
    let v6 = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let single = |last: u8| vec![192, 0, 2, last];
    let (first, ninth) = (single(1), single(9));
    assert_eq!(
        addresses,
        [(&[10, 0, 0, 0][..], Some(24)), (&first, None), (&ninth, None), (&v6[..], Some(8))],
        "ranges without the bits behind their length"
    );
    let ports: Vec<_> = one.ports.iter().map(|port| (port.service_port, port.target_port)).collect();
    assert_eq!(ports, [(443, 443), (80, 8080)]);
    assert_eq!(one.subject_alt_names, ["spiffe://cluster.local/ns/default/sa/x", "out.example.com"]);
    let balancing = one.load_balancing.unwrap();
    assert_eq!(balancing.mode, i32::from(pb::load_balancing::Mode::Passthrough));
    assert_eq!(balancing.health_policy, i32::from(pb::load_balancing::HealthPolicy::AllowAll));
    assert_eq!(told.of_nodes(Kind::Address)["default/out.example.com"].aliases, ["/192.0.2.1", "/192.0.2.9"]);
    let known = known(&told);
    let nets: Vec<String> =
        known.service("default/out.example.com").unwrap().addresses.iter().map(|(_, net)| net.to_string()).collect();
    assert_eq!(nets, ["10.0.0.0/24", "192.0.2.1/32", "192.0.2.9/32", "fd00::/8"]);
    let statics = Told::new(&entry("name: out", &spec.replace("NONE", "STATIC")));
    assert!(service_of(&statics, "default/out.example.com").load_balancing.is_none());
}

#[test]
fn pods_are_where_their_nodes_are_and_entries_where_they_say() {
    let node = |name: &str, labels: &str| {
        format!(
            "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{{labels}}}}}\nspec: {{}}\nstatus: {{}}\n"
        )
    };
    let place = |region: &str, zone: &str, subzone: &str| {
        Some(pb::Locality { region: region.into(), zone: zone.into(), subzone: subzone.into() })
    };
    let vm = "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: vm, namespace: default}\nspec: \
              {address: 192.0.2.7, locality: r/z, network: n}\n";
    let whole = "topology.kubernetes.io/region: r1, topology.kubernetes.io/zone: z1, topology.istio.io/subzone: s1";
    let told = Told::new(&[&pod("web", "web", "", "10.1.0.1"), vm, &node("n1", whole), &node("n2", "")].concat());
    assert_eq!(workload(&told, "Kubernetes//Pod/default/web").locality, place("r1", "z1", "s1"));
    let vm = workload(&told, "Kubernetes/networking.istio.io/WorkloadEntry/default/vm");
    assert_eq!((vm.locality, vm.network.as_str()), (place("r", "z", ""), "n"));
    assert_eq!(
        told.of_nodes(Kind::Address)["Kubernetes/networking.istio.io/WorkloadEntry/default/vm"].aliases,
        ["n/192.0.2.7"]
    );
    let told = Told::new(&[pod("web", "web", "", "10.1.0.1"), node("n1", "other: x")].concat());
    assert_eq!(workload(&told, "Kubernetes//Pod/default/web").locality, None);
    assert_eq!(workload(&Told::new(&pod("web", "web", "", "10.1.0.1")), "Kubernetes//Pod/default/web").locality, None);
}

#[test]
fn where_mutual_tls_is_off_there_is_no_tunnel() {
    for (spec, tunnel) in [
        ("mtls: {mode: DISABLE}", false),
        ("mtls: {mode: DISABLE}\n  portLevelMtls: {80: {mode: DISABLE}}", false),
        ("mtls: {mode: DISABLE}\n  portLevelMtls: {80: {mode: STRICT}}", true),
        ("mtls: {mode: STRICT}\n  portLevelMtls: {80: {mode: DISABLE}}", true),
        ("mtls: {mode: PERMISSIVE}", true),
    ] {
        let rule = peers("web", "default", &format!("  selector: {{matchLabels: {{app: web}}}}\n  {spec}"));
        let told = Told::new(&format!("{}{rule}", pod("web", "web", "", "10.1.0.1")));
        let one = workload(&told, "Kubernetes//Pod/default/web");
        assert_eq!(one.tunnel_protocol == i32::from(pb::TunnelProtocol::Hbone), tunnel, "{spec}");
    }
}

/// Endpoints say of which workloads a port decides who is meant.
#[test]
fn endpoints_of_a_host_say_so() {
    let vm = "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: vm, namespace: default, \
              annotations: {ambient.istio.io/redirection: enabled}}\nspec: {address: 192.0.2.7, labels: {app: web}}\n";
    let both = "  hosts: [web.example.com]\n  addresses: [10.99.0.1]\n  resolution: STATIC\n  location: MESH_INTERNAL\n  ports: \
                [{number: 80, name: tcp}]\n  workloadSelector: {labels: {app: web}}";
    let told = Told::new(&[&pod("web", "web", "", "10.1.0.1"), vm, &entry("name: web", both)].concat());
    let name = "outbound|80||web.example.com";
    let all = told.endpoints(name);
    let parsed = mesh_core::resource::endpoint::LoadAssignment::parse(name, &all.encode_to_vec(), None).unwrap();
    let hosts: Vec<_> = parsed.endpoints().map(|one| (one.address.to_string(), one.tunnel, one.host)).collect();
    let want = [("10.1.0.1:80", true, false), ("192.0.2.7:80", true, true)];
    assert_eq!(hosts, want.map(|(address, tunnel, host)| (address.to_owned(), tunnel, host)));
}
