//! Telemetry: Istio's standard metrics, the access log, the agent's own log. In: what the proxy saw. Out: Prometheus
//! text, log lines. Never blocks a worker and never fails a request: what does not fit is dropped and counted.

pub mod access_log;
mod budget;
mod exposition;
mod histogram;
mod labels;
mod limits;
pub mod logs;
mod paths;
mod peer;
mod registry;

pub use budget::{Budget, MAX_LINES, WINDOW};
pub use exposition::{Kind, Text};
pub use histogram::BUCKETS;
pub use labels::{ConnLabels, Protocol, Reporter, Security};
pub use limits::{Limit, LimitCounts};
pub use paths::{PathBytes, write_tcp};
#[cfg(test)]
pub use peer::tests::reviews;
pub use peer::{LastSaid, Peer};
pub use registry::{HttpSeries, Limits, Metrics, TcpSeries, WorkerMetrics};
