//! Connections to destinations: plain or by TLS from the source's namespace, or in a tunnel to the destination's agent.

mod connect;
mod errors;
mod originate;
pub mod peer_exchange;
pub mod pipe;
pub mod secure;
pub mod shortcut;
pub mod stream;
pub mod tunnel;
pub mod wire;

pub use connect::{BAGGAGE, CONNECT_TIMEOUT, Connected, Source};
pub use errors::UpstreamError;
pub use originate::{Originator, Wish, own_frame};
pub use tunnel::HBONE_PORT;
