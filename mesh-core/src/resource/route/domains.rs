//! Finds the virtual host of an authority.
//!
//! In: the domains of all virtual hosts; then an authority. Out: the index of a virtual host.
//! Order of preference (Envoy documentation, `VirtualHost.domains`): exact, then the longest
//! `*suffix`, then the longest `prefix*`, then `*`.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use foldhash::fast::FixedState;

use crate::resource::fault::Fault;

/// A quick hash: authorities that clients choose are looked up only, never put in.
type Names = HashMap<Box<str>, usize, FixedState>;

type ByLength = BTreeMap<usize, Names>;

/// Domains of a route table, by kind.
#[derive(Debug, Default)]
pub(crate) struct Domains {
    exact: Names,
    suffixes: ByLength,
    prefixes: ByLength,
    any: Option<usize>,
    ignore_port: bool,
}

impl Domains {
    pub(crate) fn new(ignore_port: bool) -> Self {
        Domains { ignore_port, ..Self::default() }
    }

    /// Adds a domain; one that is there already is refused.
    pub(crate) fn add(&mut self, domain: &str, host: usize) -> Result<(), Fault> {
        let domain = domain.to_ascii_lowercase();
        let taken = if domain == "*" {
            self.any.replace(host)
        } else if let Some(suffix) = domain.strip_prefix('*') {
            literal(suffix)?;
            self.suffixes.entry(suffix.len()).or_default().insert(suffix.into(), host)
        } else if let Some(prefix) = domain.strip_suffix('*') {
            literal(prefix)?;
            self.prefixes.entry(prefix.len()).or_default().insert(prefix.into(), host)
        } else {
            literal(&domain)?;
            self.exact.insert(domain.as_str().into(), host)
        };
        match taken {
            None => Ok(()),
            Some(_) => Err(Fault::new(format!("{domain:?} is there twice"))),
        }
    }

    /// The virtual host of an authority.
    pub(crate) fn find(&self, authority: &str) -> Option<usize> {
        let host = if self.ignore_port { without_port(authority) } else { authority };
        let host = lower(host);
        if let Some(found) = self.exact.get(host.as_ref()) {
            return Some(*found);
        }
        longest(&self.suffixes, host.len(), |n| host.get(host.len() - n..))
            .or_else(|| longest(&self.prefixes, host.len(), |n| host.get(..n)))
            .or(self.any)
    }
}

/// The longest part of the host that is in the map; a wildcard stands for at least one character.
fn longest<'a>(map: &ByLength, host_length: usize, part: impl Fn(usize) -> Option<&'a str>) -> Option<usize> {
    map.range(..host_length).rev().find_map(|(length, names)| names.get(part(*length)?).copied())
}

fn literal(text: &str) -> Result<(), Fault> {
    if text.is_empty() || text.contains('*') {
        Err(Fault::new("a domain is a name, \"*\", \"*suffix\" or \"prefix*\""))
    } else {
        Ok(())
    }
}

fn lower(host: &str) -> Cow<'_, str> {
    if host.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}

/// `host:80` → `host`, `[::1]:80` → `[::1]`; anything else as it is.
pub(crate) fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port))
            if port.bytes().all(|b| b.is_ascii_digit()) && (!host.contains(':') || host.ends_with(']')) =>
        {
            host
        }
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefers_as_envoy() {
        let mut domains = Domains::new(true);
        for (host, domain) in
            ["*", "a.b.c", "*.b.c", "*-x.b.c", "*.c", "a.*", "a.b.*", "[::1]", "10.0.0.1"].into_iter().enumerate()
        {
            domains.add(domain, host).unwrap();
        }
        for (authority, want) in [
            ("a.b.c", 1),
            ("A.B.C:8080", 1),
            ("q.b.c", 2),
            ("q-x.b.c", 3),
            // A wildcard is never empty.
            (".b.c", 4),
            ("q.c", 4),
            ("a.q", 5),
            ("a.b.q", 6),
            ("a.", 0),
            ("[::1]:80", 7),
            ("::1", 0),
            ("10.0.0.1:80", 8),
            ("", 0),
            (":", 0),
        ] {
            assert_eq!(domains.find(authority), Some(want), "{authority}");
        }
    }

    #[test]
    fn keeps_the_port_unless_told() {
        let mut domains = Domains::new(false);
        domains.add("a:80", 1).unwrap();
        assert_eq!(domains.find("a:80"), Some(1));
        assert_eq!(domains.find("a"), None);
    }

    #[test]
    fn refuses_twice_and_odd_wildcards() {
        let mut domains = Domains::new(true);
        domains.add("a.b", 0).unwrap();
        assert!(domains.add("A.b", 1).is_err());
        for bad in ["", "**", "*.*", "a*b", "*a*"] {
            assert!(domains.add(bad, 1).is_err(), "{bad}");
        }
    }
}
