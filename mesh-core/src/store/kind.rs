//! Bookkeeping of one type of resource: versions, what warms, what was answered.
//!
//! In: parsed resources and names. Out: what is ready, which names are needed. The resources in
//! force are not here but in the snapshot under construction.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use crate::resource::Rejection;
use crate::resource::fault::Fault;
use crate::shards::Shards;
use crate::store::Upsert;
use crate::store::shared::Pool;

/// What is remembered of a good resource besides itself.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Good {
    version: String,
    digest: [u64; 2],
}

impl Good {
    pub(crate) fn new(upsert: &Upsert) -> Self {
        Good { version: upsert.version.clone(), digest: digest(&upsert.name, &upsert.body) }
    }

    /// The version as the control plane calls it.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// If the other one has the same content, takes over its version.
    pub(crate) fn renew(&mut self, other: &Good) -> bool {
        let same = self.digest == other.digest;
        if same {
            self.version.clone_from(&other.version);
        }
        same
    }
}

/// Tells equal resources, so that a control plane that sends everything again costs no parsing and
/// changes nothing. 128 bits, so that a chance collision is out of the question.
fn digest(name: &str, body: &[u8]) -> [u64; 2] {
    [0u8, 1].map(|seed| {
        let mut hasher = DefaultHasher::new();
        hasher.write_u8(seed);
        name.hash(&mut hasher);
        hasher.write(body);
        hasher.finish()
    })
}

/// Clusters or listeners: received by wildcard, in force once what they need was answered.
#[derive(Debug)]
pub(super) struct Dependent<V> {
    good: HashMap<Arc<str>, Good>,
    warming: HashMap<Arc<str>, Arc<V>>,
    received: bool,
    limit: usize,
}

impl<V> Dependent<V> {
    pub(super) fn new(limit: usize) -> Self {
        Dependent { good: HashMap::new(), warming: HashMap::new(), received: false, limit }
    }

    /// Parses a resource unless it is the one already held; notes why it was refused.
    pub(super) fn put(
        &mut self,
        upsert: &Upsert,
        pool: &Pool<V>,
        parse: impl FnOnce() -> Result<V, Rejection>,
        rejections: &mut Vec<Rejection>,
    ) {
        let name = upsert.name.as_str();
        let good = Good::new(upsert);
        let full = self.good.len() >= self.limit;
        if let Some(held) = self.good.get_mut(name) {
            if held.renew(&good) {
                return;
            }
        } else if full {
            let why = format!("more than {} resources of this type", self.limit);
            rejections.push(Fault::new(why).reject(name));
            return;
        }
        match pool.get(good.digest, parse) {
            Ok(value) => {
                let name: Arc<str> = Arc::from(name);
                self.good.insert(name.clone(), good);
                self.warming.insert(name, value);
            }
            Err(rejection) => rejections.push(rejection),
        }
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.good.remove(name);
        self.warming.remove(name);
    }

    /// The newest good version, in force or not.
    pub(super) fn latest(&self, name: &str, in_force: &Shards<V>) -> Option<Arc<V>> {
        self.warming.get(name).or_else(|| in_force.get(name)).cloned()
    }

    pub(super) fn received(&mut self) {
        self.received = true;
    }

    /// Received once, and nothing waits.
    pub(super) fn is_complete(&self) -> bool {
        self.received && self.warming.is_empty()
    }

    pub(super) fn warming(&self) -> impl Iterator<Item = &Arc<str>> {
        self.warming.keys()
    }

    /// Every name that resources in force or warming need.
    pub(super) fn needs<'a, I>(&'a self, in_force: &'a Shards<V>, of: impl Fn(&'a V) -> I) -> HashSet<Arc<str>>
    where
        I: Iterator<Item = &'a Arc<str>>,
    {
        in_force.values().chain(self.warming.values()).flat_map(|value| of(value)).cloned().collect()
    }

    /// Takes out what is ready.
    pub(super) fn take_ready(&mut self, ready: impl Fn(&V) -> bool) -> Vec<(Arc<str>, Arc<V>)> {
        self.warming.extract_if(|_, value| ready(value)).collect()
    }

    pub(super) fn versions(&self) -> HashMap<String, String> {
        self.good.iter().map(|(name, good)| (name.to_string(), good.version.clone())).collect()
    }
}

/// Endpoints or routes: asked for by name. The number of names is bounded by what needs them.
#[derive(Debug, Default)]
pub(super) struct Needed {
    names: Arc<BTreeSet<Arc<str>>>,
    /// Names that got any answer, with the good one if there is one.
    answered: HashMap<Arc<str>, Option<Good>>,
}

impl Needed {
    /// Sets the names needed; returns those no longer so, which are forgotten.
    pub(super) fn set_names(&mut self, names: HashSet<Arc<str>>) -> Vec<Arc<str>> {
        if names.len() == self.names.len() && self.names.iter().all(|name| names.contains(name)) {
            return Vec::new();
        }
        let dropped: Vec<_> = self.names.iter().filter(|name| !names.contains(*name)).cloned().collect();
        for name in &dropped {
            self.answered.remove(name);
        }
        self.names = Arc::new(names.into_iter().collect());
        dropped
    }

    pub(super) fn names(&self) -> Arc<BTreeSet<Arc<str>>> {
        self.names.clone()
    }

    /// Parses an answer unless nothing needs it or it is the one already held; gives it with its
    /// name if it is good and new.
    pub(super) fn answer<V>(
        &mut self,
        upsert: &Upsert,
        pool: &Pool<V>,
        parse: impl FnOnce() -> Result<V, Rejection>,
        rejections: &mut Vec<Rejection>,
    ) -> Option<(Arc<str>, Arc<V>)> {
        let name = self.names.get(upsert.name.as_str())?;
        let good = Good::new(upsert);
        if let Some(Some(held)) = self.answered.get_mut(name)
            && held.renew(&good)
        {
            return None;
        }
        match pool.get(good.digest, parse) {
            Ok(value) => {
                self.answered.insert(name.clone(), Some(good));
                Some((name.clone(), value))
            }
            Err(rejection) => {
                self.answered.entry(name.clone()).or_default();
                rejections.push(rejection);
                None
            }
        }
    }

    /// Notes that the control plane has no such resource.
    pub(super) fn forget(&mut self, name: &str) {
        if let Some(name) = self.names.get(name) {
            self.answered.insert(name.clone(), None);
        }
    }

    pub(super) fn is_answered(&self, name: &str) -> bool {
        self.answered.contains_key(name)
    }

    pub(super) fn versions(&self) -> HashMap<String, String> {
        self.answered
            .iter()
            .filter_map(|(name, good)| Some((name.to_string(), good.as_ref()?.version.clone())))
            .collect()
    }
}
