//! Tells of what the kernel programs could not do for single connections. In: the kernel's events. Out: log lines,
//! bounded in number. Counts nothing: the kernel's counters do.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_common::abi::{Counter, Event, Tuple};
use tokio::time::Instant;

use crate::kernel::Events;
use crate::kernel::debug_log::DebugLog;
use crate::telemetry::Budget;

/// How often the ring buffer is emptied. Nothing waits for it: what does not fit meanwhile is counted by the kernel.
const PERIOD: Duration = Duration::from_secs(1);
/// Events read at a time; about what the ring buffer holds.
const MAX_EVENTS: usize = 4096;

/// Logs events for ever. `end` is told of direct connections that hang, so that they end.
pub(super) async fn follow(mut events: Events, end: impl Fn(&Tuple)) {
    let mut budget = Budget::default();
    let mut ticks = tokio::time::interval(PERIOD);
    loop {
        let now = ticks.tick().await;
        report(events.by_ref().inspect(|event| hangs(event, &end)), &mut budget, now);
    }
}

/// Nothing decides by this: what is dropped is dropped, and a connection of which nobody hears ends by its own clock.
fn hangs(event: &Event, end: &impl Fn(&Tuple)) {
    if [Counter::DirectRevoked as u32, Counter::DirectMissed as u32].contains(&event.reason) {
        end(&event.tuple);
    }
}

fn report(events: impl Iterator<Item = Event>, budget: &mut Budget, now: Instant) {
    for event in events.take(MAX_EVENTS) {
        if let Some(skipped) = budget.take(now) {
            tell(&event, skipped);
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
        Some(Counter::DirectRevoked) => {
            "dropped: between workloads of this node, and no longer allowed without the agent"
        }
        Some(Counter::DirectFull) => "dropped: there is no place for one more direct connection on this node",
        Some(Counter::DirectMissed) => {
            "between workloads of this node something changes packets, or answers in the other's place; soon \
             connections there go through the agent: look for SNAT"
        }
        Some(Counter::ProbeUnanswered) => "a TCP probe found no application listening",
        _ => "the kernel programs met a problem",
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use mesh_common::addr::Endpoint;

    use super::*;
    use crate::telemetry::{MAX_LINES, WINDOW};

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(say: impl FnOnce()) -> Vec<serde_json::Value> {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().json().with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, say);
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn event(reason: u32) -> Event {
        let end = |text: &str| Endpoint::from(text.parse::<SocketAddr>().unwrap());
        let tuple = Tuple { netns: 7, client: end("10.0.0.2:4000"), server: end("[fd00::3]:53") };
        Event { time: 1, tuple, workload: 42, reason }
    }

    #[test]
    fn a_flood_becomes_a_few_lines_and_a_number() {
        let (mut budget, start) = (Budget::default(), Instant::now());
        let flood = || std::iter::repeat_n(event(Counter::EgressUnexplained as u32), 100);
        let lines = logged(|| report(flood(), &mut budget, start));
        assert_eq!(lines.len(), MAX_LINES as usize);
        let fields = &lines[0]["fields"];
        assert_eq!(lines[0]["level"], "WARN");
        assert_eq!((&fields["reason"], &fields["workload_id"]), (&"egress_unexplained".into(), &42.into()));
        assert_eq!((&fields["client"], &fields["server"]), (&"10.0.0.2:4000".into(), &"[fd00::3]:53".into()));
        assert!(fields["message"].as_str().unwrap().contains("dropped"), "{fields}");
        let later = logged(|| report(flood(), &mut budget, start + WINDOW));
        assert_eq!(later[0]["fields"]["skipped"], 100 - MAX_LINES);
        assert_eq!(later[1]["fields"]["skipped"], 0);
    }

    #[test]
    fn every_reason_has_a_name_and_those_that_are_told_a_meaning() {
        for (counter, name) in Counter::ALL {
            let lines = logged(|| tell(&event(counter as u32), 0));
            assert_eq!(lines[0]["fields"]["reason"], name);
        }
        // What another version of the programs says.
        assert_eq!(logged(|| tell(&event(4711), 0))[0]["fields"]["reason"], "unknown");
    }
}
