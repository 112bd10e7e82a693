//! What was made of things that are shared in memory, so that it is made again only of others.
//!
//! In: a thing, and whatever else is needed to make something of it. Out: the value of the last time if all of that is the
//! very same, else a new one. It remembers the last time only, and holds what it knows things by: no address is another's.

use std::collections::HashMap;
use std::sync::Arc;

/// A reference that equals only itself.
#[derive(Debug)]
pub(super) struct Same<T: ?Sized>(pub Arc<T>);

impl<T: ?Sized> PartialEq for Same<T> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<T: ?Sized> Clone for Same<T> {
    fn clone(&self) -> Self {
        Same(self.0.clone())
    }
}

/// By address: the thing, what else its value is made of, the value.
type Known<T, I, V> = HashMap<usize, (Arc<T>, I, V)>;

/// Values by what they are made of.
#[derive(Debug)]
pub(super) struct Memo<T, I, V> {
    before: Arc<Known<T, I, V>>,
    now: Known<T, I, V>,
}

impl<T, I, V> Default for Memo<T, I, V> {
    fn default() -> Self {
        Memo { before: Arc::default(), now: HashMap::new() }
    }
}

impl<T, I: PartialEq, V: Clone> Memo<T, I, V> {
    /// After another one, of whose values those are taken over that are asked for again.
    pub(super) fn after(before: &Remembered<T, I, V>) -> Self {
        Memo { now: HashMap::with_capacity(before.0.len()), before: before.0.clone() }
    }

    /// The value that is made of `of` and `from`.
    pub(super) fn made(&mut self, of: &Arc<T>, from: I, make: impl FnOnce(&I) -> V) -> V {
        let address = Arc::as_ptr(of).addr();
        let known = |all: &Known<T, I, V>| {
            all.get(&address).filter(|(_, there, _)| *there == from).map(|(.., value)| value.clone())
        };
        if let Some(value) = known(&self.now) {
            return value;
        }
        let value = known(&self.before).unwrap_or_else(|| make(&from));
        self.now.insert(address, (of.clone(), from, value.clone()));
        value
    }

    /// What was asked for, for the next one.
    pub(super) fn remember(self) -> Remembered<T, I, V> {
        Remembered(Arc::new(self.now))
    }
}

impl<T, I: Clone, V: Clone> Memo<T, I, V> {
    /// As [`Memo::remember`], while this one goes on.
    pub(super) fn so_far(&self) -> Remembered<T, I, V> {
        Remembered(Arc::new(self.now.clone()))
    }
}

/// The values of a [`Memo`].
#[derive(Debug)]
pub(super) struct Remembered<T, I, V>(Arc<Known<T, I, V>>);

impl<T, I, V> Clone for Remembered<T, I, V> {
    fn clone(&self) -> Self {
        Remembered(self.0.clone())
    }
}

impl<T, I, V> Default for Remembered<T, I, V> {
    fn default() -> Self {
        Remembered(Arc::default())
    }
}
