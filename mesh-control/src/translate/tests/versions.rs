//! Versions of one mesh, each made of the one before: every one is what it would be by itself.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;

use mesh_proto::{security, workload};
use proptest::prelude::*;

use super::*;
use crate::config::Object;
use crate::model::Builder;
use crate::source::Objects;

const SLICE: &str = "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web, labels: \
                     {kubernetes.io/service-name: web}}\naddressType: IPv4\nports: [{name: tcp, port: 9000, protocol: \
                     TCP}]\nendpoints:\n";

/// An object of a group, as one of several, or none.
fn variants() -> Vec<Vec<String>> {
    let rule = |kind: &str, name: &str, namespace: &str, spec: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
        )
    };
    let peers = |name: &str, namespace: &str, spec: &str| rule("PeerAuthentication", name, namespace, spec);
    let policy = |name: &str, namespace: &str, spec: &str| rule("AuthorizationPolicy", name, namespace, spec);
    let entry = |name: &str, labels: &str, address: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: {name}, annotations: \
             {{mesh.io/node: n2, ambient.istio.io/redirection: enabled}}}}\nspec: {{address: {address}, labels: {{app: \
             {labels}}}}}\n"
        )
    };
    vec![
        vec![
            pod("one", "web", "", "10.1.0.1"),
            pod("one", "api", "", "10.1.0.1"),
            pod("one", "web", "", "10.1.0.7"),
            pod("one", "web", "", "10.1.0.1").replace("redirection: enabled", "redirection: disabled"),
        ],
        vec![pod("two", "web", "", "10.1.0.2"), pod("two", "api", "", "10.1.0.1")],
        vec![entry("vm", "web", "10.1.0.3"), entry("vm", "api", "10.1.0.1"), entry("one", "web", "10.1.0.4")],
        vec![
            service("web", "10.96.0.1", "[{name: tcp, port: 80, targetPort: 9000}]"),
            service("web", "10.96.0.1", "[{name: http, port: 80}, {name: tcp, port: 81}]"),
            service("web", "None", "[{name: tcp, port: 80}]"),
            service("web", "10.96.0.2", "[{name: x, port: 80}]"),
            service("web", "10.96.0.1", "[{name: tcp, port: 80}]")
                .replace("{name: web}", "{name: web, annotations: {networking.istio.io/exportTo: '.'}}"),
        ],
        vec![
            service("api", "10.96.0.2", "[{name: http, port: 80}]"),
            service("api", "10.96.0.3", "[{name: tcp, port: 80}]"),
        ],
        vec![
            format!("{SLICE}- {{addresses: [10.1.0.1], targetRef: {{kind: Pod, name: one}}}}\n"),
            format!(
                "{SLICE}- {{addresses: [10.1.0.1], targetRef: {{kind: Pod, name: one}}}}\n- {{addresses: [10.1.0.2]}}\n"
            ),
            format!("{SLICE}- {{addresses: [192.0.2.1]}}\n"),
        ],
        vec![format!("{SLICE}- {{addresses: [10.1.0.9]}}\n").replace("{name: web, ", "{name: web-more, ")],
        vec![
            istio(
                "ServiceEntry",
                "out",
                "  hosts: [out.example.com, also.example.com]\n  resolution: STATIC\n  location: MESH_INTERNAL\n  ports: \
                 [{number: 80, name: tcp}]\n  endpoints: [{address: 10.1.0.1}]",
            ),
            istio(
                "ServiceEntry",
                "out",
                "  hosts: [out.example.com]\n  resolution: DNS\n  ports: [{number: 80, name: http}]",
            ),
            istio(
                "ServiceEntry",
                "out",
                "  hosts: [web.default.svc.cluster.local, out.example.com]\n  resolution: STATIC\n  addresses: [192.0.2.0/24, 10.96.0.1]\n  \
                 ports: [{number: 80, name: tcp}]\n  workloadSelector: {labels: {app: web}}",
            ),
        ],
        vec![
            istio("DestinationRule", "web", "  host: web\n  subsets: [{name: v, labels: {version: one}}]"),
            istio("DestinationRule", "web", "  host: web\n  trafficPolicy: {loadBalancer: {simple: RANDOM}}"),
            istio(
                "DestinationRule",
                "web",
                "  host: '*.example.com'\n  trafficPolicy: {connectionPool: {tcp: {maxConnections: 3}}}",
            ),
            istio(
                "DestinationRule",
                "web",
                "  host: web\n  trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}}",
            ),
        ],
        vec![
            istio("DestinationRule", "more", "  host: web\n  subsets: [{name: w, labels: {version: two}}]"),
            istio("DestinationRule", "more", "  host: api\n  exportTo: ['.']"),
        ],
        vec![
            istio("VirtualService", "web", "  hosts: [web]\n  http: [{route: [{destination: {host: api}}]}]"),
            istio("VirtualService", "web", "  hosts: [web]\n  tcp: [{route: [{destination: {host: api}}]}]"),
            istio(
                "VirtualService",
                "web",
                "  hosts: [web]\n  tcp: [{match: [{sourceLabels: {app: web}}], route: [{destination: {host: api, port: \
                 {number: 80}}}]}]",
            ),
            istio(
                "VirtualService",
                "web",
                "  hosts: [web, nobody.example.com]\n  http: [{route: [{destination: {host: web, subset: v}}]}]",
            ),
        ],
        vec![
            peers("mesh", "istio-system", "{mtls: {mode: STRICT}}"),
            peers("mesh", "istio-system", "{mtls: {mode: DISABLE}}"),
        ],
        vec![
            peers(
                "web",
                "default",
                "{selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: {'9000': {mode: DISABLE}}}",
            ),
            peers("web", "default", "{selector: {matchLabels: {app: api}}, mtls: {mode: PERMISSIVE}}"),
            peers("web", "default", "{mtls: {mode: STRICT}}"),
        ],
        vec![
            policy("web", "default", "{selector: {matchLabels: {app: web}}, action: DENY, rules: [{}]}"),
            policy(
                "web",
                "default",
                "{selector: {matchLabels: {app: web, version: one}}, rules: [{from: [{source: {namespaces: [a]}}]}]}",
            ),
            policy("web", "default", "{rules: []}"),
        ],
        vec![
            policy("root", "istio-system", "{selector: {matchLabels: {version: one}}, action: DENY, rules: [{}]}"),
            policy("root", "istio-system", "{selector: {matchLabels: {version: nobody}}, rules: [{}]}"),
        ],
        ["a", "b"].map(|zone| {
            format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: n1, labels: {{topology.kubernetes.io/zone: {zone}}}}}\n")
        }).to_vec(),
    ]
}

/// What a resource says, whatever order its maps come in.
fn said(kind: Kind, body: &[u8]) -> String {
    fn sorted<T: Message + Default + std::fmt::Debug>(body: &[u8]) -> String {
        let text = format!("{:#?}", T::decode(body).unwrap());
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        lines.join("\n")
    }
    match kind {
        Kind::Cluster => sorted::<Cluster>(body),
        Kind::Endpoint => sorted::<ClusterLoadAssignment>(body),
        Kind::Listener => sorted::<Listener>(body),
        Kind::Route => sorted::<RouteConfiguration>(body),
        Kind::Authorization => sorted::<security::Authorization>(body),
        Kind::Address => sorted::<workload::Address>(body),
    }
}

type Said = BTreeMap<(String, Kind, String), (u64, Vec<String>, String)>;

/// Everything that anybody is told.
fn everything(translation: &Translation) -> Said {
    let mut all = Said::new();
    let mut add = |who: &str, kind: Kind, offer: &Offer| {
        for (name, one) in offer.iter() {
            let key = (who.to_owned(), kind, name.to_string());
            all.insert(key, (one.version, one.aliases.clone(), said(kind, &one.body.value)));
        }
    };
    for kind in Kind::ALL {
        add("the nodes", kind, &translation.of_nodes(kind));
        for workload in translation.mesh().workloads.all() {
            let who = format!("{}/{}", workload.namespace, workload.name);
            add(&who, kind, &translation.resources(workload, kind));
        }
    }
    all
}

fn object(text: &str) -> Object {
    let (_, object) = objects(text).pop_first().unwrap();
    Arc::unwrap_or_clone(object)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Objects come, change, go, and are read again as they were. `asked`: what is told is asked for, as by a stream.
    #[test]
    fn every_version_is_what_it_would_be_by_itself(
        steps in proptest::collection::vec((proptest::sample::select((0..16).collect::<Vec<usize>>()), 0_usize..6, any::<bool>()), 1..30),
    ) {
        let variants = variants();
        let (mut builder, checked) = (Builder::default(), Checked::default());
        let client = pod("client", "client", "", "10.1.9.9");
        let other = client.replace("  name: client\n", "  name: client\n  namespace: other\n");
        let mut present: Objects = [client, other].iter().flat_map(|text| objects(text)).collect();
        let mut held: Vec<Option<crate::config::Key>> = vec![None; variants.len()];
        let mut former: Option<Translation> = None;
        for (group, variant, asked) in steps {
            if let Some(key) = held[group].take() {
                present.remove(&key);
            }
            if let Some(text) = variants[group].get(variant) {
                let object = object(text);
                held[group] = Some(object.key.clone());
                // Of two of one name the one that was there first stays.
                present.entry(object.key.clone()).or_insert_with(|| Arc::new(object));
            }
            let (mesh, mut problems) = builder.build(&options(), &present);
            let (alone, mut expected) = Mesh::build(options(), &present);
            problems.sort();
            expected.sort();
            prop_assert_eq!(problems, expected);
            prop_assert_eq!(&mesh.directory, &alone.directory);
            prop_assert_eq!(&mesh.services, &alone.services);
            prop_assert_eq!(&mesh.inline, &alone.inline);
            let next = |mesh| former.as_ref().map_or_else(|| Translation::new(Arc::clone(&mesh), checked.clone()), |former| Translation::after(former, mesh.clone()));
            let mut translation = next(Arc::new(mesh));
            translation.prepare();
            if asked {
                let alone = Translation::new(Arc::new(alone), Checked::default());
                let (told, expected) = (everything(&translation), everything(&alone));
                prop_assert_eq!(told.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
                for (key, one) in &told {
                    prop_assert_eq!(one, &expected[key], "{:?}", key);
                }
            }
            former = Some(translation);
        }
    }
}

/// One service's endpoints change: of what is told, and of what it is made of, all else is the same in memory.
#[test]
fn what_is_not_changed_is_not_made_again() {
    let mut builder = Builder::default();
    let both = |variant: usize| {
        let groups = variants();
        [&groups[0][0], &groups[1][0], &groups[3][0], &groups[4][1], &groups[5][variant]].map(String::clone).concat()
    };
    let mut present = objects(&both(0));
    let (mesh, _) = builder.build(&options(), &present);
    let mut before = Translation::new(Arc::new(mesh), Checked::default());
    before.prepare();
    let slice = objects(&both(1)).into_iter().find(|(key, _)| key.kind == crate::config::Kind::EndpointSlice).unwrap();
    present.insert(slice.0, slice.1);
    let (mesh, _) = builder.build(&options(), &present);
    let mut after = Translation::after(&before, Arc::new(mesh));
    after.prepare();
    let (old, new) = (before.mesh(), after.mesh());
    assert!(Arc::ptr_eq(&old.workloads, &new.workloads) && Arc::ptr_eq(&old.rules, &new.rules));
    assert!(Arc::ptr_eq(&old.directory, &new.directory));
    let service = |mesh: &Mesh, name: &str| {
        mesh.service(&format!("{name}.default.svc.cluster.local"), "default").unwrap().clone()
    };
    assert!(Arc::ptr_eq(&service(old, "api"), &service(new, "api")));
    assert!(!Arc::ptr_eq(&service(old, "web"), &service(new, "web")));
    let workload = new.workloads.get("default", "one").unwrap();
    for kind in [Kind::Cluster, Kind::Endpoint, Kind::Listener] {
        let (old, new) = (before.resources(workload, kind), after.resources(workload, kind));
        let mut touched = new.differences(&old).map(|name| &**name).collect::<Vec<_>>();
        touched.dedup();
        match kind {
            // Who may answer there is part of the cluster.
            Kind::Cluster | Kind::Endpoint => {
                assert!(touched.iter().all(|name| name.contains("web")), "{kind:?}: {touched:?}");
            }
            _ => assert!(Arc::ptr_eq(&old.shared, &new.shared), "{touched:?}"),
        }
        let kept =
            new.shared.iter().filter(|(name, one)| old.shared.get(*name).is_some_and(|old| Arc::ptr_eq(old, one)));
        assert!(kept.count() >= new.shared.len().saturating_sub(1), "{kind:?}");
    }
}
