//! What is told about files that are wrong, and that right ones are taken whole.
#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use crate::yaml;

fn decode_text(text: &str) -> Decoded {
    let mut all = Decoded::default();
    for document in yaml::documents(text) {
        let one = decode(document.tree.unwrap(), &"mesh.yaml".into());
        all.objects.extend(one.objects);
        all.broken.extend(one.broken);
        all.problems.extend(one.problems);
    }
    all
}

fn told(text: &str) -> Vec<String> {
    decode_text(text).problems.iter().map(|problem| format!("{:?} {problem}", problem.severity)).collect()
}

const REVIEWS: &str = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: reviews
spec:
  hosts: [reviews]
  http:
  - match:
    - headers:
        end-user: {exact: jason}
    route:
    - destination: {host: reviews, subset: v2}
  - route:
    - destination: {host: reviews, subset: v1}
      weight: 90
    - destination: {host: reviews, subset: v3}
      weight: 10
";

#[test]
fn a_virtual_service_is_read() {
    let decoded = decode_text(REVIEWS);
    assert!(decoded.problems.is_empty(), "{:?}", decoded.problems);
    let object = &decoded.objects[0];
    assert_eq!(object.key.to_string(), "VirtualService default/reviews");
    let Body::VirtualService(service) = &object.body else { panic!("{object:?}") };
    assert_eq!(service.http[0].matches[0].headers["end-user"], fields::StringMatch::Exact("jason".to_owned()));
    assert_eq!(service.http[1].route.iter().map(|target| target.weight).collect::<Vec<_>>(), [90, 10]);
}

#[test]
fn mistakes_name_file_line_and_path() {
    let object = "VirtualService default/reviews";
    let cases: &[(&str, &str, &str)] = &[
        (
            "weight: 90",
            "weight: ninety",
            "mesh.yaml:15: {}: spec.http[1].route[0].weight: invalid type: string \"ninety\", expected u32",
        ),
        ("weight: 90", "wieght: 90", "mesh.yaml:15: {}: spec.http[1].route[0].wieght: unknown field"),
        (
            "weight: 90",
            "weight: -1",
            "mesh.yaml:15: {}: spec.http[1].route[0].weight: invalid value: integer `-1`, expected u32",
        ),
        ("hosts: [reviews]", "hosts: [re views]", "mesh.yaml:6: {}: spec.hosts[0]: `re views` is no host name"),
        ("hosts: [reviews]", "hosts: []", "mesh.yaml:6: {}: spec.hosts: at least one host is needed"),
        (
            "{exact: jason}",
            "{exact: a, prefix: b}",
            "mesh.yaml:10: {}: spec.http[0].match[0].headers.end-user: only one of exact, prefix and regex may be given",
        ),
        (
            "{exact: jason}",
            "{exakt: jason}",
            "mesh.yaml:10: {}: spec.http[0].match[0].headers.end-user.exakt: unknown field",
        ),
        (
            "headers:",
            "uri: {regex: '('}\n      headers:",
            "mesh.yaml:9: {}: spec.http[0].match[0].uri.regex: `(` is no regular expression: unclosed group",
        ),
        (
            "{exact: jason}",
            "{exact: jason}\n      method: {}",
            "mesh.yaml:11: {}: spec.http[0].match[0].method: one of exact, prefix and regex is needed",
        ),
    ];
    for (old, new, expected) in cases {
        assert!(REVIEWS.contains(old), "{old}");
        let text = REVIEWS.replacen(old, new, 1);
        let decoded = decode_text(&text);
        let told: Vec<_> = decoded.problems.iter().map(ToString::to_string).collect();
        assert!(told.contains(&expected.replacen("{}", object, 1)), "{new}: {told:#?}");
        assert!(decoded.objects.is_empty(), "{new}: a broken object is not used");
        assert_eq!(decoded.broken.len(), 1);
    }
}

#[test]
fn what_comes_later_is_named_and_the_rest_is_used() {
    let text =
        REVIEWS.replacen("  - route:", "  - fault: {abort: {httpStatus: 500}}\n    mirror: {host: x}\n    route:", 1);
    let decoded = decode_text(&text);
    let told: Vec<_> = decoded.problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "mesh.yaml:13: VirtualService default/reviews: spec.http[1].fault: is not supported yet, ignored",
            "mesh.yaml:14: VirtualService default/reviews: spec.http[1].mirror: is not supported yet, ignored",
        ]
    );
    assert!(decoded.problems.iter().all(|problem| problem.severity == Severity::Warning));
    assert_eq!(decoded.objects.len(), 1);

    let rule = "apiVersion: networking.istio.io/v1beta1\nkind: DestinationRule\nmetadata: {name: r}\nspec:\n  host: r\n  trafficPolicy:\n    tls: {mode: SIMPLE}\n    portLevelSettings:\n    - port: {number: 1}\n      tls: {mode: SIMPLE}\n      tlz: 1\n";
    assert_eq!(
        told_of(rule),
        [
            "Warning mesh.yaml:7: DestinationRule default/r: spec.trafficPolicy.tls: is not supported yet, ignored",
            "Warning mesh.yaml:10: DestinationRule default/r: spec.trafficPolicy.portLevelSettings[0].tls: is not supported yet, ignored",
            "Error mesh.yaml:11: DestinationRule default/r: spec.trafficPolicy.portLevelSettings[0].tlz: unknown field",
        ]
    );
}

fn told_of(text: &str) -> Vec<String> {
    let mut told = told(text);
    told.sort_by_key(|line| line.split(':').nth(1).and_then(|line| line.parse::<u32>().ok()));
    told
}

#[test]
fn kinds_are_told_apart() {
    assert_eq!(told("apiVersion: v1\nkind: Servise\n"), ["Error mesh.yaml:2: kind: unknown kind `Servise` of `v1`"]);
    assert_eq!(told("kind: Service\n"), ["Error mesh.yaml:1: apiVersion and kind are needed"]);
    assert_eq!(told("- a\n- b\n"), ["Error mesh.yaml:1: a document must be an object with apiVersion and kind"]);
    let gateway = told("apiVersion: networking.istio.io/v1\nkind: Gateway\n");
    assert_eq!(gateway, ["Warning mesh.yaml:2: kind: kind `Gateway` is not supported yet, ignored"]);
    for quiet in ["apiVersion: v1\nkind: Namespace\n", "apiVersion: apps/v1\nkind: Deployment\nspec: {x: 1}\n"] {
        assert!(told(quiet).iter().all(|line| line.starts_with("Info")), "{quiet}");
    }
    assert_eq!(
        told("apiVersion: v1\nkind: Service\nmetadata: {name: A_b, lables: {}}\nspec: {ports: [{port: 1}]}\n"),
        [
            "Error mesh.yaml:3: Service default/A_b: metadata.lables: unknown field",
            "Error mesh.yaml:3: Service default/A_b: metadata.name: `A_b` is no name of lowercase letters, digits, `-` and `.`",
        ]
    );
}

#[test]
fn kubernetes_objects_as_kubectl_prints_them_are_taken() {
    let text = r#"
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Service
  metadata:
    name: web
    namespace: shop
    uid: 8b5e
    resourceVersion: "12"
    creationTimestamp: "2026-01-01T00:00:00Z"
    labels: {app: web}
  spec:
    clusterIP: 10.96.0.10
    clusterIPs: [10.96.0.10]
    internalTrafficPolicy: Cluster
    ipFamilies: [IPv4]
    ipFamilyPolicy: SingleStack
    ports: [{name: http, port: 80, protocol: TCP, targetPort: web}]
    selector: {app: web}
    sessionAffinity: None
    type: ClusterIP
  status: {loadBalancer: {}}
- apiVersion: v1
  kind: Pod
  metadata:
    name: web-5d-1
    namespace: shop
    labels: {app: web, pod-template-hash: 5d}
    annotations: {ambient.istio.io/redirection: enabled}
    ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web-5d, uid: x, controller: true}]
  spec:
    nodeName: n1
    serviceAccountName: web
    containers:
    - name: web
      image: nginx
      ports: [{name: web, containerPort: 8080, protocol: TCP}]
    volumes: [{name: x, emptyDir: {}}]
  status:
    phase: Running
    hostIP: 192.0.2.1
    podIP: 10.1.0.5
    podIPs: [{ip: 10.1.0.5}, {ip: "fd00::5"}]
    conditions: [{type: Ready, status: "True", lastTransitionTime: null}]
- apiVersion: discovery.k8s.io/v1
  kind: EndpointSlice
  metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
  addressType: IPv4
  endpoints:
  - addresses: [10.1.0.5]
    conditions: {ready: true, serving: true, terminating: false}
    nodeName: n1
    targetRef: {kind: Pod, name: web-5d-1, namespace: shop, uid: x}
  ports: [{name: http, port: 8080, protocol: TCP}]
"#;
    let decoded = decode_text(text);
    let errors: Vec<_> = decoded.problems.iter().filter(|problem| problem.severity == Severity::Error).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    let keys: Vec<_> = decoded.objects.iter().map(|object| object.key.to_string()).collect();
    assert_eq!(keys, ["Service shop/web", "Pod shop/web-5d-1", "EndpointSlice shop/web-1"]);
    let Body::Pod(pod) = &decoded.objects[1].body else { panic!() };
    assert_eq!(pod.named_port("web"), Some(8080));
    assert_eq!(pod.addresses().len(), 2);
    assert!(pod.ready() && pod.alive());
}

#[test]
fn values_out_of_range_are_refused() {
    let service =
        |ports: &str| format!("apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec:\n  ports: {ports}\n");
    for (ports, expected) in [
        ("[{port: 0}]", "0 is no port number"),
        ("[{port: 70000}]", "70000 is no port number"),
        ("[{port: 1, targetPort: 70000}]", "a port number from 1 to 65535 or a port's name"),
        ("[{port: 1}, {port: 2, name: b}]", "every port needs a name"),
        ("[{port: 1, name: a}, {port: 1, name: b}]", "port 1 stands twice"),
        ("[]", "at least one port"),
    ] {
        let told = told(&service(ports));
        assert!(told.iter().any(|line| line.contains(expected)), "{ports}: {told:?}");
    }
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a}\naddressType: IPv4\nendpoints: [{addresses: ['::1']}]\n";
    assert!(told(slice)[0].contains("endpoints[0].addresses[0]: `::1` is no IPv4 address"));
    let entry = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a}\nspec:\n  hosts: ['*']\n  addresses: [10.0.0.0/33]\n  ports: [{number: 80, name: http, protocol: HTTP}]\n  resolution: STATIC\n  endpoints: [{address: example.com}]\n";
    assert_eq!(told(entry).len(), 3, "{:?}", told(entry));
}

#[test]
fn peer_authentication_is_read_and_its_mistakes_are_named() {
    let rule = |spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1beta1\nkind: PeerAuthentication\nmetadata: {{name: p}}\nspec:\n{spec}\n"
        )
    };
    let good = rule(
        "  selector: {matchLabels: {app: a}}\n  mtls: {mode: STRICT}\n  portLevelMtls:\n    8080: {mode: DISABLE}\n    '9090': {}",
    );
    let decoded = decode_text(&good);
    assert!(decoded.problems.is_empty(), "{:?}", decoded.problems);
    let Body::PeerAuthentication(spec) = &decoded.objects[0].body else { panic!() };
    use peer_authentication::Mode;
    assert_eq!(spec.mode(), Mode::Strict);
    assert_eq!(spec.ports().collect::<Vec<_>>(), [(8080, Mode::Disable), (9090, Mode::Unset)]);
    assert!(decode_text(&rule("  {}")).problems.is_empty(), "everything may be left out");
    let selector = "  selector: {matchLabels: {app: a}}\n";
    for (spec, expected) in [
        ("  mtls: {mode: strict}".to_owned(), "mesh.yaml:5: {}: spec.mtls.mode: unknown variant `strict`"),
        ("  mtls: {mod: STRICT}".to_owned(), "mesh.yaml:5: {}: spec.mtls.mod: unknown field"),
        (
            "  portLevelMtls:\n    80: {mode: STRICT}".to_owned(),
            "mesh.yaml:5: {}: spec.portLevelMtls: needs a selector",
        ),
        (
            "  selector: {matchLabels: {}}\n  portLevelMtls: {80: {mode: STRICT}}".to_owned(),
            "mesh.yaml:6: {}: spec.portLevelMtls: needs a selector",
        ),
        (
            format!("{selector}  portLevelMtls: {{}}"),
            "mesh.yaml:6: {}: spec.portLevelMtls: at least one port is needed",
        ),
        (
            format!("{selector}  portLevelMtls:\n    80: {{}}\n    70000: {{}}"),
            "mesh.yaml:8: {}: spec.portLevelMtls.70000: `70000` is no port number from 1 to 65535",
        ),
        (
            format!("{selector}  portLevelMtls:\n    http: {{}}"),
            "mesh.yaml:7: {}: spec.portLevelMtls.http: `http` is no port number",
        ),
        (
            "  selector: {matchLabels: {app: 'a*'}}".to_owned(),
            "mesh.yaml:5: {}: spec.selector.matchLabels.app: `app: a*` is no label",
        ),
        ("  selector: {labels: {app: a}}".to_owned(), "mesh.yaml:5: {}: spec.selector.labels: unknown field"),
    ] {
        let decoded = decode_text(&rule(&spec));
        let expected = expected.replacen("{}", "PeerAuthentication default/p", 1);
        let told: Vec<_> = decoded.problems.iter().map(ToString::to_string).collect();
        assert!(told.iter().any(|line| line.starts_with(&expected)), "{spec}: {told:#?}");
        assert!(decoded.objects.is_empty() && decoded.broken.len() == 1, "{spec}");
    }
}

const POLICY: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  action: ALLOW
  rules:
  - from:
    - source:
        principals: [cluster.local/ns/shop/sa/client]
        ipBlocks: [10.0.0.0/8]
    to:
    - operation: {ports: ['80']}
    when:
    - {key: source.namespace, notValues: [bank]}
";

#[test]
fn a_policy_with_every_field_is_read() {
    assert_eq!(told(POLICY), [""; 0]);
    assert_eq!(told(&POLICY.replace("/v1\n", "/v1beta1\n")), [""; 0]);
    let text = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: all, annotations: {istio.io/dry-run: 'true'}}
spec:
  rules:
  - from:
    - source: {principals: [a], notPrincipals: [b], requestPrincipals: [c], notRequestPrincipals: [d], namespaces: [e], notNamespaces: [f], ipBlocks: [10.0.0.1], notIpBlocks: ['fd00::/8'], remoteIpBlocks: [10.0.0.1], notRemoteIpBlocks: [10.0.0.2], trustDomains: [g], notTrustDomains: [h]}
    - source: {serviceAccounts: [a, b/c], notServiceAccounts: [d]}
    to:
    - operation: {hosts: [a], notHosts: [b], ports: ['1'], notPorts: ['65535'], methods: [GET], notMethods: [PUT], paths: [/a], notPaths: [/b]}
    when:
    - {key: 'request.headers[x]', values: [a], notValues: [b]}
    - {key: 'request.auth.claims[iss]', values: [a]}
    - {key: connection.sni, values: [a]}
status: {}
";
    let so = "asks for attributes of requests, which are not enforced yet: the rule allows nothing";
    assert_eq!(told(text), [format!("Warning mesh.yaml:6: AuthorizationPolicy default/all: spec.rules[0]: {so}")]);
}

#[test]
fn what_is_wrong_with_a_policy_is_named_and_never_ignored() {
    let rule = "spec.rules[0]";
    let cases: &[(&str, &str, u32, &str)] = &[
        ("principals:", "principal:", 10, "from[0].source.principal: unknown field"),
        (
            "[cluster.local/ns/shop/sa/client]",
            "[]",
            10,
            "from[0].source.principals: is empty: leave it out, or say what has to hold",
        ),
        ("[cluster.local/ns/shop/sa/client]", "['']", 10, "from[0].source.principals[0]: is empty"),
        (
            "10.0.0.0/8",
            "10.0.0.0/33",
            11,
            "from[0].source.ipBlocks[0]: `10.0.0.0/33` is no address and no range such as 10.0.0.0/8",
        ),
        (
            "{ports: ['80']}",
            "{ports: ['http']}",
            13,
            "to[0].operation.ports[0]: `http` is no port number from 1 to 65535",
        ),
        ("{ports: ['80']}", "{}", 13, "to[0].operation: needs at least one condition"),
        ("- operation: {ports: ['80']}", "- {}", 13, "to[0].operation: is needed"),
        ("source.namespace", "source.workload", 15, "when[0].key: there is no attribute `source.workload`"),
        (
            "ipBlocks: [10.0.0.0/8]",
            "serviceAccounts: [x]",
            11,
            "from[0].source.serviceAccounts: cannot stand beside principals or namespaces",
        ),
        (
            "principals: [cluster.local/ns/shop/sa/client]",
            "serviceAccounts: [a/b/c]",
            10,
            "from[0].source.serviceAccounts[0]: `a/b/c` is no service account: `NAME` or `NAMESPACE/NAME`",
        ),
        (
            "    to:\n    - operation: {ports: ['80']}\n",
            "    to: []\n",
            12,
            "to: is empty: leave it out, or say what has to hold",
        ),
    ];
    for (old, new, line, expected) in cases {
        assert!(POLICY.contains(old), "{old}");
        let decoded = decode_text(&POLICY.replacen(old, new, 1));
        let told: Vec<_> = decoded.problems.iter().map(ToString::to_string).collect();
        assert_eq!(told, [format!("mesh.yaml:{line}: AuthorizationPolicy default/web: {rule}.{expected}")], "{new}");
        assert_eq!((decoded.objects.len(), decoded.broken.len()), (0, 1), "{new}");
    }
    for (old, new, expected) in [
        ("ALLOW", "allow", "spec.action: unknown variant"),
        ("  action: ALLOW\n", "  action: CUSTOM\n", "spec.provider: CUSTOM needs the name of a provider"),
        ("  action: ALLOW\n", "  provider: {name: x}\n", "spec.provider: is only for action CUSTOM"),
        ("  action: ALLOW\n", "  targetRef: {kind: Service, name: web}\n", "spec.targetRef: stands beside a selector"),
        ("{app: web}", "{app: 'w*'}", "is no label"),
    ] {
        let decoded = decode_text(&POLICY.replacen(old, new, 1));
        let told: Vec<_> = decoded.problems.iter().map(ToString::to_string).collect();
        assert!(told.iter().any(|one| one.contains(expected)) && decoded.objects.is_empty(), "{new}: {told:?}");
    }
}

#[test]
fn what_of_a_policy_has_no_effect_is_told() {
    let selector = "  selector: {matchLabels: {app: web}}\n";
    for (old, new, expected) in [
        ("ALLOW", "AUDIT", "spec.action: AUDIT has no effect yet"),
        ("action: ALLOW", "action: CUSTOM\n  provider: {name: x}", "spec.action: CUSTOM is not enforced yet"),
        (
            selector,
            "  targetRefs: [{kind: Service, name: web}]\n",
            "spec.targetRefs: policies for gateways and services",
        ),
        ("cluster.local/ns/shop", "spiffe://cluster.local/ns/shop", "principals[0]: matches nobody"),
        (
            "cluster.local/ns/shop/sa/client",
            "cluster.local/ns/*/sa/client",
            "principals[0]: `*` stands for anything only",
        ),
        ("{ports: ['80']}", "{methods: [GET]}", "spec.rules[0]: asks for attributes of requests"),
    ] {
        assert!(POLICY.contains(old), "{old}");
        let decoded = decode_text(&POLICY.replacen(old, new, 1));
        let told: Vec<_> = decoded.problems.iter().map(ToString::to_string).collect();
        assert_eq!((told.len(), decoded.objects.len()), (1, 1), "{told:?}");
        assert!(told[0].contains(expected), "{told:?}");
    }
    let nothing =
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x}\nspec: {action: DENY}\n";
    assert!(told(nothing)[0].contains("DENY without rules denies nothing"), "{:?}", told(nothing));
}
