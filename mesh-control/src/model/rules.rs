//! VirtualServices and DestinationRules by the hosts they are for.
//!
//! In: objects. Out: [`Rules`] with the lookups that translation asks. Where several rules claim a host, the most specific
//! host wins, then the oldest object.

use std::collections::HashMap;
use std::sync::Arc;

use super::MeshOptions;
use super::visibility::Visibility;
use crate::config::destination_rule::{Subset, TrafficPolicy};
use crate::config::virtual_service::{VirtualService, for_mesh};
use crate::config::{Body, Key, Object};
use crate::problem::{Problem, Severity};
use crate::source::Objects;
use crate::yaml::FieldPath;

/// A VirtualService that applies inside of the mesh.
#[derive(Debug)]
pub struct VirtualRule {
    /// The object.
    pub object: Arc<Object>,
    /// Full hosts.
    pub hosts: Vec<Arc<str>>,
    /// Who sees it.
    pub visibility: Visibility,
}

impl VirtualRule {
    /// Its content.
    pub fn spec(&self) -> Option<&VirtualService> {
        match &self.object.body {
            Body::VirtualService(spec) => Some(spec),
            _ => None,
        }
    }
}

/// The DestinationRules of one namespace for one host, merged.
#[derive(Debug, Clone, PartialEq)]
pub struct DestinationPolicy {
    /// Policy of every subset.
    pub policy: TrafficPolicy,
    /// Subsets of all of them.
    pub subsets: Vec<Subset>,
    /// Who sees it.
    pub visibility: Visibility,
    /// The oldest of the objects.
    pub origin: Key,
}

/// Rules by host.
#[derive(Debug, Default)]
pub struct Rules {
    virtual_rules: Vec<Arc<VirtualRule>>,
    exact: HashMap<Arc<str>, Vec<Arc<VirtualRule>>>,
    /// Suffix after the `*`, longest first.
    wild: Vec<(Arc<str>, Arc<VirtualRule>)>,
    policies: HashMap<Arc<str>, NamespacePolicies>,
}

#[derive(Debug, Default)]
struct NamespacePolicies {
    exact: HashMap<Arc<str>, Arc<DestinationPolicy>>,
    wild: Vec<(Arc<str>, Arc<DestinationPolicy>)>,
}

impl Rules {
    /// DestinationRules that come out as they were in `before` stay the same in memory.
    pub(super) fn build(
        options: &MeshOptions,
        objects: &Objects,
        before: &Rules,
        problems: &mut Vec<Problem>,
    ) -> Rules {
        let is_rule = |object: &&Arc<Object>| matches!(object.body, Body::VirtualService(_) | Body::DestinationRule(_));
        let mut sorted: Vec<&Arc<Object>> = objects.values().filter(is_rule).collect();
        sorted.sort_by(|a, b| a.age().cmp(&b.age()));
        let mut rules = Rules::default();
        for object in sorted {
            match &object.body {
                Body::VirtualService(spec) if for_mesh(&spec.gateways) => {
                    rules.add_virtual(options, object, spec, problems)
                }
                Body::DestinationRule(_) => rules.add_policy(options, object, problems),
                _ => {}
            }
        }
        rules.wild.sort_by_key(|(suffix, _)| std::cmp::Reverse(suffix.len()));
        for (namespace, policies) in &mut rules.policies {
            policies.wild.sort_by_key(|(suffix, _)| std::cmp::Reverse(suffix.len()));
            let Some(before) = before.policies.get(namespace) else { continue };
            for (host, policy) in &mut policies.exact {
                keep(policy, before.exact.get(host));
            }
            for (suffix, policy) in &mut policies.wild {
                keep(policy, before.wild.iter().find(|(other, _)| other == suffix).map(|(_, policy)| policy));
            }
        }
        rules
    }

    fn add_virtual(
        &mut self,
        options: &MeshOptions,
        object: &Arc<Object>,
        spec: &VirtualService,
        problems: &mut Vec<Problem>,
    ) {
        let namespace = &object.key.namespace;
        let hosts = spec.hosts.iter().map(|host| options.full_host(host, namespace).into()).collect();
        let visibility = Visibility::parse(spec.export_to.iter().map(String::as_str), namespace);
        let rule = Arc::new(VirtualRule { object: object.clone(), hosts, visibility });
        for (index, host) in rule.hosts.iter().enumerate() {
            if let Some(suffix) = host.strip_prefix('*') {
                self.wild.push((suffix.into(), rule.clone()));
                continue;
            }
            let same = self.exact.entry(host.clone()).or_default();
            let overlap = same.iter().find(|other| other.visibility == rule.visibility);
            if let Some(first) = overlap {
                let why =
                    format!("host `{host}` is already routed by {}; this object has no effect on it", first.object.key);
                problems.push(object.problem(Severity::Warning, &FieldPath::of("spec.hosts").index(index), why));
            }
            same.push(rule.clone());
        }
        self.virtual_rules.push(rule);
    }

    fn add_policy(&mut self, options: &MeshOptions, object: &Arc<Object>, problems: &mut Vec<Problem>) {
        let Body::DestinationRule(spec) = &object.body else { return };
        let namespace = &object.key.namespace;
        let host: Arc<str> = options.full_host(&spec.host, namespace).into();
        let policies = self.policies.entry(namespace.clone()).or_default();
        let known = match host.strip_prefix('*') {
            Some(suffix) => policies.wild.iter_mut().find(|(other, _)| &**other == suffix).map(|(_, policy)| policy),
            None => policies.exact.get_mut(&host),
        };
        if let Some(first) = known {
            // As Istio merges them: subsets add up, a second policy has no effect.
            let merged = Arc::make_mut(first);
            if spec.traffic_policy != TrafficPolicy::default() {
                let why = format!(
                    "host `{host}` already has a policy of {}; only the subsets of this object count",
                    first_name(merged)
                );
                problems.push(object.problem(Severity::Warning, &FieldPath::of("spec.trafficPolicy"), why));
            }
            for (index, subset) in spec.subsets.iter().enumerate() {
                if merged.subsets.iter().any(|other| other.name == subset.name) {
                    let why = format!("subset `{}` of host `{host}` is already defined elsewhere", subset.name);
                    problems.push(object.problem(Severity::Warning, &FieldPath::of("spec.subsets").index(index), why));
                } else {
                    merged.subsets.push(subset.clone());
                }
            }
            return;
        }
        let policy = Arc::new(DestinationPolicy {
            policy: spec.traffic_policy.clone(),
            subsets: spec.subsets.clone(),
            visibility: Visibility::parse(spec.export_to.iter().map(String::as_str), namespace),
            origin: object.key.clone(),
        });
        match host.strip_prefix('*') {
            Some(suffix) => policies.wild.push((suffix.into(), policy)),
            None => {
                policies.exact.insert(host, policy);
            }
        }
    }

    /// Every VirtualService of the mesh, oldest first.
    pub fn virtual_rules(&self) -> &[Arc<VirtualRule>] {
        &self.virtual_rules
    }

    /// Every DestinationRule of the mesh, merged: its namespace, its host (`*` with a suffix for patterns) and itself.
    pub fn policies(&self) -> impl Iterator<Item = (&Arc<str>, String, &Arc<DestinationPolicy>)> {
        self.policies.iter().flat_map(|(namespace, policies)| {
            let exact = policies.exact.iter().map(|(host, policy)| (host.to_string(), policy));
            let wild = policies.wild.iter().map(|(suffix, policy)| (format!("*{suffix}"), policy));
            exact.chain(wild).map(move |(host, policy)| (namespace, host, policy))
        })
    }

    /// The VirtualService that routes a host for clients of a namespace.
    pub fn virtual_rule(&self, host: &str, namespace: &str) -> Option<&Arc<VirtualRule>> {
        let exact = self.exact.get(host).into_iter().flatten();
        let wild = self.wild.iter().filter(|(suffix, _)| host.ends_with(&**suffix)).map(|(_, rule)| rule);
        exact.chain(wild).find(|rule| rule.visibility.includes(namespace))
    }

    /// The DestinationRule for a host: the client's namespace, then the service's, then the root.
    pub fn policy(&self, host: &str, client: &str, service: &str, root: &str) -> Option<&Arc<DestinationPolicy>> {
        self.policy_in(host, client).or_else(|| {
            [service, root]
                .into_iter()
                .filter_map(|namespace| self.policy_in(host, namespace))
                .find(|policy| policy.visibility.includes(client))
        })
    }

    fn policy_in(&self, host: &str, namespace: &str) -> Option<&Arc<DestinationPolicy>> {
        let policies = self.policies.get(namespace)?;
        policies
            .exact
            .get(host)
            .or_else(|| policies.wild.iter().find(|(suffix, _)| host.ends_with(&**suffix)).map(|(_, policy)| policy))
    }
}

fn keep(policy: &mut Arc<DestinationPolicy>, former: Option<&Arc<DestinationPolicy>>) {
    if let Some(former) = former.filter(|former| *former == policy) {
        *policy = former.clone();
    }
}

fn first_name(policy: &DestinationPolicy) -> String {
    policy.origin.to_string()
}
