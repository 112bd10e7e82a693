//! YAML with positions: finds the line of any field, so that every error can name it. In: text. Out: a serde type or an
//! error with file, line and path. Knows nothing of the settings themselves.

use std::collections::HashMap;
use std::path::Path;

use saphyr::{LoadableYamlNode, MarkedYaml, Scalar, YamlData};
use serde::de::DeserializeOwned;
use serde_json::{Map, Number, Value};

use super::SettingsError;

/// Deepest nesting accepted; settings need five levels.
const MAX_DEPTH: usize = 32;

/// A parsed document that remembers where everything stood.
pub(super) struct Located<'a> {
    file: &'a Path,
    value: Value,
    /// 1-based line of each node, by path: `workloads[2].netns`, `.` for the whole.
    lines: HashMap<String, usize>,
}

impl<'a> Located<'a> {
    /// Parses the one document of `text`.
    pub fn parse(file: &'a Path, text: &str) -> Result<Located<'a>, SettingsError> {
        let documents = MarkedYaml::load_from_str(text).map_err(|error| SettingsError::Syntax {
            path: file.to_owned(),
            line: error.marker().line(),
            column: error.marker().col() + 1,
            why: error.info().to_owned(),
        })?;
        let mut located = Located { file, value: Value::Null, lines: HashMap::new() };
        match documents.as_slice() {
            [] => return Err(located.error(".", "the file is empty".into())),
            [document] => located.value = located.convert(document, String::new(), 0)?,
            [_, second, ..] => {
                located.lines.insert(".".into(), second.span.start.line());
                return Err(located.error(".", "a second YAML document; settings are one document".into()));
            }
        }
        Ok(located)
    }

    /// As a typed value.
    pub fn deserialize<T: DeserializeOwned>(&self) -> Result<T, SettingsError> {
        serde_path_to_error::deserialize(&self.value)
            .map_err(|error| self.error(&error.path().to_string(), error.inner().to_string()))
    }

    /// An error at `field`; an absent field has the line of the nearest field around it.
    pub fn error(&self, field: &str, why: String) -> SettingsError {
        let mut at = field;
        let line = loop {
            if let Some(line) = self.lines.get(at) {
                break *line;
            }
            match at.rfind(['.', '[']) {
                Some(cut) if cut > 0 => at = &at[..cut],
                _ => break self.lines.get(".").copied().unwrap_or(1),
            }
        };
        SettingsError::Field { path: self.file.to_owned(), line, field: field.to_owned(), why }
    }

    fn convert(&mut self, node: &MarkedYaml<'_>, path: String, depth: usize) -> Result<Value, SettingsError> {
        let here = if path.is_empty() { "." } else { &path };
        self.lines.entry(here.to_owned()).or_insert(node.span.start.line());
        if depth > MAX_DEPTH {
            return Err(self.error(here, format!("nested deeper than {MAX_DEPTH} levels")));
        }
        match &node.data {
            YamlData::Value(Scalar::Null) => Ok(Value::Null),
            YamlData::Value(Scalar::Boolean(value)) => Ok(Value::Bool(*value)),
            YamlData::Value(Scalar::Integer(value)) => Ok(Value::Number((*value).into())),
            YamlData::Value(Scalar::FloatingPoint(value)) => match Number::from_f64(value.into_inner()) {
                Some(number) => Ok(Value::Number(number)),
                None => Err(self.error(here, "not a finite number".into())),
            },
            YamlData::Value(Scalar::String(text)) => Ok(Value::String(text.to_string())),
            YamlData::Sequence(items) => {
                let items = items.iter().enumerate();
                items.map(|(i, item)| self.convert(item, format!("{path}[{i}]"), depth + 1)).collect()
            }
            YamlData::Mapping(entries) => {
                let mut map = Map::new();
                for (key, value) in entries {
                    let YamlData::Value(Scalar::String(name)) = &key.data else {
                        return Err(self.error(here, "every key must be text; quote it".into()));
                    };
                    let path = if path.is_empty() { name.to_string() } else { format!("{path}.{name}") };
                    // The key's line, not the value's: that is where a person looks.
                    self.lines.insert(path.clone(), key.span.start.line());
                    map.insert(name.to_string(), self.convert(value, path, depth + 1)?);
                }
                Ok(Value::Object(map))
            }
            YamlData::Tagged(..) => Err(self.error(here, "YAML tags have no meaning here".into())),
            YamlData::Representation(..) | YamlData::Alias(_) | YamlData::BadValue => {
                Err(self.error(here, "not a value".into()))
            }
        }
    }
}
