//! Paths as Envoy cleans them before it routes.
//!
//! In: a path with its query, and what to clean. Out: the clean one, if it is another. The query stays as it is.
//! Never: decodes anything but `%2e`, and `%2f` and `%5c` where it is told to.

/// What becomes of `%2F` and `%5C` (`path_with_escaped_slashes_action`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EscapedSlashes {
    /// They stay.
    #[default]
    Keep,
    /// A request that has any is refused.
    Reject,
    /// They become slashes, and the client is told to ask for that path (307).
    Redirect,
    /// They become slashes.
    Unescape,
}

/// What is cleaned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cleaning {
    /// Dot segments go (RFC 3986, 5.2.4; `%2e` is a dot), backslashes become slashes (`normalize_path`).
    pub dots: bool,
    /// Adjacent slashes become one (`merge_slashes`).
    pub slashes: bool,
    /// What becomes of escaped slashes; it is looked at first.
    pub escaped: EscapedSlashes,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cleaned {
    /// The path is clean.
    Same,
    /// The request goes on with this path.
    Other(String),
    /// The client is to ask for this path.
    Redirect(String),
    /// The request is refused.
    Refused,
}

/// Cleans a path.
pub fn clean(path: &str, how: Cleaning) -> Cleaned {
    let (only, query) = path.split_at(path.find('?').unwrap_or(path.len()));
    if !only.starts_with('/') {
        return Cleaned::Same;
    }
    let unescaped = if how.escaped == EscapedSlashes::Keep { None } else { unescape(only) };
    if unescaped.is_some() && how.escaped == EscapedSlashes::Reject {
        return Cleaned::Refused;
    }
    let redirect = unescaped.is_some() && how.escaped == EscapedSlashes::Redirect;
    let now = unescaped.as_deref().unwrap_or(only);
    let clean = match normalize(now, how.dots, how.slashes) {
        Some(clean) => clean,
        None => match unescaped {
            Some(unescaped) => unescaped,
            None => return Cleaned::Same,
        },
    };
    let whole = clean + query;
    if redirect { Cleaned::Redirect(whole) } else { Cleaned::Other(whole) }
}

/// The path with `%2F` and `%5C` as the characters they stand for; `None` if it has none.
fn unescape(path: &str) -> Option<String> {
    let mut rest = path;
    let mut clean = String::new();
    while let Some(at) = rest.find('%') {
        let character = match rest.get(at + 1..at + 3) {
            Some("2f" | "2F") => '/',
            Some("5c" | "5C") => '\\',
            _ => {
                clean.push_str(&rest[..=at]);
                rest = &rest[at + 1..];
                continue;
            }
        };
        clean.push_str(&rest[..at]);
        clean.push(character);
        rest = &rest[at + 3..];
    }
    clean.push_str(rest);
    (clean.len() < path.len()).then_some(clean)
}

/// `None`: there is nothing to do.
fn normalize(path: &str, dots: bool, slashes: bool) -> Option<String> {
    if !needs(path.as_bytes(), dots, slashes) {
        return None;
    }
    let straight = if dots { path.replace('\\', "/") } else { path.to_owned() };
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = straight[1..].split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match dot_segment(segment) {
            Some(parent) if dots => {
                if parent {
                    kept.pop();
                }
                if last {
                    kept.push("");
                }
            }
            _ if segment.is_empty() && slashes && !last => {}
            _ => kept.push(segment),
        }
    }
    Some(format!("/{}", kept.join("/")))
}

/// Nearly every path is clean, which one look over its bytes tells.
fn needs(path: &[u8], dots: bool, slashes: bool) -> bool {
    path.windows(2).any(|pair| match pair {
        [b'/', b'.' | b'%'] => dots,
        [b'/', b'/'] => slashes,
        [_, b'\\'] => dots,
        _ => false,
    })
}

/// Whether a segment is one of dots: `Some(true)` for two, `Some(false)` for one.
fn dot_segment(segment: &str) -> Option<bool> {
    let mut rest = segment;
    let mut dots = 0;
    while !rest.is_empty() {
        rest = rest.strip_prefix('.').or_else(|| rest.strip_prefix("%2e")).or_else(|| rest.strip_prefix("%2E"))?;
        dots += 1;
    }
    match dots {
        1 => Some(false),
        2 => Some(true),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cleaned(path: &str, dots: bool, slashes: bool) -> String {
        match clean(path, Cleaning { dots, slashes, escaped: EscapedSlashes::Keep }) {
            Cleaned::Same => path.to_owned(),
            Cleaned::Other(other) => other,
            odd => panic!("{odd:?}"),
        }
    }

    #[test]
    fn dot_segments_go() {
        for (path, clean) in [
            ("/", "/"),
            ("/a/b?x=/../", "/a/b?x=/../"),
            ("/a/./b/../c", "/a/c"),
            ("/a/%2E%2e/b?q", "/b?q"),
            ("/a/.%2e/b", "/b"),
            ("/../../etc", "/etc"),
            ("/a/..", "/"),
            ("/a/.", "/a/"),
            ("/a//b", "/a//b"),
            ("/a//../b", "/a/b"),
            ("/.well-known/x", "/.well-known/x"),
            ("/%41/%2", "/%41/%2"),
            ("/...", "/..."),
            ("/a\\..\\b", "/b"),
            ("*", "*"),
            ("", ""),
        ] {
            assert_eq!(cleaned(path, true, false), clean, "{path}");
        }
    }

    #[test]
    fn slashes_merge() {
        assert_eq!(cleaned("//a///b//", false, true), "/a/b/");
        assert_eq!(cleaned("//a/../b?//", true, true), "/b?//");
        assert_eq!(cleaned("/a/../b", false, false), "/a/../b");
        assert_eq!(cleaned("/a\\b", false, true), "/a\\b");
    }

    #[test]
    fn escaped_slashes_are_what_the_listener_says() {
        let clean = |path: &str, escaped| clean(path, Cleaning { dots: true, slashes: true, escaped });
        let path = "/a%2F..%5cb%2f?c%2F";
        assert_eq!(clean(path, EscapedSlashes::Keep), Cleaned::Same);
        assert_eq!(clean(path, EscapedSlashes::Reject), Cleaned::Refused);
        assert_eq!(clean(path, EscapedSlashes::Redirect), Cleaned::Redirect("/b/?c%2F".into()));
        assert_eq!(clean(path, EscapedSlashes::Unescape), Cleaned::Other("/b/?c%2F".into()));
        for how in [EscapedSlashes::Reject, EscapedSlashes::Redirect, EscapedSlashes::Unescape] {
            assert_eq!(clean("/a%2", how), Cleaned::Same);
            assert_eq!(clean("/a%25?%2f", how), Cleaned::Same);
        }
    }
}
