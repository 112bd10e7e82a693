//! Who shares configuration with whom.
//!
//! In: the mesh and a workload. Out: keys; workloads with equal keys are told the same. Namespaces that no rule tells apart
//! share clusters, endpoints and listeners; routes always know the client's namespace, for its short names.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use crate::config::Labels;
use crate::model::Mesh;
use crate::model::service::selects;
use crate::model::visibility::Visibility;
use crate::model::workload::Workload;

/// Workloads with equal audiences are told the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Audience {
    /// None: any namespace that no rule tells apart.
    pub namespace: Option<Arc<str>>,
    /// For each set of labels that some VirtualService asks of its clients, whether the workload has it.
    asked: Vec<bool>,
}

/// What tells workloads of one mesh apart.
pub(super) struct Audiences {
    asked: Vec<Labels>,
    /// Some object is not for everybody.
    private: bool,
    /// Namespaces with rules for services of others.
    special: HashSet<Arc<str>>,
}

impl Audiences {
    pub(super) fn new(mesh: &Mesh) -> Audiences {
        let specs = || mesh.rules.virtual_rules().iter().filter_map(|rule| rule.spec());
        let asked: BTreeSet<Labels> = specs().flat_map(|spec| spec.source_labels().cloned()).collect();
        let mut hosts = HashSet::new();
        let private =
            mesh.services.iter().any(|service| service.visibility != Visibility::All || !hosts.insert(&service.host))
                || mesh.rules.virtual_rules().iter().any(|rule| rule.visibility != Visibility::All)
                || mesh.rules.policies().any(|(_, _, policy)| policy.visibility != Visibility::All)
                || specs().any(|spec| {
                    spec.tcp.iter().flat_map(|route| &route.matches).any(|one| !one.source_namespace.is_empty())
                        || spec.tls.iter().flat_map(|route| &route.matches).any(|one| !one.source_namespace.is_empty())
                });
        // A namespace's rule for its own service is everybody's; one for a foreign service or for a pattern is its own.
        let own = |host: &str, namespace: &str| {
            mesh.service(host, namespace).is_none_or(|service| &*service.namespace == namespace)
        };
        let special =
            mesh.rules.policies().filter(|(namespace, host, _)| host.starts_with('*') || !own(host, namespace));
        let special = special.map(|(namespace, _, _)| namespace.clone()).collect();
        Audiences { asked: asked.into_iter().collect(), private, special }
    }

    /// For clusters, endpoints and listeners.
    pub(super) fn common(&self, workload: &Workload) -> Audience {
        let apart = self.private || self.special.contains(&workload.namespace);
        Audience { namespace: apart.then(|| workload.namespace.clone()), asked: self.asked(workload) }
    }

    /// For routes.
    pub(super) fn named(&self, workload: &Workload) -> Audience {
        Audience { namespace: Some(workload.namespace.clone()), asked: self.asked(workload) }
    }

    fn asked(&self, workload: &Workload) -> Vec<bool> {
        self.asked.iter().map(|labels| selects(labels, &workload.labels)).collect()
    }
}
