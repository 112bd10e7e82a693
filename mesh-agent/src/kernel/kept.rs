//! Connections that are older than their workload's enrolment. In: what the namespace has. Out: KEPT, so that they may go
//! on, and the end of those that may not. A kept connection stays what it was: nobody redirects or encrypts it.

use std::collections::HashSet;
use std::io;

use aya::maps::{HashMap as BpfHashMap, MapData};
use mesh_common::abi::{KEPT_INBOUND, KEPT_OUTBOUND, Tuple};
use tracing::{info, warn};

use super::enrol::Pod;
use crate::net::connections::{Connection, connections, destroy};
use crate::net::netns::NetNs;

/// Connections kept for one workload; further ones are cut off.
const MAX_KEPT: usize = 4096;

/// The map of kept connections.
pub(super) type Kept = BpfHashMap<MapData, Tuple, u32>;

/// What the map has of a workload, from an agent before this one.
pub(super) fn of(map: &Kept, pod: &Pod) -> HashSet<Connection> {
    let netns = pod.netns.cookie();
    let entries = map.iter().filter_map(Result::ok).filter(|(tuple, _)| tuple.netns == netns);
    let all = entries.map(|(tuple, direction)| Connection {
        local: tuple.client.into(),
        remote: tuple.server.into(),
        inbound: direction == KEPT_INBOUND,
    });
    all.filter(|connection| pod.host.as_ref().is_none_or(|host| host.is_own(connection))).collect()
}

/// Removes what the map has of a namespace.
pub(super) fn clear_of(map: &mut Kept, netns: u64) {
    let all: Vec<Tuple> = map.keys().filter_map(Result::ok).filter(|tuple| tuple.netns == netns).collect();
    for tuple in all {
        let _ = map.remove(&tuple);
    }
}

/// Keeps the connections that a workload has now and that are not kept yet. A namespace that cannot be read keeps none.
pub(super) fn keep(map: &mut Kept, pod: &mut Pod, workload: u32) {
    let found = match of_pod(pod) {
        Ok(found) => found,
        Err(error) => {
            warn!(workload, %error, "cannot read the connections from before the enrolment: they are cut off");
            return;
        }
    };
    for connection in found {
        if pod.kept.contains(&connection) {
            continue;
        }
        let full = pod.kept.len() >= MAX_KEPT;
        let direction = if connection.inbound { KEPT_INBOUND } else { KEPT_OUTBOUND };
        if full || map.insert(tuple(&pod.netns, &connection), direction, 0).is_err() {
            warn!(workload, most = MAX_KEPT, "too many connections from before the enrolment: the rest is cut off");
            return;
        }
        pod.kept.insert(connection);
    }
}

/// Ends the connections that a workload has now. What cannot be ended is cut off: nothing lets its packets out.
pub(super) fn close(pod: &Pod, workload: u32) {
    let found = match of_pod(pod) {
        Ok(found) => found,
        Err(error) => {
            warn!(workload, %error, "cannot read the connections from before the enrolment: they are cut off");
            return;
        }
    };
    let mut failed = None;
    for connection in &found {
        failed = destroy(&pod.netns, connection).err().or(failed);
    }
    if !found.is_empty() {
        info!(
            workload,
            count = found.len(),
            "closed connections from before the enrolment, as existingConnections says"
        );
    }
    if let Some(error) = failed {
        warn!(workload, %error, "cannot close every connection from before the enrolment: they are cut off");
    }
}

/// Forgets the kept connections that have ended, so that nobody else can use their names.
pub(super) fn sweep(map: &mut Kept, pod: &mut Pod) {
    if pod.kept.is_empty() {
        return;
    }
    let Ok(alive) = connections(&pod.netns) else { return };
    let ended: Vec<Connection> = pod.kept.iter().filter(|kept| !alive.contains(kept)).copied().collect();
    for connection in ended {
        forget(map, pod, &connection);
    }
}

/// Ends the kept connections that were opened to ports for which `strict` says yes: they have no identity.
pub(super) fn end_inbound(map: &mut Kept, pod: &mut Pod, workload: u32, strict: impl Fn(u16) -> bool) {
    let forbidden = |kept: &&Connection| kept.inbound && strict(kept.local.port());
    let forbidden: Vec<Connection> = pod.kept.iter().filter(forbidden).copied().collect();
    for connection in forbidden {
        let Connection { local, remote, .. } = connection;
        match destroy(&pod.netns, &connection) {
            Ok(()) => {
                warn!(workload, %remote, %local, "closed a plaintext connection from before the enrolment: STRICT")
            }
            // The programs drop its packets all the same.
            Err(error) => warn!(workload, %remote, %local, %error, "cannot close a connection that STRICT forbids"),
        }
        forget(map, pod, &connection);
    }
}

/// Forgets all of them.
pub(super) fn clear(map: &mut Kept, pod: &mut Pod) {
    for connection in std::mem::take(&mut pod.kept) {
        forget(map, pod, &connection);
    }
}

fn forget(map: &mut Kept, pod: &mut Pod, connection: &Connection) {
    // It is there, or there is nothing to remove.
    let _ = map.remove(&tuple(&pod.netns, connection));
    pod.kept.remove(connection);
}

/// The connections that a workload has now. On the host nobody can tell whose an outbound one is: those to its ports.
fn of_pod(pod: &Pod) -> io::Result<Vec<Connection>> {
    let mut found = connections(&pod.netns)?;
    found.retain(|connection| pod.host.as_ref().is_none_or(|host| host.is_own(connection)));
    Ok(found)
}

/// As the programs name it: the workload's end in the client's place.
fn tuple(netns: &NetNs, connection: &Connection) -> Tuple {
    Tuple { netns: netns.cookie(), client: connection.local.into(), server: connection.remote.into() }
}
