//! The entries of the enrolled workloads, in the maps. In: entries. Out: WORKLOADS, and UNGUARDED, which names those of which
//! the programs need not ask for every packet. It never says more than WORKLOADS does: a workload is out of it before
//! anything stricter is in force, and whatever fails, it stays out.

use aya::maps::{Array, HashMap as BpfHashMap, MapData, MapError};
use mesh_common::abi::{Unguarded, Workload, maps, unguarded_at};
use mesh_common::capture;
use mesh_common::host::is_host;

use super::{KernelError, chain, refused, take_out};

/// WORKLOADS and UNGUARDED.
pub(super) struct Workloads {
    entries: BpfHashMap<MapData, u64, Workload>,
    unguarded: Array<MapData, Unguarded>,
}

impl Workloads {
    pub(super) fn new(entries: BpfHashMap<MapData, u64, Workload>, unguarded: Array<MapData, Unguarded>) -> Self {
        Self { entries, unguarded }
    }

    /// What is in force for a workload, also one that an agent before this one has enrolled.
    pub(super) fn get(&self, number: u64) -> Option<Workload> {
        self.entries.get(&number, 0).ok()
    }

    /// Puts an entry in force.
    ///
    /// # Errors
    /// The maps cannot be written; what was in force stays so, unless only UNGUARDED fails, which then names it no more.
    pub(super) fn insert(&mut self, number: u64, entry: &Workload) -> Result<(), KernelError> {
        let there = self.at(number)?;
        let ports = capture::unguarded(entry).filter(|_| !is_host(number) && [0, number].contains(&there.netns));
        let wanted = ports.map(|mode_ports| Unguarded { netns: number, mode_ports });
        if Some(there) != wanted {
            self.guard(number)?;
        }
        self.entries.insert(number, entry, 0).map_err(|e| refused(maps::WORKLOADS, &e))?;
        wanted.map_or(Ok(()), |wanted| self.unguarded.set(unguarded_at(number), wanted, 0).map_err(wrong))
    }

    /// Takes an entry out, if there is one.
    ///
    /// # Errors
    /// The maps cannot be written.
    pub(super) fn remove(&mut self, number: u64) -> Result<(), KernelError> {
        // Where this fails, the programs leave to the kernel what they leave to it without an entry.
        let guarded = self.guard(number);
        take_out(&mut self.entries, maps::WORKLOADS, &number).and(guarded)
    }

    /// From now on every packet of this workload is looked at.
    fn guard(&mut self, number: u64) -> Result<(), KernelError> {
        if self.at(number)?.netns == number {
            self.unguarded.set(unguarded_at(number), Unguarded::default(), 0).map_err(wrong)?;
        }
        Ok(())
    }

    fn at(&self, number: u64) -> Result<Unguarded, KernelError> {
        self.unguarded.get(&unguarded_at(number), 0).map_err(wrong)
    }
}

fn wrong(e: MapError) -> KernelError {
    KernelError::Map { map: maps::UNGUARDED, why: chain(&e) }
}
