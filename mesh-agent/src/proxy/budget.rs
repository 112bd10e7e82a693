//! How many connections the node and each of its workloads have, and whether one more may come.
//!
//! In: a connection, a stream of a tunnel, a neighbour. Out: its place, or that there is none. Each worker counts its own and nobody
//! else writes that; who wants the sum adds them up, so limits hold for all workers together but for connections that come on
//! two of them at the same instant. Never: lets one workload have all places of the node.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::net::share::Share;
use crate::settings::limits::Limits;
use crate::telemetry::{Kind, Limit, LimitCounts, Text};
use crate::workload::Workload;

/// A workload may have this many times what is left of the node's places. So with one that takes all it can get, 1 of 17 places is
/// left, with two 1 of 33; and who has few always gets more of them before those who have many.
const TIMES_WHAT_IS_LEFT: usize = 16;

/// Connections by worker.
#[derive(Debug)]
struct Ledger(Box<[AtomicUsize]>);

impl Ledger {
    fn new(workers: usize) -> Self {
        Self((0..workers.max(1)).map(|_| AtomicUsize::new(0)).collect())
    }

    fn total(&self) -> usize {
        self.0.iter().map(|one| one.load(Relaxed)).sum()
    }

    /// The worker has this many more, or fewer. Nobody else writes its count.
    fn change(&self, worker: usize, by: isize) {
        if let Some(count) = self.0.get(worker) {
            count.store(count.load(Relaxed).saturating_add_signed(by), Relaxed);
        }
    }
}

/// The counts of all workers.
#[derive(Debug)]
pub struct Ledgers {
    node: Ledger,
    /// Connections of all workloads together.
    most: usize,
    workloads: Mutex<BTreeMap<u32, Entry>>,
}

#[derive(Debug)]
struct Entry {
    namespace: Arc<str>,
    name: Arc<str>,
    ledger: Arc<Ledger>,
}

impl Ledgers {
    /// `most`: connections of all workloads together.
    pub(super) fn new(workers: usize, most: usize) -> Self {
        Self { node: Ledger::new(workers), most, workloads: Mutex::default() }
    }

    pub(super) fn enrol(&self, workload: &Workload) {
        let (namespace, name) = (workload.namespace.clone(), workload.name.clone());
        let ledger = Arc::new(Ledger::new(self.node.0.len()));
        self.workloads().insert(workload.id, Entry { namespace, name, ledger });
    }

    pub(super) fn withdraw(&self, id: u32) {
        self.workloads().remove(&id);
    }

    /// Writes them to the metrics page.
    pub fn write(&self, out: &mut Text) {
        let help = "Connections that all local workloads together may have.";
        out.single("mesh_agent_connections_limit", Kind::Gauge, help, self.most);
        let name = "mesh_agent_workload_connections";
        out.family(name, Kind::Gauge, "Connections open, by local workload.");
        for Entry { namespace, name: workload, ledger } in self.workloads().values() {
            out.name(name, "");
            out.label("namespace", namespace);
            out.label("workload", workload);
            out.value(ledger.total());
        }
    }

    fn ledger(&self, id: u32) -> Arc<Ledger> {
        let known = self.workloads().get(&id).map(|entry| entry.ledger.clone());
        // One that has gone meanwhile counts for itself.
        known.unwrap_or_else(|| Arc::new(Ledger::new(self.node.0.len())))
    }

    fn workloads(&self) -> MutexGuard<'_, BTreeMap<u32, Entry>> {
        // Between any two of these calls the list is whole.
        self.workloads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one workload may have, as one worker knows it.
#[derive(Debug)]
pub(super) struct Budget {
    worker: usize,
    all: Arc<Ledgers>,
    own: Arc<Ledger>,
    limits: Limits,
    counts: Arc<LimitCounts>,
    /// What its connections share out.
    pub(super) share: Rc<Share>,
    requests: Cell<usize>,
}

impl Budget {
    /// Of the workload with this id. `counts`: the worker's.
    pub(super) fn new(
        worker: usize,
        all: &Arc<Ledgers>,
        id: u32,
        limits: &Limits,
        counts: Arc<LimitCounts>,
    ) -> Rc<Self> {
        let share = Share::new(limits, counts.clone());
        let (all, own) = (all.clone(), all.ledger(id));
        Rc::new(Self { worker, all, own, limits: *limits, counts, share, requests: Cell::new(0) })
    }

    /// A place for one more connection, given back when dropped.
    pub(super) fn admit(self: &Rc<Self>) -> Option<Place> {
        let refused = refused(&self.limits, self.own.total(), self.all.node.total(), self.all.most);
        if let Some(limit) = refused {
            self.counts.reached(limit);
            return None;
        }
        self.own.change(self.worker, 1);
        self.all.node.change(self.worker, 1);
        self.share.join();
        Some(Place(self.clone()))
    }

    /// A place for one more request of HTTP/2, given back when dropped.
    pub(super) fn request(self: &Rc<Self>) -> Option<Request> {
        let requests = self.requests.get();
        if requests >= self.limits.requests_per_workload {
            self.counts.reached(Limit::RequestsPerWorkload);
            return None;
        }
        self.requests.set(requests + 1);
        Some(Request(self.clone()))
    }

    /// A limit was reached of which only somebody else has noticed.
    pub(super) fn reached(&self, limit: Limit) {
        self.counts.reached(limit);
    }

    /// The limits.
    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }
}

/// By which limit a workload with `own` of all `open` connections is refused one more, where the node may have `most`.
fn refused(limits: &Limits, own: usize, open: usize, most: usize) -> Option<Limit> {
    if own >= limits.connections_per_workload {
        return Some(Limit::ConnectionsPerWorkload);
    }
    let left = most.saturating_sub(open);
    (own >= left.saturating_mul(TIMES_WHAT_IS_LEFT)).then_some(Limit::Connections)
}

/// A connection's place in its workload's budget.
#[derive(Debug)]
pub(super) struct Place(Rc<Budget>);

impl Drop for Place {
    fn drop(&mut self) {
        let Budget { worker, all, own, share, .. } = &*self.0;
        own.change(*worker, -1);
        all.node.change(*worker, -1);
        share.leave();
    }
}

/// A request's place in its workload's budget.
#[derive(Debug)]
pub(super) struct Request(Rc<Budget>);

impl Drop for Request {
    fn drop(&mut self) {
        self.0.requests.set(self.0.requests.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(connections_per_workload: usize) -> Limits {
        Limits { connections_per_workload, ..Limits::default() }
    }

    /// Takes places until there is none.
    fn all_of(budget: &Rc<Budget>) -> Vec<Place> {
        std::iter::from_fn(|| budget.admit()).collect()
    }

    #[test]
    fn whoever_has_few_gets_one_more_and_whoever_has_many_does_not() {
        let most = 100;
        assert_eq!(refused(&limits(10), 9, 9, most), None);
        assert_eq!(refused(&limits(10), 10, 10, most), Some(Limit::ConnectionsPerWorkload));
        assert_eq!(refused(&limits(1000), 94, 94, most), None);
        assert_eq!(refused(&limits(1000), 95, 95, most), Some(Limit::Connections));
        assert_eq!(refused(&limits(1000), 0, 99, most), None);
        assert_eq!(refused(&limits(1000), 0, 100, most), Some(Limit::Connections));
    }

    #[test]
    fn a_workload_cannot_have_all_places_of_the_node() {
        let ledgers = Arc::new(Ledgers::new(2, 1000));
        let counts = Arc::new(LimitCounts::default());
        let budget = |worker, id| Budget::new(worker, &ledgers, id, &limits(10_000), counts.clone());
        let greedy = all_of(&budget(0, 1));
        assert_eq!((greedy.len(), counts.of(Limit::Connections)), (942, 1));
        let second = all_of(&budget(1, 2));
        let third = budget(0, 3).admit();
        assert!(second.len() >= 40 && third.is_some(), "{} {third:?}", second.len());
        drop(greedy);
        assert_eq!(ledgers.node.total(), second.len() + 1);
    }

    #[test]
    fn workers_count_for_one_workload_together() {
        let ledgers = Arc::new(Ledgers::new(2, 1000));
        let text = "{node: n, controlPlane: {address: 'http://a:1'}, workloads: [{name: a, namespace: x, netns: /n}]}";
        let settings = crate::settings::Settings::parse(std::path::Path::new("x"), text).unwrap();
        let netns = Arc::new(crate::net::netns::NetNs::current().unwrap());
        let workload = Workload::new(7, &settings.workloads[0], &"c".into(), "cluster.local", netns, Vec::new());
        ledgers.enrol(&workload.unwrap());
        let counts = Arc::new(LimitCounts::default());
        let budgets = [0, 1].map(|worker| Budget::new(worker, &ledgers, 7, &limits(5), counts.clone()));
        let first: Vec<_> = (0..3).filter_map(|_| budgets[0].admit()).collect();
        let second = all_of(&budgets[1]);
        assert_eq!((first.len(), second.len(), counts.of(Limit::ConnectionsPerWorkload)), (3, 2, 1));
        let mut out = Text::default();
        ledgers.write(&mut out);
        let page = out.finish();
        assert!(page.contains("mesh_agent_workload_connections{namespace=\"x\",workload=\"a\"} 5\n"), "{page}");
        assert!(page.contains("mesh_agent_connections_limit 1000\n"), "{page}");
        drop(first);
        assert!(budgets[1].admit().is_some());
        ledgers.withdraw(7);
        assert!(!format!("{ledgers:?}").contains("name"));
    }

    #[test]
    fn requests_have_places_too() {
        let ledgers = Arc::new(Ledgers::new(1, 1000));
        let counts = Arc::new(LimitCounts::default());
        let limits = Limits { requests_per_workload: 2, ..Limits::default() };
        let budget = Budget::new(0, &ledgers, 1, &limits, counts.clone());
        let (first, _second) = (budget.request().unwrap(), budget.request().unwrap());
        assert!(budget.request().is_none());
        drop(first);
        assert!(budget.request().is_some());
        assert_eq!(counts.of(Limit::RequestsPerWorkload), 1);
    }
}
