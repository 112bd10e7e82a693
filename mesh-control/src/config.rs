//! The mesh's objects as people write them: which kinds there are, and how a YAML document becomes one.
//!
//! In: a document's tree. Out: an [`Object`] with everything checked that can be checked alone, or what is wrong.
//! A field of the API that is not implemented yet is named in a warning; an unknown one is an error.

pub mod authorization_policy;
pub mod destination_rule;
pub mod fields;
pub mod kubernetes;
pub mod peer_authentication;
pub mod service_entry;
pub mod virtual_service;

mod decode;
mod known;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::Deserialize;

use crate::problem::{Problem, Severity};
use crate::yaml::{FieldPath, Node};

pub use decode::{Decoded, decode};

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Kinds that have an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Kubernetes `v1` Service.
    Service,
    /// Kubernetes `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// Kubernetes `v1` Pod.
    Pod,
    /// Kubernetes `v1` Node.
    Node,
    /// Istio VirtualService.
    VirtualService,
    /// Istio DestinationRule.
    DestinationRule,
    /// Istio ServiceEntry.
    ServiceEntry,
    /// Istio WorkloadEntry.
    WorkloadEntry,
    /// Istio PeerAuthentication.
    PeerAuthentication,
    /// Istio AuthorizationPolicy.
    AuthorizationPolicy,
}

/// What makes an object the same object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Kind.
    pub kind: Kind,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// `metadata`, as far as it matters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// Name.
    pub name: String,
    /// Namespace; `default` when absent.
    pub namespace: Option<String>,
    /// Labels.
    pub labels: Labels,
    /// Annotations.
    pub annotations: Labels,
    /// RFC 3339, as Kubernetes writes it; of two objects that claim the same the older wins.
    pub creation_timestamp: Option<String>,
    /// Set when the object is being deleted.
    pub deletion_timestamp: Option<String>,
    /// What made the object.
    pub owner_references: Vec<OwnerReference>,
}

/// What made an object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OwnerReference {
    /// Kind of the owner.
    pub kind: String,
    /// Name of the owner.
    pub name: String,
    /// Whether it manages the object.
    pub controller: bool,
}

/// Where an object stands.
#[derive(Debug, Clone)]
pub struct Origin {
    /// File, relative to the configuration directory.
    pub file: Arc<str>,
    /// First line.
    pub line: u32,
    /// The tree, kept for kinds whose references are checked later.
    tree: Option<Arc<Node>>,
}

impl Origin {
    /// The line of a field.
    pub fn line_of(&self, path: &FieldPath) -> u32 {
        self.tree.as_ref().map_or(self.line, |tree| tree.line_of(path))
    }
}

/// An object with its place.
#[derive(Debug, Clone)]
pub struct Object {
    /// What it is.
    pub key: Key,
    /// Its metadata.
    pub metadata: Metadata,
    /// Its content.
    pub body: Body,
    /// Where it stands.
    pub origin: Origin,
}

/// The content of an object.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// Kubernetes Service.
    Service(kubernetes::ServiceSpec),
    /// Kubernetes EndpointSlice.
    EndpointSlice(kubernetes::EndpointSlice),
    /// Kubernetes Pod.
    Pod(kubernetes::Pod),
    /// Kubernetes Node, of which only the labels count.
    Node,
    /// Istio VirtualService.
    VirtualService(virtual_service::VirtualService),
    /// Istio DestinationRule.
    DestinationRule(Box<destination_rule::DestinationRule>),
    /// Istio ServiceEntry.
    ServiceEntry(Box<service_entry::ServiceEntry>),
    /// Istio WorkloadEntry.
    WorkloadEntry(service_entry::WorkloadEntry),
    /// Istio PeerAuthentication.
    PeerAuthentication(peer_authentication::PeerAuthentication),
    /// Istio AuthorizationPolicy.
    AuthorizationPolicy(Box<authorization_policy::AuthorizationPolicy>),
}

impl Object {
    /// A problem of this object at a field.
    pub fn problem(&self, severity: Severity, path: &FieldPath, message: impl Into<String>) -> Problem {
        Problem {
            severity,
            file: self.origin.file.clone(),
            line: self.origin.line_of(path),
            object: self.key.to_string(),
            path: path.to_string(),
            message: message.into(),
        }
    }

    /// Whether both say the same at the same place.
    pub fn same(&self, other: &Object) -> bool {
        self.key == other.key
            && self.metadata == other.metadata
            && self.body == other.body
            && self.origin.file == other.origin.file
            && self.origin.line == other.origin.line
            && self.origin.tree == other.origin.tree
    }

    /// Order of age: creation time, then namespace and name; the first wins where two claim the same.
    pub fn age(&self) -> (bool, &str, &str, &str) {
        // RFC 3339 in UTC sorts as text. Objects without a time come after those with one.
        let created = self.metadata.creation_timestamp.as_deref();
        (created.is_none(), created.unwrap_or_default(), &self.key.namespace, &self.key.name)
    }
}

/// Something wrong that a check of one object found, before it is known where the object stands.
#[derive(Debug)]
pub struct Wrong {
    severity: Severity,
    path: FieldPath,
    message: String,
}

/// Collects what checks find.
#[derive(Debug, Default)]
pub struct Findings(Vec<Wrong>);

impl Findings {
    /// The object cannot be used.
    pub fn error(&mut self, path: FieldPath, message: impl Into<String>) {
        self.0.push(Wrong { severity: Severity::Error, path, message: message.into() });
    }

    /// A part of the object has no effect.
    pub fn warning(&mut self, path: FieldPath, message: impl Into<String>) {
        self.0.push(Wrong { severity: Severity::Warning, path, message: message.into() });
    }
}
