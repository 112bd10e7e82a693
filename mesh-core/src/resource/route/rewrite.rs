//! Paths and locations that follow from a route.
//!
//! In: a route that was selected, and the request. Out: the path to send upstream, or the location
//! of a redirect. It never decides whether a route fits.

use crate::resource::route::request::split_path;
use crate::resource::route::{Action, PathMatch, PathRewrite, Redirect, RedirectPath, RequestHead, Route};

impl Route {
    /// Path and query to send upstream, `None` = unchanged.
    pub fn rewrite_path(&self, path: &str) -> Option<String> {
        match &self.action {
            Action::Forward(forward) => {
                let rewrite = forward.path_rewrite.as_ref()?;
                Some(rewrite.apply(&self.matches.path, path))
            }
            _ => None,
        }
    }

    /// Value of the `location` header when the action is a redirect, else `None`.
    pub fn location(&self, request: &RequestHead<'_>) -> Option<String> {
        match &self.action {
            Action::Redirect(redirect) => Some(redirect.location(&self.matches.path, request)),
            _ => None,
        }
    }
}

impl PathRewrite {
    /// The query is kept as it is.
    fn apply(&self, matched: &PathMatch, path: &str) -> String {
        let (path, rest) = split_path(path);
        let new = match self {
            Self::Prefix(replacement) => {
                let length = match matched {
                    PathMatch::Prefix(prefix) | PathMatch::SeparatedPrefix(prefix) => prefix.len(),
                    PathMatch::Exact(_) | PathMatch::Regex(_) | PathMatch::Connect => path.len(),
                };
                let tail = path.get(length..).unwrap_or_default();
                // A bare "/" in place of a whole separated prefix must not double the slash.
                if matches!(matched, PathMatch::SeparatedPrefix(_))
                    && replacement.ends_with('/')
                    && tail.starts_with('/')
                {
                    format!("{}{tail}", replacement.trim_end_matches('/'))
                } else {
                    format!("{replacement}{tail}")
                }
            }
            Self::Regex { pattern, substitution } => pattern.replace_all(path, substitution.as_ref()).into_owned(),
        };
        format!("{new}{rest}")
    }
}

impl Redirect {
    fn location(&self, matched: &PathMatch, request: &RequestHead<'_>) -> String {
        let scheme = self.scheme.as_deref().unwrap_or(request.scheme);
        let authority = self.authority(scheme, request);
        let path = match &self.path {
            None => self.keep_query(request.path),
            Some(RedirectPath::Full(full)) => {
                // A path with a query of its own replaces the request's.
                let query = split_path(request.path).1;
                if full.contains('?') || self.strip_query { full.to_string() } else { format!("{full}{query}") }
            }
            Some(RedirectPath::Rewrite(rewrite)) => self.keep_query(&rewrite.apply(matched, request.path)),
        };
        format!("{scheme}://{authority}{path}")
    }

    fn keep_query(&self, path: &str) -> String {
        if self.strip_query { split_path(path).0.to_owned() } else { path.to_owned() }
    }

    /// The request's port stays unless host or port change; a default port of the old scheme goes
    /// when the scheme changes.
    fn authority(&self, scheme: &str, request: &RequestHead<'_>) -> String {
        let bare = super::domains::without_port(request.authority);
        let old_port = request.authority.get(bare.len()..).unwrap_or_default().strip_prefix(':');
        let host = self.host.as_deref().unwrap_or(bare);
        let default_of = |scheme: &str| if scheme == "https" { "443" } else { "80" };
        match (self.port, old_port) {
            (Some(port), _) => format!("{host}:{port}"),
            (None, Some(old)) if self.host.is_none() => {
                if scheme != request.scheme && old == default_of(request.scheme) {
                    host.to_owned()
                } else {
                    format!("{host}:{old}")
                }
            }
            _ => host.to_owned(),
        }
    }
}
