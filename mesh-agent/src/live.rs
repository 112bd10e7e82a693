//! The live cell: the configuration in force, one immutable snapshot per workload and one of the whole mesh. Written only by `apply`; a reader
//! takes a snapshot once per connection and passes it down. Holds no sockets and parses nothing.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use mesh_core::Snapshot;
use mesh_core::ambient::Ambient;
use tokio::sync::watch;

/// The configuration of all local workloads.
#[derive(Clone, Default)]
pub struct NodeConfig {
    /// By `Workload::id`.
    pub by_workload: HashMap<u32, Arc<Snapshot>>,
    /// What is known of the whole mesh; `None` until the control plane has told.
    pub ambient: Option<Arc<Ambient>>,
}

/// The one published cell.
pub struct Live {
    cell: ArcSwap<NodeConfig>,
    /// How often the cell has changed; counted after the change.
    version: AtomicU64,
    /// Counts changes of the cell; waiters look again at each.
    changes: watch::Sender<u64>,
}

impl Default for Live {
    fn default() -> Live {
        let cell = ArcSwap::from_pointee(NodeConfig::default());
        Live { cell, version: AtomicU64::new(0), changes: watch::channel(0).0 }
    }
}

impl Live {
    /// The snapshot of one workload; `None` until its first complete configuration.
    pub fn workload(&self, id: u32) -> Option<Arc<Snapshot>> {
        self.cell.load().by_workload.get(&id).cloned()
    }

    /// What is known of the whole mesh; `None` until the control plane has told.
    pub fn ambient(&self) -> Option<Arc<Ambient>> {
        self.cell.load().ambient.clone()
    }

    /// All of it, for admin pages.
    pub fn load(&self) -> Arc<NodeConfig> {
        self.cell.load_full()
    }

    /// Notices of changes: something of some workload is another one than before.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Waits until the workload has a snapshot. The caller bounds the wait.
    pub async fn ready(&self, id: u32) -> Arc<Snapshot> {
        let mut changes = self.changes.subscribe();
        loop {
            if let Some(snapshot) = self.workload(id) {
                return snapshot;
            }
            // `self` holds the sender, so this cannot fail while we are borrowed.
            let _ = changes.changed().await;
        }
    }

    /// Puts a workload's new snapshot in force. Only `apply` calls this.
    pub fn publish(&self, id: u32, snapshot: Arc<Snapshot>) {
        self.change(|config| {
            config.by_workload.insert(id, snapshot.clone());
        });
    }

    /// Puts what is known of the mesh in force. Only `apply` calls this.
    pub fn publish_ambient(&self, ambient: Arc<Ambient>) {
        self.change(|config| config.ambient = Some(ambient.clone()));
    }

    /// Forgets a workload that was withdrawn. Only `apply` calls this.
    pub fn remove(&self, id: u32) {
        self.change(|config| {
            config.by_workload.remove(&id);
        });
    }

    fn change(&self, mut edit: impl FnMut(&mut NodeConfig)) {
        self.cell.rcu(|old| {
            let mut config = NodeConfig::clone(old);
            edit(&mut config);
            config
        });
        self.version.fetch_add(1, Ordering::Release);
        self.changes.send_modify(|n| *n = n.wrapping_add(1));
    }
}

/// One worker's eye on one workload's configuration, for which nothing changes as a rule from request to request.
pub struct Eye {
    live: Arc<Live>,
    id: u32,
    /// The version of the cell when it was looked at last, and what was there.
    seen: RefCell<Option<(u64, Option<Arc<Snapshot>>)>>,
}

impl Eye {
    /// Of the workload with this id.
    pub fn new(live: Arc<Live>, id: u32) -> Self {
        Self { live, id, seen: RefCell::default() }
    }

    /// As [`Live::workload`].
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        let mut seen = self.seen.borrow_mut();
        // Read before the cell: a change between the two is seen the next time.
        let version = self.live.version.load(Ordering::Acquire);
        match &*seen {
            Some((then, snapshot)) if *then == version => snapshot.clone(),
            _ => {
                let snapshot = self.live.workload(self.id);
                *seen = Some((version, snapshot.clone()));
                snapshot
            }
        }
    }
}
