//! Parsed resources of all streams of a node, so that equal ones are parsed and held once.
//!
//! In: a resource's name and bytes, and how to parse them. Out: the value, the same object for every
//! stream that was sent the same bytes. It keeps nothing alive: what no stream holds is gone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::resource::Rejection;
use crate::resource::cluster::Cluster;
use crate::resource::endpoint::LoadAssignment;
use crate::resource::listener::Listener;
use crate::resource::route::RouteTable;

/// Entries that are never worth sweeping for dead ones.
const MIN_SWEEP: usize = 1024;

/// Shared by the stores of one node. Cloning gives another handle to the same.
#[derive(Debug, Clone, Default)]
pub struct Shared(Arc<Pools>);

/// One pool for each type.
#[derive(Debug, Default)]
pub(super) struct Pools {
    pub(super) clusters: Pool<Cluster>,
    pub(super) listeners: Pool<Listener>,
    pub(super) endpoints: Pool<LoadAssignment>,
    pub(super) routes: Pool<RouteTable>,
}

impl Shared {
    /// A pool of its own, for one node.
    pub fn new() -> Self {
        Self::default()
    }

    pub(super) fn pools(&self) -> &Pools {
        &self.0
    }
}

/// Digest of name and bytes to the value.
#[derive(Debug)]
pub(super) struct Pool<V>(Mutex<Entries<V>>);

#[derive(Debug)]
struct Entries<V> {
    known: HashMap<[u64; 2], Weak<V>>,
    /// Size at which dead entries are swept out next.
    sweep_at: usize,
}

impl<V> Default for Pool<V> {
    fn default() -> Self {
        Pool(Mutex::new(Entries { known: HashMap::new(), sweep_at: MIN_SWEEP }))
    }
}

impl<V> Pool<V> {
    /// The value for a digest: one that some stream holds, or a new one.
    pub(super) fn get(
        &self,
        digest: [u64; 2],
        parse: impl FnOnce() -> Result<V, Rejection>,
    ) -> Result<Arc<V>, Rejection> {
        // Nothing in here panics, so a poisoned lock would still hold good entries.
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = entries.known.get(&digest).and_then(Weak::upgrade) {
            return Ok(value);
        }
        let value = Arc::new(parse()?);
        entries.known.insert(digest, Arc::downgrade(&value));
        if entries.known.len() >= entries.sweep_at {
            entries.known.retain(|_, value| value.strong_count() > 0);
            // Twice what lives: the cost of sweeping stays in proportion to what was added.
            entries.sweep_at = (entries.known.len() * 2).max(MIN_SWEEP);
        }
        Ok(value)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).known.len()
    }
}
