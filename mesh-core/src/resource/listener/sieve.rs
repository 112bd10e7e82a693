//! Chooses the filter chain of a connection, in Envoy's order.
//!
//! In: facts of the connection. Out: the chain, or none. Each step keeps the chains that are most
//! specific in one property; there is no way back: what a step sieved out stays out, even if
//! nothing is left later (Envoy documentation, `FilterChainMatch`). Then the default chain serves.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::detect::Detect;
use crate::resource::listener::{FilterChain, FilterChainMatch, Listener, SourceType, TransportProtocol};

/// Whether a connection's first bytes are needed before its chain is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detection {
    /// The chain depends on addresses only: a server that speaks first works at once.
    NotNeeded,
    /// Peek, run [`crate::detect::detect`], then choose.
    Needed,
}

/// What is known of a connection when its chain is chosen.
#[derive(Debug, Clone, Copy)]
pub struct ConnFacts<'a> {
    /// Original destination.
    pub destination: SocketAddr,
    /// The client.
    pub source: SocketAddr,
    /// What the first bytes are; `None` when they were not waited for, which counts as opaque.
    pub detected: Option<&'a Detect>,
}

impl Listener {
    /// Whether first bytes are needed for a connection to `destination`.
    pub fn detection(&self, destination: SocketAddr) -> Detection {
        let tls = self.inspectors.tls(destination.port());
        let http = self.inspectors.http(destination.port());
        let depends = |chain: &&FilterChain| {
            let m = &chain.matches;
            (tls && (m.transport.is_some() || !m.server_names.is_empty()))
                || ((tls || http) && !m.application_protocols.is_empty())
        };
        let ip = destination.ip().to_canonical();
        let chains = by_destination(&self.chains, ip, destination.port());
        if chains.iter().any(depends) { Detection::Needed } else { Detection::NotNeeded }
    }

    /// The chain that serves the connection, else the default chain; `None` = it is closed.
    pub fn chain(&self, facts: &ConnFacts<'_>) -> Option<&FilterChain> {
        self.best(facts).or(self.default_chain.as_ref())
    }

    fn best(&self, facts: &ConnFacts<'_>) -> Option<&FilterChain> {
        let destination = facts.destination.ip().to_canonical();
        let source = facts.source.ip().to_canonical();
        let port = facts.destination.port();
        let mut chains = by_destination(&self.chains, destination, port);

        let seen = Seen::new(facts.detected, self.inspectors.tls(port), self.inspectors.http(port));
        keep_best(&mut chains, |m| server_name(m, seen.server_name));
        keep_best(&mut chains, |m| match m.transport {
            None => Some(0),
            Some(wanted) => (wanted == seen.transport).then_some(1),
        });
        keep_best(&mut chains, |m| seen.application_protocol(m));
        keep_best(&mut chains, |m| longest(&m.direct_source_prefix_ranges, source));
        let local = source.is_loopback() || source == destination;
        keep_best(&mut chains, |m| match m.source_type {
            SourceType::Any => Some(0),
            SourceType::Local => local.then_some(1),
            SourceType::External => (!local).then_some(1),
        });
        keep_best(&mut chains, |m| longest(&m.source_prefix_ranges, source));
        keep_best(&mut chains, |m| match m.source_ports.as_slice() {
            [] => Some(0),
            ports => ports.contains(&facts.source.port()).then_some(1),
        });
        chains.first().copied()
    }
}

/// The two steps that need no bytes.
fn by_destination(chains: &[FilterChain], ip: IpAddr, port: u16) -> Vec<&FilterChain> {
    let mut chains: Vec<&FilterChain> = chains.iter().collect();
    keep_best(&mut chains, |m| match m.destination_port {
        None => Some(0),
        Some(wanted) => (wanted == port).then_some(1),
    });
    keep_best(&mut chains, |m| longest(&m.prefix_ranges, ip));
    chains
}

/// Keeps the chains with the highest specificity; `None` = does not match.
fn keep_best(chains: &mut Vec<&FilterChain>, rate: impl Fn(&FilterChainMatch) -> Option<usize>) {
    let best = chains.iter().filter_map(|chain| rate(&chain.matches)).max();
    chains.retain(|chain| best.is_some() && rate(&chain.matches) == best);
}

/// One more than the longest prefix that holds the address; 0 when there is no condition.
fn longest(ranges: &[IpNet], ip: IpAddr) -> Option<usize> {
    if ranges.is_empty() {
        return Some(0);
    }
    ranges.iter().filter(|range| range.contains(&ip)).map(|range| usize::from(range.prefix_len()) + 1).max()
}

/// Exact names before wildcards, longer wildcards before shorter ones.
fn server_name(m: &FilterChainMatch, name: Option<&str>) -> Option<usize> {
    if m.server_names.is_empty() {
        return Some(0);
    }
    let name = name?;
    m.server_names
        .iter()
        .filter_map(|wanted| match wanted.strip_prefix('*') {
            // The suffix starts with a dot, and the name is longer than it.
            Some(suffix) => (name.len() > suffix.len() && name.ends_with(suffix)).then_some(suffix.len()),
            None => (name == wanted.as_ref()).then_some(usize::MAX),
        })
        .max()
}

/// What the inspectors would tell of the first bytes.
struct Seen<'a> {
    transport: TransportProtocol,
    server_name: Option<&'a str>,
    tls_alpn: &'a [Vec<u8>],
    plain: Option<&'static [u8]>,
}

impl<'a> Seen<'a> {
    fn new(detected: Option<&'a Detect>, tls: bool, http: bool) -> Self {
        let mut seen = Seen { transport: TransportProtocol::Raw, server_name: None, tls_alpn: &[], plain: None };
        match detected {
            Some(Detect::Tls(hello)) if tls => {
                seen.transport = TransportProtocol::Tls;
                if let Some(hello) = hello {
                    seen.server_name = hello.sni.as_deref();
                    seen.tls_alpn = &hello.alpn;
                }
            }
            Some(Detect::Http1) if http => seen.plain = Some(b"http/1.1"),
            Some(Detect::Http2) if http => seen.plain = Some(b"h2c"),
            _ => {}
        }
        seen
    }

    /// The client's first protocol that any chain names decides.
    fn application_protocol(&self, m: &FilterChainMatch) -> Option<usize> {
        if m.application_protocols.is_empty() {
            return Some(0);
        }
        let named = |protocol: &[u8]| m.application_protocols.iter().any(|wanted| wanted.as_bytes() == protocol);
        if let Some(plain) = self.plain {
            return named(plain).then_some(1);
        }
        let position = self.tls_alpn.iter().position(|protocol| named(protocol))?;
        Some(self.tls_alpn.len() - position)
    }
}
