//! How connections may come in to a port: the filter chains that istiod makes of a mode and a protocol.
//!
//! In: mode and protocol. Out: [`Door`]s, one per chain: what it matches, whether it ends mutual TLS, whether it speaks
//! HTTP. STRICT has doors of mutual TLS only, DISABLE of plaintext only, PERMISSIVE of both.

use envoy_types::pb::envoy::config::listener::v3::FilterChainMatch;

use super::chain::{plain, plain_http};
use super::tls::{ISTIO_HTTP, ISTIO_TCP};
use crate::model::authentication::MtlsMode;
use crate::model::protocol::Protocol;

/// One way in.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Door {
    /// The bytes it is for; the port is the caller's.
    pub matches: FilterChainMatch,
    /// It ends mutual TLS.
    pub mutual: bool,
    /// Requests are routed, else bytes are copied.
    pub http: bool,
}

/// Every way in.
pub(crate) fn doors(mode: MtlsMode, protocol: Protocol) -> Vec<Door> {
    let door = |matches, mutual, http| Door { matches, mutual, http };
    let mutual = |alpn: &[&str], http| door(tls(alpn), true, http);
    let every: Vec<&str> = ISTIO_TCP.into_iter().chain(ISTIO_HTTP).collect();
    let anything = FilterChainMatch::default;
    // Where one chain asks for a transport every other one has to (Envoy's order of matching).
    match (mode, Shape::of(protocol)) {
        (MtlsMode::Strict, Shape::Http) => vec![mutual(&[], true)],
        (MtlsMode::Strict, Shape::Tcp) => vec![mutual(&[], false)],
        (MtlsMode::Strict, Shape::Detected) => vec![mutual(&ISTIO_HTTP, true), mutual(&[], false)],
        (MtlsMode::Permissive, Shape::Http) => vec![mutual(&every, true), door(plain(), false, true)],
        (MtlsMode::Permissive, Shape::Tcp) => {
            vec![mutual(&every, false), door(tls(&[]), false, false), door(plain(), false, false)]
        }
        (MtlsMode::Permissive, Shape::Detected) => vec![
            mutual(&ISTIO_HTTP, true),
            door(plain_http(), false, true),
            mutual(&ISTIO_TCP, false),
            door(plain(), false, false),
            // TLS of the applications' own.
            door(tls(&[]), false, false),
        ],
        (MtlsMode::Disable, Shape::Http) => vec![door(anything(), false, true)],
        (MtlsMode::Disable, Shape::Tcp) => vec![door(anything(), false, false)],
        (MtlsMode::Disable, Shape::Detected) => {
            vec![door(plain_http(), false, true), door(plain(), false, false), door(tls(&[]), false, false)]
        }
    }
}

enum Shape {
    Http,
    Tcp,
    Detected,
}

impl Shape {
    fn of(protocol: Protocol) -> Shape {
        match protocol {
            protocol if protocol.is_http() => Shape::Http,
            Protocol::Auto => Shape::Detected,
            _ => Shape::Tcp,
        }
    }
}

fn tls(alpn: &[&str]) -> FilterChainMatch {
    FilterChainMatch {
        transport_protocol: "tls".to_owned(),
        application_protocols: alpn.iter().map(|&protocol| protocol.to_owned()).collect(),
        ..Default::default()
    }
}
