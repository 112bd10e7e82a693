//! The testbed: nodes, pods, control plane and agents as network namespaces and processes of one machine.
//!
//! In: a topology (YAML or built in code) and a directory of Kubernetes and Istio objects. Out: a [`Lab`], in which
//! real programs run, and which takes everything down again when it is dropped, when its owner dies, or on
//! `mesh-lab down`. The end-to-end tests, `cargo xtask lab`, `cargo xtask demo` and the benchmarks all stand on it.
//! It never mocks what can be had for real, and it never touches the machine's own namespace but for the names of
//! namespaces, one cgroup subtree, one directory under `/run/mesh-lab` and pins under the BPF file system.
//!
//! Modules, low to high: `yaml`, `sys`, `metrics` → `confine` → `topology`, `place` → `network`, `names`, `config` → `state` →
//! `capture`, `dial`, `pod`, `node`, `control` → `lab` → `shared`. Beside them peers: `tools`, `certificates`, `envoy`, `grpc`.

pub mod capture;
pub mod certificates;
pub mod config;
pub mod confine;
pub mod control;
pub mod dial;
pub mod envoy;
pub mod grpc;
pub mod lab;
pub mod metrics;
pub mod names;
pub mod network;
pub mod node;
pub mod place;
pub mod pod;
pub mod shared;
pub mod state;
pub mod sys;
pub mod tools;
pub mod topology;
pub mod yaml;

pub use capture::Capture;
pub use control::Control;
pub use dial::Dialer;
pub use lab::{Lab, LabBuilder};
pub use metrics::Metrics;
pub use node::{Agent, Node};
pub use place::{Output, Process};
pub use pod::Pod;
pub use shared::Shared;
pub use topology::Topology;
