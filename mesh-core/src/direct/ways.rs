//! Which of a node's workloads need no agent to connect to which ports of others, kept while configurations and policies change.
//!
//! In: all these workloads, each time one of them or what is known of it is another. Out: the ways. Only what a change touches
//! is asked again; a property test holds the answer equal to asking for everything. No I/O.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{Local, comes_in, leaves, leaving};
use crate::authorization::Policies;
use crate::identity::SpiffeId;
use crate::resource::listener::Listener;
use crate::snapshot::{Snapshot, VIRTUAL_OUTBOUND};

/// One of the node's workloads, of which everything is known.
#[derive(Debug, Clone)]
pub struct Party {
    /// Tells it from others of the node.
    pub id: u32,
    /// Its configuration.
    pub snapshot: Arc<Snapshot>,
    /// The policies in force for it.
    pub policies: Policies,
    /// Who it is.
    pub identity: SpiffeId,
    /// Its addresses, which nobody else of the node has.
    pub addresses: Arc<[IpAddr]>,
}

impl Party {
    fn local(&self) -> Local<'_> {
        let Party { snapshot, policies, identity, addresses, .. } = self;
        Local { snapshot, policies, identity, addresses }
    }
}

/// A workload may connect to a port of another one without an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Way {
    /// [`Party::id`] of the client.
    pub client: u32,
    /// An address of the server's, and its port.
    pub to: SocketAddr,
    /// [`Party::id`] of the server.
    pub server: u32,
    /// Only for connections to a service of which this is the endpoint that was chosen.
    pub by_service: bool,
}

/// All ways between a node's workloads.
#[derive(Debug, Default)]
pub struct Ways {
    known: BTreeMap<u32, Known>,
    /// By server, then client: where it comes in. No empty lists.
    admitted: BTreeMap<u32, BTreeMap<u32, Vec<SocketAddr>>>,
}

/// A workload as it was when it was asked about.
#[derive(Debug)]
struct Known {
    party: Party,
    /// Its addresses with the ports that take bytes as they are.
    ports: Vec<SocketAddr>,
    /// Of every place where it comes in: how what it sends there leaves it.
    leaves: HashMap<SocketAddr, Leaving>,
}

/// Whether what is sent to an address goes there as it is, and the clusters that were looked at for it, there or not.
#[derive(Debug)]
struct Leaving {
    as_it_is: bool,
    uses: Vec<Arc<str>>,
}

impl Ways {
    /// Takes in the workloads that there are now. Tells how many questions had to be asked.
    pub fn follow(&mut self, parties: Vec<Party>) -> usize {
        let ids: HashSet<u32> = parties.iter().map(|party| party.id).collect();
        self.known.retain(|id, _| ids.contains(id));
        self.admitted.retain(|server, clients| {
            clients.retain(|client, _| ids.contains(client));
            ids.contains(server) && !clients.is_empty()
        });
        let (mut servers, mut clients) = (BTreeSet::new(), BTreeSet::new());
        for party in parties {
            let id = party.id;
            let (as_server, as_client) = self.take(party);
            servers.extend(as_server.then_some(id));
            clients.extend(as_client.then_some(id));
        }
        let all: Vec<u32> = self.known.keys().copied().collect();
        let mut asked = 0;
        for server in &all {
            let touched = servers.contains(server);
            for client in all.iter().filter(|client| *client != server && (touched || clients.contains(client))) {
                asked += self.admit(*client, *server);
            }
        }
        asked + self.look_at_leaving()
    }

    /// All of them, in no order.
    pub fn all(&self) -> impl Iterator<Item = Way> {
        self.admitted.iter().flat_map(move |(server, clients)| {
            clients.iter().flat_map(move |(client, list)| {
                list.iter().map(move |to| {
                    let leaving = self.known.get(client).and_then(|known| known.leaves.get(to));
                    let by_service = !leaving.is_some_and(|leaving| leaving.as_it_is);
                    Way { client: *client, to: *to, server: *server, by_service }
                })
            })
        })
    }

    /// Notes what is known of a workload now. Tells whether who comes in to it may be others than before, and whether where
    /// it comes in may be elsewhere.
    fn take(&mut self, party: Party) -> (bool, bool) {
        let Some(known) = self.known.get_mut(&party.id) else {
            let known = Known { ports: ports(&party), leaves: HashMap::new(), party };
            self.known.insert(known.party.id, known);
            return (true, true);
        };
        let before = std::mem::replace(&mut known.party, party);
        let party = &known.party;
        let moved = before.addresses != party.addresses;
        let door = moved || !same(before.snapshot.inbound(), party.snapshot.inbound());
        if door {
            known.ports = ports(party);
        }
        if !Arc::ptr_eq(&before.snapshot, &party.snapshot) {
            let touched = Touched::between(&before.snapshot, &party.snapshot);
            known.leaves.retain(|to, leaving| !touched.touches(*to, &leaving.uses));
        }
        (door || !before.policies.same(&party.policies), moved || before.identity != party.identity)
    }

    /// Asks where a client comes in.
    fn admit(&mut self, client: u32, server: u32) -> usize {
        let (Some(from), Some(into)) = (self.known.get(&client), self.known.get(&server)) else { return 0 };
        let (client_end, server_end) = (from.party.local(), into.party.local());
        let open = into.ports.iter().copied().filter(|to| comes_in(&client_end, &server_end, *to));
        let (open, asked): (Vec<SocketAddr>, usize) = (open.collect(), into.ports.len());
        if !open.is_empty() {
            self.admitted.entry(server).or_default().insert(client, open);
        } else if let Some(clients) = self.admitted.get_mut(&server) {
            clients.remove(&client);
        }
        asked
    }

    /// Asks of every place where somebody comes in how it leaves, unless that is known; forgets the others.
    fn look_at_leaving(&mut self) -> usize {
        let mut wanted: HashMap<u32, HashSet<SocketAddr>> = HashMap::new();
        for (client, list) in self.admitted.values().flatten() {
            wanted.entry(*client).or_default().extend(list);
        }
        let mut asked = 0;
        for (id, known) in &mut self.known {
            let wanted = wanted.remove(id).unwrap_or_default();
            known.leaves.retain(|to, _| wanted.contains(to));
            for to in wanted {
                known.leaves.entry(to).or_insert_with(|| {
                    asked += 1;
                    let snapshot = &known.party.snapshot;
                    Leaving { as_it_is: leaves(snapshot, to), uses: leaving(snapshot, to) }
                });
            }
        }
        asked
    }
}

fn ports(party: &Party) -> Vec<SocketAddr> {
    let at = |address: &IpAddr| {
        let address = *address;
        party.local().opaque_ports(address).into_iter().map(move |port| SocketAddr::new(address, port))
    };
    party.addresses.iter().flat_map(at).collect()
}

fn same(one: Option<&Arc<Listener>>, other: Option<&Arc<Listener>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (one, other) => one.is_none() && other.is_none(),
    }
}

/// What is other in a configuration than in the one before, as far as it matters to where connections go.
struct Touched {
    /// The listener for all that has none of its own.
    everything: bool,
    addresses: HashSet<SocketAddr>,
    clusters: HashSet<Arc<str>>,
}

impl Touched {
    fn between(before: &Snapshot, now: &Snapshot) -> Touched {
        let (mut everything, mut addresses) = (false, HashSet::new());
        for name in before.listeners.differences(&now.listeners) {
            everything |= **name == *VIRTUAL_OUTBOUND;
            let both = [before.listeners.get(name), now.listeners.get(name)];
            addresses.extend(both.into_iter().flatten().flat_map(|listener| listener.addresses.iter().copied()));
        }
        Touched { everything, addresses, clusters: before.clusters.differences(&now.clusters).cloned().collect() }
    }

    fn touches(&self, to: SocketAddr, uses: &[Arc<str>]) -> bool {
        let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        self.everything
            || self.addresses.contains(&to)
            || self.addresses.contains(&SocketAddr::new(any, to.port()))
            || uses.iter().any(|name| self.clusters.contains(name))
    }
}

#[cfg(test)]
mod tests;
