//! How a refusal finds its way out of a nested message.
//!
//! In: a reason, then one field name per level on the way up. Out: [`Rejection`] with a path such
//! as `virtual_hosts[2].routes[0].match.safe_regex`.

use std::fmt;

/// A resource that was refused: which one, where in it, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {}{}{why}", path, if path.is_empty() { "" } else { ": " })]
pub struct Rejection {
    /// Name of the resource, as the control plane calls it.
    pub name: String,
    /// Where in the resource, in Envoy's field names. Empty when it is the resource as a whole.
    pub path: String,
    /// What is wrong there, and what would be accepted.
    pub why: String,
}

/// A reason under way to the top; collects the path from the inside out.
#[derive(Debug)]
pub(crate) struct Fault {
    path: String,
    why: String,
}

impl Fault {
    pub(crate) fn new(why: impl Into<String>) -> Self {
        Fault { path: String::new(), why: why.into() }
    }

    pub(crate) fn field(field: &str, why: impl Into<String>) -> Self {
        Fault { path: field.to_owned(), why: why.into() }
    }

    pub(crate) fn reject(self, name: &str) -> Rejection {
        Rejection { name: name.to_owned(), path: self.path, why: self.why }
    }

    fn wrap(mut self, outer: fmt::Arguments<'_>) -> Self {
        self.path = if self.path.is_empty() { outer.to_string() } else { format!("{outer}.{}", self.path) };
        self
    }
}

/// Names the field (and the index in it) in which a fault happened.
pub(crate) trait At<T> {
    fn at(self, field: &str) -> Result<T, Fault>;
    fn at_index(self, field: &str, index: usize) -> Result<T, Fault>;
}

impl<T> At<T> for Result<T, Fault> {
    fn at(self, field: &str) -> Result<T, Fault> {
        self.map_err(|fault| fault.wrap(format_args!("{field}")))
    }

    fn at_index(self, field: &str, index: usize) -> Result<T, Fault> {
        self.map_err(|fault| fault.wrap(format_args!("{field}[{index}]")))
    }
}

/// Parses every element of a repeated field; the first fault carries the element's index.
pub(crate) fn each<'a, A, B>(
    field: &str,
    items: impl IntoIterator<Item = &'a A>,
    mut parse: impl FnMut(&'a A) -> Result<B, Fault>,
) -> Result<Vec<B>, Fault>
where
    A: 'a,
{
    items.into_iter().enumerate().map(|(i, item)| parse(item).at_index(field, i)).collect()
}
