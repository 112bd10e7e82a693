//! Connections to destinations: plain from the source's namespace, or in a tunnel to the destination's agent.

mod connect;
mod errors;
pub mod pipe;
pub mod shortcut;
pub mod stream;
pub mod tunnel;
pub mod wire;

pub use connect::{BAGGAGE, CONNECT_TIMEOUT, Connected, Source};
pub use errors::UpstreamError;
pub use tunnel::HBONE_PORT;
