//! The hash of a request, for consistent load balancing.
//!
//! In: a route's hash policies and the request. Out: 64 bits that are the same on every run and
//! every node, or `None` when no policy yields anything. It draws no randomness.

use std::hash::{DefaultHasher, Hasher};
use std::net::IpAddr;

use crate::resource::route::{Forward, HashSource, RequestHead};

impl Forward {
    /// Hash of a request from a client; policies without a value add nothing.
    pub fn hash(&self, request: &RequestHead<'_>, client: IpAddr) -> Option<u64> {
        if self.hash_policies.is_empty() {
            return None;
        }
        // DefaultHasher::new() has fixed keys, unlike RandomState.
        let mut hasher = DefaultHasher::new();
        let mut any = false;
        for policy in &self.hash_policies {
            let found = policy.source.feed(request, client, &mut hasher);
            any |= found;
            if found && policy.terminal {
                break;
            }
        }
        any.then(|| hasher.finish())
    }
}

impl HashSource {
    fn feed(&self, request: &RequestHead<'_>, client: IpAddr, hasher: &mut DefaultHasher) -> bool {
        let mut write = |value: Option<&[u8]>| match value {
            Some(value) => {
                hasher.write(value);
                hasher.write_u8(0xff);
                true
            }
            None => false,
        };
        match self {
            Self::Header(name) => request.with_header(name.as_str(), write),
            Self::SourceIp => match client.to_canonical() {
                IpAddr::V4(ip) => write(Some(&ip.octets())),
                IpAddr::V6(ip) => write(Some(&ip.octets())),
            },
            Self::Query(name) => write(request.query_parameter(name).map(str::as_bytes)),
            Self::Cookie { name, .. } => {
                request.with_header("cookie", |header| write(header.and_then(|header| cookie(header, name))))
            }
        }
    }
}

/// The value of a cookie (RFC 6265 4.2). Several headers were joined by commas.
fn cookie<'a>(header: &'a [u8], name: &str) -> Option<&'a [u8]> {
    header.split(|b| matches!(b, b';' | b',')).find_map(|pair| {
        let pair = pair.trim_ascii();
        let value = pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        Some(value)
    })
}
