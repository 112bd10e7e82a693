//! Which workloads and identities each node runs: what authorises certificate requests and xDS streams.
//!
//! In: pods and workload entries. Out: lookups. Nothing here trusts what a node says about itself.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use mesh_core::identity::SpiffeId;

/// A workload as authorisation sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resident {
    /// The node it runs on.
    pub node: Arc<str>,
    /// Its identity.
    pub identity: SpiffeId,
}

/// All workloads by namespace and name, and the identities by node.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Directory {
    residents: HashMap<(Arc<str>, Arc<str>), Resident>,
    identities: HashMap<Arc<str>, HashSet<SpiffeId>>,
}

impl Directory {
    /// Adds a workload; of two with one name the first stays.
    pub fn add(&mut self, namespace: Arc<str>, name: Arc<str>, resident: Resident) {
        self.identities.entry(resident.node.clone()).or_default().insert(resident.identity.clone());
        self.residents.entry((namespace, name)).or_insert(resident);
    }

    /// Whether a node runs a workload with this identity.
    pub fn runs(&self, node: &str, identity: &SpiffeId) -> bool {
        self.identities.get(node).is_some_and(|identities| identities.contains(identity))
    }

    /// A workload by namespace and name.
    pub fn resident(&self, namespace: &str, name: &str) -> Option<&Resident> {
        self.residents.get(&(namespace.into(), name.into()))
    }
}
