//! The state of one xDS stream: resources by name and version, and what of them is ready.
//!
//! In: updates as the stream delivers them. Out: refusals by name, the names to subscribe to, and
//! snapshots in which every listener has its routes and every cluster its endpoints. A refused
//! resource leaves its last good version in force. It does no I/O and knows no nonce.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use crate::resource::Rejection;
use crate::snapshot::Snapshot;

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

/// Names to be subscribed to, derived from clusters and listeners.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subscriptions {
    /// EDS names.
    pub endpoints: BTreeSet<Arc<str>>,
    /// RDS names.
    pub routes: BTreeSet<Arc<str>>,
}

/// Resources of one stream.
#[derive(Debug, Default)]
pub struct Store {}

impl Store {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Applies one response: `upserts` are parsed, those refused are returned and keep their last
    /// good version, the rest is taken; `removed` are dropped. An unknown type is refused as a whole.
    pub fn apply(&mut self, type_url: &str, upserts: Vec<Upsert>, removed: &[String]) -> Vec<Rejection> {
        let _ = (type_url, upserts, removed);
        Vec::new()
    }

    /// EDS and RDS names needed by the clusters and listeners known so far, in force or warming.
    pub fn subscriptions(&self) -> Subscriptions {
        Subscriptions::default()
    }

    /// The warmed configuration; `None` until clusters and listeners were received once and
    /// everything they need has arrived. Unchanged resources are shared with earlier snapshots, and
    /// while nothing changed the same `Arc` is returned.
    pub fn snapshot(&mut self) -> Option<Arc<Snapshot>> {
        None
    }

    /// Name to version of every resource of a type that is held, for `initial_resource_versions`.
    pub fn versions(&self, type_url: &str) -> HashMap<String, String> {
        let _ = type_url;
        HashMap::new()
    }
}
