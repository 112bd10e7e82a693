//! What can be seen of the streams from outside. In: events of the streams. Out: figures for metrics, one status per
//! workload for readiness and admin pages. Bounded: one status per workload, its texts cut.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use crate::telemetry::{Kind, Text};

/// Where a stream stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// No stream; being tried.
    #[default]
    Disconnected,
    /// A stream is open.
    Connected,
}

/// What is known of one workload's stream.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Whether the stream is open.
    pub state: State,
    /// When the last response came.
    pub last_response: Option<SystemTime>,
    /// Why the last stream ended or could not be opened.
    pub last_error: Option<String>,
    /// The text of the last NACK since the stream began.
    pub last_nack: Option<String>,
    /// Responses and NACKs since the workload was enrolled.
    pub responses: u64,
    /// NACKs since the workload was enrolled.
    pub nacks: u64,
}

/// One workload's status, shared by its stream and its readers.
#[derive(Clone, Default)]
pub struct StatusCell(Arc<Mutex<Status>>);

impl StatusCell {
    /// A copy.
    pub fn get(&self) -> Status {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Figures of all streams.
#[derive(Default)]
pub struct Counters {
    pub(super) streams: AtomicI64,
    pub(super) responses: AtomicU64,
    pub(super) nacks: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) failures: AtomicU64,
}

impl Counters {
    /// Adds them to a metrics page.
    pub fn write(&self, out: &mut Text) {
        let streams = self.streams.load(Relaxed);
        out.single("mesh_agent_xds_streams", Kind::Gauge, "Open ADS streams.", streams);
        for (name, help, value) in [
            ("mesh_agent_xds_responses_total", "Responses of the control plane.", &self.responses),
            ("mesh_agent_xds_nacks_total", "Responses answered with a NACK.", &self.nacks),
            ("mesh_agent_xds_refused_resources_total", "Resources refused.", &self.refused),
            ("mesh_agent_xds_failures_total", "ADS streams that failed or could not be opened.", &self.failures),
        ] {
            out.single(name, Kind::Counter, help, value.load(Relaxed));
        }
    }
}
