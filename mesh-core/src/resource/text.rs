//! Matching of strings, shared by routes, headers and subject names
//! (`envoy.type.matcher.v3.StringMatcher`).
//!
//! In: a matcher message, then texts. Out: yes or no. Regular expressions match the whole text, as
//! Envoy's do, and run in linear time.

use std::fmt;

use envoy_types::pb::envoy::r#type::matcher::v3 as pb;
use regex::{Regex, RegexBuilder};

use crate::resource::fault::{At, Fault};

/// Most memory one compiled regular expression may take, in bytes; larger ones are refused.
pub const MAX_REGEX_BYTES: usize = 1 << 20;

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

impl StringMatch {
    /// Whether a text matches. A text that is not UTF-8 matches no regular expression.
    pub fn matches(&self, text: &[u8]) -> bool {
        match self {
            Self::Exact(want) => want.eq(text),
            Self::Prefix(want) => text.get(..want.value.len()).is_some_and(|head| want.eq(head)),
            Self::Suffix(want) => {
                text.len().checked_sub(want.value.len()).and_then(|at| text.get(at..)).is_some_and(|tail| want.eq(tail))
            }
            Self::Contains(want) => want.value.is_empty() || text.windows(want.value.len()).any(|part| want.eq(part)),
            Self::Regex(regex) => std::str::from_utf8(text).is_ok_and(|text| regex.is_match(text)),
        }
    }

    /// The text of an exact match that respects case.
    pub fn exact(&self) -> Option<&str> {
        match self {
            Self::Exact(text) if !text.ignore_case => Some(&text.value),
            _ => None,
        }
    }

    pub(crate) fn parse(message: &pb::StringMatcher) -> Result<Self, Fault> {
        use pb::string_matcher::MatchPattern;
        let text = |value: &str| Text::new(value, message.ignore_case);
        match &message.match_pattern {
            Some(MatchPattern::Exact(value)) => Ok(Self::Exact(text(value))),
            Some(MatchPattern::Prefix(value)) => Ok(Self::Prefix(text(value))),
            Some(MatchPattern::Suffix(value)) => Ok(Self::Suffix(text(value))),
            Some(MatchPattern::Contains(value)) => Ok(Self::Contains(text(value))),
            Some(MatchPattern::SafeRegex(regex)) => full_regex(regex).map(Self::Regex).at("safe_regex"),
            Some(MatchPattern::Custom(_)) => Err(Fault::field("custom", "custom string matchers are not supported")),
            None => Err(Fault::new("a string matcher needs a pattern")),
        }
    }
}

impl fmt::Display for StringMatch {
    /// For people: `a`, `a*`, `*a`, `*a*`, `/a/`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) => write!(f, "{}", text.value),
            Self::Prefix(text) => write!(f, "{}*", text.value),
            Self::Suffix(text) => write!(f, "*{}", text.value),
            Self::Contains(text) => write!(f, "*{}*", text.value),
            Self::Regex(regex) => write!(f, "/{regex}/"),
        }
    }
}

impl Text {
    pub(crate) fn new(value: &str, ignore_case: bool) -> Self {
        let value = if ignore_case { value.to_ascii_lowercase() } else { value.to_owned() };
        Text { value: value.into(), ignore_case }
    }

    fn eq(&self, other: &[u8]) -> bool {
        if self.ignore_case {
            self.value.as_bytes().eq_ignore_ascii_case(other)
        } else {
            self.value.as_bytes() == other
        }
    }
}

/// A regular expression that must match the whole text.
pub(crate) fn full_regex(message: &pb::RegexMatcher) -> Result<Regex, Fault> {
    // Checked on its own first: a stray parenthesis must not escape the group that anchors it.
    compile(&message.regex)?;
    compile(&format!(r"\A(?:{})\z", message.regex))
}

/// A regular expression that may match anywhere, for substitutions.
pub(crate) fn part_regex(message: &pb::RegexMatcher) -> Result<Regex, Fault> {
    compile(&message.regex)
}

fn compile(pattern: &str) -> Result<Regex, Fault> {
    if pattern.is_empty() {
        return Err(Fault::field("regex", "an empty regular expression"));
    }
    RegexBuilder::new(pattern)
        .size_limit(MAX_REGEX_BYTES)
        .dfa_size_limit(MAX_REGEX_BYTES)
        .build()
        .map_err(|error| Fault::field("regex", error.to_string()))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn matcher(pattern: pb::string_matcher::MatchPattern, ignore_case: bool) -> StringMatch {
        StringMatch::parse(&pb::StringMatcher { ignore_case, match_pattern: Some(pattern) }).unwrap()
    }

    fn regex(text: &str) -> pb::string_matcher::MatchPattern {
        pb::string_matcher::MatchPattern::SafeRegex(pb::RegexMatcher { regex: text.into(), ..Default::default() })
    }

    #[test]
    fn compares_as_envoy() {
        use pb::string_matcher::MatchPattern::*;
        for (pattern, fold, text, want) in [
            (Exact("a".into()), false, "a", true),
            (Exact("a".into()), false, "A", false),
            (Exact("A".into()), true, "a", true),
            (Prefix("ab".into()), false, "abc", true),
            (Prefix("ab".into()), false, "a", false),
            (Suffix("bc".into()), false, "abc", true),
            (Suffix("BC".into()), true, "abc", true),
            (Suffix("bc".into()), false, "c", false),
            (Contains("b".into()), false, "abc", true),
            (Contains("B".into()), true, "abc", true),
            (Contains("".into()), false, "", true),
            (Contains("x".into()), false, "abc", false),
            (regex("a.c"), false, "abc", true),
            (regex("a.c"), false, "xabc", false),
            (regex("a|b"), false, "b", true),
            (regex("a|b"), false, "bc", false),
        ] {
            let what = format!("{pattern:?} {fold} {text}");
            assert_eq!(matcher(pattern, fold).matches(text.as_bytes()), want, "{what}");
        }
        assert!(!matcher(regex(".*"), false).matches(b"\xff"));
    }

    #[test]
    fn refuses_bad_expressions() {
        for bad in ["", "(", "a)(b", "(?P<x", "\\p{Nope}", "(((a{1000}){1000}){1000})"] {
            let result = full_regex(&pb::RegexMatcher { regex: bad.into(), ..Default::default() });
            assert!(result.is_err(), "{bad}");
        }
        assert!(StringMatch::parse(&pb::StringMatcher::default()).is_err());
    }
}
