//! The mesh as xDS: what each workload's agent is told, in Envoy's types with Istio's names and structure.
//!
//! In: a [`Mesh`] and a workload. Out: clusters, endpoints, listeners and routes with content versions. Pure; what all
//! workloads of a namespace share is made once.

mod action;
mod chain;
mod checked;

mod cluster;
mod endpoint;
mod inbound;
mod listener;
mod matches;
mod pb;
mod policy;
mod retry;
mod route;
mod vet;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::config::Labels;
use crate::model::Mesh;
use crate::model::service::selects;
use crate::model::workload::Workload;
use crate::resource::{Kind, Resources};

pub use checked::{Checked, Refused};
pub use vet::vet;

/// Who the outbound configuration is for: workloads of one namespace, told apart only by the labels that a rule asks for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Audience {
    namespace: Arc<str>,
    /// For each set of labels that some VirtualService asks of its clients, whether the workload has it.
    asked: Vec<bool>,
}

/// The client that rules are evaluated for.
pub(crate) struct Client<'c> {
    pub namespace: &'c str,
    pub labels: &'c Labels,
}

/// What all workloads of an audience share.
#[derive(Debug, Default)]
struct Outbound {
    clusters: Resources,
    endpoints: Arc<Resources>,
    listeners: Resources,
    routes: Arc<Resources>,
}

/// One version of the mesh with what was translated of it.
pub struct Translation {
    mesh: Arc<Mesh>,
    asked: Vec<Labels>,
    audiences: Mutex<HashMap<Audience, Arc<OnceLock<Outbound>>>>,
    checked: Checked,
}

impl Translation {
    /// For a mesh; `checked` remembers over versions which contents mesh-core takes.
    pub fn new(mesh: Arc<Mesh>, checked: Checked) -> Translation {
        let rules = mesh.rules.virtual_rules().iter().filter_map(|rule| rule.spec());
        let asked: BTreeSet<Labels> = rules.flat_map(|spec| spec.source_labels().cloned()).collect();
        Translation { mesh, asked: asked.into_iter().collect(), audiences: Mutex::default(), checked }
    }

    /// The mesh.
    pub fn mesh(&self) -> &Arc<Mesh> {
        &self.mesh
    }

    /// Translates for everybody who may connect, so that mesh-core has seen all of it before anybody is told.
    pub fn prepare(&self) {
        for workload in self.mesh.workloads.all().iter().filter(|workload| workload.node.is_some()) {
            let cell = self.cell(workload);
            cell.get_or_init(|| self.outbound(workload));
        }
    }

    /// What a workload's agent is told of a kind.
    pub fn resources(&self, workload: &Workload, kind: Kind) -> Arc<Resources> {
        let cell = self.cell(workload);
        // Translated outside of the lock: other audiences go on meanwhile, the same one waits for this result.
        let outbound = cell.get_or_init(|| self.outbound(workload));
        let with = |shared: &Resources, own: Resources| {
            let mut all = shared.clone();
            all.extend(own);
            Arc::new(all)
        };
        match kind {
            Kind::Endpoint => outbound.endpoints.clone(),
            Kind::Route => outbound.routes.clone(),
            Kind::Cluster => with(&outbound.clusters, self.checked.take(kind, inbound::clusters(&self.mesh, workload))),
            Kind::Listener => {
                with(&outbound.listeners, self.checked.take(kind, [inbound::listener(&self.mesh, workload)]))
            }
        }
    }

    fn cell(&self, workload: &Workload) -> Arc<OnceLock<Outbound>> {
        let audience = Audience {
            namespace: workload.namespace.clone(),
            asked: self.asked.iter().map(|labels| selects(labels, &workload.labels)).collect(),
        };
        let mut audiences = self.audiences.lock().unwrap_or_else(PoisonError::into_inner);
        audiences.entry(audience).or_default().clone()
    }

    fn outbound(&self, workload: &Workload) -> Outbound {
        let client = Client { namespace: &workload.namespace, labels: &workload.labels };
        let (clusters, endpoints) = cluster::outbound(&self.mesh, &client);
        Outbound {
            clusters: self.checked.take(Kind::Cluster, clusters),
            endpoints: Arc::new(self.checked.take(Kind::Endpoint, endpoints)),
            listeners: self.checked.take(Kind::Listener, listener::outbound(&self.mesh, &client)),
            routes: Arc::new(self.checked.take(Kind::Route, route::outbound(&self.mesh, &client))),
        }
    }
}
