//! Says where plaintext may enter: STRICT and PERMISSIVE, as the filter chains alone tell it.
//!
//! In: an inbound listener. Out: for one connection, whether any chain could serve it in the open; for the kernel, the
//! same by port ([`InboundModes`]). A chain that terminates TLS serves nobody in the open, nor does one that leads
//! nowhere. In doubt the answer is no.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use crate::resource::listener::sieve::{by_destination, longest, source_port};
use crate::resource::listener::{FilterChain, FilterChainMatch, Listener, Terminal};
use crate::snapshot::BLACK_HOLE;

/// Most ports that [`InboundModes`] tells apart; beyond that the rest is strict.
pub const MAX_EXCEPTIONS: usize = 256;

/// Whether plaintext may enter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InboundMode {
    /// Only what came through mutual TLS.
    Strict,
    /// Plaintext too.
    Plaintext,
}

impl InboundMode {
    fn of(plaintext: bool) -> Self {
        if plaintext { InboundMode::Plaintext } else { InboundMode::Strict }
    }
}

/// Modes by destination port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboundModes {
    /// That of every other port.
    pub default: InboundMode,
    /// Ports with the other mode, in order, at most [`MAX_EXCEPTIONS`].
    pub exceptions: Vec<u16>,
}

impl Default for InboundModes {
    /// Nothing may enter: that of a workload without a listener.
    fn default() -> Self {
        InboundModes { default: InboundMode::Strict, exceptions: Vec::new() }
    }
}

impl InboundModes {
    /// The mode of a port.
    pub fn of_port(&self, port: u16) -> InboundMode {
        let exception = self.exceptions.binary_search(&port).is_ok();
        InboundMode::of((self.default == InboundMode::Plaintext) != exception)
    }
}

impl Listener {
    /// Whether some chain could serve a connection that comes in the open. The bytes may yet say otherwise.
    pub fn admits_plaintext(&self, source: SocketAddr, destination: SocketAddr) -> bool {
        let (from, to) = (source.ip().to_canonical(), destination.ip().to_canonical());
        let fits = |m: &FilterChainMatch| {
            longest(&m.direct_source_prefix_ranges, from).is_some()
                && m.source_type.rate(from, to).is_some()
                && longest(&m.source_prefix_ranges, from).is_some()
                && source_port(m, source.port()).is_some()
        };
        let chains = by_destination(&self.chains, to, destination.port());
        chains.iter().any(|chain| chain.serves_plaintext() && fits(&chain.matches))
            || self.default_chain.as_ref().is_some_and(FilterChain::serves_plaintext)
    }

    /// Whether some chain could end TLS that comes to a port of the application's.
    pub fn terminates_tls(&self, destination: SocketAddr) -> bool {
        let chains = by_destination(&self.chains, destination.ip().to_canonical(), destination.port());
        chains.into_iter().chain(&self.default_chain).any(|chain| chain.tls.is_some())
    }

    /// Where plaintext may enter whatever its source and its destination's address are: for who sees ports only.
    pub fn inbound_modes(&self) -> InboundModes {
        let rest = self.default_chain.as_ref().is_some_and(FilterChain::serves_plaintext);
        let open = |port: Option<u16>| {
            let chains = || self.chains.iter().filter(|chain| chain.matches.destination_port == port);
            // A chain for some addresses hides the others from them.
            rest || (chains().any(FilterChain::serves_plaintext) && chains().all(|chain| for_everybody(&chain.matches)))
        };
        let named: BTreeSet<u16> = self.chains.iter().filter_map(|chain| chain.matches.destination_port).collect();
        let (plain, strict): (Vec<u16>, Vec<u16>) = named.into_iter().partition(|port| open(Some(*port)));
        let default = InboundMode::of(open(None));
        match default {
            InboundMode::Plaintext if strict.len() <= MAX_EXCEPTIONS => InboundModes { default, exceptions: strict },
            // Too many ports to close one by one: all are closed but those that are said to be open.
            InboundMode::Plaintext | InboundMode::Strict => InboundModes {
                default: InboundMode::Strict,
                exceptions: plain.into_iter().take(MAX_EXCEPTIONS).collect(),
            },
        }
    }
}

impl FilterChain {
    /// Whether it serves a connection that comes in the open: it wants no TLS towards the client and leads somewhere.
    pub fn serves_plaintext(&self) -> bool {
        let nowhere = match &self.terminal {
            Terminal::Tcp(proxy) => proxy.clusters.entries().all(|cluster| &*cluster.name == BLACK_HOLE),
            Terminal::Http(_) => false,
        };
        self.tls.is_none() && !nowhere
    }
}

fn for_everybody(m: &FilterChainMatch) -> bool {
    let FilterChainMatch {
        destination_port: _,
        prefix_ranges,
        server_names: _,
        transport: _,
        application_protocols: _,
        direct_source_prefix_ranges,
        source_type,
        source_prefix_ranges,
        source_ports,
    } = m;
    prefix_ranges.is_empty()
        && direct_source_prefix_ranges.is_empty()
        && *source_type == Default::default()
        && source_prefix_ranges.is_empty()
        && source_ports.is_empty()
}

#[cfg(test)]
mod tests;
