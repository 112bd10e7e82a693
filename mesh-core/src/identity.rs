//! Workload identities: SPIFFE ids in Istio's form `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
//!
//! In: text from settings, certificates, xDS metadata. Out: a [`SpiffeId`] that is well formed, or
//! an [`IdentityError`] saying why not. It never decides whether an identity is trusted.

use std::fmt;
use std::sync::Arc;

/// Longest SPIFFE id accepted, in bytes (SPIFFE-ID 2.3: "must support up to 2048 bytes").
pub const MAX_ID_BYTES: usize = 2048;
/// Longest trust domain accepted, in bytes (SPIFFE-ID 2.1).
pub const MAX_TRUST_DOMAIN_BYTES: usize = 255;

const SCHEME: &str = "spiffe://";

/// A SPIFFE id of a Kubernetes service account. Cloning is a reference count; equality, order and
/// hash are those of the text.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId(Arc<str>);

/// Why a text is not an identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Longer than [`MAX_ID_BYTES`].
    #[error("identity is {0} bytes long, at most {MAX_ID_BYTES} are allowed")]
    TooLong(usize),
    /// Not `spiffe://`.
    #[error("identity {0:?} does not start with \"spiffe://\"")]
    Scheme(String),
    /// Empty, too long, or with characters other than a-z, 0-9, '.', '-', '_'.
    #[error("trust domain {0:?} is not made of 1 to 255 of a-z, 0-9, '.', '-', '_'")]
    TrustDomain(String),
    /// A path segment is empty, "." or "..", or holds other characters than the allowed ones.
    #[error("{0:?} is not a SPIFFE path segment (a-z, A-Z, 0-9, '.', '-', '_'; not \".\" or \"..\")")]
    Segment(String),
    /// A path that is not `/ns/<namespace>/sa/<service account>`.
    #[error("path of {0:?} is not /ns/<namespace>/sa/<service account>")]
    Form(String),
}

impl SpiffeId {
    /// Parses the whole URI. Percent encoding, queries, fragments, ports and user parts are
    /// refused, as the SPIFFE standard asks.
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        if text.len() > MAX_ID_BYTES {
            return Err(IdentityError::TooLong(text.len()));
        }
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| IdentityError::Scheme(text.to_owned()))?;
        let (domain, path) = rest.split_once('/').ok_or_else(|| IdentityError::Form(text.to_owned()))?;
        check_trust_domain(domain)?;
        let segments: Vec<&str> = path.split('/').collect();
        for segment in &segments {
            check_segment(segment)?;
        }
        match segments.as_slice() {
            ["ns", _, "sa", _] => Ok(SpiffeId(Arc::from(text))),
            _ => Err(IdentityError::Form(text.to_owned())),
        }
    }

    /// Builds the identity of a service account.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, IdentityError> {
        // A slash inside a part must not become a path of another shape that happens to parse.
        check_trust_domain(trust_domain)?;
        check_segment(namespace)?;
        check_segment(service_account)?;
        Self::parse(&format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}"))
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The trust domain, e.g. `cluster.local`.
    pub fn trust_domain(&self) -> &str {
        self.part(0)
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        self.part(2)
    }

    /// The service account.
    pub fn service_account(&self) -> &str {
        self.part(4)
    }

    /// The URI without its scheme, as Istio writes principals in policies and metrics.
    pub fn principal(&self) -> &str {
        self.0.get(SCHEME.len()..).unwrap_or_default()
    }

    fn part(&self, index: usize) -> &str {
        self.principal().split('/').nth(index).unwrap_or_default()
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for SpiffeId {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

fn check_trust_domain(domain: &str) -> Result<(), IdentityError> {
    let ok = !domain.is_empty()
        && domain.len() <= MAX_TRUST_DOMAIN_BYTES
        && domain.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(&b));
    if ok { Ok(()) } else { Err(IdentityError::TrustDomain(domain.to_owned())) }
}

fn check_segment(segment: &str) -> Result<(), IdentityError> {
    let ok = !segment.is_empty()
        && segment != "."
        && segment != ".."
        && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b));
    if ok { Ok(()) } else { Err(IdentityError::Segment(segment.to_owned())) }
}

#[cfg(test)]
mod tests;
