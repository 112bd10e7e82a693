//! Field types that several kinds share.
//!
//! In: scalars as Kubernetes and Istio write them. Out: values that are in range.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

use super::{Findings, Labels};
use crate::yaml::FieldPath;

/// A duration as `1.5s`, `2m`, `1h30m`, `250ms`; at least 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl Span {
    /// Longest duration accepted: what protobuf's Duration may hold is longer, nothing in a mesh is.
    const MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

    fn parse(text: &str) -> Result<Span, String> {
        let wrong = || format!("`{text}` is no duration such as 5s, 1.5s, 250ms, 1m, 1h30m");
        let mut rest = text;
        let mut total = Duration::ZERO;
        if rest.is_empty() {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
            let (number, tail) = rest.split_at(digits);
            let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(unit_end);
            let seconds = match unit {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return Err(wrong()),
            };
            let value: f64 = number.parse().map_err(|_| wrong())?;
            let part = Duration::try_from_secs_f64(value * seconds).map_err(|_| wrong())?;
            total = total.checked_add(part).filter(|sum| *sum <= Span::MAX).ok_or_else(wrong)?;
            rest = tail;
        }
        Ok(Span(total))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
        let text = String::deserialize(deserializer)?;
        Span::parse(&text).map_err(de::Error::custom)
    }
}

/// A port by number or by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortRef {
    /// Number, 1 to 65535.
    Number(u16),
    /// Name of a container's port.
    Name(String),
}

impl<'de> Deserialize<'de> for PortRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<PortRef, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = PortRef;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port number from 1 to 65535 or a port's name")
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<PortRef, E> {
                match u16::try_from(value) {
                    Ok(port) if port > 0 => Ok(PortRef::Number(port)),
                    _ => Err(de::Error::invalid_value(de::Unexpected::Unsigned(value), &self)),
                }
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<PortRef, E> {
                if value.is_empty() {
                    return Err(de::Error::invalid_value(de::Unexpected::Str(value), &self));
                }
                Ok(PortRef::Name(value.to_owned()))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

/// A port number, 1 to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortNumber(pub u16);

impl<'de> Deserialize<'de> for PortNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<PortNumber, D::Error> {
        let value = u64::deserialize(deserializer)?;
        match u16::try_from(value) {
            Ok(port) if port > 0 => Ok(PortNumber(port)),
            _ => Err(de::Error::custom(format!("{value} is no port number from 1 to 65535"))),
        }
    }
}

/// `exact`, `prefix` or `regex`; none of them in a header condition means that the header is there.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawMatch")]
pub enum StringMatch {
    /// Any value.
    Any,
    /// Equal.
    Exact(String),
    /// Starts with.
    Prefix(String),
    /// The whole value matches (RE2 syntax).
    Regex(String),
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawMatch {
    exact: Option<String>,
    prefix: Option<String>,
    regex: Option<String>,
}

impl TryFrom<RawMatch> for StringMatch {
    type Error = String;

    fn try_from(raw: RawMatch) -> Result<StringMatch, String> {
        match raw {
            RawMatch { exact: None, prefix: None, regex: None } => Ok(StringMatch::Any),
            RawMatch { exact: Some(text), prefix: None, regex: None } => Ok(StringMatch::Exact(text)),
            RawMatch { exact: None, prefix: Some(text), regex: None } => Ok(StringMatch::Prefix(text)),
            RawMatch { exact: None, prefix: None, regex: Some(text) } => Ok(StringMatch::Regex(text)),
            _ => Err("only one of exact, prefix and regex may be given".to_owned()),
        }
    }
}

/// `selector`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Selector {
    /// Labels that a workload must have, all of them.
    pub match_labels: Labels,
}

/// Refuses labels that no workload has because they are meant as patterns. `path`: of the labels.
pub(super) fn check_labels(path: &FieldPath, labels: Option<&Labels>, findings: &mut Findings) {
    for (key, value) in labels.into_iter().flatten() {
        if key.is_empty() || key.contains('*') || value.contains('*') {
            findings.error(path.key(key), format!("`{key}: {value}` is no label: both are compared as they stand"));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn durations_as_istio_writes_them() {
        for (text, milliseconds) in [("5s", 5000), ("1.5s", 1500), ("250ms", 250), ("1h30m", 5_400_000), ("0s", 0)] {
            assert_eq!(Span::parse(text).unwrap().0, Duration::from_millis(milliseconds), "{text}");
        }
        for text in ["", "5", "s", "-1s", "1x", "1..5s", "1e9h", "99999999999999999999h", "5 s"] {
            assert!(Span::parse(text).is_err(), "{text}");
        }
    }
}
