//! Generated code of the project's own .proto files. Envoy's types come from the `envoy-types` crate.
#![allow(missing_docs, clippy::all)]

/// Istio's certificate authority interface, package `istio.v1.auth`.
pub mod ca {
    tonic::include_proto!("istio.v1.auth");
}

/// Istio's workload discovery, package `istio.workload`.
pub mod workload {
    tonic::include_proto!("istio.workload");
}

/// Istio's workload authorization, package `istio.security`.
pub mod security {
    tonic::include_proto!("istio.security");
}
