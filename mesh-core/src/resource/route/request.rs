//! What routing needs to know of a request.
//!
//! In: the head as some codec parsed it. Out: views of it. It copies nothing.

use http::HeaderMap;

/// Lookup of request headers, for whatever form the codec keeps them in.
pub trait Headers {
    /// Calls `visit` with every value of the header `name` (lower case), in order.
    fn each<'a>(&'a self, name: &str, visit: &mut dyn FnMut(&'a [u8]));
}

impl Headers for HeaderMap {
    fn each<'a>(&'a self, name: &str, visit: &mut dyn FnMut(&'a [u8])) {
        for value in self.get_all(name) {
            visit(value.as_bytes());
        }
    }
}

/// Pairs as a codec parsed them; names in any case.
impl Headers for Vec<(&str, &[u8])> {
    fn each<'a>(&'a self, name: &str, visit: &mut dyn FnMut(&'a [u8])) {
        for (_, value) in self.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)) {
            visit(value);
        }
    }
}

/// What routing needs of a request.
#[derive(Clone, Copy)]
pub struct RequestHead<'a> {
    /// Host header or `:authority`, with port if any.
    pub authority: &'a str,
    /// Path and query as received, `*` for `OPTIONS *`, empty for CONNECT.
    pub path: &'a str,
    /// Method.
    pub method: &'a str,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// All other headers.
    pub headers: &'a dyn Headers,
}

impl<'a> RequestHead<'a> {
    /// Calls `use_value` with the value of a header or pseudo header; several values are joined by
    /// commas (RFC 9110 5.3), as Envoy does before it compares.
    pub(crate) fn with_header<R>(&self, name: &str, use_value: impl FnOnce(Option<&[u8]>) -> R) -> R {
        let pseudo = match name {
            ":authority" | "host" => Some(self.authority),
            ":path" => Some(self.path),
            ":method" => Some(self.method),
            ":scheme" => Some(self.scheme),
            _ => None,
        };
        if let Some(value) = pseudo {
            return use_value(Some(value.as_bytes()));
        }
        // Nearly always there is one value, which needs no copy.
        let mut first: Option<&[u8]> = None;
        let mut joined: Vec<u8> = Vec::new();
        self.headers.each(name, &mut |value| match first {
            None => first = Some(value),
            Some(first) => {
                if joined.is_empty() {
                    joined.extend_from_slice(first);
                }
                joined.push(b',');
                joined.extend_from_slice(value);
            }
        });
        if joined.is_empty() { use_value(first) } else { use_value(Some(&joined)) }
    }

    /// The path without query and fragment.
    pub(crate) fn path_only(&self) -> &'a str {
        split_path(self.path).0
    }

    /// The first value of a query parameter, as written (not decoded).
    pub(crate) fn query_parameter(&self, name: &str) -> Option<&'a str> {
        let rest = split_path(self.path).1.strip_prefix('?')?;
        let query = rest.split('#').next().unwrap_or_default();
        query.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (key == name).then_some(value)
        })
    }
}

/// Splits a request target before its query or fragment.
pub(crate) fn split_path(path: &str) -> (&str, &str) {
    match path.find(['?', '#']) {
        Some(at) => path.split_at(at),
        None => (path, ""),
    }
}
