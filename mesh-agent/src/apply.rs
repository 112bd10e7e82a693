//! Puts configuration in force: follows a workload's xDS stream and publishes each complete snapshot. The only writer
//! of `Live`. In: a workload. Out: its snapshots in the live cell, until it is withdrawn, and before each the ports that
//! it closes to plaintext, which the kernel programs are told too. The node's own stream likewise, for the whole mesh.

use std::net::IpAddr;
use std::sync::Arc;

use mesh_core::Snapshot;
use mesh_core::ambient;
use mesh_core::resource::listener::InboundModes;
use mesh_core::store::Store;

use crate::live::Live;
use crate::settings::Settings;
use crate::workload::Workload;
use crate::xds::{Client, StatusCell, node, whole_node};

/// Follows the stream of `workload` for ever; dropping the future withdraws the workload's configuration. (Connections
/// keep the snapshot that they took.) `close` is called with what plaintext may reach, first of all and at each change.
pub async fn follow(
    client: &Client,
    workload: &Workload,
    settings: &Settings,
    live: &Live,
    status: &StatusCell,
    close: impl Fn(&InboundModes),
) {
    let withdrawal = Withdrawal { live, id: workload.id };
    let mut in_force: Option<Arc<Snapshot>> = None;
    let mut modes: Option<InboundModes> = None;
    let publish = |store: &mut Store| {
        let Some(snapshot) = store.snapshot() else { return };
        if in_force.as_ref().is_some_and(|current| Arc::ptr_eq(current, &snapshot)) {
            return;
        }
        if in_force.is_none() {
            tracing::info!(workload = workload.key(), "first complete configuration in force");
        }
        in_force = Some(snapshot.clone());
        let now = snapshot.inbound().map(|listener| listener.inbound_modes()).unwrap_or_default();
        if modes.as_ref() != Some(&now) {
            close(&now);
            modes = Some(now);
        }
        withdrawal.live.publish(workload.id, snapshot);
    };
    client.run(node(workload, settings), &mut client.store(), status, publish, rand::random::<f64>).await;
}

/// Follows the node's own stream for ever: who is in the mesh, and who may connect. While the control plane is away what
/// it told last stays in force.
pub async fn follow_node(client: &Client, settings: &Settings, address: IpAddr, live: &Live, status: &StatusCell) {
    let mut in_force = None;
    let publish = |store: &mut ambient::Store| {
        let Some(snapshot) = store.snapshot() else { return };
        if in_force.as_ref().is_some_and(|current| Arc::ptr_eq(current, &snapshot)) {
            return;
        }
        if in_force.is_none() {
            let ambient::Counts { workloads, services, policies } = snapshot.counts();
            tracing::info!(workloads, services, policies, "the mesh is known");
        }
        in_force = Some(snapshot.clone());
        live.publish_ambient(snapshot);
    };
    let node = whole_node(settings, address);
    client.run(node, &mut ambient::Store::new(), status, publish, rand::random::<f64>).await;
}

struct Withdrawal<'a> {
    live: &'a Live,
    id: u32,
}

impl Drop for Withdrawal<'_> {
    fn drop(&mut self) {
        self.live.remove(self.id);
    }
}
