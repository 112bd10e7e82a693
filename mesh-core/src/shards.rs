//! A map by name that is cheap to copy and to change a little.
//!
//! In: names with values. Out: lookups; copies that share every shard neither side has touched
//! since. One change among 100,000 copies one shard of a few hundred. It holds no order.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use foldhash::fast::FixedState;

const SHARDS: usize = 256;

/// A quick one, as names are looked up for each request. Those who could choose names that collide, in the control plane, could do
/// worse.
type Names = FixedState;

type Shard<K, V> = Arc<HashMap<K, Arc<V>, Names>>;

/// Names to shared values.
#[derive(Debug)]
pub struct Shards<V: ?Sized, K = Arc<str>>(Arc<Vec<Shard<K, V>>>);

impl<V: ?Sized, K> Default for Shards<V, K> {
    fn default() -> Self {
        let empty = Shard::default();
        Shards(Arc::new(vec![empty; SHARDS]))
    }
}

impl<V: ?Sized, K> Clone for Shards<V, K> {
    fn clone(&self) -> Self {
        Shards(self.0.clone())
    }
}

impl<V: ?Sized, K: Clone + Eq + Hash> Shards<V, K> {
    /// The value of a name.
    pub fn get<Q: Eq + Hash + ?Sized>(&self, name: &Q) -> Option<&Arc<V>>
    where
        K: Borrow<Q>,
    {
        self.0.get(index(name))?.get(name)
    }

    /// Gives a name a value.
    pub fn insert(&mut self, name: K, value: Arc<V>) {
        if let Some(shard) = Arc::make_mut(&mut self.0).get_mut(index(&name)) {
            Arc::make_mut(shard).insert(name, value);
        }
    }

    /// Removes a value; true when it was there.
    pub fn remove<Q: Eq + Hash + ?Sized>(&mut self, name: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        // Looked up first: a miss must not copy the shard.
        self.get(name).is_some()
            && Arc::make_mut(&mut self.0)
                .get_mut(index(name))
                .is_some_and(|shard| Arc::make_mut(shard).remove(name).is_some())
    }

    /// Names that are in one of both only, or have another value there. Quick where little has changed between copies.
    pub fn differences<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a K> {
        let pairs = self.0.iter().zip(other.0.iter()).filter(|(a, b)| !Arc::ptr_eq(a, b));
        pairs.flat_map(|(a, b)| {
            let changed = a.iter().filter(|(name, value)| !b.get(*name).is_some_and(|there| Arc::ptr_eq(there, value)));
            let added = b.keys().filter(|name| !a.contains_key(*name));
            changed.map(|(name, _)| name).chain(added)
        })
    }

    /// How many shards both have in common.
    #[cfg(test)]
    pub(crate) fn shared_with(&self, other: &Self) -> usize {
        self.0.iter().zip(other.0.iter()).filter(|(a, b)| Arc::ptr_eq(a, b)).count()
    }

    /// Everything.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &Arc<V>)> {
        self.0.iter().flat_map(|shard| shard.iter())
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &Arc<V>> {
        self.0.iter().flat_map(|shard| shard.values())
    }
}

fn index(name: &(impl Hash + ?Sized)) -> usize {
    // A fixed seed: the shard of a name is the same in every copy. Another one than the shard's own, or all names of a shard
    // would lie close to each other in it.
    let hash = Names::with_seed(1).hash_one(name);
    usize::try_from(hash % (SHARDS as u64)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_share_until_changed() {
        let mut map: Shards<usize> = Shards::default();
        for i in 0..2000 {
            map.insert(i.to_string().into(), Arc::new(i));
        }
        let before = map.clone();
        map.insert("7".into(), Arc::new(70));
        assert!(map.remove("8"));
        assert!(!map.remove("nobody"));
        assert_eq!(before.get("7").map(|v| **v), Some(7));
        assert_eq!(before.get("8").map(|v| **v), Some(8));
        assert_eq!(map.get("7").map(|v| **v), Some(70));
        assert_eq!(map.get("8"), None);
        assert_eq!(map.values().count(), 1999);
        map.insert("new".into(), Arc::new(0));
        for (one, other) in [(&map, &before), (&before, &map)] {
            let mut names: Vec<&str> = one.differences(other).map(|name| &**name).collect();
            names.sort_unstable();
            assert_eq!(names, ["7", "8", "new"]);
        }
        assert_eq!(map.differences(&map.clone()).count(), 0);
        let shared = map.shared_with(&before);
        assert!(shared >= SHARDS - 3, "{shared}");
    }
}
