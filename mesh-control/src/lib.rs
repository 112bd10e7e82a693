//! The control plane: reads the mesh's objects, tells agents over xDS, and signs workload certificates.
//!
//! Low to high: `yaml`, `problem`, `settings`, `metrics` → `directory`, `auth` → `ca`, `resource` → `xds`, `config` →
//! `source` → `model` → `translate` → `server`, `http` → `app`. A module uses only what stands before it.

pub mod app;
pub mod auth;
pub mod ca;
pub mod config;
pub mod directory;
pub mod http;
pub mod metrics;
pub mod model;
pub mod problem;
pub mod resource;
pub mod server;
pub mod settings;
pub mod source;
pub mod translate;
pub mod xds;
pub mod yaml;
