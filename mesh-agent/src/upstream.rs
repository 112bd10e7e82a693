//! Connections to destinations: plain from the source's namespace, or in a tunnel to the destination's agent.

mod errors;
pub mod stream;
pub mod tunnel;

pub use errors::UpstreamError;
