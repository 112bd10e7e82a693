//! The map of agents whose processes the programs leave alone. In: cgroup ids. Out: AGENTS. Written only by the agent that has
//! the pins.

use aya::maps::{Array, MapData, MapError};
use mesh_common::abi::{MAX_AGENTS, maps};

use super::{KernelError, chain};

/// A place that is free.
const FREE: u64 = 0;

/// AGENTS.
pub struct Agents(pub Array<MapData, [u64; MAX_AGENTS]>);

impl Agents {
    /// Adds an agent, by its cgroup's id; nothing changes if it is there.
    ///
    /// # Errors
    /// There is no place left, or the map cannot be read or written.
    pub fn add(&mut self, id: u64) -> Result<(), KernelError> {
        let mut agents = self.0.get(&0, 0).map_err(wrong)?;
        put(&mut agents, id)?;
        self.0.set(0, agents, 0).map_err(wrong)
    }

    /// Leaves this agent alone and no other.
    ///
    /// # Errors
    /// The map cannot be read or written.
    pub fn only(&mut self, id: Option<u64>) -> Result<(), KernelError> {
        let mut agents = self.0.get(&0, 0).map_err(wrong)?;
        // Its place stays where it is: there is no moment without it.
        agents.iter_mut().filter(|place| Some(**place) != id).for_each(|place| *place = FREE);
        if let Some(id) = id {
            put(&mut agents, id)?;
        }
        self.0.set(0, agents, 0).map_err(wrong)
    }
}

fn put(agents: &mut [u64; MAX_AGENTS], id: u64) -> Result<(), KernelError> {
    if !agents.contains(&id) {
        *agents.iter_mut().find(|place| **place == FREE).ok_or_else(|| full(id))? = id;
    }
    Ok(())
}

fn wrong(e: MapError) -> KernelError {
    KernelError::Map { map: maps::AGENTS, why: chain(&e) }
}

fn full(id: u64) -> KernelError {
    let why = format!(
        "all {MAX_AGENTS} places are taken, there is none for the agent of cgroup {id}; end other agents of this node"
    );
    KernelError::Map { map: maps::AGENTS, why }
}
