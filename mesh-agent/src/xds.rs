//! The xDS client: one delta ADS stream per local workload and one for the node, over one channel to the control plane.
//! In: resources. Out: a store kept up to date, an ACK or a NACK with reasons for everything, requests for what the store needs. While
//! the control plane is away the store keeps what it had. Never touches live traffic: `apply` does.

mod backoff;
mod channel;
mod kept;
mod node;
mod protocol;
mod status;
mod stream;

pub use channel::{ChannelError, ControlPlaneChannel};
pub use kept::Kept;
pub use node::{node, whole_node};
pub use status::{Counters, State, Status, StatusCell};
pub use stream::{Client, MAX_MESSAGE_BYTES};

#[cfg(test)]
mod tests;
