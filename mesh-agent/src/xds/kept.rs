//! What a stream keeps up to date: the configuration of a workload, or what is known of the whole mesh. In: resources.
//! Out: what to ask for. No I/O.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use mesh_core::ambient;
use mesh_core::resource::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE, ROUTE_TYPE, Rejection,
};
use mesh_core::store::{Store, Upsert};

/// A store behind a stream.
pub trait Kept {
    /// What it wants of each type, in the order in which it is asked for.
    fn wanted(&self) -> Vec<Wanted>;
    /// Name to version of what it holds of a type.
    fn versions(&self, type_url: &str) -> HashMap<String, String>;
    /// Applies a response; what is refused keeps its last good version.
    fn apply(&mut self, type_url: &str, upserts: Vec<Upsert>, removed: &[String]) -> Vec<Rejection>;
}

/// What is wanted of a type.
pub struct Wanted {
    /// Type URL.
    pub type_url: &'static str,
    /// Which of them.
    pub which: Which,
}

/// Which resources of a type are wanted.
pub enum Which {
    /// All, by a subscription without names.
    All,
    /// All, by the name that stands for all, as ztunnel asks for Istio's own types.
    Everything,
    /// These.
    Named(Arc<BTreeSet<Arc<str>>>),
}

impl Kept for Store {
    /// Clusters before the endpoints and listeners that need them: make before break.
    fn wanted(&self) -> Vec<Wanted> {
        let named = self.subscriptions();
        vec![
            Wanted { type_url: CLUSTER_TYPE, which: Which::All },
            Wanted { type_url: ENDPOINT_TYPE, which: Which::Named(named.endpoints) },
            Wanted { type_url: LISTENER_TYPE, which: Which::All },
            Wanted { type_url: ROUTE_TYPE, which: Which::Named(named.routes) },
        ]
    }

    fn versions(&self, type_url: &str) -> HashMap<String, String> {
        Store::versions(self, type_url)
    }

    fn apply(&mut self, type_url: &str, upserts: Vec<Upsert>, removed: &[String]) -> Vec<Rejection> {
        Store::apply(self, type_url, upserts, removed)
    }
}

impl Kept for ambient::Store {
    /// Policies before the workloads that name them.
    fn wanted(&self) -> Vec<Wanted> {
        [AUTHORIZATION_TYPE, ADDRESS_TYPE].map(|type_url| Wanted { type_url, which: Which::Everything }).into()
    }

    fn versions(&self, type_url: &str) -> HashMap<String, String> {
        ambient::Store::versions(self, type_url)
    }

    fn apply(&mut self, type_url: &str, upserts: Vec<Upsert>, removed: &[String]) -> Vec<Rejection> {
        ambient::Store::apply(self, type_url, &upserts, removed)
    }
}
