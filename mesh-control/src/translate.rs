//! The mesh as xDS: what each workload's agent is told, in Envoy's types with Istio's names and structure.
//!
//! In: a [`Mesh`] and a workload. Out: clusters, endpoints, listeners and routes with content versions. Pure; what all
//! workloads of a namespace share is made once.

mod action;
mod address;
mod audience;
mod authorization;
mod chain;
mod checked;

mod cluster;
mod door;
mod endpoint;
mod inbound;
mod listener;
mod matches;
mod pb;
mod policy;
mod retry;
mod route;
mod tls;
mod vet;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::config::Labels;
use crate::model::Mesh;
use crate::model::workload::Workload;
use crate::resource::{Kind, Offer, Resources};
use audience::{Audience, Audiences};

pub use checked::{Checked, Refused};
pub use vet::vet;

/// The client that rules are evaluated for.
pub(crate) struct Client<'c> {
    pub namespace: &'c str,
    pub labels: &'c Labels,
}

impl<'c> Client<'c> {
    fn of(workload: &'c Workload) -> Client<'c> {
        Client { namespace: &workload.namespace, labels: &workload.labels }
    }
}

/// What clients share, whatever names they use.
#[derive(Debug, Clone)]
struct Common {
    clusters: Arc<Resources>,
    endpoints: Arc<Resources>,
    listeners: Arc<Resources>,
}

/// Values per audience, each made once. Made outside of the lock: other audiences go on meanwhile, the same one waits.
type Cells<T> = Mutex<HashMap<Audience, Arc<OnceLock<T>>>>;

fn made_once<T: Clone>(cells: &Cells<T>, audience: &Audience, make: impl FnOnce() -> T) -> T {
    let cell = cells.lock().unwrap_or_else(PoisonError::into_inner).entry(audience.clone()).or_default().clone();
    cell.get_or_init(make).clone()
}

/// One version of the mesh with what was translated of it.
pub struct Translation {
    mesh: Arc<Mesh>,
    audiences: Audiences,
    common: Cells<Common>,
    routes: Cells<Arc<Resources>>,
    nodes: OnceLock<Nodes>,
    checked: Checked,
}

/// What every node is told, beside what its workloads are.
#[derive(Debug)]
struct Nodes {
    policies: Arc<Resources>,
    addresses: Arc<Resources>,
}

impl Translation {
    /// For a mesh; `checked` remembers over versions which contents mesh-core takes.
    pub fn new(mesh: Arc<Mesh>, checked: Checked) -> Translation {
        let audiences = Audiences::new(&mesh);
        let (common, routes, nodes) = (Cells::default(), Cells::default(), OnceLock::new());
        Translation { mesh, audiences, common, routes, nodes, checked }
    }

    /// The mesh.
    pub fn mesh(&self) -> &Arc<Mesh> {
        &self.mesh
    }

    /// Translates for everybody who may connect, so that mesh-core has seen all of it before anybody is told.
    pub fn prepare(&self) {
        self.nodes();
        for workload in self.mesh.workloads.all().iter().filter(|one| one.enrolled && one.node.is_some()) {
            self.common(workload);
            self.routes(workload);
        }
    }

    /// What a node is told of a kind.
    pub fn of_nodes(&self, kind: Kind) -> Offer {
        match kind {
            Kind::Authorization => Offer::shared(self.nodes().policies.clone()),
            Kind::Address => Offer::shared(self.nodes().addresses.clone()),
            Kind::Cluster | Kind::Endpoint | Kind::Listener | Kind::Route => Offer::default(),
        }
    }

    fn nodes(&self) -> &Nodes {
        self.nodes.get_or_init(|| Nodes {
            policies: self.checked.share(Kind::Authorization, None, authorization::all(&self.mesh)),
            addresses: self.checked.share(Kind::Address, None, address::all(&self.mesh)),
        })
    }

    /// What a workload's agent is told of a kind.
    pub fn resources(&self, workload: &Workload, kind: Kind) -> Offer {
        match kind {
            Kind::Endpoint => Offer::shared(self.common(workload).endpoints.clone()),
            Kind::Route => Offer::shared(self.routes(workload)),
            Kind::Cluster => {
                let own = self.checked.take(kind, inbound::clusters(&self.mesh, workload));
                Offer { shared: self.common(workload).clusters.clone(), own }
            }
            Kind::Listener => {
                let own = self.checked.take(kind, [inbound::listener(&self.mesh, workload)]);
                Offer { shared: self.common(workload).listeners.clone(), own }
            }
            Kind::Authorization | Kind::Address => Offer::default(),
        }
    }

    fn common(&self, workload: &Workload) -> Common {
        let audience = self.audiences.common(workload);
        made_once(&self.common, &audience, || {
            let client = Client::of(workload);
            let (clusters, endpoints) = cluster::outbound(&self.mesh, &client);
            let listeners = listener::outbound(&self.mesh, &client);
            let share = |kind, list| self.checked.share(kind, Some(&audience), list);
            Common {
                clusters: share(Kind::Cluster, clusters),
                endpoints: share(Kind::Endpoint, endpoints),
                listeners: share(Kind::Listener, listeners),
            }
        })
    }

    fn routes(&self, workload: &Workload) -> Arc<Resources> {
        let audience = self.audiences.named(workload);
        made_once(&self.routes, &audience, || {
            self.checked.share(Kind::Route, Some(&audience), route::outbound(&self.mesh, &Client::of(workload)))
        })
    }
}
