//! Rules for the names of a peer's certificate (`match_typed_subject_alt_names`, `match_subject_alt_names`).
//!
//! In: the rules; then a name of a certificate (RFC 5280, 4.2.1.6). Out: yes or no. Whether the certificate is to be believed is
//! decided elsewhere.

use std::net::IpAddr;

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use pb::subject_alt_name_matcher::SanType;

use crate::resource::StringMatch;
use crate::resource::fault::{At, Fault};
use crate::resource::wire::refuse;

/// One name of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AltName<'a> {
    /// A DNS name, perhaps `*.` and the rest of one.
    Dns(&'a str),
    /// A URI, e.g. a SPIFFE id.
    Uri(&'a str),
    /// A mailbox.
    Email(&'a str),
    /// An address.
    Ip(IpAddr),
}

/// Kind of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SanKind {
    /// A DNS name.
    Dns,
    /// A URI.
    Uri,
    /// A mailbox.
    Email,
    /// An address.
    Ip,
}

/// A rule that one of the names must obey.
#[derive(Debug, Clone, PartialEq)]
pub struct SanMatch {
    /// `None`: a name of any kind.
    pub kind: Option<SanKind>,
    /// The name as text.
    pub text: StringMatch,
}

impl SanMatch {
    /// Whether a name obeys. An exact rule for a DNS name is also obeyed by a wildcard that stands for one label of it (RFC 6125,
    /// 6.4.3), and does not look at case.
    pub fn matches(&self, name: &AltName<'_>) -> bool {
        if self.kind.is_some_and(|kind| kind != name.kind()) {
            return false;
        }
        match (name, &self.text) {
            (AltName::Dns(name), StringMatch::Exact(wanted)) => dns_covers(name, &wanted.value),
            (AltName::Dns(text) | AltName::Uri(text) | AltName::Email(text), rule) => rule.matches(text.as_bytes()),
            (AltName::Ip(ip), rule) => rule.matches(ip.to_string().as_bytes()),
        }
    }

    pub(super) fn untyped(message: &matcher::StringMatcher) -> Result<Self, Fault> {
        Ok(SanMatch { kind: None, text: StringMatch::parse(message)? })
    }

    pub(super) fn typed(message: &pb::SubjectAltNameMatcher) -> Result<Self, Fault> {
        refuse!(message; oid);
        let kind = match SanType::try_from(message.san_type) {
            Ok(SanType::Unspecified) => None,
            Ok(SanType::Dns) => Some(SanKind::Dns),
            Ok(SanType::Uri) => Some(SanKind::Uri),
            Ok(SanType::Email) => Some(SanKind::Email),
            Ok(SanType::IpAddress) => Some(SanKind::Ip),
            Ok(SanType::OtherName) | Err(_) => return Err(Fault::field("san_type", "not supported")),
        };
        match &message.matcher {
            Some(matcher) => Ok(SanMatch { kind, text: StringMatch::parse(matcher).at("matcher")? }),
            None => Err(Fault::field("matcher", "missing")),
        }
    }
}

impl AltName<'_> {
    fn kind(&self) -> SanKind {
        match self {
            AltName::Dns(_) => SanKind::Dns,
            AltName::Uri(_) => SanKind::Uri,
            AltName::Email(_) => SanKind::Email,
            AltName::Ip(_) => SanKind::Ip,
        }
    }

    /// Whether a certificate with this name is one of the host that was asked for.
    pub fn is_of_host(&self, host: &str) -> bool {
        match self {
            AltName::Dns(name) => dns_covers(name, host),
            AltName::Ip(ip) => host.parse() == Ok(*ip),
            AltName::Uri(_) | AltName::Email(_) => false,
        }
    }
}

/// Whether the DNS name of a certificate stands for a host.
fn dns_covers(name: &str, host: &str) -> bool {
    if name.eq_ignore_ascii_case(host) {
        return true;
    }
    let (Some(rest), Some((first, parent))) = (name.strip_prefix("*."), host.split_once('.')) else { return false };
    !first.is_empty() && parent.contains('.') && rest.eq_ignore_ascii_case(parent)
}
