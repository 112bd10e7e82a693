//! Which policies of who may connect are for which workload: AuthorizationPolicy, and PeerAuthentication as Istio
//! converts it for agents that decide by connection.
//!
//! In: objects. Out: the policies that are enforced, and the names of those that select a workload.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::authentication::{Authentication, Mtls, MtlsMode};
use super::service::selects;
use crate::config::authorization_policy::AuthorizationPolicy;
use crate::config::{Body, Labels, Object};
use crate::source::Objects;

/// Istio's name of the policy that refuses whoever has no identity, in the root namespace.
pub const STATIC_STRICT: &str = "istio_converted_static_strict";
/// How Istio names the policy made of a PeerAuthentication with ports. No object of Kubernetes has such a name.
pub const CONVERTED: &str = "converted_peer_authentication_";

/// Every AuthorizationPolicy that is enforced.
#[derive(Debug, Default)]
pub struct Authorizations {
    all: Vec<Arc<Object>>,
    /// Those with a selector, by namespace and the first label that they ask for.
    selecting: HashMap<Arc<str>, ByLabel>,
}

/// Policies by a label and its value.
type ByLabel = HashMap<(String, String), Vec<Arc<Object>>>;

impl Authorizations {
    pub(super) fn build(objects: &Objects) -> Authorizations {
        let enforced = |object: &&Arc<Object>| spec(object).is_some_and(AuthorizationPolicy::is_enforced);
        let all: Vec<Arc<Object>> = objects.values().filter(enforced).cloned().collect();
        let mut selecting: HashMap<Arc<str>, ByLabel> = HashMap::new();
        for object in &all {
            let first = spec(object).and_then(AuthorizationPolicy::labels).and_then(|labels| labels.first_key_value());
            if let Some((key, value)) = first {
                let by_label = selecting.entry(object.key.namespace.clone()).or_default();
                by_label.entry((key.clone(), value.clone())).or_default().push(object.clone());
            }
        }
        Authorizations { all, selecting }
    }

    /// Every policy with its content.
    pub fn all(&self) -> impl Iterator<Item = (&Arc<Object>, &AuthorizationPolicy)> {
        self.all.iter().filter_map(|object| Some((object, spec(object)?)))
    }

    /// Names (`namespace/name`) of the policies that select a workload by its labels, also those of the root namespace.
    pub fn selecting(&self, root: &str, namespace: &str, labels: &Labels) -> BTreeSet<String> {
        let namespaces: BTreeSet<&str> = [root, namespace].into();
        let by_label = namespaces.into_iter().filter_map(|namespace| self.selecting.get(namespace));
        let all = by_label.flat_map(|by_label| {
            labels.iter().filter_map(|(key, value)| by_label.get(&(key.clone(), value.clone()))).flatten()
        });
        let selected = all.filter(|object| {
            spec(object).and_then(AuthorizationPolicy::labels).is_some_and(|selector| selects(selector, labels))
        });
        selected.map(|object| format!("{}/{}", object.key.namespace, object.key.name)).collect()
    }
}

/// The content of an AuthorizationPolicy.
pub fn spec(object: &Object) -> Option<&AuthorizationPolicy> {
    match &object.body {
        Body::AuthorizationPolicy(spec) => Some(spec),
        _ => None,
    }
}

/// What a workload's modes come to, for an agent that knows policies only.
#[derive(Debug, PartialEq, Eq)]
pub enum Converted {
    /// Everybody may come in without an identity.
    Open,
    /// Nobody may.
    Strict,
    /// Nobody may, but to these ports.
    StrictBut(Vec<u16>),
    /// Everybody may, but to these ports.
    OpenBut(Vec<u16>),
}

impl Converted {
    /// Of a workload's modes.
    pub fn of(mtls: &Mtls) -> Converted {
        let strict = |mode: MtlsMode| mode == MtlsMode::Strict;
        let others = mtls.ports.iter().filter(|(_, mode)| strict(**mode) != strict(mtls.default));
        let ports: Vec<u16> = others.map(|(port, _)| *port).collect();
        match (strict(mtls.default), ports.is_empty()) {
            (true, true) => Converted::Strict,
            (true, false) => Converted::StrictBut(ports),
            (false, true) => Converted::Open,
            (false, false) => Converted::OpenBut(ports),
        }
    }

    /// Name (`namespace/name`) of the policy that says so for a workload of a namespace.
    pub fn policy(
        &self,
        authentication: &Authentication,
        root: &str,
        namespace: &str,
        labels: &Labels,
    ) -> Option<String> {
        match self {
            Converted::Open => None,
            Converted::Strict => Some(format!("{root}/{STATIC_STRICT}")),
            Converted::StrictBut(_) | Converted::OpenBut(_) => {
                let object = authentication.selecting(namespace, labels)?;
                Some(format!("{namespace}/{CONVERTED}{}", object.key.name))
            }
        }
    }
}
