//! Typed resources: what Envoy's and Istio's messages mean to this mesh, or why they are refused.
//!
//! In: one decoded xDS resource. Out: a value that cannot be wrong, or a [`Rejection`] naming the
//! resource, the field and the reason, fit to be sent back as a NACK. Fields that cannot change
//! what traffic does are accepted without effect; anything else unknown is refused, never guessed.

#![allow(deprecated, reason = "control planes still send fields that Envoy has deprecated")]

pub mod authorization;
pub mod cluster;
pub mod endpoint;
pub mod listener;
pub mod route;
pub mod workload;

pub(crate) mod fault;
mod filters;
mod text;
mod tls;
mod wire;

pub use fault::Rejection;
pub use text::{StringMatch, Text};
pub use tls::{AltName, CertificateSource, RootsSource, SanKind, SanMatch};

/// Type URL of `envoy.config.cluster.v3.Cluster`.
pub const CLUSTER_TYPE: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// Type URL of `envoy.config.endpoint.v3.ClusterLoadAssignment`.
pub const ENDPOINT_TYPE: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
/// Type URL of `envoy.config.listener.v3.Listener`.
pub const LISTENER_TYPE: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// Type URL of `envoy.config.route.v3.RouteConfiguration`.
pub const ROUTE_TYPE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
/// Type URL of `istio.workload.Address`.
pub const ADDRESS_TYPE: &str = "type.googleapis.com/istio.workload.Address";
/// Type URL of `istio.security.Authorization`.
pub const AUTHORIZATION_TYPE: &str = "type.googleapis.com/istio.security.Authorization";
