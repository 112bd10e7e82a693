//! The live cell: the configuration in force, one immutable snapshot per workload and one of the whole mesh. Written only by `apply`; a reader
//! takes a snapshot once per connection and passes it down. Holds no sockets and parses nothing.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use mesh_core::Snapshot;
use mesh_core::ambient::Ambient;
use mesh_core::resource::cluster::Cluster;
use mesh_core::resource::endpoint::LoadAssignment;
use mesh_core::resource::route::RouteTable;
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
    current: RefCell<Option<Rc<Current>>>,
}

impl Eye {
    /// Of the workload with this id.
    pub fn new(live: Arc<Live>, id: u32) -> Self {
        Self { live, id, current: RefCell::default() }
    }

    /// The configuration in force; `None` until there is one.
    pub fn current(&self) -> Option<Rc<Current>> {
        let mut current = self.current.borrow_mut();
        // Read before the cell: a change between the two is seen the next time.
        let version = self.live.version.load(Ordering::Acquire);
        if let Some(current) = current.as_ref().filter(|current| current.version == version) {
            return Some(current.clone());
        }
        *current = self.live.workload(self.id).map(|snapshot| Rc::new(Current::new(version, snapshot)));
        current.clone()
    }
}

/// Of each kind, what one [`Current`] remembers; then it begins anew.
const MAX_FOUND: usize = 16;

/// A configuration, and what was looked up in it by name. Requests ask for the same few things again and again.
pub struct Current {
    version: u64,
    /// The configuration.
    pub snapshot: Arc<Snapshot>,
    tables: RefCell<Vec<Rc<FoundTable>>>,
    clusters: RefCell<Vec<Rc<Found>>>,
}

/// A route table.
pub struct FoundTable {
    /// The table.
    pub table: Arc<RouteTable>,
    /// The name that it was asked for by.
    name: Arc<str>,
}

/// A cluster with its endpoints.
pub struct Found {
    /// The cluster.
    pub cluster: Arc<Cluster>,
    /// Those that do not stand in the cluster itself.
    endpoints: Option<Arc<LoadAssignment>>,
}

impl Found {
    /// The endpoints; none if there are none.
    pub fn endpoints<'a>(&'a self, snapshot: &'a Snapshot) -> &'a LoadAssignment {
        self.endpoints.as_deref().unwrap_or_else(|| snapshot.endpoints(&self.cluster))
    }
}

impl Current {
    fn new(version: u64, snapshot: Arc<Snapshot>) -> Self {
        Self { version, snapshot, tables: RefCell::default(), clusters: RefCell::default() }
    }

    /// A route table from RDS.
    pub fn routes(&self, name: &Arc<str>) -> Option<Rc<FoundTable>> {
        let mut tables = self.tables.borrow_mut();
        if let Some(found) = tables.iter().find(|known| same_name(&known.name, name)) {
            return Some(found.clone());
        }
        let found = Rc::new(FoundTable { table: self.snapshot.routes(name)?.clone(), name: name.clone() });
        keep(&mut tables, found.clone());
        Some(found)
    }

    /// A cluster.
    pub fn cluster(&self, name: &Arc<str>) -> Option<Rc<Found>> {
        let mut clusters = self.clusters.borrow_mut();
        if let Some(found) = clusters.iter().find(|known| same_name(&known.cluster.name, name)) {
            return Some(found.clone());
        }
        let cluster = self.snapshot.cluster(name)?.clone();
        let endpoints = self.snapshot.assignment(&cluster).cloned();
        let found = Rc::new(Found { cluster, endpoints });
        keep(&mut clusters, found.clone());
        Some(found)
    }
}

/// Whether two names are the same; as a rule they are in the same place.
pub(crate) fn same_name(one: &Arc<str>, other: &Arc<str>) -> bool {
    Arc::ptr_eq(one, other) || one == other
}

fn keep<T>(list: &mut Vec<T>, found: T) {
    if list.len() >= MAX_FOUND {
        list.clear();
    }
    list.push(found);
}
