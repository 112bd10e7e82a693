//! What connections carry by the path that they take, and how their TCP does. In: bytes; the kernel's figures at a scrape.
//! Out: the agent's own metrics about it. The only label is the path, besides a direction.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use mesh_common::abi::Path;
use mesh_common::tcp::{Figure, RTT_BOUNDS, RTT_BUCKETS};

use super::exposition::{Kind, Text};

/// Bytes of applications, by path. Each worker has its own, in cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct PathBytes([Directions; Path::ALL.len()]);

#[derive(Debug, Default)]
struct Directions {
    sent: AtomicU64,
    received: AtomicU64,
}

impl PathBytes {
    /// Local workloads have sent so many bytes by this path.
    pub fn sent(&self, path: Path, bytes: u64) {
        self.0[path as usize].sent.fetch_add(bytes, Relaxed);
    }

    /// Local workloads have received so many bytes by this path.
    pub fn received(&self, path: Path, bytes: u64) {
        self.0[path as usize].received.fetch_add(bytes, Relaxed);
    }

    /// Sent and received by this path.
    pub fn of(&self, path: Path) -> (u64, u64) {
        let Directions { sent, received } = &self.0[path as usize];
        (sent.load(Relaxed), received.load(Relaxed))
    }
}

/// Adds the sums of what workers count to the metrics page.
pub(super) fn write(out: &mut Text, all: &[Arc<PathBytes>]) {
    const NAME: &str = "mesh_agent_bytes_total";
    out.family(NAME, Kind::Counter, "Bytes that local workloads sent and received over TCP, by path.");
    for (path, name) in Path::ALL {
        let sum = all.iter().map(|one| one.of(path)).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        for (direction, bytes) in [("sent", sum.0), ("received", sum.1)] {
            out.name(NAME, "");
            out.label("path", name);
            out.label("direction", direction);
            out.value(bytes);
        }
    }
}

/// Adds to the metrics page what TCP sockets that have closed tell of their path. `figure`: one of the kernel's.
pub fn write_tcp(out: &mut Text, figure: impl Fn(Path, Figure) -> u64) {
    const AGAIN: &str = "mesh_agent_tcp_retransmitted_segments_total";
    const RTT: &str = "mesh_agent_tcp_rtt_seconds";
    out.family(AGAIN, Kind::Counter, "Segments that TCP sockets had sent again when they closed, by path.");
    for (path, name) in Path::OF_PACKETS {
        out.name(AGAIN, "");
        out.label("path", name);
        out.value(figure(path, Figure::Retransmitted));
    }
    out.family(RTT, Kind::Histogram, "Smoothed round-trip times of TCP sockets when they closed, by path.");
    for (path, name) in Path::OF_PACKETS {
        let mut count = 0;
        for bucket in 0..RTT_BUCKETS {
            count += figure(path, Figure::Rtt(bucket));
            out.name(RTT, "_bucket");
            out.label("path", name);
            match RTT_BOUNDS.get(bucket as usize) {
                Some(micros) => out.label("le", f64::from(*micros) / 1e6),
                None => out.label("le", "+Inf"),
            }
            out.value(count);
        }
        out.name(RTT, "_sum");
        out.label("path", name);
        out.value(figure(path, Figure::RttSum) as f64 / 1e6);
        out.name(RTT, "_count");
        out.label("path", name);
        out.value(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page() {
        let (bytes, other) = (Arc::new(PathBytes::default()), Arc::new(PathBytes::default()));
        other.sent(Path::Tunnel, 3);
        bytes.received(Path::Tunnel, 4);
        bytes.sent(Path::Tunnel, 5);
        let mut out = Text::default();
        write(&mut out, &[bytes, other]);
        write_tcp(&mut out, |path, figure| match (path, figure) {
            (Path::Direct, Figure::Rtt(0)) => 2,
            (Path::Direct, Figure::Rtt(15)) => 1,
            (Path::Direct, Figure::RttSum) => 2_000_010,
            (Path::Plain, Figure::Retransmitted) => 9,
            _ => 0,
        });
        let page = out.finish();
        for line in [
            "mesh_agent_bytes_total{path=\"direct\",direction=\"sent\"} 0",
            "mesh_agent_bytes_total{path=\"tunnel\",direction=\"sent\"} 8",
            "mesh_agent_bytes_total{path=\"tunnel\",direction=\"received\"} 4",
            "mesh_agent_bytes_total{path=\"neighbour\",direction=\"sent\"} 0",
            "mesh_agent_tcp_retransmitted_segments_total{path=\"plain\"} 9",
            "mesh_agent_tcp_rtt_seconds_bucket{path=\"direct\",le=\"0.00001\"} 2",
            "mesh_agent_tcp_rtt_seconds_bucket{path=\"direct\",le=\"1\"} 2",
            "mesh_agent_tcp_rtt_seconds_bucket{path=\"direct\",le=\"+Inf\"} 3",
            "mesh_agent_tcp_rtt_seconds_sum{path=\"direct\"} 2.00001",
            "mesh_agent_tcp_rtt_seconds_count{path=\"direct\"} 3",
        ] {
            assert!(page.lines().any(|one| one == line), "{line}\n{page}");
        }
    }
}
