//! Which workloads of this node connect to each other without the agent. In: the list of workloads, their configuration, the
//! policies. Out: the kernel is told whenever one of them changes. Of a workload about which something is not known,
//! nothing changes but that nothing new begins.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mesh_core::Snapshot;
use mesh_core::authorization::Policies;
use mesh_core::direct::{Choice, Party, Service, Services, Way, Ways};
use mesh_core::identity::SpiffeId;
use mesh_core::resource::workload::Workload as Known;
use tokio::sync::watch;
use tokio::time::Instant;

use super::roster::lock;
use crate::admin::Roster;
use crate::kernel::{Choices, DirectPlan, DirectWay, Kernel};
use crate::live::{Live, NodeConfig};
use crate::settings::SameNode;
use crate::telemetry::{Kind, Metrics};
use crate::workload::Workload;

/// Between two rounds: many changes come together.
const PAUSE: Duration = Duration::from_millis(50);
/// Until what the kernel did not take is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Lists of endpoints that are never worth sweeping for those that nobody holds.
const MIN_SWEEP: usize = 1024;

/// What is asked for every two workloads of the node.
pub(super) struct DirectWays {
    live: Arc<Live>,
    kernel: Arc<Mutex<Kernel>>,
    roster: watch::Receiver<Arc<Roster>>,
    changes: watch::Receiver<u64>,
    question: Question,
    dirty: bool,
    not_before: Instant,
    count: Arc<AtomicI64>,
    /// What went wrong last: said once, not at every attempt.
    failure: Option<String>,
}

impl DirectWays {
    /// `node_stream`: whether policies are enforced.
    pub(super) fn new(
        live: Arc<Live>,
        kernel: Arc<Mutex<Kernel>>,
        roster: watch::Receiver<Arc<Roster>>,
        node_stream: bool,
        metrics: &Metrics,
    ) -> Self {
        let count = Arc::new(AtomicI64::new(0));
        let counting = count.clone();
        metrics.add_source(move |out| {
            let help =
                "Ports of local workloads that other local workloads connect to without the agent, for each of these.";
            out.single("mesh_agent_direct_ways", Kind::Gauge, help, counting.load(Relaxed));
        });
        let changes = live.changes();
        let question = Question { node_stream, ..Question::default() };
        Self { live, kernel, roster, changes, question, dirty: true, not_before: Instant::now(), count, failure: None }
    }

    /// Waits until there is something to ask anew.
    pub(super) async fn due(&mut self) {
        while !self.dirty {
            // The senders live as long as the agent.
            tokio::select! {
                _ = self.changes.changed() => {}
                _ = self.roster.changed() => {}
            }
            self.dirty = true;
        }
        tokio::time::sleep_until(self.not_before).await;
    }

    /// Asks, and tells the kernel.
    pub(super) async fn settle(&mut self) {
        self.dirty = false;
        self.changes.mark_unchanged();
        let workloads: Vec<Arc<Workload>> =
            self.roster.borrow_and_update().enrolled.iter().map(|enrolled| enrolled.workload.clone()).collect();
        let (config, mut question, kernel) =
            (self.live.load(), std::mem::take(&mut self.question), self.kernel.clone());
        // With hundreds of workloads this takes long enough to be in others' way.
        let asked = tokio::task::spawn_blocking(move || {
            let (plan, undecided) = question.ask(&workloads, &config);
            let told = lock(&kernel).set_direct(&plan, &undecided);
            (question, plan.ways.len(), told)
        });
        match asked.await {
            Ok((question, count, told)) => {
                self.question = question;
                self.count.store(i64::try_from(count).unwrap_or(i64::MAX), Relaxed);
                let failure = told.err().map(|error| error.to_string());
                if let Some(error) = failure.as_ref().filter(|error| self.failure.as_ref() != Some(error)) {
                    tracing::error!(error, again = ?RETRY, "the kernel does not know who may connect without the agent");
                }
                self.dirty |= failure.is_some();
                self.failure = failure;
            }
            // A defect; what the kernel knows stays.
            Err(error) => tracing::error!(%error, "cannot tell which connections need no agent"),
        }
        self.not_before = Instant::now() + if self.failure.is_some() { RETRY } else { PAUSE };
    }
}

#[derive(Default)]
struct Question {
    node_stream: bool,
    /// Workloads as they were told of last, by `Workload::id`, as in `proxy::authorize`.
    known: HashMap<u32, Arc<Known>>,
    /// Who goes where directly.
    ways: Ways,
    /// Whose the addresses of these workloads are.
    people: HashMap<IpAddr, SpiffeId>,
    /// As far as they are workloads of which everything is known, by `Workload::id`.
    clients: HashMap<u32, Client>,
    lists: Lists,
}

/// What a client's kernel chooses endpoints for, kept for what does not change.
#[derive(Default)]
struct Client {
    services: Services,
    ways: BTreeSet<SocketAddr>,
    /// Their endpoints, by the service's address.
    chosen: Choices,
}

/// Lists of endpoints, each held once for all clients.
#[derive(Default)]
struct Lists {
    all: HashSet<Arc<[SocketAddr]>>,
    /// Size at which those are let go that nobody else holds.
    sweep_at: usize,
}

impl Lists {
    fn get(&mut self, list: Vec<SocketAddr>) -> Arc<[SocketAddr]> {
        if let Some(there) = self.all.get(&*list) {
            return there.clone();
        }
        if self.all.len() >= self.sweep_at {
            self.all.retain(|list| Arc::strong_count(list) > 1);
            // Twice what lives: the cost of sweeping stays in proportion to what was added.
            self.sweep_at = (self.all.len() * 2).max(MIN_SWEEP);
        }
        let list: Arc<[SocketAddr]> = list.into();
        self.all.insert(list.clone());
        list
    }
}

impl Client {
    /// `others`: `people` are not who they were.
    fn follow(
        &mut self,
        snapshot: &Snapshot,
        ways: BTreeSet<SocketAddr>,
        people: &HashMap<IpAddr, SpiffeId>,
        others: bool,
        lists: &mut Lists,
    ) {
        let mut changed = self.services.follow(snapshot);
        let before = std::mem::replace(&mut self.ways, ways);
        let differ: BTreeSet<SocketAddr> = before.symmetric_difference(&self.ways).copied().collect();
        if others {
            changed.extend(self.services.addresses());
        } else if !differ.is_empty() {
            changed.extend(self.services.with_any(&differ));
        }
        for to in changed {
            match self.services.get(to).filter(|service| self.is_chosen(service, people)) {
                Some(service) => {
                    let list = lists.get(service.slots());
                    // What is the same stays so in memory.
                    if self.chosen.get(&to) != Some(&list) {
                        self.chosen.insert(to, list);
                    }
                }
                None => {
                    self.chosen.remove(&to);
                }
            }
        }
    }

    /// A service of which at least one endpoint is gone to directly, and none that is of this node is who is not meant.
    fn is_chosen(&self, service: &Service, people: &HashMap<IpAddr, SpiffeId>) -> bool {
        let meant = |choice: &Choice| {
            let server = people.get(&choice.address().ip());
            server.is_none_or(|identity| choice.means(identity))
        };
        service.choices.iter().any(|choice| self.ways.contains(&choice.address())) && service.choices.iter().all(meant)
    }
}

impl Question {
    /// Everything that is direct, and the workloads of which nobody can tell.
    fn ask(&mut self, workloads: &[Arc<Workload>], config: &NodeConfig) -> (DirectPlan, HashSet<u32>) {
        let mut owners: HashMap<IpAddr, usize> = HashMap::new();
        for address in workloads.iter().flat_map(|workload| &workload.addresses) {
            *owners.entry(*address).or_default() += 1;
        }
        self.known.retain(|id, _| workloads.iter().any(|workload| workload.id == *id));
        let unambiguous =
            |workload: &Workload| workload.addresses.iter().all(|address| owners.get(address) == Some(&1));
        let may = |workload: &&Arc<Workload>| {
            workload.same_node == SameNode::Direct && workload.host.is_none() && unambiguous(workload)
        };
        let (mut parties, mut undecided) = (Vec::new(), HashSet::new());
        for workload in workloads.iter().filter(may) {
            match (config.by_workload.get(&workload.id), self.policies(workload, config)) {
                (Some(snapshot), Some(policies)) => parties.push(Party {
                    id: workload.id,
                    snapshot: snapshot.clone(),
                    policies,
                    identity: workload.identity.clone(),
                    addresses: workload.addresses.as_slice().into(),
                }),
                _ => {
                    undecided.insert(workload.id);
                }
            }
        }
        let asked = self.ways.follow(parties.clone());
        let way = |Way { client, to, server, by_service }| DirectWay { client, to, server, by_service };
        let mut plan = DirectPlan { ways: self.ways.all().map(way).collect(), ..DirectPlan::default() };
        tracing::debug!(asked, ways = plan.ways.len(), "who may connect without the agent");
        let mut ways: HashMap<u32, BTreeSet<SocketAddr>> = HashMap::new();
        for way in &plan.ways {
            ways.entry(way.client).or_default().insert(way.to);
        }
        let people: HashMap<IpAddr, SpiffeId> =
            parties.iter().flat_map(|one| one.addresses.iter().map(|ip| (*ip, one.identity.clone()))).collect();
        let others = self.people != people;
        self.people = people;
        self.clients.retain(|id, _| parties.iter().any(|one| one.id == *id));
        for one in &parties {
            let client = self.clients.entry(one.id).or_default();
            let ways = ways.remove(&one.id).unwrap_or_default();
            client.follow(&one.snapshot, ways, &self.people, others, &mut self.lists);
            plan.services.insert(one.id, client.chosen.clone());
        }
        (plan, undecided)
    }

    fn policies(&mut self, workload: &Workload, config: &NodeConfig) -> Option<Policies> {
        if !self.node_stream {
            return Some(Policies::default());
        }
        let ambient = config.ambient.as_ref()?;
        if let Some(told) = ambient.local(&workload.addresses, &workload.namespace, &workload.name) {
            self.known.insert(workload.id, told.clone());
        }
        ambient.in_force(self.known.get(&workload.id)?).ok()
    }
}

#[cfg(test)]
mod tests;
