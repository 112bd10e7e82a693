//! Where the orchestrator's TCP probes go, in the maps. In: ports of a workload, addresses of the node. Out: PROBED, NODE
//! and a flag of WORKLOADS.

use std::collections::BTreeSet;
use std::net::IpAddr;

use aya::maps::{HashMap as BpfHashMap, MapData};
use mesh_common::abi::{HAS_PROBED, PortKey, maps};
use mesh_common::addr::Addr;

use super::enrol::Pod;
use super::workloads::Workloads;
use super::{KernelError, modes, refused};

/// The map PROBED.
pub(super) type Ports = BpfHashMap<MapData, PortKey, u32>;

/// Puts the ports of one workload in the place of those that were there.
pub(super) fn set(workloads: &mut Workloads, map: &mut Ports, pod: &mut Pod, ports: &[u16]) -> Result<(), KernelError> {
    let netns = pod.number;
    let wanted: BTreeSet<u16> = ports.iter().copied().collect();
    for port in pod.probed.difference(&wanted) {
        let _ = map.remove(&modes::key(netns, *port));
    }
    pod.probed = wanted;
    for port in &pod.probed {
        let added = map.insert(modes::key(netns, *port), 1, 0);
        added.map_err(|e| refused(maps::PROBED, &e))?;
    }
    let flag = if pod.probed.is_empty() { 0 } else { HAS_PROBED };
    pod.entry.flags = pod.entry.flags & !HAS_PROBED | flag;
    workloads.insert(netns, &pod.entry)
}

/// Removes what a workload that is being withdrawn has in PROBED.
pub(super) fn clear(map: &mut Ports, pod: &mut Pod) {
    for port in std::mem::take(&mut pod.probed) {
        // Gone is as good as removed.
        let _ = map.remove(&modes::key(pod.number, port));
    }
}

/// Puts the node's addresses in the place of those that were there.
pub(super) fn set_node(map: &mut BpfHashMap<MapData, Addr, u32>, addresses: &[IpAddr]) -> Result<(), KernelError> {
    let wanted: Vec<Addr> = addresses.iter().map(|ip| Addr::from(*ip)).collect();
    let there: Vec<Addr> = map.keys().flatten().collect();
    for one in there.iter().filter(|one| !wanted.contains(one)) {
        let _ = map.remove(one);
    }
    wanted.iter().try_for_each(|one| map.insert(one, 1, 0).map_err(|e| refused(maps::NODE, &e)))
}
