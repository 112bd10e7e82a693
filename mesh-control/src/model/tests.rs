//! The mesh that objects make: services, endpoints, identities, rules, and references that lead nowhere.
#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use crate::config;
use crate::yaml;

pub(crate) fn options() -> MeshOptions {
    MeshOptions {
        trust_domain: "cluster.local".into(),
        cluster_id: "Kubernetes".into(),
        root_namespace: "istio-system".into(),
        dns_domain: "cluster.local".into(),
    }
}

/// Objects of a YAML text that must be without errors.
pub(crate) fn objects(text: &str) -> Objects {
    let mut objects = Objects::new();
    for document in yaml::documents(text) {
        let decoded = config::decode(document.tree.unwrap(), &"mesh.yaml".into());
        assert!(decoded.broken.is_empty(), "{:#?}", decoded.problems);
        objects.extend(decoded.objects.into_iter().map(|object| (object.key.clone(), Arc::new(object))));
    }
    objects
}

pub(crate) fn mesh(text: &str) -> (Mesh, Vec<String>) {
    let (mesh, problems) = Mesh::build(options(), &objects(text));
    let mut told: Vec<String> = problems.iter().map(ToString::to_string).collect();
    told.sort();
    (mesh, told)
}

pub(crate) fn pod(name: &str, app: &str, more: &str, address: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  labels: {{app: {app}, version: {name}}}\n  \
         annotations: {{ambient.istio.io/redirection: enabled}}\nspec:\n  nodeName: n1\n  serviceAccountName: {app}\n  \
         containers: [{{name: c, ports: [{{name: web, containerPort: 8080}}]}}]\n{more}status:\n  podIP: {address}\n"
    )
}

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.10
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: web}]
";

fn endpoints(mesh: &Mesh, host: &str) -> Vec<String> {
    let service = mesh.service(host, "default").unwrap();
    service.ports[0].endpoints.iter().map(|one| format!("{}:{}", one.address, one.port)).collect()
}

const WEB: &str = "web.default.svc.cluster.local";

#[test]
fn endpoints_come_from_selectors_when_there_is_no_slice() {
    let not_ready = "  conditions: [{type: Ready, status: 'False'}]\n";
    let text = [
        SERVICE.to_owned(),
        pod("web-b", "web", "", "10.1.0.2"),
        pod("web-a", "web", "", "10.1.0.1"),
        pod("other", "other", "", "10.1.0.3"),
        format!("{}{not_ready}", pod("web-c", "web", "", "10.1.0.4")),
        format!("{}  phase: Failed\n", pod("web-d", "web", "", "10.1.0.5")),
    ]
    .concat();
    let (mesh, told) = mesh(&text);
    assert_eq!(told, [""; 0]);
    assert_eq!(endpoints(&mesh, WEB), ["10.1.0.1:8080", "10.1.0.2:8080"]);
    let service = mesh.service(WEB, "default").unwrap();
    let endpoint = &service.ports[0].endpoints[0];
    let workload = endpoint.workload.as_ref().unwrap();
    assert!(endpoint.tunnel);
    assert_eq!(workload.identity.as_ref().unwrap().to_string(), "spiffe://cluster.local/ns/default/sa/web");
    assert_eq!((&*workload.canonical_name, &*workload.canonical_revision), ("web", "web-a"));
    assert_eq!(mesh.memberships(workload).unwrap().len(), 1);
    assert_eq!(mesh.memberships(workload).unwrap()[0].target_port, 8080);
}

#[test]
fn slices_go_before_selectors_and_find_their_pods() {
    let slice = "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-x, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8081}]
endpoints:
- {addresses: [10.1.0.1], targetRef: {kind: Pod, name: web-a}}
- {addresses: [10.9.0.9]}
- {addresses: [10.1.0.2], conditions: {ready: false}}
";
    let text = [SERVICE, &pod("web-a", "web", "", "10.1.0.1"), &pod("web-b", "web", "", "10.1.0.2"), slice].concat();
    let (mesh, _) = mesh(&text);
    assert_eq!(endpoints(&mesh, WEB), ["10.1.0.1:8081", "10.9.0.9:8081"]);
    let service = mesh.service(WEB, "default").unwrap();
    assert!(service.ports[0].endpoints[0].tunnel);
    assert!(!service.ports[0].endpoints[1].tunnel && service.ports[0].endpoints[1].workload.is_none());
}

#[test]
fn an_address_of_two_nodes_is_nobodys_unless_the_node_is_told() {
    let slice = |node: &str| {
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s, labels: \
             {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\nports: [{{name: http, port: 80}}]\nendpoints: \
             [{{addresses: [10.1.0.1]{node}}}]\n"
        )
    };
    let pods =
        [pod("a", "web", "", "10.1.0.1"), pod("b", "web", "", "10.1.0.1").replace("nodeName: n1", "nodeName: n2")]
            .concat();
    let workload = |node: &str| {
        let (mesh, _) = mesh(&[SERVICE, &pods, &slice(node)].concat());
        mesh.service(WEB, "default").unwrap().ports[0].endpoints[0].workload.as_ref().map(|one| one.name.to_string())
    };
    assert_eq!(workload(""), None);
    assert_eq!(workload(", nodeName: n2").as_deref(), Some("b"));
}

#[test]
fn the_directory_holds_enrolled_workloads_of_nodes_only() {
    let entry = "---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm, annotations: {mesh.io/node: n2}}
spec: {address: 192.0.2.7, serviceAccount: vm, labels: {app: vm}}
";
    let plain = pod("plain", "plain", "", "10.1.0.8").replace("redirection: enabled", "redirection: disabled");
    let host = pod("host", "host", "  hostNetwork: true\n", "10.1.0.9");
    let text = [pod("web-a", "web", "", "10.1.0.1"), plain, host, entry.to_owned()].concat();
    let (mesh, _) = mesh(&text);
    let identity = |account: &str| format!("spiffe://cluster.local/ns/default/sa/{account}").parse().unwrap();
    let runs = |node: &str, account: &str| mesh.directory.runs(node, &identity(account));
    assert!(runs("n1", "web") && runs("n2", "vm"));
    assert!(!runs("n2", "web") && !runs("n1", "vm") && !runs("n1", "plain") && runs("n1", "host"));
    assert!(mesh.directory.resident("default", "web-a").is_some());
    assert!(mesh.directory.resident("default", "plain").is_none());
}

#[test]
fn the_deployment_is_the_workload() {
    let owned = |kind: &str, owner: &str| {
        let with = format!("metadata:\n  ownerReferences: [{{kind: {kind}, name: {owner}, controller: true}}]\n");
        let text = pod("web-5d-x", "web", "", "10.1.0.1").replacen("metadata:\n", &with, 1);
        let text = text.replacen("version: web-5d-x", "pod-template-hash: 5d", 1);
        mesh(&text).0.workloads.get("default", "web-5d-x").unwrap().workload_name.to_string()
    };
    assert_eq!(owned("ReplicaSet", "web-5d"), "web");
    assert_eq!(owned("ReplicaSet", "web"), "web");
    assert_eq!(owned("StatefulSet", "db"), "db");
    let (mesh, _) = mesh(&pod("alone", "web", "", "10.1.0.1"));
    assert_eq!(&*mesh.workloads.get("default", "alone").unwrap().workload_name, "alone");
}

#[test]
fn service_entries_select_workloads_and_list_endpoints() {
    let text = [
        "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: vms}
spec:
  hosts: [vm.example.com]
  addresses: [240.0.0.1, 240.1.0.0/16]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8000}]
  workloadSelector: {labels: {app: vm}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm, annotations: {mesh.io/node: n2, ambient.istio.io/redirection: enabled}}
spec: {address: 192.0.2.7, serviceAccount: vm, labels: {app: vm}, ports: {http: 9000}, weight: 3}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: api}
spec:
  hosts: [api.example.com]
  resolution: DNS
  ports: [{number: 443, name: tls, protocol: TLS}]
",
        &pod("web-a", "vm", "", "10.1.0.1"),
    ]
    .concat();
    let (mesh, told) = mesh(&text);
    assert_eq!(told, [""; 0]);
    assert_eq!(endpoints(&mesh, "vm.example.com"), ["10.1.0.1:8000", "192.0.2.7:9000"]);
    let service = mesh.service("vm.example.com", "default").unwrap();
    assert_eq!(service.ports[0].endpoints[1].weight, 3);
    assert!(service.ports[0].endpoints[1].tunnel && !service.external);
    assert_eq!(endpoints(&mesh, "api.example.com"), ["api.example.com:443"]);
    assert!(mesh.service("api.example.com", "default").unwrap().external);
}

#[test]
fn references_that_lead_nowhere_are_named() {
    let text = [
        SERVICE,
        &pod("web-a", "web", "", "10.1.0.1"),
        "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: r}
spec:
  hosts: [web, nowhere]
  http:
  - route:
    - destination: {host: web, subset: v9}
      weight: 1
    - destination: {host: missing.example.com}
      weight: 1
    - destination: {host: web.default, port: {number: 80}}
      weight: 1
  - route:
    - destination: {host: web, port: {number: 81}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: d}
spec:
  host: web
  subsets:
  - {name: v1, labels: {version: web-a}}
  - {name: v2, labels: {version: none}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: e}
spec: {host: gone}
---
apiVersion: v1
kind: Service
metadata: {name: empty}
spec:
  selector: {app: nobody}
  ports: [{port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: named}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: wub}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: second}
spec:
  hosts: [web]
  http: [{route: [{destination: {host: web}}]}]
",
    ]
    .concat();
    let (_, told) = mesh(&text);
    let expected = [
        "DestinationRule default/d: spec.subsets[1].labels: subset `v2` selects no endpoint of `web.default.svc.cluster.local`",
        "DestinationRule default/e: spec.host: there is no service `gone.default.svc.cluster.local`",
        "Service default/empty: spec.selector: selects no workload",
        "Service default/named: spec.ports[0].targetPort: no container port has this name",
        "VirtualService default/r: spec.hosts[1]: there is no service `nowhere.default.svc.cluster.local`",
        "VirtualService default/r: spec.http[0].route[0].destination.subset: no DestinationRule for `web.default.svc.cluster.local` defines subset `v9`",
        "VirtualService default/r: spec.http[0].route[1].destination.host: there is no service `missing.example.com`",
        "VirtualService default/r: spec.http[0].route[2].destination.host: there is no service `web.default`",
        "(did you mean `web.default.svc.cluster.local`?)",
        "VirtualService default/r: spec.http[1].route[0].destination.port.number: service `web.default.svc.cluster.local` has no TCP port 81",
        "VirtualService default/second: spec.hosts[0]: host `web.default.svc.cluster.local` is already routed by VirtualService default/r",
    ];
    for line in expected {
        assert!(told.iter().any(|one| one.contains(line)), "{line}\nis not in\n{told:#?}");
    }
    assert_eq!(told.len(), expected.len() - 1, "{told:#?}");
    assert!(told.iter().all(|line| !line.contains("mesh.yaml:0:") && !line.contains("mesh.yaml:1:")), "{told:#?}");
}

#[test]
fn the_older_and_the_nearer_rule_wins() {
    let rule = |name: &str, namespace: &str, host: &str, subset: &str, more: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}, namespace: \
             {namespace}}}\nspec:\n  host: '{host}'\n  subsets: [{{name: {subset}}}]\n{more}"
        )
    };
    let text = [
        SERVICE.to_owned(),
        rule("own", "default", "web", "service", ""),
        rule("more", "default", "web", "second", ""),
        rule("wide", "default", "*.svc.cluster.local", "wide", ""),
        rule("client", "client", WEB, "client", ""),
        rule("root", "istio-system", WEB, "root", ""),
        rule("hidden", "hidden", "other.example.com", "hidden", "  exportTo: ['.']\n"),
    ]
    .concat();
    let (mesh, _) = mesh(&text);
    let subsets = |host: &str, client: &str, service: &str| -> Vec<String> {
        let policy = mesh.rules.policy(host, client, service, "istio-system");
        policy.iter().flat_map(|policy| &policy.subsets).map(|subset| subset.name.clone()).collect()
    };
    assert_eq!(subsets(WEB, "client", "default"), ["client"]);
    assert_eq!(subsets(WEB, "third", "default"), ["second", "service"].map(str::to_owned));
    assert_eq!(subsets("else.default.svc.cluster.local", "default", "default"), ["wide"]);
    assert_eq!(subsets(WEB, "third", "third"), ["root"]);
    assert_eq!(subsets("other.example.com", "third", "hidden"), [""; 0]);
    assert_eq!(subsets("other.example.com", "hidden", "hidden"), ["hidden"]);
}

#[test]
fn what_is_not_exported_is_not_seen() {
    let entry = |namespace: &str, export: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: e, namespace: {namespace}}}\n\
             spec: {{hosts: [x.example.com], exportTo: [{export}], ports: [{{number: 80, name: http}}]}}\n"
        )
    };
    let (mesh, _) = mesh(&[entry("a", "'.'"), entry("b", "'*'")].concat());
    let seen = |namespace: &str| mesh.service("x.example.com", namespace).map(|one| one.namespace.to_string());
    assert_eq!((seen("a").as_deref(), seen("b").as_deref(), seen("c").as_deref()), (Some("a"), Some("b"), Some("b")));
    assert_eq!(mesh.visible("a").count(), 1);
    assert_eq!(mesh.visible("c").count(), 1);
}
