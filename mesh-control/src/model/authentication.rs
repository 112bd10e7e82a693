//! Which client a workload takes on which port: PeerAuthentication with Istio's precedence.
//!
//! In: objects. Out: [`Mtls`] of a workload. A selector goes before the namespace, that before the mesh (the root
//! namespace); UNSET takes what the level above says, PERMISSIVE above all. Of several on one level the oldest counts.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::MeshOptions;
use super::service::selects;
use crate::config::peer_authentication::{Mode, PeerAuthentication};
use crate::config::{Body, Labels, Object};
use crate::problem::{Problem, Severity};
use crate::source::Objects;
use crate::yaml::FieldPath;

/// How a port is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MtlsMode {
    /// In plaintext, also by clients that could do better.
    Disable,
    /// In plaintext or by mutual TLS.
    Permissive,
    /// By mutual TLS.
    Strict,
}

/// How a workload's ports are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mtls {
    /// Every other port.
    pub default: MtlsMode,
    /// Ports with a mode of their own, which may be the same.
    pub ports: BTreeMap<u16, MtlsMode>,
}

impl Mtls {
    /// How a port is reached.
    pub fn of_port(&self, port: u16) -> MtlsMode {
        self.ports.get(&port).copied().unwrap_or(self.default)
    }
}

/// Every PeerAuthentication that may count, oldest first.
#[derive(Debug, Default)]
pub struct Authentication {
    mesh: Option<Arc<Object>>,
    namespaces: HashMap<Arc<str>, Arc<Object>>,
    workloads: HashMap<Arc<str>, Vec<Arc<Object>>>,
}

impl Authentication {
    pub(super) fn build(options: &MeshOptions, objects: &Objects, problems: &mut Vec<Problem>) -> Authentication {
        let mut sorted: Vec<(&Arc<Object>, &PeerAuthentication)> =
            objects.values().filter_map(|object| Some((object, spec(object)?))).collect();
        sorted.sort_by(|(a, _), (b, _)| a.age().cmp(&b.age()));
        let mut all = Authentication::default();
        for (object, spec) in sorted {
            let namespace = &object.key.namespace;
            let root = **namespace == *options.root_namespace;
            match spec.labels() {
                Some(_) if root => {
                    let why = format!("has no effect: what stands in `{namespace}` is for the whole mesh");
                    problems.push(object.problem(Severity::Warning, &FieldPath::of("spec.selector"), why));
                }
                Some(_) => all.workloads.entry(namespace.clone()).or_default().push(object.clone()),
                None => {
                    let older = if root { all.mesh.as_ref() } else { all.namespaces.get(namespace) };
                    if let Some(older) = older {
                        let why = format!("has no effect: {} is older", older.key);
                        problems.push(object.problem(Severity::Warning, &FieldPath::of("metadata.name"), why));
                    } else if root {
                        all.mesh = Some(object.clone());
                    } else {
                        all.namespaces.insert(namespace.clone(), object.clone());
                    }
                }
            }
        }
        all
    }

    /// Whether there is any object.
    pub fn is_used(&self) -> bool {
        self.mesh.is_some() || !self.namespaces.is_empty() || !self.workloads.is_empty()
    }

    /// How a workload's ports are reached.
    pub fn of(&self, namespace: &str, labels: &Labels) -> Mtls {
        self.with(namespace, self.selecting(namespace, labels).and_then(|object| spec(object)))
    }

    /// How ports are reached in a namespace where `own` selects the workload.
    pub fn with(&self, namespace: &str, own: Option<&PeerAuthentication>) -> Mtls {
        let whole = [self.mesh.as_ref(), self.namespaces.get(namespace)].into_iter().flatten();
        let mut default = MtlsMode::Permissive;
        for mode in whole.filter_map(|object| spec(object)).chain(own).map(PeerAuthentication::mode) {
            default = over(mode, default);
        }
        let ports = own.into_iter().flat_map(PeerAuthentication::ports);
        Mtls { default, ports: ports.map(|(port, mode)| (port, over(mode, default))).collect() }
    }

    /// The object with a selector that counts for a workload.
    pub fn selecting(&self, namespace: &str, labels: &Labels) -> Option<&Arc<Object>> {
        let mut all = self.workloads.get(namespace)?.iter();
        all.find(|object| spec(object).and_then(PeerAuthentication::labels).is_some_and(|own| selects(own, labels)))
    }

    /// Every object with a selector.
    pub fn with_selectors(&self) -> impl Iterator<Item = (&Arc<Object>, &PeerAuthentication)> {
        self.workloads.values().flatten().filter_map(|object| Some((object, spec(object)?)))
    }
}

fn spec(object: &Object) -> Option<&PeerAuthentication> {
    match &object.body {
        Body::PeerAuthentication(spec) => Some(spec),
        _ => None,
    }
}

fn over(mode: Mode, above: MtlsMode) -> MtlsMode {
    match mode {
        Mode::Unset => above,
        Mode::Disable => MtlsMode::Disable,
        Mode::Permissive => MtlsMode::Permissive,
        Mode::Strict => MtlsMode::Strict,
    }
}

#[cfg(test)]
mod tests;
