//! Who sees an object: Istio's `exportTo`.
//!
//! In: the list as written and the object's namespace. Out: a yes or no per namespace.

use std::sync::Arc;

/// Namespaces that see an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Visibility {
    /// Every namespace.
    All,
    /// These.
    Only(Vec<Arc<str>>),
}

impl Visibility {
    /// From `exportTo`: empty or `*` = all, `.` = the own namespace, `~` = none, else names.
    pub fn parse<'t>(export_to: impl IntoIterator<Item = &'t str>, own: &str) -> Visibility {
        let mut names = Vec::new();
        let mut given = false;
        for name in export_to {
            given = true;
            match name {
                "*" => return Visibility::All,
                "." => names.push(own.into()),
                "~" => {}
                name => names.push(name.into()),
            }
        }
        if given { Visibility::Only(names) } else { Visibility::All }
    }

    /// Whether a namespace sees it.
    pub fn includes(&self, namespace: &str) -> bool {
        match self {
            Visibility::All => true,
            Visibility::Only(names) => names.iter().any(|name| &**name == namespace),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn export_to_as_istio_writes_it() {
        for (list, own, other) in [
            (&[][..], true, true),
            (&["*"], true, true),
            (&["."], true, false),
            (&["other"], false, true),
            (&[".", "other"], true, true),
            (&["~"], false, false),
        ] {
            let visibility = Visibility::parse(list.iter().copied(), "own");
            assert_eq!((visibility.includes("own"), visibility.includes("other")), (own, other), "{list:?}");
        }
    }
}
