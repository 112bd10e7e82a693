//! Services whose endpoint the kernel chooses, in the maps. In: addresses and the endpoints to draw from. Out: SERVICES and
//! SLOTS. A list of endpoints is written before a service names it and removed once none does, so that whoever reads
//! meanwhile finds the old list, the new one, or none, and then the agent chooses. Workloads share lists.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use aya::maps::{HashMap as BpfHashMap, MapData};
use mesh_common::abi::{Service, Slot, Way, maps};
use mesh_common::addr::Endpoint;

use super::{KernelError, refused, take_out};

/// The maps SERVICES and SLOTS.
pub(super) struct Services {
    services: BpfHashMap<MapData, Way, Service>,
    slots: BpfHashMap<MapData, Slot, Endpoint>,
    /// What stands in them; read once, when this agent is the only writer.
    known: Option<Known>,
}

#[derive(Default)]
struct Known {
    services: HashMap<Way, Service>,
    /// Places of every list that is in SLOTS.
    lists: HashMap<u64, u32>,
    /// The lists that this agent has written.
    ids: HashMap<Arc<[SocketAddr]>, u64>,
    /// The last id that was given.
    last: u64,
}

impl Services {
    pub(super) fn new(services: BpfHashMap<MapData, Way, Service>, slots: BpfHashMap<MapData, Slot, Endpoint>) -> Self {
        Self { services, slots, known: None }
    }

    /// Puts `wanted` in the place of what is there, but for namespaces of which `open` says yes. What does not fit is not
    /// there, which the error says: the agent chooses.
    pub(super) fn set(
        &mut self,
        wanted: HashMap<Way, Arc<[SocketAddr]>>,
        open: impl Fn(u64) -> bool,
    ) -> Result<(), KernelError> {
        let mut failed = None;
        let mut gone: HashSet<Way> = self.known().services.keys().copied().collect();
        for (way, list) in wanted {
            match self.list(&list).and_then(|service| self.name(way, service)) {
                Ok(()) => {
                    gone.remove(&way);
                }
                Err(error) => failed = Some(error),
            }
        }
        for way in gone.iter().filter(|way| !open(way.netns)) {
            failed = self.remove(way).err().or(failed);
        }
        self.sweep();
        failed.map_or(Ok(()), Err)
    }

    /// Forgets what a namespace knows.
    pub(super) fn forget(&mut self, netns: u64) -> Result<(), KernelError> {
        let gone: Vec<Way> = self.known().services.keys().filter(|way| way.netns == netns).copied().collect();
        let failed = gone.iter().filter_map(|way| self.remove(way).err()).last();
        self.sweep();
        failed.map_or(Ok(()), Err)
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
        known.lists.insert(id, count);
        for (index, endpoint) in (0..count).zip(&**endpoints) {
            let slot = Slot { service: id, index, zero: 0 };
            // What was written of it goes with the next sweep.
            self.slots.insert(slot, Endpoint::from(*endpoint), 0).map_err(|e| refused(maps::SLOTS, &e))?;
        }
        self.known().ids.insert(endpoints.clone(), id);
        Ok(Service { id, count, zero: 0 })
    }

    fn name(&mut self, way: Way, service: Service) -> Result<(), KernelError> {
        if self.known().services.get(&way) != Some(&service) {
            self.services.insert(way, service, 0).map_err(|e| refused(maps::SERVICES, &e))?;
            self.known().services.insert(way, service);
        }
        Ok(())
    }

    /// What cannot be taken out is still known, and will be tried again.
    fn remove(&mut self, way: &Way) -> Result<(), KernelError> {
        take_out(&mut self.services, maps::SERVICES, way)?;
        self.known().services.remove(way);
        Ok(())
    }

    /// Removes lists that no service names.
    fn sweep(&mut self) {
        let known = self.known();
        let used: HashSet<u64> = known.services.values().map(|service| service.id).collect();
        known.ids.retain(|_, id| used.contains(id));
        let unused: Vec<(u64, u32)> =
            known.lists.iter().filter(|(id, _)| !used.contains(id)).map(|(id, count)| (*id, *count)).collect();
        for (service, count) in unused {
            for index in 0..count {
                // Gone is as good as removed.
                let _ = self.slots.remove(&Slot { service, index, zero: 0 });
            }
            self.known().lists.remove(&service);
        }
    }

    fn known(&mut self) -> &mut Known {
        let Self { services, slots, known } = self;
        known.get_or_insert_with(|| {
            let mut known = Known { services: services.iter().filter_map(Result::ok).collect(), ..Known::default() };
            for slot in slots.keys().filter_map(Result::ok) {
                let places = known.lists.entry(slot.service).or_default();
                *places = (*places).max(slot.index.saturating_add(1));
            }
            let named = known.services.values().map(|service| service.id);
            known.last = named.chain(known.lists.keys().copied()).max().unwrap_or(0);
            known
        })
    }
}
