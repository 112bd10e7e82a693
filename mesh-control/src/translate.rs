//! The mesh as xDS: what each workload's agent is told, in Envoy's types with Istio's names and structure.
//!
//! In: a [`Mesh`] and a workload. Out: clusters, endpoints, listeners and routes with content versions. Pure; what all
//! workloads of a namespace share is made once, and of a version of the mesh only what is not made of the very same things as
//! in the version before. A property test holds every version equal to one that is translated by itself.

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
mod memo;
mod pb;
mod policy;
mod retry;
mod route;
mod tls;
mod vet;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::config::{Labels, Object};
use crate::model::inline::Inline;
use crate::model::service::Service;
use crate::model::workload::Workload;
use crate::model::{Membership, Mesh};
use crate::resource::{Kind, Offer, Resources};
use audience::{Audience, Audiences};
use checked::Named;
use memo::{Memo, Remembered, Same};

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
#[derive(Debug, Clone, Default)]
struct Common {
    clusters: Arc<Resources>,
    endpoints: Arc<Resources>,
    listeners: Arc<Resources>,
    clusters_of: Remembered<Service, cluster::From, cluster::OfService>,
    listeners_of: Remembered<Service, listener::From, listener::OfService>,
}

/// Values per audience, each made once. Made outside of the lock: other audiences go on meanwhile, the same one waits.
type Cells<T> = Mutex<HashMap<Audience, Arc<OnceLock<T>>>>;

/// What is there of each.
fn made<T: Clone>(cells: &Cells<T>) -> HashMap<Audience, T> {
    let cells = cells.lock().unwrap_or_else(PoisonError::into_inner);
    cells.iter().filter_map(|(audience, cell)| Some((audience.clone(), cell.get()?.clone()))).collect()
}

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
    /// Of workloads that were asked for.
    own: Mutex<Memo<Workload, OwnFrom, Own>>,
    checked: Checked,
    former: Former,
}

/// What every node is told, beside what its workloads are.
#[derive(Debug, Clone, Default)]
struct Nodes {
    policies: Arc<Resources>,
    addresses: Arc<Resources>,
    policies_of: Remembered<Object, (), Named>,
    workloads_of: Remembered<Workload, address::From, Named>,
    inline_of: Remembered<Inline, BTreeSet<String>, Named>,
    services_of: Remembered<Service, (), Named>,
}

/// What only one workload is told.
#[derive(Debug, Clone)]
struct Own {
    clusters: Arc<Resources>,
    listeners: Arc<Resources>,
}

/// What that is made of, besides the workload.
type OwnFrom = Option<Same<[Membership]>>;

/// What the version before has made.
#[derive(Debug, Default)]
struct Former {
    common: HashMap<Audience, Common>,
    /// Only if none of them would be another one now.
    routes: HashMap<Audience, Arc<Resources>>,
    nodes: Nodes,
}

impl Translation {
    /// For a mesh; `checked` remembers over versions which contents mesh-core takes.
    pub fn new(mesh: Arc<Mesh>, checked: Checked) -> Translation {
        let audiences = Audiences::new(&mesh);
        let (common, routes, nodes, own) = (Cells::default(), Cells::default(), OnceLock::new(), Mutex::default());
        Translation { mesh, audiences, common, routes, nodes, own, checked, former: Former::default() }
    }

    /// For the next version of the mesh.
    pub fn after(former: &Translation, mesh: Arc<Mesh>) -> Translation {
        let mut next = Translation::new(mesh, former.checked.clone());
        if next.mesh.options != former.mesh.options {
            return next;
        }
        let own = former.own.lock().unwrap_or_else(PoisonError::into_inner).so_far();
        next.own = Mutex::new(Memo::after(&own));
        next.former = Former {
            common: made(&former.common),
            routes: if route::same(&former.mesh, &next.mesh) { made(&former.routes) } else { HashMap::new() },
            nodes: former.nodes.get().cloned().unwrap_or_default(),
        };
        next
    }

    /// The mesh.
    pub fn mesh(&self) -> &Arc<Mesh> {
        &self.mesh
    }

    /// Translates for everybody who may connect, so that mesh-core has seen all of it before anybody is told.
    pub fn prepare(&mut self) {
        self.nodes();
        for workload in self.mesh.workloads.all().iter().filter(|one| one.enrolled && one.node.is_some()) {
            self.common(workload);
            self.routes(workload);
        }
        self.former = Former::default();
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
        self.nodes.get_or_init(|| {
            let former = &self.former.nodes;
            let mut policies_of = Memo::after(&former.policies_of);
            let (mut workloads_of, mut inline_of, mut services_of) =
                (Memo::after(&former.workloads_of), Memo::after(&former.inline_of), Memo::after(&former.services_of));
            let policies = authorization::all(&self.mesh, &mut policies_of);
            let addresses = address::all(&self.mesh, &mut workloads_of, &mut inline_of, &mut services_of);
            Nodes {
                policies: self.checked.share(Kind::Authorization, None, policies),
                addresses: self.checked.share(Kind::Address, None, addresses),
                policies_of: policies_of.remember(),
                workloads_of: workloads_of.remember(),
                inline_of: inline_of.remember(),
                services_of: services_of.remember(),
            }
        })
    }

    /// What a workload's agent is told of a kind.
    pub fn resources(&self, workload: &Arc<Workload>, kind: Kind) -> Offer {
        match kind {
            Kind::Endpoint => Offer::shared(self.common(workload).endpoints),
            Kind::Route => Offer::shared(self.routes(workload)),
            Kind::Cluster => Offer { shared: self.common(workload).clusters, own: self.own(workload).clusters },
            Kind::Listener => Offer { shared: self.common(workload).listeners, own: self.own(workload).listeners },
            Kind::Authorization | Kind::Address => Offer::default(),
        }
    }

    fn own(&self, workload: &Arc<Workload>) -> Own {
        let memberships = self.mesh.memberships(workload).cloned();
        let mut memo = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        memo.made(workload, memberships.map(Same), |memberships| {
            let (options, memberships) = (&self.mesh.options, memberships.as_ref().map_or(&[][..], |all| &all.0));
            let take = |kind, list| Arc::new(self.checked.take(kind, list));
            Own {
                clusters: take(Kind::Cluster, inbound::clusters(memberships)),
                listeners: take(Kind::Listener, vec![inbound::listener(options, memberships, workload)]),
            }
        })
    }

    fn common(&self, workload: &Workload) -> Common {
        let audience = self.audiences.common(workload);
        made_once(&self.common, &audience, || {
            let client = Client::of(workload);
            let former = self.former.common.get(&audience).cloned().unwrap_or_default();
            let mut clusters_of = Memo::after(&former.clusters_of);
            let mut listeners_of = Memo::after(&former.listeners_of);
            let (clusters, endpoints) = cluster::outbound(&self.mesh, &client, &mut clusters_of);
            let listeners = listener::outbound(&self.mesh, &client, &mut listeners_of);
            let share = |kind, list| self.checked.share(kind, Some(&audience), list);
            Common {
                clusters: share(Kind::Cluster, clusters),
                endpoints: share(Kind::Endpoint, endpoints),
                listeners: share(Kind::Listener, listeners),
                clusters_of: clusters_of.remember(),
                listeners_of: listeners_of.remember(),
            }
        })
    }

    fn routes(&self, workload: &Workload) -> Arc<Resources> {
        let audience = self.audiences.named(workload);
        made_once(&self.routes, &audience, || {
            if let Some(former) = self.former.routes.get(&audience) {
                return former.clone();
            }
            self.checked.share(Kind::Route, Some(&audience), route::outbound(&self.mesh, &Client::of(workload)))
        })
    }
}
