//! Precedence against a second, naive implementation; warnings about objects without effect.

use std::fmt::Write;

use proptest::prelude::*;

use super::*;
use crate::model::tests::{mesh, pod};

/// One object as a test thinks of it.
#[derive(Debug, Clone)]
struct Rule {
    namespace: &'static str,
    selector: Option<&'static str>,
    mode: &'static str,
    ports: Vec<(u16, &'static str)>,
    /// Seconds of its creation, if known.
    created: Option<u32>,
}

fn yaml(rules: &[Rule]) -> String {
    let mut text = String::new();
    for (index, rule) in rules.iter().enumerate() {
        let created =
            rule.created.map(|s| format!(", creationTimestamp: '2026-01-01T00:00:{s:02}Z'")).unwrap_or_default();
        let _ = write!(
            text,
            "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: r{index}, namespace: \
             {}{created}}}\nspec:\n  mtls: {{mode: {}}}\n",
            rule.namespace, rule.mode
        );
        if let Some(app) = rule.selector {
            let _ = writeln!(text, "  selector: {{matchLabels: {{app: {app}}}}}");
        }
        if !rule.ports.is_empty() {
            text.push_str("  portLevelMtls:\n");
            for (port, mode) in &rule.ports {
                let _ = writeln!(text, "    {port}: {{mode: {mode}}}");
            }
        }
    }
    text
}

/// What a person would do: look at each level in turn, take its oldest object, and go one level up on UNSET.
fn naive(rules: &[Rule], namespace: &str, app: &str, port: u16) -> MtlsMode {
    let oldest = |fits: &dyn Fn(&Rule) -> bool| {
        let mut fitting: Vec<(usize, &Rule)> = rules.iter().enumerate().filter(|(_, rule)| fits(rule)).collect();
        // Names are r0, r1, …: by the index while there are fewer than ten.
        fitting.sort_by_key(|(index, rule)| (rule.created.unwrap_or(u32::MAX), *index));
        fitting.first().map(|(_, rule)| *rule)
    };
    let workload = (namespace != "istio-system")
        .then(|| oldest(&|rule: &Rule| rule.namespace == namespace && rule.selector == Some(app)))
        .flatten();
    let space = oldest(&|rule: &Rule| rule.namespace == namespace && rule.selector.is_none());
    let mesh = oldest(&|rule: &Rule| rule.namespace == "istio-system" && rule.selector.is_none());
    let on_port =
        workload.and_then(|rule| rule.ports.iter().find(|(number, _)| *number == port)).map(|(_, mode)| *mode);
    let levels = [on_port, workload.map(|rule| rule.mode), space.map(|rule| rule.mode), mesh.map(|rule| rule.mode)];
    match levels.into_iter().flatten().find(|mode| *mode != "UNSET") {
        Some("STRICT") => MtlsMode::Strict,
        Some("DISABLE") => MtlsMode::Disable,
        _ => MtlsMode::Permissive,
    }
}

fn some_rule() -> impl Strategy<Value = Rule> {
    let mode = || prop_oneof![Just("UNSET"), Just("DISABLE"), Just("PERMISSIVE"), Just("STRICT")];
    (
        prop_oneof![Just("istio-system"), Just("a"), Just("b")],
        proptest::option::of(prop_oneof![Just("x"), Just("y")]),
        mode(),
        proptest::collection::btree_map(prop_oneof![Just(80u16), Just(81)], mode(), 0..2),
        proptest::option::of(0u32..4),
    )
        .prop_map(|(namespace, selector, mode, ports, created)| Rule {
            namespace,
            selector,
            mode,
            ports: if selector.is_some() { ports.into_iter().collect() } else { Vec::new() },
            created,
        })
}

proptest! {
    #[test]
    fn the_nearest_and_oldest_rule_counts(rules in proptest::collection::vec(some_rule(), 0..9)) {
        let (mesh, _) = mesh(&yaml(&rules));
        for namespace in ["istio-system", "a", "b", "c"] {
            for app in ["x", "y", "z"] {
                let labels = Labels::from([("app".to_owned(), app.to_owned())]);
                let mtls = mesh.authentication.of(namespace, &labels);
                for port in [80, 81, 82] {
                    prop_assert_eq!(mtls.of_port(port), naive(&rules, namespace, app, port), "{} {} {}", namespace, app, port);
                }
            }
        }
    }
}

#[test]
fn what_has_no_effect_is_told() {
    let rule = |namespace, selector, ports: &[(u16, &'static str)], created| Rule {
        namespace,
        selector,
        mode: "STRICT",
        ports: ports.to_vec(),
        created: Some(created),
    };
    let rules = [
        rule("default", Some("web"), &[(8080, "DISABLE"), (99, "DISABLE")], 1),
        rule("default", Some("web"), &[], 2),
        rule("default", Some("nobody"), &[], 1),
        rule("istio-system", Some("web"), &[], 1),
        rule("istio-system", None, &[], 1),
        rule("istio-system", None, &[], 2),
        rule("default", None, &[], 2),
        rule("default", None, &[], 1),
    ];
    let (_, told) = mesh(&[yaml(&rules), pod("web-a", "web", "", "10.1.0.1")].concat());
    let expected = [
        "mesh.yaml:10: PeerAuthentication default/r0: spec.portLevelMtls.99: no service and no container of `web-a` declares port 99",
        "mesh.yaml:17: PeerAuthentication default/r1: spec.selector.matchLabels: has no effect: PeerAuthentication default/r0 is older and selects the same workloads",
        "mesh.yaml:24: PeerAuthentication default/r2: spec.selector.matchLabels: selects no workload of this namespace",
        "mesh.yaml:31: PeerAuthentication istio-system/r3: spec.selector: has no effect: what stands in `istio-system` is for the whole mesh",
        "PeerAuthentication istio-system/r5: metadata.name: has no effect: PeerAuthentication istio-system/r4 is older",
        "PeerAuthentication default/r6: metadata.name: has no effect: PeerAuthentication default/r7 is older",
    ];
    for line in expected {
        assert!(told.iter().any(|one| one.contains(line)), "{line}\nis not in\n{told:#?}");
    }
    assert_eq!(told.len(), expected.len(), "{told:#?}");
}
