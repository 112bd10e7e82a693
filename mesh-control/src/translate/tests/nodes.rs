//! What a node is told of the whole mesh, and what mesh-core makes of it: who may come in where.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::net::IpAddr;

use mesh_core::SpiffeId;
use mesh_core::ambient::{Ambient, Store};
use mesh_core::authorization::Verdict;
use mesh_core::resource::authorization::Connection;
use mesh_core::resource::workload::{Tunnel, WorkloadKind};
use mesh_core::store::Upsert;

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
    assert_eq!((service.addresses[0].1.to_string(), service.ports[0].target), ("10.96.0.1".to_owned(), Some(8080)));
    let late = known.workload("Kubernetes//Pod/default/late").unwrap();
    assert_eq!((late.tunnel, late.kind, late.healthy), (Tunnel::None, WorkloadKind::Pod, false));
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
