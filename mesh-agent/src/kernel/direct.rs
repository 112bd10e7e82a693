//! Which workloads of this node connect to each other without the agent, in the maps. In: the ways that are allowed. Out:
//! ALLOWED and flags of WORKLOADS; the ends of connections that are no longer allowed. A way that is taken away is gone
//! from the map before its connections are ended, so that none is opened in between, and comes back as another one.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

use aya::maps::{HashMap as BpfHashMap, MapData};
use mesh_common::abi::{self, Allowance, BY_SERVICE, Direct, HAS_DIRECT, PAUSED, TAKES_DIRECT, Tuple, Way, maps};
use tracing::{info, warn};

use super::enrol::Pod;
use super::services::{Choices, Services};
use super::workloads::Workloads;
use super::{KernelError, refused, take_out};
use crate::net::connections::{Connection, destroy};
use crate::net::netns::NetNs;

/// A workload may connect to a port of another one without the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DirectWay {
    /// The client's `Workload::id`.
    pub client: u32,
    /// An address of the server's, which no other workload of the node has, and its port.
    pub to: SocketAddr,
    /// The server's `Workload::id`.
    pub server: u32,
    /// Only for connections to a service of which this is the endpoint that was chosen.
    pub by_service: bool,
}

/// What goes without the agent.
#[derive(Debug, Clone, Default)]
pub struct DirectPlan {
    /// Who may connect to whom.
    pub ways: Vec<DirectWay>,
    /// Services whose endpoint the kernel chooses, by the client's `Workload::id`: the address and port that it dials, and the
    /// endpoints, of the same family, each as likely as any other.
    pub services: HashMap<u32, Choices>,
}

/// The maps ALLOWED and DIRECT.
pub(super) struct Ways {
    allowed: BpfHashMap<MapData, Way, Allowance>,
    records: BpfHashMap<MapData, Tuple, Direct>,
    /// What stands in ALLOWED; read once, when this agent is the only writer. Counts of what is missed are not in it.
    known: Option<HashMap<Way, Allowance>>,
    /// The last one that was given. Higher than that of every record.
    generation: u64,
    services: Services,
}

/// Connections that were led to an endpoint just before it was taken away have sent their SYN by then, or fail.
const ON_THEIR_WAY: Duration = Duration::from_millis(1);

type Pods = HashMap<u32, Pod>;

/// A plan, as the maps name it.
struct Target {
    /// The server's namespace, and flags.
    ways: HashMap<Way, (u64, u32)>,
    /// By namespace.
    services: HashMap<u64, Choices>,
}

impl Target {
    /// What names workloads that are not enrolled is left out.
    fn of(plan: &DirectPlan, pods: &Pods) -> Target {
        let cookie = |id: u32| pods.get(&id).map(|pod| pod.number);
        let mut ways: HashMap<Way, (u64, u32)> = HashMap::new();
        for DirectWay { client, to, server, by_service } in &plan.ways {
            if let (Some(netns), Some(server)) = (cookie(*client), cookie(*server)) {
                let flags = if *by_service { BY_SERVICE } else { 0 };
                // Who may go there by its address may also be led there.
                let (_, of) = ways.entry(Way { netns, to: (*to).into(), zero: 0 }).or_insert((server, flags));
                *of &= flags;
            }
        }
        let services = plan.services.iter().filter_map(|(client, choices)| Some((cookie(*client)?, choices.clone())));
        Target { ways, services: services.collect() }
    }
}

impl Ways {
    pub(super) fn new(
        allowed: BpfHashMap<MapData, Way, Allowance>,
        records: BpfHashMap<MapData, Tuple, Direct>,
        services: Services,
    ) -> Self {
        Self { allowed, records, known: None, generation: 0, services }
    }

    /// Puts `plan` in the place of what is there; as `Kernel::set_direct`. `left`: namespaces of which another agent's
    /// word still stands.
    pub(super) fn set(
        &mut self,
        workloads: &mut Workloads,
        pods: &mut Pods,
        plan: &DirectPlan,
        undecided: &HashSet<u32>,
        left: &HashSet<u64>,
    ) -> Result<(), KernelError> {
        let Target { ways, services } = Target::of(plan, pods);
        let decided = pods.iter().filter(|(id, _)| !undecided.contains(id)).map(|(_, pod)| pod.number);
        let decided: HashSet<u64> = decided.collect();
        let open = |cookie: u64| left.contains(&cookie) || !decided.contains(&cookie);

        // Services first: who is led to an endpoint should find that he may go there.
        let mut failed = self.services.set(services, open).err();
        let known = self.known().clone();
        let stays =
            |way: &Way, allowance: &Allowance| ways.get(way).is_some_and(|(server, _)| *server == allowance.server);
        let (kept, gone): (Vec<_>, Vec<_>) = known.iter().partition(|(way, allowance)| stays(way, allowance));
        let (paused, gone): (Vec<_>, Vec<_>) =
            gone.into_iter().partition(|(way, allowance)| open(way.netns) || open(allowance.server));
        if !gone.is_empty() {
            std::thread::sleep(ON_THEIR_WAY);
        }
        let gone: HashSet<Way> = gone.into_iter().map(|(way, _)| *way).collect();
        failed = self.remove_all(&gone).err().or(failed);
        self.end(pods, |way| gone.contains(way), "no longer allowed");

        let kept = kept.into_iter().filter_map(|(way, of)| Some((*way, *of, ways.get(way)?.1)));
        let paused = paused.into_iter().map(|(way, of)| (*way, *of, of.flags | PAUSED));
        for (way, allowance, flags) in kept.chain(paused).filter(|(_, allowance, flags)| allowance.flags != *flags) {
            failed = self.put(way, Allowance { flags, ..allowance }).err().or(failed);
        }
        // Before anything may come.
        let servers: HashSet<u64> = ways.values().map(|(server, _)| *server).collect();
        for pod in pods.values_mut().filter(|pod| servers.contains(&pod.number)) {
            flag(workloads, pod, TAKES_DIRECT, true)?;
        }
        for (way, (server, flags)) in ways.iter().filter(|(way, _)| !known.contains_key(way) || gone.contains(way)) {
            self.generation += 1;
            let allowance = Allowance { server: *server, generation: self.generation, missed: 0, flags: *flags };
            failed = self.put(*way, allowance).err().or(failed);
        }
        let clients: HashSet<u64> = self.known().keys().map(|way| way.netns).collect();
        for pod in pods.values_mut() {
            flag(workloads, pod, HAS_DIRECT, clients.contains(&pod.number))?;
        }
        failed.map_or(Ok(()), Err)
    }

    /// Forgets a workload that is being withdrawn. Its connections with others, which stay, end.
    pub(super) fn forget(&mut self, others: &Pods, pod: &Pod) -> Result<(), KernelError> {
        let cookie = pod.number;
        let concerns = |way: &Way, server: u64| way.netns == cookie || server == cookie;
        let gone: HashSet<Way> =
            self.known().iter().filter(|(way, of)| concerns(way, of.server)).map(|(way, _)| *way).collect();
        let removed = self.remove_all(&gone);
        let all = |at: u64| if at == cookie { Some(&*pod.netns) } else { netns_of(others, at) };
        self.end_in(all, |way| gone.contains(way), "its workload was withdrawn");
        self.forget_records(cookie);
        removed.and(self.services.forget(cookie))
    }

    /// Forgets a namespace of which only the cookie is known.
    pub(super) fn discard(&mut self, cookie: u64) -> Result<(), KernelError> {
        let concerns = |(way, of): &(&Way, &Allowance)| way.netns == cookie || of.server == cookie;
        let gone: HashSet<Way> = self.known().iter().filter(concerns).map(|(way, _)| *way).collect();
        let removed = self.remove_all(&gone);
        self.forget_records(cookie);
        removed.and(self.services.forget(cookie))
    }

    /// Takes everything away; connections go on by themselves.
    pub(super) fn release(&mut self) {
        let all: Vec<Way> = self.known().keys().copied().collect();
        // Without a record nobody asks for the allowance.
        let records: Vec<Tuple> = self.records.keys().filter_map(Result::ok).collect();
        for key in records {
            // Gone is as good as removed.
            let _ = self.records.remove(&key);
        }
        for way in all {
            if let Err(error) = self.remove(&way) {
                warn!(%error, "a direct way outlives the mesh on this node");
            }
        }
    }

    fn known(&mut self) -> &mut HashMap<Way, Allowance> {
        let Self { allowed, records, known, generation, .. } = self;
        known.get_or_insert_with(|| {
            let known: HashMap<Way, Allowance> = allowed.iter().filter_map(Result::ok).collect();
            let recorded = records.iter().filter_map(Result::ok).map(|(_, record)| record.generation);
            *generation = known.values().map(|allowance| allowance.generation).chain(recorded).max().unwrap_or(0);
            known
        })
    }

    fn put(&mut self, way: Way, allowance: Allowance) -> Result<(), KernelError> {
        let there = self.allowed.get(&way, 0);
        let missed = there.map_or(0, |there| there.missed);
        self.allowed.insert(way, Allowance { missed, ..allowance }, 0).map_err(|e| refused(maps::ALLOWED, &e))?;
        self.known().insert(way, allowance);
        Ok(())
    }

    /// Each of them, whatever becomes of the others; the error is of one that is still there.
    fn remove_all(&mut self, gone: &HashSet<Way>) -> Result<(), KernelError> {
        let failed = gone.iter().filter_map(|way| self.remove(way).err()).last();
        failed.map_or(Ok(()), Err)
    }

    /// What cannot be taken out is still known, and will be tried again.
    fn remove(&mut self, way: &Way) -> Result<(), KernelError> {
        take_out(&mut self.allowed, maps::ALLOWED, way)?;
        self.known().remove(way);
        Ok(())
    }

    /// Ends a connection of which one end is in this namespace: nothing of it passes any more.
    pub(super) fn end_one(&self, pods: &Pods, tuple: &Tuple) {
        let Some(netns) = netns_of(pods, tuple.netns) else { return };
        let (client, server) = (tuple.client.into(), tuple.server.into());
        for (local, remote, inbound) in [(client, server, false), (server, client, true)] {
            // It may be gone by itself.
            let _ = destroy(netns, &Connection { local, remote, inbound });
        }
    }

    fn end(&self, pods: &Pods, which: impl Fn(&Way) -> bool, why: &str) {
        self.end_in(|cookie| netns_of(pods, cookie), which, why);
    }

    /// Ends the connections on these ways, at both ends.
    fn end_in<'p>(&self, netns: impl Fn(u64) -> Option<&'p NetNs>, which: impl Fn(&Way) -> bool, why: &str) {
        let way = |tuple: &Tuple, record: &Direct| Way { netns: record.client, to: tuple.server, zero: 0 };
        let concerned = self.records.iter().filter_map(Result::ok).filter(|(tuple, record)| which(&way(tuple, record)));
        let mut ended = 0;
        for (tuple, record) in concerned.collect::<Vec<_>>() {
            let (client, server) = (tuple.client.into(), tuple.server.into());
            for (cookie, local, remote, inbound) in
                [(record.client, client, server, false), (record.server, server, client, true)]
            {
                let Some(netns) = netns(cookie) else { continue };
                if let Err(error) = destroy(netns, &Connection { local, remote, inbound }) {
                    // The programs drop its packets all the same.
                    warn!(%local, %remote, %error, "cannot end a direct connection");
                }
            }
            ended += 1;
        }
        if ended > 0 {
            info!(ended, why, "closed direct connections");
        }
    }

    fn forget_records(&mut self, cookie: u64) {
        let of = |(_, record): &(Tuple, Direct)| record.client == cookie || record.server == cookie;
        let records: Vec<(Tuple, Direct)> = self.records.iter().filter_map(Result::ok).filter(of).collect();
        for (key, _) in records {
            // Gone is as good as removed.
            let _ = self.records.remove(&key);
        }
    }
}

fn netns_of(pods: &Pods, cookie: u64) -> Option<&NetNs> {
    pods.values().find(|pod| pod.number == cookie).map(|pod| &*pod.netns)
}

fn flag(workloads: &mut Workloads, pod: &mut Pod, flag: u32, on: bool) -> Result<(), KernelError> {
    let flags = if on { pod.entry.flags | flag } else { pod.entry.flags & !flag };
    if flags == pod.entry.flags {
        return Ok(());
    }
    let entry = abi::Workload { flags, ..pod.entry };
    workloads.insert(pod.number, &entry)?;
    pod.entry = entry;
    Ok(())
}
