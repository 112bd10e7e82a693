//! Tells of what the kernel programs could not do for single connections. In: the kernel's events. Out: log lines,
//! bounded in number. Counts nothing: the kernel's counters do.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_common::abi::{Counter, Event};

use crate::kernel::Events;
use crate::kernel::debug_log::DebugLog;
use crate::telemetry::Budget;

/// How often the ring buffer is emptied. Nothing waits for it: what does not fit meanwhile is counted by the kernel.
const PERIOD: Duration = Duration::from_secs(1);
/// Events read at a time; about what the ring buffer holds.
const MAX_EVENTS: usize = 4096;

/// Logs events for ever.
pub(super) async fn follow(mut events: Events) {
    let mut budget = Budget::default();
    let mut ticks = tokio::time::interval(PERIOD);
    loop {
        let now = ticks.tick().await;
        for event in events.by_ref().take(MAX_EVENTS) {
            if let Some(skipped) = budget.take(now) {
                tell(&event, skipped);
            }
        }
    }
}

/// Writes what a debugging build of the programs tells to the agent's log, for ever.
pub(super) async fn print(mut log: DebugLog) {
    let mut ticks = tokio::time::interval(PERIOD);
    loop {
        ticks.tick().await;
        for line in log.lines() {
            tracing::info!(target: "mesh_ebpf", "{line}");
        }
    }
}

fn tell(event: &Event, skipped: u32) {
    let reason = Counter::ALL.get(event.reason as usize).map_or("unknown", |(_, name)| name);
    let client = SocketAddr::from(event.tuple.client);
    let server = SocketAddr::from(event.tuple.server);
    let meaning = meaning(event.reason);
    tracing::warn!(reason, workload_id = event.workload, %client, %server, skipped, "{meaning}");
}

/// What happened to the connection, and what to do where there is something to do.
fn meaning(reason: u32) -> &'static str {
    match Counter::ALL.get(reason as usize).map(|(counter, _)| *counter) {
        Some(Counter::OutboundUnreachable) => "failed: the workload has no address of this family",
        Some(Counter::FlowFull) => {
            "reset: too many connections, of the workload or of all, wait for the agent to accept them"
        }
        Some(Counter::StorageFailed) => "refused: the kernel has no memory for the socket's storage",
        Some(Counter::PeerFull) => {
            "ended: too many connections, of the workload or of all, wait for applications to accept them"
        }
        Some(Counter::InboundNoAgent | Counter::OutboundNoAgent) => "passed by the mesh: the agent's listener was gone",
        Some(Counter::InboundRefused | Counter::OutboundRefused) => "refused: the agent's listener was gone",
        Some(Counter::InboundAssignFailed) => "dropped: the kernel does not give packets of this interface to a socket",
        Some(Counter::InboundForeign) => {
            "dropped: STRICT, and the connection is not one of the agent's, or hides whose it is"
        }
        Some(Counter::EgressUnexplained) => {
            "dropped: TCP that came by no connect(), or a DNS question that did not go through the agent, as from a raw \
             socket; look at what runs in the workload"
        }
        Some(Counter::OptionRefused) => {
            "refused: a socket option that lets a packet or XDP socket send unseen; look at what runs in the workload"
        }
        Some(Counter::DnsFull) => "the workload has asked too many DNS servers: there is no place for one more",
        Some(Counter::DnsBypassed) => "went straight to the DNS server: the agent could not take the question",
        Some(Counter::DnsRefused) => "refused: the agent could not take the question to a DNS server",
        Some(Counter::UdpDenied) => "refused: the workload's setting `udp` forbids it",
        Some(Counter::ProbeUnanswered) => "a TCP probe found no application listening",
        _ => "the kernel programs met a problem",
    }
}
