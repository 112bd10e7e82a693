//! The agent's own pages: admin (15000), metrics (15020), readiness (15021). In: GET requests. Out: JSON or text about
//! the agent. Changes nothing, shows no key, and what a client sends costs a bounded amount.

mod mesh;
mod pages;
mod server;

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;

use crate::identity::Identities;
use crate::live::Live;
use crate::settings::Settings;
use crate::shutdown::Watch;
use crate::telemetry::Metrics;
use crate::workload::Workload;
use crate::xds::StatusCell;

pub use pages::Page;
pub use server::serve;

/// Everything that the pages read.
pub struct View {
    /// The settings in force.
    pub settings: Arc<Settings>,
    /// All metrics.
    pub metrics: Arc<Metrics>,
    /// The configuration in force.
    pub live: Arc<Live>,
    /// The node's own stream; `None` if it is switched off.
    pub node_stream: Option<StatusCell>,
    /// The certificates.
    pub identities: Identities,
    /// The workloads; changed by `app`.
    pub roster: watch::Receiver<Arc<Roster>>,
    /// When the agent started.
    pub started: SystemTime,
    /// Whether the agent is ending.
    pub shutdown: Watch,
}

/// The workloads of this node.
#[derive(Default)]
pub struct Roster {
    /// Those whose traffic is caught.
    pub enrolled: Vec<Enrolled>,
    /// Those that could not be enrolled, or not yet.
    pub pending: Vec<Pending>,
}

/// A workload whose traffic is caught.
#[derive(Clone)]
pub struct Enrolled {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Its configuration stream.
    pub xds: StatusCell,
}

/// A workload that could not be enrolled; it is tried again.
#[derive(Clone, Debug)]
pub struct Pending {
    /// `namespace/name`.
    pub key: String,
    /// Why, and what to do.
    pub reason: String,
}

#[cfg(test)]
mod tests;
