//! Encodes resources, and checks that the agents will take them.
//!
//! In: names and messages. Out: [`Resources`] whose versions are made of their content. What mesh-core refuses is reported
//! and left out, so that one bad resource never costs a refusal of a whole push.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use envoy_types::pb::google::protobuf::Any;
use mesh_core::resource::Rejection;
use mesh_core::resource::authorization::Authorization;
use mesh_core::resource::cluster::Cluster;
use mesh_core::resource::endpoint::LoadAssignment;
use mesh_core::resource::listener::Listener;
use mesh_core::resource::route::RouteTable;
use mesh_core::resource::workload::Address;
use prost::Message;

use super::audience::Audience;
use crate::resource::{Kind, Resource, Resources, by_name};

/// A resource with its name.
pub(crate) type Named = (Arc<str>, Arc<Resource>);

/// Encodes a message whose bytes are the same whenever it is the same: none of its maps has two keys.
pub(crate) fn encode(kind: Kind, name: &str, message: &impl Message) -> Named {
    let value = message.encode_to_vec();
    let version = hash(&value);
    named(kind, name, version, value)
}

/// Encodes a message with maps, whose order in the bytes is random; `content` stands for it instead.
pub(crate) fn encode_as(kind: Kind, name: &str, message: &impl Message, content: &impl Hash) -> Named {
    named(kind, name, hash(content), message.encode_to_vec())
}

fn named(kind: Kind, name: &str, version: u64, value: Vec<u8>) -> Named {
    let body = Any { type_url: kind.type_url().to_owned(), value };
    (name.into(), Arc::new(Resource { version, body, aliases: Vec::new() }))
}

/// The same over restarts of one build, so that a reconnecting client is sent only what it lacks.
pub(crate) fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// A resource that mesh-core refuses.
#[derive(Debug, Clone)]
pub struct Refused {
    /// Its kind.
    pub kind: Kind,
    /// Why.
    pub rejection: Rejection,
}

/// Remembers which contents mesh-core takes, so that each is parsed once. Cheap to clone, shared.
#[derive(Clone, Default)]
pub struct Checked(Arc<Mutex<Known>>);

/// Most contents remembered before all are forgotten and checked again.
const MAX_KNOWN: usize = 1_000_000;
/// Most refusals remembered.
const MAX_REFUSED: usize = 1000;

#[derive(Default)]
struct Known {
    good: HashSet<(Kind, Arc<str>, u64)>,
    bad: HashMap<(Kind, Arc<str>, u64), Refused>,
    /// What was shared last, as long as somebody has it.
    shared: HashMap<(Kind, Option<Audience>), Weak<Resources>>,
}

impl Checked {
    /// Leaves out and remembers what mesh-core refuses. Of several with one name the first counts.
    pub(crate) fn take(&self, kind: Kind, list: Vec<Named>) -> Resources {
        self.take_after(kind, list, &Resources::new())
    }

    /// As [`Checked::take`]. What is in `former`, which mesh-core takes, stays the same in memory.
    fn take_after(&self, kind: Kind, mut list: Vec<Named>, former: &Resources) -> Resources {
        // Stable: the first of a name stays the first.
        list.sort_by(|(one, _), (other, _)| by_name(one, other));
        let mut former = former.iter().peekable();
        let mut resources: Vec<Named> = Vec::with_capacity(list.len());
        for (name, resource) in list {
            if resources.last().is_some_and(|(last, _)| *last == name) {
                continue;
            }
            while former.next_if(|(there, _)| by_name(there, &name).is_lt()).is_some() {}
            let there = former
                .peek()
                .filter(|(there, resource_there)| **there == name && resource_there.version == resource.version);
            match there {
                Some((name, resource)) => resources.push(((*name).clone(), (*resource).clone())),
                None if self.check(kind, &name, &resource) => resources.push((name, resource)),
                None => {}
            }
        }
        resources.into_iter().collect()
    }

    /// As [`Checked::take`], for everybody of an audience; `None` stands for the nodes. Resources that have not changed since
    /// the last time stay the same in memory, and the whole of them too if none has.
    pub(super) fn share(&self, kind: Kind, audience: Option<&Audience>, list: Vec<Named>) -> Arc<Resources> {
        let key = (kind, audience.cloned());
        let known = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let former = known().shared.get(&key).and_then(Weak::upgrade).unwrap_or_default();
        let resources = self.take_after(kind, list, &former);
        let same = |(one, other): (&Arc<Resource>, &Arc<Resource>)| Arc::ptr_eq(one, other);
        if former.len() == resources.len() && former.values().zip(resources.values()).all(same) {
            return former;
        }
        let resources = Arc::new(resources);
        let mut known = known();
        known.shared.retain(|_, set| set.strong_count() > 0);
        known.shared.insert(key, Arc::downgrade(&resources));
        resources
    }

    fn check(&self, kind: Kind, name: &Arc<str>, resource: &Resource) -> bool {
        let key = (kind, name.clone(), resource.version);
        {
            let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if known.good.contains(&key) {
                return true;
            }
            if known.bad.contains_key(&key) {
                return false;
            }
        }
        let result = parse(kind, name, &resource.body.value);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(()) => {
                if known.good.len() >= MAX_KNOWN {
                    known.good.clear();
                }
                known.good.insert(key);
                true
            }
            Err(rejection) => {
                tracing::error!(?kind, %rejection, "a resource is left out: the agents would refuse it");
                if known.bad.len() < MAX_REFUSED {
                    known.bad.insert(key, Refused { kind, rejection });
                }
                false
            }
        }
    }

    /// What is left out of the mesh in force.
    pub fn refused(&self) -> Vec<Refused> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.bad.values().cloned().collect()
    }

    /// Forgets refusals, for a new version of the mesh.
    pub fn start_over(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).bad.clear();
    }
}

/// Parses as the agent will.
pub(crate) fn parse(kind: Kind, name: &str, body: &[u8]) -> Result<(), Rejection> {
    match kind {
        Kind::Cluster => Cluster::parse(name, body, None).map(drop),
        Kind::Endpoint => LoadAssignment::parse(name, body, None).map(drop),
        Kind::Listener => Listener::parse(name, body).map(drop),
        Kind::Route => RouteTable::parse(name, body).map(drop),
        Kind::Authorization => Authorization::parse(name, body).map(drop),
        Kind::Address => Address::parse(name, body).map(drop),
    }
}
