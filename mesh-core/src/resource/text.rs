//! Matching of strings, shared by routes, headers and subject names
//! (`envoy.type.matcher.v3.StringMatcher`).
//!
//! In: a matcher message, then texts. Out: yes or no. Regular expressions match the whole text, as
//! Envoy's do, and run in linear time.

use regex::Regex;

/// How a text is compared.
#[derive(Debug, Clone)]
pub enum StringMatch {
    /// Equal.
    Exact(Text),
    /// Starts with.
    Prefix(Text),
    /// Ends with.
    Suffix(Text),
    /// Holds.
    Contains(Text),
    /// The whole text matches.
    Regex(Regex),
}

/// A text to compare with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// The text; in lower case when `ignore_case`.
    pub value: Box<str>,
    /// ASCII letters compare equal in either case.
    pub ignore_case: bool,
}

impl PartialEq for StringMatch {
    /// Same kind and same text; regular expressions by their source.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(a), Self::Exact(b))
            | (Self::Prefix(a), Self::Prefix(b))
            | (Self::Suffix(a), Self::Suffix(b))
            | (Self::Contains(a), Self::Contains(b)) => a == b,
            (Self::Regex(a), Self::Regex(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}
