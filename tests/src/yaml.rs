//! Reads YAML with the place of every value, so that an error names file, line and path.
//!
//! In: text and the name of its file. Out: [`At`], a value that knows where it stands. No I/O.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};
use saphyr::{LoadableYamlNode, MarkedYaml, Scalar, YamlData};

/// Every document of a YAML text, in order.
///
/// # Errors
/// Text that is not YAML: `file:line:column: what`.
pub fn documents<'a>(file: &str, text: &'a str) -> Result<Vec<MarkedYaml<'a>>> {
    MarkedYaml::load_from_str(text)
        .map_err(|e| anyhow!("{file}:{}:{}: not YAML: {}", e.marker().line(), e.marker().col() + 1, e.info()))
}

/// A value and where it stands.
#[derive(Clone)]
pub struct At<'a> {
    file: &'a str,
    path: String,
    node: &'a MarkedYaml<'a>,
}

impl<'a> At<'a> {
    /// The root of one document of `file`.
    pub fn root(file: &'a str, node: &'a MarkedYaml<'a>) -> Self {
        Self { file, path: String::new(), node }
    }

    /// An error at this place.
    pub fn error(&self, why: impl std::fmt::Display) -> anyhow::Error {
        let path = if self.path.is_empty() { "document" } else { &self.path };
        anyhow!("{}:{}: {path}: {why}", self.file, self.line())
    }

    /// The line of this value, from 1.
    pub fn line(&self) -> usize {
        self.node.span.start.line()
    }

    /// The column of this value, from 0.
    pub fn column(&self) -> usize {
        self.node.span.start.col()
    }

    /// Whether this is `null` or empty.
    pub fn is_null(&self) -> bool {
        matches!(self.node.data, YamlData::Value(Scalar::Null))
    }

    /// The value of a key, when this is a mapping that has it with a value other than `null`.
    pub fn get(&self, key: &str) -> Option<At<'a>> {
        let YamlData::Mapping(map) = &self.node.data else { return None };
        let (_, node) = map.iter().find(|(k, _)| k.data.as_str() == Some(key))?;
        let path = if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) };
        Some(At { file: self.file, path, node }).filter(|at| !at.is_null())
    }

    /// The value under a dotted path such as `metadata.name`.
    pub fn find(&self, path: &str) -> Option<At<'a>> {
        path.split('.').try_fold(self.clone(), |at, key| at.get(key))
    }

    /// The value of a key that must be there.
    ///
    /// # Errors
    /// The key is missing.
    pub fn need(&self, key: &str) -> Result<At<'a>> {
        self.get(key).ok_or_else(|| self.error(format_args!("`{key}` is missing")))
    }

    /// The first key of a mapping, which is where its block starts.
    pub fn first_key(&self) -> Option<At<'a>> {
        let YamlData::Mapping(map) = &self.node.data else { return None };
        map.iter().next().map(|(node, _)| At { file: self.file, path: self.path.clone(), node })
    }

    /// Refuses keys that are not among `known`.
    ///
    /// # Errors
    /// This is no mapping, or has a key that nobody reads.
    pub fn only(&self, known: &[&str]) -> Result<()> {
        let YamlData::Mapping(map) = &self.node.data else { return Err(self.error("expected a mapping")) };
        for (key, _) in map {
            let name = key.data.as_str().unwrap_or("?");
            if !known.contains(&name) {
                let at = At { file: self.file, path: self.path.clone(), node: key };
                return Err(at.error(format_args!("unknown field `{name}`, expected one of {}", known.join(", "))));
            }
        }
        Ok(())
    }

    /// The items of a sequence.
    ///
    /// # Errors
    /// This is no sequence.
    pub fn items(&self) -> Result<Vec<At<'a>>> {
        let YamlData::Sequence(items) = &self.node.data else { return Err(self.error("expected a list")) };
        let at = |(i, node)| At { file: self.file, path: format!("{}[{i}]", self.path), node };
        Ok(items.iter().enumerate().map(at).collect())
    }

    /// A scalar as text; numbers and booleans are accepted, as people leave out quotes.
    ///
    /// # Errors
    /// This is a list or a mapping.
    pub fn text(&self) -> Result<String> {
        match &self.node.data {
            YamlData::Value(Scalar::String(s)) => Ok(s.to_string()),
            YamlData::Value(Scalar::Integer(i)) => Ok(i.to_string()),
            YamlData::Value(Scalar::Boolean(b)) => Ok(b.to_string()),
            YamlData::Value(Scalar::FloatingPoint(f)) => Ok(f.to_string()),
            _ => Err(self.error("expected text")),
        }
    }

    /// `true` or `false`.
    ///
    /// # Errors
    /// Anything else.
    pub fn boolean(&self) -> Result<bool> {
        match &self.node.data {
            YamlData::Value(Scalar::Boolean(b)) => Ok(*b),
            _ => Err(self.error("expected true or false")),
        }
    }

    /// A scalar parsed as `T`; `what` names it in the error.
    ///
    /// # Errors
    /// No scalar, or one that does not parse.
    pub fn parse<T: std::str::FromStr>(&self, what: &str) -> Result<T> {
        let text = self.text()?;
        text.parse().map_err(|_| self.error(format_args!("`{text}` is not {what}")))
    }

    /// A list of texts.
    ///
    /// # Errors
    /// As [`At::items`] and [`At::text`].
    pub fn texts(&self) -> Result<Vec<String>> {
        self.items()?.iter().map(At::text).collect()
    }

    /// A mapping of text to text.
    ///
    /// # Errors
    /// No mapping, or a value that is no scalar.
    pub fn table(&self) -> Result<BTreeMap<String, String>> {
        let YamlData::Mapping(map) = &self.node.data else { return Err(self.error("expected a mapping")) };
        let mut out = BTreeMap::new();
        for (key, node) in map {
            let key = At { file: self.file, path: self.path.clone(), node: key }.text()?;
            let value = At { file: self.file, path: format!("{}.{key}", self.path), node }.text()?;
            out.insert(key, value);
        }
        Ok(out)
    }
}
