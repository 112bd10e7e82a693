//! The configuration directory: read whole, watched, and always with an answer.
//!
//! In: a directory of YAML files. Out: [`Loaded`]: the objects in force and every problem. An object that is wrong now stays
//! in force as it was when it was last right; an object that is gone is gone.

mod load;
mod scan;
mod watch;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use load::{Loader, Vet};
pub use watch::{DEBOUNCE, DEBOUNCE_LIMIT, watch};

use crate::config::{Key, Object};
use crate::problem::Problem;

/// Every object in force, by kind, namespace and name.
pub type Objects = BTreeMap<Key, Arc<Object>>;

/// What the directory holds.
#[derive(Debug, Default, Clone)]
pub struct Loaded {
    /// The objects in force.
    pub objects: Objects,
    /// What is wrong in the files.
    pub problems: Vec<Problem>,
}

impl Loaded {
    /// Whether both hold the very same objects and problems.
    pub fn same(&self, other: &Loaded) -> bool {
        self.problems == other.problems
            && self.objects.len() == other.objects.len()
            && self.objects.values().zip(other.objects.values()).all(|(a, b)| Arc::ptr_eq(a, b))
    }
}
