//! Which connections between two workloads of one node need no agent, because nothing would become of them there but bytes
//! copied: no route, no protocol, no limit, nothing to tell of a request.
//!
//! In: the configuration and policies of both. Out: the ports. Whoever needs an agent for one reason goes through it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::authorization::Policies;
use crate::identity::SpiffeId;
use crate::resource::authorization::Connection;
use crate::resource::cluster::ClusterKind;
use crate::resource::listener::{ConnFacts, Detection, FilterChain, Listener, TcpProxy, Terminal};
use crate::snapshot::{BLACK_HOLE, Snapshot};

mod clusters;
mod services;
mod ways;

pub use clusters::{inbound_cluster, outbound_cluster};
pub use services::{Choice, MAX_SLOTS, Service, Services};
pub use ways::{Party, Way, Ways};

/// Ports of one workload that can be reached without an agent; further ones are not.
pub const MAX_PORTS: usize = 256;
/// Idle times from here on are nobody's wish, but Envoy's default for TCP.
const LONG: Duration = Duration::from_secs(3600);

/// One of the node's workloads.
#[derive(Debug, Clone, Copy)]
pub struct Local<'a> {
    /// Its configuration.
    pub snapshot: &'a Snapshot,
    /// The policies in force for it.
    pub policies: &'a Policies,
    /// Who it is.
    pub identity: &'a SpiffeId,
    /// Its addresses.
    pub addresses: &'a [IpAddr],
}

impl Local<'_> {
    /// Ports at one of its addresses that take bytes as they are, whoever sends them, in order; at most [`MAX_PORTS`].
    pub fn opaque_ports(&self, address: IpAddr) -> Vec<u16> {
        let Some(listener) = self.snapshot.inbound() else { return Vec::new() };
        let named: BTreeSet<u16> = listener.chains.iter().filter_map(|chain| chain.matches.destination_port).collect();
        // The client's address is nobody's yet; chains that ask for it are found when one is known.
        let opaque = |port: &u16| inbound(listener, SocketAddr::new(address, *port), address).is_some();
        named.into_iter().filter(opaque).take(MAX_PORTS).collect()
    }
}

/// Whether `server` takes connections from `client` at `to`, one of its addresses and ports, as its policies say, and needs
/// no agent for them; however `client` comes to go there.
pub fn comes_in(client: &Local<'_>, server: &Local<'_>, to: SocketAddr) -> bool {
    let Some(listener) = server.snapshot.inbound() else { return false };
    // Any of them may be the one that the client's kernel chooses.
    let mut sources = client.addresses.iter().filter(|ip| ip.is_ipv4() == to.is_ipv4()).peekable();
    sources.peek().is_some()
        && sources.all(|source| {
            let identity = Some(client.identity);
            let connection = Connection { identity, source: *source, destination: to.ip(), port: to.port() };
            let allowed = server.policies.evaluate(&connection).is_allowed();
            // What a policy on trial would decide otherwise is the agent's to tell.
            let rehearsed = server.policies.rehearse(&connection).is_none_or(|verdict| verdict.is_allowed());
            let admits = |chain: &FilterChain| chain.tls.as_ref().is_none_or(|tls| tls.admits(client.identity));
            allowed && rehearsed && inbound(listener, to, *source).is_some_and(admits)
        })
}

/// The inbound chain of a connection from a proved identity, if it only copies bytes.
fn inbound(listener: &Listener, to: SocketAddr, source: IpAddr) -> Option<&FilterChain> {
    let chain = opaque(listener, to, source, true)?;
    let Terminal::Tcp(proxy) = &chain.terminal else { return None };
    proxy.clusters.entries().all(|entry| &*entry.name != BLACK_HOLE).then_some(chain)
}

/// Whether what a workload sends to this very address goes there, and as it is.
pub fn leaves(snapshot: &Snapshot, to: SocketAddr) -> bool {
    let Some(proxy) = outbound(snapshot, to) else { return false };
    proxy.clusters.entries().all(|entry| {
        snapshot.cluster(&entry.name).is_some_and(|cluster| match cluster.kind {
            ClusterKind::OriginalDst { port_override } => port_override.is_none_or(|port| port == to.port()),
            _ => false,
        })
    })
}

/// Names of the clusters that this depends on.
fn leaving(snapshot: &Snapshot, to: SocketAddr) -> Vec<Arc<str>> {
    outbound(snapshot, to).into_iter().flat_map(|proxy| proxy.clusters.entries()).map(|one| one.name.clone()).collect()
}

/// What becomes of connections to an address, if that is known without their bytes.
fn outbound(snapshot: &Snapshot, to: SocketAddr) -> Option<&TcpProxy> {
    let unspecified = if to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    match &opaque(snapshot.outbound(to)?, to, unspecified, false)?.terminal {
        Terminal::Tcp(proxy) => Some(proxy),
        Terminal::Http(_) => None,
    }
}

/// The chain that serves a connection, if that is known without its first bytes and it only copies bytes, for as long as
/// the ends want.
fn opaque(listener: &Listener, destination: SocketAddr, source: IpAddr, mutual_tls: bool) -> Option<&FilterChain> {
    if listener.detection(destination, mutual_tls) == Detection::Needed {
        return None;
    }
    let source = SocketAddr::new(source, 0);
    let chain = listener.chain(&ConnFacts { destination, source, detected: None, mutual_tls })?;
    match &chain.terminal {
        Terminal::Tcp(proxy) => {
            let unlimited = proxy.max_duration.is_none() && proxy.idle_timeout.is_none_or(|idle| idle >= LONG);
            (unlimited && chain.matches.source_ports.is_empty()).then_some(chain)
        }
        Terminal::Http(_) => None,
    }
}

#[cfg(test)]
mod tests;
