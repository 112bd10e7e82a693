//! Services whose endpoint needs no agent to be chosen: bytes to one of several addresses, each as likely as its weight says.
//!
//! In: the configuration of a client. Out: for each address of a service, the endpoints to draw from. A service with a
//! reason to ask the agent (hashing, limits, outlier detection, localities, unhealthy endpoints) is none of them.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use super::opaque;
use crate::balance::only_pool;
use crate::identity::SpiffeId;
use crate::resource::cluster::{Cluster, ClusterKind, LbPolicy, Transport};
use crate::resource::endpoint::{Endpoint, LoadAssignment};
use crate::resource::listener::{TcpProxy, Terminal};
use crate::snapshot::Snapshot;

/// Places to draw from of one service; weights that need more are the agent's to follow.
pub const MAX_SLOTS: u64 = 1024;

/// An address of a service, and where connections to it may go.
#[derive(Debug)]
pub struct Service {
    /// The address and port that clients dial.
    pub to: SocketAddr,
    /// Its endpoints.
    pub choices: Vec<Choice>,
}

/// One endpoint of a service.
#[derive(Debug)]
pub struct Choice {
    cluster: Arc<Cluster>,
    endpoint: Arc<Endpoint>,
    /// Places of its own among those of the service, at least 1.
    places: u64,
}

impl Choice {
    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.endpoint.address
    }

    /// Whether a workload with this identity is who is meant, and is to be spoken to by the mesh's own means.
    pub fn means(&self, identity: &SpiffeId) -> bool {
        let meshed = self.endpoint.tunnel || matches!(self.cluster.transport(&self.endpoint), Transport::Hbone);
        let expected = match &self.endpoint.identity {
            Some(expected) => expected == identity,
            None => self.cluster.sans.contains(identity),
        };
        meshed && expected
    }
}

impl Service {
    /// Its endpoints, each in as many places as its weight asks for.
    pub fn slots(&self) -> Vec<SocketAddr> {
        let places = |choice: &Choice| usize::try_from(choice.places).unwrap_or(usize::MAX);
        self.choices.iter().flat_map(|choice| std::iter::repeat_n(choice.address(), places(choice))).collect()
    }
}

/// The services that a workload knows by an address of their own. They follow its configuration at the cost of what has
/// changed in it, and hold nothing that can be told from it.
#[derive(Debug, Default)]
pub struct Services {
    snapshot: Snapshot,
    /// Of every address that leads to bytes: the clusters and assignments that were looked at, there or not.
    uses: HashMap<SocketAddr, Vec<Arc<str>>>,
    /// The other way round.
    users: HashMap<Arc<str>, Vec<SocketAddr>>,
}

impl Services {
    /// Takes in the configuration that is in force now. Tells the addresses of services that may have changed, come or gone.
    pub fn follow(&mut self, snapshot: &Snapshot) -> BTreeSet<SocketAddr> {
        let before = std::mem::replace(&mut self.snapshot, snapshot.clone());
        let mut changed: BTreeSet<SocketAddr> = BTreeSet::new();
        for name in before.listeners.differences(&snapshot.listeners) {
            let both = [before.listeners.get(name), snapshot.listeners.get(name)];
            changed.extend(both.into_iter().flatten().flat_map(|listener| &listener.addresses));
        }
        let clusters = before.clusters.differences(&snapshot.clusters);
        for name in clusters.chain(before.endpoints.differences(&snapshot.endpoints)) {
            changed.extend(self.users.get(name).into_iter().flatten());
        }
        changed.retain(|to| !to.ip().is_unspecified());
        changed.iter().for_each(|to| self.look_again(*to));
        changed
    }

    /// The service of an address.
    pub fn get(&self, to: SocketAddr) -> Option<Service> {
        Some(Service { to, choices: choices(&self.snapshot, to)? })
    }

    /// All their addresses, and others that lead to bytes, in no order.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.uses.keys().copied()
    }

    /// The addresses of services that have one of these endpoints, and perhaps others.
    pub fn with_any(&self, endpoints: &BTreeSet<SocketAddr>) -> BTreeSet<SocketAddr> {
        let has = |all: &LoadAssignment| all.endpoints().any(|endpoint| endpoints.contains(&endpoint.address));
        let by_eds = self.snapshot.endpoints.iter().filter(|(_, all)| has(all)).map(|(name, _)| name);
        let inline = self.snapshot.clusters.iter().filter(|(_, cluster)| match &cluster.kind {
            ClusterKind::Static(all) => has(all),
            _ => false,
        });
        let names = by_eds.chain(inline.map(|(name, _)| name));
        names.filter_map(|name| self.users.get(name)).flatten().copied().collect()
    }

    fn look_again(&mut self, to: SocketAddr) {
        for name in self.uses.remove(&to).unwrap_or_default() {
            if let Some(users) = self.users.get_mut(&name) {
                users.retain(|user| *user != to);
                if users.is_empty() {
                    self.users.remove(&name);
                }
            }
        }
        let uses = proxy(&self.snapshot, to).map(|proxy| uses(&self.snapshot, proxy)).unwrap_or_default();
        for name in &uses {
            self.users.entry(name.clone()).or_default().push(to);
        }
        if !uses.is_empty() {
            self.uses.insert(to, uses);
        }
    }
}

/// What becomes of connections to an address of a service, if that is known without their bytes.
fn proxy(snapshot: &Snapshot, to: SocketAddr) -> Option<&TcpProxy> {
    // The one that serves the address, if several stand for it; none that serves every address.
    let listener = snapshot.outbound(to).filter(|listener| listener.addresses.contains(&to))?;
    let unspecified = if to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    let Terminal::Tcp(proxy) = &opaque(listener, to, unspecified, false)?.terminal else { return None };
    (!proxy.hash_source_ip).then_some(proxy)
}

/// Names of what the choices depend on, besides the listener.
fn uses(snapshot: &Snapshot, proxy: &TcpProxy) -> Vec<Arc<str>> {
    let mut uses = Vec::new();
    for entry in proxy.clusters.entries() {
        uses.push(entry.name.clone());
        if let Some(ClusterKind::Eds { service_name }) = snapshot.cluster(&entry.name).map(|cluster| &cluster.kind) {
            uses.push(service_name.clone());
        }
    }
    uses.sort_unstable();
    uses.dedup();
    uses.shrink_to_fit();
    uses
}

/// `None`: the agent is to choose, or there is no such service.
fn choices(snapshot: &Snapshot, to: SocketAddr) -> Option<Vec<Choice>> {
    let proxy = proxy(snapshot, to)?;
    let mut shares = Vec::new();
    for entry in proxy.clusters.entries().filter(|entry| entry.weight > 0) {
        let cluster = snapshot.cluster(&entry.name)?;
        let endpoints = endpoints(snapshot, cluster)?;
        let same_family = |endpoint: &Arc<Endpoint>| endpoint.address.is_ipv4() == to.is_ipv4();
        if endpoints.is_empty() || !endpoints.iter().all(same_family) {
            return None;
        }
        let total: u64 = endpoints.iter().map(|endpoint| u64::from(endpoint.weight)).sum();
        shares.push((entry.weight, cluster, endpoints, total));
    }
    // An endpoint's part of all is weight of its cluster × its own weight / weight of the cluster's endpoints.
    let common = shares.iter().try_fold(1_u64, |common, (.., total)| lcm(common, *total))?;
    let mut choices = Vec::new();
    for (weight, cluster, endpoints, total) in shares {
        for endpoint in endpoints {
            let part = u64::from(endpoint.weight).checked_mul(common / total)?;
            let (cluster, endpoint) = (cluster.clone(), endpoint.clone());
            choices.push(Choice { cluster, endpoint, places: part.checked_mul(u64::from(weight))? });
        }
    }
    let divisor = choices.iter().fold(0, |divisor, choice| gcd(divisor, choice.places));
    choices.iter_mut().for_each(|choice| choice.places /= divisor.max(1));
    let places = choices.iter().try_fold(0_u64, |sum, choice| sum.checked_add(choice.places))?;
    (1..=MAX_SLOTS).contains(&places).then_some(choices)
}

/// The endpoints of a cluster, if any of them may be drawn by its weight alone.
fn endpoints<'s>(snapshot: &'s Snapshot, cluster: &'s Cluster) -> Option<&'s [Arc<Endpoint>]> {
    let drawn = matches!(cluster.lb.policy, LbPolicy::RoundRobin | LbPolicy::LeastRequest { .. } | LbPolicy::Random);
    let listed = matches!(cluster.kind, ClusterKind::Eds { .. } | ClusterKind::Static(_));
    let asks =
        cluster.outlier.is_some() || cluster.lb.slow_start.is_some() || cluster.limits.max_connections != u32::MAX;
    (drawn && listed && !asks).then(|| only_pool(snapshot.endpoints(cluster), &cluster.lb)).flatten()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn lcm(a: u64, b: u64) -> Option<u64> {
    (a / gcd(a, b).max(1)).checked_mul(b)
}

#[cfg(test)]
mod tests;
