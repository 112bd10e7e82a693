//! The state of a node's stream of WDS and WADS: what is held, in which version.
//!
//! In: updates as the stream delivers them. Out: refusals by name, and snapshots once both types were answered. A refused
//! resource leaves its last good version in force; a policy without one leaves unknown what is in force for whom it is for.
//! It does no I/O and knows no nonce.

use std::collections::HashMap;
use std::sync::Arc;

use super::Ambient;
use crate::resource::authorization::Authorization;
use crate::resource::fault::Fault;
use crate::resource::workload::Address;
use crate::resource::{ADDRESS_TYPE, AUTHORIZATION_TYPE, Rejection};
use crate::store::{Good, Upsert};

/// Most workloads and services, together.
pub const MAX_ADDRESSES: usize = 500_000;
/// Most policies.
pub const MAX_POLICIES: usize = 20_000;

/// Resources of one node's stream.
#[derive(Debug, Default)]
pub struct Store {
    current: Ambient,
    addresses: Held,
    policies: Held,
    published: Option<Arc<Ambient>>,
    changed: bool,
}

/// What is remembered of the resources of one type besides themselves.
#[derive(Debug, Default)]
struct Held {
    good: HashMap<Arc<str>, Good>,
    received: bool,
}

impl Held {
    /// Whether a resource is another one than the one held; notes why it was refused.
    fn take<V>(
        &mut self,
        upsert: &Upsert,
        limit: usize,
        parse: impl FnOnce() -> Result<V, Rejection>,
        rejections: &mut Vec<Rejection>,
    ) -> Option<V> {
        let name = upsert.name.as_str();
        let good = Good::new(upsert);
        let full = self.good.len() >= limit;
        if let Some(held) = self.good.get_mut(name) {
            if held.renew(&good) {
                return None;
            }
        } else if full {
            rejections.push(Fault::new(format!("more than {limit} resources of this type")).reject(name));
            return None;
        }
        match parse() {
            Ok(value) => {
                self.good.insert(name.into(), good);
                Some(value)
            }
            Err(rejection) => {
                rejections.push(rejection);
                None
            }
        }
    }
}

impl Store {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Applies one response: `upserts` are parsed, those refused are returned and keep their last good version, the
    /// rest is taken; `removed` are dropped. An unknown type is refused as a whole.
    pub fn apply(&mut self, type_url: &str, upserts: &[Upsert], removed: &[String]) -> Vec<Rejection> {
        let mut rejections = Vec::new();
        match type_url {
            ADDRESS_TYPE => self.apply_addresses(upserts, removed, &mut rejections),
            AUTHORIZATION_TYPE => self.apply_policies(upserts, removed, &mut rejections),
            other => {
                let why = format!("resources of type {other:?} are not supported");
                rejections.extend(upserts.iter().map(|one| Fault::new(&*why).reject(&one.name)));
            }
        }
        rejections
    }

    /// What is known; `None` until both types were answered once. While nothing changed it is the same `Arc`.
    pub fn snapshot(&mut self) -> Option<Arc<Ambient>> {
        let complete = self.addresses.received && self.policies.received;
        if complete && (self.changed || self.published.is_none()) {
            self.current.generation += 1;
            self.published = Some(Arc::new(self.current.clone()));
            self.changed = false;
        }
        self.published.clone()
    }

    /// Name to version of every resource of a type that is held, for `initial_resource_versions`.
    pub fn versions(&self, type_url: &str) -> HashMap<String, String> {
        let held = match type_url {
            ADDRESS_TYPE => &self.addresses,
            AUTHORIZATION_TYPE => &self.policies,
            _ => return HashMap::new(),
        };
        held.good.iter().map(|(name, good)| (name.to_string(), good.version().to_owned())).collect()
    }

    fn apply_addresses(&mut self, upserts: &[Upsert], removed: &[String], rejections: &mut Vec<Rejection>) {
        for upsert in upserts {
            let parse = || Address::parse(&upsert.name, &upsert.body);
            match self.addresses.take(upsert, MAX_ADDRESSES, parse, rejections) {
                Some(Address::Workload(workload)) => {
                    // The same name may have been a service's.
                    self.current.remove_service(&workload.uid);
                    self.current.put_workload(Arc::new(*workload));
                }
                Some(Address::Service(service)) => {
                    self.current.remove_workload(&service.key);
                    self.current.put_service(Arc::new(*service));
                }
                None => continue,
            }
            self.changed = true;
        }
        for name in removed {
            self.addresses.good.remove(name.as_str());
            self.changed |= self.current.remove_workload(name) | self.current.remove_service(name);
        }
        self.addresses.received = true;
    }

    fn apply_policies(&mut self, upserts: &[Upsert], removed: &[String], rejections: &mut Vec<Rejection>) {
        for upsert in upserts {
            let (name, before) = (upsert.name.as_str(), rejections.len());
            let parse = || Authorization::parse(name, &upsert.body);
            if let Some(policy) = self.policies.take(upsert, MAX_POLICIES, parse, rejections) {
                self.current.put_policy(Arc::new(policy));
                self.changed = true;
            } else if rejections.len() > before && self.current.policy(name).is_none() {
                self.changed |= self.current.refuse_policy(name, Authorization::reach(&upsert.body));
            }
        }
        for name in removed {
            self.policies.good.remove(name.as_str());
            self.changed |= self.current.remove_policy(name);
        }
        self.policies.received = true;
    }
}
