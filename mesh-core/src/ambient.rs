//! What a node knows of the whole mesh: workloads, services and policies, as WDS and WADS tell them. Immutable.
//!
//! In: a [`Store`]'s resources. Out: lookups by name and address, and the policies in force for a workload. Copies share
//! what did not change, so that one change among 100,000 workloads copies little.

mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::authorization::Policies;
use crate::resource::authorization::{Authorization, Reach, Scope};
use crate::resource::workload::{Service, Workload};
use crate::shards::Shards;

pub use store::{MAX_ADDRESSES, MAX_POLICIES, Store};

/// Workloads that share an address.
type Sharing = Vec<Arc<Workload>>;

/// What is known of the mesh. Cloning shares everything.
#[derive(Debug, Default, Clone)]
pub struct Ambient {
    /// Grows with every change.
    pub generation: u64,
    workloads: Shards<Workload>,
    services: Shards<Service>,
    by_address: Shards<Sharing>,
    policies: Shards<Authorization>,
    /// Keys of the policies for every workload.
    global: Arc<BTreeSet<Arc<str>>>,
    /// Keys of the policies for every workload of a namespace.
    by_namespace: Arc<BTreeMap<Arc<str>, BTreeSet<Arc<str>>>>,
    /// Keys of policies that were refused and have no earlier version, with the namespace that they are for; `None`: for
    /// everybody. At most `MAX_POLICIES` and one that stands for all further ones.
    refused: Arc<BTreeMap<Arc<str>, Option<Arc<str>>>>,
    counts: Counts,
}

/// How many there are.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Workloads.
    pub workloads: usize,
    /// Services.
    pub services: usize,
    /// Policies.
    pub policies: usize,
}

/// Why it cannot be said which policies are in force for a workload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// The workload itself is not known.
    #[error("the control plane has not told of this workload")]
    Workload,
    /// A policy that selects it is not known.
    #[error("the control plane has not sent policy {0}, which selects this workload")]
    Policy(Arc<str>),
    /// A policy that is for it was refused, and no earlier version is there.
    #[error("policy {0} was refused as malformed (the NACK says why), and it may be for this workload")]
    Refused(Arc<str>),
}

impl Ambient {
    /// A workload by its uid.
    pub fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// The workload at an address of the default network. Of several the only pod counts, since an address is given to a pod
    /// while anybody may write it in an entry; else none does.
    pub fn at(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        let here = || self.sharing(address).iter().filter(|one| one.network.is_empty());
        only(here()).or_else(|| only(here().filter(|one| one.is_pod())))
    }

    /// The workload at one of these addresses that has this name; or the one of that name that has a node's addresses.
    pub fn local(&self, addresses: &[IpAddr], namespace: &str, name: &str) -> Option<&Arc<Workload>> {
        let on_host = self.by_address.get(&*name_key(namespace, name)).map_or(&[][..], |list| list.as_slice());
        let mut all = addresses.iter().flat_map(|address| self.sharing(*address)).chain(on_host);
        all.find(|one| *one.namespace == *namespace && *one.name == *name)
    }

    /// A service by `namespace/hostname`.
    pub fn service(&self, key: &str) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// A policy by `namespace/name`.
    pub fn policy(&self, key: &str) -> Option<&Arc<Authorization>> {
        self.policies.get(key)
    }

    /// Every workload, in no order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// Every service, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// Every policy, in no order.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Authorization>> {
        self.policies.values()
    }

    /// How many there are of each.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The policies in force for a workload: those of the mesh, of its namespace, and those that select it.
    ///
    /// # Errors
    /// A policy that is for it is not there, or was refused: what it would forbid cannot be said.
    pub fn in_force(&self, workload: &Workload) -> Result<Policies, Unknown> {
        let concerns = |namespace: &Option<Arc<str>>| namespace.as_ref().is_none_or(|one| *one == workload.namespace);
        if let Some((key, _)) = self.refused.iter().find(|(_, namespace)| concerns(namespace)) {
            return Err(Unknown::Refused(key.clone()));
        }
        let whole = self.by_namespace.get(&workload.namespace).into_iter().flatten();
        let keys = self.global.iter().chain(whole).chain(&workload.policies).collect::<BTreeSet<_>>();
        let found = |key: &Arc<str>| self.policies.get(key).cloned().ok_or_else(|| Unknown::Policy(key.clone()));
        let policies = keys.into_iter().map(found).collect::<Result<Vec<_>, _>>()?;
        Ok(Policies::new(self.generation, policies))
    }

    fn sharing(&self, address: IpAddr) -> &[Arc<Workload>] {
        self.by_address.get(&*address_key(address)).map_or(&[], |list| list.as_slice())
    }

    fn put_workload(&mut self, workload: Arc<Workload>) {
        self.remove_workload(&workload.uid.clone());
        for key in keys(&workload) {
            let mut list = self.by_address.get(&*key).map(|list| (**list).clone()).unwrap_or_default();
            list.push(workload.clone());
            self.by_address.insert(key.into(), Arc::new(list));
        }
        self.workloads.insert(workload.uid.clone(), workload);
        self.counts.workloads += 1;
    }

    fn remove_workload(&mut self, uid: &str) -> bool {
        let Some(old) = self.workloads.get(uid).cloned() else { return false };
        for key in keys(&old) {
            let list = self.by_address.get(&*key).map(|list| (**list).clone()).unwrap_or_default();
            let rest: Sharing = list.into_iter().filter(|one| one.uid != old.uid).collect();
            if rest.is_empty() {
                self.by_address.remove(&*key);
            } else {
                self.by_address.insert(key.into(), Arc::new(rest));
            }
        }
        self.counts.workloads -= 1;
        self.workloads.remove(uid)
    }

    fn put_service(&mut self, service: Arc<Service>) {
        self.remove_service(&service.key.clone());
        self.services.insert(service.key.clone(), service);
        self.counts.services += 1;
    }

    fn remove_service(&mut self, key: &str) -> bool {
        let removed = self.services.remove(key);
        self.counts.services -= usize::from(removed);
        removed
    }

    fn put_policy(&mut self, policy: Arc<Authorization>) {
        self.remove_policy(&policy.key.clone());
        let key = policy.key.clone();
        match policy.scope {
            Scope::Global => {
                Arc::make_mut(&mut self.global).insert(key);
            }
            Scope::Namespace => {
                Arc::make_mut(&mut self.by_namespace).entry(policy.namespace.clone()).or_default().insert(key);
            }
            Scope::Selector => {}
        }
        self.policies.insert(policy.key.clone(), policy);
        self.counts.policies += 1;
    }

    /// Notes that a policy was refused. True if that is news.
    fn refuse_policy(&mut self, key: &str, reach: Reach) -> bool {
        let namespace = match reach {
            Reach::Everybody => None,
            Reach::Namespace(namespace) => Some(namespace),
            Reach::Named => return false,
        };
        let (key, namespace) =
            if self.refused.len() < MAX_POLICIES { (key, namespace) } else { ("(further policies)", None) };
        if self.refused.get(key) == Some(&namespace) {
            return false;
        }
        Arc::make_mut(&mut self.refused).insert(key.into(), namespace);
        true
    }

    fn remove_policy(&mut self, key: &str) -> bool {
        if self.refused.contains_key(key) {
            Arc::make_mut(&mut self.refused).remove(key);
            return true;
        }
        let Some(old) = self.policies.get(key).cloned() else { return false };
        match old.scope {
            Scope::Global => {
                Arc::make_mut(&mut self.global).remove(key);
            }
            Scope::Namespace => {
                let all = Arc::make_mut(&mut self.by_namespace);
                if let Some(keys) = all.get_mut(&old.namespace) {
                    keys.remove(key);
                    if keys.is_empty() {
                        all.remove(&old.namespace);
                    }
                }
            }
            Scope::Selector => {}
        }
        self.counts.policies -= 1;
        self.policies.remove(key)
    }
}

/// The first, if there is no second.
fn only<T>(mut all: impl Iterator<Item = T>) -> Option<T> {
    all.next().filter(|_| all.next().is_none())
}

/// By what a workload is found: its addresses. Those of a node name nobody, so it is found by its name there.
fn keys(workload: &Workload) -> BTreeSet<String> {
    match workload.host_network {
        true => BTreeSet::from([name_key(&workload.namespace, &workload.name)]),
        false => workload.addresses.iter().map(|address| address_key(*address)).collect(),
    }
}

/// No address has a `/`.
fn name_key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

fn address_key(address: IpAddr) -> String {
    address.to_canonical().to_string()
}

#[cfg(test)]
mod tests;
