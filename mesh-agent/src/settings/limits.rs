//! Limits that an operator may set: what a connection, a workload and the node may have of the agent at most.
//!
//! In: the group `limits` of the settings. Out: numbers within their ranges. What each is for, and what happens when it is
//! reached, is told in `docs/agent.md`. Never: applies one.

use serde::Deserialize;

use super::SettingsError;
use super::yaml::Located;

/// Smallest flow-control window of HTTP/2, in bytes: what a connection begins with (RFC 9113, 6.9.2).
pub const MIN_WINDOW: u32 = 65_535;

/// The limits. Every one is per agent, workload, connection or head, as it says; "on a worker" counts each worker by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Limits {
    /// Connections of all workloads together; 0 = half the descriptors that the agent may have.
    pub connections: usize,
    /// Connections of one workload, on all workers together.
    pub connections_per_workload: usize,
    /// HTTP/2 requests of one workload under way on a worker.
    pub requests_per_workload: usize,
    /// TLS handshakes of one workload under way on a worker, as a server and as a client each; further ones wait.
    pub handshakes_per_workload: usize,
    /// TLS handshakes of one workload that begin in a second on a worker, as a server and as a client each; further ones wait.
    pub handshakes_per_second: u32,
    /// Bytes that may wait for one workload's slow readers on a worker.
    pub buffer_bytes_per_workload: usize,
    /// Bytes of one head.
    pub head_bytes: u32,
    /// Header lines of one head.
    pub head_lines: usize,
    /// Requests under way on one HTTP/2 connection of a client.
    pub http2_streams: u32,
    /// Streams that a client of HTTP/2 has opened and reset before anybody has looked at them (CVE-2023-44487).
    pub http2_pending_resets: usize,
    /// Streams that the agent has reset for what the client did on them (CVE-2025-8671).
    pub http2_faults: usize,
    /// Flow-control window of one stream of HTTP/2 or of a tunnel, in bytes.
    pub stream_window_bytes: u32,
    /// Flow-control window of one HTTP/2 connection or tunnel, in bytes.
    pub connection_window_bytes: u32,
    /// Bytes that one stream of HTTP/2 or of a tunnel may have queued behind a slow socket.
    pub stream_buffer_bytes: usize,
    /// Streams on one tunnel.
    pub tunnel_streams: u32,
    /// Tunnels from one workload to one destination, on a worker.
    pub tunnels_per_destination: usize,
    /// Questions to DNS servers of one workload that wait for an answer.
    pub dns_questions_per_workload: usize,
    /// Bytes of the access log that wait for the disk, on a worker.
    pub access_log_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 0,
            connections_per_workload: 65_536,
            requests_per_workload: 16_384,
            handshakes_per_workload: 256,
            handshakes_per_second: 1000,
            buffer_bytes_per_workload: 1 << 30,
            head_bytes: 60 << 10,
            head_lines: 100,
            http2_streams: 1024,
            http2_pending_resets: 64,
            http2_faults: 256,
            stream_window_bytes: 4 << 20,
            connection_window_bytes: 16 << 20,
            stream_buffer_bytes: 256 << 10,
            tunnel_streams: 1024,
            tunnels_per_destination: 16,
            dns_questions_per_workload: 512,
            access_log_bytes: 1 << 20,
        }
    }
}

impl Limits {
    /// Name, value, least and most of each.
    fn ranges(&self) -> [(&'static str, u64, u64, u64); 18] {
        let size = |bytes: usize| bytes as u64;
        let window = u64::from(MIN_WINDOW);
        [
            ("connections", size(self.connections), 0, 10_000_000),
            ("connectionsPerWorkload", size(self.connections_per_workload), 1, 10_000_000),
            ("requestsPerWorkload", size(self.requests_per_workload), 1, 10_000_000),
            ("handshakesPerWorkload", size(self.handshakes_per_workload), 1, 65_536),
            ("handshakesPerSecond", self.handshakes_per_second.into(), 1, 1_000_000),
            ("bufferBytesPerWorkload", size(self.buffer_bytes_per_workload), 1 << 20, 1 << 40),
            ("headBytes", self.head_bytes.into(), 8 << 10, 1 << 20),
            ("headLines", size(self.head_lines), 1, mesh_http::MOST_LINES as u64),
            ("http2Streams", self.http2_streams.into(), 1, 65_536),
            ("http2PendingResets", size(self.http2_pending_resets), 1, 65_536),
            ("http2Faults", size(self.http2_faults), 1, 65_536),
            ("streamWindowBytes", self.stream_window_bytes.into(), window, 1 << 30),
            ("connectionWindowBytes", self.connection_window_bytes.into(), window, 1 << 30),
            ("streamBufferBytes", size(self.stream_buffer_bytes), 16 << 10, 16 << 20),
            ("tunnelStreams", self.tunnel_streams.into(), 1, 65_536),
            ("tunnelsPerDestination", size(self.tunnels_per_destination), 1, 1024),
            ("dnsQuestionsPerWorkload", size(self.dns_questions_per_workload), 1, 65_536),
            ("accessLogBytes", size(self.access_log_bytes), 4096, 1 << 30),
        ]
    }

    pub(super) fn check(&self, at: &Located<'_>) -> Result<(), SettingsError> {
        for (name, value, least, most) in self.ranges() {
            if !(least..=most).contains(&value) {
                return Err(at.error(&format!("limits.{name}"), format!("{value}: write {least} to {most}")));
            }
        }
        if self.stream_window_bytes > self.connection_window_bytes {
            let why =
                format!("more than connectionWindowBytes ({}): no stream could use it", self.connection_window_bytes);
            return Err(at.error("limits.streamWindowBytes", why));
        }
        Ok(())
    }
}
