//! Inbound modes in the maps: which ports of a workload take nothing in the open when the agent is not there to say so.
//! In: the modes. Out: WORKLOADS and PORT_MODES. Each port goes from its old mode to its new one and through no third.

use std::collections::{BTreeMap, BTreeSet};

use aya::maps::{HashMap as BpfHashMap, MapData};
use mesh_common::abi::{self, HAS_PORT_MODES, MODE_PORT_WORDS, Mode, PortKey, STRICT, maps};
use mesh_common::capture;

use super::enrol::Pod;
use super::workloads::Workloads;
use super::{KernelError, refused};

/// Ports of one workload whose mode is not the workload's. With more, the workload is STRICT where any of them is.
const MAX_PORTS: usize = 256;

/// The maps that hold modes.
pub(super) struct Modes<'a> {
    pub workloads: &'a mut Workloads,
    pub ports: &'a mut BpfHashMap<MapData, PortKey, u32>,
}

/// The ports of a namespace that have a mode of their own, from an agent before this one.
pub(super) fn of(ports: &BpfHashMap<MapData, PortKey, u32>, netns: u64) -> BTreeSet<u16> {
    let keys = ports.keys().filter_map(Result::ok).filter(|key| key.netns == netns);
    keys.filter_map(|key| u16::try_from(key.port).ok()).collect()
}

/// Removes the modes of a namespace's ports.
pub(super) fn clear_of(ports: &mut BpfHashMap<MapData, PortKey, u32>, netns: u64) {
    for port in of(ports, netns) {
        let _ = ports.remove(&key(netns, port));
    }
}

impl Modes<'_> {
    /// Puts a workload's modes in force. When an exception does not fit, the workload is STRICT on every port without
    /// one, and the error says so.
    pub(super) fn set(&mut self, pod: &mut Pod, strict: bool, exceptions: &[(u16, bool)]) -> Result<(), KernelError> {
        let netns = pod.number;
        let wanted: BTreeMap<u16, bool> = exceptions.iter().copied().filter(|(_, own)| *own != strict).collect();
        let mut failed = None;
        if wanted.len() > MAX_PORTS {
            let why =
                format!("{} ports of one workload have modes of their own; at most {MAX_PORTS} can", wanted.len());
            failed = Some(KernelError::Map { map: maps::PORT_MODES, why });
        }
        let wanted: BTreeMap<u16, bool> = wanted.into_iter().take(MAX_PORTS).collect();

        // Exceptions first, which overrule the old default as well as the new one; then the default; then those that
        // are no longer exceptions.
        if !wanted.is_empty() {
            let both = pod.modes.iter().chain(wanted.keys());
            self.entry(pod, pod.entry.flags | HAS_PORT_MODES, marks(both))?;
        }
        for (port, own) in &wanted {
            let mode = if *own { Mode::Strict } else { Mode::Permissive };
            match self.ports.insert(key(netns, *port), mode as u32, 0) {
                Ok(()) => {
                    pod.modes.insert(*port);
                }
                Err(e) => failed = Some(refused(maps::PORT_MODES, &e)),
            }
        }
        let default = if strict || failed.is_some() { STRICT } else { 0 };
        self.entry(pod, pod.entry.flags & !STRICT | default, pod.entry.mode_ports)?;
        let gone: Vec<u16> = pod.modes.iter().copied().filter(|port| !wanted.contains_key(port)).collect();
        for port in gone {
            self.forget(pod, port);
        }
        let has = if pod.modes.is_empty() { 0 } else { HAS_PORT_MODES };
        self.entry(pod, pod.entry.flags & !HAS_PORT_MODES | has, marks(&pod.modes))?;
        failed.map_or(Ok(()), Err)
    }

    /// Removes what a workload that is being withdrawn has in PORT_MODES.
    pub(super) fn clear(&mut self, pod: &mut Pod) {
        for port in std::mem::take(&mut pod.modes) {
            self.forget(pod, port);
        }
    }

    fn forget(&mut self, pod: &mut Pod, port: u16) {
        // It is there, or there is nothing to remove.
        let _ = self.ports.remove(&key(pod.number, port));
        pod.modes.remove(&port);
    }

    fn entry(&mut self, pod: &mut Pod, flags: u32, mode_ports: [u32; MODE_PORT_WORDS]) -> Result<(), KernelError> {
        let entry = abi::Workload { flags, mode_ports, ..pod.entry };
        if pod.entry == entry {
            return Ok(());
        }
        self.workloads.insert(pod.number, &entry)?;
        pod.entry = entry;
        Ok(())
    }
}

/// The ports of which the programs look up the modes.
pub(super) fn marks<'a>(ports: impl IntoIterator<Item = &'a u16>) -> [u32; MODE_PORT_WORDS] {
    let mut marks = [0; MODE_PORT_WORDS];
    ports.into_iter().for_each(|port| capture::mark(&mut marks, *port));
    marks
}

/// The key of a port.
pub(super) fn key(netns: u64, port: u16) -> PortKey {
    PortKey { netns, port: port.into(), zero: 0 }
}
