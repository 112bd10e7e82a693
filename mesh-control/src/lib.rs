//! The control plane: reads the mesh's objects, answers xDS and signs certificates.
//!
//! Low to high: `yaml`, `problem`, `settings`, `metrics` → `directory`, `auth` → `ca`, `resource` → `xds`. A module uses only what stands
//! before it.

pub mod auth;
pub mod ca;
pub mod config;
pub mod directory;
pub mod metrics;
pub mod problem;
pub mod resource;
pub mod settings;
pub mod xds;
pub mod yaml;
