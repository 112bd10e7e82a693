//! Services whose endpoint the kernel chooses, in the maps. In: addresses and the endpoints to draw from. Out: SERVICES and
//! SLOTS. A list of endpoints is written before a service names it and removed once none does, so that whoever reads
//! meanwhile finds the old list, the new one, or none, and then the agent chooses. Workloads share lists. A namespace for which
//! everything is there costs what differs from then on, any other one a look at all that it has.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use aya::maps::{HashMap as BpfHashMap, MapData};
use mesh_common::abi::{Service, Slot, Way, maps};
use mesh_common::addr::Endpoint;
use mesh_core::shards::Shards;

use super::{KernelError, refused, take_out};

/// The maps SERVICES and SLOTS.
pub(super) struct Services {
    services: BpfHashMap<MapData, Way, Service>,
    slots: BpfHashMap<MapData, Slot, Endpoint>,
    /// What stands in them; read once, when this agent is the only writer.
    known: Option<Known>,
}

/// Endpoints to draw from, by the address of their service, as one workload knows it.
pub type Choices = Shards<[SocketAddr], SocketAddr>;

#[derive(Default)]
struct Known {
    /// By namespace.
    services: HashMap<u64, HashMap<Way, Service>>,
    /// Every list that is in SLOTS.
    lists: HashMap<u64, List>,
    /// The lists that this agent has written.
    ids: HashMap<Arc<[SocketAddr]>, u64>,
    /// The last id that was given.
    last: u64,
    /// Lists that may have lost their last service.
    left: HashSet<u64>,
    /// Namespaces for which exactly this stands in the maps.
    told: HashMap<u64, Choices>,
}

#[derive(Default)]
struct List {
    /// How many places it takes.
    places: u32,
    /// How many services name it.
    users: usize,
    /// What it is, if this agent has written it.
    endpoints: Option<Arc<[SocketAddr]>>,
}

impl Services {
    pub(super) fn new(services: BpfHashMap<MapData, Way, Service>, slots: BpfHashMap<MapData, Slot, Endpoint>) -> Self {
        Self { services, slots, known: None }
    }

    /// Puts `wanted`, by namespace, in the place of what is there; namespaces of which `open` says yes keep what they have
    /// besides. What does not fit is not there, which the error says: the agent chooses.
    pub(super) fn set(
        &mut self,
        mut wanted: HashMap<u64, Choices>,
        open: impl Fn(u64) -> bool,
    ) -> Result<(), KernelError> {
        for netns in self.known().services.keys() {
            wanted.entry(*netns).or_default();
        }
        let mut failed = None;
        for (netns, choices) in wanted {
            // Until exactly that is there, nobody knows what is.
            let before = self.known().told.remove(&netns);
            let (exactly, done) = match before {
                _ if open(netns) => (false, self.add(netns, &choices)),
                Some(before) => (true, self.follow(netns, &before, &choices)),
                None => (true, self.replace(netns, &choices)),
            };
            match done {
                Ok(()) if exactly => {
                    self.known().told.insert(netns, choices);
                }
                Ok(()) => {}
                Err(error) => failed = Some(error),
            }
        }
        self.sweep();
        failed.map_or(Ok(()), Err)
    }

    /// Forgets what a namespace knows.
    pub(super) fn forget(&mut self, netns: u64) -> Result<(), KernelError> {
        self.known().told.remove(&netns);
        let forgotten = self.replace(netns, &Choices::default());
        self.sweep();
        forgotten
    }

    /// Changes what differs from `before`, which is what is there.
    fn follow(&mut self, netns: u64, before: &Choices, now: &Choices) -> Result<(), KernelError> {
        let differ = before.differences(now).map(|to| self.put(way(netns, *to), now.get(to)));
        differ.filter_map(Result::err).last().map_or(Ok(()), Err)
    }

    /// Changes what is there, whatever it is.
    fn replace(&mut self, netns: u64, now: &Choices) -> Result<(), KernelError> {
        let there = self.known().services.get(&netns).into_iter().flatten().map(|(way, _)| *way);
        let wanted: HashSet<Way> = now.iter().map(|(to, _)| way(netns, *to)).collect();
        let gone: Vec<Way> = there.filter(|way| !wanted.contains(way)).collect();
        let added = self.add(netns, now);
        let failed = gone.iter().filter_map(|way| self.remove(way).err()).last();
        failed.map_or(added, Err)
    }

    fn add(&mut self, netns: u64, some: &Choices) -> Result<(), KernelError> {
        let put = some.iter().map(|(to, list)| self.put(way(netns, *to), Some(list)));
        put.filter_map(Result::err).last().map_or(Ok(()), Err)
    }

    /// A service with its list, or none. If the new list cannot be named the old one is none either.
    fn put(&mut self, way: Way, list: Option<&Arc<[SocketAddr]>>) -> Result<(), KernelError> {
        let Some(list) = list else { return self.remove(&way) };
        let put = self.list(list).and_then(|service| self.name(way, service));
        if put.is_err() {
            self.remove(&way)?;
        }
        put
    }

    /// A list of endpoints, written if it is not there.
    fn list(&mut self, endpoints: &Arc<[SocketAddr]>) -> Result<Service, KernelError> {
        let count = u32::try_from(endpoints.len()).unwrap_or(u32::MAX);
        if let Some(id) = self.known().ids.get(endpoints) {
            return Ok(Service { id: *id, count, zero: 0 });
        }
        let known = self.known();
        known.last += 1;
        let id = known.last;
        known.lists.insert(id, List { places: count, ..List::default() });
        known.left.insert(id);
        for (index, endpoint) in (0..count).zip(&**endpoints) {
            let slot = Slot { service: id, index, zero: 0 };
            // What was written of it goes with the next sweep.
            self.slots.insert(slot, Endpoint::from(*endpoint), 0).map_err(|e| refused(maps::SLOTS, &e))?;
        }
        let known = self.known();
        known.ids.insert(endpoints.clone(), id);
        known.lists.entry(id).or_default().endpoints = Some(endpoints.clone());
        Ok(Service { id, count, zero: 0 })
    }

    fn name(&mut self, way: Way, service: Service) -> Result<(), KernelError> {
        let there = self.known().services.get(&way.netns).and_then(|all| all.get(&way));
        if there != Some(&service) {
            self.services.insert(way, service, 0).map_err(|e| refused(maps::SERVICES, &e))?;
            let known = self.known();
            known.lists.entry(service.id).or_default().users += 1;
            let before = known.services.entry(way.netns).or_default().insert(way, service);
            known.leave(before);
        }
        Ok(())
    }

    /// What cannot be taken out is still known, and will be tried again.
    fn remove(&mut self, way: &Way) -> Result<(), KernelError> {
        take_out(&mut self.services, maps::SERVICES, way)?;
        let known = self.known();
        if let Some(all) = known.services.get_mut(&way.netns) {
            let before = all.remove(way);
            if all.is_empty() {
                known.services.remove(&way.netns);
            }
            known.leave(before);
        }
        Ok(())
    }

    /// Removes lists that no service names.
    fn sweep(&mut self) {
        for service in std::mem::take(&mut self.known().left) {
            let known = self.known();
            let Some(list) = known.lists.remove(&service) else { continue };
            if list.users > 0 {
                known.lists.insert(service, list);
                continue;
            }
            if let Some(endpoints) = &list.endpoints {
                known.ids.remove(endpoints);
            }
            for index in 0..list.places {
                // Gone is as good as removed.
                let _ = self.slots.remove(&Slot { service, index, zero: 0 });
            }
        }
    }

    fn known(&mut self) -> &mut Known {
        let Self { services, slots, known } = self;
        known.get_or_insert_with(|| {
            let mut known = Known::default();
            for slot in slots.keys().filter_map(Result::ok) {
                let list = known.lists.entry(slot.service).or_default();
                list.places = list.places.max(slot.index.saturating_add(1));
            }
            for (way, service) in services.iter().filter_map(Result::ok) {
                known.lists.entry(service.id).or_default().users += 1;
                known.services.entry(way.netns).or_default().insert(way, service);
            }
            known.last = known.lists.keys().copied().max().unwrap_or(0);
            known.left = known.lists.keys().copied().collect();
            known
        })
    }
}

impl Known {
    /// A service names its list no more.
    fn leave(&mut self, service: Option<Service>) {
        if let Some(service) = service
            && let Some(list) = self.lists.get_mut(&service.id)
        {
            list.users = list.users.saturating_sub(1);
            self.left.insert(service.id);
        }
    }
}

fn way(netns: u64, to: SocketAddr) -> Way {
    Way { netns, to: to.into(), zero: 0 }
}
