//! How often limits of the settings were reached, and what is in use of some. In: events, each counted by its worker alone. Out: their
//! sums on the metrics page. The label is the name of the setting that would have to be raised.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::exposition::{Kind, Text};

/// A limit; its setting says more of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the setting of its name")]
pub enum Limit {
    Connections,
    ConnectionsPerWorkload,
    RequestsPerWorkload,
    HandshakesPerWorkload,
    HandshakesPerSecond,
    BufferBytesPerWorkload,
    HeadBytes,
    HeadLines,
    Http2Streams,
    Http2PendingResets,
    Http2Faults,
    TunnelsPerDestination,
}

impl Limit {
    /// All, with the names of their settings.
    pub const ALL: [(Limit, &'static str); 12] = [
        (Limit::Connections, "connections"),
        (Limit::ConnectionsPerWorkload, "connectionsPerWorkload"),
        (Limit::RequestsPerWorkload, "requestsPerWorkload"),
        (Limit::HandshakesPerWorkload, "handshakesPerWorkload"),
        (Limit::HandshakesPerSecond, "handshakesPerSecond"),
        (Limit::BufferBytesPerWorkload, "bufferBytesPerWorkload"),
        (Limit::HeadBytes, "headBytes"),
        (Limit::HeadLines, "headLines"),
        (Limit::Http2Streams, "http2Streams"),
        (Limit::Http2PendingResets, "http2PendingResets"),
        (Limit::Http2Faults, "http2Faults"),
        (Limit::TunnelsPerDestination, "tunnelsPerDestination"),
    ];
}

/// One worker's counts, in cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct LimitCounts {
    reached: [AtomicU64; Limit::ALL.len()],
    handshakes: AtomicU64,
    windows: AtomicU64,
}

impl LimitCounts {
    /// A limit was reached.
    pub fn reached(&self, limit: Limit) {
        if let Some(count) = self.reached.get(limit as usize) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// TLS handshakes of all workloads under way on the worker.
    pub fn handshakes(&self, change: i64) {
        self.handshakes.fetch_add(change.cast_unsigned(), Relaxed);
    }

    /// Bytes of flow-control windows that the worker has given to peers.
    pub fn windows(&self, change: i64) {
        self.windows.fetch_add(change.cast_unsigned(), Relaxed);
    }

    /// How often a limit was reached.
    pub fn of(&self, limit: Limit) -> u64 {
        self.reached.get(limit as usize).map_or(0, |count| count.load(Relaxed))
    }
}

/// Adds the sums of what workers count to the metrics page.
pub(super) fn write(out: &mut Text, all: &[Arc<LimitCounts>]) {
    const NAME: &str = "mesh_agent_limit_reached_total";
    out.family(NAME, Kind::Counter, "Times that a limit was reached, by the setting's name (settings: limits).");
    for (limit, name) in Limit::ALL {
        out.name(NAME, "");
        out.label("limit", name);
        out.value(all.iter().map(|one| one.of(limit)).sum::<u64>());
    }
    let sum = |figure: fn(&LimitCounts) -> &AtomicU64| {
        all.iter().fold(0, |sum: u64, one| sum.wrapping_add(figure(one).load(Relaxed)))
    };
    let help = "TLS handshakes of local workloads under way.";
    out.single("mesh_agent_handshakes_in_progress", Kind::Gauge, help, sum(|one| &one.handshakes));
    let help = "Bytes of HTTP/2 flow-control windows that peers may fill.";
    out.single("mesh_agent_http2_window_bytes", Kind::Gauge, help, sum(|one| &one.windows));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_is_counted_under_its_own_name() {
        let all = [Arc::new(LimitCounts::default()), Arc::new(LimitCounts::default())];
        for (index, (limit, _)) in Limit::ALL.into_iter().enumerate() {
            (0..=index).for_each(|n| all[n % 2].reached(limit));
        }
        all[0].handshakes(3);
        all[0].handshakes(-1);
        all[1].windows(65_535);
        let mut out = Text::default();
        write(&mut out, &all);
        let page = out.finish();
        for (index, (_, name)) in Limit::ALL.into_iter().enumerate() {
            let line = format!("mesh_agent_limit_reached_total{{limit=\"{name}\"}} {}", index + 1);
            assert!(page.lines().any(|one| one == line), "{line}\n{page}");
        }
        assert!(page.contains("\nmesh_agent_handshakes_in_progress 2\n"), "{page}");
        assert!(page.contains("\nmesh_agent_http2_window_bytes 65535\n"), "{page}");
    }
}
