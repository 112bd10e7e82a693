//! Every decision of the mesh, and nothing else: what a configuration means, which filter chain,
//! route, cluster and endpoint a connection or a request takes.
//!
//! In: bytes of xDS resources, facts of a connection, the head of a request. Out: typed values.
//! It never reads a clock, a file or a socket and never draws randomness: time and random numbers
//! are arguments. Nothing here panics on any input.
//!
//! Low to high: [`identity`] → [`resource`] (xDS parsed into types that cannot be wrong) →
//! [`snapshot`] (what is in force) → [`store`] (the stream's state that yields snapshots);
//! beside them [`detect`] (first bytes), [`balance`] (endpoint choice), [`authorization`] (who may connect), [`rate`] (how often) and
//! [`ambient`] (what the node knows of the whole mesh, with a store of its own). Below all, [`shards`] is the map that tells
//! what has changed between two copies.

pub mod ambient;
pub mod authorization;
pub mod balance;
pub mod detect;
pub mod direct;
pub mod identity;
pub mod rate;
pub mod resource;
pub mod shards;
pub mod snapshot;
pub mod store;
#[cfg(test)]
mod testing;

pub use identity::SpiffeId;
pub use snapshot::Snapshot;
