//! The node agent: catches the traffic of local workloads, gives it identity and mTLS, applies what the control plane
//! says, and tells what it did. `ARCHITECTURE.md` has the picture.
//!
//! The modules stand in layers, low to high: settings, errors, shutdown, telemetry → net → workload → tls → identity →
//! kernel → dns → upstream → live → proxy → xds → apply → admin → handover → app. A module uses only what stands to its
//! left (tested).

pub mod admin;
pub mod app;
pub mod apply;
pub mod dns;
pub mod errors;
pub mod handover;
pub mod identity;
pub mod kernel;
pub mod live;
pub mod net;
pub mod proxy;
mod random;
pub mod settings;
pub mod shutdown;
pub mod telemetry;
pub mod tls;
pub mod upstream;
pub mod workload;
pub mod xds;

#[cfg(test)]
mod tests;
