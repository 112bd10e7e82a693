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
    /// The client has proved its identity by the certificate of a tunnel, and `detected` tells of the bytes inside. Such
    /// a connection is TLS to chains that terminate TLS, and plain to all others.
    pub mutual_tls: bool,
}

/// What Istio's clients offer by ALPN for what they carry inside of mutual TLS.
const HTTP_1_INSIDE: &[&[u8]] = &[b"istio-http/1.1", b"istio-peer-exchange", b"istio"];
const HTTP_2_INSIDE: &[&[u8]] = &[b"istio-h2", b"istio-peer-exchange", b"istio"];
const BYTES_INSIDE: &[&[u8]] = &[b"istio-peer-exchange", b"istio"];

impl Listener {
    /// Whether first bytes are needed for a connection to `destination`; `mutual_tls` as in [`ConnFacts`].
    pub fn detection(&self, destination: SocketAddr, mutual_tls: bool) -> Detection {
        let port = destination.port();
        let chains = by_destination(&self.chains, destination.ip().to_canonical(), port);
        let needed = if mutual_tls && terminate_tls(&chains) {
            inside_matters(&chains)
        } else {
            self.bytes_matter(&chains, port)
        };
        if needed { Detection::Needed } else { Detection::NotNeeded }
    }

    fn bytes_matter(&self, chains: &[&FilterChain], port: u16) -> bool {
        let (tls, http) = (self.inspectors.tls(port), self.inspectors.http(port));
        chains.iter().any(|chain| {
            let m = &chain.matches;
            (tls && (m.transport.is_some() || !m.server_names.is_empty()))
                || ((tls || http) && !m.application_protocols.is_empty())
        })
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

        let seen = if facts.mutual_tls && terminate_tls(&chains) {
            Seen::inside_tls(facts.detected)
        } else {
            Seen::new(facts.detected, self.inspectors.tls(port), self.inspectors.http(port))
        };
        keep_by_bytes(&mut chains, &seen);
        keep_best(&mut chains, |m| longest(&m.direct_source_prefix_ranges, source));
        keep_best(&mut chains, |m| m.source_type.rate(source, destination));
        keep_best(&mut chains, |m| longest(&m.source_prefix_ranges, source));
        keep_best(&mut chains, |m| source_port(m, facts.source.port()));
        chains.first().copied()
    }
}

/// The two steps that need no bytes.
pub(super) fn by_destination(chains: &[FilterChain], ip: IpAddr, port: u16) -> Vec<&FilterChain> {
    let mut chains: Vec<&FilterChain> = chains.iter().collect();
    keep_best(&mut chains, |m| match m.destination_port {
        None => Some(0),
        Some(wanted) => (wanted == port).then_some(1),
    });
    keep_best(&mut chains, |m| longest(&m.prefix_ranges, ip));
    chains
}

fn terminate_tls(chains: &[&FilterChain]) -> bool {
    chains.iter().any(|chain| chain.tls.is_some())
}

/// Whether what a tunnel carries makes a difference between chains.
fn inside_matters(chains: &[&FilterChain]) -> bool {
    let left = |alpn| {
        let mut chains = chains.to_vec();
        keep_by_bytes(&mut chains, &Seen { alpn: Alpn::Inside(alpn), ..Seen::inside_tls(None) });
        chains
    };
    let same = |a: &[&FilterChain], b: &[&FilterChain]| {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| std::ptr::eq(*a, *b))
    };
    let bytes = left(BYTES_INSIDE);
    !same(&bytes, &left(HTTP_1_INSIDE)) || !same(&bytes, &left(HTTP_2_INSIDE))
}

/// The three steps that need bytes.
fn keep_by_bytes(chains: &mut Vec<&FilterChain>, seen: &Seen<'_>) {
    keep_best(chains, |m| server_name(m, seen.server_name));
    keep_best(chains, |m| match m.transport {
        None => Some(0),
        Some(wanted) => (wanted == seen.transport).then_some(1),
    });
    keep_best(chains, |m| seen.application_protocol(m));
}

/// Keeps the chains with the highest specificity; `None` = does not match.
fn keep_best(chains: &mut Vec<&FilterChain>, rate: impl Fn(&FilterChainMatch) -> Option<usize>) {
    let best = chains.iter().filter_map(|chain| rate(&chain.matches)).max();
    chains.retain(|chain| best.is_some() && rate(&chain.matches) == best);
}

/// One more than the longest prefix that holds the address; 0 when there is no condition.
pub(super) fn longest(ranges: &[IpNet], ip: IpAddr) -> Option<usize> {
    if ranges.is_empty() {
        return Some(0);
    }
    ranges.iter().filter(|range| range.contains(&ip)).map(|range| usize::from(range.prefix_len()) + 1).max()
}

pub(super) fn source_port(m: &FilterChainMatch, port: u16) -> Option<usize> {
    match m.source_ports.as_slice() {
        [] => Some(0),
        ports => ports.contains(&port).then_some(1),
    }
}

impl SourceType {
    pub(super) fn rate(self, source: IpAddr, destination: IpAddr) -> Option<usize> {
        let local = source.is_loopback() || source == destination;
        match self {
            SourceType::Any => Some(0),
            SourceType::Local => local.then_some(1),
            SourceType::External => (!local).then_some(1),
        }
    }
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
    alpn: Alpn<'a>,
    plain: Option<&'static [u8]>,
}

/// The protocols that a client of TLS offers, most wanted first.
enum Alpn<'a> {
    Hello(&'a [Vec<u8>]),
    Inside(&'static [&'static [u8]]),
}

impl Alpn<'_> {
    /// The first offer that is among `wanted`, counted from the end: higher is more wanted.
    fn best(&self, wanted: impl Fn(&[u8]) -> bool) -> Option<usize> {
        match self {
            Alpn::Hello(offers) => offers.iter().position(|offer| wanted(offer)).map(|at| offers.len() - at),
            Alpn::Inside(offers) => offers.iter().position(|offer| wanted(offer)).map(|at| offers.len() - at),
        }
    }
}

impl<'a> Seen<'a> {
    fn new(detected: Option<&'a Detect>, tls: bool, http: bool) -> Self {
        let none = Alpn::Hello(&[]);
        let mut seen = Seen { transport: TransportProtocol::Raw, server_name: None, alpn: none, plain: None };
        match detected {
            Some(Detect::Tls(hello)) if tls => {
                seen.transport = TransportProtocol::Tls;
                if let Some(hello) = hello {
                    seen.server_name = hello.sni.as_deref();
                    seen.alpn = Alpn::Hello(&hello.alpn);
                }
            }
            Some(Detect::Http1) if http => seen.plain = Some(b"http/1.1"),
            Some(Detect::Http2) if http => seen.plain = Some(b"h2c"),
            _ => {}
        }
        seen
    }

    /// As if the tunnel were the TLS of an Istio client.
    fn inside_tls(detected: Option<&Detect>) -> Self {
        let offers = match detected {
            Some(Detect::Http1) => HTTP_1_INSIDE,
            Some(Detect::Http2) => HTTP_2_INSIDE,
            _ => BYTES_INSIDE,
        };
        Seen { transport: TransportProtocol::Tls, server_name: None, alpn: Alpn::Inside(offers), plain: None }
    }

    /// The client's first protocol that any chain names decides.
    fn application_protocol(&self, m: &FilterChainMatch) -> Option<usize> {
        if m.application_protocols.is_empty() {
            return Some(0);
        }
        let named = |protocol: &[u8]| m.application_protocols.iter().any(|wanted| wanted.as_bytes() == protocol);
        match self.plain {
            Some(plain) => named(plain).then_some(1),
            None => self.alpn.best(named),
        }
    }
}
