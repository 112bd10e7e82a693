//! The state of one xDS stream: resources by name and version, and what of them is ready.
//!
//! In: updates as the stream delivers them. Out: refusals by name, the names to subscribe to, and
//! snapshots in which every listener has its routes and every cluster its endpoints. A refused
//! resource leaves its last good version in force. It does no I/O and knows no nonce.
//!
//! A cluster warms until its EDS name was answered, a listener until all its RDS names were;
//! meanwhile the version before serves. A name is answered by a resource, good or refused, or by
//! its removal: one bad resource must not hold up the rest.

mod kind;
mod shared;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use crate::resource::cluster::{Cluster, ClusterKind};
use crate::resource::endpoint::LoadAssignment;
use crate::resource::fault::Fault;
use crate::resource::listener::Listener;
use crate::resource::route::RouteTable;
use crate::resource::{CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE, ROUTE_TYPE, Rejection};
use crate::shards::Shards;
use crate::snapshot::Snapshot;
pub(crate) use kind::Good;
use kind::{Dependent, Needed};
pub use shared::Shared;

/// Most clusters of one stream.
pub const MAX_CLUSTERS: usize = 100_000;
/// Most listeners of one stream.
pub const MAX_LISTENERS: usize = 50_000;

/// One resource of an update.
#[derive(Debug, Clone)]
pub struct Upsert {
    /// Name.
    pub name: String,
    /// Version as the control plane calls it.
    pub version: String,
    /// The encoded message (the `value` of the `Any`).
    pub body: Bytes,
}

/// Names to be subscribed to, derived from clusters and listeners. Sets that have not changed are the same in memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subscriptions {
    /// EDS names.
    pub endpoints: Arc<BTreeSet<Arc<str>>>,
    /// RDS names.
    pub routes: Arc<BTreeSet<Arc<str>>>,
}

/// Resources of one stream.
#[derive(Debug)]
pub struct Store {
    shared: Shared,
    clusters: Dependent<Cluster>,
    listeners: Dependent<Listener>,
    endpoints: Needed,
    routes: Needed,
    /// What is in force; its maps are the only place where good resources are held.
    current: Snapshot,
    published: Option<Arc<Snapshot>>,
    changed: bool,
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

impl Store {
    /// An empty store on its own.
    pub fn new() -> Self {
        Self::sharing(Shared::new())
    }

    /// An empty store that parses and holds what others hold too only once.
    pub fn sharing(shared: Shared) -> Self {
        Store {
            shared,
            clusters: Dependent::new(MAX_CLUSTERS),
            listeners: Dependent::new(MAX_LISTENERS),
            endpoints: Needed::default(),
            routes: Needed::default(),
            current: Snapshot::default(),
            published: None,
            changed: false,
        }
    }

    /// Applies one response: `upserts` are parsed, those refused are returned and keep their last
    /// good version, the rest is taken; `removed` are dropped. An unknown type is refused as a
    /// whole. Call it for an empty response too: that is how the first set counts as received.
    pub fn apply(&mut self, type_url: &str, upserts: Vec<Upsert>, removed: &[String]) -> Vec<Rejection> {
        let mut rejections = Vec::new();
        match type_url {
            CLUSTER_TYPE => self.apply_clusters(&upserts, removed, &mut rejections),
            LISTENER_TYPE => self.apply_listeners(&upserts, removed, &mut rejections),
            ENDPOINT_TYPE => self.apply_endpoints(&upserts, removed, &mut rejections),
            ROUTE_TYPE => self.apply_routes(&upserts, removed, &mut rejections),
            other => {
                let why = format!("resources of type {other:?} are not supported");
                rejections.extend(upserts.iter().map(|u| Fault::new(&*why).reject(&u.name)));
                return rejections;
            }
        }
        self.promote();
        rejections
    }

    /// EDS and RDS names needed by the clusters and listeners known so far, in force or warming.
    pub fn subscriptions(&self) -> Subscriptions {
        Subscriptions { endpoints: self.endpoints.names(), routes: self.routes.names() }
    }

    /// The warmed configuration; `None` until clusters and listeners were received once and
    /// everything they need was answered. Unchanged resources are shared with earlier snapshots,
    /// and while nothing changed the same `Arc` is returned.
    pub fn snapshot(&mut self) -> Option<Arc<Snapshot>> {
        if self.published.is_none() {
            let complete = self.clusters.is_complete() && self.listeners.is_complete();
            if !complete {
                return None;
            }
            self.changed = true;
        }
        if self.changed {
            self.published = Some(Arc::new(self.current.clone()));
            self.changed = false;
        }
        self.published.clone()
    }

    /// Name to version of every resource of a type that is held, for `initial_resource_versions`.
    pub fn versions(&self, type_url: &str) -> HashMap<String, String> {
        match type_url {
            CLUSTER_TYPE => self.clusters.versions(),
            LISTENER_TYPE => self.listeners.versions(),
            ENDPOINT_TYPE => self.endpoints.versions(),
            ROUTE_TYPE => self.routes.versions(),
            _ => HashMap::new(),
        }
    }

    /// Names of clusters and listeners that wait for endpoints or routes.
    pub fn warming(&self) -> Vec<Arc<str>> {
        self.clusters.warming().chain(self.listeners.warming()).cloned().collect()
    }

    fn apply_clusters(&mut self, upserts: &[Upsert], removed: &[String], rejections: &mut Vec<Rejection>) {
        for upsert in upserts {
            let previous = self.clusters.latest(&upsert.name, &self.current.clusters);
            let parse = || Cluster::parse(&upsert.name, &upsert.body, previous.as_deref());
            self.clusters.put(upsert, &self.shared.pools().clusters, parse, rejections);
        }
        for name in removed {
            self.clusters.remove(name);
            self.changed |= self.current.clusters.remove(name.as_str());
        }
        self.clusters.received();
        let needs = self.clusters.needs(&self.current.clusters, |cluster| eds_name(cluster).into_iter());
        let dropped = self.endpoints.set_names(needs);
        self.changed |= drop_all(&mut self.current.endpoints, &dropped);
    }

    fn apply_listeners(&mut self, upserts: &[Upsert], removed: &[String], rejections: &mut Vec<Rejection>) {
        for upsert in upserts {
            let parse = || Listener::parse(&upsert.name, &upsert.body);
            self.listeners.put(upsert, &self.shared.pools().listeners, parse, rejections);
        }
        let mut gone = false;
        for name in removed {
            self.listeners.remove(name);
            gone |= self.current.listeners.remove(name.as_str());
        }
        if gone {
            self.current.index_listeners();
            self.changed = true;
        }
        self.listeners.received();
        let needs = self.listeners.needs(&self.current.listeners, Listener::route_names);
        let dropped = self.routes.set_names(needs);
        self.changed |= drop_all(&mut self.current.routes, &dropped);
    }

    fn apply_endpoints(&mut self, upserts: &[Upsert], removed: &[String], rejections: &mut Vec<Rejection>) {
        for upsert in upserts {
            let name = upsert.name.as_str();
            let old = self.current.endpoints.get(name).map(Arc::as_ref);
            let parse = || LoadAssignment::parse(name, &upsert.body, old);
            if let Some((name, parsed)) =
                self.endpoints.answer(upsert, &self.shared.pools().endpoints, parse, rejections)
            {
                self.current.endpoints.insert(name, parsed);
                self.changed = true;
            }
        }
        // As Envoy: removal is an answer, and what was held stays until its cluster goes.
        removed.iter().for_each(|name| self.endpoints.forget(name));
    }

    fn apply_routes(&mut self, upserts: &[Upsert], removed: &[String], rejections: &mut Vec<Rejection>) {
        for upsert in upserts {
            let parse = || RouteTable::parse(&upsert.name, &upsert.body);
            if let Some((name, parsed)) = self.routes.answer(upsert, &self.shared.pools().routes, parse, rejections) {
                self.current.routes.insert(name, parsed);
                self.changed = true;
            }
        }
        removed.iter().for_each(|name| self.routes.forget(name));
    }

    /// Puts in force what has everything it needs.
    fn promote(&mut self) {
        let ready =
            self.clusters.take_ready(|cluster| eds_name(cluster).is_none_or(|name| self.endpoints.is_answered(name)));
        self.changed |= !ready.is_empty();
        for (name, cluster) in ready {
            self.current.clusters.insert(name, cluster);
        }
        let ready =
            self.listeners.take_ready(|listener| listener.route_names().all(|name| self.routes.is_answered(name)));
        if !ready.is_empty() {
            for (name, listener) in ready {
                self.current.listeners.insert(name, listener);
            }
            self.current.index_listeners();
            self.changed = true;
        }
    }
}

fn eds_name(cluster: &Cluster) -> Option<&Arc<str>> {
    match &cluster.kind {
        ClusterKind::Eds { service_name } => Some(service_name),
        _ => None,
    }
}

fn drop_all<V>(map: &mut Shards<V>, names: &[Arc<str>]) -> bool {
    names.iter().fold(false, |any, name| map.remove(name) | any)
}

#[cfg(test)]
mod tests;
